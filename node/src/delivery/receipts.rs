//! The receipt router: brings delivery reports to the partition of their message and acknowledges them after commit.
//!
//! Fast path: this node sent the message and remembers the carrier's reference (bounded memory). Slow path (after a restart, or the
//! report came to another node): every node looks into table R of the partitions it leads. A report whose outcome is not
//! committed yet waits a little. What nobody knows is refused, so that the carrier sends it again later.
use super::facts::{Fact, Facts};
use crate::engine::NodeHandle;
use crate::engine::peers::PeerChannels;
use bytes::Bytes;
use carillon_carriers::connector::{LateAnswer, ReceiptReport};
use carillon_carriers::{InboundSink, ReceiptAck};
use carillon_core::{CommandResult, ReadTables as _, keys};
use carillon_proto::MessageId;
use carillon_proto::internal::peer_client::PeerClient;
use carillon_proto::internal::{
    Command, ForwardReceiptsRequest, RecordOutcome, RecordReceipt, command::Kind,
};
use parking_lot::Mutex;
use prost::Message as _;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// References remembered on a node.
const REFERENCES_MAX: usize = 200_000;
/// Reports waiting to be looked at, and waiting for their outcome.
const REPORTS_MAX: usize = 8192;
/// When a report that is not known here is looked for, counted from its arrival; after the last time it is refused.
const LOOKUPS: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(8)];
const ROUND: Duration = Duration::from_millis(50);

/// Carrier references of messages that this node handed over lately.
#[derive(Clone, Default)]
pub struct References(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    by_reference: HashMap<(u32, [u8; 16]), MessageId>,
    oldest: VecDeque<(u32, [u8; 16])>,
}

impl References {
    pub fn learn(&self, carrier_no: u32, refs: &[String], id: MessageId) {
        let mut known = self.0.lock();
        for reference in refs {
            let key = (carrier_no, keys::carrier_ref_hash(reference));
            if known.by_reference.insert(key, id).is_none() {
                known.oldest.push_back(key);
            }
            if known.oldest.len() > REFERENCES_MAX
                && let Some(oldest) = known.oldest.pop_front()
            {
                known.by_reference.remove(&oldest);
            }
        }
    }

    fn find(&self, carrier_no: u32, candidates: &[String]) -> Option<MessageId> {
        let known = self.0.lock();
        candidates
            .iter()
            .find_map(|reference| known.by_reference.get(&(carrier_no, keys::carrier_ref_hash(reference))))
            .copied()
    }
}

/// A report with the account it came from.
struct Report {
    receipt: RecordReceipt,
    ack: Option<ReceiptAck>,
    since: Instant,
    lookups: usize,
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
    references: References,
    reports: mpsc::Sender<Report>,
}

/// Where the router reads from.
pub struct Reports(mpsc::Receiver<Report>);

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
        self.router.late(self.carrier_no, outcome);
    }
}

impl ReceiptRouter {
    pub fn new(
        handle: NodeHandle,
        channels: Arc<PeerChannels>,
        facts: Facts,
        references: References,
    ) -> (Self, Reports) {
        let (reports, receiver) = mpsc::channel(REPORTS_MAX);
        (Self { handle, channels, facts, references, reports }, Reports(receiver))
    }

    /// Never blocks; a report that finds no room is dropped, and so refused.
    fn take(&self, receipt: RecordReceipt, ack: ReceiptAck) {
        let report = Report { receipt, ack: Some(ack), since: Instant::now(), lookups: 0 };
        if self.reports.try_send(report).is_err() {
            metrics::counter!("carillon_receipts_refused_total", "reason" => "busy").increment(1);
        }
    }

    /// Rare, so each one gets a task of its own.
    fn late(&self, carrier_no: u32, outcome: RecordOutcome) {
        let Ok(id) = MessageId::from_bytes(&outcome.message_id) else { return };
        let (references, refs) = (self.references.clone(), outcome.carrier_refs.clone());
        let done: super::facts::Done = Box::new(move |committed| {
            if committed {
                references.learn(carrier_no, &refs, id);
            }
        });
        let command = Command { kind: Some(Kind::RecordOutcome(outcome)) };
        let (facts, partition) = (self.facts.clone(), id.slot().partition(self.handle.partitions()));
        tokio::spawn(async move { facts.push(partition, Fact { command, done: Some(done) }).await });
    }

