//! Ordered messages: of one practice to one recipient, one after the other.
//!
//! Invariants
//!  - A row of table G exists exactly for an ordered message in ACCEPTED, WAITING and IN_FLIGHT. The first of a recipient (the
//!    lowest id, which is the order of acceptance) is the one whose turn it is.
//!  - Begin refuses every other one and lets it wait until its expiry ([`hold`]); whoever leaves table G wakes the one that is first
//!    then ([`wake`]). So a message that waits for its turn costs the scheduler nothing.
//!  - UNKNOWN is handed over, perhaps, and nothing sends it in that state: it holds nobody up.
use crate::keys::{self, Index};
use crate::message::{Message, Step, waits};
use crate::records::{self, corrupt};
use crate::tables::TableError;
use crate::turn::Turn;
use carillon_proto::MessageId;
use carillon_proto::public::WaitingReason;

/// Is it another one's turn? Then the message waits for it.
pub(crate) fn hold(turn: &mut Turn, message: &mut Message) -> Result<bool, TableError> {
    let Some(recipient) = message.ordered_recipient() else { return Ok(false) };
    if first(turn, message.status.practice_no, &recipient)? == Some(message.id) {
        return Ok(false);
    }
    let until_ms = message.status.expires_at_ms;
    message.advance(turn, Step::wait(WaitingReason::Order, until_ms));
    Ok(true)
}

/// Lets those go on whose turn it is now.
pub(crate) fn wake(turn: &mut Turn) -> Result<(), TableError> {
    while let Some((practice_no, recipient)) = turn.wakes.pop() {
        let Some(id) = first(turn, practice_no, &recipient)? else { continue };
        let message = Message::load(turn.tables, id)?;
        let mut message = message.ok_or_else(|| corrupt('G', "names a message that does not exist"))?;
        let held = message.status.waiting_reason == WaitingReason::Order as i32;
        if !waits(message.state()) || !held {
            continue;
        }
        let payload = records::payload(turn.tables, &id)?;
        let not_before_ms =
            payload.and_then(|payload| payload.accept).map_or(0, |accept| accept.not_before_ms);
        let step = if not_before_ms > turn.now_ms {
            Step::wait(WaitingReason::Schedule, not_before_ms)
        } else {
            Step::wait(WaitingReason::Order, turn.now_ms)
        };
        message.advance(turn, step);
    }
    Ok(())
}

fn first(turn: &Turn, practice_no: u32, recipient: &Index) -> Result<Option<MessageId>, TableError> {
    let range = keys::ordered_range(practice_no, recipient);
    let mut first = None;
    turn.tables.scan(&range.start, &range.end, &mut |key, _| {
        first = Some(keys::decode_ordered(key).ok_or_else(|| corrupt('G', "key")));
        false
    })?;
    Ok(first.transpose()?.map(|(.., id)| id))
}
