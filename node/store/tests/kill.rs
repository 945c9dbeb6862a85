//! SIGKILL: a child process writes and tells what was acknowledged, the parent kills it and looks what is there.
//!
//! No test harness: the same binary is the child when it gets arguments.
mod log_suite;

use carillon_consensus::{GroupWrite, LogStore};
use carillon_core::tables::{ReadTables, Tables};
use carillon_proto::internal::AppliedRecord;
use carillon_store::{StateDb, StateOptions};
use log_suite::{Candidate, Engine, Rocks, append, entries, hard_state};
use prost::Message;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::tempdir;

const GROUPS: u32 = 4;
const ROUNDS: u64 = 5;
const LINES_BEFORE_KILL: usize = 60;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["child", "engine", dir] => log_child::<Engine>(Path::new(dir)),
        ["child", "rocks", dir] => log_child::<Rocks>(Path::new(dir)),
        ["child", "state", dir] => state_child(Path::new(dir)),
        // Whatever else is a filter or an option of the usual harness.
        _ => {
            log_survives_kill::<Engine>("engine");
            log_survives_kill::<Rocks>("rocks");
            state_survives_kill();
        }
    }
}

/// Starts the child, reads its lines, kills it after some, and gives all lines that it wrote.
fn run_and_kill(kind: &str, dir: &Path) -> Vec<Vec<u64>> {
    let binary = std::env::current_exe().expect("own path");
    let mut child = Command::new(binary)
        .args(["child", kind, dir.to_str().expect("a UTF-8 path")])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut seen = Vec::new();
    for _ in 0..LINES_BEFORE_KILL {
        seen.push(lines.next().expect("the child goes on").expect("readable"));
    }
    child.kill().expect("kill");
    seen.extend(lines.map(|line| line.expect("readable")));
    assert!(!child.wait().expect("reaped").success(), "it was killed, it did not end");
    seen.iter().map(|line| line.split(' ').map(|word| word.parse().expect("a number")).collect()).collect()
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The parent is gone or has killed us when this fails.
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

fn size_of(index: u64) -> usize {
    (index * 7919 % 6000) as usize
}

fn log_child<C: Candidate>(dir: &Path) {
    let log = C::open(dir).expect("the log opens");
    let mut next = log.load(0).expect("load").map_or(0, |state| state.last_index) + 1;
    loop {
        let writes: Vec<GroupWrite> = (0..GROUPS)
            .map(|group| GroupWrite {
                hard_state: Some(hard_state(1, 1, next)),
                ..append(group, entries(group, next..=next, 1, size_of(next)))
            })
            .collect();
        log.write(&writes, true).expect("write");
        say(&format!("{next}"));
        next += 1;
        // Unsynced bytes in flight when the kill comes.
        let commit =
            GroupWrite { group: 1, hard_state: Some(hard_state(1, 1, next)), ..GroupWrite::default() };
        log.write(&[commit], false).expect("write");
    }
}

fn log_survives_kill<C: Candidate>(kind: &str) {
    let dir = tempdir().expect("a directory");
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        let seen = run_and_kill(kind, dir.path());
        assert!(seen[0][0] > acknowledged, "the child went on where the last one stopped");
        acknowledged = seen.last().expect("lines")[0];
        let log = C::open(dir.path()).expect("opens after a kill");
        let state = log.load(0).expect("load").expect("the group exists");
        assert!(state.last_index >= acknowledged, "{} < {acknowledged}", state.last_index);
        for group in 0..GROUPS {
            let own = log.load(group).expect("load").expect("the group exists");
            assert_eq!(own.last_index, state.last_index, "a write is atomic over groups");
            assert!(own.hard_state.commit >= own.last_index, "hard state and entries are one write");
            let stored = log.entries(group, 1, own.last_index + 1, u64::MAX).expect("readable");
            for (entry, index) in stored.iter().zip(1..) {
                assert_eq!(*entry, entries(group, index..=index, 1, size_of(index))[0]);
            }
        }
        println!("kill: {kind} round {round}: {acknowledged} acknowledged, {} found", state.last_index);
    }
}

/// What index `index` does to the tables; the model and the database do the same.
fn apply(tables: &mut dyn Tables, index: u64) {
    tables.put(
        format!("M{:04}", index * 31 % 700).into_bytes(),
        log_suite::payload(1, index, 0, size_of(index)),
    );
    tables.delete(format!("M{:04}", index * 17 % 700).into_bytes());
    tables.put(b"A".to_vec(), AppliedRecord { index, ..AppliedRecord::default() }.encode_to_vec());
}

fn small_buffers() -> StateOptions {
    StateOptions { waiting_bytes: 256 << 10, share_bytes_min: 64 << 10, ..StateOptions::default() }
}

fn state_child(dir: &Path) {
    let state = StateDb::open(dir, &small_buffers()).expect("the database opens");
    let replica = state.replica(1).expect("replica");
    let mut index = replica.applied().expect("readable").map_or(0, |applied| applied.index);
    loop {
        let mut batch = replica.batch().expect("batch");
        for _ in 0..1 + index % 5 {
            index += 1;
            apply(&mut batch, index);
        }
        batch.commit().expect("commit");
        if index.is_multiple_of(7) {
            let durable = state.flush(1).expect("flush").expect("applied");
            say(&format!("{index} {}", durable.index));
        }
    }
}

fn state_survives_kill() {
    let dir = tempdir().expect("a directory");
    let mut last_durable = 0;
    for round in 0..ROUNDS {
        let seen = run_and_kill("state", dir.path());
        for line in &seen {
            assert_eq!(line[0], line[1], "a flush that returned covers everything before it");
        }
        let flushed = seen.last().expect("lines")[1];
        let state = StateDb::open(dir.path(), &small_buffers()).expect("opens after a kill");
        let durable = state.durable_applied(1).expect("readable").expect("applied").index;
        assert!(durable >= flushed && durable > last_durable, "{durable} {flushed} {last_durable}");
        let mut model = carillon_core::tables::MemTables::default();
        for index in 1..=durable {
            apply(&mut model, index);
        }
        let mut rows = BTreeMap::new();
        let replica = state.replica(1).expect("replica");
        replica
            .scan(&[], &[0xff], &mut |key, value| {
                rows.insert(key.to_vec(), bytes::Bytes::copy_from_slice(value)).is_none()
            })
            .expect("readable");
        assert!(rows == *model.rows(), "rows are those of index {durable}");
        println!("kill: state round {round}: durable {durable}");
        last_durable = durable;
    }
}
