//! The ledger: what was acknowledged, what the carrier really received, and what ListMessages says, side by side.
//!
//! Owns: [`compare`], a pure function of the three accounts, and its verdict.
//! Invariants: every acknowledged message is counted in exactly one state; whatever contradicts a promise is a
//! [`Finding`] with the message's id, and one finding is enough for the verdict to fail.
//! Does not: fetch anything, or hold a number or a text: messages meet by keyed hash.

mod merge;
mod report;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};

use carillon_proto::public::{Message, MessageClass, MessageState, Outcome};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::carrier::Truth;
use crate::hex128;
use crate::sample_day::class_name;

/// A last check is made before the first byte leaves; this much later the carrier may see it.
pub const EXPIRY_SLACK_MS: i64 = 500;
/// The reason of a message that its class gave up after a lost answer.
const ABANDONED: &str = "abandoned";
/// Nothing is said about why.
const NO_REASON: &str = "-";
/// Findings of one kind that are listed by id.
pub const LISTED_MAX: usize = 20;
/// Held messages that are shown one by one; the rest is in a file.
pub const HELD_SHOWN_MAX: usize = 50;

/// A message whose acceptance was acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    pub id: String,
    /// The hash under which the carrier's ground truth knows it.
    #[serde(with = "hex128")]
    pub truth_key: u128,
    /// The hashes under which it knows the parts of a long message; empty for a short one.
    #[serde(default)]
    pub parts: Vec<[u64; 2]>,
    pub class: String,
    pub expires_at_ms: Option<i64>,
    /// It must not leave before.
    #[serde(default)]
    pub not_before_ms: Option<i64>,
    /// It is due after the run: it must wait.
    #[serde(default)]
    pub stays: bool,
    #[serde(default)]
    pub order: Option<Order>,
}

/// An ordered message: it must reach the carrier after every message of its group that had been acknowledged when it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The same for all messages of a practice to one recipient.
    pub group: u64,
    pub sent_us: u64,
    pub acked_us: u64,
}

/// What the health system saw.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Acks {
    pub accepted: Vec<Acknowledged>,
    /// How many of them the demo added to the day for its quiet-hours line.
    #[serde(default)]
    pub of_quiet_hours: u64,
    /// Answers that said `duplicate`: the same key had been accepted before.
    pub repeated: u64,
    /// A repetition that got another id than the first submit.
    pub repeated_with_other_id: Vec<String>,
    /// Refused as expected, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Refused though it should have been accepted, or with another reason, or accepted though it should not: why.
    pub surprises: BTreeMap<String, u64>,
    /// Ids that a cancel took back in time.
    pub canceled: Vec<String>,
    /// Cancels that came too late, by the state that the message was in.
    pub too_late: BTreeMap<String, u64>,
}

/// What ListMessages says about one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub id: String,
    pub class: String,
    pub practice: String,
    pub state: MessageState,
    /// Why it is in this state.
    pub reason: String,
    pub expires_at_ms: Option<i64>,
    /// Attempts whose answer was lost.
    pub lost_answers: u32,
    /// The carriers of its attempts in their order, each change once.
    pub carriers: Vec<String>,
}

impl Listed {
    /// Leaves out everything that could be plaintext.
    pub fn of(message: &Message) -> Self {
        let state = message.state();
        let reason = match state {
            MessageState::Waiting => {
                message.waiting_reason().as_str_name().trim_start_matches("WAITING_REASON_")
            }
            _ => message.state_detail.as_str(),
        };
        let mut carriers: Vec<String> = message.attempts.iter().map(|a| a.carrier.clone()).collect();
        carriers.dedup();
        let lost = |attempt: &&carillon_proto::public::Attempt| attempt.outcome() == Outcome::Ambiguous;
        Self {
            id: message.message_id.clone(),
            class: class_name(message.class()),
            practice: message.practice.clone(),
            state,
            reason: if reason.is_empty() { NO_REASON } else { reason }.to_owned(),
            expires_at_ms: message
                .expires_at
                .as_ref()
                .map(|t| t.seconds * 1000 + i64::from(t.nanos / 1_000_000)),
            lost_answers: message.attempts.iter().filter(lost).count() as u32,
            carriers,
        }
    }
}

