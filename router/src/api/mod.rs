//! The public service. Each method group has its file; this one holds what they share and dispatches.
//!
//! Invariant: every method calls [`authorize`] first, and every unary one requires a deadline.
mod appointments;
mod cancel;
mod explain;
mod get;
mod list;
mod series;
mod stream;
mod submit;
mod watch;

use crate::auth::{self, Caller};
use crate::deadline::Deadline;
use crate::map::MapCache;
use crate::metrics;
use carillon_proto::errors;
use carillon_proto::public::messages_server::Messages;
use carillon_proto::public::{
    CancelMessagesRequest, CancelMessagesResponse, ErrorReason, ExplainMessageRequest,
    ExplainMessageResponse, GetMessageRequest, ListMessagesRequest, ListMessagesResponse, Message,
    StreamMessagesRequest, StreamMessagesResponse, SubmitMessagesRequest, SubmitMessagesResponse,
    WatchEventsRequest, WatchEventsResponse,
};
use futures::FutureExt as _;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

/// Memory is counted in these.
const BUFFER_UNIT_BYTES: usize = 1024;
/// What a message takes in memory besides its strings.
const MESSAGE_OVERHEAD_BYTES: usize = 512;
/// Partitions that all `WatchEvents` streams follow together. In the worst case one node leads them all, and a
/// connection has about this many streams.
const FOLLOWED_MAX: u32 = 1_000;
/// A unary submit waits this long for memory before it is told to come back.
const BUFFER_WAIT_MAX: Duration = Duration::from_secs(1);

/// What all calls share.
pub struct Shared {
    pub cluster_id: String,
    pub map: Arc<MapCache>,
    /// Memory for messages in flight, in units of [`BUFFER_UNIT_BYTES`].
    buffer: Arc<Semaphore>,
    watchers: Arc<Semaphore>,
    /// Cancelled when the process is asked to end: long-lived streams finish then.
    pub stopping: CancellationToken,
    /// Obey `submit::PANIC_LABEL`.
    lab: bool,
}

impl Shared {
    pub fn new(
        cluster_id: String,
        map: Arc<MapCache>,
        buffer_bytes_max: usize,
        stopping: CancellationToken,
        lab: bool,
    ) -> Self {
        let buffer = Arc::new(Semaphore::new(buffer_bytes_max / BUFFER_UNIT_BYTES));
        let watchers = Arc::new(Semaphore::new(FOLLOWED_MAX as usize));
        Self { cluster_id, map, buffer, watchers, stopping, lab }
    }

    /// Room for a watcher that follows so many partitions.
    fn watcher_place(&self, partitions: u32) -> Result<OwnedSemaphorePermit, Status> {
        let place = Arc::clone(&self.watchers).try_acquire_many_owned(partitions.min(FOLLOWED_MAX));
        place.map_err(|_| errors::status(ErrorReason::Overloaded, "the router has too many watchers"))
    }

    /// Room for a decoded request; waits until there is some.
    async fn room(&self, encoded_bytes: usize, messages: usize) -> OwnedSemaphorePermit {
        let bytes = encoded_bytes + messages * MESSAGE_OVERHEAD_BYTES;
        let units = u32::try_from(bytes / BUFFER_UNIT_BYTES + 1).unwrap_or(u32::MAX);
        Arc::clone(&self.buffer).acquire_many_owned(units).await.expect("the semaphore is never closed")
    }

    async fn room_soon(
        &self,
        encoded_bytes: usize,
        messages: usize,
        deadline: Deadline,
    ) -> Result<OwnedSemaphorePermit, Status> {
        let wait = deadline.remaining().min(BUFFER_WAIT_MAX);
        tokio::time::timeout(wait, self.room(encoded_bytes, messages))
            .await
            .map_err(|_| errors::status(ErrorReason::Overloaded, "the router holds too many messages"))
    }

    fn authorize<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        auth::authorize(&self.cluster_id, request)
    }

    /// Refuses a practice that is named and is not this tenant's. Comes before every other check of a call, so that the answer is the
    /// same whether the practice is somebody else's or nobody's, and whatever else is wrong. Gives the number of partitions.
    async fn own_practice(&self, tenant: &str, practice: &str, deadline: Deadline) -> Result<u32, Status> {
        let partitions = self.partitions(deadline).await?;
        if !practice.is_empty() && self.map.load().practice(tenant, practice).is_none() {
            return Err(crate::validate::practice_not_found());
        }
        Ok(partitions)
    }

    /// The number of partitions, once it is known.
    async fn partitions(&self, deadline: Deadline) -> Result<u32, Status> {
        loop {
            match self.map.load().partitions() {
                0 if deadline.has_passed() => return Err(crate::route::unavailable()),
                0 => self.map.pause(Duration::from_millis(200), deadline).await,
                known => return Ok(known),
            }
        }
    }
}

/// Milliseconds since the epoch.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The service.
#[derive(Clone)]
pub struct Api(pub Arc<Shared>);

async fn observed<T>(
    method: &'static str,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<Response<T>, Status> {
    let began = Instant::now();
    // A panic would otherwise take every other call on the client's connection with it.
    let result = AssertUnwindSafe(call).catch_unwind().await;
    let result = result
        .unwrap_or_else(|_| Err(errors::status(ErrorReason::Internal, "the call could not be processed")));
    metrics::request(method, result.as_ref().map_or_else(Status::code, |_| Code::Ok), began.elapsed());
    result.map(Response::new)
}

#[tonic::async_trait]
impl Messages for Api {
    async fn submit_messages(
        &self,
        request: Request<SubmitMessagesRequest>,
    ) -> Result<Response<SubmitMessagesResponse>, Status> {
        observed("SubmitMessages", submit::unary(&self.0, request)).await
    }

    type StreamMessagesStream = ReceiverStream<Result<StreamMessagesResponse, Status>>;

    async fn stream_messages(
        &self,
        request: Request<Streaming<StreamMessagesRequest>>,
    ) -> Result<Response<Self::StreamMessagesStream>, Status> {
        observed("StreamMessages", stream::open(&self.0, request)).await
    }

    async fn get_message(&self, request: Request<GetMessageRequest>) -> Result<Response<Message>, Status> {
        observed("GetMessage", get::get(&self.0, request)).await
    }

    async fn explain_message(
        &self,
        request: Request<ExplainMessageRequest>,
    ) -> Result<Response<ExplainMessageResponse>, Status> {
        observed("ExplainMessage", explain::explain(&self.0, request)).await
    }

    async fn list_messages(
        &self,
        request: Request<ListMessagesRequest>,
    ) -> Result<Response<ListMessagesResponse>, Status> {
        observed("ListMessages", list::list(&self.0, request)).await
    }

    async fn cancel_messages(
        &self,
        request: Request<CancelMessagesRequest>,
    ) -> Result<Response<CancelMessagesResponse>, Status> {
        observed("CancelMessages", cancel::cancel(&self.0, request)).await
    }

    type WatchEventsStream = ReceiverStream<Result<WatchEventsResponse, Status>>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        observed("WatchEvents", watch::open(&self.0, request)).await
    }
}
