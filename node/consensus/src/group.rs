//! One replica of one raft group: its inputs and what is known about it. `ready.rs` has the outputs.
//!
//! See the crate documentation for how to drive it, and for panics.
use crate::config::GroupConfig;
use crate::election::ElectionTimer;
use crate::error::{GroupError, ProposeError, StepError};
use crate::log_store::{GroupWrite, LogStore};
use crate::log_view::LogView;
use crate::output::{Follower, Proposal, RoleChange};
use crate::snapshot::Snapshots;
use crate::wire;
use bytes::Bytes;
use carillon_proto::internal::{ConfState, RaftMessage};
use raft::eraftpb::{Entry, HardState, Message, MessageType};
use raft::{ProgressState, RawNode, StateRole, Storage as _};
use std::collections::VecDeque;
use std::sync::Arc;

/// What creates a group on a node: every replica starts with the same voters before the first entry. To be written
/// with sync before `Group::open`, and only if the group does not exist. It starts in term 1, because raft 0.7.0 stops
/// the process when it refuses a pre-vote in term 0, which priorities cause.
pub fn bootstrap_write(group: u32, voters: &[u64]) -> GroupWrite {
    let conf_state = ConfState { voters: voters.to_vec(), ..Default::default() };
    GroupWrite {
        group,
        hard_state: Some(HardState { term: 1, ..Default::default() }),
        conf: Some((conf_state, 0)),
        ..Default::default()
    }
}

/// What creates a replica of a group that runs already: it knows no members, takes part in nothing, and waits for the
/// leader to add it and to send a snapshot. `replica` must be an id that the group never had.
pub fn join_write(group: u32, replica: u64) -> GroupWrite {
    GroupWrite { replica_id: Some(replica), ..bootstrap_write(group, &[]) }
}

/// A replica. `Send`, used by one thread at a time.
pub struct Group {
    pub(crate) config: GroupConfig,
    pub(crate) raw: RawNode<LogView>,
    pub(crate) election: ElectionTimer,
    /// Writes handed out and not reported as persisted, in order. Grows while the disk stalls, up to
    /// `outstanding_writes_max`: by what the leader sends without an answer and by one for each heartbeat.
    pub(crate) outstanding: VecDeque<Outstanding>,
    pub(crate) outstanding_bytes: u64,
    /// How many of them replace entries of one before.
    pub(crate) replacing: usize,
    /// As of the last ready.
    pub(crate) hard_state: HardState,
    /// Ticks since `hard_state` differs from what was handed out for writing.
    pub(crate) unwritten_ticks: Option<u32>,
    /// Configuration changes up to here are in force.
    pub(crate) conf_index: u64,
    /// Last entry given to the applier, and the last one that may be.
    pub(crate) emitted: u64,
    pub(crate) deliverable: u64,
    /// (last index, bytes) of what was given to the applier and not reported as applied.
    pub(crate) unapplied: VecDeque<(u64, u64)>,
    pub(crate) unapplied_bytes: u64,
    /// As last told to the caller.
    pub(crate) role: Option<RoleChange>,
    pub(crate) snapshots: Snapshots,
}

/// A `PersistTask` under way.
#[derive(Debug)]
pub(crate) struct Outstanding {
    pub number: u64,
    /// Readies up to this number, with nothing to write or to send after it, complete together with it.
    pub through: u64,
    /// It overwrites entries that an earlier one was to write.
    pub replaces: bool,
    pub bytes: u64,
}

