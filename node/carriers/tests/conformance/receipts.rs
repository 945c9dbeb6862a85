//! Receipts and replies: committed before they are acknowledged, matched whatever the carrier does to the id.
use crate::support::*;
use carillon_proto::internal::{ReceiptIdFormat, ReceiptState};
use carillon_proto::public::Outcome;
use rusmpp::pdus::DeliverSm;
use rusmpp::tlvs::{MessageDeliveryRequestTlvValue as Tlv, TlvValue};
use rusmpp::types::{COctetString, OctetString};
use rusmpp::values::{EsmClass, MessageState};
use std::str::FromStr as _;
use std::time::Duration;

const ROK: u32 = 0;
const TRY_AGAIN: u32 = 0x64;

#[tokio::test]
async fn a_receipt_is_acknowledged_only_after_its_commit() {
    let (_smsc, _connector, mut inbox, mut peer) = one_bind().await;
    let sequence = peer.deliver_receipt("id:00AB sub:001 dlvrd:001 stat:DELIVRD err:000 text:Hi").await;
    let report = inbox.receipt().await;
    assert_eq!((report.state, report.code.as_str()), (ReceiptState::Delivered, "delivered"));
    assert_eq!((report.carrier_refs[0].as_str(), report.known), ("ab", None));
    peer.assert_silent().await;
    report.ack.commit();
    assert_eq!(peer.delivered().await, (sequence, ROK));
}

#[tokio::test]
async fn a_receipt_that_is_not_committed_must_come_again() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.tuning.receipt_ack_timeout = Some(Duration::from_millis(200));
    let (_connector, mut inbox, mut peers) = setup.bound(&smsc).await;
    let peer = &mut peers[0];
    let refused = peer.deliver_receipt("id:1 stat:DELIVRD").await;
    inbox.receipt().await.ack.refuse();
    assert_eq!(peer.delivered().await, (refused, TRY_AGAIN));
    let dropped = peer.deliver_receipt("id:1 stat:DELIVRD").await;
    drop(inbox.receipt().await);
    assert_eq!(peer.delivered().await, (dropped, TRY_AGAIN));
    let forgotten = peer.deliver_receipt("id:1 stat:DELIVRD").await;
    let held = inbox.receipt().await;
    assert_eq!(peer.delivered().await, (forgotten, TRY_AGAIN));
    // A commit that comes too late is not answered a second time.
    held.ack.commit();
    peer.assert_silent().await;
}

#[tokio::test]
async fn receipts_may_be_early_double_unknown_and_out_of_order() {
    let (_smsc, connector, mut inbox, mut peer) = one_bind().await;
    let sending = spawn_send(&connector, request(1, "Hi"));
    let (sequence, _) = peer.submit().await;
    // Before the answer, twice, then one for nothing that we know.
    for text in
        ["id:5 stat:DELIVRD", "id:5 stat:DELIVRD", "id:foreign stat:UNDELIV err:21", "id:5 stat:ENROUTE"]
    {
        peer.deliver_receipt(text).await;
    }
    peer.accept(sequence, "5").await;
    assert_eq!(outcome(sending).await.carrier_refs, ["5"]);
    let mut states = Vec::new();
    for _ in 0..4 {
        let report = inbox.receipt().await;
        states.push((report.carrier_refs[0].clone(), report.state));
        report.ack.commit();
        assert_eq!(peer.delivered().await.1, ROK);
    }
    let expected = [
        ("5", ReceiptState::Delivered),
        ("5", ReceiptState::Delivered),
        ("foreign", ReceiptState::Undelivered),
        ("5", ReceiptState::Enroute),
    ];
    assert_eq!(states, expected.map(|(id, state)| (id.to_owned(), state)));
}

