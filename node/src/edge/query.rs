//! Reads for routers: one message, or a page of a partition. Linearizable: confirmed with a quorum first.
use super::ingest::keyring_status;
use super::{internal, view};
use crate::clock::now_ms as clock_ms;
use crate::delivery::backlog::Looker;
use crate::engine::{NodeHandle, ProposeError};
use crate::seal::Keyring;
use carillon_core::ReadTables;
use carillon_core::message::{state_of, waits};
use carillon_core::meta::routes::Way;
use carillon_core::query::{self, ListFilter};
use carillon_delivery::explain::{LaneState, reason};
use carillon_proto::errors;
use carillon_proto::internal::node_get_response::Result as GetResult;
use carillon_proto::internal::{
    MessagePayload, MessageStatus, NodeGetRequest, NodeGetResponse, NodeListRequest, NodeListResponse,
    NotLeader,
};
use carillon_proto::public::{ErrorReason, MessageClass, MessageState, MessageView, WaitingReason};
use carillon_proto::{MessageId, Slot, slot::SLOTS};
use prost_types::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::Status;

/// Most messages in one page of a partition.
const LIMIT_MAX: u32 = 1000;
/// Most rows looked at for one page.
const SCAN_LIMIT_MAX: u32 = 50_000;

#[derive(Clone)]
pub struct Queries {
    pub handle: NodeHandle,
    pub keyring: Arc<Keyring>,
    pub looker: Looker,
}

/// How the lanes stand for the messages of one answer: each is looked at once.
#[derive(Default)]
pub(super) struct Standing(BTreeMap<(Way, u32), LaneState>);

/// A read that this node cannot serve now.
pub(super) fn not_leader(error: &ProposeError) -> NotLeader {
    match error {
        ProposeError::NotLeader { leader_hint } => NotLeader { leader_hint: *leader_hint },
        _ => NotLeader { leader_hint: 0 },
    }
}

pub(super) fn missing() -> Status {
    errors::status(ErrorReason::MessageNotFound, "no such message")
}

/// A message with its records, or why there is none for the caller.
type Found = Result<(MessagePayload, MessageStatus), Status>;

fn millis(t: &Timestamp) -> u64 {
    u64::try_from(t.seconds).unwrap_or(0) * 1000 + u64::try_from(t.nanos).unwrap_or(0) / 1_000_000
}

/// What fits, and the slots to look at.
type Wanted = (ListFilter, (Slot, Slot));

impl Queries {
    pub async fn get(&self, request: NodeGetRequest) -> Result<NodeGetResponse, Status> {
        let id = MessageId::from_bytes(&request.message_id).map_err(|_| missing())?;
        let partition = id.slot().partition(self.handle.partitions());
        let tables = match self.handle.read(partition).await {
            Ok(tables) => tables,
            Err(error) => {
                return Ok(NodeGetResponse { result: Some(GetResult::NotLeader(not_leader(&error))) });
            }
        };
        let (payload, status) = match self.find(&*tables, &id, &request.tenant)? {
            Ok(found) => found,
            Err(status) => {
                return Ok(NodeGetResponse { result: Some(GetResult::Error(errors::to_rpc(&status))) });
            }
        };
        let meta = self.handle.meta();
        let detail = MessageView::try_from(request.view).unwrap_or(MessageView::Basic);
        let mut message = view::message(&meta, &self.keyring, &id, &payload, &status, detail)
            .map_err(|e| keyring_status(&e))?;
        message.waiting_reason = self.reason(&mut Standing::default(), &status, clock_ms()).into();
        Ok(NodeGetResponse { result: Some(GetResult::Message(message)) })
    }

    /// Why a message waits at this moment; this node leads its partition.
    pub(super) fn reason(
        &self,
        standing: &mut Standing,
        status: &MessageStatus,
        now_ms: u64,
    ) -> WaitingReason {
        let stored = WaitingReason::try_from(status.waiting_reason).unwrap_or_default();
        if !waits(state_of(status)) || status.due_ms > now_ms {
            return stored;
        }
        let way = Way { carrier_no: status.carrier_no, sender_no: status.sender_no };
        let practice_no = status.practice_no;
        let look = || self.looker.lane_now(way, practice_no, now_ms);
        reason(status, standing.0.entry((way, practice_no)).or_insert_with(look), now_ms)
    }

