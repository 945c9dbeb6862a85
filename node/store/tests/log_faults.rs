//! Broken disks: torn tails are cut without complaint, everything else is refused and never returned.
mod log_suite;

use carillon_consensus::{GroupWrite, LogError, LogStore};
use carillon_store::{EngineLog, EngineLogOptions, OpenError};
use log_suite::{Candidate, Engine, Rocks, all, append, entries, hard_state};
use std::fs;
use std::path::Path;
use tempfile::tempdir;

const SIZE: usize = 300;

/// Ten synced writes of one entry each; gives the length of the newest file before the last of them.
fn ten_writes<C: Candidate>(dir: &Path) -> u64 {
    let log = C::open(dir).unwrap();
    for index in 1..=9 {
        log.write(&[append(1, entries(1, index..=index, 1, SIZE))], true).unwrap();
    }
    drop(log);
    let length = fs::metadata(C::newest_file(dir)).unwrap().len();
    let log = C::open(dir).unwrap();
    log.write(&[append(1, entries(1, 10..=10, 1, SIZE))], true).unwrap();
    length
}

fn a_torn_tail_is_cut<C: Candidate>() {
    for missing in [1, 3, 17, 100, 250] {
        let dir = tempdir().unwrap();
        ten_writes::<C>(dir.path());
        let file = C::newest_file(dir.path());
        let length = fs::metadata(&file).unwrap().len();
        fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(length - missing).unwrap();

        let log = C::open(dir.path()).unwrap();
        assert_eq!(all(&log, 1).unwrap(), entries(1, 1..=9, 1, SIZE), "{missing} bytes missing");
        log.write(&[append(1, entries(1, 10..=12, 2, SIZE))], true).unwrap();
        drop(log);
        let log = C::open(dir.path()).unwrap();
        assert_eq!(log.load(1).unwrap().unwrap().last_index, 12);
        assert_eq!(log.entries(1, 10, 13, u64::MAX).unwrap(), entries(1, 10..=12, 2, SIZE));
    }
}

/// The candidate must refuse at open or at read.
fn is_refused<C: Candidate>(dir: &Path) -> bool {
    match C::open(dir) {
        Err(OpenError::Damaged { .. } | OpenError::Log(LogError::Corrupt { .. })) => true,
        Err(other) => panic!("wrong kind of error: {other}"),
        Ok(log) => matches!(all(&log, 1), Err(LogError::Corrupt { .. })),
    }
}

fn flips_in_acknowledged_bytes_are_refused<C: Candidate>() {
    let dir = tempdir().unwrap();
    let log = C::open(dir.path()).unwrap();
    for index in 1..=10 {
        log.write(&[append(1, entries(1, index..=index, 1, SIZE))], true).unwrap();
    }
    drop(log);
    let name = C::newest_file(dir.path());
    let intact = fs::read(&name).unwrap();
    // The last write cannot be told from a torn one, so flips stay before it.
    let end = intact.len() - SIZE - 200;
    let mut tried = 0;
    for at in (0..end).step_by(23) {
        let copy = tempdir().unwrap();
        copy_directory(dir.path(), copy.path());
        let mut bytes = intact.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(copy.path().join(name.file_name().unwrap()), &bytes).unwrap();
        assert!(is_refused::<C>(copy.path()), "a flip at byte {at} of {} went unnoticed", intact.len());
        tried += 1;
    }
    assert!(tried > 100);
    assert!(!is_refused::<C>(dir.path()), "the intact log opens");
}

