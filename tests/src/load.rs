//! Callers that go on whatever happens, and write down what they asked and what they were told.
//!
//! Each caller draws from its own seeded stream: new messages (some due now, some *parked* for a month, to be taken
//! back), old keys again with the same or with another text, reads, cancels. A submit whose fate is unknown is
//! repeated with its key until it is known, as the API's documentation asks for. Bounds: [`KNOWN_MAX`] messages are
//! remembered for reads and cancels, [`OPEN_MAX`] submits a caller may be unsure of.
//!
//! Does not: judge; see `history`.

use crate::api::{number, spec, timed, timestamp};
use crate::history::{Answer, Call, HistoryError, What, Writer};
use carillon_loadtest::client::Client;
use carillon_loadtest::smsc::{TruthKey, truth_key};
use carillon_proto::errors;
use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::submit_result::Result as Item;
use carillon_proto::public::{
    CancelMessagesRequest, ErrorReason, GetMessageRequest, MessageSpec, MessageView, SubmitMessagesRequest,
};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tonic::{Code, Request, Status};

pub const KNOWN_MAX: usize = 4_000;
pub const OPEN_MAX: usize = 64;
const PARKED_FOR_MS: i64 = 30 * 86_400_000;
/// Pause before an uncertain submit is repeated.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
const RESOLVE_LIMIT: Duration = Duration::from_secs(90);

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    pub callers: u32,
    /// Between two calls of one caller.
    pub pause: Duration,
    /// Of each call.
    pub deadline: Duration,
    pub seed: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { callers: 4, pause: Duration::from_millis(40), deadline: Duration::from_secs(4), seed: 1 }
    }
}

/// A message to submit: everything about it follows from these.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    practice: String,
    key: String,
    variant: u32,
    not_before_ms: Option<i64>,
}

impl Wanted {
    fn spec(&self) -> MessageSpec {
        let at = self.key.bytes().fold(5_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let mut spec = MessageSpec {
            // Found again in lists, which do not show keys.
            external_reference: self.key.clone(),
            not_before: self.not_before_ms.map(timestamp),
            ..spec(&self.practice, &self.key, 0)
        };
        spec.recipient = Some(Recipient::PhoneNumber(number(at % 1_000)));
        if self.variant > 0 {
            spec.body = format!("{} Change {}.", spec.body, self.variant);
        }
        spec
    }

    fn call(&self) -> Call {
        let spec = self.spec();
        let truth = truth_key(&TruthKey::default(), crate::api::number_of(&spec), &spec.body);
        Call::Submit {
            practice: self.practice.clone(),
            key: self.key.clone(),
            variant: self.variant,
            truth: format!("{truth:032x}"),
        }
    }
}

/// An acknowledged message.
#[derive(Clone, Debug)]
struct Known {
    id: String,
    wanted: Wanted,
}

struct Shared {
    client: Client,
    practices: Vec<String>,
    history: Writer,
    options: LoadOptions,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    /// When the youngest call began that acknowledged something.
    youngest: Mutex<Option<Instant>>,
    /// Reads of acknowledged messages that did not find them.
    missing: AtomicU64,
    known: Mutex<VecDeque<Known>>,
    /// Not canceled yet.
    parked: Mutex<VecDeque<String>>,
}

/// Callers at work.
pub struct Load {
    shared: Arc<Shared>,
    callers: Vec<tokio::task::JoinHandle<Result<Vec<Wanted>, HistoryError>>>,
}

/// How a call that gave no answer ended: whether it may have had an effect, and why.
fn why(status: &Status) -> (bool, String) {
    match errors::reason_of(status) {
        Some(reason @ ErrorReason::PartitionUnavailable) => (true, errors::word(reason).to_owned()),
        Some(reason) => (false, errors::word(reason).to_owned()),
        None => {
            let broken = matches!(
                status.code(),
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown
            );
            let text = format!("{:?} {}", status.code(), status.message());
            (broken, if broken { "TRANSPORT".to_owned() } else { text })
        }
    }
}

impl Shared {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = timed(message);
        request.set_timeout(self.options.deadline);
        request
    }

