//! How long a node is away, and what others notice, when there is much to recover.
//!
//! Owns: `restart` (a node is killed while the cluster holds millions of messages) and `install` (a node that was away while one
//! partition grew fetches that partition's state). Both fill the cluster first with messages that are due far in the future.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tokio::time::Instant;

use super::ctl::{Ctl, balanced};
use super::load::{Load, LoadResult, Pace};
use super::measure::Summary;
use super::{Bench, LoadArgs};
use crate::http::Http;
use crate::lab::Lab;
use crate::sample_day::Practice;
use crate::scrape::Page;

const POLL: Duration = Duration::from_millis(20);
/// A node that is not there by then never comes.
const GIVE_UP: Duration = Duration::from_secs(600);
const BODY_BYTES: usize = 300;
/// Nothing was compacted for so long: filling is over. Longer than the pause between two reports of a node.
const REST: Duration = Duration::from_secs(5);
/// Of one filling load; the total decides when to stop.
const FILL_S: u64 = 20;
const RESTART_MS_MAX: u64 = 10_000;
const P99_FACTOR_MAX: f64 = 2.0;

#[derive(Clone, Debug, clap::Args)]
pub struct RestartArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    /// The `carillonctl` that kills and starts nodes; default: the one beside this program.
    #[arg(long)]
    pub ctl: Option<PathBuf>,
    /// Messages in the cluster before the kill.
    #[arg(long, default_value_t = 5_000_000)]
    pub stored: u64,
    /// The node.
    #[arg(long, default_value_t = 2)]
    pub victim: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Restart {
    pub stored: u64,
    pub node: u64,
    pub state_mib: f64,
    pub log_mib: f64,
    /// From the order to start it until its `/readyz` says yes.
    pub ready_ms: u64,
}

impl Restart {
    pub fn held(&self) -> bool {
        self.ready_ms <= RESTART_MS_MAX
    }
}

impl std::fmt::Display for Restart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { stored, node, state_mib, log_mib, ready_ms } = self;
        writeln!(
            f,
            "  {stored} messages stored; node {node}: state {state_mib:.0} MiB, log {log_mib:.0} MiB"
        )?;
        let verdict = if self.held() { "held" } else { "MISSED" };
        writeln!(
            f,
            "  killed, started again, serving after {ready_ms} ms; wanted {RESTART_MS_MAX} ms: {verdict}"
        )
    }
}

fn mib_of(dir: &std::path::Path) -> f64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0.0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => mib_of(&entry.path()),
        Ok(meta) => meta.len() as f64 / f64::from(1 << 20),
        Err(_) => 0.0,
    };
    entries.filter_map(Result::ok).map(size).sum()
}

/// Accepts messages until `count` of them are stored. Returns how many are.
async fn fill(bench: &Bench, practices: &[Practice], args: &LoadArgs, count: u64) -> anyhow::Result<u64> {
    let args = LoadArgs { secs: FILL_S, warm_up_s: 0, batch: 1_000, window: 4, ..args.clone() };
    let mut stored = 0;
    while stored < count {
        let (clients, feed, config) = bench.parts_of(practices, &args, Pace::Max, true, BODY_BYTES)?;
        stored += Load::new(clients, feed, config).run().await?.accepted;
        eprintln!("{stored} of {count} messages stored");
    }
    Ok(stored)
}

/// Fills, kills, starts.
pub async fn restart(args: &RestartArgs) -> anyhow::Result<Restart> {
    let bench = Bench::open(&args.load)?;
    let ctl = Ctl::new(args.ctl.as_deref(), &args.load.lab)?;
    balanced(&ctl, bench.lab.nodes.len()).await?;
    let practices = bench.practices(args.load.partitions)?;
    let stored = fill(&bench, &practices, &args.load, args.stored).await?;
    ctl.node("kill-node", args.victim).await?;
    let data = args.load.lab.join(format!("node-{}", args.victim)).join("data");
    let (state_mib, log_mib) = (mib_of(&data.join("state")), mib_of(&data.join("log")));
    let begun = Instant::now();
    let (started, ready) =
        tokio::join!(ctl.node("start-node", args.victim), until_ready(&args.load.lab, args.victim));
    started?;
    let ready_ms = ready?.duration_since(begun).as_millis() as u64;
    Ok(Restart { stored, node: args.victim, state_mib, log_mib, ready_ms })
}

