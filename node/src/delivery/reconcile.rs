//! Asks carriers that can be asked about messages whose fate is unknown, and records what they say as facts.
//!
//! Two kinds: UNKNOWN ones (their answer was lost), and SUBMITTED ones that have been silent for too long. Attempts are
//! noted when their outcome is known here; what older leaders left is found by reading the partition once when this node
//! becomes its leader.
//!
//! Invariants: a message is asked about only by the leader of its partition; what a look-up says becomes the same facts that
//! an answer and a receipt would have become, so apply decides what they change; nothing is ever sent from here.
//!
//! Bounds: [`NOTES_MAX`] messages wait; what has no room is found by the next leader. The carrier's quota is the
//! connector's. [`ASKED_AT_ONCE`] look-ups run beside each other.
use super::facts::{Fact, Facts};
use super::lanes::{Lane, LaneTable};
use crate::clock::now_ms as clock_ms;
use crate::engine::NodeHandle;
use crate::seal::{Context, Field, Keyring};
use carillon_carriers::{Clear, LookUp, LookUpAnswer};
use carillon_core::query::{self, ListFilter};
use carillon_proto::internal::{
    AttemptRecord, Command, MessagePayload, MessageStatus, ReceiptState, RecordOutcome, RecordReceipt,
    command::Kind,
};
use carillon_proto::public::{MessageState, Outcome};
use carillon_proto::slot::SLOTS;
use carillon_proto::{MessageId, Slot};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::{Semaphore, mpsc};

const NOTES_MAX: usize = 100_000;
/// Notes on their way here.
const CHANNEL_MAX: usize = 8_192;
const ASKED_AT_ONCE: usize = 8;
/// Waits between two questions about one message: doubled each time.
const AGAIN_MIN_MS: u64 = 10_000;
const AGAIN_MAX_MS: u64 = 6 * 3_600_000;
/// Questions about one message, at most; afterwards only a receipt or an operator resolves it.
const QUESTIONS_MAX: u32 = 10;
/// Leaderships and due notes are looked at this often.
const ROUND: Duration = Duration::from_millis(500);
const PAGE: usize = 500;
/// Messages looked at for one page.
const SCAN: usize = 5_000;
/// Messages accepted longer ago are not looked for when this node becomes a leader.
const LOOK_BACK_MS: u64 = 72 * 3_600_000;

/// An attempt whose message may have to be asked about.
#[derive(Debug, Clone)]
pub struct Note {
    pub message_id: MessageId,
    pub carrier_no: u32,
    /// The carrier's id, when its answer came.
    pub carrier_ref: Option<String>,
    /// It was taken over: only its receipt is missing.
    pub submitted: bool,
}

struct Waiting {
    note: Note,
    questions: u32,
}

/// Who is told of attempts. Cheap to clone.
#[derive(Clone)]
pub struct Reconciler(mpsc::Sender<Note>);

impl Reconciler {
    /// Starts the task.
    pub fn start(handle: NodeHandle, keyring: Arc<Keyring>, facts: Facts, lanes: LaneTable) -> Self {
        let (notes, taken) = mpsc::channel(CHANNEL_MAX);
        let asker = Asker { handle, keyring, facts, lanes };
        let desk = Desk { asker, waiting: BTreeMap::new(), noted: BTreeSet::new(), led: BTreeMap::new() };
        tokio::spawn(desk.run(taken, notes.clone()));
        Self(notes)
    }

    /// Never blocks; without room the next leader finds the message.
    pub fn note(&self, note: Note) {
        if self.0.try_send(note).is_err() {
            metrics::counter!("carillon_reconcile_notes_lost_total").increment(1);
        }
    }
}

/// What waits, by the time when it is due.
struct Desk {
    asker: Asker,
    waiting: BTreeMap<(u64, MessageId), Waiting>,
    noted: BTreeSet<MessageId>,
    /// The term in which each partition was read.
    led: BTreeMap<u32, u64>,
}

/// What became of one question.
enum Asked {
    /// Nothing more to ask.
    Done,
    Again {
        after_ms: u64,
    },
}

impl Desk {
    async fn run(mut self, mut notes: mpsc::Receiver<Note>, own: mpsc::Sender<Note>) {
        let room = Arc::new(Semaphore::new(ASKED_AT_ONCE));
        let (answers, mut answered) = mpsc::channel::<(Waiting, Asked)>(ASKED_AT_ONCE);
        let mut every = tokio::time::interval(ROUND);
        loop {
            tokio::select! {
                note = notes.recv() => match note {
                    Some(note) => self.take(note, 0, None),
                    None => return,
                },
                Some((waiting, asked)) = answered.recv() => {
                    self.noted.remove(&waiting.note.message_id);
                    if let Asked::Again { after_ms } = asked && waiting.questions < QUESTIONS_MAX {
                        self.take(waiting.note, waiting.questions, Some(after_ms));
                    }
                }
                _ = every.tick() => {
                    self.look_at_leaderships(&own);
                    metrics::gauge!("carillon_reconcile_waiting").set(self.noted.len() as f64);
                }
            }
            while let Ok(permit) = room.clone().try_acquire_owned() {
                let Some(mut waiting) = self.next_due() else { break };
                waiting.questions += 1;
                let (asker, answers) = (self.asker.clone(), answers.clone());
                tokio::spawn(async move {
                    let asked = asker.ask(&waiting).await;
                    drop(answers.send((waiting, asked)).await);
                    drop(permit);
                });
            }
        }
    }

