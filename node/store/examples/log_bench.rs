//! Measures the two raft log candidates against each other and against the bare disk.
//!
//! `cargo run --release -p carillon-store --example log_bench -- --dir <empty directory on the log disk>`
//!
//! Each load appends and syncs, truncates behind itself as a node does, and reports what a sync costs. The candidates
//! take turns in rounds, so that a slow phase of a shared machine meets both.
use carillon_consensus::{GroupWrite, LogStore};
use carillon_store::{EngineLog, EngineLogOptions, RocksLog, RocksLogOptions};
use clap::Parser;
use hdrhistogram::Histogram;
use raft::eraftpb::{Entry, HardState};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
struct Arguments {
    /// Where the logs are made; on the disk to be measured.
    #[arg(long)]
    dir: PathBuf,
    /// Seconds of a round.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Rounds for each load and candidate.
    #[arg(long, default_value_t = 4)]
    rounds: u64,
    /// Truncation slack: log bytes of a group that are kept behind the last entry.
    #[arg(long, default_value_t = 4 << 20)]
    slack_bytes: u64,
}

#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    groups: u32,
    entries: u64,
    bytes: usize,
}

const LOADS: [Load; 4] = [
    Load { name: "16 groups x 1 x 4 KiB", groups: 16, entries: 1, bytes: 4 << 10 },
    Load { name: "16 groups x 1 x 64 KiB", groups: 16, entries: 1, bytes: 64 << 10 },
    Load { name: "16 groups x 8 x 256 B", groups: 16, entries: 8, bytes: 256 },
    Load { name: "1 group x 1 x 4 KiB", groups: 1, entries: 1, bytes: 4 << 10 },
];

struct Outcome {
    latency_us: Histogram<u64>,
    elapsed: Duration,
    appended_bytes: u64,
    cpu_seconds: f64,
    written_bytes: u64,
    disk_bytes: u64,
    read_bytes: u64,
    read_time: Duration,
}

impl Default for Outcome {
    fn default() -> Self {
        Self {
            latency_us: Histogram::new(3).expect("three digits"),
            elapsed: Duration::ZERO,
            appended_bytes: 0,
            cpu_seconds: 0.0,
            written_bytes: 0,
            disk_bytes: 0,
            read_bytes: 0,
            read_time: Duration::ZERO,
        }
    }
}

fn main() {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.dir).expect("the directory");
    raw_disk(&arguments.dir, "before");
    println!(
        "| load | log | syncs/s | MB/s | p50 ms | p99 ms | p99.9 ms | CPU s/GiB | disk bytes/byte | left on disk MB | read back MB/s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for load in LOADS {
        let candidates = ["raft-engine", "RocksDB"];
        let mut outcomes = candidates.map(|_| Outcome::default());
        for _ in 0..arguments.rounds {
            for (candidate, outcome) in candidates.iter().zip(&mut outcomes) {
                run(&arguments, candidate, load, outcome);
            }
        }
        for (candidate, outcome) in candidates.iter().zip(&outcomes) {
            print(candidate, load, outcome);
        }
    }
    raw_disk(&arguments.dir, "after");
}

fn run(arguments: &Arguments, candidate: &str, load: Load, outcome: &mut Outcome) {
    let dir = arguments.dir.join(candidate);
    let _ = std::fs::remove_dir_all(&dir);
    let (cpu, written) = (cpu_seconds(), written_bytes());
    match candidate {
        "raft-engine" => {
            let log = EngineLog::open(&dir, &EngineLogOptions::default()).expect("opens");
            drive(&log, &|| drop(log.purge().expect("purge")), arguments, load, outcome);
        }
        _ => {
            let log = RocksLog::open(&dir, &RocksLogOptions::default()).expect("opens");
            drive(&log, &|| (), arguments, load, outcome);
        }
    }
    // Closed by now: work in the background is counted too.
    outcome.cpu_seconds += cpu_seconds() - cpu;
    outcome.written_bytes += written_bytes() - written;
    std::fs::remove_dir_all(&dir).expect("removed");
}

