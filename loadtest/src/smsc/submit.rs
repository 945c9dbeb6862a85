//! One submit_sm: counted, decided, recorded, answered.
//!
//! Owns: the order of these steps. Every submit counts for the contract alarm
//! whatever becomes of it; every submit that is answered with success is in
//! the ground truth first.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::assembly::AssemblyKey;
use super::center::{Center, Event, Flow};
use super::decide::{Decision, Fault, Moment, ReceiptPlan, State, decide};
use super::journal::Line;
use super::stats::seconds;
use super::text::{self, Part};
use super::truth::Record;
use super::wire::{self, Submit, status};

/// A receipt that must leave before its answer gets this much of a start, so
/// that it is first even on another connection.
const HEAD_START_US: u64 = 5_000;

impl Center {
    /// Handles a submit of a bound transmitter or transceiver.
    pub fn submit(&mut self, bind: u32, account: u16, sequence: u32, submit: &Submit, now_us: u64) -> Flow {
        let wall_us = self.wall_us(now_us);
        self.counters.submits += 1;
        self.seconds.now(wall_us).submits += 1;
        let meter = &mut self.accounts[usize::from(account)].meter;
        meter.arrived(now_us, wall_us);
        let over_contract = meter.is_full(now_us);
        if self.truth.is_full() {
            self.counters.unrecorded += 1;
            let decision = Decision::refuse(Fault::Overload, status::RMSGQFUL, 0);
            return self.answer(bind, u64::MAX, sequence, &decision, now_us);
        }
        let mut record = Record::new(wall_us, account, bind, sequence);
        record.destination = self.truth.key.number(submit.to.digits());
        record.octets = self.truth.key.octets(&submit.octets);
        record.coding = submit.coding;
        let decision = self.decide_submit(submit, &record, over_contract, now_us);
        record.fault = decision.fault;
        record.accepted = decision.accepted;
        record.set_answer(decision.answer);
        record.answer_sent = decision.answer.is_some() && decision.latency_us == 0;
        self.counters.by_fault[decision.fault as usize] += 1;
        match decision.answer {
            Some(code) => *self.counters.by_status.entry(code).or_insert(0) += 1,
            None => self.counters.unanswered += 1,
        }
        self.name_message(&mut record, submit, now_us);
        if decision.accepted {
            self.counters.accepted += 1;
            self.seconds.now(wall_us).accepted += 1;
            self.accounts[usize::from(account)].meter.accepted(now_us);
        }
        let id = self.truth.push(record);
        self.write_submit(id);
        self.plan_receipts(id, account, submit, &decision, now_us);
        self.answer(bind, id, sequence, &decision, now_us)
    }

    fn decide_submit(
        &mut self,
        submit: &Submit,
        record: &Record,
        over_contract: bool,
        now_us: u64,
    ) -> Decision {
        let occurrence = self.truth.occurrence(record.destination, record.octets);
        let too_long =
            !submit.payload && submit.octets.len() > text::octets_max(submit.coding, submit.header_len);
        let invalid = match submit.part {
            _ if !submit.to.is_number() => Some(status::RINVDSTADR),
            Err(_) => Some(status::RINVESMCLASS),
            Ok(_) if too_long => Some(status::RINVMSGLEN),
            Ok(_) => None,
        };
        if let Some(code) = invalid {
            return Decision::refuse(Fault::Invalid, code, 0);
        }
        let bound = self.config.pending_max;
        let slots_used = self.pending.len() - self.free_slots.len();
        if slots_used + 3 > bound || self.answers_waiting >= bound {
            return Decision::refuse(Fault::Overload, status::RMSGQFUL, 0);
        }
        let mut hasher = SipHasher13::new_with_keys(self.config.seed, 0);
        hasher.write(submit.to.digits());
        hasher.write_u8(0);
        hasher.write(&submit.octets);
        hasher.write_u16(occurrence);
        let moment = Moment { since_profile_us: now_us - self.profile_at_us, over_contract };
        decide(&self.profile, hasher.finish(), submit.to.digits(), submit.wish, &moment)
    }

    /// Gives the record its truth key when the whole text is known, and counts
    /// the message when all of it is accepted.
    fn name_message(&mut self, record: &mut Record, submit: &Submit, now_us: u64) {
        let whole = match submit.part {
            Err(_) => None,
            Ok(None) => {
                let mut whole = Vec::with_capacity(submit.octets.len());
                text::decode(submit.coding, &submit.octets, &mut whole);
                record.completes = record.accepted;
                Some(whole)
            }
            Ok(Some(part)) => {
                record.part = part;
                self.add_part(record, part, submit, now_us)
            }
        };
        record.message = whole.map(|whole| self.truth.key.message(submit.to.digits(), &whole));
        if let Some(message) = record.message.filter(|_| record.completes) {
            self.truth.count_message(message);
        }
    }

    fn add_part(&mut self, record: &mut Record, part: Part, submit: &Submit, now_us: u64) -> Option<Vec<u8>> {
        if !record.accepted {
            return None;
        }
        let key = AssemblyKey {
            account: record.account,
            destination: record.destination,
            reference: part.reference,
            total: part.total,
        };
        let whole = self.assembly.add(now_us, key, part, submit.coding, &submit.octets);
        record.completes = whole.is_some();
        whole
    }

    pub fn write_submit(&mut self, id: u64) {
        if self.journal.is_none() {
            return;
        }
        let accounts = &self.accounts;
        let name = |account: u16| accounts[usize::from(account)].system_id.clone();
        let entry = self.truth.index_of(id).and_then(|index| self.truth.entry(index, name));
        if let (Some(entry), Some(journal)) = (entry, &mut self.journal) {
            journal.add(&Line::Submit(entry));
        }
    }

    fn plan_receipts(&mut self, id: u64, account: u16, submit: &Submit, decision: &Decision, now_us: u64) {
        let ReceiptPlan { state: Some(state), err, final_after_us, enroute_after_us, before_answer } =
            &decision.receipts
        else {
            return;
        };
        let from_us = if *before_answer { now_us } else { now_us + decision.latency_us };
        if let Some(after_us) = enroute_after_us {
            self.add_receipt(id, account, submit, State::Enroute, 0, from_us + after_us, now_us);
        }
        for after_us in final_after_us {
            self.add_receipt(id, account, submit, *state, *err, from_us + after_us, now_us);
        }
        self.dispatch(account, now_us);
    }

    /// Answers now, later, or by closing the connection.
    fn answer(&mut self, bind: u32, id: u64, sequence: u32, decision: &Decision, now_us: u64) -> Flow {
        let Some(code) = decision.answer else {
            let dropped = matches!(decision.fault, Fault::DropAfterAccept | Fault::DropBeforeRead);
            return if dropped { Flow::Close } else { Flow::Continue };
        };
        let mut latency_us = decision.latency_us;
        if decision.receipts.before_answer {
            latency_us = latency_us.max(HEAD_START_US);
        }
        self.timers.answer_delay.record(seconds(latency_us));
        if latency_us == 0 {
            self.put_answer(bind, id, sequence, code);
        } else {
            self.answers_waiting += 1;
            self.schedule(now_us + latency_us, Event::Answer { bind, id, sequence, code });
        }
        Flow::Continue
    }

    /// Hands an answer to the connection; false when it is gone.
    pub fn put_answer(&mut self, bind: u32, id: u64, sequence: u32, code: u32) -> bool {
        let message_id = self.profile.ids.answer.write(id, 0);
        let error_body = self.profile.error_body;
        self.put(bind, |out| wire::put_submit_resp(out, code, sequence, &message_id, error_body))
    }
}
