//! The simulated carriers: they take parts over, refuse, hang, lose and repeat answers, and deliver receipts until these
//! are acknowledged. What they took over is the ground truth.
use super::world::{Event, World};
use carillon_proto::MessageId;
use carillon_proto::internal::{ReceiptState, RecordReceipt};
use carillon_proto::public::Outcome;
use std::collections::{BTreeMap, BTreeSet};

/// A receipt that was not acknowledged in this time is delivered again, through any node.
const RECEIPT_AGAIN_MS: u64 = 4_000;
/// How often a receipt that nobody knows is delivered once all is calm.
const REFUSED_MAX: u32 = 3;

/// A part that left a node.
#[derive(Debug, Clone)]
pub struct Submit {
    pub node: usize,
    pub epoch: u64,
    pub send_no: u64,
    pub id: MessageId,
    /// Of which cluster, if one was lost meanwhile.
    pub cluster: u32,
    pub attempt_no: u32,
    pub part: u32,
    pub parts: u32,
    /// All parts at once.
    pub whole: bool,
}

/// What the carrier answered.
#[derive(Debug, Clone)]
pub struct PartAnswer {
    pub send_no: u64,
    pub part: u32,
    pub outcome: Outcome,
    pub carrier_ref: String,
    pub retry_after_ms: u64,
}

/// A receipt that is not acknowledged.
#[derive(Debug, Clone)]
struct Receipt {
    receipt: RecordReceipt,
    node: usize,
    refused: u32,
}

/// One carrier account.
#[derive(Debug, Default)]
pub struct Carrier {
    /// Faults that make it refuse, and swallow, everything.
    pub throttled: u32,
    pub hanging: u32,
    receipts: BTreeMap<u64, Receipt>,
    next_no: u64,
    /// Messages of which a receipt was lost for good.
    pub receipts_lost: BTreeSet<MessageId>,
}

impl Carrier {
    pub fn acked(&mut self, receipt_no: u64) {
        self.receipts.remove(&receipt_no);
    }

    /// A receipt was refused. While there is trouble the carrier is patient.
    pub fn refused(&mut self, receipt_no: u64, calm: bool) {
        let Some(receipt) = self.receipts.get_mut(&receipt_no) else { return };
        receipt.refused += u32::from(calm);
        if receipt.refused >= REFUSED_MAX {
            self.receipts.remove(&receipt_no);
        }
    }

    pub fn receipts_open(&self) -> usize {
        self.receipts.len()
    }
}

impl World {
    /// A part is on its way to a carrier.
    pub fn submit(&mut self, carrier: usize, submit: Submit) {
        let rates = &self.plan.rates.carrier;
        if !self.calm && self.rng.carrier.chance(rates.request_lost) {
            return;
        }
        let delay = 1 + self.rng.carrier.below(if self.calm { 20 } else { rates.ms_max });
        self.at(delay, Event::CarrierGets { carrier, submit: Box::new(submit) });
    }

    pub fn carrier_gets(&mut self, carrier: usize, submit: Submit) {
        let rates = self.plan.rates.carrier.clone();
        let rng = &mut self.rng.carrier;
        let hanging = self.carriers[carrier].hanging > 0;
        let calm = self.calm;
        let outcome = match () {
            () if self.carriers[carrier].throttled > 0 => Outcome::Throttled,
            () if calm => Outcome::Accepted,
            () if rng.chance(rates.throttled) => Outcome::Throttled,
            () if rng.chance(rates.transient) => Outcome::Transient,
            () if rng.chance(rates.rejected) => {
                rng.pick(&[Outcome::RejectedNumber, Outcome::RejectedContent, Outcome::OptedOut])
            }
            () => Outcome::Accepted,
        };
        let mut carrier_ref = String::new();
        let words = [40, carrier as u64, super::rng::hash(submit.id.as_bytes()), outcome as u64];
        let (id, attempt_no, part) = (submit.id, submit.attempt_no, submit.part);
        self.note(&words, || {
            format!("gets   c{} {id} attempt {attempt_no} part {part}: {outcome:?}", carrier + 1)
        });
        if outcome == Outcome::Accepted {
            let taken = if submit.whole { 0..submit.parts } else { part..part + 1 };
            taken.for_each(|part| self.oracle.carrier_accepted(id, (submit.cluster, attempt_no, part)));
            self.carriers[carrier].next_no += 1;
            carrier_ref = format!("{}-{:x}", carrier, self.carriers[carrier].next_no);
            self.plan_receipts(carrier, &submit, &carrier_ref);
        }
        // Its node was one of a cluster that is gone.
        let nobody = submit.node >= self.nodes.len();
        if nobody || hanging || (!calm && self.rng.carrier.chance(rates.answer_lost)) {
            return;
        }
        let answer = PartAnswer { send_no: submit.send_no, part, outcome, carrier_ref, retry_after_ms: 300 };
        self.answer_part(&submit, answer);
    }

