//! The operator: creates the cluster, its carriers and practices through the meta group, and later has nodes join, drain, leave,
//! be replaced and repaired. One command after the other; what got no answer is repeated, what was refused is repeated only
//! while the cluster is being created. The rules of the commands mirror `node/src/edge/members.rs`.
use super::backup::Backup;
use super::node::{Node, Waiter};
use super::plan::Plan;
use super::settings::{SENDER, put_practice};
use super::steward::address;
use super::world::{Event, World};
use carillon_core::meta::{MetaRefusal, MetaView, level};
use carillon_proto::internal::{
    BeginRestore, Bootstrap, CarrierRecord, ChangeReplicas, CreateToken, JoinNode, MetaCommand, MetaNode,
    NodeStatus, PutCarrier, ReplicaRecord, ReplicaRole, RestoreMeta, SetNodeStatus, SmppSettings,
    meta_command::Kind,
};
use prost::Message as _;
use std::collections::VecDeque;

const EVERY_MS: u64 = 150;
const PATIENCE_MS: u64 = 2_000;
/// After a restore, before anybody decides on what is in quarantine.
const DECISION_AFTER_MS: u64 = 3_000;
/// How often something is tried that cannot be done at the moment.
const TRIES_MAX: u32 = 60;

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    Setup(Box<MetaCommand>),
    /// Sets something of a cluster that works already.
    Put(Box<MetaCommand>),
    /// Makes a token and starts a node with it.
    Join,
    /// The token was made: the node asks to be let in.
    Enter {
        secret: u64,
    },
    Status {
        node_id: u64,
        status: NodeStatus,
    },
    /// Brings the rows of a backup to a partition and tells the meta group once they are there.
    Feed {
        partition: u32,
    },
    /// Sends what a practice has in quarantine again, or gives it up.
    Quarantine {
        practice_no: u32,
        release: bool,
    },
    /// Gives a damaged replica up; the planner makes another one.
    Repair {
        node_id: u64,
        partition: u32,
    },
}

/// See the module documentation.
#[derive(Debug)]
pub struct Operator {
    setup_left: usize,
    orders: VecDeque<Order>,
    /// Number and time of the command that is not answered.
    asked: Option<(u64, u64)>,
    last_ask: u64,
    tries: u32,
    /// A new node takes the place of one that is called dead.
    replaces: bool,
    /// A restore was finished, and nobody has noticed yet.
    restored: bool,
    /// The plan's settings were put.
    pub has_settings: bool,
    /// How many of the planned changes of limits were ordered.
    pub limits_changed: usize,
}

impl Operator {
    pub fn new(plan: &Plan) -> Self {
        let mut kinds = founding(plan);
        for practice in 0..plan.practices {
            kinds.push(Kind::PutPractice(put_practice(practice, plan.limits.len())));
        }
        let orders: VecDeque<Order> = kinds.into_iter().map(setup).collect();
        Self {
            setup_left: orders.len(),
            orders,
            asked: None,
            last_ask: 0,
            tries: 0,
            replaces: plan.replaces,
            restored: false,
            has_settings: false,
            limits_changed: 0,
        }
    }

    /// The cluster is gone: there is nothing to do and nothing is done.
    pub fn rest(&mut self) {
        self.orders.clear();
        (self.asked, self.tries, self.setup_left) = (None, 0, 1);
    }

    pub fn change_limits(&mut self, kinds: Vec<Kind>) {
        self.limits_changed += 1;
        self.orders.extend(kinds.into_iter().map(put));
    }

    pub fn put_settings(&mut self, kinds: Vec<Kind>) {
        self.has_settings = true;
        self.orders.extend(kinds.into_iter().map(put));
    }

