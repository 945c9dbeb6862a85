//! `carillonctl policy` and the pauses of practices: what one recipient may get, and what stops a practice.
use super::Verdict;
use super::output::{Format, print, table};
use super::target::Target;
use carillon_proto::admin::PausePracticeRequest;
use carillon_proto::internal::{PolicyRecord, PutPolicy, SendingPolicy};
use carillon_proto::public::MessageClass;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Set the policy of a practice, or without --practice of all practices of the tenant that have none of their own.
    Set(Box<SetArgs>),
    /// Take a policy back: the tenant's or the default holds again.
    Clear {
        #[command(flatten)]
        target: Target,
        #[arg(long)]
        tenant: String,
        #[arg(long, default_value = "")]
        practice: String,
    },
    /// All policies that were set, and the practices that are paused.
    List(Target),
}

#[derive(Debug, Args)]
pub struct SetArgs {
    #[command(flatten)]
    target: Target,
    #[arg(long)]
    tenant: String,
    #[arg(long, default_value = "")]
    practice: String,
    /// Messages to one recipient on one day; 0 = any number.
    #[arg(long, default_value_t = 0)]
    per_day: u32,
    /// Messages to one recipient on a day and the six before it; 0 = any number.
    #[arg(long, default_value_t = 0)]
    per_week: u32,
    /// Classes that are neither held back nor counted.
    #[arg(long, value_delimiter = ',', default_value = "staff", value_parser = class)]
    exempt: Vec<i32>,
    /// A second message with the same recipient, class and text is refused for so many seconds; 0 = never.
    #[arg(long, default_value_t = 600)]
    duplicate_window_s: u32,
    /// So many messages to one recipient within the window pause the practice; 0 = never.
    #[arg(long, default_value_t = 30)]
    burst: u32,
    /// That window, 60 to 86400 seconds.
    #[arg(long, default_value_t = 3_600)]
    burst_window_s: u32,
}

#[derive(Debug, Args)]
pub struct PauseArgs {
    #[command(flatten)]
    target: Target,
    #[arg(long)]
    tenant: String,
    #[arg(long)]
    practice: String,
    /// On this carrier account only; default: the practice's.
    #[arg(long, default_value = "")]
    carrier: String,
}

fn class(name: &str) -> Result<i32, String> {
    let full = format!("MESSAGE_CLASS_{}", name.to_ascii_uppercase());
    match MessageClass::from_str_name(&full) {
        Some(class) if class != MessageClass::Unspecified => Ok(class as i32),
        _ => Err("not a class of messages".to_owned()),
    }
}

pub async fn run(command: PolicyCommand, format: Format) -> anyhow::Result<Verdict> {
    let (target, put) = match command {
        PolicyCommand::List(target) => return list(&target, format).await,
        PolicyCommand::Clear { target, tenant, practice } => {
            (target, PutPolicy { tenant, practice, policy: None })
        }
        PolicyCommand::Set(args) => {
            let policy = SendingPolicy {
                recipient_per_day: args.per_day,
                recipient_per_week: args.per_week,
                exempt_classes: args.exempt,
                duplicate_window_s: args.duplicate_window_s,
                burst: args.burst,
                burst_window_s: args.burst_window_s,
            };
            let (tenant, practice) = (args.tenant, args.practice);
            (args.target, PutPolicy { tenant, practice, policy: Some(policy) })
        }
    };
    let value = json!({ "tenant": put.tenant, "practice": put.practice, "set": put.policy.is_some() });
    target.any().await?.put_policy(put).await?;
    print(format, &value, || println!("done"))?;
    Ok(Verdict::Done)
}

pub async fn pause(args: PauseArgs, paused: bool, format: Format) -> anyhow::Result<Verdict> {
    let PauseArgs { target, tenant, practice, carrier } = args;
    let value = json!({ "tenant": tenant, "practice": practice, "paused": paused });
    let request = PausePracticeRequest { tenant, practice, carrier, paused };
    target.any().await?.pause_practice(request).await?;
    print(format, &value, || println!("{}", if paused { "paused" } else { "resumed" }))?;
    Ok(Verdict::Done)
}

async fn list(target: &Target, format: Format) -> anyhow::Result<Verdict> {
    let status = target.any().await?.status().await?;
    let policies: Vec<Value> = status.policies.iter().map(policy_json).collect();
    let pauses: Vec<Value> = status
        .pauses
        .iter()
        .map(|p| {
            json!({
                "practice_no": p.practice_no, "carrier_no": p.carrier_no, "cause": p.cause().as_str_name(),
                "since_ms": p.changed_at_ms,
            })
        })
        .collect();
    print(format, &json!({ "policies": policies, "paused": pauses }), || {
        let row = |record: &PolicyRecord| {
            let policy = record.policy.clone().unwrap_or_default();
            let numbers = [
                policy.recipient_per_day,
                policy.recipient_per_week,
                policy.duplicate_window_s,
                policy.burst,
                policy.burst_window_s,
            ];
            let mut row = vec![record.tenant.clone(), record.practice.clone()];
            row.extend(numbers.map(|n| n.to_string()));
            row
        };
        let rows: Vec<Vec<String>> = status.policies.iter().map(row).collect();
        table(&["TENANT", "PRACTICE", "PER DAY", "PER WEEK", "DUPLICATE S", "BURST", "WINDOW S"], &rows);
        for p in &status.pauses {
            println!(
                "PAUSED: practice {} on carrier {} ({})",
                p.practice_no,
                p.carrier_no,
                p.cause().as_str_name()
            );
        }
    })?;
    Ok(Verdict::Done)
}

fn policy_json(record: &PolicyRecord) -> Value {
    let policy = record.policy.clone().unwrap_or_default();
    json!({
        "tenant": record.tenant, "practice": record.practice, "per_day": policy.recipient_per_day,
        "per_week": policy.recipient_per_week, "exempt_classes": policy.exempt_classes,
        "duplicate_window_s": policy.duplicate_window_s, "burst": policy.burst,
        "burst_window_s": policy.burst_window_s,
    })
}
