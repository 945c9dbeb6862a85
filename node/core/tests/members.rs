//! Membership in the meta group: tokens, joining, identities, status, replicas, shares, feature level.
use bytes::Bytes;
use carillon_core::EntryMeta;
use carillon_core::MemTables;
use carillon_core::meta::{self, MetaEffects, MetaRefusal, MetaView, level};
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::*;
use prost::Message as _;

const BASE: u32 = level::LEVEL_BASE;
const FULL: u32 = level::LEVEL_MEMBERSHIP;

struct Group {
    tables: MemTables,
    index: u64,
    now_ms: u64,
}

impl Group {
    /// A cluster of three nodes at full level.
    fn ready() -> Self {
        let mut group = Self::created(3);
        for id in 1..=3 {
            group.ok(register(id, 100 + id, FULL));
        }
        group.ok(Kind::RaiseLevel(RaiseLevel { level: FULL }));
        group
    }

    fn created(nodes: u64) -> Self {
        let mut group = Self { tables: MemTables::default(), index: 0, now_ms: 1_000 };
        let nodes = (1..=nodes).map(|node_id| MetaNode {
            node_id,
            peer_address: address(node_id),
            ..Default::default()
        });
        group.ok(Kind::Bootstrap(Bootstrap {
            cluster_id: "lab".into(),
            partitions: 4,
            nodes: nodes.collect(),
        }));
        group
    }

    fn run(&mut self, kind: Kind) -> Result<(), MetaRefusal> {
        self.index += 1;
        let commands = vec![MetaCommand { kind: Some(kind) }];
        let data = Bytes::from(MetaBatch { now_ms: self.now_ms, commands }.encode_to_vec());
        let meta = EntryMeta { index: self.index, term: 1 };
        let mut effects = MetaEffects::default();
        meta::apply(&mut self.tables, meta, &data, &mut effects).unwrap();
        effects.results.remove(0)
    }

    fn ok(&mut self, kind: Kind) {
        assert_eq!(self.run(kind.clone()), Ok(()), "{kind:?}");
    }

    fn refused(&mut self, kind: Kind) -> MetaRefusal {
        let before = self.view();
        let refusal = self.run(kind).unwrap_err();
        let after = MetaView { applied_index: before.applied_index, ..self.view() };
        assert!(after == before, "a refusal changes nothing: {refusal}");
        refusal
    }

    fn view(&self) -> MetaView {
        MetaView::load(&self.tables).unwrap()
    }

    fn status(&mut self, node_id: u64, status: NodeStatus) -> Result<(), MetaRefusal> {
        self.run(Kind::SetNodeStatus(SetNodeStatus { node_id, status: status.into() }))
    }
}

fn address(node_id: u64) -> String {
    format!("n{node_id}:7000")
}

fn register(node_id: u64, store_id: u64, feature_level: u32) -> Kind {
    Kind::RegisterNode(RegisterNode { node_id, store_id, peer_address: address(node_id), feature_level })
}

fn hash(byte: u8) -> Bytes {
    Bytes::from(vec![byte; 32])
}

fn token(byte: u8, life_s: u32) -> Kind {
    Kind::CreateToken(CreateToken { secret_hash: hash(byte), life_s })
}

fn join(node_id: u64, byte: u8, store_id: u64) -> JoinNode {
    JoinNode {
        node_id,
        secret_hash: hash(byte),
        store_id,
        peer_address: address(node_id),
        feature_level: FULL,
    }
}

fn change(partition: u32, expected_epoch: u64) -> ChangeReplicas {
    ChangeReplicas { partition, expected_epoch, ..Default::default() }
}

fn replica(replica_id: u64, node_id: u64, role: ReplicaRole) -> ReplicaRecord {
    ReplicaRecord { replica_id, node_id, role: role.into() }
}

