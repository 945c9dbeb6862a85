//! Expire, HoldBack and SetHours: what happens to a message that waits without being sent.
use crate::effect::{CommandResult, Refusal};
use crate::message::{self, Message, Step};
use crate::tables::TableError;
use crate::turn::Turn;
use carillon_proto::MessageId;
use carillon_proto::internal::{Expire, HoldBack, SetHours};
use carillon_proto::public::{MessageState, WaitingReason};

/// Detail of a message that expired while it waited for the recipient's hours.
pub const DETAIL_QUIET_HOURS: &str = "quiet_hours";
/// Bytes of a rule's name that are kept, at most.
const RULE_BYTES_MAX: usize = 64;

/// The message if it waits, otherwise the refusal.
fn waiting(turn: &Turn, message_id: &[u8]) -> Result<Result<Message, Refusal>, TableError> {
    let Ok(id) = MessageId::from_bytes(message_id) else { return Ok(Err(Refusal::Malformed)) };
    Ok(match Message::load(turn.tables, id)? {
        None => Err(Refusal::NotFound),
        Some(message) if message::waits(message.state()) => Ok(message),
        Some(message) => Err(Refusal::WrongState(message.state())),
    })
}

/// The leader saw the expiry pass; the replicated clock decides.
pub(crate) fn expire(turn: &mut Turn, expire: &Expire) -> Result<CommandResult, TableError> {
    let mut message = match waiting(turn, &expire.message_id)? {
        Ok(message) => message,
        Err(refusal) => return Ok(CommandResult::Refused(refusal)),
    };
    if message.status.expires_at_ms > turn.now_ms {
        return Ok(CommandResult::Refused(Refusal::NotExpired));
    }
    let step = Step::to(MessageState::Expired);
    let held = message.status.waiting_reason == WaitingReason::QuietHours as i32;
    let step = if held { step.detail(DETAIL_QUIET_HOURS) } else { step };
    message.end_unsent(turn, step);
    Ok(CommandResult::Done)
}

/// Waits longer, for a reason that is shown to users.
pub(crate) fn hold_back(turn: &mut Turn, hold: &HoldBack) -> Result<CommandResult, TableError> {
    let reason = match WaitingReason::try_from(hold.reason) {
        Ok(reason) if reason != WaitingReason::Unspecified => reason,
        _ => return Ok(CommandResult::Refused(Refusal::Malformed)),
    };
    match waiting(turn, &hold.message_id)? {
        Ok(mut message) => {
            message.advance(turn, Step::wait(reason, hold.due_ms.max(turn.now_ms)));
            Ok(CommandResult::Done)
        }
        Err(refusal) => Ok(CommandResult::Refused(refusal)),
    }
}

/// The leader computed the hours anew. A window that is open changes only how long it is open.
pub(crate) fn set_hours(turn: &mut Turn, hours: SetHours) -> Result<CommandResult, TableError> {
    if hours.rule.len() > RULE_BYTES_MAX {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    }
    let mut message = match waiting(turn, &hours.message_id)? {
        Ok(message) => message,
        Err(refusal) => return Ok(CommandResult::Refused(refusal)),
    };
    let sooner = message.status.due_ms.max(turn.now_ms) < hours.asked_ms;
    if hours.due_ms == 0 && sooner {
        // An update or another carrier made it due before the moment that was asked about. Said again, so that it is asked again.
        message.stay(turn);
        return Ok(CommandResult::Done);
    }
    message.status.open_until_ms = hours.open_until_ms;
    message.status.hours_stamp = hours.hours_stamp;
    match hours.due_ms {
        0 => message.stay(turn),
        due_ms => {
            let wait = Step::wait(WaitingReason::QuietHours, due_ms.max(turn.now_ms));
            message.advance(turn, wait.detail(hours.rule));
        }
    }
    Ok(CommandResult::Done)
}
