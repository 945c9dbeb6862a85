//! Receipts: id formats, order, copies, redelivery.

use rusmpp::{CommandId, CommandStatus};

use super::client::{Client, receipt_of, start_with, submit};

const NOW: &str = "[receipts]\ndelay = { min_ms = 0.0, median_ms = 0.0, p99_ms = 0.0 }\n";

#[tokio::test]
async fn ids_are_written_as_the_carrier_writes_them() {
    for (answer, receipt, width) in [
        ("decimal", "decimal", 0),
        ("hex_lower", "decimal", 0),
        ("hex_upper", "hex_lower", 0),
        ("hex_lower", "decimal", 20),
        ("decimal", "hex_upper", 16),
    ] {
        let ids = format!("[ids]\nanswer = \"{answer}\"\nreceipt = \"{receipt}\"\nreceipt_width = {width}\n");
        let smsc = start_with(&ids).await;
        let mut client = Client::bound(&smsc).await;
        let read = |format: &str, text: &str| {
            let radix = if format == "decimal" { 10 } else { 16 };
            if format == "hex_upper" {
                assert_eq!(text, text.to_uppercase());
            }
            u64::from_str_radix(text, radix).unwrap()
        };
        let (status, id) = client.submit("+12025550123", "hello").await;
        assert_eq!(status, 0);
        let got = client.take_receipt().await;
        assert_eq!(read(answer, &id), read(receipt, &got.id));
        assert_eq!(got.id.len(), got.id.len().max(width));
        assert_eq!(got.tlv_id.as_deref(), Some(got.id.as_str()));
        assert_eq!((got.state.as_str(), got.tlv_state, got.err.as_str()), ("DELIVRD", Some(2), "000"));
        assert_eq!((got.from.as_str(), got.esm_class), ("+12025550123", 0x04));
        assert_eq!(smsc.truth(0, 1).records[0].message_id, read(answer, &id));
    }
}

#[tokio::test]
async fn a_dead_number_is_refused_or_undelivered() {
    let smsc = start_with(
        "[[refuse]]\nsuffix = \"0000\"\nstatus = 11\n[[refuse]]\nprefix = \"1900\"\nerr = 6\n[receipts]\ntext_octets = 5",
    )
    .await;
    let mut client = Client::bound(&smsc).await;
    assert_eq!(client.submit("+12025550000", "landline").await, (0x0B, String::new()));
    assert_eq!(client.submit("+19005550123", "premium").await.0, 0);
    let got = client.take_receipt().await;
    assert_eq!((got.state.as_str(), got.err.as_str(), got.tlv_state), ("UNDELIV", "006", Some(5)));
    assert_eq!(got.echo, "premi");
}

#[tokio::test]
async fn a_receipt_can_come_twice_and_behind_its_successor() {
    let smsc = start_with("[receipts]\nduplicate = 1.0\nreordered = 1.0\n").await;
    let mut client = Client::bound(&smsc).await;
    client.submit("+12025550123", "hello").await;
    let mut states = Vec::new();
    for _ in 0..3 {
        let got = client.take_receipt().await;
        states.push((got.state, got.esm_class));
    }
    assert_eq!(states[0], ("DELIVRD".to_owned(), 0x04));
    states.sort();
    let wanted = [("DELIVRD", 0x04), ("DELIVRD", 0x04), ("ENROUTE", 0x20)];
    assert_eq!(states, wanted.map(|(state, class)| (state.to_owned(), class)));
    client.enquire().await;
    let record = &smsc.truth(0, 1).records[0];
    assert_eq!((record.receipts_sent, record.receipts_acked), (3, 3));
}

#[tokio::test]
async fn a_receipt_can_come_before_the_answer() {
    let smsc = start_with("[receipts]\nbefore_answer = 1.0\n").await;
    let mut client = Client::bound(&smsc).await;
    client.send(submit("+12025550123", "hello")).await;
    let first = client.next().await.unwrap();
    let second = client.next().await.unwrap();
    assert_eq!((first.id(), second.id()), (CommandId::DeliverSm, CommandId::SubmitSmResp));
}