#[test]
fn a_token_admits_one_node_once_and_expires() {
    let mut group = Group::ready();
    group.ok(token(7, 60));
    let made = group.view().tokens.into_values().next().unwrap();
    assert_eq!((made.node_id, made.expires_at_ms), (4, 61_000));
    assert_eq!(group.refused(token(7, 60)), MetaRefusal::Exists);
    // Wrong secret, wrong node.
    assert_eq!(group.refused(Kind::JoinNode(join(4, 8, 50))), MetaRefusal::BadToken);
    assert_eq!(group.refused(Kind::JoinNode(join(5, 7, 50))), MetaRefusal::BadToken);
    group.ok(Kind::JoinNode(join(4, 7, 50)));
    let view = group.view();
    assert_eq!((view.nodes[&4].status(), view.nodes[&4].store_id), (NodeStatus::Joining, 50));
    assert!(view.tokens.is_empty());
    // A lost answer: the same store again. Another disk: no.
    group.ok(Kind::JoinNode(join(4, 7, 50)));
    assert_eq!(group.refused(Kind::JoinNode(join(4, 7, 51))), MetaRefusal::OtherStore { node_id: 4 });
    // Too late; and its node id is not given out again.
    group.ok(token(9, 60));
    group.now_ms += 60_000;
    assert_eq!(group.refused(Kind::JoinNode(join(5, 9, 60))), MetaRefusal::BadToken);
    group.ok(token(10, 60));
    assert_eq!(group.view().tokens.keys().copied().collect::<Vec<_>>(), [6], "expired ones are cleared away");
    for bad in [token(1, 0), token(1, meta::TOKEN_LIFE_S_MAX + 1)] {
        assert!(matches!(group.refused(bad), MetaRefusal::Invalid { field: "life_s", .. }));
    }
}

#[test]
fn tokens_and_nodes_are_limited_and_every_lane_must_be_fast_enough() {
    let mut group = Group::ready();
    for at in 0..meta::NODES_MAX as u8 - 3 {
        group.ok(token(at, 60));
    }
    assert!(matches!(group.refused(token(200, 60)), MetaRefusal::TooMany { what: "nodes", .. }));
    let mut group = Group::ready();
    let smpp = SmppSettings {
        address: "smsc.lab:2775".into(),
        system_id: "carillon".into(),
        password_secret: "smsc-password".into(),
        binds_per_node: 2,
        window: 64,
        response_timeout_ms: 10_000,
        source_address: "12125550100".into(),
        ..Default::default()
    };
    let record =
        CarrierRecord { name: "slow".into(), smpp: Some(smpp), segments_per_second: 3, ..Default::default() };
    group.ok(Kind::PutCarrier(PutCarrier { carrier: Some(record) }));
    assert_eq!(group.refused(token(1, 60)), MetaRefusal::TooSlow { nodes: 4 });
}

#[test]
fn the_first_registration_ties_an_id_to_a_disk() {
    let mut group = Group::created(3);
    group.ok(register(1, 11, FULL));
    assert_eq!(group.refused(register(1, 12, FULL)), MetaRefusal::OtherStore { node_id: 1 });
    assert_eq!(group.refused(register(9, 12, FULL)), MetaRefusal::NoNode { node_id: 9 });
    let moved =
        RegisterNode { node_id: 1, store_id: 11, peer_address: "n1.new:7000".into(), feature_level: FULL };
    group.ok(Kind::RegisterNode(moved.clone()));
    assert_eq!(group.view().nodes[&1].peer_address, "n1.new:7000");
    let thief = RegisterNode { node_id: 2, store_id: 22, ..moved };
    assert_eq!(group.refused(Kind::RegisterNode(thief)), MetaRefusal::AddressTaken { node_id: 1 });
    let view = group.view();
    assert!(view.admits(1, 11) && !view.admits(1, 12) && view.admits(2, 5) && view.admits(77, 1));
}

#[test]
fn every_change_of_status_is_in_the_table_or_refused() {
    use NodeStatus as S;
    let all = [S::Joining, S::Active, S::Draining, S::Decommissioning, S::Removed, S::Dead];
    let legal: Vec<(S, S)> = vec![
        (S::Joining, S::Active),
        (S::Joining, S::Decommissioning),
        (S::Joining, S::Dead),
        (S::Active, S::Draining),
        (S::Active, S::Decommissioning),
        (S::Active, S::Dead),
        (S::Draining, S::Active),
        (S::Draining, S::Decommissioning),
        (S::Draining, S::Dead),
        (S::Decommissioning, S::Active),
        (S::Decommissioning, S::Removed),
        (S::Decommissioning, S::Dead),
        (S::Dead, S::Removed),
    ];
    for from in all {
        for to in all {
            assert_eq!(meta::may_become(from, to), legal.contains(&(from, to)), "{from:?} {to:?}");
        }
    }
    let mut group = Group::ready();
    let refusal = group.status(1, S::Removed).unwrap_err();
    assert_eq!(refusal, MetaRefusal::Status { node_id: 1, from: "active", to: "removed" });
    assert_eq!(group.status(9, S::Dead).unwrap_err(), MetaRefusal::NoNode { node_id: 9 });
    assert_eq!(group.status(1, S::Active), Ok(()), "the same again");
}

