//! The glue of sending, as the simulator runs it: a mirror of `node/src/delivery/sending.rs` and of what a connector does
//! with the parts of a message: in order, each one after its permit and after the answer to the one before.
use super::carrier::{PartAnswer, Submit};
use super::plant::Plant;
use super::settings::{practice_of, sender_address};
use super::truth::Write;
use super::wing::{RESPONSE_TIMEOUT_MS, Sending};
use super::world::{Event, World};
use carillon_core::Permit;
use carillon_core::meta::MetaView;
use carillon_delivery::lease::{self, Holder, LimitId, Wait};
use carillon_proto::internal::LaneAnswers;
use carillon_proto::public::Outcome;
use std::time::Duration;

/// The limits that an attempt needs now, under the sender that it was committed with.
pub fn stack_of(meta: &MetaView, permit: &Permit, plant: Option<Plant>) -> Vec<LimitId> {
    let own = permit.sender_no == 0 || plant == Some(Plant::SenderIgnored);
    let sender = if own { "" } else { permit.sender.as_str() };
    let mut stack = lease::stack(meta, permit.carrier_no, permit.practice_no, sender);
    if plant == Some(Plant::StackIgnored) {
        stack.truncate(1);
    }
    stack
}

impl World {
    /// Runs one committed attempt: its parts wait for the gate in turn.
    pub fn start_send(
        &mut self,
        node: usize,
        (partition, term, urgent): (u32, u64, bool),
        permit: Permit,
        now_ms: u64,
        decided_ms: u64,
    ) {
        let left_ms = permit.send_by_ms.saturating_sub(now_ms);
        // As it was when the attempt was decided: what is held has changed since.
        let then_ms = now_ms.saturating_sub(self.now_ms - decided_ms);
        let send_within_ms = permit.send_by_ms.saturating_sub(then_ms);
        let send_by = self.mono(node) + Duration::from_millis(left_ms);
        let carrier_no = permit.carrier_no;
        let stack = stack_of(&self.nodes[node].meta, &permit, self.plan.plant);
        let whole = self.plan.settings.whole == Some(carrier_no as usize - 1);
        let wing = &mut self.nodes[node].wing;
        wing.next_send += 1;
        let send_no = wing.next_send;
        let lane = wing.lanes.get_mut(&carrier_no);
        let has_lane = lane.map(|lane| lane.push(&stack, urgent, send_no)).is_some();
        let sending = Sending {
            partition,
            term,
            permits_left: permit.segments.max(1),
            permit,
            send_by,
            decided_ms,
            send_within_ms,
            stack,
            urgent,
            refs: Vec::new(),
            awaiting: None,
            whole,
        };
        wing.sends.insert(send_no, sending);
        match has_lane {
            true => self.try_gate(node, carrier_no),
            false => self.finish(node, send_no, Outcome::NotSent, "no_lane", 5_000),
        }
    }

    /// Lets parts through as the gates allow.
    pub fn try_gate(&mut self, node: usize, carrier_no: u32) {
        while self.pass_one(node, carrier_no) {}
    }

    /// The first part that has permits of all its limits leaves; those that need other limits are not held up by the ones that
    /// have none. False: nothing can leave now.
    fn pass_one(&mut self, node: usize, carrier_no: u32) -> bool {
        let mono = self.mono(node);
        let wing = &mut self.nodes[node].wing;
        let Some(lane) = wing.lanes.get_mut(&carrier_no) else { return false };
        let mut look_at: Option<Duration> = None;
        let apart = self.plan.plant == Some(Plant::PiecesApart);
        let ask_at = wing.holder.as_ref().map(Holder::ask_at);
        for (ticket, stack) in lane.heads() {
            let send_no = ticket.2;
            let Some(sending) = wing.sends.get_mut(&send_no) else {
                lane.take(&stack, &ticket);
                return true;
            };
            let send_by = sending.send_by;
            if send_by <= mono {
                lane.take(&stack, &ticket);
                self.trace.count("send_by_passed");
                self.refused_part(node, send_no, Outcome::NotSent, "send_by_passed", 500);
                return true;
            }
            let Some(holder) = wing.holder.as_mut() else { return false };
            let together = if sending.whole && !apart { sending.permits_left.max(1) } else { 1 };
            match holder.try_take_all(&stack, together, mono) {
                Err(wait) => {
                    // A new lease looks at the gate again.
                    let at = match wait {
                        Wait::Until(at) => at.min(send_by),
                        Wait::NoLease(_) => send_by,
                    };
                    look_at = Some(look_at.map_or(at, |first| first.min(at)));
                }
                Ok(_) => {
                    lane.take(&stack, &ticket);
                    sending.permits_left = sending.permits_left.saturating_sub(together);
                    let (partition, term, id) = (sending.partition, sending.term, sending.permit.message_id);
                    if sending.permits_left == 0 && wing.current(partition, term) {
                        wing.scheduler.on_sent(partition, id);
                    }
                    self.write_part(node, send_no);
                    return true;
                }
            }
        }
        // It needs more than is held.
        let asks = wing.holder.as_ref().map(Holder::ask_at) < ask_at;
        if let Some(at) = look_at {
            self.look_at_gate(node, carrier_no, at.saturating_sub(mono));
        }
        if asks {
            self.trace.count("tokens_needed_at_once");
            self.plan_lease_ask(node);
        }
        false
    }

