//! Forecasts for operators: what each lane will do with the messages that this node leads, also under another limit.
use super::internal;
use crate::clock::now_ms as clock_ms;
use crate::delivery::backlog::{Looker, capacity};
use carillon_core::meta::routes::Way;
use carillon_delivery::forecast::{Capacity, Forecast, Waiting, forecast as run};
use carillon_proto::admin::{GetForecastRequest, GetForecastResponse, LaneForecast, LateMessage};
use std::collections::BTreeMap;
use tonic::Status;

const LATE_MAX: usize = 1_000;

pub(super) async fn forecast(
    looker: &Looker,
    request: GetForecastRequest,
) -> Result<GetForecastResponse, Status> {
    let view = looker.handle.meta();
    let carriers: Vec<u32> = match request.carrier.as_str() {
        "" if request.segments_per_second > 0 => {
            return Err(Status::invalid_argument("name the carrier whose limit would change"));
        }
        "" => view.carriers.keys().copied().collect(),
        name => {
            let found = view.carrier(name).ok_or_else(|| Status::not_found("no such carrier"))?;
            vec![found.carrier_no]
        }
    };
    let skip = match request.page_token.as_str() {
        "" => 0,
        token => token
            .parse::<usize>()
            .map_err(|_| Status::invalid_argument("the page token is not one of ours"))?,
    };
    let now_ms = clock_ms();
    let read = looker.backlog(u64::MAX).await;
    let mut backlog = read.map_err(|_| internal("unreadable rows"))?;
    let mut answer = GetForecastResponse { now_ms, ..Default::default() };
    for carrier_no in carriers {
        let lane = looker.lane(Way { carrier_no, sender_no: 0 }, 0, now_ms).await;
        let mut capacity = Capacity { daily: looker.daily(carrier_no, now_ms), ..capacity(&lane) };
        if request.segments_per_second > 0 {
            capacity.segments_per_second = scaled(&view, carrier_no, &capacity, request.segments_per_second);
        }
        let rows = backlog.rows.remove(&carrier_no).unwrap_or_default();
        let practices: BTreeMap<_, _> =
            rows.iter().map(|(practice_no, row)| (row.message_id, (*practice_no, *row))).collect();
        let waiting_messages = rows.len() as u64;
        let rows = rows.into_iter().map(|(_, row)| row).collect();
        let run = tokio::task::spawn_blocking(move || run(rows, capacity, now_ms)).await;
        let seen = run.map_err(|_| internal("the forecast ended"))?;
        let late = late(&seen, &practices, &view, skip, (request.late_limit as usize).min(LATE_MAX));
        let end = skip + late.len();
        let more = !late.is_empty() && (end as u64) < seen.late;
        answer.lanes.push(LaneForecast {
            carrier: lane.name,
            segments_per_second: capacity.segments_per_second,
            due_messages: seen.due_messages,
            due_segments: seen.due_segments,
            waiting_messages,
            backlog_ends_ms: seen.backlog_ends_ms.unwrap_or(0),
            cap_reached_ms: seen.cap_reached_ms.unwrap_or(0),
            late_messages: seen.late,
            expired_messages: seen.expired,
            late,
            next_page_token: if more { end.to_string() } else { String::new() },
            lower_bound: backlog.truncated,
        });
    }
    Ok(answer)
}

/// The share that this node would have of another limit: as large a part as it has now.
fn scaled(view: &carillon_core::meta::MetaView, carrier_no: u32, now: &Capacity, limit: u32) -> u32 {
    let present = view.carriers.get(&carrier_no).map_or(1, |c| c.segments_per_second.max(1));
    let share = u64::from(now.segments_per_second) * u64::from(limit) / u64::from(present);
    u32::try_from(share).unwrap_or(u32::MAX).max(1)
}

fn late(
    seen: &Forecast,
    practices: &BTreeMap<carillon_proto::MessageId, (u32, Waiting)>,
    view: &carillon_core::meta::MetaView,
    skip: usize,
    limit: usize,
) -> Vec<LateMessage> {
    let late = seen.departures.iter().filter(|departure| departure.late);
    let row = |departure: &carillon_delivery::forecast::Departure| {
        let (practice_no, row) = practices.get(&departure.message_id)?;
        let practice = view.practices.get(practice_no);
        let (tenant, practice) = practice.map(|p| (p.tenant.clone(), p.practice.clone())).unwrap_or_default();
        Some(LateMessage {
            message_id: departure.message_id.to_string(),
            tenant,
            practice,
            deadline_ms: row.deadline_ms,
            expires_at_ms: row.expires_at_ms,
            leaves_at_ms: departure.at_ms.unwrap_or(0),
        })
    };
    late.skip(skip).take(limit).filter_map(row).collect()
}
