//! What messages of the far future cost a node: accepts them until there are enough, then looks at the nodes' memory.

use std::time::Duration;

use serde::Serialize;

use super::idle::{self, NodeCost};
use super::load::Pace;
use super::{Bench, LoadArgs};

/// Resident memory that no node may pass, whatever waits.
pub const RSS_MAX_MIB: f64 = 1024.0;
/// Octets of a body, like those of `bench accept`.
const BODY_BYTES: usize = 300;
/// The nodes are looked at after this rest, so that what accepting costs is over.
const REST: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub load: LoadArgs,
    /// Messages, all due in 300 days.
    #[arg(long, default_value_t = 10_000_000)]
    pub count: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Scheduled {
    pub accepted: u64,
    pub accepted_per_s: f64,
    pub nodes: Vec<NodeCost>,
}

impl Scheduled {
    pub fn held(&self) -> bool {
        self.nodes.iter().all(|node| node.rss_mib < RSS_MAX_MIB)
    }
}

impl std::fmt::Display for Scheduled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "  {} messages due in 300 days, accepted at {:.0}/s",
            self.accepted, self.accepted_per_s
        )?;
        for node in &self.nodes {
            writeln!(
                f,
                "  node {}  {:.0} MiB resident, {:.1} % of a core",
                node.id, node.rss_mib, node.cpu_percent
            )?;
        }
        Ok(())
    }
}

pub async fn run(args: &Args) -> anyhow::Result<Scheduled> {
    let bench = Bench::open(&args.load)?;
    let (mut accepted, mut seconds) = (0, 0.0);
    while accepted < args.count {
        let result = bench.load(&args.load, Pace::Max, true, BODY_BYTES)?.run().await?;
        anyhow::ensure!(result.accepted > 0, "nothing was accepted: {:?}", result.refused);
        accepted += result.accepted;
        seconds += result.accepted as f64 / result.accepted_per_s.max(1.0);
        eprintln!("{accepted} of {}", args.count);
    }
    let nodes = idle::measure(&bench.lab.nodes, REST).await?;
    Ok(Scheduled { accepted, accepted_per_s: accepted as f64 / seconds.max(0.001), nodes })
}
