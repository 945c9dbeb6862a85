//! Appointments, as the simulator runs them: a mirror of `node/src/edge/update.rs`, and what must hold of them and of messages that
//! change their carrier (I10).
use super::client::{Answer, Request, TENANT, practice_name};
use super::engine::Refused;
use super::node::Waiter;
use super::plan::Fault;
use super::plant::Plant;
use super::rng::{hash, mix};
use super::world::World;
use carillon_core::message::{is_final, state_of, waits};
use carillon_core::meta::level::LEVEL_DELIVERY;
use carillon_core::{CommandResult, Disposition, MemTables, Updated, keys, query, update};
use carillon_proto::MessageId;
use carillon_proto::internal::{
    BeginAttempt, Command, MessageStatus, MessageUpdate, UpdateByReference, command::Kind,
};
use carillon_proto::public::Outcome;
use prost::bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// External references of each practice.
const REFERENCES: u64 = 12;
/// Octets of a text before the version that it was changed to.
pub const TEXT_BYTES: usize = 16;

/// Which appointment a message belongs to.
pub fn reference_of(content: u64) -> u64 {
    mix(content ^ 0x5eed) % REFERENCES
}

pub fn reference_index(reference: u64) -> keys::Index {
    let mut index = [3_u8; 16];
    index[..8].copy_from_slice(&reference.to_be_bytes());
    index
}

