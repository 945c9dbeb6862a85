//! Why one message has not left yet, for routers: what the tables, the lane and a forecast of the lane say together.
//!
//! A message in line is found by running its lane ahead, so the work grows with what waits before it; bounded by `backlog::ROWS_MAX`.
use super::ingest::keyring_status;
use super::query::{Queries, not_leader};
use super::{internal, view};
use crate::clock::now_ms as clock_ms;
use crate::delivery::backlog::{Looker, capacity};
use carillon_core::message::{state_of, waits};
use carillon_core::meta::routes::Way;
use carillon_delivery::explain::{Explanation, explain, reason};
use carillon_delivery::forecast::{Capacity, Departure, forecast};
use carillon_proto::MessageId;
use carillon_proto::errors;
use carillon_proto::internal::node_explain_response::Result as ExplainResult;
use carillon_proto::internal::{MessageStatus, NodeExplainRequest, NodeExplainResponse};
use carillon_proto::public::{ExplainMessageResponse, Hold, MessageView};
use tonic::Status;

/// Rows that become due so long after the message may still pass it.
const AHEAD_MS: u64 = 3_600_000;

#[derive(Clone)]
pub struct Explains {
    pub queries: Queries,
    pub looker: Looker,
}

impl Explains {
    pub async fn explain(&self, request: NodeExplainRequest) -> Result<NodeExplainResponse, Status> {
        let missing = || super::query::missing();
        let id = MessageId::from_bytes(&request.message_id).map_err(|_| missing())?;
        let handle = &self.queries.handle;
        let tables = match handle.read(id.slot().partition(handle.partitions())).await {
            Ok(tables) => tables,
            Err(error) => {
                let result = Some(ExplainResult::NotLeader(not_leader(&error)));
                return Ok(NodeExplainResponse { result });
            }
        };
        let (payload, status) = match self.queries.find(&*tables, &id, &request.tenant)? {
            Ok(found) => found,
            Err(error) => {
                return Ok(NodeExplainResponse {
                    result: Some(ExplainResult::Error(errors::to_rpc(&error))),
                });
            }
        };
        drop(tables);
        let (meta, now_ms) = (handle.meta(), clock_ms());
        let mut message =
            view::message(&meta, &self.queries.keyring, &id, &payload, &status, MessageView::Basic)
                .map_err(|e| keyring_status(&e))?;
        let way = Way { carrier_no: status.carrier_no, sender_no: status.sender_no };
        let lane = self.looker.lane(way, status.practice_no, now_ms).await;
        let (departure, lower_bound) = match waits(state_of(&status)) {
            true => {
                let daily = self.looker.daily(status.carrier_no, now_ms);
                let capacity = Capacity { daily, ..capacity(&lane) };
                self.departure(&id, &status, now_ms, capacity).await?
            }
            false => (None, false),
        };
        let moves = lane.segments_per_second > 0 && !lane.closed_by_operator && !lane.paused_by_operator;
        let Explanation { holds, binding_limit, summary } =
            explain(&status, &lane, departure.as_ref(), now_ms);
        message.waiting_reason = reason(&status, &lane, now_ms).into();
        let holds = holds.into_iter().map(|hold| Hold {
            reason: hold.reason as i32,
            limit: hold.limit,
            until: view::timestamp(hold.until_ms),
        });
        let explained = ExplainMessageResponse {
            message: Some(message),
            holds: holds.collect(),
            binding_limit,
            position: departure.map_or(0, |d| d.position),
            estimated_send_time: departure.and_then(|d| d.at_ms).and_then(view::timestamp),
            // Of a lane that stands still nobody can tell.
            will_expire: departure.is_some_and(|d| d.at_ms.is_none()) && moves,
            lower_bound,
            summary,
        };
        Ok(NodeExplainResponse { result: Some(ExplainResult::Explained(explained)) })
    }

    /// Its place among what waits for the same lane, and whether rows were left out.
    async fn departure(
        &self,
        id: &MessageId,
        status: &MessageStatus,
        now_ms: u64,
        capacity: Capacity,
    ) -> Result<(Option<Departure>, bool), Status> {
        let until_ms = status.due_ms.max(now_ms).saturating_add(AHEAD_MS);
        let read = self.looker.backlog(until_ms).await;
        let mut backlog = read.map_err(|_| internal("unreadable rows"))?;
        let rows = backlog.rows.remove(&status.carrier_no).unwrap_or_default();
        let (id, truncated) = (*id, backlog.truncated);
        let run = tokio::task::spawn_blocking(move || {
            let rows = rows.into_iter().map(|(_, row)| row).collect();
            forecast(rows, capacity, now_ms).departures.into_iter().find(|d| d.message_id == id)
        });
        Ok((run.await.map_err(|_| internal("the forecast ended"))?, truncated))
    }
}
