//! Wire errors: one table of stable reasons with their canonical code, retry hint and remedy, and the builders that
//! turn a reason into a `tonic::Status` or a `google.rpc.Status` with typed details (AIP-193).
use crate::google::rpc::Status as RpcStatus;
use crate::public::ErrorReason;
use prost::Message as _;
use std::collections::HashMap;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

pub use tonic_types::FieldViolation;

/// `ErrorInfo.domain` of every error.
pub const DOMAIN: &str = "carillon.v1";

/// The fixed properties of a reason.
#[derive(Debug, Clone, Copy)]
pub struct ReasonInfo {
    pub code: Code,
    /// Suggested wait before a repeat; `None` = a repeat does not help.
    pub retry_delay: Option<Duration>,
    /// What the caller should do.
    pub remedy: &'static str,
}

/// The table.
pub fn info(reason: ErrorReason) -> ReasonInfo {
    use ErrorReason as R;
    let (code, retry_ms, remedy) = match reason {
        R::DeadlineRequired => (Code::InvalidArgument, None, "set a deadline on the call; 10 s suits most"),
        R::InvalidFields => (Code::InvalidArgument, None, "correct the fields named in BadRequest"),
        R::TooManyItems => (Code::InvalidArgument, None, "send at most 1000 items per request"),
        R::NoItems => (Code::InvalidArgument, None, "send at least one item"),
        R::PracticeNotFound => (Code::NotFound, None, "check the practice name, or have it registered"),
        R::MessageNotFound => (Code::NotFound, None, "check the message id"),
        R::MessageRetired => {
            (Code::NotFound, None, "keep what you need to know about old messages; watch their events")
        }
        R::IdempotencyKeyReused => {
            (Code::AlreadyExists, None, "use a new key, or repeat exactly the same content")
        }
        R::DuplicateContent => (
            Code::AlreadyExists,
            None,
            "set allow_duplicate if it is meant; metadata message_id is the first one",
        ),
        R::Overloaded => (Code::ResourceExhausted, Some(200), "retry after the delay in RetryInfo"),
        R::PartitionUnavailable => {
            (Code::Unavailable, Some(500), "repeat with the same idempotency key after the delay")
        }
        R::NotLeader => (Code::Unavailable, Some(50), "retry; the router finds the leader"),
        R::WrongIdentity => (Code::PermissionDenied, None, "use a certificate issued for this purpose"),
        R::InvalidToken => (Code::InvalidArgument, None, "start again without the cursor or page token"),
        R::KeyUnavailable => (Code::FailedPrecondition, None, "the practice's key is gone; ask an operator"),
        R::CarrierWithoutBaa => {
            (Code::FailedPrecondition, None, "give the practice a carrier with an agreement; ask an operator")
        }
        R::StorageFull => (Code::ResourceExhausted, Some(5_000), "retry later; operators were alerted"),
        R::RequestTooLarge => (Code::InvalidArgument, None, "send fewer messages in one request or batch"),
        R::MalformedRequest => (
            Code::InvalidArgument,
            None,
            "send valid Protobuf of this method's request, all strings in UTF-8",
        ),
        R::UnknownMethod => {
            (Code::Unimplemented, None, "check the name of the service and method; reflection lists them")
        }
        R::CompressionUnsupported => (Code::Unimplemented, None, "send requests uncompressed"),
        R::DeadlineExceeded => {
            (Code::DeadlineExceeded, None, "call again with the last cursor, and a later deadline or none")
        }
        R::OldVersion => {
            (Code::FailedPrecondition, None, "look at the appointment again; a later version was applied")
        }
        R::VersionReused => {
            (Code::AlreadyExists, None, "give each change of an appointment a version of its own")
        }
        R::Internal | R::Unspecified => (Code::Internal, None, "report it with the time and request"),
    };
    ReasonInfo { code, retry_delay: retry_ms.map(Duration::from_millis), remedy }
}