/// The version that a text was changed to, 0 for the first one.
fn version_of(text: &[u8]) -> u64 {
    text.get(TEXT_BYTES..TEXT_BYTES + 8).and_then(|rest| rest.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// What was promised about changes: kept by the oracle.
#[derive(Debug, Default)]
pub struct Changes {
    /// The version of each (practice, reference) that took effect last, and its partition; as long as the tables remember it.
    versions: BTreeMap<(u32, Bytes), (u64, u32)>,
    /// Every version that ever took effect.
    ever: BTreeSet<(u32, Bytes, u64)>,
    /// The text that a message must have when an attempt begins.
    texts: BTreeMap<MessageId, u64>,
    /// (practice, text) of messages of series, and how often each came into being.
    pub accepted: BTreeMap<(u64, u64), u32>,
}

impl World {
    /// A call that changes every message of an appointment.
    pub fn update_arrives(
        &mut self,
        node: usize,
        partition: u32,
        (op, call_no): (u64, u32),
        (practice, reference, version): (u32, u64, u64),
    ) {
        let meta = &self.nodes[node].meta;
        let Some(record) = meta.practice(TENANT, &practice_name(practice)).cloned() else {
            return self.reply(node, op, call_no, Answer::Refused(Refused::Busy));
        };
        if meta.level < LEVEL_DELIVERY {
            return self.reply(node, op, call_no, Answer::TooOld);
        }
        let index = reference_index(reference);
        let store = &self.nodes[node].stores[&partition];
        let Ok(rows) = query::of_reference(store, record.practice_no, &index) else {
            return self.reply(node, op, call_no, Answer::Refused(Refused::Busy));
        };
        let now_ms = self.wall_ms(node);
        let live = rows.iter().filter(|row| !is_final(state_of(&row.status)));
        let updates = live.map(|row| {
            let draw = mix(hash(row.message_id.as_bytes()) ^ version);
            let message_id = row.message_id.to_bytes();
            match draw % 8 {
                0 => MessageUpdate { message_id, cancel: true, ..Default::default() },
                1 => MessageUpdate { message_id, ..Default::default() },
                _ => {
                    let old = row.payload.accept.as_ref().map(|a| a.sealed_body.to_vec()).unwrap_or_default();
                    let text = [&old[..TEXT_BYTES.min(old.len())], &version.to_be_bytes()].concat();
                    let later = if draw >> 8 & 1 == 0 { now_ms + (draw >> 12) % 3_000 } else { 0 };
                    MessageUpdate {
                        message_id,
                        not_before_ms: later,
                        sealed_body: text.into(),
                        encoding: 1,
                        segments: row.status.segments,
                        ..Default::default()
                    }
                }
            }
        });
        let command = UpdateByReference {
            practice_no: record.practice_no,
            reference_index: index.to_vec().into(),
            version,
            content_mac: reference_index(hash(&version.to_be_bytes())).to_vec().into(),
            updates: updates.collect(),
        };
        if self.planted(Plant::UpdateAssumed) {
            let told = Answer::Updated(Updated { duplicate: true, outcomes: Vec::new() });
            self.reply(node, op, call_no, told);
        }
        let command = Command { kind: Some(Kind::UpdateByReference(command)) };
        self.propose(node, partition, vec![command], Waiter::Call { op, call_no, id: None });
    }

    /// A client was told that a version took effect.
    pub fn update_told(&mut self, (practice, reference, version): (u32, u64, u64), updated: &Updated) {
        // There was nothing to change.
        if updated.outcomes.is_empty() && !updated.duplicate {
            return;
        }
        let name = practice_name(practice);
        let practice_no =
            self.nodes.iter().find_map(|node| node.meta.practice(TENANT, &name)).map_or(0, |p| p.practice_no);
        let told = (practice_no, Bytes::copy_from_slice(&reference_index(reference)), version);
        if practice_no > 0 && !self.oracle.changes.ever.contains(&told) {
            self.oracle.fail(format!(
                "I10 version {version} of reference {reference} was acknowledged and never took effect"
            ));
        }
    }

    /// In the order of the log: what an update did.
    pub fn follow_update(
        &mut self,
        node: usize,
        partition: u32,
        command: &UpdateByReference,
        result: &CommandResult,
    ) {
        let updated = match result {
            CommandResult::Updated(updated) => updated,
            _ => return self.trace.count("update_refused"),
        };
        if updated.duplicate {
            return self.trace.count("update_repeated");
        }
        if updated.outcomes.is_empty() {
            return;
        }
        self.trace.count("update_took_effect");
        let doubt = updated.outcomes.iter().any(|o| o.disposition == Disposition::InDoubt);
        if doubt {
            self.trace.count("update_in_doubt");
        }
        let key = (command.practice_no, command.reference_index.clone());
        self.note(&[60, command.version, hash(&command.reference_index)], || {
            let (practice, version) = (command.practice_no, command.version);
            format!(
                "update p{partition} practice {practice} version {version} {:x?}",
                command.reference_index
            )
        });
        let store = self.nodes[node].stores[&partition].tables();
        let wrong = self.oracle.changes.took_effect((key, partition), command, updated, store);
        wrong.into_iter().for_each(|text| self.oracle.fail(text));
    }

    /// In the order of the log: an attempt begins.
    pub fn follow_begin(&mut self, begin: &BeginAttempt, text: &[u8], status: &MessageStatus) {
        let Ok(id) = MessageId::from_bytes(&begin.message_id) else { return };
        let (has, must) = (version_of(text), self.oracle.changes.texts.get(&id).copied().unwrap_or(0));
        if has < must {
            self.oracle.fail(format!(
                "I10 attempt {} of message {id} begins with the text of version {has} after {must} took effect",
                begin.attempt_no
            ));
        }
        let lost = status.attempts.iter().find(|a| {
            a.number < begin.attempt_no
                && a.outcome == Outcome::Ambiguous as i32
                && a.carrier_no != begin.carrier_no
        });
        if let Some(lost) = lost {
            self.oracle.fail(format!(
                "I10 attempt {} of message {id} goes to carrier {}, and carrier {} may have it",
                begin.attempt_no, begin.carrier_no, lost.carrier_no
            ));
        }
        let moved = status.attempts.iter().any(|a| a.carrier_no != begin.carrier_no);
        if moved {
            self.trace.count("attempt_on_another_carrier");
        }
    }

    /// The next change of an appointment, or the last one again.
    pub fn draw_update(&mut self) -> Option<Request> {
        // Versions of a cluster that is lost end with it: the oracle does not follow them into the next one.
        if self.plan.faults.iter().any(|(_, fault)| matches!(fault, Fault::LoseAll { .. })) {
            return None;
        }
        let clients = &mut self.clients;
        if self.rng.care.chance(6) {
            let practice = self.rng.care.below(u64::from(self.plan.practices)) as u32;
            return Some(Request::Series { practice, key: self.rng.care.next() >> 8 });
        }
        if !self.rng.care.chance(60) || clients.appointments.is_empty() {
            return None;
        }
        let (practice, reference) = self.rng.care.pick(&clients.appointments);
        let version = clients.versions.entry((practice, reference)).or_insert(0);
        let again = *version > 0 && self.rng.care.chance(200);
        let older = *version > 1 && self.rng.care.chance(100);
        if !again {
            *version += 1;
        }
        let version = if older { *version - 1 } else { *version };
        Some(Request::Update { practice, reference, version })
    }
}

impl Changes {
    /// What retention dropped from the tables of a partition binds nobody any more. They are those after the entry: a version may have
    /// gone and another one have taken effect in it.
    pub fn dropped(&mut self, partition: u32, now_ms: u64, store: &MemTables) {
        self.versions.retain(|(practice_no, index), (_, of)| {
            let index: Option<keys::Index> = index.as_ref().try_into().ok();
            let row = |index| update::version(store, *practice_no, &index).ok().flatten();
            let kept = |index| row(index).is_some_and(|row| row.applied_at_ms < now_ms);
            *of != partition || index.is_some_and(kept)
        });
    }

    /// A new cluster begins with what its backup knows.
    pub fn restored(&mut self, tables: &BTreeMap<u32, MemTables>) {
        (self.versions, self.texts, self.accepted) = Default::default();
        for (partition, tables) in tables {
            for key in tables.rows().keys() {
                if let Some((practice_no, index)) = keys::decode_version(key)
                    && let Ok(Some(row)) = update::version(tables, practice_no, &index)
                {
                    let key = (practice_no, Bytes::copy_from_slice(&index));
                    self.versions.insert(key, (row.version, *partition));
                }
                let Some(id) = keys::decode_payload(key) else { continue };
                let Ok(Some((payload, status))) = query::message(tables, &id) else { continue };
                let Some(accept) = payload.accept else { continue };
                let pending = status.pending_update.map_or(0, |update| version_of(&update.sealed_body));
                self.texts.insert(id, version_of(&accept.sealed_body).max(pending));
                let _first = self.accepted(&accept);
            }
        }
    }

    /// Versions rise, and after the entry every message of the reference that can still be sent has what was decided for it.
    fn took_effect(
        &mut self,
        (key, partition): ((u32, Bytes), u32),
        command: &UpdateByReference,
        updated: &Updated,
        store: &MemTables,
    ) -> Option<String> {
        self.ever.insert((key.0, key.1.clone(), command.version));
        let before = self.versions.insert(key.clone(), (command.version, partition)).map_or(0, |(v, _)| v);
        if before >= command.version {
            return Some(format!("I10 version {} took effect after {before}", command.version));
        }
        let index: keys::Index = key.1.as_ref().try_into().ok()?;
        let Some(row) = update::version(store, key.0, &index).ok()? else {
            // Retention dropped it with the last message of the reference, later in the same entry.
            self.versions.remove(&key);
            return None;
        };
        let applied_at_ms = row.applied_at_ms;
        for row in query::of_reference(store, key.0, &index).ok()? {
            let id = row.message_id;
            let Some(outcome) = updated.outcomes.iter().find(|o| o.message_id == id) else {
                // The tables are those after the entry: it may have come into being behind the update.
                if row.payload.accepted_at_ms < applied_at_ms {
                    return Some(format!("I10 message {id} is not in the answer about its reference"));
                }
                continue;
            };
            let change = command.updates.iter().find(|u| u.message_id == id.to_bytes());
            let Some(change) = change.filter(|u| !u.sealed_body.is_empty()) else { continue };
            let text = row.payload.accept.as_ref().map(|a| version_of(&a.sealed_body)).unwrap_or(0);
            match outcome.disposition {
                Disposition::Updated if text < command.version && waits(state_of(&row.status)) => {
                    return Some(format!("I10 message {id} has version {text} after {}", command.version));
                }
                Disposition::Updated | Disposition::InDoubt => {
                    self.texts.insert(id, version_of(&change.sealed_body));
                }
                _ => {}
            }
        }
        None
    }
}
