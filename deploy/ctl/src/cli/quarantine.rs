//! `carillonctl quarantine ...`: messages whose fate a restore left unknown.
use super::Verdict;
use super::backup::Everyone;
use super::output::{Format, print, table};
use carillon_ctl::backup::Nodes;
use carillon_proto::admin::{
    ListQuarantineRequest, ListQuarantineResponse, ResolveQuarantineRequest, ResolveQuarantineResponse,
};
use carillon_proto::internal::QuarantineAction;
use carillon_proto::public::MessageClass;
use clap::{Args, Subcommand};
use serde_json::json;
use std::collections::BTreeMap;

/// Messages named in one list, at most.
const LIST_MAX: u32 = 10_000;

#[derive(Debug, Subcommand)]
pub enum QuarantineCommand {
    /// How many messages of each practice are held, and which.
    List {
        #[command(flatten)]
        nodes: Everyone,
        #[command(flatten)]
        which: Scope,
        /// Name so many messages for each partition; 0 = only the counts.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=i64::from(LIST_MAX)))]
        limit: u32,
    },
    /// Send them, although they may have been sent before: each is a possible duplicate. Those that a carrier is known to have stay.
    Release {
        #[command(flatten)]
        nodes: Everyone,
        #[command(flatten)]
        what: What,
        /// Also those that a carrier is known to have, at least in part: they are sent twice.
        #[arg(long)]
        taken_over_too: bool,
    },
    /// Never send them. They end as UNDELIVERED with the detail restore_dropped.
    Drop {
        #[command(flatten)]
        nodes: Everyone,
        #[command(flatten)]
        what: What,
    },
}

#[derive(Debug, Args)]
pub struct Scope {
    #[arg(long, requires = "practice")]
    tenant: Option<String>,
    #[arg(long, requires = "tenant")]
    practice: Option<String>,
}

