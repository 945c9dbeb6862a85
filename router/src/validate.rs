//! Checks every field of a message at once and turns it into what nodes take. Strings are moved, not copied.
//!
//! Class defaults (priority, expiry) are not resolved here: there is one table of classes and the nodes have it, so an
//! unset priority or expiry passes through as 0.
use crate::map::Practice;
use crate::phone::{self, PhoneFault};
use crate::text::{self, TextFault};
use crate::violations::{Fault, Violations};
use carillon_proto::errors;
use carillon_proto::internal::{IngestMessage, Place};
use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::{ErrorReason, MessageClass, MessageSpec, Priority};
use carillon_proto::region::{self, RegionFault};
use carillon_proto::sms::SmsText;
use carillon_proto::{local_time, place};
use prost_types::Timestamp;
use std::borrow::Cow;
use std::collections::HashMap;
use tonic::Status;

/// Messages of one request at most.
pub const ITEMS_MAX: usize = 1_000;
/// Idempotency key and external reference.
pub const KEY_BYTES_MAX: usize = 128;
const LABELS_MAX: usize = 16;
const LABEL_BYTES_MAX: usize = 64;
pub const AHEAD_MAX_MS: u64 = 400 * 24 * 3_600_000;
/// The last second of the year 9999, as protobuf's JSON form allows.
const LAST_SECOND: i64 = 253_402_300_799;

/// A message that may be accepted.
pub struct Checked {
    pub message: IngestMessage,
    pub sms: SmsText,
}

/// Too few or too many items fail the request as a whole.
pub fn count(items: usize, items_max: usize) -> Result<(), Status> {
    if items == 0 {
        return Err(errors::status(ErrorReason::NoItems, "the request has no items"));
    }
    if items > items_max {
        let what = format!("{items} items, at most {items_max} are allowed");
        return Err(errors::status(ErrorReason::TooManyItems, &what));
    }
    Ok(())
}

/// Checks one message. `practice` is the practice that the spec names, if this tenant has it. One that it does not have is the whole
/// answer, whatever else is wrong: of what is not theirs callers learn nothing more.
pub fn check(mut spec: MessageSpec, practice: Option<&Practice>, now_ms: u64) -> Result<Checked, Status> {
    let mut bad = Violations::default();
    if spec.practice.is_empty() {
        bad.add("practice", Fault::EMPTY);
    } else if practice.is_none() {
        return Err(practice_not_found());
    }
    let region_fault = set_region(&mut spec.region);
    let recipient = check_recipient(spec.recipient.take(), &mut bad);
    let sms = check_body(&spec.body, &mut bad);
    if spec.class == 0 || MessageClass::try_from(spec.class).is_err() {
        bad.add("class", Fault::UNKNOWN_CLASS);
    }
    if Priority::try_from(spec.priority).is_err() {
        bad.add("priority", Fault::UNKNOWN_PRIORITY);
    }
    let zone_known = spec.time_zone.is_empty() || local_time::zone(&spec.time_zone).is_some();
    let place = place_of(&spec, practice, recipient.as_deref()).filter(|_| zone_known);
    let local_ms = check_local(&spec, place.as_ref(), &mut bad);
    let times = check_times(spec.not_before, local_ms, spec.expires_at, spec.deadline, now_ms, &mut bad);
    if !zone_known {
        bad.add("time_zone", Fault::UNKNOWN_TIME_ZONE);
    }
    if let Some(fault) = region_fault {
        bad.add("region", fault);
    }
    check_key("idempotency_key", &spec.idempotency_key, &mut bad);
    check_key("external_reference", &spec.external_reference, &mut bad);
    check_labels(&spec.labels, &mut bad);

    match (bad.is_empty(), practice, recipient, sms) {
        (true, Some(practice), Some(recipient), Some(sms)) => {
            // What nodes below feature level 5 read.
            let time_zone = match spec.time_zone.is_empty() {
                true => practice.time_zone.to_string(),
                false => spec.time_zone,
            };
            let message = IngestMessage {
                practice_no: practice.number,
                recipient,
                body: spec.body,
                class: spec.class,
                priority: spec.priority,
                not_before_ms: times.not_before_ms,
                expires_at_ms: times.expires_at_ms,
                deadline_ms: times.deadline_ms,
                time_zone,
                idempotency_key: spec.idempotency_key,
                external_reference: spec.external_reference,
                labels: spec.labels,
                encoding: sms.encoding as i32,
                segments: sms.segments,
                place,
                not_before_local: spec.not_before_local,
                ordered: spec.ordered,
                allow_duplicate: spec.allow_duplicate,
            };
            Ok(Checked { message, sms })
        }
        (true, _, _, _) => Err(practice_not_found()),
        (false, ..) => Err(bad.into_result().expect_err("it is not empty")),
    }
}

