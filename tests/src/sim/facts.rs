//! The glue of facts and receipts, as the simulator runs it: a mirror of `node/src/delivery/facts.rs` and `receipts.rs`.
//!
//! A fact is proposed until it is committed, here or on the leader of its partition. Committed is not recorded: apply may
//! refuse it, and a receipt is acknowledged to the carrier only when it was recorded or can never match.
use super::engine::Refused;
use super::node::Waiter;
use super::plant::Plant;
use super::wing::{FactBatch, PeerCall};
use super::world::{Event, World};
use carillon_core::{CommandResult, Permit, ReadTables as _, keys};
use carillon_proto::MessageId;
use carillon_proto::internal::{Command, FactResult, RecordOutcome, RecordReceipt, command::Kind};
use carillon_proto::public::Outcome;
use std::collections::{BTreeMap, VecDeque};

const BATCH_MAX: usize = 32;
const RETRY_PAUSE_MS: u64 = 50;
const FORWARD_TIMEOUT_MS: u64 = 2_000;
/// When a report that is not known here is looked for, counted from its arrival; after the last time it is refused.
const LOOKUPS_MS: [u64; 4] = [200, 1_000, 3_000, 8_000];
const LOOK_EVERY_MS: u64 = 200;
/// Times that the fast path may be refused before only the table counts.
const FAST_TRIES_MAX: u32 = 2;

/// Whom to tell what became of a fact.
#[derive(Debug, Clone)]
pub enum Done {
    Learn {
        carrier_no: u32,
        refs: Vec<String>,
        id: MessageId,
    },
    /// A report of the fast path.
    Report(u64),
}

#[derive(Debug, Clone)]
struct Fact {
    command: Command,
    done: Done,
}

/// The facts of one partition on one node.
#[derive(Debug, Default)]
pub struct Facts {
    waiting: VecDeque<Fact>,
    busy: Vec<Fact>,
    batch_no: u64,
    retry_at: Option<u64>,
}

/// A receipt that came to this node.
#[derive(Debug, Clone)]
struct Report {
    carrier: usize,
    receipt_no: u64,
    receipt: RecordReceipt,
    since_ms: u64,
    lookups: usize,
    fast_tries: u32,
    /// Its fact is on the way.
    handed: bool,
    /// The cluster was being restored when it was last asked for.
    restoring: bool,
}

/// Receipts that are not known here, and the references of messages that this node handed over.
#[derive(Debug, Default)]
pub struct Reports {
    next_no: u64,
    open: BTreeMap<u64, Report>,
    references: BTreeMap<(u32, [u8; 16]), MessageId>,
}

impl Reports {
    fn find(&self, receipt: &RecordReceipt) -> Option<MessageId> {
        let hashes = receipt.carrier_refs.iter().map(|reference| keys::carrier_ref_hash(reference));
        let mut known = hashes.filter_map(|hash| self.references.get(&(receipt.carrier_no, hash)));
        known.next().copied()
    }
}

impl World {
    pub fn record_outcome(
        &mut self,
        node: usize,
        permit: &Permit,
        outcome: Outcome,
        refs: Vec<String>,
        code: &str,
        retry_after_ms: u64,
    ) {
        let record = RecordOutcome {
            message_id: permit.message_id.to_bytes(),
            attempt_no: permit.attempt_no,
            outcome: outcome as i32,
            carrier_refs: refs.clone(),
            code: code.to_owned(),
            retry_after_ms: retry_after_ms as u32,
            segments: permit.segments,
        };
        let done = Done::Learn { carrier_no: permit.carrier_no, refs, id: permit.message_id };
        self.push_fact(node, permit.message_id, Kind::RecordOutcome(record), done);
    }

    /// A definite answer replaces the AMBIGUOUS one: it resolves UNKNOWN.
    pub fn late_answer(
        &mut self,
        node: usize,
        send_no: u64,
        part: u32,
        outcome: Outcome,
        carrier_ref: String,
    ) {
        let given_up = self.nodes[node].wing.timed_out.remove(&(send_no, part));
        let Some((id, attempt_no, 1, carrier_no)) = given_up else { return };
        let refs: Vec<String> = (outcome == Outcome::Accepted).then_some(carrier_ref).into_iter().collect();
        let record = RecordOutcome {
            message_id: id.to_bytes(),
            attempt_no,
            outcome: outcome as i32,
            carrier_refs: refs.clone(),
            ..Default::default()
        };
        self.note(&[30, super::rng::hash(id.as_bytes()), outcome as u64], || {
            format!("late   n{} {id} attempt {attempt_no} {outcome:?}", node + 1)
        });
        self.push_fact(node, id, Kind::RecordOutcome(record), Done::Learn { carrier_no, refs, id });
    }

