//! End to end: from acceptance over SMPP to the receipt, as the event stream tells it.
//!
//! Owns: counting finished messages and their time. The time of a message runs from the time in its id (made when it
//! was accepted) to the time of its DELIVERED event, both clocks of the cluster.
//! Bounds: at most `unfinished_max` messages are accepted and not finished, so a maximum is one that is sustained.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use carillon_proto::MessageId;
use carillon_proto::public::{Event, MessageState};
use parking_lot::Mutex;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::load::{Load, LoadResult};
use super::measure::{Latency, Summary};
use super::stream::Shared;
use crate::client::{Client, why};
use crate::ledger::state_name;
use crate::watch;

/// How long the rest may take after the last batch.
const DRAIN_MAX: Duration = Duration::from_secs(120);
/// Before that the event stream must be open.
const OPEN_MAX: Duration = Duration::from_secs(20);

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct E2eResult {
    pub load: LoadResult,
    /// DELIVERED events in the measured time.
    pub delivered_per_s: f64,
    pub latency: Summary,
    pub by_state: BTreeMap<String, u64>,
    /// Accepted and not finished when waiting for them ended.
    pub unfinished: u64,
    pub event_streams: u64,
    pub invalid: Option<String>,
}

impl std::fmt::Display for E2eResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.load)?;
        writeln!(
            f,
            "  delivered      {:.0}/s; {:?}; unfinished {}",
            self.delivered_per_s, self.by_state, self.unfinished
        )?;
        writeln!(f, "  accept to DELIVERED  {}", self.latency)?;
        match &self.invalid {
            Some(why) => writeln!(f, "  INVALID: {why}"),
            None => Ok(()),
        }
    }
}

#[derive(Default)]
struct Counted {
    latency: Latency,
    delivered_measured: u64,
    by_state: BTreeMap<&'static str, u64>,
}

/// Final, or held for good: no longer on its way.
fn is_finished(state: MessageState) -> bool {
    use MessageState as S;
    !matches!(state, S::Unspecified | S::Accepted | S::Waiting | S::InFlight | S::Submitted)
}

fn take(counted: &mut Counted, shared: &Shared, since_ms: u64, event: &Event) {
    let state = event.state();
    if !is_finished(state) {
        return;
    }
    let Ok(id) = event.message_id.parse::<MessageId>() else { return };
    if id.time_ms() < since_ms {
        return;
    }
    let now = Instant::now();
    shared.backlog.finished.fetch_add(1, Ordering::Relaxed);
    *counted.by_state.entry(state_name(state)).or_insert(0) += 1;
    if state == MessageState::Delivered && now >= shared.measure_from && now < shared.send_until {
        counted.delivered_measured += 1;
        let at_ms = event.time.as_ref().map_or(0, |t| t.seconds * 1000 + i64::from(t.nanos / 1_000_000));
        let took_ms = at_ms.max(0).saturating_sub(id.time_ms() as i64).max(0);
        counted.latency.record(Duration::from_millis(took_ms as u64), 1);
    }
}

/// Follows the events of a load while it runs and until everything is finished.
pub async fn run(watcher: Client, make: impl FnOnce() -> Load) -> anyhow::Result<E2eResult> {
    let since_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
    let (stop, open) = (CancellationToken::new(), Arc::new(tokio::sync::Notify::new()));
    let counted = Arc::new(Mutex::new(Counted::default()));
    // The load's clock must start after the event stream is open, so the events find it through this.
    let shared_slot: Arc<std::sync::OnceLock<Arc<Shared>>> = Arc::default();
    let follower = {
        let (counted, slot, open) = (counted.clone(), shared_slot.clone(), open.clone());
        let opened = move || open.notify_one();
        let on_event = move |event: &Event| {
            if let Some(shared) = slot.get() {
                take(&mut counted.lock(), shared, since_ms, event);
            }
        };
        tokio::spawn(watch::follow(watcher, stop.clone(), opened, on_event))
    };
    tokio::time::timeout(OPEN_MAX, open.notified())
        .await
        .map_err(|_| anyhow::anyhow!("the event stream was not opened within {OPEN_MAX:?}"))?;
    let load = make();
    let shared = load.shared.clone();
    anyhow::ensure!(shared_slot.set(shared.clone()).is_ok(), "one load at a time");
    let load = load.run().await?;
    let until = Instant::now() + DRAIN_MAX;
    while shared.backlog.unfinished() > 0 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.cancel();
    let watched = follower.await?.map_err(|status| anyhow::anyhow!("events refused: {}", why(&status)))?;
    let counted = counted.lock();
    let invalid = match (&load.health.invalid, watched.streams_opened) {
        (Some(why), _) => Some(why.clone()),
        // Events of before the break may have come twice.
        (None, n) if n > 1 => Some(format!("the event stream was opened {n} times")),
        _ => None,
    };
    Ok(E2eResult {
        delivered_per_s: counted.delivered_measured as f64 / load.measured_s,
        latency: counted.latency.summary(),
        by_state: counted.by_state.iter().map(|(state, count)| ((*state).to_owned(), *count)).collect(),
        unfinished: shared.backlog.unfinished(),
        event_streams: watched.streams_opened,
        invalid,
        load,
    })
}
