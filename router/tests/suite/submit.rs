//! `SubmitMessages` with nodes that work: order, duplicates, errors of items and of calls, `validate_only`.
use crate::support::*;
use crate::{told, violation, violations};
use carillon_proto::MessageId;
use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::*;
use std::collections::{BTreeSet, HashSet};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_come_in_request_order_across_partitions_and_leaders() {
    let bed = Bed::start().await;
    let mut client = bed.client();
    let practices: Vec<&str> = PRACTICES.iter().copied().cycle().take(300).collect();
    let messages = practices.iter().enumerate().map(|(i, p)| spec(p, &format!("k{i}"))).collect();
    let results = submit(&mut client, messages).await;
    let mut ids = HashSet::new();
    for (i, (practice, result)) in practices.iter().zip(&results).enumerate() {
        let id: MessageId = accepted(result).message_id.parse().unwrap();
        assert!(ids.insert(id));
        let partition = partition_of(practice);
        assert_eq!(id.slot().partition(cluster::PARTITIONS), partition);
        let body = bed.cluster.with(|s| s.partitions[partition as usize].messages[&id].message.body.clone());
        assert_eq!(body, format!("Your appointment is on Tuesday. k{i}"));
    }
    let nodes: BTreeSet<u64> = bed.cluster.with(|s| s.submits.iter().map(|(node, _)| *node).collect());
    assert!(nodes.len() > 1, "the practices of this test must have several leaders");
    assert_eq!(bed.cluster.submits(), nodes.len(), "one call for each leader");

    // The same keys again: the same ids, marked as duplicates.
    let messages = practices.iter().enumerate().map(|(i, p)| spec(p, &format!("k{i}"))).collect();
    let again = submit(&mut client, messages).await;
    for (first, second) in results.iter().zip(&again) {
        assert_eq!(accepted(first).message_id, accepted(second).message_id);
        assert!(!accepted(first).duplicate && accepted(second).duplicate);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_items_fail_alone_and_in_place() {
    let bed = Bed::start().await;
    let mut messages: Vec<_> = (0..5).map(|i| spec(PRACTICES[i], &format!("k{i}"))).collect();
    messages[1].recipient = Some(Recipient::PhoneNumber("5550123".into()));
    messages[2].practice = FOREIGN.to_owned();
    messages[3] = MessageSpec { body: String::new(), class: 42, ..messages[3].clone() };
    let results = submit(&mut bed.client(), messages).await;
    assert_eq!(violations(&refused(&results[1])), violation("phone_number", "UNPARSABLE_NUMBER"));
    assert_eq!(told(&refused(&results[2])), (Code::NotFound, ErrorReason::PracticeNotFound));
    let both = [violation("body", "EMPTY"), violation("class", "UNKNOWN_CLASS")].concat();
    assert_eq!(violations(&refused(&results[3])), both);
    assert!([0, 4].iter().all(|i| accepted(&results[*i]).message_id.len() == 26));
    assert_eq!(bed.cluster.accepted(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_without_practices_finds_none() {
    let bed = Bed::start().await;
    let mut client = bed.client_as("spiffe://lab/tenant/stranger");
    let results = submit(&mut client, vec![spec("north", "k")]).await;
    assert_eq!(told(&refused(&results[0])), (Code::NotFound, ErrorReason::PracticeNotFound));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_practice_is_known_as_soon_as_a_node_tells() {
    let bed = Bed::start().await;
    bed.cluster.add_practice(TENANT, "brand-new", "America/Denver");
    let mut client = bed.client();
    loop {
        let results = submit(&mut client, vec![spec("brand-new", "k")]).await;
        if matches!(results[0].result, Some(submit_result::Result::Accepted(_))) {
            break;
        }
    }
    assert_eq!(bed.cluster.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_and_no_items_fail_the_call() {
    let bed = Bed::start().await;
    let mut client = bed.client();
    for (count, reason) in [(1_001, ErrorReason::TooManyItems), (0, ErrorReason::NoItems)] {
        let messages = vec![keyless("north"); count];
        let request = SubmitMessagesRequest { messages, validate_only: false };
        let status = client.submit_messages(timed(request)).await.unwrap_err();
        assert_eq!(told(&status), (Code::InvalidArgument, reason));
    }
    assert_eq!(bed.cluster.accepted(), 0);
    assert_eq!(submit(&mut client, vec![keyless("north"); 1_000]).await.len(), 1_000);
    assert_eq!(bed.cluster.accepted(), 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validate_only_tells_everything_and_accepts_nothing() {
    let bed = Bed::start().await;
    let plain = spec("north", "k");
    let curly = MessageSpec {
        body: "It\u{2019}s time \u{1f600}".into(),
        time_zone: "US/Hawaii".into(),
        ..plain.clone()
    };
    let long = MessageSpec { body: "x".repeat(161), ..plain.clone() };
    let foreign = MessageSpec { practice: FOREIGN.into(), ..plain.clone() };
    let request = SubmitMessagesRequest { messages: vec![plain, curly, long, foreign], validate_only: true };
    let results = bed.client().submit_messages(timed(request)).await.unwrap().into_inner().results;
    let plain = accepted(&results[0]);
    assert_eq!((plain.encoding(), plain.segments, plain.message_id.as_str()), (Encoding::Gsm7, 1, ""));
    assert_eq!(plain.time_zone, "America/Chicago (practice)");
    let curly = accepted(&results[1]);
    assert_eq!((curly.encoding(), curly.segments), (Encoding::Ucs2, 1));
    assert_eq!((curly.ucs2_character.as_str(), curly.ucs2_character_index), ("\u{2019}", 2));
    assert_eq!(curly.time_zone, "US/Hawaii (message)");
    assert_eq!(accepted(&results[2]).segments, 2);
    assert_eq!(told(&refused(&results[3])).1, ErrorReason::PracticeNotFound);
    assert_eq!((bed.cluster.submits(), bed.cluster.accepted()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_node_gets_is_resolved() {
    let bed = Bed::start().await;
    let national = NationalNumber { number: "(212) 555-0199".into(), region: "US".into() };
    let message = MessageSpec { recipient: Some(Recipient::NationalNumber(national)), ..spec("south", "k") };
    submit(&mut bed.client(), vec![message]).await;
    bed.cluster.with(|state| {
        let stored = state.partitions[partition_of("south") as usize].messages.values().next().unwrap();
        let message = &stored.message;
        assert_eq!((stored.tenant.as_str(), message.practice_no), (TENANT, number_of("south")));
        assert_eq!(message.recipient, "+12125550199");
        assert_eq!((message.encoding, message.segments, message.class), (1, 1, 2));
        assert_eq!(message.time_zone, "America/New_York");
        assert_eq!((message.priority, message.expires_at_ms), (0, 0), "the class decides, on the node");
    });
}
