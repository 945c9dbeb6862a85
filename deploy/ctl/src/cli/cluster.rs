//! Commands that go to the admin API of a cluster.
use super::Verdict;
use super::output::{Format, print, table};
use anyhow::Context as _;
use carillon_ctl::admin::Admin;
use carillon_ctl::lab::Lab;
use carillon_proto::admin::{CarrierStatus, GetStatusResponse, PartitionStatus};
use carillon_proto::internal::{CarrierRecord, PutPractice, ReceiptIdFormat, SmppSettings};
use carillon_proto::tls::TlsFiles;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Whom to ask: a lab, or an address with an operator's certificate.
#[derive(Debug, Args)]
pub struct Target {
    /// Directory of a lab; its operator certificate is used.
    #[arg(long, conflicts_with_all = ["admin", "cert", "key", "ca"], required_unless_present = "admin")]
    lab: Option<PathBuf>,
    /// Which node of the lab to ask.
    #[arg(long, default_value_t = 1, requires = "lab")]
    node: u64,
    /// host:port of the admin API of a node.
    #[arg(long, env = "CARILLON_ADMIN", requires_all = ["cert", "key", "ca"])]
    admin: Option<String>,
    /// Certificate of the operator (PEM).
    #[arg(long, env = "CARILLON_CERT")]
    cert: Option<PathBuf>,
    /// Key of that certificate (PEM).
    #[arg(long, env = "CARILLON_KEY")]
    key: Option<PathBuf>,
    /// CA of the operators' plane (PEM).
    #[arg(long, env = "CARILLON_CA")]
    ca: Option<PathBuf>,
}

impl Target {
    pub(super) fn connect(&self) -> anyhow::Result<Admin> {
        if let Some(dir) = &self.lab {
            return Ok(Lab::open(dir)?.admin(self.node)?);
        }
        match (&self.admin, &self.cert, &self.key, &self.ca) {
            (Some(address), Some(cert), Some(key), Some(ca)) => {
                let files = TlsFiles { cert: cert.clone(), key: key.clone(), ca: ca.clone() };
                Ok(Admin::connect(address, &files, None)?)
            }
            _ => anyhow::bail!("give --lab, or --admin with --cert, --key and --ca"),
        }
    }

    /// The node that leads a group (0 = the meta group), for what only it can do; in a lab we know where it listens.
    pub(super) async fn connect_leader(&self, partition: u32) -> anyhow::Result<Admin> {
        if self.lab.is_none() {
            return self.connect();
        }
        let statuses = self.every_status().await?;
        let known =
            statuses.iter().flat_map(|s| &s.partitions).filter(|p| p.partition == partition && p.leader != 0);
        let newest = known.max_by_key(|p| p.term);
        let leader = newest.with_context(|| format!("partition {partition} has no known leader"))?.leader;
        let dir = self.lab.as_ref().context("checked above")?;
        Ok(Lab::open(dir)?.admin(leader)?)
    }

