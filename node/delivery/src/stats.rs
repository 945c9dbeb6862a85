//! What the scheduler holds, for metrics, the admin API and explanations. Read-only.
use crate::flows::Flows;
use crate::scheduler::Scheduler;
use crate::types::{Stage, ms_until};
use std::collections::BTreeMap;
use std::time::Duration;

/// One lane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaneStats {
    pub carrier_no: u32,
    /// False: messages name the lane, but it does not exist; they wait.
    pub configured: bool,
    pub paused: bool,
    /// Messages in memory that are due and not begun. More may wait in table D.
    pub ready: usize,
    pub in_flight_attempts: u32,
    pub unsent_segments: u64,
    /// How long the oldest message that is due and not begun has been due.
    pub oldest_due_age_ms: Option<u64>,
}

/// All lanes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Ordered by `carrier_no`.
    pub lanes: Vec<LaneStats>,
    pub partitions: usize,
    /// Rows of table D in memory.
    pub rows: usize,
    /// Messages in memory: rows and attempts.
    pub messages: usize,
    pub ready: usize,
    pub in_flight_attempts: u64,
    /// Ready messages whose lane does not exist.
    pub without_lane: usize,
    pub oldest_due_age_ms: Option<u64>,
    pub chosen_total: u64,
    pub refused_total: u64,
    pub expired_total: u64,
    /// Hours that had to be computed anew.
    pub closed_total: u64,
    /// Rows that fit no window: a bug of the core if not 0.
    pub misfits_total: u64,
}

impl Scheduler {
    pub fn stats(&self, now_ms: u64, mono: Duration) -> SchedulerStats {
        let oldest = self.oldest_due();
        let age_ms = |due_ms: u64| now_ms.saturating_sub(due_ms);
        let lanes: Vec<LaneStats> = self
            .lanes
            .iter()
            .map(|(carrier_no, lane)| LaneStats {
                carrier_no: *carrier_no,
                configured: lane.config.is_some(),
                paused: lane.is_paused(mono),
                ready: lane.ready(),
                in_flight_attempts: lane.in_flight,
                unsent_segments: lane.unsent_segments(),
                oldest_due_age_ms: oldest.get(carrier_no).copied().map(age_ms),
            })
            .collect();
        SchedulerStats {
            partitions: self.partitions.len(),
            rows: self.partitions.values().flat_map(|led| &led.levels).map(Flows::rows).sum(),
            messages: self.cells.len(),
            ready: lanes.iter().map(|lane| lane.ready).sum(),
            in_flight_attempts: lanes.iter().map(|lane| u64::from(lane.in_flight_attempts)).sum(),
            without_lane: lanes.iter().filter(|lane| !lane.configured).map(|lane| lane.ready).sum(),
            oldest_due_age_ms: oldest.values().copied().min().map(age_ms),
            chosen_total: self.counts.chosen,
            refused_total: self.counts.refused,
            expired_total: self.counts.expired,
            closed_total: self.counts.closed,
            misfits_total: self.counts.misfits,
            lanes,
        }
    }

    /// How long a lane is still paused.
    pub fn paused_for_ms(&self, carrier_no: u32, mono: Duration) -> u64 {
        self.lanes.get(&carrier_no).map_or(0, |lane| ms_until(lane.paused_until, mono))
    }

    /// Jain's index of the segments that were begun since the last call, by weight, over the practices that still have ready
    /// messages: 1 if all got the same, 1/n if one got everything. `None` with fewer than two of them. Counts anew.
    pub fn take_fairness(&mut self) -> Option<f64> {
        let begun = std::mem::take(&mut self.begun_of);
        let mut practices: Vec<u32> = self.lanes.values().flat_map(crate::lane::Lane::practices).collect();
        practices.sort_unstable();
        practices.dedup();
        let share = |practice_no: &u32| {
            let weight = self.weights.get(practice_no).copied().unwrap_or(1);
            begun.get(practice_no).copied().unwrap_or(0) as f64 / f64::from(weight)
        };
        let (sum, squares) =
            practices.iter().map(share).fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
        (practices.len() > 1 && squares > 0.0).then(|| sum * sum / (practices.len() as f64 * squares))
    }

    /// The due time of each lane's oldest ready message. Windows are in order of due time, so this looks at
    /// few rows.
    fn oldest_due(&self) -> BTreeMap<u32, u64> {
        let mut oldest: BTreeMap<u32, u64> = BTreeMap::new();
        let flows = self.partitions.values().flat_map(|led| &led.levels).flat_map(Flows::iter);
        for (_, window) in flows {
            for ((carrier_no, _), mut cells) in window.lanes() {
                let ready = cells.find_map(|no| {
                    let row = self.cells[no].row.as_ref()?;
                    matches!(row.stage, Stage::Ready { .. }).then_some(row.due_ms)
                });
                if let Some(due_ms) = ready {
                    oldest.entry(carrier_no).and_modify(|old| *old = due_ms.min(*old)).or_insert(due_ms);
                }
            }
        }
        oldest
    }
}
