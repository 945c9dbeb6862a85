//! Reroute: a message that waits is given to another carrier or another sender.
//!
//! Never one that may have been handed over: with an unresolved attempt, or in any state but ACCEPTED and WAITING, it stays where
//! its carrier can still tell the truth. Refused also when the carrier is not the one that the leader believes.
use crate::effect::{CommandResult, Refusal};
use crate::message::{self, Message};
use crate::tables::TableError;
use crate::turn::Turn;
use carillon_proto::MessageId;
use carillon_proto::internal::Reroute;
use carillon_proto::public::MessageState;

pub(crate) fn reroute(turn: &mut Turn, command: &Reroute) -> Result<CommandResult, TableError> {
    let id = MessageId::from_bytes(&command.message_id);
    let (Ok(id), true) = (id, command.to_carrier_no > 0 && command.from_carrier_no > 0) else {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    };
    let Some(mut message) = Message::load(turn.tables, id)? else {
        return Ok(CommandResult::Refused(Refusal::NotFound));
    };
    let state = message.state();
    let uses = (message.status.carrier_no, message.status.sender_no);
    if !message::waits(state) || uses != (command.from_carrier_no, command.from_sender_no) {
        return Ok(CommandResult::Refused(Refusal::WrongState(state)));
    }
    if message.unresolved() > 0 {
        return Ok(CommandResult::Refused(Refusal::WrongState(MessageState::Unknown)));
    }
    (message.status.carrier_no, message.status.sender_no) = (command.to_carrier_no, command.to_sender_no);
    let due_ms = match command.due_ms {
        0 => message.status.due_ms,
        sooner => message.status.due_ms.min(sooner.max(turn.now_ms)),
    };
    message.refile(turn, due_ms);
    Ok(CommandResult::Done)
}
