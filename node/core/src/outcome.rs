//! RecordOutcome: what a carrier answered to an attempt. Facts: accepted from any leader, in any order.
//!
//! | outcome | counted | a message in flight becomes |
//! |---|---|---|
//! | ACCEPTED | yes | SUBMITTED; its references go to table R |
//! | THROTTLED, CAP_REACHED, LANE_BROKEN, NOT_SENT | no | WAITING: lane limit, daily cap, breaker open, backoff |
//! | TRANSIENT | yes | WAITING(backoff), or DEAD when all attempts are spent |
//! | AMBIGUOUS | yes | UNKNOWN, then by the class: stays, WAITING(backoff) once, or UNDELIVERED("abandoned") |
//! | REJECTED_NUMBER, REJECTED_CONTENT | yes | REJECTED |
//! | OPTED_OUT | yes | OPTED_OUT |
//! | EXPIRED | yes | EXPIRED |
//!
//! An attempt has one answer: a second one changes nothing - except that a definite one replaces AMBIGUOUS, which says
//! that there was none (a timeout, or a new leader that could not know). Then
//!  - UNKNOWN is resolved as soon as no attempt is unresolved any more, or when one was ACCEPTED;
//!  - a pending resend (WAITING) is dropped for ACCEPTED and for what is final, and stays otherwise;
//!  - while a later attempt is in flight the answer is only recorded; with that attempt's own answer the message becomes
//!    SUBMITTED if any attempt was ACCEPTED. A message that some carrier has is never tried again.
use crate::effect::{CommandResult, Reference, Refusal};
use crate::keys;
use crate::message::{DETAIL_CANCEL_REQUESTED, Message, Step, next_attempt_no};
use crate::receipt;
use crate::records::encode;
use crate::retry;
use crate::tables::TableError;
use crate::turn::Turn;
use crate::update;
use carillon_proto::MessageId;
use carillon_proto::internal::{ReceiptIndexRecord, RecordOutcome, UnknownPolicy};
use carillon_proto::public::{MessageState, Outcome, WaitingReason};

/// References in one outcome or receipt, at most (a message has at most 10 parts; receipts carry a few readings of one id).
pub const CARRIER_REFS_MAX: usize = 16;
/// Bytes of one reference, at most.
pub const CARRIER_REF_BYTES_MAX: usize = 128;
/// Characters of a carrier's code that are kept, at most.
pub const CODE_CHARS_MAX: usize = 48;
/// Detail of a message that waits to be sent a second time although its first attempt may have arrived, or what it begins with
/// (then a colon and an operator's reason follow). Each such event is one possible duplicate.
pub const DETAIL_RESEND: &str = "resend";

/// A carrier's answer, checked.
#[derive(Debug)]
pub(crate) struct Answer {
    outcome: Outcome,
    code: String,
    retry_after_ms: u64,
    segments: u32,
    refs: Vec<String>,
}

impl Answer {
    pub fn new(outcome: Outcome, code: String) -> Self {
        Self { outcome, code, retry_after_ms: 0, segments: 0, refs: Vec::new() }
    }

    fn check(record: &RecordOutcome) -> Option<Self> {
        let outcome = Outcome::try_from(record.outcome).ok().filter(|o| *o != Outcome::Unspecified)?;
        refs_possible(&record.carrier_refs).then(|| Self {
            outcome,
            code: clean_code(&record.code),
            retry_after_ms: u64::from(record.retry_after_ms),
            segments: record.segments,
            refs: record.carrier_refs.clone(),
        })
    }
}

pub(crate) fn refs_possible(refs: &[String]) -> bool {
    refs.len() <= CARRIER_REFS_MAX && refs.iter().all(|r| (1..=CARRIER_REF_BYTES_MAX).contains(&r.len()))
}

/// A carrier's code as it may be stored and shown: a stable word or number. Anything else could be free text, and free
/// text could name a patient.
pub(crate) fn clean_code(code: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.:".contains(&b);
    if code.len() <= CODE_CHARS_MAX && code.bytes().all(plain) {
        code.to_owned()
    } else {
        "unreadable_code".to_owned()
    }
}

/// Where the attempt is in the record.
pub(crate) fn position(message: &Message, attempt_no: u32) -> Option<usize> {
    message.status.attempts.iter().position(|a| a.number == attempt_no)
}

