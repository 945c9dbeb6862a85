//! What waits on this node's lanes, read from table D of the partitions that it leads, and what the driver knows of a lane.
//!
//! Reads at most [`ROWS_MAX`] rows for one question, on a blocking thread; says so when there are more.
use super::driver::Local;
use super::health::{BreakerLook, Health};
use super::lanes::LaneTable;
use super::leases::MonoClock;
use crate::engine::NodeHandle;
use carillon_carriers::connector::ConnectorState;
use carillon_core::meta::routes::Way;
use carillon_core::meta::{MetaView, senders};
use carillon_core::query;
use carillon_delivery::explain::LaneState;
use carillon_delivery::forecast::{Capacity, DailyCap, Waiting};
use carillon_delivery::lease::{LIMIT_BASE, common, day_of, stack};
use carillon_delivery::{PRIORITIES, SchedulerConfig};
use carillon_proto::internal::{BreakerMode, LimitRecord, SenderRecord};
use std::collections::BTreeMap;
use tokio::sync::{mpsc, oneshot};

/// Rows read for one question.
pub const ROWS_MAX: usize = 1_000_000;
const PAGE: usize = 10_000;
/// Days of 23 and 25 hours are near enough for what is more than one reset away.
const DAY_MS: u64 = 24 * 3_600_000;

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
    /// How a lane stands for messages of a practice (0 = any) under a sender; a driver that is gone knows no pauses.
    pub async fn lane(&self, way: Way, practice_no: u32, now_ms: u64) -> LaneState {
        let (reply, answer) = oneshot::channel();
        drop(self.local.send(Local::Look { carrier_no: way.carrier_no, reply }).await);
        let look: LaneLook = answer.await.unwrap_or_default();
        self.stands(way, practice_no, look.paused_for_ms, now_ms)
    }

    /// The same without asking the driver, for whoever reads many messages: of pauses it knows those of the connector.
    pub fn lane_now(&self, way: Way, practice_no: u32, now_ms: u64) -> LaneState {
        let paused_for_ms = u64::from(self.lanes.status(way.carrier_no).paused_ms);
        self.stands(way, practice_no, paused_for_ms, now_ms)
    }

    fn stands(&self, way: Way, practice_no: u32, paused_for_ms: u64, now_ms: u64) -> LaneState {
        let Way { carrier_no, sender_no } = way;
        let lane = self.lanes.get(carrier_no);
        let breaker = self.breaker(carrier_no);
        let view = self.handle.meta();
        let limits = self.limits(&view, way, practice_no, now_ms);
        let sender = view.senders.get(&(carrier_no, sender_no));
        let refused_ms = self.health.sender_refused_for_ms(sender_no, self.clock.now());
        let name = view.carriers.get(&carrier_no).map(|c| c.name.clone()).unwrap_or_default();
        let until = |wait_ms: u64| if wait_ms > 0 { now_ms + wait_ms } else { 0 };
        LaneState {
            name,
            configured: lane.is_some(),
            connected: lane.as_ref().is_some_and(|l| l.connector.status().state == ConnectorState::Up),
            segments_per_second: limits.segments_per_second,
            tighter_limit: limits.tighter,
            cap_reached: limits.cap_reached,
            cap_resets_ms: limits.cap_resets_ms,
            practice_paused: view.pauses.get(&(practice_no, carrier_no)).is_some_and(|pause| pause.paused),
            paused_by_operator: view.lanes.get(&carrier_no).is_some_and(|lane| lane.paused),
            paused_until_ms: until(paused_for_ms),
            breaker_until_ms: until(breaker.open_for_ms),
            closed_by_operator: breaker.open && breaker.mode == BreakerMode::Open,
            sender: sender.map(|sender| sender.address.clone()).unwrap_or_default(),
            sender_paused: sender.is_some_and(|sender| sender.paused),
            sender_refused_until_ms: until(refused_ms),
        }
    }

    /// The pace of all limits that must grant. What this node holds follows its demand; without any it is an equal part that it would get.
    fn limits(&self, view: &MetaView, way: Way, practice_no: u32, now_ms: u64) -> Limits {
        let carrier_no = way.carrier_no;
        let sender = senders::address(view, carrier_no, way.sender_no);
        let nodes = view.present().count().max(1) as f64;
        let mut limits = Limits { segments_per_second: u32::MAX, ..Limits::default() };
        for limit in stack(view, carrier_no, practice_no, sender) {
            let record = limit.checked_sub(LIMIT_BASE).and_then(|limit_no| view.limits.get(&limit_no));
            let name = record.map(named).unwrap_or_default();
            if let Some(resets_ms) = record.and_then(|record| self.used_up(view, record, now_ms))
                && resets_ms > limits.cap_resets_ms
            {
                limits.cap_reached.clone_from(&name);
                limits.cap_resets_ms = resets_ms;
            }
            let whole = match record {
                // A day's cap has no pace of its own.
                Some(record) if record.window_s == 0 => continue,
                Some(record) => f64::from(record.amount) / f64::from(record.window_s),
                None => view.carriers.get(&carrier_no).map_or(0.0, |c| f64::from(c.segments_per_second)),
            };
            let held = self.lanes.held_of(limit);
            let pace = if self.lanes.waiting(limit) > 0 { held } else { held.max(whole / nodes) };
            let pace = pace.ceil() as u32;
            if pace < limits.segments_per_second {
                (limits.segments_per_second, limits.tighter) = (pace, name);
            }
        }
        limits
    }

    /// When a daily cap begins anew of which this node has nothing left and cannot get more.
    fn used_up(&self, view: &MetaView, record: &LimitRecord, now_ms: u64) -> Option<u64> {
        if record.window_s != 0 || self.lanes.cap_left(LIMIT_BASE + record.limit_no) != Some(0) {
            return None;
        }
        let (day, left) = day_of(&record.time_zone, now_ms)?;
        let taken = view.caps.get(&record.limit_no).filter(|cap| cap.day == day).map_or(0, |cap| cap.taken);
        (taken >= u64::from(record.amount)).then(|| now_ms + left.as_millis() as u64)
    }

    /// What may still leave of the tightest daily cap of a carrier, with this node's part of what nobody has taken.
    pub fn daily(&self, carrier_no: u32, now_ms: u64) -> Option<DailyCap> {
        let view = self.handle.meta();
        let nodes = view.present().count().max(1) as u64;
        let caps = common(&view, carrier_no).into_iter().filter_map(|limit| {
            let record = view.limits.get(&limit.checked_sub(LIMIT_BASE)?).filter(|r| r.window_s == 0)?;
            let (day, left) = day_of(&record.time_zone, now_ms)?;
            let taken = view.caps.get(&record.limit_no).filter(|c| c.day == day).map_or(0, |c| c.taken);
            let amount = u64::from(record.amount);
            let own = u64::from(self.lanes.cap_left(limit).unwrap_or(0));
            Some(DailyCap {
                left: own + amount.saturating_sub(taken) / nodes,
                resets_at_ms: now_ms + left.as_millis() as u64,
                limit: amount / nodes,
                period_ms: DAY_MS,
            })
        });
        caps.min_by_key(|cap| cap.left)
    }

    pub fn breaker(&self, carrier_no: u32) -> BreakerLook {
        self.health.breaker(carrier_no, self.clock.now())
    }

    /// Whether new messages may be given to a carrier.
    pub fn usable(&self, carrier_no: u32) -> bool {
        self.health.usable(&self.lanes, carrier_no, self.clock.now())
    }

    /// Whether the carrier takes messages under a sender, as far as is known.
    pub fn sender_usable(&self, sender_no: u32) -> bool {
        sender_no == 0 || self.health.sender_attempts_max(sender_no, self.clock.now()).is_none()
    }

    /// The same for operators, with the time until it is tried again.
    pub fn sender_state(&self, sender: &SenderRecord) -> (&'static str, u64) {
        let mono = self.clock.now();
        let state = match self.health.sender_attempts_max(sender.sender_no, mono) {
            _ if sender.paused => "paused",
            None => "ready",
            Some(0) => "refused",
            Some(_) => "trying",
        };
        (state, self.health.sender_refused_for_ms(sender.sender_no, mono))
    }

    /// What waits in the partitions that this node leads and becomes due until `until_ms`.
    pub async fn backlog(&self, until_ms: u64) -> anyhow::Result<Backlog> {
        let handle = self.handle.clone();
        tokio::task::spawn_blocking(move || read(&handle, until_ms)).await?
    }
}

