//! The receipt router: brings delivery reports to the partition of their message and acknowledges them once they are
//! recorded.
//!
//! Fast path: this node saw the carrier's reference become known and remembers it (`engine/references.rs`). Slow path (after a
//! restart, or it was long ago): every node looks into table R of the partitions it leads.
//!
//! What becomes of a report
//!  - Recorded: acknowledged. Committed alone does not count, apply may have refused it.
//!  - No message has its reference (yet): it is parked and looked for again, at once when the outcome comes in here; then
//!    refused, so that the carrier repeats it. What every partition has denied for long enough ([`Refused`]) belongs to nobody.
//!  - It can never match (no such message, never sent, nonsense, or belongs to nobody): acknowledged, counted by reason
//!    and logged, because a carrier that repeats it for ever would get nothing else through.
//!
//! Bounds: [`REPORTS_MAX`] reports wait to be looked at, as many come back from the fast path, twice as many are parked;
//! beyond that they are refused.
use super::facts::{Fact, Facts};
use super::refused::Refused;
use crate::engine::NodeHandle;
use crate::engine::peers::PeerChannels;
use bytes::Bytes;
use carillon_carriers::connector::{LateAnswer, ReceiptReport};
use carillon_carriers::{InboundSink, ReceiptAck};
use carillon_core::{CommandResult, ReadTables as _, keys};
use carillon_proto::MessageId;
use carillon_proto::internal::peer_client::PeerClient;
use carillon_proto::internal::{
    Command, FactResult, ForwardReceiptsRequest, ForwardReceiptsResponse, RecordOutcome, RecordReceipt,
    command::Kind,
};
use prost::Message as _;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const REPORTS_MAX: usize = 8192;
/// When a parked report is looked for, counted from its arrival; after the last time it is refused. The carrier waits no longer
/// than ten seconds for our answer (`receipt_ack_timeout`).
const LOOKUPS: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(8)];
const ROUND: Duration = Duration::from_millis(50);
/// Times that the fast path may be refused before only the table counts.
const FAST_TRIES_MAX: u32 = 2;
const FORWARD_TIMEOUT: Duration = Duration::from_secs(3);

/// A report with the account it came from.
struct Report {
    receipt: RecordReceipt,
    ack: ReceiptAck,
    since: Instant,
    lookups: usize,
    fast_tries: u32,
}

impl Report {
    /// Ends the report, unless its message may still turn up.
    fn conclude(self, result: FactResult) -> Option<Self> {
        let reason = match result {
            FactResult::Recorded => {
                self.ack.commit();
                return None;
            }
            FactResult::Unspecified | FactResult::UnknownReference => return Some(self),
            FactResult::NotFound => "no_message",
            FactResult::WrongState => "never_sent",
            FactResult::Malformed => "malformed",
        };
        self.forget(reason);
        None
    }

    /// Nothing of it is logged but the account: an id of a carrier may be any text.
    fn forget(self, reason: &'static str) {
        metrics::counter!("carillon_receipts_unmatched_total", "reason" => reason).increment(1);
        tracing::warn!(
            carrier_no = self.receipt.carrier_no,
            state = self.receipt.state,
            reason,
            "a receipt belongs to no message and was acknowledged"
        );
        self.ack.commit();
    }

    /// The carrier shall repeat it.
    fn refuse(self, reason: &'static str) {
        metrics::counter!("carillon_receipts_refused_total", "reason" => reason).increment(1);
        self.ack.refuse();
    }
}

/// The sink of one carrier account.
pub struct ReceiptSink {
    pub carrier_no: u32,
    pub router: ReceiptRouter,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct ReceiptRouter {
    handle: NodeHandle,
    channels: Arc<PeerChannels>,
    facts: Facts,
    reports: mpsc::Sender<Report>,
    /// From the fast path, to be parked.
    back: mpsc::Sender<Report>,
    stopping: CancellationToken,
}

/// Where the router reads from.
pub struct Reports {
    new: mpsc::Receiver<Report>,
    back: mpsc::Receiver<Report>,
}

impl InboundSink for ReceiptSink {
    fn receipt(&self, report: ReceiptReport) {
        metrics::counter!("carillon_receipts_total").increment(1);
        let receipt = RecordReceipt {
            message_id: report.known.map(|id| id.to_bytes()).unwrap_or_default(),
            carrier_no: self.carrier_no,
            carrier_refs: report.carrier_refs,
            state: report.state as i32,
            code: report.code,
        };
        self.router.take(receipt, report.ack);
    }

