//! Dead letters: messages whose retries are spent (DEAD), listed until somebody decides about them.
//!
//! Invariants
//!  - A row of table Y exists exactly for a DEAD message that is listed and was neither dropped nor replayed.
//!  - A final state never changes: a replay is a message of its own that names the dead one, and each dead letter is replayed at
//!    most once, however often the command comes.
use crate::effect::{CommandResult, Refusal};
use crate::keys;
use crate::message::Message;
use crate::outcome::clean_code;
use crate::records::corrupt;
use crate::tables::{ReadTables, TableError};
use crate::turn::Turn;
use carillon_proto::MessageId;
use carillon_proto::internal::DropDeadLetter;
use carillon_proto::public::MessageState;

pub(crate) fn drop_one(turn: &mut Turn, command: &DropDeadLetter) -> Result<CommandResult, TableError> {
    let (Ok(id), reason) = (MessageId::from_bytes(&command.message_id), clean_code(&command.reason)) else {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    };
    if reason.is_empty() {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    }
    let mut message = match open(turn.tables, id, command.practice_no)? {
        Ok(Open::Yes(message)) => message,
        // Repeated.
        Ok(Open::Dropped | Open::Replayed(_)) => return Ok(CommandResult::Done),
        Err(refusal) => return Ok(CommandResult::Refused(refusal)),
    };
    message.status.dead_letter.get_or_insert_default().dropped = reason;
    turn.tables.delete(keys::dead_letter(command.practice_no, &id));
    message.save(turn);
    Ok(CommandResult::Done)
}

/// The dead letter that an Accept wants to take the place of, or the answer to it.
pub(crate) fn replayed_by(
    turn: &Turn,
    replay_of: &[u8],
    practice_no: u32,
) -> Result<Result<Message, CommandResult>, TableError> {
    let Ok(old) = MessageId::from_bytes(replay_of) else {
        return Ok(Err(CommandResult::Refused(Refusal::Malformed)));
    };
    Ok(match open(turn.tables, old, practice_no)? {
        Ok(Open::Yes(message)) => Ok(message),
        Ok(Open::Replayed(message_id)) => Err(CommandResult::Duplicate { message_id }),
        Ok(Open::Dropped) => Err(CommandResult::Refused(Refusal::WrongState(MessageState::Dead))),
        Err(refusal) => Err(CommandResult::Refused(refusal)),
    })
}

/// The new message exists.
pub(crate) fn replayed(turn: &mut Turn, mut old: Message, new: &MessageId, practice_no: u32) {
    old.status.dead_letter.get_or_insert_default().replayed_as = new.to_bytes();
    turn.tables.delete(keys::dead_letter(practice_no, &old.id));
    old.save(turn);
}

#[expect(clippy::large_enum_variant, reason = "there are few at a time, and none is kept")]
enum Open {
    Yes(Message),
    Dropped,
    Replayed(MessageId),
}

fn open(
    tables: &dyn ReadTables,
    id: MessageId,
    practice_no: u32,
) -> Result<Result<Open, Refusal>, TableError> {
    let Some(message) = Message::load(tables, id)?.filter(|m| m.status.practice_no == practice_no) else {
        return Ok(Err(Refusal::NotFound));
    };
    if message.state() != MessageState::Dead {
        return Ok(Err(Refusal::WrongState(message.state())));
    }
    let decided = message.status.dead_letter.clone().unwrap_or_default();
    Ok(Ok(if !decided.replayed_as.is_empty() {
        let new = MessageId::from_bytes(&decided.replayed_as).map_err(|e| corrupt('S', &e.to_string()))?;
        Open::Replayed(new)
    } else if decided.dropped.is_empty() {
        Open::Yes(message)
    } else {
        Open::Dropped
    }))
}
