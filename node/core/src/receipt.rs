//! RecordReceipt: a carrier's delivery report. A fact: in any order, late, twice, or before the answer.
//!
//! What a receipt does, by the state of the message (one without attempts refuses it):
//!
//! | state | ENROUTE | DELIVERED | UNDELIVERED, EXPIRED, REJECTED |
//! |---|---|---|---|
//! | WAITING, nothing unresolved | - | DELIVERED | - (the retry goes on) |
//! | WAITING for a resend, UNKNOWN | SUBMITTED | DELIVERED | UNDELIVERED |
//! | IN_FLIGHT, SUBMITTED | - | DELIVERED | UNDELIVERED |
//! | any final state | - | - | - |
//!
//! Final states never change: DELIVERED after UNDELIVERED stays UNDELIVERED, and the other way round. Carriers do send
//! both; the first is what was reported to the practice.
//!
//! Parts. A carrier that names each part gives a reference for each; the message is final when every part of the decisive
//! attempt has a final receipt, DELIVERED if all parts are, otherwise UNDELIVERED with the detail of the worst. Each part
//! counts once. A receipt of one part proves nothing about the others: a node that was killed between two parts has handed
//! over half a message, and that stays UNKNOWN until all parts are accounted for. The *decisive attempt* is the last
//! ACCEPTED one, or the last one if none was; parts of other attempts do not count, but a whole message DELIVERED by
//! any attempt is delivered.
use crate::effect::{CommandResult, Refusal};
use crate::keys;
use crate::message::{self, Message, Step};
use crate::outcome::{clean_code, refs_possible};
use crate::records::{corrupt, decode, encode};
use crate::tables::TableError;
use crate::turn::Turn;
use carillon_proto::MessageId;
use carillon_proto::internal::{MessageStatus, ReceiptIndexRecord, ReceiptState, RecordReceipt};
use carillon_proto::public::{MessageState, Outcome};

/// Part number of a reference that stands for the whole message. Parts count from 1.
pub(crate) const PART_WHOLE: u32 = 0;

/// The attempt whose receipts decide.
pub(crate) fn decisive_attempt(status: &MessageStatus) -> u32 {
    let attempts = &status.attempts;
    let accepted = attempts.iter().rev().find(|a| a.outcome == Outcome::Accepted as i32);
    accepted.or(attempts.last()).map_or(0, |a| a.number)
}

/// Parts that were counted belong to the attempt that was decisive `before`.
pub(crate) fn restart_if_decisive_changed(status: &mut MessageStatus, before: u32) {
    if decisive_attempt(status) != before {
        status.receipts_final = 0;
        status.receipt_worst = ReceiptState::Unspecified as i32;
    }
}

/// A receipt with the row of table R that it belongs to, if one was found.
struct Found {
    message: Message,
    row: Option<(Vec<u8>, ReceiptIndexRecord)>,
}

pub(crate) fn record(turn: &mut Turn, receipt: &RecordReceipt) -> Result<CommandResult, TableError> {
    let state = ReceiptState::try_from(receipt.state).unwrap_or(ReceiptState::Unspecified);
    if state == ReceiptState::Unspecified || !refs_possible(&receipt.carrier_refs) {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    }
    let Found { mut message, row } = match find(turn, receipt)? {
        Ok(found) => found,
        Err(refusal) => return Ok(CommandResult::Refused(refusal)),
    };
    if message::is_final(message.state()) {
        return Ok(CommandResult::Done);
    }
    if message.status.attempts.is_empty() {
        return Ok(CommandResult::Refused(Refusal::WrongState(message.state())));
    }
    let code = clean_code(&receipt.code);
    Ok(match (state, row) {
        (ReceiptState::Enroute, _) => {
            // Of several parts it proves only that one.
            if message.status.segments <= 1 || receipt.carrier_refs.is_empty() {
                taken_over(turn, &mut message);
            }
            CommandResult::Done
        }
        (_, Some((key, row))) if row.part != PART_WHOLE => {
            part(turn, &mut message, key, row, state, &code);
            CommandResult::Done
        }
        (_, None) if !receipt.carrier_refs.is_empty() && message.status.segments > 1 => {
            // One part of several, and its number is not known (yet): it proves nothing about the others.
            CommandResult::Refused(Refusal::UnknownReference)
        }
        (_, row) => {
            let decisive = decisive_attempt(&message.status);
            let counts = row.is_none_or(|(_, row)| row.attempt_no == decisive);
            whole(turn, &mut message, state, &code, counts);
            CommandResult::Done
        }
    })
}

