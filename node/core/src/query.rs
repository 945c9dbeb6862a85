//! Reading the tables: what the leader answers and rebuilds its volatile world from. Changes nothing.
use crate::effect::DueEntry;
use crate::keys::{self, Index, KeyRange};
use crate::records::{self, corrupt, decode};
use crate::tables::{ReadTables, TableError};
use carillon_proto::internal::{
    DueRecord, EventBlock, InFlightRecord, MessagePayload, MessageStatus, PartitionRestore, RetentionRecord,
};
use carillon_proto::public::{MessageClass, MessageState};
use carillon_proto::{MessageId, Slot};
use std::collections::BTreeSet;

/// One message, if it exists.
pub fn message(
    tables: &dyn ReadTables,
    id: &MessageId,
) -> Result<Option<(MessagePayload, MessageStatus)>, TableError> {
    let Some(status) = records::status(tables, id)? else { return Ok(None) };
    let payload = records::payload(tables, id)?.ok_or_else(missing_payload)?;
    Ok(Some((payload, status)))
}

fn missing_payload() -> TableError {
    corrupt('M', "missing for a message that table S knows")
}

/// Which messages a list holds. Everything must fit; the default fits all.
#[derive(Debug, Clone, Default)]
pub struct ListFilter {
    /// `None` = any practice. An empty set fits nothing.
    pub practices: Option<BTreeSet<u32>>,
    /// Empty = any.
    pub states: BTreeSet<MessageState>,
    /// Empty = any.
    pub classes: BTreeSet<MessageClass>,
    /// Needs exactly one practice; reads only that reference's messages.
    pub reference_index: Option<Index>,
    /// At or after.
    pub accepted_after_ms: Option<u64>,
    /// Before.
    pub accepted_before_ms: Option<u64>,
}

impl ListFilter {
    fn fits(&self, status: &MessageStatus) -> bool {
        let any_or = |set: bool, empty: bool| set || empty;
        let state = MessageState::try_from(status.state).unwrap_or(MessageState::Unspecified);
        let class = MessageClass::try_from(status.class).unwrap_or(MessageClass::Unspecified);
        self.practices.as_ref().is_none_or(|p| p.contains(&status.practice_no))
            && any_or(self.states.contains(&state), self.states.is_empty())
            && any_or(self.classes.contains(&class), self.classes.is_empty())
            && self.accepted_after_ms.is_none_or(|t| status.accepted_at_ms >= t)
            && self.accepted_before_ms.is_none_or(|t| status.accepted_at_ms < t)
    }
}

/// One message of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct ListRow {
    pub message_id: MessageId,
    pub payload: MessagePayload,
    pub status: MessageStatus,
}

/// A page of a list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ListPage {
    pub rows: Vec<ListRow>,
    /// Where to go on: the last message looked at. `None` = nothing is left. The id holds its slot, so it is
    /// the whole position.
    pub next: Option<MessageId>,
}

/// Messages of the slots `first..=last`, slot by slot, in the order of their ids (which is the order of acceptance to
/// the millisecond); with a `reference_index` in the order of ids alone. At most `limit` messages, after looking at
/// most at `scan_limit` rows; both at least 1.
pub fn list(
    tables: &dyn ReadTables,
    (first, last): (Slot, Slot),
    after: Option<MessageId>,
    filter: &ListFilter,
    limit: usize,
    scan_limit: usize,
) -> Result<ListPage, TableError> {
    let (limit, scan_limit) = (limit.max(1), scan_limit.max(1));
    let (found, next) = match (&filter.reference_index, one_practice(filter)) {
        (Some(index), Some(practice_no)) => {
            let range = keys::reference_range(practice_no, index);
            let range = match after {
                Some(id) => range.after(&keys::reference(practice_no, index, &id)),
                None => range,
            };
            by_reference(tables, &range, (first, last), filter, limit, scan_limit)?
        }
        // References are scoped by practice: without exactly one there is nothing to find.
        (Some(_), None) => return Ok(ListPage::default()),
        (None, _) => {
            let range = keys::status_range(first, last);
            let range = match after {
                Some(id) => range.after(&keys::status(&id)),
                None => range,
            };
            by_slot(tables, &range, filter, limit, scan_limit)?
        }
    };
    let mut rows = Vec::with_capacity(found.len());
    for (message_id, status) in found {
        let payload = records::payload(tables, &message_id)?.ok_or_else(missing_payload)?;
        rows.push(ListRow { message_id, payload, status });
    }
    Ok(ListPage { rows, next })
}