    /// Of every node of a lab that answers, otherwise of the one node that we know.
    pub(super) async fn every_status(&self) -> anyhow::Result<Vec<GetStatusResponse>> {
        let Some(dir) = &self.lab else { return Ok(vec![self.connect()?.status().await?]) };
        let lab = Lab::open(dir)?;
        let (mut found, mut last) = (Vec::new(), None);
        for id in lab.node_ids() {
            match lab.admin(id)?.status().await {
                Ok(status) => found.push(status),
                Err(error) => last = Some(error),
            }
        }
        match (found.is_empty(), last) {
            (true, Some(error)) => Err(error.into()),
            _ => Ok(found),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum PracticeCommand {
    /// Register a practice, or change its settings.
    Put {
        #[command(flatten)]
        target: Target,
        #[arg(long)]
        tenant: String,
        #[arg(long)]
        practice: String,
        /// IANA time zone, for example America/Chicago.
        #[arg(long)]
        time_zone: String,
        /// The carrier account that its messages use.
        #[arg(long)]
        carrier: String,
        /// Its share of a lane among those of the other practices, 1 to 1000.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        weight: u32,
    },
    /// Stop a practice's messages on a carrier; they wait.
    Pause(super::policy::PauseArgs),
    /// Let a practice go on that was paused, by an operator or by the fuse for bursts.
    Resume(super::policy::PauseArgs),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ReceiptIds {
    Auto,
    Same,
    HexThenDecimal,
    DecimalThenHex,
}

#[derive(Debug, Args)]
pub struct PutCarrierArgs {
    #[command(flatten)]
    target: Target,
    #[arg(long)]
    name: String,
    /// host:port of the carrier.
    #[arg(long)]
    address: String,
    /// Use TLS towards the carrier.
    #[arg(long)]
    tls: bool,
    /// CA of the carrier (PEM).
    #[arg(long, requires = "tls")]
    tls_ca: Option<PathBuf>,
    /// Name in the carrier's certificate, if it is not the host.
    #[arg(long, requires = "tls", default_value = "")]
    tls_server_name: String,
    #[arg(long)]
    system_id: String,
    /// Name of the file in the nodes' secrets directory that holds the password.
    #[arg(long)]
    password_secret: String,
    /// Limit of the account.
    #[arg(long)]
    segments_per_second: u32,
    #[arg(long)]
    source_address: String,
    #[arg(long, default_value_t = 2)]
    binds_per_node: u32,
    /// Unanswered submits on one bind, at most.
    #[arg(long, default_value_t = 64)]
    window: u32,
    #[arg(long, default_value_t = 10_000)]
    enquire_link_ms: u32,
    #[arg(long, default_value_t = 5_000)]
    response_timeout_ms: u32,
    /// How the id in a receipt relates to the id in the answer.
    #[arg(long, value_enum, default_value_t = ReceiptIds::Auto)]
    receipt_ids: ReceiptIds,
    #[arg(long, default_value_t = 1_000)]
    throttle_pause_ms: u32,
}

#[derive(Debug, Subcommand)]
pub enum CarrierCommand {
    /// Register a carrier account, or change its settings.
    Put(Box<PutCarrierArgs>),
}

#[derive(Debug, Subcommand)]
pub enum LogFilterCommand {
    /// Change it until the node restarts, for example to "info,carillon_node=debug".
    Set {
        #[command(flatten)]
        target: Target,
        filter: String,
    },
}

pub async fn status(target: &Target, format: Format) -> anyhow::Result<Verdict> {
    let status = target.connect()?.status().await?;
    let problems = problems(&status);
    print(format, &status_json(&status, &problems), || show_status(&status, &problems))?;
    Ok(if problems.is_empty() { Verdict::Done } else { Verdict::Unhealthy })
}

pub async fn practice(command: PracticeCommand, format: Format) -> anyhow::Result<Verdict> {
    let (target, put) = match command {
        PracticeCommand::Pause(args) => return super::policy::pause(args, true, format).await,
        PracticeCommand::Resume(args) => return super::policy::pause(args, false, format).await,
        PracticeCommand::Put { target, tenant, practice, time_zone, carrier, weight } => {
            // 1 is what a cluster below level 5 understands without the field.
            let weight = if weight == 1 { 0 } else { weight };
            (target, PutPractice { tenant, practice, time_zone, carrier, weight })
        }
    };
    let stored = target.connect()?.put_practice(put).await?;
    let value = json!({
        "practice_no": stored.practice_no, "tenant": stored.tenant, "practice": stored.practice,
        "time_zone": stored.time_zone, "carrier_no": stored.carrier_no, "weight": stored.weight.max(1),
    });
    print(format, &value, || {
        println!("practice {} of {} has number {}", stored.practice, stored.tenant, stored.practice_no);
    })?;
    Ok(Verdict::Done)
}

pub async fn carrier(command: CarrierCommand, format: Format) -> anyhow::Result<Verdict> {
    let CarrierCommand::Put(args) = command;
    let tls_ca_pem = match &args.tls_ca {
        Some(path) => fs_err::read_to_string(path)?,
        None => String::new(),
    };
    let receipt_id_format = match args.receipt_ids {
        ReceiptIds::Auto => ReceiptIdFormat::Auto,
        ReceiptIds::Same => ReceiptIdFormat::Same,
        ReceiptIds::HexThenDecimal => ReceiptIdFormat::HexThenDecimal,
        ReceiptIds::DecimalThenHex => ReceiptIdFormat::DecimalThenHex,
    };
    let record = CarrierRecord {
        carrier_no: 0,
        name: args.name,
        smpp: Some(SmppSettings {
            address: args.address,
            tls: args.tls,
            tls_ca_pem,
            tls_server_name: args.tls_server_name,
            system_id: args.system_id,
            password_secret: args.password_secret,
            binds_per_node: args.binds_per_node,
            window: args.window,
            enquire_link_ms: args.enquire_link_ms,
            response_timeout_ms: args.response_timeout_ms,
            source_address: args.source_address,
            receipt_id_format: receipt_id_format.into(),
            throttle_pause_ms: args.throttle_pause_ms,
        }),
        segments_per_second: args.segments_per_second,
    };
    let stored = args.target.connect()?.put_carrier(record).await?;
    let value = json!({
        "carrier_no": stored.carrier_no, "name": stored.name, "segments_per_second": stored.segments_per_second,
    });
    print(format, &value, || println!("carrier {} has number {}", stored.name, stored.carrier_no))?;
    Ok(Verdict::Done)
}

pub async fn log_filter(command: LogFilterCommand) -> anyhow::Result<Verdict> {
    let LogFilterCommand::Set { target, filter } = command;
    target.connect()?.set_log_filter(&filter).await?;
    Ok(Verdict::Done)
}

/// What an operator must look at.
fn problems(status: &GetStatusResponse) -> Vec<String> {
    let mut problems = Vec::new();
    if status.cluster_id.is_empty() {
        problems.push("the cluster is not created yet".to_owned());
    }
    for p in &status.partitions {
        if p.leader == 0 {
            problems.push(format!("partition {} has no known leader", p.partition));
        }
        if !p.blocked.is_empty() {
            problems.push(format!("partition {} is fenced on this node: {}", p.partition, p.blocked));
        }
    }
    if status.storage_near_full {
        problems.push("the disk of this node is nearly full; submits are refused".to_owned());
    }
    for c in &status.carriers {
        if c.binds_up == 0 {
            problems.push(format!("carrier {} has no bind on this node", carrier_name(c)));
        }
    }
    problems
}

fn carrier_name(c: &CarrierStatus) -> &str {
    c.carrier.as_ref().map_or("?", |record| &record.name)
}

fn show_status(status: &GetStatusResponse, problems: &[String]) {
    let nodes: Vec<String> =
        status.nodes.iter().map(|n| format!("{} ({})", n.node_id, n.peer_address)).collect();
    println!("cluster {}, seen by node {}, version {}", status.cluster_id, status.node_id, status.version);
    println!("nodes {}; {} practices", nodes.join(", "), status.practices.len());
    println!();
    let row = |p: &PartitionStatus| {
        [u64::from(p.partition), p.leader, p.term, p.commit, p.applied].map(|n| n.to_string()).to_vec()
    };
    let rows: Vec<Vec<String>> = status.partitions.iter().map(row).collect();
    table(&["PARTITION", "LEADER", "TERM", "COMMIT", "APPLIED"], &rows);
    println!();
    let row = |c: &CarrierStatus| {
        vec![
            carrier_name(c).to_owned(),
            c.binds_up.to_string(),
            c.in_flight.to_string(),
            format!("{:.1}", c.share_segments_per_second),
            c.paused_ms.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = status.carriers.iter().map(row).collect();
    table(&["CARRIER", "BINDS", "IN FLIGHT", "SHARE/S", "PAUSED MS"], &rows);
    println!();
    match problems {
        [] => println!("healthy"),
        problems => problems.iter().for_each(|p| println!("PROBLEM: {p}")),
    }
}

fn status_json(status: &GetStatusResponse, problems: &[String]) -> Value {
    let nodes = status.nodes.iter().map(|n| json!({ "node_id": n.node_id, "peer_address": n.peer_address }));
    let partitions = status.partitions.iter().map(|p| {
        json!({
            "partition": p.partition, "leader": p.leader, "term": p.term, "commit": p.commit,
            "applied": p.applied, "last_index": p.last_index, "blocked": p.blocked,
            "digest": hex::encode(&p.digest), "digest_index": p.digest_index,
        })
    });
    let practices = status.practices.iter().map(|p| {
        json!({
            "practice_no": p.practice_no, "tenant": p.tenant, "practice": p.practice, "time_zone": p.time_zone,
            "carrier_no": p.carrier_no, "weight": p.weight.max(1),
        })
    });
    let carriers = status.carriers.iter().map(|c| {
        json!({
            "name": carrier_name(c), "binds_up": c.binds_up, "in_flight": c.in_flight,
            "segments_per_second": c.carrier.as_ref().map_or(0, |r| r.segments_per_second),
            "share_segments_per_second": c.share_segments_per_second, "paused_ms": c.paused_ms,
        })
    });
    json!({
        "cluster_id": status.cluster_id, "node_id": status.node_id, "version": status.version,
        "healthy": problems.is_empty(), "problems": problems, "nodes": nodes.collect::<Vec<_>>(),
        "partitions": partitions.collect::<Vec<_>>(), "practices": practices.collect::<Vec<_>>(),
        "carriers": carriers.collect::<Vec<_>>(),
    })
}
