//! What the carrier's answers become.
use crate::support::*;
use carillon_carriers::{Clear, Connector as _, OpenGate, SendRequest};
use carillon_proto::public::Outcome;
use rusmpp::{CommandStatus, Pdu};
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test]
async fn an_accepted_message_has_its_canonical_reference() {
    let (_smsc, connector, _inbox, mut peer) = one_bind().await;
    let sending = spawn_send(&connector, request(1, "Your visit is at nine"));
    let (sequence, submit) = peer.submit().await;
    assert_eq!(submit.destination_addr.as_str(), "12125550123");
    assert_eq!(submit.source_addr.as_str(), "12025550100");
    assert_eq!((u8::from(submit.registered_delivery), u8::from(submit.esm_class)), (1, 0));
    assert_eq!((u8::from(submit.data_coding), text_of(&submit)), (0, "Your visit is at nine".into()));
    assert_eq!(submit.validity_period.as_str(), "000000010000000R");
    peer.accept(sequence, "0000AB12").await;
    let outcome = outcome(sending).await;
    assert_eq!(
        (outcome.outcome, outcome.code.as_str(), outcome.segments),
        (Outcome::Accepted, "0x00000000", 1)
    );
    assert_eq!(outcome.carrier_refs, ["ab12"]);
}

/// The end of the recipient's hours or the expiry, in the carrier's words.
#[tokio::test]
async fn a_message_says_until_when_the_carrier_may_try_and_under_which_sender() {
    let (_smsc, connector, _inbox, mut peer) = one_bind().await;
    for (n, validity_s, sender, expected, source) in [
        (1, 754, None, "000000001234000R", ("12025550100", 1)),
        (2, 90_061, Some("+12125550101"), "000001010101000R", ("12125550101", 1)),
        (3, 3_600, Some("88022"), "000000010000000R", ("88022", 3)),
        (4, 3_600, Some("CLINIC"), "000000010000000R", ("CLINIC", 5)),
    ] {
        let validity = Some(Duration::from_secs(validity_s));
        let sender = sender.map(str::to_owned);
        let sending = spawn_send(&connector, SendRequest { validity, sender, ..request(n, "Hi") });
        let (sequence, submit) = peer.submit().await;
        assert_eq!(submit.validity_period.as_str(), expected);
        assert_eq!((submit.source_addr.as_str(), u8::from(submit.source_addr_ton)), source);
        peer.accept(sequence, &format!("{n}")).await;
        assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    }
}

#[tokio::test]
async fn each_refusal_has_its_outcome_and_code() {
    let (_smsc, connector, _inbox, mut peer) = one_bind().await;
    let cases = [
        (0x0b, Outcome::RejectedNumber, "0x0000000b"),
        (0x01, Outcome::RejectedContent, "0x00000001"),
        (0x08, Outcome::Transient, "0x00000008"),
        (0x0a, Outcome::LaneBroken, "0x0000000a"),
        (0x45, Outcome::Transient, "0x00000045"),
        (0x0411, Outcome::Transient, "0x00000411"),
    ];
    for (status, expected, code) in cases {
        let sending = spawn_send(&connector, request(1, "Hi"));
        let (sequence, _) = peer.submit().await;
        peer.refuse(sequence, status).await;
        let outcome = outcome(sending).await;
        assert_eq!((outcome.outcome, outcome.code.as_str()), (expected, code));
        assert_eq!((outcome.carrier_refs.len(), outcome.retry_after), (0, None));
    }
}

#[tokio::test]
async fn a_generic_nack_breaks_the_lane_and_keeps_the_message() {
    let (_smsc, connector, _inbox, mut peer) = one_bind().await;
    let sending = spawn_send(&connector, request(1, "Hi"));
    let (sequence, _) = peer.submit().await;
    peer.write(sequence, CommandStatus::EsmeRinvcmdlen, Pdu::GenericNack).await;
    let outcome = outcome(sending).await;
    assert_eq!((outcome.outcome, outcome.code.as_str()), (Outcome::LaneBroken, "nack_0x00000002"));
}

