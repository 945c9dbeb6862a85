//! What went wrong with a call of the public API, for a reader at a terminal: the stable reason, every wrong field with reason and
//! description, what the error knows beside that, when to repeat it; or, when no handler was reached, what failed on the way and
//! what to do about it.
use carillon_proto::errors;
use carillon_proto::transport::Cause;
use std::fmt::Write as _;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// An error with its whole text.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Problem {
    text: String,
    /// The cluster understood and said no, and a repeat does not help.
    pub refused: bool,
}

/// Whether a later call may do better, as far as the code says.
pub fn may_pass(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::ResourceExhausted
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
            | Code::Internal
    )
}

impl Problem {
    /// `what` follows "cannot", for example "send the message".
    pub fn of(what: &str, address: &str, status: &Status) -> Self {
        let refused = !may_pass(status.code());
        let text = match (errors::reason_of(status), Cause::of(status)) {
            (Some(reason), _) => told(errors::word(reason), status),
            (None, Some(cause)) => {
                format!("cannot {what}: {address}: {cause}; {}", cause.remedy())
            }
            (None, None) => format!("cannot {what}: {address}: {:?}: {}", status.code(), status.message()),
        };
        Self { text, refused }
    }

    /// The cluster answered, and the answer is not what was asked for.
    pub fn refusal(text: String) -> Self {
        Self { text, refused: true }
    }

    /// Several as one, a repeated text once.
    pub fn all(problems: impl IntoIterator<Item = Self>) -> Option<Self> {
        problems.into_iter().reduce(|all, next| {
            let text =
                if all.text.contains(&next.text) { all.text } else { format!("{}\n{}", all.text, next.text) };
            Self { text, refused: all.refused && next.refused }
        })
    }
}

/// An answer of a handler: one line, and a line for each detail.
fn told(reason: &str, status: &Status) -> String {
    let mut text = format!("{reason}: {}", status.message());
    let details = status.get_error_details();
    let violations = details.bad_request().map(|bad| &bad.field_violations[..]).unwrap_or_default();
    let width = |part: fn(&tonic_types::FieldViolation) -> &str| {
        violations.iter().map(|v| part(v).len()).max().unwrap_or(0)
    };
    let (fields, reasons) = (width(|v| &v.field), width(|v| &v.reason));
    for v in violations {
        let (field, reason, description) = (&v.field, &v.reason, &v.description);
        write!(text, "\n  {field:fields$}  {reason:reasons$}  {description}").expect("a string grows");
    }
    let mut metadata: Vec<_> =
        details.error_info().map(|info| &info.metadata).into_iter().flatten().collect();
    metadata.sort();
    for (name, value) in metadata {
        write!(text, "\n  {name}: {value}").expect("a string grows");
    }
    if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
        write!(text, "\n  repeat it after {} ms", delay.as_millis()).expect("a string grows");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::public::ErrorReason;

    #[test]
    fn every_field_is_shown_with_reason_and_description() {
        let status = errors::invalid_fields(vec![
            errors::violation("phone_number", "UNPARSABLE_NUMBER", "is not a phone number"),
            errors::violation("body", "EMPTY", "is required"),
        ]);
        let problem = Problem::of("send the message", "a:1", &status);
        assert_eq!(
            problem.to_string(),
            "INVALID_FIELDS: invalid: phone_number, body; correct the fields named in BadRequest\n  \
             phone_number  UNPARSABLE_NUMBER  is not a phone number\n  \
             body          EMPTY              is required"
        );
        assert!(problem.refused);
    }

    #[test]
    fn what_an_error_knows_is_shown() {
        let metadata = [("message_id", "01m8".to_owned())];
        let status =
            errors::status_with(ErrorReason::IdempotencyKeyReused, "the key names another", &metadata);
        assert!(Problem::of("send", "a:1", &status).to_string().ends_with("\n  message_id: 01m8"));
        let busy = Problem::of("send", "a:1", &errors::status(ErrorReason::Overloaded, "busy"));
        assert!(busy.to_string().ends_with("\n  repeat it after 200 ms") && !busy.refused, "{busy}");
    }

    #[test]
    fn a_failed_transport_says_what_failed_and_what_to_do() {
        let mut status = Status::unavailable("transport error");
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        status.set_source(std::sync::Arc::new(refused));
        let problem = Problem::of("send the message", "127.0.0.1:9", &status);
        assert_eq!(
            problem.to_string(),
            "cannot send the message: 127.0.0.1:9: connection refused: nothing listens there; start the server, or \
             correct the address and port"
        );
        assert!(!problem.refused);
        let late = Problem::of("send the message", "a:1", &Status::cancelled("Timeout expired")).to_string();
        assert!(late.contains("no answer within the deadline; it may have been done: repeat"), "{late}");
    }
}
