//! The fuse for duplicates: the same recipient, class and text twice within a short time is a mistake of the sender's system,
//! unless it says otherwise. Known by a keyed hash in table J, which names the last message with the content.
//!
//! A message that has ended without being handed over does not count: sending its text again is what one does then.
use crate::accept::AcceptView;
use crate::keys::{self, Index};
use crate::records::{self, corrupt, decode, encode};
use crate::tables::TableError;
use crate::turn::Turn;
use bytes::Bytes;
use carillon_proto::MessageId;
use carillon_proto::internal::{Accept, DuplicateRecord};
use carillon_proto::public::MessageState;

/// The message that has this content, if the window is still open.
pub(crate) fn find(turn: &Turn, accept: &AcceptView<'_>) -> Result<Option<MessageId>, TableError> {
    let Some(content) = index(accept.duplicate_index) else { return Ok(None) };
    if accept.duplicate_window_ms == 0 {
        return Ok(None);
    }
    let Some(row) = turn.tables.get(&keys::duplicate(accept.practice_no, &content))? else { return Ok(None) };
    let record: DuplicateRecord = decode('J', row)?;
    let open_until_ms = record.accepted_at_ms.saturating_add(u64::from(accept.duplicate_window_ms));
    if open_until_ms <= turn.now_ms {
        return Ok(None);
    }
    let id = MessageId::from_bytes(&record.message_id).map_err(|error| corrupt('J', &error.to_string()))?;
    let status = records::status(turn.tables, &id)?;
    let never_left = status.is_none_or(|status| {
        matches!(
            MessageState::try_from(status.state).unwrap_or(MessageState::Unspecified),
            MessageState::Expired
                | MessageState::Canceled
                | MessageState::Rejected
                | MessageState::Dead
                | MessageState::OptedOut
        )
    });
    Ok((!never_left).then_some(id))
}

/// This message has the content now.
pub(crate) fn note(turn: &mut Turn, accept: &AcceptView<'_>) {
    if let Some(content) = index(accept.duplicate_index) {
        let message_id = Bytes::copy_from_slice(accept.message_id);
        let record = DuplicateRecord { message_id, accepted_at_ms: turn.now_ms };
        turn.tables.put(keys::duplicate(accept.practice_no, &content), encode(&record));
    }
}

/// The message is dropped: so is what names it.
pub(crate) fn forget(turn: &mut Turn, accept: &Accept, id: &MessageId) -> Result<(), TableError> {
    let Some(content) = index(&accept.duplicate_index) else { return Ok(()) };
    let key = keys::duplicate(accept.practice_no, &content);
    let Some(row) = turn.tables.get(&key)? else { return Ok(()) };
    let record: DuplicateRecord = decode('J', row)?;
    if record.message_id.as_ref() == id.as_bytes() {
        turn.tables.delete(key);
    }
    Ok(())
}

/// Of what `accept` admits: empty or whole.
fn index(bytes: &[u8]) -> Option<Index> {
    Index::try_from(bytes).ok()
}
