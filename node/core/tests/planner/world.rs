//! A cluster for the planner: real meta state, raft groups reduced to their membership, nodes that come and go. Every step
//! is checked before it is done.
use bytes::Bytes;
use carillon_core::meta::planner::{Conf, ConfStep, GroupSeen, Limits, NodeSeen, Progress, Seen, Step, plan};
use carillon_core::meta::{self, MetaEffects, MetaView, level};
use carillon_core::{EntryMeta, MemTables};
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::*;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};

/// Small and seeded; the planner itself has no randomness.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

#[derive(Default)]
pub struct Node {
    pub up: bool,
    /// Its disk is gone.
    pub lost: bool,
    pub clock_off: bool,
    silent_ms: u64,
    shares_epoch: u64,
    pub replicas: BTreeMap<u32, u64>,
    pub blocked: BTreeSet<u32>,
}

#[derive(Default)]
pub struct Group {
    pub leader: Option<u64>,
    pub conf: Conf,
    last_index: u64,
    matched: BTreeMap<u64, u64>,
    led_ms: u64,
    pub load: u64,
}

pub struct World {
    /// What the programs understand: nodes send on leases, or below on fixed shares.
    level: u32,
    tables: MemTables,
    index: u64,
    now_ms: u64,
    pub nodes: BTreeMap<u64, Node>,
    pub groups: BTreeMap<u32, Group>,
    pub dice: Dice,
    pub log: Vec<String>,
}

pub fn node_of(replica_id: u64) -> u64 {
    replica_id & 0xffff_ffff
}

impl World {
    pub fn new(seed: u64, nodes: u64, partitions: u32) -> Self {
        let mut world = Self {
            level: if seed.is_multiple_of(2) { level::LEVEL } else { level::LEVEL_OPT_OUT },
            tables: MemTables::default(),
            index: 0,
            now_ms: 1_000,
            nodes: BTreeMap::new(),
            groups: BTreeMap::new(),
            dice: Dice::new(seed),
            log: Vec::new(),
        };
        let founders = (1..=nodes).map(|node_id| MetaNode {
            node_id,
            peer_address: format!("n{node_id}:1"),
            ..Default::default()
        });
        let bootstrap = Bootstrap { cluster_id: "lab".into(), partitions, nodes: founders.collect() };
        world.meta(Kind::Bootstrap(bootstrap)).unwrap();
        for node_id in 1..=nodes {
            world.nodes.insert(node_id, Node { up: true, shares_epoch: 1, ..Default::default() });
            world.register(node_id);
        }
        for record in world.view().map.values() {
            let mut group = Group { last_index: 10, load: 100_000, ..Default::default() };
            for replica in &record.replicas {
                let set = match replica.role() {
                    ReplicaRole::Voter => &mut group.conf.voters,
                    _ => &mut group.conf.learners,
                };
                set.insert(replica.replica_id);
                group.matched.insert(replica.replica_id, 10);
                let node = world.nodes.get_mut(&replica.node_id).unwrap();
                node.replicas.insert(record.partition, replica.replica_id);
            }
            world.groups.insert(record.partition, group);
        }
        world
    }

    fn register(&mut self, node_id: u64) {
        let register = RegisterNode {
            node_id,
            store_id: node_id + 100,
            peer_address: format!("n{node_id}:1"),
            feature_level: self.level,
        };
        self.meta(Kind::RegisterNode(register)).unwrap();
    }

    pub fn view(&self) -> MetaView {
        MetaView::load(&self.tables).unwrap()
    }

    pub fn meta(&mut self, kind: Kind) -> Result<(), meta::MetaRefusal> {
        self.index += 1;
        let commands = vec![MetaCommand { kind: Some(kind) }];
        let data = Bytes::from(MetaBatch { now_ms: self.now_ms, commands }.encode_to_vec());
        let mut effects = MetaEffects::default();
        let at = EntryMeta { index: self.index, term: 1 };
        meta::apply(&mut self.tables, at, &data, &mut effects).unwrap();
        effects.results.remove(0)
    }

    /// A new node, with a token; may be refused.
    pub fn join(&mut self) {
        let secret_hash = Bytes::from(vec![self.index as u8; 32]);
        if self.meta(Kind::CreateToken(CreateToken { secret_hash: secret_hash.clone(), life_s: 60 })).is_err()
        {
            return;
        }
        let node_id = *self.view().tokens.keys().next_back().unwrap();
        let join = JoinNode {
            node_id,
            secret_hash,
            store_id: node_id + 100,
            peer_address: format!("n{node_id}:1"),
            feature_level: self.level,
        };
        self.meta(Kind::JoinNode(join)).unwrap();
        self.nodes.insert(node_id, Node { up: true, ..Default::default() });
    }

