//! `carillonctl unknown ...`: messages whose carrier's answer was lost and that no receipt has resolved. See deploy/runbooks/unknown.md.
use super::Verdict;
use super::backup::Everyone;
use super::dead_letter::places;
use super::message::Problem;
use super::output::{Format, print, table};
use carillon_ctl::admin::Admin;
use carillon_ctl::backup::Nodes;
use carillon_proto::admin::{ListUnknownRequest, ResolveUnknownRequest, UnknownRow};
use carillon_proto::internal::UnknownVerdict;
use carillon_proto::public::{MessageClass, MessageState};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub enum UnknownCommand {
    /// Which messages are held because nobody knows whether the carrier took them over.
    List {
        #[command(flatten)]
        nodes: Everyone,
        #[arg(long, requires = "practice")]
        tenant: Option<String>,
        #[arg(long, requires = "tenant")]
        practice: Option<String>,
        /// Only those that have been UNKNOWN for so long: a receipt may still resolve the others.
        #[arg(long, default_value_t = 0)]
        older_than_s: u32,
        /// Of each partition, at most.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Say what became of messages. Each is refused that is not UNKNOWN; exit code 4 if one was.
    Resolve(ResolveArgs),
}

#[derive(Debug, Args)]
pub struct ResolveArgs {
    #[command(flatten)]
    nodes: Everyone,
    /// Ids of messages.
    #[arg(required = true)]
    ids: Vec<String>,
    /// What you have found out, or decide.
    #[arg(long = "as", value_enum)]
    verdict: As,
    /// One word, kept with each message and in its event, for example carrier_portal.
    #[arg(long)]
    reason: String,
    /// Only say what would happen.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum As {
    /// The recipient has it.
    Delivered,
    /// Nobody will get it any more.
    Failed,
    /// Send it again, at the risk that the recipient gets it twice.
    SendAgain,
}

pub async fn run(command: UnknownCommand, format: Format) -> anyhow::Result<Verdict> {
    match command {
        UnknownCommand::List { nodes, tenant, practice, older_than_s, limit } => {
            let request = ListUnknownRequest {
                tenant: tenant.unwrap_or_default(),
                practice: practice.unwrap_or_default(),
                min_age_s: older_than_s,
                ..Default::default()
            };
            list(&nodes.connect()?, &request, limit as usize, format).await
        }
        UnknownCommand::Resolve(args) => resolve(args, format).await,
    }
}

async fn list(
    nodes: &Nodes,
    request: &ListUnknownRequest,
    limit: usize,
    format: Format,
) -> anyhow::Result<Verdict> {
    let (mut found, mut more) = (Vec::<UnknownRow>::new(), false);
    for (partition, _) in places(nodes, &[]).await? {
        let (before, mut page_token) = (found.len(), String::new());
        loop {
            let left = (limit + before - found.len()) as u32;
            let request = ListUnknownRequest {
                partition,
                limit: left,
                page_token: page_token.clone(),
                ..request.clone()
            };
            let call = |_, admin: Admin| {
                let request = request.clone();
                async move { Ok(admin.list_unknown(request).await?) }
            };
            let page = nodes.on_leader(partition, call).await?;
            found.extend(page.messages);
            page_token = page.next_page_token;
            let full = found.len() >= limit + before;
            more |= full && !page_token.is_empty();
            if full || page_token.is_empty() {
                break;
            }
        }
    }
    let messages: Vec<Value> = found.iter().map(as_json).collect();
    print(format, &json!({ "messages": messages, "more": more }), || {
        let row = |m: &UnknownRow| {
            let last = m.attempts.last().cloned().unwrap_or_default();
            vec![
                m.message_id.clone(),
                format!("{}/{}", m.tenant, m.practice),
                class(m.class),
                time(m.unknown_since_ms),
                m.detail.clone(),
                last.carrier,
                time(last.begin_ms),
            ]
        };
        let head = ["MESSAGE", "PRACTICE", "CLASS", "UNKNOWN SINCE", "WHY", "CARRIER", "ATTEMPT BEGAN"];
        table(&head, &found.iter().map(row).collect::<Vec<_>>());
        let rest = if more { "; there are more, see --limit" } else { "" };
        println!("{} messages are UNKNOWN{rest}", found.len());
    })?;
    Ok(Verdict::Done)
}

async fn resolve(args: ResolveArgs, format: Format) -> anyhow::Result<Verdict> {
    let nodes = args.nodes.connect()?;
    let verdict = match args.verdict {
        As::Delivered => UnknownVerdict::Delivered,
        As::Failed => UnknownVerdict::Failed,
        As::SendAgain => UnknownVerdict::SendAgain,
    };
    let mut answers = Vec::new();
    for (partition, message_ids) in places(&nodes, &args.ids).await? {
        let request = ResolveUnknownRequest {
            partition,
            message_ids,
            verdict: verdict.into(),
            reason: args.reason.clone(),
            dry_run: args.dry_run,
        };
        let call = |_, admin: Admin| {
            let request = request.clone();
            async move { Ok(admin.resolve_unknown(request).await?) }
        };
        answers.extend(nodes.on_leader(partition, call).await?.messages);
    }
    let state = |n: i32| {
        let state = MessageState::try_from(n).unwrap_or(MessageState::Unspecified);
        state.as_str_name().trim_start_matches("MESSAGE_STATE_").to_owned()
    };
    let list: Vec<Value> = answers
        .iter()
        .map(|a| json!({ "message_id": a.message_id, "state": state(a.state), "refused": a.refused }))
        .collect();
    let refused = answers.iter().filter(|answer| !answer.refused.is_empty()).count();
    print(format, &json!({ "dry_run": args.dry_run, "messages": list }), || {
        for answer in &answers {
            match answer.refused.as_str() {
                "" => println!("{} {}", answer.message_id, state(answer.state)),
                why => println!("{} not changed: {why}", answer.message_id),
            }
        }
        let word = if args.dry_run { "would be resolved" } else { "resolved" };
        println!("{} messages {word}, {refused} refused", answers.len() - refused);
    })?;
    match refused {
        0 => Ok(Verdict::Done),
        _ => Err(Problem::refusal(format!("{refused} of {} messages were refused", answers.len())).into()),
    }
}

fn class(n: i32) -> String {
    let class = MessageClass::try_from(n).unwrap_or(MessageClass::Unspecified);
    class.as_str_name().trim_start_matches("MESSAGE_CLASS_").to_owned()
}

/// As in messages; empty if it is not known.
fn time(ms: u64) -> String {
    match ms {
        0 => String::new(),
        ms => Timestamp::from_millisecond(ms as i64).map(|t| t.to_string()).unwrap_or_default(),
    }
}

fn as_json(row: &UnknownRow) -> Value {
    let attempts: Vec<Value> = row
        .attempts
        .iter()
        .map(|a| {
            json!({ "number": a.number, "carrier": a.carrier, "sender": a.sender, "begin": time(a.begin_ms), "code": a.code })
        })
        .collect();
    json!({
        "message_id": row.message_id, "partition": row.partition, "tenant": row.tenant, "practice": row.practice,
        "class": class(row.class), "accepted": time(row.accepted_at_ms), "unknown_since": time(row.unknown_since_ms),
        "detail": row.detail, "expires": time(row.expires_at_ms), "deadline": time(row.deadline_ms),
        "attempts": attempts,
    })
}
