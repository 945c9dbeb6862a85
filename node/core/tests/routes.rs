//! Routes and breakers in the meta group: what is admitted, and that nothing of it is before its feature level.
use bytes::Bytes;
use carillon_core::meta::{self, MetaEffects, MetaRefusal, MetaView, level, routes};
use carillon_core::{EntryMeta, MemTables};
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::*;
use prost::Message as _;

#[derive(Default)]
struct Group {
    tables: MemTables,
    index: u64,
}

impl Group {
    /// Three nodes, two carriers and a practice, at a feature level.
    fn at(level: u32) -> Self {
        let mut group = Self::default();
        let node = |node_id| MetaNode {
            node_id,
            peer_address: format!("node-{node_id}:7000"),
            ..Default::default()
        };
        let nodes = (1..=3).map(node).collect();
        group.one(Kind::Bootstrap(Bootstrap { cluster_id: "lab-1".into(), partitions: 4, nodes })).unwrap();
        for node_id in 1..=3 {
            let peer_address = format!("node-{node_id}:7000");
            let register = RegisterNode { node_id, store_id: node_id, peer_address, feature_level: level };
            group.one(Kind::RegisterNode(register)).unwrap();
        }
        if level > 1 {
            group.one(Kind::RaiseLevel(RaiseLevel { level })).unwrap();
        }
        for name in ["main", "spare"] {
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
                name: name.into(),
                smpp: Some(smpp),
                segments_per_second: 30,
                ..Default::default()
            };
            group.one(Kind::PutCarrier(PutCarrier { carrier: Some(carrier) })).unwrap();
        }
        let practice = PutPractice {
            tenant: "acme".into(),
            practice: "north".into(),
            time_zone: "America/Chicago".into(),
            carrier: "main".into(),
            ..Default::default()
        };
        group.one(Kind::PutPractice(practice)).unwrap();
        group
    }

    fn one(&mut self, kind: Kind) -> Result<(), MetaRefusal> {
        self.index += 1;
        let commands = vec![MetaCommand { kind: Some(kind) }];
        let data = Bytes::from(MetaBatch { now_ms: self.index, commands }.encode_to_vec());
        let mut effects = MetaEffects::default();
        meta::apply(&mut self.tables, EntryMeta { index: self.index, term: 1 }, &data, &mut effects).unwrap();
        effects.results.remove(0)
    }

    fn view(&self) -> MetaView {
        MetaView::load(&self.tables).unwrap()
    }
}

fn rule(name: &str, targets: &[(&str, u32)]) -> RouteRecord {
    let target = |(carrier, weight): &(&str, u32)| {
        let (carrier, sender) = carrier.split_once(' ').unwrap_or((carrier, ""));
        RouteTarget { carrier: carrier.into(), weight: *weight, sender: sender.into() }
    };
    RouteRecord {
        route_no: 77,
        name: name.into(),
        targets: targets.iter().map(target).collect(),
        ..Default::default()
    }
}

fn put(route: RouteRecord) -> Kind {
    Kind::PutRoute(PutRoute { route: Some(route) })
}

fn sender(carrier: &str, address: &str, weight: u32, paused: bool) -> Kind {
    let sender = SenderRecord { sender_no: 77, carrier_no: 77, address: address.into(), weight, paused };
    Kind::PutSender(PutSender { carrier: carrier.into(), sender: Some(sender) })
}

fn drop_sender(carrier: &str, address: &str) -> Kind {
    Kind::DropSender(DropSender { carrier: carrier.into(), address: address.into() })
}

fn set(carrier: &str, mode: i32) -> Kind {
    Kind::SetBreaker(SetBreaker { carrier: carrier.into(), mode })
}

#[test]
fn nothing_of_it_is_admitted_before_its_level() {
    let mut group = Group::at(level::LEVEL_DELIVERY - 1);
    let drop_route = Kind::DropRoute(DropRoute { name: "r".into() });
    let senders = [sender("main", "88022", 1, false), drop_sender("main", "88022")];
    for kind in [put(rule("r", &[("main", 1)])), set("main", 1), drop_route].into_iter().chain(senders) {
        assert!(matches!(group.one(kind), Err(MetaRefusal::Level { needed: level::LEVEL_DELIVERY, .. })));
    }
}

#[test]
fn routes_get_numbers_once_and_go_with_their_names() {
    let mut group = Group::at(level::LEVEL);
    group.one(put(rule("a", &[("main", 1)]))).unwrap();
    group.one(put(rule("b", &[("main", 1), ("spare", 0)]))).unwrap();
    group.one(put(rule("a", &[("spare", 2)]))).unwrap();
    let view = group.view();
    assert_eq!(
        view.routes.values().map(|r| (r.route_no, r.name.as_str())).collect::<Vec<_>>(),
        [(1, "a"), (2, "b")]
    );
    assert_eq!(view.routes[&1].targets[0].carrier, "spare", "changed");
    group.one(Kind::DropRoute(DropRoute { name: "a".into() })).unwrap();
    assert_eq!(group.one(Kind::DropRoute(DropRoute { name: "a".into() })), Err(MetaRefusal::NoRoute));
    group.one(put(rule("a", &[("main", 1)]))).unwrap();
    assert_eq!(group.view().routes.keys().copied().collect::<Vec<_>>(), [2, 3], "numbers are never reused");
}

