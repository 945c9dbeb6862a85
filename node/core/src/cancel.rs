//! Cancel and CancelByReference: a message is taken back if no carrier can have it yet.
//!
//! While it waits it is canceled at once. In flight or unknown it is too late to promise anything; the wish is kept, and
//! if it turns out that no carrier has it, it is canceled instead of tried again.
use crate::effect::{CancelOutcome, CommandResult, Refusal};
use crate::keys::{self, Index};
use crate::message::{self, DETAIL_CANCEL_REQUESTED, Message, Step};
use crate::tables::{ReadTables, TableError};
use crate::turn::Turn;
use carillon_proto::MessageId;
use carillon_proto::internal::{Cancel, CancelByReference};
use carillon_proto::public::MessageState;

/// Messages of one external reference that one command looks at, in the order of their ids. Further ones are
/// taken back by id.
pub const CANCEL_BY_REFERENCE_MAX: usize = 4096;

pub(crate) fn by_id(turn: &mut Turn, cancel: &Cancel) -> Result<CommandResult, TableError> {
    let Ok(id) = MessageId::from_bytes(&cancel.message_id) else {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    };
    match Message::load(turn.tables, id)? {
        Some(mut message) if message.status.practice_no == cancel.practice_no => {
            Ok(CommandResult::Canceled(vec![take_back(turn, &mut message)]))
        }
        // Another practice's message does not exist for this one.
        _ => Ok(CommandResult::Refused(Refusal::NotFound)),
    }
}

pub(crate) fn by_reference(turn: &mut Turn, cancel: &CancelByReference) -> Result<CommandResult, TableError> {
    let Ok(index) = Index::try_from(cancel.reference_index.as_ref()) else {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    };
    let ids = of_reference(turn.tables, cancel.practice_no, &index)?;
    let mut outcomes = Vec::with_capacity(ids.len());
    for id in ids {
        let mut message = Message::load(turn.tables, id)?
            .ok_or_else(|| crate::records::corrupt('X', "names a message that does not exist"))?;
        outcomes.push(take_back(turn, &mut message));
    }
    Ok(CommandResult::Canceled(outcomes))
}

/// The messages of a reference in the order of their ids, at most [`CANCEL_BY_REFERENCE_MAX`].
pub(crate) fn of_reference(
    tables: &dyn ReadTables,
    practice_no: u32,
    index: &Index,
) -> Result<Vec<MessageId>, TableError> {
    let range = keys::reference_range(practice_no, index);
    let (mut ids, mut readable) = (Vec::new(), true);
    tables.scan(&range.start, &range.end, &mut |key, _| {
        match keys::decode_reference(key) {
            Some((_, _, id)) => ids.push(id),
            None => readable = false,
        }
        readable && ids.len() < CANCEL_BY_REFERENCE_MAX
    })?;
    if readable { Ok(ids) } else { Err(crate::records::corrupt('X', "key")) }
}

pub(crate) fn take_back(turn: &mut Turn, message: &mut Message) -> CancelOutcome {
    match message.state() {
        state if message::waits(state) => message.end_unsent(turn, Step::to(MessageState::Canceled)),
        MessageState::InFlight | MessageState::Unknown if !message.cancel_requested() => {
            message.status.detail = DETAIL_CANCEL_REQUESTED.to_owned();
            message.save(turn);
        }
        _ => {}
    }
    CancelOutcome {
        message_id: message.id,
        // Also true for a repeated cancel: the answer to the first one may have been lost.
        canceled: message.state() == MessageState::Canceled,
        state: message.state(),
        submitted_at_ms: message.status.submitted_at_ms,
    }
}