pub(crate) fn record(turn: &mut Turn, record: &RecordOutcome) -> Result<CommandResult, TableError> {
    let (Ok(id), Some(answer)) = (MessageId::from_bytes(&record.message_id), Answer::check(record)) else {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    };
    let Some(mut message) = Message::load(turn.tables, id)? else {
        return Ok(CommandResult::Refused(Refusal::NotFound));
    };
    match position(&message, record.attempt_no) {
        Some(position) => settle(turn, &mut message, position, &answer)?,
        // It was, and its answer is known; only resolved attempts are dropped from the record.
        None if (1..next_attempt_no(&message.status)).contains(&record.attempt_no) => {}
        None => return Ok(CommandResult::Refused(Refusal::WrongState(message.state()))),
    }
    Ok(CommandResult::Done)
}

/// Does this outcome use up one of the attempts of the policy?
fn counts(outcome: Outcome) -> bool {
    outcome != Outcome::Unspecified && retry::uncounted_wait(outcome).is_none()
}

/// Gives an attempt its answer, unless it has one, and moves the message on.
pub(crate) fn settle(
    turn: &mut Turn,
    message: &mut Message,
    position: usize,
    answer: &Answer,
) -> Result<(), TableError> {
    let before = Outcome::try_from(message.status.attempts[position].outcome).unwrap_or(Outcome::Unspecified);
    let open = matches!(before, Outcome::Unspecified | Outcome::Ambiguous) && before != answer.outcome;
    if !open {
        return Ok(());
    }
    write_attempt(turn.now_ms, message, position, before, answer);
    if answer.outcome == Outcome::Accepted {
        write_refs(turn, message, position, answer);
    }
    let in_flight_itself = position + 1 == message.status.attempts.len();
    match message.state() {
        MessageState::InFlight if in_flight_itself => decide(turn, message, position, answer)?,
        MessageState::Unknown if message.taken_over() || message.unresolved() == 0 => {
            decide(turn, message, position, answer)?;
        }
        MessageState::Waiting if ends_a_resend(answer.outcome) => decide(turn, message, position, answer)?,
        _ => message.save(turn),
    }
    Ok(())
}

fn ends_a_resend(outcome: Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Accepted
            | Outcome::RejectedNumber
            | Outcome::RejectedContent
            | Outcome::OptedOut
            | Outcome::Expired
    )
}

fn write_attempt(now_ms: u64, message: &mut Message, position: usize, before: Outcome, answer: &Answer) {
    let decisive = receipt::decisive_attempt(&message.status);
    let segments_whole = message.status.segments;
    let status = &mut message.status;
    match (counts(before), counts(answer.outcome)) {
        (false, true) => status.attempts_counted += 1,
        (true, false) => status.attempts_counted = status.attempts_counted.saturating_sub(1),
        _ => {}
    }
    let attempt = &mut status.attempts[position];
    attempt.outcome = answer.outcome as i32;
    attempt.end_ms = now_ms;
    attempt.code.clone_from(&answer.code);
    attempt.segments = match (answer.outcome, answer.refs.len(), answer.segments) {
        // Named one by one, so that many receipts will come.
        (Outcome::Accepted, named @ 2.., _) => named as u32,
        (Outcome::Accepted, _, 0) => segments_whole,
        (Outcome::Accepted, _, acknowledged) => acknowledged,
        // Parts that the carrier named; of the others nobody knows.
        (Outcome::Ambiguous, named, _) => named as u32,
        _ => 0,
    };
    if answer.outcome == Outcome::Accepted && status.submitted_at_ms == 0 {
        status.submitted_at_ms = now_ms;
    }
    receipt::restart_if_decisive_changed(status, decisive);
}

/// Table R: so that receipts find the message. The attempt remembers the hashes, so that the rows can go with it.
fn write_refs(turn: &mut Turn, message: &mut Message, position: usize, answer: &Answer) {
    let mut hashes = Vec::with_capacity(answer.refs.len() * keys::INDEX_BYTES);
    let attempt = &message.status.attempts[position];
    for (i, carrier_ref) in answer.refs.iter().enumerate() {
        let part = if answer.refs.len() == 1 { receipt::PART_WHOLE } else { i as u32 + 1 };
        let row = ReceiptIndexRecord {
            message_id: message.id.to_bytes(),
            attempt_no: attempt.number,
            part,
            r#final: false,
        };
        let hash = keys::carrier_ref_hash(carrier_ref);
        hashes.extend_from_slice(&hash);
        turn.tables.put(keys::receipt(attempt.carrier_no, &hash), encode(&row));
        let (carrier_no, message_id) = (attempt.carrier_no, message.id);
        turn.references.push(Reference { carrier_no, hash, message_id });
    }
    message.status.attempts[position].carrier_ref_hashes = hashes.into();
}

