//! What waits on this node's lanes, read from table D of the partitions that it leads, and what the driver knows of a lane.
//!
//! Reads at most [`ROWS_MAX`] rows for one question, on a blocking thread; says so when there are more.
use super::driver::Local;
use super::health::{BreakerLook, Health};
use super::lanes::LaneTable;
use super::leases::MonoClock;
use crate::engine::NodeHandle;
use carillon_carriers::connector::ConnectorState;
use carillon_core::query;
use carillon_delivery::explain::LaneState;
use carillon_delivery::forecast::{Capacity, Waiting};
use carillon_delivery::{PRIORITIES, SchedulerConfig};
use carillon_proto::internal::BreakerMode;
use std::collections::BTreeMap;
use tokio::sync::{mpsc, oneshot};

/// Rows read for one question.
pub const ROWS_MAX: usize = 1_000_000;
const PAGE: usize = 10_000;

/// Rows by carrier.
#[derive(Debug, Default)]
pub struct Backlog {
    pub rows: BTreeMap<u32, Vec<(u32, Waiting)>>,
    /// There are more rows than were read.
    pub truncated: bool,
}

/// What the driver says of one lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneLook {
    pub paused_for_ms: u64,
}

/// Asks the driver and the tables. Cheap to clone.
#[derive(Clone)]
pub struct Looker {
    pub handle: NodeHandle,
    pub lanes: LaneTable,
    pub local: mpsc::Sender<Local>,
    pub health: Health,
    pub clock: MonoClock,
}

impl Looker {
    /// How a lane stands; a driver that is gone knows no pauses.
    pub async fn lane(&self, carrier_no: u32, now_ms: u64) -> LaneState {
        let (reply, answer) = oneshot::channel();
        drop(self.local.send(Local::Look { carrier_no, reply }).await);
        let look: LaneLook = answer.await.unwrap_or_default();
        let lane = self.lanes.get(carrier_no);
        let (breaker, held) = (self.breaker(carrier_no), self.lanes.held(carrier_no));
        let view = self.handle.meta();
        let name = view.carriers.get(&carrier_no).map(|c| c.name.clone()).unwrap_or_default();
        let until = |wait_ms: u64| if wait_ms > 0 { now_ms + wait_ms } else { 0 };
        LaneState {
            name,
            configured: lane.is_some(),
            connected: lane.as_ref().is_some_and(|l| l.connector.status().state == ConnectorState::Up),
            segments_per_second: u32::try_from(held.per_kilosecond().div_ceil(1_000)).unwrap_or(u32::MAX),
            paused_until_ms: until(look.paused_for_ms),
            breaker_until_ms: until(breaker.open_for_ms),
            closed_by_operator: breaker.open && breaker.mode == BreakerMode::Open,
        }
    }

    pub fn breaker(&self, carrier_no: u32) -> BreakerLook {
        self.health.breaker(carrier_no, self.clock.now())
    }

    /// Whether new messages may be given to a carrier.
    pub fn usable(&self, carrier_no: u32) -> bool {
        self.health.usable(&self.lanes, carrier_no, self.clock.now())
    }

    /// What waits in the partitions that this node leads and becomes due until `until_ms`.
    pub async fn backlog(&self, until_ms: u64) -> anyhow::Result<Backlog> {
        let handle = self.handle.clone();
        tokio::task::spawn_blocking(move || read(&handle, until_ms)).await?
    }
}

/// What the lane can do with its present share.
pub fn capacity(lane: &LaneState) -> Capacity {
    Capacity {
        segments_per_second: if lane.closed_by_operator { 0 } else { lane.segments_per_second },
        closed_until_ms: lane.paused_until_ms.max(lane.breaker_until_ms),
        ageing_ms: SchedulerConfig::default().ageing_ms,
        daily: None,
    }
}

fn read(handle: &NodeHandle, until_ms: u64) -> anyhow::Result<Backlog> {
    let led: Vec<u32> = (1..=handle.partitions()).filter(|p| handle.is_leader(*p)).collect();
    let mut backlog = Backlog::default();
    let mut left = ROWS_MAX;
    // The most urgent rows of all partitions first, so that what is left out when there are too many leaves last.
    for priority in PRIORITIES {
        for partition in &led {
            let tables = handle.local_tables(*partition)?;
            let mut after = None;
            loop {
                let page = query::due_page(&*tables, priority, after, until_ms, PAGE.min(left))?;
                let end = page.len() < PAGE.min(left);
                left -= page.len();
                after = page.last().map(|entry| (entry.due_ms, entry.message_id));
                for entry in page {
                    let row = Waiting {
                        message_id: entry.message_id,
                        priority: entry.priority,
                        due_ms: entry.due_ms,
                        expires_at_ms: entry.expires_at_ms,
                        deadline_ms: entry.deadline_ms,
                        segments: entry.segments,
                    };
                    backlog.rows.entry(entry.carrier_no).or_default().push((entry.practice_no, row));
                }
                if left == 0 {
                    backlog.truncated = true;
                    return Ok(backlog);
                }
                if end {
                    break;
                }
            }
        }
    }
    Ok(backlog)
}
