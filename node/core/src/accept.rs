//! Accept: a message comes into being, once for each idempotency key.
//!
//! The most frequent command: it reads one row if there is an idempotency key and normally none otherwise, and writes
//! M, S, D and, where given, I, X, N, G and J. An opt-out is not looked for here but where it counts, when an attempt is to begin.
mod view;

use crate::dead_letter;
use crate::duplicate;
use crate::effect::{CommandResult, Refusal};
use crate::keys::{self, Index};
use crate::message::{Message, Step};
use crate::records::{decode, encode};
use crate::tables::TableError;
use crate::turn::Turn;
use bytes::Bytes;
use carillon_proto::MessageId;
use carillon_proto::internal::{Accept, DeadLetter, IdempotencyRecord, MessageStatus};
use carillon_proto::public::{MessageClass, Priority, WaitingReason};
use prost::Message as _;
pub(crate) use view::AcceptView;

/// The indexes of an Accept, checked.
struct Indexes {
    id: MessageId,
    idempotency: Option<Index>,
    reference: Option<Index>,
}

/// One that is not written as [`AcceptView`] knows it.
pub(crate) fn accept_decoded(turn: &mut Turn, command: &Accept) -> Result<CommandResult, TableError> {
    let body = command.encode_to_vec();
    match AcceptView::of_accept(&body) {
        Some(view) => accept(turn, &view),
        None => Ok(CommandResult::Refused(Refusal::Malformed)),
    }
}

/// The key of the row that [`accept`] asks for first, if it asks for one.
pub(crate) fn idempotency_key(accept: &AcceptView<'_>) -> Option<Vec<u8>> {
    let index = Index::try_from(accept.idempotency_index).ok()?;
    Some(keys::idempotency(accept.practice_no, &index))
}

pub(crate) fn accept(turn: &mut Turn, accept: &AcceptView<'_>) -> Result<CommandResult, TableError> {
    let Some(indexes) = check(accept) else { return Ok(CommandResult::Refused(Refusal::Malformed)) };
    let key = indexes.idempotency.map(|index| keys::idempotency(accept.practice_no, &index));
    if let Some(row) = key.as_deref().map(|key| turn.tables.get(key)).transpose()?.flatten() {
        return earlier(accept, row);
    }
    let id = indexes.id;
    let replays = match accept.replay_of.is_empty() {
        true => None,
        false => match dead_letter::replayed_by(turn, accept.replay_of, accept.practice_no)? {
            Ok(old) => Some(old),
            Err(answer) => return Ok(answer),
        },
    };
    if let Some(message_id) = duplicate::find(turn, accept)? {
        return Ok(CommandResult::SameContent { message_id });
    }
    if !turn.highest.admits(turn.tables, &id)? {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    }
    duplicate::note(turn, accept);
    if let Some(key) = key {
        let record = IdempotencyRecord {
            message_id: id.to_bytes(),
            content_mac: Bytes::copy_from_slice(accept.content_mac),
            accepted_at_ms: turn.now_ms,
        };
        turn.tables.put(key, encode(&record));
    }
    if let Some(index) = indexes.reference {
        turn.tables.put(keys::reference(accept.practice_no, &index, &id), Vec::new());
    }
    let step = if accept.due_ms > accept.not_before_ms.max(turn.now_ms) {
        // The leader found that the recipient's hours begin later.
        Step::wait(WaitingReason::QuietHours, accept.due_ms)
    } else if accept.not_before_ms > turn.now_ms {
        Step::wait(WaitingReason::Schedule, accept.not_before_ms)
    } else {
        Step::accepted(turn.now_ms)
    };
    if let Some(old) = replays {
        dead_letter::replayed(turn, old, &id, accept.practice_no);
    }
    let mut message = Message::new(id, status(accept, turn.now_ms));
    turn.tables.put_new(keys::payload(&id), accept.payload_row(turn.now_ms));
    message.advance(turn, step);
    Ok(CommandResult::Accepted)
}

/// The key is known: the same content is a repeat, another one a mistake of the caller.
fn earlier(accept: &AcceptView<'_>, row: Bytes) -> Result<CommandResult, TableError> {
    let record: IdempotencyRecord = decode('I', row)?;
    let message_id = MessageId::from_bytes(&record.message_id)
        .map_err(|error| crate::records::corrupt('I', &error.to_string()))?;
    Ok(if record.content_mac == accept.content_mac {
        CommandResult::Duplicate { message_id }
    } else {
        CommandResult::KeyReused { message_id }
    })
}

/// `None` when the proposer made something impossible.
fn check(accept: &AcceptView<'_>) -> Option<Indexes> {
    let index = |bytes: &[u8]| -> Option<Option<Index>> {
        match bytes.len() {
            0 => Some(None),
            _ => Some(Some(Index::try_from(bytes).ok()?)),
        }
    };
    let indexes = Indexes {
        id: MessageId::from_bytes(accept.message_id).ok()?,
        idempotency: index(accept.idempotency_index)?,
        reference: index(accept.reference_index)?,
    };
    let known = |valid: bool, unspecified: bool| valid && !unspecified;
    let class = MessageClass::try_from(accept.class);
    let priority = Priority::try_from(accept.priority);
    let possible = accept.practice_no > 0
        && accept.carrier_no > 0
        && accept.segments > 0
        && accept.expires_at_ms > 0
        && known(class.is_ok(), class == Ok(MessageClass::Unspecified))
        && known(priority.is_ok(), priority == Ok(Priority::Unspecified))
        && accept.retry.as_ref().is_some_and(|r| r.attempts_max > 0)
        && (!accept.indexed_by_recipient || accept.recipient_index.len() == keys::INDEX_BYTES)
        && (!accept.ordered || accept.indexed_by_recipient)
        && index(accept.duplicate_index).is_some()
        && (indexes.idempotency.is_none() || accept.content_mac.len() == keys::INDEX_BYTES);
    possible.then_some(indexes)
}

fn status(accept: &AcceptView<'_>, now_ms: u64) -> MessageStatus {
    let recipient_index = match accept.indexed_by_recipient {
        true => Bytes::copy_from_slice(accept.recipient_index),
        false => Bytes::new(),
    };
    MessageStatus {
        practice_no: accept.practice_no,
        class: accept.class,
        priority: accept.priority,
        segments: accept.segments,
        expires_at_ms: accept.expires_at_ms,
        deadline_ms: accept.deadline_ms,
        carrier_no: accept.carrier_no,
        retry: accept.retry,
        accepted_at_ms: now_ms,
        recipient_index,
        route_no: accept.route_no,
        dead_letter: accept.dead_letter_listed.then(|| DeadLetter { listed: true, ..Default::default() }),
        open_until_ms: accept.open_until_ms,
        hours_stamp: accept.hours_stamp,
        due_by_practice: accept.due_by_practice,
        ordered: accept.ordered,
        sender_no: accept.sender_no,
        ..Default::default()
    }
}
