//! The suite: what every connector must do, whatever its carrier speaks.
use crate::fixture::*;
use crate::smpp_fixture::Smpp;
use crate::support::*;
use crate::twilio_fixture::Twilio;
use carillon_carriers::{Connector as _, ConnectorState, OpenGate, SendRequest};
use carillon_proto::internal::ReceiptState;
use carillon_proto::public::Outcome;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

async fn accepts<C: CarrierUnderTest>() {
    let mut carrier = C::start(Terms::default()).await;
    let sending = spawn_send(&carrier.connector(), request(1, "Your visit is at nine"));
    let arrived = carrier.arrived().await;
    assert_eq!((arrived.text.as_str(), arrived.recipient.as_str()), ("Your visit is at nine", "12125550123"));
    let reference = carrier.accept(arrived.token, 7).await;
    let outcome = outcome(sending).await;
    assert_eq!((outcome.outcome, outcome.segments, outcome.retry_after), (Outcome::Accepted, 1, None));
    assert_eq!(outcome.carrier_refs, [reference]);
    assert_eq!(carrier.connector().status().state, ConnectorState::Up);
}

async fn each_refusal_has_its_outcome_and_code<C: CarrierUnderTest>() {
    for (word, expected, code) in C::REFUSALS {
        let mut carrier = C::start(Terms::default()).await;
        let sending = spawn_send(&carrier.connector(), request(1, "Hi"));
        let arrived = carrier.arrived().await;
        carrier.refuse(arrived.token, word).await;
        let outcome = outcome(sending).await;
        assert_eq!((outcome.outcome, outcome.code.as_str()), (*expected, *code), "{word}");
        assert!(outcome.carrier_refs.is_empty(), "{word}");
    }
}

async fn a_throttle_pauses_the_lane_and_keeps_the_order<C: CarrierUnderTest>() {
    let terms = Terms { throttle_pause_ms: 250, window: 1, ..Terms::default() };
    let mut carrier = C::start(terms).await;
    let connector = carrier.connector();
    let throttled = spawn_send(&connector, request(1, "first"));
    let arrived = carrier.arrived().await;
    let refused_at = Instant::now();
    carrier.refuse(arrived.token, C::THROTTLE).await;
    let throttled = outcome(throttled).await;
    assert_eq!(throttled.outcome, Outcome::Throttled);
    assert!(throttled.retry_after.is_some_and(|after| after > Duration::from_millis(100)), "{throttled:?}");
    assert!(connector.status().paused_for.is_some());
    // A message that cannot wait for the end of the pause is given back at once, with the time to come again.
    let hurried =
        SendRequest { send_by: Instant::now() + Duration::from_millis(20), ..request(2, "hurried") };
    let hurried = within(connector.send(hurried, &OpenGate)).await;
    assert_eq!((hurried.outcome, hurried.code.as_str()), (Outcome::NotSent, "paused"));
    assert!(hurried.retry_after.is_some());
    let sendings: Vec<_> = (3..7)
        .map(|n| {
            let sending = spawn_send(&connector, request(n, &n.to_string()));
            (n, sending)
        })
        .collect();
    let mut order = Vec::new();
    for n in 3..7 {
        let arrived = carrier.arrived().await;
        assert!(refused_at.elapsed() >= Duration::from_millis(250), "{:?}", refused_at.elapsed());
        order.push(arrived.text.parse::<u64>().unwrap());
        carrier.accept(arrived.token, n).await;
    }
    for (_, sending) in sendings {
        assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    }
    assert_eq!(order, [3, 4, 5, 6]);
    assert_eq!(connector.status().paused_for, None);
}

async fn a_carrier_that_is_not_there_got_nothing<C: CarrierUnderTest>() {
    let carrier = C::start(Terms { absent: true, ..Terms::default() }).await;
    let connector = carrier.connector();
    let soon = SendRequest { send_by: Instant::now() + Duration::from_millis(50), ..request(1, "Hi") };
    let outcome = within(connector.send(soon, &OpenGate)).await;
    assert_eq!((outcome.outcome, outcome.code.as_str()), (Outcome::NotSent, "not_connected"));
    assert_eq!((outcome.segments, connector.status().state), (0, ConnectorState::Down));
}

async fn a_time_that_has_passed_sends_nothing<C: CarrierUnderTest>() {
    let mut carrier = C::start(Terms { window: 1, ..Terms::default() }).await;
    let connector = carrier.connector();
    let passed = SendRequest { send_by: Instant::now() - Duration::from_millis(1), ..request(1, "Hi") };
    let passed = within(connector.send(passed, &OpenGate)).await;
    assert_eq!((passed.outcome, passed.code.as_str()), (Outcome::NotSent, "send_by_passed"));
    // One that finds the window full until its time is over: before the body, so provably not sent.
    let first = spawn_send(&connector, request(2, "Hi"));
    let arrived = carrier.arrived().await;
    let soon = SendRequest { send_by: Instant::now() + Duration::from_millis(50), ..request(3, "Hi") };
    let soon = within(connector.send(soon, &OpenGate)).await;
    assert_eq!((soon.outcome, soon.code.as_str(), soon.segments), (Outcome::NotSent, "send_by_passed", 0));
    carrier.accept(arrived.token, 1).await;
    assert_eq!(outcome(first).await.outcome, Outcome::Accepted);
    carrier.assert_silent().await;
}