/// The same answer for practices that do not exist and for those of other tenants.
pub fn practice_not_found() -> Status {
    errors::status(ErrorReason::PracticeNotFound, "no such practice for this tenant")
}

/// The region as tables and rules have it, in upper case; what is wrong with it otherwise.
fn set_region(given: &mut String) -> Option<Fault> {
    if given.is_empty() {
        return None;
    }
    match region::known(given).map(Cow::into_owned) {
        Ok(region) => {
            *given = region;
            None
        }
        Err(RegionFault::Malformed) => Some(Fault::MALFORMED_REGION),
        Err(RegionFault::Unknown) => Some(Fault::UNKNOWN_REGION),
    }
}

fn check_recipient(recipient: Option<Recipient>, bad: &mut Violations) -> Option<String> {
    let (parsed, field) = match recipient {
        None => {
            bad.add("phone_number", Fault::EMPTY);
            return None;
        }
        Some(Recipient::PhoneNumber(number)) => (phone::e164(number), "phone_number"),
        Some(Recipient::NationalNumber(national)) => {
            (phone::national(&national.number, &national.region), "national_number.number")
        }
    };
    let fault = match parsed {
        Ok(number) => return Some(number),
        Err(PhoneFault::Region) => {
            bad.add("national_number.region", Fault::UNKNOWN_REGION);
            return None;
        }
        Err(PhoneFault::Empty) => Fault::EMPTY,
        Err(PhoneFault::TooLong) => Fault::TOO_LONG,
        Err(PhoneFault::Unparsable) => Fault::UNPARSABLE_NUMBER,
        Err(PhoneFault::Invalid) => Fault::INVALID_NUMBER,
    };
    bad.add(field, fault);
    None
}

/// Where the recipient may be; `None` if something that decides it is missing or wrong.
fn place_of(spec: &MessageSpec, practice: Option<&Practice>, number: Option<&str>) -> Option<Place> {
    let practice = practice?;
    Some(place::resolve(place::Known {
        message_zone: &spec.time_zone,
        message_region: &spec.region,
        practice_zone: &practice.time_zone,
        recipient_zones: practice.recipient_zones,
        number: number?,
    }))
}

/// `not_before_local` as a moment, if it is given and the place is known.
fn check_local(spec: &MessageSpec, place: Option<&Place>, bad: &mut Violations) -> Option<u64> {
    const FIELD: &str = "not_before_local";
    if spec.not_before_local.is_empty() {
        return None;
    }
    if spec.not_before.is_some() {
        bad.add(FIELD, Fault::BOTH_GIVEN);
    }
    let Some(local) = local_time::parse(&spec.not_before_local) else {
        bad.add(FIELD, Fault::NOT_A_LOCAL_TIME);
        return None;
    };
    let ms = local_time::latest_ms(place?.time_zones.iter().map(String::as_str), local);
    if ms.is_none() {
        bad.add(FIELD, Fault::INVALID_TIMESTAMP);
    }
    ms
}

