//! What the commands of one entry share: the tables, the clock, and what they cause.
use crate::effect::{Reference, ScheduleChange};
use crate::tables::{ReadTables, TableError, Tables};
use crate::{keys, records};
use carillon_proto::internal::EventRecord;
use carillon_proto::{MessageId, Slot};
use std::collections::BTreeMap;

/// One entry being applied.
pub(crate) struct Turn<'a> {
    pub tables: &'a mut dyn Tables,
    pub schedule: &'a mut Vec<ScheduleChange>,
    pub events: Vec<EventRecord>,
    pub references: &'a mut Vec<Reference>,
    pub highest: &'a mut HighestIds,
    pub opt_outs: &'a mut OptOuts,
    /// The clamped clock.
    pub now_ms: u64,
    pub restore: &'a mut Restored,
    /// Term of the entry.
    pub term: u64,
    /// Highest term whose LeaderStart was applied.
    pub leader_start_term: u64,
    /// Hand over payloads with permissions.
    pub permits: bool,
    /// Recipients (of a practice) whose next ordered message may go on.
    pub wakes: Vec<(u32, keys::Index)>,
}

/// Whether there is any opt-out at all. A memo of what table O says, so that partitions without one read nothing for it.
#[derive(Debug, Default)]
pub(crate) struct OptOuts {
    any: Option<bool>,
}

impl OptOuts {
    pub fn any(&mut self, tables: &dyn ReadTables) -> Result<bool, TableError> {
        if let Some(known) = self.any {
            return Ok(known);
        }
        let (range, mut found) = (keys::opt_out_range(), false);
        tables.scan(&range.start, &range.end, &mut |_, _| {
            found = true;
            false
        })?;
        self.any = Some(found);
        Ok(found)
    }

    pub fn added(&mut self) {
        self.any = Some(true);
    }
}

/// What the row of table B says, as far as each entry needs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Restored {
    /// Added to the index of an entry in the keys of its events.
    pub events_base: u64,
    /// Pieces are still missing.
    pub under_way: bool,
}

/// The highest id of each slot, so that the usual Accept, whose id is higher than all before, reads nothing.
///
/// Only a memo of what table S says: with or without it the answer is the same, so replicas that were restarted
/// agree with those that were not. At most 4096 entries, one for each slot.
#[derive(Debug, Default)]
pub(crate) struct HighestIds {
    by_slot: BTreeMap<Slot, MessageId>,
}

impl HighestIds {
    /// Rows came from elsewhere.
    pub fn forget(&mut self) {
        self.by_slot.clear();
    }

    /// Is there no message with this id? The caller creates it if so.
    pub fn admits(&mut self, tables: &dyn ReadTables, id: &MessageId) -> Result<bool, TableError> {
        match self.by_slot.get(&id.slot()) {
            Some(highest) if id > highest => {
                self.by_slot.insert(id.slot(), *id);
                Ok(true)
            }
            Some(_) => Ok(records::status(tables, id)?.is_none()),
            None => self.look(tables, id),
        }
    }

    /// Nothing is known about the slot: looks for the first id at or after this one.
    fn look(&mut self, tables: &dyn ReadTables, id: &MessageId) -> Result<bool, TableError> {
        let (key, mut first) = (keys::status(id), None);
        let end = keys::status_range(id.slot(), id.slot()).end;
        tables.scan(&key, &end, &mut |row, _| {
            first = Some(row == key.as_slice());
            false
        })?;
        if first.is_none() {
            self.by_slot.insert(id.slot(), *id);
        }
        Ok(first != Some(true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::MemTables;
    use std::cell::Cell;

    /// Counts the reads.
    struct Counting<'a>(&'a MemTables, Cell<u32>);

    impl ReadTables for Counting<'_> {
        fn get(&self, key: &[u8]) -> Result<Option<bytes::Bytes>, TableError> {
            self.1.set(self.1.get() + 1);
            self.0.get(key)
        }

        fn scan(
            &self,
            start: &[u8],
            end: &[u8],
            visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
        ) -> Result<(), TableError> {
            self.1.set(self.1.get() + 1);
            self.0.scan(start, end, visit)
        }
    }

    fn id(time_ms: u64) -> MessageId {
        MessageId::new(time_ms, Slot::new(9).unwrap(), 0)
    }

    #[test]
    fn ids_in_order_are_admitted_without_reads_and_known_ones_never() {
        let mut tables = MemTables::default();
        tables.put(keys::status(&id(50)), vec![]);
        let mut highest = HighestIds::default();
        // (id, admitted, reads)
        let steps =
            [(40, true, 1), (50, false, 1), (60, true, 1), (70, true, 0), (60, false, 1), (65, true, 1)];
        for (time_ms, admitted, reads) in steps {
            let counting = Counting(&tables, Cell::new(0));
            assert_eq!(highest.admits(&counting, &id(time_ms)).unwrap(), admitted, "{time_ms}");
            assert_eq!(counting.1.get(), reads, "{time_ms}");
            if admitted {
                tables.put(keys::status(&id(time_ms)), vec![]);
            }
        }
    }
}