/// The message and the row of the first reference that fits.
fn find(turn: &Turn, receipt: &RecordReceipt) -> Result<Result<Found, Refusal>, TableError> {
    let given = match receipt.message_id.len() {
        0 => None,
        _ => match MessageId::from_bytes(&receipt.message_id) {
            Ok(id) => Some(id),
            Err(_) => return Ok(Err(Refusal::Malformed)),
        },
    };
    let mut row = None;
    for carrier_ref in &receipt.carrier_refs {
        let key = keys::receipt(receipt.carrier_no, &keys::carrier_ref_hash(carrier_ref));
        let Some(value) = turn.tables.get(&key)? else { continue };
        let record: ReceiptIndexRecord = decode('R', value)?;
        if given.is_none_or(|id| id.as_bytes().as_slice() == record.message_id.as_ref()) {
            row = Some((key, record));
            break;
        }
    }
    let id = match (given, &row) {
        (Some(id), _) => id,
        (None, Some((_, record))) => {
            MessageId::from_bytes(&record.message_id).map_err(|e| corrupt('R', &e.to_string()))?
        }
        (None, None) => return Ok(Err(Refusal::UnknownReference)),
    };
    Ok(match Message::load(turn.tables, id)? {
        Some(message) => Ok(Found { message, row }),
        None if row.is_none() => Err(Refusal::NotFound),
        None => return Err(corrupt('R', "names a message that does not exist")),
    })
}

/// The carrier has it: resolves UNKNOWN and calls off a resend.
fn taken_over(turn: &mut Turn, message: &mut Message) {
    let resolves = match message.state() {
        MessageState::Unknown => true,
        MessageState::Waiting => message.unresolved() > 0,
        _ => false,
    };
    if resolves {
        mark_submitted(message, turn.now_ms);
        message.advance(turn, Step::to(MessageState::Submitted));
    }
}

pub(crate) fn mark_submitted(message: &mut Message, now_ms: u64) {
    if message.status.submitted_at_ms == 0 {
        message.status.submitted_at_ms = now_ms;
    }
}

/// One receipt for the whole message.
fn whole(turn: &mut Turn, message: &mut Message, state: ReceiptState, code: &str, decisive: bool) {
    let retrying = message.state() == MessageState::Waiting && message.unresolved() == 0;
    let delivered = state == ReceiptState::Delivered;
    if delivered || (decisive && !retrying) {
        mark_submitted(message, turn.now_ms);
        message.advance(turn, last_step(state, detail(state, code)));
    }
}

/// A receipt for one part of several.
fn part(
    turn: &mut Turn,
    message: &mut Message,
    key: Vec<u8>,
    row: ReceiptIndexRecord,
    state: ReceiptState,
    code: &str,
) {
    if row.r#final {
        return;
    }
    let attempt_no = row.attempt_no;
    turn.tables.put(key, encode(&ReceiptIndexRecord { r#final: true, ..row }));
    if attempt_no != decisive_attempt(&message.status) {
        return;
    }
    let status = &mut message.status;
    status.receipts_final += 1;
    let parts = status.attempts.iter().find(|a| a.number == attempt_no).map_or(1, |a| a.segments);
    if state as i32 > status.receipt_worst {
        status.receipt_worst = state as i32;
        // Shown when the last part is in.
        status.detail = detail(state, code);
    }
    if status.receipts_final < parts {
        return message.save(turn);
    }
    let worst = ReceiptState::try_from(status.receipt_worst).unwrap_or(state);
    let step = last_step(worst, status.detail.clone());
    message.advance(turn, step);
}

fn last_step(state: ReceiptState, detail: String) -> Step {
    match state {
        ReceiptState::Delivered => Step::to(MessageState::Delivered),
        _ => Step::to(MessageState::Undelivered).detail(detail),
    }
}

/// A stable word, and the carrier's code if there is one.
fn detail(state: ReceiptState, code: &str) -> String {
    let word = match state {
        ReceiptState::Delivered | ReceiptState::Enroute | ReceiptState::Unspecified => return String::new(),
        ReceiptState::Undelivered => "receipt_undelivered",
        ReceiptState::Expired => "receipt_expired",
        ReceiptState::Rejected => "receipt_rejected",
    };
    if code.is_empty() { word.to_owned() } else { format!("{word}:{code}") }
}