    /// A message of the tenant, or the answer that there is none.
    pub(super) fn find(
        &self,
        tables: &dyn ReadTables,
        id: &MessageId,
        tenant: &str,
    ) -> Result<Found, Status> {
        let found = query::message(tables, id).map_err(|_| internal("unreadable record"))?;
        let meta = self.handle.meta();
        let own = |no: u32| meta.practices.get(&no).is_some_and(|p| p.tenant == tenant);
        if let Some(found) = found.filter(|(_, status)| own(status.practice_no)) {
            return Ok(Ok(found));
        }
        let retired = query::retention(tables).map_err(|_| internal("unreadable record"))?;
        // Of this time no final message is left, so it may have been one.
        Ok(Err(match id.time_ms() <= retired.finals_before_ms {
            true => errors::status_with(
                ErrorReason::MessageRetired,
                "no such message, or it was dropped after its retention",
                &[("finals_before_ms", retired.finals_before_ms.to_string())],
            ),
            false => missing(),
        }))
    }

    pub async fn list(&self, request: NodeListRequest) -> Result<NodeListResponse, Status> {
        if request.partition == 0 || request.partition > self.handle.partitions() {
            return Err(internal("no such partition"));
        }
        let tables = match self.handle.read(request.partition).await {
            Ok(tables) => tables,
            Err(error) => {
                return Ok(NodeListResponse { not_leader: Some(not_leader(&error)), ..Default::default() });
            }
        };
        let asked = request.filter.unwrap_or_default();
        let meta = self.handle.meta();
        let Some((filter, slots)) = self.filter(&request.tenant, &asked)? else {
            return Ok(NodeListResponse::default());
        };
        let after =
            match request.after.len() {
                0 => None,
                _ => Some(MessageId::from_bytes(&request.after).map_err(|_| {
                    errors::status(ErrorReason::InvalidToken, "the position is not one of ours")
                })?),
            };
        let limit = request.limit.clamp(1, LIMIT_MAX) as usize;
        let scan_limit = request.scan_limit.clamp(1, SCAN_LIMIT_MAX) as usize;
        let page = query::list(&*tables, slots, after, &filter, limit, scan_limit)
            .map_err(|_| internal("unreadable record"))?;
        let detail = MessageView::try_from(asked.view).unwrap_or(MessageView::Basic);
        let (mut standing, now_ms) = (Standing::default(), clock_ms());
        let mut messages = Vec::with_capacity(page.rows.len());
        for row in &page.rows {
            let mut message =
                view::message(&meta, &self.keyring, &row.message_id, &row.payload, &row.status, detail)
                    .map_err(|e| keyring_status(&e))?;
            message.waiting_reason = self.reason(&mut standing, &row.status, now_ms).into();
            messages.push(message);
        }
        let next = page.next.map(|id| id.to_bytes()).unwrap_or_default();
        Ok(NodeListResponse { messages, next, not_leader: None })
    }

    /// The filter and the slots to look at; `None` when nothing can match.
    fn filter(
        &self,
        tenant: &str,
        asked: &carillon_proto::public::ListMessagesRequest,
    ) -> Result<Option<Wanted>, Status> {
        let meta = self.handle.meta();
        let all = (Slot::new(0).expect("0 is a slot"), Slot::new(SLOTS - 1).expect("4095 is a slot"));
        let (practices, slots) = if asked.practice.is_empty() {
            (meta.practices_of(tenant).map(|p| p.practice_no).collect(), all)
        } else {
            let Some(practice) = meta.practice(tenant, &asked.practice) else { return Ok(None) };
            let slot = Slot::of_practice(tenant, &asked.practice);
            ([practice.practice_no].into(), (slot, slot))
        };
        let reference_index = if asked.external_reference.is_empty() {
            None
        } else {
            let Some(practice) = meta.practice(tenant, &asked.practice) else { return Ok(None) };
            let index = self.reference_index(practice.practice_no, &asked.external_reference)?;
            match index {
                Some(index) => Some(index),
                None => return Ok(None),
            }
        };
        let filter = ListFilter {
            practices: Some(practices),
            states: asked.states.iter().filter_map(|s| MessageState::try_from(*s).ok()).collect(),
            classes: asked.classes.iter().filter_map(|c| MessageClass::try_from(*c).ok()).collect(),
            reference_index,
            accepted_after_ms: asked.accepted_after.as_ref().map(millis),
            accepted_before_ms: asked.accepted_before.as_ref().map(millis),
        };
        Ok(Some((filter, slots)))
    }

    /// The keyed hash of an external reference; `None` when the practice never sealed anything.
    fn reference_index(&self, practice_no: u32, reference: &str) -> Result<Option<[u8; 16]>, Status> {
        match self.keyring.of_epoch(practice_no, 1) {
            Ok(keys) => Ok(keys.reference_index(reference).as_ref().try_into().ok()),
            Err(crate::seal::KeyringError::Missing) => Ok(None),
            Err(error) => Err(keyring_status(&error)),
        }
    }
}
