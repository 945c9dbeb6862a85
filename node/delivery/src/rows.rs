//! Rows and attempts of the scheduler: putting them in, moving them, taking them out.
//!
//! A row is in its window while table D is believed to hold it. It has a timer or stands in its lane's queue
//! only while no attempt of its message is unresolved: this is what keeps a message from being chosen twice.
use crate::cells::CellNo;
use crate::key::RowKey;
use crate::scheduler::Scheduler;
use crate::types::{Row, Stage, level_of};
use crate::window::lane_of;
use carillon_core::DueEntry;
use carillon_proto::MessageId;

/// A message that is useful for no longer than this is taken beyond the bound of its window.
const EXTRA_USEFUL_MS: u64 = 600_000;

impl Scheduler {
    /// Table D holds this row. False if it lies beyond what the window knows: a page will bring it.
    pub(crate) fn put_row(&mut self, partition: u32, level: usize, entry: &DueEntry) -> bool {
        let Some(no) = self.cells.find_or_add(partition, entry.message_id) else {
            self.counts.misfits += 1;
            return true;
        };
        if self.cells[no].row.as_ref().is_some_and(|row| row.equals(entry)) {
            return true;
        }
        self.remove_row(no);
        if !self.admit(partition, level, entry, no) {
            self.cells.release_if_empty(no);
            return false;
        }
        let cell = &mut self.cells[no];
        cell.row = Some(Row::new(entry));
        if cell.attempt.is_none() {
            self.start_row(no, entry.due_ms);
        }
        self.evict(partition, level);
        true
    }

    /// Puts the row into its flow's window, if it belongs there.
    fn admit(&mut self, partition: u32, level: usize, entry: &DueEntry, no: CellNo) -> bool {
        let horizon_end_ms = self.now_ms.saturating_add(self.config.horizon_ms);
        let soon_ms = self.now_ms.saturating_add(EXTRA_USEFUL_MS);
        let rows_max = self.config.window_entries_max;
        let Some(led) = self.partitions.get_mut(&partition) else { return false };
        // All flows are known: one that is new has no other row.
        let unread_ms = (!led.discovery.done).then_some(0);
        let flows = &mut led.levels[level];
        flows.open(entry.flow, unread_ms);
        let extra_max = flows.quota(rows_max) / 2;
        let key = RowKey::of(entry.due_ms, entry.message_id);
        let useful_until_ms = if entry.deadline_ms > 0 { entry.deadline_ms } else { entry.expires_at_ms };
        let lane = lane_of(entry);
        flows
            .change(entry.flow, |window| {
                window.raise_where_empty(horizon_end_ms);
                let known = key < window.bound(lane);
                let extra = key.due_ms < horizon_end_ms
                    && (entry.attempt_no > 1 || useful_until_ms < soon_ms)
                    && window.extra(lane) < extra_max;
                match known || extra {
                    true => window.insert(lane, key, no),
                    false => window.note_unknown(key),
                }
                known || extra
            })
            .unwrap_or(false)
    }

    /// Keeps the windows bounded. What is given up comes back with a page.
    fn evict(&mut self, partition: u32, level: usize) {
        let rows_max = self.config.window_entries_max;
        while let Some((flow, no)) =
            self.partitions.get_mut(&partition).and_then(|led| led.levels[level].evict(rows_max))
        {
            self.stop_row(no);
            self.cells[no].row = None;
            self.cells.release_if_empty(no);
            self.touch((partition, level, flow));
        }
    }

    /// Table D holds the row no longer.
    pub(crate) fn row_is_gone(&mut self, partition: u32, id: MessageId, at: (u8, u32, u64)) {
        let Some(no) = self.cells.find(partition, id) else { return };
        let cell = &mut self.cells[no];
        if let Some(attempt) = &mut cell.attempt
            && (attempt.priority, attempt.flow, attempt.due_ms) == at
        {
            attempt.row_gone = true;
        }
        if cell.row.as_ref().is_some_and(|row| (row.priority, row.flow, row.due_ms) == at) {
            self.remove_row(no);
            self.cells.release_if_empty(no);
        }
    }