#[test]
fn a_node_leaves_only_when_others_can_take_over_and_nothing_is_left_on_it() {
    let mut group = Group::ready();
    let few = group.status(3, NodeStatus::Decommissioning).unwrap_err();
    assert_eq!(few, MetaRefusal::TooFewNodes { others: 2, needed: 3 });
    group.ok(token(7, 60));
    group.ok(Kind::JoinNode(join(4, 7, 50)));
    group.status(4, NodeStatus::Active).unwrap();
    group.status(3, NodeStatus::Decommissioning).unwrap();
    assert_eq!(group.status(3, NodeStatus::Removed).unwrap_err(), MetaRefusal::StillInUse { node_id: 3 });
    for partition in 0..=4 {
        let mut first = change(partition, 1);
        first.forget = vec![3];
        group.ok(Kind::ChangeReplicas(first));
    }
    assert_eq!(
        group.status(3, NodeStatus::Removed).unwrap_err(),
        MetaRefusal::StillInUse { node_id: 3 },
        "it has a share"
    );
    group.ok(Kind::SetShares(SetShares { expected_epoch: 1, senders: vec![1, 2, 4] }));
    assert_eq!(group.status(3, NodeStatus::Removed).unwrap_err(), MetaRefusal::StillInUse { node_id: 3 });
    group.ok(Kind::SettleShares(SettleShares { epoch: 2 }));
    group.status(3, NodeStatus::Removed).unwrap();
    assert_eq!(group.refused(register(3, 103, FULL)), MetaRefusal::Gone { node_id: 3 });
    assert!(!group.view().admits(3, 103));
    assert_eq!(group.view().present().count(), 3);
}

#[test]
fn nodes_are_called_dead_only_while_majorities_remain() {
    let mut group = Group::ready();
    group.status(2, NodeStatus::Dead).unwrap();
    let refusal = group.status(3, NodeStatus::Dead).unwrap_err();
    assert!(matches!(refusal, MetaRefusal::NoMajority { node_id: 3, partition: 0 }), "{refusal}");
    // A move under way: the replica that leaves may still vote.
    let mut group = Group::ready();
    group.ok(token(7, 60));
    group.ok(Kind::JoinNode(join(4, 7, 50)));
    let mut moving = change(1, 1);
    moving.add = vec![replica(0, 4, ReplicaRole::Voter)];
    moving.set = vec![replica(3, 3, ReplicaRole::Leaving)];
    group.ok(Kind::ChangeReplicas(moving));
    for partition in [0, 2, 3, 4] {
        let mut first = change(partition, 1);
        first.forget = vec![3];
        first.add = vec![replica(0, 4, ReplicaRole::Voter)];
        group.ok(Kind::ChangeReplicas(first));
    }
    group.status(1, NodeStatus::Dead).unwrap();
    let refusal = group.status(3, NodeStatus::Dead).unwrap_err();
    assert!(matches!(refusal, MetaRefusal::NoMajority { node_id: 3, partition: 1 }), "{refusal}");
}

