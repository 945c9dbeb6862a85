//! The scheduler of one node: all led partitions, all lanes. This file holds its state and takes what
//! happened.
//!
//! The driver's turn: pass on changes, pages and results, then call [`Scheduler::decide`], propose what it
//! says, then read what [`Scheduler::wants_pages`] asks for, and sleep until the next wake-up or input.
//! Changes of one partition are passed in apply order, those of a batch before its results; a page is read
//! from the tables after it was asked for, and may be ahead of the changes that were passed.
//!
//! Bounds: `window_entries_max` rows for each of the four priorities of each led partition, as many notes
//! while a page is read, one small record for each practice with rows in table D, and one attempt record for each attempt
//! that the lanes may have in flight.
//!
//! Does not: propose, read tables, know raft terms.
use crate::cells::{CellNo, Cells};
use crate::flows::{Discovery, Flows};
use crate::hours::Stamps;
use crate::key::RowKey;
use crate::lane::Lane;
use crate::types::{BeginResult, ConfigError, LaneConfig, PRIORITIES, SchedulerConfig, Stage, level_of};
use crate::window::{Window, WindowLane};
use carillon_core::ScheduleChange;
use carillon_proto::MessageId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Chooses what is sent next. See the module documentation for its use.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    pub(crate) cells: Cells,
    pub(crate) partitions: BTreeMap<u32, Led>,
    pub(crate) lanes: BTreeMap<u32, Lane>,
    /// When to look at which row again.
    pub(crate) timers: BTreeSet<(u64, CellNo)>,
    pub(crate) last_request_id: u64,
    /// Pages that are being read.
    pub(crate) requests: BTreeMap<u64, Asked>,
    /// Windows that want a page: from when on, and first come, first served.
    pub(crate) wanting: BTreeSet<(u64, u64, Place)>,
    pub(crate) last_listed: u64,
    /// The lanes that can send, each of its senders for itself.
    pub(crate) configured: Vec<WindowLane>,
    /// Of practices whose weight is not 1.
    pub(crate) weights: BTreeMap<u32, u32>,
    /// Segments begun of each practice since fairness was last asked for.
    pub(crate) begun_of: BTreeMap<u32, u64>,
    /// The wall clock at the last call that told it.
    pub(crate) now_ms: u64,
    pub(crate) counts: Counts,
    /// The rules of the hours that are in force.
    pub(crate) stamps: Stamps,
}

/// A window: partition, level, flow.
pub(crate) type Place = (u32, usize, u32);

/// What a page is read for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asked {
    Flows(u32),
    Rows(Place),
}

impl Asked {
    fn partition(self) -> u32 {
        match self {
            Self::Flows(partition) | Self::Rows((partition, ..)) => partition,
        }
    }
}

/// A led partition.
#[derive(Debug, Default)]
pub(crate) struct Led {
    pub levels: [Flows; PRIORITIES.len()],
    pub discovery: Discovery,
    /// Messages with an unresolved attempt.
    pub attempts: BTreeSet<MessageId>,
}

/// What happened since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub chosen: u64,
    pub refused: u64,
    pub expired: u64,
    pub closed: u64,
    pub misfits: u64,
}

