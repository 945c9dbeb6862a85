//! What the answer to a create says.
//!
//! Of the JSON only id, status and code are kept; the texts in it quote numbers.
use super::account::Account;
use bytes::Bytes;
use carillon_proto::public::Outcome;
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use std::time::Duration;

/// An answer longer than this is not read to its end.
pub(crate) const BODY_OCTETS_MAX: usize = 256 * 1024;

/// An HTTP answer, read to its end.
pub(crate) struct Answer {
    pub status: StatusCode,
    pub retry_after: Option<Duration>,
    pub body: Bytes,
}

impl Answer {
    pub fn new(status: StatusCode, headers: &HeaderMap, body: Bytes) -> Self {
        Self { status, retry_after: retry_after(headers), body }
    }
}

/// Seconds, or a date; a date counts from the one of the answer, so that it does not matter how wrong our clock is.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let told = text(header::RETRY_AFTER)?;
    if let Ok(seconds) = told.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text| jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok();
    let now = text(header::DATE).and_then(date).unwrap_or_else(jiff::Timestamp::now);
    // A moment that has passed: at once.
    Some(Duration::try_from(date(told)?.duration_since(now)).unwrap_or_default())
}

/// The fields of a message that matter.
#[derive(Deserialize)]
pub(crate) struct Resource {
    pub sid: String,
    #[serde(default)]
    pub status: String,
    pub error_code: Option<u32>,
}

#[derive(Deserialize)]
struct Problem {
    code: Option<u32>,
}

/// The meaning of an answer to a create.
pub(crate) struct Verdict {
    pub outcome: Outcome,
    pub code: String,
    pub carrier_ref: Option<String>,
    /// The lane pauses for so long.
    pub pause: Option<(Option<Duration>, u32)>,
    /// Our credentials were refused, with this HTTP status.
    pub broken: Option<u32>,
}

/// The id of a message: two letters and 32 hex digits.
pub(crate) fn is_message_sid(text: &str) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let rest = text.strip_prefix("SM").or_else(|| text.strip_prefix("MM"));
    rest.is_some_and(|rest| rest.len() == 32 && rest.bytes().all(hex))
}

/// Judges an answer.
pub(crate) fn judge(account: &Account, answer: &Answer) -> Verdict {
    let status = answer.status.as_u16();
    let verdict =
        |outcome, code: String| Verdict { outcome, code, carrier_ref: None, pause: None, broken: None };
    if answer.status.is_success() {
        let resource: Option<Resource> = serde_json::from_slice(&answer.body).ok();
        return match resource.filter(|resource| is_message_sid(&resource.sid)) {
            Some(resource) => Verdict {
                carrier_ref: Some(resource.sid),
                ..verdict(Outcome::Accepted, format!("http_{status}"))
            },
            // It says yes and not to what: a callback will tell.
            None => verdict(Outcome::Ambiguous, "answer_unreadable".to_owned()),
        };
    }
    if answer.status.is_redirection() || answer.status.is_informational() {
        // A wrong address: the message is kept.
        return verdict(Outcome::LaneBroken, format!("http_{status}"));
    }
    let problem: Option<Problem> = serde_json::from_slice(&answer.body).ok();
    let code = problem.and_then(|problem| problem.code).map(|code| code.to_string());
    if answer.status.is_server_error() {
        return verdict(Outcome::Ambiguous, format!("http_{status}"));
    }
    let contract = account.contract.get();
    let by_status = format!("http_{status}");
    // A code that the contract does not know says less than the status does.
    let code = match code {
        Some(code) if contract.knows(&code) || !contract.knows(&by_status) => code,
        _ => by_status,
    };
    let meaning = contract.meaning(&code);
    let told = answer.retry_after.map(|after| after.min(contract.retry_after_max));
    Verdict {
        pause: (meaning.pauses > 0).then_some((told, meaning.pauses)),
        broken: (answer.status == StatusCode::UNAUTHORIZED).then_some(u32::from(status)),
        ..verdict(meaning.outcome, code)
    }
}

