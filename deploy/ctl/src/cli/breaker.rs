//! `carillonctl breaker ...`: which carriers are spared because they fail, and the operator's word about them.
use super::Verdict;
use super::backup::Everyone;
use super::output::{Format, print, table};
use carillon_proto::internal::BreakerMode;
use clap::{Args, Subcommand};
use serde_json::json;

#[derive(Debug, Subcommand)]
pub enum BreakerCommand {
    /// The breakers of all carriers, node by node.
    List {
        #[command(flatten)]
        nodes: Everyone,
    },
    /// Send nothing to this carrier until further notice.
    Open(Carrier),
    /// Send to this carrier whatever fails.
    Close(Carrier),
    /// Leave the breaker to itself again.
    Auto(Carrier),
}

#[derive(Debug, Args)]
pub struct Carrier {
    #[command(flatten)]
    nodes: Everyone,
    /// Name of the carrier.
    carrier: String,
}

pub async fn run(command: BreakerCommand, format: Format) -> anyhow::Result<Verdict> {
    let (what, mode) = match command {
        BreakerCommand::List { nodes } => return list(&nodes, format).await,
        BreakerCommand::Open(what) => (what, BreakerMode::Open),
        BreakerCommand::Close(what) => (what, BreakerMode::Closed),
        BreakerCommand::Auto(what) => (what, BreakerMode::Auto),
    };
    let nodes = what.nodes.connect()?;
    let statuses = nodes.statuses().await?;
    statuses[0].1.set_breaker(&what.carrier, mode).await?;
    let word = mode.as_str_name().trim_start_matches("BREAKER_MODE_").to_ascii_lowercase();
    print(format, &json!({ "carrier": what.carrier, "mode": word }), || println!("{} {word}", what.carrier))?;
    Ok(Verdict::Done)
}

async fn list(nodes: &Everyone, format: Format) -> anyhow::Result<Verdict> {
    let nodes = nodes.connect()?;
    let mut rows = Vec::new();
    for (status, admin) in nodes.statuses().await? {
        for breaker in admin.breakers().await? {
            let mode = breaker.mode().as_str_name().trim_start_matches("BREAKER_MODE_").to_ascii_lowercase();
            let left =
                if breaker.open_for_ms > 0 { format!("{} ms", breaker.open_for_ms) } else { String::new() };
            rows.push(vec![status.node_id.to_string(), breaker.carrier, breaker.state, mode, left]);
        }
    }
    let value: Vec<_> = rows
        .iter()
        .map(|r| json!({ "node": r[0], "carrier": r[1], "state": r[2], "mode": r[3], "tried_in": r[4] }))
        .collect();
    print(format, &value, || table(&["NODE", "CARRIER", "STATE", "MODE", "TRIED IN"], &rows))?;
    Ok(Verdict::Done)
}
