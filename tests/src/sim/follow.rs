//! What the canonical history says: events, opt-outs and attempts, shown to the oracle once, when the first replica applies an entry.
use super::ingest::is_ordered;
use super::nights;
use super::rng::hash;
use super::world::World;
use carillon_core::meta::{MetaEffects, MetaRefusal, level};
use carillon_core::{CommandResult, Effects, Refusal, Retired, applied_record, message, query};
use carillon_proto::MessageId;
use carillon_proto::internal::{Command, CommandBatch, EventRecord, MetaBatch, command::Kind};
use carillon_proto::public::{MessageClass, MessageState, WaitingReason};
use prost::Message as _;
use prost::bytes::Bytes;

impl World {
    /// A program never applies what it does not understand (D16): that would make its tables differ from the others'.
    pub fn understands(&mut self, node: usize, group: u32, data: &Bytes, meta_effects: &MetaEffects) {
        let own = self.nodes[node].level;
        if own >= level::LEVEL {
            return;
        }
        let foreign = match group {
            0 => MetaBatch::decode(data.clone()).is_ok_and(|batch| {
                let kinds = batch.commands.iter().map(|command| command.kind.as_ref());
                kinds.zip(&meta_effects.results).any(|(kind, result)| {
                    kind.is_some_and(|kind| level::needed(kind) > own)
                        && !matches!(result, Err(MetaRefusal::Level { .. }))
                })
            }),
            _ => CommandBatch::decode(data.clone())
                .is_ok_and(|batch| batch.commands.iter().any(|command| needed(command) > own)),
        };
        if foreign {
            let id = self.nodes[node].id;
            self.oracle.fail(format!("I3 node {id} of level {own} applies a later command in group {group}"));
        }
    }

    /// Shows the oracle what the first replica that applied an entry made of it, with the tables as they are then.
    pub fn follow(&mut self, node: usize, partition: u32, data: &Bytes, effects: &Effects) {
        if partition == 0 {
            return;
        }
        let now_ms = applied_record(self.nodes[node].stores[&partition].tables()).map_or(0, |r| r.now_ms);
        self.judge_stamp(node, partition, now_ms);
        // A key that goes in an entry may be used again in the same one.
        let mut dropped = Retired::default();
        for result in &effects.results {
            if let CommandResult::Retired(retired) = result {
                dropped.messages += retired.messages;
                dropped.keys += retired.keys;
            }
        }
        if dropped != Retired::default() {
            self.follow_retire(node, partition, now_ms, &dropped);
        }
        self.follow_commands(node, partition, data, &effects.results);
        for event in &effects.events {
            // What was written, even if a row of it rotted since.
            let store = self.nodes[node].stores[&partition].tables();
            let message_id = MessageId::from_bytes(&event.message_id).ok();
            let found = message_id.and_then(|id| query::message(store, &id).ok().flatten());
            let Some((payload, status)) = found else {
                self.oracle.fail(format!("I9 an event of partition {partition} names no message"));
                return;
            };
            let from = self.oracle.event(event, &(payload.clone(), status.clone()), now_ms);
            let accept = payload.accept.unwrap_or_default();
            let recipient = (accept.recipient_index.clone(), is_ordered(&accept));
            self.oracle.recipient(event, &status, recipient, &self.plan.settings);
            self.count_event(from, event);
            let text = format!("{}{}", short_state(event.state), note_detail(event));
            let id = message_id.expect("it was found");
            let words = [13, hash(id.as_bytes()), event.state as u64, u64::from(event.attempt)];
            self.note(&words, || format!("event  p{partition} {id} {text}"));
        }
    }

    /// I11: no entry is stamped with a time that is further from the truth than one wrong clock may lead its leader astray.
    fn judge_stamp(&mut self, node: usize, partition: u32, stamp_ms: u64) {
        let Some(error_ms_max) = self.plan.stamp_error_ms_max else { return };
        let truth_ms = self.plan.start_ms() + self.now_ms;
        // Entries are applied some time after they were stamped; a restart applies old ones.
        if stamp_ms > truth_ms + error_ms_max {
            self.oracle.fail(format!(
                "I11 node {} partition {partition}: an entry is stamped {} ms ahead of the true time",
                node + 1,
                stamp_ms - truth_ms
            ));
        }
    }