    pub fn set(&mut self, node_id: u64, status: NodeStatus) -> bool {
        let done = self.meta(Kind::SetNodeStatus(SetNodeStatus { node_id, status: status.into() })).is_ok();
        if done {
            self.log.push(format!("operator: {node_id} {status:?}"));
        }
        done
    }

    /// As the operator's command does it: only a node that is down, only while every group can do without it.
    pub fn lose(&mut self, node_id: u64) {
        let groups_lead = self.groups.keys().all(|g| self.leads(*g).is_some());
        if !self.nodes[&node_id].up && groups_lead && self.set(node_id, NodeStatus::Dead) {
            let node = self.nodes.get_mut(&node_id).unwrap();
            node.lost = true;
            node.replicas.clear();
        }
    }

    fn holds(&self, group: u32, replica_id: u64) -> bool {
        self.nodes
            .get(&node_of(replica_id))
            .is_some_and(|n| n.up && n.replicas.get(&group) == Some(&replica_id))
    }

    fn majority(&self, group: u32, voters: &BTreeSet<u64>, from: u64) -> bool {
        let matched = &self.groups[&group].matched;
        let have = |id: &&u64| self.holds(group, **id) && matched.get(*id).is_some_and(|m| *m >= from);
        voters.iter().filter(have).count() * 2 > voters.len()
    }

    fn has_quorum(&self, group: u32) -> bool {
        let conf = &self.groups[&group].conf;
        self.majority(group, &conf.voters, 0)
            && (conf.outgoing.is_empty() || self.majority(group, &conf.outgoing, 0))
    }

    fn leads(&self, group: u32) -> Option<u64> {
        self.groups[&group].leader.filter(|id| self.holds(group, *id))
    }

    /// Elections, replication, acknowledgements.
    pub fn tick(&mut self) {
        self.now_ms += 500;
        for node in self.nodes.values_mut() {
            node.silent_ms = if node.up { 0 } else { node.silent_ms + 500 };
        }
        let epoch = self.view().shares.epoch;
        let numbers: Vec<u32> = self.groups.keys().copied().collect();
        for number in numbers {
            let quorum = self.has_quorum(number);
            let leads = self.leads(number).filter(|id| {
                let conf = &self.groups[&number].conf;
                quorum && (conf.voters.contains(id) || conf.outgoing.contains(id))
            });
            let elected = match leads {
                Some(leader) => Some(leader),
                None if quorum => {
                    let group = &self.groups[&number];
                    let ahead = group
                        .conf
                        .voters
                        .iter()
                        .filter(|id| self.holds(number, **id))
                        .max_by_key(|id| (group.matched.get(*id).copied(), **id));
                    ahead.copied()
                }
                None => None,
            };
            let reached: Vec<u64> = {
                let conf = &self.groups[&number].conf;
                let all =
                    conf.voters.iter().chain(&conf.outgoing).chain(&conf.learners).chain(&conf.learners_next);
                all.copied().filter(|id| self.holds(number, *id)).collect()
            };
            let lucky: Vec<u64> = reached.into_iter().filter(|_| self.dice.percent(70)).collect();
            let group = self.groups.get_mut(&number).unwrap();
            group.led_ms = if group.leader == elected { group.led_ms + 500 } else { 0 };
            group.leader = elected;
            let Some(leader) = elected else { continue };
            group.last_index += 100;
            for id in lucky.into_iter().chain([leader]) {
                group.matched.insert(id, group.last_index);
            }
        }
        for node in self.nodes.values_mut().filter(|n| n.up) {
            if self.dice.percent(80) {
                node.shares_epoch = epoch;
            }
        }
    }

    pub fn seen(&self) -> Seen {
        let view = self.view();
        let mut seen = Seen::default();
        for (id, node) in &self.nodes {
            seen.nodes.insert(
                *id,
                NodeSeen {
                    alive: node.up,
                    silent_ms: node.silent_ms,
                    stopping: false,
                    clock_off: node.clock_off,
                    meta_applied: node
                        .replicas
                        .get(&0)
                        .and_then(|r| self.groups[&0].matched.get(r))
                        .copied()
                        .unwrap_or(0),
                    shares_epoch: node.shares_epoch,
                    replicas: node.replicas.clone(),
                    blocked: node.blocked.clone(),
                },
            );
        }
        assert!(view.nodes.keys().all(|id| seen.nodes.contains_key(id)));
        for number in self.groups.keys() {
            let (Some(leader), true) = (self.leads(*number), self.has_quorum(*number)) else { continue };
            let group = &self.groups[number];
            let progress = group
                .matched
                .iter()
                .map(|(id, matched)| (*id, Progress { matched: *matched, active: self.holds(*number, *id) }));
            seen.groups.insert(
                *number,
                GroupSeen {
                    leader,
                    conf: group.conf.clone(),
                    busy: false,
                    last_index: group.last_index,
                    progress: progress.collect(),
                    led_ms: group.led_ms,
                    load: group.load,
                },
            );
        }
        seen
    }

