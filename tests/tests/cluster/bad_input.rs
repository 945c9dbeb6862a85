//! "Bad input" of the API against the real cluster: exact code, reason and field.
use carillon_ctl::lab::{OTHER_TENANT, Plane};
use carillon_proto::errors;
use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::*;
use carillon_tests::api::{from_now, refused, spec, timed, told, violations};
use carillon_tests::rig::Rig;
use tonic::{Code, Request};

type Change = fn(&mut MessageSpec);

const FIELDS: [(Change, &str, &str); 18] = [
    (|s| s.recipient = phone("call me maybe"), "phone_number", "UNPARSABLE_NUMBER"),
    (|s| s.recipient = phone("+15551234567"), "phone_number", "INVALID_NUMBER"),
    (|s| s.recipient = None, "phone_number", "EMPTY"),
    (|s| s.recipient = national("two one two", "US"), "national_number.number", "UNPARSABLE_NUMBER"),
    (|s| s.recipient = national("2125550123", "QQ"), "national_number.region", "UNKNOWN_REGION"),
    (|s| s.recipient = national("2125550123", "XX"), "national_number.region", "UNKNOWN_REGION"),
    (|s| s.region = "XX".to_owned(), "region", "UNKNOWN_REGION"),
    (|s| s.body.clear(), "body", "EMPTY"),
    (|s| s.body = "x".repeat(1_601), "body", "TOO_LONG"),
    (|s| s.body = "x".repeat(1_531), "body", "TOO_MANY_SEGMENTS"),
    (|s| s.expires_at = from_now(-1_000), "expires_at", "PAST_EXPIRY"),
    (
        |s| (s.not_before, s.deadline) = (from_now(7_200_000), from_now(3_600_000)),
        "deadline",
        "DEADLINE_BEFORE_NOT_BEFORE",
    ),
    (|s| s.class = 0, "class", "UNKNOWN_CLASS"),
    (|s| s.class = 99, "class", "UNKNOWN_CLASS"),
    (|s| s.time_zone = "America/Springfield".to_owned(), "time_zone", "UNKNOWN_TIME_ZONE"),
    (|s| s.idempotency_key = "k".repeat(129), "idempotency_key", "TOO_LONG"),
    (|s| s.external_reference = "r".repeat(129), "external_reference", "TOO_LONG"),
    (|s| s.practice.clear(), "practice", "EMPTY"),
];

fn phone(number: &str) -> Option<Recipient> {
    Some(Recipient::PhoneNumber(number.to_owned()))
}

fn national(number: &str, region: &str) -> Option<Recipient> {
    Some(Recipient::NationalNumber(NationalNumber { number: number.to_owned(), region: region.to_owned() }))
}

fn reason(word: &str) -> String {
    word.to_owned()
}

pub async fn fields(rig: &Rig) {
    let practice = &rig.practices[9];
    let mut messages: Vec<MessageSpec> = FIELDS
        .iter()
        .enumerate()
        .map(|(at, (change, _, _))| {
            let mut spec = spec(practice, &format!("bad-{at}"), at);
            change(&mut spec);
            spec
        })
        .collect();
    // What else is wrong with it does not matter.
    messages.push(MessageSpec { body: String::new(), ..spec("nobodys-practice", "bad-practice", 0) });
    // Everything wrong at once is told at once.
    messages.push(MessageSpec {
        body: String::new(),
        class: 77,
        time_zone: "Mars/Olympus".into(),
        ..messages[0].clone()
    });
    messages.push(spec(practice, "bad-but-one", 1));
    let request = SubmitMessagesRequest { messages, validate_only: false };
    let results = rig.client.submit(request).await.unwrap().results;
    for (result, (_, field, word)) in results.iter().zip(&FIELDS) {
        let status = refused(result);
        assert_eq!(told(&status), (Code::InvalidArgument, reason("INVALID_FIELDS")), "{field} {word}");
        assert_eq!(violations(&status), [((*field).to_owned(), (*word).to_owned())]);
    }
    let [.., unknown, all, good] = results.as_slice() else { panic!("{} results", results.len()) };
    assert_eq!(told(&refused(unknown)), (Code::NotFound, reason("PRACTICE_NOT_FOUND")));
    let names: Vec<String> = violations(&refused(all)).into_iter().map(|v| v.0).collect();
    assert_eq!(names, ["phone_number", "body", "class", "time_zone"]);
    // The good one in between is not held up, and nothing else was kept.
    carillon_tests::api::accepted(good);
    let request = ListMessagesRequest { practice: practice.clone(), ..Default::default() };
    assert_eq!(rig.list(request).await.len(), 1);
}

