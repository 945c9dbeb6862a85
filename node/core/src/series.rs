//! Series: recurring messages. The core keeps them sealed and knows only how far each was made; the leader knows the rule.
//!
//! Invariants
//!  - A series has two rows of table W: one by its id, one by the time of its next message. Both go when it ends.
//!  - It moves on from exactly where it stands: of two leaders that make the same messages the second one is refused, and the messages
//!    themselves carry keys that follow from series and occurrence, so none comes into being twice.
use crate::effect::{CommandResult, Refusal};
use crate::keys::{self, Index};
use crate::records::{corrupt, decode, encode};
use crate::tables::{ReadTables, TableError};
use crate::turn::Turn;
use carillon_proto::MessageId;
use carillon_proto::internal::{AdvanceSeries, EndSeries, IdempotencyRecord, PutSeries, SeriesRecord};

/// Bytes of a sealed plan, at most.
pub const PLAN_BYTES_MAX: usize = 16 * 1024;

pub(crate) fn put(turn: &mut Turn, put: PutSeries) -> Result<CommandResult, TableError> {
    let index = match put.idempotency_index.len() {
        0 => None,
        _ => match Index::try_from(put.idempotency_index.as_ref()) {
            Ok(index) => Some(index),
            Err(_) => return Ok(CommandResult::Refused(Refusal::Malformed)),
        },
    };
    let possible = put.practice_no > 0
        && put.next_ms > 0
        && (1..=PLAN_BYTES_MAX).contains(&put.sealed_plan.len())
        && put.content_mac.len() == keys::INDEX_BYTES;
    let (Ok(id), true) = (MessageId::from_bytes(&put.series_id), possible) else {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    };
    if let Some(index) = index {
        let key = keys::idempotency(put.practice_no, &index);
        if let Some(row) = turn.tables.get(&key)? {
            let known: IdempotencyRecord = decode('I', row)?;
            let message_id =
                MessageId::from_bytes(&known.message_id).map_err(|e| corrupt('I', &e.to_string()))?;
            return Ok(match known.content_mac == put.content_mac {
                true => CommandResult::Duplicate { message_id },
                false => CommandResult::KeyReused { message_id },
            });
        }
        let record = IdempotencyRecord {
            message_id: put.series_id.clone(),
            content_mac: put.content_mac,
            accepted_at_ms: turn.now_ms,
        };
        turn.tables.put(key, encode(&record));
    }
    if load(turn.tables, &id)?.is_some() {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    }
    let record = SeriesRecord {
        practice_no: put.practice_no,
        sealed_plan: put.sealed_plan,
        key_epoch: put.key_epoch,
        idempotency_index: put.idempotency_index,
        created_at_ms: turn.now_ms,
        made: 0,
        next_ms: put.next_ms,
    };
    store(turn, &id, &record);
    Ok(CommandResult::Accepted)
}

pub(crate) fn advance(turn: &mut Turn, advance: &AdvanceSeries) -> Result<CommandResult, TableError> {
    let (id, mut record) = match own(turn.tables, &advance.series_id, advance.practice_no)? {
        Ok(found) => found,
        Err(refusal) => return Ok(CommandResult::Refused(refusal)),
    };
    if advance.from != record.made || advance.to < advance.from {
        return Ok(CommandResult::Refused(Refusal::MovedOn));
    }
    turn.tables.delete(keys::series_due(record.next_ms, &id));
    if advance.next_ms == 0 {
        end(turn, &id, &record)?;
    } else {
        (record.made, record.next_ms) = (advance.to, advance.next_ms);
        store(turn, &id, &record);
    }
    Ok(CommandResult::Done)
}

pub(crate) fn finish(turn: &mut Turn, command: &EndSeries) -> Result<CommandResult, TableError> {
    let (id, record) = match own(turn.tables, &command.series_id, command.practice_no)? {
        Ok(found) => found,
        Err(refusal) => return Ok(CommandResult::Refused(refusal)),
    };
    turn.tables.delete(keys::series_due(record.next_ms, &id));
    end(turn, &id, &record)?;
    Ok(CommandResult::Done)
}

fn store(turn: &mut Turn, id: &MessageId, record: &SeriesRecord) {
    turn.tables.put(keys::series(id), encode(record));
    turn.tables.put(keys::series_due(record.next_ms, id), Vec::new());
}

/// The key is forgotten like that of a message that is gone.
fn end(turn: &mut Turn, id: &MessageId, record: &SeriesRecord) -> Result<(), TableError> {
    turn.tables.delete(keys::series(id));
    if !record.idempotency_index.is_empty() {
        let index = Index::try_from(record.idempotency_index.as_ref())
            .map_err(|_| corrupt('W', "a keyed hash has another length"))?;
        turn.tables.put(keys::kept_key(turn.now_ms, record.practice_no, &index), Vec::new());
    }
    Ok(())
}

/// Another practice's series does not exist for this one.
fn own(
    tables: &dyn ReadTables,
    series_id: &[u8],
    practice_no: u32,
) -> Result<Result<(MessageId, SeriesRecord), Refusal>, TableError> {
    let Ok(id) = MessageId::from_bytes(series_id) else { return Ok(Err(Refusal::Malformed)) };
    let found = load(tables, &id)?.filter(|record| record.practice_no == practice_no);
    Ok(found.map(|record| (id, record)).ok_or(Refusal::NotFound))
}

/// A series that has not ended.
pub fn load(tables: &dyn ReadTables, id: &MessageId) -> Result<Option<SeriesRecord>, TableError> {
    tables.get(&keys::series(id))?.map(|row| decode('W', row)).transpose()
}

/// Series whose next message is due at or before a time, the most urgent first.
pub fn due(
    tables: &dyn ReadTables,
    until_ms: u64,
    limit: usize,
) -> Result<Vec<(MessageId, SeriesRecord)>, TableError> {
    let range = keys::series_due_until(until_ms);
    let (mut ids, mut readable) = (Vec::new(), true);
    if limit == 0 {
        return Ok(Vec::new());
    }
    tables.scan(&range.start, &range.end, &mut |key, _| {
        match keys::decode_series_due(key) {
            Some((_, id)) => ids.push(id),
            None => readable = false,
        }
        readable && ids.len() < limit
    })?;
    if !readable {
        return Err(corrupt('W', "key"));
    }
    let record = |id: MessageId| {
        let found = load(tables, &id)?.ok_or_else(|| corrupt('W', "names a series that does not exist"))?;
        Ok((id, found))
    };
    ids.into_iter().map(record).collect()
}
