//! The meta group: what it admits, what it refuses, what the view shows.
use bytes::Bytes;
use carillon_core::meta::level;
use carillon_core::meta::{self, MetaEffects, MetaRefusal, MetaView};
use carillon_core::{EntryMeta, MemTables, TableError, applied_record};
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::*;
use prost::Message as _;

#[derive(Default)]
struct Group {
    tables: MemTables,
    replica: MemTables,
    index: u64,
}

impl Group {
    fn run(&mut self, kinds: &[Kind]) -> MetaEffects {
        self.index += 1;
        let commands = kinds.iter().map(|k| MetaCommand { kind: Some(k.clone()) }).collect();
        let data = Bytes::from(MetaBatch { now_ms: 1_000 + self.index, commands }.encode_to_vec());
        let meta = EntryMeta { index: self.index, term: 1 };
        let (mut effects, mut second) = (MetaEffects::default(), MetaEffects::default());
        let before = MetaView::load(&self.tables).unwrap();
        meta::apply(&mut self.tables, meta, &data, &mut effects).unwrap();
        meta::apply(&mut self.replica, meta, &data, &mut second).unwrap();
        assert!(self.tables == self.replica && effects == second);
        let mut after = self.view();
        assert_eq!(after.applied_index, self.index);
        after.applied_index = before.applied_index;
        assert_eq!(after != before, effects.changed, "changed tells whether the view changed");
        effects
    }

    fn one(&mut self, kind: Kind) -> Result<(), MetaRefusal> {
        self.run(&[kind]).results.remove(0)
    }

    fn view(&self) -> MetaView {
        MetaView::load(&self.tables).unwrap()
    }
}

fn bootstrap(nodes: u64) -> Bootstrap {
    let node = |node_id| MetaNode {
        node_id,
        peer_address: format!("node-{node_id}.lab:7000"),
        ..Default::default()
    };
    Bootstrap { cluster_id: "lab-1".into(), partitions: 16, nodes: (1..=nodes).map(node).collect() }
}

fn record(name: &str) -> CarrierRecord {
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
    CarrierRecord {
        carrier_no: 99,
        name: name.into(),
        smpp: Some(smpp),
        segments_per_second: 30,
        ..Default::default()
    }
}

fn carrier(name: &str) -> Kind {
    Kind::PutCarrier(PutCarrier { carrier: Some(record(name)) })
}

fn practice(tenant: &str, name: &str, zone: &str, carrier: &str) -> Kind {
    Kind::PutPractice(PutPractice {
        tenant: tenant.into(),
        practice: name.into(),
        time_zone: zone.into(),
        carrier: carrier.into(),
        ..Default::default()
    })
}

fn data_key(practice_no: u32, epoch: u32, key: &'static [u8]) -> Kind {
    let provider_key_id = "file-1".to_owned();
    Kind::PutDataKey(PutDataKey { practice_no, epoch, wrapped_key: Bytes::from_static(key), provider_key_id })
}

#[test]
fn a_cluster_is_created_once() {
    let mut group = Group::default();
    assert_eq!(group.one(Kind::Bootstrap(bootstrap(3))), Ok(()));
    assert_eq!(group.one(Kind::Bootstrap(bootstrap(3))), Ok(()), "the same again");
    for other in [
        bootstrap(2),
        Bootstrap { cluster_id: "lab-2".into(), ..bootstrap(3) },
        Bootstrap { partitions: 32, ..bootstrap(3) },
    ] {
        assert_eq!(group.one(Kind::Bootstrap(other)), Err(MetaRefusal::OtherCluster));
    }
    let view = group.view();
    assert_eq!((view.cluster_id.as_str(), view.partitions, view.nodes.len()), ("lab-1", 16, 3));
    assert_eq!(view.nodes[&2].peer_address, "node-2.lab:7000");
}

#[test]
fn practices_get_numbers_once_and_settings_any_time() {
    let mut group = Group::default();
    let orphan = practice("acme", "north", "America/Chicago", "main");
    assert_eq!(group.one(orphan), Err(MetaRefusal::NoCarrier));
    let effects = group.run(&[
        carrier("main"),
        carrier("second"),
        practice("acme", "north", "America/Chicago", "main"),
        practice("acme", "south", "America/Denver", "main"),
        practice("lakeside", "north", "America/New_York", "second"),
        practice("acme", "north", "America/Boise", "second"),
    ]);
    assert!(effects.results.iter().all(Result::is_ok), "{effects:?}");
    let view = group.view();
    let north = view.practice("acme", "north").unwrap();
    assert_eq!((north.practice_no, north.time_zone.as_str(), north.carrier_no), (1, "America/Boise", 2));
    assert_eq!(view.practice("lakeside", "north").unwrap().practice_no, 3);
    assert_eq!(view.practices_of("acme").map(|p| p.practice_no).collect::<Vec<_>>(), [1, 2]);
    assert!(view.practice("acme", "west").is_none() && view.practice("other", "north").is_none());
    assert_eq!(view.practices[&2].practice, "south");
    // Nothing new is not a change.
    let same = group.run(&[practice("acme", "north", "America/Boise", "second")]);
    assert!(!same.changed && same.results == [Ok(())]);
}

