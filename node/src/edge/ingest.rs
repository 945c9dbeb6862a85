//! Ingest: turns validated messages into sealed commands and proposes them.
//!
//! Plaintext ends here: after `seal_one` only sealed values and keyed hashes exist. Everything that needs a clock, a
//! class policy or a key is resolved here, before the log.
use super::ids::RisingIds;
use super::{propose_status, sameness};
use crate::clock::now_ms as clock_ms;
use crate::delivery::Connect;
use crate::delivery::backlog::Looker;
use crate::engine::handle::{COMMANDS_MAX, PROPOSAL_BYTES_MAX};
use crate::engine::{NodeHandle, ProposeError};
use crate::hours::Hours;
use crate::seal::{Context, Field, Keyring, KeyringError, Nonces, PracticeKeys, SealError};
use crate::space::NearFull;
use bytes::Bytes;
use carillon_core::classes::{ClassPolicy, ClassTable};
use carillon_core::meta::level::LEVEL_DELIVERY;
use carillon_core::meta::routes::{self, Way};
use carillon_core::meta::{MetaView, senders};
use carillon_core::{CommandResult, Refusal};
use carillon_delivery::hours::{Ask, HoursPlan};
use carillon_proto::errors;
use carillon_proto::internal::{
    Accept, Command, IngestMessage, IngestResult, MessageDetails, NodeSubmitRequest, NodeSubmitResponse,
    PartitionSubmit, PartitionSubmitResult, Place, PracticeRecord, SendingPolicy, command::Kind,
};
use carillon_proto::public::{ErrorReason, MessageClass, Priority};
use carillon_proto::{MessageId, Slot};
use futures::future::join_all;
use prost::Message as _;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tonic::Status;

/// Commands proposed together: a few proposals of one request run beside each other.
const CHUNK_COMMANDS: usize = COMMANDS_MAX / 2;
const CHUNK_BYTES: usize = PROPOSAL_BYTES_MAX * 3 / 4;

/// Accepts messages for partitions that this node leads.
#[derive(Clone)]
pub struct Ingest {
    pub handle: NodeHandle,
    pub keyring: Arc<Keyring>,
    pub ids: Arc<RisingIds>,
    pub classes: Arc<ClassTable>,
    /// Which carriers can be used, for messages with a choice.
    pub lanes: Looker,
    pub connect: Connect,
    pub hours: Hours,
    /// Obey [`PANIC_LABEL`].
    pub lab: bool,
}

/// In lab mode a message with this label makes ingest panic while it holds the plaintext, with the plaintext in the
/// panic: the canary suite proves that no trace of it is left. Without lab mode it is a label like any other.
const PANIC_LABEL: &str = "carillon-lab-panic";

/// What is the same for every message of a practice in one request.
pub(crate) struct PracticeContext {
    record: PracticeRecord,
    policy: SendingPolicy,
    pub keys: Arc<PracticeKeys>,
    slot: Slot,
}

fn without_baa() -> Status {
    metrics::counter!("carillon_refused_without_baa_total").increment(1);
    errors::status(
        ErrorReason::CarrierWithoutBaa,
        "the practice's carrier has no business associate agreement and the class may hold phi",
    )
}

impl Ingest {
    pub async fn submit(&self, request: NodeSubmitRequest) -> NodeSubmitResponse {
        let tenant = request.tenant;
        let parts = request.partitions.into_iter().map(|part| self.submit_partition(&tenant, part));
        NodeSubmitResponse { partitions: join_all(parts).await }
    }

