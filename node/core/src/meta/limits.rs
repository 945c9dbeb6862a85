//! Limits besides those of the accounts, the state of lanes, and daily caps.
//!
//! Invariants
//!  - Numbers of limits are never reused.
//!  - What is taken of a daily cap is never more than its amount, and never falls while the day lasts; a day never comes back.
//!  - How much of a limit may be used after a carrier said "too fast" is a function of one record and the time
//!    ([`ease_permille`]): every leader of the meta group comes to the same.
use super::apply::{Change, MetaRefusal, Outcome, put_if_new};
use super::senders::own_address;
use super::{LIMITS_MAX, keys, rows};
use crate::records::{decode, encode};
use crate::tables::{ReadTables, TableError, Tables};
use carillon_proto::internal::{
    CapRecord, CarrierRecord, DropLimit, EaseLane, LaneRecord, LimitRecord, LimitScope, PracticeRecord,
    PutLimit, SetLane, TakeCap,
};

/// An eased lane gets back so many permille of its limit every second.
const RESTORE_PERMILLE_PER_S: u64 = 10;
/// A lane is never eased below this.
pub const EASE_PERMILLE_MIN: u32 = 5;
/// What a lane of a carrier that publishes no limit begins with, in permille of [`UNPUBLISHED_MAX`].
pub const START_PERMILLE: u32 = 10;
/// Segments per second of a carrier that publishes no limit, at most.
pub const UNPUBLISHED_MAX: u32 = 1_000;

pub(super) fn put(tables: &mut dyn Tables, command: PutLimit) -> Outcome {
    let Some(mut record) = command.limit else { return Ok(Err(MetaRefusal::Empty)) };
    if tables.get(&keys::carrier(record.carrier_no))?.is_none() {
        return Ok(Err(MetaRefusal::NoCarrier));
    }
    let of_practice = record.scope() == LimitScope::Practice;
    if of_practice && tables.get(&keys::practice(record.practice_no))?.is_none() {
        return Ok(Err(MetaRefusal::NoPractice));
    }
    // Whoever still sends on a fixed share knows no other limits.
    if rows::shares(tables)?.changing || !rows::shares(tables)?.senders.is_empty() {
        return Ok(Err(MetaRefusal::NotYetLeases));
    }
    let known = all(tables)?;
    record.limit_no = match known.iter().find(|other| is_same(other, &record)) {
        Some(other) => other.limit_no,
        None if known.len() >= LIMITS_MAX => {
            return Ok(Err(MetaRefusal::TooMany { what: "limits", max: LIMITS_MAX as u32 }));
        }
        None => next(tables)?,
    };
    put_if_new(tables, keys::limit(record.limit_no), encode(&record))
}

/// They limit the same thing in the same way, so the second takes the place of the first.
pub(super) fn is_same(a: &LimitRecord, b: &LimitRecord) -> bool {
    (a.carrier_no, a.scope, &a.key, a.practice_no, &a.network, a.window_s == 0)
        == (b.carrier_no, b.scope, &b.key, b.practice_no, &b.network, b.window_s == 0)
}

pub(super) fn next(tables: &mut dyn Tables) -> Result<u32, TableError> {
    let key = keys::counter(keys::Counted::Limits);
    let next = super::apply::number(tables, &key)?.unwrap_or(0) + 1;
    tables.put(key, next.to_be_bytes().to_vec());
    Ok(next)
}

pub(super) fn drop_limit(tables: &mut dyn Tables, command: &DropLimit) -> Outcome {
    let key = keys::limit(command.limit_no);
    if tables.get(&key)?.is_none() {
        return Ok(Err(MetaRefusal::NoLimit));
    }
    tables.delete(key);
    tables.delete(keys::cap(command.limit_no));
    Ok(Ok(Change::Changed))
}

pub(super) fn set_lane(tables: &mut dyn Tables, command: &SetLane) -> Outcome {
    if tables.get(&keys::carrier(command.carrier_no))?.is_none() {
        return Ok(Err(MetaRefusal::NoCarrier));
    }
    let record = LaneRecord { paused: command.paused, ..lane(tables, command.carrier_no)? };
    put_if_new(tables, keys::lane(command.carrier_no), encode(&record))
}