fn one_practice(filter: &ListFilter) -> Option<u32> {
    let practices = filter.practices.as_ref()?;
    if practices.len() == 1 { practices.first().copied() } else { None }
}

type Found = (Vec<(MessageId, MessageStatus)>, Option<MessageId>);

fn by_slot(
    tables: &dyn ReadTables,
    range: &KeyRange,
    filter: &ListFilter,
    limit: usize,
    scan_limit: usize,
) -> Result<Found, TableError> {
    let (mut found, mut seen, mut next, mut error) = (Vec::new(), 0, None, None);
    tables.scan(&range.start, &range.end, &mut |key, row| {
        let read = keys::decode_status(key)
            .ok_or_else(|| corrupt('S', "key"))
            .and_then(|id| Ok((id, decode::<MessageStatus>('S', row)?)));
        match read {
            Ok((id, status)) => {
                seen += 1;
                if filter.fits(&status) {
                    found.push((id, status));
                }
                next = (found.len() == limit || seen == scan_limit).then_some(id);
            }
            Err(e) => error = Some(e),
        }
        next.is_none() && error.is_none()
    })?;
    error.map_or(Ok((found, next)), Err)
}

fn by_reference(
    tables: &dyn ReadTables,
    range: &KeyRange,
    (first, last): (Slot, Slot),
    filter: &ListFilter,
    limit: usize,
    scan_limit: usize,
) -> Result<Found, TableError> {
    let (mut ids, mut readable) = (Vec::new(), true);
    tables.scan(&range.start, &range.end, &mut |key, _| {
        match keys::decode_reference(key) {
            Some((_, _, id)) => ids.push(id),
            None => readable = false,
        }
        readable && ids.len() < scan_limit
    })?;
    if !readable {
        return Err(corrupt('X', "key"));
    }
    let mut next = ids.last().copied().filter(|_| ids.len() == scan_limit);
    let mut found = Vec::new();
    for id in ids.into_iter().filter(|id| (first..=last).contains(&id.slot())) {
        let status = records::status(tables, &id)?
            .ok_or_else(|| corrupt('X', "names a message that does not exist"))?;
        if filter.fits(&status) {
            found.push((id, status));
            if found.len() == limit {
                next = Some(id);
                break;
            }
        }
    }
    Ok((found, next))
}

/// A flow of table D: the rows of one priority and one practice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DueFlow {
    pub priority: u8,
    pub flow: u32,
    /// Of its first row.
    pub due_ms: u64,
}

/// The flows that have rows, after the one given, at most `limit`. Each costs one look-up, however many rows it has.
pub fn due_flows(
    tables: &dyn ReadTables,
    after: Option<(u8, u32)>,
    limit: usize,
) -> Result<Vec<DueFlow>, TableError> {
    let mut range = after.map_or_else(keys::due_all, |(priority, flow)| keys::due_after_flow(priority, flow));
    let mut found = Vec::new();
    while found.len() < limit {
        let next =
            collect(tables, &range, 1, |key, _| keys::decode_due(key).ok_or_else(|| corrupt('D', "key")))?;
        let Some(keys::DueKey { priority, flow, due_ms, .. }) = next.first().copied() else { break };
        found.push(DueFlow { priority, flow, due_ms });
        range = keys::due_after_flow(priority, flow);
    }
    Ok(found)
}

/// Part of a flow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DuePage {
    pub entries: Vec<DueEntry>,
    /// Due time of the first row after `entries`; `None` = there is none.
    pub next_due_ms: Option<u64>,
}