    async fn submit_partition(&self, tenant: &str, part: PartitionSubmit) -> PartitionSubmitResult {
        let partition = part.partition;
        let not_leader = |leader_hint| PartitionSubmitResult {
            partition,
            not_leader: true,
            leader_hint,
            results: Vec::new(),
        };
        if partition == 0 || partition > self.handle.partitions() {
            return not_leader(0);
        }
        if !self.handle.is_leader(partition) {
            return not_leader(self.handle.leadership(partition).leader);
        }
        let count = part.messages.len();
        if let Some(refused) = self.refused_for_restore(count).or_else(|| self.refused_for_space(count)) {
            return PartitionSubmitResult { partition, not_leader: false, leader_hint: 0, results: refused };
        }
        let mut results: Vec<IngestResult> = vec![IngestResult::default(); count];
        let (mut chunks, mut chunk, mut chunk_bytes) = (Vec::new(), Vec::new(), 0);
        let (mut practices, mut nonces) = (HashMap::new(), Nonces::default());
        for (at, message) in part.messages.into_iter().enumerate() {
            let practice_no = message.practice_no;
            if let Entry::Vacant(vacant) = practices.entry(practice_no) {
                vacant.insert(self.practice(tenant, partition, practice_no).await);
            }
            let sealed = match &practices[&practice_no] {
                Ok(practice) if !self.may_carry(practice, &message) => Err(without_baa()),
                // A panic stays with its message: broken off, the call would be repeated with all of them.
                Ok(practice) => {
                    catch_unwind(AssertUnwindSafe(|| self.seal_one(practice, &mut nonces, message)))
                        .map_or_else(|_| Err(panicked()), |sealed| sealed.map_err(|e| seal_status(&e)))
                }
                Err(status) => Err(status.clone()),
            };
            match sealed {
                Ok((told, accept)) => {
                    let command = encode(accept);
                    if chunk.len() == CHUNK_COMMANDS || chunk_bytes + command.len() > CHUNK_BYTES {
                        chunks.push(std::mem::take(&mut chunk));
                        chunk_bytes = 0;
                    }
                    chunk_bytes += command.len() + 8;
                    chunk.push((at, told, command));
                }
                Err(status) => results[at].error = Some(errors::to_rpc(&status)),
            }
        }
        chunks.push(chunk);
        let chunks = chunks.into_iter().filter(|chunk| !chunk.is_empty());
        let mut lost = None;
        for outcome in join_all(chunks.map(|chunk| self.propose(partition, chunk))).await {
            match outcome {
                Ok(list) => list.into_iter().for_each(|(at, result)| results[at] = result),
                Err(hint) => lost = Some(hint),
            }
        }
        match lost {
            // Nothing at all went in: the router may send all of it elsewhere.
            Some(hint) if results.iter().all(|r| r.message_id.is_empty() && r.error.is_none()) => {
                not_leader(hint)
            }
            Some(_) => {
                for result in results.iter_mut().filter(|r| r.message_id.is_empty() && r.error.is_none()) {
                    result.error =
                        Some(errors::to_rpc(&propose_status(&ProposeError::NotLeader { leader_hint: 0 })));
                }
                PartitionSubmitResult { partition, not_leader: false, leader_hint: 0, results }
            }
            None => PartitionSubmitResult { partition, not_leader: false, leader_hint: 0, results },
        }
    }

    /// The carrier of the practice may carry the class, or one that its route names. One that is not there is no carrier to keep
    /// anything from.
    fn may_carry(&self, practice: &PracticeContext, message: &IngestMessage) -> bool {
        let view = self.handle.meta();
        let may = |carrier_no: u32| {
            let carrier = view.carriers.get(&carrier_no);
            carrier.is_none_or(|carrier| self.connect.may_carry(carrier, message.class))
        };
        if may(practice.record.carrier_no) {
            return true;
        }
        let route = (view.level >= LEVEL_DELIVERY)
            .then(|| routes::route(&view, &practice.record, message.class, &message.recipient))
            .flatten();
        // Which of them is for `way` to say; anybody does here.
        route.is_some_and(|route| routes::choose(&view, route, &[], |way| may(way.carrier_no)).is_some())
    }

    /// Nothing new before everything that the backup knows is back, keys of old messages above all.
    fn refused_for_restore(&self, count: usize) -> Option<Vec<IngestResult>> {
        self.handle.meta().is_restoring().then(|| {
            let error = Some(errors::to_rpc(&restoring()));
            vec![IngestResult { error, ..Default::default() }; count]
        })
    }

