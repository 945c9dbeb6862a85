//! The knobs of one raft group, with the values that the pitfalls of raft 0.7.0 ask for.
//!
//! Fixed on purpose and therefore not knobs: pre-vote and check-quorum on, `batch_append` off (it makes followers
//! panic when the network reorders), linearizable reads by quorum and never by lease.
use crate::error::GroupError;
use slog::Logger;

/// Largest `max_size_per_msg`: with it a message can never hold more entries than a peer accepts.
pub const MESSAGE_BYTES_MAX: u64 = 1024 * 1024;

/// How one replica of one group behaves.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// 0 = meta group, n = partition n.
    pub group: u32,
    /// Id of this replica in the group; never 0, never used again after the disk was lost.
    pub node_id: u64,
    /// Decides the election timeouts together with group, replica id and term.
    pub seed: u64,
    /// Ticks without a leader before an election; the timeout is in `election_ticks..2 * election_ticks`.
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    /// Bytes of entries in one append message, at most `MESSAGE_BYTES_MAX`.
    pub max_size_per_msg: u64,
    /// Append messages on their way to one follower.
    pub max_inflight_msgs: usize,
    /// Data of one entry.
    pub entry_bytes_max: usize,
    /// Proposed but not committed; more is refused with `ProposeError::Dropped`.
    pub uncommitted_bytes_max: u64,
    /// Committed entries handed out by one poll.
    pub committed_bytes_max: u64,
    /// Entries handed to the applier and not reported as applied. Beyond it `poll` holds entries back; it may be
    /// passed by one `committed_bytes_max`.
    pub unapplied_bytes_max: u64,
    /// Recent entries in memory. Entries that are not on disk yet do not count: those are bounded by
    /// `uncommitted_bytes_max` on a leader and `max_size_per_msg * max_inflight_msgs` on a follower.
    pub cache_bytes_max: u64,
    /// Writes handed out and not reported as persisted, beyond which a follower takes no more appends and heartbeats: a
    /// disk that stalls must not fill the memory.
    pub outstanding_writes_max: usize,
    /// Bytes of entries in them, likewise.
    pub outstanding_bytes_max: u64,
    /// Ticks without progress after which a snapshot under way counts as failed.
    pub snapshot_ticks_max: u32,
    /// Linearizable reads waiting for a quorum.
    pub reads_max: usize,
    /// Followers learn a commit with the next append or heartbeat instead of an own message.
    pub skip_commit_broadcast: bool,
    /// A replica with a higher priority is preferred in elections. Leave it at 0 wherever availability matters: with
    /// priorities two live replicas of three can refuse each other for ever (`tests/priority.rs`).
    pub priority: i64,
    /// Where raft's own log lines go. At `trace` they hold entry data (sealed).
    pub logger: Logger,
    /// Plants a known bug of raft 0.7.0, so that the simulator can prove that it would find it. For tests only: the tidy
    /// suite checks that nothing else names it.
    #[doc(hidden)]
    pub planted_batch_append: bool,
}

impl GroupConfig {
    pub fn new(group: u32, node_id: u64, seed: u64) -> Self {
        Self {
            group,
            node_id,
            seed,
            election_ticks: 10,
            heartbeat_ticks: 2,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: 64,
            entry_bytes_max: 1024 * 1024,
            uncommitted_bytes_max: 32 * 1024 * 1024,
            committed_bytes_max: 4 * 1024 * 1024,
            unapplied_bytes_max: 16 * 1024 * 1024,
            cache_bytes_max: 8 * 1024 * 1024,
            outstanding_writes_max: 1024,
            outstanding_bytes_max: 64 * 1024 * 1024,
            snapshot_ticks_max: 300,
            reads_max: 1024,
            skip_commit_broadcast: true,
            priority: 0,
            logger: Logger::root(slog::Discard, slog::o!()),
            planted_batch_append: false,
        }
    }

    /// What raft checks itself is left to raft.
    pub(crate) fn validate(&self) -> Result<(), GroupError> {
        let refuse = |text: &str| Err(GroupError::Config(text.to_owned()));
        if self.max_size_per_msg == 0 || self.max_size_per_msg > MESSAGE_BYTES_MAX {
            return refuse("max_size_per_msg must be between 1 and 1048576");
        }
        if self.entry_bytes_max == 0 || self.entry_bytes_max > crate::wire::ENTRY_BYTES_MAX {
            return refuse("entry_bytes_max must be between 1 and 1048576");
        }
        if self.outstanding_writes_max == 0 || self.outstanding_bytes_max == 0 || self.snapshot_ticks_max == 0
        {
            return refuse(
                "outstanding_writes_max, outstanding_bytes_max and snapshot_ticks_max must not be 0",
            );
        }
        if self.committed_bytes_max == 0 || self.unapplied_bytes_max == 0 || self.reads_max == 0 {
            return refuse("committed_bytes_max, unapplied_bytes_max and reads_max must not be 0");
        }
        Ok(())
    }

    pub(crate) fn raft(&self, applied: u64) -> raft::Config {
        raft::Config {
            id: self.node_id,
            election_tick: self.election_ticks,
            heartbeat_tick: self.heartbeat_ticks,
            applied,
            max_size_per_msg: self.max_size_per_msg,
            max_inflight_msgs: self.max_inflight_msgs,
            check_quorum: true,
            pre_vote: true,
            min_election_tick: self.election_ticks,
            max_election_tick: 2 * self.election_ticks,
            read_only_option: raft::ReadOnlyOption::Safe,
            skip_bcast_commit: self.skip_commit_broadcast,
            batch_append: self.planted_batch_append,
            priority: self.priority,
            max_uncommitted_size: self.uncommitted_bytes_max,
            max_committed_size_per_ready: self.committed_bytes_max,
        }
    }
}
