//! Window, order, pause, gate, several binds, drain.
use crate::support::*;
use carillon_carriers::{
    BoxFuture, Connector as _, ConnectorState, GateClosed, OpenGate, SegmentGate, SendRequest,
};
use carillon_proto::public::Outcome;
use futures::future::join_all;
use rusmpp::{CommandId, CommandStatus, Pdu};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

#[tokio::test]
async fn no_more_than_the_window_is_unanswered() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.settings.window = 4;
    let (connector, _inbox, mut peers) = setup.bound(&smsc).await;
    let peer = &mut peers[0];
    let sendings: Vec<_> = (0..12).map(|n| spawn_send(&connector, request(n, "Hi"))).collect();
    let mut unanswered = Vec::new();
    for _ in 0..4 {
        unanswered.push(peer.submit().await.0);
    }
    for _ in 4..12 {
        peer.assert_silent().await;
        peer.accept(unanswered.remove(0), "1").await;
        unanswered.push(peer.submit().await.0);
    }
    for sequence in unanswered {
        peer.accept(sequence, "1").await;
    }
    for sending in sendings {
        assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    }
    assert_eq!(connector.status().in_flight, 0);
}

#[tokio::test]
async fn messages_leave_in_the_order_in_which_they_were_given() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.settings.window = 3;
    let (connector, _inbox, mut peers) = setup.bound(&smsc).await;
    let mut peer = peers.remove(0);
    let carrier = tokio::spawn(async move {
        let mut order = Vec::new();
        for n in 0..200 {
            let (sequence, submit) = peer.submit().await;
            order.push(text_of(&submit).parse::<u64>().unwrap());
            // Now and then the carrier wants a rest: the order must survive it, the throttled one excepted.
            match n {
                50 | 120 => peer.refuse(sequence, 0x58).await,
                _ => peer.accept(sequence, "1").await,
            }
        }
        order
    });
    let sendings = (0..200u64).map(|n| {
        let connector = connector.clone();
        async move { connector.send(request(n, &n.to_string()), &OpenGate).await }
    });
    let outcomes = within(join_all(sendings)).await;
    let order = within(carrier).await.unwrap();
    assert_eq!(order, (0..200).collect::<Vec<_>>());
    assert_eq!(outcomes.iter().filter(|o| o.outcome == Outcome::Throttled).count(), 2);
    assert_eq!(outcomes.iter().filter(|o| o.outcome == Outcome::Accepted).count(), 198);
}

#[tokio::test]
async fn an_urgent_message_goes_before_those_that_wait_in_line() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.settings.window = 1;
    let (connector, _inbox, mut peers) = setup.bound(&smsc).await;
    let peer = &mut peers[0];
    let mut sendings: Vec<_> = (0..6).map(|n| spawn_send(&connector, request(n, &n.to_string()))).collect();
    let (mut sequence, _) = peer.submit().await;
    peer.assert_silent().await;
    sendings.push(spawn_send(&connector, SendRequest { urgent: true, ..request(90, "90") }));
    peer.assert_silent().await;
    let mut order = Vec::new();
    for _ in 0..6 {
        peer.accept(sequence, "1").await;
        let (next, submit) = peer.submit().await;
        order.push(text_of(&submit).parse::<u64>().unwrap());
        sequence = next;
    }
    peer.accept(sequence, "1").await;
    // One was at the turnstile already.
    assert_eq!(order, [1, 90, 2, 3, 4, 5]);
    for sending in sendings {
        assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    }
}

#[tokio::test]
async fn a_throttle_pauses_every_bind_of_the_lane() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.settings.binds_per_node = 2;
    setup.settings.throttle_pause_ms = 250;
    let (connector, _inbox, mut peers) = setup.bound(&smsc).await;
    let (left, right) = peers.split_at_mut(1);
    let (left, right) = (&mut left[0], &mut right[0]);
    let throttled = spawn_send(&connector, request(1, "first"));
    let (sequence, peer) = tokio::select! {
        (sequence, _) = left.submit() => (sequence, &mut *left),
        (sequence, _) = right.submit() => (sequence, &mut *right),
    };
    let refused_at = Instant::now();
    peer.refuse(sequence, 0x58).await;
    let throttled = outcome(throttled).await;
    assert_eq!((throttled.outcome, throttled.code.as_str()), (Outcome::Throttled, "0x00000058"));
    let pause = throttled.retry_after.unwrap();
    assert!(pause <= Duration::from_millis(300) && pause > Duration::from_millis(100), "{pause:?}");
    assert!(connector.status().paused_for.is_some());
    // A message that cannot wait for the end of the pause is given back at once, with the time to come again.
    let hurried =
        SendRequest { send_by: Instant::now() + Duration::from_millis(20), ..request(2, "hurried") };
    let hurried = within(connector.send(hurried, &OpenGate)).await;
    assert_eq!((hurried.outcome, hurried.code.as_str()), (Outcome::NotSent, "paused"));
    assert!(hurried.retry_after.unwrap() > Duration::from_millis(20));
    // The others wait, on both binds.
    let sendings: Vec<_> = (3..7).map(|n| spawn_send(&connector, request(n, "later"))).collect();
    for _ in 0..4 {
        let (sequence, peer) = tokio::select! {
            (sequence, _) = left.submit() => (sequence, &mut *left),
            (sequence, _) = right.submit() => (sequence, &mut *right),
        };
        assert!(refused_at.elapsed() >= Duration::from_millis(250), "{:?}", refused_at.elapsed());
        peer.accept(sequence, "1").await;
    }
    for sending in sendings {
        assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    }
    assert_eq!(connector.status().paused_for, None);
}