impl Group {
    /// Opens an existing group. `applied` is the durable applied index of its state.
    pub fn open(config: GroupConfig, log: Arc<dyn LogStore>, applied: u64) -> Result<Self, GroupError> {
        config.validate()?;
        let group = config.group;
        let mut state = log.load(group)?.ok_or(GroupError::Unknown(group))?;
        let (truncated_index, last_index) = (state.truncated_index, state.last_index);
        let conf = &state.conf_state;
        let lists = [&conf.voters, &conf.learners, &conf.voters_outgoing];
        // A replica that waits for its first snapshot knows no members.
        let joins = last_index == 0 && lists.iter().all(|list| list.is_empty());
        if !joins && !lists.iter().any(|list| list.contains(&config.node_id)) {
            return Err(GroupError::NotMember { group, node_id: config.node_id });
        }
        if applied > last_index {
            return Err(GroupError::AppliedAheadOfLog { group, applied, last_index });
        }
        if applied < truncated_index {
            return Err(GroupError::AppliedBehindLog { group, applied, truncated_index });
        }
        // The commit index is written lazily, so the state may be ahead of it. Only entries that were durable here
        // are ever applied, so raising it cannot hide a loss: that was checked above.
        state.hard_state.commit = state.hard_state.commit.max(applied);
        if state.hard_state.commit > last_index {
            let commit = state.hard_state.commit;
            return Err(GroupError::CommitAheadOfLog { group, commit, last_index });
        }
        let (hard_state, conf_index) = (state.hard_state.clone(), state.conf_index);
        let view = LogView::open(&config, log, state)?;
        let raw = RawNode::new(&config.raft(applied), view, &config.logger)?;
        let election = ElectionTimer::new(config.seed, group, config.node_id, config.election_ticks);
        Ok(Self {
            config,
            raw,
            election,
            outstanding: VecDeque::new(),
            outstanding_bytes: 0,
            replacing: 0,
            hard_state,
            unwritten_ticks: None,
            conf_index,
            emitted: applied,
            deliverable: applied,
            unapplied: VecDeque::new(),
            unapplied_bytes: 0,
            role: None,
            snapshots: Snapshots::default(),
        })
    }

    /// A message of a peer.
    pub fn step(&mut self, message: RaftMessage) -> Result<(), StepError> {
        let message = wire::message_from_wire(message)?;
        if message.to != self.config.node_id {
            return Err(StepError::WrongReplica(message.to));
        }
        let from = message.from;
        if from == 0 || from == self.config.node_id {
            return Err(StepError::NotAPeer(from));
        }
        if message.request_snapshot != 0 {
            return Err(StepError::Snapshot("no replica of ours asks for one"));
        }
        self.check_room(&message)?;
        match message.msg_type {
            MessageType::MsgSnapshot => return self.step_snapshot(message),
            MessageType::MsgAppend if self.is_joining() && message.index == 0 => {
                return Err(StepError::Snapshot("a new replica starts with one"));
            }
            MessageType::MsgTimeoutNow if self.is_installing() => return Ok(()),
            _ => {}
        }
        let last_index = self.raw.raft.raft_log.last_index();
        if message.msg_type == MessageType::MsgHeartbeat
            && message.term >= self.term()
            && message.commit > last_index
        {
            return Err(StepError::LogLost { commit: message.commit, last_index });
        }
        if self.is_stale_rejection(&message) {
            return Ok(());
        }
        self.raw.step(message).map_err(|error| match error {
            raft::Error::StepPeerNotFound => StepError::NotAPeer(from),
            other => StepError::Raft(other.to_string()),
        })
    }

    /// Whatever asks for one more write waits until the disk has caught up.
    fn check_room(&self, message: &Message) -> Result<(), StepError> {
        let full = self.outstanding.len() >= self.config.outstanding_writes_max
            || self.outstanding_bytes >= self.config.outstanding_bytes_max;
        let kind = message.msg_type;
        if full
            && matches!(kind, MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot)
        {
            return Err(StepError::DiskBusy { writes: self.outstanding.len() });
        }
        Ok(())
    }

    /// A rejection of an index that the follower has acknowledged since. raft 0.7.0 ignores it only while it
    /// replicates; while it probes it would fall back behind the acknowledged index (raft-rs 557, fixed after the
    /// release), which costs rounds and, once the log is truncated, would ask for a snapshot for nothing.
    fn is_stale_rejection(&self, message: &Message) -> bool {
        message.msg_type == MessageType::MsgAppendResponse
            && message.reject
            && message.term == self.term()
            && self.is_leader()
            && self
                .raw
                .raft
                .prs()
                .get(message.from)
                .is_some_and(|pr| message.index <= pr.matched && pr.matched > 0)
    }

    /// Time goes on by one tick.
    pub fn tick(&mut self) {
        if self.is_installing() {
            return;
        }
        self.tick_snapshots();
        self.election.before_tick(&mut self.raw.raft);
        if let Some(ticks) = &mut self.unwritten_ticks {
            *ticks = ticks.saturating_add(1);
        }
        self.raw.tick();
    }

    /// Appends one entry if this replica is the leader; never forwards it.
    pub fn propose(&mut self, data: Bytes) -> Result<Proposal, ProposeError> {
        self.propose_many(vec![data])
    }

