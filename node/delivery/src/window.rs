//! What is known of one flow of table D (one priority and practice of one partition): a bounded window.
//!
//! Rows below the frontier are known, except those of lanes that are behind: of these only the rows below the
//! lane's own bound are known. A lane falls behind when the windows are full and it holds the most rows: it
//! gives up its last one. (Here each sender of a carrier is a lane: one whose limit is used up has the longer backlog.) So a lane with a long backlog cannot hide the messages of other lanes, and the
//! window stays bounded. Of what is at or after the frontier only the first due time is known, so a flow whose messages are
//! due next year costs a few words.
//!
//! A few rows beyond the bound may be held all the same (*extra*): those that came back from the carrier and those whose
//! deadline is near. They would otherwise stand behind a backlog that they belong in front of. A page brings them again if they are
//! given up.
//!
//! A page is read while changes go on. The messages that changed meanwhile are noted: for them the page is
//! too old, and rows that arrived beyond the bound of that moment are offered again when the page has moved
//! it.
//!
//! Knows positions and cell numbers only; the scheduler keeps rows and timers.
use crate::cells::CellNo;
use crate::key::RowKey;
use crate::types::SchedulerConfig;
use carillon_core::DueEntry;
use carillon_proto::MessageId;
use std::collections::BTreeMap;

/// Carrier and sender.
pub(crate) type WindowLane = (u32, u32);

/// Of a row.
pub(crate) fn lane_of(entry: &DueEntry) -> WindowLane {
    (entry.carrier_no, entry.sender_no)
}

#[derive(Debug)]
pub(crate) struct Window {
    pub frontier: RowKey,
    /// No row at or after the frontier is due before this; `None` = there is no such row.
    next_due_ms: Option<u64>,
    lanes: BTreeMap<WindowLane, LaneRows>,
    rows: usize,
    page: Option<PendingPage>,
    /// Turns between catching up and moving the frontier.
    caught_up_last: bool,
    /// Its place among the windows that want a page.
    pub listed: Option<(u64, u64)>,
}

#[derive(Debug, Default)]
struct LaneRows {
    rows: BTreeMap<RowKey, CellNo>,
    extra: BTreeMap<RowKey, CellNo>,
    /// Some: the lane is behind, and of it only the rows below this are known.
    behind: Option<RowKey>,
}

impl LaneRows {
    fn len(&self) -> usize {
        self.rows.len() + self.extra.len()
    }
}

/// A page that is being read.
#[derive(Debug)]
pub(crate) struct PendingPage {
    pub request_id: u64,
    /// Some: only this lane's rows are wanted, to catch up.
    pub lane: Option<WindowLane>,
    pub from: RowKey,
    pub until_ms: u64,
    /// Messages that changed since the request; a row that the window could not take is kept.
    pub changed: BTreeMap<MessageId, Option<DueEntry>>,
    /// First due time at or after the frontier among what changed since the request.
    next_due_ms: Option<u64>,
}

/// A page that the window wants at `at_ms`: of one lane or of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    pub at_ms: u64,
    pub lane: Option<WindowLane>,
}

fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

