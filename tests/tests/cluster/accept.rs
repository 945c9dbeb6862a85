//! The main job, step by step: submit, get, list, watch, cancel, stream, idempotency.
use carillon_ctl::lab::TENANT;
use carillon_loadtest::smsc::{TruthKey, truth_key};
use carillon_proto::public::*;
use carillon_tests::api::{accepted, from_now, number, number_of, refused, spec, timed, timestamp, told};
use carillon_tests::rig::Rig;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

const LIMIT: Duration = Duration::from_secs(30);

pub async fn delivered(rig: &Rig) {
    let practice = &rig.practices[0];
    let mark = rig.carrier.mark().await.unwrap();
    let plain = MessageSpec {
        external_reference: "visit-1".to_owned(),
        labels: HashMap::from([("site".to_owned(), "north wing".to_owned())]),
        ..spec(practice, "accept-plain", 0)
    };
    // Two parts, and a character that forces UCS-2 in neither.
    let long =
        MessageSpec { body: "Please bring your card. ".repeat(10), ..spec(practice, "accept-long", 1) };
    let ids = rig.submit(vec![plain.clone(), long.clone()]).await;
    assert!(ids.iter().all(|m| m.message_id.len() == 26 && !m.duplicate), "{ids:?}");
    assert_eq!((ids[0].segments, ids[1].segments), (1, 2));
    assert_eq!((ids[0].encoding(), ids[0].ucs2_character.as_str()), (Encoding::Gsm7, ""));
    assert!(ids[0].time_zone.ends_with(" (practice)"), "{}", ids[0].time_zone);

    for id in &ids {
        rig.until_state(&id.message_id, MessageState::Delivered, LIMIT).await;
    }
    let full = rig.get(&ids[0].message_id, MessageView::Full).await.unwrap();
    assert_eq!((full.body.as_str(), full.recipient.as_str()), (plain.body.as_str(), number_of(&plain)));
    assert_eq!((full.external_reference.as_str(), &full.labels), ("visit-1", &plain.labels));
    assert_eq!((full.practice.as_str(), full.class()), (practice.as_str(), MessageClass::Reminder));
    assert_eq!(full.attempts.len(), 1);
    let attempt = &full.attempts[0];
    assert_eq!((attempt.number, attempt.carrier.as_str(), attempt.outcome()), (1, "sim", Outcome::Accepted));
    assert!(full.accept_time.is_some() && full.expires_at.is_some() && attempt.begin_time.is_some());
    assert_eq!(full.waiting_reason(), WaitingReason::Unspecified);
    let long_full = rig.get(&ids[1].message_id, MessageView::Full).await.unwrap();
    assert_eq!((long_full.body.as_str(), long_full.attempts[0].segments), (long.body.as_str(), 2));

    let basic = rig.get(&ids[0].message_id, MessageView::Basic).await.unwrap();
    assert_eq!((basic.body.as_str(), basic.recipient.as_str()), ("", "+*********00"));
    assert_eq!(basic.state(), MessageState::Delivered);

    let truth = rig.carrier.truth(&mark).await.unwrap();
    for message in [&plain, &long] {
        let key = truth_key(&TruthKey::default(), number_of(message), &message.body);
        let received = truth.received.get(&key).expect("the carrier received it");
        assert_eq!((received.accepted, received.state.as_deref()), (1, Some("DELIVRD")));
    }
    assert_eq!((truth.submits, truth.messages, truth.violations), (3, 2, 0));
}

fn ids_of(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|m| m.message_id.as_str()).collect()
}

