//! The generators of a run: one in this process, or several processes that share the schedule.
//!
//! Owns: starting them, and bringing their intervals together. A process of its own reads its order (JSON) from standard
//! input, writes one interval a line, and last its end; it is stopped by closing its standard input.
//! Bounds: [`INTERVALS_MAX`] intervals wait for the reader.

use std::io::{BufRead as _, Read as _, Write as _};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::engine::interval::Interval;
use super::engine::{self, End, Order};

/// Intervals on their way to the reader.
pub const INTERVALS_MAX: usize = 256;
/// An order with its scenario.
const ORDER_OCTETS_MAX: u64 = 4 << 20;

/// One line of a generator process.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Interval(Box<Interval>),
    End(End),
}

/// Runs the generators of a run; `order` is that of the first one.
pub async fn run(order: Order, out: mpsc::Sender<Interval>, stop: CancellationToken) -> anyhow::Result<End> {
    if order.workers == 1 {
        return engine::run(&order, out, stop).await;
    }
    let program = std::env::current_exe()?;
    let mut running = JoinSet::new();
    for worker in 0..order.workers {
        let order = Order { worker, ..order.clone() };
        running.spawn(child(program.clone(), order, out.clone(), stop.clone()));
    }
    drop(out);
    let mut sum = End::default();
    while let Some(ended) = running.join_next().await {
        let ended = ended.context("a generator was not watched to its end")?;
        if ended.is_err() {
            stop.cancel();
        }
        let ended = ended?;
        sum.in_doubt += ended.in_doubt;
        sum.gave_up = sum.gave_up.or(ended.gave_up);
    }
    Ok(sum)
}

async fn start(program: &PathBuf, order: &Order) -> anyhow::Result<Child> {
    let mut child = Command::new(program)
        .arg("generator")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        // Ctrl-C on a terminal is for the run: it stops its generators itself.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let input = child.stdin.as_mut().context("a generator has no standard input")?;
    input.write_all(&serde_json::to_vec(order)?).await?;
    input.write_all(b"\n").await?;
    input.flush().await?;
    Ok(child)
}

async fn child(
    program: PathBuf,
    order: Order,
    out: mpsc::Sender<Interval>,
    stop: CancellationToken,
) -> anyhow::Result<End> {
    let mut child = start(&program, &order).await?;
    let output = child.stdout.take().context("a generator has no standard output")?;
    let (mut lines, mut end) = (BufReader::new(output).lines(), None);
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line?,
            () = stop.cancelled(), if child.stdin.is_some() => {
                child.stdin = None;
                continue;
            }
        };
        let Some(line) = line else { break };
        match serde_json::from_str(&line).context("a generator wrote something else than a line")? {
            Line::Interval(interval) => out.send(*interval).await.context("nobody reads the intervals")?,
            Line::End(said) => end = Some(said),
        }
    }
    let status = child.wait().await?;
    anyhow::ensure!(status.success(), "generator {}: {status}", order.worker);
    end.with_context(|| format!("generator {} ended without a word", order.worker))
}

/// What a generator process does.
pub async fn generator() -> anyhow::Result<()> {
    let mut text = String::new();
    std::io::stdin().lock().take(ORDER_OCTETS_MAX).read_line(&mut text)?;
    let order: Order = serde_json::from_str(&text).context("the order does not parse")?;
    let stop = CancellationToken::new();
    let closed = stop.clone();
    // On a thread of its own: reading standard input cannot be called off, and must not hold up the end.
    std::thread::spawn(move || {
        let mut rest = [0; 64];
        while std::io::stdin().lock().read(&mut rest).is_ok_and(|count| count > 0) {}
        closed.cancel();
    });
    let (out, mut intervals) = mpsc::channel(INTERVALS_MAX);
    // Nor may a reader that is slow hold up the generator.
    let writer = tokio::task::spawn_blocking(move || {
        while let Some(interval) = intervals.blocking_recv() {
            write_line(&Line::Interval(Box::new(interval)))?;
        }
        anyhow::Ok(())
    });
    let end = engine::run(&order, out, stop).await?;
    writer.await.context("the writer ended early")??;
    write_line(&Line::End(end))
}

fn write_line(line: &Line) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    let mut output = std::io::stdout().lock();
    output.write_all(&text)?;
    Ok(output.flush()?)
}