#[tokio::test]
async fn an_answer_whose_body_cannot_be_read_still_counts() {
    let (_smsc, connector, _inbox, mut peer) = one_bind().await;
    let sending = spawn_send(&connector, request(1, "Hi"));
    let (sequence, _) = peer.submit().await;
    // ROK with an id that is not terminated.
    let mut octets = vec![0, 0, 0, 18, 0x80, 0, 0, 4, 0, 0, 0, 0];
    octets.extend(sequence.to_be_bytes());
    octets.extend(b"ab");
    peer.raw(&octets).await;
    let accepted = outcome(sending).await;
    assert_eq!((accepted.outcome, accepted.carrier_refs.len()), (Outcome::Accepted, 0));
    // And the session goes on.
    let sending = spawn_send(&connector, request(2, "Hi"));
    let (sequence, _) = peer.submit().await;
    peer.accept(sequence, "2").await;
    assert_eq!(outcome(sending).await.carrier_refs, ["2"]);
}

#[tokio::test]
async fn what_cannot_travel_never_reaches_the_socket() {
    let (_smsc, connector, _inbox, mut peer) = one_bind().await;
    let bad_number = SendRequest { recipient: Clear::new("911x".into()), ..request(1, "Hi") };
    let outcome = within(connector.send(bad_number, &OpenGate)).await;
    assert_eq!((outcome.outcome, outcome.code.as_str()), (Outcome::RejectedNumber, "bad_number"));
    let outcome = within(connector.send(request(2, &"a".repeat(153 * 256)), &OpenGate)).await;
    assert_eq!((outcome.outcome, outcome.code.as_str()), (Outcome::RejectedContent, "too_many_parts"));
    let passed = SendRequest { send_by: Instant::now() - Duration::from_millis(1), ..request(3, "Hi") };
    let outcome = within(connector.send(passed, &OpenGate)).await;
    assert_eq!((outcome.outcome, outcome.code.as_str()), (Outcome::NotSent, "send_by_passed"));
    assert_eq!(outcome.segments, 0);
    peer.assert_silent().await;
}

#[tokio::test]
async fn a_long_text_travels_in_parts_on_one_bind() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.settings.binds_per_node = 2;
    let (connector, _inbox, mut peers) = setup.bound(&smsc).await;
    let body = format!("{}{}{}", "a".repeat(153), "b".repeat(153), "c".repeat(10));
    let sending = spawn_send(&connector, request(1, &body));
    let mut other = peers.pop().unwrap();
    let mut peer = peers.pop().unwrap();
    let (first, second) = tokio::select! {
        first = peer.submit() => (first, None),
        first = other.submit() => (first, Some(())),
    };
    if second.is_some() {
        std::mem::swap(&mut peer, &mut other);
    }
    let mut headers = Vec::new();
    let (mut sequence, mut submit) = first;
    for part in 0..3 {
        // The next part leaves only after the answer to this one.
        peer.assert_silent().await;
        assert_eq!(u8::from(submit.esm_class), 0x40);
        let octets = submit.short_message().as_ref().to_vec();
        headers.push(octets[..6].to_vec());
        assert!(octets[6..].iter().all(|b| *b == b"abc"[part]), "part {part}");
        peer.accept(sequence, &format!("id-{part}")).await;
        if part < 2 {
            (sequence, submit) = peer.submit().await;
        }
    }
    let reference = headers[0][3];
    assert_eq!(headers, [[5, 0, 3, reference, 3, 1], [5, 0, 3, reference, 3, 2], [5, 0, 3, reference, 3, 3]]);
    let outcome = outcome(sending).await;
    assert_eq!((outcome.outcome, outcome.segments), (Outcome::Accepted, 3));
    assert_eq!(outcome.carrier_refs, ["id-0", "id-1", "id-2"]);
    other.assert_silent().await;
}

fn two_parts() -> String {
    "p".repeat(200)
}

#[tokio::test]
async fn a_refused_first_part_is_the_outcome_of_the_message() {
    let (_smsc, connector, _inbox, mut peer) = one_bind().await;
    let sending = spawn_send(&connector, request(1, &two_parts()));
    let (sequence, _) = peer.submit().await;
    peer.refuse(sequence, 0x0b).await;
    let outcome = outcome(sending).await;
    assert_eq!((outcome.outcome, outcome.segments), (Outcome::RejectedNumber, 1));
    peer.assert_silent().await;
}

