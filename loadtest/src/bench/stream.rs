//! One connection of the generator: a StreamMessages call with prebuilt requests and a window.
//!
//! Owns: the window, the times of what is in flight, and the counting of answers.
//! Invariant: a request takes its place in the window before it is handed to the stream, and gives it back when its
//! answer is read, so at most `window` are in flight.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use carillon_proto::google::rpc::Status as RpcStatus;
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::{Request, Status, Streaming};

use super::codec::{Answer, RawCodec};
use super::feed::Feed;
use super::measure::Latency;
use super::pacer::Outlet;
use crate::client::{Client, reason_of_item};

const PATH: &str = "/carillon.v1.Messages/StreamMessages";
/// How often a held-back sender looks whether it may go on.
const HOLD_POLL: Duration = Duration::from_millis(2);

/// A request in flight.
struct Sent {
    intended: Instant,
    sent: Instant,
    messages: u64,
}

/// Lets the sender through, or holds it back: at most so many messages may be unfinished.
pub struct Backlog {
    pub unfinished_max: u64,
    pub accepted: AtomicU64,
    pub finished: AtomicU64,
}

impl Backlog {
    pub fn new(unfinished_max: u64) -> Self {
        Self { unfinished_max, accepted: AtomicU64::new(0), finished: AtomicU64::new(0) }
    }

    pub fn unfinished(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed).saturating_sub(self.finished.load(Ordering::Relaxed))
    }

    fn is_full(&self) -> bool {
        self.unfinished() >= self.unfinished_max
    }
}

/// What all connections of a run share.
pub struct Shared {
    pub feed: Mutex<Feed>,
    pub next_batch: AtomicU64,
    pub batch: usize,
    pub window: usize,
    /// Samples of requests intended earlier are left out.
    pub measure_from: Instant,
    pub send_until: Instant,
    pub stop: AtomicBool,
    pub backlog: Backlog,
}

/// What one connection saw.
#[derive(Default)]
pub struct Seen {
    /// From the intended time to the answer.
    pub response: Latency,
    /// From the time of sending to the answer.
    pub service: Latency,
    pub accepted: u64,
    /// Accepted within the measured time.
    pub accepted_measured: u64,
    pub refused: BTreeMap<String, u64>,
}

impl Seen {
    pub fn add(&mut self, other: &Self) {
        self.response.add(&other.response);
        self.service.add(&other.service);
        self.accepted += other.accepted;
        self.accepted_measured += other.accepted_measured;
        for (reason, count) in &other.refused {
            *self.refused.entry(reason.clone()).or_insert(0) += count;
        }
    }
}

/// The sending half, used by the pacer or by the connection itself.
#[derive(Clone)]
pub struct Sender {
    requests: mpsc::Sender<Bytes>,
    in_flight: Arc<AtomicUsize>,
    sent: Arc<Mutex<HashMap<u64, Sent>>>,
    shared: Arc<Shared>,
}

impl Outlet for Sender {
    fn has_room(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) < self.shared.window
    }

    /// Sends a new batch.
    fn send(&self, intended: Instant) -> bool {
        let shared = &self.shared;
        let id = shared.next_batch.fetch_add(1, Ordering::Relaxed);
        let request = shared.feed.lock().batch(id, shared.batch);
        let sent = Sent { intended, sent: Instant::now(), messages: shared.batch as u64 };
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        self.sent.lock().insert(id, sent);
        self.requests.try_send(request).is_ok()
    }
}

/// One stream, open.
pub struct Connection {
    pub sender: Sender,
    inbound: Streaming<Answer>,
    seen: Seen,
}

impl Connection {
    /// Opens a stream. Its first batch goes with it, because a server may answer only then.
    pub async fn open(client: &Client, shared: Arc<Shared>, deadline: Duration) -> Result<Self, Status> {
        let (requests, outbound) = mpsc::channel(shared.window);
        let sender = Sender { requests, in_flight: Arc::default(), sent: Arc::default(), shared };
        sender.send(Instant::now());
        let mut grpc = Grpc::new(client.channel()).max_decoding_message_size(16 << 20);
        grpc.ready().await.map_err(|e| Status::unavailable(format!("cannot connect: {e}")))?;
        let mut call = Request::new(ReceiverStream::new(outbound));
        call.set_timeout(deadline);
        let answer = grpc.streaming(call, PathAndQuery::from_static(PATH), RawCodec).await?;
        Ok(Self { sender, inbound: answer.into_inner(), seen: Seen::default() })
    }

    /// Keeps the window full until the end of the sending time (closed loop), then reads what is left.
    pub async fn run_closed(mut self) -> Result<Seen, Status> {
        let shared = self.sender.shared.clone();
        loop {
            let mut held = false;
            while Instant::now() < shared.send_until && self.sender.has_room() {
                held = shared.backlog.is_full();
                if held || !self.sender.send(Instant::now()) {
                    break;
                }
            }
            let empty = self.sender.in_flight.load(Ordering::Acquire) == 0;
            if empty && Instant::now() >= shared.send_until {
                return Ok(self.seen);
            }
            tokio::select! {
                answer = self.inbound.message() => self.take(answer?)?,
                () = tokio::time::sleep(HOLD_POLL), if held => {}
            }
        }
    }

    /// Reads answers while somebody else sends; ends when the pacer has stopped and everything is answered.
    pub async fn run_open(mut self) -> Result<Seen, Status> {
        loop {
            let stopped = self.sender.shared.stop.load(Ordering::Acquire);
            if stopped && self.sender.in_flight.load(Ordering::Acquire) == 0 {
                return Ok(self.seen);
            }
            tokio::select! {
                answer = self.inbound.message() => self.take(answer?)?,
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
        }
    }

    fn take(&mut self, answer: Option<Answer>) -> Result<(), Status> {
        let answer = answer.ok_or_else(|| Status::unavailable("the server ended the stream"))?;
        let now = Instant::now();
        let Some(sent) = self.sender.sent.lock().remove(&answer.batch_id) else {
            return Err(Status::internal("an answer to a batch that is not in flight"));
        };
        self.sender.in_flight.fetch_sub(1, Ordering::AcqRel);
        let accepted = answer.results.iter().filter(|result| result.accepted.is_some()).count() as u64;
        let shared = &self.sender.shared;
        shared.backlog.accepted.fetch_add(accepted, Ordering::Relaxed);
        self.seen.accepted += accepted;
        if now >= shared.measure_from && now < shared.send_until {
            self.seen.accepted_measured += accepted;
        }
        if sent.intended >= shared.measure_from {
            self.seen.response.record(now - sent.intended, sent.messages);
            self.seen.service.record(now - sent.sent, sent.messages);
        }
        if accepted < sent.messages {
            self.count_refused(&answer, sent.messages - accepted);
        }
        Ok(())
    }

    fn count_refused(&mut self, answer: &Answer, count: u64) {
        let reason = |octets: &Bytes| {
            RpcStatus::decode(octets.clone()).map_or("undecodable".to_owned(), |error| reason_of_item(&error))
        };
        let mut left = count;
        for error in answer.results.iter().filter_map(|result| result.error.as_ref()) {
            *self.seen.refused.entry(reason(error)).or_insert(0) += 1;
            left = left.saturating_sub(1);
        }
        if left > 0 {
            let whole = answer.error.as_ref().map_or("no result".to_owned(), reason);
            *self.seen.refused.entry(whole).or_insert(0) += left;
        }
    }
}