#[tokio::test]
async fn a_full_queue_at_the_carrier_pauses_longer() {
    let (_smsc, connector, _inbox, mut peer) = one_bind().await;
    let sending = spawn_send(&connector, request(1, "Hi"));
    let (sequence, _) = peer.submit().await;
    peer.refuse(sequence, 0x14).await;
    let outcome = outcome(sending).await;
    assert_eq!(outcome.outcome, Outcome::Throttled);
    assert!(outcome.retry_after.unwrap() > Duration::from_millis(200));
}

/// Counts permissions and gives them only when the test does.
struct CountingGate {
    permits: Semaphore,
    taken: AtomicU32,
}

impl SegmentGate for CountingGate {
    fn acquire(&self) -> BoxFuture<'_, Result<(), GateClosed>> {
        Box::pin(async {
            self.permits.acquire().await.map_err(|_| GateClosed)?.forget();
            self.taken.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
    }

    fn acquire_together(&self, segments: u32) -> BoxFuture<'_, Result<Instant, GateClosed>> {
        Box::pin(async move {
            self.permits.acquire_many(segments).await.map_err(|_| GateClosed)?.forget();
            self.taken.fetch_add(segments, Ordering::SeqCst);
            Ok(Instant::now() + Duration::from_secs(60))
        })
    }
}

#[tokio::test]
async fn each_segment_needs_its_own_permission() {
    let (_smsc, connector, _inbox, mut peer) = one_bind().await;
    let gate = Arc::new(CountingGate { permits: Semaphore::new(0), taken: AtomicU32::new(0) });
    let sending = {
        let (connector, gate) = (connector.clone(), gate.clone());
        tokio::spawn(async move { connector.send(request(1, &"g".repeat(400)), &*gate).await })
    };
    for part in 0..3 {
        peer.assert_silent().await;
        assert_eq!(gate.taken.load(Ordering::SeqCst), part);
        gate.permits.add_permits(1);
        let (sequence, _) = peer.submit().await;
        peer.accept(sequence, "1").await;
    }
    let outcome = outcome(sending).await;
    assert_eq!(
        (outcome.outcome, outcome.segments, gate.taken.load(Ordering::SeqCst)),
        (Outcome::Accepted, 3, 3)
    );
}

#[tokio::test]
async fn a_permission_from_before_a_pause_is_not_used() {
    let (_smsc, connector, _inbox, mut peer) = one_bind().await;
    let throttled = spawn_send(&connector, request(1, "first"));
    let (sequence, _) = peer.submit().await;
    let gate = Arc::new(CountingGate { permits: Semaphore::new(0), taken: AtomicU32::new(0) });
    let waiting = {
        let (connector, gate) = (connector.clone(), gate.clone());
        tokio::spawn(async move { connector.send(request(2, "second"), &*gate).await })
    };
    peer.assert_silent().await;
    peer.refuse(sequence, 0x58).await;
    assert_eq!(outcome(throttled).await.outcome, Outcome::Throttled);
    // The gate opens during the pause. One permission is not enough: it would be part of a burst after the pause.
    gate.permits.add_permits(1);
    within(async {
        while connector.status().paused_for.is_some() {
            peer.assert_silent().await;
        }
    })
    .await;
    peer.assert_silent().await;
    assert_eq!(gate.taken.load(Ordering::SeqCst), 1);
    gate.permits.add_permits(1);
    let (sequence, submit) = peer.submit().await;
    assert_eq!(text_of(&submit), "second");
    peer.accept(sequence, "1").await;
    assert_eq!(outcome(waiting).await.outcome, Outcome::Accepted);
}