    /// Nothing new while the disks are nearly full; what was accepted goes on to its end.
    fn refused_for_space(&self, count: usize) -> Option<Vec<IngestResult>> {
        let what = match self.handle.space().refusal()? {
            NearFull::Here => "the disk of the partition's leader is nearly full",
            NearFull::Majority => "the disks of most replicas are nearly full",
        };
        metrics::counter!("carillon_storage_refused_total").increment(count as u64);
        let error = Some(errors::to_rpc(&errors::status(ErrorReason::StorageFull, what)));
        Some(vec![IngestResult { error, ..Default::default() }; count])
    }

    /// The practice, if it is the tenant's and lives in this partition; with its keys.
    pub(crate) async fn practice(
        &self,
        tenant: &str,
        partition: u32,
        practice_no: u32,
    ) -> Result<PracticeContext, Status> {
        let view = self.handle.meta();
        let unknown = || errors::status(ErrorReason::PracticeNotFound, "no such practice");
        let record =
            view.practices.get(&practice_no).filter(|r| r.tenant == tenant).ok_or_else(unknown)?.clone();
        let slot = Slot::of_practice(&record.tenant, &record.practice);
        if slot.partition(self.handle.partitions()) != partition {
            return Err(errors::status(ErrorReason::NotLeader, "the practice lives in another partition"));
        }
        let keys = self.keyring.newest(practice_no).await.map_err(|e| keyring_status(&e))?;
        let policy = view.policy_of(&record);
        Ok(PracticeContext { record, policy, keys, slot })
    }

    /// Seals a message. Its strings are dropped here.
    pub(crate) fn seal_one(
        &self,
        practice: &PracticeContext,
        nonces: &mut Nonces,
        message: IngestMessage,
    ) -> Result<(Told, Accept), SealError> {
        assert!(
            !(self.lab && message.labels.contains_key(PANIC_LABEL)),
            "asked to panic by {} {} {:?}",
            message.recipient,
            message.body,
            message.labels,
        );
        let now_ms = clock_ms();
        let keys = &practice.keys;
        let id = self.ids.next(now_ms, practice.slot);
        let view = self.handle.meta();
        let context =
            Context { cluster_id: &view.cluster_id, practice_no: message.practice_no, message_id: &id };
        let class = MessageClass::try_from(message.class).unwrap_or(MessageClass::Unspecified);
        let policy = self.classes.get(class);
        let priority = priority_of(&message, &policy);
        let begin_ms = message.not_before_ms.max(now_ms);
        let expires_at_ms = expiry_of(&message, &policy, begin_ms);
        let recipient_index = keys.recipient_index(&message.recipient);
        let (way, route_no) = self.way(&view, &practice.record, &recipient_index, &message);
        let place = message
            .place
            .clone()
            .unwrap_or_else(|| Place { time_zones: vec![message.time_zone.clone()], ..Place::default() });
        let ask = Ask {
            place: &place,
            class: message.class,
            priority,
            practice: practice.record.hours.as_ref(),
            from_ms: begin_ms,
        };
        let delivery = view.level >= LEVEL_DELIVERY;
        let plan = match delivery {
            true => self.hours.of(&view).plan(&ask, expires_at_ms),
            false => HoursPlan::default(),
        };
        if plan.due_ms > 0 {
            metrics::counter!("carillon_hours_held_total", "when" => "accept").increment(1);
        }
        let content_mac = keys.content_mac(&sameness::canonical(&message));
        let (duplicate_index, duplicate_window_ms) =
            sameness::duplicate_check(practice.policy.duplicate_window_s, keys, &message, delivery);
        let optional = |text: &str, index: fn(&PracticeKeys, &str) -> Bytes| match text {
            "" => Bytes::new(),
            text => index(keys, text),
        };
        let idempotency_index = optional(&message.idempotency_key, PracticeKeys::idempotency_index);
        let reference_index = optional(&message.external_reference, PracticeKeys::reference_index);
        let sealed_details = if message.external_reference.is_empty() && message.labels.is_empty() {
            Bytes::new()
        } else {
            let details =
                MessageDetails { external_reference: message.external_reference, labels: message.labels };
            keys.seal(nonces, context, Field::Details, &details.encode_to_vec())?
        };
        let accept = Accept {
            message_id: id.to_bytes(),
            practice_no: message.practice_no,
            class: message.class,
            priority,
            not_before_ms: message.not_before_ms,
            expires_at_ms,
            deadline_ms: message.deadline_ms,
            // With a place it is in there.
            time_zone: if delivery { String::new() } else { message.time_zone },
            sealed_recipient: keys.seal(nonces, context, Field::Recipient, message.recipient.as_bytes())?,
            recipient_index,
            sealed_body: keys.seal(nonces, context, Field::Body, message.body.as_bytes())?,
            sealed_details,
            key_epoch: keys.epoch,
            encoding: message.encoding,
            segments: message.segments,
            idempotency_index,
            content_mac,
            reference_index,
            carrier_no: way.carrier_no,
            retry: Some(policy.retry),
            // Of all messages with the surface for opt-outs, and then by the feature level.
            indexed_by_recipient: delivery && message.ordered,
            due_by_practice: delivery,
            duplicate_index,
            duplicate_window_ms,
            ordered: delivery && message.ordered,
            dead_letter_listed: delivery,
            replay_of: Bytes::new(),
            route_no,
            place: delivery.then_some(place),
            due_ms: plan.due_ms,
            open_until_ms: plan.open_until_ms,
            hours_stamp: plan.stamp,
            sender_no: way.sender_no,
        };
        let told = Told { id, first_send_ms: plan.first_send_ms, expires_before: plan.expires_before };
        Ok((told, accept))
    }