/// `DEADLINE_REQUIRED` for `ErrorReason::DeadlineRequired`.
pub fn word(reason: ErrorReason) -> &'static str {
    reason.as_str_name().trim_start_matches("ERROR_REASON_")
}

/// A status with ErrorInfo, and RetryInfo where a repeat helps. `what` must be free of plaintext of patients.
pub fn status(reason: ErrorReason, what: &str) -> Status {
    build(reason, what, HashMap::new(), Vec::new())
}

/// Like [`status`], with metadata for ErrorInfo.
pub fn status_with(reason: ErrorReason, what: &str, metadata: &[(&str, String)]) -> Status {
    let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    build(reason, what, metadata, Vec::new())
}

/// INVALID_FIELDS with every bad field at once.
pub fn invalid_fields(violations: Vec<FieldViolation>) -> Status {
    let names: Vec<&str> = violations.iter().map(|v| v.field.as_str()).collect();
    let what = format!("invalid: {}", names.join(", "));
    build(ErrorReason::InvalidFields, &what, HashMap::new(), violations)
}

/// One bad field. `reason` is a stable word in UPPER_SNAKE.
pub fn violation(field: &str, reason: &str, description: &str) -> FieldViolation {
    let mut v = FieldViolation::new(field, description);
    v.reason = reason.to_owned();
    v
}

fn build(
    reason: ErrorReason,
    what: &str,
    metadata: HashMap<String, String>,
    violations: Vec<FieldViolation>,
) -> Status {
    let info = info(reason);
    let mut details = ErrorDetails::new();
    details.set_error_info(word(reason), DOMAIN, metadata);
    if let Some(delay) = info.retry_delay {
        details.set_retry_info(Some(delay));
    }
    if !violations.is_empty() {
        details.set_bad_request(violations);
    }
    let text = if what.is_empty() { info.remedy.to_owned() } else { format!("{what}; {}", info.remedy) };
    Status::with_error_details(info.code, text, details)
}

/// The same error as a per-item `google.rpc.Status`.
pub fn to_rpc(status: &Status) -> RpcStatus {
    match RpcStatus::decode(status.details()) {
        Ok(rpc) if !status.details().is_empty() => rpc,
        _ => RpcStatus {
            code: status.code() as i32,
            message: status.message().to_owned(),
            details: Vec::new(),
        },
    }
}

/// A per-item error as a call error.
pub fn from_rpc(rpc: &RpcStatus) -> Status {
    Status::with_details(Code::from_i32(rpc.code), rpc.message.clone(), rpc.encode_to_vec().into())
}

/// The stable reason in a status, if it carries one.
pub fn reason_of(status: &Status) -> Option<ErrorReason> {
    let details = status.get_error_details();
    let info = details.error_info()?;
    ErrorReason::from_str_name(&format!("ERROR_REASON_{}", info.reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_code_a_remedy_and_survives_the_wire() {
        for number in 1..64 {
            let Ok(reason) = ErrorReason::try_from(number) else { continue };
            let built = status(reason, "");
            assert!(!info(reason).remedy.is_empty());
            assert_eq!(reason_of(&built), Some(reason));
            let back = from_rpc(&to_rpc(&built));
            assert_eq!((back.code(), reason_of(&back)), (built.code(), Some(reason)));
            let retry = built.get_error_details().retry_info().is_some();
            assert_eq!(retry, info(reason).retry_delay.is_some(), "{reason:?}");
        }
    }

    #[test]
    fn all_violations_are_listed() {
        let s =
            invalid_fields(vec![violation("body", "EMPTY", "is empty"), violation("class", "UNKNOWN", "?")]);
        let details = s.get_error_details();
        let fields: Vec<_> =
            details.bad_request().unwrap().field_violations.iter().map(|v| (&*v.field, &*v.reason)).collect();
        assert_eq!(fields, [("body", "EMPTY"), ("class", "UNKNOWN")]);
    }
}
