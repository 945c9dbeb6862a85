//! The client over TLS against a stand-in that breaks streams, refuses and falls silent: nothing may be lost, and
//! every message must get exactly one final answer.

mod common;

use std::collections::HashSet;
use std::time::Duration;

use carillon_loadtest::bulk::{Answered, Batch, BulkConfig, BulkError, BulkStats, submit_all};
use carillon_loadtest::client::{Client, ClientConfig, ClientError, why};
use carillon_loadtest::watch;
use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::*;
use carillon_proto::tls::TlsFiles;
use common::{Act, Fake, Served, State};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const BATCHES: u64 = 40;
const BATCH: u64 = 5;

fn batch(tag: u64) -> Batch {
    let message = |n| MessageSpec {
        practice: "north".to_owned(),
        recipient: Some(Recipient::PhoneNumber("+12125550123".to_owned())),
        body: "hello".to_owned(),
        idempotency_key: format!("key-{tag}-{n}"),
        ..Default::default()
    };
    Batch { tag, messages: (0..BATCH).map(message).collect() }
}

async fn submit(served: &Served, config: BulkConfig) -> (Result<BulkStats, BulkError>, Vec<Answered>) {
    let (batches, input) = mpsc::channel(4);
    let (output, mut answers) = mpsc::channel(4);
    let feed = async move {
        for tag in 0..BATCHES {
            if batches.send(batch(tag)).await.is_err() {
                return;
            }
        }
    };
    let collect = async {
        let mut all = Vec::new();
        while let Some(answered) = answers.recv().await {
            all.push(answered);
        }
        all
    };
    let (stats, (), all) = tokio::join!(submit_all(served.client(), config, input, output), feed, collect);
    (stats, all)
}

fn script(script: Vec<Act>) -> Fake {
    Fake(std::sync::Arc::new(Mutex::new(State { script, ..State::default() })))
}

/// Every batch came out once, every message of it was accepted under its own key.
fn assert_complete(served: &Served, all: &[Answered]) {
    let tags: HashSet<u64> = all.iter().map(|answered| answered.batch.tag).collect();
    assert_eq!((all.len() as u64, tags.len() as u64), (BATCHES, BATCHES));
    let state = served.fake.0.lock();
    assert_eq!(state.ids.len() as u64, BATCHES * BATCH);
    for answered in all {
        assert_eq!(answered.results.len(), answered.batch.messages.len());
        for (message, result) in answered.batch.messages.iter().zip(&answered.results) {
            let id = &result.as_ref().expect("accepted").message_id;
            assert_eq!(Some(id), state.ids.get(&message.idempotency_key));
        }
    }
}

#[tokio::test]
async fn without_trouble_one_stream_does() {
    let served = Served::start(Fake::default()).await;
    let (stats, all) = submit(&served, BulkConfig::default()).await;
    assert_complete(&served, &all);
    assert_eq!(stats.unwrap(), BulkStats { streams_opened: 1, requests_sent: BATCHES, messages_repeated: 0 });
    assert!(all.iter().flat_map(|a| &a.results).all(|r| !r.as_ref().unwrap().duplicate));
}

#[tokio::test]
async fn what_was_not_acknowledged_is_sent_again_after_a_break() {
    let mut acts = vec![Act::Answer; 3];
    acts.extend([
        Act::BreakAfterAccepting,
        Act::Answer,
        Act::BreakBefore,
        Act::BreakAfterAccepting,
        Act::Answer,
    ]);
    let served = Served::start(script(acts)).await;
    let (stats, all) = submit(&served, BulkConfig::default()).await;
    assert_complete(&served, &all);
    let stats = stats.unwrap();
    assert_eq!(stats.streams_opened, 4);
    assert!(stats.messages_repeated >= 3 * BATCH, "{stats:?}");
    let duplicates = all.iter().flat_map(|a| &a.results).filter(|r| r.as_ref().unwrap().duplicate).count();
    // What had been accepted before the two breaks comes back under its first id.
    assert_eq!(duplicates as u64, 2 * BATCH);
}

#[tokio::test]
async fn refusals_for_now_are_repeated_and_only_for_the_refused() {
    let acts = vec![Act::Overloaded, Act::Half, Act::Half, Act::Swap, Act::Overloaded];
    let served = Served::start(script(acts)).await;
    let (stats, all) = submit(&served, BulkConfig::default()).await;
    assert_complete(&served, &all);
    let stats = stats.unwrap();
    assert_eq!(stats.streams_opened, 1);
    // Two whole batches and the odd messages of two others.
    assert_eq!(stats.messages_repeated, 2 * BATCH + 2 * (BATCH / 2));
    assert!(all.iter().flat_map(|a| &a.results).all(|r| !r.as_ref().unwrap().duplicate));
}

#[tokio::test]
async fn silence_breaks_the_stream_and_the_window_holds() {
    let served = Served::start(script(vec![Act::Silence; 6])).await;
    let config =
        BulkConfig { window: 3, answer_timeout: Duration::from_millis(200), ..BulkConfig::default() };
    let (stats, all) = submit(&served, config).await;
    assert_complete(&served, &all);
    assert_eq!(stats.unwrap().streams_opened, 3);
    assert_eq!(served.fake.0.lock().in_flight_max, 3);
}