    fn next_due(&mut self) -> Option<Waiting> {
        let entry = self.waiting.first_entry()?;
        (entry.key().0 <= clock_ms()).then(|| entry.remove())
    }

    /// `after_ms`: as the carrier said; otherwise as its contract says.
    fn take(&mut self, note: Note, questions: u32, after_ms: Option<u64>) {
        let Some(terms) =
            self.asker.lanes.get(note.carrier_no).and_then(|lane| lane.connector.look_up_terms())
        else {
            return;
        };
        let by_contract = if note.submitted { terms.silent_after } else { terms.unknown_after };
        let after_ms = after_ms.unwrap_or(by_contract.as_millis() as u64);
        if self.noted.len() >= NOTES_MAX {
            metrics::counter!("carillon_reconcile_notes_lost_total").increment(1);
            return;
        }
        if self.noted.insert(note.message_id) {
            self.waiting.insert((clock_ms() + after_ms, note.message_id), Waiting { note, questions });
        }
    }

    /// Reads partitions that this node has come to lead, if any carrier can be asked at all.
    fn look_at_leaderships(&mut self, own: &mpsc::Sender<Note>) {
        let handle = &self.asker.handle;
        if self.asker.lanes.all().iter().all(|lane| lane.connector.look_up_terms().is_none()) {
            self.led.clear();
            return;
        }
        for partition in 1..=handle.partitions() {
            if !handle.is_leader(partition) {
                self.led.remove(&partition);
                continue;
            }
            let term = handle.leadership(partition).term;
            if self.led.insert(partition, term) != Some(term) {
                let (asker, own) = (self.asker.clone(), own.clone());
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = asker.find(partition, &own) {
                        tracing::warn!(partition, %error, "messages to reconcile not read");
                    }
                });
            }
        }
    }
}

/// Asks about one message.
#[derive(Clone)]
struct Asker {
    handle: NodeHandle,
    keyring: Arc<Keyring>,
    facts: Facts,
    lanes: LaneTable,
}

impl Asker {
    /// Notes what an older leader left: UNKNOWN messages and SUBMITTED ones, of carriers that can be asked.
    fn find(&self, partition: u32, own: &mpsc::Sender<Note>) -> anyhow::Result<()> {
        let tables = self.handle.local_tables(partition)?;
        let filter = ListFilter {
            states: [MessageState::Unknown, MessageState::Submitted].into(),
            accepted_after_ms: Some(clock_ms().saturating_sub(LOOK_BACK_MS)),
            ..ListFilter::default()
        };
        let of_partition = |slot: &Slot| slot.partition(self.handle.partitions()) == partition;
        let mut slots = (0..SLOTS).filter_map(Slot::new).filter(of_partition);
        let Some(first) = slots.next() else { return Ok(()) };
        let (last, mut after) = (slots.next_back().unwrap_or(first), None);
        loop {
            let page = query::list(&*tables, (first, last), after, &filter, PAGE, SCAN)?;
            for row in page.rows {
                let Some(attempt) = row.status.attempts.last() else { continue };
                let lane = self.lanes.get(attempt.carrier_no);
                if lane.is_some_and(|lane| lane.connector.look_up_terms().is_some()) {
                    own.blocking_send(Note {
                        message_id: row.message_id,
                        carrier_no: attempt.carrier_no,
                        carrier_ref: None,
                        submitted: row.status.state == i32::from(MessageState::Submitted),
                    })?;
                }
            }
            after = page.next;
            if after.is_none() || !self.handle.is_leader(partition) {
                return Ok(());
            }
        }
    }

