//! What the log tests share: the two candidates behind one trait, and makers of writes.
#![allow(dead_code)] // each test binary uses a part
use carillon_consensus::{GroupState, GroupWrite, LogError, LogStore, MemLog};
use carillon_proto::internal::ConfState;
use carillon_store::{EngineLog, EngineLogOptions, OpenError, RocksLog, RocksLogOptions};
use raft::eraftpb::{Entry, HardState};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub trait Candidate {
    type Log: LogStore;
    /// Ending of the files that appends go to.
    const SUFFIX: &'static str;

    fn open(dir: &Path) -> Result<Self::Log, OpenError>;

    /// The file that the last write went to.
    fn newest_file(dir: &Path) -> PathBuf {
        let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_str().unwrap().ends_with(Self::SUFFIX))
            .collect();
        files.sort();
        files.pop().expect("a log file")
    }
}

pub struct Engine;
pub struct Rocks;

impl Candidate for Engine {
    type Log = EngineLog;
    const SUFFIX: &'static str = ".raftlog";

    fn open(dir: &Path) -> Result<EngineLog, OpenError> {
        EngineLog::open(dir, &EngineLogOptions::default())
    }
}

impl Candidate for Rocks {
    type Log = RocksLog;
    const SUFFIX: &'static str = ".log";

    fn open(dir: &Path) -> Result<RocksLog, OpenError> {
        RocksLog::open(dir, &RocksLogOptions { write_buffer_bytes: 4 << 20, ..RocksLogOptions::default() })
    }
}

/// The log of the consensus tests; a directory names one that lives as long as the test process.
pub struct Memory;
pub struct SharedMemLog(Arc<MemLog>);

static MEMORY_LOGS: Mutex<BTreeMap<PathBuf, Arc<MemLog>>> = Mutex::new(BTreeMap::new());

impl Candidate for Memory {
    type Log = SharedMemLog;
    const SUFFIX: &'static str = "";

    fn open(dir: &Path) -> Result<SharedMemLog, OpenError> {
        let log = MEMORY_LOGS.lock().unwrap().entry(dir.to_path_buf()).or_default().clone();
        Ok(SharedMemLog(log))
    }
}

impl LogStore for SharedMemLog {
    fn load(&self, group: u32) -> Result<Option<GroupState>, LogError> {
        self.0.load(group)
    }

    fn removed(&self, group: u32) -> Result<Option<u64>, LogError> {
        self.0.removed(group)
    }

    fn entries(&self, group: u32, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        self.0.entries(group, low, high, bytes_max)
    }

    fn write(&self, writes: &[GroupWrite], sync: bool) -> Result<(), LogError> {
        self.0.write(writes, sync)
    }

    fn truncate(&self, group: u32, index: u64, term: u64) -> Result<(), LogError> {
        self.0.truncate(group, index, term)
    }

    fn disk_bytes(&self) -> u64 {
        self.0.disk_bytes()
    }
}

/// Bytes that differ for every group, index and term.
pub fn payload(group: u32, index: u64, term: u64, size: usize) -> Vec<u8> {
    let mut state = u64::from(group).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ index.rotate_left(32) ^ term;
    (0..size)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

pub fn entry(group: u32, index: u64, term: u64, size: usize) -> Entry {
    Entry { index, term, data: payload(group, index, term, size).into(), ..Entry::default() }
}

pub fn entries(group: u32, range: std::ops::RangeInclusive<u64>, term: u64, size: usize) -> Vec<Entry> {
    range.map(|index| entry(group, index, term, size)).collect()
}

pub fn append(group: u32, entries: Vec<Entry>) -> GroupWrite {
    GroupWrite { group, entries, ..GroupWrite::default() }
}

pub fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit, ..HardState::default() }
}

pub fn conf(voters: &[u64]) -> ConfState {
    ConfState { voters: voters.to_vec(), ..ConfState::default() }
}

pub fn all(log: &impl LogStore, group: u32) -> Result<Vec<Entry>, LogError> {
    let state = log.load(group)?.expect("the group exists");
    log.entries(group, state.truncated_index + 1, state.last_index + 1, u64::MAX)
}