    fn push_fact(&mut self, node: usize, id: MessageId, kind: Kind, done: Done) {
        let partition = id.slot().partition(self.plan.partitions);
        let facts = self.nodes[node].wing.facts.entry(partition).or_default();
        facts.waiting.push_back(Fact { command: Command { kind: Some(kind) }, done });
        if facts.busy.is_empty() {
            self.facts_go(node, partition);
        }
    }

    /// Proposes the batch under way, or the next one.
    pub fn facts_go(&mut self, node: usize, partition: u32) {
        let now_ms = self.now_ms;
        let Some(facts) = self.nodes[node].wing.facts.get_mut(&partition) else { return };
        if facts.busy.is_empty() {
            let count = facts.waiting.len().min(BATCH_MAX);
            facts.busy = facts.waiting.drain(..count).collect();
        } else if facts.retry_at.is_none_or(|at| at > now_ms) {
            return;
        }
        facts.retry_at = None;
        if facts.busy.is_empty() {
            return;
        }
        facts.batch_no += 1;
        let commands = facts.busy.iter().map(|fact| fact.command.clone()).collect();
        self.propose(node, partition, commands, Waiter::Facts { partition });
    }

    fn retry_facts(&mut self, node: usize, partition: u32, pause_ms: u64) {
        let epoch = self.nodes[node].epoch;
        if let Some(facts) = self.nodes[node].wing.facts.get_mut(&partition) {
            facts.retry_at = Some(self.now_ms + pause_ms);
        }
        self.at(pause_ms, Event::FactsRetry { node, epoch, partition });
    }

    /// What became of this node's own proposal of facts.
    pub fn facts_done(&mut self, node: usize, partition: u32, result: Result<Vec<CommandResult>, Refused>) {
        match result {
            Ok(results) => {
                self.facts_committed(node, partition, results.iter().map(CommandResult::fact).collect())
            }
            Err(Refused::NotLeader(hint)) => {
                let hint = if hint == 0 { self.guess(node, partition) } else { hint };
                if hint == 0 || hint == self.nodes[node].id {
                    return self.retry_facts(node, partition, RETRY_PAUSE_MS);
                }
                let epoch = self.nodes[node].epoch;
                let Some(facts) = self.nodes[node].wing.facts.get(&partition) else { return };
                let commands = facts.busy.iter().map(|fact| fact.command.clone()).collect();
                let batch = FactBatch { partition, batch_no: facts.batch_no, epoch, commands };
                self.peer(node, hint as usize - 1, PeerCall::Facts(batch));
                self.retry_facts(node, partition, FORWARD_TIMEOUT_MS);
            }
            Err(_) => self.retry_facts(node, partition, RETRY_PAUSE_MS),
        }
    }

    /// A node without a replica of the partition does not hear who leads it: those that have one are asked in turn.
    fn guess(&mut self, node: usize, partition: u32) -> u64 {
        let at = &mut self.nodes[node];
        let hosts: Vec<u64> = at.meta.hosts(partition).filter(|host| *host != at.id).collect();
        at.wing.guesses += 1;
        hosts.get(at.wing.guesses % hosts.len().max(1)).copied().unwrap_or(0)
    }

    fn facts_committed(&mut self, node: usize, partition: u32, results: Vec<FactResult>) {
        let Some(facts) = self.nodes[node].wing.facts.get_mut(&partition) else { return };
        facts.retry_at = None;
        let busy = std::mem::take(&mut facts.busy);
        let results = results.into_iter().chain(std::iter::repeat(FactResult::Unspecified));
        for (fact, result) in busy.into_iter().zip(results) {
            match fact.done {
                Done::Learn { carrier_no, refs, id } if result == FactResult::Recorded => {
                    for reference in refs {
                        let key = (carrier_no, keys::carrier_ref_hash(&reference));
                        self.nodes[node].wing.reports.references.insert(key, id);
                    }
                }
                Done::Learn { .. } => self.trace.count("outcome_refused"),
                Done::Report(report_no) => self.fast_report(node, report_no, result),
            }
        }
        self.facts_go(node, partition);
    }

