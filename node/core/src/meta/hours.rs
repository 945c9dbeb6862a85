//! The rules of the hours in which recipients may be texted: kept as text, with a version that counts the changes.
//!
//! What they mean is not known here: the node that proposes them has checked them (`node/delivery`).
use super::apply::{Change, MetaRefusal, Outcome};
use super::keys;
use crate::records::{decode, encode};
use crate::tables::{ReadTables, TableError, Tables};
use carillon_proto::internal::{HoursRecord, PutHours};

pub(super) fn record(tables: &dyn ReadTables) -> Result<HoursRecord, TableError> {
    Ok(tables.get(&keys::hours())?.map(|row| decode('m', row)).transpose()?.unwrap_or_default())
}

pub(super) fn put(tables: &mut dyn Tables, now_ms: u64, command: PutHours) -> Outcome {
    let stored = record(tables)?;
    if command.replaces != 0 && command.replaces != stored.version {
        return Ok(Err(MetaRefusal::OtherHours { version: stored.version }));
    }
    if stored.rules == command.rules {
        return Ok(Ok(Change::Same));
    }
    let record = HoursRecord { version: stored.version + 1, rules: command.rules, changed_at_ms: now_ms };
    tables.put(keys::hours(), encode(&record));
    Ok(Ok(Change::Changed))
}
