//! What the carrier's faults become: ambiguous exactly when it may have the message.
use crate::support::*;
use carillon_carriers::smpp::SmppConnector;
use carillon_carriers::{Clear, Connector as _, ConnectorState, OpenGate, SendRequest};
use carillon_proto::public::Outcome;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rusmpp::pdus::SubmitSm;
use rusmpp::{CommandId, CommandStatus, Pdu};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test]
async fn no_answer_is_ambiguous_and_a_late_one_is_reported() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.settings.response_timeout_ms = 100;
    let (connector, mut inbox, mut peers) = setup.bound(&smsc).await;
    let sending = spawn_send(&connector, request(9, "Hi"));
    let (sequence, _) = peers[0].submit().await;
    let timed_out = outcome(sending).await;
    assert_eq!((timed_out.outcome, timed_out.code.as_str()), (Outcome::Ambiguous, "answer_timeout"));
    assert_eq!(timed_out.segments, 1);
    peers[0].accept(sequence, "0A").await;
    let late = inbox.late().await;
    assert_eq!((late.message_id, late.attempt_no, late.part, late.parts), (message_id(9), 1, 0, 1));
    assert_eq!((late.outcome, late.carrier_ref.as_deref()), (Outcome::Accepted, Some("a")));
    // The session and its window are as good as before.
    let sending = spawn_send(&connector, request(10, "Hi"));
    let (sequence, _) = peers[0].submit().await;
    peers[0].accept(sequence, "b").await;
    assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
}

#[tokio::test]
async fn the_time_of_an_answer_begins_with_its_submit_however_long_the_bind_was_idle() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.settings.response_timeout_ms = 300;
    let (connector, _inbox, mut peers) = setup.bound(&smsc).await;
    let idle = tokio::time::timeout(Duration::from_millis(400), peers[0].next()).await;
    assert!(idle.is_err(), "the bind was not idle");
    let sending = spawn_send(&connector, request(1, "Hi"));
    let (sequence, _) = peers[0].submit().await;
    peers[0].assert_silent().await;
    peers[0].accept(sequence, "1").await;
    assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
}

#[tokio::test]
async fn an_answer_to_nobody_is_reported_too() {
    let (_smsc, connector, mut inbox, mut peer) = one_bind().await;
    let sending = spawn_send(&connector, request(9, "Hi"));
    let (sequence, _) = peer.submit().await;
    sending.abort();
    assert!(within(sending).await.unwrap_err().is_cancelled());
    peer.refuse(sequence, 0x0b).await;
    let late = inbox.late().await;
    assert_eq!((late.message_id, late.outcome), (message_id(9), Outcome::RejectedNumber));
}

#[tokio::test]
async fn a_lost_connection_makes_the_unanswered_ones_ambiguous() {
    let (smsc, connector, _inbox, mut peer) = one_bind().await;
    let sendings: Vec<_> = (0..3).map(|n| spawn_send(&connector, request(n, "Hi"))).collect();
    let (first, _) = peer.submit().await;
    peer.submit().await;
    peer.submit().await;
    peer.accept(first, "1").await;
    drop(peer);
    let mut outcomes = Vec::new();
    for sending in sendings {
        let outcome = outcome(sending).await;
        outcomes.push((outcome.outcome, outcome.code));
    }
    outcomes.sort();
    let ambiguous = (Outcome::Ambiguous, "connection_lost".to_owned());
    assert_eq!(outcomes, [(Outcome::Accepted, "0x00000000".into()), ambiguous.clone(), ambiguous]);
    // And it comes back.
    let mut peer = smsc.bound().await;
    let sending = spawn_send(&connector, request(4, "Hi"));
    let (sequence, _) = peer.submit().await;
    peer.accept(sequence, "4").await;
    assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
}

/// A connector to a carrier that buffers little, with room for all messages in its window.
async fn with_small_buffers(messages: u64) -> (Arc<SmppConnector>, Peer) {
    let smsc = Smsc::with_small_buffers();
    let mut setup = Setup::new(&smsc);
    setup.settings.window = messages as u32;
    setup.tuning.send_buffer_octets = 4096;
    let (connector, _inbox, mut peers) = setup.bound(&smsc).await;
    (connector, peers.remove(0))
}

fn numbered(n: u64) -> String {
    format!("{n:06}{}", "x".repeat(150))
}

fn number_of(submit: &SubmitSm) -> u64 {
    text_of(submit)[..6].parse().unwrap()
}

