//! `ExplainMessage` and `UpdateAppointment`: to the partition's leader, for the own tenant only.
use crate::support::*;
use crate::{told, violations};
use carillon_proto::public::appointments_client::AppointmentsClient;
use carillon_proto::public::*;
use carillon_proto::{MessageId, Slot};
use tonic::Code;

fn cancel_all(practice: &str, version: u64) -> UpdateAppointmentRequest {
    UpdateAppointmentRequest {
        practice: practice.to_owned(),
        external_reference: "visit-7".to_owned(),
        version,
        changes: vec![MessageChange { cancel: true, ..Default::default() }],
        validate_only: false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_appointment_is_changed_where_its_practice_lives() {
    let bed = Bed::start().await;
    let messages = (0..3).map(|i| MessageSpec {
        external_reference: "visit-7".to_owned(),
        ..spec(PRACTICES[0], &format!("a{i}"))
    });
    let results = submit(&mut bed.client(), messages.collect()).await;
    let ids: Vec<String> = results.iter().map(|result| accepted(result).message_id.clone()).collect();
    let mut client = AppointmentsClient::new(bed.own_channel());
    let request = timed(cancel_all(PRACTICES[0], 1));
    let answer = client.update_appointment(request).await.unwrap().into_inner();
    let mut told_ids: Vec<String> = answer.results.iter().map(|r| r.message_id.clone()).collect();
    told_ids.sort();
    let mut ids_sorted = ids.clone();
    ids_sorted.sort();
    assert_eq!((told_ids, answer.duplicate), (ids_sorted, true));

    let status = client.update_appointment(timed(cancel_all("nowhere", 1))).await.unwrap_err();
    assert_eq!(told(&status), (Code::NotFound, ErrorReason::PracticeNotFound));
    let status = client.update_appointment(timed(UpdateAppointmentRequest::default())).await.unwrap_err();
    let fields: Vec<String> =
        violations(&status).into_iter().map(|(field, word)| format!("{field} {word}")).collect();
    assert_eq!(fields, ["practice EMPTY", "external_reference EMPTY", "version EMPTY", "changes EMPTY"]);
    let status = client.update_appointment(cancel_all(PRACTICES[0], 1)).await.unwrap_err();
    assert_eq!(told(&status), (Code::InvalidArgument, ErrorReason::DeadlineRequired));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_explained_to_its_tenant_only() {
    let bed = Bed::start().await;
    let results = submit(&mut bed.client(), vec![spec(PRACTICES[1], "k")]).await;
    let id = accepted(&results[0]).message_id.clone();
    let ask = |id: &str| timed(ExplainMessageRequest { message_id: id.to_owned() });
    let answer = bed.client().explain_message(ask(&id)).await.unwrap().into_inner();
    assert_eq!((answer.message.unwrap().message_id, answer.summary), (id.clone(), "explained".to_owned()));
    let missing = MessageId::new(1, Slot::new(77).unwrap(), 1).to_string();
    let mut stranger = bed.client_as("spiffe://lab/tenant/riverside");
    for (client, id) in [(&mut bed.client(), &missing), (&mut stranger, &id)] {
        let status = client.explain_message(ask(id)).await.unwrap_err();
        assert_eq!(told(&status), (Code::NotFound, ErrorReason::MessageNotFound));
    }
    let status = bed.client().explain_message(ask("+12125550123")).await.unwrap_err();
    assert_eq!(violations(&status), crate::violation("message_id", "MALFORMED"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_series_is_checked_and_goes_to_its_practice() {
    let bed = Bed::start().await;
    let mut client = AppointmentsClient::new(bed.own_channel());
    let good = || CreateSeriesRequest {
        message: Some(spec(PRACTICES[0], "s")),
        rule: "FREQ=DAILY".to_owned(),
        start: "2027-01-04T09:00".to_owned(),
        ..Default::default()
    };
    let series = client.create_series(timed(good())).await.unwrap().into_inner();
    assert_eq!(series.practice, "FREQ=DAILY", "the fake says it back");
    let at = Some(prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 });
    let timed_message = MessageSpec { deadline: at, ..spec(PRACTICES[0], "s") };
    let valid_for = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let bad = CreateSeriesRequest {
        message: Some(timed_message),
        rule: String::new(),
        start: String::new(),
        valid_for,
        exceptions: Vec::new(),
    };
    let status = client.create_series(timed(bad)).await.unwrap_err();
    let fields: Vec<String> =
        violations(&status).into_iter().map(|(field, word)| format!("{field} {word}")).collect();
    let expected =
        ["rule EMPTY", "start EMPTY", "valid_for INVALID_DURATION", "message.deadline TIMES_OF_A_SERIES"];
    assert_eq!(fields, expected);
    let missing = MessageId::new(1, Slot::new(77).unwrap(), 1).to_string();
    let status = client.get_series(timed(GetSeriesRequest { series_id: missing.clone() })).await.unwrap_err();
    assert_eq!(told(&status), (Code::NotFound, ErrorReason::MessageNotFound));
    let status = client.end_series(timed(EndSeriesRequest { series_id: "x".to_owned() })).await.unwrap_err();
    assert_eq!(violations(&status), crate::violation("message_id", "MALFORMED"));
}
