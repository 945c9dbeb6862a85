//! `SubmitMessages`, and the acceptance of one batch that it shares with `StreamMessages`.
use super::{Shared, now_ms};
use crate::batch::{self, Fate, Pending};
use crate::deadline::Deadline;
use crate::map::Practices;
use crate::metrics;
use crate::validate::{self, Checked, ITEMS_MAX};
use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::submit_result::Result as Outcome;
use carillon_proto::public::{
    AcceptedMessage, ErrorReason, MessageSpec, SubmitMessagesRequest, SubmitMessagesResponse, SubmitResult,
};
use carillon_proto::{errors, place};
use prost::Message as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;
use tonic::{Code, Request, Status};

/// In lab mode a message with this label makes the router panic while it holds the plaintext, with the plaintext in the panic: the
/// canary suite proves that no trace of it is left. Without lab mode it is a label like any other.
const PANIC_LABEL: &str = "carillon-lab-panic-router";

pub(super) async fn unary(
    shared: &Shared,
    request: Request<SubmitMessagesRequest>,
) -> Result<SubmitMessagesResponse, Status> {
    let caller = shared.authorize(&request)?;
    let deadline = caller.required_deadline()?;
    let request = request.into_inner();
    validate::count(request.messages.len(), ITEMS_MAX)?;
    let bytes = request.encoded_len();
    let _room = shared.room_soon(bytes, request.messages.len(), deadline).await?;
    shared.partitions(deadline).await?;
    let results = if request.validate_only {
        check_only(shared, caller.tenant(), request.messages)
    } else {
        accept(shared, caller.tenant(), request.messages, deadline).await
    };
    Ok(SubmitMessagesResponse { results })
}

/// Checks, hands over, and answers for each message in order.
pub(super) async fn accept(
    shared: &Shared,
    tenant: &str,
    specs: Vec<MessageSpec>,
    deadline: Deadline,
) -> Vec<SubmitResult> {
    let began = Instant::now();
    let _in_flight = metrics::batch_in_flight();
    let (mut results, mut pending) = (Vec::with_capacity(specs.len()), Pending::default());
    let snapshot = shared.map.load();
    let practices = snapshot.practices(tenant).map(AsRef::as_ref);
    check_each(practices, specs, shared.lab, |index, partition, outcome| {
        results.push(outcome.map(|(checked, quote)| {
            pending.add(partition, index, checked.message);
            quote
        }));
    });
    drop(snapshot);
    let fates = batch::submit(&shared.map, tenant, pending, results.len(), deadline).await;
    let results = results.into_iter().zip(fates).map(|(outcome, fate)| conclude(outcome, fate)).collect();
    count(&results, began);
    results
}

fn check_only(shared: &Shared, tenant: &str, specs: Vec<MessageSpec>) -> Vec<SubmitResult> {
    let mut results = Vec::with_capacity(specs.len());
    let snapshot = shared.map.load();
    check_each(snapshot.practices(tenant).map(AsRef::as_ref), specs, shared.lab, |_, _, outcome| {
        let outcome = match outcome {
            Ok((_, quote)) => Outcome::Accepted(quote),
            Err(status) => Outcome::Error(errors::to_rpc(&status)),
        };
        results.push(SubmitResult { result: Some(outcome) });
    });
    results
}

/// Checks every message and gives each to `take` with its place and partition. A panic stays with its message: broken off, the call
/// would be repeated with all of them.
fn check_each(
    practices: Option<&Practices>,
    specs: Vec<MessageSpec>,
    lab: bool,
    mut take: impl FnMut(usize, u32, Result<(Checked, AcceptedMessage), Status>),
) {
    let now_ms = now_ms();
    for (index, spec) in specs.into_iter().enumerate() {
        let practice = practices.and_then(|practices| practices.get(&spec.practice));
        let check = || -> Result<(Checked, AcceptedMessage), Status> {
            if lab {
                panic_if_asked(&spec);
            }
            let checked = validate::check(spec, practice, now_ms)?;
            let quote = quote(&checked);
            Ok((checked, quote))
        };
        let outcome = catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|_| Err(panicked()));
        take(index, practice.map_or(0, |p| p.partition), outcome);
    }
}

fn panic_if_asked(spec: &MessageSpec) {
    let number = match &spec.recipient {
        Some(Recipient::PhoneNumber(number)) => number.as_str(),
        Some(Recipient::NationalNumber(national)) => &national.number,
        None => "",
    };
    let asked = spec.labels.contains_key(PANIC_LABEL);
    assert!(!asked, "asked to panic by {number} {} {:?}", spec.body, spec.labels);
}

fn panicked() -> Status {
    errors::status(ErrorReason::Internal, "the message could not be processed")
}

/// The answer for a message without its id.
fn quote(checked: &Checked) -> AcceptedMessage {
    let (character, index) = checked.sms.first_ucs2.map_or((String::new(), 0), |(c, i)| (c.to_string(), i));
    AcceptedMessage {
        message_id: String::new(),
        duplicate: false,
        encoding: checked.sms.encoding as i32,
        segments: checked.sms.segments,
        ucs2_character: character,
        ucs2_character_index: u32::try_from(index).unwrap_or(u32::MAX),
        time_zone: checked.message.place.as_ref().map(place::describe).unwrap_or_default(),
        first_send_time: None,
        expires_in_quiet_hours: false,
    }
}

fn conclude(outcome: Result<AcceptedMessage, Status>, fate: Option<Fate>) -> SubmitResult {
    let outcome = match (outcome, fate) {
        (Ok(quote), Some(Fate::Accepted(accepted))) => Outcome::Accepted(AcceptedMessage {
            message_id: accepted.message_id.to_string(),
            duplicate: accepted.duplicate,
            first_send_time: accepted.first_send_ms.map(validate::timestamp),
            expires_in_quiet_hours: accepted.expires_in_quiet_hours,
            ..quote
        }),
        (Ok(_), Some(Fate::Refused(error))) => Outcome::Error(error),
        (Ok(_), None) => unreachable!("every message that passed the checks was handed over"),
        (Err(status), _) => Outcome::Error(errors::to_rpc(&status)),
    };
    SubmitResult { result: Some(outcome) }
}

fn count(results: &Vec<SubmitResult>, began: Instant) {
    let (mut accepted, mut duplicate, mut refused, mut unavailable) = (0, 0, 0, 0);
    for result in results {
        match &result.result {
            Some(Outcome::Accepted(message)) if message.duplicate => duplicate += 1,
            Some(Outcome::Accepted(_)) => accepted += 1,
            Some(Outcome::Error(error)) if error.code == Code::Unavailable as i32 => unavailable += 1,
            Some(Outcome::Error(_)) | None => refused += 1,
        }
    }
    metrics::batch(accepted, duplicate, refused, unavailable, began.elapsed());
}
