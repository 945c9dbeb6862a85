//! Retire: drops messages that have been final long enough, their events, and idempotency keys that are old enough.
//!
//! Table E is the index: its blocks are in the order of time, and the event that made a message final is in one of them.
//! So retention walks E from its front, drops each block that is old enough, and with it the messages that became final in
//! it: their rows of M, S, X, R and J, and of I unless the key must live on. Nothing is written in advance for it and nothing
//! is scanned twice; table P remembers the place.
//!
//! | | lives until |
//! |---|---|
//! | final message | its last event is older than the cutoff |
//! | message that is not final (UNKNOWN and held, too) | for ever |
//! | event | it is older than the cutoff |
//! | idempotency key | its message is gone *and* it is older than its own cutoff (table K holds those between) |
//! | counter of a recipient's messages (table H) | no cap looks at its day any more |
//!
//! Deterministic: cutoffs come with the command, never fall, and are never later than the clock of the tables. Bounded: a
//! command stops after `limit` rows, and finishes the block it is in.
use crate::effect::{CommandResult, Retired};
use crate::keys::{self, Index};
use crate::message::is_final;
use crate::records::{self, corrupt, decode, encode};
use crate::tables::TableError;
use crate::turn::Turn;
use crate::update;
use crate::{duplicate, frequency};
use carillon_proto::MessageId;
use carillon_proto::internal::{Accept, EventBlock, MessageStatus, RetentionRecord, Retire};
use carillon_proto::public::MessageState;

/// Rows that one command looks at, at most.
pub const RETIRE_LIMIT_MAX: u32 = 1024;

/// Rows of one command of the retention loop: applying it delays nobody.
const PIECE_ROWS: u32 = 256;

/// What has been kept long enough at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cutoffs {
    pub finals_before_ms: u64,
    pub keys_before_ms: u64,
}

impl Cutoffs {
    /// Of a leader's clock and the times that final messages and idempotency keys are kept.
    pub fn at(now_ms: u64, finals_s: u64, keys_s: u64) -> Self {
        let before = |seconds: u64| now_ms.saturating_sub(seconds.saturating_mul(1000));
        Self { finals_before_ms: before(finals_s), keys_before_ms: before(keys_s) }
    }

    /// How late the oldest block of events and the oldest kept key are (`query::oldest_kept_ms`); 0 = nothing is due.
    pub fn lag_ms(self, (block, key): (Option<u64>, Option<u64>)) -> u64 {
        let late = |at: Option<u64>, cutoff: u64| at.map_or(0, |at| cutoff.saturating_sub(at));
        late(block, self.finals_before_ms).max(late(key, self.keys_before_ms))
    }

    /// The next piece.
    pub fn command(self) -> Retire {
        let Self { finals_before_ms, keys_before_ms } = self;
        Retire { finals_before_ms, keys_before_ms, limit: PIECE_ROWS }
    }
}

pub(crate) fn retire(turn: &mut Turn, command: &Retire) -> Result<CommandResult, TableError> {
    let before = records::retention(turn.tables)?;
    let mut record = RetentionRecord {
        finals_before_ms: before.finals_before_ms.max(command.finals_before_ms.min(turn.now_ms)),
        keys_before_ms: before.keys_before_ms.max(command.keys_before_ms.min(turn.now_ms)),
        ..before
    };
    let limit = command.limit.clamp(1, RETIRE_LIMIT_MAX) as usize;
    let mut retired = Retired::default();
    let mut looked_at = kept_keys(turn, &mut record, limit, &mut retired)?;
    if looked_at < limit {
        looked_at += frequency::retire(turn, limit - looked_at)?;
    }
    if looked_at < limit {
        blocks(turn, &mut record, limit - looked_at, &mut retired)?;
    } else {
        retired.more = true;
    }
    if record != before {
        turn.tables.put(keys::retention(), encode(&record));
    }
    Ok(CommandResult::Retired(retired))
}

/// Keys that outlived their message. Gives the number of rows looked at.
fn kept_keys(
    turn: &mut Turn,
    record: &mut RetentionRecord,
    limit: usize,
    retired: &mut Retired,
) -> Result<usize, TableError> {
    let range = keys::kept_keys(record.keys_done_ms, record.keys_before_ms);
    let (mut old, mut readable) = (Vec::new(), true);
    turn.tables.scan(&range.start, &range.end, &mut |key, _| {
        match keys::decode_kept_key(key) {
            Some(kept) => old.push(kept),
            None => readable = false,
        }
        readable && old.len() < limit
    })?;
    if !readable {
        return Err(corrupt('K', "key"));
    }
    for (accepted_ms, practice_no, index) in &old {
        turn.tables.delete(keys::kept_key(*accepted_ms, *practice_no, index));
        turn.tables.delete(keys::idempotency(*practice_no, index));
        retired.keys += 1;
        record.keys_done_ms = *accepted_ms;
    }
    if old.len() < limit {
        record.keys_done_ms = record.keys_before_ms;
    }
    Ok(old.len())
}

