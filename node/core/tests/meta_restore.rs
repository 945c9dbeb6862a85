//! The meta group's part of a restore: what it takes, what it refuses, when it is done.
use bytes::Bytes;
use carillon_core::meta::{self, MetaEffects, MetaRefusal, MetaView, level};
use carillon_core::{EntryMeta, MemTables};
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::*;
use prost::Message as _;

const ID: &[u8] = &[7; 16];

#[derive(Default)]
struct Group {
    tables: MemTables,
    index: u64,
}

impl Group {
    fn one(&mut self, kind: Kind) -> Result<(), MetaRefusal> {
        self.index += 1;
        let batch = MetaBatch { now_ms: 1_000, commands: vec![MetaCommand { kind: Some(kind) }] };
        let mut effects = MetaEffects::default();
        let meta = EntryMeta { index: self.index, term: 1 };
        meta::apply(&mut self.tables, meta, &Bytes::from(batch.encode_to_vec()), &mut effects).unwrap();
        effects.results.remove(0)
    }

    fn view(&self) -> MetaView {
        MetaView::load(&self.tables).unwrap()
    }
}

fn carrier(carrier_no: u32, name: &str, address: &str) -> CarrierRecord {
    CarrierRecord {
        carrier_no,
        name: name.into(),
        smpp: Some(SmppSettings {
            address: address.into(),
            system_id: "carillon".into(),
            password_secret: "password".into(),
            binds_per_node: 1,
            window: 1,
            response_timeout_ms: 1,
            source_address: "12125550100".into(),
            ..Default::default()
        }),
        segments_per_second: 10,
        ..Default::default()
    }
}

/// A cluster of two partitions at the highest level.
fn cluster() -> Group {
    let mut group = Group::default();
    let node = MetaNode { node_id: 1, peer_address: "n1:7000".into(), ..Default::default() };
    let bootstrap = Bootstrap { cluster_id: "lab".into(), partitions: 2, nodes: vec![node] };
    group.one(Kind::Bootstrap(bootstrap)).unwrap();
    let register =
        RegisterNode { node_id: 1, store_id: 5, peer_address: "n1:7000".into(), feature_level: level::LEVEL };
    group.one(Kind::RegisterNode(register)).unwrap();
    group.one(Kind::RaiseLevel(RaiseLevel { level: level::LEVEL })).unwrap();
    group
}

fn begin() -> Kind {
    Kind::BeginRestore(BeginRestore { backup_id: ID.into(), backup_now_ms: 900 })
}

fn backup() -> MetaBackup {
    MetaBackup {
        carriers: vec![carrier(1, "sim", "old:1"), carrier(3, "other", "old:2")],
        practices: vec![PracticeRecord {
            practice_no: 4,
            tenant: "t".into(),
            practice: "p".into(),
            time_zone: "UTC".into(),
            carrier_no: 3,
            ..Default::default()
        }],
        policies: Vec::new(),
        data_keys: vec![DataKeyRecord {
            practice_no: 4,
            epoch: 2,
            wrapped_key: Bytes::from_static(b"wrapped"),
            provider_key_id: "file:1".into(),
            created_at_ms: 77,
        }],
        routes: vec![RouteRecord { route_no: 6, name: "all".into(), ..Default::default() }],
        limits: vec![day_of_brand(2, 500)],
        lanes: vec![LaneRecord { carrier_no: 3, paused: true, ..Default::default() }],
        breakers: vec![BreakerRecord { carrier_no: 1, mode: BreakerMode::Open as i32 }],
        pauses: vec![PauseRecord { practice_no: 4, paused: true, ..Default::default() }],
        senders: vec![SenderRecord {
            sender_no: 8,
            carrier_no: 3,
            address: "+12125550108".into(),
            weight: 1,
            paused: true,
        }],
        hours: Some(HoursRecord { version: 7, rules: "of the old cluster".into(), changed_at_ms: 5 }),
    }
}

/// A daily cap of which 300 are taken.
fn day_of_brand(limit_no: u32, amount: u32) -> LimitBackup {
    let limit = LimitRecord {
        limit_no,
        carrier_no: 1,
        scope: LimitScope::Brand as i32,
        key: "brand".into(),
        amount,
        time_zone: "America/New_York".into(),
        ..Default::default()
    };
    LimitBackup { limit: Some(limit), cap: Some(CapRecord { limit_no, day: 20_000, taken: 300 }) }
}

fn rows(rows: MetaBackup) -> Kind {
    Kind::RestoreMeta(RestoreMeta { backup_id: ID.into(), rows: Some(rows) })
}

fn done(partition: u32) -> Kind {
    Kind::PartitionRestored(PartitionRestored { backup_id: ID.into(), partition })
}

fn put_practice() -> Kind {
    Kind::PutPractice(PutPractice {
        tenant: "t".into(),
        practice: "new".into(),
        time_zone: "UTC".into(),
        carrier: "sim".into(),
        ..Default::default()
    })
}

