//! One group inside the shard: the raft group, proposals waiting to be appended, and who waits for which entry.
use super::applier::ApplyEntry;
use super::handle::{ProposeError, Waiter};
use super::shard::ReadReply;
use super::upkeep::LogMarks;
use bytes::Bytes;
use carillon_consensus::batch::{BatchLimits, cut};
use carillon_consensus::{Group, Proposal};
use carillon_proto::replica::node_of;
use std::collections::VecDeque;

/// A caller's commands, not appended yet. Never split over two entries.
pub(super) struct Pending {
    pub commands: Vec<Bytes>,
    pub bytes: usize,
    pub waiter: Waiter,
}

/// Who waits for an entry that this node appended as leader.
pub(super) struct EntryWaiters {
    pub term: u64,
    pub index: u64,
    /// Number of commands and who waits for their results, in entry order.
    pub parts: Vec<(usize, Waiter)>,
}

pub(super) struct Cell {
    pub group: Group,
    pub pending: VecDeque<Pending>,
    pub waiters: VecDeque<EntryWaiters>,
    /// Reads waiting for the quorum, by context.
    pub reads_asked: Vec<(u64, ReadReply)>,
    /// Reads confirmed at an index, waiting for apply.
    pub reads_confirmed: Vec<(u64, ReadReply)>,
    /// Reads that came before the leader was ready.
    pub reads_early: Vec<ReadReply>,
    /// Log bytes handed to the applier since the last one reported.
    pub blocked: Option<String>,
    /// Last clock value stamped into a batch.
    pub now_ms: u64,
    /// Committed entries behind a change of the membership that is being written. Bounded like what the applier has.
    pub held: VecDeque<ApplyEntry>,
    pub members: MemberState,
    pub snapshots: SnapshotState,
    pub log_marks: LogMarks,
}

/// A change of the membership between commit and apply.
#[derive(Debug, Default)]
pub(super) struct MemberState {
    /// Entry whose membership is being written to the log.
    pub writing: Option<u64>,
    /// The last one that is in force and durable.
    pub done: u64,
    /// This replica is removed as of this entry; it goes when the entry is applied.
    pub leaving: Option<u64>,
}

/// What the shard has asked for.
#[derive(Debug, Default)]
pub(super) struct SnapshotState {
    /// The worker makes one.
    pub making: bool,
    /// Id of the offered one.
    pub offered: Option<u64>,
    /// Leader and index of the one that is being installed.
    pub installing: Option<(u64, u64)>,
    /// Leader that sent the one that is being fetched.
    pub fetching_from: u64,
}

impl Cell {
    pub fn new(group: Group) -> Self {
        Self {
            group,
            pending: VecDeque::new(),
            waiters: VecDeque::new(),
            reads_asked: Vec::new(),
            reads_confirmed: Vec::new(),
            reads_early: Vec::new(),
            blocked: None,
            now_ms: 0,
            held: VecDeque::new(),
            members: MemberState::default(),
            snapshots: SnapshotState::default(),
            log_marks: LogMarks::default(),
        }
    }

    /// Own id in the group.
    pub fn replica_id(&self) -> u64 {
        self.group.node_id()
    }

    /// The member that lives on a node.
    pub fn replica_on(&self, node: u64) -> Option<u64> {
        let conf = self.group.conf_state();
        let mut members = conf.voters.iter().chain(&conf.learners).chain(&conf.voters_outgoing).copied();
        members.find(|id| node_of(*id) == node)
    }

    /// A snapshot has what waited to be applied.
    pub fn drop_held(&mut self) {
        for entry in self.held.drain(..) {
            for (_, waiter) in entry.waiters {
                waiter.fail(ProposeError::Uncertain);
            }
        }
    }

