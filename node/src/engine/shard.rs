//! The shard thread: owns the raft groups of this node and runs them in turns.
//!
//! A turn: inbound messages and completions first, then ticks, then proposals, then `poll` for each group that has
//! something to do, one hand-off to the log writer, one frame for each peer. It never touches a disk and never waits for
//! anybody, so a stall of RocksDB does not stop heartbeats. Queues: the inbox is bounded and refuses; completions are
//! bounded and their senders wait; what log writer and applier have no room for is bounded by the groups: at most about
//! [`UNWRITTEN_MAX`] writes, and `unapplied_bytes_max` of entries, each.
use super::applier::{ApplyEntry, ApplyMessage};
use super::cell::{Cell, Pending, convert};
use super::hand_over::HandOver;
use super::handle::{Fenced, GroupStatus, Leaders, Leadership, ProposeError, Waiter};
use super::maintenance::MaintenanceMessage;
use super::transport::PeerSender;
use bytes::Bytes;
use carillon_consensus::{Outputs, PersistTask, RoleChange};
use carillon_proto::internal::{Command, GroupMessage, LeaderStart, TruncateHint, command::Kind};
use crossbeam_channel::{Receiver, Sender, select};
use prost::Message as _;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{oneshot, watch};

/// Messages in the inbox; more are refused (proposals) or dropped (raft repeats them).
pub const INBOX_MAX: usize = 8192;
/// Completions that were not taken yet; their senders wait, the shard never does.
pub const COMPLETIONS_MAX: usize = 4096;
/// Writes of one group that the log writer has not reported. Beyond it raft messages, which would cause more, are dropped:
/// the disk stands still, and raft repeats them.
const UNWRITTEN_MAX: usize = 512;
/// Inbox messages handled in one turn before the groups are polled.
const TURN_MESSAGES_MAX: usize = 1024;
/// Ticks between hints on how far logs may be cut.
const HINT_TICKS: u64 = 50;
/// Ticks for which a preferred leader must look healthy before it gets its partition back.
const PREFER_AFTER_TICKS: u32 = 50;

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
    /// From a leader: all replicas have these entries.
    Hints(Vec<TruncateHint>),
    Status {
        reply: oneshot::Sender<Vec<GroupStatus>>,
    },
    Stop,
}

/// What the log writer and the applier report back.
pub enum Completion {
    Persisted(Vec<(u32, u64)>),
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
    pub members: Vec<u64>,
    pub cells: BTreeMap<u32, Cell>,
    /// Replicas out of service, and why. Those that could not be opened have no cell.
    pub fenced: Fenced,
    pub inbox: Receiver<ShardMessage>,
    pub completions: Receiver<Completion>,
    pub log_writer: HandOver<Vec<PersistTask>>,
    pub applier: HandOver<ApplyMessage>,
    pub peers: PeerSender,

    pub leaders: watch::Sender<Arc<Leaders>>,
    pub tick: Duration,
    pub in_flight_max: usize,
    pub maintenance: Sender<MaintenanceMessage>,
    pub next_ctx: u64,
    pub ticks: u64,
    pub outputs: Outputs,
}