    /// The fast path ended; what it could not record is parked.
    fn fast_report(&mut self, node: usize, report_no: u64, result: FactResult) {
        if let Some(report) = self.nodes[node].wing.reports.open.get_mut(&report_no) {
            report.handed = false;
        }
        if !self.conclude(node, report_no, result) {
            let epoch = self.nodes[node].epoch;
            self.at(LOOK_EVERY_MS, Event::ReceiptLook { node, epoch, report_no });
        }
    }

    /// Ends the report, unless its message may still turn up.
    fn conclude(&mut self, node: usize, report_no: u64, result: FactResult) -> bool {
        // Concluded by another way meanwhile, perhaps long ago.
        if !self.nodes[node].wing.reports.open.contains_key(&report_no) {
            return true;
        }
        let restoring = self.nodes[node].wing.reports.open.get(&report_no).is_some_and(|r| r.restoring);
        match result {
            FactResult::NotFound if restoring && !self.planted(Plant::ReceiptsLostInRestore) => return false,
            FactResult::Unspecified | FactResult::UnknownReference => return false,
            FactResult::Recorded => {}
            // Retention dropped it, or a lost cluster took it along.
            FactResult::NotFound if self.is_of_a_gone_message(node, report_no) => {
                self.trace.count("receipt_of_a_gone_message");
            }
            // In a simulation every receipt belongs to a message that a carrier took over.
            other => self.oracle.fail(format!("I8 a receipt was thrown away: {other:?}")),
        }
        if let Some(report) = self.nodes[node].wing.reports.open.remove(&report_no) {
            self.carriers[report.carrier].acked(report.receipt_no);
        }
        true
    }

    fn is_of_a_gone_message(&self, node: usize, report_no: u64) -> bool {
        let report = self.nodes[node].wing.reports.open.get(&report_no);
        let id = report.and_then(|report| MessageId::from_bytes(&report.receipt.message_id).ok());
        id.is_some_and(|id| self.oracle.is_gone(&id))
    }

    pub fn forwarded_done(
        &mut self,
        node: usize,
        from: usize,
        batch: FactBatch,
        result: Result<Vec<CommandResult>, Refused>,
    ) {
        let FactBatch { partition, batch_no, epoch, .. } = batch;
        let results = result.ok().map(|results| results.iter().map(CommandResult::fact).collect());
        self.peer(node, from, PeerCall::FactsAnswer { partition, batch_no, epoch, results });
    }

    /// Sends a call to another node.
    pub fn peer(&mut self, from: usize, to: usize, call: PeerCall) {
        if let Some(delay) = self.net_delay(from, to) {
            self.at(delay, Event::Peer { from, to, call: Box::new(call) });
        }
    }

    pub fn peer_call(&mut self, from: usize, to: usize, call: PeerCall) {
        // Nodes that were removed, or whose disk was called lost, get nothing.
        if !self.nodes[to].up || !self.nodes[to].meta.admits(self.nodes[from].id, 0) {
            return;
        }
        match call {
            PeerCall::Facts(batch) => {
                let commands = batch.commands.clone();
                self.propose(to, batch.partition, commands, Waiter::Forwarded { from, batch });
            }
            PeerCall::FactsAnswer { partition, batch_no, epoch, results } => {
                let current = self.nodes[to].epoch == epoch;
                let facts = self.nodes[to].wing.facts.get(&partition);
                if !current || facts.is_none_or(|facts| facts.batch_no != batch_no || facts.busy.is_empty()) {
                    return;
                }
                match results {
                    Some(results) => self.facts_committed(to, partition, results),
                    None => self.retry_facts(to, partition, RETRY_PAUSE_MS),
                }
            }
            PeerCall::Look { report_no, receipt } => self.look_here(to, from, report_no, receipt),
            PeerCall::Looked { report_no, result } => self.looked(to, to, report_no, result),
            PeerCall::Meta { data } => self.propose_encoded(to, 0, vec![data], Waiter::Nobody),
            other => self.steward_call(from, to, other),
        }
    }

