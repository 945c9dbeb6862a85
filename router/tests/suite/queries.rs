//! `GetMessage`, `ListMessages`, `CancelMessages`.
use crate::support::cluster::PARTITIONS;
use crate::support::*;
use crate::{told, violation, violations};
use carillon_proto::errors;
use carillon_proto::public::appointments_client::AppointmentsClient;
use carillon_proto::public::*;
use carillon_proto::{MessageId, Slot};
use std::collections::BTreeSet;
use std::time::Duration;
use tonic::Code;

async fn fill(bed: &Bed, count: usize) -> Vec<String> {
    let messages = (0..count).map(|i| spec(PRACTICES[i % 6], &format!("k{i}"))).collect();
    let results = submit(&mut bed.client(), messages).await;
    results.iter().map(|result| accepted(result).message_id.clone()).collect()
}

async fn list(client: &mut Client, request: ListMessagesRequest) -> ListMessagesResponse {
    client.list_messages(timed(request)).await.unwrap().into_inner()
}

async fn all(client: &mut Client, mut request: ListMessagesRequest) -> (Vec<String>, usize) {
    let (mut ids, mut pages) = (Vec::new(), 0);
    loop {
        let page = list(client, request.clone()).await;
        pages += 1;
        if request.page_size > 0 {
            assert!(page.messages.len() <= request.page_size as usize);
        }
        ids.extend(page.messages.into_iter().map(|m| m.message_id));
        if page.next_page_token.is_empty() {
            return (ids, pages);
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_found_by_id_by_its_tenant_only() {
    let bed = Bed::start().await;
    let ids = fill(&bed, 6).await;
    let mut client = bed.client();
    for id in &ids {
        let request = GetMessageRequest { message_id: id.to_uppercase(), view: 2 };
        let message = client.get_message(timed(request)).await.unwrap().into_inner();
        assert_eq!(&message.message_id, id);
        assert!(message.body.starts_with("Your appointment"));
    }
    let missing = MessageId::new(1, Slot::new(77).unwrap(), 1).to_string();
    let mut stranger = bed.client_as("spiffe://lab/tenant/riverside");
    for (client, id) in [(&mut client, &missing), (&mut stranger, &ids[0])] {
        let request = GetMessageRequest { message_id: id.clone(), view: 0 };
        let status = client.get_message(timed(request)).await.unwrap_err();
        assert_eq!(told(&status), (Code::NotFound, ErrorReason::MessageNotFound));
    }
    for (id, view, field, word) in [
        ("", 0, "message_id", "EMPTY"),
        ("+12125550123", 0, "message_id", "MALFORMED"),
        (&missing, 9, "view", "UNKNOWN_VIEW"),
    ] {
        let request = GetMessageRequest { message_id: id.to_owned(), view };
        let status = client.get_message(timed(request)).await.unwrap_err();
        assert_eq!(violations(&status), violation(field, word));
        assert!(!format!("{status:?}").contains("2125550123"));
    }
}

/// Whether a practice is somebody else's or nobody's, and whatever else is wrong with the call: the answer is the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_practice_is_not_found_before_anything_else_is_looked_at() {
    let bed = Bed::start().await;
    let mut client = bed.client();
    let mut appointments = AppointmentsClient::new(bed.own_channel());
    for practice in [FOREIGN, "nobodys"] {
        let list = ListMessagesRequest {
            practice: practice.into(),
            page_size: -1,
            states: vec![99],
            ..Default::default()
        };
        let cancel = CancelMessagesRequest {
            external_references: vec![String::new()],
            practice: practice.into(),
            ..Default::default()
        };
        let update = UpdateAppointmentRequest { practice: practice.into(), ..Default::default() };
        let message = Some(MessageSpec { practice: practice.into(), ..Default::default() });
        let series = CreateSeriesRequest { message, ..Default::default() };
        let message = MessageSpec { body: String::new(), class: 42, ..spec(practice, "k") };
        let statuses = [
            client.list_messages(timed(list)).await.unwrap_err(),
            client.cancel_messages(timed(cancel)).await.unwrap_err(),
            appointments.update_appointment(timed(update)).await.unwrap_err(),
            appointments.create_series(timed(series)).await.unwrap_err(),
            refused(&submit(&mut client, vec![message]).await[0]),
        ];
        for status in statuses {
            assert_eq!(told(&status), (Code::NotFound, ErrorReason::PracticeNotFound), "{practice}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_page_through_all_partitions_and_lose_nothing() {
    let bed = Bed::start().await;
    let ids: BTreeSet<String> = fill(&bed, 120).await.into_iter().collect();
    let mut client = bed.client();
    for page_size in [0, 1, 7, 50, 5_000] {
        let (found, pages) = all(&mut client, ListMessagesRequest { page_size, ..Default::default() }).await;
        assert_eq!(found.len(), 120, "nothing twice");
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), ids);
        assert!(page_size != 7 || pages >= 120 / 7);
        assert!(page_size != 5_000 || pages == 1);
    }
    let one = ListMessagesRequest { practice: "east".into(), page_size: 4, ..Default::default() };
    let (found, pages) = all(&mut client, one).await;
    assert_eq!((found.len(), pages), (20, 5));
    assert!(found.is_sorted(), "oldest first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_goes_on_after_a_leader_change_and_after_a_lost_node() {
    let bed = Bed::start().await;
    fill(&bed, 60).await;
    let mut client = bed.client();
    let request = ListMessagesRequest { page_size: 10, ..Default::default() };
    let first = list(&mut client, request.clone()).await;
    for partition in 1..=PARTITIONS {
        bed.cluster.lead(partition, 2);
    }
    let (rest, _) =
        all(&mut client, ListMessagesRequest { page_token: first.next_page_token, ..request.clone() }).await;
    assert_eq!(first.messages.len() + rest.len(), 60);
    bed.kill(2);
    bed.cluster.fail_over(2, 3);
    assert_eq!(all(&mut client, request).await.0.len(), 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_token_belongs_to_its_filters_and_its_tenant() {
    let bed = Bed::start().await;
    fill(&bed, 60).await;
    let mut client = bed.client();
    let request = ListMessagesRequest { page_size: 5, states: vec![1], ..Default::default() };
    let token = list(&mut client, request.clone()).await.next_page_token;
    assert!(!token.is_empty());
    let resized = ListMessagesRequest { page_token: token.clone(), page_size: 9, ..request.clone() };
    assert_eq!(list(&mut client, resized).await.messages.len(), 9);
    let invalid = (Code::InvalidArgument, ErrorReason::InvalidToken);
    for changed in [
        ListMessagesRequest { states: vec![2], page_token: token.clone(), ..request.clone() },
        ListMessagesRequest { view: 2, page_token: token.clone(), ..request.clone() },
        ListMessagesRequest { practice: "east".into(), page_token: token.clone(), ..request.clone() },
        ListMessagesRequest { page_token: "nonsense".into(), ..request.clone() },
        ListMessagesRequest { page_token: format!("{token}x"), ..request.clone() },
    ] {
        let status = client.list_messages(timed(changed)).await.unwrap_err();
        assert_eq!(told(&status), invalid);
    }
    let other = ListMessagesRequest { page_token: token, ..request };
    let mut stranger = bed.client_as("spiffe://lab/tenant/riverside");
    assert_eq!(told(&stranger.list_messages(timed(other)).await.unwrap_err()), invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_filters_are_named() {
    let bed = Bed::start().await;
    let mut client = bed.client();
    let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let base = ListMessagesRequest::default();
    for (request, field, word) in [
        (ListMessagesRequest { page_size: -1, ..base.clone() }, "page_size", "NEGATIVE"),
        (ListMessagesRequest { states: vec![1, 13], ..base.clone() }, "states[1]", "UNKNOWN_STATE"),
        (ListMessagesRequest { classes: vec![0], ..base.clone() }, "classes[0]", "UNKNOWN_CLASS"),
        (ListMessagesRequest { view: 3, ..base.clone() }, "view", "UNKNOWN_VIEW"),
        (ListMessagesRequest { external_reference: "visit-1".into(), ..base.clone() }, "practice", "EMPTY"),
        (
            ListMessagesRequest { accepted_after: time(-1), ..base.clone() },
            "accepted_after",
            "INVALID_TIMESTAMP",
        ),
        (
            ListMessagesRequest { accepted_after: time(9), accepted_before: time(9), ..base.clone() },
            "accepted_before",
            "EMPTY_INTERVAL",
        ),
    ] {
        let status = client.list_messages(timed(request)).await.unwrap_err();
        assert_eq!(violations(&status), violation(field, word));
    }
    let foreign = ListMessagesRequest { practice: FOREIGN.into(), ..base };
    let status = client.list_messages(timed(foreign)).await.unwrap_err();
    assert_eq!(told(&status), (Code::NotFound, ErrorReason::PracticeNotFound));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancels_go_by_id_in_order_and_by_reference() {
    let bed = Bed::start().await;
    let ids = fill(&bed, 30).await;
    let mut client = bed.client();
    let missing = MessageId::new(1, Slot::of_practice(TENANT, "east"), 1).to_string();
    let mut asked: Vec<String> = ids.iter().rev().cloned().collect();
    asked.insert(3, "broken".into());
    asked.insert(9, missing);
    let request = CancelMessagesRequest {
        message_ids: asked.clone(),
        external_references: vec!["visit-k1".into(), "visit-k7".into(), "visit-none".into()],
        practice: PRACTICES[1].into(),
    };
    bed.cluster.lead(partition_of("east"), bed.cluster.leader(partition_of("east")) % 3 + 1);
    let results = client.cancel_messages(timed(request)).await.unwrap().into_inner().results;
    assert_eq!(results.len(), 34);
    for (index, (id, result)) in asked.iter().zip(&results).enumerate() {
        match index {
            3 => {
                let status = errors::from_rpc(result.error.as_ref().unwrap());
                assert_eq!(violations(&status), violation("message_ids[3]", "MALFORMED"));
            }
            9 => {
                let status = errors::from_rpc(result.error.as_ref().unwrap());
                assert_eq!(told(&status), (Code::NotFound, ErrorReason::MessageNotFound));
            }
            _ => assert!(result.canceled && result.message_id == *id && result.error.is_none()),
        }
    }
    let found: Vec<_> =
        results[32..].iter().map(|r| (r.message_id.clone(), r.external_reference.clone())).collect();
    assert_eq!(found, [(ids[1].clone(), "visit-k1".to_owned()), (ids[7].clone(), "visit-k7".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_cancels_are_refused_as_a_whole() {
    let bed = Bed::start().await;
    let mut client = bed.client();
    let base = CancelMessagesRequest::default();
    let id = MessageId::new(1, Slot::new(1).unwrap(), 1).to_string();
    for (request, reason) in [
        (base.clone(), ErrorReason::NoItems),
        (CancelMessagesRequest { message_ids: vec![id; 1_001], ..base.clone() }, ErrorReason::TooManyItems),
        (
            CancelMessagesRequest {
                external_references: vec!["r".into(); 101],
                practice: "north".into(),
                ..base.clone()
            },
            ErrorReason::TooManyItems,
        ),
    ] {
        let status = client.cancel_messages(timed(request)).await.unwrap_err();
        assert_eq!(told(&status), (Code::InvalidArgument, reason));
    }
    let no_practice = CancelMessagesRequest {
        external_references: vec!["r".into(), String::new(), "r".repeat(129)],
        ..base.clone()
    };
    let status = client.cancel_messages(timed(no_practice)).await.unwrap_err();
    let expected = [
        violation("practice", "EMPTY"),
        violation("external_references[1]", "EMPTY"),
        violation("external_references[2]", "TOO_LONG"),
    ];
    assert_eq!(violations(&status), expected.concat());
    let foreign =
        CancelMessagesRequest { external_references: vec!["r".into()], practice: FOREIGN.into(), ..base };
    let status = client.cancel_messages(timed(foreign)).await.unwrap_err();
    assert_eq!(told(&status), (Code::NotFound, ErrorReason::PracticeNotFound));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_without_a_leader_are_unavailable_inside_the_deadline() {
    let bed = Bed::start().await;
    let id = fill(&bed, 1).await.remove(0);
    (1..=3).for_each(|node| bed.kill(node));
    let mut client = bed.client();
    let timeout = Duration::from_millis(2_500);
    let unavailable = (Code::Unavailable, ErrorReason::PartitionUnavailable);
    let get = GetMessageRequest { message_id: id.clone(), view: 0 };
    assert_eq!(told(&client.get_message(within(timeout, get)).await.unwrap_err()), unavailable);
    let list = ListMessagesRequest::default();
    assert_eq!(told(&client.list_messages(within(timeout, list)).await.unwrap_err()), unavailable);
    let cancel = CancelMessagesRequest {
        message_ids: vec![id.clone()],
        external_references: vec!["r".into()],
        practice: "north".into(),
    };
    let results = client.cancel_messages(within(timeout, cancel)).await.unwrap().into_inner().results;
    assert_eq!((results[0].message_id.as_str(), results[1].external_reference.as_str()), (id.as_str(), "r"));
    for result in results {
        assert_eq!(told(&errors::from_rpc(&result.error.unwrap())), unavailable);
    }
}
