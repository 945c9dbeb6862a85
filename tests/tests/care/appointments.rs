//! `UpdateAppointment` and `ExplainMessage` against a running cluster.
use carillon_ctl::lab::{Plane, TENANT};
use carillon_proto::public::appointments_client::AppointmentsClient;
use carillon_proto::public::messages_client::MessagesClient;
use carillon_proto::public::*;
use carillon_proto::tls;
use carillon_tests::api::{from_now, spec, timed, told};
use carillon_tests::rig::{Rig, until};
use std::time::Duration;
use tonic::Code;
use tonic::transport::Channel;

const HOUR_MS: i64 = 3_600_000;
const SOON: Duration = Duration::from_secs(30);

fn channel(rig: &Rig) -> Channel {
    let files = rig.lab.tls(&format!("tenant-{TENANT}"), Plane::Clients);
    tls::channel(&rig.lab.router_address(), tls::client_config(&files).unwrap(), None).unwrap()
}

fn client(rig: &Rig) -> AppointmentsClient<Channel> {
    AppointmentsClient::new(channel(rig))
}

pub async fn explain(rig: &Rig, id: &str) -> ExplainMessageResponse {
    let request = timed(ExplainMessageRequest { message_id: id.to_owned() });
    MessagesClient::new(channel(rig)).explain_message(request).await.unwrap().into_inner()
}

fn request(
    rig: &Rig,
    reference: &str,
    version: u64,
    changes: Vec<MessageChange>,
) -> UpdateAppointmentRequest {
    UpdateAppointmentRequest {
        practice: rig.practices[0].clone(),
        external_reference: reference.to_owned(),
        version,
        changes,
        validate_only: false,
    }
}

/// Messages of one appointment, due in hours.
async fn book(rig: &Rig, reference: &str, classes: &[MessageClass]) -> Vec<String> {
    let message = |(at, class): (usize, &MessageClass)| MessageSpec {
        class: *class as i32,
        external_reference: reference.to_owned(),
        not_before: from_now(HOUR_MS),
        deadline: from_now(5 * HOUR_MS),
        ..spec(&rig.practices[0], &format!("{reference}-{at}"), at)
    };
    let accepted = rig.submit(classes.iter().enumerate().map(message).collect()).await;
    accepted.into_iter().map(|message| message.message_id).collect()
}

fn dispositions(answer: &UpdateAppointmentResponse, ids: &[String]) -> Vec<UpdateDisposition> {
    let of =
        |id: &String| answer.results.iter().find(|result| result.message_id == *id).unwrap().disposition();
    assert_eq!(answer.results.len(), ids.len());
    ids.iter().map(of).collect()
}

pub async fn changes(rig: &Rig) {
    use MessageClass::{Confirmation, Form, Reminder};
    use UpdateDisposition::{Canceled, Unchanged, Updated};
    let ids = book(rig, "visit-1", &[Reminder, Confirmation, Form]).await;
    let before = rig.get(&ids[0], MessageView::Full).await.unwrap();
    let shift = Some(prost_types::Duration { seconds: 7_200, nanos: 0 });
    let moved = vec![
        MessageChange { classes: vec![Reminder as i32], shift, ..Default::default() },
        MessageChange { classes: vec![Form as i32], cancel: true, ..Default::default() },
    ];
    let preview =
        UpdateAppointmentRequest { validate_only: true, ..request(rig, "visit-1", 1, moved.clone()) };
    let answer = client(rig).update_appointment(timed(preview)).await.unwrap().into_inner();
    assert_eq!(dispositions(&answer, &ids), [Updated, Unchanged, Canceled]);
    assert_eq!(
        rig.get(&ids[2], MessageView::Basic).await.unwrap().state(),
        MessageState::Waiting,
        "only a preview"
    );
    let answer =
        client(rig).update_appointment(timed(request(rig, "visit-1", 1, moved))).await.unwrap().into_inner();
    assert_eq!(dispositions(&answer, &ids), [Updated, Unchanged, Canceled]);
    let after = rig.get(&ids[0], MessageView::Full).await.unwrap();
    let later = |before: &Option<prost_types::Timestamp>, after: &Option<prost_types::Timestamp>| {
        after.as_ref().unwrap().seconds - before.as_ref().unwrap().seconds
    };
    assert_eq!(later(&before.not_before, &after.not_before), 7_200);
    assert_eq!(later(&before.deadline, &after.deadline), 7_200);
    assert_eq!(later(&before.due_time, &after.due_time), 7_200);

    // The text changes, it becomes due now, and it leaves as it is now.
    let text = "Your visit is on Friday instead. Reply C to confirm.".to_owned();
    let now = vec![MessageChange { body: text.clone(), not_before: from_now(0), ..Default::default() }];
    let answer =
        client(rig).update_appointment(timed(request(rig, "visit-1", 2, now))).await.unwrap().into_inner();
    assert_eq!(dispositions(&answer, &ids), [Updated, Updated, Canceled]);
    for id in &ids[..2] {
        rig.until_state(id, MessageState::Delivered, SOON).await;
        assert_eq!(rig.get(id, MessageView::Full).await.unwrap().body, text);
    }
    assert_eq!(rig.get(&ids[2], MessageView::Basic).await.unwrap().state(), MessageState::Canceled);
}

