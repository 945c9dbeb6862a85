//! Where requests leave: connections with their windows, and the calls besides submits.
//!
//! Owns: the window of each connection, which call an arrival is, and writing down what was acknowledged.
//! Invariants: a request takes its place in the window before it leaves and gives it back when it is answered for good; a
//! message is written down before its acknowledgement counts. Bounds: the windows; [`RECENT_MAX`] ids for reads and cancels.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use carillon_proto::MessageId;
use carillon_proto::public::{
    AcceptedMessage, CancelMessagesRequest, GetMessageRequest, ListMessagesRequest, MessageView,
};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tonic::{Request, Status};

use super::hours;
use super::interval::Recorder;
use crate::bench::pacer;
use crate::bulk::{Answered, Batch};
use crate::client::{Client, reason_of_item};
use crate::run::scenario::{Mix, Scenario};
use crate::run::spill::{Ack, Cancel, Spill};
use crate::run::workload::Workload;
use crate::sample_day::dice::Dice;

/// Acknowledged messages that reads and cancels choose from.
const RECENT_MAX: usize = 4_096;
const PAGE: i32 = 50;

/// When a request was to leave, and when it left.
#[derive(Clone, Copy)]
struct Sent {
    intended: Instant,
    sent: Instant,
    sent_us: u64,
    connection: usize,
}

/// Files for the ledger.
pub struct Notes {
    pub acks: Spill<Ack>,
    pub cancels: Spill<Cancel>,
}

/// What all parts of a generator share.
pub struct Shared {
    pub scenario: Scenario,
    pub workload: Workload,
    pub recorder: Recorder,
    pub worker: u64,
    pub workers: u64,
    pub deadline: std::time::Duration,
    /// Taken away at the end.
    pub notes: Mutex<Option<Notes>>,
    /// Nothing may be written down any more: the disk failed.
    pub notes_error: Mutex<Option<String>>,
    pub answered: Notify,
    /// Requests and calls on their way.
    pub open: AtomicUsize,
    next: AtomicU64,
    sent: Mutex<HashMap<u64, Sent>>,
    recent: Mutex<VecDeque<String>>,
}

pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// In which file a message is: the random half of its id spreads evenly.
pub fn bucket_of_id(id: &[u8]) -> usize {
    id.last().map_or(0, |octet| usize::from(*octet))
}

/// Which call the arrival is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Submit,
    Get,
    List,
    Cancel,
}

fn choose(mix: &Mix, unit: f64) -> Call {
    let mut at = unit * (mix.submit + mix.get + mix.list + mix.cancel);
    for (weight, call) in [(mix.get, Call::Get), (mix.list, Call::List), (mix.cancel, Call::Cancel)] {
        if at < weight {
            return call;
        }
        at -= weight;
    }
    Call::Submit
}

impl Shared {
    pub fn new(
        scenario: Scenario,
        workload: Workload,
        recorder: Recorder,
        (worker, workers): (u64, u64),
        notes: Notes,
    ) -> Self {
        Self {
            deadline: std::time::Duration::from_millis(scenario.generator.deadline_ms),
            scenario,
            workload,
            recorder,
            worker,
            workers,
            notes: Mutex::new(Some(notes)),
            notes_error: Mutex::default(),
            answered: Notify::new(),
            open: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            sent: Mutex::default(),
            recent: Mutex::default(),
        }
    }

    /// Messages that were sent and have no answer.
    pub fn in_doubt(&self) -> u64 {
        self.sent.lock().len() as u64 * self.scenario.generator.batch()
    }

    fn note(&self, write: impl FnOnce(&mut Notes) -> std::io::Result<()>) {
        let mut notes = self.notes.lock();
        let Some(notes) = notes.as_mut() else { return };
        if let Err(error) = write(notes) {
            self.notes_error.lock().get_or_insert(error.to_string());
        }
    }

    fn acknowledge(&self, n: u64, accepted: &AcceptedMessage, sent_us: u64, acked_us: u64) {
        let Ok(id) = accepted.message_id.parse::<MessageId>() else {
            self.recorder.failed("id does not parse", 1);
            return;
        };
        let (id, repeated) = (id.as_bytes().to_vec(), accepted.duplicate);
        let bucket = bucket_of_id(&id);
        self.note(|notes| notes.acks.write(bucket, &Ack { n, id, sent_us, acked_us, repeated }));
        if self.scenario.mix.get + self.scenario.mix.cancel > 0.0 {
            let mut recent = self.recent.lock();
            if recent.len() >= RECENT_MAX {
                recent.pop_front();
            }
            recent.push_back(accepted.message_id.clone());
        }
        // A repetition is told no plan.
        let planned = !self.scenario.messages.due_local.is_empty() && !accepted.duplicate;
        if planned && !hours::is_planned_right(accepted) {
            self.recorder.planned_wrong();
        }
    }

    /// A request was answered for good.
    pub fn answered(&self, answered: &Answered, in_flight: &AtomicUsize) {
        let Some(sent) = self.sent.lock().remove(&answered.batch.tag) else { return };
        let (acked_us, batch) = (now_us(), self.scenario.generator.batch());
        let (mut count, mut repeated) = (0, 0);
        for (at, result) in answered.results.iter().enumerate() {
            match result {
                Ok(accepted) => {
                    count += 1;
                    repeated += u64::from(accepted.duplicate);
                    self.acknowledge(
                        answered.batch.tag * batch + at as u64,
                        accepted,
                        sent.sent_us,
                        acked_us,
                    );
                }
                Err(error) => self.recorder.failed(&reason_of_item(error), 1),
            }
        }
        if count > 0 {
            self.recorder.acknowledged(sent.intended, sent.sent, count, repeated);
        }
        self.finish(in_flight);
    }

