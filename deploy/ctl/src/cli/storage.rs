//! Commands about what a node stores.
use super::Verdict;
use super::output::{Format, print};
use super::target::{Target, name_of, partition};
use clap::Subcommand;
use serde_json::json;

#[derive(Debug, Subcommand)]
pub enum ReplicaCommand {
    /// Replace a fenced replica by a new copy from its peers. Finds the node that it is on; `status` shows when it is done.
    Repair {
        #[command(flatten)]
        target: Target,
        /// A number, or `meta`.
        #[arg(long, value_parser = partition)]
        partition: u32,
    },
}

pub async fn replica(command: ReplicaCommand, format: Format) -> anyhow::Result<Verdict> {
    let ReplicaCommand::Repair { target, partition } = command;
    target.connect_fenced(partition).await?.repair_replica(partition).await?;
    print(format, &json!({ "partition": partition }), || {
        println!("{}: the damaged copy goes, then a new one is made", name_of(partition));
    })?;
    Ok(Verdict::Done)
}

/// Lets one node read everything that it stores; exit code 3 if something is damaged.
pub async fn scrub(target: &Target, format: Format) -> anyhow::Result<Verdict> {
    let report = target.connect()?.scrub().await?;
    let damaged = report.damaged.iter().map(|d| json!({ "partition": d.partition, "reason": d.reason }));
    let value = json!({ "bytes": report.bytes, "damaged": damaged.collect::<Vec<_>>() });
    print(format, &value, || {
        println!("{} bytes read, {} replicas damaged", report.bytes, report.damaged.len());
        for found in &report.damaged {
            println!("partition {}: fenced: {}", found.partition, found.reason);
        }
    })?;
    Ok(if report.damaged.is_empty() { Verdict::Done } else { Verdict::Unhealthy })
}
