//! Snapshots, both ways. What travels through raft is a small manifest (opaque here); the caller moves the files.
//!
//! Sender: raft asks the log view for a snapshot when the log does not reach back far enough. Without a fitting offer
//! `Outputs::snapshot_wanted` names the replica; the caller makes the files and calls `offer_snapshot`, and raft asks
//! again with the next heartbeat. While a follower is in the snapshot state raft sends it nothing, so there is a
//! deadline: `snapshot_ticks_max` without `snapshot_progress` counts as a failure, and the follower is probed again.
//!
//! Receiver: a snapshot that raft would take is held back (one at a time, the newest) and announced by
//! `Outputs::snapshot_fetch`. The caller fetches and verifies the files, makes a state family of them that is complete on
//! disk, and calls `accept_snapshot`. Only then raft sees the message. The write that follows replaces log, hard state,
//! membership and state generation in one piece; when it is durable, `Outputs::installed` tells the caller to switch the
//! state, and `applied` ends it.
//!
//! Between the last two steps the entries after the old applied index exist nowhere, and raft 0.7.0 panics when it
//! campaigns then (it reads them to look for configuration changes). So no tick and no request to take over reaches raft
//! until `applied`.
use crate::error::StepError;
use crate::group::Group;
use crate::log_store::SnapshotMark;
use crate::output::SnapshotFetch;
use crate::wire;
use bytes::Bytes;
use raft::eraftpb::{ConfState, Message, Snapshot};
use raft::{ProgressState, SnapshotStatus, StateRole};
use std::collections::BTreeMap;

/// Why a snapshot was not offered: make a new one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// Nothing after it must be in it, and it must be applied here.
    #[error("snapshot {index} is not of this log (applied {applied}, cut at {truncated})")]
    NotOfThisLog { index: u64, applied: u64, truncated: u64 },
    /// The membership at its index is not known any more.
    #[error("the membership changed at {conf_index}, after snapshot {index}")]
    MembersChanged { index: u64, conf_index: u64 },
    #[error("manifest of {bytes} bytes, at most {bytes_max} allowed")]
    TooLarge { bytes: usize, bytes_max: usize },
}

/// Bounded by the number of members; one message is held.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    /// A snapshot message that raft has not seen.
    held: Option<Message>,
    /// To be announced by the next poll.
    fetch: Option<SnapshotFetch>,
    /// What raft was given and has not handed out yet.
    restoring: Option<SnapshotMark>,
    /// Handed out for writing, then durable, then told to raft and to be announced by the next poll.
    pub writing: Option<(u64, SnapshotMark)>,
    pub written: Option<SnapshotMark>,
    pub installed: Option<SnapshotMark>,
    /// Index of the snapshot that is being installed, until it is applied.
    pub installing: Option<u64>,
    /// Of the last one handed out since the group was opened.
    pub last_index: u64,
    /// On a leader: ticks without progress of each follower in the snapshot state.
    waiting: BTreeMap<u64, u32>,
}

impl Snapshots {
    pub fn take_fetch(&mut self) -> Option<SnapshotFetch> {
        self.fetch.take()
    }

    pub fn take_restoring(&mut self) -> Option<SnapshotMark> {
        self.restoring.take()
    }
}

impl Group {
    /// Offers the files described by `data`: the state as of `index`, made by this replica. They must stay fetchable
    /// until `withdraw_snapshot`, another offer, or until nobody has asked for them for a while.
    pub fn offer_snapshot(&mut self, index: u64, term: u64, data: Bytes) -> Result<(), OfferError> {
        let (applied, truncated) = (self.applied_index(), self.first_index() - 1);
        let known = index > 0 && index <= applied && index >= truncated && self.term_at(index) == Some(term);
        if !known {
            return Err(OfferError::NotOfThisLog { index, applied, truncated });
        }
        if index < self.conf_index {
            return Err(OfferError::MembersChanged { index, conf_index: self.conf_index });
        }
        let bytes_max = wire::SNAPSHOT_BYTES_MAX;
        if data.len() > bytes_max {
            return Err(OfferError::TooLarge { bytes: data.len(), bytes_max });
        }
        let mut snapshot = Snapshot::default();
        snapshot.data = data;
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (index, term);
        metadata.set_conf_state(self.raw.raft.prs().conf().to_conf_state());
        self.raw.mut_store().set_offer(Some(snapshot));
        Ok(())
    }

    /// The offered files are going away.
    pub fn withdraw_snapshot(&mut self) {
        self.raw.mut_store().set_offer(None);
    }

