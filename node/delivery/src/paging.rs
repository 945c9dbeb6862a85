//! Filling the windows from table D: which pages are wanted, and what a page brings.
use crate::key::RowKey;
use crate::scheduler::Scheduler;
use crate::types::{PRIORITIES, PageRequest, level_of};
use crate::window::{Need, PendingPage};
use carillon_core::DueEntry;

impl Scheduler {
    /// The pages to read now. Each one is answered with `on_page` or `on_page_failed`, or the partition is
    /// unled.
    pub fn wants_pages(&mut self, now_ms: u64) -> Vec<PageRequest> {
        self.now_ms = now_ms;
        let mut room = self.config.pages_in_flight_max.saturating_sub(self.pages_in_flight());
        if room == 0 {
            return Vec::new();
        }
        let lanes = self.configured_lanes();
        let horizon_end_ms = now_ms.saturating_add(self.config.horizon_ms);
        let mut wanted = Vec::new();
        // Start where the last round ended, so that no window waits for ever behind busy ones.
        for (partition, level) in self.windows_after(self.page_cursor) {
            let Some(led) = self.partitions.get_mut(&partition) else { continue };
            let window = &mut led.windows[level];
            let Need::Page { lane } = window.need(now_ms, &self.config, &lanes) else { continue };
            if room == 0 {
                break;
            }
            room -= 1;
            self.last_request_id += 1;
            let page = window.begin_page(self.last_request_id, lane, horizon_end_ms);
            wanted.push(PageRequest {
                partition,
                priority: PRIORITIES[level],
                after: page.from.exclusive_before(),
                until_ms: page.until_ms,
                limit: self.config.page_entries_max,
                request_id: page.request_id,
            });
            self.page_cursor = (partition, level);
        }
        wanted
    }

    /// A page was read. `end_reached`: table D holds no further row up to the page's `until_ms`. An answer to
    /// a request that no longer counts is ignored.
    pub fn on_page(&mut self, partition: u32, request_id: u64, entries: Vec<DueEntry>, end_reached: bool) {
        let Some((level, page)) = self.take_page(partition, request_id) else { return };
        let end =
            if end_reached || entries.is_empty() { Some(RowKey::start_of(page.until_ms)) } else { None };
        match page.lane {
            None => self.move_frontier(partition, level, &page, &entries, end),
            Some(lane) => self.catch_up(partition, level, &page, &entries, end, lane),
        }
        for entry in page.changed.into_values().flatten() {
            self.put_row(partition, level, &entry);
        }
    }

    /// The page could not be read: it will be asked for again.
    pub fn on_page_failed(&mut self, partition: u32, request_id: u64) {
        self.take_page(partition, request_id);
    }

    fn take_page(&mut self, partition: u32, request_id: u64) -> Option<(usize, PendingPage)> {
        let windows = &mut self.partitions.get_mut(&partition)?.windows;
        let level = windows.iter().position(|window| window.awaits(request_id))?;
        windows[level].take_page().map(|page| (level, page))
    }

    /// Takes the rows of a page of all lanes.
    fn move_frontier(
        &mut self,
        partition: u32,
        level: usize,
        page: &PendingPage,
        entries: &[DueEntry],
        end: Option<RowKey>,
    ) {
        for entry in entries {
            let key = RowKey::of(entry.due_ms, entry.message_id);
            if !self.fits(entry, level) || key < page.from {
                continue;
            }
            self.raise_frontier(partition, level, key.next());
            if !page.changed.contains_key(&entry.message_id) {
                self.put_row(partition, level, entry);
            }
        }
        if let Some(end) = end {
            self.raise_frontier(partition, level, end);
        }
    }

    fn raise_frontier(&mut self, partition: u32, level: usize, bound: RowKey) {
        if let Some(led) = self.partitions.get_mut(&partition) {
            let frontier = &mut led.windows[level].frontier;
            *frontier = bound.max(*frontier);
        }
    }

    /// Takes one lane's rows of a page below the frontier.
    fn catch_up(
        &mut self,
        partition: u32,
        level: usize,
        page: &PendingPage,
        entries: &[DueEntry],
        end: Option<RowKey>,
        lane: u32,
    ) {
        let mut bound = page.from;
        for entry in entries {
            let key = RowKey::of(entry.due_ms, entry.message_id);
            if !self.fits(entry, level) || key < page.from {
                continue;
            }
            let Some(window) = self.partitions.get_mut(&partition).map(|led| &mut led.windows[level]) else {
                return;
            };
            if window.behind(lane) != Some(bound) {
                // Caught up; or the window was full and has taken the bound back, now or while the page was
                // read. The rest would leave a gap.
                return;
            }
            bound = key.next();
            window.catch_up(lane, bound);
            if entry.carrier_no == lane && !page.changed.contains_key(&entry.message_id) {
                self.put_row(partition, level, entry);
            }
        }
        if let (Some(end), Some(led)) = (end, self.partitions.get_mut(&partition)) {
            let window = &mut led.windows[level];
            if window.behind(lane) == Some(bound) {
                window.catch_up(lane, end.max(bound));
            }
        }
    }

    fn fits(&mut self, entry: &DueEntry, level: usize) -> bool {
        let fits = level_of(entry.priority) == Some(level);
        if !fits {
            self.counts.misfits += 1;
        }
        fits
    }

    /// When the next page will be wanted. Pages that are wanted already are asked for in this turn or, if too
    /// many are being read, when one of these arrives.
    pub(crate) fn next_page_ms(&self, now_ms: u64) -> Option<u64> {
        let lanes = self.configured_lanes();
        let windows = self.partitions.values().flat_map(|led| &led.windows);
        windows
            .filter_map(|window| match window.need(now_ms, &self.config, &lanes) {
                Need::At(at_ms) => Some(at_ms),
                Need::Page { .. } | Need::Nothing => None,
            })
            .min()
    }

    fn pages_in_flight(&self) -> usize {
        self.partitions.values().flat_map(|led| &led.windows).filter(|window| window.is_reading()).count()
    }

    fn configured_lanes(&self) -> Vec<u32> {
        self.lanes.iter().filter(|(_, lane)| lane.config.is_some()).map(|(no, _)| *no).collect()
    }

    /// All windows, beginning after the cursor.
    fn windows_after(&self, cursor: (u32, usize)) -> Vec<(u32, usize)> {
        let all = self.partitions.keys().flat_map(|p| (0..PRIORITIES.len()).map(|level| (*p, level)));
        let (mut first, rest): (Vec<_>, Vec<_>) = all.partition(|window| *window > cursor);
        first.extend(rest);
        first
    }
}