fn copy_directory(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn engine_cuts_a_torn_tail() {
    a_torn_tail_is_cut::<Engine>();
}

#[test]
fn rocks_cuts_a_torn_tail() {
    a_torn_tail_is_cut::<Rocks>();
}

#[test]
fn engine_refuses_flips() {
    flips_in_acknowledged_bytes_are_refused::<Engine>();
}

#[test]
fn rocks_refuses_flips() {
    flips_in_acknowledged_bytes_are_refused::<Rocks>();
}

/// What an unclean stop leaves: space allocated ahead, or garbage where the next write was to be.
#[test]
fn engine_takes_zeros_and_garbage_after_the_last_write_for_a_torn_tail() {
    for tail in [vec![0; 100_000], vec![0xA5; 5000]] {
        let dir = tempdir().unwrap();
        ten_writes::<Engine>(dir.path());
        let file = Engine::newest_file(dir.path());
        let mut bytes = fs::read(&file).unwrap();
        bytes.extend_from_slice(&tail);
        fs::write(&file, &bytes).unwrap();
        assert_eq!(all(&Engine::open(dir.path()).unwrap(), 1).unwrap(), entries(1, 1..=10, 1, SIZE));
    }
}

/// The same wound is a torn tail while nothing follows it, and damage once a later batch knows it was synced.
#[test]
fn engine_tells_damage_from_a_torn_tail_by_the_batches_behind_it() {
    let dir = tempdir().unwrap();
    let before_last = ten_writes::<Engine>(dir.path()) as usize;
    let file = Engine::newest_file(dir.path());
    let mut bytes = fs::read(&file).unwrap();
    bytes[before_last + 200] ^= 1;
    let torn = tempdir().unwrap();
    copy_directory(dir.path(), torn.path());
    fs::write(torn.path().join(file.file_name().unwrap()), &bytes).unwrap();
    assert_eq!(all(&Engine::open(torn.path()).unwrap(), 1).unwrap(), entries(1, 1..=9, 1, SIZE));

    drop(Engine::open(dir.path()).unwrap());
    let mut bytes = fs::read(&file).unwrap();
    bytes[before_last + 200] ^= 1;
    fs::write(&file, &bytes).unwrap();
    assert!(is_refused::<Engine>(dir.path()));
}

/// Unsynced batches may reach the disk in any order; losing one of them is not damage.
#[test]
fn engine_cuts_at_a_lost_unsynced_batch_even_if_a_later_one_is_intact() {
    let dir = tempdir().unwrap();
    let log = Engine::open(dir.path()).unwrap();
    log.write(&[append(1, entries(1, 1..=1, 1, SIZE))], true).unwrap();
    let synced = offset_of_end(dir.path());
    for commit in 1..=3 {
        let write =
            GroupWrite { group: 1, hard_state: Some(hard_state(1, 1, commit)), ..GroupWrite::default() };
        log.write(&[write], false).unwrap();
    }
    drop(log);
    let file = Engine::newest_file(dir.path());
    let mut bytes = fs::read(&file).unwrap();
    bytes[synced + 20] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let log = Engine::open(dir.path()).unwrap();
    let state = log.load(1).unwrap().unwrap();
    assert_eq!((state.hard_state.commit, state.last_index), (0, 1));
}

/// Where the next batch will start: the file is allocated ahead with zeros.
fn offset_of_end(dir: &Path) -> usize {
    let bytes = fs::read(Engine::newest_file(dir)).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1
}

fn small_files() -> EngineLogOptions {
    EngineLogOptions { file_bytes: 32 << 10, purge_threshold_bytes: 128 << 10, recycle_files: true }
}

/// Writes and truncates `rounds` times, purging as a node does; group 9 is written once and then idle.
fn churn(log: &EngineLog, rounds: std::ops::Range<u64>) {
    for round in rounds {
        let first = round * 8 + 1;
        log.write(&[append(1, entries(1, first..=first + 7, 1, 2000))], true).unwrap();
        if round % 4 == 3 {
            log.truncate(1, first, 1).unwrap();
            log.purge().unwrap();
        }
    }
}

#[test]
fn engine_frees_truncated_files_and_keeps_idle_groups() {
    let dir = tempdir().unwrap();
    let options = small_files();
    let log = EngineLog::open(dir.path(), &options).unwrap();
    let idle = GroupWrite {
        group: 9,
        entries: entries(9, 1..=3, 1, 500),
        hard_state: Some(hard_state(4, 2, 3)),
        ..GroupWrite::default()
    };
    log.write(&[idle], true).unwrap();
    churn(&log, 0..200);
    // 200 rounds wrote 3.2 MB.
    assert!(log.disk_bytes() < 600_000, "{} bytes on disk", log.disk_bytes());
    drop(log);
    for rounds in [200..240, 240..280] {
        let log = EngineLog::open(dir.path(), &options).unwrap();
        churn(&log, rounds);
        let state = log.load(9).unwrap().unwrap();
        assert_eq!((state.hard_state.term, state.hard_state.vote, state.last_index), (4, 2, 3));
        assert_eq!(all(&log, 9).unwrap(), entries(9, 1..=3, 1, 500));
    }
    let log = EngineLog::open(dir.path(), &options).unwrap();
    let state = log.load(1).unwrap().unwrap();
    assert_eq!((state.truncated_index, state.last_index), (279 * 8 + 1, 280 * 8));
    assert_eq!(all(&log, 1).unwrap(), entries(1, 279 * 8 + 2..=280 * 8, 1, 2000));
}

/// The engine would replay what is left and say nothing.
#[test]
fn engine_refuses_a_missing_or_shortened_older_file() {
    let dir = tempdir().unwrap();
    let log = EngineLog::open(dir.path(), &small_files()).unwrap();
    for index in 1..=60 {
        let write = GroupWrite {
            group: 1,
            entries: entries(1, index..=index, 1, 2000),
            hard_state: Some(hard_state(index, 1, 0)),
            ..GroupWrite::default()
        };
        log.write(&[write], true).unwrap();
    }
    drop(log);
    let mut files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.to_str().unwrap().ends_with(".raftlog"));
    files.sort();
    assert!(files.len() >= 3);
    let whole = fs::read(&files[1]).unwrap();

    fs::write(&files[1], &whole[..whole.len() - 10]).unwrap();
    assert!(matches!(EngineLog::open(dir.path(), &small_files()), Err(OpenError::Damaged { .. })));
    fs::remove_file(&files[1]).unwrap();
    assert!(matches!(EngineLog::open(dir.path(), &small_files()), Err(OpenError::Damaged { .. })));
    fs::write(&files[1], &whole).unwrap();
    assert!(EngineLog::open(dir.path(), &small_files()).is_ok());
}