pub async fn versions(rig: &Rig) {
    let ids = book(rig, "visit-2", &[MessageClass::Reminder]).await;
    let edit = |text: &str| vec![MessageChange { body: text.to_owned(), ..Default::default() }];
    let call = async |version, text: &str| {
        client(rig).update_appointment(timed(request(rig, "visit-2", version, edit(text)))).await
    };
    assert!(!call(10, "first").await.unwrap().into_inner().duplicate);
    let again = call(10, "first").await.unwrap().into_inner();
    assert!(again.duplicate && again.results[0].disposition() == UpdateDisposition::Updated);
    let reused = told(&call(10, "second").await.unwrap_err());
    assert_eq!(reused, (Code::AlreadyExists, "VERSION_REUSED".to_owned()));
    assert_eq!(
        told(&call(9, "old").await.unwrap_err()),
        (Code::FailedPrecondition, "OLD_VERSION".to_owned())
    );
    assert_eq!(rig.get(&ids[0], MessageView::Full).await.unwrap().body, "first");
    // The version is replicated: the next leader knows it.
    let leader = rig.leader_of(&rig.practices[0]).await;
    let lab = &rig.lab;
    tokio::task::block_in_place(|| lab.kill_node(leader)).unwrap();
    let again = call(10, "first").await.unwrap().into_inner();
    assert!(again.duplicate, "after the kill of its leader");
    rig.start_node(leader).await;
    let unknown = client(rig).update_appointment(timed(request(rig, "nobody", 1, edit("x")))).await.unwrap();
    assert!(unknown.into_inner().results.is_empty());
}

pub async fn too_late(rig: &Rig) {
    let sent =
        MessageSpec { external_reference: "visit-3".to_owned(), ..spec(&rig.practices[0], "visit-3-now", 1) };
    let id = rig.submit(vec![sent]).await.remove(0).message_id;
    rig.until_state(&id, MessageState::Delivered, SOON).await;
    let later = book(rig, "visit-3", &[MessageClass::Reminder]).await;
    let cancel = vec![MessageChange { cancel: true, ..Default::default() }];
    let answer =
        client(rig).update_appointment(timed(request(rig, "visit-3", 1, cancel))).await.unwrap().into_inner();
    let ids = [id.clone(), later[0].clone()];
    use UpdateDisposition::{Canceled, HandedOver};
    assert_eq!(dispositions(&answer, &ids), [HandedOver, Canceled]);
    let told = answer.results.iter().find(|result| result.message_id == id).unwrap();
    assert!(told.submit_time.is_some(), "it says when");
}

