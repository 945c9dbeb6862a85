//! What makes two submits the same: all of what the caller gave, for an idempotency key; recipient, class and text, for the fuse
//! against duplicates. Only hashes of these leave the edge.
use crate::seal::PracticeKeys;
use bytes::Bytes;
use carillon_proto::internal::IngestMessage;

/// What the caller gave, in a fixed order and length-prefixed: what makes two submits "the same". Not the time zone:
/// the router fills it in from the practice, and a practice that moves must not turn repeats into conflicts.
pub(super) fn canonical(message: &IngestMessage) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.body.len() + 128);
    let mut text = |value: &str| {
        out.extend_from_slice(&(value.len() as u32).to_be_bytes());
        out.extend_from_slice(value.as_bytes());
    };
    text(&message.recipient);
    text(&message.body);
    text(&message.external_reference);
    let mut labels: Vec<_> = message.labels.iter().collect();
    labels.sort_unstable();
    for (name, value) in labels {
        text(name);
        text(value);
    }
    // A wall-clock time is what its caller gave, not the moment that it was read as.
    let not_before_ms = match message.not_before_local.as_str() {
        "" => message.not_before_ms,
        local => {
            out.extend_from_slice(local.as_bytes());
            0
        }
    };
    for number in [not_before_ms, message.expires_at_ms, message.deadline_ms] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend_from_slice(&message.class.to_be_bytes());
    out.extend_from_slice(&message.priority.to_be_bytes());
    out
}

/// What the fuse for duplicates compares: recipient, class and text, whatever its spaces. Another first byte than [`canonical`] can
/// have, so the two never meet.
fn duplicate(message: &IngestMessage) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.body.len() + 64);
    out.push(0xff);
    out.extend_from_slice(message.recipient.as_bytes());
    out.push(0);
    out.extend_from_slice(&message.class.to_be_bytes());
    for word in message.body.split_whitespace() {
        out.extend_from_slice(word.as_bytes());
        out.push(b' ');
    }
    out
}

/// The hash by which the same text to the same recipient is found, and for how long in milliseconds it is refused; empty without a
/// window, and below the feature level.
pub(super) fn duplicate_check(
    window_s: u32,
    keys: &PracticeKeys,
    message: &IngestMessage,
    delivery: bool,
) -> (Bytes, u32) {
    if !delivery || window_s == 0 {
        return (Bytes::new(), 0);
    }
    let window_ms = if message.allow_duplicate { 0 } else { window_s.saturating_mul(1_000) };
    (keys.content_mac(&duplicate(message)), window_ms)
}