    fn answer_part(&mut self, submit: &Submit, answer: PartAnswer) {
        let (node, epoch) = (submit.node, submit.epoch);
        let rates = &self.plan.rates.carrier;
        let rng = &mut self.rng.carrier;
        let mut delay = 1 + rng.below(if self.calm { 20 } else { rates.ms_max });
        if !self.calm && rng.chance(rates.answer_late) {
            delay += super::wing::RESPONSE_TIMEOUT_MS + rng.below(3_000);
        }
        if !self.calm && rng.chance(rates.answer_twice) {
            let again = delay + rng.below(2_000);
            self.at(again, Event::CarrierAnswer { node, epoch, answer: answer.clone() });
        }
        self.at(delay, Event::CarrierAnswer { node, epoch, answer });
    }

    /// What the phone will report.
    fn plan_receipts(&mut self, carrier: usize, submit: &Submit, carrier_ref: &str) {
        let rates = self.plan.rates.carrier.clone();
        let rng = &mut self.rng.receipts;
        // The first carrier echoes our reference, the second one knows only its own.
        let message_id = if carrier == 0 && (submit.parts == 1 || submit.whole) {
            submit.id.to_bytes()
        } else {
            Default::default()
        };
        let receipt = |state: ReceiptState| RecordReceipt {
            message_id: message_id.clone(),
            carrier_no: carrier as u32 + 1,
            carrier_refs: vec![carrier_ref.to_owned()],
            state: state as i32,
            code: String::new(),
        };
        let calm = self.calm;
        let early = !calm && rng.chance(rates.receipt_before_answer);
        let delay = if early { 1 } else { 500 + rng.below(4_000) };
        if !calm && rng.chance(rates.receipt_lost) {
            self.carriers[carrier].receipts_lost.insert(submit.id);
            return;
        }
        let undelivered = !calm && rng.chance(rates.undelivered);
        let last = if undelivered { ReceiptState::Undelivered } else { ReceiptState::Delivered };
        let mut planned = vec![(delay, receipt(last))];
        if !calm && rng.chance(rates.receipt_enroute) {
            // Also after the last one: carriers do that.
            planned.push((rng.below(2 * delay + 1), receipt(ReceiptState::Enroute)));
        }
        if !calm && rng.chance(rates.receipt_twice) {
            planned.push((delay + rng.below(3_000), receipt(last)));
        }
        for (delay, receipt) in planned {
            let at = &mut self.carriers[carrier];
            at.next_no += 1;
            let receipt_no = at.next_no;
            at.receipts.insert(receipt_no, Receipt { receipt, node: submit.node, refused: 0 });
            self.at(delay, Event::Receipt { carrier, receipt_no });
        }
    }

    /// Delivers a receipt through some node, until it is acknowledged.
    pub fn receipt_leaves(&mut self, carrier: usize, receipt_no: u64) {
        let Some(receipt) = self.carriers[carrier].receipts.get(&receipt_no).cloned() else { return };
        // It prefers the connection that the message came over, as long as there is one.
        let connected: Vec<usize> = (0..self.nodes.len()).filter(|node| self.nodes[*node].up).collect();
        let any = self.rng.receipts.below(connected.len().max(1) as u64) as usize;
        let node = match self.rng.receipts.chance(700) && connected.contains(&receipt.node) {
            true => receipt.node,
            false => connected.get(any).copied().unwrap_or(0),
        };
        let cut = self.net.carriers_cut.get(&node).is_some_and(|cuts| *cuts > 0);
        let again = RECEIPT_AGAIN_MS + self.rng.receipts.below(4_000);
        self.at(again, Event::Receipt { carrier, receipt_no });
        let at = &self.nodes[node];
        if !at.up || cut || at.frozen_until > self.now_ms || at.wing.lanes.is_empty() {
            return;
        }
        let state = receipt.receipt.state;
        self.note(&[41, carrier as u64, receipt_no, node as u64, state as u64], || {
            format!("report c{} -> n{} receipt {receipt_no} state {state}", carrier + 1, node + 1)
        });
        self.receipt_arrives(node, carrier, receipt_no, receipt.receipt);
    }
}
