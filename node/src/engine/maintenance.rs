//! The maintenance thread: flushes state families at its own pace, then cuts the raft log below what is durable here
//! and what the leader says that nobody needs, then lets the log free files. Nothing waits for it.
use super::handle::Fenced;
use super::shard::{Completion, clock_ms};
use crate::failpoints;
use crate::space::Space;
use carillon_consensus::{LogError, LogStore};
use carillon_store::{EngineLog, FlushPacer, PacerLimits, StateDb, StateError};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Entries kept below the cut, so that a follower that is a little behind finds them in the log.
const SLACK_ENTRIES: u64 = 64;
/// Rounds (seconds) between purges of log files.
const PURGE_ROUNDS: u64 = 10;

pub enum MaintenanceMessage {
    /// Nobody needs the log up to here, as the leader says: every replica has it on disk, or will get a snapshot.
    Safe {
        group: u32,
        index: u64,
    },
    Stop,
}

pub(super) struct Maintenance {
    pub log: Arc<EngineLog>,
    pub state: Arc<StateDb>,
    pub messages: Receiver<MaintenanceMessage>,
    pub completions: Sender<Completion>,
    pub unflushed: Arc<Vec<AtomicU64>>,
    pub limits: PacerLimits,
    pub space: Arc<Space>,
    /// Nothing of a replica that is out of service is cut.
    pub fenced: Fenced,
}

impl Maintenance {
    pub fn run(self) {
        let mut pacer = FlushPacer::new(self.limits);
        let mut safe: BTreeMap<u32, u64> = BTreeMap::new();
        let mut cut: BTreeMap<u32, u64> = BTreeMap::new();
        let mut round = 0_u64;
        loop {
            match self.messages.recv_timeout(Duration::from_secs(1)) {
                Ok(MaintenanceMessage::Safe { group, index }) => {
                    let known = safe.entry(group).or_default();
                    *known = index.max(*known);
                    continue;
                }
                Ok(MaintenanceMessage::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            round += 1;
            self.flush(&mut pacer);
            for (group, index) in &safe {
                if self.fenced.lock().contains_key(group) {
                    continue;
                }
                self.truncate(*group, *index, cut.entry(*group).or_default());
            }
            if round.is_multiple_of(PURGE_ROUNDS) || self.space.near_full() {
                self.purge();
            }
            self.report();
        }
    }

    fn purge(&self) {
        failpoints::hit("log::before_purge");
        match self.log.purge() {
            Ok(_) => {}
            // Entries that cannot be read cannot be moved to another file. Nothing was lost by trying; the replica they belong
            // to is fenced by whoever reads them, at the latest by the scrub.
            Err(error @ (LogError::Damaged(_) | LogError::Corrupt { .. })) => {
                metrics::counter!("carillon_log_purge_failures_total").increment(1);
                tracing::error!(%error, "log files cannot be freed");
            }
            Err(error) => {
                tracing::error!(%error, "raft log purge failed; stopping");
                std::process::abort();
            }
        }
        failpoints::hit("log::after_purge");
    }

    fn flush(&self, pacer: &mut FlushPacer) {
        let now_ms = clock_ms();
        for (group, bytes) in self.unflushed.iter().enumerate() {
            let (group, bytes) = (group as u32, bytes.swap(0, Ordering::Relaxed));
            if bytes > 0 {
                // Read after the bytes were taken, so the index covers them.
                let applied = self.state.replica(group).and_then(|replica| replica.applied());
                let index = applied.ok().flatten().map_or(u64::MAX, |record| record.index);
                pacer.committed(group, index, bytes, now_ms);
            }
        }
        for group in pacer.unflushed_groups() {
            if let Ok(Some(record)) = self.state.durable_applied(group) {
                pacer.durable(group, record.index);
            }
        }
        metrics::gauge!("carillon_log_unflushed_bytes").set(pacer.unflushed_total_bytes() as f64);
        while let Some(group) = pacer.next(now_ms) {
            self.flush_group(pacer, group);
        }
        // What is flushed can be cut from the log: one replica a round, so that a full disk is not filled by flushes.
        if self.space.near_full()
            && let Some(group) = pacer.largest()
        {
            self.flush_group(pacer, group);
        }
    }

    fn flush_group(&self, pacer: &mut FlushPacer, group: u32) {
        failpoints::hit("state::before_flush");
        if let Err(error) = self.state.flush(group) {
            if matches!(error, StateError::NoReplica(_)) {
                // The group left this node meanwhile.
                return pacer.forget(group);
            }
            // Damaged tables of one replica: after the restart it is fenced and the others run.
            if let Err(error) = self.state.note_damage(None, &error) {
                tracing::error!(%error, "the damaged replica cannot be remembered");
            }
            tracing::error!(group, %error, "state flush failed; stopping");
            std::process::abort();
        }
        failpoints::hit("state::after_flush");
        metrics::counter!("carillon_state_flushes_total").increment(1);
        pacer.flushed(group);
    }

    fn truncate(&self, group: u32, safe: u64, cut: &mut u64) {
        let durable = match self.state.durable_applied(group) {
            Ok(record) => record.map_or(0, |r| r.index),
            Err(StateError::NoReplica(_)) => return,
            Err(error) => {
                tracing::error!(group, %error, "cannot read the durable applied index");
                return;
            }
        };
        let index = safe.min(durable).saturating_sub(SLACK_ENTRIES);
        if index < *cut + SLACK_ENTRIES {
            return;
        }
        let term = match self.log.entries(group, index, index + 1, u64::MAX) {
            Ok(entries) => entries.first().map_or(0, |e| e.term),
            Err(error) => {
                tracing::debug!(group, %error, "nothing to cut");
                return;
            }
        };
        failpoints::hit("log::before_truncate");
        if let Err(error) = self.log.truncate(group, index, term) {
            tracing::error!(group, %error, "raft log truncation failed; stopping");
            std::process::abort();
        }
        failpoints::hit("log::after_truncate");
        *cut = index;
        drop(self.completions.send(Completion::Truncated { group, index, term }));
    }

    fn report(&self) {
        metrics::gauge!("carillon_log_disk_bytes").set(self.log.disk_bytes() as f64);
        self.state.metrics();
    }
}
