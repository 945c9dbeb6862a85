//! `carillonctl lab ...`: a cluster on this machine.
use super::Verdict;
use super::output::{Format, print, table};
use carillon_ctl::lab::{ALL_DAY, Fixed, Lab, LabOptions, Member, OPERATOR, Practice, ProcessState, TENANT};
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Args)]
pub struct Dir {
    /// Directory of the lab.
    #[arg(long, default_value = "lab")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct Size {
    /// Nodes of a new lab: 1, 3, 5 or 7 [default: 3].
    #[arg(long)]
    nodes: Option<u64>,
    /// Partitions of a new lab [default: 16].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    partitions: Option<u32>,
    /// What the processes of a new lab log, in the syntax of RUST_LOG [default: info].
    #[arg(long)]
    log_filter: Option<String>,
}

impl Size {
    fn fixed(&self) -> Fixed {
        Fixed {
            nodes: self.nodes,
            partitions: self.partitions,
            log_filter: self.log_filter.clone(),
            ..Fixed::default()
        }
    }

    /// Of a new lab.
    fn options(self) -> LabOptions {
        let default = LabOptions::default();
        LabOptions {
            nodes: self.nodes.unwrap_or(default.nodes),
            partitions: self.partitions.unwrap_or(default.partitions),
            log_filter: self.log_filter.unwrap_or_else(|| default.log_filter.clone()),
            ..default
        }
    }
}

#[derive(Debug, Args)]
pub struct Up {
    #[command(flatten)]
    dir: Dir,
    #[command(flatten)]
    size: Size,
    /// Segments per second: limit of the lane and contract of the carrier simulator.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    lane_limit: u32,
    /// Practices to register for the tenant `lakeside`: a JSON list of objects with name and time_zone.
    #[arg(long)]
    practices: Option<PathBuf>,
    /// Behaviour of the carrier: perfect, realistic, storm, lossy, throttled, or the path of a profile (TOML).
    #[arg(long, default_value = "realistic")]
    profile: String,
    /// A second carrier, sim-http, that speaks Twilio's API over HTTPS. Only of a new lab.
    #[arg(long)]
    with_http_carrier: bool,
    /// The nodes talk to the carrier simulator over TLS. Only of a new lab.
    #[arg(long)]
    carrier_tls: bool,
    /// More tables of the nodes' configuration (TOML), for example `[retention]`.
    #[arg(long)]
    node_config: Option<PathBuf>,
    /// When recipients may be texted: `any` for at any hour, `built-in` for the rules built in, or the path of rules (TOML).
    #[arg(long, default_value = "any")]
    hours: String,
    /// Seconds to wait until all is ready.
    #[arg(long, default_value_t = 60)]
    ready_limit_s: u64,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make certificates, key, secrets and configurations.
    Init {
        #[command(flatten)]
        dir: Dir,
        #[command(flatten)]
        size: Size,
    },
    /// Start everything, wait until it is ready, and register the carrier and the practices.
    Up(Up),
    /// Stop everything.
    Down {
        #[command(flatten)]
        dir: Dir,
    },
    /// Kill a node with SIGKILL, as a crash would.
    KillNode {
        node: u64,
        #[command(flatten)]
        dir: Dir,
    },
    /// Start one more node, which joins the running cluster with a token, and wait until it is ready.
    AddNode {
        #[command(flatten)]
        dir: Dir,
        /// What it logs, in the syntax of RUST_LOG.
        #[arg(long, default_value = "info")]
        log_filter: String,
        #[arg(long, default_value_t = 60)]
        ready_limit_s: u64,
    },
    /// Stop a node as an operator would: it hands over what it leads first.
    StopNode {
        node: u64,
        #[command(flatten)]
        dir: Dir,
    },
    /// Stop a node that was decommissioned, and forget it.
    RemoveNode {
        node: u64,
        #[command(flatten)]
        dir: Dir,
    },
    /// Start a node again and wait until it is ready.
    StartNode {
        node: u64,
        #[command(flatten)]
        dir: Dir,
        /// Seconds to wait; 0 does not wait.
        #[arg(long, default_value_t = 60)]
        ready_limit_s: u64,
    },
    /// Stop a node with SIGSTOP: it stands still, its connections stay.
    PauseNode {
        node: u64,
        #[command(flatten)]
        dir: Dir,
    },
    /// Let a paused node go on.
    ResumeNode {
        node: u64,
        #[command(flatten)]
        dir: Dir,
    },
    /// What runs and is ready; exit code 3 if not everything.
    Status {
        #[command(flatten)]
        dir: Dir,
    },
}

