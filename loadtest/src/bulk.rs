//! Bulk submit over StreamMessages: bounded batches in flight, everything unacknowledged sent again.
//!
//! Owns: [`submit_all`], and [`submit_one`] for batches without a stream. A batch leaves it exactly once, complete: with one final result for each of its messages.
//! Invariants: at most [`WINDOW_MAX`] requests in flight on the stream; a message is repeated only with its own
//! idempotency key and only after an answer that allows it (or none); after a break, what was in flight goes first.
//! Bounds: the window, plus the batches that wait for a repetition, which count against the window too.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use carillon_proto::errors;
use carillon_proto::google::rpc::Status as RpcStatus;
use carillon_proto::public::submit_result::Result as Item;
use carillon_proto::public::{
    AcceptedMessage, MessageSpec, StreamMessagesRequest, StreamMessagesResponse, SubmitMessagesRequest,
};
use carillon_proto::transport::Cause;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use crate::client::{Backoff, Client, is_retryable, retry_delay, why};

/// What the API allows on one stream.
pub const WINDOW_MAX: usize = 32;

/// A bulk submit that stopped.
#[derive(Debug, thiserror::Error)]
pub enum BulkError {
    #[error("the stream was refused: {}", why(.0))]
    Refused(Box<Status>),
    #[error("no batch was acknowledged for {0:?}")]
    Stuck(Duration),
    #[error("the reader of the results is gone")]
    NoReader,
}

/// How patient the submit is.
#[derive(Clone, Copy, Debug)]
pub struct BulkConfig {
    /// Requests in flight, 1 to [`WINDOW_MAX`].
    pub window: usize,
    /// Deadline of one stream; it is opened again afterwards.
    pub stream_deadline: Duration,
    /// A request not answered for this long breaks the stream.
    pub answer_timeout: Duration,
    /// Without any progress for this long it gives up.
    pub patience: Duration,
}

impl Default for BulkConfig {
    fn default() -> Self {
        Self {
            window: 8,
            stream_deadline: Duration::from_secs(600),
            answer_timeout: Duration::from_secs(15),
            patience: Duration::from_secs(60),
        }
    }
}

/// Messages that belong together; `tag` is the caller's.
pub struct Batch {
    pub tag: u64,
    pub messages: Vec<MessageSpec>,
}

/// A batch with its results.
pub struct Answered {
    pub batch: Batch,
    /// One for each message, in order.
    pub results: Vec<Result<AcceptedMessage, RpcStatus>>,
}

/// What it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BulkStats {
    pub streams_opened: u64,
    pub requests_sent: u64,
    /// Messages sent once more, for whatever reason.
    pub messages_repeated: u64,
}

/// A batch on its way.
struct Open {
    batch: Batch,
    results: Vec<Option<Result<AcceptedMessage, RpcStatus>>>,
    /// Messages without a final result.
    waiting: Vec<usize>,
    sent_at: Instant,
    repeat_at: Instant,
    backoff: Backoff,
    sent_before: bool,
}

impl Open {
    fn new(batch: Batch) -> Self {
        let (now, count) = (Instant::now(), batch.messages.len());
        let (results, waiting) = ((0..count).map(|_| None).collect(), (0..count).collect());
        let backoff = Backoff::default();
        Self { batch, results, waiting, sent_at: now, repeat_at: now, backoff, sent_before: false }
    }

    fn request(&mut self, batch_id: u64) -> StreamMessagesRequest {
        self.sent_at = Instant::now();
        let messages = self.waiting.iter().map(|at| self.batch.messages[*at].clone()).collect();
        StreamMessagesRequest { batch_id, messages }
    }

    /// Takes an answer in; true when the batch is complete.
    fn answer(&mut self, response: StreamMessagesResponse) -> bool {
        if let Some(error) = response.error {
            return self.refuse(error);
        }
        let mut asked = None;
        let mut results = response.results.into_iter();
        let waiting = std::mem::take(&mut self.waiting);
        for at in waiting {
            match results.next().and_then(|result| result.result) {
                Some(Item::Accepted(accepted)) => self.results[at] = Some(Ok(accepted)),
                Some(Item::Error(error)) if !item_is_retryable(&error) => self.results[at] = Some(Err(error)),
                Some(Item::Error(error)) => {
                    asked = asked.max(retry_delay(&errors::from_rpc(&error)));
                    self.waiting.push(at);
                }
                // A missing result says nothing: ask again.
                None => self.waiting.push(at),
            }
        }
        self.repeat_at = Instant::now() + self.backoff.next(asked);
        self.waiting.is_empty()
    }