    /// Appends several entries at once: all or none. The proposal is the first one's; the others follow.
    pub fn propose_many(&mut self, data: Vec<Bytes>) -> Result<Proposal, ProposeError> {
        self.check_leader()?;
        let bytes_max = self.config.entry_bytes_max;
        if data.is_empty() || data.iter().any(Bytes::is_empty) {
            return Err(ProposeError::Empty);
        }
        if let Some(large) = data.iter().find(|d| d.len() > bytes_max) {
            return Err(ProposeError::TooLarge { bytes: large.len(), bytes_max });
        }
        let entries = data.into_iter().map(|data| {
            let mut entry = Entry::default();
            entry.data = data;
            entry
        });
        self.append(entries.collect())
    }

    /// For the leader only: checked by the callers.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) -> Result<Proposal, ProposeError> {
        let count = entries.len() as u64;
        let mut message = Message::default();
        message.msg_type = MessageType::MsgPropose;
        message.from = self.config.node_id;
        message.entries = entries.into();
        self.raw.raft.step(message).map_err(|_| ProposeError::Dropped)?;
        Ok(Proposal { term: self.term(), index: self.last_index() + 1 - count })
    }

    /// Asks for a linearizable read; the answer comes as `ReadReady` with the same `ctx`, which must be unique among
    /// the reads under way. None comes when the role changes first.
    pub fn read_index(&mut self, ctx: u64) -> Result<(), ProposeError> {
        self.check_leader()?;
        if !self.raw.raft.commit_to_current_term() {
            // raft would drop it without a word.
            return Err(ProposeError::NotReady);
        }
        if self.raw.raft.pending_read_count() >= self.config.reads_max {
            return Err(ProposeError::TooManyReads(self.config.reads_max));
        }
        self.raw.read_index(wire::read_context(ctx).to_vec());
        Ok(())
    }

    /// Starts to hand leadership to voter `to`; given up after an election timeout. Proposals are dropped meanwhile.
    pub fn transfer_leader(&mut self, to: u64) -> Result<(), ProposeError> {
        self.check_leader()?;
        if !self.raw.raft.prs().conf().voters().contains(to) {
            return Err(ProposeError::NotAVoter(to));
        }
        self.raw.transfer_leader(to);
        Ok(())
    }

    /// The last messages to this peer were lost.
    pub fn report_unreachable(&mut self, node: u64) {
        self.raw.report_unreachable(node);
    }

    /// Starts an election now, with a pre-vote.
    pub fn campaign(&mut self) -> Result<(), StepError> {
        if self.is_installing() {
            return Err(StepError::Snapshot("one is being installed"));
        }
        self.raw.campaign().map_err(|error| StepError::Raft(error.to_string()))
    }

    /// The `PersistTask` with this number is durable. Must be called for each one, in order.
    pub fn persisted(&mut self, number: u64) {
        let done = self.outstanding.pop_front().expect("something was handed out for persisting");
        assert_eq!(done.number, number, "writes of group {} complete in order", self.config.group);
        self.replacing -= usize::from(done.replaces);
        self.outstanding_bytes -= done.bytes;
        if let Some((_, mark)) = self.snapshots.writing.take_if(|(number, _)| *number == done.number) {
            self.snapshots.written = Some(mark);
        }
        // While a write that replaces entries of an earlier one is under way, a crash can still leave the disk with
        // neither version of them. raft looks only at the last (index, term) and would call them durable, so it is
        // told later, when all of them are.
        if self.replacing == 0 {
            self.raw.on_persist_ready(done.through);
            if let Some(mark) = self.snapshots.written.take() {
                self.snapshots.installed = Some(mark);
            }
            self.trim();
        }
    }

    /// The state up to `index` is written. Rising; never beyond what was given out as committed.
    pub fn applied(&mut self, index: u64) {
        assert!(index <= self.emitted, "index {index} was applied but {} was given out", self.emitted);
        if index <= self.applied_index() {
            return;
        }
        self.raw.advance_apply_to(index);
        self.snapshots.installing.take_if(|installing| index >= *installing);
        while let Some(&(last, bytes)) = self.unapplied.front() {
            if last > index {
                break;
            }
            self.unapplied.pop_front();
            self.unapplied_bytes -= bytes;
        }
        self.trim();
    }

    /// The log store has cut off everything up to `index`, which must be applied here. A replica that is further behind
    /// will need a snapshot: see `slowest_match`.
    pub fn log_truncated(&mut self, index: u64, term: u64) {
        assert!(index <= self.applied_index(), "entries after {} are not applied", self.applied_index());
        self.raw.mut_store().truncated(index, term);
    }

    fn trim(&mut self) {
        let raft = &self.raw.raft;
        let persisted = raft.raft_log.persisted;
        let unwanted = match raft.state {
            StateRole::Leader => {
                let awake = raft.prs().iter().filter(|(_, pr)| pr.recent_active);
                awake.map(|(_, pr)| pr.matched).min().unwrap_or(0).min(raft.raft_log.applied)
            }
            _ => raft.raft_log.applied,
        };
        self.raw.mut_store().trim(persisted, unwanted);
    }

    pub(crate) fn check_leader(&self) -> Result<(), ProposeError> {
        match self.is_leader() {
            true => Ok(()),
            false => Err(ProposeError::NotLeader { leader_hint: self.leader_id() }),
        }
    }

    /// It was created to join the group and has not got its snapshot yet.
    pub fn is_joining(&self) -> bool {
        self.last_index() == 0 && self.raw.raft.prs().iter().next().is_none()
    }

    /// It is in the membership in force, or waits to be.
    pub fn is_member(&self) -> bool {
        self.is_joining() || self.raw.raft.prs().get(self.config.node_id).is_some()
    }

    /// Group id, 0 = meta group.
    pub fn group(&self) -> u32 {
        self.config.group
    }

    pub fn node_id(&self) -> u64 {
        self.config.node_id
    }

    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    /// 0 = none known.
    pub fn leader_id(&self) -> u64 {
        self.raw.raft.leader_id
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Ticks between heartbeats of a leader.
    pub fn heartbeat_ticks(&self) -> u64 {
        self.raw.raft.heartbeat_timeout() as u64
    }

    /// Leader, and an entry of its own term is committed: reads work and everything older is committed.
    pub fn leader_ready(&self) -> bool {
        self.is_leader() && self.raw.raft.commit_to_current_term()
    }

    pub fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    /// First entry that is not cut off.
    pub fn first_index(&self) -> u64 {
        self.raw.store().first_index().expect("it is known")
    }

    pub fn commit(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// As last reported by `applied`.
    pub fn applied_index(&self) -> u64 {
        self.raw.raft.raft_log.applied
    }

    /// Term of an entry of the log, or of the last one that was cut off.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        self.raw.raft.raft_log.term(index).ok().filter(|term| *term > 0)
    }

    /// On a leader: the last entry that every member has acknowledged in this term.
    pub fn slowest_match(&self) -> Option<u64> {
        let members = self.raw.raft.prs().iter();
        self.is_leader().then(|| members.map(|(_, pr)| pr.matched).min().unwrap_or(0))
    }

    /// On a leader: how a member is doing.
    pub fn follower(&self, node: u64) -> Option<Follower> {
        let progress = self.raw.raft.prs().get(node).filter(|_| self.is_leader())?;
        Some(Follower {
            matched: progress.matched,
            recent_active: progress.recent_active,
            in_snapshot: progress.state == ProgressState::Snapshot,
        })
    }

    /// On a leader: all members but itself.
    pub fn followers(&self) -> Vec<(u64, Follower)> {
        let members = self.raw.raft.prs().iter().map(|(id, _)| *id).filter(|id| *id != self.config.node_id);
        members.filter_map(|id| Some((id, self.follower(id)?))).collect()
    }

    /// Data proposed here and not committed.
    pub fn uncommitted_bytes(&self) -> u64 {
        self.raw.raft.uncommitted_size() as u64
    }

    /// Entries given to the applier and not reported as applied.
    pub fn unapplied_bytes(&self) -> u64 {
        self.unapplied_bytes
    }

    /// Recent entries in memory.
    pub fn cache_bytes(&self) -> u64 {
        self.raw.store().cache_bytes()
    }

    /// Persist tasks handed out and not reported as persisted.
    pub fn outstanding_writes(&self) -> usize {
        self.outstanding.len()
    }
}

/// Positions only, no data.
impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group")
            .field("group", &self.config.group)
            .field("node_id", &self.config.node_id)
            .field("term", &self.term())
            .field("leader", &self.leader_id())
            .field("last_index", &self.last_index())
            .field("commit", &self.commit())
            .field("applied", &self.applied_index())
            .field("outstanding", &self.outstanding.len())
            .finish_non_exhaustive()
    }
}

/// A shard thread may own it.
const _: fn() = || {
    fn assert_send<T: Send>() {}
    assert_send::<Group>();
};
