//! The glue of a node's engine, as the simulator runs it: a mirror of the decisions of `node/src/engine` (shard turn, log
//! writer), around the same `Group`. Each step is an event of its own, so that a crash can fall between
//! any two.
use super::node::{Cell, Node, Waiter};
use super::plant::Plant;
use super::proposals::Pending;
use super::world::{Event, TICK_MS, World};
use carillon_consensus::{
    GroupWrite, LogStore as _, Outputs, PersistTask, ProposeError, RoleChange, StepError,
};
use carillon_proto::internal::{Command, LeaderStart, RaftMessage, command::Kind};
use prost::Message as _;

/// Entries of this node that may wait for apply, in one group.
const IN_FLIGHT_MAX: usize = 2;
/// The slowest write.
const WRITE_MS_MAX: u64 = 6_000;
/// A follower that is this far behind what is applied catches up from the log.
const BEHIND: u64 = 20;
/// Ticks between hints on how far logs may be cut.
const HINT_TICKS: u64 = 50;
/// Ticks for which a preferred leader must look healthy before it gets its partition back.
const PREFER_AFTER_TICKS: u32 = 50;

/// Why a proposal has no result; the engine's view of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    NotLeader(u64),
    Busy,
    /// It may or may not be in force.
    Uncertain,
}

impl World {
    /// A tick of every group of a node.
    pub fn tick(&mut self, node: usize) {
        let epoch = self.nodes[node].epoch;
        let delay = self.true_ms(node, TICK_MS).max(1);
        self.at(delay, Event::Tick { node, epoch });
        self.nodes[node].ticks += 1;
        let groups: Vec<u32> = self.nodes[node].cells.keys().copied().collect();
        let nodes = self.plan.nodes;
        for group in &groups {
            let id = self.nodes[node].id;
            let Some(cell) = self.nodes[node].cells.get_mut(group) else { continue };
            cell.group.tick();
            prefer(cell, *group as usize % nodes + 1, id);
            self.pump(node, *group);
        }
        if self.nodes[node].ticks.is_multiple_of(HINT_TICKS) {
            self.hint(node);
        }
    }

    /// Tells everybody which entries are on every replica.
    fn hint(&mut self, node: usize) {
        let cells = self.nodes[node].cells.iter();
        let hints: Vec<(u32, u64)> =
            cells.filter_map(|(group, cell)| Some((*group, cell.group.slowest_match()?))).collect();
        for to in 0..self.plan.nodes {
            // Late or lost hints do no harm.
            if to != node && self.net_delay(node, to).is_none() {
                continue;
            }
            for (group, index) in &hints {
                let safe = self.nodes[to].safe.entry(*group).or_default();
                *safe = (*safe).max(*index);
            }
        }
    }

    pub fn deliver(&mut self, from: usize, to: usize, group: u32, mut message: RaftMessage) {
        let m = &message;
        let words = [
            1,
            u64::from(group),
            m.msg_type as u64,
            m.to,
            m.from,
            m.term,
            m.index,
            m.commit,
            m.reject.into(),
        ];
        let text = format_message(m);
        self.note(&words, || format!("raft   n{} -> n{} g{group} {text}", from + 1, to + 1));
        if self.trace.events.is_multiple_of(16) {
            let bytes = message.encode_to_vec();
            message = RaftMessage::decode(bytes.as_slice()).expect("prost reads what it wrote");
        }
        let ahead = self.oracle.history.get(&group).map_or(0, |history| history.len() as u64);
        if message.entries.last().is_some_and(|entry| entry.index + BEHIND < ahead) {
            self.trace.count("follower_caught_up_from_log");
        }
        let at = &mut self.nodes[to];
        let Some(cell) = at.cells.get_mut(&group).filter(|_| at.up) else { return };
        match cell.group.step(message) {
            Ok(()) => self.pump(to, group),
            Err(error @ StepError::LogLost { .. }) => {
                self.oracle.fail(format!("I1 node {} group {group}: {error}", to + 1));
            }
            Err(error) => self.oracle.fail(format!("node {} group {group} refuses: {error}", to + 1)),
        }
    }