    /// Creates a cluster of the same name and restores a backup into it. How many orders that takes.
    pub fn restoring(&mut self, plan: &Plan, backup: &Backup) -> u64 {
        let backup_id: prost::bytes::Bytes = backup.id().into();
        // No carrier yet: an empty cluster would take the receipts of the old one for nonsense and acknowledge them.
        let mut kinds = vec![founding(plan).remove(0)];
        let begin = BeginRestore { backup_id: backup_id.clone(), backup_now_ms: backup.now_ms() };
        kinds.push(Kind::BeginRestore(begin));
        kinds.push(Kind::RestoreMeta(RestoreMeta { backup_id, rows: Some(backup.meta.clone()) }));
        self.orders = kinds.into_iter().map(setup).collect();
        self.orders.extend((1..=plan.partitions).map(|partition| Order::Feed { partition }));
        (self.asked, self.tries, self.setup_left) = (None, 0, self.orders.len());
        (self.has_settings, self.limits_changed) = (false, 0);
        self.setup_left as u64
    }

    /// The cluster is created.
    pub fn is_done(&self) -> bool {
        self.setup_left == 0
    }

    pub fn is_idle(&self) -> bool {
        self.orders.is_empty()
    }

    pub fn has(&self, order: &Order) -> bool {
        self.orders.contains(order)
    }

    pub fn push(&mut self, order: Order) {
        if !self.orders.contains(&order) {
            self.orders.push_back(order);
        }
    }

    fn next(&mut self) {
        self.orders.pop_front();
        (self.asked, self.tries) = (None, 0);
    }

    /// It cannot be done now.
    fn later(&mut self) {
        self.asked = None;
        self.tries += 1;
        if self.tries >= TRIES_MAX {
            self.next();
        }
    }

    /// `None`: it is not known whether the command is in force.
    pub fn answered(&mut self, ask: u64, answer: Option<Option<MetaRefusal>>) {
        if self.asked.is_none_or(|(asked, _)| asked != ask) {
            return;
        }
        self.asked = None;
        match (self.orders.front(), answer) {
            (Some(Order::Setup(_)), Some(None)) => {
                self.setup_left -= 1;
                self.next();
            }
            (Some(Order::Put(_)), Some(Some(_))) => self.later(),
            (Some(Order::Join), Some(None)) => self.orders[0] = Order::Enter { secret: ask },
            // A repeat of a token that was made: it is found by its secret.
            (Some(Order::Join), Some(Some(MetaRefusal::Exists))) => {
                self.orders[0] = Order::Enter { secret: ask }
            }
            (Some(Order::Status { .. }), Some(Some(MetaRefusal::NoMajority { .. }))) => self.later(),
            (Some(Order::Repair { .. }), Some(Some(MetaRefusal::MovedOn { .. }))) => self.later(),
            (Some(Order::Status { status: NodeStatus::Dead, .. }), Some(None)) => {
                self.next();
                if self.replaces {
                    self.orders.push_back(Order::Join);
                }
            }
            (Some(Order::Feed { .. }), Some(None)) => {
                self.setup_left -= 1;
                self.restored |= self.setup_left == 0;
                self.next();
            }
            (Some(Order::Enter { .. } | Order::Feed { .. }), _) | (_, None) => {}
            (Some(Order::Setup(_)), Some(Some(_))) => {}
            (_, Some(_)) => self.next(),
        }
    }
}

pub fn put(kind: Kind) -> Order {
    Order::Put(Box::new(MetaCommand { kind: Some(kind) }))
}

fn setup(kind: Kind) -> Order {
    Order::Setup(Box::new(MetaCommand { kind: Some(kind) }))
}

/// What every cluster of the plan begins with.
fn founding(plan: &Plan) -> Vec<Kind> {
    let node = |id: u64| MetaNode { node_id: id, peer_address: address(id), ..MetaNode::default() };
    let bootstrap = Bootstrap {
        cluster_id: "sim".to_owned(),
        partitions: plan.partitions,
        nodes: (1..=plan.nodes as u64).map(node).collect(),
    };
    let carriers = plan
        .limits
        .iter()
        .enumerate()
        .map(|(number, limit)| Kind::PutCarrier(PutCarrier { carrier: Some(carrier(number, *limit)) }));
    [Kind::Bootstrap(bootstrap)].into_iter().chain(carriers).collect()
}

