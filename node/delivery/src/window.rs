//! What is known of one priority of one partition's table D: a bounded window.
//!
//! Rows below the frontier are known, except those of lanes that are behind: of these only the rows below the
//! lane's own bound are known. A lane falls behind when the window is full and it holds the most rows: it
//! gives up its last one. So a lane with a long backlog cannot hide the messages of other lanes, and the
//! window stays bounded.
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

#[derive(Debug)]
pub(crate) struct Window {
    pub frontier: RowKey,
    lanes: BTreeMap<u32, LaneRows>,
    rows: usize,
    page: Option<PendingPage>,
    /// Turns between catching up and moving the frontier.
    caught_up_last: bool,
}

#[derive(Debug, Default)]
struct LaneRows {
    rows: BTreeMap<RowKey, CellNo>,
    /// Some: the lane is behind, and of it only the rows below this are known.
    behind: Option<RowKey>,
}

/// A page that is being read.
#[derive(Debug)]
pub(crate) struct PendingPage {
    pub request_id: u64,
    /// Some: only this lane's rows are wanted, to catch up.
    pub lane: Option<u32>,
    pub from: RowKey,
    pub until_ms: u64,
    /// Messages that changed since the request; a row that the window could not take is kept.
    pub changed: BTreeMap<MessageId, Option<DueEntry>>,
}

/// What the window needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// A page, now: of one lane or of all.
    Page {
        lane: Option<u32>,
    },
    /// A page at this time.
    At(u64),
    Nothing,
}

impl Default for Window {
    fn default() -> Self {
        Self { frontier: RowKey::START, lanes: BTreeMap::new(), rows: 0, page: None, caught_up_last: false }
    }
}

impl Window {
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cells(&self) -> impl Iterator<Item = CellNo> + '_ {
        self.lanes.values().flat_map(|lane| lane.rows.values().copied())
    }

    /// The lanes with their rows in order of due time.
    pub fn lanes(&self) -> impl Iterator<Item = (u32, impl Iterator<Item = CellNo> + '_)> + '_ {
        self.lanes.iter().map(|(carrier_no, lane)| (*carrier_no, lane.rows.values().copied()))
    }

    /// Rows of the lane below this are known.
    pub fn bound(&self, carrier_no: u32) -> RowKey {
        self.behind(carrier_no).unwrap_or(self.frontier)
    }

    pub fn behind(&self, carrier_no: u32) -> Option<RowKey> {
        self.lanes.get(&carrier_no).and_then(|lane| lane.behind)
    }

    pub fn insert(&mut self, carrier_no: u32, key: RowKey, no: CellNo) {
        let lane = self.lanes.entry(carrier_no).or_default();
        if lane.rows.insert(key, no).is_none() {
            self.rows += 1;
        }
    }

    pub fn remove(&mut self, carrier_no: u32, key: RowKey) {
        if let Some(lane) = self.lanes.get_mut(&carrier_no) {
            if lane.rows.remove(&key).is_some() {
                self.rows -= 1;
            }
            self.drop_if_empty(carrier_no);
        }
    }

    /// Gives one row up if there are more than `rows_max`: the last row of the lane with the most rows.
    /// Two rows for each lane always fit: with less, starving lanes would push each other out for ever.
    pub fn evict(&mut self, rows_max: usize) -> Option<CellNo> {
        if self.rows <= rows_max.max(2 * self.lanes.len()) {
            return None;
        }
        let lane = self.lanes.values_mut().max_by_key(|lane| lane.rows.len())?;
        let (key, no) = lane.rows.pop_last()?;
        self.rows -= 1;
        lane.behind = Some(lane.behind.map_or(key, |bound| bound.min(key)));
        Some(no)
    }

    /// Moves the bound of a lane that is behind; at the frontier it is no longer behind.
    pub fn catch_up(&mut self, carrier_no: u32, bound: RowKey) {
        let Some(lane) = self.lanes.get_mut(&carrier_no) else { return };
        lane.behind = (bound < self.frontier).then_some(bound);
        self.drop_if_empty(carrier_no);
    }

    fn drop_if_empty(&mut self, carrier_no: u32) {
        if self.lanes.get(&carrier_no).is_some_and(|lane| lane.rows.is_empty() && lane.behind.is_none()) {
            self.lanes.remove(&carrier_no);
        }
    }

    /// What to read. `configured` are the lanes that can send.
    pub fn need(&self, now_ms: u64, settings: &SchedulerConfig, configured: &[u32]) -> Need {
        if self.page.is_some() {
            return Need::Nothing;
        }
        let lanes = self.lanes.len().max(configured.len()).max(1);
        let low = (settings.window_entries_max / lanes / 2).max(1);
        let starving = self.lanes.iter().filter(|(_, lane)| lane.behind.is_some() && lane.rows.len() < low);
        let catch_up = starving.min_by_key(|(_, lane)| lane.rows.len()).map(|(carrier_no, _)| *carrier_no);
        // A full window still moves on while it has little for some lane that can send.
        let hungry = self.rows < (settings.window_entries_max / 2).max(1)
            || configured.iter().any(|carrier_no| {
                let lane = self.lanes.get(carrier_no);
                lane.is_none_or(|lane| lane.behind.is_none() && lane.rows.len() < low)
            });
        let move_on_at = self.frontier.due_ms.saturating_sub(settings.horizon_ms / 2);
        let move_on = hungry && move_on_at <= now_ms;
        match catch_up {
            Some(_) if move_on && self.caught_up_last => Need::Page { lane: None },
            Some(carrier_no) => Need::Page { lane: Some(carrier_no) },
            None if move_on => Need::Page { lane: None },
            None if hungry => Need::At(move_on_at),
            None => Need::Nothing,
        }
    }

    /// Notes that a page is being read; gives its first position.
    pub fn begin_page(&mut self, request_id: u64, lane: Option<u32>, horizon_end_ms: u64) -> &PendingPage {
        let (from, until_ms) = match lane {
            Some(carrier_no) => (self.bound(carrier_no), self.frontier.due_ms.saturating_add(1)),
            None => (self.frontier, horizon_end_ms),
        };
        self.caught_up_last = lane.is_some();
        self.page.insert(PendingPage { request_id, lane, from, until_ms, changed: BTreeMap::new() })
    }

    pub fn is_reading(&self) -> bool {
        self.page.is_some()
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
        let wanted = page.lane.is_none_or(|lane| lane == entry.carrier_no);
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
