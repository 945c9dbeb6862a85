//! BeginAttempt: the permission to hand a message to a carrier once. Nothing leaves before it is committed.
//!
//! Refused unless the leader of this very term proposed it for a message that waits, is due, has not expired and has had
//! exactly the attempts, the carrier and the sender that the leader believes, inside the recipient's hours. Of two that race, the second finds
//! another state or number; one that races with a reroute finds another carrier, or a lost answer of the one would be followed by
//! a resend over the other. A recipient who has opted out gets nothing: the message ends here instead. One whose recipient has had enough, or whose turn it is not, waits.
use crate::effect::{CommandResult, Permit, Refusal};
use crate::message::{self, Message, Step, next_attempt_no};
use crate::records::{self, corrupt};
use crate::tables::TableError;
use crate::turn::Turn;
use crate::{frequency, opt_out, order};
use carillon_proto::MessageId;
use carillon_proto::internal::{AttemptRecord, BeginAttempt};
use carillon_proto::public::{MessageState, Outcome, WaitingReason};

pub(crate) fn begin(turn: &mut Turn, begin: &BeginAttempt) -> Result<CommandResult, TableError> {
    let id = MessageId::from_bytes(&begin.message_id);
    let (Ok(id), true) = (id, begin.carrier_no > 0) else {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    };
    if begin.term != turn.term || begin.term < turn.leader_start_term {
        return Ok(CommandResult::Refused(Refusal::StaleTerm));
    }
    let Some(mut message) = Message::load(turn.tables, id)? else {
        return Ok(CommandResult::Refused(Refusal::NotFound));
    };
    if let Some(refusal) = refusal(turn, &message, begin) {
        return Ok(CommandResult::Refused(refusal));
    }
    if opt_out::concerns(turn, &message)? {
        opt_out::end(turn, &mut message);
        return Ok(CommandResult::Refused(Refusal::OptedOut));
    }
    let open_until_ms = message.status.open_until_ms;
    let send_by_ms = match open_until_ms {
        0 => begin.send_by_ms,
        // A sender that stalls must not write after the hours.
        until_ms => begin.send_by_ms.min(until_ms),
    };
    if order::hold(turn, &mut message)? {
        return Ok(CommandResult::Refused(Refusal::OutOfTurn));
    }
    if let Some(rule) = &begin.frequency
        && let Some(recipient) = opt_out::recipient(turn, &message)?
        && let Some(refusal) = frequency::admit(turn, &mut message, &recipient, rule)?
    {
        return Ok(CommandResult::Refused(refusal));
    }
    message.push_attempt(AttemptRecord {
        number: begin.attempt_no,
        carrier_no: begin.carrier_no,
        term: begin.term,
        begin_ms: turn.now_ms,
        send_by_ms,
        node_id: begin.node_id,
        sender: clean_sender(&begin.sender),
        sender_no: begin.sender_no,
        ..Default::default()
    });
    let was_held = message.status.waiting_reason == WaitingReason::QuietHours as i32;
    let step = Step::to(MessageState::InFlight).attempt(begin.attempt_no, Outcome::Unspecified);
    message.advance(turn, step);
    if turn.permits { permit(turn, &message, begin, (send_by_ms, was_held)) } else { Ok(CommandResult::Done) }
}

/// Characters of a sender that are kept, at most.
const SENDER_CHARS_MAX: usize = 32;

/// A sender is a number or a name that the carrier shows; anything else is not kept.
fn clean_sender(sender: &str) -> String {
    let fits = sender.len() <= SENDER_CHARS_MAX && sender.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    if fits { sender.to_owned() } else { String::new() }
}

fn refusal(turn: &Turn, message: &Message, begin: &BeginAttempt) -> Option<Refusal> {
    let (state, status) = (message.state(), &message.status);
    let stale = begin.attempt_no != next_attempt_no(status)
        || (begin.carrier_no, begin.sender_no) != (status.carrier_no, status.sender_no);
    if !message::waits(state) || stale {
        Some(Refusal::WrongState(state))
    } else if status.expires_at_ms <= turn.now_ms {
        Some(Refusal::Expired)
    } else if status.due_ms > turn.now_ms {
        Some(Refusal::WrongState(state))
    } else if status.open_until_ms > 0 && status.open_until_ms <= turn.now_ms {
        Some(Refusal::QuietHours)
    } else {
        None
    }
}

fn permit(
    turn: &Turn,
    message: &Message,
    begin: &BeginAttempt,
    (send_by_ms, was_held): (u64, bool),
) -> Result<CommandResult, TableError> {
    let accept = records::payload(turn.tables, &message.id)?
        .and_then(|payload| payload.accept)
        .ok_or_else(|| corrupt('M', "missing for a message that table S knows"))?;
    Ok(CommandResult::Begun(Box::new(Permit {
        message_id: message.id,
        attempt_no: begin.attempt_no,
        carrier_no: begin.carrier_no,
        practice_no: accept.practice_no,
        class: accept.class,
        key_epoch: accept.key_epoch,
        sealed_recipient: accept.sealed_recipient,
        sealed_body: accept.sealed_body,
        encoding: accept.encoding,
        segments: accept.segments,
        expires_at_ms: accept.expires_at_ms,
        send_by_ms,
        open_until_ms: message.status.open_until_ms,
        was_held,
        sender_no: begin.sender_no,
        sender: clean_sender(&begin.sender),
    })))
}
