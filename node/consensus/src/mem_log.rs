//! A raft log in memory with a simulated disk: what was written without sync is lost in a crash, up to a prefix that
//! the test chooses. For tests and the simulator.
//!
//! Like the real log it is one file: a sync makes every earlier write durable, and a crash keeps a prefix of the
//! unsynced writes, each one whole or not at all.
use crate::log_store::{GroupState, GroupWrite, LogError, LogStore};
use raft::eraftpb::{Entry, HardState};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

#[derive(Debug, Default)]
pub struct MemLog {
    disk: Mutex<Disk>,
}

#[derive(Debug, Default)]
struct Disk {
    /// What reads see.
    current: Groups,
    /// What survives a crash.
    durable: Groups,
    /// The difference, oldest first. Bounded by the tests, which sync or crash.
    unsynced: VecDeque<Change>,
}

type Groups = BTreeMap<u32, MemGroup>;

#[derive(Debug, Clone)]
enum Change {
    Write(Vec<GroupWrite>),
    Truncate { group: u32, index: u64, term: u64 },
}

#[derive(Debug, Clone, Default)]
struct MemGroup {
    /// Only `state.replica_id` is left.
    removed: bool,
    /// `last_index` is kept up to date.
    state: GroupState,
    /// From `state.truncated_index + 1` on.
    entries: VecDeque<Entry>,
}

impl MemLog {
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes everything written so far durable.
    pub fn sync(&self) {
        self.lock().sync();
    }

    /// Writes that a crash could lose.
    pub fn unsynced(&self) -> usize {
        self.lock().unsynced.len()
    }

    /// Loses all unsynced writes but the first `keep`.
    pub fn crash(&self, keep: usize) {
        let mut disk = self.lock();
        for _ in 0..keep {
            let Some(change) = disk.unsynced.pop_front() else { break };
            apply_change(&mut disk.durable, &change).expect("it was applied to the same state before");
        }
        disk.unsynced.clear();
        disk.current = disk.durable.clone();
    }

    /// What `load` would give after a crash now.
    pub fn durable(&self, group: u32) -> Option<GroupState> {
        self.lock().durable.get(&group).filter(|g| !g.removed).map(|g| g.state.clone())
    }

    /// Groups that exist.
    pub fn groups(&self) -> Vec<u32> {
        self.lock().current.iter().filter(|(_, g)| !g.removed).map(|(group, _)| *group).collect()
    }

    /// Term of an entry that would survive a crash now.
    pub fn durable_term(&self, group: u32, index: u64) -> Option<u64> {
        self.lock().durable.get(&group).and_then(|g| g.term(index))
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().expect("no panic while the lock is held")
    }
}

impl Disk {
    fn sync(&mut self) {
        while let Some(change) = self.unsynced.pop_front() {
            apply_change(&mut self.durable, &change).expect("it was applied to the same state before");
        }
    }

    fn change(&mut self, change: Change) -> Result<(), LogError> {
        apply_change(&mut self.current, &change)?;
        self.unsynced.push_back(change);
        Ok(())
    }
}

fn apply_change(groups: &mut Groups, change: &Change) -> Result<(), LogError> {
    match change {
        Change::Write(writes) => {
            for write in writes.iter().filter(|write| !write.is_empty()) {
                groups.entry(write.group).or_default().write(write)?;
            }
        }
        Change::Truncate { group, index, term } => {
            if let Some(g) = groups.get_mut(group) {
                g.truncate(*group, *index, *term)?;
            }
        }
    }
    Ok(())
}

