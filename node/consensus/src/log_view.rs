//! The raft log as raft sees it: the `LogStore` below, recent entries in memory above.
//!
//! Owns the entry cache: one unbroken run of entries that ends with the last one of the log.
//! Invariants
//!  - An entry is readable here as soon as it was handed out for persisting, before the disk has it. So whatever is
//!    not durable yet is in the cache and is never evicted.
//!  - Below the cache every entry is durable and no write that replaces it is under way, so the store may be read
//!    while the log writer writes.
//!  - The term of the truncated index is known although its entry is gone.
//!  - Once the membership has changed, the log alone does not tell it, so nobody can start from entry 1: index 0 then
//!    counts as cut off and raft sends a snapshot.
//!
//! It also holds the snapshot that the caller offers, and remembers for whom raft wanted one in vain. Not here: writing,
//! making snapshots.
use crate::config::GroupConfig;
use crate::error::GroupError;
use crate::log_store::{GroupState, LogError, LogStore};
use crate::wire;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, NO_LIMIT, RaftState, Storage, StorageError};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;

/// What stays cached although every replica that is awake has it, for one that lags a little.
const TAIL_BYTES: u64 = 256 * 1024;
/// Bytes of an entry besides its data; about what it takes in memory and on the wire.
const ENTRY_OVERHEAD_BYTES: u64 = 12;

pub(crate) struct LogView {
    group: u32,
    log: Arc<dyn LogStore>,
    /// As found at start; raft keeps them itself from then on.
    initial: (HardState, ConfState),
    truncated_index: u64,
    truncated_term: u64,
    last_index: u64,
    cache: VecDeque<Entry>,
    cache_bytes: u64,
    cache_bytes_max: u64,
    /// Index and term of the last entry whose term was read from the store.
    term_memo: Cell<(u64, u64)>,
    /// The membership is not the one that the group was created with.
    pub members_changed: bool,
    offer: Option<Snapshot>,
    /// The replica that a snapshot was wanted for since the last look.
    wanted: Cell<Option<u64>>,
}

impl LogView {
    /// `state` as loaded, with the commit index already corrected.
    pub fn open(config: &GroupConfig, log: Arc<dyn LogStore>, state: GroupState) -> Result<Self, GroupError> {
        let conf_state = wire::conf_state_from_wire(state.conf_state)
            .map_err(|e| LogError::Corrupt { group: config.group, reason: e.to_string() })?;
        let view = Self {
            group: config.group,
            log,
            initial: (state.hard_state, conf_state),
            truncated_index: state.truncated_index,
            truncated_term: state.truncated_term,
            last_index: state.last_index,
            cache: VecDeque::new(),
            cache_bytes: 0,
            cache_bytes_max: config.cache_bytes_max,
            term_memo: Cell::new((0, 0)),
            members_changed: state.conf_index > 0,
            offer: None,
            wanted: Cell::new(None),
        };
        // raft asks for it at once and would panic.
        view.term_of(view.last_index)?;
        Ok(view)
    }

    pub fn first_cached(&self) -> u64 {
        self.last_index + 1 - self.cache.len() as u64
    }

    pub fn cache_bytes(&self) -> u64 {
        self.cache_bytes
    }

    pub fn last(&self) -> u64 {
        self.last_index
    }