#[tokio::test]
async fn a_refusal_for_good_ends_it() {
    let served = Served::start(script(vec![Act::Forbidden; 99])).await;
    let (stats, all) = submit(&served, BulkConfig::default()).await;
    assert!(
        matches!(stats, Err(BulkError::Refused(status)) if status.code() == tonic::Code::PermissionDenied)
    );
    assert!(all.is_empty());
}

#[tokio::test]
async fn without_progress_it_gives_up() {
    let served = Served::start(script(vec![Act::BreakBefore; 9_999])).await;
    let config = BulkConfig { patience: Duration::from_millis(300), ..BulkConfig::default() };
    let (stats, all) = submit(&served, config).await;
    assert!(matches!(stats, Err(BulkError::Stuck(_))));
    assert!(all.is_empty() && served.fake.0.lock().streams > 1);
}

#[tokio::test]
async fn calls_have_deadlines_are_repeated_and_pages_are_followed() {
    let served = Served::start(Fake::default()).await;
    let client = served.client();
    let messages = batch(1).messages;
    let request = SubmitMessagesRequest { messages, validate_only: false };
    assert_eq!(client.submit(request).await.unwrap().results.len() as u64, BATCH);
    served.fake.0.lock().list_failures = 2;
    let mut ids = HashSet::new();
    let count = client.list(0, &[], |message| assert!(ids.insert(message.message_id))).await.unwrap();
    assert_eq!((count as u64, ids.len() as u64), (BATCH, BATCH));
    // Two failures and three pages.
    assert_eq!(served.fake.0.lock().list_calls, 5);
    let request = CancelMessagesRequest { message_ids: ids.into_iter().collect(), ..Default::default() };
    assert!(client.cancel(request).await.unwrap().iter().all(|result| result.canceled));
}

#[tokio::test]
async fn patience_ends_and_says_why() {
    let served = Served::start(Fake::default()).await;
    served.fake.0.lock().list_failures = usize::MAX;
    let config = ClientConfig { patience: Duration::from_millis(200), ..ClientConfig::default() };
    let client = Client::connect(&served.address.to_string(), &served.files, config).unwrap();
    let error = client.list(0, &[], drop).await.unwrap_err();
    assert!(matches!(&error, ClientError::Call { call: "list", .. }), "{error}");
    assert!(served.fake.0.lock().list_calls > 1);
}

/// A client that repeats these would wait for an hour.
#[tokio::test]
async fn what_fails_on_a_certificate_is_not_repeated_and_says_what_to_do() {
    const PATIENCE: Duration = Duration::from_secs(3_600);
    let (served, stranger) = (Served::start(Fake::default()).await, Served::start(Fake::default()).await);
    let address = served.address.to_string();
    let wrong_ca = TlsFiles { ca: stranger.files.ca.clone(), ..served.files.clone() };
    let wrong_own = TlsFiles { ca: served.files.ca.clone(), ..stranger.files.clone() };
    for (files, told) in [
        (wrong_ca, "the server's certificate is not from the CA that was given; give the CA of this server"),
        (wrong_own, "the server refused our certificate"),
    ] {
        let config = ClientConfig { patience: PATIENCE, ..ClientConfig::default() };
        let client = Client::connect(&address, &files, config).unwrap();
        let all = async {
            let request = SubmitMessagesRequest { messages: batch(1).messages, validate_only: false };
            let call = client.submit(request).await.unwrap_err().to_string();
            let (batches, input) = mpsc::channel(4);
            let (output, _answers) = mpsc::channel(4);
            batches.send(batch(1)).await.unwrap();
            let config = BulkConfig { patience: PATIENCE, ..BulkConfig::default() };
            let bulk = submit_all(client.clone(), config, input, output).await.unwrap_err().to_string();
            let stop = CancellationToken::new();
            let watched = watch::follow(client, stop, || {}, |_| {}).await.unwrap_err();
            (call, bulk, why(&watched))
        };
        let all = tokio::time::timeout(Duration::from_secs(60), all).await.expect("nothing is repeated");
        for text in [&all.0, &all.1, &all.2] {
            assert!(text.contains(told), "{told:?} is not in {text:?}");
        }
    }
    assert_eq!(served.fake.0.lock().requests, 0);
}

#[tokio::test]
async fn events_go_on_from_the_last_cursor() {
    let response = |n: u64| WatchEventsResponse {
        events: vec![Event { message_id: n.to_string(), ..Default::default() }],
        cursor: format!("c{n}"),
    };
    let fake = Fake::default();
    fake.0.lock().watch = vec![vec![response(1), response(2)], vec![], vec![response(3)]];
    let served = Served::start(fake).await;
    let (stop, seen) = (CancellationToken::new(), Mutex::new(Vec::new()));
    let stats = watch::follow(
        served.client(),
        stop.clone(),
        || {},
        |event| {
            let mut seen = seen.lock();
            seen.push(event.message_id.clone());
            if seen.len() == 3 {
                stop.cancel();
            }
        },
    )
    .await
    .unwrap();
    assert_eq!(seen.into_inner(), ["1", "2", "3"]);
    assert_eq!(stats.events, 3);
    assert_eq!(served.fake.0.lock().cursors[..3], ["", "c2", "c2"]);
}