pub(super) fn ease(tables: &mut dyn Tables, now_ms: u64, command: &EaseLane) -> Outcome {
    if tables.get(&keys::carrier(command.carrier_no))?.is_none() {
        return Ok(Err(MetaRefusal::NoCarrier));
    }
    let record = lane(tables, command.carrier_no)?;
    if record.eased != command.expected {
        return Ok(Err(MetaRefusal::MovedOn { epoch: record.eased }));
    }
    let record = LaneRecord {
        eased_permille: command.permille.clamp(EASE_PERMILLE_MIN, 1_000),
        eased_at_ms: now_ms,
        eased: record.eased + 1,
        ..record
    };
    put_if_new(tables, keys::lane(command.carrier_no), encode(&record))
}

pub(super) fn take_cap(tables: &mut dyn Tables, command: &TakeCap) -> Outcome {
    let Some(row) = tables.get(&keys::limit(command.limit_no))? else {
        return Ok(Err(MetaRefusal::NoLimit));
    };
    let limit: LimitRecord = decode('m', row)?;
    let cap = cap(tables, command.limit_no)?;
    if command.day < cap.day {
        return Ok(Err(MetaRefusal::MovedOn { epoch: cap.day.into() }));
    }
    let before = if command.day == cap.day { cap.taken } else { 0 };
    let taken = before + u64::from(command.segments);
    if limit.window_s != 0 || taken > u64::from(limit.amount) {
        return Ok(Err(MetaRefusal::CapReached));
    }
    let record = CapRecord { limit_no: command.limit_no, day: command.day, taken };
    tables.put(keys::cap(command.limit_no), encode(&record));
    Ok(Ok(Change::Changed))
}

/// A carrier that publishes no limit begins slowly.
pub(super) fn begin_slowly(tables: &mut dyn Tables, now_ms: u64, carrier_no: u32) -> Result<(), TableError> {
    let record = lane(tables, carrier_no)?;
    if record.eased == 0 {
        let record = LaneRecord { eased_permille: START_PERMILLE, eased_at_ms: now_ms, eased: 1, ..record };
        tables.put(keys::lane(carrier_no), encode(&record));
    }
    Ok(())
}

fn lane(tables: &dyn ReadTables, carrier_no: u32) -> Result<LaneRecord, TableError> {
    let row = tables.get(&keys::lane(carrier_no))?;
    Ok(row
        .map(|row| decode('m', row))
        .transpose()?
        .unwrap_or(LaneRecord { carrier_no, ..Default::default() }))
}

pub(super) fn cap(tables: &dyn ReadTables, limit_no: u32) -> Result<CapRecord, TableError> {
    let row = tables.get(&keys::cap(limit_no))?;
    Ok(row.map(|row| decode('m', row)).transpose()?.unwrap_or(CapRecord { limit_no, ..Default::default() }))
}

pub(super) fn all(tables: &dyn ReadTables) -> Result<Vec<LimitRecord>, TableError> {
    let mut found = Vec::new();
    rows::each(tables, b'V', |record: LimitRecord| found.push(record))?;
    Ok(found)
}

/// How much of its limit a lane may use at a moment.
pub fn ease_permille(lane: Option<&LaneRecord>, now_ms: u64) -> u32 {
    let Some(lane) = lane.filter(|lane| lane.eased > 0) else { return 1_000 };
    let restored = now_ms.saturating_sub(lane.eased_at_ms) * RESTORE_PERMILLE_PER_S / 1_000;
    u32::try_from(u64::from(lane.eased_permille) + restored).unwrap_or(1_000).min(1_000)
}

/// With or without the leading plus of a number. Without a sender it is the account's own.
fn is_sender(carrier: &CarrierRecord, sender: &str, key: &str) -> bool {
    let sender = if sender.is_empty() { own_address(carrier) } else { sender };
    !sender.is_empty() && sender.trim_start_matches('+') == key.trim_start_matches('+')
}

/// Whether a limit applies to the messages of a practice on its carrier under a sender (empty: the account's own). The network of a number
/// is not known: the limits of all networks apply.
pub fn applies(
    limit: &LimitRecord,
    carrier: &CarrierRecord,
    practice: &PracticeRecord,
    sender: &str,
) -> bool {
    let or = |own: &str, default: &str| if own.is_empty() { default.to_owned() } else { own.to_owned() };
    limit.carrier_no == carrier.carrier_no
        && match limit.scope() {
            LimitScope::Account => true,
            LimitScope::Sender => is_sender(carrier, sender, &limit.key),
            LimitScope::Campaign => or(&practice.campaign, &carrier.campaign) == limit.key,
            LimitScope::Brand => or(&practice.brand, &carrier.brand) == limit.key,
            LimitScope::Practice => practice.practice_no == limit.practice_no,
            LimitScope::Unspecified => false,
        }
}
