//! Committed entries of one replica on their way to the applier, past changes of the membership.
//!
//! A committed change is put into force, written to the log, and only then given to the applier with what follows it: the
//! state must never be durable beyond a change that the log could forget. A replica that a change removed goes when that
//! change is applied.
//!
//! Generic over who waits for an entry, like [`Proposals`](crate::Proposals). Bounded like what the applier has: by
//! `unapplied_bytes_max` of the group.
use crate::log_store::GroupWrite;
use crate::proposals::Parts;
use crate::{CommittedEntry, EntryKind, Group, GroupError};
use std::collections::VecDeque;

/// A committed entry and who waits for its results.
#[derive(Debug)]
pub struct Awaited<W> {
    pub entry: CommittedEntry,
    pub waiters: Parts<W>,
}

/// What may go on.
#[derive(Debug)]
pub struct Released<W> {
    /// To be applied, in order.
    pub entries: Vec<Awaited<W>>,
    /// A change that was put into force, with its entry. To be written with sync, then [`Release::written`].
    pub change: Option<(GroupWrite, u64)>,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Release<W> {
    held: VecDeque<Awaited<W>>,
    /// Entry whose membership is being written to the log.
    writing: Option<u64>,
    /// The last one that is in force and durable.
    done: u64,
    /// This replica is removed as of this entry.
    leaving: Option<u64>,
}

impl<W> Default for Release<W> {
    fn default() -> Self {
        Self { held: VecDeque::new(), writing: None, done: 0, leaving: None }
    }
}

impl<W> Release<W> {
    pub fn push(&mut self, entry: CommittedEntry, waiters: Parts<W>) {
        self.held.push_back(Awaited { entry, waiters });
    }

    /// Everything before the next change that is not durable. When a change cannot be put into force the replica cannot go
    /// on; what is held stays, for [`Release::drain`].
    pub fn next(&mut self, group: &mut Group) -> Result<Released<W>, GroupError> {
        let mut released = Released { entries: Vec::new(), change: None };
        while let Some(front) = self.held.front() {
            let index = front.entry.index;
            if front.entry.kind == EntryKind::ConfChange && self.done < index {
                if self.writing.is_some() {
                    break;
                }
                match group.apply_conf_change(index) {
                    Ok(write) if write.is_empty() => self.done = index,
                    Ok(write) => {
                        self.writing = Some(index);
                        released.change = Some((write, index));
                        break;
                    }
                    Err(error) => {
                        released.entries.into_iter().rev().for_each(|entry| self.held.push_front(entry));
                        return Err(error);
                    }
                }
            }
            released.entries.extend(self.held.pop_front());
        }
        Ok(released)
    }

    /// The change of this entry is durable.
    pub fn written(&mut self, index: u64, group: &Group) {
        self.writing = None;
        self.done = self.done.max(index);
        if !group.is_member() {
            self.leaving = Some(index);
        }
    }

    /// A snapshot up to `index` takes the place of what is held; gives back who waited for it.
    pub fn installed(&mut self, index: u64) -> Vec<W> {
        self.writing = None;
        self.done = index;
        self.drain().collect()
    }

    /// A change is in force and not durable yet.
    pub fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// This replica was removed by what is applied.
    pub fn has_left(&self, applied: u64) -> bool {
        self.leaving.is_some_and(|index| applied >= index)
    }

    /// Who waits for what is held. For a replica that stops.
    pub fn drain(&mut self) -> impl Iterator<Item = W> + '_ {
        self.held.drain(..).flat_map(|held| held.waiters).map(|(_, waiter)| waiter)
    }
}
