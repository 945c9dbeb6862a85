//! ResolveQuarantine: what an operator decides about messages whose fate a restore left unknown.
//!
//! Released, a message is sent again although it may have been sent before: it waits with the detail of a resend, and each is one
//! possible duplicate, counted like any other. Dropped, it ends as UNDELIVERED, which does not claim that nobody has it. One whose
//! cancel was asked for in the meantime is never sent.
use crate::effect::{CommandResult, Refusal, Resolved};
use crate::keys;
use crate::message::{Message, Step};
use crate::outcome::DETAIL_RESEND;
use crate::records::corrupt;
use crate::tables::TableError;
use crate::turn::Turn;
use crate::update;
use carillon_proto::MessageId;
use carillon_proto::internal::{QuarantineAction, ResolveQuarantine};
use carillon_proto::public::{MessageState, WaitingReason};

/// Messages that one command resolves, at most.
pub const RESOLVE_LIMIT_MAX: u32 = 512;
/// Detail of a message that an operator dropped.
const DETAIL_DROPPED: &str = "restore_dropped";

pub(crate) fn resolve(turn: &mut Turn, command: &ResolveQuarantine) -> Result<CommandResult, TableError> {
    let action = command.action();
    if action == QuarantineAction::Unspecified {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    }
    let limit = command.limit.clamp(1, RESOLVE_LIMIT_MAX) as usize;
    let ids = of_practice(turn, command.practice_no, limit)?;
    let resolved = Resolved { messages: ids.len() as u32, more: ids.len() == limit };
    for id in ids {
        let mut message = Message::load(turn.tables, id)?
            .filter(|message| message.state() == MessageState::Unknown)
            .ok_or_else(|| corrupt('Q', "names a message that is not in quarantine"))?;
        let step = if action == QuarantineAction::Release && !message.cancel_requested() {
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

fn of_practice(turn: &Turn, practice_no: u32, limit: usize) -> Result<Vec<MessageId>, TableError> {
    let range = keys::quarantine_range(practice_no);
    let (mut ids, mut readable) = (Vec::new(), true);
    turn.tables.scan(&range.start, &range.end, &mut |key, _| {
        match keys::decode_quarantine(key) {
            Some((_, id)) => ids.push(id),
            None => readable = false,
        }
        readable && ids.len() < limit
    })?;
    if readable { Ok(ids) } else { Err(corrupt('Q', "key")) }
}
