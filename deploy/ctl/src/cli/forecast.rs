//! `carillonctl forecast`: what the lanes of all nodes will do with what waits now, also under another limit.
use super::Verdict;
use super::backup::Everyone;
use super::output::{Format, print, table};
use carillon_proto::admin::{GetForecastRequest, LaneForecast};
use clap::Args;
use serde_json::json;
use std::collections::BTreeMap;

#[derive(Debug, Args)]
pub struct ForecastArgs {
    #[command(flatten)]
    nodes: Everyone,
    /// One carrier; all if not given.
    #[arg(long)]
    carrier: Option<String>,
    /// What if the limit of this carrier were so many segments per second?
    #[arg(long, requires = "carrier", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Name so many messages of each lane and node that will be late.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1000))]
    late: u32,
}

/// A lane over all nodes: each sends what it leads within its share, so the last one to end decides.
#[derive(Default)]
struct Sum {
    segments_per_second: u32,
    due: u64,
    waiting: u64,
    ends_ms: u64,
    never: bool,
    cap_ms: u64,
    late: u64,
    expired: u64,
    lower_bound: bool,
    named: Vec<carillon_proto::admin::LateMessage>,
}

pub async fn run(args: ForecastArgs, format: Format) -> anyhow::Result<Verdict> {
    let nodes = args.nodes.connect()?;
    let mut lanes: BTreeMap<String, Sum> = BTreeMap::new();
    let mut now_ms = 0;
    for (_, admin) in nodes.statuses().await? {
        let request = GetForecastRequest {
            carrier: args.carrier.clone().unwrap_or_default(),
            segments_per_second: args.limit.unwrap_or(0),
            late_limit: args.late,
            page_token: String::new(),
        };
        let answer = admin.forecast(request).await?;
        now_ms = now_ms.max(answer.now_ms);
        for lane in answer.lanes {
            add(lanes.entry(lane.carrier.clone()).or_default(), lane);
        }
    }
    let seconds = |at_ms: u64| at_ms.saturating_sub(now_ms) as f64 / 1000.0;
    let ends = |sum: &Sum| if sum.never { None } else { Some(seconds(sum.ends_ms)) };
    let value: Vec<_> = lanes
        .iter()
        .map(|(carrier, sum)| {
            json!({ "carrier": carrier, "segments_per_second": sum.segments_per_second, "due": sum.due,
                "waiting": sum.waiting, "backlog_ends_in_s": ends(sum), "late": sum.late, "expired": sum.expired,
                "cap_reached_in_s": (sum.cap_ms > 0).then(|| seconds(sum.cap_ms)), "lower_bound": sum.lower_bound,
                "late_messages": sum.named.iter().map(|m| m.message_id.clone()).collect::<Vec<_>>() })
        })
        .collect();
    print(format, &value, || {
        let row = |(carrier, sum): (&String, &Sum)| {
            vec![
                carrier.clone(),
                sum.segments_per_second.to_string(),
                sum.due.to_string(),
                sum.waiting.to_string(),
                ends(sum).map_or_else(|| "never".to_owned(), |s| format!("{s:.1} s")),
                sum.late.to_string(),
                sum.expired.to_string(),
            ]
        };
        let rows: Vec<Vec<String>> = lanes.iter().map(row).collect();
        table(
            &["CARRIER", "SEGMENTS/S", "DUE", "WAITING", "BACKLOG ENDS IN", "LATE", "OF THESE EXPIRE"],
            &rows,
        );
        for message in lanes.values().flat_map(|sum| &sum.named) {
            println!("late: {} {}/{}", message.message_id, message.tenant, message.practice);
        }
    })?;
    Ok(Verdict::Done)
}

fn add(sum: &mut Sum, lane: LaneForecast) {
    sum.segments_per_second += lane.segments_per_second;
    sum.due += lane.due_messages;
    sum.waiting += lane.waiting_messages;
    sum.never |= lane.backlog_ends_ms == 0;
    sum.ends_ms = sum.ends_ms.max(lane.backlog_ends_ms);
    if lane.cap_reached_ms > 0 {
        sum.cap_ms = if sum.cap_ms == 0 { lane.cap_reached_ms } else { sum.cap_ms.min(lane.cap_reached_ms) };
    }
    sum.late += lane.late_messages;
    sum.expired += lane.expired_messages;
    sum.lower_bound |= lane.lower_bound;
    sum.named.extend(lane.late);
}