pub fn carrier_name(number: usize) -> String {
    format!("carrier-{number}")
}

fn carrier(number: usize, limit: u32) -> CarrierRecord {
    CarrierRecord {
        carrier_no: 0,
        name: carrier_name(number),
        smpp: Some(SmppSettings {
            address: "carrier:2775".to_owned(),
            system_id: "carillon".to_owned(),
            password_secret: "password".to_owned(),
            binds_per_node: 2,
            window: 10,
            response_timeout_ms: 1_500,
            source_address: SENDER.to_owned(),
            ..Default::default()
        }),
        segments_per_second: limit,
        ..Default::default()
    }
}

/// 32 bytes that stand for the hash of a token's secret.
fn secret_hash(secret: u64) -> prost::bytes::Bytes {
    secret.to_be_bytes().repeat(4).into()
}

impl World {
    pub fn operate(&mut self) {
        self.at(EVERY_MS, Event::Operator);
        self.stop_removed();
        self.see_damage();
        self.look_after_settings();
        self.look_at_pauses();
        self.look_at_hands();
        if std::mem::take(&mut self.operator.restored) {
            self.trace.count("cluster_restored");
            self.at(DECISION_AFTER_MS, Event::Quarantine);
        }
        let now_ms = self.now_ms;
        if self.operator.asked.is_some_and(|(_, at_ms)| now_ms < at_ms + PATIENCE_MS) {
            return;
        }
        let Some(order) = self.operator.orders.front().cloned() else { return };
        let Some(node) = (0..self.nodes.len()).find(|n| self.nodes[*n].up && self.nodes[*n].leads(0)) else {
            return;
        };
        if let Order::Quarantine { practice_no, release } = order {
            self.resolve_quarantine(practice_no, release);
            return self.operator.next();
        }
        // A token keeps its secret over repeats.
        let repeats = matches!(order, Order::Join) && self.operator.asked.is_some();
        self.operator.last_ask += u64::from(!repeats);
        let ask = self.operator.last_ask;
        match self.command(node, &order, ask) {
            Some(kind) => {
                self.operator.asked = Some((ask, now_ms));
                self.note(&[90, ask], || format!("admin  n{} {order:?}", node + 1));
                let command = MetaCommand { kind: Some(kind) }.encode_to_vec();
                self.propose_encoded(node, 0, vec![command.into()], Waiter::Operator { ask });
            }
            // It goes on piece by piece, however long that takes.
            None if matches!(order, Order::Feed { .. }) => {}
            None => self.operator.later(),
        }
    }

    /// What is proposed for a order now, if anything.
    fn command(&mut self, node: usize, order: &Order, ask: u64) -> Option<Kind> {
        let view = self.nodes[node].meta.clone();
        match order {
            Order::Setup(command) | Order::Put(command) => command.kind.clone(),
            Order::Join => (view.level >= level::LEVEL_MEMBERSHIP)
                .then(|| Kind::CreateToken(CreateToken { secret_hash: secret_hash(ask), life_s: 3_600 })),
            Order::Enter { secret } => self.enter(&view, *secret),
            Order::Feed { partition } => self.feed(*partition),
            Order::Quarantine { .. } => None,
            Order::Status { node_id, status } => {
                if *status == NodeStatus::Dead && !self.is_lost(node, *node_id) {
                    return None;
                }
                Some(Kind::SetNodeStatus(SetNodeStatus { node_id: *node_id, status: (*status).into() }))
            }
            Order::Repair { node_id, partition } => {
                let at = &self.nodes[*node_id as usize - 1];
                let record = view.map.get(partition).filter(|_| at.blocked.contains_key(partition))?;
                let own = record.replicas.iter().find(|r| r.node_id == *node_id)?;
                if record.replicas.len() == 1 || own.role() == ReplicaRole::Leaving {
                    return None;
                }
                let set = vec![ReplicaRecord { role: ReplicaRole::Leaving.into(), ..*own }];
                let (partition, expected_epoch) = (*partition, record.epoch);
                Some(Kind::ChangeReplicas(ChangeReplicas {
                    partition,
                    expected_epoch,
                    set,
                    ..Default::default()
                }))
            }
        }
    }