#[cfg(test)]
mod tests {
    use super::super::account::tests::config;
    use super::*;

    fn verdict(status: u16, body: &str) -> (Outcome, String, Option<String>) {
        let account = Account::check(config()).unwrap();
        let status = StatusCode::from_u16(status).unwrap();
        let body = Bytes::copy_from_slice(body.as_bytes());
        let verdict = judge(&account, &Answer { status, retry_after: None, body });
        (verdict.outcome, verdict.code, verdict.carrier_ref)
    }

    #[test]
    fn each_answer_has_its_outcome() {
        let sid = format!("SM{:032x}", 7);
        let accepted = (Outcome::Accepted, "http_201".to_owned(), Some(sid.clone()));
        assert_eq!(
            verdict(201, &format!("{{\"sid\":\"{sid}\",\"status\":\"queued\",\"body\":\"x\"}}")),
            accepted
        );
        let ambiguous = |code: &str| (Outcome::Ambiguous, code.to_owned(), None);
        for unreadable in ["", "<html>", "{}", "{\"sid\":\"SM1\"}"] {
            assert_eq!(verdict(201, unreadable), ambiguous("answer_unreadable"), "{unreadable}");
        }
        // Whatever a 5xx says: the message may have been taken over.
        assert_eq!(verdict(500, "{\"code\":20500}"), ambiguous("http_500"));
        assert_eq!(verdict(503, "{\"code\":21610}"), ambiguous("http_503"));
        let of = |outcome, code: &str| (outcome, code.to_owned(), None);
        assert_eq!(verdict(400, "{\"code\":21610,\"message\":\"m\"}"), of(Outcome::OptedOut, "21610"));
        assert_eq!(verdict(400, "{\"code\":21211}"), of(Outcome::RejectedNumber, "21211"));
        assert_eq!(verdict(400, "{\"code\":99999}"), of(Outcome::Transient, "99999"));
        assert_eq!(verdict(400, "no json"), of(Outcome::Transient, "http_400"));
        assert_eq!(verdict(401, "{\"code\":99999}"), of(Outcome::LaneBroken, "http_401"));
        assert_eq!(verdict(429, ""), of(Outcome::Throttled, "http_429"));
        assert_eq!(verdict(302, ""), of(Outcome::LaneBroken, "http_302"));
    }

    #[test]
    fn retry_after_is_believed_within_reason() {
        let account = Account::check(config()).unwrap();
        let pause = |retry_after: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, retry_after.parse().unwrap());
            judge(&account, &Answer::new(StatusCode::TOO_MANY_REQUESTS, &headers, Bytes::new())).pause
        };
        assert_eq!(pause("7"), Some((Some(Duration::from_secs(7)), 1)));
        assert_eq!(pause("999999"), Some((Some(Duration::from_secs(3600)), 1)));
        assert_eq!(pause("soon"), Some((None, 1)));
        assert_eq!(pause("Wed, 21 Oct 2015 07:28:00 GMT"), Some((Some(Duration::ZERO), 1)), "it has passed");
    }

    #[test]
    fn retry_after_as_a_date_counts_from_the_date_of_the_answer() {
        let after = |retry_after: &str, date: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, retry_after.parse().unwrap());
            headers.insert(header::DATE, date.parse().unwrap());
            super::retry_after(&headers).map(|after| after.as_secs())
        };
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(after("Sun, 06 Nov 1994 08:50:07 GMT", date), Some(30));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:00 GMT", date), Some(0));
        assert_eq!(after("12", date), Some(12));
        assert_eq!(after("Sun, 06 Nov 1994", date), None);
        let soon = after("Sun, 06 Nov 1994 08:50:07 GMT", "yesterday");
        assert_eq!(soon, Some(0), "without a date of theirs ours counts");
    }
}