async fn no_answer_is_ambiguous_and_a_late_one_is_reported<C: CarrierUnderTest>() {
    let mut carrier = C::start(Terms { response_timeout_ms: 100, ..Terms::default() }).await;
    let sending = spawn_send(&carrier.connector(), request(9, "Hi"));
    let arrived = carrier.arrived().await;
    let timed_out = outcome(sending).await;
    assert_eq!((timed_out.outcome, timed_out.code.as_str()), (Outcome::Ambiguous, "answer_timeout"));
    assert_eq!(timed_out.segments, 1);
    let reference = carrier.accept(arrived.token, 5).await;
    let late = carrier.inbox().late().await;
    assert_eq!((late.message_id, late.attempt_no, late.part, late.parts), (message_id(9), 1, 0, 1));
    assert_eq!((late.outcome, late.carrier_ref), (Outcome::Accepted, Some(reference)));
    // And it goes on.
    let sending = spawn_send(&carrier.connector(), request(10, "Hi"));
    let arrived = carrier.arrived().await;
    carrier.accept(arrived.token, 6).await;
    assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
}

async fn an_answer_to_nobody_is_reported_too<C: CarrierUnderTest>() {
    let mut carrier = C::start(Terms::default()).await;
    let sending = spawn_send(&carrier.connector(), request(9, "Hi"));
    let arrived = carrier.arrived().await;
    sending.abort();
    assert!(within(sending).await.unwrap_err().is_cancelled());
    carrier.accept(arrived.token, 5).await;
    let late = carrier.inbox().late().await;
    assert_eq!((late.message_id, late.outcome), (message_id(9), Outcome::Accepted));
}

async fn a_lost_connection_is_ambiguous_for_what_was_on_it<C: CarrierUnderTest>() {
    let mut carrier = C::start(Terms::default()).await;
    let sending = spawn_send(&carrier.connector(), request(1, "Hi"));
    let arrived = carrier.arrived().await;
    carrier.hang_up(arrived.token).await;
    let lost = outcome(sending).await;
    assert_eq!((lost.outcome, lost.code.as_str()), (Outcome::Ambiguous, "connection_lost"));
    // And it comes back.
    let sending = spawn_send(&carrier.connector(), request(2, "Hi"));
    let arrived = carrier.arrived().await;
    carrier.accept(arrived.token, 2).await;
    assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
}

async fn a_slow_answer_holds_up_nobody_else<C: CarrierUnderTest>() {
    let mut carrier = C::start(Terms::default()).await;
    let slow = spawn_send(&carrier.connector(), request(1, "slow"));
    let waiting = carrier.arrived().await;
    for n in 2..6 {
        let sending = spawn_send(&carrier.connector(), request(u64::from(n), "quick"));
        let arrived = carrier.arrived().await;
        carrier.accept(arrived.token, n).await;
        assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    }
    assert!(!slow.is_finished());
    assert_eq!(carrier.connector().status().in_flight, 1);
    carrier.accept(waiting.token, 1).await;
    assert_eq!(outcome(slow).await.outcome, Outcome::Accepted);
    assert_eq!(carrier.connector().status().in_flight, 0);
}

async fn a_closed_gate_sends_nothing_and_each_segment_needs_a_permission<C: CarrierUnderTest>() {
    let mut carrier = C::start(Terms::default()).await;
    let (connector, gate) = (carrier.connector(), HandGate::closed());
    let sending = {
        let (connector, gate) = (connector.clone(), gate.clone());
        tokio::spawn(async move { connector.send(request(1, "one segment"), &*gate).await })
    };
    carrier.assert_silent().await;
    assert_eq!(gate.taken.load(Ordering::SeqCst), 0);
    gate.permits.add_permits(1);
    let arrived = carrier.arrived().await;
    carrier.accept(arrived.token, 1).await;
    assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    assert_eq!(gate.taken.load(Ordering::SeqCst), 1);
    gate.permits.close();
    let closed = within(connector.send(request(2, "Hi"), &*gate)).await;
    assert_eq!((closed.outcome, closed.code.as_str()), (Outcome::NotSent, "gate_closed"));
    carrier.assert_silent().await;
}

async fn a_receipt_is_acknowledged_only_after_its_commit<C: CarrierUnderTest>() {
    let mut carrier = C::start(Terms::default()).await;
    let answer = carrier.report(7, ReceiptState::Delivered).await;
    let report = carrier.inbox().receipt().await;
    assert_eq!(report.state, ReceiptState::Delivered);
    carrier.assert_silent().await;
    assert!(!answer.is_finished());
    report.ack.commit();
    assert_eq!(told(answer).await, Told::Taken);
}

