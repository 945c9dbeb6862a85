//! `carillonctl backup|restore|quarantine ...`.
use super::Verdict;
use super::output::{Format, print, table};
use anyhow::Context as _;
use carillon_ctl::admin::Admin;
use carillon_ctl::backup::{self, CreateOptions, Listed, Location, Nodes, Progress};
use carillon_ctl::lab::Lab;
use carillon_proto::tls::TlsFiles;
use clap::{ArgGroup, Args, Subcommand};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// All nodes of a cluster: a lab, or their addresses with an operator's certificate.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whom").args(["lab", "admin"]).required(true).multiple(true)))]
pub struct Everyone {
    /// Directory of a lab; its operator certificate is used.
    #[arg(long, conflicts_with_all = ["admin", "cert", "key", "ca"])]
    lab: Option<PathBuf>,
    /// host:port of the admin API of each node, separated by commas.
    #[arg(long, env = "CARILLON_ADMIN", value_delimiter = ',', requires_all = ["cert", "key", "ca"])]
    admin: Vec<String>,
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

impl Everyone {
    pub(super) fn connect(&self) -> anyhow::Result<Nodes> {
        if let Some(dir) = &self.lab {
            let lab = Lab::open(dir)?;
            let admins = lab.node_ids().into_iter().map(|id| lab.admin(id));
            return Ok(Nodes::new(admins.collect::<Result<_, _>>()?));
        }
        let (Some(cert), Some(key), Some(ca)) = (&self.cert, &self.key, &self.ca) else {
            anyhow::bail!("give --lab, or --admin with --cert, --key and --ca");
        };
        let files = TlsFiles { cert: cert.clone(), key: key.clone(), ca: ca.clone() };
        let admins = self.admin.iter().map(|address| Admin::connect(address, &files, None));
        Ok(Nodes::new(admins.collect::<Result<_, _>>()?))
    }
}

#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Back up a running cluster. It goes on as before; nothing leaves the nodes but sealed records and wrapped keys.
    Create {
        #[command(flatten)]
        nodes: Everyone,
        /// A directory, or s3://bucket/prefix (credentials and endpoint from AWS_* variables).
        #[arg(long)]
        to: String,
        /// MiB per second, all nodes together; 0 = as fast as the nodes send.
        #[arg(long, default_value_t = 0)]
        rate_mib_s: u64,
        /// Finish the backup of this name, which broke off.
        #[arg(long)]
        resume: Option<String>,
    },
    /// Show what backups there are; exit code 3 if the newest complete one is too old.
    List {
        /// A directory, or s3://bucket/prefix.
        #[arg(long)]
        from: String,
        /// Hours that the newest complete backup may be old.
        #[arg(long)]
        max_age_h: Option<u64>,
    },
    /// Read a whole backup and compare it with its manifest.
    Verify {
        /// A directory, or s3://bucket/prefix.
        #[arg(long)]
        from: String,
        /// Its name; the newest complete one if not given.
        #[arg(long)]
        backup: Option<String>,
    },
}

/// Restore a backup into a new cluster without practices. Run again, it goes on where it stopped.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    nodes: Everyone,
    /// A directory, or s3://bucket/prefix.
    #[arg(long)]
    from: String,
    /// Name of the backup; the newest complete one if not given.
    #[arg(long)]
    backup: Option<String>,
    /// MiB per second, all nodes together; 0 = no limit.
    #[arg(long, default_value_t = 0)]
    rate_mib_s: u64,
}

/// A bar on the terminal; nothing where there is none.
struct Bar(ProgressBar);

