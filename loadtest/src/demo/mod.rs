//! `demo`: plays the sample day against a lab, kills a node in the middle of it, and proves with the ledger that
//! nothing was lost, sent twice or sent too fast.
//!
//! Owns: the order of a run: begin the ground truth anew, put the profiles into effect, play and watch, kill and start a
//! node, show a message that is held for the night, wait until every message is final or held, compare.
//! Does not: start or stop the lab.

pub mod book;
pub mod failover;
mod lane;
pub mod live;
mod night;
mod outlook;
pub mod play;
mod show;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use carillon_proto::public::MessageState;
use parking_lot::Mutex;
use tokio::process::Command;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bulk::BulkConfig;
use crate::carrier::{Carrier, Mark};
use crate::client::{Client, ClientConfig, why};
use crate::http::Http;
use crate::lab::Lab;
use crate::ledger::{Acks, HELD_SHOWN_MAX, Ledger, Listed, compare};
use crate::sample_day::{Day, generate};
use crate::{proc, watch};
use live::Tracker;
use play::{Stage, play};
use show::Show;

/// The behaviour of the carrier on the sample day.
pub const PROFILE: &str = include_str!("../../profiles/demo.toml");
/// Receipts that come after everything is settled must find it so.
const STRAGGLERS: Duration = Duration::from_secs(3);
/// Of a single call.
const DEADLINE: Duration = Duration::from_secs(10);

/// Play the sample day against a lab and prove what became of every message.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory that `carillonctl lab up` made.
    #[arg(long)]
    pub lab: PathBuf,
    /// The `carillonctl` that kills and starts nodes; default: the one beside this program.
    #[arg(long)]
    pub ctl: Option<PathBuf>,
    /// Another day (JSON lines) than the bundled one.
    #[arg(long)]
    pub day: Option<PathBuf>,
    /// Another profile of the carrier (TOML) than the bundled one.
    #[arg(long)]
    pub profile: Option<PathBuf>,
    /// The node to kill; 0 kills none.
    #[arg(long, default_value_t = 2)]
    pub kill_node: u64,
    /// When to kill it, in seconds after the start.
    #[arg(long, default_value_t = generate::KILL_AT_MS / 1000)]
    pub kill_at_s: u64,
    /// When to start it again.
    #[arg(long, default_value_t = generate::RESTART_AT_MS / 1000)]
    pub restart_at_s: u64,
    /// Give up waiting for messages to settle after this long.
    #[arg(long, default_value_t = 300)]
    pub time_limit_s: u64,
    /// Where to keep what was acknowledged, for `ledger`; default: demo-acks.json in the lab directory.
    #[arg(long)]
    pub acks: Option<PathBuf>,
    /// Write the ledger to this file as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

impl Args {
    fn ctl(&self) -> anyhow::Result<PathBuf> {
        Ok(match &self.ctl {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("carillonctl"),
        })
    }
}

/// What `ledger` needs to compare again: hashes and ids, no text.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct AcksFile {
    pub start_ms: i64,
    pub mark: [u64; 4],
    /// Of the second carrier, if it took part.
    #[serde(default)]
    pub second_mark: Option<[u64; 4]>,
    pub acks: Acks,
}

fn numbers(mark: &Mark) -> [u64; 4] {
    [u64::from(mark.generation), mark.records, mark.violations, mark.unrecorded]
}

fn mark_of([generation, records, violations, unrecorded]: [u64; 4]) -> Mark {
    Mark { generation: generation as u32, records, violations, unrecorded }
}

impl AcksFile {
    pub fn new(start_ms: i64, mark: &Mark, second: Option<&Mark>, acks: Acks) -> Self {
        Self { start_ms, mark: numbers(mark), second_mark: second.map(numbers), acks }
    }
}

fn now_ms() -> anyhow::Result<i64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_millis() as i64)
}

