//! One create: counted, decided, recorded, answered, in the order of `submit`.
//!
//! Owns: what a create that the profile refuses is told, in Twilio's words. A throttle is 429 with Retry-After, a full queue
//! 21611, a temporary failure 503, a wrong number 21211; a rule whose status is above 10,000 is that code.

use std::hash::Hasher as _;
use std::time::Duration;

use carillon_proto::sms;
use serde_json::json;
use siphasher::sip::SipHasher13;

use super::Message;
use crate::smsc::center::Center;
use crate::smsc::decide::{Decision, Fault, Moment, ReceiptPlan, State, decide};
use crate::smsc::truth::Record;
use crate::smsc::wire::{ReceiptWish, status};

const BODY_CHARS_MAX: usize = 1_600;
/// A callback that must come before its answer gets this much of a start.
const HEAD_START_US: u64 = 5_000;
/// Refusals above this are Twilio's own codes.
const CODES_FROM: u32 = 10_000;

/// The fields of a create that matter.
#[derive(Default)]
pub struct Create {
    pub to: String,
    pub from: String,
    pub body: String,
    /// Without its fragment.
    pub callback: Option<String>,
}

/// What the caller sees.
pub enum Reply {
    Answer {
        status: u16,
        retry_after_s: Option<u32>,
        body: String,
        after: Duration,
    },
    /// Nothing, ever.
    Silence,
    /// The connection is closed.
    HangUp,
}

impl Reply {
    pub fn problem(status: u16, code: u32, after_us: u64) -> Self {
        let body =
            json!({ "code": code, "message": "refused by the simulator", "status": status }).to_string();
        let retry_after_s = (status == 429).then_some(1);
        Self::Answer { status, retry_after_s, body, after: Duration::from_micros(after_us) }
    }
}

