//! One group inside the shard: the raft group, its proposals and who waits for them, its reads.
use super::handle::{ProposeError, Waiter};
use super::shard::ReadReply;
use carillon_consensus::{CommittedEntry, Group, LogMarks, Proposals, Release};
use carillon_proto::replica::node_of;

pub(super) struct Cell {
    pub group: Group,
    pub proposals: Proposals<Waiter>,
    /// Reads waiting for the quorum, by context.
    pub reads_asked: Vec<(u64, ReadReply)>,
    /// Reads confirmed at an index, waiting for apply.
    pub reads_confirmed: Vec<(u64, ReadReply)>,
    /// Reads that came before the leader was ready.
    pub reads_early: Vec<ReadReply>,
    pub blocked: Option<String>,
    /// Committed, and not given to the applier yet.
    pub release: Release<Waiter>,
    pub snapshots: SnapshotState,
    pub log_marks: LogMarks,
    /// Ticks that it leaves out, so that its heartbeats go with those of the other groups.
    pub ticks_left_out: u64,
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
            proposals: Proposals::default(),
            reads_asked: Vec::new(),
            reads_confirmed: Vec::new(),
            reads_early: Vec::new(),
            blocked: None,
            release: Release::default(),
            snapshots: SnapshotState::default(),
            log_marks: LogMarks::default(),
            ticks_left_out: 0,
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

    /// Appends waiting proposals. See [`Proposals::append`].
    pub fn append_pending(&mut self, clock_ms: u64, in_flight_max: usize) {
        let appended = self.proposals.append(&mut self.group, clock_ms, in_flight_max);
        for commands in appended.entries {
            metrics::histogram!("carillon_raft_entry_commands_size").record(commands as f64);
        }
        for (waiter, error) in appended.refused {
            waiter.fail(convert(error));
        }
    }

    /// An entry is committed. Waiters of entries that it overwrote learn that their fate is that of the log: not committed
    /// here.
    pub fn hold(&mut self, entry: CommittedEntry) {
        let taken = self.proposals.take(entry.index, entry.term);
        fail(taken.overwritten, &ProposeError::Uncertain);
        self.release.push(entry, taken.parts);
    }

    /// This replica leads a new term: who waits for an entry that its log no longer has learns that its fate is unknown.
    pub fn forget_overwritten(&mut self) {
        fail(self.proposals.take_overwritten(&self.group), &ProposeError::Uncertain);
    }

    /// Leadership is gone: what was not appended fails; what was appended waits for the log to decide.
    pub fn on_step_down(&mut self, leader_hint: u64) {
        fail(self.proposals.drain_pending(), &ProposeError::NotLeader { leader_hint });
        let reads = self.reads_asked.drain(..).map(|(_, reply)| reply).chain(self.reads_early.drain(..));
        for reply in reads {
            drop(reply.send(Err(ProposeError::NotLeader { leader_hint })));
        }
    }

    /// The replica is out of service; everyone who waits is told.
    pub fn block(&mut self, reason: String) {
        fail(self.release.drain(), &ProposeError::Uncertain);
        fail(self.proposals.drain_pending(), &ProposeError::Blocked(reason.clone()));
        fail(self.proposals.drain_waiters(), &ProposeError::Uncertain);
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

fn fail(waiters: impl IntoIterator<Item = Waiter>, error: &ProposeError) {
    waiters.into_iter().for_each(|waiter| waiter.fail(error.clone()));
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
