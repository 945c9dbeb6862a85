//! The steward, as the simulator runs it: a mirror of `node/src/meta/steward.rs`, `gather.rs`, `see.rs`, `carry.rs` and
//! `register.rs` around the same planner. On the leader of the meta group it looks at every node twice a second, confirms that
//! it still leads, and has the planner's steps carried out. Each node keeps the cluster informed of itself.
use super::node::{Asker, Node, Waiter};
use super::wing::PeerCall;
use super::world::{Event, World};
use carillon_consensus::wire;
use carillon_core::meta::MetaRefusal;
use carillon_core::meta::planner::{self, Conf, GroupSeen, Limits, NodeSeen, Progress, Seen, Step};
use carillon_proto::internal::{ConfState, MetaCommand, RegisterNode, meta_command::Kind};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};

pub const ROUND_MS: u64 = 500;
const SEE_MS: u64 = 400;
/// A node that has not answered for this long counts as down.
const ALIVE_MS: u64 = 2_000;
/// Weight of the newest measurement of the load, in percent.
const NEWEST_PERCENT: u64 = 4;
/// Ticks between looks at whether this node is registered.
pub const REGISTER_TICKS: u64 = 10;

/// What a node says of itself.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    meta_applied: u64,
    shares_epoch: u64,
    replicas: BTreeMap<u32, u64>,
    blocked: BTreeSet<u32>,
    led: BTreeMap<u32, LedGroup>,
}

#[derive(Debug, Clone)]
struct LedGroup {
    replica_id: u64,
    term: u64,
    conf: ConfState,
    busy: bool,
    last_index: u64,
    progress: BTreeMap<u64, Progress>,
}

/// Memory of one term as steward. Times are of the node's monotonic clock, in ms.
#[derive(Debug)]
pub struct Steward {
    round: u64,
    started_ms: u64,
    awaited: BTreeSet<u64>,
    heard: BTreeMap<u64, (u64, Answer)>,
    leaders: BTreeMap<u32, Led>,
    /// What it saw in the last round, and when.
    pub seen: Option<(u64, Seen)>,
}

#[derive(Debug)]
struct Led {
    replica_id: u64,
    term: u64,
    since_ms: u64,
    measured_ms: u64,
    last_index: u64,
    load: u64,
}

impl Steward {
    fn new(now_ms: u64) -> Self {
        Self {
            round: now_ms,
            started_ms: now_ms,
            awaited: BTreeSet::new(),
            heard: BTreeMap::new(),
            leaders: BTreeMap::new(),
            seen: None,
        }
    }

    fn look(&mut self, nodes: impl Iterator<Item = u64>, now_ms: u64) -> Seen {
        let mut seen = Seen::default();
        let mut led: BTreeMap<u32, LedGroup> = BTreeMap::new();
        for node_id in nodes {
            let Some((at, answer)) = self.heard.get(&node_id) else {
                let silent_ms = now_ms - self.started_ms;
                seen.nodes.insert(node_id, NodeSeen { silent_ms, ..Default::default() });
                continue;
            };
            let silent_ms = now_ms - at;
            let alive = silent_ms < ALIVE_MS;
            let node = NodeSeen {
                alive,
                silent_ms,
                stopping: false,
                meta_applied: answer.meta_applied,
                shares_epoch: answer.shares_epoch,
                replicas: answer.replicas.clone(),
                blocked: answer.blocked.clone(),
            };
            seen.nodes.insert(node_id, node);
            for (number, group) in answer.led.iter().filter(|_| alive) {
                // Of two that say that they lead, the one of the later term is right.
                if led.get(number).is_none_or(|known| known.term < group.term) {
                    led.insert(*number, group.clone());
                }
            }
        }
        for (number, group) in led {
            let (led_ms, load) = self.measure(number, &group, now_ms);
            seen.groups.insert(number, group_seen(group, led_ms, load));
        }
        seen
    }

    /// For how long it has led in ms, and its load.
    fn measure(&mut self, number: u32, group: &LedGroup, now_ms: u64) -> (u64, u64) {
        let led = self.leaders.entry(number).or_insert_with(|| Led {
            replica_id: group.replica_id,
            term: group.term,
            since_ms: now_ms,
            measured_ms: now_ms,
            last_index: group.last_index,
            load: 0,
        });
        if (led.replica_id, led.term) != (group.replica_id, group.term) {
            (led.replica_id, led.term, led.since_ms) = (group.replica_id, group.term, now_ms);
        }
        let elapsed_ms = now_ms - led.measured_ms;
        let entries = group.last_index.saturating_sub(led.last_index);
        if let Some(rate) = (entries * 1_000_000).checked_div(elapsed_ms) {
            led.load = (led.load * (100 - NEWEST_PERCENT) + rate * NEWEST_PERCENT) / 100;
            (led.measured_ms, led.last_index) = (now_ms, group.last_index);
        }
        (now_ms - led.since_ms, led.load)
    }
}