    /// Calling a node dead is for ever, so it is not done to one that answers, nor while a group might need it.
    fn is_lost(&self, node: usize, node_id: u64) -> bool {
        let seen = self.nodes[node].steward.as_ref().and_then(|steward| steward.seen.as_ref());
        seen.is_some_and(|(_, seen)| {
            seen.nodes.get(&node_id).is_some_and(|n| !n.alive)
                && self.groups().all(|group| seen.groups.contains_key(&group))
        })
    }

    /// The new node asks to be let in; it starts once it is. Nothing to propose when it is in, or when its token is gone.
    fn enter(&mut self, view: &MetaView, secret: u64) -> Option<Kind> {
        let token = view.tokens.values().find(|token| token.secret_hash == secret_hash(secret));
        let joined = |world: &Self| {
            let mut nodes = world.nodes.iter();
            nodes.find(|n| n.token == secret && view.nodes.contains_key(&n.id)).map(|n| n.index)
        };
        let Some(token) = token else {
            if let Some(index) = joined(self) {
                self.trace.count("node_joined");
                self.operator.next();
                self.restart(index);
            }
            return None;
        };
        while self.nodes.len() < token.node_id as usize {
            let index = self.nodes.len();
            let clock = self.plan.clocks[index % self.plan.clocks.len()];
            let mut node = Node::new(index, self.plan.start_ms(), clock);
            node.level = level::LEVEL;
            self.nodes.push(node);
        }
        let node = &mut self.nodes[token.node_id as usize - 1];
        node.token = secret;
        Some(Kind::JoinNode(JoinNode {
            node_id: node.id,
            secret_hash: token.secret_hash.clone(),
            store_id: node.store_id,
            peer_address: address(node.id),
            feature_level: node.level,
        }))
    }

    /// The newest map that a running node has.
    pub fn newest_view(&self) -> Option<&MetaView> {
        let running = self.nodes.iter().filter(|node| node.up && !node.wiped);
        running.map(|node| &node.meta).max_by_key(|view| view.applied_index)
    }

    /// Processes of nodes that were removed or called dead are stopped for good.
    fn stop_removed(&mut self) {
        let gone = |status| matches!(status, NodeStatus::Removed | NodeStatus::Dead);
        let Some(view) = self.newest_view() else { return };
        let nodes = view.nodes.values().filter(|n| gone(n.status())).map(|n| n.node_id as usize - 1);
        for node in nodes.collect::<Vec<_>>() {
            if !self.nodes[node].lost || self.nodes[node].up {
                self.crash(node, false);
                self.nodes[node].lost = true;
                self.trace.count("node_removed");
            }
        }
    }

    /// Damaged replicas are repaired, lost nodes are called dead: sooner or later, and at once when all is calm.
    fn see_damage(&mut self) {
        if !self.operator.is_done() || !(self.calm || self.rng.operator.chance(self.plan.care)) {
            return;
        }
        let Some(view) = self.newest_view() else { return };
        let lost = view.present().map(|n| n.node_id).filter(|id| self.nodes[*id as usize - 1].lost);
        let mut orders: Vec<Order> =
            lost.map(|node_id| Order::Status { node_id, status: NodeStatus::Dead }).collect();
        for node in self.nodes.iter().filter(|node| node.up && !node.wiped) {
            let blocked = node.blocked.keys().filter(|partition| **partition != 0);
            orders.extend(blocked.map(|partition| Order::Repair { node_id: node.id, partition: *partition }));
        }
        for order in orders {
            if !self.operator.orders.contains(&order) {
                self.operator.push(order);
            }
        }
    }
}