pub async fn calls(rig: &Rig) {
    let practice = &rig.practices[9];
    let messages = || rig.client.messages();
    let many: Vec<MessageSpec> = (0..1_001).map(|i| spec(practice, &format!("many-{i}"), i)).collect();
    let too_many = (Code::InvalidArgument, reason("TOO_MANY_ITEMS"));
    let request = SubmitMessagesRequest { messages: many.clone(), validate_only: false };
    assert_eq!(told(&messages().submit_messages(timed(request)).await.unwrap_err()), too_many);
    let request = CancelMessagesRequest { message_ids: vec!["x".into(); 1_001], ..Default::default() };
    assert_eq!(told(&messages().cancel_messages(timed(request)).await.unwrap_err()), too_many);
    let batch = StreamMessagesRequest { batch_id: 5, messages: many };
    let answers = messages().stream_messages(Request::new(tokio_stream::iter([batch]))).await;
    let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!((answer.batch_id, answer.results.len()), (5, 0));
    assert_eq!(told(&errors::from_rpc(answer.error.as_ref().unwrap())), too_many);

    let empty = SubmitMessagesRequest::default();
    let status = messages().submit_messages(timed(empty)).await.unwrap_err();
    assert_eq!(told(&status), (Code::InvalidArgument, reason("NO_ITEMS")));

    let required = (Code::InvalidArgument, reason("DEADLINE_REQUIRED"));
    let one = SubmitMessagesRequest { messages: vec![spec(practice, "never", 0)], validate_only: false };
    assert_eq!(told(&messages().submit_messages(one).await.unwrap_err()), required);
    assert_eq!(told(&messages().get_message(GetMessageRequest::default()).await.unwrap_err()), required);
    assert_eq!(told(&messages().list_messages(ListMessagesRequest::default()).await.unwrap_err()), required);
    assert_eq!(
        told(&messages().cancel_messages(CancelMessagesRequest::default()).await.unwrap_err()),
        required
    );
    // Nothing of all this was kept.
    let request = ListMessagesRequest { practice: practice.clone(), ..Default::default() };
    assert_eq!(rig.list(request).await.len(), 1);
}

pub async fn foreign(rig: &Rig) {
    let practice = &rig.practices[10];
    let id = rig.submit(vec![spec(practice, "foreign", 0)]).await.remove(0).message_id;
    let other = rig.client_with(&rig.lab.tls(&format!("tenant-{OTHER_TENANT}"), Plane::Clients));
    let not_found = (Code::NotFound, reason("PRACTICE_NOT_FOUND"));
    let wrong = MessageSpec { body: String::new(), class: 99, ..spec(practice, "foreign-3", 0) };
    for message in [spec(practice, "foreign-2", 0), wrong] {
        let request = SubmitMessagesRequest { messages: vec![message], validate_only: false };
        assert_eq!(told(&refused(&other.submit(request).await.unwrap().results[0])), not_found);
    }
    let request = ListMessagesRequest { practice: practice.clone(), page_size: -1, ..Default::default() };
    assert_eq!(told(&other.messages().list_messages(timed(request)).await.unwrap_err()), not_found);
    let request = WatchEventsRequest { practice: practice.clone(), cursor: "start".into() };
    assert_eq!(told(&other.messages().watch_events(timed(request)).await.unwrap_err()), not_found);
    let request = GetMessageRequest { message_id: id.clone(), view: MessageView::Full as i32 };
    let status = other.messages().get_message(timed(request)).await.unwrap_err();
    assert_eq!(told(&status), (Code::NotFound, reason("MESSAGE_NOT_FOUND")));
    let request = CancelMessagesRequest { message_ids: vec![id.clone()], ..Default::default() };
    let result = other.cancel(request).await.unwrap().remove(0);
    let status = errors::from_rpc(result.error.as_ref().unwrap());
    assert_eq!(told(&status), (Code::NotFound, reason("MESSAGE_NOT_FOUND")));
    assert!(!result.canceled && result.state() == MessageState::Unspecified);
    let everything = other.messages().list_messages(timed(ListMessagesRequest::default())).await;
    assert_eq!(everything.unwrap().into_inner().messages, []);
    assert_ne!(rig.get(&id, MessageView::Basic).await.unwrap().state(), MessageState::Canceled);
}

pub async fn tokens(rig: &Rig) {
    let practice = &rig.practices[1];
    let messages = || rig.client.messages();
    let first = ListMessagesRequest { practice: practice.clone(), page_size: 3, ..Default::default() };
    let page = messages().list_messages(timed(first.clone())).await.unwrap().into_inner();
    assert!(!page.next_page_token.is_empty());
    let invalid = (Code::InvalidArgument, reason("INVALID_TOKEN"));
    let with_other_filter = ListMessagesRequest {
        page_token: page.next_page_token.clone(),
        classes: vec![MessageClass::Recall as i32],
        ..first.clone()
    };
    let cut = ListMessagesRequest { page_token: page.next_page_token[1..].to_owned(), ..first.clone() };
    for request in [with_other_filter, cut] {
        assert_eq!(told(&messages().list_messages(timed(request)).await.unwrap_err()), invalid);
    }
    let request = WatchEventsRequest { practice: practice.clone(), cursor: page.next_page_token };
    assert_eq!(told(&messages().watch_events(timed(request)).await.unwrap_err()), invalid);

    let fields = (Code::InvalidArgument, reason("INVALID_FIELDS"));
    let status = messages()
        .list_messages(timed(ListMessagesRequest { page_size: -1, ..first.clone() }))
        .await
        .unwrap_err();
    assert_eq!(told(&status), fields);
    assert_eq!(violations(&status), [(reason("page_size"), reason("NEGATIVE"))]);
    let lonely = ListMessagesRequest { external_reference: "visit-1".into(), ..Default::default() };
    let status = messages().list_messages(timed(lonely)).await.unwrap_err();
    assert_eq!(
        (told(&status), violations(&status)),
        (fields.clone(), vec![(reason("practice"), reason("EMPTY"))])
    );
    let request = GetMessageRequest { message_id: "not an id".into(), ..Default::default() };
    let status = messages().get_message(timed(request)).await.unwrap_err();
    assert_eq!(told(&status), fields);
    assert_eq!(violations(&status), [(reason("message_id"), reason("MALFORMED"))]);
}
