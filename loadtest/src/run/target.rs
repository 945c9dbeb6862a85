//! The cluster that the load goes to: one that is there, or one that is started for the run.
//!
//! Owns: `--launch` (a lab in a directory of the run, with the scenario's practices, lane limit, profile and hours) and
//! `--target`. Invariant: a cluster that was launched is stopped, however the run ends; one that was there is left alone,
//! but for the profile of its carrier simulator where the scenario asks for one.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;
use tokio::process::Command;

use super::engine::Address;
use super::scenario::Scenario;
use super::workload::Population;
use crate::bench::ctl::Ctl;
use crate::carrier::Carrier;
use crate::http::Http;
use crate::lab::Lab;

/// How to reach a cluster that is there.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TargetArgs {
    /// Start a cluster of so many nodes for the run, with router and carrier simulator; without a number, as many as the
    /// scenario says.
    #[arg(long, value_name = "NODES", num_args = 0..=1, default_missing_value = "0", conflicts_with = "target")]
    pub launch: Option<u64>,
    /// A cluster that is there: the directory of a lab, or host:port of its API (with --cert, --key and --ca).
    #[arg(long)]
    pub target: Option<String>,
    /// The tenant's certificate chain (PEM).
    #[arg(long, requires = "target")]
    pub cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, requires = "target")]
    pub key: Option<PathBuf>,
    /// The CA of the cluster's clients (PEM).
    #[arg(long, requires = "target")]
    pub ca: Option<PathBuf>,
    /// host:port of the control plane of the carrier simulator: without it nobody can say what the carrier received.
    #[arg(long, requires = "target")]
    pub carrier: Option<String>,
    /// The `carillonctl` that starts clusters and makes faults; default: the one beside this program.
    #[arg(long)]
    pub ctl: Option<PathBuf>,
}

/// A practice to register; the launcher reads name and zone.
#[derive(Serialize)]
struct Registered<'a> {
    name: &'a str,
    time_zone: &'a str,
}

/// A cluster to put load on.
pub struct Target {
    pub address: Address,
    pub carrier: Option<Carrier>,
    pub lab: Option<PathBuf>,
    pub ctl: Option<Ctl>,
    /// It was started for this run: nobody else uses it.
    pub launched: bool,
    pub text: String,
}

fn of_lab(dir: &Path, args: &TargetArgs, launched: bool) -> anyhow::Result<Target> {
    let lab = Lab::open(dir)?;
    let carrier = Carrier::new(Http::default(), &lab.smsc_http);
    Ok(Target {
        address: Address {
            router: lab.router.clone(),
            cert: lab.tenant_cert.clone(),
            key: lab.tenant_key.clone(),
            ca: lab.ca.clone(),
        },
        carrier: Some(carrier),
        ctl: Some(Ctl::new(args.ctl.as_deref(), dir)?),
        text: format!("{} nodes, router {}", lab.nodes.len(), lab.router),
        lab: Some(dir.to_owned()),
        launched,
    })
}

fn attach(args: &TargetArgs, target: &str) -> anyhow::Result<Target> {
    if Path::new(target).is_dir() {
        return of_lab(Path::new(target), args, false);
    }
    let file = |path: &Option<PathBuf>, what: &str| {
        path.clone().with_context(|| format!("--target {target} is no directory, so it needs --{what}"))
    };
    Ok(Target {
        address: Address {
            router: target.to_owned(),
            cert: file(&args.cert, "cert")?,
            key: file(&args.key, "key")?,
            ca: file(&args.ca, "ca")?,
        },
        carrier: args.carrier.as_deref().map(|address| Carrier::new(Http::default(), address)),
        lab: None,
        ctl: None,
        launched: false,
        text: target.to_owned(),
    })
}

/// The practices of a scenario, as the launcher reads them.
pub fn practices_json(scenario: &Scenario) -> anyhow::Result<Vec<u8>> {
    let population = Population::new(&scenario.practices)?;
    let list: Vec<Registered<'_>> = population
        .practices
        .iter()
        .map(|practice| Registered { name: &practice.name, time_zone: &practice.time_zone })
        .collect();
    Ok(serde_json::to_vec_pretty(&list)?)
}

async fn launch(args: &TargetArgs, nodes: u64, scenario: &Scenario, dir: &Path) -> anyhow::Result<Target> {
    let wanted = &scenario.launch;
    let nodes = if nodes == 0 { wanted.nodes } else { nodes };
    anyhow::ensure!(matches!(nodes, 1 | 3 | 5 | 7), "--launch takes 1, 3, 5 or 7");
    let (practices, profile) = (dir.join("practices.json"), dir.join("carrier.toml"));
    fs_err::write(&practices, practices_json(scenario)?)?;
    fs_err::write(&profile, toml::to_string(&scenario.carrier)?)?;
    let lab = dir.join("lab");
    let ctl = Ctl::new(args.ctl.as_deref(), &lab)?;
    let mut command = Command::new(ctl.program());
    command.args(["lab", "up", "--log-filter", "warn", "--ready-limit-s", "180"]);
    command.args(["--nodes", &nodes.to_string(), "--partitions", &wanted.partitions.to_string()]);
    command.args(["--lane-limit", &wanted.lane_limit.to_string(), "--hours", &wanted.hours]);
    command.arg("--practices").arg(&practices).arg("--profile").arg(&profile).arg("--dir").arg(&lab);
    if !wanted.node_config.is_empty() {
        let path = dir.join("node-config.toml");
        fs_err::write(&path, &wanted.node_config)?;
        command.arg("--node-config").arg(path);
    }
    let output = command.output().await.with_context(|| format!("cannot run {}", ctl.program().display()))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        // What did start must not stay.
        let _ = ctl.down().await;
        anyhow::bail!("the cluster did not start: {why}");
    }
    of_lab(&lab, args, true)
}

impl Target {
    /// Opens or starts the cluster; `dir` is for what has to be written.
    pub async fn open(args: &TargetArgs, scenario: &Scenario, dir: &Path) -> anyhow::Result<Self> {
        match (&args.target, args.launch) {
            (Some(target), _) => {
                let target = attach(args, target)?;
                if let (Some(carrier), false) = (&target.carrier, scenario.carrier.is_empty()) {
                    carrier.set_profile(&toml::to_string(&scenario.carrier)?).await?;
                }
                Ok(target)
            }
            (None, nodes) => launch(args, nodes.unwrap_or(0), scenario, dir).await,
        }
    }

    /// Stops what was started.
    pub async fn close(&self) -> anyhow::Result<()> {
        match &self.ctl {
            Some(ctl) if self.launched => ctl.down().await,
            _ => Ok(()),
        }
    }

    /// Nodes with their side ports, as they are now: pids and states change with faults.
    pub fn lab(&self) -> Option<Lab> {
        self.lab.as_deref().and_then(|dir| Lab::open(dir).ok())
    }
}