impl Scheduler {
    pub fn new(config: SchedulerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            config,
            cells: Cells::default(),
            partitions: BTreeMap::new(),
            lanes: BTreeMap::new(),
            timers: BTreeSet::new(),
            last_request_id: 0,
            requests: BTreeMap::new(),
            wanting: BTreeSet::new(),
            last_listed: 0,
            configured: Vec::new(),
            weights: BTreeMap::new(),
            begun_of: BTreeMap::new(),
            now_ms: 0,
            counts: Counts::default(),
            stamps: Stamps::default(),
        })
    }

    /// This node leads the partition now. Everything is read anew.
    pub fn lead(&mut self, partition: u32, now_ms: u64) {
        self.now_ms = now_ms;
        self.unlead(partition, now_ms);
        self.partitions.insert(partition, Led::default());
    }

    /// This node leads the partition no longer: everything volatile is dropped, also what is in flight.
    pub fn unlead(&mut self, partition: u32, now_ms: u64) {
        self.now_ms = now_ms;
        let Some(led) = self.partitions.remove(&partition) else { return };
        self.requests.retain(|_, asked| asked.partition() != partition);
        self.wanting.retain(|(.., place)| place.0 != partition);
        for id in led.attempts {
            if let Some(no) = self.cells.find(partition, id) {
                self.close_attempt(no);
                self.cells.release_if_empty(no);
            }
        }
        for no in led.levels.iter().flat_map(Flows::iter).flat_map(|(_, window)| window.cells()) {
            self.stop_row(no);
            self.cells[no].row = None;
            self.cells.release_if_empty(no);
        }
    }

    pub fn leads(&self, partition: u32) -> bool {
        self.partitions.contains_key(&partition)
    }

    /// A change of table D was applied.
    pub fn on_change(&mut self, partition: u32, change: &ScheduleChange) {
        if !self.leads(partition) {
            return;
        }
        match change {
            ScheduleChange::Gone { message_id, priority, flow, due_ms } => {
                let Some(level) = self.level(*priority) else { return };
                self.row_is_gone(partition, *message_id, (*priority, *flow, *due_ms));
                let key = RowKey::of(*due_ms, *message_id);
                self.note((partition, level, *flow), |window, notes_max| {
                    window.note_gone(key, *message_id, notes_max);
                });
            }
            ScheduleChange::Due(entry) => {
                let Some(level) = self.level(entry.priority) else { return };
                let taken = self.put_row(partition, level, entry);
                let key = RowKey::of(entry.due_ms, entry.message_id);
                self.note((partition, level, entry.flow), |window, notes_max| {
                    window.note_due(key, entry, taken, notes_max);
                });
            }
        }
    }

    fn note(&mut self, place: Place, note: impl FnOnce(&mut Window, usize)) {
        let (partition, level, flow) = place;
        let notes_max = self.config.window_entries_max;
        if let Some(led) = self.partitions.get_mut(&partition) {
            led.levels[level].change(flow, |window| note(window, notes_max));
            self.touch(place);
        }
    }

    /// The proposed attempt was committed, or refused or dropped. Each decided attempt is answered once,
    /// before the partition is led again: an answer that comes later would be taken for one about a new
    /// attempt.
    pub fn on_begun(&mut self, partition: u32, message_id: MessageId, result: BeginResult) {
        let Some(no) = self.attempt_of(partition, message_id) else { return };
        match result {
            BeginResult::Ok => self.row_left_with_attempt(no),
            BeginResult::Refused => {
                self.counts.refused += 1;
                // What was refused is the row that it was chosen for. Another one has come since: its turn came, or its hours.
                let changed = self.cells[no].attempt.as_ref().is_some_and(|attempt| attempt.row_gone);
                let wait_ms = if changed { 0 } else { self.config.reoffer_ms };
                self.end_attempt(no, self.now_ms.saturating_add(wait_ms));
            }
        }
    }

    /// The last segment of the attempt was handed to the carrier's connection: it no longer counts against
    /// the prefetch of its lane.
    pub fn on_sent(&mut self, partition: u32, message_id: MessageId) {
        if let Some(no) = self.attempt_of(partition, message_id) {
            self.mark_sent(no);
        }
    }

    /// The outcome of the attempt was proposed: it no longer occupies the connector.
    pub fn on_finished(&mut self, partition: u32, message_id: MessageId) {
        if let Some(no) = self.attempt_of(partition, message_id) {
            self.row_left_with_attempt(no);
            self.end_attempt(no, 0);
        }
    }

    /// Makes the lane, or changes its share or capacity.
    pub fn set_lane(&mut self, config: LaneConfig) {
        self.lanes.entry(config.carrier_no).or_default().config = Some(config);
        self.lanes_changed();
    }

    /// Messages of the lane wait until it is set again. Attempts in flight go on.
    pub fn remove_lane(&mut self, carrier_no: u32) {
        if let Some(lane) = self.lanes.get_mut(&carrier_no) {
            lane.config = None;
        }
        self.lanes_changed();
    }

    fn lanes_changed(&mut self) {
        let usable = self.lanes.iter().filter(|(_, lane)| lane.config.is_some());
        let of = |(carrier_no, lane): (&u32, &Lane)| {
            let senders = lane.senders().map(|sender_no| (*carrier_no, sender_no));
            std::iter::once((*carrier_no, 0)).chain(senders).collect::<BTreeSet<_>>()
        };
        let configured: Vec<WindowLane> = usable.flat_map(of).collect();
        if configured != self.configured {
            self.configured = configured;
            self.touch_all();
        }
    }

    /// The weight of a practice among the others, 1 to [`crate::WEIGHT_MAX`]; 1 at first.
    pub fn set_weight(&mut self, practice_no: u32, weight: u32) {
        match weight {
            0 | 1 => self.weights.remove(&practice_no),
            weight => self.weights.insert(practice_no, weight),
        };
    }

    /// Nothing of the practice is begun on the lane until it is resumed. Its messages keep their places.
    pub fn pause_practice(&mut self, carrier_no: u32, practice_no: u32, paused: bool) {
        self.lanes.entry(carrier_no).or_default().pause_practice(practice_no, paused);
    }

    /// Groups of practices that need the same limits besides those that the whole lane needs; a practice in none of them needs no
    /// others. Until its room is told a group may begin as much as the lane.
    pub fn group_practices(&mut self, carrier_no: u32, members: Vec<Vec<u32>>) {
        if !members.is_empty() || self.lanes.contains_key(&carrier_no) {
            self.lanes.entry(carrier_no).or_default().group_practices(members);
        }
    }

    /// So many segments of a group may be begun and not sent: what its limits let through soon. The others of the lane go on. `claim`: so
    /// many more could use the limits that the whole lane needs.
    pub fn set_group_room(&mut self, carrier_no: u32, group: usize, segments: u32, claim: u32) {
        if let Some(lane) = self.lanes.get_mut(&carrier_no) {
            lane.set_group_room(group, segments, claim);
        }
    }

    /// Senders of a lane; one that is not named has no limits of its own. Until its room is told each may begin as much as the lane.
    pub fn set_senders(&mut self, carrier_no: u32, senders: &[u32]) {
        if !senders.is_empty() || self.lanes.contains_key(&carrier_no) {
            self.lanes.entry(carrier_no).or_default().set_senders(senders);
            self.lanes_changed();
        }
    }

    /// So many segments of the sender at this place of the list may be begun and not sent. Those of the others go on. `claim`: as of
    /// groups.
    pub fn set_sender_room(&mut self, carrier_no: u32, place: usize, segments: u32, claim: u32) {
        if let Some(lane) = self.lanes.get_mut(&carrier_no) {
            lane.set_sender_room(place, segments, claim);
        }
    }

    /// Nothing is begun on the lane before this moment of the monotonic clock; a moment that has passed ends
    /// the pause. The order of the messages stays as it is.
    pub fn pause_lane(&mut self, carrier_no: u32, until: Duration) {
        self.lanes.entry(carrier_no).or_default().paused_until = until;
    }

    /// The breaker of the lane allows so many attempts in flight; `None` = all that it carries.
    pub fn limit_lane(&mut self, carrier_no: u32, attempts_max: Option<u32>) {
        if attempts_max.is_some() || self.lanes.contains_key(&carrier_no) {
            self.lanes.entry(carrier_no).or_default().breaker_max = attempts_max;
        }
    }

    /// The next permit of the lane is free at this moment of the monotonic clock: attempts begin a little before it, not earlier.
    pub fn lane_opens(&mut self, carrier_no: u32, at: Duration) {
        if let Some(lane) = self.lanes.get_mut(&carrier_no) {
            lane.opens_at = at;
        }
    }

    /// Segments that wait on each lane and could use what all of its messages need, as far as they are in memory.
    pub fn demand(&self) -> impl Iterator<Item = (u32, u32)> {
        let waits = |lane: &Lane| u32::try_from(lane.claims() + lane.unsent_segments()).unwrap_or(u32::MAX);
        self.lanes.iter().map(move |(carrier_no, lane)| (*carrier_no, waits(lane)))
    }

    /// Other rules of the hours are in force: what was computed by the old ones is not begun.
    /// True if they are others than before.
    pub fn set_hours(&mut self, stamps: Stamps) -> bool {
        if self.stamps == stamps {
            return false;
        }
        self.stamps = stamps;
        let ready: Vec<CellNo> = self
            .partitions
            .values()
            .flat_map(|led| led.levels.iter().flat_map(Flows::iter).flat_map(|(_, window)| window.cells()))
            .filter(|no| self.cells[*no].row.as_ref().is_some_and(|r| matches!(r.stage, Stage::Ready { .. })))
            .collect();
        for no in ready {
            self.set_timer(no, Some(self.now_ms));
        }
        true
    }

    /// The level of a priority; a row of another priority is a bug of the core and is counted.
    pub(crate) fn level(&mut self, priority: u8) -> Option<usize> {
        let level = level_of(priority);
        if level.is_none() {
            self.counts.misfits += 1;
        }
        level
    }

    fn attempt_of(&self, partition: u32, message_id: MessageId) -> Option<CellNo> {
        let no = self.cells.find(partition, message_id)?;
        self.cells[no].attempt.is_some().then_some(no)
    }
}
