//! Flipped bits in real files: found, named, remembered, and the other replicas go on.
use carillon_consensus::{GroupWrite, LogError, LogStore, bootstrap_write};
use carillon_core::tables::{ReadTables as _, Tables as _};
use carillon_proto::internal::AppliedRecord;
use carillon_store::{EngineLog, EngineLogOptions, Family, Replica, StateDb, StateError, StateOptions};
use prost::Message as _;
use raft::eraftpb::{Entry, HardState};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::tempdir;

const ROWS: u32 = 400;

fn key(number: u32) -> Vec<u8> {
    [b"M".as_slice(), &number.to_be_bytes()].concat()
}

fn fill(state: &StateDb, group: u32) {
    let replica = state.replica(group).unwrap();
    let mut batch = replica.batch().unwrap();
    for number in 0..ROWS {
        batch.put(key(number), vec![(number + group) as u8; 300]);
    }
    let record = AppliedRecord { index: 7, ..AppliedRecord::default() };
    batch.put(b"A".to_vec(), record.encode_to_vec());
    batch.commit().unwrap();
    state.flush(group).unwrap();
}

/// The whole of a replica, in pieces; the number of pieces and of bytes.
fn scrub(replica: &Arc<Replica>) -> Result<(u32, u64), StateError> {
    let (mut from, mut pieces, mut bytes) = (Vec::new(), 0, 0);
    loop {
        let position = replica.scrub(&from, 16 << 10)?;
        pieces += 1;
        bytes += position.bytes;
        match position.next {
            Some(next) => from = next,
            None => return Ok((pieces, bytes)),
        }
    }
}

fn tables(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "sst")).collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_pass_reads_every_row_and_finds_a_flip_wherever_it_is() {
    let dir = tempdir().unwrap();
    let state = StateDb::open(dir.path(), &StateOptions::default()).unwrap();
    fill(&state, 1);
    let (pieces, bytes) = scrub(&state.replica(1).unwrap()).unwrap();
    assert!(bytes >= u64::from(ROWS) * 305 && pieces >= 7, "{pieces} pieces, {bytes} bytes");
    drop(state);
    let file = tables(dir.path()).remove(0);
    let intact = fs::read(&file).unwrap();
    // Blocks of rows; the end of a table holds its index, which a damaged table cannot be opened without.
    for at in (0..ROWS as usize * 300).step_by(9_973) {
        flip(&file, at);
        let state = StateDb::open(dir.path(), &StateOptions::default()).unwrap();
        let error = scrub(&state.replica(1).unwrap()).unwrap_err();
        assert!(error.is_damage(), "{error}");
        drop(state);
        fs::write(&file, &intact).unwrap();
    }
    let state = StateDb::open(dir.path(), &StateOptions::default()).unwrap();
    scrub(&state.replica(1).unwrap()).unwrap();
}

#[test]
fn a_damaged_replica_is_remembered_until_it_is_destroyed_and_the_others_are_well() {
    let dir = tempdir().unwrap();
    let state = StateDb::open(dir.path(), &StateOptions::default()).unwrap();
    fill(&state, 1);
    let first = tables(dir.path());
    fill(&state, 2);
    drop(state);
    flip(&first[0], 5_000);

    let state = StateDb::open(dir.path(), &StateOptions::default()).unwrap();
    let error = state.replica(1).unwrap().scrub(b"", u64::MAX).unwrap_err();
    // As a compaction would report it: only the text names the table.
    let family = state.note_damage(None, &error).unwrap();
    assert_eq!(family, Some(Family { group: 1, generation: 1 }), "{error}");
    assert_eq!(
        state.note_damage(None, &StateError::Database("full".to_owned())).unwrap(),
        None,
        "that is no damage"
    );
    assert!(state.replica(2).unwrap().get(&key(5)).unwrap().is_some());
    drop(state);

    let state = StateDb::open(dir.path(), &StateOptions::default()).unwrap();
    let damaged = state.damaged();
    assert_eq!(damaged.keys().map(|family| family.group).collect::<Vec<_>>(), [1]);
    assert!(damaged.values().all(|reason| reason.contains(".sst")), "{damaged:?}");
    fill(&state, 2);
    scrub(&state.replica(2).unwrap()).unwrap();
    state.destroy(1).unwrap();
    assert!(state.damaged().is_empty());
    drop(state);
    assert!(StateDb::open(dir.path(), &StateOptions::default()).unwrap().damaged().is_empty());
}

/// One row a block, all blocks of one length. Gives the start of each block and that length.
fn blocks(file: &Path, rows: u32) -> (Vec<usize>, usize) {
    let bytes = fs::read(file).unwrap();
    // Lengths of what is shared with the key before, of the key's rest and of the value, one, one and two bytes.
    let head = 4;
    let start = |number: u32| bytes.windows(5).position(|window| window == key(number)).unwrap() - head;
    let starts: Vec<usize> = (0..rows).map(start).collect();
    let length = starts[1] - starts[0];
    assert!(starts.windows(2).all(|pair| pair[1] - pair[0] == length), "{starts:?}");
    (starts, length)
}

