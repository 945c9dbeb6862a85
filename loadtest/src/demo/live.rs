//! The live view of a run: where the messages are now, from events, and one line a second.
//!
//! Owns: [`Tracker`]. The events only feed the view; the ledger is made from ListMessages.
//! Bounds: one octet and the id for each of at most [`TRACKED_MAX`] messages.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use carillon_proto::MessageId;
use carillon_proto::public::{Event, MessageState, WaitingReason};

use crate::scrape::Buckets;

pub const TRACKED_MAX: usize = 4_000_000;
/// The histogram of the nodes' log fsyncs.
pub const SYNC_METRIC: &str = "carillon_log_sync_seconds";
const STATES: usize = 13;

/// Where each message is.
#[derive(Default)]
pub struct Tracker {
    at: HashMap<MessageId, u8>,
    counts: [u64; STATES],
    /// Events that put a message off after a failed attempt.
    pub put_off: u64,
    /// Messages whose carrier's answer was lost, and those of them that were resolved since.
    pub lost: u64,
    pub resolved: u64,
    since_ms: u64,
}

/// The figures of one line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub accepted: u64,
    pub submitted: u64,
    pub delivered: u64,
    pub held: u64,
    pub failures: u64,
    pub put_off: u64,
}

/// Later in life is higher; finals are equal and last.
fn rank(state: MessageState) -> u8 {
    match state {
        MessageState::Unspecified | MessageState::Accepted => 0,
        MessageState::Waiting | MessageState::InFlight => 1,
        MessageState::Unknown => 2,
        MessageState::Submitted => 3,
        _ => 4,
    }
}

impl Tracker {
    /// Follows messages accepted at or after `since_ms` only.
    pub fn new(since_ms: i64) -> Self {
        Self { since_ms: since_ms.max(0) as u64, ..Self::default() }
    }

    /// Takes in an event; repeated and old ones change nothing.
    pub fn apply(&mut self, event: &Event) {
        let Ok(id) = event.message_id.parse::<MessageId>() else { return };
        if id.time_ms() < self.since_ms {
            return;
        }
        let state = event.state();
        if state == MessageState::Waiting && event.waiting_reason() == WaitingReason::Backoff {
            self.put_off += 1;
        }
        let (index, full) = (state as usize, self.at.len() >= TRACKED_MAX);
        match self.at.get_mut(&id) {
            Some(now) => {
                let before = MessageState::try_from(i32::from(*now)).unwrap_or_default();
                if rank(state) < rank(before) || before == state || rank(before) == 4 {
                    return;
                }
                self.counts[before as usize] -= 1;
                let taken = matches!(
                    state,
                    MessageState::Submitted | MessageState::Delivered | MessageState::Undelivered
                );
                self.resolved += u64::from(before == MessageState::Unknown && taken);
                *now = index as u8;
            }
            None if full => return,
            None => {
                self.at.insert(id, index as u8);
            }
        }
        self.lost += u64::from(state == MessageState::Unknown);
        self.counts[index] += 1;
    }

    fn count(&self, states: &[MessageState]) -> u64 {
        states.iter().map(|state| self.counts[*state as usize]).sum()
    }

    pub fn figures(&self, accepted: u64) -> Figures {
        use MessageState as S;
        Figures {
            accepted,
            submitted: self.count(&[S::Submitted, S::Delivered, S::Undelivered]),
            delivered: self.count(&[S::Delivered]),
            held: self.count(&[S::Unknown]),
            failures: self.count(&[S::Undelivered, S::Rejected, S::Expired, S::OptedOut, S::Dead]),
            put_off: self.put_off,
        }
    }
}

/// One line: totals, and what came since the line before.
pub fn line(at: Duration, now: &Figures, before: &Figures, sync: &Buckets) -> String {
    let mut text = format!("{:>4}s", at.as_secs());
    let totals = [
        ("accepted", now.accepted, before.accepted),
        ("submitted", now.submitted, before.submitted),
        ("delivered", now.delivered, before.delivered),
    ];
    for (name, now, before) in totals {
        // Writing to a String cannot fail.
        let _ = write!(text, "  {name} {now:>6} (+{:<4})", now.saturating_sub(before));
    }
    let _ = write!(text, "  held {:>3}  failures {:>4}  put off {:>5}", now.held, now.failures, now.put_off);
    match sync.quantile(0.99) {
        Some(seconds) => {
            let _ = write!(text, "  fsync p99 {:.1} ms", seconds * 1000.0);
        }
        None => text.push_str("  fsync p99 -"),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scrape::Page;
    use carillon_proto::Slot;

    fn event(n: u64, state: MessageState) -> Event {
        let id = MessageId::new(1_000 + n, Slot::new(1).unwrap(), n);
        Event { message_id: id.to_string(), state: state as i32, ..Default::default() }
    }

    #[test]
    fn repeated_old_and_foreign_events_change_nothing() {
        use MessageState as S;
        let mut tracker = Tracker::new(1_000);
        for state in
            [S::Accepted, S::InFlight, S::Submitted, S::Delivered, S::Submitted, S::Delivered, S::Unknown]
        {
            tracker.apply(&event(1, state));
        }
        let delivered = Figures { accepted: 9, submitted: 1, delivered: 1, ..Default::default() };
        assert_eq!(tracker.figures(9), delivered);
        tracker.apply(&event(2, S::Unknown));
        assert_eq!(tracker.figures(9).held, 1);
        tracker.apply(&event(2, S::Undelivered));
        let figures = tracker.figures(9);
        assert_eq!((figures.held, figures.failures, figures.submitted), (0, 1, 2));
        let old = MessageId::new(999, Slot::new(1).unwrap(), 7).to_string();
        tracker.apply(&Event { message_id: old, ..event(3, S::Delivered) });
        tracker.apply(&Event { message_id: "no id".to_owned(), ..event(3, S::Delivered) });
        assert_eq!(tracker.figures(9).delivered, 1);
    }

    #[test]
    fn a_message_that_is_tried_again_is_put_off_and_goes_on() {
        let mut tracker = Tracker::new(0);
        tracker.apply(&event(1, MessageState::InFlight));
        let waiting = WaitingReason::Backoff as i32;
        tracker.apply(&Event { waiting_reason: waiting, ..event(1, MessageState::Waiting) });
        tracker.apply(&event(1, MessageState::Submitted));
        let figures = tracker.figures(1);
        assert_eq!((figures.put_off, figures.submitted, figures.failures), (1, 1, 0));
    }

    #[test]
    fn a_line_shows_totals_and_differences() {
        let now = Figures { accepted: 100, submitted: 80, delivered: 60, held: 2, failures: 3, put_off: 9 };
        let before = Figures { accepted: 90, ..Default::default() };
        let sync = Page::parse("x_bucket{le=\"0.002\"} 10\nx_bucket{le=\"+Inf\"} 10\n").buckets("x");
        let text = line(Duration::from_secs(12), &now, &before, &sync);
        assert!(text.contains("12s  accepted    100 (+10  )") && text.contains("held   2"), "{text}");
        assert!(text.ends_with("fsync p99 2.0 ms"), "{text}");
        assert!(line(Duration::ZERO, &now, &now, &Buckets::default()).ends_with("fsync p99 -"));
    }
}