    /// The whole request was refused.
    fn refuse(&mut self, error: RpcStatus) -> bool {
        if item_is_retryable(&error) {
            let asked = retry_delay(&errors::from_rpc(&error));
            self.repeat_at = Instant::now() + self.backoff.next(asked);
            return false;
        }
        for at in std::mem::take(&mut self.waiting) {
            self.results[at] = Some(Err(error.clone()));
        }
        true
    }

    fn finish(self) -> Answered {
        let results = self.results.into_iter().map(|r| r.expect("every message has its result")).collect();
        Answered { batch: self.batch, results }
    }
}

/// An item may have been accepted after DEADLINE_EXCEEDED too; its key makes the repetition safe.
fn item_is_retryable(error: &RpcStatus) -> bool {
    let code = Code::from_i32(error.code);
    is_retryable(code) || code == Code::DeadlineExceeded
}

/// A stream that ends so will end so again.
fn is_final(status: &Status) -> bool {
    if Cause::of(status).is_some_and(|cause| cause.is_permanent()) {
        return true;
    }
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::FailedPrecondition
            | Code::NotFound
    )
}

/// One batch over SubmitMessages, repeated like on a stream. Messages without an answer when patience ends have the last
/// error as their result.
pub async fn submit_one(client: &Client, config: &BulkConfig, batch: Batch) -> Answered {
    let (mut open, until) = (Open::new(batch), Instant::now() + config.patience);
    loop {
        let messages = open.request(0).messages;
        let mut call = Request::new(SubmitMessagesRequest { messages, validate_only: false });
        call.set_timeout(config.answer_timeout);
        let (results, error) = match client.messages().submit_messages(call).await {
            Ok(answer) => (answer.into_inner().results, None),
            Err(status) => (Vec::new(), Some(errors::to_rpc(&status))),
        };
        if open.answer(StreamMessagesResponse { batch_id: 0, results, error: error.clone() }) {
            return open.finish();
        }
        if open.repeat_at >= until {
            let error =
                error.unwrap_or_else(|| errors::to_rpc(&Status::unavailable("refused until patience ended")));
            for at in std::mem::take(&mut open.waiting) {
                open.results[at] = Some(Err(error.clone()));
            }
            return open.finish();
        }
        tokio::time::sleep_until(open.repeat_at).await;
    }
}

struct Submitter {
    client: Client,
    config: BulkConfig,
    output: mpsc::Sender<Answered>,
    in_flight: HashMap<u64, Open>,
    /// To be sent (again), the most urgent first.
    waiting: VecDeque<Open>,
    next_id: u64,
    progress_at: Instant,
    backoff: Backoff,
    stats: BulkStats,
}

/// Why one stream is over.
enum Over {
    Done,
    Broken(Option<Status>),
}

/// Submits every batch that comes out of `input` and puts it into `output` with its results. Returns when `input` is
/// closed and everything is answered.
pub async fn submit_all(
    client: Client,
    config: BulkConfig,
    mut input: mpsc::Receiver<Batch>,
    output: mpsc::Sender<Answered>,
) -> Result<BulkStats, BulkError> {
    let mut submitter = Submitter {
        client,
        config: BulkConfig { window: config.window.clamp(1, WINDOW_MAX), ..config },
        output,
        in_flight: HashMap::new(),
        waiting: VecDeque::new(),
        next_id: 1,
        progress_at: Instant::now(),
        backoff: Backoff::default(),
        stats: BulkStats::default(),
    };
    loop {
        // Nothing is opened before there is something to send.
        if submitter.waiting.is_empty() {
            match input.recv().await {
                Some(batch) => submitter.waiting.push_back(Open::new(batch)),
                None => return Ok(submitter.stats),
            }
            submitter.progress_at = Instant::now();
        }
        match submitter.stream(&mut input).await? {
            Over::Done => return Ok(submitter.stats),
            Over::Broken(status) => submitter.broken(status).await?,
        }
    }
}

impl Submitter {
    async fn open(
        &mut self,
    ) -> Result<(mpsc::Sender<StreamMessagesRequest>, Streaming<StreamMessagesResponse>), Status> {
        let (requests, outbound) = mpsc::channel(self.config.window);
        let first = self.waiting.pop_front();
        if let Some(open) = first {
            self.send(&requests, open);
        }
        let mut call = Request::new(ReceiverStream::new(outbound));
        call.set_timeout(self.config.stream_deadline);
        self.stats.streams_opened += 1;
        let opening = async { self.client.messages().stream_messages(call).await };
        match tokio::time::timeout(self.config.answer_timeout, opening).await {
            Ok(opened) => Ok((requests, opened?.into_inner())),
            Err(_) => Err(Status::unavailable("the stream was not opened in time")),
        }
    }

