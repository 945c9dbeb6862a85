//! `bench`: how fast the cluster accepts and delivers, measured so that the generator is not measured with it.
//!
//! Owns: the subcommands and what they share ([`Bench`]). Every load shows response time (from the intended time) and
//! service time (from sending) side by side, and the health of the generator; a run in which the generator was the
//! bottleneck says INVALID.

pub mod codec;
pub mod cost;
pub mod ctl;
pub mod e2e;
pub mod failover;
pub mod feed;
pub mod fsync;
pub mod idle;
pub mod lane;
pub mod load;
pub mod measure;
pub mod numbers;
pub mod pacer;
pub mod recovery;
pub mod scheduled;
pub mod stream;

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use serde::Serialize;

use crate::carrier::Carrier;
use crate::client::{Client, ClientConfig};
use crate::http::Http;
use crate::lab::Lab;
use crate::sample_day::{Practice, practices};
use feed::{Content, Feed, even_practices};
use load::{Load, LoadConfig, Pace};

/// How far in the future messages lie that must not be delivered.
const FAR: Duration = Duration::from_secs(300 * 86_400);

/// What every load needs.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadArgs {
    /// The directory that `carillonctl lab up` made.
    #[arg(long)]
    pub lab: PathBuf,
    /// Seconds measured.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub secs: u64,
    /// Seconds before, which do not count.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(0..=600))]
    pub warm_up_s: u64,
    /// Connections, each with one stream.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub connections: u16,
    /// Messages in a batch.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub batch: u16,
    /// Batches in flight on a connection.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub window: u16,
    /// Messages of one practice before the next practice's: 1 spreads each batch over all partitions, the size of a
    /// batch makes each batch a practice's own upload.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub row: u64,
    /// Partitions of the cluster: one practice is chosen for each.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub partitions: u32,
    /// Octets of a body in end-to-end runs; up to 160 is one SMS.
    #[arg(long, default_value_t = 120)]
    pub e2e_body_bytes: usize,
    /// End to end: accepted messages that are not finished, at most.
    #[arg(long, default_value_t = 20_000)]
    pub unfinished_max: u64,
    /// Write the result to this file as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// Measure a lab.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// How many messages a second are accepted, and how fast they are acknowledged. Nothing is delivered.
    Accept {
        #[command(flatten)]
        load: LoadArgs,
        /// Messages per second (open loop), or `max` (closed loop).
        #[arg(long, default_value = "max")]
        rate: Pace,
        /// Octets of a body.
        #[arg(long, default_value_t = 300)]
        body_bytes: usize,
    },
    /// From acceptance over SMPP to the receipt.
    E2e {
        #[command(flatten)]
        load: LoadArgs,
        /// Messages per second (open loop), or `max` (closed loop).
        #[arg(long, default_value = "max")]
        rate: Pace,
    },
    /// Kill a node, again and again: when do all of its partitions accept again?
    Failover(failover::Args),
    /// How much of a lane's limit is used under a backlog of practices of very different sizes.
    Lane(lane::Args),
    /// How long a node that was killed takes to serve again when the cluster holds many messages.
    Restart(recovery::RestartArgs),
    /// What callers of other partitions notice while a node fetches a large partition's snapshot.
    Install(recovery::InstallArgs),
    /// What many messages of the far future cost each node in memory.
    Scheduled(scheduled::Args),
    /// What the disk can do: 64 KiB append + fdatasync.
    Fsync {
        /// A directory on the disk.
        #[arg(long)]
        dir: PathBuf,
        #[arg(long, default_value_t = 5)]
        secs: u64,
    },
    /// All promised figures in one run.
    Numbers {
        #[command(flatten)]
        load: LoadArgs,
        /// Seconds of the idle measurement.
        #[arg(long, default_value_t = 20)]
        idle_s: u64,
    },
}

/// How a bench ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Held,
    Missed,
    Invalid,
}

/// A lab to put load on.
pub struct Bench {
    pub lab: Lab,
    tenant: String,
}

fn now_ms() -> anyhow::Result<i64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64)
}

impl Bench {
    fn open(args: &LoadArgs) -> anyhow::Result<Self> {
        let lab = Lab::open(&args.lab)?;
        let tenant = lab.tenant()?;
        Ok(Self { lab, tenant })
    }

    fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.lab.router, &self.lab.tls(), ClientConfig::default())?)
    }

    /// The carrier without faults, with fast receipts.
    async fn calm_carrier(&self) -> anyhow::Result<()> {
        let carrier = Carrier::new(Http::default(), &self.lab.smsc_http);
        carrier.reset().await?;
        Ok(carrier.set_profile("base = \"perfect\"\n").await?)
    }

    /// The parts of a load; its clock starts when they are put together.
    fn parts(
        &self,
        args: &LoadArgs,
        pace: Pace,
        far: bool,
        body_bytes: usize,
    ) -> anyhow::Result<(Vec<Client>, Feed, LoadConfig)> {
        let practices = self.practices(args.partitions)?;
        self.parts_of(&practices, args, pace, far, body_bytes)
    }

    /// One practice for each partition, in their order.
    fn practices(&self, partitions: u32) -> anyhow::Result<Vec<Practice>> {
        let (practices, missing) = even_practices(&self.tenant, &practices()?, partitions);
        anyhow::ensure!(!practices.is_empty(), "no practice falls into any partition");
        if !missing.is_empty() {
            eprintln!("no practice of the sample day falls into partitions {missing:?}: the load is uneven");
        }
        Ok(practices)
    }

    fn parts_of(
        &self,
        practices: &[Practice],
        args: &LoadArgs,
        pace: Pace,
        far: bool,
        body_bytes: usize,
    ) -> anyhow::Result<(Vec<Client>, Feed, LoadConfig)> {
        let clients = (0..args.connections).map(|_| self.client()).collect::<Result<Vec<_>, _>>()?;
        let now_ms = now_ms()?;
        let not_before_ms = far.then_some(now_ms + FAR.as_millis() as i64);
        let content = Content { body_bytes, not_before_ms, row: args.row };
        // Two runs within 50 days never share a key.
        let feed = Feed::new(practices, &content, now_ms as u32);
        let config = LoadConfig {
            pace,
            warm_up: Duration::from_secs(args.warm_up_s),
            measured: Duration::from_secs(args.secs),
            batch: usize::from(args.batch),
            window: usize::from(args.window),
            unfinished_max: if far { u64::MAX } else { args.unfinished_max },
            processes: cost::processes(&self.lab),
        };
        Ok((clients, feed, config))
    }

    fn load(&self, args: &LoadArgs, pace: Pace, far: bool, body_bytes: usize) -> anyhow::Result<Load> {
        let (clients, feed, config) = self.parts(args, pace, far, body_bytes)?;
        Ok(Load::new(clients, feed, config))
    }
}

fn keep(path: Option<&PathBuf>, value: &impl Serialize) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(value)?;
    match path {
        Some(path) => fs_err::write(path, json)?,
        None => println!("{json}"),
    }
    Ok(())
}

fn verdict(invalid: bool, held: bool) -> Verdict {
    match (invalid, held) {
        (true, _) => Verdict::Invalid,
        (false, true) => Verdict::Held,
        (false, false) => Verdict::Missed,
    }
}

/// Runs a subcommand.
pub async fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Accept { load, rate, body_bytes } => {
            let result = Bench::open(&load)?.load(&load, rate, true, body_bytes)?.run().await?;
            println!("accept, bodies of {body_bytes} octets\n{result}");
            keep(load.json.as_ref(), &result)?;
            // As fast as it goes means up to where the cluster says that it is too fast.
            let at_limit = |reason: &String| rate == Pace::Max && reason == "OVERLOADED";
            let held = result.refused.keys().all(at_limit);
            Ok(verdict(result.health.invalid.is_some(), held))
        }
        Command::E2e { load, rate } => {
            let bench = Bench::open(&load)?;
            bench.calm_carrier().await?;
            let result = numbers::e2e_run(&bench, &load, rate).await?;
            println!("end to end, bodies of {} octets\n{result}", load.e2e_body_bytes);
            keep(load.json.as_ref(), &result)?;
            Ok(verdict(result.invalid.is_some(), result.unfinished == 0))
        }
        Command::Failover(args) => {
            let result = failover::run(&args).await?;
            println!("failover\n{result}");
            keep(args.json.as_ref(), &result)?;
            Ok(verdict(false, result.held()))
        }
        Command::Lane(args) => {
            let result = lane::run(&args).await?;
            println!("lane\n{result}");
            keep(args.json.as_ref(), &result)?;
            Ok(verdict(false, result.held()))
        }
        Command::Restart(args) => {
            let result = recovery::restart(&args).await?;
            println!("restart\n{result}");
            keep(args.load.json.as_ref(), &result)?;
            Ok(verdict(false, result.held()))
        }
        Command::Install(args) => {
            let result = recovery::install(&args).await?;
            println!("install of a snapshot\n{result}");
            keep(args.load.json.as_ref(), &result)?;
            Ok(verdict(!result.is_valid(), result.held()))
        }
        Command::Scheduled(args) => {
            let result = scheduled::run(&args).await?;
            println!("scheduled\n{result}");
            keep(args.load.json.as_ref(), &result)?;
            Ok(verdict(false, result.held()))
        }
        Command::Fsync { dir, secs } => {
            let length = Duration::from_secs(secs);
            let times =
                tokio::task::spawn_blocking(move || fsync::run(&dir, length, Duration::ZERO)).await??;
            println!("64 KiB append + fdatasync, {} times\n  {}", times.count(), times.summary());
            Ok(Verdict::Held)
        }
        Command::Numbers { load, idle_s } => {
            let bench = Bench::open(&load)?;
            let numbers = numbers::run(&bench, &load, idle_s).await?;
            println!("{numbers}");
            keep(load.json.as_ref(), &numbers)?;
            Ok(verdict(!numbers.is_valid(), numbers.all_held()))
        }
    }
}