    /// One call for all of them; returns those whose fate is unknown.
    async fn submit(&self, client: u32, wanted: Vec<Wanted>) -> Result<Vec<Wanted>, HistoryError> {
        let mut ops = Vec::with_capacity(wanted.len());
        for one in &wanted {
            ops.push(self.history.invoke(client, one.call())?);
        }
        let began = Instant::now();
        let messages = wanted.iter().map(Wanted::spec).collect();
        let request = self.request(SubmitMessagesRequest { messages, validate_only: false });
        let mut open = Vec::new();
        let results = match self.client.messages().submit_messages(request).await {
            Ok(answer) => answer.into_inner().results.into_iter().map(|r| r.result).collect(),
            Err(status) => vec![Some(Item::Error(errors::to_rpc(&status))); wanted.len()],
        };
        for (at, one) in wanted.into_iter().enumerate() {
            let what = match results.get(at).cloned().flatten() {
                Some(Item::Accepted(message)) => {
                    self.acknowledged.fetch_add(1, Ordering::Relaxed);
                    let mut youngest = self.youngest.lock();
                    *youngest = youngest.max(Some(began));
                    drop(youngest);
                    self.remember(&message.message_id, &one);
                    What::Ok(Answer::Accepted { id: message.message_id, duplicate: message.duplicate })
                }
                Some(Item::Error(error)) => {
                    let status = errors::from_rpc(&error);
                    let (uncertain, why) = why(&status);
                    if uncertain || status.code() == Code::ResourceExhausted {
                        open.push(one);
                    }
                    match errors::reason_of(&status) {
                        Some(ErrorReason::IdempotencyKeyReused) => What::Ok(Answer::KeyReused),
                        _ if uncertain => What::Info { why },
                        _ => What::Fail { why },
                    }
                }
                None => What::Fail { why: "an empty result".to_owned() },
            };
            self.history.end(ops[at], client, what)?;
        }
        Ok(open)
    }

    fn remember(&self, id: &str, wanted: &Wanted) {
        let mut known = self.known.lock();
        if known.len() == KNOWN_MAX {
            known.pop_front();
        }
        known.push_back(Known { id: id.to_owned(), wanted: wanted.clone() });
        if wanted.not_before_ms.is_some() {
            self.parked.lock().push_back(id.to_owned());
        }
    }

    async fn get(&self, client: u32, id: String) -> Result<(), HistoryError> {
        let op = self.history.invoke(client, Call::Get { id: id.clone() })?;
        let request = self.request(GetMessageRequest { message_id: id, view: MessageView::Basic as i32 });
        let what = match self.client.messages().get_message(request).await {
            Ok(message) => What::Ok(Answer::Seen { state: message.into_inner().state() }),
            Err(status) if errors::reason_of(&status) == Some(ErrorReason::MessageNotFound) => {
                self.missing.fetch_add(1, Ordering::Relaxed);
                What::Ok(Answer::Missing)
            }
            // A read has no effect, so its failure is certain.
            Err(status) => What::Fail { why: why(&status).1 },
        };
        self.history.end(op, client, what)
    }

    /// False when it may have had an effect or not.
    async fn cancel(&self, client: u32, id: String) -> Result<bool, HistoryError> {
        let op = self.history.invoke(client, Call::Cancel { id: id.clone() })?;
        let request = CancelMessagesRequest { message_ids: vec![id], ..Default::default() };
        let answer = self.client.messages().cancel_messages(self.request(request)).await;
        let result = answer.map(|answer| answer.into_inner().results.into_iter().next());
        let what = match result {
            Ok(Some(result)) => match &result.error {
                None => What::Ok(Answer::CancelAnswer { canceled: result.canceled, state: result.state() }),
                Some(error) => refused_cancel(&errors::from_rpc(error)),
            },
            Ok(None) => What::Fail { why: "an empty answer".to_owned() },
            Err(status) => refused_cancel(&status),
        };
        let is_known = matches!(what, What::Ok(_));
        self.history.end(op, client, what)?;
        Ok(is_known)
    }
}

fn refused_cancel(status: &Status) -> What {
    if errors::reason_of(status) == Some(ErrorReason::MessageNotFound) {
        return What::Ok(Answer::Missing);
    }
    match why(status) {
        (true, why) => What::Info { why },
        (false, why) => What::Fail { why },
    }
}

/// One caller.
struct Caller {
    shared: Arc<Shared>,
    number: u32,
    random: StdRng,
    made: u64,
    open: Vec<Wanted>,
}

impl Caller {
    fn fresh(&mut self) -> Wanted {
        self.made += 1;
        let shared = &self.shared;
        let practice = shared.practices[self.random.random_range(0..shared.practices.len())].clone();
        let parked = self.random.random_ratio(1, 6);
        let not_before_ms = parked.then(|| crate::api::now_ms() + PARKED_FOR_MS);
        let key = format!("s{}-c{}-{}", shared.options.seed, self.number, self.made);
        Wanted { practice, key, variant: 0, not_before_ms }
    }

    fn known(&mut self) -> Option<Known> {
        let known = self.shared.known.lock();
        let at = self.random.random_range(0..known.len().max(1));
        known.get(at).cloned()
    }