fn group_seen(group: LedGroup, led_ms: u64, load: u64) -> GroupSeen {
    let set = |ids: Vec<u64>| ids.into_iter().collect();
    GroupSeen {
        leader: group.replica_id,
        conf: Conf {
            voters: set(group.conf.voters),
            outgoing: set(group.conf.voters_outgoing),
            learners: set(group.conf.learners),
            learners_next: set(group.conf.learners_next),
        },
        busy: group.busy,
        last_index: group.last_index,
        progress: group.progress,
        led_ms,
        load,
    }
}

impl World {
    fn mono_ms(&self, node: usize) -> u64 {
        self.mono(node).as_millis() as u64
    }

    /// Time for a round, if this node leads the meta group.
    pub fn steward(&mut self, node: usize) {
        let epoch = self.nodes[node].epoch;
        let pause = self.true_ms(node, ROUND_MS).max(1);
        self.at(pause, Event::Steward { node, epoch });
        if !self.nodes[node].leads(0) {
            self.nodes[node].steward = None;
            return;
        }
        let now_ms = self.mono_ms(node);
        let answer = self.see(node);
        let at = &mut self.nodes[node];
        let own = at.id;
        let present: BTreeSet<u64> = at.meta.present().map(|n| n.node_id).collect();
        let steward = at.steward.get_or_insert_with(|| Steward::new(now_ms));
        steward.round += 1;
        let round = steward.round;
        steward.awaited = present.iter().copied().filter(|id| *id != own).collect();
        steward.heard.insert(own, (now_ms, answer));
        for id in present.into_iter().filter(|id| *id != own) {
            self.peer(node, id as usize - 1, PeerCall::See { round, epoch });
        }
        let wait = self.true_ms(node, SEE_MS).max(1);
        self.at(wait, Event::StewardLooked { node, epoch, round });
    }

    /// What this node says of itself.
    pub fn see(&self, node: usize) -> Answer {
        let at = &self.nodes[node];
        let led = at.cells.iter().filter(|(_, cell)| cell.group.leader_id() == cell.group.node_id());
        let led = led.map(|(group, cell)| {
            let own = Progress { matched: cell.group.last_index(), active: true };
            let others = cell.group.followers().into_iter().map(|(id, follower)| {
                let matched = if follower.in_snapshot { 0 } else { follower.matched };
                (id, Progress { matched, active: follower.recent_active })
            });
            let led = LedGroup {
                replica_id: cell.group.node_id(),
                term: cell.group.term(),
                conf: wire::conf_state_to_wire(cell.group.conf_state()),
                busy: cell.group.is_changing() || cell.members.writing.is_some(),
                last_index: cell.group.last_index(),
                progress: others.chain([(cell.group.node_id(), own)]).collect(),
            };
            (*group, led)
        });
        Answer {
            meta_applied: at.cells.get(&0).map_or(0, |cell| cell.group.applied_index()),
            shares_epoch: at.wing.shares.kept(self.mono(node)),
            replicas: at.replicas.clone(),
            blocked: at.blocked.keys().copied().collect(),
            led: led.collect(),
        }
    }

    pub fn seen(&mut self, node: usize, from: usize, round: u64, answer: Answer) {
        let now_ms = self.mono_ms(node);
        let (id, store_id) = (self.nodes[from].id, self.nodes[from].store_id);
        if !self.nodes[node].meta.admits(id, store_id) {
            return;
        }
        let Some(steward) = self.nodes[node].steward.as_mut().filter(|s| s.round == round) else { return };
        steward.heard.insert(id, (now_ms, answer));
        if steward.awaited.remove(&id) && steward.awaited.is_empty() {
            self.confirm(node, round);
        }
    }

    /// Nobody waits longer for those that have not answered.
    pub fn steward_looked(&mut self, node: usize, round: u64) {
        let Some(steward) = self.nodes[node].steward.as_mut().filter(|s| s.round == round) else { return };
        if !std::mem::take(&mut steward.awaited).is_empty() {
            self.confirm(node, round);
        }
    }

