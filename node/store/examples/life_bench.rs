//! Whole lives of messages through the real core, state database and raft log, without network: what a replica writes to
//! disk for each message, and how long it takes to be back after a crash.
//!
//! `cargo run --release -p carillon-store --example life_bench -- fill --dir <directory> --messages 5000000`
//! `cargo run --release -p carillon-store --example life_bench -- open --dir <directory>`
//!
//! `fill` accepts, begins, answers and delivers each message in entries of many commands, 16 groups, one synced log write for
//! all of them, with the flush pacing, truncation and purge of a node. It ends as a crash does: nothing is closed. `open`
//! does what a starting node does before it serves: open the log (reading all of it), open the state, apply again what only the
//! log has. Bytes are `write_bytes` of /proc/self/io: what this process caused to be written to the disk.
use bytes::Bytes;
use carillon_consensus::{GroupWrite, LogStore, bootstrap_write};
use carillon_core::{Applier, Effects, EntryMeta};
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::*;
use carillon_proto::public::{MessageClass, MessageSpec, Outcome, Priority};
use carillon_proto::{MessageId, Slot};
use carillon_store::{EngineLog, EngineLogOptions, FlushPacer, PacerLimits, Replica, StateDb, StateOptions};
use clap::{Parser, Subcommand};
use prost::Message as _;
use raft::eraftpb::{Entry, EntryType, HardState};
use rand::rngs::SmallRng;
use rand::{RngCore as _, SeedableRng as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

type Make = fn(MessageId, u64) -> Kind;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const GROUPS: u32 = 16;
/// Commands in one entry, about what the product shows under load.
const COMMANDS: u64 = 64;
const START_MS: u64 = 1_793_000_000_000;
/// Entries between the acceptance of a message and each of its next steps.
const STEP_ENTRIES: u64 = 4;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fill a new directory and crash.
    Fill(Fill),
    /// Open it as a starting node does.
    Open {
        #[arg(long)]
        dir: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Fill {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    /// Octets of a body.
    #[arg(long, default_value_t = 300)]
    body_bytes: usize,
    /// Bytes of rows that wait in memory, all groups together.
    #[arg(long)]
    waiting_bytes: Option<usize>,
    #[arg(long)]
    level_base_bytes: Option<u64>,
    #[arg(long)]
    table_bytes: Option<u64>,
    #[arg(long)]
    level_zero_tables: Option<i32>,
    #[arg(long)]
    compact_on_deletions: Option<usize>,
    /// Write what waits and wait for compactions at the end, so that their bytes are counted, too.
    #[arg(long)]
    settle: bool,
}

fn main() {
    match Arguments::parse().command {
        Command::Fill(fill) => {
            let mut options = StateOptions::default();
            let set = |wanted: Option<usize>, knob: &mut usize| *knob = wanted.unwrap_or(*knob);
            set(fill.waiting_bytes, &mut options.waiting_bytes);
            set(fill.compact_on_deletions, &mut options.compact_on_deletions);
            options.level_base_bytes = fill.level_base_bytes.unwrap_or(options.level_base_bytes);
            options.table_bytes = fill.table_bytes.unwrap_or(options.table_bytes);
            options.level_zero_tables = fill.level_zero_tables.unwrap_or(options.level_zero_tables);
            Filler::new(&fill.dir, fill.body_bytes, &options).run(fill.messages, fill.settle);
        }
        Command::Open { dir } => open(&dir),
    }
}

fn log_options() -> EngineLogOptions {
    EngineLogOptions { purge_threshold_bytes: 256 << 20, ..EngineLogOptions::default() }
}

fn written_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").expect("/proc");
    let line = text.lines().find(|line| line.starts_with("write_bytes")).expect("write_bytes");
    line.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

struct Filler {
    log: EngineLog,
    state: StateDb,
    replicas: Vec<(Arc<Replica>, Applier)>,
    pacer: FlushPacer,
    body_bytes: usize,
    payload_bytes: u64,
    log_bytes: u64,
    cut: Vec<u64>,
    began: Instant,
    random: SmallRng,
}

impl Filler {
    fn new(dir: &Path, body_bytes: usize, options: &StateOptions) -> Self {
        std::fs::create_dir_all(dir).expect("directory");
        let log = EngineLog::open(&dir.join("log"), &log_options()).expect("log");
        let state = StateDb::open(&dir.join("state"), options).expect("state");
        let groups: Vec<GroupWrite> = (1..=GROUPS).map(|group| bootstrap_write(group, &[1])).collect();
        log.write(&groups, true).expect("groups");
        let replicas = (1..=GROUPS)
            .map(|group| {
                let replica = state.replica(group).expect("replica");
                let applier = Applier::open(&*replica).expect("applier");
                (replica, applier)
            })
            .collect();
        Self {
            log,
            state,
            replicas,
            pacer: FlushPacer::new(PacerLimits::default()),
            body_bytes,
            payload_bytes: 0,
            log_bytes: 0,
            cut: vec![0; GROUPS as usize],
            began: Instant::now(),
            random: SmallRng::seed_from_u64(7),
        }
    }

    fn run(mut self, messages: u64, settle: bool) {
        let rounds = messages / u64::from(GROUPS) / COMMANDS;
        let mut maintained = Instant::now();
        for round in 0..rounds + 4 * STEP_ENTRIES {
            self.round(round, rounds);
            if maintained.elapsed() > Duration::from_secs(1) {
                maintained = Instant::now();
                self.maintain();
            }
            if (round + 1).is_multiple_of(rounds.div_ceil(10)) {
                self.report(((round + 1).min(rounds)) * u64::from(GROUPS) * COMMANDS);
            }
        }
        if settle {
            for group in 1..=GROUPS {
                self.state.flush(group).expect("flush");
            }
            self.maintain();
            while self.state.metrics().pending_compaction_bytes > 0 {
                std::thread::sleep(Duration::from_millis(200));
            }
            println!("settled:");
            self.report(rounds * u64::from(GROUPS) * COMMANDS);
        }
        // As a crash: no destructor flushes anything.
        std::process::exit(0);
    }

    /// One entry for each group: new messages, and the next steps of earlier ones.
    fn round(&mut self, round: u64, rounds: u64) {
        let now_ms = START_MS + round * 20;
        let index = round + 1;
        let mut entries = Vec::with_capacity(GROUPS as usize);
        for group in 0..GROUPS {
            let mut commands = Vec::with_capacity(4 * COMMANDS as usize);
            let of = |back: u64| round.checked_sub(back * STEP_ENTRIES).filter(|from| *from < rounds);
            for number in 0..COMMANDS {
                if round < rounds {
                    commands.push(self.accept(group, round, number, now_ms));
                }
                let kinds: [(u64, Make); 3] = [(1, begin), (2, outcome), (3, receipt)];
                for (back, kind) in kinds {
                    if let Some(from) = of(back) {
                        commands.push(kind(id(group, from, number), now_ms));
                    }
                }
            }
            let commands =
                commands.into_iter().map(|kind| carillon_proto::internal::Command { kind: Some(kind) });
            let batch = CommandBatch { now_ms, commands: commands.collect() };
            entries.push(Bytes::from(batch.encode_to_vec()));
        }
        let writes: Vec<GroupWrite> =
            entries.iter().enumerate().map(|(n, data)| write(n as u32 + 1, index, data)).collect();
        self.log.write(&writes, true).expect("log write");
        for (n, data) in entries.into_iter().enumerate() {
            let (replica, applier) = &mut self.replicas[n];
            let mut batch = replica.batch().expect("batch");
            let mut effects = Effects::default();
            applier.set_permits(false);
            applier.apply(&mut batch, EntryMeta { index, term: 1 }, &data, &mut effects).expect("apply");
            let refused =
                effects.results.iter().find(|r| matches!(r, carillon_core::CommandResult::Refused(_)));
            assert!(refused.is_none(), "{refused:?}");
            batch.commit().expect("commit");
            let since_ms = self.began.elapsed().as_millis() as u64;
            self.pacer.committed(n as u32 + 1, index, data.len() as u64, since_ms);
            self.log_bytes += data.len() as u64;
        }
    }

    fn maintain(&mut self) {
        let now_ms = self.began.elapsed().as_millis() as u64;
        for group in self.pacer.unflushed_groups() {
            if let Some(record) = self.state.durable_applied(group).expect("durable") {
                self.pacer.durable(group, record.index);
            }
        }
        while let Some(group) = self.pacer.next(now_ms) {
            self.state.flush(group).expect("flush");
            self.pacer.flushed(group);
        }
        for group in 1..=GROUPS {
            let durable = self.state.durable_applied(group).expect("durable").map_or(0, |r| r.index);
            let index = durable.saturating_sub(64);
            let cut = &mut self.cut[group as usize - 1];
            if index >= *cut + 64 {
                self.log.truncate(group, index, 1).expect("truncate");
                *cut = index;
            }
        }
        self.log.purge().expect("purge");
    }

    fn report(&self, messages: u64) {
        let (metrics, per) = (self.state.metrics(), |bytes: u64| bytes / messages.max(1));
        let written = written_bytes();
        println!(
            "{messages} messages, {:.0}/s; bytes a message: payload {}, log entries {}, flushed {}, compacted {}, \
             written to disk {}: {:.2} a payload byte; state on disk {} MB, log {} MB, unflushed log {} MB",
            messages as f64 / self.began.elapsed().as_secs_f64(),
            per(self.payload_bytes),
            per(self.log_bytes),
            per(metrics.flushed_bytes),
            per(metrics.compacted_bytes),
            per(written),
            written as f64 / self.payload_bytes as f64,
            metrics.sst_bytes >> 20,
            self.log.disk_bytes() >> 20,
            self.pacer.unflushed_total_bytes() >> 20,
        );
    }

    /// What ingest makes of a message, with sealed values of the real lengths. Counts what the client sent.
    fn accept(&mut self, group: u32, round: u64, number: u64, now_ms: u64) -> Kind {
        let (id, body_bytes) = (id(group, round, number), self.body_bytes);
        // Sealed values do not compress.
        let mut noise = |length: usize| {
            let mut bytes = vec![0; length];
            self.random.fill_bytes(&mut bytes);
            Bytes::from(bytes)
        };
        let spec = MessageSpec {
            practice: "lakeside-west".to_owned(),
            body: "x".repeat(body_bytes),
            class: MessageClass::Reminder as i32,
            idempotency_key: "0123456789abcdef01234567".to_owned(),
            ..MessageSpec::default()
        };
        // The recipient, as E.164 in its field.
        self.payload_bytes += spec.encoded_len() as u64 + 14;
        Kind::Accept(Accept {
            message_id: id.to_bytes(),
            practice_no: group * 3 + 1,
            class: MessageClass::Reminder as i32,
            priority: Priority::Normal as i32,
            expires_at_ms: now_ms + 86_400_000,
            time_zone: "America/Chicago".to_owned(),
            sealed_recipient: noise(12 + 1 + 28),
            recipient_index: noise(16),
            sealed_body: noise(body_bytes + 28),
            key_epoch: 1,
            encoding: 1,
            segments: 1,
            idempotency_index: noise(16),
            content_mac: noise(16),
            carrier_no: 1,
            retry: Some(RetryPolicy {
                attempts_max: 5,
                backoff_base_ms: 60_000,
                backoff_max_ms: 3_600_000,
                unknown_policy: 0,
            }),
            ..Accept::default()
        })
    }
}

fn id(group: u32, round: u64, number: u64) -> MessageId {
    let slot = Slot::new((group * 16 + (number % 3) as u32) as u16).expect("below 4096");
    let random = (u64::from(group) << 56 | round << 16 | number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    MessageId::new(START_MS + round * 20, slot, random)
}

fn begin(id: MessageId, now_ms: u64) -> Kind {
    Kind::BeginAttempt(BeginAttempt {
        message_id: id.to_bytes(),
        attempt_no: 1,
        carrier_no: 1,
        term: 1,
        send_by_ms: now_ms + 2_000,
        node_id: 1,
        sender: String::new(),
        ..Default::default()
    })
}

fn carrier_ref(id: MessageId) -> String {
    id.as_bytes()[8..].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn outcome(id: MessageId, _: u64) -> Kind {
    Kind::RecordOutcome(RecordOutcome {
        message_id: id.to_bytes(),
        attempt_no: 1,
        outcome: Outcome::Accepted as i32,
        carrier_refs: vec![carrier_ref(id)],
        code: "ESME_ROK".to_owned(),
        retry_after_ms: 0,
        segments: 1,
    })
}

fn receipt(id: MessageId, _: u64) -> Kind {
    Kind::RecordReceipt(RecordReceipt {
        message_id: id.to_bytes(),
        carrier_no: 1,
        carrier_refs: vec![carrier_ref(id)],
        state: ReceiptState::Delivered as i32,
        code: "000".to_owned(),
    })
}

fn write(group: u32, index: u64, data: &Bytes) -> GroupWrite {
    let entry =
        Entry { entry_type: EntryType::EntryNormal, term: 1, index, data: data.clone(), ..Entry::default() };
    let hard_state = HardState { term: 1, vote: 1, commit: index, ..HardState::default() };
    GroupWrite { group, entries: vec![entry], hard_state: Some(hard_state), ..GroupWrite::default() }
}

/// Everything that a node does with its stores before it serves.
fn open(dir: &Path) {
    let start = Instant::now();
    let log = EngineLog::open(&dir.join("log"), &log_options()).expect("log");
    let log_open = start.elapsed();
    let begun = Instant::now();
    let state = StateDb::open(&dir.join("state"), &StateOptions::default()).expect("state");
    let state_open = begun.elapsed();
    let begun = Instant::now();
    let (mut entries, mut commands, mut bytes) = (0_u64, 0_u64, 0_u64);
    for group in 1..=GROUPS {
        let replica = state.replica(group).expect("replica");
        let mut core = Applier::open(&*replica).expect("applier");
        core.set_permits(false);
        let last = log.load(group).expect("load").expect("exists").last_index;
        let mut effects = Effects::default();
        while core.last().index < last {
            let page = log.entries(group, core.last().index + 1, last + 1, 4 << 20).expect("entries");
            let mut batch = replica.batch().expect("batch");
            for entry in page {
                let meta = EntryMeta { index: entry.index, term: entry.term };
                core.apply(&mut batch, meta, &entry.data, &mut effects).expect("apply");
                entries += 1;
                commands += effects.results.len() as u64;
                bytes += entry.data.len() as u64;
            }
            batch.commit().expect("commit");
        }
    }
    let replay = begun.elapsed();
    let metrics = state.metrics();
    println!(
        "log opened in {:.2} s ({} MB), state in {:.2} s ({} MB), {entries} entries with {commands} commands ({} MB) \
         applied again in {:.2} s; ready after {:.2} s",
        log_open.as_secs_f64(),
        log.disk_bytes() >> 20,
        state_open.as_secs_f64(),
        metrics.sst_bytes >> 20,
        bytes >> 20,
        replay.as_secs_f64(),
        start.elapsed().as_secs_f64(),
    );
    std::process::exit(0);
}