#[test]
fn carriers_keep_their_number_and_give_each_node_a_share() {
    let mut group = Group::default();
    group.run(&[Kind::Bootstrap(bootstrap(3)), carrier("main"), carrier("second")]);
    let rate = |name: &str, segments_per_second| {
        let record = CarrierRecord { segments_per_second, ..record(name) };
        Kind::PutCarrier(PutCarrier { carrier: Some(record) })
    };
    assert_eq!(group.one(rate("main", 2)), Err(MetaRefusal::TooSlow { nodes: 3 }));
    assert_eq!(group.one(rate("main", 3)), Ok(()));
    let view = group.view();
    assert_eq!((view.carrier("main").unwrap().carrier_no, view.carriers.len()), (1, 2));
    assert_eq!(view.carriers[&1].segments_per_second, 3);
    // The other way round: a cluster that is larger than a carrier's rate.
    let mut group = Group::default();
    group.run(&[rate("slow", 2)]);
    assert_eq!(group.one(Kind::Bootstrap(bootstrap(3))), Err(MetaRefusal::TooSlow { nodes: 3 }));
    assert_eq!(group.one(Kind::Bootstrap(bootstrap(2))), Ok(()));
}

#[test]
fn the_first_data_key_of_an_epoch_wins() {
    let mut group = Group::default();
    assert_eq!(group.one(data_key(1, 1, b"first")), Err(MetaRefusal::NoPractice));
    group.run(&[carrier("main"), practice("acme", "north", "UTC", "main")]);
    assert_eq!(group.one(data_key(1, 1, b"first")), Ok(()));
    assert_eq!(group.one(data_key(1, 1, b"first")), Ok(()));
    let refusal = group.one(data_key(1, 1, b"second")).unwrap_err();
    assert_eq!(refusal.to_string(), "exists");
    assert_eq!(group.one(data_key(1, 2, b"second")), Ok(()));
    let view = group.view();
    assert_eq!(&view.data_key(1, 1).unwrap().wrapped_key[..], b"first");
    assert_eq!(view.newest_data_key(1).unwrap().epoch, 2);
    assert!(view.newest_data_key(2).is_none());
}