    fn look_at_gate(&mut self, node: usize, carrier_no: u32, wait: Duration) {
        let wait = self.true_ms(node, wait.as_micros().div_ceil(1_000) as u64).max(1);
        let (at_ms, epoch) = (self.now_ms + wait, self.nodes[node].epoch);
        let Some(lane) = self.nodes[node].wing.lanes.get_mut(&carrier_no) else { return };
        if lane.wake_at.is_none_or(|planned| at_ms < planned) {
            lane.wake_at = Some(at_ms);
            self.at(wait, Event::Gate { node, epoch, carrier_no });
        }
    }

    /// The part has its permit: it leaves now, or provably not at all.
    fn write_part(&mut self, node: usize, send_no: u64) {
        let mono = self.mono(node);
        let cut = self.net.carriers_cut.get(&node).is_some_and(|cuts| *cuts > 0);
        let Some(sending) = self.nodes[node].wing.sends.get_mut(&send_no) else { return };
        // Time passes between the permit and the socket, if only a little.
        let late = mono >= sending.send_by;
        if late || cut {
            let code = if late { "send_by_passed" } else { "not_connected" };
            if late {
                self.trace.count("send_by_passed");
            }
            return self.refused_part(node, send_no, Outcome::NotSent, code, 500);
        }
        let part = sending.refs.len() as u32;
        sending.awaiting = Some(part);
        let (permit, whole) = (&sending.permit, sending.whole);
        let (id, attempt_no, parts) = (permit.message_id, permit.attempt_no, permit.segments.max(1));
        let (decided_ms, send_within_ms, expires) =
            (sending.decided_ms, sending.send_within_ms, permit.expires_at_ms);
        let (carrier_no, practice_no) = (permit.carrier_no, permit.practice_no);
        let sent_as = permit.sender.clone();
        let at = &self.nodes[node];
        let lane = &at.wing.lanes[&carrier_no];
        let (carrier, limit) = (lane.carrier, lane.limit);
        let practice = practice_of(&at.meta, practice_no);
        let is_own = |number: &u32| sent_as == sender_address(carrier, *number);
        let sender = (1..=self.plan.settings.senders).find(is_own).unwrap_or(0);
        if sender > 0 {
            self.trace.count("sent_under_own_sender");
        }
        let epoch = self.nodes[node].epoch;
        let clock_error_ms = self.clock_error_ms();
        let error_ms = 2 * clock_error_ms;
        let jumped = self.nodes[node].clock.jumped_ms.is_some_and(|at| at + 60_000 > decided_ms);
        let write = Write {
            now_ms: self.now_ms,
            id,
            attempt_no,
            part,
            carrier,
            practice,
            sender,
            limit,
            decided_ms,
            // A drifting clock, and the millisecond in which it is looked at.
            send_within_ms: send_within_ms + 10,
            clock_jumped: jumped,
            wall_ms: self.plan.start_ms() + self.now_ms,
            wall_error_ms: error_ms + 1_000,
            clock_error_ms: clock_error_ms + 50,
            expires_ms: expires.saturating_sub(self.plan.start_ms()) + send_within_ms + error_ms + 1_000,
        };
        let last = if whole { parts } else { part + 1 };
        (part..last).for_each(|part| self.oracle.wrote(&Write { part, ..write }));
        if whole && parts > 1 {
            self.trace.count("long_message_in_one_piece");
        }
        let words =
            [20, self.nodes[node].id, super::rng::hash(id.as_bytes()), u64::from(attempt_no), part.into()];
        self.note(&words, || {
            format!("send   n{} c{carrier_no} {id} attempt {attempt_no} part {part}/{parts}", node + 1)
        });
        let cluster = self.oracle.truth.cluster();
        let submit = Submit { node, epoch, send_no, id, cluster, attempt_no, part, parts, whole };
        self.submit(carrier, submit);
        let timeout = self.true_ms(node, RESPONSE_TIMEOUT_MS);
        self.at(timeout, Event::SendTimeout { node, epoch, send_no, part });
    }

    /// The largest error of any wall clock so far.
    pub fn clock_error_ms(&self) -> u64 {
        let now: u64 = self.nodes.iter().map(|node| node.clock.error_ms(self.now_ms)).max().unwrap_or(0);
        now + self.jumps_ms()
    }

