//! `carillonctl lane ...` and `carillonctl limit ...`: what carriers allow, who holds it, and how much of it is used.
use super::Verdict;
use super::output::{Format, print, table};
use super::target::Target;
use carillon_proto::admin::{
    DropLimitRequest, LaneStatus, ListLanesRequest, ListLanesResponse, PutLimitRequest,
    SetAccountLimitRequest, SetLaneRequest,
};
use carillon_proto::internal::{LimitRecord, LimitScope};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub enum LaneCommand {
    /// Every lane: its limit, how much of it may be used, and which node holds how much of it.
    List(Target),
    /// One carrier's lane with all limits that apply to it.
    Show {
        #[command(flatten)]
        target: Target,
        carrier: String,
    },
    /// Change the limit of the account while it runs.
    SetLimit {
        #[command(flatten)]
        target: Target,
        carrier: String,
        /// 0 = the carrier publishes none: begins slowly and finds out.
        segments_per_second: u32,
    },
    /// Let nothing more leave; messages wait in order.
    Pause {
        #[command(flatten)]
        target: Target,
        carrier: String,
    },
    /// Let it go on.
    Resume {
        #[command(flatten)]
        target: Target,
        carrier: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum LimitCommand {
    /// The limits besides those of the accounts.
    List(Target),
    /// Add one, or change the amount of one for the same thing.
    Put(Box<PutArgs>),
    /// Take one away.
    Drop {
        #[command(flatten)]
        target: Target,
        /// Its number in the list.
        number: u32,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scope {
    Account,
    Sender,
    Campaign,
    Brand,
    Practice,
}

#[derive(Debug, Args)]
pub struct PutArgs {
    #[command(flatten)]
    target: Target,
    #[arg(long)]
    carrier: String,
    #[arg(long, value_enum)]
    scope: Scope,
    /// Sender number, campaign or brand.
    #[arg(long, default_value = "")]
    scope_key: String,
    #[arg(long, default_value = "", requires = "tenant")]
    practice: String,
    #[arg(long, default_value = "")]
    tenant: String,
    /// Of a campaign or brand. A number's network is not known, so a message counts against all networks.
    #[arg(long, default_value = "")]
    network: String,
    /// Segments in the window, at most.
    #[arg(long)]
    amount: u32,
    /// Sliding window in seconds, 1 to 3600.
    #[arg(long, conflicts_with = "day_in", required_unless_present = "day_in", value_parser = clap::value_parser!(u32).range(1..=3600))]
    window_s: Option<u32>,
    /// Calendar day of this IANA zone instead of a sliding window.
    #[arg(long)]
    day_in: Option<String>,
}

pub async fn lane(command: LaneCommand, format: Format) -> anyhow::Result<Verdict> {
    match command {
        LaneCommand::List(target) => show(&target, None, format).await,
        LaneCommand::Show { target, carrier } => show(&target, Some(&carrier), format).await,
        LaneCommand::SetLimit { target, carrier, segments_per_second } => {
            let request = SetAccountLimitRequest { carrier, segments_per_second };
            target.any().await?.set_account_limit(request).await?;
            Ok(Verdict::Done)
        }
        LaneCommand::Pause { target, carrier } => set(&target, carrier, true).await,
        LaneCommand::Resume { target, carrier } => set(&target, carrier, false).await,
    }
}

pub async fn limit(command: LimitCommand, format: Format) -> anyhow::Result<Verdict> {
    match command {
        LimitCommand::List(target) => {
            let answer = target.any().await?.list_lanes(ListLanesRequest {}).await?;
            let lanes: Vec<&LaneStatus> = answer.lanes.iter().filter(|lane| lane.limit.is_some()).collect();
            let value: Vec<Value> = lanes.iter().map(|lane| lane_json(lane)).collect();
            print(format, &value, || show_table(&lanes))?;
        }
        LimitCommand::Put(args) => {
            let scope = match args.scope {
                Scope::Account => LimitScope::Account,
                Scope::Sender => LimitScope::Sender,
                Scope::Campaign => LimitScope::Campaign,
                Scope::Brand => LimitScope::Brand,
                Scope::Practice => LimitScope::Practice,
            };
            let limit = LimitRecord {
                scope: scope.into(),
                key: args.scope_key,
                network: args.network,
                amount: args.amount,
                window_s: args.window_s.unwrap_or(0),
                time_zone: args.day_in.unwrap_or_default(),
                ..Default::default()
            };
            let (carrier, tenant, practice) = (args.carrier, args.tenant, args.practice);
            let request = PutLimitRequest { limit: Some(limit), carrier, tenant, practice };
            let number = args.target.any().await?.put_limit(request).await?.limit.map_or(0, |l| l.limit_no);
            print(format, &json!({ "limit_no": number }), || println!("limit {number}"))?;
        }
        LimitCommand::Drop { target, number } => {
            target.any().await?.drop_limit(DropLimitRequest { limit_no: number }).await?;
        }
    }
    Ok(Verdict::Done)
}

async fn set(target: &Target, carrier: String, paused: bool) -> anyhow::Result<Verdict> {
    target.any().await?.set_lane(SetLaneRequest { carrier, paused }).await?;
    Ok(Verdict::Done)
}

async fn show(target: &Target, carrier: Option<&str>, format: Format) -> anyhow::Result<Verdict> {
    // Only the leader of the meta group has the books.
    let answer: ListLanesResponse = target.connect_leader(0).await?.list_lanes(ListLanesRequest {}).await?;
    let wanted = |lane: &&LaneStatus| carrier.is_none_or(|name| lane.carrier == name);
    let lanes: Vec<&LaneStatus> = answer.lanes.iter().filter(wanted).collect();
    if let Some(name) = carrier
        && lanes.is_empty()
    {
        anyhow::bail!("there is no carrier {name}");
    }
    let value = json!({
        "node_id": answer.node_id, "leases": answer.leases, "has_books": answer.has_books,
        "lanes": lanes.iter().map(|lane| lane_json(lane)).collect::<Vec<_>>(),
    });
    print(format, &value, || {
        if !answer.leases {
            println!("nodes send on fixed shares; leases begin with feature level 5");
        }
        show_table(&lanes);
    })?;
    Ok(Verdict::Done)
}

/// What is limited, in words.
fn what(lane: &LaneStatus) -> String {
    let Some(limit) = &lane.limit else { return "account".to_owned() };
    let scope = limit.scope().as_str_name().trim_start_matches("LIMIT_SCOPE_").to_lowercase();
    let of = if lane.practice.is_empty() { &limit.key } else { &lane.practice };
    let network = if limit.network.is_empty() { String::new() } else { format!(" on {}", limit.network) };
    format!("#{} {scope} {of}{network}", limit.limit_no)
}

fn allowed(lane: &LaneStatus) -> String {
    match &lane.limit {
        None if lane.segments_per_second == 0 => "not published".to_owned(),
        None => format!("{}/s", lane.segments_per_second),
        Some(limit) if limit.window_s == 0 => format!("{} a day in {}", limit.amount, limit.time_zone),
        Some(limit) => format!("{} in {} s", limit.amount, limit.window_s),
    }
}

fn state(lane: &LaneStatus) -> String {
    match () {
        () if lane.paused => "paused".to_owned(),
        () if lane.ease_permille < 1_000 => {
            format!("eased to {}.{} %", lane.ease_permille / 10, lane.ease_permille % 10)
        }
        () if lane.limit.as_ref().is_some_and(|limit| limit.window_s == 0) => {
            format!("{} taken today", lane.cap_taken)
        }
        () => "open".to_owned(),
    }
}

fn show_table(lanes: &[&LaneStatus]) {
    let row = |lane: &&LaneStatus| {
        let books = lane.books.clone().unwrap_or_default();
        let holders = books.holders.iter().map(|h| format!("n{}:{}", h.node_id, h.tokens));
        vec![
            lane.carrier.clone(),
            what(lane),
            allowed(lane),
            state(lane),
            format!("{}+{}/{}", books.held, books.resting, books.tokens),
            holders.collect::<Vec<_>>().join(" "),
            books.holders.iter().map(|h| u64::from(h.segments)).sum::<u64>().to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = lanes.iter().map(row).collect();
    table(&["CARRIER", "LIMIT", "ALLOWS", "STATE", "HELD+RESTING/TOKENS", "HOLDERS", "WAITING"], &rows);
}

fn lane_json(lane: &LaneStatus) -> Value {
    let limit = lane.limit.as_ref().map(|limit| {
        json!({
            "limit_no": limit.limit_no, "scope": limit.scope().as_str_name(), "key": limit.key,
            "network": limit.network, "amount": limit.amount, "window_s": limit.window_s,
            "time_zone": limit.time_zone,
        })
    });
    let books = lane.books.as_ref().map(|books| {
        json!({
            "tokens": books.tokens, "frame_us": books.frame_us, "held": books.held, "resting": books.resting,
            "holders": books.holders.iter().map(|h| {
                json!({ "node_id": h.node_id, "tokens": h.tokens, "segments": h.segments })
            }).collect::<Vec<_>>(),
        })
    });
    json!({
        "carrier": lane.carrier, "limit": limit, "practice": lane.practice,
        "segments_per_second": lane.segments_per_second, "ease_permille": lane.ease_permille,
        "paused": lane.paused, "held_segments_per_second": lane.held_segments_per_second,
        "cap_taken": lane.cap_taken, "cap_left": lane.cap_left, "waiting": lane.ready, "books": books,
    })
}