impl Window {
    /// Nothing is known but that no row is due before `next_due_ms`, or (`None`) that there is none.
    pub fn new(next_due_ms: Option<u64>) -> Self {
        Self {
            frontier: RowKey::START,
            next_due_ms,
            lanes: BTreeMap::new(),
            rows: 0,
            page: None,
            caught_up_last: false,
            listed: None,
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn lanes_held(&self) -> usize {
        self.lanes.len()
    }

    /// Nothing would be lost by dropping it.
    pub fn is_idle(&self) -> bool {
        self.lanes.is_empty() && self.page.is_none() && self.next_due_ms.is_none()
    }

    pub fn cells(&self) -> impl Iterator<Item = CellNo> + '_ {
        self.lanes.values().flat_map(|lane| lane.rows.values().chain(lane.extra.values()).copied())
    }

    /// The lanes with their rows in order of due time, but for the extra ones, which are at the end.
    pub fn lanes(&self) -> impl Iterator<Item = (WindowLane, impl Iterator<Item = CellNo> + '_)> + '_ {
        self.lanes.iter().map(|(of, lane)| (*of, lane.rows.values().chain(lane.extra.values()).copied()))
    }

    /// Rows of the lane below this are known.
    pub fn bound(&self, of: WindowLane) -> RowKey {
        self.behind(of).unwrap_or(self.frontier)
    }

    pub fn behind(&self, of: WindowLane) -> Option<RowKey> {
        self.lanes.get(&of).and_then(|lane| lane.behind)
    }

    /// Where no row can be, the frontier moves without a page.
    pub fn raise_where_empty(&mut self, horizon_end_ms: u64) {
        let until_ms = self.next_due_ms.map_or(horizon_end_ms, |due_ms| due_ms.min(horizon_end_ms));
        self.frontier = self.frontier.max(RowKey::start_of(until_ms));
    }

    /// There is a row that the window does not hold.
    pub fn note_unknown(&mut self, key: RowKey) {
        if key < self.frontier {
            return;
        }
        self.next_due_ms = earlier(self.next_due_ms, Some(key.due_ms));
        if let Some(page) = &mut self.page {
            page.next_due_ms = earlier(page.next_due_ms, Some(key.due_ms));
        }
    }

    pub fn set_next_due(&mut self, page: &PendingPage, next_due_ms: Option<u64>) {
        self.next_due_ms = earlier(next_due_ms, page.next_due_ms);
    }

    /// A row below the bound, or one that the lane may hold in addition.
    pub fn insert(&mut self, of: WindowLane, key: RowKey, no: CellNo) {
        let bound = self.bound(of);
        let lane = self.lanes.entry(of).or_default();
        let rows = if key < bound { &mut lane.rows } else { &mut lane.extra };
        if rows.insert(key, no).is_none() {
            self.rows += 1;
        }
    }

    /// Rows held beyond the bound of the lane.
    pub fn extra(&self, of: WindowLane) -> usize {
        self.lanes.get(&of).map_or(0, |lane| lane.extra.len())
    }

    pub fn remove(&mut self, of: WindowLane, key: RowKey) {
        if let Some(lane) = self.lanes.get_mut(&of) {
            if lane.rows.remove(&key).or_else(|| lane.extra.remove(&key)).is_some() {
                self.rows -= 1;
            }
            self.drop_if_empty(of);
        }
    }

    /// Gives one row up: the last one of the lane with the most rows, and an extra one only if there is no other.
    pub fn evict(&mut self) -> Option<CellNo> {
        let (of, lane) = self.lanes.iter_mut().max_by_key(|(_, lane)| lane.len())?;
        let of = *of;
        let (key, no) = lane.rows.pop_last().or_else(|| lane.extra.pop_last())?;
        // An extra one may lie below the frontier by now.
        if key < self.frontier {
            lane.behind = Some(lane.behind.map_or(key, |bound| bound.min(key)));
        } else {
            self.note_unknown(key);
        }
        self.rows -= 1;
        self.drop_if_empty(of);
        Some(no)
    }

    /// Moves the bound of a lane that is behind; at the frontier it is no longer behind.
    pub fn catch_up(&mut self, of: WindowLane, bound: RowKey) {
        let Some(lane) = self.lanes.get_mut(&of) else { return };
        lane.behind = (bound < self.frontier).then_some(bound);
        self.drop_if_empty(of);
    }

    fn drop_if_empty(&mut self, of: WindowLane) {
        if self.lanes.get(&of).is_some_and(|lane| lane.len() == 0 && lane.behind.is_none()) {
            self.lanes.remove(&of);
        }
    }

    /// What to read, and when. `configured` are the lanes that can send; `quota` is the window's part of all rows.
    pub fn need(
        &self,
        now_ms: u64,
        settings: &SchedulerConfig,
        configured: &[WindowLane],
        quota: usize,
    ) -> Option<Need> {
        if self.page.is_some() {
            return None;
        }
        let lanes = self.lanes.len().max(configured.len()).max(1);
        let low = (quota / lanes / 2).max(1);
        let starving = self.lanes.iter().filter(|(_, lane)| lane.behind.is_some() && lane.rows.len() < low);
        let catch_up = starving.min_by_key(|(_, lane)| lane.rows.len()).map(|(of, _)| *of);
        // A full window still moves on while it has little for some lane that can send.
        let hungry = self.rows < (quota / 2).max(1)
            || configured.iter().any(|of| {
                let lane = self.lanes.get(of);
                lane.is_none_or(|lane| lane.behind.is_none() && lane.rows.len() < low)
            });
        let next_due_ms = self.next_due_ms.filter(|_| hungry);
        let move_on_at = next_due_ms.map(|due_ms| due_ms.saturating_sub(settings.horizon_ms / 2));
        match catch_up {
            Some(_) if self.caught_up_last && move_on_at.is_some_and(|at_ms| at_ms <= now_ms) => {
                Some(Need { at_ms: 0, lane: None })
            }
            Some(of) => Some(Need { at_ms: 0, lane: Some(of) }),
            None => move_on_at.map(|at_ms| Need { at_ms, lane: None }),
        }
    }

    /// Notes that a page is being read; gives its first position.
    pub fn begin_page(
        &mut self,
        request_id: u64,
        lane: Option<WindowLane>,
        horizon_end_ms: u64,
    ) -> &PendingPage {
        let (from, until_ms) = match lane {
            Some(of) => (self.bound(of), self.frontier.due_ms.saturating_add(1)),
            None => (self.frontier, horizon_end_ms),
        };
        self.caught_up_last = lane.is_some();
        let changed = BTreeMap::new();
        self.page.insert(PendingPage { request_id, lane, from, until_ms, changed, next_due_ms: None })
    }

    pub fn awaits(&self, request_id: u64) -> bool {
        self.page.as_ref().is_some_and(|page| page.request_id == request_id)
    }

    pub fn take_page(&mut self) -> Option<PendingPage> {
        self.page.take()
    }

    /// A row was removed from table D while a page may be being read.
    pub fn note_gone(&mut self, key: RowKey, id: MessageId, notes_max: usize) {
        if self.page.as_ref().is_some_and(|page| page.from <= key && key.due_ms <= page.until_ms) {
            self.note(id, None, notes_max);
        }
    }

    /// A row was added to table D while a page may be being read; `taken` says if the window has it.
    pub fn note_due(&mut self, key: RowKey, entry: &DueEntry, taken: bool, notes_max: usize) {
        let Some(page) = &self.page else { return };
        let wanted = page.lane.is_none_or(|lane| lane == lane_of(entry));
        if wanted && page.from <= key && key.due_ms <= page.until_ms {
            self.note(entry.message_id, (!taken).then(|| entry.clone()), notes_max);
        }
    }

    fn note(&mut self, id: MessageId, entry: Option<DueEntry>, notes_max: usize) {
        let Some(page) = &mut self.page else { return };
        page.changed.insert(id, entry);
        if page.changed.len() > notes_max {
            // Too much changed: the page will be asked for again.
            self.page = None;
        }
    }
}