    /// A definite answer replaces the AMBIGUOUS one: it resolves UNKNOWN.
    fn late_answer(&self, answer: LateAnswer) {
        metrics::counter!("carillon_late_answers_total").increment(1);
        if answer.parts != 1 {
            return;
        }
        let outcome = RecordOutcome {
            message_id: answer.message_id.to_bytes(),
            attempt_no: answer.attempt_no,
            outcome: answer.outcome as i32,
            carrier_refs: answer.carrier_ref.into_iter().collect(),
            code: answer.code,
            retry_after_ms: 0,
            segments: 1,
        };
        self.router.late(outcome);
    }
}

impl ReceiptRouter {
    pub fn new(handle: NodeHandle, channels: Arc<PeerChannels>, facts: Facts) -> (Self, Reports) {
        let ((reports, new), (back, returned)) = (mpsc::channel(REPORTS_MAX), mpsc::channel(REPORTS_MAX));
        let stopping = CancellationToken::new();
        let router = Self { handle, channels, facts, reports, back, stopping };
        (router, Reports { new, back: returned })
    }

    /// Parks nothing any more: what is not known at once is refused. The carrier repeats it to another node.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Never blocks; a report that finds no room is refused.
    fn take(&self, receipt: RecordReceipt, ack: ReceiptAck) {
        let report = Report { receipt, ack, since: Instant::now(), lookups: 0, fast_tries: 0 };
        if let Err(full) = self.reports.try_send(report) {
            full.into_inner().refuse("busy");
        }
    }

    /// Rare, so each one gets a task of its own.
    fn late(&self, outcome: RecordOutcome) {
        let Ok(id) = MessageId::from_bytes(&outcome.message_id) else { return };
        let command = Command { kind: Some(Kind::RecordOutcome(outcome)) };
        let (facts, partition) = (self.facts.clone(), id.slot().partition(self.handle.partitions()));
        tokio::spawn(async move { facts.push(partition, Fact { command, done: None }).await });
    }

    /// Runs for the life of the node.
    pub async fn run(self, mut reports: Reports) {
        let (mut parked, mut refused) = (VecDeque::new(), Refused::default());
        let (mut batch, mut returned) = (Vec::new(), Vec::new());
        loop {
            tokio::select! {
                _ = reports.back.recv_many(&mut returned, 512) => {}
                count = reports.new.recv_many(&mut batch, 512), if parked.len() < REPORTS_MAX => {
                    if count == 0 {
                        return;
                    }
                }
                () = tokio::time::sleep(ROUND), if !parked.is_empty() => {}
                () = self.stopping.cancelled(), if !parked.is_empty() => {}
            }
            for report in returned.drain(..).chain(batch.drain(..)) {
                match self.try_fast(report).await {
                    Some(report) if parked.len() < 2 * REPORTS_MAX => parked.push_back(report),
                    Some(report) => report.refuse("busy"),
                    None => {}
                }
            }
            if self.stopping.is_cancelled() {
                parked.drain(..).for_each(|report: Report| report.refuse("stopping"));
            }
            self.look_again(&mut parked, &mut refused).await;
        }
    }

    /// Hands the report over if its message is known here; gives it back otherwise.
    async fn try_fast(&self, mut report: Report) -> Option<Report> {
        if report.fast_tries >= FAST_TRIES_MAX {
            return Some(report);
        }
        let receipt = &report.receipt;
        // A message that was given and did not do is tried again only when its outcome came in.
        let given = MessageId::from_bytes(&receipt.message_id).ok().filter(|_| report.fast_tries == 0);
        let Some(id) =
            given.or_else(|| self.handle.references().find(receipt.carrier_no, &receipt.carrier_refs))
        else {
            return Some(report);
        };
        report.receipt.message_id = id.to_bytes();
        report.fast_tries += 1;
        let partition = id.slot().partition(self.handle.partitions());
        let command = Command { kind: Some(Kind::RecordReceipt(report.receipt.clone())) };
        let back = self.back.clone();
        let restoring = self.handle.meta().is_restoring();
        let done: super::facts::Done = Box::new(move |result| {
            if let Some(report) = report.conclude(while_restoring(restoring, result))
                && let Err(full) = back.try_send(report)
            {
                full.into_inner().refuse("busy");
            }
        });
        self.facts.push(partition, Fact { command, done: Some(done) }).await;
        None
    }

