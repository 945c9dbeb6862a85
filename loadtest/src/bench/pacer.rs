//! The open loop: sends at intended times, whatever the answers do.
//!
//! Owns: the pace, on a thread of its own, because tokio's timers step in milliseconds.
//! Invariants: the n-th batch is intended at `start + n / rate`, and its response time counts from there, so a stalled
//! cluster cannot hide its stall. A batch that is over [`SKIP_AFTER`] behind is skipped and counted; what is less
//! late goes out at once. The pacer's own lag counts from the intended time too, but from no earlier than the moment at which
//! the windows had room again: catching up after a stall of the cluster is not the pacer's fault.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::measure::{LATE, Latency};

pub const SKIP_AFTER: Duration = Duration::from_secs(1);
/// How long the pacer waits between two looks for room in the windows.
const ROOM_POLL: Duration = Duration::from_micros(200);

/// The longest sleep, so that a stop is noticed.
const SLEEP_MAX: Duration = Duration::from_millis(200);

/// Where requests leave.
pub trait Outlet {
    /// One more may be in flight.
    fn has_room(&self) -> bool;

    /// Sends the next request; false when nothing can leave here any more. Called only when there is room, from one thread.
    fn send(&self, intended: Instant) -> bool;
}

/// How the pacer did.
#[derive(Default)]
pub struct Paced {
    pub batches: u64,
    pub skipped: u64,
    /// Late though there was room.
    pub late: u64,
    /// Wake-up lag when there was room.
    pub lag: Latency,
    pub stream_gone: bool,
}

/// Sleeps until `at`; false when stopped meanwhile.
fn sleep_until(at: Instant, stop: &AtomicBool) -> bool {
    while let Some(early) = at.checked_duration_since(Instant::now()) {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        std::thread::sleep(early.min(SLEEP_MAX));
    }
    !stop.load(Ordering::Relaxed)
}

/// Sends at `times` (counted from `start`) over `outlets` in turn, until the last one or `stop`. `told` hears of each
/// send that was skipped (`None`) and of the lag of each that was not held up by the cluster.
pub fn pace<O: Outlet>(
    outlets: &[O],
    times: impl Iterator<Item = Duration>,
    start: Instant,
    stop: &AtomicBool,
    mut told: impl FnMut(Option<Duration>),
) -> Paced {
    let (mut paced, mut next_outlet) = (Paced::default(), 0);
    // When the last wait for room ended: until then it was the cluster that held the pacer up.
    let mut held_until = start;
    for at in times {
        let intended = start + at;
        if !sleep_until(intended, stop) {
            break;
        }
        let woke = Instant::now();
        if woke - intended > SKIP_AFTER {
            paced.skipped += 1;
            told(None);
            continue;
        }
        let mut waited = false;
        let outlet = loop {
            let found = (0..outlets.len())
                .map(|i| (next_outlet + i) % outlets.len())
                .find(|i| outlets[*i].has_room());
            match found {
                Some(i) => break Some(i),
                None if intended.elapsed() > SKIP_AFTER || stop.load(Ordering::Relaxed) => break None,
                None => {
                    waited = true;
                    std::thread::sleep(ROOM_POLL);
                }
            }
        };
        let Some(at) = outlet else {
            paced.skipped += 1;
            told(None);
            continue;
        };
        next_outlet = at + 1;
        if waited {
            held_until = Instant::now();
        } else {
            let lag = woke.saturating_duration_since(intended.max(held_until));
            paced.lag.record(lag, 1);
            paced.late += u64::from(lag > LATE);
            told(Some(lag));
        }
        paced.batches += 1;
        if !outlets[at].send(intended) {
            paced.stream_gone = true;
            break;
        }
    }
    paced
}
