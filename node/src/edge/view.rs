//! A stored message as the public API shows it. Opening sealed fields is counted.
use crate::seal::{Context, Field, Keyring, KeyringError};
use carillon_core::meta::MetaView;
use carillon_proto::MessageId;
use carillon_proto::internal::{AttemptRecord, MessageDetails, MessagePayload, MessageStatus};
use carillon_proto::public::{Attempt, Message, MessageView};
use prost::Message as _;
use prost_types::Timestamp;

/// Milliseconds since the epoch; 0 means "not set".
pub fn timestamp(ms: u64) -> Option<Timestamp> {
    (ms > 0).then(|| Timestamp { seconds: (ms / 1000) as i64, nanos: (ms % 1000) as i32 * 1_000_000 })
}

/// Masks all digits but the last two.
pub fn mask(e164: &str) -> String {
    let keep = e164.len().saturating_sub(2);
    e164.char_indices().map(|(i, c)| if i < keep && c != '+' { '*' } else { c }).collect()
}

/// Builds the public message. Fails only when the practice's key cannot be used.
pub fn message(
    view: &MetaView,
    keyring: &Keyring,
    id: &MessageId,
    payload: &MessagePayload,
    status: &MessageStatus,
    detail: MessageView,
) -> Result<Message, KeyringError> {
    let empty = carillon_proto::internal::Accept::default();
    let accept = payload.accept.as_ref().unwrap_or(&empty);
    let keys = keyring.of_epoch(accept.practice_no, accept.key_epoch)?;
    let context = Context { cluster_id: &view.cluster_id, practice_no: accept.practice_no, message_id: id };
    let text = |field, sealed: &[u8]| -> Result<String, KeyringError> {
        let opened = keys.open(context, field, sealed)?;
        Ok(String::from_utf8_lossy(&opened).into_owned())
    };
    let full = detail == MessageView::Full;
    let recipient = text(Field::Recipient, &accept.sealed_recipient)?;
    let details = if accept.sealed_details.is_empty() {
        MessageDetails::default()
    } else {
        let opened = keys.open(context, Field::Details, &accept.sealed_details)?;
        MessageDetails::decode(opened.as_slice()).map_err(|_| crate::seal::SealError::Malformed)?
    };
    if full {
        metrics::counter!("carillon_phi_opened_total", "reason" => "full_view").increment(1);
    }
    let practice = view.practices.get(&status.practice_no);
    let time_zone = match (accept.time_zone.as_str(), &accept.place) {
        (_, Some(place)) => place.time_zones.join(", "),
        ("", None) => practice.map(|p| p.time_zone.clone()).unwrap_or_default(),
        (given, None) => given.to_owned(),
    };
    Ok(Message {
        message_id: id.to_string(),
        practice: practice.map(|p| p.practice.clone()).unwrap_or_default(),
        recipient: if full { recipient } else { mask(&recipient) },
        body: if full { text(Field::Body, &accept.sealed_body)? } else { String::new() },
        class: accept.class,
        priority: accept.priority,
        accept_time: timestamp(payload.accepted_at_ms),
        not_before: timestamp(accept.not_before_ms),
        expires_at: timestamp(accept.expires_at_ms),
        deadline: timestamp(accept.deadline_ms),
        time_zone,
        external_reference: details.external_reference,
        labels: details.labels,
        encoding: accept.encoding,
        segments: accept.segments,
        state: status.state,
        waiting_reason: status.waiting_reason,
        due_time: timestamp(status.due_ms),
        update_time: timestamp(status.updated_at_ms),
        attempts: status.attempts.iter().map(|a| attempt(view, a)).collect(),
        state_detail: status.detail.clone(),
    })
}

fn attempt(view: &MetaView, record: &AttemptRecord) -> Attempt {
    Attempt {
        number: record.number,
        carrier: view.carriers.get(&record.carrier_no).map(|c| c.name.clone()).unwrap_or_default(),
        begin_time: timestamp(record.begin_ms),
        end_time: timestamp(record.end_ms),
        outcome: record.outcome,
        carrier_code: record.code.clone(),
        segments: record.segments,
        sender: record.sender.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_all_but_two_digits() {
        assert_eq!(mask("+12125550134"), "+*********34");
        assert_eq!(mask("1"), "1");
    }
}