pub async fn explained(rig: &Rig) {
    let id = book(rig, "visit-4", &[MessageClass::Reminder]).await.remove(0);
    let told = explain(rig, &id).await;
    let message = told.message.unwrap();
    assert_eq!((message.state(), message.body.as_str()), (MessageState::Waiting, ""), "the BASIC view");
    assert_eq!(told.holds[0].reason(), WaitingReason::Schedule);
    assert_eq!(told.holds[0].until, message.not_before);
    assert_eq!(told.estimated_send_time, message.not_before, "nothing else waits");
    assert!(
        !told.will_expire && !told.lower_bound && told.binding_limit.contains("time"),
        "{}",
        told.summary
    );
    let delivered = rig.submit(vec![spec(&rig.practices[0], "explain-now", 2)]).await.remove(0).message_id;
    rig.until_state(&delivered, MessageState::Delivered, SOON).await;
    let told = explain(rig, &delivered).await;
    let attempt = &told.message.unwrap().attempts[0];
    assert_eq!((told.summary.as_str(), told.holds.len()), ("delivered", 0));
    assert!(!attempt.sender.is_empty() && attempt.carrier == carillon_ctl::lab::CARRIER, "{attempt:?}");
}

/// The wall clock of UTC, as a series wants it.
fn wall_clock(ms: i64) -> String {
    from_now(ms).unwrap().to_string().chars().take(19).collect()
}

pub async fn recurring(rig: &Rig) {
    let practice = &rig.practices[3];
    let request = CreateSeriesRequest {
        message: Some(MessageSpec {
            external_reference: "pills".to_owned(),
            time_zone: "UTC".to_owned(),
            ..spec(practice, "series-1", 3)
        }),
        rule: "FREQ=DAILY;COUNT=5".to_owned(),
        start: wall_clock(3_000),
        exceptions: Vec::new(),
        valid_for: None,
    };
    let made = client(rig).create_series(timed(request.clone())).await.unwrap().into_inner();
    assert_eq!((made.upcoming.len(), made.duplicate, made.ended), (5, false, false));
    let again = client(rig).create_series(timed(request.clone())).await.unwrap().into_inner();
    assert!(again.duplicate && again.series_id == made.series_id);
    let other = CreateSeriesRequest { rule: "FREQ=DAILY;COUNT=6".to_owned(), ..request.clone() };
    let reused = client(rig).create_series(timed(other)).await.unwrap_err();
    assert_eq!(told(&reused), (Code::AlreadyExists, "IDEMPOTENCY_KEY_REUSED".to_owned()));
    let bad = CreateSeriesRequest { rule: "FREQ=YEARLY".to_owned(), ..request };
    let refused = client(rig).create_series(timed(bad)).await.unwrap_err();
    assert_eq!(carillon_tests::api::violations(&refused), [("rule".to_owned(), "INVALID_RULE".to_owned())]);

    // Today's and tomorrow's come into being; the others when their time is near.
    let list = async || {
        let request = ListMessagesRequest {
            practice: practice.clone(),
            external_reference: "pills".to_owned(),
            ..Default::default()
        };
        rig.list(request).await
    };
    let get = async || {
        let request = timed(GetSeriesRequest { series_id: made.series_id.clone() });
        client(rig).get_series(request).await.map(tonic::Response::into_inner)
    };
    until("two messages come into being", SOON, async || {
        match get().await.map_err(|e| e.to_string())?.made {
            2 => Ok(()),
            count => Err(format!("{count} are made")),
        }
    })
    .await;
    let first = list().await.into_iter().min_by_key(|m| m.not_before.as_ref().unwrap().seconds).unwrap();
    rig.until_state(&first.message_id, MessageState::Delivered, SOON).await;
    // The next leader goes on from where it stands.
    let leader = rig.leader_of(practice).await;
    let lab = &rig.lab;
    tokio::task::block_in_place(|| lab.kill_node(leader)).unwrap();
    let after = get().await.unwrap();
    assert_eq!((after.made, after.upcoming.len(), list().await.len()), (2, 3, 2), "nothing twice");
    rig.start_node(leader).await;
    let end = timed(EndSeriesRequest { series_id: made.series_id.clone() });
    assert!(client(rig).end_series(end).await.unwrap().into_inner().ended);
    assert_eq!(told(&get().await.unwrap_err()), (Code::NotFound, "MESSAGE_NOT_FOUND".to_owned()));
}