/// A carrier that stops reading: the kernel's buffers fill up, and what is left in ours when `send_by` comes must be
/// given back as proven unsent. The proof is held against what the carrier reads in the end.
#[tokio::test]
async fn unsent_means_that_the_carrier_never_sees_it() {
    const MESSAGES: u64 = 2_000;
    let (connector, mut peer) = with_small_buffers(MESSAGES).await;
    let send_by = Instant::now() + Duration::from_millis(500);
    let mut sendings: FuturesUnordered<_> = (0..MESSAGES)
        .map(|n| {
            let connector = connector.clone();
            tokio::spawn(async move {
                let request = SendRequest { send_by, ..request(n, &numbered(n)) };
                (n, connector.send(request, &OpenGate).await)
            })
        })
        .collect();
    // The carrier wakes up only after the first proof was given.
    let (first, outcome) = within(sendings.next()).await.unwrap().unwrap();
    assert_eq!((outcome.outcome, outcome.code.as_str()), (Outcome::NotSent, "send_by_passed"));
    let carrier = tokio::spawn(async move {
        let mut seen = BTreeSet::new();
        while let Some((sequence, submit)) = peer.submit_or_end().await {
            assert!(seen.insert(number_of(&submit)), "twice");
            peer.accept(sequence, "1").await;
        }
        seen
    });
    let (mut accepted, mut unsent) = (BTreeSet::new(), BTreeSet::from([first]));
    while let Some(sent) = within(sendings.next()).await {
        let (n, outcome) = sent.unwrap();
        match (outcome.outcome, outcome.code.as_str()) {
            (Outcome::Accepted, _) => accepted.insert(n),
            (Outcome::NotSent, "send_by_passed") => unsent.insert(n),
            other => panic!("{n}: {other:?}"),
        };
    }
    drop(connector);
    let seen = within(carrier).await.unwrap();
    assert!(!accepted.is_empty(), "the carrier saw nothing");
    assert_eq!(seen, accepted);
    assert!(seen.is_disjoint(&unsent));
}

/// The same when the connection breaks: unsent or ambiguous, never unsent and seen.
#[tokio::test]
async fn a_break_in_the_middle_tells_unsent_from_ambiguous() {
    const MESSAGES: u64 = 2_000;
    let (connector, mut peer) = with_small_buffers(MESSAGES).await;
    let sendings: Vec<_> = (0..MESSAGES).map(|n| spawn_send(&connector, request(n, &numbered(n)))).collect();
    let mut seen = BTreeSet::new();
    for _ in 0..100 {
        seen.insert(number_of(&peer.submit().await.1));
    }
    drop(peer);
    let (mut ambiguous, mut unsent) = (BTreeSet::new(), BTreeSet::new());
    for (n, sending) in (0..).zip(sendings) {
        let outcome = outcome(sending).await;
        assert_eq!(outcome.code, "connection_lost");
        match outcome.outcome {
            Outcome::Ambiguous => ambiguous.insert(n),
            Outcome::NotSent => unsent.insert(n),
            other => panic!("{n}: {other:?}"),
        };
    }
    assert!(!unsent.is_empty(), "everything fitted into the buffers");
    assert!(seen.is_subset(&ambiguous));
}

#[tokio::test]
async fn a_carrier_that_stops_reading_is_replaced() {
    let smsc = Smsc::with_small_buffers();
    let mut setup = Setup::new(&smsc);
    setup.settings.window = 2_000;
    setup.settings.response_timeout_ms = 200;
    setup.tuning.send_buffer_octets = 4096;
    let (connector, _inbox, peers) = setup.bound(&smsc).await;
    let sendings: Vec<_> = (0..2_000).map(|n| spawn_send(&connector, request(n, &numbered(n)))).collect();
    for sending in sendings {
        let outcome = outcome(sending).await.outcome;
        assert!(matches!(outcome, Outcome::Ambiguous | Outcome::NotSent), "{outcome:?}");
    }
    let _peer = smsc.bound().await;
    within(connector.bound(1)).await;
    drop(peers);
}

#[tokio::test]
async fn without_a_bind_nothing_is_sent() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.tuning.reconnect_base = Duration::from_secs(3600);
    setup.tuning.reconnect_max = Duration::from_secs(3600);
    let (connector, _inbox) = setup.start();
    // Closed before a single PDU was read.
    drop(smsc.accept().await);
    let outcome = within(connector.send(request(1, "Hi"), &OpenGate)).await;
    assert_eq!((outcome.outcome, outcome.code.as_str()), (Outcome::NotSent, "not_connected"));
    // It says when the next connect is, and does not wait for `send_by` without hope.
    assert!(outcome.retry_after.unwrap() > Duration::from_secs(1000));
    assert_eq!(connector.status().state, ConnectorState::Down);
}

#[tokio::test]
async fn a_message_waits_for_the_bind_as_long_as_it_may() {
    let smsc = Smsc::new().await;
    let (connector, _inbox) = Setup::new(&smsc).start();
    let send_by = Instant::now() + Duration::from_millis(50);
    let waiting = SendRequest { send_by, ..request(1, "Hi") };
    let in_vain = within(connector.send(waiting, &OpenGate)).await;
    assert_eq!((in_vain.outcome, in_vain.code.as_str()), (Outcome::NotSent, "not_connected"));
    let sending = spawn_send(&connector, request(2, "Hi"));
    let mut peer = smsc.bound().await;
    let (sequence, _) = peer.submit().await;
    peer.accept(sequence, "1").await;
    assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
}

