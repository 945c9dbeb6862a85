//! Filling the windows from table D: which pages are wanted, and what a page brings.
use crate::key::RowKey;
use crate::scheduler::{Asked, Place, Scheduler};
use crate::types::{PRIORITIES, Page, PageRequest, Wanted, level_of};
use crate::window::{Need, PendingPage, Window, WindowLane, lane_of};
use carillon_core::query::{self, DueFlow, DuePage};
use carillon_core::{DueEntry, ReadTables, TableError};

/// Reads what the scheduler wants.
pub fn read_page(tables: &dyn ReadTables, wanted: &Wanted) -> Result<Page, TableError> {
    Ok(match *wanted {
        Wanted::Flows { after, limit } => Page::Flows(query::due_flows(tables, after, limit)?),
        Wanted::Rows { priority, flow, after, until_ms, limit } => {
            Page::Rows(query::due_page(tables, (priority, flow), after, until_ms, limit)?)
        }
    })
}

impl Scheduler {
    /// The pages to read now. Each one is answered with `on_page` or `on_page_failed`, or the partition is
    /// unled.
    pub fn wants_pages(&mut self, now_ms: u64) -> Vec<PageRequest> {
        self.now_ms = now_ms;
        let mut room = self.config.pages_in_flight_max.saturating_sub(self.requests.len());
        let mut wanted = Vec::new();
        let undiscovered =
            |(_, led): &(&u32, &mut crate::scheduler::Led)| !led.discovery.done && !led.discovery.asked;
        for (partition, led) in self.partitions.iter_mut().filter(undiscovered).take(room) {
            room -= 1;
            led.discovery.asked = true;
            self.last_request_id += 1;
            self.requests.insert(self.last_request_id, Asked::Flows(*partition));
            wanted.push(PageRequest {
                partition: *partition,
                request_id: self.last_request_id,
                wanted: Wanted::Flows { after: led.discovery.after, limit: self.config.page_entries_max },
            });
        }
        while room > 0
            && let Some(&(at_ms, _, place)) = self.wanting.first()
            && at_ms <= now_ms
        {
            self.unlist(place);
            match self.need(place) {
                Some(need) if need.at_ms <= now_ms => {
                    room -= 1;
                    wanted.extend(self.ask(place, need.lane));
                }
                _ => self.touch(place),
            }
        }
        wanted
    }

    fn ask(&mut self, place: Place, lane: Option<WindowLane>) -> Option<PageRequest> {
        let (partition, level, flow) = place;
        let horizon_end_ms = self.now_ms.saturating_add(self.config.horizon_ms);
        let flows = &mut self.partitions.get_mut(&partition)?.levels[level];
        let limit = self.config.page_entries_max.min(flows.quota(self.config.window_entries_max));
        self.last_request_id += 1;
        let request_id = self.last_request_id;
        let wanted = flows.change(flow, |window| {
            let page = window.begin_page(request_id, lane, horizon_end_ms);
            let (after, until_ms) = (page.from.exclusive_before(), page.until_ms);
            Wanted::Rows { priority: PRIORITIES[level], flow, after, until_ms, limit }
        })?;
        self.requests.insert(request_id, Asked::Rows(place));
        Some(PageRequest { partition, request_id, wanted })
    }

    /// A page was read. An answer to a request that no longer counts is ignored.
    pub fn on_page(&mut self, partition: u32, request_id: u64, page: Page) {
        match (self.requests.remove(&request_id), page) {
            (Some(Asked::Flows(asked)), Page::Flows(flows)) if asked == partition => {
                self.discovered(partition, &flows);
            }
            (Some(Asked::Rows(place)), Page::Rows(rows)) if place.0 == partition => {
                if let Some(page) = self.take_page(place, request_id) {
                    self.take_rows(place, page, &rows);
                }
                self.touch(place);
            }
            (None, _) => {}
            (Some(_), _) => self.counts.misfits += 1,
        }
    }

    /// The page could not be read: it will be asked for again.
    pub fn on_page_failed(&mut self, partition: u32, request_id: u64) {
        match self.requests.remove(&request_id) {
            Some(Asked::Flows(_)) => {
                if let Some(led) = self.partitions.get_mut(&partition) {
                    led.discovery.asked = false;
                }
            }
            Some(Asked::Rows(place)) => {
                self.take_page(place, request_id);
                self.touch(place);
            }
            None => {}
        }
    }

    /// These flows have rows.
    fn discovered(&mut self, partition: u32, found: &[DueFlow]) {
        let limit = self.config.page_entries_max;
        if let Some(led) = self.partitions.get_mut(&partition) {
            led.discovery.asked = false;
            led.discovery.done = found.len() < limit;
            led.discovery.after = found.last().map(|flow| (flow.priority, flow.flow)).or(led.discovery.after);
        }
        for flow in found {
            let Some(level) = level_of(flow.priority) else {
                self.counts.misfits += 1;
                continue;
            };
            let Some(led) = self.partitions.get_mut(&partition) else { return };
            // One that is there already was made by a change, and reads from the start.
            led.levels[level].open(flow.flow, Some(flow.due_ms));
            self.touch((partition, level, flow.flow));
        }
    }

    fn take_page(&mut self, (partition, level, flow): Place, request_id: u64) -> Option<PendingPage> {
        let flows = &mut self.partitions.get_mut(&partition)?.levels[level];
        let awaited = |window: &mut Window| if window.awaits(request_id) { window.take_page() } else { None };
        flows.change(flow, awaited).flatten()
    }

