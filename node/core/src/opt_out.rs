//! OptOut: a recipient wants nothing more from a practice.
//!
//! Invariants
//!  - From the entry that records it on, no attempt begins for this recipient and practice: begin looks here, inside apply, and
//!    so sees every opt-out that is before it in the log (P6).
//!  - Messages that wait end as OPTED_OUT: those that are indexed by their recipient with the command itself, at most
//!    [`OPT_OUT_MESSAGES_MAX`] of them, all others when an attempt of theirs is to begin. One whose earlier attempt is
//!    unresolved is held as UNKNOWN, and not sent again either.
//!
//! Not here: taking an opt-out back, scopes wider than a practice, how a STOP gets here.
use crate::effect::{CommandResult, Refusal};
use crate::keys::{self, Index};
use crate::message::{Message, Step};
use crate::records::{self, corrupt, encode};
use crate::tables::TableError;
use crate::turn::Turn;
use carillon_proto::MessageId;
use carillon_proto::internal::{OptOut, OptOutRecord};
use carillon_proto::public::MessageState;

/// Messages that one command ends.
pub const OPT_OUT_MESSAGES_MAX: usize = 4096;

pub(crate) fn record(turn: &mut Turn, command: &OptOut) -> Result<CommandResult, TableError> {
    let (Ok(recipient), true) = (Index::try_from(command.recipient_index.as_ref()), command.practice_no > 0)
    else {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    };
    let key = keys::opt_out(command.practice_no, &recipient);
    if turn.tables.get(&key)?.is_none() {
        turn.tables.put(key, encode(&OptOutRecord { recorded_at_ms: turn.now_ms }));
    }
    turn.opt_outs.added();
    for id in queued(turn, command.practice_no, &recipient)? {
        let message = Message::load(turn.tables, id)?;
        let mut message = message.ok_or_else(|| corrupt('N', "names a message that does not exist"))?;
        end(turn, &mut message);
    }
    Ok(CommandResult::Done)
}

fn queued(turn: &Turn, practice_no: u32, recipient: &Index) -> Result<Vec<MessageId>, TableError> {
    let range = keys::queued_range(practice_no, recipient);
    let (mut found, mut readable) = (Vec::new(), true);
    turn.tables.scan(&range.start, &range.end, &mut |key, _| {
        match keys::decode_queued(key) {
            Some((_, _, id)) => found.push(id),
            None => readable = false,
        }
        readable && found.len() < OPT_OUT_MESSAGES_MAX
    })?;
    if readable { Ok(found) } else { Err(corrupt('N', "key")) }
}

/// Whether the recipient of this message has opted out.
pub(crate) fn concerns(turn: &mut Turn, message: &Message) -> Result<bool, TableError> {
    if !turn.opt_outs.any(turn.tables)? {
        return Ok(false);
    }
    let Some(recipient) = recipient(turn, message)? else { return Ok(false) };
    Ok(turn.tables.get(&keys::opt_out(message.status.practice_no, &recipient))?.is_some())
}

/// Keyed hash of its recipient; `None`: one that cannot be compared, which cannot be opted out or counted.
pub(crate) fn recipient(turn: &Turn, message: &Message) -> Result<Option<Index>, TableError> {
    let mut recipient = message.status.recipient_index.clone();
    if recipient.is_empty() {
        let payload = records::payload(turn.tables, &message.id)?;
        let accept = payload.and_then(|payload| payload.accept);
        recipient =
            accept.ok_or_else(|| corrupt('M', "missing for a message that table S knows"))?.recipient_index;
    }
    Ok(Index::try_from(recipient.as_ref()).ok())
}

/// For one that waits.
pub(crate) fn end(turn: &mut Turn, message: &mut Message) {
    message.end_unsent(turn, Step::to(MessageState::OptedOut).detail("opted_out"));
}