fn check_body(body: &str, bad: &mut Violations) -> Option<SmsText> {
    let fault = match text::check(body) {
        Ok(sms) => return Some(sms),
        Err(TextFault::Empty) => Fault::EMPTY,
        Err(TextFault::TooLong) => Fault::TOO_LONG,
        Err(TextFault::TooManySegments) => Fault::TOO_MANY_SEGMENTS,
        Err(TextFault::ControlCharacter) => Fault::CONTROL_CHARACTER,
    };
    bad.add("body", fault);
    None
}

/// 0 = not given.
#[derive(Default)]
struct Times {
    not_before_ms: u64,
    expires_at_ms: u64,
    deadline_ms: u64,
}

fn check_times(
    not_before: Option<Timestamp>,
    local_ms: Option<u64>,
    expires_at: Option<Timestamp>,
    deadline: Option<Timestamp>,
    now_ms: u64,
    bad: &mut Violations,
) -> Times {
    let mut read = |field: &str, time: Option<Timestamp>| match time.map(|t| millis(&t)) {
        None => None,
        Some(Some(ms)) => Some(ms),
        Some(None) => {
            bad.add(field, Fault::INVALID_TIMESTAMP);
            None
        }
    };
    let start_field = if local_ms.is_some() { "not_before_local" } else { "not_before" };
    let start = read("not_before", not_before).or(local_ms);
    let expiry = read("expires_at", expires_at);
    let moment = read("deadline", deadline);
    if start.is_some_and(|start| start > now_ms + AHEAD_MAX_MS) {
        bad.add(start_field, Fault::TOO_FAR);
    }
    match (expiry, start) {
        (Some(expiry), _) if expiry <= now_ms => bad.add("expires_at", Fault::PAST_EXPIRY),
        (Some(expiry), Some(start)) if expiry <= start => {
            bad.add("expires_at", Fault::EXPIRY_BEFORE_NOT_BEFORE);
        }
        _ => {}
    }
    match (moment, start) {
        (Some(moment), Some(start)) if moment < start => {
            bad.add("deadline", Fault::DEADLINE_BEFORE_NOT_BEFORE);
        }
        (Some(moment), _) if moment <= now_ms => bad.add("deadline", Fault::PAST_DEADLINE),
        _ => {}
    }
    Times {
        not_before_ms: start.unwrap_or(0),
        expires_at_ms: expiry.unwrap_or(0),
        deadline_ms: moment.unwrap_or(0),
    }
}

/// Milliseconds since the epoch; `None` outside 1970 to 9999.
pub fn millis(time: &Timestamp) -> Option<u64> {
    let in_range = (0..=LAST_SECOND).contains(&time.seconds) && (0..1_000_000_000).contains(&time.nanos);
    in_range.then(|| time.seconds.unsigned_abs() * 1_000 + u64::from(time.nanos.unsigned_abs()) / 1_000_000)
}

/// The other way round.
pub fn timestamp(ms: u64) -> Timestamp {
    let seconds = i64::try_from(ms / 1_000).unwrap_or(LAST_SECOND);
    Timestamp { seconds, nanos: (ms % 1_000) as i32 * 1_000_000 }
}

fn check_key(field: &str, value: &str, bad: &mut Violations) {
    if value.len() > KEY_BYTES_MAX {
        bad.add(field, Fault::TOO_LONG);
    }
}

/// Violations name the map, never the label: its name may be about the patient.
fn check_labels(labels: &HashMap<String, String>, bad: &mut Violations) {
    if labels.is_empty() {
        return;
    }
    if labels.len() > LABELS_MAX {
        bad.add("labels", Fault::TOO_MANY);
    }
    if labels.keys().any(String::is_empty) {
        bad.add("labels", Fault::EMPTY);
    }
    if labels.iter().any(|(name, value)| name.len() > LABEL_BYTES_MAX || value.len() > LABEL_BYTES_MAX) {
        bad.add("labels", Fault::TOO_LONG);
    }
}

#[cfg(test)]
mod tests;