#[test]
fn replicas_are_changed_by_epoch_and_ids_never_come_back() {
    let mut group = Group::ready();
    group.ok(token(7, 60));
    group.ok(Kind::JoinNode(join(4, 7, 50)));
    let founding = group.view().map[&2].clone();
    assert_eq!(founding.replicas.iter().map(|r| r.replica_id).collect::<Vec<_>>(), [1, 2, 3]);
    let mut add = change(2, 1);
    add.add = vec![replica(0, 4, ReplicaRole::Voter)];
    group.ok(Kind::ChangeReplicas(add.clone()));
    assert_eq!(group.refused(Kind::ChangeReplicas(add.clone())), MetaRefusal::MovedOn { epoch: 2 });
    add.expected_epoch = 2;
    assert!(
        matches!(group.refused(Kind::ChangeReplicas(add.clone())), MetaRefusal::Invalid { .. }),
        "one a node"
    );
    let first = group.view().map[&2].replicas[3].replica_id;
    assert_eq!(first, 1 << 32 | 4);
    let mut forget = change(2, 2);
    forget.forget = vec![first];
    group.ok(Kind::ChangeReplicas(forget));
    add.expected_epoch = 3;
    group.ok(Kind::ChangeReplicas(add));
    assert_eq!(group.view().map[&2].replicas[3].replica_id, 2 << 32 | 4, "a new id for the same node");

    let mut none = change(1, 1);
    none.set = [1, 2, 3].map(|id| replica(id, id, ReplicaRole::Leaving)).to_vec();
    let broken = [
        none,
        ChangeReplicas { add: vec![replica(0, 9, ReplicaRole::Voter)], ..change(1, 1) },
        ChangeReplicas { add: vec![replica(0, 4, ReplicaRole::Leaving)], ..change(1, 1) },
        ChangeReplicas { set: vec![replica(77, 4, ReplicaRole::Voter)], ..change(1, 1) },
        change(9, 1),
    ];
    for command in broken {
        group.refused(Kind::ChangeReplicas(command));
    }
}

#[test]
fn shares_change_in_two_steps() {
    let mut group = Group::ready();
    group.ok(token(7, 60));
    group.ok(Kind::JoinNode(join(4, 7, 50)));
    let share = |group: &Group, node| {
        let carrier = CarrierRecord { segments_per_second: 60, ..Default::default() };
        group.view().share(&carrier, node)
    };
    assert_eq!([1, 4].map(|n| share(&group, n)), [20, 0]);
    let four = SetShares { expected_epoch: 1, senders: vec![1, 2, 3, 4] };
    group.ok(Kind::SetShares(four.clone()));
    assert_eq!([1, 4].map(|n| share(&group, n)), [15, 0], "the smaller of both");
    let second = SetShares { expected_epoch: 2, ..four };
    assert_eq!(group.refused(Kind::SetShares(second)), MetaRefusal::MovedOn { epoch: 2 });
    assert_eq!(
        group.refused(Kind::SettleShares(SettleShares { epoch: 1 })),
        MetaRefusal::MovedOn { epoch: 2 }
    );
    group.ok(Kind::SettleShares(SettleShares { epoch: 2 }));
    assert_eq!([1, 4].map(|n| share(&group, n)), [15, 15]);
    for senders in [vec![], vec![2, 1], vec![1, 9]] {
        group.refused(Kind::SetShares(SetShares { expected_epoch: 2, senders }));
    }
}

#[test]
fn a_command_of_a_higher_level_is_refused_until_every_node_understands_it() {
    let mut group = Group::created(3);
    assert_eq!(group.view().level, BASE);
    group.ok(register(1, 101, FULL));
    group.ok(register(2, 102, FULL));
    group.ok(register(3, 103, BASE));
    assert_eq!(group.refused(token(1, 60)), MetaRefusal::Level { needed: FULL, level: BASE });
    let raise = Kind::RaiseLevel(RaiseLevel { level: FULL });
    assert_eq!(group.refused(raise.clone()), MetaRefusal::Behind { node_id: 3, level: BASE, to: FULL });
    group.ok(register(3, 103, FULL));
    assert!(matches!(
        group.refused(Kind::RaiseLevel(RaiseLevel { level: level::LEVEL + 1 })),
        MetaRefusal::Level { .. }
    ));
    group.ok(raise.clone());
    group.ok(raise);
    group.ok(token(1, 60));
    // Nobody goes back, and nobody too old comes in.
    assert_eq!(group.refused(register(3, 103, BASE)), MetaRefusal::TooOld { level: BASE, cluster: FULL });
    let old = JoinNode { feature_level: BASE, ..join(4, 1, 50) };
    assert_eq!(group.refused(Kind::JoinNode(old)), MetaRefusal::TooOld { level: BASE, cluster: FULL });
}
