//! What a group asks its caller to do.
use crate::log_store::{GroupWrite, SnapshotMark};
use bytes::Bytes;
use carillon_proto::internal::RaftMessage;
use raft::eraftpb::{Entry, EntryType};

/// Filled by `Group::poll`; the caller drains it. Holds no group id except in `persist`: drain it before polling
/// another group.
#[derive(Debug, Default)]
pub struct Outputs {
    /// To be sent now.
    pub send: Vec<RaftMessage>,
    /// To be written in this order.
    pub persist: Vec<PersistTask>,
    /// A snapshot took the place of the log: switch the state to its generation, then report its index as applied.
    /// Comes before what is in `committed`.
    pub installed: Option<SnapshotMark>,
    /// To be applied in this order, without gaps but for an installed snapshot.
    pub committed: Vec<CommittedEntry>,
    /// Reads that were confirmed by a quorum.
    pub reads: Vec<ReadReady>,
    /// Term or leader changed; the newest state if it did so more than once.
    pub role: Option<RoleChange>,
    /// On a leader: this replica needs a snapshot and no fitting one is offered. Comes again as long as that is so.
    pub snapshot_wanted: Option<u64>,
    /// On a follower: a snapshot to fetch; it takes the place of one announced before.
    pub snapshot_fetch: Option<SnapshotFetch>,
}

impl Outputs {
    pub fn is_empty(&self) -> bool {
        self.send.is_empty()
            && self.persist.is_empty()
            && self.committed.is_empty()
            && self.reads.is_empty()
            && self.role.is_none()
            && self.installed.is_none()
            && self.snapshot_wanted.is_none()
            && self.snapshot_fetch.is_none()
    }

    /// Empties everything and keeps the buffers.
    pub fn clear(&mut self) {
        self.send.clear();
        self.persist.clear();
        self.committed.clear();
        self.reads.clear();
        self.role = None;
        self.installed = None;
        self.snapshot_wanted = None;
        self.snapshot_fetch = None;
    }
}

/// One atomic write and what it allows. `write` may be empty: then it only waits for the ones before it.
#[derive(Debug)]
pub struct PersistTask {
    pub group: u32,
    /// Rising; given back by `Group::persisted`.
    pub number: u64,
    pub write: GroupWrite,
    /// Without it the write needs no fsync of its own.
    pub must_sync: bool,
    /// To be sent after the write (and every earlier one) is durable.
    pub after: Vec<RaftMessage>,
}

/// What is in a committed entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// Data as proposed.
    Normal,
    /// Nothing to do but to advance the applied index: a new leader's first entry, or a configuration change that
    /// is already in force.
    Empty,
    /// Call `Group::apply_conf_change`, persist what it returns, then report it as applied.
    ConfChange,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedEntry {
    pub index: u64,
    pub term: u64,
    pub kind: EntryKind,
    pub data: Bytes,
}

impl CommittedEntry {
    /// Configuration changes up to `conf_index` are in force already.
    pub(crate) fn new(entry: Entry, conf_index: u64) -> Self {
        let kind = match entry.entry_type {
            EntryType::EntryNormal if entry.data.is_empty() => EntryKind::Empty,
            EntryType::EntryNormal => EntryKind::Normal,
            _ if entry.index <= conf_index => EntryKind::Empty,
            _ => EntryKind::ConfChange,
        };
        Self { index: entry.index, term: entry.term, kind, data: entry.data }
    }
}

/// A snapshot that a leader sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFetch {
    /// The leader that sent it.
    pub from: u64,
    pub index: u64,
    pub term: u64,
    /// The manifest, as the leader's caller offered it.
    pub data: Bytes,
}

/// A read asked for with this `ctx` may be answered from a state that is applied to `index` or beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadReady {
    pub ctx: u64,
    pub index: u64,
}

/// Reads and transfers that were started under another (term, leader) are void.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoleChange {
    pub term: u64,
    /// 0 = none known.
    pub leader: u64,
    pub is_leader: bool,
}

/// Where a proposal will be if it commits. Another term at that index when it is applied means: not committed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proposal {
    pub term: u64,
    /// Of the first entry; further ones follow without a gap.
    pub index: u64,
}

/// How a member of the group is doing, as its leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Follower {
    /// Last entry it acknowledged in this term.
    pub matched: u64,
    /// It answered within the last election timeout.
    pub recent_active: bool,
    /// It gets nothing but a snapshot at the moment.
    pub in_snapshot: bool,
}