    /// I6: in the order of the log, no attempt begins after an opt-out of its recipient.
    fn follow_commands(&mut self, node: usize, partition: u32, data: &Bytes, results: &[CommandResult]) {
        let Ok(batch) = CommandBatch::decode(data.clone()) else { return };
        // The clock of the log, which never goes back: a new leader's may be behind.
        let applied = applied_record(self.nodes[node].stores[&partition].tables());
        let now_ms = applied.map_or(batch.now_ms, |applied| applied.now_ms);
        for (command, result) in batch.commands.iter().zip(results) {
            match (&command.kind, result) {
                (Some(Kind::OptOut(stop)), CommandResult::Done) => {
                    let recipient = self.true_recipient(&stop.recipient_index);
                    self.note(&[14, hash(&recipient)], || format!("stop   p{partition} {recipient:x?}"));
                    self.oracle.stopped.insert((stop.practice_no, recipient));
                    self.count_while_full(node, "stop_while_nearly_full");
                }
                (Some(Kind::BeginAttempt(begin)), CommandResult::Begun(_) | CommandResult::Done) => {
                    let store = self.nodes[node].stores[&partition].tables();
                    let id = MessageId::from_bytes(&begin.message_id).ok();
                    let found = id.and_then(|id| query::message(store, &id).ok().flatten());
                    let Some((payload, status)) = found else { continue };
                    let Some(accept) = payload.accept else { continue };
                    self.follow_begin(begin, &accept.sealed_body, &status);
                    if self.plan.nights && accept.place.is_some() {
                        self.oracle.hours_of_begun(&begin.message_id, nights::hours_of(&accept), now_ms);
                    }
                    let recipient = (accept.practice_no, accept.recipient_index);
                    let exempt = accept.class == MessageClass::Staff as i32;
                    self.follow_burst(&begin.message_id, recipient.clone(), exempt, now_ms);
                    self.oracle.begun(&begin.message_id, recipient);
                }
                (Some(Kind::ResolveQuarantine(_)), CommandResult::Resolved(resolved)) => {
                    if resolved.messages > 0 {
                        self.trace.count("quarantine_resolved");
                    }
                    if !resolved.kept.is_empty() {
                        self.trace.count("not_released_twice");
                    }
                }
                (Some(Kind::RecordOutcome(_)), CommandResult::Done) => {
                    self.count_while_full(node, "outcome_while_nearly_full");
                }
                (Some(Kind::Accept(accept)), result @ CommandResult::SameContent { .. }) => {
                    self.follow_content(node, partition, accept, result, now_ms);
                }
                (Some(Kind::Accept(accept)), result @ CommandResult::Accepted) => {
                    self.follow_content(node, partition, accept, result, now_ms);
                    let wrong = self.oracle.changes.accepted(accept);
                    wrong.into_iter().for_each(|text| self.oracle.fail(text));
                }
                (Some(Kind::AdvanceSeries(advance)), CommandResult::Done) => self.follow_advance(advance),
                (Some(Kind::AdvanceSeries(_)), _) => self.trace.count("series_step_refused"),
                (Some(Kind::UpdateByReference(update)), result) => {
                    self.follow_update(node, partition, update, result);
                }
                (Some(Kind::SetHours(set)), CommandResult::Done) => {
                    self.trace.count("hours_renewed");
                    if set.due_ms > 0 {
                        self.trace.count("held_for_hours");
                    }
                }
                (Some(Kind::BeginAttempt(_)), CommandResult::Refused(Refusal::OptedOut)) => {
                    self.trace.count("begin_refused_after_stop");
                }
                (Some(Kind::BeginAttempt(_)), CommandResult::Refused(Refusal::FrequencyCap)) => {
                    self.trace.count("held_by_frequency_cap");
                }
                (Some(Kind::BeginAttempt(_)), CommandResult::Refused(Refusal::Burst)) => {
                    self.trace.count("fuse_for_bursts_blew");
                }
                (Some(Kind::BeginAttempt(_)), CommandResult::Refused(Refusal::OutOfTurn)) => {
                    self.trace.count("held_for_order");
                }
                _ => {}
            }
        }
    }