/// A promise that was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Acknowledged, but ListMessages does not have it.
    LostMissing,
    /// Said to be handed over, but the carrier never received it.
    LostNotReceived,
    /// The carrier accepted it more than once.
    Duplicate,
    /// The carrier saw it after its expiry.
    SentAfterExpiry,
    /// The carrier saw it before its time.
    SentBeforeDue,
    /// The carrier accepted it before an earlier one of the same recipient that it had to wait for.
    OutOfOrder,
    /// Taken back in time, but the carrier received it, or a part of it.
    CanceledButReceived,
    /// A cancel said that it was in time, but the message went on.
    CancelNotKept,
    /// Said not to have been handed over, but the carrier accepted it, or a part of it.
    ReceivedButNotSaid,
    /// The receipt said something else than the state.
    ReceiptContradicted,
    /// Neither final nor held at the end.
    Unsettled,
    /// Held, and nobody says why.
    HeldWithoutReason,
    /// In ListMessages, but never acknowledged.
    NeverAcknowledged,
    /// Accepted by the carrier, but nobody submitted it.
    ReceivedFromNowhere,
    /// The same key gave two messages.
    KeyNotKept,
}

impl Finding {
    pub fn text(self) -> &'static str {
        match self {
            Self::LostMissing => "lost: acknowledged, but not listed",
            Self::LostNotReceived => "lost: said to be handed over, never received by the carrier",
            Self::Duplicate => "duplicates: accepted more than once by the carrier",
            Self::SentAfterExpiry => "sent after expiry",
            Self::SentBeforeDue => "sent before the due time",
            Self::OutOfOrder => "out of order for the recipient",
            Self::CanceledButReceived => "taken back in time, but received by the carrier",
            Self::CancelNotKept => "taken back in time, but not listed as canceled",
            Self::ReceivedButNotSaid => "received by the carrier, but said not to be",
            Self::ReceiptContradicted => "state contradicts the carrier's receipt",
            Self::Unsettled => "neither final nor held",
            Self::HeldWithoutReason => "held without a reason",
            Self::NeverAcknowledged => "listed, but never acknowledged",
            Self::ReceivedFromNowhere => "received by the carrier, but never acknowledged",
            Self::KeyNotKept => "one idempotency key, two messages",
        }
    }
}

/// The result of the comparison.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ledger {
    pub accepted: u64,
    pub of_quiet_hours: u64,
    pub repeated: u64,
    pub refused: BTreeMap<String, u64>,
    pub surprises: BTreeMap<String, u64>,
    /// State, then reason: count.
    pub states: BTreeMap<String, BTreeMap<String, u64>>,
    /// Every held message, in the order of acknowledgement.
    pub held: Vec<Held>,
    pub canceled_in_time: u64,
    pub cancel_too_late: BTreeMap<String, u64>,
    pub received: u64,
    pub carrier_submits: u64,
    pub carrier_faults: BTreeMap<String, u64>,
    pub over_limit: u64,
    pub window_max: u64,
    pub limit: Option<u32>,
    /// Copies beyond the first, over all messages.
    pub extra_copies: u64,
    /// Those of them whose class says to send again after a lost answer.
    pub extra_copies_by_class_policy: u64,
    pub unrecorded: u64,
    /// Messages by the carrier of their last attempt.
    #[serde(default)]
    pub by_carrier: BTreeMap<String, u64>,
    /// Messages that a carrier failed and another one was given then: which, how many.
    #[serde(default)]
    pub failovers: BTreeMap<String, u64>,
    pub findings: BTreeMap<Finding, Found>,
}

/// A message whose fate nobody knows: it is neither sent again nor given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Held {
    pub id: String,
    pub class: String,
    pub practice: String,
    /// Why it is held, as ListMessages says.
    pub reason: String,
    pub carrier: CarrierHas,
}

/// What the carrier really has of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CarrierHas {
    All,
    /// Some parts of a long message.
    Parts,
    Nothing,
}

impl CarrierHas {
    pub fn text(self) -> &'static str {
        match self {
            Self::All => "the carrier has it",
            Self::Parts => "the carrier has parts of it",
            Self::Nothing => "the carrier does not have it",
        }
    }
}

/// How often, and some ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Found {
    pub count: u64,
    /// At most [`LISTED_MAX`] ids; of listed messages with state, reason and lost answers.
    pub ids: Vec<String>,
}

/// `DELIVERED` for `MessageState::Delivered`.
pub fn state_name(state: MessageState) -> &'static str {
    state.as_str_name().trim_start_matches("MESSAGE_STATE_")
}