    async fn turn(&mut self) -> Result<(), HistoryError> {
        let shared = Arc::clone(&self.shared);
        let dice = self.random.random_range(0..100);
        let known = self.known();
        let wanted = match (dice, known) {
            (0..55, _) | (_, None) => (0..self.random.random_range(1..=4)).map(|_| self.fresh()).collect(),
            (55..62, Some(known)) => vec![known.wanted],
            (62..66, Some(known)) => {
                vec![Wanted { variant: known.wanted.variant + 1, ..known.wanted }]
            }
            (66..92, Some(known)) => return shared.get(self.number, known.id).await,
            (_, Some(known)) => {
                let parked = shared.parked.lock().pop_front();
                let is_parked = parked.is_some();
                let id = parked.unwrap_or(known.id);
                if !shared.cancel(self.number, id.clone()).await? && is_parked {
                    shared.parked.lock().push_back(id);
                }
                return Ok(());
            }
        };
        let mut open = shared.submit(self.number, wanted).await?;
        self.open.append(&mut open);
        Ok(())
    }

    async fn repeat(&mut self) -> Result<(), HistoryError> {
        tokio::time::sleep(AGAIN_AFTER).await;
        let open = std::mem::take(&mut self.open);
        self.open = self.shared.submit(self.number, open).await?;
        Ok(())
    }

    async fn run(mut self) -> Result<Vec<Wanted>, HistoryError> {
        let mut pace = tokio::time::interval(self.shared.options.pause);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.shared.stop.load(Ordering::Relaxed) {
            pace.tick().await;
            // Unsure of too much: first find out.
            if self.open.is_empty() || (self.open.len() < OPEN_MAX && self.random.random_ratio(1, 2)) {
                self.turn().await?;
            } else {
                self.repeat().await?;
            }
        }
        Ok(self.open)
    }
}

impl Load {
    pub fn start(
        client: &Client,
        practices: &[String],
        history: &Path,
        options: LoadOptions,
    ) -> Result<Self, HistoryError> {
        let shared = Arc::new(Shared {
            client: client.clone(),
            practices: practices.to_vec(),
            history: Writer::create(history)?,
            options,
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            youngest: Mutex::default(),
            missing: AtomicU64::new(0),
            known: Mutex::default(),
            parked: Mutex::default(),
        });
        let caller = |number: u32| {
            let random = StdRng::seed_from_u64(options.seed ^ (u64::from(number) << 32));
            Caller { shared: Arc::clone(&shared), number, random, made: 0, open: Vec::new() }
        };
        let callers = (1..=options.callers).map(|number| tokio::spawn(caller(number).run())).collect();
        Ok(Self { shared, callers })
    }

    /// Submits answered with an id so far, repetitions included.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Whether a call that began after `then` has acknowledged something. A call answers for all of its messages at once,
    /// at its deadline if one of them finds no leader, so an answer may tell of what was accepted seconds ago.
    pub fn acknowledged_since(&self, then: Instant) -> bool {
        self.shared.youngest.lock().is_some_and(|began| began > then)
    }

    /// Of each call.
    pub fn deadline(&self) -> Duration {
        self.shared.options.deadline
    }

    /// Acknowledged messages that a read did not find, so far.
    pub fn missing(&self) -> u64 {
        self.shared.missing.load(Ordering::Relaxed)
    }

    /// Stops the callers, then finds out what is open: repeats uncertain submits until they are answered, and takes
    /// back what is parked. The cluster must be well again.
    pub async fn finish(self) -> Result<u64, String> {
        let text = |e: HistoryError| e.to_string();
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut open = Vec::new();
        for caller in self.callers {
            open.extend(caller.await.map_err(|e| e.to_string())?.map_err(text)?);
        }
        let until = Instant::now() + RESOLVE_LIMIT;
        while !open.is_empty() {
            if Instant::now() >= until {
                return Err(format!("{} submits were not answered within {RESOLVE_LIMIT:?}", open.len()));
            }
            open = self.shared.submit(0, open).await.map_err(text)?;
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        let parked: Vec<String> = self.shared.parked.lock().drain(..).collect();
        for id in parked {
            while !self.shared.cancel(0, id.clone()).await.map_err(text)? {
                if Instant::now() >= until {
                    return Err(format!("{id} could not be taken back within {RESOLVE_LIMIT:?}"));
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
        Ok(self.shared.acknowledged.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_is_another_text_and_the_same_one_is_the_same_message() {
        let one = Wanted { practice: "p".into(), key: "k".into(), variant: 0, not_before_ms: None };
        let other = Wanted { variant: 1, ..one.clone() };
        assert_eq!(one.spec(), one.clone().spec());
        assert_eq!(one.spec().recipient, other.spec().recipient);
        assert_ne!(one.spec().body, other.spec().body);
        assert_ne!(one.call(), other.call());
        assert!(other.spec().body.len() <= 160, "one part: an arrival is one attempt");
    }

    #[test]
    fn only_what_certainly_had_no_effect_is_called_failed() {
        let of = |reason| why(&errors::status(reason, "")).0;
        assert!(of(ErrorReason::PartitionUnavailable) && !of(ErrorReason::Overloaded));
        assert!(why(&Status::unavailable("broken pipe")).0 && why(&Status::deadline_exceeded("")).0);
        assert!(!why(&Status::internal("x")).0);
    }
}
