//! The scrub thread: reads every stored entry and row with their checksums, slowly, once in a while or when an operator asks.
//!
//! Damage is found while the other replicas are well, instead of when this one is the last. A damaged replica is fenced
//! with the reason, the others go on; the fence outlasts a restart (`StateDb::note_damage`, `EngineLog::damaged`).
//! Bounded: one pass at a time, pieces of [`PIECE_BYTES`], `scrub.bytes_per_second`.
use super::handle::{Fenced, Hosted};
use super::shard::{Completion, clock_ms};
use crate::config::Scrub;
use carillon_consensus::{LogError, LogStore};
use carillon_store::{EngineLog, StateDb};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Read at a time.
const PIECE_BYTES: u64 = 512 << 10;
/// When the last whole pass ended, in the data directory: a node that is restarted often must not start over for ever.
const LAST_FILE: &str = "scrub.last";

/// What one pass found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubReport {
    pub bytes: u64,
    /// Groups that were fenced by it, and why.
    pub damaged: Vec<(u32, String)>,
}

pub enum ScrubMessage {
    /// Read everything now.
    Run {
        reply: oneshot::Sender<ScrubReport>,
    },
    Stop,
}

pub(super) struct Scrubber {
    pub log: Arc<EngineLog>,
    pub state: Arc<StateDb>,
    /// What lives here now, and what of it is out of service already.
    pub hosted: watch::Receiver<Arc<Hosted>>,
    pub fenced: Fenced,
    pub messages: Receiver<ScrubMessage>,
    pub completions: Sender<Completion>,
    pub settings: Scrub,
    pub last_file: LastPass,
}

/// Remembers when the last pass ended.
pub(super) struct LastPass(PathBuf);

impl LastPass {
    pub fn new(data_dir: &Path) -> Self {
        Self(data_dir.join(LAST_FILE))
    }

    fn read_ms(&self) -> u64 {
        std::fs::read_to_string(&self.0).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn write(&self, now_ms: u64) {
        if let Err(error) = std::fs::write(&self.0, format!("{now_ms}\n")) {
            tracing::warn!(%error, "cannot remember the time of the scrub");
        }
    }
}

/// The node is stopping.
struct Stopped;

impl Scrubber {
    pub fn run(self) {
        // A new node has nothing to read; its first pass is due one period from now.
        if self.last_file.read_ms() == 0 {
            self.last_file.write(clock_ms());
        }
        loop {
            let reply = match self.messages.recv_timeout(self.wait()) {
                Ok(ScrubMessage::Run { reply }) => Some(reply),
                Ok(ScrubMessage::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) if self.settings.every_s == 0 => continue,
                Err(RecvTimeoutError::Timeout) => None,
            };
            let Ok(report) = self.pass() else { return };
            tracing::info!(bytes = report.bytes, damaged = report.damaged.len(), "scrub ended");
            if let Some(reply) = reply {
                drop(reply.send(report));
            }
        }
    }

    fn wait(&self) -> Duration {
        match self.settings.every_s {
            0 => Duration::from_secs(3_600),
            every_s => {
                let due_ms = self.last_file.read_ms().saturating_add(every_s * 1000);
                Duration::from_millis(due_ms.saturating_sub(clock_ms()).max(1_000))
            }
        }
    }

    fn pass(&self) -> Result<ScrubReport, Stopped> {
        let mut report = ScrubReport::default();
        let hosted: Vec<u32> = self.hosted.borrow().keys().copied().collect();
        for group in hosted {
            if self.fenced.lock().contains_key(&group) {
                continue;
            }
            let found = match self.log_of(group, &mut report)? {
                None => self.state_of(group, &mut report)?,
                found => found,
            };
            if let Some(reason) = found {
                let blocked = Completion::Blocked { group, reason: reason.clone() };
                drop(self.completions.send(blocked));
                report.damaged.push((group, reason));
            }
        }
        self.last_file.write(clock_ms());
        metrics::gauge!("carillon_scrub_last_end_seconds").set(clock_ms() as f64 / 1000.0);
        Ok(report)
    }

    /// Every entry of a group. Gives the reason if one is damaged.
    fn log_of(&self, group: u32, report: &mut ScrubReport) -> Result<Option<String>, Stopped> {
        let mut next = 0;
        loop {
            let range = match self.log.load(group) {
                Ok(Some(stored)) => (stored.truncated_index + 1).max(next)..stored.last_index + 1,
                Ok(None) => return Ok(None),
                Err(error) => return Ok(damage(group, "log", &error)),
            };
            if range.is_empty() {
                return Ok(None);
            }
            match self.log.entries(group, range.start, range.end, PIECE_BYTES) {
                Ok(entries) => {
                    next = range.start + entries.len() as u64;
                    let bytes = entries.iter().map(|e| e.data.len() as u64 + 32).sum();
                    self.pace("log", bytes, report)?;
                }
                // It was cut or replaced meanwhile.
                Err(LogError::Compacted { .. } | LogError::Missing { .. }) => next = 0,
                Err(error) => return Ok(damage(group, "log", &error)),
            }
        }
    }

    /// Every row of a group.
    fn state_of(&self, group: u32, report: &mut ScrubReport) -> Result<Option<String>, Stopped> {
        let Ok(replica) = self.state.replica(group) else { return Ok(None) };
        let mut from = Vec::new();
        loop {
            match replica.scrub(&from, PIECE_BYTES) {
                Ok(position) => {
                    self.pace("state", position.bytes, report)?;
                    match position.next {
                        Some(next) => from = next,
                        None => return Ok(None),
                    }
                }
                Err(error) => {
                    if let Err(error) = self.state.note_damage(Some(group), &error) {
                        tracing::error!(group, %error, "the fence will not outlast a restart");
                    }
                    return Ok(damage(group, "state", &error));
                }
            }
        }
    }

    /// Sleeps off what was read; ends when the node stops.
    fn pace(&self, store: &'static str, bytes: u64, report: &mut ScrubReport) -> Result<(), Stopped> {
        report.bytes += bytes;
        metrics::counter!("carillon_scrub_bytes_total", "store" => store).increment(bytes);
        let sleep = Duration::from_micros(bytes.saturating_mul(1_000_000) / self.settings.bytes_per_second);
        match self.messages.recv_timeout(sleep) {
            Ok(ScrubMessage::Stop) | Err(RecvTimeoutError::Disconnected) => Err(Stopped),
            // One pass at a time: whoever asks meanwhile is told nothing and asks again.
            Ok(ScrubMessage::Run { reply }) => {
                drop(reply);
                Ok(())
            }
            Err(RecvTimeoutError::Timeout) => Ok(()),
        }
    }
}

fn damage(group: u32, store: &'static str, error: &dyn std::fmt::Display) -> Option<String> {
    metrics::counter!("carillon_scrub_damage_total", "store" => store).increment(1);
    tracing::error!(group, store, %error, "stored bytes are damaged");
    Some(format!("{store} is damaged: {error}"))
}