/// Classes that are sent once more after a lost answer.
fn is_sent_again(class: &str) -> bool {
    [MessageClass::Staff, MessageClass::PublicHealth].map(class_name).iter().any(|name| name == class)
}

/// Compares the three accounts.
pub fn compare(acks: &Acks, listed: &[Listed], truth: &Truth) -> Ledger {
    let mut ledger = Ledger {
        accepted: acks.accepted.len() as u64,
        of_quiet_hours: acks.of_quiet_hours,
        repeated: acks.repeated,
        refused: acks.refused.clone(),
        surprises: acks.surprises.clone(),
        canceled_in_time: acks.canceled.len() as u64,
        cancel_too_late: acks.too_late.clone(),
        received: truth.messages,
        carrier_submits: truth.submits,
        carrier_faults: truth.faults.clone(),
        over_limit: truth.violations,
        window_max: truth.window_max,
        limit: truth.limit,
        unrecorded: truth.unrecorded,
        ..Ledger::default()
    };
    let by_id: HashMap<&str, &Listed> = listed.iter().map(|entry| (entry.id.as_str(), entry)).collect();
    let canceled: HashSet<&str> = acks.canceled.iter().map(String::as_str).collect();
    let (mut known_ids, mut known_keys) = (HashSet::new(), HashSet::new());
    for ack in &acks.accepted {
        known_ids.insert(ack.id.as_str());
        known_keys.insert(ack.truth_key);
        match by_id.get(ack.id.as_str()) {
            None => ledger.find(Finding::LostMissing, &ack.id),
            Some(entry) => ledger.message(ack, entry, truth, canceled.contains(ack.id.as_str())),
        }
    }
    for id in by_id.keys().filter(|id| !known_ids.contains(*id)) {
        ledger.find(Finding::NeverAcknowledged, id);
    }
    for (key, _) in truth.received.iter().filter(|(key, r)| r.accepted > 0 && !known_keys.contains(*key)) {
        ledger.find(Finding::ReceivedFromNowhere, &format!("truth key {key:032x}"));
    }
    for id in &acks.repeated_with_other_id {
        ledger.find(Finding::KeyNotKept, id);
    }
    ledger.order(acks, truth);
    ledger
}

impl Ledger {
    fn find(&mut self, finding: Finding, id: &str) {
        let found = self.findings.entry(finding).or_default();
        found.count += 1;
        if found.ids.len() < LISTED_MAX {
            found.ids.push(id.to_owned());
        }
    }