    /// Carries out what a group asks for, until it has nothing more to say.
    pub fn pump(&mut self, node: usize, group: u32) {
        let mut again = true;
        while again {
            again = false;
            let clock_ms = self.wall_ms(node);
            let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return };
            let refused = cell.proposals.append(&mut cell.group, clock_ms, IN_FLIGHT_MAX);
            let mut out = Outputs::default();
            loop {
                match cell.group.poll(&mut out) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        return self.oracle.fail(format!("node {} group {group}: {error}", node + 1));
                    }
                }
            }
            for (waiter, error) in refused {
                self.answer(node, waiter, Err(refusal(&error)));
            }
            again |= self.drain(node, group, out);
        }
    }

    /// True: something new waits to be appended.
    fn drain(&mut self, node: usize, group: u32, out: Outputs) -> bool {
        for message in out.send {
            self.send_raft(node, group, message);
        }
        for mut task in out.persist {
            if self.planted(Plant::AckBeforePersist) {
                for message in std::mem::take(&mut task.after) {
                    self.send_raft(node, group, message);
                }
            }
            self.nodes[node].queue.push(task);
        }
        self.kick_disk(node);
        let led = out.role.is_some_and(|role| self.on_role(node, group, role));
        let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return false };
        for read in out.reads {
            if let Some(at) = cell.reads_asked.iter().position(|(ctx, _)| *ctx == read.ctx) {
                let (_, asked) = cell.reads_asked.swap_remove(at);
                cell.reads_confirmed.push((read.index, asked));
            }
        }
        let skip_term_check = self.plan.plant == Some(Plant::SkipTermCheck);
        let mut overwritten = Vec::new();
        for entry in out.committed {
            let awaited = cell.proposals.term_awaited(entry.index).filter(|_| skip_term_check);
            let taken = cell.proposals.take(entry.index, awaited.unwrap_or(entry.term));
            overwritten.extend(taken.overwritten);
            cell.to_apply.push_back((entry, taken.parts));
        }
        for waiter in overwritten {
            self.trace.count("waiter_overwritten");
            self.answer(node, waiter, Err(Refused::Uncertain));
        }
        self.kick_apply(node, group);
        self.answer_reads(node, group);
        led
    }

    /// True: a leader's first command waits to be appended.
    fn on_role(&mut self, node: usize, group: u32, role: RoleChange) -> bool {
        let id = self.nodes[node].id;
        self.note(&[2, id, u64::from(group), role.term, role.leader], || {
            format!("role   n{id} g{group} term {} leader {}", role.term, role.leader)
        });
        self.oracle.role(group, id, role);
        let (before, before_term) = self.nodes[node].leaders.get(&group).copied().unwrap_or_default();
        let (was_leader, is_new_term) = (before == id, before_term != role.term);
        let mut led = false;
        let (mut dropped, mut overwritten) = (Vec::new(), Vec::new());
        let keep_old_waiters = self.planted(Plant::WaitersOfOldTerms);
        if let Some(cell) = self.nodes[node].cells.get_mut(&group) {
            let leads_anew = role.is_leader && (!was_leader || is_new_term);
            if leads_anew && !keep_old_waiters {
                overwritten = cell.proposals.take_overwritten(&cell.group);
            }
            if leads_anew && group != 0 {
                cell.proposals.push_first(leader_start(role.term, id));
                led = true;
            }
            if was_leader && !role.is_leader {
                dropped.extend(cell.proposals.drain_pending());
                let reads = cell.reads_asked.drain(..).map(|(_, read)| read);
                let reads: Vec<_> = reads.collect();
                for read in reads {
                    self.answer_read(node, &read, Err(Refused::NotLeader(role.leader)));
                }
            }
        }
        self.nodes[node].leaders.insert(group, (role.leader, role.term));
        for waiter in overwritten {
            self.trace.count("waiter_overwritten");
            self.answer(node, waiter, Err(Refused::Uncertain));
        }
        for waiter in dropped {
            self.answer(node, waiter, Err(Refused::NotLeader(role.leader)));
        }
        if was_leader && (!role.is_leader || is_new_term) && group != 0 {
            self.step_down(node, group);
        }
        self.tell_routers(node, group, role.leader, role.term);
        led
    }

    /// Hands commands to a group, if this node leads it.
    pub fn propose(&mut self, node: usize, group: u32, commands: Vec<Command>, waiter: Waiter) {
        let encoded = commands.iter().map(|command| command.encode_to_vec().into()).collect();
        self.propose_encoded(node, group, encoded, waiter);
    }

    pub fn propose_encoded(
        &mut self,
        node: usize,
        group: u32,
        commands: Vec<prost::bytes::Bytes>,
        waiter: Waiter,
    ) {
        if !self.nodes[node].leads(group) {
            let hint = self.nodes[node].leader_hint(group);
            return self.answer(node, waiter, Err(Refused::NotLeader(hint)));
        }
        let bytes = commands.iter().map(|command| command.len() + 8).sum();
        match self.nodes[node].cells.get_mut(&group) {
            None => return self.answer(node, waiter, Err(Refused::Busy)),
            Some(cell) if cell.group.is_leader() => cell.proposals.push(Pending { commands, bytes, waiter }),
            Some(cell) => {
                let hint = cell.group.leader_id();
                return self.answer(node, waiter, Err(Refused::NotLeader(hint)));
            }
        }
        self.pump(node, group);
    }

    fn send_raft(&mut self, from: usize, group: u32, message: RaftMessage) {
        if self.plan.check_promises {
            let (id, disk) = (self.nodes[from].id, std::sync::Arc::clone(&self.nodes[from].disk));
            self.oracle.promise(group, id, &message, &disk);
        }
        let to = message.to as usize - 1;
        let copies = 1 + u64::from(!self.calm && self.rng.net.chance(self.plan.rates.duplicate));
        for _ in 0..copies {
            match self.net_delay(from, to) {
                Some(delay) => {
                    let message = Box::new(message.clone());
                    self.at(delay, Event::Raft { from, to, group, message });
                }
                None => {
                    if self.rng.net.chance(200)
                        && let Some(cell) = self.nodes[from].cells.get_mut(&group)
                    {
                        cell.group.report_unreachable(message.to);
                    }
                }
            }
        }
    }

    /// One write at a time; it takes whatever waits, as the log writer does.
    fn kick_disk(&mut self, node: usize) {
        let at = &mut self.nodes[node];
        if !at.busy.is_empty() || at.queue.is_empty() {
            return;
        }
        at.busy = std::mem::take(&mut at.queue);
        let writes: Vec<GroupWrite> = at.busy.iter().filter_map(written).collect();
        for write in &writes {
            let last = at.disk.load(write.group).ok().flatten().map_or(0, |state| state.last_index);
            if write.entries.first().is_some_and(|entry| entry.index <= last) {
                self.trace.count("entries_overwritten");
            }
        }
        if let Err(error) = self.write(node, writes) {
            self.trace.count("disk_full_halt");
            return self.halt(node, &error, 1_000);
        }
        let high = if self.calm { 3 } else { self.plan.rates.disk_ms_max * self.nodes[node].slow };
        let high = if self.rng.disk.chance(30) { high * 4 } else { high };
        let delay = 1 + self.rng.disk.below(high.min(WRITE_MS_MAX));
        let epoch = self.nodes[node].epoch;
        self.at(delay, Event::DiskDone { node, epoch });
    }

    fn write(&mut self, node: usize, mut writes: Vec<GroupWrite>) -> Result<(), String> {
        if self.planted(Plant::VoteNotPersisted) {
            for hard_state in writes.iter_mut().filter_map(|write| write.hard_state.as_mut()) {
                hard_state.vote = 0;
            }
        }
        if writes.is_empty() {
            return Ok(());
        }
        let disk = &self.nodes[node].disk;
        if self.planted(Plant::HardStateApart) {
            let states = writes.iter_mut().map(|write| GroupWrite {
                group: write.group,
                hard_state: write.hard_state.take(),
                ..GroupWrite::default()
            });
            let states: Vec<GroupWrite> = states.collect();
            disk.write(&states, false).map_err(|error| error.to_string())?;
        }
        disk.write(&writes, false).map_err(|error| error.to_string())
    }

    /// The write under way is on disk, with everything before it; or the sync failed.
    pub fn disk_done(&mut self, node: usize) {
        let tasks = std::mem::take(&mut self.nodes[node].busy);
        let sync = tasks.iter().any(|task| task.must_sync);
        let id = self.nodes[node].id;
        self.note(&[3, id, tasks.len() as u64, sync.into()], || {
            format!("disk   n{id} {} writes{}", tasks.len(), if sync { ", synced" } else { "" })
        });
        let failed = sync.then(|| self.nodes[node].sync_fails.take()).flatten();
        match failed {
            Some(down_ms) if !self.planted(Plant::IgnoreSyncError) => {
                self.trace.count("sync_error_halt");
                return self.halt(node, "sync failed", down_ms);
            }
            None if sync => self.nodes[node].disk.sync(),
            _ => {}
        }
        let mut groups = std::collections::BTreeSet::new();
        for task in tasks {
            groups.insert(task.group);
            for message in task.after {
                self.send_raft(node, task.group, message);
            }
            if let Some(cell) = self.nodes[node].cells.get_mut(&task.group) {
                cell.group.persisted(task.number);
            }
        }
        for group in groups {
            self.pump(node, group);
        }
        self.kick_disk(node);
    }

    /// The process stops itself, because going on would be wrong. What was written and not synced may be lost.
    fn halt(&mut self, node: usize, why: &str, down_ms: u64) {
        let id = self.nodes[node].id;
        self.note(&[4, id], || format!("halt   n{id} {why}"));
        self.crash(node, true);
        self.at(down_ms, Event::Restart { node });
    }

    /// A replica goes out of service; everybody who waits for it is told.
    pub fn block(&mut self, node: usize, group: u32, reason: String) {
        let id = self.nodes[node].id;
        self.note(&[5, id, u64::from(group)], || format!("fence  n{id} g{group} {reason}"));
        self.trace.count("replica_fenced");
        let Some(mut cell) = self.nodes[node].cells.remove(&group) else { return };
        self.nodes[node].blocked.insert(group, reason);
        self.nodes[node].leaders.insert(group, (0, 0));
        let pending: Vec<Waiter> = cell.proposals.drain_pending().collect();
        let waiting: Vec<Waiter> = cell.proposals.drain_waiters().collect();
        let applying = cell.to_apply.drain(..).flat_map(|(_, parts)| parts).map(|(_, waiter)| waiter);
        let waiting: Vec<Waiter> = waiting.into_iter().chain(applying).collect();
        for waiter in pending {
            self.answer(node, waiter, Err(Refused::Busy));
        }
        for waiter in waiting {
            self.answer(node, waiter, Err(Refused::Uncertain));
        }
        if cell.leading.is_some() {
            self.step_down_wing(node, group);
        }
    }
}