#[test]
fn numbers_come_back_as_they_were_and_the_last_partition_ends_it() {
    let mut group = cluster();
    // The operator has told the new cluster where the carrier is now.
    group.one(Kind::PutCarrier(PutCarrier { carrier: Some(carrier(0, "sim", "new:1")) })).unwrap();
    for _ in 0..2 {
        group.one(begin()).unwrap();
        group.one(rows(backup())).unwrap();
    }
    let view = group.view();
    assert!(view.is_restoring());
    assert_eq!(view.restore.as_ref().unwrap().guard_ms, 1_000);
    assert_eq!(view.carriers[&1].smpp.as_ref().unwrap().address, "new:1");
    assert_eq!(view.carriers[&3], backup().carriers[1]);
    assert_eq!(view.practice("t", "p"), Some(&backup().practices[0]));
    assert_eq!(view.data_key(4, 2), Some(&backup().data_keys[0]));
    assert_eq!(group.one(put_practice()), Err(MetaRefusal::Restoring));
    group.one(done(2)).unwrap();
    group.one(done(2)).unwrap();
    assert!(group.view().is_restoring(), "one is missing");
    assert_eq!(group.one(done(3)), Err(MetaRefusal::NoPartition { partition: 3 }));
    group.one(done(1)).unwrap();
    assert!(!group.view().is_restoring());
    group.one(put_practice()).unwrap();
    assert_eq!(
        group.view().practice("t", "new").unwrap().practice_no,
        5,
        "numbers are never given out twice"
    );
    group.one(begin()).unwrap();
    assert!(!group.view().is_restoring(), "a repeat does not begin it again");
}

#[test]
fn the_guard_is_never_before_the_clock_of_the_backup() {
    let mut group = cluster();
    let ahead = BeginRestore { backup_id: ID.into(), backup_now_ms: 5_000 };
    group.one(Kind::BeginRestore(ahead)).unwrap();
    assert_eq!(group.view().restore.unwrap().guard_ms, 5_000);
}

#[test]
fn a_cluster_with_anything_of_its_own_is_refused() {
    let mut group = cluster();
    group.one(Kind::PutCarrier(PutCarrier { carrier: Some(carrier(0, "sim", "new:1")) })).unwrap();
    group.one(put_practice()).unwrap();
    assert_eq!(group.one(begin()), Err(MetaRefusal::NotFresh));

    let mut group = cluster();
    assert_eq!(group.one(rows(backup())), Err(MetaRefusal::OtherBackup), "not begun");
    assert_eq!(group.one(done(1)), Err(MetaRefusal::OtherBackup));
    group.one(begin()).unwrap();
    let other = BeginRestore { backup_id: vec![8; 16].into(), backup_now_ms: 0 };
    assert_eq!(group.one(Kind::BeginRestore(other)), Err(MetaRefusal::OtherBackup));
    let short = BeginRestore { backup_id: vec![8; 3].into(), backup_now_ms: 0 };
    assert!(matches!(group.one(Kind::BeginRestore(short)), Err(MetaRefusal::Invalid { .. })));

    // Numbers of carriers are in sealed data: they cannot be mapped.
    let mut group = cluster();
    group.one(Kind::PutCarrier(PutCarrier { carrier: Some(carrier(0, "other", "new:1")) })).unwrap();
    group.one(begin()).unwrap();
    let before = group.view().carriers;
    assert_eq!(group.one(rows(backup())), Err(MetaRefusal::OtherCarrier { name: "sim".into() }));
    assert_eq!(group.view().carriers, before, "nothing was changed");
}

#[test]
fn an_older_cluster_must_be_upgraded_first() {
    let mut group = Group::default();
    let node = MetaNode { node_id: 1, peer_address: "n1:7000".into(), ..Default::default() };
    let bootstrap = Bootstrap { cluster_id: "lab".into(), partitions: 2, nodes: vec![node] };
    group.one(Kind::Bootstrap(bootstrap)).unwrap();
    let refusal = MetaRefusal::Level { needed: level::LEVEL_RESTORE, level: level::LEVEL_BASE };
    assert_eq!(group.one(begin()), Err(refusal));
}

#[test]
fn limits_and_switches_come_back_and_those_of_the_new_cluster_stay() {
    // Nothing is set in the new cluster.
    let mut group = cluster();
    group.one(begin()).unwrap();
    for _ in 0..2 {
        group.one(rows(backup())).unwrap();
    }
    let view = group.view();
    assert_eq!(view.limits[&2], day_of_brand(2, 500).limit.unwrap());
    assert_eq!((view.limits.len(), view.caps[&2].taken), (1, 300), "the day goes on where it was");
    assert!(view.lanes[&3].paused && view.pauses[&(4, 0)].paused);
    assert_eq!(view.breakers[&1].mode(), BreakerMode::Open);
    assert_eq!((view.hours.version, view.hours.rules.as_str()), (7, "of the old cluster"));

    // The operator has begun to set it up: the same cap with another amount, and another limit under the old one's number.
    let mut group = cluster();
    group.one(Kind::PutCarrier(PutCarrier { carrier: Some(carrier(0, "sim", "new:1")) })).unwrap();
    let other = LimitRecord { key: "other".into(), ..day_of_brand(0, 9).limit.unwrap() };
    group.one(Kind::SetShares(SetShares { expected_epoch: 1, senders: vec![] })).unwrap();
    group.one(Kind::SettleShares(SettleShares { epoch: 2 })).unwrap();
    for limit in [day_of_brand(0, 400).limit.unwrap(), other] {
        group.one(Kind::PutLimit(PutLimit { limit: Some(limit) })).unwrap();
    }
    group.one(begin()).unwrap();
    let free = LimitRecord { key: "third".into(), ..day_of_brand(2, 70).limit.unwrap() };
    let third = LimitBackup { limit: Some(free), cap: None };
    let more = MetaBackup { limits: vec![day_of_brand(2, 500), third], ..backup() };
    for _ in 0..2 {
        group.one(rows(more.clone())).unwrap();
    }
    let view = group.view();
    let amounts: Vec<(u32, &str, u32)> =
        view.limits.values().map(|limit| (limit.limit_no, limit.key.as_str(), limit.amount)).collect();
    assert_eq!(amounts, [(1, "brand", 400), (2, "other", 9), (3, "third", 70)]);
    assert_eq!(
        (view.caps.len(), view.caps[&1].taken),
        (1, 300),
        "what was taken counts for the new limit too"
    );
}