    /// Sends what of a batch is not answered. The channel has room for the whole window, so a failure means that the
    /// stream is gone; the batch stays in flight and is taken back with the others.
    fn send(&mut self, requests: &mpsc::Sender<StreamMessagesRequest>, mut open: Open) {
        let id = self.next_id;
        self.next_id += 1;
        self.stats.requests_sent += 1;
        if open.sent_before {
            self.stats.messages_repeated += open.waiting.len() as u64;
        }
        open.sent_before = true;
        let _taken_back_later = requests.try_send(open.request(id));
        self.in_flight.insert(id, open);
    }

    async fn stream(&mut self, input: &mut mpsc::Receiver<Batch>) -> Result<Over, BulkError> {
        let (requests, mut inbound) = match self.open().await {
            Ok(opened) => opened,
            Err(status) => return Ok(Over::Broken(Some(status))),
        };
        let mut ended = false;
        loop {
            self.send_due(&requests);
            if ended && self.in_flight.is_empty() && self.waiting.is_empty() {
                return Ok(Over::Done);
            }
            let room = self.in_flight.len() + self.waiting.len() < self.config.window;
            let alarm = self.next_alarm();
            tokio::select! {
                answer = inbound.message() => match answer {
                    Ok(Some(response)) => self.answered(response).await?,
                    Ok(None) => return Ok(Over::Broken(None)),
                    Err(status) => return Ok(Over::Broken(Some(status))),
                },
                batch = input.recv(), if room && !ended => match batch {
                    Some(batch) => self.waiting.push_back(Open::new(batch)),
                    None => ended = true,
                },
                () = tokio::time::sleep_until(alarm) => {
                    if self.oldest_sent().is_some_and(|at| at.elapsed() >= self.config.answer_timeout) {
                        return Ok(Over::Broken(Some(Status::unavailable("a batch was not answered in time"))));
                    }
                }
            }
        }
    }

    fn oldest_sent(&self) -> Option<Instant> {
        self.in_flight.values().map(|open| open.sent_at).min()
    }

    /// When something is to be done without anything happening.
    fn next_alarm(&self) -> Instant {
        let timeout = self.oldest_sent().map(|at| at + self.config.answer_timeout);
        let repeat = self.waiting.iter().map(|open| open.repeat_at).min();
        [timeout, repeat]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or_else(|| Instant::now() + Duration::from_secs(60))
    }

    fn send_due(&mut self, requests: &mpsc::Sender<StreamMessagesRequest>) {
        let now = Instant::now();
        for _ in 0..self.waiting.len() {
            let Some(open) = self.waiting.pop_front() else { return };
            if open.repeat_at <= now && self.in_flight.len() < self.config.window {
                self.send(requests, open);
            } else {
                self.waiting.push_back(open);
            }
        }
    }

    async fn answered(&mut self, response: StreamMessagesResponse) -> Result<(), BulkError> {
        // An answer to something unknown cannot be used; the timeout takes care of what it meant.
        let Some(mut open) = self.in_flight.remove(&response.batch_id) else { return Ok(()) };
        if !open.answer(response) {
            self.waiting.push_back(open);
            return Ok(());
        }
        self.progress_at = Instant::now();
        self.backoff.reset();
        self.output.send(open.finish()).await.map_err(|_| BulkError::NoReader)
    }

    /// Takes back what was in flight, in its old order, and waits a little.
    async fn broken(&mut self, status: Option<Status>) -> Result<(), BulkError> {
        if let Some(status) = status.as_ref().filter(|status| is_final(status)) {
            return Err(BulkError::Refused(Box::new(status.clone())));
        }
        if self.progress_at.elapsed() >= self.config.patience {
            return Err(BulkError::Stuck(self.config.patience));
        }
        let code = status.as_ref().map(Status::code);
        tracing::info!(?code, unanswered = self.in_flight.len(), "bulk stream broke; sending again");
        let mut back: Vec<(u64, Open)> = self.in_flight.drain().collect();
        back.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        for (_, mut open) in back {
            open.repeat_at = Instant::now();
            self.waiting.push_front(open);
        }
        let delay = self.backoff.next(status.as_ref().and_then(retry_delay));
        tokio::time::sleep(delay).await;
        Ok(())
    }
}
