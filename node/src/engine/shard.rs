//! The shard thread: owns the raft groups of this node and runs them in turns.
//!
//! A turn: inbound messages and completions first, then ticks, then proposals, then `poll` for each group that has
//! something to do, one hand-off to the log writer, one frame for each peer. It never touches a disk and never waits for
//! anybody, so a stall of RocksDB does not stop heartbeats. Queues: the inbox is bounded and refuses; completions are
//! bounded and their senders wait; what log writer and applier have no room for is bounded by the groups: at most about
//! [`UNWRITTEN_MAX`] writes, and `unapplied_bytes_max` of entries, each.
use super::applier::ApplyMessage;
use super::cell::{Cell, convert};
use super::hand_over::HandOver;
use super::handle::{Fenced, GroupStatus, Hosted, Leaders, Leadership, ProposeError, Waiter};
use super::log_writer::{LogTask, Written};
use super::maintenance::MaintenanceMessage;
use super::members::{GroupSettings, MemberMessage, MemberReply};
use super::snapshot::{Hub, Made};
use super::transport::PeerSender;
use super::upkeep::HINT_TICKS;
pub(super) use crate::clock::now_ms as clock_ms;
use bytes::Bytes;
use carillon_consensus::{LogSlack, LogStore, Outputs, Pending, PersistTask, RoleChange};
use carillon_proto::internal::{GroupMessage, TruncateHint};
use carillon_proto::replica::node_of;
use crossbeam_channel::{Receiver, Sender, select};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Messages in the inbox; more are refused (proposals) or dropped (raft repeats them).
pub const INBOX_MAX: usize = 8192;
/// Completions that were not taken yet; their senders wait, the shard never does.
pub const COMPLETIONS_MAX: usize = 4096;
/// Writes of one group that the log writer has not reported. Beyond it raft messages, which would cause more, are dropped:
/// the disk stands still, and raft repeats them.
const UNWRITTEN_MAX: usize = 512;
/// Ticks between looks at the peers' clocks.
const CLOCK_TICKS: u64 = 10;
/// Inbox messages handled in one turn before the groups are polled.
const TURN_MESSAGES_MAX: usize = 1024;

pub type ReadReply = oneshot::Sender<Result<(), ProposeError>>;

/// What others ask of the shard.
pub enum ShardMessage {
    Raft(Vec<GroupMessage>),
    Propose {
        group: u32,
        commands: Vec<Bytes>,
        bytes: usize,
        waiter: Waiter,
    },
    Read {
        group: u32,
        reply: ReadReply,
    },
    Transfer {
        group: u32,
        to: u64,
        reply: oneshot::Sender<Result<(), ProposeError>>,
    },
    Unreachable {
        node: u64,
    },
    Member {
        group: u32,
        message: MemberMessage,
        reply: MemberReply,
    },
    Snapshot {
        group: u32,
        message: SnapshotMessage,
    },
    /// From a leader: how far logs may be cut.
    Hints(Vec<TruncateHint>),
    Status {
        reply: oneshot::Sender<Vec<GroupStatus>>,
    },
    Stop,
}

/// What became of the files of a snapshot.
pub enum SnapshotMessage {
    /// `None`: it could not be made.
    Made(Option<Made>),
    /// The files of an offered one are gone.
    Gone { snapshot_id: u64 },
    /// The announced one is a complete state family, or `None`: it could not be had.
    Fetched { index: u64, term: u64, generation: Option<u64> },
    /// A follower is fetching.
    Progress { replica: u64 },
    /// A follower says how it ended.
    Reported { replica: u64, installed: bool },
    /// The state of a group that left is gone.
    Destroyed,
}

/// What the log writer and the applier report back.
pub enum Completion {
    Persisted(Vec<(u32, u64)>),
    Written {
        group: u32,
        written: Written,
    },
    /// The applier let go of a group.
    Closed {
        group: u32,
    },
    Applied {
        group: u32,
        index: u64,
    },
    Blocked {
        group: u32,
        reason: String,
    },
    /// The log store cut off everything up to here.
    Truncated {
        group: u32,
        index: u64,
        term: u64,
    },
}

pub(super) struct Shard {
    pub node_id: u64,
    pub settings: GroupSettings,
    pub cells: BTreeMap<u32, Cell>,
    /// Replicas out of service, and why. Those that could not be opened have no cell.
    pub fenced: Fenced,
    pub inbox: Receiver<ShardMessage>,
    pub completions: Receiver<Completion>,
    pub log_writer: HandOver<Vec<LogTask>>,
    pub log: Arc<dyn LogStore>,
    pub snapshots: Arc<Hub>,
    pub applier: HandOver<ApplyMessage>,
    pub peers: PeerSender,

