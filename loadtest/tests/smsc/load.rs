//! Many messages at once: everything is answered, receipted and recorded.
//!
//! `SMSC_LOAD_SUBMITS=400000 cargo test --release -p carillon-loadtest --test smsc load -- --nocapture`
//! prints the throughput, and what the simulator's own thread used of a core.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rusmpp::pdus::{BindTransceiver, DeliverSmResp};
use rusmpp::tokio_codec::CommandCodec;
use rusmpp::{Command, CommandId, CommandStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::codec::{Decoder, Encoder};

use carillon_loadtest::smsc::{Profile, Smsc};

use super::client::{Client, start, submit, within};

const WINDOW: usize = 1_000;

/// CPU time of the threads whose name begins with `prefix`.
fn cpu_of(prefix: &str) -> Duration {
    let mut ticks = 0u64;
    for thread in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        if name.split_once('(').is_some_and(|(_, name)| name.starts_with(prefix)) {
            // After the name: the state, then utime and stime as the 12th and 13th.
            let fields: Vec<&str> = rest.split_whitespace().collect();
            ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    Duration::from_millis(ticks * 10)
}

/// What the drivers share.
struct Goal {
    receipts: AtomicUsize,
    total: usize,
    rate: Option<usize>,
}

/// Submits `count` texts with a window and acknowledges every receipt, until
/// all receipts of all drivers are in.
async fn drive(socket: TcpStream, mut buffer: BytesMut, first: usize, count: usize, goal: Arc<Goal>) {
    let (mut reader, mut writer) = socket.into_split();
    let (mut codec, mut out) = (CommandCodec::new(), BytesMut::new());
    let (mut sent, mut answered) = (0, 0);
    let begin = Instant::now();
    while answered < count || goal.receipts.load(Ordering::Relaxed) < goal.total {
        let allowed = goal.rate.map_or(count, |rate| (begin.elapsed().as_secs_f64() * rate as f64) as usize);
        while sent < count.min(allowed) && sent - answered < WINDOW {
            let number = first + sent;
            let text = format!("Your visit is on Monday, number {number}");
            let pdu = submit(&format!("+1202{number:07}"), &text);
            codec.encode(&Command::new(CommandStatus::EsmeRok, number as u32 + 1, pdu), &mut out).unwrap();
            sent += 1;
        }
        writer.write_all(&out.split()).await.unwrap();
        let pause = Duration::from_millis(if sent < count { 2 } else { 20 });
        if let Ok(read) = tokio::time::timeout(pause, reader.read_buf(&mut buffer)).await {
            assert!(read.unwrap() > 0, "the connection ended");
        }
        while let Some(command) = codec.decode(&mut buffer).unwrap() {
            match command.id() {
                CommandId::SubmitSmResp => {
                    assert_eq!(u32::from(command.status()), 0);
                    answered += 1;
                }
                CommandId::DeliverSm => {
                    goal.receipts.fetch_add(1, Ordering::Relaxed);
                    let sequence = command.sequence_number();
                    let ack = Command::new(CommandStatus::EsmeRok, sequence, DeliverSmResp::default());
                    codec.encode(&ack, &mut out).unwrap();
                }
                _ => {}
            }
        }
        buffer.reserve(64 << 10);
    }
    // The server closes after it has read everything, acknowledgements included.
    writer.write_all(&out).await.unwrap();
    writer.shutdown().await.unwrap();
    while within(reader.read_buf(&mut buffer)).await.unwrap() > 0 {}
}

/// A bound socket and what was read beyond the answer.
async fn bound_socket(smsc: &Smsc) -> (TcpStream, BytesMut) {
    let mut socket = TcpStream::connect(smsc.smpp_addr()).await.unwrap();
    let (mut codec, mut buffer) = (CommandCodec::new(), BytesMut::new());
    let bind = BindTransceiver::builder()
        .system_id("carillon".parse().unwrap())
        .password("secret".parse().unwrap())
        .build();
    codec.encode(&Command::new(CommandStatus::EsmeRok, 1, bind), &mut buffer).unwrap();
    socket.write_all(&buffer.split()).await.unwrap();
    let answer = loop {
        if let Some(command) = codec.decode(&mut buffer).unwrap() {
            break command;
        }
        within(socket.read_buf(&mut buffer)).await.unwrap();
    };
    assert_eq!(u32::from(answer.status()), 0);
    (socket, buffer)
}

#[test]
fn everything_submitted_at_once_is_answered_receipted_and_recorded() {
    let submits: usize =
        std::env::var("SMSC_LOAD_SUBMITS").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000);
    let rate = std::env::var("SMSC_LOAD_RATE").ok().and_then(|text| text.parse::<usize>().ok());
    let preset = std::env::var("SMSC_LOAD_PROFILE").unwrap_or_else(|_| {
        "[receipts]\ndelay = { min_ms = 5.0, median_ms = 50.0, p99_ms = 200.0 }\n".to_owned()
    });
    let profile = Profile::from_toml(&preset).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let truth_file = folder.path().join("truth.jsonl");
    // The simulator has one thread of its own, so that its cost can be told.
    let server = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("sim-server")
        .enable_all()
        .build()
        .unwrap();
    let smsc = server.block_on(start(|config| {
        config.profile = profile;
        config.truth_file = Some(truth_file);
    }));
    let client = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let binds = 4;
    let cpu_before = cpu_of("sim-server") + cpu_of("smsc-truth");
    let begin = Instant::now();
    client.block_on(async {
        let share = submits / binds;
        let rate = rate.map(|rate| rate / binds);
        let goal = Arc::new(Goal { receipts: AtomicUsize::new(0), total: share * binds, rate });
        let mut drives = tokio::task::JoinSet::new();
        for bind in 0..binds {
            let (socket, buffer) = bound_socket(&smsc).await;
            drives.spawn(drive(socket, buffer, bind * share, share, goal.clone()));
        }
        drives.join_all().await
    });
    let took = begin.elapsed();
    let cpu = cpu_of("sim-server") + cpu_of("smsc-truth") - cpu_before;
    let total = (submits / binds * binds) as u64;
    let stats = smsc.stats(0);
    println!(
        "{total} submits with receipts in {took:.2?}: {:.0}/s; simulator {:.2} of a core, {:.1} us of CPU a message; lag {:?}",
        total as f64 / took.as_secs_f64(),
        cpu.as_secs_f64() / took.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / total as f64,
        stats.lag,
    );
    assert_eq!((stats.submits, stats.accepted, stats.messages.distinct), (total, total, total));
    assert_eq!((stats.messages.extra_copies, stats.unanswered, stats.truth_lines_lost), (0, 0, 0));
    assert_eq!((stats.receipts.acked, stats.receipts.sent_again), (total, 0));
    assert!(smsc.truth(0, submits).records.iter().all(|record| record.answer_sent));
    server.block_on(smsc.shutdown());
}

#[tokio::test]
async fn answers_made_together_leave_together() {
    let smsc = start(|config| {
        config.profile = Profile::from_toml("[receipts]\nnever = 1.0").unwrap();
    })
    .await;
    let mut client = Client::bound(&smsc).await;
    let sent: Vec<u32> = (0..500).map(|n| client.put(submit("+12025550123", &format!("n {n}")))).collect();
    client.flush().await;
    for sequence in sent {
        // In order: without latency an answer never overtakes another.
        let answer = client.next().await.unwrap();
        assert_eq!((answer.id(), answer.sequence_number()), (CommandId::SubmitSmResp, sequence));
    }
}
