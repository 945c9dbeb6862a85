//! Restore: the rows of a backup come into an empty partition, piece by piece, as commands like any other; so every replica has
//! the same, whatever crashes and whoever leads.
//!
//! | table of the backup | what becomes of it |
//! |---|---|
//! | M, I, X, R, E, K, O, Q, H, J | as it is |
//! | S | as it is, if nothing can have happened since; otherwise the message goes into quarantine ([`fate`]) |
//! | P | the later of both |
//! | D, F, N, G | not taken: they follow from S |
//! | A, B | not taken: this partition has its own log |
//!
//! Invariants
//!  - Pieces are taken in key order without a gap: the position is part of the state. Until the last one is applied nothing but
//!    pieces is accepted, so no idempotency key is looked up among half of the keys.
//!  - The re-send guard. The cluster that is gone may have sent every message that was due between its backup and its end.
//!    Such a message gets an attempt without an answer and becomes UNKNOWN, which nothing sends again by itself.
//!  - Events go on above every index that was ever given out, so cursors of readers stay valid and nothing after the restore is
//!    missed.
use crate::effect::{CommandResult, Refusal};
use crate::message::{Message, is_final};
use crate::pieces::position_after;
use crate::records::{self, corrupt, decode, encode};
use crate::tables::{ReadTables, TableError};
use crate::turn::{Restored, Turn};
use crate::{keys, query};
use carillon_proto::MessageId;
use carillon_proto::internal::{
    MessageStatus, PartitionRestore, Restore, RestorePosition, RestoreRow, RetentionRecord,
};
use carillon_proto::public::{MessageState, WaitingReason};
use prost::Message as _;

const BACKUP_ID_BYTES: usize = 16;
/// Indexes that are left out between the events of a backup and those of the cluster restored from it: more than the cluster that
/// is gone can have given out in the meantime.
pub const EVENTS_GAP: u64 = 1 << 40;

/// What a restore does with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is at rest: final, with the carrier, or held. Nothing sends it.
    Rests,
    /// Its time cannot have come when the cluster was restored, so nobody can have sent it since the backup.
    GoesOn,
    /// Somebody may have sent it.
    Unknown,
}

/// By state and the earliest time at which it can have been sent; `guard_ms` is the moment of the restore.
pub fn fate(state: MessageState, due_ms: u64, guard_ms: u64) -> Fate {
    match state {
        MessageState::Submitted | MessageState::Unknown => Fate::Rests,
        state if is_final(state) => Fate::Rests,
        MessageState::Accepted | MessageState::Waiting if due_ms > guard_ms => Fate::GoesOn,
        _ => Fate::Unknown,
    }
}

/// `events_base` of the pieces of a backup whose rows are in `tables`: above every index that the cluster can have given out.
pub fn base_of_restored_events(tables: &dyn ReadTables) -> Result<u64, TableError> {
    Ok(query::events_base(tables)? + records::applied_record(tables)?.index + EVENTS_GAP)
}

/// What the applier remembers.
pub(crate) fn of(tables: &dyn ReadTables) -> Result<Restored, TableError> {
    let record = records::restore(tables)?;
    Ok(record.map_or(Restored::default(), |r| memo(&r)))
}

fn memo(record: &PartitionRestore) -> Restored {
    Restored { events_base: record.events_base, under_way: !record.done }
}

pub(crate) fn restore(turn: &mut Turn, piece: Restore) -> Result<CommandResult, TableError> {
    let refused = |refusal| Ok(CommandResult::Refused(refusal));
    if piece.backup_id.len() != BACKUP_ID_BYTES || piece.events_base < EVENTS_GAP {
        return refused(Refusal::Malformed);
    }
    let mut record = match records::restore(turn.tables)? {
        Some(record) if record.backup_id != piece.backup_id => return refused(Refusal::NotFresh),
        // The answer to the last piece was lost.
        Some(record) if record.done => return Ok(CommandResult::Done),
        Some(record) => record,
        None if query::holds_messages(turn.tables)? => return refused(Refusal::NotFresh),
        None => PartitionRestore {
            backup_id: piece.backup_id.clone(),
            guard_ms: piece.guard_ms,
            events_base: piece.events_base,
            position: Some(RestorePosition::default()),
            ..Default::default()
        },
    };
    let mut position = record.position.clone().unwrap_or_default();
    if position != piece.after.unwrap_or_default() {
        return refused(Refusal::OutOfOrder);
    }
    if !piece.rows.iter().all(fits) || !in_order(&position, &piece.rows) {
        return refused(Refusal::Malformed);
    }
    position = position_after(position, &piece.rows);
    for row in piece.rows {
        take(turn, &mut record, row)?;
    }
    (record.position, record.done) = (Some(position), piece.last);
    turn.highest.forget();
    *turn.restore = memo(&record);
    turn.tables.put(keys::restore(), encode(&record));
    Ok(CommandResult::Done)
}