#[derive(Debug, Args)]
pub struct What {
    #[command(flatten)]
    which: Scope,
    /// Of every practice.
    #[arg(long, required_unless_present = "practice", conflicts_with = "practice")]
    all: bool,
    /// Only say how many it would be.
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(command: QuarantineCommand, format: Format) -> anyhow::Result<Verdict> {
    match command {
        QuarantineCommand::List { nodes, which, limit } => {
            list(&nodes.connect()?, &which, limit, format).await
        }
        QuarantineCommand::Release { nodes, what, taken_over_too } => {
            resolve(&nodes.connect()?, &what, (QuarantineAction::Release, taken_over_too), format).await
        }
        QuarantineCommand::Drop { nodes, what } => {
            resolve(&nodes.connect()?, &what, (QuarantineAction::Drop, false), format).await
        }
    }
}

async fn partitions(nodes: &Nodes) -> anyhow::Result<Vec<u32>> {
    let statuses = nodes.statuses().await?;
    Ok(statuses[0].0.map.iter().map(|row| row.partition).filter(|partition| *partition != 0).collect())
}

/// Every partition, from its leader.
async fn held(nodes: &Nodes, which: &Scope, limit: u32) -> anyhow::Result<Vec<ListQuarantineResponse>> {
    let mut all = Vec::new();
    for partition in partitions(nodes).await? {
        let request = ListQuarantineRequest {
            tenant: which.tenant.clone().unwrap_or_default(),
            practice: which.practice.clone().unwrap_or_default(),
            partition,
            limit,
        };
        let call = |_, admin: carillon_ctl::admin::Admin| {
            let request = request.clone();
            async move { Ok(admin.list_quarantine(request).await?) }
        };
        all.push(nodes.on_leader(partition, call).await?);
    }
    Ok(all)
}

/// By tenant and practice.
fn counts(all: &[ListQuarantineResponse]) -> BTreeMap<(String, String), u64> {
    let mut sums = BTreeMap::new();
    for count in all.iter().flat_map(|answer| &answer.counts) {
        *sums.entry((count.tenant.clone(), count.practice.clone())).or_default() += count.messages;
    }
    sums
}

async fn list(nodes: &Nodes, which: &Scope, limit: u32, format: Format) -> anyhow::Result<Verdict> {
    let all = held(nodes, which, limit).await?;
    let counts = counts(&all);
    let class = |n: i32| {
        let class = MessageClass::try_from(n).unwrap_or_default().as_str_name();
        class.trim_start_matches("MESSAGE_CLASS_").to_lowercase()
    };
    let messages: Vec<_> = all.iter().flat_map(|answer| &answer.messages).collect();
    let total: u64 = counts.values().sum();
    let value = json!({
        "total": total,
        "practices": counts.iter().map(|((tenant, practice), messages)| {
            json!({ "tenant": tenant, "practice": practice, "messages": messages })
        }).collect::<Vec<_>>(),
        "messages": messages.iter().map(|m| json!({
            "message_id": m.message_id, "tenant": m.tenant, "practice": m.practice, "class": class(m.class),
            "partition": m.partition, "accepted_at_ms": m.accepted_at_ms, "expires_at_ms": m.expires_at_ms,
            "attempts": m.attempts, "taken_over": m.taken_over,
        })).collect::<Vec<_>>(),
    });
    print(format, &value, || {
        let row = |((tenant, practice), messages): (&(String, String), &u64)| {
            vec![tenant.clone(), practice.clone(), messages.to_string()]
        };
        table(&["TENANT", "PRACTICE", "HELD"], &counts.iter().map(row).collect::<Vec<_>>());
        println!();
        let rows: Vec<Vec<String>> = messages
            .iter()
            .map(|m| {
                let has_it = if m.taken_over { "yes" } else { "not known" };
                let attempts = m.attempts.to_string();
                vec![m.message_id.clone(), m.practice.clone(), class(m.class), attempts, has_it.to_owned()]
            })
            .collect();
        table(&["MESSAGE", "PRACTICE", "CLASS", "KNOWN ATTEMPTS", "CARRIER HAS IT"], &rows);
        println!("{total} messages are held");
    })?;
    Ok(Verdict::Done)
}

async fn resolve(
    nodes: &Nodes,
    what: &What,
    (action, taken_over_too): (QuarantineAction, bool),
    format: Format,
) -> anyhow::Result<Verdict> {
    let word = if action == QuarantineAction::Release { "released" } else { "dropped" };
    if what.dry_run {
        let counts = counts(&held(nodes, &what.which, 0).await?);
        let total: u64 = counts.values().sum();
        print(format, &json!({ "dry_run": true, "messages": total }), || {
            counts
                .iter()
                .for_each(|((tenant, practice), messages)| println!("{tenant}/{practice}: {messages}"));
            println!("{total} messages would be {word}");
        })?;
        return Ok(Verdict::Done);
    }
    let mut sum = ResolveQuarantineResponse::default();
    for partition in partitions(nodes).await? {
        let request = ResolveQuarantineRequest {
            partition,
            tenant: what.which.tenant.clone().unwrap_or_default(),
            practice: what.which.practice.clone().unwrap_or_default(),
            action: action.into(),
            taken_over_too,
        };
        let call = |_, admin: carillon_ctl::admin::Admin| {
            let request = request.clone();
            async move { Ok(admin.resolve_quarantine(request).await?) }
        };
        let answer = nodes.on_leader(partition, call).await?;
        sum.messages += answer.messages;
        sum.kept += answer.kept;
        sum.kept_message_ids.extend(answer.kept_message_ids);
    }
    let ResolveQuarantineResponse { messages, kept, kept_message_ids } = sum;
    let value = json!({ "dry_run": false, "messages": messages, "kept": kept, "kept_ids": kept_message_ids });
    print(format, &value, || println!("{messages} messages {word}"))?;
    if kept > 0 {
        kept_message_ids.iter().for_each(|id| eprintln!("{id}"));
        anyhow::bail!(
            "{kept} messages were not released: a carrier is known to have them, so each would be sent twice; drop them, or repeat with --taken-over-too"
        );
    }
    Ok(Verdict::Done)
}
