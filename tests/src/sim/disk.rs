//! The simulated disk of one node's raft log: [`MemLog`] (a durable plane and unsynced writes) plus what disks do.
//!
//! The unsynced tail is also kept as the bytes that a log file would hold, so that a power loss can tear it at a sector:
//! after a crash the tail is read back record by record, and the first one whose checksum does not fit ends the log,
//! exactly as a log that tolerates a torn tail must do. A failed sync loses the pages that it was to write.
use carillon_consensus::{GroupState, GroupWrite, LogError, LogStore, MemLog};
use protobuf::Message as _;
use raft::eraftpb::Entry;
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

/// What a disk writes whole. The unsynced tail begins anywhere in one.
pub const SECTOR: u64 = 512;
/// Length and checksum before each record.
const HEADER: usize = 8;

/// What was left of the unsynced tail after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    pub kept: usize,
    pub lost: usize,
    /// The first lost record was there in part.
    pub torn: bool,
}

/// See the module documentation.
#[derive(Default)]
pub struct SimDisk {
    log: MemLog,
    /// The unsynced writes as bytes, oldest first; as many as `log` has.
    tail: Mutex<VecDeque<Vec<u8>>>,
    full: AtomicBool,
    /// Durable entries (group, index) that cannot be read any more, and whether nobody notices.
    rotten: Mutex<BTreeSet<(u32, u64)>>,
    unchecked: AtomicBool,
}

impl SimDisk {
    /// A durable entry rots; `pick` says which. False if there is none.
    pub fn rot(&self, group: u32, pick: u64) -> bool {
        let Some(durable) = self.durable(group) else { return false };
        let (first, last) = (durable.truncated_index + 1, durable.last_index);
        let found = first <= last && self.log.durable_term(group, last).is_some();
        if found {
            self.rotten().insert((group, first + pick % (last - first + 1)));
        }
        found
    }

    /// Planted bug: nobody looks at checksums.
    pub fn do_not_check(&self) {
        self.unchecked.store(true, Ordering::Relaxed);
    }

    pub fn is_rotten(&self) -> bool {
        !self.rotten().is_empty()
    }

    pub fn is_rotten_in(&self, group: u32) -> bool {
        self.rotten().iter().any(|(of, _)| *of == group)
    }

    fn rotten(&self) -> MutexGuard<'_, BTreeSet<(u32, u64)>> {
        self.rotten.lock().expect("one thread")
    }

    /// What is written anew, cut off or removed is not rotten any more.
    fn heal(&self, write: &GroupWrite) {
        let whole = write.remove || write.snapshot.is_some();
        let from = write.entries.first().map_or(u64::MAX, |entry| entry.index);
        self.rotten().retain(|(group, index)| *group != write.group || (!whole && *index < from));
    }

    /// Writes fail from now on, or not any more.
    pub fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    /// Makes everything written durable.
    pub fn sync(&self) {
        self.log.sync();
        self.tail.lock().expect("one thread").clear();
    }

    /// Bytes that a power loss can take.
    pub fn unsynced_bytes(&self) -> usize {
        self.tail.lock().expect("one thread").iter().map(Vec::len).sum()
    }

    /// Power loss: the first `bytes` of the unsynced tail had reached the disk.
    pub fn crash(&self, bytes: usize) -> Tail {
        let records = std::mem::take(&mut *self.tail.lock().expect("one thread"));
        let mut file: Vec<u8> = records.iter().flatten().copied().collect();
        file.truncate(bytes);
        let (kept, torn) = read_back(&file);
        self.log.crash(kept);
        Tail { kept, lost: records.len() - kept, torn }
    }

    /// What `load` would give after a crash now.
    pub fn durable(&self, group: u32) -> Option<GroupState> {
        self.log.durable(group)
    }

    /// Term of an entry that would survive a crash now.
    pub fn durable_term(&self, group: u32, index: u64) -> Option<u64> {
        self.log.durable_term(group, index)
    }

    fn remember(&self, record: Vec<u8>) {
        let mut whole = Vec::with_capacity(record.len() + HEADER);
        whole.extend_from_slice(&(record.len() as u32).to_be_bytes());
        whole.extend_from_slice(&crc32fast::hash(&record).to_be_bytes());
        whole.extend_from_slice(&record);
        self.tail.lock().expect("one thread").push_back(whole);
    }

    fn room(&self) -> Result<(), LogError> {
        match self.full.load(Ordering::Relaxed) {
            true => Err(LogError::Io("no space left on device".to_owned())),
            false => Ok(()),
        }
    }
}