    /// Runs for the life of the node.
    pub async fn run(self, mut reports: Reports) {
        let mut waiting: VecDeque<Report> = VecDeque::new();
        let mut batch = Vec::new();
        loop {
            batch.clear();
            tokio::select! {
                count = reports.0.recv_many(&mut batch, 512), if waiting.len() < REPORTS_MAX => {
                    if count == 0 {
                        return;
                    }
                }
                () = tokio::time::sleep(ROUND), if !waiting.is_empty() => {}
            }
            for report in batch.drain(..) {
                if let Some(report) = self.try_fast(report).await {
                    waiting.push_back(report);
                }
            }
            self.look_again(&mut waiting).await;
        }
    }

    /// Hands the report over if its message is known here.
    async fn try_fast(&self, mut report: Report) -> Option<Report> {
        let known = match MessageId::from_bytes(&report.receipt.message_id) {
            Ok(id) => Some(id),
            Err(_) => self.references.find(report.receipt.carrier_no, &report.receipt.carrier_refs),
        };
        let Some(id) = known else { return Some(report) };
        report.receipt.message_id = id.to_bytes();
        let partition = id.slot().partition(self.handle.partitions());
        let command = Command { kind: Some(Kind::RecordReceipt(report.receipt)) };
        let done = report.ack.map(|ack| -> super::facts::Done {
            Box::new(move |committed| if committed { ack.commit() } else { ack.refuse() })
        });
        self.facts.push(partition, Fact { command, done }).await;
        None
    }

    async fn look_again(&self, waiting: &mut VecDeque<Report>) {
        let (now, mut lookups) = (Instant::now(), Vec::new());
        for _ in 0..waiting.len() {
            let Some(report) = waiting.pop_front() else { break };
            let Some(mut report) = self.try_fast(report).await else { continue };
            if now >= report.since + LOOKUPS[report.lookups] {
                report.lookups += 1;
                lookups.push(report);
            } else {
                waiting.push_back(report);
            }
        }
        if lookups.is_empty() {
            return;
        }
        let receipts: Vec<RecordReceipt> = lookups.iter().map(|report| report.receipt.clone()).collect();
        let found = self.record_anywhere(receipts).await;
        for (mut report, found) in lookups.into_iter().zip(found) {
            if found {
                if let Some(ack) = report.ack.take() {
                    ack.commit();
                }
            } else if report.lookups < LOOKUPS.len() {
                waiting.push_back(report);
            } else {
                // Dropping it refuses it: the carrier will send it again.
                metrics::counter!("carillon_receipts_refused_total", "reason" => "unknown").increment(1);
            }
        }
    }

    async fn record_anywhere(&self, receipts: Vec<RecordReceipt>) -> Vec<bool> {
        let mut found = self.record_here(receipts.clone()).await;
        for channel in self.channels.all() {
            let open: Vec<usize> = (0..found.len()).filter(|i| !found[*i]).collect();
            if open.is_empty() {
                break;
            }
            let asked = open.iter().map(|i| receipts[*i].clone()).collect();
            let mut request = tonic::Request::new(ForwardReceiptsRequest { receipts: asked });
            request.set_timeout(Duration::from_secs(3));
            if let Ok(response) = PeerClient::new(channel).forward_receipts(request).await {
                for (i, yes) in open.into_iter().zip(response.into_inner().found) {
                    found[i] |= yes;
                }
            }
        }
        found
    }

    /// Records those reports whose message is in a partition that this node leads.
    pub async fn record_here(&self, receipts: Vec<RecordReceipt>) -> Vec<bool> {
        let mut found = vec![false; receipts.len()];
        let mut by_partition: HashMap<u32, Vec<(usize, Bytes)>> = HashMap::new();
        for (at, receipt) in receipts.into_iter().enumerate() {
            if let Some(partition) = self.partition_of(&receipt) {
                let command = Command { kind: Some(Kind::RecordReceipt(receipt)) };
                by_partition.entry(partition).or_default().push((at, command.encode_to_vec().into()));
            }
        }
        for (partition, list) in by_partition {
            for chunk in list.chunks(256) {
                let commands = chunk.iter().map(|(_, command)| command.clone()).collect();
                let Ok(answers) = self.handle.propose(partition, commands).await else { continue };
                for ((at, _), answer) in chunk.iter().zip(answers) {
                    found[*at] = answer == CommandResult::Done;
                }
            }
        }
        found
    }

    fn partition_of(&self, receipt: &RecordReceipt) -> Option<u32> {
        let rows: Vec<Vec<u8>> = receipt
            .carrier_refs
            .iter()
            .map(|reference| keys::receipt(receipt.carrier_no, &keys::carrier_ref_hash(reference)))
            .collect();
        (1..=self.handle.partitions()).filter(|partition| self.handle.is_leader(*partition)).find(
            |partition| {
                let Ok(tables) = self.handle.local_tables(*partition) else { return false };
                rows.iter().any(|row| matches!(tables.get(row), Ok(Some(_))))
            },
        )
    }
}