/// Waiting messages of one flow with `due_ms <= until_ms`, earliest first, after the position `after`.
pub fn due_page(
    tables: &dyn ReadTables,
    (priority, flow): (u8, u32),
    after: Option<(u64, MessageId)>,
    until_ms: u64,
    limit: usize,
) -> Result<DuePage, TableError> {
    let range = keys::due_range(priority, flow);
    let range = match after {
        Some((due_ms, id)) => range.after(&keys::due(priority, flow, due_ms, &id)),
        None => range,
    };
    let (mut page, mut error) = (DuePage::default(), None);
    tables.scan(&range.start, &range.end, &mut |key, row| {
        let Some(key) = keys::decode_due(key) else {
            error = Some(corrupt('D', "key"));
            return false;
        };
        if key.due_ms > until_ms || page.entries.len() >= limit {
            page.next_due_ms = Some(key.due_ms);
            return false;
        }
        match due_entry(&key, row) {
            Ok(entry) => page.entries.push(entry),
            Err(e) => error = Some(e),
        }
        error.is_none()
    })?;
    error.map_or(Ok(page), Err)
}

/// A place in a sweep over all flows of a priority: flow, due time, message.
pub type DuePlace = (u32, u64, MessageId);

/// Waiting messages of one priority with `due_ms <= until_ms`, after a place: one flow after the other, each earliest first. For
/// those who look at everything; an order among practices it is not.
pub fn due_sweep(
    tables: &dyn ReadTables,
    priority: u8,
    after: Option<DuePlace>,
    until_ms: u64,
    limit: usize,
) -> Result<Vec<DueEntry>, TableError> {
    let (mut found, mut flow) = (Vec::new(), Some(after.map_or(0, |(flow, ..)| flow)));
    let mut from = after.map(|(_, due_ms, id)| (due_ms, id));
    while let Some(at) = flow.filter(|_| found.len() < limit) {
        found.extend(due_page(tables, (priority, at), from.take(), until_ms, limit - found.len())?.entries);
        let next = collect(tables, &keys::due_flows_after(priority, at), 1, |key, _| {
            keys::decode_due(key).ok_or_else(|| corrupt('D', "key"))
        })?;
        flow = next.first().map(|key| key.flow);
    }
    Ok(found)
}

/// Where to go on after this row.
pub fn due_place(entry: &DueEntry) -> DuePlace {
    (entry.flow, entry.due_ms, entry.message_id)
}

fn due_entry(key: &keys::DueKey, row: &[u8]) -> Result<DueEntry, TableError> {
    let record: DueRecord = decode('D', row)?;
    Ok(DueEntry {
        message_id: key.message_id,
        priority: key.priority,
        flow: key.flow,
        due_ms: key.due_ms,
        practice_no: record.practice_no,
        class: record.class,
        segments: record.segments,
        expires_at_ms: record.expires_at_ms,
        deadline_ms: record.deadline_ms,
        carrier_no: record.carrier_no,
        attempt_no: record.attempt_no,
        open_until_ms: record.open_until_ms,
        hours_stamp: record.hours_stamp,
        sender_no: record.sender_no,
    })
}

/// Messages in flight, at most `limit`, in the order of their ids, after `after`.
pub fn in_flight_page(
    tables: &dyn ReadTables,
    after: Option<MessageId>,
    limit: usize,
) -> Result<Vec<(MessageId, InFlightRecord)>, TableError> {
    let range = keys::in_flight_range();
    let range = match after {
        Some(id) => range.after(&keys::in_flight(&id)),
        None => range,
    };
    collect(tables, &range, limit, |key, row| {
        let id = keys::decode_in_flight(key).ok_or_else(|| corrupt('F', "key"))?;
        Ok((id, decode('F', row)?))
    })
}

/// Event blocks of entries after `after_index`, oldest first.
pub fn events_after(
    tables: &dyn ReadTables,
    after_index: u64,
    limit_blocks: usize,
) -> Result<Vec<(u64, EventBlock)>, TableError> {
    collect(tables, &keys::events_after(after_index), limit_blocks, |key, row| {
        let index = keys::decode_events(key).ok_or_else(|| corrupt('E', "key"))?;
        Ok((index, decode('E', row)?))
    })
}

/// The backup that the partition was restored from, if it was.
pub fn restore(tables: &dyn ReadTables) -> Result<Option<PartitionRestore>, TableError> {
    records::restore(tables)
}

/// What is added to the index of an entry in the keys of its events.
pub fn events_base(tables: &dyn ReadTables) -> Result<u64, TableError> {
    Ok(records::restore(tables)?.map_or(0, |record| record.events_base))
}