    /// A carrier hands a receipt to a node.
    pub fn receipt_arrives(&mut self, node: usize, carrier: usize, receipt_no: u64, receipt: RecordReceipt) {
        let since_ms = self.now_ms;
        let epoch = self.nodes[node].epoch;
        let reports = &mut self.nodes[node].wing.reports;
        reports.next_no += 1;
        let report_no = epoch << 32 | reports.next_no;
        let report = Report {
            carrier,
            receipt_no,
            receipt,
            since_ms,
            lookups: 0,
            fast_tries: 0,
            handed: false,
            restoring: false,
        };
        reports.open.insert(report_no, report);
        self.look_again(node, report_no);
    }

    /// Hands the report over if its message is known here; looks for it elsewhere from time to time.
    pub fn look_again(&mut self, node: usize, report_no: u64) {
        let Some(report) = self.nodes[node].wing.reports.open.get(&report_no).cloned() else { return };
        if report.handed || self.try_fast(node, report_no, &report) {
            return;
        }
        if report.lookups == LOOKUPS_MS.len() {
            self.nodes[node].wing.reports.open.remove(&report_no);
            return self.carriers[report.carrier].refused(report.receipt_no, self.calm);
        }
        let epoch = self.nodes[node].epoch;
        if self.now_ms >= report.since_ms + LOOKUPS_MS[report.lookups] {
            let restoring = self.nodes[node].meta.is_restoring();
            if let Some(open) = self.nodes[node].wing.reports.open.get_mut(&report_no) {
                open.lookups += 1;
                open.restoring = restoring;
            }
            self.look_here(node, node, report_no, report.receipt.clone());
            for to in (0..self.nodes.len()).filter(|to| *to != node) {
                let receipt = report.receipt.clone();
                self.peer(node, to, PeerCall::Look { report_no, receipt });
            }
            // The last answers need a moment.
            return self.at(3 * LOOK_EVERY_MS, Event::ReceiptLook { node, epoch, report_no });
        }
        self.at(LOOK_EVERY_MS, Event::ReceiptLook { node, epoch, report_no });
    }

    /// Hands the report over if its message is known here.
    fn try_fast(&mut self, node: usize, report_no: u64, report: &Report) -> bool {
        if report.fast_tries >= FAST_TRIES_MAX {
            return false;
        }
        let given = MessageId::from_bytes(&report.receipt.message_id).ok().filter(|_| report.fast_tries == 0);
        let known = given.or_else(|| self.nodes[node].wing.reports.find(&report.receipt));
        let Some(id) = known else { return false };
        let restoring = self.nodes[node].meta.is_restoring();
        if let Some(open) = self.nodes[node].wing.reports.open.get_mut(&report_no) {
            open.fast_tries += 1;
            open.handed = true;
            open.restoring = restoring;
            open.receipt.message_id = id.to_bytes();
        }
        let receipt = RecordReceipt { message_id: id.to_bytes(), ..report.receipt.clone() };
        self.push_fact(node, id, Kind::RecordReceipt(receipt), Done::Report(report_no));
        true
    }

    /// Records the receipt if its message is in a partition that this node leads.
    fn look_here(&mut self, node: usize, from: usize, report_no: u64, receipt: RecordReceipt) {
        let hashes = receipt.carrier_refs.iter().map(|reference| keys::carrier_ref_hash(reference));
        let rows: Vec<Vec<u8>> = hashes.map(|hash| keys::receipt(receipt.carrier_no, &hash)).collect();
        let at = &self.nodes[node];
        let led = (1..=self.plan.partitions).filter(|partition| at.leads(*partition));
        let known = |partition: &u32| {
            let store = at.stores.get(partition);
            store.is_some_and(|store| rows.iter().any(|row| matches!(store.get(row), Ok(Some(_)))))
        };
        let mut found = led.filter(known);
        let Some(partition) = found.next() else {
            return self.looked(node, from, report_no, FactResult::UnknownReference);
        };
        let command = Command { kind: Some(Kind::RecordReceipt(receipt)) };
        self.propose(node, partition, vec![command], Waiter::Looked { from, report_no });
    }

    pub fn looked(&mut self, node: usize, from: usize, report_no: u64, result: FactResult) {
        if from != node {
            return self.peer(node, from, PeerCall::Looked { report_no, result });
        }
        if self.conclude(node, report_no, result) {
            self.trace.count("receipt_found_by_reference");
        }
    }
}