fn drive(log: &dyn LogStore, purge: &dyn Fn(), arguments: &Arguments, load: Load, outcome: &mut Outcome) {
    // Sealed commands look random; one random block serves for all entries, at changing offsets.
    let noise: Vec<u8> = (0..load.bytes * 2).map(|_| rand::random()).collect();
    let noise = bytes::Bytes::from(noise);
    let slack_entries = arguments.slack_bytes / load.bytes as u64 + 1;
    let mut next = 1;
    let mut truncated = 0;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(arguments.seconds) {
        let writes: Vec<GroupWrite> =
            (0..load.groups).map(|group| write_of(load, &noise, group, next)).collect();
        let begun = Instant::now();
        log.write(&writes, true).expect("write");
        outcome.latency_us.record(begun.elapsed().as_micros() as u64).expect("in range");
        next += load.entries;
        // A node truncates when a flush of the state is done: now and then, a large step.
        if next - truncated > 2 * slack_entries {
            truncated = next - slack_entries;
            for group in 0..load.groups {
                log.truncate(group, truncated, 1).expect("truncate");
            }
            purge();
        }
    }
    outcome.elapsed += start.elapsed();
    outcome.appended_bytes += (next - 1) * u64::from(load.groups) * load.bytes as u64;
    outcome.disk_bytes = outcome.disk_bytes.max(log.disk_bytes());
    let begun = Instant::now();
    for group in 0..load.groups {
        let mut low = truncated + 1;
        while low < next {
            let page = log.entries(group, low, next, 1 << 20).expect("readable");
            low += page.len() as u64;
            outcome.read_bytes += page.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
        }
    }
    outcome.read_time += begun.elapsed();
}

fn write_of(load: Load, noise: &bytes::Bytes, group: u32, next: u64) -> GroupWrite {
    let entries = (next..next + load.entries)
        .map(|index| {
            let from = (index as usize * 37 + group as usize) % load.bytes;
            Entry { index, term: 1, data: noise.slice(from..from + load.bytes), ..Entry::default() }
        })
        .collect();
    let hard_state = HardState { term: 1, vote: 1, commit: next - 1, ..HardState::default() };
    GroupWrite { group, entries, hard_state: Some(hard_state), ..GroupWrite::default() }
}

fn print(candidate: &str, load: Load, outcome: &Outcome) {
    let seconds = outcome.elapsed.as_secs_f64();
    let appended = outcome.appended_bytes as f64;
    let ms = |quantile: f64| outcome.latency_us.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "| {} | {candidate} | {:.0} | {:.1} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} | {:.0} |",
        load.name,
        outcome.latency_us.len() as f64 / seconds,
        appended / 1e6 / seconds,
        ms(0.5),
        ms(0.99),
        ms(0.999),
        outcome.cpu_seconds / (appended / f64::from(1 << 30)),
        outcome.written_bytes as f64 / appended,
        outcome.disk_bytes as f64 / 1e6,
        outcome.read_bytes as f64 / 1e6 / outcome.read_time.as_secs_f64(),
    );
}

/// The machine itself: 64 KiB append and fdatasync into a growing file, and over allocated space.
fn raw_disk(dir: &Path, when: &str) {
    for (name, rewrite) in [("append", false), ("overwrite", true)] {
        let path = dir.join("raw");
        let mut file = std::fs::File::create(&path).expect("a file");
        let block = [7u8; 64 << 10];
        if rewrite {
            for _ in 0..2000 {
                file.write_all(&block).expect("write");
            }
            file.sync_all().expect("sync");
            drop(file);
            file = std::fs::OpenOptions::new().write(true).open(&path).expect("the file");
        }
        let mut latency_us = Histogram::<u64>::new(3).expect("three digits");
        let start = Instant::now();
        for _ in 0..2000 {
            if start.elapsed() > Duration::from_secs(5) {
                break;
            }
            let begun = Instant::now();
            file.write_all(&block).expect("write");
            file.sync_data().expect("fdatasync");
            latency_us.record(begun.elapsed().as_micros() as u64).expect("in range");
        }
        println!(
            "raw 64 KiB {name} + fdatasync, {when}: p50 {:.2} ms, p99 {:.2} ms, {:.0}/s\n",
            latency_us.value_at_quantile(0.5) as f64 / 1000.0,
            latency_us.value_at_quantile(0.99) as f64 / 1000.0,
            latency_us.len() as f64 / start.elapsed().as_secs_f64(),
        );
        std::fs::remove_file(&path).expect("removed");
    }
}

/// User and system time of this process, from its own stat file (clock ticks are 100 a second on Linux).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("proc");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / 100.0
}

/// Bytes that this process caused to be sent to the disk.
fn written_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").expect("proc");
    let line = io.lines().find(|line| line.starts_with("write_bytes:")).expect("the counter");
    line["write_bytes:".len()..].trim().parse().expect("a number")
}