    /// The carrier answered a part.
    pub fn part_answered(&mut self, node: usize, answer: PartAnswer) {
        let PartAnswer { send_no, part, outcome, carrier_ref, retry_after_ms } = answer;
        let Some(sending) = self.nodes[node].wing.sends.get_mut(&send_no) else {
            return self.late_answer(node, send_no, part, outcome, carrier_ref);
        };
        if sending.awaiting != Some(part) {
            return;
        }
        sending.awaiting = None;
        if outcome != Outcome::Accepted {
            return self.refused_part(node, send_no, outcome, "carrier", retry_after_ms);
        }
        sending.refs.push(carrier_ref);
        let (done, carrier_no) = (
            sending.whole || sending.refs.len() as u32 >= sending.permit.segments,
            sending.permit.carrier_no,
        );
        if done {
            return self.finish(node, send_no, Outcome::Accepted, "", 0);
        }
        let plant = self.plan.plant;
        let at = &mut self.nodes[node];
        let wing = &mut at.wing;
        match (wing.lanes.get_mut(&carrier_no), wing.sends.get_mut(&send_no)) {
            (Some(lane), Some(sending)) => {
                if plant != Some(Plant::StackKept) {
                    sending.stack = stack_of(&at.meta, &sending.permit, plant);
                }
                lane.push(&sending.stack, sending.urgent, send_no);
            }
            _ => return self.refused_part(node, send_no, Outcome::NotSent, "gate_closed", 0),
        }
        self.try_gate(node, carrier_no);
    }

    /// Nothing of this part was taken over. Once a part was accepted, the rest is missing for good.
    pub fn refused_part(
        &mut self,
        node: usize,
        send_no: u64,
        outcome: Outcome,
        code: &str,
        retry_after_ms: u64,
    ) {
        let Some(sending) = self.nodes[node].wing.sends.get(&send_no) else { return };
        if sending.refs.is_empty() {
            return self.finish(node, send_no, outcome, code, retry_after_ms);
        }
        self.trace.count("long_message_part_refused");
        self.finish(node, send_no, Outcome::Ambiguous, code, 0);
    }

    pub fn send_timeout(&mut self, node: usize, send_no: u64, part: u32) {
        let wing = &mut self.nodes[node].wing;
        let Some(sending) = wing.sends.get(&send_no).filter(|sending| sending.awaiting == Some(part)) else {
            return;
        };
        let permit = &sending.permit;
        let parts = if sending.whole { 1 } else { permit.segments };
        let tag = (permit.message_id, permit.attempt_no, parts, permit.carrier_no);
        wing.timed_out.insert((send_no, part), tag);
        let carrier_no = permit.carrier_no;
        let plant = self.plan.plant;
        let outcome = match plant {
            Some(Plant::ResendOnUnknown) => Outcome::NotSent,
            // It will not have taken it, will it?
            Some(Plant::FailoverOfUnknown) if self.is_open(node, carrier_no) => Outcome::NotSent,
            _ => Outcome::Ambiguous,
        };
        self.finish(node, send_no, outcome, "response_timeout", 0);
    }

    /// The attempt has its outcome.
    fn finish(&mut self, node: usize, send_no: u64, outcome: Outcome, code: &str, retry_after_ms: u64) {
        let mono = self.mono(node);
        let wing = &mut self.nodes[node].wing;
        let Some(sending) = wing.sends.remove(&send_no) else { return };
        let Sending { partition, term, permit, refs, .. } = sending;
        let carrier_no = permit.carrier_no;
        let answered =
            wing.answers.entry(carrier_no).or_insert(LaneAnswers { carrier_no, ..Default::default() });
        answered.attempts += 1;
        if outcome == Outcome::Throttled {
            answered.throttled += 1;
            answered.pause_ms = answered.pause_ms.max(retry_after_ms as u32);
            if let Some(holder) = &mut wing.holder {
                holder.close_until(carrier_no, mono + Duration::from_millis(retry_after_ms));
                holder.hurry(mono);
            }
        }
        if matches!(outcome, Outcome::Throttled | Outcome::CapReached | Outcome::LaneBroken) {
            let until = mono + Duration::from_millis(retry_after_ms.max(100));
            wing.scheduler.pause_lane(permit.carrier_no, until);
        }
        if wing.current(partition, term) {
            wing.scheduler.on_finished(partition, permit.message_id);
            self.resolve_turn(node, partition, permit.message_id, false);
        }
        self.breaker_hears(node, carrier_no, outcome);
        let words = [21, super::rng::hash(permit.message_id.as_bytes()), outcome as u64];
        let (id, attempt_no) = (permit.message_id, permit.attempt_no);
        self.note(&words, || format!("result n{} {id} attempt {attempt_no} {outcome:?} {code}", node + 1));
        self.record_outcome(node, &permit, outcome, refs, code, retry_after_ms);
        self.wake_driver(node, 0);
    }
}