    /// What was seen is judged by a map that is at least as new: only now it asks whether it still leads.
    fn confirm(&mut self, node: usize, round: u64) {
        let Some(cell) = self.nodes[node].cells.get_mut(&0) else { return };
        let ctx = 1 << 63 | round;
        if cell.group.read_index(ctx).is_ok() {
            cell.reads_asked.push((ctx, Asker::Steward { round }));
            self.mark(node, 0);
        }
    }

    pub fn confirmed(&mut self, node: usize, round: u64) {
        let now_ms = self.mono_ms(node);
        let at = &mut self.nodes[node];
        let Some(steward) = at.steward.as_mut().filter(|s| s.round == round) else { return };
        let seen = steward.look(at.meta.nodes.keys().copied(), now_ms);
        let steps = planner::plan(&at.meta, &seen, &Limits::default());
        steward.seen = Some((now_ms, seen));
        let id = at.id;
        for step in steps {
            self.trace.count("steward_step");
            self.note(&[85, id], || format!("plan   n{id} {step:?}"));
            self.carry(node, step);
        }
    }

    pub fn steward_call(&mut self, from: usize, to: usize, call: PeerCall) {
        match call {
            PeerCall::See { round, epoch } => {
                let answer = Box::new(self.see(to));
                self.peer(to, from, PeerCall::Seen { round, epoch, answer });
            }
            PeerCall::Seen { round, epoch, answer } if self.nodes[to].epoch == epoch => {
                self.seen(to, from, round, *answer);
            }
            PeerCall::Carry(step) => self.serve_step(to, &step),
            PeerCall::Confirm { epoch } => self.serve_confirm(to, from, epoch),
            PeerCall::Confirmed { epoch, index } => self.confirmed_fresh(to, epoch, index),
            PeerCall::Lease(call) => self.serve_lease(to, call),
            PeerCall::Leased { epoch, answer } => self.leased(to, epoch, &answer),
            PeerCall::Register { epoch, data } => {
                let waiter = Waiter::Registered { from, epoch };
                self.propose_encoded(to, 0, vec![data], waiter);
            }
            PeerCall::Registered { epoch, refusal } => self.registered(to, epoch, refusal),
            _ => {}
        }
    }

    fn carry(&mut self, node: usize, step: Step) {
        let to = match &step {
            Step::Meta(kind) => {
                let command = MetaCommand { kind: Some(kind.clone()) }.encode_to_vec();
                return self.propose_encoded(node, 0, vec![command.into()], Waiter::Nobody);
            }
            Step::Create { node_id, .. }
            | Step::Destroy { node_id, .. }
            | Step::Conf { node_id, .. }
            | Step::Transfer { node_id, .. } => *node_id as usize - 1,
        };
        match to == node {
            true => self.serve_step(node, &step),
            false => self.peer(node, to, PeerCall::Carry(Box::new(step))),
        }
    }

    /// Tells the meta group where this node is and what its program understands, unless it knows.
    pub fn register(&mut self, node: usize) {
        let Some(command) = registration(&self.nodes[node]) else { return };
        let leader = self.nodes[node].leader_hint(0);
        let (epoch, data) = (self.nodes[node].epoch, command.encode_to_vec());
        match leader as usize {
            0 => {}
            to if to - 1 == node => {
                let waiter = Waiter::Registered { from: node, epoch };
                self.propose_encoded(node, 0, vec![data.into()], waiter);
            }
            to => self.peer(node, to - 1, PeerCall::Register { epoch, data: data.into() }),
        }
    }

    /// A refusal is final: the cluster does not want this node, or not this disk, or not this program.
    pub fn registered(&mut self, node: usize, epoch: u64, refusal: Option<MetaRefusal>) {
        let Some(refusal) = refusal.filter(|_| self.nodes[node].up && self.nodes[node].epoch == epoch) else {
            return;
        };
        let id = self.nodes[node].id;
        self.note(&[86, id], || format!("refuse n{id}: {refusal}"));
        if matches!(refusal, MetaRefusal::OtherStore { .. }) {
            self.trace.count("wiped_disk_refused");
        }
        self.crash(node, false);
        self.nodes[node].lost = true;
    }
}

fn registration(node: &Node) -> Option<MetaCommand> {
    let known = node.meta.nodes.get(&node.id)?;
    if known.store_id == node.store_id && known.feature_level == node.level {
        return None;
    }
    let register = RegisterNode {
        node_id: node.id,
        store_id: node.store_id,
        peer_address: address(node.id),
        feature_level: node.level,
    };
    Some(MetaCommand { kind: Some(Kind::RegisterNode(register)) })
}

pub fn address(node_id: u64) -> String {
    format!("node-{node_id}:7000")
}
