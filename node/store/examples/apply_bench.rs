//! Measures the state database under an apply-like load: what one message costs.
//!
//! `cargo run --release -p carillon-store --example apply_bench -- --dir <empty directory>`
//!
//! Each message reads its status and idempotency rows (absent, as for an accept) and puts payload (700 B), status (120 B), due
//! (40 B), idempotency (40 B) and its part of an event block; 512 messages and the applied record make one commit.
use carillon_core::tables::{ReadTables, Tables};
use carillon_proto::internal::AppliedRecord;
use carillon_store::{FlushPacer, PacerLimits, StateDb, StateOptions};
use clap::Parser;
use prost::Message;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const COMMANDS: usize = 512;

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long, default_value_t = 1_000_000)]
    messages: usize,
    #[arg(long, default_value_t = 16)]
    groups: u32,
}

fn main() {
    let arguments = Arguments::parse();
    let dir = arguments.dir.join("state");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&arguments.dir).expect("the directory");
    let state = StateDb::open(&dir, &StateOptions::default()).expect("opens");
    let replicas: Vec<_> =
        (0..arguments.groups).map(|group| state.replica(group).expect("replica")).collect();
    let noise: Vec<u8> = (0..4096).map(|_| rand::random()).collect();
    let mut pacer = FlushPacer::new(PacerLimits::default());
    let (mut apply, mut commit, mut flush) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let mut worst_commit = Duration::ZERO;
    let (cpu, own_cpu) = (cpu_seconds("self"), cpu_seconds("thread-self"));
    let start = Instant::now();
    for number in 0..arguments.messages / COMMANDS {
        let group = number as u32 % arguments.groups;
        let begun = Instant::now();
        let mut batch = replicas[group as usize].batch().expect("batch");
        for command in 0..COMMANDS {
            one_message(&mut batch, &noise, (number * COMMANDS + command) as u64);
        }
        let record =
            AppliedRecord { index: number as u64, digest: vec![0; 32].into(), ..AppliedRecord::default() };
        batch.put(b"A".to_vec(), record.encode_to_vec());
        apply += begun.elapsed();
        let begun = Instant::now();
        batch.commit().expect("commit");
        commit += begun.elapsed();
        worst_commit = worst_commit.max(begun.elapsed());
        let now_ms = start.elapsed().as_millis() as u64;
        pacer.committed(group, number as u64, (COMMANDS * 800) as u64, now_ms);
        if let Some(group) = pacer.next(now_ms) {
            let begun = Instant::now();
            state.flush(group).expect("flush");
            pacer.flushed(group);
            flush += begun.elapsed();
        }
    }
    let elapsed = start.elapsed();
    let messages = (arguments.messages / COMMANDS * COMMANDS) as f64;
    let ns = |time: Duration| time.as_nanos() as f64 / messages;
    println!("messages/s             {:.0}", messages / elapsed.as_secs_f64());
    println!("puts/s                 {:.0}", 5.0 * messages / elapsed.as_secs_f64());
    println!(
        "ns per message         {:.0} (overlay with 2 reads {:.0}, commit {:.0})",
        ns(apply + commit),
        ns(apply),
        ns(commit)
    );
    println!("worst commit           {:.1} ms", worst_commit.as_secs_f64() * 1000.0);
    println!("waiting for own flush  {:.0} ns per message", ns(flush));
    let per_message = |seconds: f64| seconds * 1e9 / messages;
    println!(
        "CPU of this thread     {:.0} ns per message",
        per_message(cpu_seconds("thread-self") - own_cpu)
    );
    println!("CPU of all threads     {:.0} ns per message", per_message(cpu_seconds("self") - cpu));
    println!("{:?}", state.memory_stats());
    println!("{:?}", state.metrics());
    println!("resident               {} MB", resident_bytes() / 1_000_000);
    drop((replicas, state));
    std::fs::remove_dir_all(&dir).expect("removed");
}

fn one_message(batch: &mut carillon_store::ApplyBatch<'_>, noise: &[u8], number: u64) {
    // Ids: two bytes of slot, then time-like, then random bits.
    let scattered = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let key = |table: u8, tail: u64| {
        let mut key = Vec::with_capacity(19);
        key.push(table);
        key.extend_from_slice(&(scattered as u16 % 4096).to_be_bytes());
        key.extend_from_slice(&tail.to_be_bytes());
        key.extend_from_slice(&scattered.to_be_bytes());
        key
    };
    let value = |size: usize| noise[scattered as usize % 2048..][..size].to_vec();
    assert!(batch.get(&key(b'I', scattered)).expect("readable").is_none());
    assert!(batch.get(&key(b'S', number)).expect("readable").is_none());
    batch.put(key(b'M', number), value(700));
    batch.put(key(b'S', number), value(120));
    batch.put(key(b'D', number), value(40));
    batch.put(key(b'I', scattered), value(40));
    batch.put(key(b'E', number), value(40));
}

/// User and system time; clock ticks are 100 a second on Linux.
fn cpu_seconds(whose: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{whose}/stat")).expect("proc");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / 100.0
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("proc");
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4096
}
