//! Why a group, a message or a proposal was refused.
use crate::log_store::LogError;
use crate::wire::WireError;

/// The group cannot run (any more). The caller fences the replica or stops the process.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    #[error("group {0} does not exist on this node")]
    Unknown(u32),
    #[error("replica {node_id} is not a member of group {group}")]
    NotMember { group: u32, node_id: u64 },
    /// The state knows more than the log: acknowledged log was lost. The replica must be replaced under a new id.
    #[error("state of group {group} is applied to {applied} but its log ends at {last_index}")]
    AppliedAheadOfLog { group: u32, applied: u64, last_index: u64 },
    /// Entries between the state and the log are gone; a snapshot is needed.
    #[error("state of group {group} is applied to {applied} but its log starts after {truncated_index}")]
    AppliedBehindLog { group: u32, applied: u64, truncated_index: u64 },
    /// Entries that were durable when the commit index was written are gone.
    #[error("log of group {group} ends at {last_index} but {commit} was committed")]
    CommitAheadOfLog { group: u32, commit: u64, last_index: u64 },
    /// A bug: raft restored a snapshot that was not accepted.
    #[error("group {0} got a snapshot that nobody accepted")]
    Snapshot(u32),
    #[error("entry {index} of group {group} is not a configuration change that can be applied: {reason}")]
    ConfChange { group: u32, index: u64, reason: String },
    #[error("configuration of the group: {0}")]
    Config(String),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("raft: {0}")]
    Raft(String),
}

impl From<raft::Error> for GroupError {
    fn from(error: raft::Error) -> Self {
        match error {
            raft::Error::ConfigInvalid(text) => Self::Config(text),
            other => Self::Raft(other.to_string()),
        }
    }
}

/// A message of a peer was not taken. All but `LogLost` are harmless: count and drop.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("message is for replica {0}")]
    WrongReplica(u64),
    #[error("message is from no peer: {0}")]
    NotAPeer(u64),
    #[error("snapshot refused: {0}")]
    Snapshot(&'static str),
    /// Too much waits for the disk; raft sends it again.
    #[error("{writes} writes are waiting for the disk")]
    DiskBusy { writes: usize },
    /// The leader counts on entries that this replica has acknowledged and no longer has. raft would panic here. The
    /// replica must be fenced and replaced under a new id.
    #[error("leader says that {commit} is committed here, but the log ends at {last_index}")]
    LogLost { commit: u64, last_index: u64 },
    #[error("raft: {0}")]
    Raft(String),
}

/// A proposal, read or transfer was not started. Nothing was appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// 0 = no leader known.
    #[error("not the leader (leader hint {leader_hint})")]
    NotLeader { leader_hint: u64 },
    /// The leader has not committed an entry of its own term yet: try again shortly.
    #[error("leader is not ready yet")]
    NotReady,
    /// The uncommitted limit is reached or leadership is being handed over: try again shortly.
    #[error("proposal dropped")]
    Dropped,
    #[error("entry of {bytes} bytes, at most {bytes_max} allowed")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("nothing to propose")]
    Empty,
    #[error("{0} reads are waiting already")]
    TooManyReads(usize),
    #[error("membership change refused: {0}")]
    InvalidChange(&'static str),
    /// A leader that left its own group could not lead it out of the change: hand leadership over first.
    #[error("the leader cannot take itself out of the voters")]
    LeaderLeaves,
    /// It would count for the quorum without helping it.
    #[error("replica {0} is not caught up")]
    NotCaughtUp(u64),
    /// One membership change at a time.
    #[error("a configuration change is pending")]
    ConfChangePending,
    #[error("replica {0} is not a voter")]
    NotAVoter(u64),
}
