//! `carillonctl dead-letter ...`: messages whose retries are spent. See deploy/runbooks/dead-letters.md.
use super::Verdict;
use super::backup::Everyone;
use super::output::{Format, print, table};
use carillon_ctl::admin::Admin;
use carillon_ctl::backup::Nodes;
use carillon_proto::admin::{
    DeadLetterRow, DeadLetterScope, DropDeadLettersRequest, ListDeadLettersRequest, ReplayDeadLettersRequest,
};
use carillon_proto::public::MessageClass;
use clap::{Args, Subcommand};
use serde_json::json;

#[derive(Debug, Subcommand)]
pub enum DeadLetterCommand {
    /// Which messages died and nobody has decided about.
    List {
        #[command(flatten)]
        nodes: Everyone,
        #[command(flatten)]
        which: Scope,
        /// Of each partition, at most.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Send them again, each at most once, as messages of their own.
    Replay {
        #[command(flatten)]
        nodes: Everyone,
        #[command(flatten)]
        what: What,
        /// They become due at this rate in each partition.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
        per_second: u32,
    },
    /// Take them out of the list. They stay DEAD.
    Drop {
        #[command(flatten)]
        nodes: Everyone,
        #[command(flatten)]
        what: What,
        /// One word, kept with each message, for example wrong_number.
        #[arg(long)]
        reason: String,
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
    #[arg(long, required_unless_present_any = ["practice", "id"], conflicts_with = "practice")]
    all: bool,
    /// Exactly this message; may be repeated.
    #[arg(long, conflicts_with_all = ["all", "practice"])]
    id: Vec<String>,
    /// Only say what would happen.
    #[arg(long)]
    dry_run: bool,
}

impl Scope {
    fn of(&self, partition: u32, message_ids: Vec<String>) -> DeadLetterScope {
        DeadLetterScope {
            partition,
            tenant: self.tenant.clone().unwrap_or_default(),
            practice: self.practice.clone().unwrap_or_default(),
            message_ids,
        }
    }
}

/// The partitions to ask, with the ids of each.
pub(super) async fn places(nodes: &Nodes, ids: &[String]) -> anyhow::Result<Vec<(u32, Vec<String>)>> {
    let statuses = nodes.statuses().await?;
    let all = || statuses[0].0.map.iter().map(|row| row.partition).filter(|partition| *partition != 0);
    if ids.is_empty() {
        return Ok(all().map(|partition| (partition, Vec::new())).collect());
    }
    let partitions = all().count() as u32;
    let mut by_partition = std::collections::BTreeMap::<u32, Vec<String>>::new();
    for text in ids {
        let id: carillon_proto::MessageId =
            text.parse().map_err(|_| anyhow::anyhow!("{text} is not a message id"))?;
        by_partition.entry(id.slot().partition(partitions)).or_default().push(text.clone());
    }
    Ok(by_partition.into_iter().collect())
}

pub async fn run(command: DeadLetterCommand, format: Format) -> anyhow::Result<Verdict> {
    match command {
        DeadLetterCommand::List { nodes, which, limit } => {
            list(&nodes.connect()?, &which, limit, format).await
        }
        DeadLetterCommand::Replay { nodes, what, per_second } => {
            replay(&nodes.connect()?, &what, per_second, format).await
        }
        DeadLetterCommand::Drop { nodes, what, reason } => {
            discard(&nodes.connect()?, &what, &reason, format).await
        }
    }
}

async fn list(nodes: &Nodes, which: &Scope, limit: u32, format: Format) -> anyhow::Result<Verdict> {
    let mut found: Vec<DeadLetterRow> = Vec::new();
    for (partition, _) in places(nodes, &[]).await? {
        let request = ListDeadLettersRequest {
            scope: Some(which.of(partition, Vec::new())),
            limit,
            page_token: String::new(),
        };
        let call = |_, admin: Admin| {
            let request = request.clone();
            async move { Ok(admin.list_dead_letters(request).await?) }
        };
        found.extend(nodes.on_leader(partition, call).await?.messages);
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|row| {
            let class = MessageClass::try_from(row.class).unwrap_or(MessageClass::Unspecified);
            vec![
                row.message_id.clone(),
                format!("{}/{}", row.tenant, row.practice),
                class.as_str_name().trim_start_matches("MESSAGE_CLASS_").to_owned(),
                row.attempts.to_string(),
                row.code.clone(),
            ]
        })
        .collect();
    let messages: Vec<_> = rows
        .iter()
        .map(|r| json!({ "message_id": r[0], "practice": r[1], "class": r[2], "attempts": r[3], "code": r[4] }))
        .collect();
    print(format, &messages, || table(&["MESSAGE", "PRACTICE", "CLASS", "ATTEMPTS", "CODE"], &rows))?;
    Ok(Verdict::Done)
}

async fn replay(nodes: &Nodes, what: &What, per_second: u32, format: Format) -> anyhow::Result<Verdict> {
    let (mut messages, mut too_late) = (Vec::new(), 0);
    for (partition, ids) in places(nodes, &what.id).await? {
        loop {
            let request = ReplayDeadLettersRequest {
                scope: Some(what.which.of(partition, ids.clone())),
                dry_run: what.dry_run,
                messages_per_second: per_second,
                limit: 0,
            };
            let call = |_, admin: Admin| {
                let request = request.clone();
                async move { Ok(admin.replay_dead_letters(request).await?) }
            };
            let answer = nodes.on_leader(partition, call).await?;
            let progress = !answer.messages.is_empty() && !what.dry_run;
            messages.extend(answer.messages);
            too_late += answer.too_late;
            if !answer.more || !progress {
                break;
            }
        }
    }
    let list: Vec<_> = messages
        .iter()
        .map(|m| json!({ "message_id": m.message_id, "replayed_as": m.replayed_as }))
        .collect();
    let value = json!({ "dry_run": what.dry_run, "replayed": list, "too_late": too_late });
    print(format, &value, || {
        messages.iter().for_each(|m| println!("{} {}", m.message_id, m.replayed_as));
        let word = if what.dry_run { "would be sent again" } else { "are sent again" };
        println!("{} messages {word}; {too_late} are too late", messages.len());
    })?;
    Ok(Verdict::Done)
}

async fn discard(nodes: &Nodes, what: &What, reason: &str, format: Format) -> anyhow::Result<Verdict> {
    let mut messages = 0;
    for (partition, ids) in places(nodes, &what.id).await? {
        loop {
            let request = DropDeadLettersRequest {
                scope: Some(what.which.of(partition, ids.clone())),
                reason: reason.to_owned(),
                dry_run: what.dry_run,
                limit: 0,
            };
            let call = |_, admin: Admin| {
                let request = request.clone();
                async move { Ok(admin.drop_dead_letters(request).await?) }
            };
            let answer = nodes.on_leader(partition, call).await?;
            messages += answer.messages;
            if !answer.more || answer.messages == 0 || what.dry_run {
                break;
            }
        }
    }
    print(format, &json!({ "dry_run": what.dry_run, "messages": messages }), || {
        println!("{messages} messages {}", if what.dry_run { "would be dropped" } else { "dropped" });
    })?;
    Ok(Verdict::Done)
}