pub async fn lists(rig: &Rig) {
    let practice = &rig.practices[1];
    let first = (0..14).map(|i| MessageSpec {
        class: MessageClass::Recall as i32,
        external_reference: format!("list-{}", i % 3),
        ..spec(practice, &format!("list-recall-{i}"), i)
    });
    rig.submit(first.collect()).await;
    rig.until_settled(practice, LIMIT).await;
    let middle = timestamp(carillon_tests::api::now_ms());
    let second = (0..11).map(|i| MessageSpec {
        class: MessageClass::Form as i32,
        not_before: from_now(3_600_000),
        ..spec(practice, &format!("list-form-{i}"), i)
    });
    rig.submit(second.collect()).await;

    let all = ListMessagesRequest { practice: practice.clone(), page_size: 7, ..Default::default() };
    let everything = rig.list(all.clone()).await;
    assert_eq!(ids_of(&everything).into_iter().collect::<BTreeSet<_>>().len(), 25);
    assert_eq!(everything.len(), 25, "a page repeats messages");
    let times: Vec<_> = everything.iter().map(|m| m.accept_time.map(|t| (t.seconds, t.nanos))).collect();
    assert!(times.is_sorted(), "not oldest first");
    assert!(everything.iter().all(|m| m.practice == *practice && m.body.is_empty()));
    let whole_tenant = rig.list(ListMessagesRequest { practice: String::new(), ..all.clone() }).await;
    let ours = whole_tenant.iter().filter(|m| m.practice == *practice).count();
    assert!(ours == 25 && whole_tenant.len() > 25, "{ours} of {}", whole_tenant.len());

    let count = async |request: ListMessagesRequest| rig.list(request).await.len();
    let recall = vec![MessageClass::Recall as i32];
    assert_eq!(count(ListMessagesRequest { classes: recall, ..all.clone() }).await, 14);
    let both = vec![MessageClass::Recall as i32, MessageClass::Form as i32];
    assert_eq!(count(ListMessagesRequest { classes: both, ..all.clone() }).await, 25);
    let delivered = vec![MessageState::Delivered as i32];
    assert_eq!(count(ListMessagesRequest { states: delivered.clone(), ..all.clone() }).await, 14);
    let waiting = vec![MessageState::Accepted as i32, MessageState::Waiting as i32];
    let open = rig.list(ListMessagesRequest { states: waiting, ..all.clone() }).await;
    assert_eq!(open.len(), 11);
    assert!(open.iter().all(|m| m.due_time.is_some()));
    let by_reference = ListMessagesRequest { external_reference: "list-1".to_owned(), ..all.clone() };
    let found = rig.list(by_reference.clone()).await;
    assert_eq!(found.len(), 5);
    assert!(found.iter().all(|m| m.external_reference == "list-1"));
    assert_eq!(count(ListMessagesRequest { accepted_before: Some(middle), ..all.clone() }).await, 14);
    assert_eq!(count(ListMessagesRequest { accepted_after: Some(middle), ..all.clone() }).await, 11);
    let none = ListMessagesRequest { states: delivered, accepted_after: Some(middle), ..all.clone() };
    assert_eq!(count(none).await, 0);
    let full = rig.list(ListMessagesRequest { view: MessageView::Full as i32, ..by_reference }).await;
    assert!(full.iter().all(|m| m.body.contains("list-recall-") && m.recipient.starts_with("+1212")));
}

/// Reads until `enough`; returns the events and the last cursor.
async fn read(
    stream: &mut tonic::Streaming<WatchEventsResponse>,
    mut enough: impl FnMut(&[Event]) -> bool,
) -> (Vec<Event>, String) {
    let mut events = Vec::new();
    let wait = async {
        loop {
            let answer = stream.message().await.expect("no error").expect("the stream lives");
            events.extend(answer.events);
            if enough(&events) {
                return answer.cursor;
            }
        }
    };
    let cursor = tokio::time::timeout(LIMIT, wait).await.expect("the events come");
    (events, cursor)
}

async fn open_watch(rig: &Rig, practice: &str, cursor: &str) -> tonic::Streaming<WatchEventsResponse> {
    let request = WatchEventsRequest { practice: practice.to_owned(), cursor: cursor.to_owned() };
    rig.client.messages().watch_events(timed(request)).await.unwrap().into_inner()
}

pub async fn watch(rig: &Rig) {
    let practice = &rig.practices[2];
    let done = |id: String| {
        move |events: &[Event]| {
            events.iter().any(|e| e.message_id == id && e.state() == MessageState::Delivered)
        }
    };
    let mut stream = open_watch(rig, practice, "").await;
    // The first answer says where "now" is.
    read(&mut stream, |_| true).await;
    let one = rig.submit(vec![spec(practice, "watch-1", 0)]).await.remove(0).message_id;
    let (events, cursor) = read(&mut stream, done(one.clone())).await;
    drop(stream);
    assert!(events.iter().all(|e| e.message_id == one && e.practice == *practice), "{events:?}");
    let states: Vec<MessageState> = events.iter().map(Event::state).collect();
    assert_eq!(states[0], MessageState::Accepted);
    assert!(
        states.contains(&MessageState::InFlight) && states.contains(&MessageState::Submitted),
        "{states:?}"
    );

    // What happens while nobody watches is not missed, and what was seen is not repeated.
    let two = rig.submit(vec![spec(practice, "watch-2", 1)]).await.remove(0).message_id;
    rig.until_state(&two, MessageState::Delivered, LIMIT).await;
    let mut stream = open_watch(rig, practice, &cursor).await;
    let (events, _) = read(&mut stream, done(two.clone())).await;
    assert!(events.iter().all(|e| e.message_id == two), "{events:?}");
    assert_eq!(events[0].state(), MessageState::Accepted);

    let mut stream = open_watch(rig, practice, "start").await;
    let (events, _) = read(&mut stream, done(two)).await;
    assert!(events.iter().any(|e| e.message_id == one));
    // The whole tenant.
    let mut stream = open_watch(rig, "", "start").await;
    let (_, _) = read(&mut stream, done(one)).await;
}

