//! A call at a node, as the simulator runs it: a mirror of `node/src/edge/ingest.rs`, `cancel.rs` and `query.rs`.
use super::client::{Answer, RECIPIENTS, Request, TENANT, practice_name};
use super::engine::Refused;
use super::nights;
use super::node::{Read, Waiter};
use super::plant::Plant;
use super::rng::{hash, mix};
use super::world::World;
use carillon_core::meta::level;
use carillon_core::meta::routes::Way;
use carillon_delivery::hours::{Ask, HoursPlan};
use carillon_proto::internal::{
    Accept, Cancel, Command, OptOut, Place, RetryPolicy, UnknownPolicy, command::Kind,
};
use carillon_proto::{MessageId, Slot};
use prost::bytes::Bytes;

impl World {
    /// A call reaches a node.
    pub fn call_arrives(&mut self, node: usize, op: u64, call_no: u32, request: Request) {
        if !self.nodes[node].up {
            return;
        }
        let partition = match &request {
            Request::Submit { practice, .. }
            | Request::Stop { practice, .. }
            | Request::Update { practice, .. }
            | Request::Series { practice, .. } => self.clients.partition_of(*practice),
            Request::Cancel { id, .. } | Request::Get { id } => id.slot().partition(self.plan.partitions),
        };
        if !self.nodes[node].leads(partition) {
            let hint = self.nodes[node].leader_hint(partition);
            return self.reply(node, op, call_no, Answer::Refused(Refused::NotLeader(hint)));
        }
        // Nothing new and no answer before everything that a backup knows is back.
        if self.nodes[node].meta.is_restoring() {
            return self.reply(node, op, call_no, Answer::Refused(Refused::Busy));
        }
        match request {
            Request::Submit { .. } if self.refuses_for_space(node) => {
                self.reply(node, op, call_no, Answer::NearlyFull);
            }
            Request::Submit { practice, key, content } => {
                let name = practice_name(practice);
                let found = self.nodes[node].meta.practice(TENANT, &name).cloned();
                let Some(record) = found else {
                    return self.reply(node, op, call_no, Answer::Refused(Refused::Busy));
                };
                let slot = Slot::of_practice(TENANT, &name);
                let id = MessageId::new(self.wall_ms(node), slot, self.rng.ingest.next());
                let accept =
                    self.accept(node, id, (record.practice_no, record.carrier_no), key, content, call_no);
                let command = Command { kind: Some(Kind::Accept(accept)) };
                self.propose(node, partition, vec![command], Waiter::Call { op, call_no, id: Some(id) });
            }
            Request::Cancel { id, practice_no } => {
                let cancel = Cancel { message_id: id.to_bytes(), practice_no };
                let command = Command { kind: Some(Kind::Cancel(cancel)) };
                self.propose(node, partition, vec![command], Waiter::Call { op, call_no, id: None });
            }
            Request::Stop { practice, recipient } => {
                self.stop_recipient(node, partition, (op, call_no), practice, recipient);
            }
            Request::Update { practice, reference, version } => {
                self.update_arrives(node, partition, (op, call_no), (practice, reference, version));
            }
            Request::Series { practice, key } => {
                self.series_arrives(node, partition, (op, call_no), (practice, key));
            }
            Request::Get { id } => self.ask_read(node, partition, Read { op, call_no, id }),
        }
    }

    /// Only from its feature level on: a replica of an older program would not know the command.
    fn stop_recipient(
        &mut self,
        node: usize,
        partition: u32,
        (op, call_no): (u64, u32),
        practice: u32,
        recipient: u64,
    ) {
        let meta = &self.nodes[node].meta;
        let Some(record) = meta.practice(TENANT, &practice_name(practice)).cloned() else {
            return self.reply(node, op, call_no, Answer::Refused(Refused::Busy));
        };
        if meta.level < level::LEVEL_OPT_OUT && !self.planted(Plant::LevelIgnored) {
            return self.reply(node, op, call_no, Answer::TooOld);
        }
        let recipient_index = self.mangled(recipient_index(recipient));
        let stop = OptOut { practice_no: record.practice_no, recipient_index };
        let command = Command { kind: Some(Kind::OptOut(stop)) };
        self.propose(node, partition, vec![command], Waiter::Call { op, call_no, id: None });
    }

    /// Planted bug: apply is told of somebody else, so that only the check outside of it counts.
    fn mangled(&self, recipient: Bytes) -> Bytes {
        match self.planted(Plant::StopOutsideApply) {
            true => recipient.iter().map(|byte| !byte).collect::<Vec<_>>().into(),
            false => recipient,
        }
    }

    /// Whom an opt-out in the log really means.
    pub fn true_recipient(&self, recipient: &Bytes) -> Bytes {
        self.mangled(recipient.clone())
    }

