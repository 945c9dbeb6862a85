//! The glue of a node's engine, as the simulator runs it: a mirror of the decisions of `node/src/engine` (shard turn, roles,
//! transport), around the same `Group`. Each step is an event of its own, so that a crash can fall between any two.
use super::members::LogTask;
use super::node::{Asker, Cell, Waiter};
use super::plant::Plant;
use super::world::{Event, FrameHead, TICK_MS, World};
use carillon_consensus::oracle::message_kind;
use carillon_consensus::{
    LogMarks, LogSlack, Outputs, Pending, PersistTask, ProposeError, RoleChange, StepError, cut_index,
};
use carillon_proto::internal::{Command, RaftMessage};
use carillon_proto::replica::node_of;
use prost::Message as _;

/// A follower that is this far behind what is applied catches up from the log.
const BEHIND: u64 = 20;
/// Ticks between hints on how far logs may be cut.
const HINT_TICKS: u64 = 50;

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
        for group in &groups {
            let Some(cell) = self.nodes[node].cells.get_mut(group) else { continue };
            cell.group.tick();
            self.pump(node, *group);
        }
        self.freshen(node);
        if self.nodes[node].ticks.is_multiple_of(super::steward::REGISTER_TICKS) {
            self.register(node);
        }
        if self.nodes[node].ticks.is_multiple_of(HINT_TICKS) {
            self.hint(node);
        }
    }

    /// Tells everybody which entries are on every replica.
    fn hint(&mut self, node: usize) {
        let slack = LogSlack { bytes: u64::MAX, entries: self.plan.log_slack };
        let cells = self.nodes[node].cells.iter();
        let cut = |cell: &Cell| cut_index(&cell.group, &LogMarks::default(), slack);
        let hints: Vec<(u32, u64)> = cells.filter_map(|(group, cell)| Some((*group, cut(cell)?))).collect();
        for to in 0..self.nodes.len() {
            // Late or lost hints do no harm.
            if to != node && self.net_delay(node, to).is_none() {
                continue;
            }
            for (group, index) in &hints {
                if !self.nodes[to].cells.contains_key(group) {
                    continue;
                }
                let safe = self.nodes[to].safe.entry(*group).or_default();
                *safe = (*safe).max(*index);
            }
        }
    }

    pub fn deliver(&mut self, from: usize, to: usize, head: FrameHead, group: u32, mut message: RaftMessage) {
        let from_id = self.nodes[from].id;
        if !self.nodes[to].up {
            return;
        }
        if !self.nodes[to].knows_store(from_id, head.store_id) && !self.planted(Plant::WipedComesBack) {
            // Its disk was lost: it has forgotten its votes and what it acknowledged.
            self.trace.count("frame_of_another_store_dropped");
            return;
        }
        let mono_ms = self.mono_ms(to);
        self.nodes[to].space.hear(from_id, head.near_full, mono_ms);
        self.nodes[to].clocks.hear(from_id, head.clock_ms, mono_ms);
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
        let Some(cell) = at.cells.get_mut(&group) else { return };
        match cell.group.step(message) {
            Ok(()) => self.mark(to, group),
            Err(StepError::Snapshot(_)) => self.trace.count("raft_refused_while_installing"),
            // To or from a replica that came or went meanwhile.
            Err(StepError::WrongReplica(_) | StepError::NotAPeer(_)) => {
                self.trace.count("raft_of_another_replica");
            }
            Err(error @ StepError::LogLost { .. }) if at.wiped => self.block(to, group, error.to_string()),
            Err(error @ StepError::LogLost { .. }) => {
                self.oracle.fail(format!("I1 node {} group {group}: {error}", to + 1));
            }
            Err(error) => self.oracle.fail(format!("node {} group {group} refuses: {error}", to + 1)),
        }
    }

    /// The group took a message: it is polled in the next turn, with whatever else comes until then.
    pub fn mark(&mut self, node: usize, group: u32) {
        self.nodes[node].dirty.insert(group);
        if !std::mem::replace(&mut self.nodes[node].turn_planned, true) {
            let epoch = self.nodes[node].epoch;
            let delay = self.rng.ticks.below(3);
            self.at(delay, Event::Turn { node, epoch });
        }
    }

    pub fn turn(&mut self, node: usize) {
        self.nodes[node].turn_planned = false;
        for group in std::mem::take(&mut self.nodes[node].dirty) {
            self.pump(node, group);
        }
    }

    /// Carries out what a group asks for, until it has nothing more to say.
    pub fn pump(&mut self, node: usize, group: u32) {
        let mut again = true;
        while again {
            again = false;
            let (clock_ms, in_flight_max) = (self.wall_ms(node), self.plan.in_flight_max);
            let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return };
            let refused = cell.proposals.append(&mut cell.group, clock_ms, in_flight_max).refused;
            let mut out = Outputs::default();
            loop {
                match cell.group.poll(&mut out) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) if self.nodes[node].disk.is_rotten_in(group) => {
                        return self.block(node, group, error.to_string());
                    }
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
        if out.snapshot_wanted.is_some() {
            self.want_snapshot(node, group);
        }
        if let Some(fetch) = out.snapshot_fetch {
            self.fetch_snapshot(node, group, fetch);
        }
        let mut overwritten = Vec::new();
        let led = out.role.is_some_and(|role| self.on_role(node, group, role));
        let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return false };
        for read in out.reads {
            if let Some(at) = cell.reads_asked.iter().position(|(ctx, _)| *ctx == read.ctx) {
                let (_, asked) = cell.reads_asked.swap_remove(at);
                cell.reads_confirmed.push((read.index, asked));
            }
        }
        if let Some(mark) = out.installed {
            cell.installed = Some(mark);
            let handed_on = cell.to_apply.drain(..).flat_map(|held| held.waiters);
            overwritten.extend(handed_on.map(|(_, waiter)| waiter));
            overwritten.extend(cell.release.installed(mark.index));
        }
        let skip_term_check = self.plan.plant == Some(Plant::SkipTermCheck);
        for entry in out.committed {
            let awaited = cell.proposals.term_awaited(entry.index).filter(|_| skip_term_check);
            let taken = cell.proposals.take(entry.index, awaited.unwrap_or(entry.term));
            overwritten.extend(taken.overwritten);
            cell.release.push(entry, taken.parts);
        }
        self.release(node, group);
        self.persist(node, group, out.persist);
        for waiter in overwritten {
            self.trace.count("waiter_overwritten");
            self.answer(node, waiter, Err(Refused::Uncertain));
        }
        self.kick_apply(node, group);
        self.answer_reads(node, group);
        led
    }

    /// Behind the writes of the shard's own, as in a turn of the shard.
    fn persist(&mut self, node: usize, group: u32, tasks: Vec<PersistTask>) {
        for mut task in tasks {
            if self.planted(Plant::AckBeforePersist) {
                for message in std::mem::take(&mut task.after) {
                    self.send_raft(node, group, message);
                }
            }
            self.nodes[node].queue.push(LogTask::Raft(task));
        }
        self.kick_disk(node);
    }

    /// True: a leader's first command waits to be appended.
    fn on_role(&mut self, node: usize, group: u32, role: RoleChange) -> bool {
        let id = self.nodes[node].id;
        let leader = node_of(role.leader);
        self.note(&[2, id, u64::from(group), role.term, role.leader], || {
            format!("role   n{id} g{group} term {} leader {:x}", role.term, role.leader)
        });
        if let Some(replica_id) = self.nodes[node].replicas.get(&group) {
            self.oracle.role(group, *replica_id, role);
        }
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
                cell.proposals.push_first(Pending::leader_start(role.term, id, Waiter::Nobody));
                led = true;
            }
            if was_leader && !role.is_leader {
                dropped.extend(cell.proposals.drain_pending());
                let reads: Vec<Asker> = cell.reads_asked.drain(..).map(|(_, asker)| asker).collect();
                for asker in reads {
                    self.answer_read(node, &asker, Err(Refused::NotLeader(leader)));
                }
            }
        }
        self.nodes[node].leaders.insert(group, (leader, role.term));
        for waiter in overwritten {
            self.trace.count("waiter_overwritten");
            self.answer(node, waiter, Err(Refused::Uncertain));
        }
        for waiter in dropped {
            self.answer(node, waiter, Err(Refused::NotLeader(leader)));
        }
        if was_leader && (!role.is_leader || is_new_term) && group != 0 {
            self.step_down(node, group);
        }
        self.tell_routers(node, group, leader, role.term);
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
        match self.nodes[node].cells.get_mut(&group) {
            None => return self.answer(node, waiter, Err(Refused::Busy)),
            Some(cell) if cell.group.is_leader() => cell.proposals.push(Pending::new(commands, waiter)),
            Some(cell) => {
                let hint = node_of(cell.group.leader_id());
                return self.answer(node, waiter, Err(Refused::NotLeader(hint)));
            }
        }
        self.mark(node, group);
    }

    pub fn send_raft(&mut self, from: usize, group: u32, message: RaftMessage) {
        if self.plan.check_promises {
            let disk = std::sync::Arc::clone(&self.nodes[from].disk);
            self.oracle.promised(group, &message, &disk);
        }
        let to = node_of(message.to) as usize - 1;
        let at = &self.nodes[from];
        let head = FrameHead {
            store_id: at.store_id,
            near_full: at.gate.near_full(),
            clock_ms: at.clock.wall_ms(self.now_ms),
        };
        let copies = 1 + u64::from(!self.calm && self.rng.net.chance(self.plan.rates.duplicate));
        for _ in 0..copies {
            match self.net_delay(from, to) {
                Some(delay) => {
                    let message = Box::new(message.clone());
                    self.at(delay, Event::Raft { from, to, head, group, message });
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

    /// A replica goes out of service; everybody who waits for it is told.
    pub fn block(&mut self, node: usize, group: u32, reason: String) {
        let id = self.nodes[node].id;
        self.note(&[5, id, u64::from(group)], || format!("fence  n{id} g{group} {reason}"));
        self.trace.count("replica_fenced");
        let Some(cell) = self.nodes[node].cells.remove(&group) else { return };
        self.nodes[node].blocked.insert(group, reason);
        self.fail_waiters(node, group, cell);
    }
}

fn refusal(error: &ProposeError) -> Refused {
    match error {
        ProposeError::NotLeader { leader_hint } => Refused::NotLeader(node_of(*leader_hint)),
        _ => Refused::Busy,
    }
}

fn format_message(m: &RaftMessage) -> String {
    let kind = format!("{:?}", message_kind(m));
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