    async fn look_again(&self, parked: &mut VecDeque<Report>, refused: &mut Refused) {
        let (now, mut lookups) = (Instant::now(), Vec::new());
        for _ in 0..parked.len() {
            let Some(report) = parked.pop_front() else { break };
            let Some(mut report) = self.try_fast(report).await else { continue };
            if now >= report.since + LOOKUPS[report.lookups] {
                report.lookups += 1;
                lookups.push(report);
            } else {
                parked.push_back(report);
            }
        }
        if lookups.is_empty() {
            return;
        }
        let receipts: Vec<RecordReceipt> = lookups.iter().map(|report| report.receipt.clone()).collect();
        let restoring = self.handle.meta().is_restoring();
        let results = self.record_anywhere(receipts).await;
        for (report, result) in lookups.into_iter().zip(results) {
            let result = while_restoring(restoring, result);
            let Some(report) = report.conclude(result) else { continue };
            if report.lookups < LOOKUPS.len() {
                parked.push_back(report);
            } else if result == FactResult::Unspecified || self.handle.meta().is_restoring() {
                // Or its message is not back yet: the carrier repeats it.
                report.refuse("unreachable");
            } else if refused.enough(&report.receipt) {
                report.forget("unknown");
            } else {
                report.refuse("unknown");
            }
        }
    }

    /// One result for each; `UnknownReference` only if the leaders of all partitions said so.
    async fn record_anywhere(&self, receipts: Vec<RecordReceipt>) -> Vec<FactResult> {
        let own = self.record_here(receipts.clone()).await;
        let mut results: Vec<FactResult> = own.results().collect();
        let mut asked: BTreeSet<u32> = own.partitions.into_iter().collect();
        for channel in self.channels.all() {
            let open: Vec<usize> = (0..results.len()).filter(|at| is_open(results[*at])).collect();
            if open.is_empty() {
                break;
            }
            let receipts = open.iter().map(|at| receipts[*at].clone()).collect();
            let mut request = tonic::Request::new(ForwardReceiptsRequest { receipts });
            request.set_timeout(FORWARD_TIMEOUT);
            if let Ok(response) = PeerClient::new(channel).forward_receipts(request).await {
                let response = response.into_inner();
                for (at, result) in open.into_iter().zip(response.results()) {
                    if result != FactResult::UnknownReference {
                        results[at] = result;
                    }
                }
                asked.extend(response.partitions);
            }
        }
        if asked.len() < self.handle.partitions() as usize {
            let unknown = results.iter_mut().filter(|result| **result == FactResult::UnknownReference);
            unknown.for_each(|result| *result = FactResult::Unspecified);
        }
        results
    }

    /// Records those reports whose message is in a partition that this node leads.
    pub async fn record_here(&self, receipts: Vec<RecordReceipt>) -> ForwardReceiptsResponse {
        let led: Vec<u32> = (1..=self.handle.partitions()).filter(|p| self.handle.is_leader(*p)).collect();
        let mut results = vec![FactResult::UnknownReference; receipts.len()];
        let mut by_partition: HashMap<u32, Vec<(usize, Bytes)>> = HashMap::new();
        for (at, receipt) in receipts.into_iter().enumerate() {
            if let Some(partition) = self.partition_of(&led, &receipt) {
                let command = Command { kind: Some(Kind::RecordReceipt(receipt)) };
                by_partition.entry(partition).or_default().push((at, command.encode_to_vec().into()));
            }
        }
        for (partition, list) in by_partition {
            // 64 of 16 candidates with 128 bytes each fit into one proposal.
            for chunk in list.chunks(64) {
                let commands = chunk.iter().map(|(_, command)| command.clone()).collect();
                let answers = self.handle.propose(partition, commands).await.unwrap_or_default();
                let answers =
                    answers.iter().map(CommandResult::fact).chain(std::iter::repeat(FactResult::Unspecified));
                for ((at, _), answer) in chunk.iter().zip(answers) {
                    results[*at] = answer;
                }
            }
        }
        let results = results.into_iter().map(i32::from).collect();
        ForwardReceiptsResponse { results, partitions: led }
    }

    fn partition_of(&self, led: &[u32], receipt: &RecordReceipt) -> Option<u32> {
        let rows: Vec<Vec<u8>> = receipt
            .carrier_refs
            .iter()
            .map(|reference| keys::receipt(receipt.carrier_no, &keys::carrier_ref_hash(reference)))
            .collect();
        led.iter().copied().find(|partition| {
            let Ok(tables) = self.handle.local_tables(*partition) else { return false };
            rows.iter().any(|row| matches!(tables.get(row), Ok(Some(_))))
        })
    }
}

/// A partition knows that it is being restored from its first piece on; before that it has no message at all. So while the cluster is
/// being restored "no such message" says nothing. `restoring` is from before the question was asked.
fn while_restoring(restoring: bool, result: FactResult) -> FactResult {
    match result {
        FactResult::NotFound if restoring => FactResult::Unspecified,
        result => result,
    }
}

/// Another node may know better.
fn is_open(result: FactResult) -> bool {
    matches!(result, FactResult::Unspecified | FactResult::UnknownReference)
}