pub async fn run(command: Command, format: Format) -> anyhow::Result<Verdict> {
    match command {
        Command::Init { dir, size } => {
            size.fixed().check(&dir.dir)?;
            let lab = Lab::init(&dir.dir, &size.options())?;
            let value = json!({ "dir": lab.dir() });
            print(format, &value, || println!("lab in {}", lab.dir().display()))?;
            Ok(Verdict::Done)
        }
        Command::Up(up) => start(up, format).await,
        Command::Down { dir } => {
            let stopped = Lab::open(&dir.dir)?.down()?;
            print(format, &json!({ "stopped": stopped }), || println!("{stopped} processes stopped"))?;
            Ok(Verdict::Done)
        }
        Command::KillNode { node, dir } => {
            Lab::open(&dir.dir)?.kill_node(node)?;
            print(format, &json!({ "killed": node }), || println!("node {node} killed"))?;
            Ok(Verdict::Done)
        }
        Command::PauseNode { node, dir } => {
            Lab::open(&dir.dir)?.pause_node(node)?;
            print(format, &json!({ "paused": node }), || println!("node {node} paused"))?;
            Ok(Verdict::Done)
        }
        Command::ResumeNode { node, dir } => {
            Lab::open(&dir.dir)?.resume_node(node)?;
            print(format, &json!({ "resumed": node }), || println!("node {node} goes on"))?;
            Ok(Verdict::Done)
        }
        Command::AddNode { dir, log_filter, ready_limit_s } => {
            let lab = Lab::open(&dir.dir)?;
            let node = lab.add_node(&log_filter).await?;
            lab.until_node_ready(node, Duration::from_secs(ready_limit_s)).await?;
            print(format, &json!({ "added": node }), || println!("node {node} joined"))?;
            Ok(Verdict::Done)
        }
        Command::StopNode { node, dir } => {
            Lab::open(&dir.dir)?.stop_node(node)?;
            print(format, &json!({ "stopped": node }), || println!("node {node} stopped"))?;
            Ok(Verdict::Done)
        }
        Command::RemoveNode { node, dir } => {
            Lab::open(&dir.dir)?.remove_node(node)?;
            print(format, &json!({ "removed": node }), || println!("node {node} stopped and forgotten"))?;
            Ok(Verdict::Done)
        }
        Command::StartNode { node, dir, ready_limit_s } => {
            let lab = Lab::open(&dir.dir)?;
            lab.start_node(node)?;
            if ready_limit_s > 0 {
                lab.until_node_ready(node, Duration::from_secs(ready_limit_s)).await?;
            }
            print(format, &json!({ "started": node }), || println!("node {node} started"))?;
            Ok(Verdict::Done)
        }
        Command::Status { dir } => {
            let members = Lab::open(&dir.dir)?.status().await?;
            print(format, &members, || show(&members))?;
            let healthy = members.iter().all(|m| m.ready);
            Ok(if healthy { Verdict::Done } else { Verdict::Unhealthy })
        }
    }
}

async fn start(up: Up, format: Format) -> anyhow::Result<Verdict> {
    let practices = match &up.practices {
        Some(path) => Practice::read_list(path)?,
        None => Vec::new(),
    };
    let registered = up.practices.is_some().then_some(practices.len());
    let node_config = match &up.node_config {
        Some(path) => fs_err::read_to_string(path)?,
        None => String::new(),
    };
    let hours = match up.hours.as_str() {
        "any" => Some(ALL_DAY.to_owned()),
        "built-in" => None,
        path => Some(fs_err::read_to_string(path)?),
    };
    let fixed = Fixed {
        node_config: up.node_config.is_some().then(|| node_config.clone()),
        with_http_carrier: up.with_http_carrier,
        carrier_tls: up.carrier_tls,
        ..up.size.fixed()
    };
    fixed.check(&up.dir.dir)?;
    let options = LabOptions {
        hours,
        node_config,
        lane_limit: up.lane_limit,
        practices,
        profile: up.profile,
        ready_limit_ms: up.ready_limit_s.saturating_mul(1_000),
        with_rest: up.with_http_carrier,
        carrier_tls: up.carrier_tls,
        ..up.size.options()
    };
    let lab = Lab::up(&up.dir.dir, &options).await?;
    let members = lab.status().await?;
    let value = json!({ "dir": lab.dir(), "router": lab.router_address(), "members": members });
    print(format, &value, || {
        show(&members);
        endpoints(&lab, &up.dir.dir, registered);
        println!("Hours              {} (see `carillonctl hours`)", up.hours);
    })?;
    lab.detach();
    Ok(Verdict::Done)
}

fn show(members: &[Member]) {
    let rows: Vec<Vec<String>> = members
        .iter()
        .map(|m| {
            let state = match (m.state, m.ready) {
                (ProcessState::Running, true) => "ready",
                (ProcessState::Running, false) => "not ready",
                (ProcessState::Ended, _) => "ended",
                (ProcessState::Stopped, _) => "stopped",
            };
            let pid = m.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            vec![m.name.clone(), state.to_owned(), pid, m.detail.clone()]
        })
        .collect();
    table(&["PROCESS", "STATE", "PID", "HTTP"], &rows);
}

fn endpoints(lab: &Lab, dir: &Path, practices: Option<usize>) {
    let dir = dir.display();
    let plan = lab.plan();
    println!();
    println!("API (gRPC, TLS)    {}", lab.router_address());
    println!("  CA               {dir}/pki/clients-ca.pem");
    let practices = practices.map_or_else(String::new, |count| format!(" ({count} practices)"));
    println!("  certificate      {dir}/pki/tenant-{TENANT}.pem and .key{practices}");
    println!("Operators          {dir}/pki/operator-{OPERATOR}.pem and .key");
    println!("Carrier simulator  SMPP {}, control http://{}", plan.smsc(), lab.smsc_http());
    println!("Lane limit         {} segments/s", plan.lane_limit);
    println!("Metrics and logs   http://{}/metrics, {dir}/logs/", lab.router_http());
}
