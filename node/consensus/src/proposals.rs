//! Proposals of one group on their way into the log and back: what waits to be appended, and who waits for which entry.
//!
//! Generic over the waiter: a node's shard uses channels, the simulator uses notes. Waiters are handed back and never called.
//!
//! Invariants
//!  - A caller's commands are never split over two entries.
//!  - A waiter is given out for the entry of its own (term, index) only. When another term's entry commits at that index
//!    the waiter comes back as overwritten: its commands are not in force through this entry.
//!  - The clock that is stamped into batches never goes back.
//!
//! Does not: bound what is pushed (the caller admits), talk to waiters.
use crate::batch::{BatchLimits, cut};
use crate::{CommittedEntry, EntryKind, Group, Proposal, ProposeError};
use bytes::Bytes;
use carillon_proto::internal::{Command, CommandBatch, LeaderStart, command::Kind};
use prost::Message as _;
use std::collections::VecDeque;

/// What a command costs in an entry besides its own bytes.
const COMMAND_OVERHEAD_BYTES: usize = 8;

/// A caller's commands, not appended yet.
#[derive(Debug)]
pub struct Pending<W> {
    pub commands: Vec<Bytes>,
    /// What they count against the limit of an entry.
    pub bytes: usize,
    pub waiter: W,
}

impl<W> Pending<W> {
    pub fn new(commands: Vec<Bytes>, waiter: W) -> Self {
        let bytes = commands.iter().map(|command| command.len() + COMMAND_OVERHEAD_BYTES).sum();
        Self { commands, bytes, waiter }
    }

    /// A new leader's own first command.
    pub fn leader_start(term: u64, node_id: u64, waiter: W) -> Self {
        let command = Command { kind: Some(Kind::LeaderStart(LeaderStart { term, node_id })) };
        Self::new(vec![command.encode_to_vec().into()], waiter)
    }
}

/// Whether an entry begins with `LeaderStart` of this node, in the entry's own term.
pub fn is_leader_start(entry: &CommittedEntry, node_id: u64) -> bool {
    if entry.kind != EntryKind::Normal {
        return false;
    }
    let Ok(batch) = CommandBatch::decode(entry.data.clone()) else { return false };
    matches!(
        batch.commands.first(),
        Some(Command { kind: Some(Kind::LeaderStart(start)) }) if start.node_id == node_id && start.term == entry.term
    )
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

/// What one round of appending brought.
#[derive(Debug)]
pub struct Appended<W> {
    /// Commands of each new entry.
    pub entries: Vec<usize>,
    pub refused: Vec<(W, ProposeError)>,
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
    /// larger entries under load (natural batching, no timer). While leadership is being handed over everything waits,
    /// because raft would drop it: it fails with the new leader's name a moment later, or goes on here.
    pub fn append(&mut self, group: &mut Group, clock_ms: u64, in_flight_max: usize) -> Appended<W> {
        let mut appended = Appended { entries: Vec::new(), refused: Vec::new() };
        while !self.pending.is_empty() && self.waiters.len() < in_flight_max && !group.is_handing_over() {
            let (commands, parts) = self.next_entry();
            self.now_ms = self.now_ms.max(clock_ms);
            let whole = BatchLimits { commands_max: usize::MAX, bytes_max: usize::MAX };
            let mut batches = cut(self.now_ms, &commands, whole);
            let data = batches.pop().expect("one batch without limits").data;
            appended.entries.push(commands.len());
            match group.propose(data) {
                Ok(Proposal { term, index }) => self.waiters.push_back(EntryWaiters { term, index, parts }),
                Err(error) => {
                    let refused = parts.into_iter().map(|(_, waiter)| (waiter, error.clone()));
                    appended.refused.extend(refused);
                }
            }
        }
        appended
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
    /// higher than those of the new term, so they would stand before its waiters ([`Proposals::take`] looks at the front) and
    /// use up the room of [`Proposals::append`] for ever: a leader that never appends.
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