pub(super) fn clock_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
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
                    cell.pending.push_back(Pending { commands, bytes, waiter });
                }
                Some(cell) => waiter.fail(ProposeError::NotLeader { leader_hint: cell.group.leader_id() }),
                None => waiter.fail(match self.fenced.lock().get(&group) {
                    Some(reason) => ProposeError::Blocked(reason.clone()),
                    None => ProposeError::NotLeader { leader_hint: 0 },
                }),
            },
            ShardMessage::Read { group, reply } => self.read(group, reply),
            ShardMessage::Transfer { group, to, reply } => {
                let result = match self.cells.get_mut(&group) {
                    Some(cell) => cell.group.transfer_leader(to).map_err(convert),
                    None => Err(ProposeError::NotLeader { leader_hint: 0 }),
                };
                drop(reply.send(result));
            }
            ShardMessage::Unreachable { node } => {
                for cell in self.cells.values_mut() {
                    cell.group.report_unreachable(node);
                }
            }
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

    fn complete(&mut self, completion: Completion) {
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
            }
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
        let members = self.members.clone();
        for (number, cell) in &mut self.cells {
            if cell.blocked.is_some() {
                continue;
            }
            cell.group.tick();
            let early: Vec<ReadReply> = cell.reads_early.drain(..).collect();
            for reply in early {
                self.next_ctx += 1;
                match cell.group.read_index(self.next_ctx) {
                    Ok(()) => cell.reads_asked.push((self.next_ctx, reply)),
                    Err(carillon_consensus::ProposeError::NotReady) => cell.reads_early.push(reply),
                    Err(error) => drop(reply.send(Err(convert(error)))),
                }
            }
            prefer(cell, *number, &members, self.node_id);
        }
        self.ticks += 1;
        self.log_writer.report();
        self.applier.report();
        if self.ticks.is_multiple_of(HINT_TICKS) {
            let hints: Vec<TruncateHint> = self
                .cells
                .iter()
                .filter_map(|(group, cell)| {
                    let index = cell.group.slowest_match()?;
                    (index > cell.group.first_index()).then_some(TruncateHint { group: *group, index })
                })
                .collect();
            self.pass_hints(&hints);
            if !hints.is_empty() {
                self.peers.send_hints(&hints);
            }
        }
    }

    /// Late or lost hints do no harm, so a full queue drops them.
    fn pass_hints(&self, hints: &[TruncateHint]) {
        for hint in hints {
            drop(
                self.maintenance.try_send(MaintenanceMessage::Safe { group: hint.group, index: hint.index }),
            );
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
        if !persist.is_empty() {
            self.log_writer.push(persist);
        }
        for (node, messages) in out {
            self.peers.send(node, messages);
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
            out.entry(message.to).or_default().push(GroupMessage { group, message: Some(message) });
        }
        persist.append(&mut outputs.persist);
        if let Some(role) = outputs.role.take() {
            self.on_role(group, role);
        }
        let Some(cell) = self.cells.get_mut(&group) else { return };
        for read in outputs.reads.drain(..) {
            if let Some(at) = cell.reads_asked.iter().position(|(ctx, _)| *ctx == read.ctx) {
                let (_, reply) = cell.reads_asked.swap_remove(at);
                cell.reads_confirmed.push((read.index, reply));
            }
        }
        cell.answer_reads(cell.group.applied_index());
        if !outputs.committed.is_empty() {
            let entries = outputs
                .committed
                .drain(..)
                .map(|entry| ApplyEntry { waiters: cell.take_waiters(entry.index, entry.term), entry })
                .collect();
            self.applier.push(ApplyMessage::Entries { group, entries });
        }
    }

    fn on_role(&mut self, group: u32, role: RoleChange) {
        let before = self.leaders.borrow().get(&group).copied().unwrap_or_default();
        let (was_leader, is_new_term) = (before.leader == self.node_id, before.term != role.term);
        if let Some(cell) = self.cells.get_mut(&group) {
            if role.is_leader && (!was_leader || is_new_term) {
                metrics::counter!("carillon_raft_leader_changes_total").increment(1);
                tracing::info!(group, term = role.term, "leading");
                cell.forget_overwritten();
                if group != 0 {
                    cell.pending.push_front(leader_start(role.term, self.node_id));
                }
            }
            if was_leader && !role.is_leader {
                tracing::info!(group, term = role.term, leader = role.leader, "no longer leading");
                cell.on_step_down(role.leader);
            }
        }
        if was_leader && (!role.is_leader || is_new_term) && group != 0 {
            self.applier.push(ApplyMessage::StepDown { group });
        }
        self.publish(group, Leadership { leader: role.leader, term: role.term });
    }

    fn publish(&mut self, group: u32, leadership: Leadership) {
        self.leaders.send_modify(|leaders| {
            let mut changed = BTreeMap::clone(leaders);
            changed.insert(group, leadership);
            *leaders = Arc::new(changed);
        });
        let led = self.leaders.borrow().values().filter(|l| l.leader == self.node_id).count();
        metrics::gauge!("carillon_raft_groups_led").set(led as f64);
    }

    fn status(&self) -> Vec<GroupStatus> {
        let fenced = self.fenced.lock();
        let closed = fenced.iter().filter(|(group, _)| !self.cells.contains_key(group));
        let closed = closed.map(|(group, reason)| GroupStatus {
            group: *group,
            blocked: reason.clone(),
            ..GroupStatus::default()
        });
        self.cells
            .iter()
            .map(|(group, cell)| GroupStatus {
                group: *group,
                leader: cell.group.leader_id(),
                term: cell.group.term(),
                commit: cell.group.commit(),
                applied: cell.group.applied_index(),
                last_index: cell.group.last_index(),
                blocked: cell.blocked.clone().unwrap_or_default(),
            })
            .chain(closed)
            .collect()
    }
}

fn leader_start(term: u64, node_id: u64) -> Pending {
    let command = Command { kind: Some(Kind::LeaderStart(LeaderStart { term, node_id })) };
    let data = Bytes::from(command.encode_to_vec());
    Pending { bytes: data.len() + 8, commands: vec![data], waiter: Waiter::None }
}

/// Which member should lead a group when all are well: spread evenly, so that the fixed shares of the lanes fit.
pub fn preferred_leader(group: u32, members: &[u64]) -> u64 {
    members[group as usize % members.len()]
}

/// Hands leadership to the preferred member once it has been healthy for a while.
fn prefer(cell: &mut Cell, group: u32, members: &[u64], node_id: u64) {
    let preferred = preferred_leader(group, members);
    if preferred == node_id || !cell.group.is_leader() {
        cell.preferred_ticks = 0;
        return;
    }
    let Some(follower) = cell.group.follower(preferred) else { return };
    // `recent_active` is cleared once in each election timeout, so its absence alone says nothing.
    if follower.matched + 64 < cell.group.last_index() {
        cell.preferred_ticks = 0;
    } else if follower.recent_active {
        cell.preferred_ticks += 1;
    }
    if cell.preferred_ticks >= PREFER_AFTER_TICKS {
        cell.preferred_ticks = 0;
        if let Err(error) = cell.group.transfer_leader(preferred) {
            tracing::debug!(group, %error, "leader transfer refused");
        }
    }
}
