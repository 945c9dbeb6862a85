//! The raft log of all groups of a node, as the consensus layer sees it.
//!
//! One `write` holds what arrived from any number of groups and is atomic and durable as a whole when it returns
//! with `sync`: entries and hard state of a group are never written apart (reference: raft's ready order). Any
//! error of `write` is fatal for the process: the caller must stop and must not retry (fsync errors lose pages).
use carillon_proto::internal::ConfState;
use raft::eraftpb::{Entry, HardState};

/// What a group finds at start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupState {
    pub hard_state: HardState,
    /// Membership and the index it is valid at (conf-change rule).
    pub conf_state: ConfState,
    pub conf_index: u64,
    /// Everything up to here was cut off; `truncated_term` is the term of that entry.
    pub truncated_index: u64,
    pub truncated_term: u64,
    /// Last entry, or `truncated_index` when there is none.
    pub last_index: u64,
    /// Id of this replica in the group; 0 in logs from before replicas had ids of their own: then it is the node's.
    pub replica_id: u64,
    /// Which family of the state store belongs to this log: rises with each installed snapshot. 0 = none was installed.
    pub generation: u64,
}

/// A snapshot that takes the place of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotMark {
    pub index: u64,
    pub term: u64,
    /// The state family that holds it, complete and on disk already.
    pub generation: u64,
}

/// What is to be written for one group. Parts take effect in the order of the fields.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupWrite {
    pub group: u32,
    /// Creates the replica, or creates it anew after it was removed: then its id must be above the removed one's.
    pub replica_id: Option<u64>,
    /// Forgets everything but the replica's id, so that the id never comes back. Stands alone.
    pub remove: bool,
    /// Drops all entries; the log goes on after this.
    pub snapshot: Option<SnapshotMark>,
    /// Consecutive. Entries at or after the first one's index that are already stored are replaced.
    pub entries: Vec<Entry>,
    pub hard_state: Option<HardState>,
    /// Membership and its index, after a configuration change, with a snapshot, or at creation.
    pub conf: Option<(ConfState, u64)>,
}

impl GroupWrite {
    /// It says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self { group: self.group, ..Self::default() }
    }

    /// Ends a replica on this node.
    pub fn remove(group: u32) -> Self {
        Self { group, remove: true, ..Self::default() }
    }
}

/// Why the log could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("raft log i/o: {0}")]
    Io(String),
    /// Some stored bytes are damaged; which groups they belong to is not known here.
    #[error("raft log is damaged: {0}")]
    Damaged(String),
    #[error("raft log of group {group} is corrupt: {reason}")]
    Corrupt { group: u32, reason: String },
    /// The range was cut off; a snapshot is needed.
    #[error("raft log of group {group} starts after index {index}")]
    Compacted { group: u32, index: u64 },
    #[error("raft log of group {group} has no entry {index}")]
    Missing { group: u32, index: u64 },
}

/// A durable log shared by all groups of a node. Reads may run on any thread; writes come from one.
pub trait LogStore: Send + Sync + 'static {
    /// `None` when the group does not exist on this node (any more).
    fn load(&self, group: u32) -> Result<Option<GroupState>, LogError>;

    /// The id of the last replica of the group that was removed from this disk; `None` when there was none or another one
    /// lives here.
    fn removed(&self, group: u32) -> Result<Option<u64>, LogError>;

    /// Entries with `low <= index < high`, at least one, then as many as fit into `bytes_max`.
    fn entries(&self, group: u32, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError>;

    /// Writes everything atomically; with `sync` it is on disk on return.
    fn write(&self, writes: &[GroupWrite], sync: bool) -> Result<(), LogError>;

    /// Forgets entries up to and including `index` (whose term is `term`). Later bytes are not touched; space may be
    /// freed later.
    fn truncate(&self, group: u32, index: u64, term: u64) -> Result<(), LogError>;

    /// Bytes on disk.
    fn disk_bytes(&self) -> u64;
}