fn written(task: &PersistTask) -> Option<GroupWrite> {
    let write = &task.write;
    let some = !write.entries.is_empty() || write.hard_state.is_some() || write.conf.is_some();
    some.then(|| write.clone())
}

fn refusal(error: &ProposeError) -> Refused {
    match error {
        ProposeError::NotLeader { leader_hint } => Refused::NotLeader(*leader_hint),
        _ => Refused::Busy,
    }
}

fn leader_start(term: u64, node_id: u64) -> Pending<Waiter> {
    let command = Command { kind: Some(Kind::LeaderStart(LeaderStart { term, node_id })) };
    let data: prost::bytes::Bytes = command.encode_to_vec().into();
    Pending { bytes: data.len() + 8, commands: vec![data], waiter: Waiter::Nobody }
}

/// Hands leadership to the preferred member once it has been healthy for a while.
fn prefer(cell: &mut Cell, preferred: usize, id: u64) {
    let preferred = preferred as u64;
    if preferred == id || !cell.group.is_leader() {
        cell.preferred_ticks = 0;
        return;
    }
    let Some(follower) = cell.group.follower(preferred) else { return };
    if follower.matched + 64 < cell.group.last_index() {
        cell.preferred_ticks = 0;
    } else if follower.recent_active {
        cell.preferred_ticks += 1;
    }
    if cell.preferred_ticks >= PREFER_AFTER_TICKS {
        cell.preferred_ticks = 0;
        // Refused while another transfer is under way.
        drop(cell.group.transfer_leader(preferred));
    }
}

fn format_message(m: &RaftMessage) -> String {
    let kind = format!("{:?}", super::oracle::message_kind(m));
    let kind = kind.trim_start_matches("Msg").to_owned();
    let reject = if m.reject { " rejected" } else { "" };
    format!(
        "{kind} term {} index {} entries {} commit {}{reject}",
        m.term,
        m.index,
        m.entries.len(),
        m.commit
    )
}

/// Members of every group, by replica id.
pub fn members(nodes: &[Node]) -> Vec<u64> {
    nodes.iter().map(|node| node.id).collect()
}
