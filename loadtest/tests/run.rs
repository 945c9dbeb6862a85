//! The generator of `run` against a stand-in in the same process: the schedule is kept, everything acknowledged is written
//! down, repetitions are told apart, and failures are counted.

mod common;

use std::collections::HashSet;

use carillon_loadtest::run::engine::interval::Interval;
use carillon_loadtest::run::engine::{self, End, Order, now_us};
use carillon_loadtest::run::scenario::Scenario;
use carillon_loadtest::run::spill::{Ack, BUCKETS, read};
use common::{Act, Fake, Served};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

async fn run(served: &Served, text: &str, stop_after: Option<u64>) -> (End, Interval, Vec<Ack>) {
    let scenario = Scenario::parse("test", &format!("name = \"test\"\n{text}")).unwrap();
    let spill = tempfile::tempdir().unwrap();
    let order = Order {
        scenario,
        address: served.address(),
        worker: 0,
        workers: 1,
        run: 7,
        start_ms: (now_us() / 1_000) as i64 + 100,
        spill: spill.path().to_owned(),
    };
    let (out, mut intervals) = mpsc::channel(256);
    let stop = CancellationToken::new();
    let collect = async {
        let mut sum = Interval::default();
        while let Some(interval) = intervals.recv().await {
            sum.add(&interval);
            if stop_after.is_some_and(|second| interval.second >= second) {
                stop.cancel();
            }
        }
        sum
    };
    let (end, sum) = tokio::join!(engine::run(&order, out, stop.clone()), collect);
    let mut acks = Vec::new();
    for bucket in 0..BUCKETS {
        read(spill.path(), "acks", bucket, |ack: Ack| {
            acks.push(ack);
            Ok(())
        })
        .unwrap();
    }
    (end.unwrap(), sum, acks)
}

const PHASE: &str = "[[phase]]\nduration_s = 1\nrate_per_s = 500\n[generator]\nbatch = 5\nconnections = 2\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_schedule_is_sent_whole_and_written_down_by_every_kind_of_generator() {
    for kind in ["stream", "batch", "unary"] {
        let served = Served::start(Fake::default()).await;
        let (end, sum, acks) = run(&served, &format!("{PHASE}kind = \"{kind}\"\n"), None).await;
        assert_eq!(end, End::default(), "{kind}");
        // What a busy machine missed is counted, and nothing else is missing.
        let batch = if kind == "unary" { 1 } else { 5 };
        assert_eq!(sum.submitted + sum.missed * batch, 500, "{kind}");
        assert_eq!((sum.acknowledged, sum.errors()), (sum.submitted, 0), "{kind}");
        assert_eq!((sum.response.count(), sum.service.count()), (sum.acknowledged, sum.acknowledged));
        let ids: HashSet<_> = acks.iter().map(|ack| ack.id.clone()).collect();
        let numbers: HashSet<_> = acks.iter().map(|ack| ack.n).collect();
        assert_eq!((ids.len(), numbers.len()), (sum.acknowledged as usize, sum.acknowledged as usize));
        assert!(acks.iter().all(|ack| ack.sent_us <= ack.acked_us && !ack.repeated));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_keys_get_the_first_id_and_other_calls_are_counted_apart() {
    let served = Served::start(Fake::default()).await;
    let text = format!("{PHASE}[messages]\nrepeat_share = 0.3\n[mix]\nsubmit = 8\nget = 1\nlist = 1\n");
    let (_, sum, acks) = run(&served, &text, None).await;
    assert!(sum.repeated > 50 && sum.acknowledged == sum.submitted, "{} {}", sum.repeated, sum.submitted);
    let ids: HashSet<_> = acks.iter().map(|ack| ack.id.clone()).collect();
    assert_eq!(ids.len() as u64 + sum.repeated, sum.acknowledged);
    assert!(sum.calls > 0 && sum.operations.contains_key("list"), "{:?}", sum.errors);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_after_accepting_loses_and_doubles_nothing() {
    let fake = Fake::default();
    fake.0.lock().script =
        vec![Act::Answer, Act::BreakAfterAccepting, Act::Half, Act::Overloaded, Act::BreakBefore];
    let served = Served::start(fake).await;
    let (end, sum, acks) = run(&served, &format!("{PHASE}kind = \"stream\"\n"), None).await;
    assert_eq!((end.in_doubt, sum.errors()), (0, 0), "{:?}", sum.errors);
    assert_eq!(sum.acknowledged, sum.submitted);
    let ids: HashSet<_> = acks.iter().map(|ack| ack.id.clone()).collect();
    assert_eq!(ids.len(), acks.len());
    assert_eq!(served.fake.0.lock().ids.len(), ids.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_loop_and_a_stop_end_early_with_everything_answered() {
    let served = Served::start(Fake::default()).await;
    let text = "loop = \"closed\"\n[[phase]]\nduration_s = 600\nrate_per_s = 1\n[generator]\nbatch = 50\n";
    let (end, sum, acks) = run(&served, text, Some(0)).await;
    assert_eq!(end, End::default());
    assert!(sum.acknowledged > 0 && sum.acknowledged == acks.len() as u64);
    assert_eq!(sum.lag.count(), 0);
    let open = "[[phase]]\nduration_s = 600\nrate_per_s = 200\n";
    let (end, sum, _) = run(&served, open, Some(0)).await;
    assert_eq!(end, End::default());
    assert!(sum.submitted > 0 && sum.submitted < 20_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_falls_silent_leaves_messages_in_doubt() {
    let fake = Fake::default();
    fake.0.lock().script = vec![Act::Silence; 10_000];
    let served = Served::start(fake).await;
    let text = format!("{PHASE}deadline_ms = 200\npatience_s = 1\n");
    let (end, sum, acks) = run(&served, &text, None).await;
    assert!(end.in_doubt > 0 && end.gave_up.is_some(), "{end:?}");
    assert!(sum.errors() > 0 && acks.is_empty());
}