/// Messages in quarantine with their practice, of one practice or (0) of all, after a position.
pub fn quarantined(
    tables: &dyn ReadTables,
    practice_no: u32,
    after: Option<(u32, MessageId)>,
    limit: usize,
) -> Result<Vec<(u32, MessageId)>, TableError> {
    let range = keys::quarantine_range(practice_no);
    let range = match after {
        Some((practice_no, id)) => range.after(&keys::quarantine(practice_no, &id)),
        None => range,
    };
    collect(tables, &range, limit, |key, _| keys::decode_quarantine(key).ok_or_else(|| corrupt('Q', "key")))
}

/// Dead letters that nobody has decided about, with their practice, of one practice or (0) of all, after a position.
pub fn dead_letters(
    tables: &dyn ReadTables,
    practice_no: u32,
    after: Option<(u32, MessageId)>,
    limit: usize,
) -> Result<Vec<(u32, MessageId)>, TableError> {
    let range = keys::dead_letter_range(practice_no);
    let range = match after {
        Some((practice_no, id)) => range.after(&keys::dead_letter(practice_no, &id)),
        None => range,
    };
    collect(tables, &range, limit, |key, _| keys::decode_dead_letter(key).ok_or_else(|| corrupt('Y', "key")))
}

/// The messages of an external reference in the order of their ids, with their records.
pub fn of_reference(
    tables: &dyn ReadTables,
    practice_no: u32,
    index: &Index,
) -> Result<Vec<ListRow>, TableError> {
    let mut rows = Vec::new();
    for message_id in crate::cancel::of_reference(tables, practice_no, index)? {
        let (payload, status) = message(tables, &message_id)?
            .ok_or_else(|| corrupt('X', "names a message that does not exist"))?;
        rows.push(ListRow { message_id, payload, status });
    }
    Ok(rows)
}

/// Whether the partition holds messages or traces of them.
pub fn holds_messages(tables: &dyn ReadTables) -> Result<bool, TableError> {
    let (range, mut found) = (keys::content_range(), false);
    tables.scan(&range.start, &range.end, &mut |key, _| {
        // Retention notes down its cutoffs before there is anything to drop.
        found = key.first() != Some(&b'P');
        !found
    })?;
    Ok(found)
}

/// How far retention has come.
pub fn retention(tables: &dyn ReadTables) -> Result<RetentionRecord, TableError> {
    records::retention(tables)
}

/// When the oldest thing that retention would drop next was written, if anything is left: the oldest event block, or the
/// oldest key that outlived its message. Reads two rows.
pub fn oldest_kept_ms(tables: &dyn ReadTables) -> Result<(Option<u64>, Option<u64>), TableError> {
    let record = records::retention(tables)?;
    let block = events_after(tables, record.events_index, 1)?.pop().map(|(_, block)| block.now_ms);
    let key = collect(tables, &keys::kept_keys(record.keys_done_ms, u64::MAX), 1, |key, _| {
        keys::decode_kept_key(key).map(|(accepted_ms, ..)| accepted_ms).ok_or_else(|| corrupt('K', "key"))
    })?;
    Ok((block, key.first().copied()))
}

/// The last entry that caused events, 0 if none did. Reads a logarithmic number of rows.
pub fn last_event_index(tables: &dyn ReadTables) -> Result<u64, TableError> {
    let mut known = records::retention(tables)?.events_index;
    let applied = records::applied_record(tables)?.index.saturating_add(events_base(tables)?);
    let mut beyond = applied.saturating_add(1);
    // `known` has events or is 0; nothing at or after `beyond` has.
    while known + 1 < beyond {
        let middle = known + (beyond - known) / 2;
        match events_after(tables, middle - 1, 1)?.first() {
            Some((index, _)) => known = *index,
            None => beyond = middle,
        }
    }
    Ok(known)
}

/// The first `limit` rows of a range, read.
fn collect<T>(
    tables: &dyn ReadTables,
    range: &KeyRange,
    limit: usize,
    read: impl Fn(&[u8], &[u8]) -> Result<T, TableError>,
) -> Result<Vec<T>, TableError> {
    let (mut found, mut error) = (Vec::new(), None);
    if limit == 0 {
        return Ok(found);
    }
    tables.scan(&range.start, &range.end, &mut |key, row| {
        match read(key, row) {
            Ok(value) => found.push(value),
            Err(e) => error = Some(e),
        }
        error.is_none() && found.len() < limit
    })?;
    error.map_or(Ok(found), Err)
}