fn is_number(to: &str) -> bool {
    let digits = to.strip_prefix('+').unwrap_or("");
    (7..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
}

impl Center {
    /// Handles a create of the account.
    pub fn create(&mut self, create: Create, now_us: u64) -> Reply {
        let wall_us = self.wall_us(now_us);
        let Some(rest) = &mut self.rest else { return Reply::HangUp };
        rest.stats.creates += 1;
        let account = rest.account;
        let segments = sms::analyze(&create.body).segments.max(1);
        self.counters.submits += 1;
        self.seconds.now(wall_us).submits += 1;
        let meter = &mut self.accounts[usize::from(account)].meter;
        for _ in 0..segments {
            meter.arrived(now_us, wall_us);
        }
        let over_contract = meter.is_full(now_us);
        if self.truth.is_full() {
            self.counters.unrecorded += 1;
            return Reply::problem(429, 20_429, 0);
        }
        let digits = create.to.trim_start_matches('+').as_bytes();
        let mut record = Record::new(wall_us, account, 0, 0);
        record.destination = self.truth.key.number(digits);
        record.octets = self.truth.key.octets(create.body.as_bytes());
        record.message = Some(self.truth.key.message(digits, create.body.as_bytes()));
        let (decision, invalid) = self.decide_create(&create, &record, over_contract, now_us);
        record.fault = decision.fault;
        record.accepted = decision.accepted;
        record.completes = decision.accepted;
        record.set_answer(decision.answer);
        record.answer_sent = decision.answer.is_some() && decision.latency_us == 0;
        self.counters.by_fault[decision.fault as usize] += 1;
        match decision.answer {
            Some(code) => *self.counters.by_status.entry(code).or_insert(0) += 1,
            None => self.counters.unanswered += 1,
        }
        if let Some(message) = record.message.filter(|_| decision.accepted) {
            self.counters.accepted += 1;
            self.seconds.now(wall_us).accepted += 1;
            let meter = &mut self.accounts[usize::from(account)].meter;
            (0..segments).for_each(|_| meter.accepted(now_us));
            self.truth.count_message(message);
        }
        let id = self.truth.push(record);
        self.write_submit(id);
        if !decision.accepted {
            return refusal(&decision, invalid);
        }
        self.take_over(id, create, segments, &decision, now_us);
        self.yes(id, &decision, now_us)
    }

    /// The decision, and Twilio's code for a create that was wrong in itself.
    fn decide_create(
        &mut self,
        create: &Create,
        record: &Record,
        over_contract: bool,
        now_us: u64,
    ) -> (Decision, Option<u32>) {
        let occurrence = self.truth.occurrence(record.destination, record.octets);
        let invalid = match create {
            create if !is_number(&create.to) => Some(21_211),
            create if create.body.is_empty() => Some(21_602),
            create if create.from.is_empty() => Some(21_603),
            create if create.body.chars().count() > BODY_CHARS_MAX => Some(21_617),
            _ => None,
        };
        if invalid.is_some() {
            return (Decision::refuse(Fault::Invalid, status::RINVDSTADR, 0), invalid);
        }
        if self.rest.as_ref().is_some_and(|rest| rest.callbacks_pending() + 3 > self.config.pending_max) {
            return (Decision::refuse(Fault::Overload, status::RTHROTTLED, 0), None);
        }
        let digits = create.to.trim_start_matches('+').as_bytes();
        let mut hasher = SipHasher13::new_with_keys(self.config.seed, 0);
        hasher.write(digits);
        hasher.write_u8(0);
        hasher.write(create.body.as_bytes());
        hasher.write_u16(occurrence);
        let moment = Moment { since_profile_us: now_us - self.profile_at_us, over_contract };
        (decide(&self.profile, hasher.finish(), digits, ReceiptWish::Always, &moment), None)
    }

    fn take_over(&mut self, id: u64, create: Create, segments: u32, decision: &Decision, now_us: u64) {
        let (from_us, created_us) =
            (if decision.receipts.before_answer { 0 } else { decision.latency_us }, self.wall_us(now_us));
        let ReceiptPlan { state, err, final_after_us, enroute_after_us, .. } = &decision.receipts;
        // Without a callback it arrives all the same.
        let state_or = state.unwrap_or(State::Delivered);
        let after_us = final_after_us.first().copied().unwrap_or(0);
        let message = Message {
            to: create.to.clone(),
            from: create.from,
            body: create.body,
            segments,
            created_us,
            final_at_us: created_us + from_us + after_us,
            state: state_or,
            err: *err,
        };
        if let Some(rest) = &mut self.rest {
            rest.by_number.entry(create.to).or_default().push(id);
            rest.messages.insert(id, message);
        }
        let (Some(url), Some(state)) = (create.callback, *state) else { return };
        let at = |after_us: &u64| now_us + from_us + after_us;
        if let Some(after_us) = enroute_after_us {
            self.add_callback(id, &url, State::Enroute, 0, at(after_us));
        }
        for after_us in final_after_us {
            self.add_callback(id, &url, state, *err, at(after_us));
        }
    }

    fn yes(&mut self, id: u64, decision: &Decision, now_us: u64) -> Reply {
        let mut after_us = decision.latency_us;
        if decision.receipts.before_answer {
            after_us = after_us.max(HEAD_START_US);
        }
        match decision.fault {
            _ if decision.answer.is_some() => {
                let wall_us = self.wall_us(now_us);
                let shown = self.rest.as_ref().and_then(|rest| rest.show(id, wall_us));
                let mut body = shown.unwrap_or_default();
                // At this moment it is queued, whatever comes.
                body["status"] = json!("queued");
                body["error_code"] = serde_json::Value::Null;
                Reply::Answer {
                    status: 201,
                    retry_after_s: None,
                    body: body.to_string(),
                    after: Duration::from_micros(after_us),
                }
            }
            Fault::DropAfterAccept | Fault::DropBeforeRead => Reply::HangUp,
            _ => Reply::Silence,
        }
    }
}

fn refusal(decision: &Decision, invalid: Option<u32>) -> Reply {
    let after_us = decision.latency_us;
    match (decision.answer, invalid) {
        (_, Some(code)) => Reply::problem(400, code, after_us),
        (None, None) if decision.fault == Fault::DropBeforeRead => Reply::HangUp,
        (None, None) => Reply::Silence,
        (Some(status::RTHROTTLED), None) => Reply::problem(429, 20_429, after_us),
        (Some(status::RMSGQFUL), None) => Reply::problem(400, 21_611, after_us),
        (Some(status::RSYSERR), None) => Reply::problem(503, 20_503, after_us),
        (Some(status::RINVDSTADR), None) => Reply::problem(400, 21_211, after_us),
        (Some(code), None) if code >= CODES_FROM => Reply::problem(400, code, after_us),
        (Some(_), None) => Reply::problem(400, 30_008, after_us),
    }
}