    fn count_event(&mut self, from: MessageState, event: &EventRecord) {
        let to = MessageState::try_from(event.state).unwrap_or(MessageState::Unspecified);
        let taken =
            matches!(to, MessageState::Submitted | MessageState::Delivered | MessageState::Undelivered);
        match (from, to) {
            (MessageState::Unknown, _) if taken && event.attempt == 0 => {
                self.trace.count("unknown_resolved_by_receipt");
            }
            (MessageState::Unknown, _) if taken => self.trace.count("unknown_resolved_by_late_answer"),
            (_, MessageState::Unknown) if event.detail == message::RESTORE_GUARD => {
                self.trace.count("quarantined");
            }
            (_, MessageState::Unknown) => {
                self.trace.count("attempt_unknown");
                if event.detail == carillon_core::CODE_LEADER_CHANGED {
                    self.trace.count("leader_changed_with_attempts_in_flight");
                }
            }
            (MessageState::Unknown, MessageState::Waiting) => self.trace.count("resent_by_policy"),
            (_, MessageState::OptedOut) if event.detail == "opted_out" => self.trace.count("ended_by_stop"),
            (_, MessageState::Canceled) => self.trace.count("canceled"),
            (_, MessageState::Expired) => {
                self.trace.count("expired");
                if event.detail == carillon_core::DETAIL_QUIET_HOURS {
                    self.trace.count("expired_in_quiet_hours");
                }
            }
            (MessageState::Unspecified, MessageState::Waiting)
                if event.waiting_reason == WaitingReason::QuietHours as i32 =>
            {
                self.trace.count("held_for_hours");
            }
            (MessageState::InFlight, _) if taken && event.attempt == 0 => {
                self.trace.count("receipt_before_outcome");
            }
            _ => {}
        }
    }
}

/// The feature level that a command of a partition needs.
fn needed(command: &Command) -> u32 {
    match &command.kind {
        Some(
            Kind::UpdateByReference(_)
            | Kind::DropDeadLetter(_)
            | Kind::ResolveUnknown(_)
            | Kind::Reroute(_)
            | Kind::PutSeries(_)
            | Kind::AdvanceSeries(_)
            | Kind::EndSeries(_),
        ) => level::LEVEL_DELIVERY,
        Some(Kind::Accept(accept)) if accept.dead_letter_listed || accept.route_no > 0 => {
            level::LEVEL_DELIVERY
        }
        Some(Kind::BeginAttempt(begin)) if !begin.sender.is_empty() => level::LEVEL_DELIVERY,
        Some(Kind::BeginAttempt(begin)) if begin.frequency.is_some() => level::LEVEL_DELIVERY,
        Some(Kind::OptOut(_)) => level::LEVEL_OPT_OUT,
        Some(Kind::SetHours(_)) => level::LEVEL_DELIVERY,
        Some(Kind::Accept(accept)) if accept.place.is_some() => level::LEVEL_DELIVERY,
        Some(Kind::Accept(accept)) if accept.due_by_practice || accept.ordered => level::LEVEL_DELIVERY,
        Some(Kind::Accept(accept)) if !accept.duplicate_index.is_empty() => level::LEVEL_DELIVERY,
        Some(Kind::Accept(accept)) if accept.indexed_by_recipient => level::LEVEL_OPT_OUT,
        _ => level::LEVEL_BASE,
    }
}

fn short_state(state: i32) -> String {
    format!("{:?}", MessageState::try_from(state).unwrap_or(MessageState::Unspecified)).to_uppercase()
}

fn note_detail(event: &EventRecord) -> String {
    let attempt = if event.attempt > 0 { format!(" attempt {}", event.attempt) } else { String::new() };
    let detail = if event.detail.is_empty() { String::new() } else { format!(" {}", event.detail) };
    format!("{attempt}{detail}")
}