    /// Index of the offered snapshot.
    pub fn offered_snapshot(&self) -> Option<u64> {
        self.raw.store().offer().map(|snapshot| snapshot.get_metadata().index)
    }

    /// What became of the snapshot that was sent to `replica`, as far as the caller knows. Harmless when nothing was.
    pub fn report_snapshot(&mut self, replica: u64, installed: bool) {
        self.snapshots.waiting.remove(&replica);
        let status = if installed { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(replica, status);
    }

    /// `replica` is fetching: its deadline starts again.
    pub fn snapshot_progress(&mut self, replica: u64) {
        if let Some(ticks) = self.snapshots.waiting.get_mut(&replica) {
            *ticks = 0;
        }
    }

    /// Counts the ticks of followers in the snapshot state and gives up those that made no progress.
    pub(crate) fn tick_snapshots(&mut self) {
        if self.raw.raft.state != StateRole::Leader {
            self.snapshots.waiting.clear();
            return;
        }
        let waiting = std::mem::take(&mut self.snapshots.waiting);
        let members = self.raw.raft.prs().iter();
        let now = members.filter(|(_, progress)| progress.state == ProgressState::Snapshot);
        self.snapshots.waiting = now.map(|(id, _)| (*id, waiting.get(id).map_or(0, |t| t + 1))).collect();
        let ticks_max = self.config.snapshot_ticks_max;
        let late = self.snapshots.waiting.iter().filter(|(_, ticks)| **ticks >= ticks_max);
        for replica in late.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.report_snapshot(replica, false);
        }
    }

    /// A snapshot message: what raft would take is held back, what it would only answer it gets at once.
    pub(crate) fn step_snapshot(&mut self, message: Message) -> Result<(), StepError> {
        let metadata = message.get_snapshot().get_metadata();
        let (index, term) = (metadata.index, metadata.term);
        if index == 0 || term == 0 || term > message.term {
            return Err(StepError::Snapshot("it has no place in the log"));
        }
        if self.snapshots.installing.is_some() {
            return Ok(());
        }
        let log = &self.raw.raft.raft_log;
        if message.term < self.term() || index <= log.committed || log.match_term(index, term) {
            return self.raw.step(message).map_err(|error| StepError::Raft(error.to_string()));
        }
        if !is_member(metadata.get_conf_state(), self.config.node_id) {
            return Err(StepError::Snapshot("this replica is not in its membership"));
        }
        let fetch =
            SnapshotFetch { from: message.from, index, term, data: message.get_snapshot().data.clone() };
        let known = self.snapshots.held.as_ref().is_some_and(|held| {
            let held = held.get_snapshot();
            (held.get_metadata().index, held.get_metadata().term, &held.data) == (index, term, &fetch.data)
        });
        if !known {
            self.snapshots.fetch = Some(fetch);
        }
        self.snapshots.held = Some(message);
        Ok(())
    }

    /// The announced snapshot is complete on disk as state family `generation`. `false`: it is of no use any more, drop
    /// the family; raft has moved on or the leader has sent another one.
    pub fn accept_snapshot(&mut self, index: u64, term: u64, generation: u64) -> Result<bool, StepError> {
        if !self.holds(index, term) {
            return Ok(false);
        }
        let message = self.snapshots.held.take().expect("it is held");
        // As in `step_snapshot`: raft must not restore what it only answers.
        self.raw.step(message).map_err(|error| StepError::Raft(error.to_string()))?;
        let restored = self.raw.snap().is_some_and(|snapshot| snapshot.get_metadata().index == index);
        if restored {
            self.snapshots.restoring = Some(SnapshotMark { index, term, generation });
            self.snapshots.installing = Some(index);
        }
        Ok(restored)
    }

    /// The announced snapshot could not be fetched or is not what its manifest says. The leader sends one again after
    /// its deadline, or when it is told.
    pub fn refuse_snapshot(&mut self, index: u64, term: u64) {
        if self.holds(index, term) {
            self.snapshots.held = None;
        }
    }

    /// Whether a snapshot was announced and is neither accepted nor refused.
    pub fn holds(&self, index: u64, term: u64) -> bool {
        let held = self.snapshots.held.as_ref().map(|held| held.get_snapshot().get_metadata());
        held.is_some_and(|metadata| (metadata.index, metadata.term) == (index, term))
    }

    /// From `accept_snapshot` until the snapshot is applied.
    pub fn is_installing(&self) -> bool {
        self.snapshots.installing.is_some()
    }
}

pub(crate) fn is_member(conf: &ConfState, replica: u64) -> bool {
    [&conf.voters, &conf.learners, &conf.voters_outgoing].iter().any(|list| list.contains(&replica))
}
