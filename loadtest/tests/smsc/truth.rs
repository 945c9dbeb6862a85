//! The ground truth: long messages, copies, the file, the control plane.

use carillon_loadtest::smsc::{Line, Profile, Stats, TruthKey, TruthPage, read_journal, truth_key};
use rusmpp::tlvs::MessageSubmissionRequestTlvValue as Tlv;

use super::client::{Client, http, part, start, start_with, submit};

const TO: &str = "+12025550123";

fn key_of(text: &str) -> u128 {
    truth_key(&TruthKey::default(), TO, text)
}

#[tokio::test]
async fn a_long_message_counts_once_when_all_its_parts_are_accepted() {
    let smsc = start(|_| {}).await;
    let mut client = Client::bound(&smsc).await;
    let text = "The quick brown fox {jumps}. ".repeat(12);
    let octets = text.replace('{', "\u{1b}(").replace('}', "\u{1b})").into_bytes();
    let chunks: Vec<&[u8]> = octets.chunks(153).collect();
    assert_eq!(chunks.len(), 3);
    // In the order 3, 1, 2.
    for (at, done) in [(2, 0), (0, 0), (1, 1)] {
        let header = [5, 0, 3, 42, 3, at as u8 + 1];
        let sequence = client.send(part(TO, 0x40, 0, &[&header, chunks[at]].concat())).await;
        assert_eq!(client.submitted(sequence).await.0, 0);
        assert_eq!(smsc.stats(0).messages.messages, done);
    }
    assert_eq!(smsc.copies_of(key_of(&text)), 1);
    let records = smsc.truth(0, 9).records;
    assert_eq!(records.iter().filter(|record| record.completes).count(), 1);
    assert_eq!(records[2].message, Some(key_of(&text)));
    assert_eq!((records[0].reference, records[0].total, records[0].number), (42, 3, 3));
    // The contract counts segments.
    assert_eq!(smsc.stats(0).accounts[0].arrivals, 3);
    for _ in 0..3 {
        client.take_receipt().await;
    }
}

#[tokio::test]
async fn one_text_has_one_key_in_every_encoding_and_numbering() {
    let smsc = start(|_| {}).await;
    let mut client = Client::bound(&smsc).await;
    let text = "Caf\u{e9} at 5 \u{2713}".to_owned();
    let utf16 = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_be_bytes).collect() };
    let (first, second) = text.split_at(8);
    // A 16-bit reference in a header, and the sar TLVs.
    for (number, piece) in [(1, first), (2, second)] {
        let octets = [vec![6, 8, 4, 1, 2, 2, number], utf16(piece)].concat();
        client.put(part(TO, 0x40, 8, &octets));
    }
    for (number, piece) in [(1, first), (2, second)] {
        let mut pdu = part(TO, 0, 8, &utf16(piece));
        pdu.push_tlv(Tlv::SarMsgRefNum(77));
        pdu.push_tlv(Tlv::SarTotalSegments(2));
        pdu.push_tlv(Tlv::SarSegmentSeqnum(number));
        client.put(pdu);
    }
    // message_payload instead of short_message.
    let mut pdu = part(TO, 0, 8, &[]);
    let payload = rusmpp::types::AnyOctetString::from_slice(&utf16(&text));
    pdu.push_tlv(Tlv::MessagePayload(payload.into()));
    client.put(pdu);
    client.enquire().await;
    assert_eq!(smsc.copies_of(key_of(&text)), 3);
    assert_eq!(smsc.copies_of(key_of("Cafe")), 0);
    for octets in [b"Caf\x05".to_vec(), b"Caf\x05".to_vec()] {
        client.put(part("12025550123", 0, 0, &octets));
    }
    client.put(part(TO, 0, 3, b"Caf\xe9"));
    client.enquire().await;
    assert_eq!(smsc.copies_of(key_of("Caf\u{e9}")), 3);
}

#[tokio::test]
async fn a_message_accepted_twice_is_reported_and_a_refused_copy_is_not() {
    let smsc = start_with("[faults]\nlost_accepted = 1.0").await;
    let mut client = Client::bound(&smsc).await;
    client.put(submit(TO, "sent blindly again"));
    client.put(submit(TO, "sent once"));
    client.enquire().await;
    smsc.set_profile(Profile::from_toml("[faults]\nthrottled = 1.0").unwrap()).unwrap();
    assert_eq!(client.submit(TO, "sent once").await.0, 0x58);
    smsc.set_profile(Profile::default()).unwrap();
    assert_eq!(client.submit(TO, "sent blindly again").await.0, 0);
    let messages = smsc.stats(0).messages;
    assert_eq!((messages.messages, messages.distinct), (3, 2));
    assert_eq!((messages.duplicated, messages.extra_copies), (1, 1));
    assert_eq!((smsc.copies_of(key_of("sent blindly again")), smsc.copies_of(key_of("sent once"))), (2, 1));
}