/// Fetches the other accounts and compares.
pub async fn reckon(client: &Client, lab: &Lab, http: &Http, file: &AcksFile) -> anyhow::Result<Ledger> {
    let mut listed = Vec::new();
    client.list(file.start_ms, &[], |message| listed.push(Listed::of(&message))).await?;
    let mut truth = Carrier::new(http.clone(), &lab.smsc_http).truth(&mark_of(file.mark)).await?;
    if let (Some(second), Some(mark)) = (failover::carrier(lab, http), file.second_mark) {
        truth.merge(second.truth(&mark_of(mark)).await?);
    }
    Ok(compare(&file.acks, &listed, &truth))
}

/// Where all held messages are, if they are too many for the screen.
pub fn keep_held(ledger: &Ledger, dir: &Path) -> anyhow::Result<Option<PathBuf>> {
    if ledger.held.len() <= HELD_SHOWN_MAX {
        return Ok(None);
    }
    let path = dir.join("demo-held.jsonl");
    let lines: Vec<String> = ledger.held.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    fs_err::write(&path, lines.join("\n") + "\n")?;
    Ok(Some(path))
}

/// Runs the demo; `Ok(false)` when the ledger is not clean.
pub async fn run(args: Args) -> anyhow::Result<bool> {
    let lab = Lab::open(&args.lab)?;
    let day = match &args.day {
        Some(path) => Day::parse(&fs_err::read_to_string(path)?)?,
        None => Day::bundled()?,
    };
    let profile = match &args.profile {
        Some(path) => fs_err::read_to_string(path)?,
        None => PROFILE.to_owned(),
    };
    let client = Client::connect(&lab.router, &lab.tls(), ClientConfig::default())?;
    let http = Http::default();
    let carrier = Carrier::new(http.clone(), &lab.smsc_http);
    // Before anything is changed: a lab that cannot be asked must not be touched.
    client.list(now_ms()?, &[], drop).await.context("the router does not answer")?;
    // The simulator draws its faults from what it saw before: without that the day is the same every time.
    carrier.reset().await?;
    let mark = carrier.mark().await?;
    carrier.set_profile(&profile).await?;
    let (ctl, second) = (args.ctl()?, failover::carrier(&lab, &http).filter(|_| failover::takes_part(&day)));
    let second_mark = match &second {
        Some(second) => Some(failover::begin(&ctl, &lab, second, &lab.tenant()?).await?),
        None => None,
    };
    let (start, start_ms) = (Instant::now(), now_ms()?);
    let stage = Arc::new(Stage {
        client: client.clone(),
        book: Mutex::default(),
        answered: Notify::new(),
        run: format!("d{start_ms:x}"),
        start,
        start_ms,
    });
    println!(
        "Sample day: {} messages of {} practices in {} s; tenant {}.",
        day.messages().count(),
        crate::sample_day::practices()?.len(),
        day.length_ms().div_ceil(1000),
        lab.tenant()?
    );
    let tracker = Arc::new(Mutex::new(Tracker::new(start_ms)));
    let stop = CancellationToken::new();
    let follower = {
        let tracker = tracker.clone();
        tokio::spawn(watch::follow(
            client.clone(),
            stop.clone(),
            || {},
            move |event| tracker.lock().apply(event),
        ))
    };
    let show = Show::new(&day, http.clone(), &lab, stage.clone(), tracker);
    let nodes: Vec<String> = lab.nodes.iter().map(|node| node.http.clone()).collect();
    let lane = tokio::spawn(lane::watch(show.clone(), http.clone(), nodes.clone(), stop.clone()));
    if second.is_some() {
        tokio::spawn(failover::watch(show.clone(), http.clone(), nodes, stop.clone()));
    }
    let printer = tokio::spawn(show.clone().run(stop.clone()));
    let played = tokio::select! {
        played = play_and_settle(&args, &lab, &stage, &day, &show) => played,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    stop.cancel();
    let _printers_have_stopped = tokio::join!(printer, lane);
    if let Ok(Err(status)) = follower.await {
        println!("The event stream was refused: {}", why(&status));
    }
    if second.is_some() {
        failover::end(&ctl, &lab).await?;
    }
    played?;
    let file = AcksFile::new(start_ms, &mark, second_mark.as_ref(), stage.book.lock().acks.clone());
    finish(&args, &lab, &client, &http, &file).await
}

async fn play_and_settle(
    args: &Args,
    lab: &Lab,
    stage: &Arc<Stage>,
    day: &Day,
    show: &Show,
) -> anyhow::Result<()> {
    let playing = async { play(stage.clone(), day, BulkConfig::default()).await.context("the day stopped") };
    let (stats, ()) = tokio::try_join!(playing, accident(args, lab, stage, show))?;
    show.say(format!(
        "All answered: {} streams, {} batches sent, {} messages repeated on the way.",
        stats.streams_opened, stats.requests_sent, stats.messages_repeated
    ));
    night::hold(stage, day, show, now_ms()?).await?;
    let until = stage.start + Duration::from_secs(args.time_limit_s);
    use MessageState as S;
    let moving = [S::Accepted, S::Waiting, S::InFlight, S::Submitted];
    if stage.client.until_none(stage.start_ms, &moving, until).await? {
        show.say("Every message is final or held.".to_owned());
    } else {
        show.say("The time limit has come before every message was final or held.".to_owned());
    }
    tokio::time::sleep(STRAGGLERS).await;
    show.lost();
    Ok(())
}

/// Lets the cluster speak of itself, kills a node with SIGKILL and starts it again later.
async fn accident(args: &Args, lab: &Lab, stage: &Stage, show: &Show) -> anyhow::Result<()> {
    let (start, ctl) = (stage.start, args.ctl()?);
    tokio::time::sleep_until(start + Duration::from_secs(args.kill_at_s / 2)).await;
    outlook::forecast(&ctl, lab, show).await?;
    outlook::explain(stage, show).await?;
    if args.kill_node == 0 {
        return Ok(());
    }
    anyhow::ensure!(
        lab.nodes.iter().any(|node| node.id == args.kill_node),
        "the lab has no node {}",
        args.kill_node
    );
    tokio::time::sleep_until(start + Duration::from_secs(args.kill_at_s)).await;
    call_ctl(&ctl, "kill-node", args.kill_node, &lab.dir).await?;
    show.say(format!("*** node {} killed (SIGKILL) ***", args.kill_node));
    tokio::time::sleep_until(start + Duration::from_secs(args.restart_at_s.max(args.kill_at_s))).await;
    call_ctl(&ctl, "start-node", args.kill_node, &lab.dir).await?;
    show.say(format!("*** node {} started again ***", args.kill_node));
    Ok(())
}

/// `carillonctl lab <verb> <node> --dir <lab>`.
async fn call_ctl(ctl: &Path, verb: &str, node: u64, dir: &Path) -> anyhow::Result<()> {
    let output = Command::new(ctl)
        .args(["lab", verb, &node.to_string(), "--dir"])
        .arg(dir)
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {}", ctl.display()))?;
    anyhow::ensure!(
        output.status.success(),
        "{} lab {verb} {node}: {}: {}",
        ctl.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

async fn finish(
    args: &Args,
    lab: &Lab,
    client: &Client,
    http: &Http,
    file: &AcksFile,
) -> anyhow::Result<bool> {
    let path = args.acks.clone().unwrap_or_else(|| lab.dir.join("demo-acks.json"));
    fs_err::write(&path, serde_json::to_vec(file)?)?;
    let ledger = reckon(client, lab, http, file).await?;
    println!("\n{ledger}");
    if let Some(path) = keep_held(&ledger, &lab.dir)? {
        println!("  all held messages: {}", path.display());
    }
    // The pids changed when a node was started again.
    for node in Lab::open(&lab.dir)?.nodes {
        match proc::rss_bytes(node.pid) {
            Ok(octets) => println!("  node {}: {} MiB resident", node.id, octets >> 20),
            Err(error) => println!("  node {}: {error}", node.id),
        }
    }
    if let Some(path) = &args.json {
        fs_err::write(path, serde_json::to_vec_pretty(&ledger)?)?;
    }
    tracing::info!(clean = ledger.is_clean(), "demo ended");
    Ok(ledger.is_clean())
}