#[test]
fn a_block_that_was_written_to_another_place_is_refused() {
    let dir = tempdir().unwrap();
    let state = StateDb::open(dir.path(), &StateOptions::default()).unwrap();
    let replica = state.replica(1).unwrap();
    let mut batch = replica.batch().unwrap();
    for number in 0..20 {
        batch.put(key(number), vec![200 + number as u8; 9_000]);
    }
    batch.put(b"A".to_vec(), AppliedRecord { index: 7, ..AppliedRecord::default() }.encode_to_vec());
    batch.commit().unwrap();
    state.flush(1).unwrap();
    drop((replica, state));
    let file = tables(dir.path()).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let (starts, length) = blocks(&file, 20);
    let intact = fs::read(&file).unwrap();
    // Two blocks change places; or one is where another should be. Each is intact by itself.
    for (from, to, swap) in [(3, 4, true), (5, 12, true), (2, 9, false)] {
        let mut bytes = intact.clone();
        let (from, to) = (starts[from], starts[to]);
        bytes[to..to + length].copy_from_slice(&intact[from..from + length]);
        if swap {
            bytes[from..from + length].copy_from_slice(&intact[to..to + length]);
        }
        fs::write(&file, bytes).unwrap();
        let state = StateDb::open(dir.path(), &StateOptions::default()).unwrap();
        let error = scrub(&state.replica(1).unwrap()).unwrap_err();
        assert!(error.is_damage() && error.to_string().contains("checksum"), "{error}");
    }
}

fn entry(index: u64, bytes: usize) -> Entry {
    Entry { term: 1, index, data: vec![index as u8; bytes].into(), ..Entry::default() }
}

fn append(group: u32, index: u64) -> GroupWrite {
    let hard_state = HardState { term: 1, vote: 1, commit: index, ..HardState::default() };
    GroupWrite {
        group,
        entries: vec![entry(index, 900)],
        hard_state: Some(hard_state),
        ..GroupWrite::default()
    }
}

/// A log of groups 1 and 2, each write for one of them; gives the file and the place of the entry of `group` and `index`.
fn log_with_entries(dir: &Path, group: u32, index: u64) -> (PathBuf, usize) {
    let log = EngineLog::open(dir, &EngineLogOptions::default()).unwrap();
    log.write(&[bootstrap_write(1, &[1]), bootstrap_write(2, &[1])], true).unwrap();
    let mut place = 0;
    let file = dir.join("0000000000000001.raftlog");
    let length = || {
        let bytes = fs::read(&file).unwrap();
        bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1
    };
    for number in 1..=20 {
        for of in [1, 2] {
            let before = length();
            log.write(&[append(of, number)], true).unwrap();
            if (of, number) == (group, index) {
                place = before;
            }
        }
    }
    (file, place)
}

fn all(log: &EngineLog, group: u32) -> Result<usize, LogError> {
    log.entries(group, 1, 21, u64::MAX).map(|entries| entries.len())
}

#[test]
fn a_flip_in_an_entry_takes_only_its_group_out_of_service() {
    let dir = tempdir().unwrap();
    let (file, place) = log_with_entries(dir.path(), 2, 9);
    flip(&file, place + 400);
    let log = EngineLog::open(dir.path(), &EngineLogOptions::default()).unwrap();
    let damaged = log.damaged();
    assert_eq!(damaged.keys().copied().collect::<Vec<_>>(), [2]);
    assert!(damaged[&2].contains("entry 9") && damaged[&2].contains("raftlog at byte"), "{}", damaged[&2]);
    assert_eq!(all(&log, 1).unwrap(), 20);
    assert!(matches!(all(&log, 2), Err(LogError::Corrupt { group: 2, .. })), "never served");
    // The others are written to and found again.
    log.write(&[append(1, 21)], true).unwrap();
    drop(log);
    let log = EngineLog::open(dir.path(), &EngineLogOptions::default()).unwrap();
    assert_eq!(log.load(1).unwrap().unwrap().last_index, 21);
    assert_eq!(log.damaged().len(), 1, "and the damage, too");
}

#[test]
fn damage_in_entries_that_nobody_needs_any_more_fences_nobody() {
    let dir = tempdir().unwrap();
    let (file, place) = log_with_entries(dir.path(), 2, 9);
    let log = EngineLog::open(dir.path(), &EngineLogOptions::default()).unwrap();
    log.truncate(2, 12, 1).unwrap();
    log.write(&[append(1, 21)], true).unwrap();
    drop(log);
    flip(&file, place + 400);
    let log = EngineLog::open(dir.path(), &EngineLogOptions::default()).unwrap();
    assert!(log.damaged().is_empty());
    assert_eq!(log.entries(2, 13, 21, u64::MAX).unwrap().len(), 8);
}

#[test]
fn damage_outside_of_entries_refuses_the_whole_log() {
    let dir = tempdir().unwrap();
    let (file, place) = log_with_entries(dir.path(), 2, 9);
    // The header of the batch: from here on nothing can be told.
    flip(&file, place + 6);
    let error = EngineLog::open(dir.path(), &EngineLogOptions::default()).err().unwrap();
    assert!(error.to_string().contains("raft log is damaged"), "{error}");
}