#[test]
fn rules_that_make_no_sense_are_refused() {
    let mut group = Group::at(level::LEVEL);
    assert_eq!(group.one(put(rule("r", &[("nobody", 1)]))), Err(MetaRefusal::NoCarrier));
    let stranger =
        RouteRecord { tenant: "acme".into(), practice: "east".into(), ..rule("r", &[("main", 1)]) };
    assert_eq!(group.one(put(stranger)), Err(MetaRefusal::NoPractice));
    let base = || rule("r", &[("main", 1)]);
    let bad = [
        ("name", RouteRecord { name: "R 1".into(), ..base() }),
        ("tenant", RouteRecord { practice: "north".into(), ..base() }),
        ("targets", rule("r", &[])),
        ("targets.carrier", rule("r", &[("main", 1), ("main", 2)])),
        ("targets.weight", rule("r", &[("main", 2_000_000)])),
        ("targets.sender", rule("r", &[("main 12125550101", 1)])),
        ("targets.carrier", rule("r", &[("main 88022", 1), ("main 88022", 2)])),
        ("classes", RouteRecord { classes: vec![0], ..base() }),
        ("number_prefixes", RouteRecord { number_prefixes: vec!["1416".into()], ..base() }),
    ];
    for (wrong, route) in bad {
        assert!(
            matches!(group.one(put(route)), Err(MetaRefusal::Invalid { field, .. }) if field == wrong),
            "{wrong}"
        );
    }
    assert!(group.view().routes.is_empty());
}

#[test]
fn the_operators_word_about_a_breaker_is_kept_by_carrier() {
    let mut group = Group::at(level::LEVEL);
    group.one(set("spare", BreakerMode::Open as i32)).unwrap();
    let view = group.view();
    let of = |name: &str| routes::breaker_mode(&view, view.carrier(name).unwrap().carrier_no);
    assert_eq!((of("spare"), of("main")), (BreakerMode::Open, BreakerMode::Auto));
    assert_eq!(group.one(set("nobody", 1)), Err(MetaRefusal::NoCarrier));
    assert!(matches!(group.one(set("main", 9)), Err(MetaRefusal::Invalid { field: "mode", .. })));
    group.one(set("spare", BreakerMode::Auto as i32)).unwrap();
    assert_eq!(routes::breaker_mode(&group.view(), 2), BreakerMode::Auto);
}

#[test]
fn senders_get_numbers_once_and_routes_name_them() {
    let mut group = Group::at(level::LEVEL);
    let number = "+12125550101";
    group.one(sender("main", number, 3, false)).unwrap();
    group.one(sender("spare", number, 1, false)).unwrap();
    group.one(sender("main", "88022", 1, false)).unwrap();
    group.one(sender("main", number, 2, true)).unwrap();
    let rows = |group: &Group| {
        let row = |s: &SenderRecord| (s.carrier_no, s.sender_no, s.address.clone(), s.weight, s.paused);
        group.view().senders.values().map(row).collect::<Vec<_>>()
    };
    let (one, two) = ((1, 1, number.to_owned(), 2, true), (2, 2, number.to_owned(), 1, false));
    assert_eq!(rows(&group), [one, (1, 3, "88022".to_owned(), 1, false), two], "the same address is changed");
    let nobody = |address: &str| Err(MetaRefusal::NoSender { address: address.into() });
    assert_eq!(
        group.one(put(rule("r", &[("spare 88022", 1)]))),
        nobody("88022"),
        "it is the other carrier's"
    );
    group.one(put(rule("r", &[("main 88022", 1), ("main", 0), ("spare", 1)]))).unwrap();
    assert_eq!(
        group.one(drop_sender("main", "88022")),
        Err(MetaRefusal::SenderOfRoute { route: "r".into() })
    );
    group.one(Kind::DropRoute(DropRoute { name: "r".into() })).unwrap();
    group.one(drop_sender("main", "88022")).unwrap();
    assert_eq!(group.one(drop_sender("main", "88022")), nobody("88022"));
    group.one(sender("main", "88022", 1, false)).unwrap();
    assert!(group.view().senders.contains_key(&(1, 4)), "numbers are never reused");
}

#[test]
fn senders_that_make_no_sense_are_refused() {
    let mut group = Group::at(level::LEVEL);
    assert_eq!(group.one(sender("nobody", "88022", 1, false)), Err(MetaRefusal::NoCarrier));
    let empty = Kind::PutSender(PutSender { carrier: "main".into(), sender: None });
    assert_eq!(group.one(empty), Err(MetaRefusal::Empty));
    let bad = [
        ("address", sender("main", "", 1, false)),
        ("address", sender("main", "12125550101", 1, false)),
        ("address", sender("main", "+1 212 555 0101", 1, false)),
        ("address", sender("main", "TWELVE LONG.", 1, false)),
        ("weight", sender("main", "88022", 2_000_000, false)),
        ("address", drop_sender("main", "not a number at all")),
    ];
    for (wrong, kind) in bad {
        assert!(
            matches!(group.one(kind), Err(MetaRefusal::Invalid { field, .. }) if field == wrong),
            "{wrong}"
        );
    }
    for n in 0..meta::SENDERS_OF_CARRIER_MAX {
        group.one(sender("main", &format!("+1212555{n:04}"), 1, false)).unwrap();
    }
    assert!(matches!(group.one(sender("main", "88022", 1, false)), Err(MetaRefusal::TooMany { .. })));
    group.one(sender("main", "+12125550000", 5, true)).unwrap();
    group.one(sender("spare", "88022", 1, false)).unwrap();
}
