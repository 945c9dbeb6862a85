//! Commands about what a node stores.
use super::Verdict;
use super::cluster::Target;
use super::output::{Format, print};
use serde_json::json;

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
