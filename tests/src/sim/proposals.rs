//! Proposals of one group on their way into the log and back: what waits to be appended, and who waits for which entry.
//!
//! A mirror of the decisions of `node/src/engine/cell.rs`, where waiters are channels. Here they are notes that are handed
//! back and never called.
//!
//! Invariants
//!  - A caller's commands are never split over two entries.
//!  - A waiter is given out for the entry of its own (term, index) only. When another term's entry commits at that index
//!    the waiter comes back as overwritten: its commands are not in force through this entry.
//!  - The clock that is stamped into batches never goes back.
//!
//! Does not: bound what is pushed (the caller admits), talk to waiters.
use carillon_consensus::batch::{BatchLimits, cut};
use carillon_consensus::{Group, Proposal, ProposeError};
use prost::bytes::Bytes;
use std::collections::VecDeque;

/// A caller's commands, not appended yet.
#[derive(Debug)]
pub struct Pending<W> {
    pub commands: Vec<Bytes>,
    /// What they count against the limit of an entry.
    pub bytes: usize,
    pub waiter: W,
}

/// Number of commands and who waits for their results, in entry order.
pub type Parts<W> = Vec<(usize, W)>;

/// Who waits for an entry that this replica appended as leader.
#[derive(Debug)]
struct EntryWaiters<W> {
    term: u64,
    index: u64,
    parts: Parts<W>,
}

/// What became of the waiters of a committed entry.
#[derive(Debug)]
pub struct Taken<W> {
    /// They wait for this very entry.
    pub parts: Parts<W>,
    /// Their entries were overwritten.
    pub overwritten: Vec<W>,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Proposals<W> {
    pending: VecDeque<Pending<W>>,
    waiters: VecDeque<EntryWaiters<W>>,
    /// Last clock value stamped into a batch.
    now_ms: u64,
}

impl<W> Default for Proposals<W> {
    fn default() -> Self {
        Self { pending: VecDeque::new(), waiters: VecDeque::new(), now_ms: 0 }
    }
}

impl<W> Proposals<W> {
    pub fn push(&mut self, pending: Pending<W>) {
        self.pending.push_back(pending);
    }

    /// Before everything that waits: a leader's own first command.
    pub fn push_first(&mut self, pending: Pending<W>) {
        self.pending.push_front(pending);
    }

    /// Appends what waits as long as fewer than `in_flight_max` entries wait for apply: the rest waits and so makes
    /// larger entries under load (natural batching, no timer). Returns the waiters of what was refused.
    pub fn append(
        &mut self,
        group: &mut Group,
        clock_ms: u64,
        in_flight_max: usize,
    ) -> Vec<(W, ProposeError)> {
        let mut refused = Vec::new();
        // While leadership is being handed over everything waits, because raft would drop it.
        while !self.pending.is_empty() && self.waiters.len() < in_flight_max && !group.is_handing_over() {
            let (commands, parts) = self.next_entry();
            self.now_ms = self.now_ms.max(clock_ms);
            let whole = BatchLimits { commands_max: usize::MAX, bytes_max: usize::MAX };
            let mut batches = cut(self.now_ms, &commands, whole);
            let data = batches.pop().expect("one batch without limits").data;
            match group.propose(data) {
                Ok(Proposal { term, index }) => self.waiters.push_back(EntryWaiters { term, index, parts }),
                Err(error) => refused.extend(parts.into_iter().map(|(_, waiter)| (waiter, error.clone()))),
            }
        }
        refused
    }

    /// Takes as much as fits into one entry, at least one caller's.
    fn next_entry(&mut self) -> (Vec<Bytes>, Parts<W>) {
        let limits = BatchLimits::default();
        let (mut commands, mut parts, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(next) = self.pending.front() {
            let full = commands.len() + next.commands.len() > limits.commands_max
                || bytes + next.bytes > limits.bytes_max;
            if full && !commands.is_empty() {
                break;
            }
            let next = self.pending.pop_front().expect("front exists");
            bytes += next.bytes;
            parts.push((next.commands.len(), next.waiter));
            commands.extend(next.commands);
        }
        (commands, parts)
    }

    /// This replica leads a new term: gives back who waits for an entry that its log no longer has. Their indexes may be
    /// higher than those of the new term, so they would stand before its waiters and use up its room for ever.
    pub fn take_overwritten(&mut self, group: &Group) -> Vec<W> {
        let ours = |entry: &EntryWaiters<W>| group.term_at(entry.index) == Some(entry.term);
        let (kept, gone): (VecDeque<_>, VecDeque<_>) = self.waiters.drain(..).partition(ours);
        self.waiters = kept;
        gone.into_iter().flat_map(|entry| entry.parts).map(|(_, waiter)| waiter).collect()
    }

    /// The waiters of a committed entry, and of those that it overwrote.
    pub fn take(&mut self, index: u64, term: u64) -> Taken<W> {
        let mut taken = Taken { parts: Vec::new(), overwritten: Vec::new() };
        while self.waiters.front().is_some_and(|front| front.index <= index) {
            let front = self.waiters.pop_front().expect("front exists");
            if front.index == index && front.term == term {
                taken.parts = front.parts;
                return taken;
            }
            taken.overwritten.extend(front.parts.into_iter().map(|(_, waiter)| waiter));
        }
        taken
    }

    /// Term under which the entry at `index` was appended here, if somebody waits for it.
    pub fn term_awaited(&self, index: u64) -> Option<u64> {
        self.waiters.iter().find(|w| w.index == index).map(|w| w.term)
    }

    /// What was not appended. After losing leadership; what was appended waits for the log to decide.
    pub fn drain_pending(&mut self) -> impl Iterator<Item = W> + '_ {
        self.pending.drain(..).map(|pending| pending.waiter)
    }

    /// Who waits for entries. For a replica that stops.
    pub fn drain_waiters(&mut self) -> impl Iterator<Item = W> + '_ {
        self.waiters.drain(..).flat_map(|entry| entry.parts.into_iter().map(|(_, waiter)| waiter))
    }
}
