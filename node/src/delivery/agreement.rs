//! A carrier without a business associate agreement carries only classes that are free of PHI.
//!
//! Three walls: ingest refuses such a message (edge/ingest.rs), the driver holds it back before its attempt begins (here: the
//! account may have lost its agreement since), and the sender refuses it before the connector sees it.
use super::connect::{carries, has_baa};
use super::lanes::{Lane, LaneTable};
use crate::engine::NodeHandle;
use bytes::Bytes;
use carillon_core::meta::level::LEVEL_DELIVERY;
use carillon_core::query;
use carillon_delivery::BeginDecision;
use carillon_proto::MessageId;
use carillon_proto::internal::{Command, HoldBack, command::Kind};
use carillon_proto::public::{MessageClass, WaitingReason};
use prost::Message as _;

/// The code of an attempt that was not sent for this reason.
pub const CODE: &str = "carrier_without_baa";
/// A message that is held back is looked at again after this.
const HOLD_MS: u64 = 60_000;

/// Whether the lane may carry the class.
pub fn covers(lane: &Lane, class: i32) -> bool {
    let class = MessageClass::try_from(class).unwrap_or(MessageClass::Unspecified);
    carries(&lane.record, &lane.contract.get(), class)
}

/// What may begin, and what may not.
pub enum Split {
    All(Vec<BeginDecision>),
    Some { list: Vec<BeginDecision>, held: Vec<(MessageId, Bytes)> },
}

/// Takes out what its lane may not carry, with the command that lets it wait. Lanes with an agreement cost nothing; for the
/// others the class is read.
pub fn split(
    handle: &NodeHandle,
    lanes: &LaneTable,
    partition: u32,
    list: Vec<BeginDecision>,
    now_ms: u64,
) -> Split {
    let bare = |decided: &BeginDecision| {
        lanes.get(decided.carrier_no).is_some_and(|lane| !has_baa(&lane.record, &lane.contract.get()))
    };
    if !list.iter().any(bare) {
        return Split::All(list);
    }
    let tables = handle.local_tables(partition).ok();
    let is_free = |decided: &BeginDecision| {
        let read = tables.as_ref().and_then(|tables| query::message(&**tables, &decided.message_id).ok());
        let class = read.flatten().map_or(0, |(_, status)| status.class);
        lanes.get(decided.carrier_no).is_some_and(|lane| covers(&lane, class))
    };
    let (list, held): (Vec<_>, Vec<_>) =
        list.into_iter().partition(|decided| !bare(decided) || is_free(decided));
    // Older programs do not know the reason.
    let known = handle.meta().level >= LEVEL_DELIVERY;
    let reason = if known { WaitingReason::CarrierWithoutBaa } else { WaitingReason::Paused };
    let hold = |decided: BeginDecision| {
        let hold = HoldBack {
            message_id: decided.message_id.to_bytes(),
            due_ms: now_ms + HOLD_MS,
            reason: reason.into(),
        };
        let command = Command { kind: Some(Kind::HoldBack(hold)) };
        (decided.message_id, command.encode_to_vec().into())
    };
    Split::Some { list, held: held.into_iter().map(hold).collect() }
}