    pub leaders: watch::Sender<Arc<Leaders>>,
    pub tick: Duration,
    pub in_flight_max: usize,
    pub maintenance: Sender<MaintenanceMessage>,
    pub next_ctx: u64,
    pub ticks: u64,
    pub outputs: Outputs,
    pub slack: LogSlack,
    /// Groups have numbers below this.
    pub groups_max: usize,
    /// Group and replica id of what lives here.
    pub hosted: watch::Sender<Arc<Hosted>>,
    /// Writes of the shard's own that go with the next turn.
    pub own_tasks: Vec<LogTask>,
    /// Groups whose replica is being created, or is leaving and not gone yet; with who waits for it. One entry a group.
    pub creating: BTreeMap<u32, MemberReply>,
    pub leaving: BTreeMap<u32, Option<MemberReply>>,
}

impl Shard {
    /// Runs until `Stop` or until every sender is gone.
    pub fn run(mut self) {
        let mut next_tick = Instant::now() + self.tick;
        loop {
            let wait = next_tick.saturating_duration_since(Instant::now());
            let inbox = self.inbox.clone();
            let completions = self.completions.clone();
            select! {
                recv(inbox) -> message => match message {
                    Ok(ShardMessage::Stop) | Err(_) => return,
                    Ok(message) => self.handle(message),
                },
                recv(completions) -> completion => match completion {
                    Ok(completion) => self.complete(completion),
                    Err(_) => return,
                },
                default(wait) => {}
            }
            while let Ok(completion) = completions.try_recv() {
                self.complete(completion);
            }
            for _ in 0..TURN_MESSAGES_MAX {
                match inbox.try_recv() {
                    Ok(ShardMessage::Stop) => return,
                    Ok(message) => self.handle(message),
                    Err(_) => break,
                }
            }
            let now = Instant::now();
            if now >= next_tick {
                self.tick_all();
                // A late tick is not made up for: a stalled process must not rush into an election.
                next_tick = now + self.tick;
            }
            self.turn();
        }
    }

    fn handle(&mut self, message: ShardMessage) {
        match message {
            ShardMessage::Raft(messages) => messages.into_iter().for_each(|m| self.step(m)),
            ShardMessage::Propose { group, commands, bytes, waiter } => match self.cells.get_mut(&group) {
                Some(Cell { blocked: Some(reason), .. }) => {
                    waiter.fail(ProposeError::Blocked(reason.clone()))
                }
                Some(cell) if cell.group.is_leader() => {
                    cell.proposals.push(Pending { commands, bytes, waiter });
                }
                Some(cell) => {
                    waiter.fail(ProposeError::NotLeader { leader_hint: node_of(cell.group.leader_id()) })
                }
                None => waiter.fail(match self.fenced.lock().get(&group) {
                    Some(reason) => ProposeError::Blocked(reason.clone()),
                    None => ProposeError::NotLeader { leader_hint: 0 },
                }),
            },
            ShardMessage::Read { group, reply } => self.read(group, reply),
            ShardMessage::Transfer { group, to, reply } => {
                let result = match self.cells.get_mut(&group) {
                    Some(cell) => {
                        let replica = cell.replica_on(to).unwrap_or(to);
                        cell.group.transfer_leader(replica).map_err(convert)
                    }
                    None => Err(ProposeError::NotLeader { leader_hint: 0 }),
                };
                drop(reply.send(result));
            }
            ShardMessage::Unreachable { node } => {
                for cell in self.cells.values_mut() {
                    if let Some(replica) = cell.replica_on(node) {
                        cell.group.report_unreachable(replica);
                    }
                }
            }
            ShardMessage::Member { group, message, reply } => self.member(group, message, reply),
            ShardMessage::Snapshot { group, message } => self.snapshot(group, message),
            ShardMessage::Hints(hints) => self.pass_hints(&hints),
            ShardMessage::Status { reply } => drop(reply.send(self.status())),
            ShardMessage::Stop => {}
        }
    }