    /// One round of the steward; a part of the steps is lost. Returns what was planned.
    pub fn round(&mut self, lost_percent: u64) -> Vec<Step> {
        let steps = plan(&self.view(), &self.seen(), &Limits::default());
        let mut partitions = BTreeSet::new();
        for step in &steps {
            if let Some(group) = group_of(step) {
                assert!(partitions.insert(group), "two steps for group {group}: {steps:?}");
            }
        }
        for step in steps.clone() {
            if self.dice.percent(lost_percent) {
                continue;
            }
            self.log.push(format!("{step:?}"));
            self.carry(step);
        }
        steps
    }

    fn carry(&mut self, step: Step) {
        match step {
            Step::Meta(kind) => {
                let result = self.meta(kind.clone());
                assert!(result.is_ok(), "{kind:?} was refused: {result:?}");
            }
            Step::Create { node_id, group, replica_id } => {
                let record = &self.view().map[&group];
                assert!(record.replicas.iter().any(|r| r.replica_id == replica_id && r.node_id == node_id));
                let before = self.nodes.get_mut(&node_id).unwrap().replicas.insert(group, replica_id);
                assert!(before.is_none(), "a replica was overwritten");
            }
            Step::Destroy { node_id, group, replica_id } => {
                let conf = &self.groups[&group].conf;
                for set in [&conf.voters, &conf.outgoing, &conf.learners, &conf.learners_next] {
                    assert!(!set.contains(&replica_id), "replica {replica_id} of group {group} is a member");
                }
                let removed = self.nodes.get_mut(&node_id).unwrap().replicas.remove(&group);
                assert_eq!(removed, Some(replica_id));
            }
            Step::Transfer { node_id, group, to } => {
                assert_eq!(self.leads(group).map(node_of), Some(node_id));
                assert!(self.groups[&group].conf.voters.contains(&to));
                if self.holds(group, to) {
                    let group = self.groups.get_mut(&group).unwrap();
                    (group.leader, group.led_ms) = (Some(to), 0);
                    group.matched.insert(to, group.last_index);
                }
            }
            Step::Conf { node_id, group, change } => self.change(node_id, group, change),
        }
    }

    fn change(&mut self, node_id: u64, number: u32, change: ConfStep) {
        assert_eq!(self.leads(number).map(node_of), Some(node_id), "it asks somebody else than the leader");
        let joint = !self.groups[&number].conf.outgoing.is_empty();
        assert_eq!(joint, change == ConfStep::Leave);
        let lag = Limits::default().lag_entries_max;
        let from = self.groups[&number].last_index.saturating_sub(lag);
        if let ConfStep::Swap { promote, demote } = &change {
            let group = &self.groups[&number];
            assert!(!demote.contains(&group.leader.unwrap()), "the leader would demote itself");
            let mut next = group.conf.voters.clone();
            next.extend(promote);
            next.retain(|id| !demote.contains(id));
            for id in promote {
                assert!(
                    group.conf.learners.contains(id) && group.matched[id] >= from,
                    "{id} has not caught up"
                );
            }
            assert!(self.majority(number, &group.conf.voters, from), "no healthy majority of the old voters");
            assert!(self.majority(number, &next, from), "no healthy majority of the new voters");
        }
        // Between seeing and doing, nodes may have gone: raft itself waits for its majorities.
        if !self.has_quorum(number) {
            return;
        }
        let conf = &mut self.groups.get_mut(&number).unwrap().conf;
        match change {
            ConfStep::AddLearner(id) => {
                assert!(conf.learners.insert(id));
            }
            ConfStep::Remove(id) => {
                assert!(conf.learners.remove(&id), "only learners are removed");
                self.groups.get_mut(&number).unwrap().matched.remove(&id);
            }
            ConfStep::Swap { promote, demote } => {
                conf.outgoing = conf.voters.clone();
                for id in promote {
                    conf.learners.remove(&id);
                    conf.voters.insert(id);
                }
                for id in demote {
                    conf.voters.remove(&id);
                    conf.learners_next.insert(id);
                }
            }
            ConfStep::Leave => {
                conf.outgoing.clear();
                let next = std::mem::take(&mut conf.learners_next);
                conf.learners.extend(next);
            }
        }
    }
}

fn group_of(step: &Step) -> Option<u32> {
    match step {
        Step::Meta(Kind::ChangeReplicas(change)) => Some(change.partition),
        Step::Meta(_) => None,
        Step::Create { group, .. }
        | Step::Destroy { group, .. }
        | Step::Conf { group, .. }
        | Step::Transfer { group, .. } => Some(*group),
    }
}
