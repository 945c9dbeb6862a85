//! ResolveUnknown: what an operator knows about one message whose carrier's answer was lost, and no receipt came.
//!
//! Invariants
//!  - Only UNKNOWN is resolved; every other state refuses the command, so a repeat of it, a receipt that was faster and a mistaken id
//!    change nothing.
//!  - The operator's reason is in the event and in the state's detail. Sending again is one possible duplicate and is counted like
//!    any other resend: its detail begins with [`DETAIL_RESEND`].
//!  - What was taken back or has expired is not sent again, whatever an operator says.
use crate::effect::{CommandResult, Refusal};
use crate::message::{Message, Step};
use crate::outcome::{DETAIL_RESEND, clean_code};
use crate::receipt;
use crate::tables::TableError;
use crate::turn::Turn;
use crate::update;
use carillon_proto::MessageId;
use carillon_proto::internal::{MessageStatus, ResolveUnknown, UnknownVerdict};
use carillon_proto::public::{MessageState, WaitingReason};

/// What the detail of a message begins with that an operator has called delivered or failed.
const DETAIL_OPERATOR: &str = "operator";

pub(crate) fn resolve(turn: &mut Turn, command: &ResolveUnknown) -> Result<CommandResult, TableError> {
    let (Ok(id), reason) = (MessageId::from_bytes(&command.message_id), clean_code(&command.reason)) else {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    };
    if reason.is_empty() || command.verdict() == UnknownVerdict::Unspecified {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    }
    let found = Message::load(turn.tables, id)?;
    let Some(mut message) = found.filter(|m| m.status.practice_no == command.practice_no) else {
        return Ok(CommandResult::Refused(Refusal::NotFound));
    };
    if let Some(refusal) = refusal(&message.status, command.verdict(), turn.now_ms) {
        return Ok(CommandResult::Refused(refusal));
    }
    let by_operator = format!("{DETAIL_OPERATOR}:{reason}");
    let step = match command.verdict() {
        UnknownVerdict::SendAgain => {
            // Whatever was sent, it was the old text: a resend carries the new one.
            let not_before_ms = update::take_effect_anyway(turn, &mut message)?;
            Step::wait(WaitingReason::Backoff, turn.now_ms.max(not_before_ms))
                .detail(format!("{DETAIL_RESEND}:{reason}"))
        }
        UnknownVerdict::Delivered => {
            receipt::mark_submitted(&mut message, turn.now_ms);
            Step::to(MessageState::Delivered).detail(by_operator)
        }
        UnknownVerdict::Failed | UnknownVerdict::Unspecified => {
            Step::to(MessageState::Undelivered).detail(by_operator)
        }
    };
    message.advance(turn, step);
    Ok(CommandResult::Done)
}

/// Why a message cannot be resolved so at this moment. What the edge says in a trial run.
pub fn refusal(status: &MessageStatus, verdict: UnknownVerdict, now_ms: u64) -> Option<Refusal> {
    let state = crate::message::state_of(status);
    if state != MessageState::Unknown {
        return Some(Refusal::WrongState(state));
    }
    if verdict != UnknownVerdict::SendAgain {
        return None;
    }
    let changed = status.pending_update.as_ref().map_or(0, |update| update.expires_at_ms);
    let expires_at_ms = if changed > 0 { changed } else { status.expires_at_ms };
    if status.detail == crate::message::DETAIL_CANCEL_REQUESTED {
        Some(Refusal::TakenBack)
    } else if expires_at_ms <= now_ms {
        Some(Refusal::Expired)
    } else {
        None
    }
}