#[tokio::test]
async fn a_receipt_not_asked_for_or_withheld_does_not_come() {
    use rusmpp::values::RegisteredDelivery;
    let smsc = start_with(&format!("{NOW}never = 1.0\n")).await;
    let mut client = Client::bound(&smsc).await;
    assert_eq!(client.submit("+12025550123", "never").await.0, 0);
    smsc.set_profile(carillon_loadtest::smsc::Profile::from_toml(NOW).unwrap()).unwrap();
    let mut silent = submit("+12025550123", "not asked for");
    silent.registered_delivery = RegisteredDelivery::from(0);
    let sequence = client.send(silent).await;
    assert_eq!(client.submitted(sequence).await.0, 0);
    let (_, id) = client.submit("+12025550123", "asked for").await;
    assert_eq!(client.take_receipt().await.id, id, "the only receipt is that of the last");
    client.enquire().await;
    assert_eq!((smsc.stats(0).receipts.planned, smsc.stats(0).receipts.pending), (1, 0));
}

#[tokio::test]
async fn a_receipt_not_acknowledged_is_sent_again_up_to_the_limit() {
    let smsc = start_with("[receipts]\nattempts_max = 3\nack_timeout_ms = 500\nretry_delay_ms = 1\n").await;
    let mut client = Client::bound(&smsc).await;
    client.submit("+12025550123", "hello").await;
    // Silence, then a refusal, then silence again: three sendings and no more.
    let first = client.receipt().await;
    let second = client.receipt().await;
    client.ack(second.sequence, CommandStatus::EsmeRxTAppn).await;
    let third = client.receipt().await;
    assert!(first.id == second.id && second.id == third.id);
    let until_given_up = async {
        while smsc.stats(0).receipts.given_up == 0 {
            client.enquire().await;
        }
    };
    super::client::within(until_given_up).await;
    let receipts = smsc.stats(0).receipts;
    assert_eq!((receipts.sent, receipts.sent_again, receipts.pending), (3, 2, 0));
    assert_eq!((receipts.refused, receipts.timed_out), (1, 2));
}

#[tokio::test]
async fn a_receipt_outlives_its_bind() {
    let smsc = start_with(NOW).await;
    let mut first = Client::bound(&smsc).await;
    let (_, id) = first.submit("+12025550123", "hello").await;
    assert_eq!(first.receipt().await.id, id);
    // Another bind of the account takes over what the first did not acknowledge.
    let mut second = Client::bound(&smsc).await;
    drop(first);
    let again = second.receipt().await;
    assert_eq!(again.id, id);
    // With no bind left it waits for the next one.
    drop(second);
    let mut third = Client::bound(&smsc).await;
    assert_eq!(third.take_receipt().await.id, id);
    third.enquire().await;
    let receipts = smsc.stats(0).receipts;
    assert_eq!((receipts.sent, receipts.acked, receipts.pending), (3, 1, 0));
}

#[tokio::test]
async fn receipts_are_shared_among_the_binds_and_kept_within_the_window() {
    let smsc = start_with(&format!("{NOW}window = 4\n")).await;
    let mut sender = Client::connect(smsc.smpp_addr()).await;
    assert_eq!(sender.bind(CommandId::BindTransmitter, "carillon", "secret").await, 0);
    let mut receivers = [Client::bound(&smsc).await, Client::bound(&smsc).await];
    for n in 0..20 {
        assert_eq!(sender.submit("+12025550123", &format!("hello {n}")).await.0, 0);
    }
    // Nobody acknowledged: each bind holds its window full and no more.
    assert_eq!(smsc.stats(0).receipts.sent, 8);
    let mut got = 0;
    for receiver in &mut receivers {
        receiver.enquire().await;
        let mut waiting = Vec::new();
        for _ in 0..4 {
            waiting.push(receipt_of(&receiver.want(|c| c.id() == CommandId::DeliverSm).await));
        }
        for receipt in waiting {
            receiver.ack(receipt.sequence, CommandStatus::EsmeRok).await;
            got += 1;
        }
    }
    while got < 20 {
        for receiver in &mut receivers {
            receiver.enquire().await;
        }
        let (left, right) = receivers.split_at_mut(1);
        let next = tokio::select! {
            receipt = left[0].receipt() => (0, receipt.sequence),
            receipt = right[0].receipt() => (1, receipt.sequence),
        };
        receivers[next.0].ack(next.1, CommandStatus::EsmeRok).await;
        got += 1;
    }
    for receiver in &mut receivers {
        receiver.enquire().await;
    }
    assert_eq!((smsc.stats(0).receipts.acked, smsc.stats(0).receipts.sent_again), (20, 0));
}