    /// Carrier and sender of a message, and the number of the route that chose them. Without a route it is the practice's carrier; of a
    /// route whose carriers all fail, the first one, until one works again. The recipient, by its index, has the same as long as it can be
    /// used.
    fn way(
        &self,
        view: &MetaView,
        practice: &PracticeRecord,
        spread: &[u8],
        message: &IngestMessage,
    ) -> (Way, u32) {
        let of = |carrier_no: u32, sender_no: u32| Way { carrier_no, sender_no };
        let own = practice.carrier_no;
        if view.level < LEVEL_DELIVERY {
            return (of(own, 0), 0);
        }
        let sender_works = |way: &Way| way.can_be_used(view) && self.lanes.sender_usable(way.sender_no);
        let own_sender = || {
            let pool = |may: &dyn Fn(Way) -> bool| {
                senders::of_pool(view, own, spread, |sender_no| may(of(own, sender_no)))
            };
            let works = pool(&|way| sender_works(&way)).or_else(|| pool(&|way| way.can_be_used(view)));
            of(own, works.or_else(|| pool(&|_| true)).unwrap_or(0))
        };
        let Some(route) = routes::route(view, practice, message.class, &message.recipient) else {
            return (own_sender(), 0);
        };
        let may = |carrier_no: u32| {
            view.carriers
                .get(&carrier_no)
                .is_none_or(|carrier| self.connect.may_carry(carrier, message.class))
        };
        let choose = |usable: &dyn Fn(Way) -> bool| {
            routes::choose(view, route, spread, |way| may(way.carrier_no) && usable(way))
        };
        let works = choose(&|way| self.lanes.usable(way.carrier_no) && sender_works(&way));
        let chosen = works.or_else(|| choose(&|way| way.can_be_used(view))).or_else(|| choose(&|_| true));
        chosen.map_or_else(|| (own_sender(), 0), |way| (way, route.route_no))
    }

