//! Limits, lanes and daily caps in the meta group: what is admitted, and that a cap is never passed.
use bytes::Bytes;
use carillon_core::meta::{self, MetaEffects, MetaRefusal, MetaView, ease_permille, level};
use carillon_core::{EntryMeta, MemTables};
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::*;
use proptest::prelude::*;
use prost::Message as _;

struct Group {
    tables: MemTables,
    index: u64,
    now_ms: u64,
}

impl Group {
    /// One node at the level of leases, whose fixed share is given up; a carrier and a practice.
    fn leased() -> Self {
        let mut group = Self::at(level::LEVEL_DELIVERY);
        group.ok(Kind::SetShares(SetShares { expected_epoch: 1, senders: vec![] }));
        assert!(group.view().leases());
        assert_eq!(group.run(put(limit(LimitScope::Account, 60))), Err(MetaRefusal::NotYetLeases));
        group.ok(Kind::SettleShares(SettleShares { epoch: 2 }));
        group
    }

    fn at(level: u32) -> Self {
        let mut group = Self { tables: MemTables::default(), index: 0, now_ms: 1_000 };
        let node = MetaNode { node_id: 1, peer_address: "n1:7000".into(), ..Default::default() };
        group.ok(Kind::Bootstrap(Bootstrap { cluster_id: "lab".into(), partitions: 4, nodes: vec![node] }));
        let register =
            RegisterNode { node_id: 1, store_id: 7, peer_address: "n1:7000".into(), feature_level: level };
        group.ok(Kind::RegisterNode(register));
        if level > level::LEVEL_BASE {
            group.ok(Kind::RaiseLevel(RaiseLevel { level }));
        }
        group.ok(carrier(30));
        group.ok(Kind::PutPractice(PutPractice {
            tenant: "acme".into(),
            practice: "north".into(),
            time_zone: "UTC".into(),
            carrier: "sim".into(),
            campaign: "c1".into(),
            ..Default::default()
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

    fn view(&self) -> MetaView {
        MetaView::load(&self.tables).unwrap()
    }
}

fn carrier(segments_per_second: u32) -> Kind {
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
    let carrier = CarrierRecord {
        name: "sim".into(),
        smpp: Some(smpp),
        segments_per_second,
        brand: "b1".into(),
        ..Default::default()
    };
    Kind::PutCarrier(PutCarrier { carrier: Some(carrier) })
}

fn limit(scope: LimitScope, window_s: u32) -> LimitRecord {
    let time_zone = if window_s == 0 { "America/Los_Angeles".into() } else { String::new() };
    LimitRecord { carrier_no: 1, scope: scope.into(), amount: 100, window_s, time_zone, ..Default::default() }
}

fn put(limit: LimitRecord) -> Kind {
    Kind::PutLimit(PutLimit { limit: Some(limit) })
}

fn take(day: u32, segments: u32) -> Kind {
    Kind::TakeCap(TakeCap { limit_no: 1, day, segments })
}

#[test]
fn the_same_thing_limited_again_is_changed_and_numbers_are_never_used_twice() {
    let mut group = Group::leased();
    group.ok(put(limit(LimitScope::Account, 60)));
    group.ok(put(LimitRecord { amount: 50, window_s: 10, ..limit(LimitScope::Account, 60) }));
    group.ok(put(limit(LimitScope::Account, 0)));
    let found: Vec<(u32, u32, u32)> =
        group.view().limits.values().map(|l| (l.limit_no, l.amount, l.window_s)).collect();
    assert_eq!(found, [(1, 50, 10), (2, 100, 0)], "a day is another kind of window");
    group.ok(Kind::DropLimit(DropLimit { limit_no: 2 }));
    assert_eq!(group.run(Kind::DropLimit(DropLimit { limit_no: 2 })), Err(MetaRefusal::NoLimit));
    group.ok(put(limit(LimitScope::Account, 0)));
    assert!(group.view().limits.contains_key(&3));
}

#[test]
fn a_limit_says_what_it_is_of() {
    let mut group = Group::leased();
    let sender = LimitRecord { key: "12125550100".into(), ..limit(LimitScope::Sender, 1) };
    let campaign = LimitRecord { key: "c1".into(), network: "att".into(), ..limit(LimitScope::Campaign, 60) };
    let practice = LimitRecord { practice_no: 1, ..limit(LimitScope::Practice, 1) };
    for good in [&sender, &campaign, &practice] {
        group.ok(put(good.clone()));
    }
    assert_eq!(group.view().limits_of(1, 1, ""), [1, 2, 3]);
    let broken = [
        LimitRecord { key: String::new(), ..sender.clone() },
        LimitRecord { network: "att".into(), ..sender },
        LimitRecord { practice_no: 1, ..campaign.clone() },
        LimitRecord { amount: 0, ..campaign.clone() },
        LimitRecord { window_s: 3_601, ..campaign.clone() },
        LimitRecord { time_zone: "UTC".into(), ..campaign.clone() },
        LimitRecord { window_s: 0, ..campaign.clone() },
        LimitRecord { scope: 0, ..campaign.clone() },
        LimitRecord { practice_no: 0, ..practice.clone() },
    ];
    for limit in broken {
        assert!(matches!(group.run(put(limit.clone())), Err(MetaRefusal::Invalid { .. })), "{limit:?}");
    }
    assert_eq!(group.run(put(LimitRecord { carrier_no: 9, ..campaign })), Err(MetaRefusal::NoCarrier));
    assert_eq!(group.run(put(LimitRecord { practice_no: 9, ..practice })), Err(MetaRefusal::NoPractice));
}

#[test]
fn lanes_are_eased_in_turn_and_stopped() {
    let mut group = Group::leased();
    let ease = |permille, expected| Kind::EaseLane(EaseLane { carrier_no: 1, permille, expected });
    group.now_ms = 50_000;
    group.ok(ease(700, 0));
    assert_eq!(group.run(ease(490, 0)), Err(MetaRefusal::MovedOn { epoch: 1 }), "somebody was faster");
    group.ok(Kind::SetLane(SetLane { carrier_no: 1, paused: true }));
    let lane = group.view().lanes[&1];
    assert!(lane.paused && lane.eased_permille == 700 && lane.eased_at_ms == 50_000);
    assert_eq!(ease_permille(Some(&lane), 60_000), 800);
    assert_eq!(ease_permille(Some(&lane), 10_000), 700, "a clock that is behind takes nothing away");
    assert_eq!(ease_permille(None, 10_000), 1_000);
    group.ok(ease(0, 1));
    assert_eq!(group.view().lanes[&1].eased_permille, 5);
    assert_eq!(
        group.run(Kind::SetLane(SetLane { carrier_no: 2, paused: true })),
        Err(MetaRefusal::NoCarrier)
    );
}

#[test]
fn a_carrier_without_a_published_limit_begins_slowly_once() {
    let mut group = Group::leased();
    group.ok(carrier(0));
    assert_eq!(group.view().lanes[&1].eased_permille, 10);
    group.now_ms = 90_000;
    group.ok(carrier(0));
    assert_eq!(group.view().lanes[&1].eased_at_ms, 1_000, "setting it again does not begin again");
    let mut older = Group::at(level::LEVEL_OPT_OUT);
    assert!(matches!(older.run(carrier(0)), Err(MetaRefusal::Invalid { .. })));
    let view = older.view();
    assert_eq!((view.carriers[&1].brand.as_str(), view.practices[&1].campaign.as_str()), ("", ""));
    assert!(matches!(older.run(put(limit(LimitScope::Account, 1))), Err(MetaRefusal::Level { .. })));
}

proptest! {
    /// Whatever slices are asked for, on whatever days and in whatever order.
    #[test]
    fn no_day_gives_more_than_its_cap_and_none_comes_back(
        asks in prop::collection::vec((0_u32..4, 1_u32..60), 1..40),
    ) {
        let mut group = Group::leased();
        group.ok(put(limit(LimitScope::Account, 0)));
        let mut given = std::collections::BTreeMap::<u32, u32>::new();
        let mut newest = 0;
        for (day, segments) in asks {
            if group.run(take(day, segments)).is_ok() {
                prop_assert!(day >= newest);
                newest = day;
                *given.entry(day).or_default() += segments;
            }
        }
        prop_assert!(given.values().all(|sum| *sum <= 100), "{:?}", given);
    }
}