pub async fn cancels(rig: &Rig) {
    let practice = &rig.practices[3];
    let later = |key: &str, reference: &str| MessageSpec {
        not_before: from_now(3_600_000),
        external_reference: reference.to_owned(),
        ..spec(practice, key, 0)
    };
    let waiting = vec![later("cancel-1", ""), later("cancel-2", "visit-9"), later("cancel-3", "visit-9")];
    let waiting: Vec<String> = rig.submit(waiting).await.into_iter().map(|m| m.message_id).collect();
    let gone = rig.submit(vec![spec(practice, "cancel-late", 1)]).await.remove(0).message_id;
    rig.until_state(&gone, MessageState::Delivered, LIMIT).await;

    let unknown = carillon_proto::MessageId::new(1, carillon_proto::Slot::of_practice(TENANT, practice), 7);
    let request = CancelMessagesRequest {
        message_ids: vec![waiting[0].clone(), gone.clone(), unknown.to_string()],
        ..Default::default()
    };
    let results = rig.client.cancel(request.clone()).await.unwrap();
    assert_eq!((results[0].canceled, results[0].state()), (true, MessageState::Canceled));
    assert_eq!((results[1].canceled, results[1].state()), (false, MessageState::Delivered));
    assert!(results[1].submit_time.is_some() && results[0].submit_time.is_none());
    let status = carillon_proto::errors::from_rpc(results[2].error.as_ref().unwrap());
    assert_eq!(told(&status), (Code::NotFound, "MESSAGE_NOT_FOUND".to_owned()));
    // Once more changes nothing.
    assert_eq!(rig.client.cancel(request).await.unwrap()[..2], results[..2]);

    let request = CancelMessagesRequest {
        external_references: vec!["visit-9".to_owned(), "no-such-visit".to_owned()],
        practice: practice.clone(),
        ..Default::default()
    };
    let results = rig.client.cancel(request).await.unwrap();
    let found: BTreeSet<&str> = results.iter().map(|r| r.message_id.as_str()).collect();
    assert_eq!(found, waiting[1..].iter().map(String::as_str).collect());
    assert!(results.iter().all(|r| r.canceled && r.external_reference == "visit-9"));
    for id in &waiting {
        assert_eq!(rig.get(id, MessageView::Basic).await.unwrap().state(), MessageState::Canceled);
    }
}

pub async fn validate_only(rig: &Rig) {
    let practice = &rig.practices[4];
    let good = MessageSpec { time_zone: "America/Denver".to_owned(), ..spec(practice, "only", 0) };
    let ucs2 =
        MessageSpec { body: "Zur Erinnerung: \u{2713} morgen".to_owned(), ..spec(practice, "only-2", 0) };
    let bad = MessageSpec { body: String::new(), ..spec(practice, "only-3", 0) };
    let request = SubmitMessagesRequest { messages: vec![good.clone(), ucs2, bad], validate_only: true };
    let answer = rig.client.submit(request).await.unwrap().results;
    let first = accepted(&answer[0]);
    assert_eq!((first.message_id.as_str(), first.segments), ("", 1));
    assert_eq!(first.time_zone, "America/Denver (message)");
    let second = accepted(&answer[1]);
    assert_eq!((second.encoding(), second.ucs2_character.as_str()), (Encoding::Ucs2, "\u{2713}"));
    assert_eq!(second.ucs2_character_index, 16);
    assert_eq!(told(&refused(&answer[2])).1, "INVALID_FIELDS");
    let request = ListMessagesRequest { practice: practice.clone(), ..Default::default() };
    assert_eq!(rig.list(request).await, []);
    // The key is still free.
    assert!(!rig.submit(vec![good]).await[0].duplicate);
}

/// What the nodes are told about classes.
pub const CLASSES: &str = "[classes.survey]\npriority = \"high\"\ndefault_expiry_s = 3600\nattempts_max = 2\n\
    backoff_base_ms = 1000\nbackoff_max_ms = 1000\nunknown_policy = \"abandon\"\n";

/// The class that was configured has its settings, another one its defaults; what the caller says goes before both.
pub async fn classes(rig: &Rig) {
    let practice = &rig.practices[13];
    let of_class =
        |key: &str, class: MessageClass| MessageSpec { class: class as i32, ..spec(practice, key, 0) };
    let said = MessageSpec {
        priority: Priority::Bulk as i32,
        expires_at: from_now(120_000),
        ..of_class("class-said", MessageClass::Survey)
    };
    let messages = vec![
        of_class("class-survey", MessageClass::Survey),
        of_class("class-recall", MessageClass::Recall),
        said,
    ];
    let mut found = Vec::new();
    for accepted in rig.submit(messages).await {
        let message = rig.get(&accepted.message_id, MessageView::Basic).await.unwrap();
        let life_s = message.expires_at.unwrap().seconds - message.accept_time.unwrap().seconds;
        found.push((message.priority(), life_s));
    }
    assert_eq!(found[..2], [(Priority::High, 3_600), (Priority::Bulk, 72 * 3_600)]);
    assert_eq!(found[2].0, Priority::Bulk);
    assert!((118..=121).contains(&found[2].1), "{found:?}");
}