#[tokio::test]
async fn a_full_ground_truth_refuses_instead_of_forgetting() {
    let smsc = start(|config| config.records_max = 2).await;
    let mut client = Client::bound(&smsc).await;
    let mut statuses = Vec::new();
    for n in 0..3 {
        statuses.push(client.submit(TO, &format!("hello {n}")).await.0);
    }
    assert_eq!((statuses, smsc.stats(0).unrecorded), (vec![0, 0, 0x14], 1));
    let (status, _) = http(&smsc, "POST", "/reset", "").await;
    assert_eq!((status, client.submit(TO, "hello 3").await.0), (200, 0));
    let stats = smsc.stats(0);
    assert_eq!((stats.generation, stats.submits, stats.accounts[0].arrivals), (1, 1, 1));
}

#[tokio::test]
async fn the_file_holds_everything_but_no_number_and_no_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("truth.jsonl");
    let config =
        "[receipts]\ntext_octets = 20\n[answer_latency]\nmin_ms = 1.0\nmedian_ms = 1.0\np99_ms = 1.0";
    let profile = Profile::from_toml(config).unwrap();
    let smsc = start(|config| {
        config.profile = profile;
        config.truth_file = Some(path.clone());
    })
    .await;
    let mut client = Client::bound(&smsc).await;
    let (_, id) = client.submit(TO, "CANARY text").await;
    assert_eq!(client.take_receipt().await.echo, "CANARY text");
    client.enquire().await;
    assert!(smsc.flush().await);
    let lines: Vec<Line> = read_journal(&path).unwrap().map(Result::unwrap).collect();
    let [Line::Open { seed: 1, .. }, Line::Submit(entry), answered, receipt, acked] = &lines[..] else {
        panic!("{lines:?}")
    };
    assert_eq!(
        (entry.message, entry.answer, entry.answer_sent),
        (Some(key_of("CANARY text")), Some(0), false)
    );
    assert_eq!(entry.message_id.to_string(), id);
    assert!(matches!(answered, Line::Answered { index: 0, .. }));
    assert!(
        matches!(receipt, Line::Receipt { index: 0, bind: 1, attempt: 1, state, .. } if state == "DELIVRD")
    );
    assert!(matches!(acked, Line::Acked { index: 0, status: 0, .. }));
    let raw = std::fs::read_to_string(&path).unwrap();
    assert!(!raw.contains("CANARY") && !raw.contains("2025550123"));
    let (_, stats) = http(&smsc, "GET", "/stats", "").await;
    let (_, truth) = http(&smsc, "GET", "/truth", "").await;
    for text in [stats, truth] {
        assert!(!text.contains("CANARY") && !text.contains("2025550123"));
    }
}

#[tokio::test]
async fn the_control_plane_shows_stats_and_pages_of_the_truth() {
    let smsc = start(|config| config.metrics_text = Some(std::sync::Arc::new(|| "up 1\n".to_owned()))).await;
    let mut client = Client::bound(&smsc).await;
    for n in 0..7 {
        assert_eq!(client.submit(TO, &format!("hello {n}")).await.0, 0);
    }
    for _ in 0..7 {
        client.take_receipt().await;
    }
    client.enquire().await;
    assert_eq!(http(&smsc, "GET", "/livez", "").await, (200, "ok\n".to_owned()));
    assert_eq!(http(&smsc, "GET", "/metrics", "").await, (200, "up 1\n".to_owned()));
    let (_, body) = http(&smsc, "GET", "/stats?seconds=30", "").await;
    let stats: Stats = serde_json::from_str(&body).unwrap();
    assert_eq!((stats.submits, stats.accepted, stats.binds_up), (7, 7, 1));
    assert_eq!(stats.by_status["0x00000000"], 7);
    assert_eq!((stats.receipts.sent, stats.receipts.acked, stats.receipts.pending), (7, 7, 0));
    assert_eq!(stats.seconds.iter().map(|second| second.receipts_acked).sum::<u64>(), 7);
    let (mut since, mut seen) = (0, Vec::new());
    loop {
        let (_, body) = http(&smsc, "GET", &format!("/truth?since={since}&limit=3"), "").await;
        let page: TruthPage = serde_json::from_str(&body).unwrap();
        seen.extend(page.records.iter().map(|record| record.index));
        since = page.next;
        if page.next == page.total {
            break;
        }
    }
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
    let (_, body) = http(&smsc, "GET", "/truth?since=99", "").await;
    assert!(serde_json::from_str::<TruthPage>(&body).unwrap().records.is_empty());
    assert_eq!(http(&smsc, "POST", "/flush", "").await.0, 404, "there is no file");
    assert_eq!(http(&smsc, "POST", "/disconnect", "").await, (200, "{\"closed\":1}".to_owned()));
    assert!(client.ended().await.is_empty());
}

#[tokio::test]
async fn it_is_not_ready_when_it_refuses_because_its_record_is_full() {
    let smsc = start(|config| config.records_max = 1).await;
    let mut client = Client::bound(&smsc).await;
    assert_eq!(http(&smsc, "GET", "/readyz", "").await, (200, "ok\n".to_owned()));
    assert_eq!(client.submit(TO, "one").await.0, 0);
    assert_ne!(client.submit(TO, "two").await.0, 0);
    let (status, why) = http(&smsc, "GET", "/readyz", "").await;
    assert!(status == 503 && why.contains("full"), "{status} {why}");
    assert_eq!(http(&smsc, "GET", "/livez", "").await.0, 200);
}