async fn a_receipt_that_is_not_committed_must_come_again<C: CarrierUnderTest>() {
    let terms = Terms { receipt_ack_timeout: Duration::from_millis(200), ..Terms::default() };
    let mut carrier = C::start(terms).await;
    let refused = carrier.report(1, ReceiptState::Delivered).await;
    carrier.inbox().receipt().await.ack.refuse();
    assert_eq!(told(refused).await, Told::Again);
    let dropped = carrier.report(1, ReceiptState::Delivered).await;
    drop(carrier.inbox().receipt().await);
    assert_eq!(told(dropped).await, Told::Again);
    let forgotten = carrier.report(1, ReceiptState::Delivered).await;
    let held = carrier.inbox().receipt().await;
    assert_eq!(told(forgotten).await, Told::Again);
    // Too late, and harmless.
    held.ack.commit();
}

async fn receipts_may_be_early_late_double_unknown_and_out_of_order<C: CarrierUnderTest>() {
    let mut carrier = C::start(Terms::default()).await;
    let sending = spawn_send(&carrier.connector(), request(1, "Hi"));
    let arrived = carrier.arrived().await;
    // Before the answer, twice, then one for nothing that we know, then an older state.
    let reports = [
        (5, ReceiptState::Delivered),
        (5, ReceiptState::Delivered),
        (99, ReceiptState::Undelivered),
        (5, ReceiptState::Enroute),
    ];
    let mut answers = Vec::new();
    for (n, state) in reports {
        answers.push(carrier.report(n, state).await);
        let report = carrier.inbox().receipt().await;
        assert_eq!(report.state, state);
        report.ack.commit();
    }
    for answer in answers {
        assert_eq!(told(answer).await, Told::Taken);
    }
    let reference = carrier.accept(arrived.token, 5).await;
    assert_eq!(outcome(sending).await.carrier_refs, std::slice::from_ref(&reference));
    let late = carrier.report(5, ReceiptState::Delivered).await;
    let report = carrier.inbox().receipt().await;
    assert!(report.carrier_refs.contains(&reference), "{reference} {:?}", report.carrier_refs);
    report.ack.commit();
    assert_eq!(told(late).await, Told::Taken);
}

async fn a_receipt_that_is_wrong_reaches_nobody<C: CarrierUnderTest>() {
    let mut carrier = C::start(Terms::default()).await;
    for wrong in C::WRONGS {
        let answer = carrier.report_wrong(*wrong).await;
        assert_eq!(told(answer).await, Told::Refused, "{wrong:?}");
        assert!(carrier.inbox().receipts.try_recv().is_err(), "{wrong:?}");
    }
    // The good ones still come in, and messages still go out.
    let answer = carrier.report(1, ReceiptState::Delivered).await;
    carrier.inbox().receipt().await.ack.commit();
    assert_eq!(told(answer).await, Told::Taken);
    let sending = spawn_send(&carrier.connector(), request(1, "Hi"));
    let arrived = carrier.arrived().await;
    carrier.accept(arrived.token, 1).await;
    assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
}

async fn a_drain_takes_no_more_and_leaves_nothing_ambiguous<C: CarrierUnderTest>() {
    let mut carrier = C::start(Terms::default()).await;
    let connector = carrier.connector();
    let sending = spawn_send(&connector, request(1, "Hi"));
    let arrived = carrier.arrived().await;
    let draining = {
        let connector = connector.clone();
        tokio::spawn(async move { connector.drain().await })
    };
    until(&*connector, ConnectorState::Draining).await;
    let refused = within(connector.send(request(2, "Hi"), &OpenGate)).await;
    assert_eq!((refused.outcome, refused.code.as_str()), (Outcome::NotSent, "draining"));
    assert!(!draining.is_finished());
    carrier.accept(arrived.token, 1).await;
    assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    drop(carrier);
    within(draining).await.unwrap();
    within(connector.drain()).await;
}

/// Runs every case for one carrier.
macro_rules! run {
    ($module:ident, $carrier:ty, $($case:ident),+ $(,)?) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test]
                async fn $case() {
                    super::$case::<$carrier>().await;
                }
            )+
        }
    };
}

macro_rules! every_carrier {
    ($($case:ident),+ $(,)?) => {
        run!(smpp, Smpp, $($case),+);
        run!(twilio, Twilio, $($case),+);
    };
}

every_carrier!(
    accepts,
    each_refusal_has_its_outcome_and_code,
    a_throttle_pauses_the_lane_and_keeps_the_order,
    a_carrier_that_is_not_there_got_nothing,
    a_time_that_has_passed_sends_nothing,
    no_answer_is_ambiguous_and_a_late_one_is_reported,
    an_answer_to_nobody_is_reported_too,
    a_lost_connection_is_ambiguous_for_what_was_on_it,
    a_slow_answer_holds_up_nobody_else,
    a_closed_gate_sends_nothing_and_each_segment_needs_a_permission,
    a_receipt_is_acknowledged_only_after_its_commit,
    a_receipt_that_is_not_committed_must_come_again,
    receipts_may_be_early_late_double_unknown_and_out_of_order,
    a_receipt_that_is_wrong_reaches_nobody,
    a_drain_takes_no_more_and_leaves_nothing_ambiguous,
);
