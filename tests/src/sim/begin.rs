//! Beginning attempts, as the simulator runs it: a mirror of `node/src/delivery/driver/begin.rs` and `practices.rs`. What the scheduler
//! chose is proposed; what comes back as permits is sent; where the fuse for bursts blew the practice is paused.
use super::engine::Refused;
use super::node::Waiter;
use super::plant::Plant;
use super::wing::{PeerCall, SEND_WITHIN_MS};
use super::world::World;
use carillon_core::meta::{MetaView, level, senders};
use carillon_core::{CommandResult, Permit, Refusal, query};
use carillon_delivery::lease::common;
use carillon_delivery::{BeginDecision, BeginResult, PRIORITIES};
use carillon_proto::MessageId;
use carillon_proto::internal::meta_command::Kind as MetaKind;
use carillon_proto::internal::{
    BeginAttempt, Command, FrequencyRule, MetaCommand, PauseCause, PausePractice, command::Kind,
};
use prost::Message as _;
use prost::bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// A day, as the caps for messages to one recipient see it; a long one where there are none.
const DAY_MS: u64 = 5_000;
const LONG_DAY_MS: u64 = 1_000_000;

/// What the recipient will see; older programs do not know it.
fn address<'a>(meta: &'a MetaView, decided: &BeginDecision) -> &'a str {
    match meta.level >= level::LEVEL_DELIVERY {
        true => senders::address(meta, decided.carrier_no, decided.sender_no),
        false => "",
    }
}

impl World {
    /// Tells the scheduler which practices weigh more than others, and which are paused.
    pub fn sync_practices(&mut self, node: usize) {
        let ignores = self.planted(Plant::PauseIgnored);
        let light = self.planted(Plant::WeightsIgnored);
        let at = &mut self.nodes[node];
        let weighted = at.meta.practices.values().filter(|practice| practice.weight > 1 && !light);
        let weights: BTreeMap<u32, u32> = weighted.map(|p| (p.practice_no, p.weight)).collect();
        for practice_no in at.wing.weights.keys().chain(weights.keys()) {
            let weight = weights.get(practice_no).copied().unwrap_or(1);
            at.wing.scheduler.set_weight(*practice_no, weight);
        }
        if at.wing.weights != weights {
            at.wing.turns.forget_pairs();
        }
        at.wing.weights = weights;
        let pauses = at.meta.pauses.iter().filter(|(_, pause)| pause.paused && !ignores);
        let paused: BTreeSet<(u32, u32)> = pauses.map(|(key, _)| *key).collect();
        for (practice_no, carrier_no) in at.wing.paused.symmetric_difference(&paused) {
            let now = paused.contains(&(*practice_no, *carrier_no));
            at.wing.scheduler.pause_practice(*carrier_no, *practice_no, now);
            at.wing.turns.forget(*practice_no);
            self.trace.count(if now { "practice_paused" } else { "practice_resumed" });
        }
        at.wing.paused = paused;
    }

    pub fn begin(&mut self, node: usize, partition: u32, mut list: Vec<BeginDecision>, now_ms: u64) {
        let Some(term) = self.nodes[node].wing.term_of(partition) else { return };
        if self.planted(Plant::CapOutsideApply) {
            self.hold_by_heart(node, partition, &mut list, now_ms);
        }
        if list.is_empty() {
            return;
        }
        let commands: Vec<Command> = list
            .iter()
            .map(|decided| {
                let begin = BeginAttempt {
                    message_id: decided.message_id.to_bytes(),
                    attempt_no: decided.attempt_no,
                    carrier_no: decided.carrier_no,
                    term,
                    send_by_ms: now_ms + self.send_within_ms(node, decided.carrier_no, decided.segments),
                    node_id: self.nodes[node].id,
                    sender: address(&self.nodes[node].meta, decided).to_owned(),
                    sender_no: decided.sender_no,
                    frequency: self.frequency_rule(node, decided, now_ms),
                };
                Command { kind: Some(Kind::BeginAttempt(begin)) }
            })
            .collect();
        if self.planted(Plant::SendBeforeCommit) {
            self.send_early(node, partition, term, &list, now_ms);
        }
        let decided_ms = self.now_ms;
        self.propose(node, partition, commands, Waiter::Begin { partition, term, list, decided_ms });
    }

    /// Days are short here, so that caps fill and open again within a run.
    fn frequency_rule(&self, node: usize, decided: &BeginDecision, now_ms: u64) -> Option<FrequencyRule> {
        let (meta, settings) = (&self.nodes[node].meta, &self.plan.settings);
        let practice =
            meta.practices.get(&decided.practice_no).filter(|_| meta.level >= level::LEVEL_DELIVERY)?;
        let policy = meta.policy_of(practice);
        if policy.exempt_classes.contains(&decided.class) {
            return None;
        }
        let outside = self.planted(Plant::CapOutsideApply);
        let (per_day, per_week) = if outside { (0, 0) } else { (settings.per_day, settings.per_week) };
        let (day, day_ms) = self.day_of_caps(now_ms);
        Some(FrequencyRule {
            day: day as u32,
            day_starts_ms: (1..=7).map(|ahead| (day + ahead) * day_ms).collect(),
            per_day,
            per_week,
            burst: if self.planted(Plant::BurstIgnored) { 0 } else { policy.burst },
            burst_window_ms: policy.burst_window_s * 1_000,
            burst_since_ms: meta.resumed_ms(decided.practice_no, decided.carrier_no),
        })
    }

    fn day_of_caps(&self, now_ms: u64) -> (u64, u64) {
        let day_ms = if self.plan.settings.per_day > 0 { DAY_MS } else { LONG_DAY_MS };
        (now_ms / day_ms, day_ms)
    }