    /// What ingest makes of a message. Everything but times and the id follows from the content, as a repeat must.
    pub fn accept(
        &mut self,
        node: usize,
        id: MessageId,
        (practice_no, carrier_no): (u32, u32),
        key: Option<u64>,
        content: u64,
        call_no: u32,
    ) -> Accept {
        let now_ms = self.wall_ms(node);
        let mut named = key.unwrap_or(0);
        if self.planted(Plant::KeyForgotten) {
            named ^= u64::from(call_no) << 40;
        }
        let draw = mix(content);
        let policy =
            [UnknownPolicy::Hold, UnknownPolicy::Hold, UnknownPolicy::ResendOnce, UnknownPolicy::Abandon];
        let life_ms = [1_500, 20_000, 40_000, 40_000][draw as usize % 4];
        let later = if draw >> 8 & 7 == 0 { now_ms + (draw >> 12) % 6_000 } else { 0 };
        let (class, priority) = (1 + ((draw >> 32) % 11) as i32, 1 + ((draw >> 36) % 4) as i32);
        let from_ms = later.max(now_ms);
        let hours = self.hours(node, practice_no, content, (class, priority), (from_ms, from_ms + life_ms));
        let (place, plan) = hours.unzip();
        let plan = plan.unwrap_or_default();
        let long = (draw >> 24) % 1000 < self.plan.long;
        let meta = &self.nodes[node].meta;
        let delivery = meta.level >= level::LEVEL_DELIVERY;
        let policy_of = |no: u32| meta.practices.get(&no).map(|practice| meta.policy_of(practice));
        let duplicate_window_s = policy_of(practice_no).map_or(0, |policy| policy.duplicate_window_s);
        // Recipient, class and text.
        let text = if self.plan.settings.duplicate_window_s > 0 { draw >> 48 & 1 } else { content };
        let same = mix(text ^ (((draw >> 16) % RECIPIENTS) << 32) ^ (u64::from(class as u32) << 40));
        let fused = delivery && duplicate_window_s > 0;
        let recipient = recipient_index(draw >> 16);
        let (Way { carrier_no, sender_no }, route_no) =
            self.way_of(node, practice_no, carrier_no, &recipient, class);
        Accept {
            message_id: id.to_bytes(),
            practice_no,
            class,
            priority,
            not_before_ms: later,
            expires_at_ms: from_ms + life_ms,
            place,
            due_ms: plan.due_ms,
            open_until_ms: plan.open_until_ms,
            hours_stamp: plan.stamp,
            time_zone: String::new(),
            sealed_recipient: content.to_be_bytes().to_vec().into(),
            recipient_index: recipient,
            sender_no,
            ordered: delivery && draw >> 20 & 1 == 0 && !self.planted(Plant::OrderIgnored),
            due_by_practice: delivery,
            duplicate_index: if fused { bytes16(same, 3).into() } else { Bytes::new() },
            duplicate_window_ms: if fused { duplicate_window_s * 1_000 } else { 0 },
            route_no,
            indexed_by_recipient: self.nodes[node].meta.level >= level::LEVEL_OPT_OUT,
            // What the key named, for the check at the end.
            sealed_body: bytes16(u64::from(practice_no), key.unwrap_or(0)).into(),
            key_epoch: 1,
            encoding: 1,
            segments: if long { 2 + ((draw >> 40) % 2) as u32 } else { 1 },
            reference_index: super::care::reference_index(super::care::reference_of(content)).to_vec().into(),
            dead_letter_listed: delivery,
            idempotency_index: key.map(|_| bytes16(named, hash(b"key")).into()).unwrap_or_default(),
            content_mac: bytes16(content, 2).into(),
            carrier_no,
            retry: Some(RetryPolicy {
                attempts_max: 4,
                backoff_base_ms: 300,
                backoff_max_ms: 2_000,
                unknown_policy: policy[(draw >> 44) as usize % 4] as i32,
            }),
            ..Default::default()
        }
    }
}

impl World {
    /// What ingest finds out about the recipient's hours; nothing below their feature level.
    pub fn hours(
        &self,
        node: usize,
        practice_no: u32,
        content: u64,
        (class, priority): (i32, i32),
        (from_ms, expires_at_ms): (u64, u64),
    ) -> Option<(Place, HoursPlan)> {
        let meta = &self.nodes[node].meta;
        if meta.level < level::LEVEL_DELIVERY {
            return None;
        }
        let place = nights::place_of(content);
        let mut believed = place.clone();
        if self.planted(Plant::HoursByFixedOffset) {
            let summer = |zone: &mut String| *zone = zone.replace("America/New_York", "Etc/GMT+4");
            believed.time_zones.iter_mut().for_each(summer);
        }
        let practice = meta.practices.get(&practice_no).and_then(|record| record.hours.as_ref());
        let mut plan =
            self.book.plan(&Ask { place: &believed, class, priority, practice, from_ms }, expires_at_ms);
        if self.planted(Plant::HoursOnlyAtAccept) {
            plan.open_until_ms = 0;
        }
        Some((place, plan))
    }
}

/// What its caller asked for.
pub fn is_ordered(accept: &Accept) -> bool {
    let content = accept.sealed_recipient.as_ref().try_into().map_or(0, u64::from_be_bytes);
    accept.due_by_practice && mix(content) >> 20 & 1 == 0
}

fn bytes16(a: u64, b: u64) -> Vec<u8> {
    [a.to_be_bytes(), b.to_be_bytes()].concat()
}

fn recipient_index(recipient: u64) -> Bytes {
    bytes16(recipient % RECIPIENTS, 1).into()
}