    /// Makes entries readable that are handed out for persisting; replaces what is at or after the first one.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index > self.truncated_index && first.index <= self.last_index + 1,
            "entry {} appended to a log of {}..={}",
            first.index,
            self.truncated_index + 1,
            self.last_index
        );
        while self.cache.back().is_some_and(|e| e.index >= first.index) {
            let replaced = self.cache.pop_back().expect("it has a last one");
            self.cache_bytes -= entry_bytes(&replaced);
        }
        if self.term_memo.get().0 >= first.index {
            self.term_memo.set((0, 0));
        }
        for entry in entries {
            self.cache_bytes += entry_bytes(entry);
            self.cache.push_back(entry.clone());
        }
        self.last_index = first.index + entries.len() as u64 - 1;
    }

    /// Evicts entries from the front: what is durable (`<= persisted`) and no longer wanted (`<= unwanted`) down to a
    /// small tail, and beyond the limit whatever is durable.
    pub fn trim(&mut self, persisted: u64, unwanted: u64) {
        while let Some(front) = self.cache.front() {
            let surplus = (front.index <= unwanted && self.cache_bytes > TAIL_BYTES)
                || self.cache_bytes > self.cache_bytes_max;
            if front.index > persisted || !surplus {
                break;
            }
            self.cache_bytes -= entry_bytes(front);
            self.cache.pop_front();
        }
    }

    /// Entries up to `index` were cut off in the store.
    pub fn truncated(&mut self, index: u64, term: u64) {
        if index <= self.truncated_index {
            return;
        }
        assert!(index <= self.last_index, "log ends at {} and cannot be cut at {index}", self.last_index);
        while self.cache.front().is_some_and(|e| e.index <= index) {
            let cut = self.cache.pop_front().expect("it has a first one");
            self.cache_bytes -= entry_bytes(&cut);
        }
        self.truncated_index = index;
        self.truncated_term = term;
    }

    /// A snapshot took the place of the log; the store learns it with the next write.
    pub fn reset(&mut self, index: u64, term: u64) {
        self.cache.clear();
        self.cache_bytes = 0;
        self.term_memo.set((0, 0));
        (self.truncated_index, self.truncated_term, self.last_index) = (index, term, index);
        self.members_changed = true;
        self.offer = None;
    }

    /// What raft gets when it asks for a snapshot.
    pub fn set_offer(&mut self, offer: Option<Snapshot>) {
        self.offer = offer;
    }

    pub fn offer(&self) -> Option<&Snapshot> {
        self.offer.as_ref()
    }

    pub fn take_wanted(&self) -> Option<u64> {
        self.wanted.take()
    }

    /// The log goes on after the snapshot, and its receiver is a member by then.
    fn fits(&self, offer: &Snapshot, request_index: u64, to: u64) -> bool {
        let metadata = offer.get_metadata();
        metadata.index >= request_index.max(self.truncated_index)
            && crate::snapshot::is_member(metadata.get_conf_state(), to)
    }

    pub fn term_of(&self, index: u64) -> Result<u64, LogError> {
        if index == self.truncated_index && (index > 0 || !self.members_changed || self.last_index == 0) {
            return Ok(self.truncated_term);
        }
        if index <= self.truncated_index {
            return Err(LogError::Compacted { group: self.group, index: self.truncated_index });
        }
        if index > self.last_index {
            return Err(LogError::Missing { group: self.group, index });
        }
        if let Some(offset) = index.checked_sub(self.first_cached()) {
            return Ok(self.cache[offset as usize].term);
        }
        let memo = self.term_memo.get();
        if memo.0 == index {
            return Ok(memo.1);
        }
        let term = self.read_store(index, index + 1, 0)?[0].term;
        self.term_memo.set((index, term));
        Ok(term)
    }

    /// Entries with `low <= index < high`, at least one, then as many as fit into `bytes_max`.
    pub fn read(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        if low <= self.truncated_index {
            return Err(LogError::Compacted { group: self.group, index: self.truncated_index });
        }
        if low >= high || high > self.last_index + 1 {
            return Err(LogError::Missing { group: self.group, index: high });
        }
        let cached = self.first_cached();
        let mut found = Vec::new();
        while low + (found.len() as u64) < high.min(cached) {
            let next = low + found.len() as u64;
            found.extend(self.read_store(next, high.min(cached), bytes_max)?);
            if bytes_max != NO_LIMIT && low + (found.len() as u64) < high.min(cached) {
                return Ok(found);
            }
        }
        let next = low + found.len() as u64;
        if next == high {
            return Ok(found);
        }
        let mut bytes: u64 = found.iter().map(entry_bytes).sum();
        for entry in self.cache.iter().skip((next - cached) as usize).take((high - next) as usize) {
            bytes = bytes.saturating_add(entry_bytes(entry));
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    /// Trusts the store for nothing but what it can prove: consecutive indexes from `low` on.
    fn read_store(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        let entries = self.log.entries(self.group, low, high, bytes_max)?;
        let ordered = entries.iter().zip(low..high).all(|(entry, index)| entry.index == index);
        if entries.is_empty() || entries.len() as u64 > high - low || !ordered {
            let reason = format!("entries {low}..{high} are not what was asked for");
            return Err(LogError::Corrupt { group: self.group, reason });
        }
        Ok(entries)
    }
}

pub(crate) fn entry_bytes(entry: &Entry) -> u64 {
    (entry.data.len() + entry.context.len()) as u64 + ENTRY_OVERHEAD_BYTES
}

fn storage_error(error: LogError) -> raft::Error {
    raft::Error::Store(match error {
        LogError::Compacted { .. } => StorageError::Compacted,
        LogError::Missing { .. } => StorageError::Unavailable,
        // raft panics with the text.
        other => StorageError::Other(Box::new(other)),
    })
}

impl Storage for LogView {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.initial.0.clone(), self.initial.1.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        self.read(low, high, max_size.into().unwrap_or(NO_LIMIT)).map_err(storage_error)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.term_of(index).map_err(storage_error)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.truncated_index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last_index)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        match &self.offer {
            Some(offer) if self.fits(offer, request_index, to) => Ok(offer.clone()),
            _ => {
                self.wanted.set(Some(to));
                Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}

#[cfg(test)]
mod tests;
