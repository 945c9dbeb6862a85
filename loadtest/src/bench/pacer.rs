//! The open loop: sends at intended times, whatever the answers do.
//!
//! Owns: the pace, on a thread of its own, because tokio's timers step in milliseconds.
//! Invariants: the n-th batch is intended at `start + n / rate`, and its response time counts from there, so a stalled
//! cluster cannot hide its stall. A batch that is over [`SKIP_AFTER`] behind is skipped and counted; what is less
//! late goes out at once. The pacer's own lag counts from the intended time too, but from no earlier than the moment at which
//! the windows had room again: catching up after a stall of the cluster is not the pacer's fault.

use std::time::{Duration, Instant};

use super::measure::{LATE, Latency};
use super::stream::Sender;

pub const SKIP_AFTER: Duration = Duration::from_secs(1);
/// How long the pacer waits between two looks for room in the windows.
const ROOM_POLL: Duration = Duration::from_micros(200);

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

/// Sends a batch every `every` over `senders` in turn, from `start` until `until`.
pub fn pace(senders: &[Sender], every: Duration, start: Instant, until: Instant) -> Paced {
    let (mut paced, mut next_sender) = (Paced::default(), 0);
    // When the last wait for room ended: until then it was the cluster that held the pacer up.
    let mut held_until = start;
    for n in 0u32.. {
        let intended = start + every.saturating_mul(n);
        if intended >= until {
            break;
        }
        if let Some(early) = intended.checked_duration_since(Instant::now()) {
            std::thread::sleep(early);
        }
        let woke = Instant::now();
        if woke - intended > SKIP_AFTER {
            paced.skipped += 1;
            continue;
        }
        let mut waited = false;
        let sender = loop {
            let found = (0..senders.len())
                .map(|i| (next_sender + i) % senders.len())
                .find(|i| senders[*i].has_room());
            match found {
                Some(i) => break Some(i),
                None if intended.elapsed() > SKIP_AFTER => break None,
                None => {
                    waited = true;
                    std::thread::sleep(ROOM_POLL);
                }
            }
        };
        let Some(at) = sender else {
            paced.skipped += 1;
            continue;
        };
        next_sender = at + 1;
        if waited {
            held_until = Instant::now();
        } else {
            let lag = woke.saturating_duration_since(intended.max(held_until));
            paced.lag.record(lag, 1);
            paced.late += u64::from(lag > LATE);
        }
        paced.batches += 1;
        if !senders[at].send(intended) {
            paced.stream_gone = true;
            break;
        }
    }
    paced
}
