//! What is to be written, and the proof of what was not.
//!
//! PDUs leave in order. A PDU counts as started as soon as one octet of it may have been handed to the socket; only a
//! PDU that has not started can be withdrawn. Bounded: the submits by the window, the rest because the session stops
//! reading while [`Outbox::is_full`].
use super::pdu::Wire;
use std::collections::VecDeque;
use std::io::IoSlice;
use tokio::time::Instant;

/// Beyond this the session reads nothing that it would have to answer.
const OCTETS_MAX: usize = 256 * 1024;
/// Pieces of one write.
pub const SLICES_MAX: usize = 64;

pub(crate) struct Outbox {
    queue: VecDeque<Entry>,
    /// Octets of the first entry that are gone.
    gone: usize,
    /// Entries at the front that may have been handed over although the write failed.
    suspect: usize,
    octets: usize,
}

struct Entry {
    wire: Wire,
    /// A submit: its sequence number and the time after which it must not start.
    submit: Option<(u32, Instant)>,
}

impl Outbox {
    pub fn new() -> Self {
        Self { queue: VecDeque::new(), gone: 0, suspect: 0, octets: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.octets >= OCTETS_MAX
    }

    pub fn push(&mut self, wire: Wire) {
        self.put(Entry { wire, submit: None });
    }

    pub fn push_submit(&mut self, wire: Wire, sequence: u32, send_by: Instant) {
        self.put(Entry { wire, submit: Some((sequence, send_by)) });
    }

    fn put(&mut self, entry: Entry) {
        self.octets += entry.wire.octets().len();
        self.queue.push_back(entry);
    }

    /// What to write next.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let mut count = 0;
        for (slice, (i, entry)) in slices.iter_mut().zip(self.queue.iter().enumerate()) {
            let from = if i == 0 { self.gone } else { 0 };
            *slice = IoSlice::new(&entry.wire.octets()[from..]);
            count += 1;
        }
        count
    }

    /// `octets` more were handed over. Gives the submits that are now wholly gone.
    pub fn advance(&mut self, mut octets: usize) -> u64 {
        let mut submits = 0;
        self.octets -= octets;
        while let Some(first) = self.queue.front() {
            let left = first.wire.octets().len() - self.gone;
            if octets < left {
                break;
            }
            octets -= left;
            self.gone = 0;
            submits += u64::from(first.submit.is_some());
            self.queue.pop_front();
        }
        self.gone += octets;
        submits
    }

    /// A write of the next slices failed after it may have taken them.
    pub fn suspect(&mut self) {
        self.suspect = self.queue.len().min(SLICES_MAX);
    }

    fn started(&self) -> usize {
        self.suspect.max(usize::from(self.gone > 0))
    }

    /// The earliest time at which a submit that has not started must be withdrawn.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.queue.iter().skip(self.started()).filter_map(|entry| entry.submit).map(|(_, by)| by).min()
    }

    /// Withdraws the submits that have not started by their time.
    pub fn withdraw_due(&mut self, now: Instant) -> Vec<u32> {
        self.withdraw(|_, send_by| send_by <= now)
    }

    /// Withdraws one submit; true when it had not started.
    pub fn withdraw_one(&mut self, sequence: u32) -> bool {
        !self.withdraw(|queued, _| queued == sequence).is_empty()
    }

    /// Withdraws everything that has not started: the connection is gone.
    pub fn withdraw_all(&mut self) -> Vec<u32> {
        self.withdraw(|_, _| true)
    }

    fn withdraw(&mut self, which: impl Fn(u32, Instant) -> bool) -> Vec<u32> {
        let started = self.started();
        let mut withdrawn = Vec::new();
        let mut i = 0;
        let octets = &mut self.octets;
        self.queue.retain(|entry| {
            let keep = i < started || !entry.submit.is_some_and(|(sequence, by)| which(sequence, by));
            i += 1;
            if !keep {
                *octets -= entry.wire.octets().len();
                withdrawn.extend(entry.submit.map(|(sequence, _)| sequence));
            }
            keep
        });
        withdrawn
    }
}

#[cfg(test)]
mod tests {
    use super::super::pdu;
    use super::*;
    use std::time::Duration;

    /// Three submits of 16 octets between two control PDUs of 16.
    fn outbox(now: Instant) -> Outbox {
        let mut outbox = Outbox::new();
        outbox.push(pdu::enquire_link(1));
        for sequence in 2..5 {
            outbox.push_submit(
                pdu::unbind(sequence),
                sequence,
                now + Duration::from_secs(u64::from(sequence)),
            );
        }
        outbox.push(pdu::enquire_link(5));
        outbox
    }

    fn left(outbox: &Outbox) -> usize {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = outbox.slices(&mut slices);
        slices[..count].iter().map(|slice| slice.len()).sum()
    }

    #[test]
    fn what_has_not_started_can_be_withdrawn() {
        let now = Instant::now();
        let mut outbox = outbox(now);
        assert_eq!((left(&outbox), outbox.octets), (80, 80));
        assert_eq!(outbox.advance(16), 0);
        assert_eq!(outbox.next_deadline(), Some(now + Duration::from_secs(2)));
        // One octet of the first submit is gone: it has started, the other two have not.
        assert_eq!(outbox.advance(1), 0);
        assert!(!outbox.withdraw_one(2));
        assert_eq!(outbox.withdraw_due(now + Duration::from_secs(3)), [3]);
        assert_eq!(outbox.withdraw_all(), [4]);
        assert_eq!((left(&outbox), outbox.octets), (31, 31));
        assert_eq!(outbox.advance(31), 1);
        assert!(outbox.is_empty());
        assert_eq!(outbox.octets, 0);
    }

    #[test]
    fn whole_pdus_that_are_gone_leave_the_next_one_unstarted() {
        let mut outbox = outbox(Instant::now());
        assert_eq!(outbox.advance(32), 1);
        assert_eq!(outbox.withdraw_all(), [3, 4]);
    }

    #[test]
    fn a_failed_write_makes_its_pdus_suspect() {
        let mut outbox = outbox(Instant::now());
        outbox.suspect();
        outbox.push_submit(pdu::unbind(9), 9, Instant::now());
        assert_eq!(outbox.withdraw_all(), [9]);
    }
}
