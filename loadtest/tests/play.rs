//! Playing a day against the stand-in, and reading the ground truth of a real simulator.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use carillon_loadtest::bulk::BulkConfig;
use carillon_loadtest::carrier::{Carrier, CarrierError, Truth};
use carillon_loadtest::demo::PROFILE;
use carillon_loadtest::demo::play::{Stage, play};
use carillon_loadtest::http::Http;
use carillon_loadtest::ledger::{Finding, Listed, compare};
use carillon_loadtest::sample_day::Day;
use carillon_loadtest::smsc::{Smsc, SmscConfig};
use carillon_proto::public::MessageState;
use common::{Act, Fake, Served};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

const DAY: &str = r#"{"at_ms":0,"key":"a","practice":"p","to":"+12125550101","text":"one","class":"reminder"}
{"at_ms":0,"key":"b","practice":"p","to":"+12125550102","text":"two","class":"staff","reference":"r"}
{"at_ms":10,"cancel_keys":["a","b"]}
{"at_ms":150,"again":"a"}
{"at_ms":150,"key":"c","practice":"p","to":"+12125550103","text":"three","class":"survey","refuse":"INVALID_FIELDS"}
{"at_ms":160,"practice":"p","cancel_references":["r"]}
"#;

fn stage(served: &Served) -> Arc<Stage> {
    let start_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    Arc::new(Stage {
        client: served.client(),
        book: Mutex::default(),
        answered: Notify::new(),
        run: "run".to_owned(),
        start: Instant::now(),
        start_ms,
    })
}

#[tokio::test]
async fn a_day_is_played_to_its_end_through_a_broken_stream() {
    let fake = Fake::default();
    fake.0.lock().script = vec![Act::BreakAfterAccepting, Act::Overloaded];
    let served = Served::start(fake).await;
    let stage = stage(&served);
    let stats = play(stage.clone(), &Day::parse(DAY).unwrap(), BulkConfig::default()).await.unwrap();
    assert!(stats.streams_opened >= 2);
    let acks = stage.book.lock().acks.clone();
    let state = served.fake.0.lock();
    let mut ids: Vec<&str> = acks.accepted.iter().map(|ack| ack.id.as_str()).collect();
    // The order of the stand-in; a batch that is sent again may be answered after a later one.
    ids.sort_unstable();
    // The stand-in accepts what should be refused: that is a surprise, and a message all the same.
    assert_eq!(ids, [&state.ids["run-a"], &state.ids["run-b"], &state.ids["run-c"]]);
    let surprise = "accepted, although INVALID_FIELDS was due".to_owned();
    assert_eq!(acks.surprises, BTreeMap::from([(surprise, 1)]));
    assert_eq!((acks.repeated, acks.repeated_with_other_id.len()), (1, 0));
    assert_eq!(acks.canceled, [state.ids["run-a"].as_str(), state.ids["run-b"].as_str()]);
    // A cluster that forgets one of them is found out.
    let listed = |id: &&str| Listed {
        id: (*id).to_owned(),
        class: "reminder".to_owned(),
        practice: "hill".to_owned(),
        state: MessageState::Canceled,
        reason: "-".to_owned(),
        expires_at_ms: None,
        lost_answers: 0,
        carriers: Vec::new(),
    };
    let all: Vec<Listed> = ids.iter().map(listed).collect();
    assert!(compare(&acks, &all, &Truth::default()).findings.is_empty());
    let findings = compare(&acks, &all[1..], &Truth::default()).findings;
    assert_eq!(findings.keys().collect::<Vec<_>>(), [&Finding::LostMissing]);
}

#[tokio::test]
async fn the_ground_truth_is_read_from_a_mark_and_a_reset_is_noticed() {
    let config = SmscConfig { records_max: 10, ..SmscConfig::default() };
    let smsc = Smsc::start(Arc::new(config)).await.unwrap();
    let carrier = Carrier::new(Http::default(), &smsc.http_addr().to_string());
    let mark = carrier.mark().await.unwrap();
    let truth = carrier.truth(&mark).await.unwrap();
    assert_eq!((truth.submits, truth.violations, truth.limit), (0, 0, None));
    carrier.set_profile(PROFILE).await.unwrap();
    assert_eq!(carrier.stats().await.unwrap().profile, "demo");
    let refused = carrier.set_profile("base = \"nice\"").await.unwrap_err().to_string();
    assert!(refused.contains("404") && refused.contains("nice"), "{refused}");
    carrier.reset().await.unwrap();
    assert!(matches!(carrier.truth(&mark).await, Err(CarrierError::Restarted)));
    assert!(carrier.truth(&carrier.mark().await.unwrap()).await.is_ok());
    smsc.shutdown().await;
    assert!(matches!(carrier.stats().await, Err(CarrierError::Http(_))));
}
