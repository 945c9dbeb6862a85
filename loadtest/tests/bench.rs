//! The load generator against a stand-in in the same process: counts, paces, and the end-to-end clock.

mod common;

use std::time::Duration;

use carillon_loadtest::bench::e2e;
use carillon_loadtest::bench::feed::{Content, Feed};
use carillon_loadtest::bench::load::{Load, LoadConfig, Pace};
use carillon_loadtest::sample_day::practices;
use common::{Act, Fake, Served};

fn load(served: &Served, pace: Pace, unfinished_max: u64) -> Load {
    let content = Content { body_bytes: 300, not_before_ms: None, row: 1 };
    let feed = Feed::new(&practices().unwrap()[..16], &content, 1);
    let config = LoadConfig {
        pace,
        warm_up: Duration::from_millis(100),
        measured: Duration::from_millis(500),
        batch: 20,
        window: 4,
        unfinished_max,
        processes: Vec::new(),
    };
    Load::new(vec![served.client(), served.client()], feed, config)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_loop_keeps_its_pace_and_counts_everything() {
    let served = Served::start(Fake::default()).await;
    let result = load(&served, Pace::Rate(2_000.0), u64::MAX).run().await.unwrap();
    let state = served.fake.0.lock();
    // Every key was new, and every acknowledged message is there.
    assert_eq!(result.accepted, state.ids.len() as u64);
    assert_eq!(state.practices_seen.len(), 16);
    // 60 batches in 0.6 s, and one on each connection to open it; none twice.
    let batches = result.accepted / 20 + result.health.skipped;
    assert_eq!(batches, 62, "{result}");
    assert!(result.response.count > 0 && result.response.p99_ms >= result.service.p50_ms);
    assert!(result.refused.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_loop_fills_its_window_and_refusals_are_counted_by_reason() {
    let fake = Fake::default();
    fake.0.lock().script = vec![Act::Answer, Act::Answer, Act::Half, Act::Overloaded];
    let served = Served::start(fake).await;
    let result = load(&served, Pace::Max, u64::MAX).run().await.unwrap();
    assert_eq!(result.accepted, served.fake.0.lock().ids.len() as u64);
    println!("with the stand-in in this process:\n{result}");
    assert!(result.accepted > 62 * 20, "{result}");
    assert_eq!(result.refused.get("OVERLOADED"), Some(&30));
    assert!(result.accepted_per_s > 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_loop_stops_at_the_backlog_it_may_make() {
    let served = Served::start(Fake::default()).await;
    // Nobody finishes anything here.
    let result = load(&served, Pace::Max, 1_000).run().await.unwrap();
    let in_flight_max = 2 * 4 * 20;
    assert!((1_000..1_000 + in_flight_max).contains(&result.accepted), "{result}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_to_end_counts_delivered_events_and_their_time() {
    let served = Served::start(Fake::default()).await;
    let result = e2e::run(served.client(), || load(&served, Pace::Rate(1_000.0), u64::MAX)).await.unwrap();
    assert_eq!(result.by_state.get("DELIVERED"), Some(&result.load.accepted), "{result}");
    assert_eq!((result.unfinished, result.event_streams), (0, 1));
    // The stand-in dates its events 5 ms after acceptance.
    assert_eq!((result.latency.p50_ms.round(), result.latency.p99_ms.round()), (5.0, 5.0));
    assert!(result.delivered_per_s > 500.0);
}