    /// `Err(leader hint)` when nothing was appended because this node no longer leads.
    async fn propose(
        &self,
        partition: u32,
        chunk: Vec<(usize, Told, Bytes)>,
    ) -> Result<Vec<(usize, IngestResult)>, u64> {
        let commands = chunk.iter().map(|(_, _, command)| command.clone()).collect();
        let outcome = self.handle.propose(partition, commands).await;
        let places = chunk.into_iter().map(|(at, told, _)| (at, told));
        match outcome {
            Ok(answers) => {
                Ok(places.zip(answers).map(|((at, told), answer)| (at, item(told, &answer))).collect())
            }
            Err(ProposeError::NotLeader { leader_hint }) => Err(leader_hint),
            Err(error) => {
                let uncertain = error == ProposeError::Uncertain;
                let rpc = errors::to_rpc(&propose_status(&error));
                let failed = IngestResult { error: Some(rpc), uncertain, ..Default::default() };
                Ok(places.map(|(at, _)| (at, failed.clone())).collect())
            }
        }
    }
}

/// An Accept as it is proposed.
pub(crate) fn encode(accept: Accept) -> Bytes {
    Command { kind: Some(Kind::Accept(accept)) }.encode_to_vec().into()
}

/// What the caller is told of a message that is new.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    pub id: MessageId,
    first_send_ms: u64,
    expires_before: bool,
}

fn item(told: Told, answer: &CommandResult) -> IngestResult {
    match answer {
        CommandResult::Accepted => IngestResult {
            message_id: told.id.to_bytes(),
            first_send_ms: told.first_send_ms,
            expires_in_quiet_hours: told.expires_before,
            ..Default::default()
        },
        CommandResult::Duplicate { message_id } => {
            IngestResult { message_id: message_id.to_bytes(), duplicate: true, ..Default::default() }
        }
        CommandResult::KeyReused { message_id } => {
            let status = errors::status_with(
                ErrorReason::IdempotencyKeyReused,
                "the idempotency key names another message",
                &[("message_id", message_id.to_string())],
            );
            IngestResult { error: Some(errors::to_rpc(&status)), ..Default::default() }
        }
        CommandResult::SameContent { message_id } => {
            metrics::counter!("carillon_fuse_trips_total", "fuse" => "duplicate").increment(1);
            let status = errors::status_with(
                ErrorReason::DuplicateContent,
                "the same text was accepted for this recipient a moment ago",
                &[("message_id", message_id.to_string())],
            );
            IngestResult { error: Some(errors::to_rpc(&status)), ..Default::default() }
        }
        CommandResult::Refused(Refusal::Restoring) => {
            IngestResult { error: Some(errors::to_rpc(&restoring())), ..Default::default() }
        }
        other => {
            tracing::error!(answer = ?std::mem::discriminant(other), "accept was refused by apply");
            let status = errors::status(ErrorReason::Internal, "accept refused");
            IngestResult { error: Some(errors::to_rpc(&status)), ..Default::default() }
        }
    }
}

pub(crate) fn keyring_status(error: &KeyringError) -> Status {
    match error {
        KeyringError::Meta(_) => errors::status(ErrorReason::PartitionUnavailable, "no key yet"),
        _ => {
            tracing::error!(%error, "practice key unavailable");
            errors::status(ErrorReason::KeyUnavailable, "the practice's key cannot be used")
        }
    }
}

pub(crate) fn restoring() -> Status {
    errors::status(ErrorReason::PartitionUnavailable, "the cluster is being restored from a backup")
}

/// The message's own priority, or its class's.
fn priority_of(message: &IngestMessage, policy: &ClassPolicy) -> i32 {
    match message.priority {
        0 => policy.priority as i32,
        given if Priority::try_from(given).is_ok() => given,
        _ => Priority::Normal as i32,
    }
}

/// Its own expiry or its class's after the first moment to send, and never after its deadline.
fn expiry_of(message: &IngestMessage, policy: &ClassPolicy, begin_ms: u64) -> u64 {
    let by_class_ms = match message.expires_at_ms {
        0 => begin_ms + policy.default_expiry_ms,
        given => given,
    };
    match message.deadline_ms {
        0 => by_class_ms,
        deadline => by_class_ms.min(deadline),
    }
}

fn panicked() -> Status {
    errors::status(ErrorReason::Internal, "the message could not be processed")
}

fn seal_status(error: &SealError) -> Status {
    tracing::error!(%error, "sealing failed");
    errors::status(ErrorReason::Internal, "sealing failed")
}
