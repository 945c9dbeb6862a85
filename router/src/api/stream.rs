//! `StreamMessages`: batches in, one answer for each, out of order.
//!
//! Backpressure: at most [`BATCHES_MAX`] batches of a stream are in flight, and a batch holds its place until its answer was
//! taken by the transport. Beyond that the stream is not read, and HTTP/2 flow control stops the client.
use super::Shared;
use super::submit::accept;
use crate::auth::Caller;
use crate::deadline::{Deadline, STREAM_BATCH};
use crate::metrics;
use crate::undecoded;
use crate::validate::{self, ITEMS_MAX};
use carillon_proto::errors;
use carillon_proto::public::{ErrorReason, StreamMessagesRequest, StreamMessagesResponse};
use futures::FutureExt as _;
use prost::Message as _;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

/// Batches of one stream in flight.
const BATCHES_MAX: usize = 32;

type Answers = mpsc::Sender<Result<StreamMessagesResponse, Status>>;

#[allow(clippy::unused_async)]
pub(super) async fn open(
    shared: &Arc<Shared>,
    request: Request<Streaming<StreamMessagesRequest>>,
) -> Result<ReceiverStream<Result<StreamMessagesResponse, Status>>, Status> {
    let caller = Arc::new(shared.authorize(&request)?);
    let (answers, receiver) = mpsc::channel(BATCHES_MAX);
    tokio::spawn(pump(Arc::clone(shared), caller, request.into_inner(), answers));
    Ok(ReceiverStream::new(receiver))
}

/// Reads batches until the client is done, gone, or we are asked to stop; then waits for those in flight.
async fn pump(
    shared: Arc<Shared>,
    caller: Arc<Caller>,
    mut batches: Streaming<StreamMessagesRequest>,
    answers: Answers,
) {
    let _open = metrics::stream_open("StreamMessages");
    let places = Arc::new(Semaphore::new(BATCHES_MAX));
    let last_word = loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        let batch = tokio::select! {
            batch = batches.message() => batch,
            () = answers.closed() => return,
            () = shared.stopping.cancelled() => break Some(stopping()),
        };
        let batch = match batch {
            Ok(Some(batch)) => batch,
            Ok(None) => break None,
            Err(status) => break Some(undecoded::explain(status)),
        };
        let room = shared.room(batch.encoded_len(), batch.messages.len()).await;
        let (shared, caller, answers) = (Arc::clone(&shared), Arc::clone(&caller), answers.clone());
        tokio::spawn(async move {
            let batch_id = batch.batch_id;
            // A panic must not leave the client waiting for this batch for ever.
            let answer = AssertUnwindSafe(answer(&shared, &caller, batch)).catch_unwind().await;
            let answer = answer.unwrap_or_else(|_| {
                whole(batch_id, &errors::status(ErrorReason::Internal, "the batch could not be processed"))
            });
            drop(room);
            let _client_gone = answers.send(Ok(answer)).await;
            drop(place);
        });
    };
    if let Some(status) = last_word {
        // An error ends the stream, so every answer goes first.
        let _all = places.acquire_many(BATCHES_MAX as u32).await;
        let _client_gone = answers.send(Err(status)).await;
    }
}

async fn answer(shared: &Shared, caller: &Caller, batch: StreamMessagesRequest) -> StreamMessagesResponse {
    let StreamMessagesRequest { batch_id, messages } = batch;
    if let Err(status) = validate::count(messages.len(), ITEMS_MAX) {
        return whole(batch_id, &status);
    }
    let deadline = Deadline::within(STREAM_BATCH).earlier(caller.deadline);
    if let Err(status) = shared.partitions(deadline).await {
        return whole(batch_id, &status);
    }
    let results = accept(shared, caller.tenant(), messages, deadline).await;
    StreamMessagesResponse { batch_id, results, error: None }
}

/// The batch as a whole was refused.
fn whole(batch_id: u64, status: &Status) -> StreamMessagesResponse {
    StreamMessagesResponse { batch_id, results: Vec::new(), error: Some(errors::to_rpc(status)) }
}

/// Why a long-lived stream ends when the router does.
pub(super) fn stopping() -> Status {
    errors::status(ErrorReason::PartitionUnavailable, "this router is stopping, connect to another one")
}