pub async fn stream(rig: &Rig) {
    let (a, b) = (&rig.practices[5], &rig.practices[6]);
    let batches: Vec<StreamMessagesRequest> = (0..12u64)
        .map(|batch_id| StreamMessagesRequest {
            batch_id,
            messages: (0..50)
                .map(|i| spec(if i % 2 == 0 { a } else { b }, &format!("stream-{batch_id}-{i}"), i))
                .collect(),
        })
        .collect();
    let empty = StreamMessagesRequest { batch_id: 99, messages: Vec::new() };
    let all: Vec<_> = batches.iter().cloned().chain([empty]).collect();
    let mut answers = rig
        .client
        .messages()
        .stream_messages(Request::new(tokio_stream::iter(all)))
        .await
        .unwrap()
        .into_inner();
    let (mut ids, mut answered) = (BTreeSet::new(), BTreeSet::new());
    while let Some(answer) = answers.message().await.unwrap() {
        assert!(answered.insert(answer.batch_id), "batch {} was answered twice", answer.batch_id);
        if answer.batch_id == 99 {
            let status = carillon_proto::errors::from_rpc(answer.error.as_ref().unwrap());
            assert_eq!(told(&status), (Code::InvalidArgument, "NO_ITEMS".to_owned()));
            continue;
        }
        assert!(answer.error.is_none() && answer.results.len() == 50);
        ids.extend(answer.results.iter().map(|r| accepted(r).message_id.clone()));
    }
    assert_eq!((answered.len(), ids.len()), (13, 600));
    // A broken stream is repeated: the same keys come back with the same ids.
    let again = rig.submit(batches[3].messages.clone()).await;
    assert!(again.iter().all(|m| m.duplicate && ids.contains(&m.message_id)));
    for practice in [a, b] {
        let all = rig.until_settled(practice, Duration::from_secs(60)).await;
        assert!(all.len() == 300 && all.iter().all(|m| m.state() == MessageState::Delivered));
    }
}

pub async fn keys(rig: &Rig) {
    let (practice, other) = (&rig.practices[7], &rig.practices[8]);
    let first = spec(practice, "key-1", 0);
    let id = rig.submit(vec![first.clone()]).await.remove(0).message_id;
    let again = rig.submit(vec![first.clone()]).await.remove(0);
    assert_eq!((again.message_id.as_str(), again.duplicate), (id.as_str(), true));
    key_names_only(rig, &first, &id).await;
    // Two of the same in one request are one message too.
    let twin = spec(practice, "key-2", 1);
    let twins = rig.submit(vec![twin.clone(), twin]).await;
    assert_eq!(twins[0].message_id, twins[1].message_id);
    assert_eq!(twins.iter().filter(|m| m.duplicate).count(), 1);
    // Keys of practices are apart.
    let elsewhere = MessageSpec { body: "Another practice.".to_owned(), ..spec(other, "key-1", 0) };
    let elsewhere = rig.submit(vec![elsewhere]).await.remove(0);
    assert!(!elsewhere.duplicate && elsewhere.message_id != id);
    for message in [&id, &twins[0].message_id, &elsewhere.message_id] {
        let message = rig.until_state(message, MessageState::Delivered, LIMIT).await;
        assert_eq!(message.attempts.len(), 1);
    }
    assert_eq!(rig.carrier.stats().await.unwrap().messages.duplicated, 0);
}

/// Other content under the same key is refused, whatever differs, and the error names the message.
pub async fn key_names_only(rig: &Rig, first: &MessageSpec, id: &str) {
    let others = [
        MessageSpec { body: "Another text.".to_owned(), ..first.clone() },
        MessageSpec { recipient: Some(message_spec::Recipient::PhoneNumber(number(777))), ..first.clone() },
        MessageSpec { class: MessageClass::Survey as i32, ..first.clone() },
        MessageSpec { labels: HashMap::from([("a".to_owned(), "b".to_owned())]), ..first.clone() },
    ];
    let request = SubmitMessagesRequest { messages: others.to_vec(), validate_only: false };
    for result in &rig.client.submit(request).await.unwrap().results {
        let status = refused(result);
        assert_eq!(told(&status), (Code::AlreadyExists, "IDEMPOTENCY_KEY_REUSED".to_owned()));
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().metadata.get("message_id").map(String::as_str), Some(id));
    }
}