    fn message(&mut self, ack: &Acknowledged, entry: &Listed, truth: &Truth, canceled: bool) {
        use MessageState as S;
        let shown = format!(
            "{} {} ({}), {} lost answers",
            ack.id,
            state_name(entry.state),
            entry.reason,
            entry.lost_answers
        );
        let nothing = crate::carrier::Received::default();
        let received = truth.received.get(&ack.truth_key).unwrap_or(&nothing);
        let state = self.states.entry(state_name(entry.state).to_owned()).or_default();
        *state.entry(entry.reason.clone()).or_insert(0) += 1;
        if let Some(last) = entry.carriers.last() {
            *self.by_carrier.entry(last.clone()).or_insert(0) += 1;
        }
        if entry.carriers.len() > 1 {
            *self.failovers.entry(entry.carriers.join(" to ")).or_insert(0) += 1;
        }
        let has_it = received.accepted > 0;
        let has_parts = ack.parts.iter().any(|part| truth.parts.contains_key(part));
        // A class that gives up after a lost answer is UNDELIVERED without the carrier's word.
        let given_up = entry.state == S::Undelivered && entry.reason == ABANDONED;
        match entry.state {
            S::Submitted | S::Delivered | S::Undelivered if !has_it && !given_up => {
                self.find(Finding::LostNotReceived, &shown);
            }
            S::Unknown => {
                if entry.reason == NO_REASON {
                    self.find(Finding::HeldWithoutReason, &shown);
                }
                self.held.push(Held {
                    id: ack.id.clone(),
                    class: entry.class.clone(),
                    practice: entry.practice.clone(),
                    reason: entry.reason.clone(),
                    carrier: match (has_it, has_parts) {
                        (true, _) => CarrierHas::All,
                        (false, true) => CarrierHas::Parts,
                        (false, false) => CarrierHas::Nothing,
                    },
                });
            }
            S::Canceled if has_it || has_parts => self.find(Finding::CanceledButReceived, &shown),
            // After a lost answer nobody can know; the attempts say so.
            S::Expired | S::Rejected | S::OptedOut | S::Dead
                if (has_it || has_parts) && entry.lost_answers == 0 =>
            {
                self.find(Finding::ReceivedButNotSaid, &shown);
            }
            S::Accepted | S::Waiting if ack.stays => {}
            S::Unspecified | S::Accepted | S::Waiting | S::InFlight => {
                self.find(Finding::Unsettled, &shown);
            }
            _ => {}
        }
        if canceled && entry.state != S::Canceled {
            self.find(Finding::CancelNotKept, &shown);
        }
        let contradicts = match entry.state {
            S::Delivered => received.state.as_deref() == Some("UNDELIV"),
            S::Undelivered => !given_up && received.state.as_deref() == Some("DELIVRD"),
            _ => false,
        };
        if contradicts {
            self.find(Finding::ReceiptContradicted, &shown);
        }
        let extra = u64::from(received.accepted.saturating_sub(1));
        if extra > 0 {
            self.extra_copies += extra;
            if entry.lost_answers > 0 && is_sent_again(&ack.class) {
                self.extra_copies_by_class_policy += extra;
            }
            self.find(Finding::Duplicate, &shown);
        }
        let expiry = entry.expires_at_ms.or(ack.expires_at_ms);
        if expiry.is_some_and(|at_ms| received.last_arrival_ms > at_ms + EXPIRY_SLACK_MS) {
            self.find(Finding::SentAfterExpiry, &shown);
        }
        let arrived_ms = (received.first_arrival_us / 1_000) as i64;
        let early = ack.stays || ack.not_before_ms.is_some_and(|due_ms| arrived_ms < due_ms);
        if arrived_ms > 0 && early {
            self.find(Finding::SentBeforeDue, &shown);
        }
    }

    /// Whether ordered messages reached the carrier in their order.
    fn order(&mut self, acks: &Acks, truth: &Truth) {
        let mut groups: BTreeMap<u64, Vec<(Order, u64, &str)>> = BTreeMap::new();
        for ack in &acks.accepted {
            let accepted_us = truth.received.get(&ack.truth_key).map_or(0, |r| r.first_accept_us);
            if let (Some(order), 1..) = (ack.order, accepted_us) {
                groups.entry(order.group).or_default().push((order, accepted_us, &ack.id));
            }
        }
        for mut group in groups.into_values() {
            let mut before: Vec<(u64, u64)> =
                group.iter().map(|(o, at_us, _)| (o.acked_us, *at_us)).collect();
            before.sort_unstable();
            group.sort_by_key(|(order, ..)| order.sent_us);
            let (mut before, mut latest_us) = (before.into_iter().peekable(), 0);
            for (order, accepted_us, id) in group {
                while let Some((_, at_us)) = before.next_if(|(acked_us, _)| *acked_us <= order.sent_us) {
                    latest_us = latest_us.max(at_us);
                }
                if accepted_us < latest_us {
                    self.find(Finding::OutOfOrder, id);
                }
            }
        }
    }

    /// How often a promise was not kept.
    pub fn count(&self, finding: Finding) -> u64 {
        self.findings.get(&finding).map_or(0, |found| found.count)
    }

    pub fn lost(&self) -> u64 {
        self.count(Finding::LostMissing) + self.count(Finding::LostNotReceived)
    }

    /// Messages accepted more than once by the carrier, for whatever reason.
    pub fn duplicates(&self) -> u64 {
        self.count(Finding::Duplicate)
    }

    pub fn in_state(&self, state: MessageState) -> u64 {
        self.states.get(state_name(state)).map_or(0, |reasons| reasons.values().sum())
    }

    /// Held messages by reason, and by what the carrier has of them.
    pub fn held_by(&self) -> BTreeMap<(&str, CarrierHas), u64> {
        let mut counts = BTreeMap::new();
        for held in &self.held {
            *counts.entry((held.reason.as_str(), held.carrier)).or_insert(0) += 1;
        }
        counts
    }

    /// Nothing is lost, doubled, over a limit or unexplained, and the evidence is complete.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.surprises.is_empty() && self.over_limit == 0 && self.unrecorded == 0
    }
}