/// Whole records from the start, and whether something follows that is none.
fn read_back(file: &[u8]) -> (usize, bool) {
    let (mut at, mut kept) = (0, 0);
    while let Some(header) = file.get(at..at + HEADER) {
        let number = |range: std::ops::Range<usize>| {
            u32::from_be_bytes(header[range].try_into().expect("four bytes")) as usize
        };
        let (length, checksum) = (number(0..4), number(4..8));
        match file.get(at + HEADER..at + HEADER + length) {
            Some(record) if crc32fast::hash(record) as usize == checksum => {
                kept += 1;
                at += HEADER + length;
            }
            _ => break,
        }
    }
    (kept, at < file.len())
}

fn encode(writes: &[GroupWrite]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for write in writes {
        bytes.extend_from_slice(&write.group.to_be_bytes());
        for entry in &write.entries {
            bytes.extend_from_slice(&entry.write_to_bytes().expect("memory does not fail"));
        }
        if let Some(hard_state) = &write.hard_state {
            bytes.extend_from_slice(&hard_state.write_to_bytes().expect("memory does not fail"));
        }
    }
    bytes
}

impl LogStore for SimDisk {
    fn load(&self, group: u32) -> Result<Option<GroupState>, LogError> {
        self.log.load(group)
    }

    fn removed(&self, group: u32) -> Result<Option<u64>, LogError> {
        self.log.removed(group)
    }

    fn entries(&self, group: u32, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        let entries = self.log.entries(group, low, high, bytes_max)?;
        let rotten = self.rotten();
        if self.unchecked.load(Ordering::Relaxed) {
            let flipped = |mut entry: Entry| {
                if rotten.contains(&(group, entry.index)) && !entry.data.is_empty() {
                    let mut data = entry.data.to_vec();
                    data.iter_mut().rev().take(1).for_each(|byte| *byte ^= 1);
                    entry.data = data.into();
                }
                entry
            };
            return Ok(entries.into_iter().map(flipped).collect());
        }
        match entries.iter().find(|entry| rotten.contains(&(group, entry.index))) {
            Some(entry) => Err(LogError::Damaged(format!("entry {} of group {group}", entry.index))),
            None => Ok(entries),
        }
    }

    fn write(&self, writes: &[GroupWrite], sync: bool) -> Result<(), LogError> {
        self.room()?;
        self.log.write(writes, false)?;
        writes.iter().for_each(|write| self.heal(write));
        self.remember(encode(writes));
        if sync {
            self.sync();
        }
        Ok(())
    }

    fn truncate(&self, group: u32, index: u64, term: u64) -> Result<(), LogError> {
        self.room()?;
        self.log.truncate(group, index, term)?;
        self.rotten().retain(|(of, at)| *of != group || *at > index);
        self.remember([u64::from(group), index, term].iter().flat_map(|n| n.to_be_bytes()).collect());
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        self.log.disk_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_consensus::bootstrap_write;

    fn write(index: u64, bytes: usize) -> GroupWrite {
        let entry = Entry { index, term: 1, data: vec![7; bytes].into(), ..Default::default() };
        GroupWrite { group: 1, entries: vec![entry], ..Default::default() }
    }

    fn three_unsynced() -> SimDisk {
        let disk = SimDisk::default();
        disk.write(&[bootstrap_write(1, &[1])], true).unwrap();
        for index in 1..=3 {
            disk.write(&[write(index, 700)], false).unwrap();
        }
        disk
    }

    #[test]
    fn a_crash_keeps_whole_records_and_sees_the_torn_one() {
        let disk = three_unsynced();
        assert_eq!(disk.crash(usize::MAX), Tail { kept: 3, lost: 0, torn: false });
        let disk = three_unsynced();
        assert_eq!(disk.crash(1600), Tail { kept: 2, lost: 1, torn: true });
        assert_eq!(disk.load(1).unwrap().unwrap().last_index, 2);
        let disk = three_unsynced();
        assert_eq!(disk.crash(511), Tail { kept: 0, lost: 3, torn: true });
        let disk = three_unsynced();
        assert_eq!(disk.crash(0), Tail { kept: 0, lost: 3, torn: false });
        assert_eq!(disk.load(1).unwrap().unwrap().last_index, 0);
    }

    #[test]
    fn what_was_synced_survives_and_a_full_disk_refuses() {
        let disk = three_unsynced();
        disk.sync();
        assert_eq!(disk.crash(0), Tail { kept: 0, lost: 0, torn: false });
        assert_eq!(disk.load(1).unwrap().unwrap().last_index, 3);
        disk.set_full(true);
        assert!(matches!(disk.write(&[write(4, 1)], false), Err(LogError::Io(_))));
        disk.set_full(false);
        disk.write(&[write(4, 1)], false).unwrap();
    }
}
