//! `carillonctl node rebuild`: the one command for a node whose data cannot be used. In a lab it does everything; outside of one it does
//! the cluster's half and prints what is left to do on the machine.
use super::Verdict;
use super::output::{Format, print};
use super::target::Target;
use carillon_ctl::lab::{Lab, LabError, give_up};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Args)]
pub struct RebuildArgs {
    /// The node whose data cannot be used.
    node_id: u64,
    #[command(flatten)]
    target: Target,
    /// Seconds to wait until every replica is there again; in a lab.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    limit_s: u64,
    /// The data directory on the machine, for the lines that are printed; not in a lab.
    #[arg(long, default_value = "/var/lib/carillon", conflicts_with = "lab")]
    data_dir: PathBuf,
    /// The node's configuration on the machine, for the lines that are printed; not in a lab.
    #[arg(long, default_value = "/etc/carillon/node.toml", conflicts_with = "lab")]
    config: PathBuf,
}

pub async fn run(args: RebuildArgs, format: Format) -> anyhow::Result<Verdict> {
    match args.target.lab() {
        Some(dir) => in_lab(dir, &args, format).await,
        None => elsewhere(&args, format).await,
    }
}

async fn in_lab(dir: &Path, args: &RebuildArgs, format: Format) -> anyhow::Result<Verdict> {
    let lab = Lab::open(dir)?;
    let tell = |line: &str| {
        if matches!(format, Format::Table) {
            println!("{line}");
        }
    };
    let limit = Duration::from_secs(args.limit_s);
    let done = lab.rebuild_node(args.node_id, "info", limit, &tell).await?;
    let value = json!({ "rebuilt": args.node_id, "node_id": done.node, "set_aside": done.set_aside });
    print(format, &value, || {
        println!(
            "node {} has taken the place of node {}: every replica is there. Delete {} when nobody wants to look at it",
            done.node,
            args.node_id,
            done.set_aside.display()
        );
    })?;
    Ok(Verdict::Done)
}

async fn elsewhere(args: &RebuildArgs, format: Format) -> anyhow::Result<Verdict> {
    let (node_id, target) = (args.node_id, &args.target);
    let leader = async || target.connect_leader(0).await.map_err(|e| LabError::Wrong(e.to_string()));
    give_up(leader, node_id).await?;
    let made = target.connect_leader(0).await?.create_token(0).await?;
    let (data, config) = (args.data_dir.display(), args.config.display());
    let first = made.peers.first().map_or("HOST:PORT", String::as_str);
    let lines = [
        format!("mv {data} {data}.damaged-node-{node_id}"),
        format!("carillon-node --config {config} --join {first} --token {}", made.token),
    ];
    let value = json!({
        "given_up": node_id, "node_id": made.node_id, "token": made.token, "cluster_id": made.cluster_id, "lines": lines,
    });
    print(format, &value, || {
        println!("node {node_id} is given up, node {} takes its place. On the machine,", made.node_id);
        println!(
            "with certificates for spiffe://{}/node/{} and node_id = {} in {config}:",
            made.cluster_id, made.node_id, made.node_id
        );
        println!("{}", lines[0]);
        println!("{}", lines[1]);
        println!("`carillonctl status` is healthy when every replica is there again");
    })?;
    Ok(Verdict::Done)
}
