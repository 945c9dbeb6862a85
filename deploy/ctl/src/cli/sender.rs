//! `carillonctl sender ...`: the numbers and names that a carrier sends under. See deploy/runbooks/carriers.md.
use super::Verdict;
use super::backup::Everyone;
use super::output::{Format, print, table};
use carillon_proto::admin::SenderStatus;
use carillon_proto::internal::SenderRecord;
use clap::Subcommand;
use serde_json::json;

#[derive(Debug, Subcommand)]
pub enum SenderCommand {
    /// The senders of the carriers, and how they stand on the node that is asked.
    List {
        #[command(flatten)]
        nodes: Everyone,
        /// Only of this carrier account.
        #[arg(long, default_value = "")]
        carrier: String,
    },
    /// Give a carrier a sender, or change the one of this address. Without --paused it sends (again).
    Put {
        #[command(flatten)]
        nodes: Everyone,
        carrier: String,
        /// +E.164, a short code, or a name of up to 11 characters.
        address: String,
        /// Its part of the recipients; 0: only for routes that name it, and while no other can be used.
        #[arg(long, default_value_t = 1)]
        weight: u32,
        /// Nothing is sent under it; what waits goes to another one.
        #[arg(long)]
        paused: bool,
    },
    /// Take a sender away; routes that name it have to be changed first.
    Drop {
        #[command(flatten)]
        nodes: Everyone,
        carrier: String,
        address: String,
    },
}

pub async fn run(command: SenderCommand, format: Format) -> anyhow::Result<Verdict> {
    match command {
        SenderCommand::List { nodes, carrier } => {
            let nodes = nodes.connect()?;
            let statuses = nodes.statuses().await?;
            show(format, &statuses[0].1.senders(&carrier).await?)
        }
        SenderCommand::Put { nodes, carrier, address, weight, paused } => {
            let nodes = nodes.connect()?;
            let statuses = nodes.statuses().await?;
            let sender = SenderRecord { address, weight, paused, ..Default::default() };
            statuses[0].1.put_sender(&carrier, sender).await?;
            show(format, &statuses[0].1.senders(&carrier).await?)
        }
        SenderCommand::Drop { nodes, carrier, address } => {
            let nodes = nodes.connect()?;
            let statuses = nodes.statuses().await?;
            statuses[0].1.drop_sender(&carrier, &address).await?;
            show(format, &statuses[0].1.senders(&carrier).await?)
        }
    }
}

fn show(format: Format, senders: &[SenderStatus]) -> anyhow::Result<Verdict> {
    let row = |status: &SenderStatus| {
        let sender = status.sender.clone().unwrap_or_default();
        let state = match status.refused_for_ms {
            0 => status.state.clone(),
            ms => format!("{}, again in {} s", status.state, ms.div_ceil(1_000)),
        };
        vec![status.carrier.clone(), sender.address, sender.weight.to_string(), state]
    };
    let rows: Vec<Vec<String>> = senders.iter().map(row).collect();
    let value: Vec<_> = senders
        .iter()
        .map(|status| {
            let sender = status.sender.clone().unwrap_or_default();
            json!({
                "carrier": status.carrier, "address": sender.address, "weight": sender.weight,
                "paused": sender.paused, "state": status.state, "refused_for_ms": status.refused_for_ms,
            })
        })
        .collect();
    print(format, &value, || table(&["CARRIER", "SENDER", "WEIGHT", "STATE"], &rows))?;
    Ok(Verdict::Done)
}