async fn until_ready(lab: &std::path::Path, node: u64) -> anyhow::Result<Instant> {
    let (http, until) = (Http::default(), Instant::now() + GIVE_UP);
    let address = address(lab, node)?;
    while http.get(&address, "/readyz").await.is_err() {
        anyhow::ensure!(Instant::now() < until, "node {node} is not ready after {GIVE_UP:?}");
        tokio::time::sleep(POLL).await;
    }
    Ok(Instant::now())
}

fn address(lab: &std::path::Path, node: u64) -> anyhow::Result<String> {
    let lab = Lab::open(lab)?;
    let found = lab.nodes.into_iter().find(|n| n.id == node);
    Ok(found.with_context(|| format!("the lab has no node {node}"))?.http)
}

#[derive(Clone, Debug, clap::Args)]
pub struct InstallArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    /// The `carillonctl` that stops and starts nodes; default: the one beside this program.
    #[arg(long)]
    pub ctl: Option<PathBuf>,
    /// Messages that the first partition gets while the node is away.
    #[arg(long, default_value_t = 1_700_000)]
    pub messages: u64,
    /// Messages a second to the other partitions while it is measured.
    #[arg(long, default_value_t = 2_000.0)]
    pub rate: f64,
    /// The node.
    #[arg(long, default_value_t = 3)]
    pub victim: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Install {
    pub messages: u64,
    pub received_mib: f64,
    /// From the order to start the node until its `/readyz` says yes, and until the last snapshot was installed.
    pub ready_ms: u64,
    pub took_ms: u64,
    /// Acknowledgements of the other partitions with nothing going on, and while the snapshot came.
    pub calm: LoadResult,
    pub during: LoadResult,
}

impl Install {
    fn factor(&self) -> f64 {
        let p99 = |s: &Summary| s.p99_ms;
        if p99(&self.calm.response) > 0.0 {
            p99(&self.during.response) / p99(&self.calm.response)
        } else {
            f64::INFINITY
        }
    }

    pub fn held(&self) -> bool {
        self.factor() <= P99_FACTOR_MAX
    }

    pub fn is_valid(&self) -> bool {
        // A load that goes on after the install measures something else.
        let installing = (self.took_ms - self.ready_ms) as f64 / 1e3 >= self.during.measured_s;
        self.calm.health.invalid.is_none()
            && self.during.health.invalid.is_none()
            && self.received_mib > 0.0
            && installing
    }
}

impl std::fmt::Display for Install {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (mib, s) = (self.received_mib, self.took_ms as f64 / 1e3);
        writeln!(
            f,
            "  {} messages more; {mib:.0} MiB of files fetched and installed in {s:.1} s",
            self.messages
        )?;
        writeln!(f, "other partitions, calm\n{}\nother partitions, during it\n{}", self.calm, self.during)?;
        let verdict = if self.held() { "held" } else { "MISSED" };
        writeln!(
            f,
            "  p99 during / calm: {:.2}; wanted at most {P99_FACTOR_MAX:.0}: {verdict}",
            self.factor()
        )
    }
}