    fn step(&mut self, message: GroupMessage) {
        let (Some(cell), Some(raft)) = (self.cells.get_mut(&message.group), message.message) else {
            metrics::counter!("carillon_raft_messages_dropped_total", "reason" => "unknown_group")
                .increment(1);
            return;
        };
        if cell.blocked.is_some() {
            return;
        }
        if cell.group.outstanding_writes() >= UNWRITTEN_MAX {
            metrics::counter!("carillon_raft_messages_dropped_total", "reason" => "log_behind").increment(1);
            return;
        }
        match cell.group.step(raft) {
            Ok(()) => {}
            Err(error @ carillon_consensus::StepError::LogLost { .. }) => {
                self.fence(message.group, error.to_string());
            }
            Err(error) => {
                metrics::counter!("carillon_raft_messages_dropped_total", "reason" => "refused").increment(1);
                tracing::debug!(group = message.group, %error, "raft message refused");
            }
        }
    }

    fn read(&mut self, group: u32, reply: ReadReply) {
        let Some(cell) = self.cells.get_mut(&group) else {
            drop(reply.send(Err(ProposeError::NotLeader { leader_hint: 0 })));
            return;
        };
        self.next_ctx += 1;
        match cell.group.read_index(self.next_ctx) {
            Ok(()) => cell.reads_asked.push((self.next_ctx, reply)),
            Err(carillon_consensus::ProposeError::NotReady) if cell.reads_early.len() < 1024 => {
                cell.reads_early.push(reply);
            }
            Err(error) => drop(reply.send(Err(convert(error)))),
        }
    }

    pub(super) fn complete(&mut self, completion: Completion) {
        match completion {
            Completion::Persisted(list) => {
                for (group, number) in list {
                    if let Some(cell) = self.cells.get_mut(&group) {
                        cell.group.persisted(number);
                    }
                }
            }
            Completion::Applied { group, index } => {
                if let Some(cell) = self.cells.get_mut(&group) {
                    cell.group.applied(index);
                    cell.answer_reads(index);
                }
                self.report_installed(group, index);
                self.leave_if_removed(group, index);
            }
            Completion::Written { group, written } => self.written(group, written),
            Completion::Closed { group } => self.closed(group),
            Completion::Truncated { group, index, term } => {
                if let Some(cell) = self.cells.get_mut(&group) {
                    cell.group.log_truncated(index, term);
                }
            }
            Completion::Blocked { group, reason } => self.fence(group, reason),
        }
    }

    /// Takes one replica out of service; the others go on, and another replica of the group leads.
    fn fence(&mut self, group: u32, reason: String) {
        tracing::error!(group, reason, "replica fenced");
        if let Some(cell) = self.cells.get_mut(&group) {
            cell.block(reason.clone());
        }
        let count = {
            let mut fenced = self.fenced.lock();
            fenced.insert(group, reason);
            fenced.len()
        };
        metrics::gauge!("carillon_replicas_fenced").set(count as f64);
        if group != 0 && self.leaders.borrow().get(&group).is_some_and(|l| l.leader == self.node_id) {
            self.applier.push(ApplyMessage::StepDown { group });
        }
        self.publish(group, Leadership::default());
    }

    fn tick_all(&mut self) {
        for cell in self.cells.values_mut() {
            if cell.blocked.is_some() {
                continue;
            }
            match cell.ticks_left_out.checked_sub(1) {
                Some(left) => cell.ticks_left_out = left,
                None => cell.group.tick(),
            }
            let early: Vec<ReadReply> = cell.reads_early.drain(..).collect();
            for reply in early {
                self.next_ctx += 1;
                match cell.group.read_index(self.next_ctx) {
                    Ok(()) => cell.reads_asked.push((self.next_ctx, reply)),
                    Err(carillon_consensus::ProposeError::NotReady) => cell.reads_early.push(reply),
                    Err(error) => drop(reply.send(Err(convert(error)))),
                }
            }
        }
        self.ticks += 1;
        self.log_writer.report();
        self.applier.report();
        if self.ticks.is_multiple_of(CLOCK_TICKS) {
            crate::clock::look();
        }
        if self.ticks.is_multiple_of(HINT_TICKS) {
            self.send_hints();
        }
    }