    /// Appends waiting proposals as long as fewer than `in_flight_max` entries wait for apply: the rest waits and so
    /// makes larger entries under load (natural batching, no timer). While leadership is being handed over everything
    /// waits, because raft would drop it: it fails with the new leader's name a moment later, or goes on here.
    pub fn append_pending(&mut self, clock_ms: u64, in_flight_max: usize) {
        while !self.pending.is_empty() && self.waiters.len() < in_flight_max && !self.group.is_handing_over()
        {
            let limits = BatchLimits::default();
            let (mut commands, mut parts, mut bytes) = (Vec::new(), Vec::new(), 0);
            while let Some(next) = self.pending.front() {
                let full = commands.len() + next.commands.len() > limits.commands_max
                    || bytes + next.bytes > limits.bytes_max;
                if full && !commands.is_empty() {
                    break;
                }
                let next = self.pending.pop_front().expect("front exists");
                bytes += next.bytes;
                parts.push((next.commands.len(), next.waiter));
                commands.extend(next.commands);
            }
            self.now_ms = self.now_ms.max(clock_ms);
            let mut batches =
                cut(self.now_ms, &commands, BatchLimits { commands_max: usize::MAX, bytes_max: usize::MAX });
            let data = batches.pop().expect("one batch without limits").data;
            metrics::histogram!("carillon_raft_entry_commands_size").record(commands.len() as f64);
            match self.group.propose(data) {
                Ok(Proposal { term, index }) => self.waiters.push_back(EntryWaiters { term, index, parts }),
                Err(error) => {
                    let error = convert(error);
                    for (_, waiter) in parts {
                        waiter.fail(error.clone());
                    }
                }
            }
        }
    }

    /// The waiters of a committed entry. Waiters of entries that were overwritten learn that their fate is that of
    /// the log: not committed here.
    pub fn take_waiters(&mut self, index: u64, term: u64) -> Vec<(usize, Waiter)> {
        while let Some(front) = self.waiters.front() {
            if front.index > index {
                return Vec::new();
            }
            let front = self.waiters.pop_front().expect("front exists");
            if front.index == index && front.term == term {
                return front.parts;
            }
            for (_, waiter) in front.parts {
                waiter.fail(ProposeError::Uncertain);
            }
        }
        Vec::new()
    }

    /// This replica leads a new term: who waits for an entry that its log no longer has learns that its fate is unknown.
    /// The indexes of such entries may be higher than those of the new term, so their waiters would stand before its own
    /// (`take_waiters` looks at the front) and use up the room of `append_pending`: a leader that never appends.
    pub fn forget_overwritten(&mut self) {
        let group = &self.group;
        let ours = |entry: &EntryWaiters| group.term_at(entry.index) == Some(entry.term);
        let (kept, gone): (VecDeque<_>, VecDeque<_>) = self.waiters.drain(..).partition(ours);
        self.waiters = kept;
        for (_, waiter) in gone.into_iter().flat_map(|entry| entry.parts) {
            waiter.fail(ProposeError::Uncertain);
        }
    }

    /// Leadership is gone: what was not appended fails; what was appended waits for the log to decide.
    pub fn on_step_down(&mut self, leader_hint: u64) {
        for pending in self.pending.drain(..) {
            pending.waiter.fail(ProposeError::NotLeader { leader_hint });
        }
        let reads = self.reads_asked.drain(..).map(|(_, reply)| reply).chain(self.reads_early.drain(..));
        for reply in reads {
            drop(reply.send(Err(ProposeError::NotLeader { leader_hint })));
        }
    }

    /// The replica is out of service; everyone who waits is told.
    pub fn block(&mut self, reason: String) {
        self.drop_held();
        for pending in self.pending.drain(..) {
            pending.waiter.fail(ProposeError::Blocked(reason.clone()));
        }
        for entry in self.waiters.drain(..) {
            for (_, waiter) in entry.parts {
                waiter.fail(ProposeError::Uncertain);
            }
        }
        self.on_step_down(0);
        for (_, reply) in self.reads_confirmed.drain(..) {
            drop(reply.send(Err(ProposeError::Blocked(reason.clone()))));
        }
        self.blocked = Some(reason);
    }

    /// Answers confirmed reads that are applied by now.
    pub fn answer_reads(&mut self, applied: u64) {
        let mut i = 0;
        while i < self.reads_confirmed.len() {
            if self.reads_confirmed[i].0 <= applied {
                let (_, reply) = self.reads_confirmed.swap_remove(i);
                drop(reply.send(Ok(())));
            } else {
                i += 1;
            }
        }
    }
}

/// The group's refusal in the engine's terms.
pub(super) fn convert(error: carillon_consensus::ProposeError) -> ProposeError {
    use carillon_consensus::ProposeError as E;
    match error {
        E::NotLeader { leader_hint } => ProposeError::NotLeader { leader_hint: node_of(leader_hint) },
        E::TooLarge { .. } | E::Empty => ProposeError::TooLarge,
        _ => ProposeError::Busy,
    }
}
