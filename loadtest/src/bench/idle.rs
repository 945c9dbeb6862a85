//! What the nodes cost when nothing happens.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::lab::LabNode;
use crate::proc::{self, ProcError};

/// One node.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct NodeCost {
    pub id: u64,
    /// Percent of one core.
    pub cpu_percent: f64,
    pub rss_mib: f64,
}

/// Processor time of each node over `length`, and its resident memory at the end.
pub async fn measure(nodes: &[LabNode], length: Duration) -> Result<Vec<NodeCost>, ProcError> {
    let begun = Instant::now();
    let before = nodes.iter().map(|node| proc::cpu_time(Some(node.pid))).collect::<Result<Vec<_>, _>>()?;
    tokio::time::sleep(length).await;
    let passed = begun.elapsed().as_secs_f64();
    let cost = |(node, before): (&LabNode, Duration)| {
        let used = proc::cpu_time(Some(node.pid))?.saturating_sub(before);
        let rss_mib = proc::rss_bytes(node.pid)? as f64 / f64::from(1 << 20);
        Ok(NodeCost { id: node.id, cpu_percent: used.as_secs_f64() / passed * 100.0, rss_mib })
    };
    nodes.iter().zip(before).map(cost).collect()
}