/// Stops a node, lets one partition grow beyond what its log keeps, and starts the node.
pub async fn install(args: &InstallArgs) -> anyhow::Result<Install> {
    let bench = Bench::open(&args.load)?;
    let ctl = Ctl::new(args.ctl.as_deref(), &args.load.lab)?;
    balanced(&ctl, bench.lab.nodes.len()).await?;
    let practices = bench.practices(args.load.partitions)?;
    let (large, others) = practices.split_first().context("no practice")?;
    anyhow::ensure!(!others.is_empty(), "there is only one partition");
    ctl.node("stop-node", args.victim).await?;
    let messages = fill(&bench, std::slice::from_ref(large), &args.load, args.messages).await?;
    // Neither the compactions that filling left nor the node's own start are what is measured.
    settled(&args.load.lab, args.victim).await?;
    let begun = Instant::now();
    ctl.node("start-node", args.victim).await?;
    let ready_ms = until_ready(&args.load.lab, args.victim).await?.duration_since(begun).as_millis() as u64;
    let measured = async {
        let load = bench.parts_of(others, &args.load, Pace::Rate(args.rate), true, BODY_BYTES)?;
        Load::new(load.0, load.1, load.2).run().await
    };
    let (during, installed) = tokio::join!(measured, until_installed(&args.load.lab, args.victim, begun));
    let (during, (took_ms, received_mib)) = (during?, installed?);
    balanced(&ctl, bench.lab.nodes.len()).await?;
    settled(&args.load.lab, 0).await?;
    let load = bench.parts_of(others, &args.load, Pace::Rate(args.rate), true, BODY_BYTES)?;
    let calm = Load::new(load.0, load.1, load.2).run().await?;
    Ok(Install { messages, received_mib, ready_ms, took_ms: took_ms.max(ready_ms), calm, during })
}

/// Until the compactions of all nodes but `without` have come to rest.
async fn settled(lab: &std::path::Path, without: u64) -> anyhow::Result<()> {
    let (http, nodes) = (Http::default(), Lab::open(lab)?.nodes);
    let (mut last, mut changed, begun) = (0.0, Instant::now(), Instant::now());
    while changed.elapsed() < REST {
        anyhow::ensure!(begun.elapsed() < GIVE_UP, "compactions go on after {GIVE_UP:?}");
        tokio::time::sleep(10 * POLL).await;
        let mut now = 0.0;
        for node in nodes.iter().filter(|node| node.id != without) {
            let text = http.get(&node.http, "/metrics").await?;
            let page = Page::parse(&String::from_utf8_lossy(&text));
            now += page.sum("carillon_state_compacted_bytes_total").unwrap_or(0.0);
        }
        if now != last {
            (last, changed) = (now, Instant::now());
        }
    }
    Ok(())
}

/// Until installs have happened and nothing more is fetched for two seconds.
async fn until_installed(lab: &std::path::Path, node: u64, begun: Instant) -> anyhow::Result<(u64, f64)> {
    let (http, address) = (Http::default(), address(lab, node)?);
    let (mut last, mut changed) = ((0.0, 0.0), Instant::now());
    loop {
        anyhow::ensure!(begun.elapsed() < GIVE_UP, "no snapshot was installed in {GIVE_UP:?}");
        tokio::time::sleep(10 * POLL).await;
        let Ok(text) = http.get(&address, "/metrics").await else { continue };
        let page = Page::parse(&String::from_utf8_lossy(&text));
        let of = |name: &str| page.sum(name).unwrap_or(0.0);
        let now = (of("carillon_snapshot_installs_total"), of("carillon_snapshot_received_bytes_total"));
        if now != last {
            (last, changed) = (now, Instant::now());
        } else if now.0 > 0.0 && changed.elapsed() > Duration::from_secs(2) {
            return Ok((changed.duration_since(begun).as_millis() as u64, now.1 / f64::from(1 << 20)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_count_what_is_below() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/b"), vec![0; 1 << 20]).unwrap();
        std::fs::write(dir.path().join("c"), vec![0; 1 << 19]).unwrap();
        assert!((mib_of(dir.path()) - 1.5).abs() < 0.01);
        assert_eq!(mib_of(&dir.path().join("none")), 0.0);
    }

    #[test]
    fn a_restart_is_held_up_to_ten_seconds() {
        let of = |ready_ms| Restart { stored: 5, node: 2, state_mib: 1.0, log_mib: 1.0, ready_ms };
        assert!(of(10_000).held() && !of(10_001).held());
        assert!(of(10_001).to_string().contains("MISSED"));
    }
}