#[tokio::test]
async fn a_throttled_later_part_is_sent_again_after_the_pause() {
    let (_smsc, connector, _inbox, mut peer) = one_bind().await;
    let sending = spawn_send(&connector, request(1, &two_parts()));
    let (sequence, _) = peer.submit().await;
    peer.accept(sequence, "1").await;
    let (sequence, throttled) = peer.submit().await;
    let refused_at = Instant::now();
    peer.refuse(sequence, 0x58).await;
    let (sequence, again) = peer.submit().await;
    assert!(refused_at.elapsed() >= Duration::from_millis(100));
    assert!(throttled.short_message() == again.short_message());
    peer.accept(sequence, "2").await;
    let outcome = outcome(sending).await;
    assert_eq!((outcome.outcome, outcome.segments), (Outcome::Accepted, 3));
    assert_eq!(outcome.carrier_refs, ["1", "2"]);
}

#[tokio::test]
async fn a_half_sent_message_waits_for_a_pause_that_is_longer_than_a_message_may_wait_to_begin() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.settings.throttle_pause_ms = 1_000;
    let (connector, _inbox, mut peers) = setup.bound(&smsc).await;
    let mut peer = peers.remove(0);
    let start_by = Instant::now() + Duration::from_millis(900);
    let sending = spawn_send(&connector, SendRequest { start_by, ..request(1, &two_parts()) });
    let (sequence, _) = peer.submit().await;
    peer.accept(sequence, "1").await;
    let (sequence, _) = peer.submit().await;
    peer.refuse(sequence, 0x58).await;
    let (sequence, _) = peer.submit().await;
    assert!(Instant::now() > start_by);
    peer.accept(sequence, "2").await;
    let half = outcome(sending).await;
    assert_eq!((half.outcome, half.carrier_refs), (Outcome::Accepted, vec!["1".to_owned(), "2".to_owned()]));
    let passed = SendRequest { start_by: Instant::now(), ..request(2, &two_parts()) };
    let passed = outcome(spawn_send(&connector, passed)).await;
    assert_eq!((passed.outcome, passed.code.as_str()), (Outcome::NotSent, "send_by_passed"));
    peer.assert_silent().await;
}

#[tokio::test]
async fn a_later_part_throttled_beyond_send_by_is_ambiguous() {
    let (_smsc, connector, _inbox, mut peer) = one_bind().await;
    let send_by = Instant::now() + Duration::from_millis(90);
    let sending = spawn_send(&connector, SendRequest { send_by, ..request(1, &two_parts()) });
    let (sequence, _) = peer.submit().await;
    peer.accept(sequence, "1").await;
    let (sequence, _) = peer.submit().await;
    peer.refuse(sequence, 0x58).await;
    let outcome = outcome(sending).await;
    assert_eq!((outcome.outcome, outcome.code.as_str()), (Outcome::Ambiguous, "paused"));
    assert_eq!(outcome.carrier_refs, ["1"]);
    peer.assert_silent().await;
}

#[tokio::test]
async fn a_refused_later_part_is_ambiguous_with_the_ids_of_the_others() {
    let (_smsc, connector, _inbox, mut peer) = one_bind().await;
    let sending = spawn_send(&connector, request(1, &two_parts()));
    let (sequence, _) = peer.submit().await;
    peer.accept(sequence, "77").await;
    let (sequence, _) = peer.submit().await;
    peer.refuse(sequence, 0x08).await;
    let outcome = outcome(sending).await;
    assert_eq!((outcome.outcome, outcome.code.as_str()), (Outcome::Ambiguous, "0x00000008"));
    assert_eq!((outcome.carrier_refs, outcome.segments), (vec!["77".to_owned()], 2));
}

#[tokio::test]
async fn a_connection_lost_between_parts_is_ambiguous() {
    let (_smsc, connector, _inbox, mut peer) = one_bind().await;
    let sending = spawn_send(&connector, request(1, &two_parts()));
    let (sequence, _) = peer.submit().await;
    peer.accept(sequence, "1").await;
    peer.submit().await;
    drop(peer);
    let outcome = outcome(sending).await;
    assert_eq!((outcome.outcome, outcome.code.as_str()), (Outcome::Ambiguous, "connection_lost"));
    assert_eq!((outcome.carrier_refs, outcome.segments), (vec!["1".to_owned()], 2));
}