    /// A committed attempt takes its row out of table D, also when the change has not arrived yet.
    pub(crate) fn row_left_with_attempt(&mut self, no: CellNo) {
        let cell = &mut self.cells[no];
        let Some(attempt) = &mut cell.attempt else { return };
        if std::mem::replace(&mut attempt.row_gone, true) {
            return;
        }
        let at @ (priority, flow, due_ms) = (attempt.priority, attempt.flow, attempt.due_ms);
        let (partition, id) = (cell.partition, cell.id);
        if cell.row.as_ref().is_some_and(|row| (row.priority, row.flow, row.due_ms) == at) {
            self.remove_row(no);
        }
        let level = level_of(priority).expect("a row was put in under its level");
        if let Some(led) = self.partitions.get_mut(&partition) {
            let notes_max = self.config.window_entries_max;
            let key = RowKey::of(due_ms, id);
            led.levels[level].change(flow, |window| window.note_gone(key, id, notes_max));
            self.touch((partition, level, flow));
        }
    }

    /// Ends the attempt; a row that still waits is looked at again, not before its due time.
    pub(crate) fn end_attempt(&mut self, no: CellNo, not_before_ms: u64) {
        self.close_attempt(no);
        let cell = &self.cells[no];
        match &cell.row {
            Some(row) => {
                let at_ms = row.due_ms.max(not_before_ms);
                self.start_row(no, at_ms);
            }
            None => self.cells.release_if_empty(no),
        }
    }

    /// Gives back what the attempt occupied. The cell may be left empty.
    pub(crate) fn close_attempt(&mut self, no: CellNo) {
        self.mark_sent(no);
        let cell = &mut self.cells[no];
        let Some(attempt) = cell.attempt.take() else { return };
        if let Some(led) = self.partitions.get_mut(&cell.partition) {
            led.attempts.remove(&cell.id);
        }
        if let Some(lane) = self.lanes.get_mut(&attempt.carrier_no) {
            lane.attempt_ends();
        }
    }

    pub(crate) fn mark_sent(&mut self, no: CellNo) {
        let Some(attempt) = &mut self.cells[no].attempt else { return };
        if std::mem::replace(&mut attempt.sent, true) {
            return;
        }
        if let Some(lane) = self.lanes.get_mut(&attempt.carrier_no) {
            lane.attempt_sent((attempt.practice_no, attempt.sender_no), attempt.segments);
        }
    }

    /// The row may be chosen from `at_ms` on.
    fn start_row(&mut self, no: CellNo, at_ms: u64) {
        if let Some(row) = &mut self.cells[no].row {
            row.stage = Stage::Waiting;
        }
        self.set_timer(no, Some(at_ms));
    }

    /// The row has neither a timer nor a place in its lane.
    pub(crate) fn stop_row(&mut self, no: CellNo) {
        self.set_timer(no, None);
        self.leave_lane(no);
    }

    pub(crate) fn set_timer(&mut self, no: CellNo, at_ms: Option<u64>) {
        let Some(row) = &mut self.cells[no].row else { return };
        if let Some(old_ms) = std::mem::replace(&mut row.timer_ms, at_ms) {
            self.timers.remove(&(old_ms, no));
        }
        if let Some(at_ms) = at_ms {
            self.timers.insert((at_ms, no));
        }
    }

    /// Takes a ready row out of its lane.
    pub(crate) fn leave_lane(&mut self, no: CellNo) {
        let cell = &mut self.cells[no];
        let Some(row) = &mut cell.row else { return };
        if let Stage::Ready { aged } = row.stage {
            row.stage = Stage::Held;
            let level = level_of(row.priority).expect("a row was put in under its level");
            if let Some(lane) = self.lanes.get_mut(&row.carrier_no) {
                let place = (row.practice_no, row.sender_no);
                lane.remove(level, place, &row.ready_key(cell.id), aged);
            }
        }
    }

    /// Puts the row among the ready ones of its lane.
    pub(crate) fn join_lane(&mut self, no: CellNo, aged: bool) {
        let cell = &mut self.cells[no];
        let Some(row) = &mut cell.row else { return };
        row.stage = Stage::Ready { aged };
        let level = level_of(row.priority).expect("a row was put in under its level");
        let lane = self.lanes.entry(row.carrier_no).or_default();
        lane.push(level, (row.practice_no, row.sender_no), row.ready_key(cell.id), no, aged);
    }

    /// Takes the row out of everything; the cell may be left empty.
    fn remove_row(&mut self, no: CellNo) {
        self.stop_row(no);
        let cell = &mut self.cells[no];
        let Some(row) = cell.row.take() else { return };
        let (key, partition) = (RowKey::of(row.due_ms, cell.id), cell.partition);
        let level = level_of(row.priority).expect("a row was put in under its level");
        if let Some(led) = self.partitions.get_mut(&partition) {
            let lane = (row.carrier_no, row.sender_no);
            led.levels[level].change(row.flow, |window| window.remove(lane, key));
            self.touch((partition, level, row.flow));
        }
    }
}