impl Bar {
    fn new(what: &'static str) -> Self {
        let bar = ProgressBar::new(0);
        let style =
            ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} partitions, {msg} [{elapsed}]");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_prefix(what);
        Self(bar)
    }

    fn watcher(&self) -> impl Fn(Progress) + Sync + '_ {
        let bytes = std::sync::atomic::AtomicU64::new(0);
        move |progress| match progress {
            Progress::Bytes(more) => {
                let all = bytes.fetch_add(more, std::sync::atomic::Ordering::Relaxed) + more;
                self.0.set_message(HumanBytes(all).to_string());
            }
            Progress::Partitions { done, all } => {
                self.0.set_length(u64::from(all));
                self.0.set_position(u64::from(done));
            }
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

pub async fn run(command: BackupCommand, format: Format) -> anyhow::Result<Verdict> {
    match command {
        BackupCommand::Create { nodes, to, rate_mib_s, resume } => {
            let options = CreateOptions { bytes_per_second: rate_mib_s << 20, resume };
            let (nodes, to) = (nodes.connect()?, Location::open(&to)?);
            let bar = Bar::new("backup");
            let made = backup::create(&nodes, &to, &options, &bar.watcher()).await?;
            drop(bar);
            let (bytes, parts) = (made.manifest.bytes(), made.manifest.partitions);
            let took_ms = made.manifest.finished_at_ms.saturating_sub(made.manifest.begun_at_ms);
            let value = json!({
                "backup": made.name, "id": made.manifest.id, "partitions": parts, "bytes": bytes, "took_ms": took_ms,
            });
            print(format, &value, || {
                println!("{}: {parts} partitions, {}, {took_ms} ms", made.name, HumanBytes(bytes));
            })?;
            Ok(Verdict::Done)
        }
        BackupCommand::List { from, max_age_h } => list(&Location::existing(&from)?, max_age_h, format).await,
        BackupCommand::Verify { from, backup } => {
            let from = Location::existing(&from)?;
            let name = name_of(&from, backup).await?;
            let bar = Bar::new("verify");
            let manifest = backup::verify(&from, &name, &bar.watcher()).await?;
            drop(bar);
            let value = json!({ "backup": name, "bytes": manifest.bytes(), "complete": true });
            print(format, &value, || println!("{name}: whole, {}", HumanBytes(manifest.bytes())))?;
            Ok(Verdict::Done)
        }
    }
}

async fn name_of(from: &Location, given: Option<String>) -> anyhow::Result<String> {
    match given {
        Some(name) => Ok(name),
        None => Ok(backup::newest(from).await?),
    }
}

async fn list(from: &Location, max_age_h: Option<u64>, format: Format) -> anyhow::Result<Verdict> {
    let all = backup::list(from).await?;
    let now_ms =
        SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_millis();
    let newest_ms = all.iter().filter_map(|l| l.manifest.as_ref()).map(|m| m.begun_at_ms).max();
    let late = max_age_h.is_some_and(|hours| {
        let max = Duration::from_secs(hours * 3_600).as_millis();
        newest_ms.is_none_or(|at| now_ms.saturating_sub(u128::from(at)) > max)
    });
    let state = |listed: &Listed| match (&listed.manifest, &listed.problem) {
        (Some(_), _) => "complete".to_owned(),
        (None, Some(problem)) => problem.clone(),
        (None, None) => "incomplete".to_owned(),
    };
    let value = all.iter().map(|listed| {
        let manifest = listed.manifest.as_ref();
        json!({
            "backup": listed.name, "state": state(listed), "cluster_id": manifest.map(|m| &m.cluster_id),
            "partitions": manifest.map(|m| m.partitions), "bytes": manifest.map(|m| m.bytes()),
            "begun_at_ms": manifest.map(|m| m.begun_at_ms), "feature_level": manifest.map(|m| m.feature_level),
        })
    });
    print(format, &json!({ "late": late, "backups": value.collect::<Vec<_>>() }), || {
        let rows: Vec<Vec<String>> = all
            .iter()
            .map(|listed| {
                let bytes = listed.manifest.as_ref().map(|m| HumanBytes(m.bytes()).to_string());
                let cluster = listed.manifest.as_ref().map(|m| m.cluster_id.clone());
                vec![
                    listed.name.clone(),
                    cluster.unwrap_or_default(),
                    bytes.unwrap_or_default(),
                    state(listed),
                ]
            })
            .collect();
        table(&["BACKUP", "CLUSTER", "SIZE", "STATE"], &rows);
        if late {
            println!("PROBLEM: the newest complete backup is too old, or there is none");
        }
    })?;
    Ok(if late { Verdict::Unhealthy } else { Verdict::Done })
}

pub async fn restore(args: RestoreArgs, format: Format) -> anyhow::Result<Verdict> {
    let (nodes, from) = (args.nodes.connect()?, Location::existing(&args.from)?);
    let name = name_of(&from, args.backup).await?;
    let bar = Bar::new("restore");
    let done = backup::restore(&nodes, &from, &name, args.rate_mib_s << 20, &bar.watcher()).await?;
    drop(bar);
    let value = json!({
        "backup": name, "messages": done.messages, "quarantined": done.quarantined, "waiting": done.waiting,
        "took_ms": done.took_ms,
    });
    print(format, &value, || {
        println!("{name}: {} messages restored in {} ms", done.messages, done.took_ms);
        println!("{} of them wait for a time that has not come, and go on by themselves", done.waiting);
        println!("{} of them may have been sent after the backup, and are held:", done.quarantined);
        println!("look at them with `carillonctl quarantine list`, then release or drop them");
    })?;
    Ok(Verdict::Done)
}