    fn take_rows(&mut self, place: Place, page: PendingPage, rows: &DuePage) {
        let more = rows.next_due_ms.is_some_and(|due_ms| due_ms <= page.until_ms) && !rows.entries.is_empty();
        let end = (!more).then(|| RowKey::start_of(page.until_ms));
        match page.lane {
            None => {
                self.change_window(place, |window| window.set_next_due(&page, rows.next_due_ms));
                self.move_frontier(place, &page, &rows.entries, end);
            }
            Some(lane) => self.catch_up(place, &page, &rows.entries, end, lane),
        }
        for entry in page.changed.into_values().flatten() {
            self.put_row(place.0, place.1, &entry);
        }
    }

    fn change_window<T>(
        &mut self,
        (partition, level, flow): Place,
        change: impl FnOnce(&mut Window) -> T,
    ) -> Option<T> {
        self.partitions.get_mut(&partition)?.levels[level].change(flow, change)
    }

    /// Takes the rows of a page of all lanes.
    fn move_frontier(&mut self, place: Place, page: &PendingPage, entries: &[DueEntry], end: Option<RowKey>) {
        let raise = |bound: RowKey| move |window: &mut Window| window.frontier = bound.max(window.frontier);
        for entry in entries {
            let key = RowKey::of(entry.due_ms, entry.message_id);
            if !self.fits(entry, place) || key < page.from {
                continue;
            }
            self.change_window(place, raise(key.next()));
            if !page.changed.contains_key(&entry.message_id) {
                self.put_row(place.0, place.1, entry);
            }
        }
        if let Some(end) = end {
            self.change_window(place, raise(end));
        }
    }

    /// Takes one lane's rows of a page below the frontier.
    fn catch_up(
        &mut self,
        place: Place,
        page: &PendingPage,
        entries: &[DueEntry],
        end: Option<RowKey>,
        lane: WindowLane,
    ) {
        let mut bound = page.from;
        for entry in entries {
            let key = RowKey::of(entry.due_ms, entry.message_id);
            if !self.fits(entry, place) || key < page.from {
                continue;
            }
            if self.change_window(place, |window| window.behind(lane)).flatten() != Some(bound) {
                // Caught up; or the window was full and has taken the bound back, now or while the page was
                // read. The rest would leave a gap.
                return;
            }
            bound = key.next();
            self.change_window(place, |window| window.catch_up(lane, bound));
            if lane_of(entry) == lane && !page.changed.contains_key(&entry.message_id) {
                self.put_row(place.0, place.1, entry);
            }
        }
        if let Some(end) = end {
            self.change_window(place, |window| {
                if window.behind(lane) == Some(bound) {
                    window.catch_up(lane, end.max(bound));
                }
            });
        }
    }

    fn fits(&mut self, entry: &DueEntry, (_, level, flow): Place) -> bool {
        let fits = level_of(entry.priority) == Some(level) && entry.flow == flow;
        if !fits {
            self.counts.misfits += 1;
        }
        fits
    }

    fn need(&self, (partition, level, flow): Place) -> Option<Need> {
        let flows = &self.partitions.get(&partition)?.levels[level];
        let quota = flows.quota(self.config.window_entries_max);
        flows.get(flow)?.need(self.now_ms, &self.config, &self.configured, quota)
    }

    /// The window has changed: when it wants a page is worked out anew, and it is dropped if nothing is left in it.
    pub(crate) fn touch(&mut self, place: Place) {
        let (partition, level, flow) = place;
        let now_ms = self.now_ms;
        let at_ms = self.need(place).map(|need| need.at_ms.max(now_ms));
        let Some(led) = self.partitions.get_mut(&partition) else { return };
        let Some(window) = led.levels[level].get(flow) else { return };
        let same = match (at_ms, window.listed) {
            (Some(at_ms), Some((listed_ms, _))) => at_ms == listed_ms || at_ms.max(listed_ms) <= now_ms,
            (at_ms, listed) => at_ms.is_none() && listed.is_none(),
        };
        if same {
            return led.levels[level].drop_if_idle(flow);
        }
        self.unlist(place);
        let Some(led) = self.partitions.get_mut(&partition) else { return };
        if let Some(at_ms) = at_ms {
            self.last_listed += 1;
            let seq = self.last_listed;
            led.levels[level].change(flow, |window| window.listed = Some((at_ms, seq)));
            self.wanting.insert((at_ms, seq, place));
        }
        led.levels[level].drop_if_idle(flow);
    }

    fn unlist(&mut self, place: Place) {
        if let Some((at_ms, seq)) = self.change_window(place, |window| window.listed.take()).flatten() {
            self.wanting.remove(&(at_ms, seq, place));
        }
    }

    pub(crate) fn touch_all(&mut self) {
        let places: Vec<Place> = self
            .partitions
            .iter()
            .flat_map(|(partition, led)| {
                let levels = led.levels.iter().enumerate();
                levels.flat_map(move |(level, flows)| {
                    flows.iter().map(move |(flow, _)| (*partition, level, flow))
                })
            })
            .collect();
        places.into_iter().for_each(|place| self.touch(place));
    }

    /// When the next page will be wanted. Pages that are wanted already are asked for in this turn or, if too
    /// many are being read, when one of these arrives.
    pub(crate) fn next_page_ms(&self, now_ms: u64) -> Option<u64> {
        let later = (now_ms.saturating_add(1), 0, (0, 0, 0));
        self.wanting.range(later..).next().map(|(at_ms, ..)| *at_ms)
    }
}