/// The next state of a message that is moved by this answer.
fn decide(
    turn: &mut Turn,
    message: &mut Message,
    position: usize,
    answer: &Answer,
) -> Result<(), TableError> {
    let attempt_no = message.status.attempts[position].number;
    let step = |step: Step| step.attempt(attempt_no, answer.outcome);
    if message.taken_over() {
        message.advance(turn, step(Step::to(MessageState::Submitted)));
        return Ok(());
    }
    let code = answer.code.as_str();
    match answer.outcome {
        Outcome::Ambiguous => lost(turn, message, attempt_no, code),
        Outcome::RejectedNumber | Outcome::RejectedContent => {
            message.advance(turn, step(Step::to(MessageState::Rejected).detail(code)));
        }
        Outcome::OptedOut => message.advance(turn, step(Step::to(MessageState::OptedOut).detail(code))),
        Outcome::Expired => message.end_unsent(turn, step(Step::to(MessageState::Expired).detail(code))),
        _ => again(turn, message, attempt_no, answer)?,
    }
    Ok(())
}

/// Not taken over: waits for the next try, or ends.
fn again(turn: &mut Turn, message: &mut Message, attempt_no: u32, answer: &Answer) -> Result<(), TableError> {
    let step = |step: Step| step.attempt(attempt_no, answer.outcome).detail(answer.code.as_str());
    if message.cancel_requested() {
        message.end_unsent(turn, step(Step::to(MessageState::Canceled)));
        return Ok(());
    }
    let counted = message.status.attempts_counted;
    let (reason, delay_ms) = match retry::uncounted_wait(answer.outcome) {
        Some(wait) => wait,
        None if counted >= attempts_max(message) => {
            message.end_unsent(turn, step(Step::to(MessageState::Dead)));
            return Ok(());
        }
        None => (WaitingReason::Backoff, backoff_ms(message, attempt_no)),
    };
    let not_before_ms = update::take_effect(turn, message)?;
    if message.status.pending_update.is_some() {
        // The resend would carry the old text, and nobody knows whether the first attempt did.
        let held = Step::to(MessageState::Unknown).attempt(attempt_no, answer.outcome);
        message.advance(turn, held.detail(update::DETAIL_CHANGED));
        return Ok(());
    }
    let due_ms = turn.now_ms.saturating_add(delay_ms.max(answer.retry_after_ms)).max(not_before_ms);
    message.advance(turn, step(Step::wait(reason, due_ms)));
    Ok(())
}

/// The answer was lost: UNKNOWN, and then what the class wants.
fn lost(turn: &mut Turn, message: &mut Message, attempt_no: u32, code: &str) {
    let canceled = message.cancel_requested();
    let step = |step: Step| step.attempt(attempt_no, Outcome::Ambiguous);
    let detail = match (canceled, code) {
        (true, _) => DETAIL_CANCEL_REQUESTED,
        (false, "") => "answer_lost",
        (false, code) => code,
    };
    message.advance(turn, step(Step::to(MessageState::Unknown).detail(detail)));
    match message.status.retry.unwrap_or_default().unknown_policy() {
        UnknownPolicy::Hold => {}
        UnknownPolicy::Abandon => {
            message.advance(turn, step(Step::to(MessageState::Undelivered).detail("abandoned")));
        }
        UnknownPolicy::ResendOnce => {
            let due_ms = turn.now_ms.saturating_add(backoff_ms(message, attempt_no));
            let first = message.unresolved() == 1;
            let left = message.status.attempts_counted < attempts_max(message);
            // A resend that could only expire would trade "unknown" for nothing.
            let changed = message.status.pending_update.is_some();
            if first && left && !canceled && !changed && due_ms < message.status.expires_at_ms {
                let wait = Step::wait(WaitingReason::Backoff, due_ms).detail(DETAIL_RESEND);
                message.advance(turn, step(wait));
            }
        }
    }
}

fn attempts_max(message: &Message) -> u32 {
    message.status.retry.map_or(1, |r| r.attempts_max)
}

fn backoff_ms(message: &Message, attempt_no: u32) -> u64 {
    let policy = message.status.retry.unwrap_or_default();
    retry::delay_ms(&policy, message.status.attempts_counted, &message.id, attempt_no)
}
