//! ResolveQuarantine: what an operator decides about messages whose fate a restore left unknown.
//!
//! Released, a message is sent again although it may have been sent before: it waits with the detail of a resend, and each is one
//! possible duplicate, counted like any other. One of which a carrier is known to have something (an attempt was accepted, by its answer, a
//! receipt or a look-up, or parts of it were) is no possible duplicate but a certain one: it stays, unless the operator says so. Dropped, it ends as UNDELIVERED, which does not claim that nobody has it. One whose
//! cancel was asked for in the meantime is never sent.
use crate::effect::{CommandResult, Refusal, Resolved};
use crate::message::{Message, Step};
use crate::outcome::DETAIL_RESEND;
use crate::query;
use crate::records::corrupt;
use crate::tables::TableError;
use crate::turn::Turn;
use crate::update;
use carillon_proto::MessageId;
use carillon_proto::internal::{AttemptRecord, MessageStatus, QuarantineAction, ResolveQuarantine};
use carillon_proto::public::{MessageState, Outcome, WaitingReason};

/// Messages that one command resolves, at most.
pub const RESOLVE_LIMIT_MAX: u32 = 512;
/// Detail of a message that an operator dropped.
const DETAIL_DROPPED: &str = "restore_dropped";

pub(crate) fn resolve(turn: &mut Turn, command: &ResolveQuarantine) -> Result<CommandResult, TableError> {
    let action = command.action();
    if action == QuarantineAction::Unspecified {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    }
    let after = match after(command) {
        Ok(after) => after,
        Err(refusal) => return Ok(CommandResult::Refused(refusal)),
    };
    let limit = command.limit.clamp(1, RESOLVE_LIMIT_MAX) as usize;
    let found = query::quarantined(turn.tables, command.practice_no, after, limit)?;
    let mut resolved =
        Resolved { more: found.len() == limit, last: found.last().copied(), ..Resolved::default() };
    for (_, id) in found {
        let mut message = Message::load(turn.tables, id)?
            .filter(|message| message.state() == MessageState::Unknown)
            .ok_or_else(|| corrupt('Q', "names a message that is not in quarantine"))?;
        let releases = action == QuarantineAction::Release && !message.cancel_requested();
        if releases && command.keep_taken_over && is_taken_over(&message.status) {
            resolved.kept.push(id);
            continue;
        }
        resolved.messages += 1;
        let step = if releases {
            // Whatever was sent, it was the old text: a resend carries the new one.
            let _not_before_ms = update::take_effect_anyway(turn, &mut message)?;
            Step::wait(WaitingReason::Backoff, turn.now_ms).detail(DETAIL_RESEND)
        } else {
            Step::to(MessageState::Undelivered).detail(DETAIL_DROPPED)
        };
        message.advance(turn, step);
    }
    Ok(CommandResult::Resolved(resolved))
}

/// Where it goes on.
fn after(command: &ResolveQuarantine) -> Result<Option<(u32, MessageId)>, Refusal> {
    if command.after_message_id.is_empty() {
        return Ok(None);
    }
    let id = MessageId::from_bytes(&command.after_message_id).map_err(|_| Refusal::Malformed)?;
    Ok(Some((command.after_practice_no, id)))
}

/// A carrier is known to have at least a part of the message.
pub fn is_taken_over(status: &MessageStatus) -> bool {
    let has_some = |attempt: &AttemptRecord| match Outcome::try_from(attempt.outcome) {
        Ok(Outcome::Accepted) => true,
        // Parts that the carrier acknowledged before the answer was lost.
        Ok(Outcome::Ambiguous) => attempt.segments > 0,
        _ => false,
    };
    status.receipts_final > 0 || status.attempts.iter().any(has_some)
}