/// The row is of a table that is taken, and its key and its value can be read.
fn fits(row: &RestoreRow) -> bool {
    let key = row.key.as_ref();
    match key.first() {
        // Rows that nobody reads in parts come whole.
        Some(b'S') if !row.append => keys::decode_status(key).is_some_and(|id| {
            MessageStatus::decode(row.value.clone()).is_ok_and(|s| Message::restored(id, s).is_some())
        }),
        Some(b'P') if !row.append => key.len() == 1 && RetentionRecord::decode(row.value.clone()).is_ok(),
        Some(b'M') => keys::decode_payload(key).is_some(),
        Some(b'I') => keys::decode_idempotency(key).is_some(),
        Some(b'X') => keys::decode_reference(key).is_some(),
        Some(b'R') => keys::decode_receipt(key).is_some(),
        Some(b'E') => keys::decode_events(key).is_some(),
        Some(b'K') => keys::decode_kept_key(key).is_some(),
        Some(b'Q') => keys::decode_quarantine(key).is_some(),
        Some(b'O') => keys::decode_opt_out(key).is_some(),
        Some(b'V') => keys::decode_version(key).is_some(),
        Some(b'W') => keys::decode_series(key).is_some() || keys::decode_series_due(key).is_some(),
        Some(b'Y') => keys::decode_dead_letter(key).is_some(),
        Some(b'H') => keys::decode_frequency(key).is_some(),
        Some(b'J') => keys::decode_duplicate(key).is_some(),
        _ => false,
    }
}

fn in_order(position: &RestorePosition, rows: &[RestoreRow]) -> bool {
    let mut last = &position.key;
    rows.iter().all(|row| {
        let follows = if row.append { row.key == *last } else { row.key > *last };
        last = &row.key;
        follows
    })
}

/// The earliest moment at which a message that waits can have been sent since the backup. A schedule and the recipient's hours hold it
/// until it is due. Whatever else it waits for may have been over sooner: its turn came, or another carrier took it.
fn earliest_ms(turn: &Turn, id: &MessageId, status: &MessageStatus) -> Result<u64, TableError> {
    let reason = status.waiting_reason;
    if reason == WaitingReason::Schedule as i32 || reason == WaitingReason::QuietHours as i32 {
        return Ok(status.due_ms);
    }
    // Table M comes before S.
    let payload = records::payload(turn.tables, id)?;
    Ok(payload.and_then(|payload| payload.accept).map_or(0, |accept| accept.not_before_ms))
}

fn take(turn: &mut Turn, record: &mut PartitionRestore, row: RestoreRow) -> Result<(), TableError> {
    let RestoreRow { key, value, append } = row;
    match key.first() {
        Some(b'S') => {
            let id = keys::decode_status(&key).ok_or_else(|| corrupt('S', "key"))?;
            let mut status: MessageStatus = decode('S', value.clone())?;
            let due_ms = earliest_ms(turn, &id, &status)?;
            if status.waiting_reason == WaitingReason::Order as i32 {
                // It waited until its expiry to be woken.
                status.due_ms = due_ms;
            }
            let message = Message::restored(id, status).ok_or_else(|| corrupt('S', "makes no sense"))?;
            record.messages += 1;
            match fate(message.state(), due_ms, record.guard_ms) {
                Fate::Rests => turn.tables.put(key.into(), value.into()),
                Fate::GoesOn => {
                    record.waiting += 1;
                    message.go_on(turn);
                }
                Fate::Unknown => {
                    record.quarantined += 1;
                    message.quarantine(turn);
                }
            }
        }
        Some(b'P') => {
            let (own, old) = (records::retention(turn.tables)?, decode::<RetentionRecord>('P', value)?);
            let merged = RetentionRecord {
                finals_before_ms: own.finals_before_ms.max(old.finals_before_ms),
                keys_before_ms: own.keys_before_ms.max(old.keys_before_ms),
                ..old
            };
            turn.tables.put(key.into(), encode(&merged));
        }
        Some(b'O') => {
            turn.opt_outs.added();
            turn.tables.put(key.into(), value.into());
        }
        _ if append => {
            let mut whole = turn.tables.get(&key)?.unwrap_or_default().to_vec();
            whole.extend_from_slice(&value);
            turn.tables.put(key.into(), whole);
        }
        _ => turn.tables.put(key.into(), value.into()),
    }
    Ok(())
}
