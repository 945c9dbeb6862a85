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
}

/// What is to be written for one group.
#[derive(Debug, Clone, Default)]
pub struct GroupWrite {
    pub group: u32,
    /// Consecutive. Entries at or after the first one's index that are already stored are replaced.
    pub entries: Vec<Entry>,
    pub hard_state: Option<HardState>,
    /// Membership and its index, after a configuration change or at creation.
    pub conf: Option<(ConfState, u64)>,
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
    /// `None` when the group does not exist on this node.
    fn load(&self, group: u32) -> Result<Option<GroupState>, LogError>;

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