    /// Appends proposals, then polls every group until it has nothing more to say.
    fn turn(&mut self) {
        self.log_writer.flush();
        self.applier.flush();
        let now_ms = clock_ms();
        let mut persist = Vec::new();
        let mut out: BTreeMap<u64, Vec<GroupMessage>> = BTreeMap::new();
        let groups: Vec<u32> = self.cells.keys().copied().collect();
        for group in groups {
            let Some(cell) = self.cells.get_mut(&group) else { continue };
            if cell.blocked.is_some() {
                continue;
            }
            cell.append_pending(now_ms, self.in_flight_max);
            loop {
                let mut outputs = std::mem::take(&mut self.outputs);
                let more = match self.cells.get_mut(&group).map(|cell| cell.group.poll(&mut outputs)) {
                    Some(Ok(more)) => more,
                    Some(Err(error)) => {
                        self.complete(Completion::Blocked { group, reason: error.to_string() });
                        false
                    }
                    None => false,
                };
                self.drain(group, &mut outputs, &mut persist, &mut out);
                outputs.clear();
                self.outputs = outputs;
                if !more {
                    break;
                }
            }
        }
        // What may overtake the disk has the longer way, so it leaves first.
        for (node, messages) in out {
            self.peers.send(node, messages);
        }
        let mut tasks = std::mem::take(&mut self.own_tasks);
        tasks.extend(persist.into_iter().map(LogTask::Raft));
        if !tasks.is_empty() {
            self.log_writer.push(tasks);
        }
    }

    fn drain(
        &mut self,
        group: u32,
        outputs: &mut Outputs,
        persist: &mut Vec<PersistTask>,
        out: &mut BTreeMap<u64, Vec<GroupMessage>>,
    ) {
        for message in outputs.send.drain(..) {
            out.entry(node_of(message.to)).or_default().push(GroupMessage { group, message: Some(message) });
        }
        if let Some(role) = outputs.role.take() {
            self.on_role(group, role);
        }
        if let Some(mark) = outputs.installed.take() {
            self.install_snapshot(group, mark);
        }
        if let Some(replica) = outputs.snapshot_wanted.take() {
            self.want_snapshot(group, replica);
        }
        if let Some(fetch) = outputs.snapshot_fetch.take() {
            self.fetch_snapshot(group, fetch);
        }
        let slack_bytes = self.slack.bytes;
        let Some(cell) = self.cells.get_mut(&group) else { return };
        for task in outputs.persist.drain(..) {
            if let Some(last) = task.write.entries.last() {
                let bytes = task.write.entries.iter().map(|entry| entry.data.len() as u64 + 32).sum();
                cell.log_marks.appended(last.index, bytes, slack_bytes);
            }
            persist.push(task);
        }
        for read in outputs.reads.drain(..) {
            if let Some(at) = cell.reads_asked.iter().position(|(ctx, _)| *ctx == read.ctx) {
                let (_, reply) = cell.reads_asked.swap_remove(at);
                cell.reads_confirmed.push((read.index, reply));
            }
        }
        cell.answer_reads(cell.group.applied_index());
        if !outputs.committed.is_empty() {
            for entry in outputs.committed.drain(..) {
                cell.hold(entry);
            }
            self.release(group);
        }
    }

    fn on_role(&mut self, group: u32, role: RoleChange) {
        let before = self.leaders.borrow().get(&group).copied().unwrap_or_default();
        let leader = node_of(role.leader);
        let (was_leader, is_new_term) = (before.leader == self.node_id, before.term != role.term);
        if let Some(cell) = self.cells.get_mut(&group) {
            if role.is_leader && (!was_leader || is_new_term) {
                metrics::counter!("carillon_raft_leader_changes_total").increment(1);
                tracing::info!(group, term = role.term, "leading");
                cell.forget_overwritten();
                // One frame for each peer instead of one in every tick: most of what an idle cluster costs.
                cell.ticks_left_out = ticks_to_join(self.ticks, cell.group.heartbeat_ticks());
                if group != 0 {
                    cell.proposals.push_first(Pending::leader_start(role.term, self.node_id, Waiter::None));
                }
            }
            if was_leader && !role.is_leader {
                tracing::info!(group, term = role.term, leader, "no longer leading");
                cell.on_step_down(leader);
            }
        }
        if was_leader && (!role.is_leader || is_new_term) && group != 0 {
            self.applier.push(ApplyMessage::StepDown { group });
        }
        self.publish(group, Leadership { leader, term: role.term });
    }
}

/// Ticks that a group which begins to lead now leaves out, so that its heartbeats fall on multiples of their interval.
fn ticks_to_join(ticks: u64, heartbeat_ticks: u64) -> u64 {
    ticks.next_multiple_of(heartbeat_ticks.max(1)) - ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_of_all_groups_fall_together() {
        for (ticks, left_out) in [(0, 0), (1, 2), (2, 1), (3, 0), (7, 2)] {
            assert_eq!(ticks_to_join(ticks, 3), left_out);
            assert_eq!((ticks + left_out + 3) % 3, 0, "its first heartbeat");
        }
        assert_eq!((ticks_to_join(7, 1), ticks_to_join(7, 0)), (0, 0));
    }
}