/// Old blocks of events, and the messages that became final in them.
fn blocks(
    turn: &mut Turn,
    record: &mut RetentionRecord,
    limit: usize,
    retired: &mut Retired,
) -> Result<(), TableError> {
    let range = keys::events_after(record.events_index);
    let (mut old, mut looked_at, mut error) = (Vec::new(), 0, None);
    turn.tables.scan(&range.start, &range.end, &mut |key, row| {
        let index = keys::decode_events(key).ok_or_else(|| corrupt('E', "key"));
        match index.and_then(|index| Ok((index, decode::<EventBlock>('E', row)?))) {
            Ok((_, block)) if block.now_ms > record.finals_before_ms => return false,
            Ok((index, block)) => {
                looked_at += 1 + block.events.len();
                old.push((index, block));
            }
            Err(e) => error = Some(e),
        }
        error.is_none() && looked_at < limit
    })?;
    if let Some(error) = error {
        return Err(error);
    }
    retired.more = looked_at >= limit;
    for (index, block) in old {
        for event in &block.events {
            let state = MessageState::try_from(event.state).unwrap_or(MessageState::Unspecified);
            if is_final(state) {
                let id =
                    MessageId::from_bytes(&event.message_id).map_err(|e| corrupt('E', &e.to_string()))?;
                message(turn, &id, record.keys_before_ms, retired)?;
            }
        }
        turn.tables.delete(keys::events(index));
        retired.event_blocks += 1;
        record.events_index = index;
    }
    Ok(())
}

/// All rows of one message.
fn message(
    turn: &mut Turn,
    id: &MessageId,
    keys_before_ms: u64,
    retired: &mut Retired,
) -> Result<(), TableError> {
    // A message has one final event, so it was not dropped before.
    let status = records::status(turn.tables, id)?
        .ok_or_else(|| corrupt('E', "names a message that does not exist"))?;
    let payload = records::payload(turn.tables, id)?
        .ok_or_else(|| corrupt('M', "missing for a message that table S knows"))?;
    let accept = payload.accept.ok_or_else(|| corrupt('M', "holds no message"))?;
    references(turn, &status)?;
    turn.tables.delete(keys::status(id));
    turn.tables.delete(keys::payload(id));
    if let Some(index) = stored_index(&accept.reference_index)? {
        turn.tables.delete(keys::reference(accept.practice_no, &index, id));
        update::forget(turn, accept.practice_no, &index)?;
    }
    if status
        .dead_letter
        .as_ref()
        .is_some_and(|d| d.listed && d.dropped.is_empty() && d.replayed_as.is_empty())
        && status.state == MessageState::Dead as i32
    {
        turn.tables.delete(keys::dead_letter(status.practice_no, id));
    }
    duplicate::forget(turn, &accept, id)?;
    key(turn, &accept, payload.accepted_at_ms, keys_before_ms, retired)?;
    retired.messages += 1;
    Ok(())
}

/// Rows of table R.
fn references(turn: &mut Turn, status: &MessageStatus) -> Result<(), TableError> {
    for attempt in &status.attempts {
        let (hashes, rest) = attempt.carrier_ref_hashes.as_chunks::<{ keys::INDEX_BYTES }>();
        if !rest.is_empty() {
            return Err(corrupt('S', "carrier reference hashes are cut"));
        }
        for hash in hashes {
            turn.tables.delete(keys::receipt(attempt.carrier_no, hash));
        }
    }
    Ok(())
}

/// The idempotency key goes too, or is noted down until its time has come.
fn key(
    turn: &mut Turn,
    accept: &Accept,
    accepted_ms: u64,
    keys_before_ms: u64,
    retired: &mut Retired,
) -> Result<(), TableError> {
    let Some(index) = stored_index(&accept.idempotency_index)? else { return Ok(()) };
    if accepted_ms <= keys_before_ms {
        turn.tables.delete(keys::idempotency(accept.practice_no, &index));
        retired.keys += 1;
    } else {
        turn.tables.put(keys::kept_key(accepted_ms, accept.practice_no, &index), Vec::new());
    }
    Ok(())
}

fn stored_index(bytes: &[u8]) -> Result<Option<Index>, TableError> {
    match bytes.len() {
        0 => Ok(None),
        _ => Index::try_from(bytes).map(Some).map_err(|_| corrupt('M', "a keyed hash has another length")),
    }
}
