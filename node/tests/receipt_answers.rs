//! What a carrier is answered to its receipts: acknowledged means recorded, or that it can never be.
mod common;

use carillon_proto::internal::ReceiptState::{Delivered, Undelivered};
use carillon_proto::public::MessageState;
use carillon_proto::{MessageId, Slot};
use common::{World, taken_over};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Tests run in one thread each, and so do the tasks in them.
fn recorder() -> (&'static PrometheusRecorder, PrometheusHandle) {
    let recorder = Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
    (recorder, recorder.handle())
}

fn count(metrics: &PrometheusHandle, name: &str, reason: &str) -> u64 {
    let line = format!("{name}{{reason=\"{reason}\"}} ");
    let page = metrics.render();
    let value = page.lines().find_map(|l| l.strip_prefix(&line));
    value.map_or(0, |value| value.parse().unwrap())
}

/// Waits until the router has tried the fast path.
async fn until_applied_after(world: &World, index: u64) {
    let mut applied = world.handle.applied(1);
    drop(tokio::time::timeout(LIMIT, applied.wait_for(|at| *at > index)).await.unwrap().unwrap());
}

#[tokio::test]
async fn a_receipt_that_overtakes_its_outcome_counts_when_the_outcome_comes() {
    let world = World::alone().await;
    let id = world.in_flight(1, 2).await;
    let before = *world.handle.applied(1).borrow();
    // Known by our own reference; the number of its part is not.
    let first = world.report(Some(id), &["a"], Delivered);
    until_applied_after(&world, before).await;
    assert_eq!(world.status(id).receipts_final, 0);
    // Recorded as if another node had forwarded it.
    world.propose(taken_over(id, &["a", "b"])).await;
    assert_eq!(tokio::time::timeout(LIMIT, first).await.unwrap(), Ok(true));
    assert_eq!((world.state(id), world.status(id).receipts_final), (MessageState::Submitted, 1));
    let second = world.report(Some(id), &["b"], Delivered);
    assert_eq!(tokio::time::timeout(LIMIT, second).await.unwrap(), Ok(true));
    assert_eq!(world.state(id), MessageState::Delivered);
}

#[tokio::test(start_paused = true)]
async fn a_part_whose_outcome_never_comes_is_refused_until_nobody_can_know_it() {
    let (recorder, metrics) = recorder();
    let _here = metrics::set_default_local_recorder(recorder);
    let world = World::alone().await;
    let id = world.in_flight(1, 2).await;
    let unmatched = || count(&metrics, "carillon_receipts_unmatched_total", "unknown");
    for wait in [0, 601] {
        tokio::time::advance(Duration::from_secs(wait)).await;
        assert_eq!(world.report(Some(id), &["a"], Delivered).await, Ok(false), "after {wait} s");
    }
    assert_eq!(count(&metrics, "carillon_receipts_refused_total", "unknown"), 2);
    // Another state of the same part is another receipt.
    assert_eq!(world.report(Some(id), &["a"], Undelivered).await, Ok(false));
    assert_eq!(unmatched(), 0);
    assert_eq!(world.report(Some(id), &["a"], Delivered).await, Ok(true), "often and long enough");
    assert_eq!(unmatched(), 1);
    assert_eq!((world.state(id), world.status(id).receipts_final), (MessageState::InFlight, 0));
    // It begins anew.
    assert_eq!(world.report(Some(id), &["a"], Delivered).await, Ok(false));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_could_be_asked_about_is_refused_however_often_it_comes() {
    let (recorder, metrics) = recorder();
    let _here = metrics::set_default_local_recorder(recorder);
    let world = World::without_quorum();
    for _ in 0..5 {
        assert_eq!(world.report(None, &["a"], Delivered).await, Ok(false));
        tokio::time::advance(Duration::from_secs(300)).await;
    }
    assert_eq!(count(&metrics, "carillon_receipts_refused_total", "unreachable"), 5);
}

#[tokio::test]
async fn a_receipt_that_can_never_match_is_acknowledged_and_counted() {
    let (recorder, metrics) = recorder();
    let _here = metrics::set_default_local_recorder(recorder);
    let world = World::alone().await;
    let never_sent = world.accepted(1, 1).await;
    let nobody = MessageId::new(1_800_000_000_000, Slot::new(3).unwrap(), 99);
    let in_flight = world.in_flight(2, 1).await;
    let too_long = "x".repeat(500);
    for (id, refs, reason) in [
        (never_sent, "a", "never_sent"),
        (nobody, "b", "no_message"),
        (in_flight, too_long.as_str(), "malformed"),
    ] {
        let answer = world.report(Some(id), &[refs], Delivered);
        assert_eq!(tokio::time::timeout(LIMIT, answer).await.unwrap(), Ok(true), "{reason}");
        assert_eq!(count(&metrics, "carillon_receipts_unmatched_total", reason), 1, "{reason}");
    }
    assert_eq!(world.state(in_flight), MessageState::InFlight);
}

#[tokio::test(start_paused = true)]
async fn a_stopping_node_refuses_what_it_has_parked() {
    let (recorder, metrics) = recorder();
    let _here = metrics::set_default_local_recorder(recorder);
    let world = World::without_quorum();
    let began = tokio::time::Instant::now();
    let answer = world.report(None, &["a"], Delivered);
    // Long enough to be parked, not for the first look.
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.router.stop();
    assert_eq!(answer.await, Ok(false));
    assert!(began.elapsed() < Duration::from_secs(1), "virtual time: it was not looked for");
    assert_eq!(count(&metrics, "carillon_receipts_refused_total", "stopping"), 1);
}