#[tokio::test]
async fn a_closed_gate_and_a_late_gate_send_nothing() {
    let (_smsc, connector, _inbox, mut peer) = one_bind().await;
    let gate = CountingGate { permits: Semaphore::new(0), taken: AtomicU32::new(0) };
    let late = SendRequest { send_by: Instant::now() + Duration::from_millis(50), ..request(1, "Hi") };
    let outcome = within(connector.send(late, &gate)).await;
    assert_eq!((outcome.outcome, outcome.code.as_str()), (Outcome::NotSent, "send_by_passed"));
    gate.permits.close();
    let outcome = within(connector.send(request(2, "Hi"), &gate)).await;
    assert_eq!((outcome.outcome, outcome.code.as_str()), (Outcome::NotSent, "gate_closed"));
    peer.assert_silent().await;
    // Neither kept its place in the window.
    for n in 0..20 {
        let sending = spawn_send(&connector, request(n, "Hi"));
        let (sequence, _) = peer.submit().await;
        peer.accept(sequence, "1").await;
        assert_eq!(crate::support::outcome(sending).await.outcome, Outcome::Accepted);
    }
}

#[tokio::test]
async fn the_load_is_spread_over_the_binds_and_a_lost_one_is_not_missed() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.settings.binds_per_node = 2;
    setup.settings.window = 2;
    setup.tuning.reconnect_base = Duration::from_secs(3600);
    setup.tuning.reconnect_max = Duration::from_secs(3600);
    let (connector, _inbox, mut peers) = setup.bound(&smsc).await;
    let sendings: Vec<_> = (0..4).map(|n| spawn_send(&connector, request(n, "Hi"))).collect();
    for peer in &mut peers {
        for _ in 0..2 {
            let (sequence, _) = peer.submit().await;
            peer.accept(sequence, "1").await;
        }
    }
    for sending in sendings {
        assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    }
    drop(peers.pop());
    within(connector.until(|status| status.binds_up == 1)).await;
    assert_eq!(connector.status().state, ConnectorState::Up);
    // Half of the window is left, and it is the right half.
    let sendings: Vec<_> = (0..10).map(|n| spawn_send(&connector, request(n, "Hi"))).collect();
    let peer = &mut peers[0];
    let mut unanswered = vec![peer.submit().await.0, peer.submit().await.0];
    peer.assert_silent().await;
    for _ in 2..10 {
        peer.accept(unanswered.remove(0), "1").await;
        unanswered.push(peer.submit().await.0);
    }
    for sequence in unanswered {
        peer.accept(sequence, "1").await;
    }
    for sending in sendings {
        assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    }
}

#[tokio::test]
async fn a_drain_leaves_nothing_ambiguous() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.settings.window = 8;
    let (connector, mut inbox, mut peers) = setup.bound(&smsc).await;
    let mut peer = peers.remove(0);
    // A long one in the middle of its parts, and more than the window.
    let long = spawn_send(&connector, request(100, &"L".repeat(300)));
    let (part_one, _) = peer.submit().await;
    let sendings: Vec<_> = (0..20).map(|n| spawn_send(&connector, request(n, "Hi"))).collect();
    let mut unanswered = vec![part_one];
    for _ in 0..7 {
        unanswered.push(peer.submit().await.0);
    }
    peer.deliver_receipt("id:1 stat:DELIVRD").await;
    let report = inbox.receipt().await;
    let draining = {
        let connector = connector.clone();
        tokio::spawn(async move { connector.drain().await })
    };
    within(connector.until(|status| status.state == ConnectorState::Draining)).await;
    let refused = within(connector.send(request(999, "Hi"), &OpenGate)).await;
    assert_eq!((refused.outcome, refused.code.as_str()), (Outcome::NotSent, "draining"));
    for sequence in unanswered {
        peer.accept(sequence, "1").await;
    }
    let (part_two, _) = peer.submit().await;
    peer.accept(part_two, "2").await;
    assert_eq!(outcome(long).await.outcome, Outcome::Accepted);
    let mut counts = (0, 0);
    for sending in sendings {
        match outcome(sending).await.outcome {
            Outcome::Accepted => counts.0 += 1,
            Outcome::NotSent => counts.1 += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(counts, (7, 13));
    // The receipt is committed before the goodbye.
    peer.assert_silent().await;
    report.ack.commit();
    assert_eq!(peer.delivered().await.1, 0);
    let unbind = peer.next().await.unwrap();
    assert_eq!(unbind.id(), CommandId::Unbind);
    peer.write(unbind.sequence_number(), CommandStatus::EsmeRok, Pdu::UnbindResp).await;
    within(draining).await.unwrap();
    assert!(peer.next().await.is_none());
    assert_eq!(connector.status().binds_up, 0);
    // Again is harmless.
    within(connector.drain()).await;
}

#[tokio::test]
async fn a_drain_ends_also_when_the_carrier_does_not_answer() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.settings.response_timeout_ms = 100;
    setup.tuning.goodbye_timeout = Duration::from_millis(50);
    let (connector, _inbox, mut peers) = setup.bound(&smsc).await;
    let sending = spawn_send(&connector, request(1, "Hi"));
    peers[0].submit().await;
    within(connector.drain()).await;
    assert_eq!(outcome(sending).await.code, "answer_timeout");
}