#[tokio::test]
async fn a_wrong_password_breaks_the_lane_until_it_is_right() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.tuning.broken_retry = Duration::from_millis(300);
    let (connector, _inbox) = setup.start();
    let mut peer = smsc.accept().await;
    let waiting = spawn_send(&connector, request(1, "Hi"));
    peer.answer_bind(CommandStatus::EsmeRinvpaswd).await;
    let broken = outcome(waiting).await;
    assert_eq!((broken.outcome, broken.code.as_str()), (Outcome::LaneBroken, "0x0000000e"));
    assert!(broken.retry_after.is_some_and(|after| after <= Duration::from_millis(300)));
    assert_eq!(connector.status().state, ConnectorState::Broken { status: 0x0e });
    let broken = within(connector.send(request(2, "Hi"), &OpenGate)).await;
    assert_eq!(broken.outcome, Outcome::LaneBroken);
    let _peer = smsc.bound().await;
    within(connector.bound(1)).await;
    assert_eq!(connector.status().state, ConnectorState::Up);
}

#[tokio::test]
async fn bind_failures_count_as_credentials_only_when_they_repeat() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.tuning.broken_retry = Duration::from_secs(3600);
    let (connector, _inbox) = setup.start();
    for _ in 0..5 {
        assert_eq!(connector.status().state, ConnectorState::Down);
        smsc.accept().await.answer_bind(CommandStatus::EsmeRbindfail).await;
    }
    within(connector.until(|status| status.state == ConnectorState::Broken { status: 0x0d })).await;
}

#[tokio::test]
async fn a_slow_bind_is_given_up_and_tried_again() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.settings.response_timeout_ms = 50;
    let (connector, _inbox) = setup.start();
    let mut slow = smsc.accept().await;
    assert_eq!(slow.next().await.unwrap().id(), CommandId::BindTransceiver);
    assert!(slow.next().await.is_none());
    assert_eq!(connector.status().binds_up, 0);
    let _peer = smsc.bound().await;
    within(connector.bound(1)).await;
}

#[tokio::test]
async fn an_idle_bind_is_asked_and_a_dead_one_replaced() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.settings.enquire_link_ms = 30;
    let (connector, _inbox, mut peers) = setup.bound(&smsc).await;
    let mut peer = peers.remove(0);
    for _ in 0..3 {
        let enquire = peer.next().await.unwrap();
        assert_eq!(enquire.id(), CommandId::EnquireLink);
        peer.write(enquire.sequence_number(), CommandStatus::EsmeRok, Pdu::EnquireLinkResp).await;
    }
    assert_eq!(connector.status().binds_up, 1);
    // From here on it is silent: one more question, then the end and a new bind.
    assert_eq!(peer.next().await.unwrap().id(), CommandId::EnquireLink);
    assert!(peer.next().await.is_none());
    let _peer = smsc.bound().await;
    within(connector.bound(1)).await;
}

#[tokio::test]
async fn the_carrier_may_unbind() {
    let (smsc, connector, _inbox, mut peer) = one_bind().await;
    let sending = spawn_send(&connector, request(1, "Hi"));
    let (sequence, _) = peer.submit().await;
    peer.write(77, CommandStatus::EsmeRok, Pdu::Unbind).await;
    assert_eq!(peer.next().await.map(|c| (c.id(), c.sequence_number())), Some((CommandId::UnbindResp, 77)));
    // An answer after the goodbye still counts.
    peer.accept(sequence, "1").await;
    assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    assert!(peer.next().await.is_none());
    let _peer = smsc.bound().await;
    within(connector.bound(1)).await;
}

#[tokio::test]
async fn a_session_that_is_not_bound_is_replaced() {
    let (smsc, connector, _inbox, mut peer) = one_bind().await;
    let sending = spawn_send(&connector, request(1, "Hi"));
    let (sequence, _) = peer.submit().await;
    peer.refuse(sequence, 0x04).await;
    assert_eq!(outcome(sending).await.outcome, Outcome::Transient);
    assert!(peer.next().await.is_none());
    let _peer = smsc.bound().await;
    within(connector.bound(1)).await;
}

#[tokio::test]
async fn requests_that_we_do_not_know_are_refused_and_nonsense_ends_the_session() {
    let (smsc, connector, _inbox, mut peer) = one_bind().await;
    // query_sm, which only we may send, and a command that does not exist.
    peer.raw(&[0, 0, 0, 16, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 5]).await;
    peer.raw(&[0, 0, 0, 16, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 6]).await;
    for sequence in [5, 6] {
        let nack = peer.next().await.unwrap();
        assert_eq!((nack.id(), nack.sequence_number()), (CommandId::GenericNack, sequence));
        assert_eq!(nack.status(), CommandStatus::EsmeRinvcmdid);
    }
    // An answer that fits nothing is counted, not believed.
    peer.accept(4711, "1").await;
    peer.assert_silent().await;
    peer.raw(&[0xff; 16]).await;
    assert!(peer.next().await.is_none());
    let _peer = smsc.bound().await;
    within(connector.bound(1)).await;
}

#[tokio::test]
async fn nothing_that_is_printed_holds_plaintext() {
    let request = SendRequest { recipient: Clear::new("+12125550123".into()), ..request(1, "Hello Ada") };
    let text = format!("{request:?}");
    assert!(!text.contains("2125550123") && !text.contains("Ada"), "{text}");
}