#[test]
fn a_carrier_that_cannot_work_is_refused_with_the_field() {
    type Case = (fn(&mut CarrierRecord), &'static str);
    let cases: [Case; 13] = [
        (|r| r.name.clear(), "name"),
        (|r| r.name = "a".repeat(64), "name"),
        (|r| r.name = "Main".into(), "name"),
        (|r| r.segments_per_second = 0, "segments_per_second"),
        (|r| r.smpp = None, "smpp"),
        (|r| r.smpp.as_mut().unwrap().address = "smsc".into(), "smpp.address"),
        (|r| r.smpp.as_mut().unwrap().address = "smsc:0".into(), "smpp.address"),
        (|r| r.smpp.as_mut().unwrap().system_id = "x".repeat(16), "smpp.system_id"),
        (|r| r.smpp.as_mut().unwrap().password_secret = "../other".into(), "smpp.password_secret"),
        (|r| r.smpp.as_mut().unwrap().binds_per_node = 0, "smpp.binds_per_node"),
        (|r| r.smpp.as_mut().unwrap().window = 0, "smpp.window"),
        (|r| r.smpp.as_mut().unwrap().source_address = "much too long".into(), "smpp.source_address"),
        (|r| r.smpp.as_mut().unwrap().receipt_id_format = 9, "smpp.receipt_id_format"),
    ];
    for (change, expected) in cases {
        let mut record = record("main");
        change(&mut record);
        let mut group = Group::default();
        let refusal = group.one(Kind::PutCarrier(PutCarrier { carrier: Some(record) })).unwrap_err();
        assert!(matches!(refusal, MetaRefusal::Invalid { field, .. } if field == expected), "{refusal}");
        assert_eq!(group.view().carriers.len(), 0);
    }
}

fn twilio_record() -> CarrierRecord {
    let twilio = TwilioSettings {
        base_url: "https://api.twilio.example".into(),
        account_sid: format!("AC{:032x}", 1),
        auth_token_secret: "twilio-token".into(),
        from: "+12025550100".into(),
        callback_url: "https://texts.clinic.example/carriers/second?a=b".into(),
        connections_per_node: 8,
        response_timeout_ms: 10_000,
        throttle_pause_ms: 1_000,
        ..Default::default()
    };
    CarrierRecord { smpp: None, twilio: Some(twilio), ..record("second") }
}

#[test]
fn an_http_account_is_checked_like_the_others_and_needs_the_level_that_knows_it() {
    type Case = (fn(&mut TwilioSettings), &'static str);
    let cases: [Case; 12] = [
        (|t| t.base_url = "ftp://x".into(), "twilio.base_url"),
        (|t| t.base_url = "https://".into(), "twilio.base_url"),
        (|t| t.account_sid = "AC1".into(), "twilio.account_sid"),
        (|t| t.auth_token_secret.clear(), "twilio.auth_token_secret"),
        (|t| t.auth_token_secret = "../x".into(), "twilio.auth_token_secret"),
        (|t| t.api_key_sid = "SK".into(), "twilio.api_key_sid"),
        (|t| t.api_key_secret = "alone".into(), "twilio.api_key_secret"),
        (|t| t.messaging_service_sid = "MGx".into(), "twilio.messaging_service_sid"),
        (|t| t.from.clear(), "twilio.from"),
        (|t| t.callback_url = "https://a/#b".into(), "twilio.callback_url"),
        (|t| t.connections_per_node = 0, "twilio.connections_per_node"),
        (|t| t.throttle_pause_ms = 0, "twilio.throttle_pause_ms"),
    ];
    let put = |record| Kind::PutCarrier(PutCarrier { carrier: Some(record) });
    let ready = || {
        let mut group = Group::default();
        group.one(Kind::RaiseLevel(RaiseLevel { level: level::LEVEL_DELIVERY })).unwrap();
        group
    };
    for (change, expected) in cases {
        let mut record = twilio_record();
        change(record.twilio.as_mut().unwrap());
        let refusal = ready().one(put(record)).unwrap_err();
        assert!(matches!(refusal, MetaRefusal::Invalid { field, .. } if field == expected), "{refusal}");
    }
    let both = CarrierRecord { smpp: record("x").smpp, ..twilio_record() };
    for (broken, expected) in [
        (both, "twilio"),
        (CarrierRecord { contract: "Ours!".into(), ..twilio_record() }, "contract"),
        (CarrierRecord { baa: 9, ..twilio_record() }, "baa"),
    ] {
        let refusal = ready().one(put(broken)).unwrap_err();
        assert!(matches!(refusal, MetaRefusal::Invalid { field, .. } if field == expected), "{refusal}");
    }
    let with_contract = CarrierRecord { contract: "ours".into(), ..record("third") };
    let without_baa = CarrierRecord { baa: Baa::None.into(), ..record("third") };
    for newer in [twilio_record(), with_contract, without_baa] {
        assert_eq!(level::needed(&put(newer.clone())), level::LEVEL_DELIVERY);
        assert!(Group::default().one(put(newer.clone())).is_err());
        assert!(ready().one(put(newer)).is_ok());
    }
    assert_eq!(level::needed(&put(record("first"))), level::LEVEL_BASE);
}

#[test]
fn impossible_commands_are_refused() {
    let mut group = Group::default();
    let twin = MetaNode { node_id: 1, peer_address: "b:1".into(), ..Default::default() };
    let broken = [
        Kind::Bootstrap(Bootstrap { cluster_id: String::new(), ..bootstrap(1) }),
        Kind::Bootstrap(Bootstrap { cluster_id: "a b".into(), ..bootstrap(1) }),
        Kind::Bootstrap(Bootstrap { partitions: 0, ..bootstrap(1) }),
        Kind::Bootstrap(Bootstrap { partitions: 4097, ..bootstrap(1) }),
        Kind::Bootstrap(Bootstrap { nodes: vec![], ..bootstrap(1) }),
        Kind::Bootstrap(Bootstrap { nodes: vec![bootstrap(1).nodes.remove(0), twin], ..bootstrap(1) }),
        Kind::PutCarrier(PutCarrier { carrier: None }),
        practice("", "north", "UTC", "main"),
        practice("acme", "no\0rth", "UTC", "main"),
        practice("acme", "north", "", "main"),
        practice("acme", "north", "Not A Zone", "main"),
        data_key(1, 1, b""),
    ];
    for kind in broken {
        let effects = group.run(std::slice::from_ref(&kind));
        assert!(effects.results[0].is_err() && !effects.changed, "{kind:?}");
    }
    assert_eq!(group.tables.rows().len(), 1, "only table A");
}

#[test]
fn the_applied_record_is_the_same_as_a_partitions() {
    let mut group = Group::default();
    let first = group.run(&[carrier("main")]);
    assert_eq!(first.results, [Ok(())]);
    let applied = applied_record(&group.tables).unwrap();
    assert_eq!((applied.index, applied.term, applied.now_ms, applied.digest.len()), (1, 1, 1_001, 16));
    let meta = EntryMeta { index: 2, term: 4 };
    let passed = meta::apply(&mut group.tables, meta, &Bytes::new(), &mut MetaEffects::default()).unwrap();
    assert_eq!((passed.index, passed.term, passed.now_ms), (2, 4, 1_001));
    assert_ne!(passed.digest, applied.digest);
    let meta = EntryMeta { index: 3, term: 4 };
    let data = Bytes::from_static(b"\xff");
    let error = meta::apply(&mut group.tables, meta, &data, &mut MetaEffects::default()).unwrap_err();
    assert!(matches!(error, TableError::Corrupt { .. }));
}