#[tokio::test]
async fn ids_meet_whatever_base_case_and_padding_the_carrier_likes() {
    use ReceiptIdFormat::{Auto, DecimalThenHex, HexThenDecimal, Same};
    let cases = [
        (HexThenDecimal, "0000005F1A", "24346"),
        (DecimalThenHex, "0024346", "5f1A"),
        (Same, "00aBc", "ABC"),
        (Auto, "5F1A", "0000024346"),
    ];
    for (format, answered, reported) in cases {
        let smsc = Smsc::new().await;
        let mut setup = Setup::new(&smsc);
        setup.settings.receipt_id_format = format.into();
        let (connector, mut inbox, mut peers) = setup.bound(&smsc).await;
        let sending = spawn_send(&connector, request(1, "Hi"));
        let (sequence, _) = peers[0].submit().await;
        peers[0].accept(sequence, answered).await;
        let reference = outcome(sending).await.carrier_refs.remove(0);
        peers[0].deliver_receipt(&format!("id:{reported} stat:DELIVRD")).await;
        let report = inbox.receipt().await;
        assert!(
            report.carrier_refs.contains(&reference),
            "{format:?}: {reference} {:?}",
            report.carrier_refs
        );
    }
}

#[tokio::test]
async fn our_own_reference_finds_the_message_when_the_answer_was_lost() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.settings.response_timeout_ms = 50;
    let (connector, mut inbox, mut peers) = setup.bound(&smsc).await;
    let sending = spawn_send(&connector, request(42, "Hi"));
    let (_, submit) = peers[0].submit().await;
    assert_eq!(outcome(sending).await.outcome, Outcome::Ambiguous);
    let reference = submit.tlvs().iter().find_map(|tlv| match tlv.value() {
        Some(TlvValue::UserMessageReference(reference)) => Some(*reference),
        _ => None,
    });
    let with = |from: &str| {
        let mut deliver = receipt("");
        deliver.source_addr = COctetString::from_str(from).unwrap();
        deliver.set_tlvs(vec![
            Tlv::ReceiptedMessageId(COctetString::from_str("never-seen").unwrap()),
            Tlv::MessageState(MessageState::Delivered),
            Tlv::UserMessageReference(reference.unwrap()),
        ]);
        deliver
    };
    peers[0].deliver(with("12125550123")).await;
    let report = inbox.receipt().await;
    assert_eq!((report.known, report.state), (Some(message_id(42)), ReceiptState::Delivered));
    // From another number it proves nothing.
    peers[0].deliver(with("12125550199")).await;
    assert_eq!(inbox.receipt().await.known, None);
}

#[tokio::test]
async fn receipts_without_a_commit_stop_the_reading_but_lose_no_answer() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.settings.response_timeout_ms = 100;
    setup.tuning.receipts_unacked_max = 4;
    let (connector, mut inbox, mut peers) = setup.bound(&smsc).await;
    let peer = &mut peers[0];
    let sending = spawn_send(&connector, request(1, "Hi"));
    let (sequence, _) = peer.submit().await;
    for n in 0..6 {
        peer.deliver_receipt(&format!("id:{n} stat:DELIVRD")).await;
    }
    peer.accept(sequence, "1").await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(inbox.receipt().await);
    }
    // The answer is behind the fifth receipt; its time passes while nobody reads.
    let passed = tokio::time::timeout(Duration::from_millis(300), inbox.receipts.recv()).await;
    assert!(passed.is_err(), "a fifth receipt was read");
    assert!(!sending.is_finished());
    held.into_iter().for_each(|report| report.ack.commit());
    assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    for _ in 0..2 {
        inbox.receipt().await.ack.commit();
    }
    for _ in 0..6 {
        assert_eq!(peer.delivered().await.1, ROK);
    }
}

#[tokio::test]
async fn replies_and_unreadable_receipts_are_acknowledged_and_go_nowhere() {
    let (_smsc, _connector, mut inbox, mut peer) = one_bind().await;
    let text = |esm_class: u8, text: &str| {
        DeliverSm::builder()
            .esm_class(EsmClass::from(esm_class))
            .short_message(OctetString::from_slice(text.as_bytes()).unwrap())
            .build()
    };
    for deliver in [text(0x00, "STOP"), text(0x04, "stat:DELIVRD")] {
        let sequence = peer.deliver(deliver).await;
        assert_eq!(peer.delivered().await, (sequence, ROK));
    }
    // A body that ends too early: nothing to gain from sending it again.
    peer.raw(&[0, 0, 0, 18, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 99, 0, 1]).await;
    assert_eq!(peer.delivered().await, (99, 0x65));
    assert!(inbox.receipts.try_recv().is_err());
    peer.assert_silent().await;
}