    fn recipient_of(&self, node: usize, partition: u32, id: &MessageId) -> Option<(u32, Bytes)> {
        let found = query::message(self.nodes[node].stores.get(&partition)?, id).ok().flatten();
        let accept = found.and_then(|(payload, _)| payload.accept)?;
        Some((accept.practice_no, accept.recipient_index))
    }

    /// Planted bug: this node looks for an opt-out when it proposes, and nobody when the proposal is applied.
    pub fn stopped_here(&self, node: usize, partition: u32, decided: &BeginDecision) -> bool {
        let recipient = self.recipient_of(node, partition, &decided.message_id);
        recipient.is_some_and(|recipient| self.nodes[node].wing.stops.contains(&recipient))
    }

    /// Planted bug: whoever leads counts what it begins for a recipient; the log does not.
    fn hold_by_heart(&mut self, node: usize, partition: u32, list: &mut Vec<BeginDecision>, now_ms: u64) {
        let (day, per_day) = (self.day_of_caps(now_ms).0, self.plan.settings.per_day as usize);
        let mut held = Vec::new();
        list.retain(|decided| {
            let Some(recipient) = self.recipient_of(node, partition, &decided.message_id) else {
                return true;
            };
            let counted = self.nodes[node].wing.counted.entry((recipient, day)).or_default();
            let full = counted.len() >= per_day && !counted.contains(&decided.message_id);
            if full {
                held.push(decided.message_id);
            } else {
                counted.insert(decided.message_id);
            }
            !full
        });
        for id in held {
            self.nodes[node].wing.scheduler.on_begun(partition, id, BeginResult::Refused);
            self.resolve_turn(node, partition, id, true);
        }
    }

    pub fn send_within_ms(&self, node: usize, carrier_no: u32, segments: u32) -> u64 {
        let (mono, at) = (self.mono(node), &self.nodes[node]);
        let after = at.wing.holder.as_ref().map_or(mono, |holder| {
            holder.view_of(&common(&at.meta, carrier_no), mono).after(u64::from(segments))
        });
        SEND_WITHIN_MS + after.saturating_sub(mono).as_millis() as u64
    }

    /// Planted bug: the permission is used before it is committed.
    fn send_early(&mut self, node: usize, partition: u32, term: u64, list: &[BeginDecision], now_ms: u64) {
        for decided in list {
            let permit = Permit {
                message_id: decided.message_id,
                attempt_no: decided.attempt_no,
                carrier_no: decided.carrier_no,
                practice_no: decided.practice_no,
                class: decided.class,
                key_epoch: 1,
                sealed_recipient: Default::default(),
                sealed_body: Default::default(),
                encoding: 1,
                segments: decided.segments,
                expires_at_ms: decided.expires_at_ms,
                send_by_ms: now_ms + SEND_WITHIN_MS,
                open_until_ms: 0,
                was_held: false,
                sender_no: decided.sender_no,
                sender: address(&self.nodes[node].meta, decided).to_owned(),
            };
            self.nodes[node].wing.early.insert((permit.message_id, permit.attempt_no));
            self.start_send(node, (partition, term, false), permit, now_ms, self.now_ms);
        }
    }

    /// Attempts were committed, refused or dropped.
    pub fn begun(
        &mut self,
        node: usize,
        partition: u32,
        term: u64,
        (list, decided_ms): (Vec<BeginDecision>, u64),
        result: Result<Vec<CommandResult>, Refused>,
    ) {
        let mut results = result.unwrap_or_default().into_iter();
        let mut permits = Vec::new();
        let mut bursts = BTreeSet::new();
        for decided in list {
            let begun = match results.next() {
                Some(CommandResult::Begun(permit)) => {
                    if permit.was_held {
                        self.trace.count("begun_after_hold");
                    }
                    permits.push((*permit, decided.priority == PRIORITIES[0]));
                    BeginResult::Ok
                }
                Some(CommandResult::Refused(Refusal::Burst)) => {
                    bursts.insert((decided.practice_no, decided.carrier_no));
                    BeginResult::Refused
                }
                _ => BeginResult::Refused,
            };
            let wing = &mut self.nodes[node].wing;
            if wing.current(partition, term) {
                wing.scheduler.on_begun(partition, decided.message_id, begun);
                if begun == BeginResult::Refused {
                    self.resolve_turn(node, partition, decided.message_id, true);
                }
            }
        }
        let now_ms = self.wall_ms(node);
        for (permit, urgent) in permits {
            if !self.nodes[node].wing.early.contains(&(permit.message_id, permit.attempt_no)) {
                self.start_send(node, (partition, term, urgent), permit, now_ms, decided_ms);
            }
        }
        bursts
            .into_iter()
            .for_each(|(practice_no, carrier_no)| self.stop_burst(node, practice_no, carrier_no));
        self.wake_driver(node, 0);
    }

    /// If it gets lost, the next refusal tries again.
    fn stop_burst(&mut self, node: usize, practice_no: u32, carrier_no: u32) {
        let pause = PausePractice { practice_no, carrier_no, paused: true, cause: PauseCause::Burst.into() };
        let data: Bytes = MetaCommand { kind: Some(MetaKind::PausePractice(pause)) }.encode_to_vec().into();
        match self.nodes[node].leader_hint(0) as usize {
            0 => {}
            leader if leader - 1 == node => self.propose_encoded(node, 0, vec![data], Waiter::Nobody),
            leader => self.peer(node, leader - 1, PeerCall::Meta { data }),
        }
    }
}
