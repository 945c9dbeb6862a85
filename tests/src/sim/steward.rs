//! The steward, as the simulator runs it: a mirror of `node/src/meta/steward.rs`, `see.rs`, `carry.rs` and `register.rs`
//! around the same gatherer and planner. On the leader of the meta group it looks at every node twice a second, confirms that
//! it still leads, and has the planner's steps carried out. Each node keeps the cluster informed of itself.
use super::node::{Asker, Cell, Node, Waiter};
use super::wing::PeerCall;
use super::world::{Event, World};
use carillon_consensus::wire;
use carillon_core::meta::planner::{self, Limits, Seen, Step};
use carillon_core::meta::{Gatherer, MetaRefusal};
use carillon_proto::internal::{
    HostedReplica, LedGroup, MetaCommand, RegisterNode, ReplicaProgress, SeeResponse, meta_command::Kind,
};
use prost::Message as _;
use std::collections::BTreeSet;

pub const ROUND_MS: u64 = 500;
const SEE_MS: u64 = 400;
/// Ticks between looks at whether this node is registered.
pub const REGISTER_TICKS: u64 = 10;

/// Memory of one term as steward.
#[derive(Debug)]
pub struct Steward {
    round: u64,
    awaited: BTreeSet<u64>,
    gatherer: Gatherer,
    /// What it saw in the last round, and when.
    pub seen: Option<(u64, Seen)>,
}

impl Steward {
    fn new(now_ms: u64) -> Self {
        Self { round: now_ms, awaited: BTreeSet::new(), gatherer: Gatherer::new(now_ms), seen: None }
    }
}

impl World {
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
        steward.gatherer.hear(own, answer, now_ms);
        for id in present.into_iter().filter(|id| *id != own) {
            self.peer(node, id as usize - 1, PeerCall::See { round, epoch });
        }
        let wait = self.true_ms(node, SEE_MS).max(1);
        self.at(wait, Event::StewardLooked { node, epoch, round });
    }

    /// What this node says of itself.
    pub fn see(&mut self, node: usize) -> SeeResponse {
        let (wall_ms, mono_ms) = (self.nodes[node].clock.wall_ms(self.now_ms), self.mono_ms(node));
        let clock_off = self.nodes[node].clocks.look(wall_ms, mono_ms).is_off;
        if clock_off {
            self.trace.count("clock_off");
        }
        let at = &self.nodes[node];
        let replica = |(group, replica_id): (&u32, &u64)| HostedReplica {
            group: *group,
            replica_id: *replica_id,
            blocked: at.blocked.get(group).cloned().unwrap_or_default(),
            led: at.cells.get(group).filter(|cell| cell.group.is_leader()).map(led),
        };
        SeeResponse {
            node_id: at.id,
            store_id: at.store_id,
            stopping: false,
            meta_applied: at.cells.get(&0).map_or(0, |cell| cell.group.applied_index()),
            shares_epoch: at.wing.shares.kept(self.mono(node)),
            replicas: at.replicas.iter().map(replica).collect(),
            clock_off,
        }
    }

    pub fn seen(&mut self, node: usize, from: usize, round: u64, answer: SeeResponse) {
        let now_ms = self.mono_ms(node);
        let (id, store_id) = (answer.node_id, answer.store_id);
        if self.nodes[from].id != id || !self.nodes[node].meta.admits(id, store_id) {
            return;
        }
        let Some(steward) = self.nodes[node].steward.as_mut().filter(|s| s.round == round) else { return };
        steward.gatherer.hear(id, answer, now_ms);
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
        let seen = steward.gatherer.seen(at.meta.nodes.keys().copied(), now_ms);
        let steps = planner::plan(&at.meta, &seen, &Limits::default());
        steward.seen = Some((now_ms, seen));
        let id = at.id;
        for step in steps {
            self.trace.count("steward_step");
            if let Step::Transfer { node_id, .. } = &step {
                let off = self.nodes[node].steward.as_ref().and_then(|steward| steward.seen.as_ref());
                if off.is_some_and(|(_, seen)| seen.nodes.get(node_id).is_some_and(|n| n.clock_off)) {
                    self.trace.count("leader_moved_off_a_wrong_clock");
                }
            }
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

/// A group as its leader sees it: a mirror of `node/src/meta/see.rs`.
fn led(cell: &Cell) -> LedGroup {
    let progress = |replica_id, matched, active| ReplicaProgress { replica_id, matched, active };
    let own = progress(cell.group.node_id(), cell.group.last_index(), true);
    let others = cell.group.followers().into_iter().map(|(id, follower)| {
        // While it gets a snapshot it has nothing that counts.
        progress(id, if follower.in_snapshot { 0 } else { follower.matched }, follower.recent_active)
    });
    LedGroup {
        term: cell.group.term(),
        conf: Some(wire::conf_state_to_wire(cell.group.conf_state())),
        busy: cell.group.is_changing() || cell.release.is_writing(),
        last_index: cell.group.last_index(),
        progress: others.chain([own]).collect(),
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