    async fn ask(&self, waiting: &Waiting) -> Asked {
        let note = &waiting.note;
        let partition = note.message_id.slot().partition(self.handle.partitions());
        let Some(lane) = self.lanes.get(note.carrier_no) else { return Asked::Done };
        if !self.handle.is_leader(partition) {
            return Asked::Done;
        }
        let read = self.handle.local_tables(partition).ok();
        let found = read.and_then(|tables| query::message(&*tables, &note.message_id).ok()).flatten();
        let Some((payload, status)) = found else { return Asked::Done };
        let state = MessageState::try_from(status.state).unwrap_or(MessageState::Unspecified);
        if !matches!(state, MessageState::Unknown | MessageState::Submitted) {
            return Asked::Done;
        }
        let Some((attempt_no, question)) = self.question(note, &payload, &status) else { return Asked::Done };
        let answer = lane.connector.look_up(question).await;
        let again = Asked::Again { after_ms: (AGAIN_MIN_MS << waiting.questions.min(16)).min(AGAIN_MAX_MS) };
        let word = match answer {
            LookUpAnswer::Found { carrier_ref, state, code } => {
                self.found(partition, note, attempt_no, carrier_ref, state, code).await;
                // Still on its way: its receipt may be lost, too.
                return if state == ReceiptState::Enroute { again } else { Asked::Done };
            }
            LookUpAnswer::Absent { proven: true } if state == MessageState::Unknown => {
                let outcome = (Outcome::NotSent, "absent".to_owned(), Vec::new());
                self.outcome(partition, note, attempt_no, outcome).await;
                return Asked::Done;
            }
            LookUpAnswer::Absent { .. } => "absent",
            LookUpAnswer::Several => "several",
            LookUpAnswer::NotNow { retry_after } => {
                return Asked::Again { after_ms: (retry_after.as_millis() as u64).max(AGAIN_MIN_MS) };
            }
            LookUpAnswer::Unsupported => return Asked::Done,
        };
        tracing::debug!(message_id = %note.message_id, word, "the carrier cannot tell yet");
        again
    }

    /// The question about the attempt that is in doubt, with the text opened.
    fn question(
        &self,
        note: &Note,
        payload: &MessagePayload,
        status: &MessageStatus,
    ) -> Option<(u32, LookUp)> {
        let in_doubt = [i32::from(Outcome::Ambiguous), i32::from(Outcome::Accepted)];
        let of_carrier =
            |a: &&AttemptRecord| a.carrier_no == note.carrier_no && in_doubt.contains(&a.outcome);
        let attempt = status.attempts.iter().rev().find(of_carrier)?;
        let accept = payload.accept.as_ref()?;
        let keys = self.keyring.of_epoch(status.practice_no, accept.key_epoch).ok()?;
        let view = self.handle.meta();
        let context = Context {
            cluster_id: &view.cluster_id,
            practice_no: status.practice_no,
            message_id: &note.message_id,
        };
        let text = |field, sealed: &[u8]| {
            String::from_utf8(keys.open(context, field, sealed).ok()?.to_vec()).map(Clear::new).ok()
        };
        let at = |ms: u64| UNIX_EPOCH + Duration::from_millis(ms);
        let question = LookUp {
            message_id: note.message_id,
            carrier_ref: note.carrier_ref.clone(),
            recipient: text(Field::Recipient, &accept.sealed_recipient)?,
            body: text(Field::Body, &accept.sealed_body)?,
            sent_after: at(attempt.begin_ms),
            // A leader that was replaced may have sent until then.
            sent_before: at(attempt.end_ms.max(attempt.send_by_ms)),
        };
        metrics::counter!("carillon_phi_opened_total", "reason" => "look_up").increment(1);
        Some((attempt.number, question))
    }

    async fn found(
        &self,
        partition: u32,
        note: &Note,
        attempt_no: u32,
        carrier_ref: String,
        state: ReceiptState,
        code: String,
    ) {
        let accepted = (Outcome::Accepted, "looked_up".to_owned(), vec![carrier_ref.clone()]);
        self.outcome(partition, note, attempt_no, accepted).await;
        if state != ReceiptState::Enroute {
            let receipt = RecordReceipt {
                message_id: note.message_id.to_bytes(),
                carrier_no: note.carrier_no,
                carrier_refs: vec![carrier_ref],
                state: state.into(),
                code,
            };
            let command = Command { kind: Some(Kind::RecordReceipt(receipt)) };
            self.facts.push(partition, Fact { command, done: None }).await;
        }
    }

    async fn outcome(
        &self,
        partition: u32,
        note: &Note,
        attempt_no: u32,
        (outcome, code, carrier_refs): (Outcome, String, Vec<String>),
    ) {
        let word = if outcome == Outcome::Accepted { "found" } else { "absent" };
        metrics::counter!("carillon_reconciled_total", "result" => word).increment(1);
        let outcome = RecordOutcome {
            message_id: note.message_id.to_bytes(),
            attempt_no,
            outcome: outcome.into(),
            carrier_refs,
            code,
            ..Default::default()
        };
        let command = Command { kind: Some(Kind::RecordOutcome(outcome)) };
        self.facts.push(partition, Fact { command, done: None }).await;
    }
}

/// Whether an attempt with this outcome may have to be asked about.
pub fn wants_note(lane: &Lane, outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Ambiguous | Outcome::Accepted) && lane.connector.look_up_terms().is_some()
}
