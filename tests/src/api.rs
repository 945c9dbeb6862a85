//! Requests of the public API with good values, and what a refusal says.

use carillon_proto::errors;
use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::submit_result::Result as Item;
use carillon_proto::public::{AcceptedMessage, MessageClass, MessageSpec, SubmitResult};
use prost_types::Timestamp;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

/// Deadline of a call, as the API recommends.
pub const DEADLINE: Duration = Duration::from_secs(10);
const AREAS: [&str; 10] = ["212", "312", "415", "617", "713", "206", "303", "404", "602", "305"];

/// A number that nobody has: of the fictitious 555-0100 to 555-0199. 1,000 different ones.
pub fn number(at: usize) -> String {
    format!("+1{}55501{:02}", AREAS[at / 100 % AREAS.len()], at % 100)
}

/// A reminder that is due now. Its text holds the key, so no two keys make the same message at the carrier.
pub fn spec(practice: &str, key: &str, at: usize) -> MessageSpec {
    MessageSpec {
        practice: practice.to_owned(),
        recipient: Some(Recipient::PhoneNumber(number(at))),
        body: format!("Your visit {key} is tomorrow at 9:30."),
        class: MessageClass::Reminder as i32,
        idempotency_key: key.to_owned(),
        ..MessageSpec::default()
    }
}

/// The E.164 number of a spec.
pub fn number_of(spec: &MessageSpec) -> &str {
    match &spec.recipient {
        Some(Recipient::PhoneNumber(number)) => number,
        _ => panic!("the spec has no E.164 number"),
    }
}

/// With a deadline.
pub fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64
}

/// Milliseconds from now.
pub fn from_now(ms: i64) -> Option<Timestamp> {
    Some(timestamp(now_ms() + ms))
}

pub fn timestamp(ms: i64) -> Timestamp {
    Timestamp { seconds: ms.div_euclid(1000), nanos: (ms.rem_euclid(1000) * 1_000_000) as i32 }
}

/// The accepted message, or a panic that quotes the error.
pub fn accepted(result: &SubmitResult) -> &AcceptedMessage {
    match &result.result {
        Some(Item::Accepted(message)) => message,
        other => panic!("not accepted: {other:?}"),
    }
}

/// The error of an item.
pub fn refused(result: &SubmitResult) -> Status {
    match &result.result {
        Some(Item::Error(error)) => errors::from_rpc(error),
        other => panic!("not refused: {other:?}"),
    }
}

/// Code and reason. An error of ours always has the domain.
pub fn told(status: &Status) -> (Code, String) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, errors::DOMAIN);
    (status.code(), info.reason.clone())
}

/// Field and word of each violation.
pub fn violations(status: &Status) -> Vec<(String, String)> {
    let details = status.get_error_details();
    let list = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    list.into_iter().map(|v| (v.field, v.reason)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_fictitious_and_different() {
        let all: std::collections::BTreeSet<String> = (0..1_000).map(number).collect();
        assert_eq!(all.len(), 1_000);
        assert!(all.iter().all(|n| n.len() == 12 && &n[5..10] == "55501"));
    }
}