    fn finish(&self, in_flight: &AtomicUsize) {
        in_flight.fetch_sub(1, Ordering::AcqRel);
        self.open.fetch_sub(1, Ordering::AcqRel);
        self.answered.notify_one();
    }

    /// Nothing that is on its way on this connection will be answered.
    pub fn gave_up(&self, connection: usize, reason: &str, in_flight: &AtomicUsize) {
        // They stay in doubt: nobody knows whether they were accepted.
        let lost = self.sent.lock().values().filter(|sent| sent.connection == connection).count();
        self.recorder.failed(reason, lost as u64 * self.scenario.generator.batch());
        for _ in 0..lost {
            self.finish(in_flight);
        }
    }

    async fn call(self: Arc<Self>, client: Client, call: Call, n: u64, intended: Instant) {
        let mut dice = Dice::new(n ^ 0x6361_6c6c);
        let recent = {
            let recent = self.recent.lock();
            if recent.is_empty() {
                None
            } else {
                recent.get(dice.below(recent.len() as u64) as usize).cloned()
            }
        };
        let (what, answer) = match (call, recent) {
            (Call::Get, Some(message_id)) => {
                let request = GetMessageRequest { message_id, view: MessageView::Full as i32 };
                let request = self.timed(request);
                ("get", client.messages().get_message(request).await.map(drop))
            }
            (Call::Cancel, Some(message_id)) => ("cancel", self.cancel(&client, message_id).await),
            // Nothing is known yet that could be read or taken back.
            _ => {
                let request = ListMessagesRequest {
                    practice: dice.pick(&self.workload.population.practices).name.clone(),
                    page_size: PAGE,
                    view: MessageView::Basic as i32,
                    ..Default::default()
                };
                let request = self.timed(request);
                ("list", client.messages().list_messages(request).await.map(drop))
            }
        };
        match answer {
            Ok(()) => self.recorder.called(what, intended),
            Err(status) => {
                let reason = reason_of_item(&carillon_proto::errors::to_rpc(&status));
                self.recorder.failed(&format!("{what}: {reason}"), 1);
            }
        }
    }

    fn timed<T>(&self, request: T) -> Request<T> {
        let mut request = Request::new(request);
        request.set_timeout(self.deadline);
        request
    }

    async fn cancel(&self, client: &Client, message_id: String) -> Result<(), Status> {
        let request = CancelMessagesRequest { message_ids: vec![message_id], ..Default::default() };
        // With repetitions: whether it was in time must be known for the ledger.
        let results = match client.cancel(request).await {
            Ok(results) => results,
            Err(crate::client::ClientError::Call { status, .. }) => return Err(*status),
            Err(other) => return Err(Status::internal(other.to_string())),
        };
        for result in results {
            if let Some(error) = &result.error {
                self.recorder.failed(&format!("cancel: {}", reason_of_item(error)), 1);
            } else if let Ok(id) = result.message_id.parse::<MessageId>() {
                let id = id.as_bytes().to_vec();
                let bucket = bucket_of_id(&id);
                let cancel = Cancel { id, in_time: result.canceled, state: result.state };
                self.note(|notes| notes.cancels.write(bucket, &cancel));
            }
        }
        Ok(())
    }
}

/// One connection, seen by the pacer.
pub struct Outlet {
    pub shared: Arc<Shared>,
    pub client: Client,
    pub batches: mpsc::Sender<Batch>,
    pub in_flight: Arc<AtomicUsize>,
    pub window: usize,
    pub connection: usize,
    pub handle: Handle,
}

impl pacer::Outlet for Outlet {
    fn has_room(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) < self.window
    }

    fn send(&self, intended: Instant) -> bool {
        let shared = &self.shared;
        let arrival = shared.next.fetch_add(1, Ordering::Relaxed) * shared.workers + shared.worker;
        let mut dice = Dice::new(shared.scenario.seed ^ arrival.wrapping_mul(0x6d69_7801));
        let call = choose(&shared.scenario.mix, dice.unit());
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        shared.open.fetch_add(1, Ordering::AcqRel);
        if call != Call::Submit {
            shared.recorder.sent(0);
            let (shared, client, in_flight) = (shared.clone(), self.client.clone(), self.in_flight.clone());
            self.handle.spawn(async move {
                shared.clone().call(client, call, arrival, intended).await;
                shared.finish(&in_flight);
            });
            return true;
        }
        let batch = shared.scenario.generator.batch();
        let messages = (0..batch).map(|at| shared.workload.message(arrival * batch + at)).collect();
        let sent = Sent { intended, sent: Instant::now(), sent_us: now_us(), connection: self.connection };
        shared.sent.lock().insert(arrival, sent);
        shared.recorder.sent(batch);
        self.batches.try_send(Batch { tag: arrival, messages }).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_chosen_by_weight() {
        let mix = Mix { submit: 7.0, get: 1.0, list: 0.0, cancel: 2.0, watchers: 0 };
        let counts =
            (0..1_000).map(|n| choose(&mix, f64::from(n) / 1_000.0)).fold([0; 4], |mut counts, call| {
                counts[call as usize] += 1;
                counts
            });
        assert_eq!(counts, [700, 100, 0, 200]);
    }
}