impl MemGroup {
    fn write(&mut self, write: &GroupWrite) -> Result<(), LogError> {
        let corrupt = |reason: String| LogError::Corrupt { group: write.group, reason };
        if write.remove {
            let state = GroupState { replica_id: self.state.replica_id, ..Default::default() };
            *self = Self { removed: true, state, entries: VecDeque::new() };
            return Ok(());
        }
        match write.replica_id {
            Some(id) if self.removed && id <= self.state.replica_id => {
                return Err(corrupt(format!("replica {id} was removed")));
            }
            Some(id) => {
                self.removed = false;
                self.state.replica_id = id;
            }
            None if self.removed => return Err(corrupt("the replica was removed".to_owned())),
            None => {}
        }
        if let Some(mark) = write.snapshot {
            if mark.index < self.state.truncated_index {
                return Err(corrupt(format!("snapshot {} is older than the log", mark.index)));
            }
            self.entries.clear();
            let state = &mut self.state;
            (state.truncated_index, state.truncated_term) = (mark.index, mark.term);
            (state.last_index, state.generation) = (mark.index, mark.generation);
        }
        if let Some(first) = write.entries.first() {
            let state = &mut self.state;
            if first.index <= state.truncated_index || first.index > state.last_index + 1 {
                let range = (state.truncated_index, state.last_index);
                return Err(corrupt(format!("entry {} written into {range:?}", first.index)));
            }
            if write.entries.windows(2).any(|pair| pair[0].index + 1 != pair[1].index) {
                return Err(corrupt("entries are not consecutive".to_owned()));
            }
            self.entries.truncate((first.index - state.truncated_index - 1) as usize);
            self.entries.extend(write.entries.iter().cloned());
            state.last_index = state.truncated_index + self.entries.len() as u64;
        }
        if let Some(hard_state) = &write.hard_state {
            self.state.hard_state = HardState::clone(hard_state);
        }
        if let Some((conf_state, index)) = &write.conf {
            self.state.conf_state = conf_state.clone();
            self.state.conf_index = *index;
        }
        Ok(())
    }

    fn truncate(&mut self, group: u32, index: u64, term: u64) -> Result<(), LogError> {
        if index <= self.state.truncated_index || self.removed {
            return Ok(());
        }
        if self.term(index) != Some(term) {
            return Err(LogError::Missing { group, index });
        }
        self.entries.drain(..(index - self.state.truncated_index) as usize);
        self.state.truncated_index = index;
        self.state.truncated_term = term;
        Ok(())
    }

    fn term(&self, index: u64) -> Option<u64> {
        if index == self.state.truncated_index {
            return Some(self.state.truncated_term);
        }
        let offset = index.checked_sub(self.state.truncated_index + 1)?;
        self.entries.get(offset as usize).map(|e| e.term)
    }
}

impl LogStore for MemLog {
    fn load(&self, group: u32) -> Result<Option<GroupState>, LogError> {
        Ok(self.lock().current.get(&group).filter(|g| !g.removed).map(|g| g.state.clone()))
    }

    fn removed(&self, group: u32) -> Result<Option<u64>, LogError> {
        Ok(self.lock().current.get(&group).filter(|g| g.removed).map(|g| g.state.replica_id))
    }

    fn entries(&self, group: u32, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        let disk = self.lock();
        let g = disk.current.get(&group).ok_or(LogError::Missing { group, index: low })?;
        if low <= g.state.truncated_index {
            return Err(LogError::Compacted { group, index: g.state.truncated_index });
        }
        if low >= high || high > g.state.last_index + 1 {
            return Err(LogError::Missing { group, index: high });
        }
        let start = (low - g.state.truncated_index - 1) as usize;
        let mut bytes = 0u64;
        let wanted = g.entries.iter().skip(start).take((high - low) as usize);
        let taken = wanted.take_while(|e| {
            let first = bytes == 0;
            bytes += e.data.len() as u64 + 16;
            first || bytes <= bytes_max
        });
        Ok(taken.cloned().collect())
    }

    fn write(&self, writes: &[GroupWrite], sync: bool) -> Result<(), LogError> {
        let mut disk = self.lock();
        disk.change(Change::Write(writes.to_vec()))?;
        if sync {
            disk.sync();
        }
        Ok(())
    }

    fn truncate(&self, group: u32, index: u64, term: u64) -> Result<(), LogError> {
        self.lock().change(Change::Truncate { group, index, term })
    }

    fn disk_bytes(&self) -> u64 {
        let disk = self.lock();
        let entries = disk.current.values().flat_map(|g| &g.entries);
        entries.map(|e| e.data.len() as u64 + 16).sum()
    }
}

#[cfg(test)]
mod tests;