/// The limits of a message taken together.
#[derive(Debug, Default)]
struct Limits {
    segments_per_second: u32,
    /// The tightest one, if it is not the account's own.
    tighter: String,
    cap_reached: String,
    cap_resets_ms: u64,
}

/// A limit in words of operation.
fn named(record: &LimitRecord) -> String {
    let scope = record.scope().as_str_name().trim_start_matches("LIMIT_SCOPE_").to_ascii_lowercase();
    let parts = [scope, record.key.clone(), record.network.clone()];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(" ")
}

/// What the lane can do with its present share.
pub fn capacity(lane: &LaneState) -> Capacity {
    Capacity {
        segments_per_second: match lane.closed_by_operator || lane.paused_by_operator {
            true => 0,
            false => lane.segments_per_second,
        },
        closed_until_ms: lane.paused_until_ms.max(lane.breaker_until_ms),
        ageing_ms: SchedulerConfig::default().ageing_ms,
        daily: None,
    }
}

fn read(handle: &NodeHandle, until_ms: u64) -> anyhow::Result<Backlog> {
    let led: Vec<u32> = (1..=handle.partitions()).filter(|p| handle.is_leader(*p)).collect();
    let view = handle.meta();
    let weight = |practice_no| view.practices.get(&practice_no).map_or(1, |practice| practice.weight.max(1));
    let mut backlog = Backlog::default();
    let mut left = ROWS_MAX;
    // The most urgent rows of all partitions first, so that what is left out when there are too many leaves last.
    for priority in PRIORITIES {
        for partition in &led {
            let tables = handle.local_tables(*partition)?;
            let mut after = None;
            loop {
                let page = query::due_sweep(&*tables, priority, after, until_ms, PAGE.min(left))?;
                let end = page.len() < PAGE.min(left);
                left -= page.len();
                after = page.last().map(query::due_place);
                for entry in page {
                    let row = Waiting {
                        message_id: entry.message_id,
                        practice_no: entry.practice_no,
                        weight: weight(entry.practice_no),
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
