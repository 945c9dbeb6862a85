//! Status callbacks: signed, read, recorded, and only then answered with yes.
//!
//! Invariants
//!  - Nothing of a callback is believed before its signature over the configured public URL, the query as it came and all
//!    form fields was checked.
//!  - `Done` only after the sink committed, or when repeating it would change nothing.
//!  - Of its fields only account, id, status and error code are looked at; numbers and texts are wiped with the body.
//!
//! Not here: the listener, and which account a path belongs to.
use super::Shared;
use super::answer::is_message_sid;
use crate::connector::{Callback, CallbackAnswer, ReceiptAck, ReceiptReport};
use carillon_proto::MessageId;
use carillon_proto::internal::ReceiptState;
use std::borrow::Cow;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Octets of a callback's body, at most: more than five times what Twilio sends.
const BODY_OCTETS_MAX: usize = 16 * 1024;
/// Fields of a callback, at most.
const FIELDS_MAX: usize = 100;
/// Longest code that is kept.
const CODE_CHARS_MAX: usize = 16;

/// Takes one callback.
pub(crate) async fn take(shared: &Shared, callback: Callback) -> CallbackAnswer {
    let (answer, word) = judge(shared, callback).await;
    shared.pool.meters.callback(word);
    answer
}

async fn judge(shared: &Shared, callback: Callback) -> (CallbackAnswer, &'static str) {
    let account = shared.account();
    let Some(url) = &account.callback_url else {
        return (CallbackAnswer::NotExpected, "not_expected");
    };
    if callback.body.expose().len() > BODY_OCTETS_MAX {
        return (CallbackAnswer::Malformed, "too_large");
    }
    let fields: Vec<(Cow<'_, str>, Cow<'_, str>)> =
        form_urlencoded::parse(callback.body.expose()).take(FIELDS_MAX + 1).collect();
    if fields.len() > FIELDS_MAX {
        return (CallbackAnswer::Malformed, "too_large");
    }
    let Some(signature) = callback.signature.as_deref() else {
        return (CallbackAnswer::BadSignature, "unsigned");
    };
    if !account.signing.verifies(&called(url, &callback.query), &fields, signature) {
        return (CallbackAnswer::BadSignature, "bad_signature");
    }
    let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| &**value);
    let (Some(sid), Some(word)) = (field("MessageSid").or_else(|| field("SmsSid")), field("MessageStatus"))
    else {
        return (CallbackAnswer::Malformed, "malformed");
    };
    if !is_message_sid(sid) || field("AccountSid").is_some_and(|of| of != account.account_sid) {
        return (CallbackAnswer::Malformed, "malformed");
    }
    let error = field("ErrorCode").and_then(clean_code);
    let Some(state) = account.contract.get().receipt_state(word, error.as_deref()) else {
        // A word of a newer API. Repeating it would not explain it.
        return (CallbackAnswer::Done, "unknown_status");
    };
    let code = error.or_else(|| clean_code(word)).unwrap_or_default();
    let sid = sid.to_owned();
    let known = our_reference(&callback.query);
    drop(fields);
    record(shared, sid, state, code, known).await
}

async fn record(
    shared: &Shared,
    sid: String,
    state: ReceiptState,
    code: String,
    known: Option<MessageId>,
) -> (CallbackAnswer, &'static str) {
    // The drain waits for what is being recorded.
    let _active = shared.pool.enter();
    let (acked, answer) = oneshot::channel();
    let ack = ReceiptAck::new(move |committed| {
        // Nobody waits any more: the carrier was told to repeat it.
        let _ = acked.send(committed);
    });
    shared.sink.receipt(ReceiptReport { carrier_refs: vec![sid.clone()], state, code, known, ack });
    match timeout(shared.account().receipt_ack_timeout(), answer).await {
        Ok(Ok(true)) => {
            if state != ReceiptState::Enroute {
                super::redact::ask_for(shared, sid);
            }
            (CallbackAnswer::Done, "recorded")
        }
        Ok(_) => (CallbackAnswer::TryAgain, "refused"),
        Err(_) => (CallbackAnswer::TryAgain, "timeout"),
    }
}

/// The URL that the carrier called, and signed: host and path are what we told it, whatever a proxy made of them.
fn called(url: &str, query: &str) -> String {
    let path = url.split_once('?').map_or(url, |(path, _)| path);
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// The message that the callback URL was given out for.
fn our_reference(query: &str) -> Option<MessageId> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    let (_, value) = pairs.find(|(name, _)| name == "m")?;
    value.parse().ok()
}

/// A code as it is kept: short, and nothing that could be a text.
fn clean_code(text: &str) -> Option<String> {
    let possible = (1..=CODE_CHARS_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    possible.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::Slot;

    #[test]
    fn the_called_url_is_the_configured_one_with_the_query_that_came() {
        assert_eq!(called("https://a/b", "m=1&a=2"), "https://a/b?m=1&a=2");
        assert_eq!(called("https://a/b?x=y", "x=y&m=1"), "https://a/b?x=y&m=1");
        assert_eq!(called("https://a/b?x=y", ""), "https://a/b");
    }

    #[test]
    fn our_reference_survives_the_way_and_nothing_else_is_one() {
        let id = MessageId::new(1_793_000_000_000, Slot::new(7).unwrap(), 42);
        assert_eq!(our_reference(&format!("x=y&m={id}&a=1")), Some(id));
        for bad in ["", "m=", "m=zz", "n=1"] {
            assert_eq!(our_reference(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_code_is_a_short_word() {
        assert_eq!(clean_code("30003"), Some("30003".to_owned()));
        for bad in ["", "Ada Lovelace", "+12125550123", "12345678901234567"] {
            assert_eq!(clean_code(bad), None, "{bad}");
        }
    }
}
