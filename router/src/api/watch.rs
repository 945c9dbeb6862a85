//! `WatchEvents`: the events of all partitions (or of a practice's one) merged into one stream with one cursor.
//!
//! Invariants
//!  - A cursor covers every partition and only events that were sent before it or with it. So a stream that starts "now"
//!    says nothing until every partition has told where now is; if that takes too long it ends with UNAVAILABLE.
//!  - Bounded: followers stop reading when the client does.
use super::Shared;
use super::stream::stopping;
use crate::deadline::Deadline;
use crate::follow::{Follower, Part};
use crate::metrics;
use crate::route;
use crate::token::{Cursor, Scope};
use crate::validate;
use carillon_proto::errors;
use carillon_proto::public::{ErrorReason, Event, WatchEventsRequest, WatchEventsResponse};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

/// The map must be known, and every partition positioned, in this time.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Without events a cursor is sent this often; promised are 15 s.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Answers that the client has not taken yet.
const ANSWERS_MAX: usize = 8;
/// Parts that are not merged yet, besides one for each partition.
const PARTS_MAX: usize = 64;
/// Events of one answer; one part more may come on top.
const EVENTS_MAX: usize = 1_000;
/// Events held back until every partition is positioned.
const HELD_MAX: usize = 10_000;

type Answers = mpsc::Sender<Result<WatchEventsResponse, Status>>;

pub(super) async fn open(
    shared: &Arc<Shared>,
    request: Request<WatchEventsRequest>,
) -> Result<ReceiverStream<Result<WatchEventsResponse, Status>>, Status> {
    let caller = shared.authorize(&request)?;
    let until = Deadline::of_stream(request.metadata());
    let WatchEventsRequest { practice, cursor } = request.into_inner();
    let partitions = shared.partitions(Deadline::within(START_TIMEOUT).earlier(caller.deadline)).await?;
    let (first, last, practice_no) = if practice.is_empty() {
        (1, partitions, 0)
    } else {
        let map = shared.map.load();
        let found = map.practice(caller.tenant(), &practice).ok_or_else(validate::practice_not_found)?;
        (found.partition, found.partition, found.number)
    };
    let scope = Scope::of_watch(caller.tenant(), &practice);
    let width = last - first + 1;
    let indexes: Vec<Option<u64>> = match cursor.as_str() {
        "" => vec![None; width as usize],
        "start" => vec![Some(0); width as usize],
        text => Cursor::decode(text, scope, width)?.indexes.into_iter().map(Some).collect(),
    };
    let place = shared.watcher_place(width)?;
    let (parts_sender, parts) = mpsc::channel(PARTS_MAX + width as usize);
    let mut followers = JoinSet::new();
    for (partition, after) in (first..=last).zip(&indexes) {
        let follower = Follower {
            map: Arc::clone(&shared.map),
            tenant: caller.tenant().to_owned(),
            practice_no,
            partition,
            after: *after,
            parts: parts_sender.clone(),
        };
        followers.spawn(follower.run());
    }
    let (answers, receiver) = mpsc::channel(ANSWERS_MAX);
    let merge = Merge { first, scope, indexes, events: Vec::new(), parts, _followers: followers };
    tokio::spawn(run(Arc::clone(shared), until, merge, answers, place));
    Ok(ReceiverStream::new(receiver))
}

async fn run(
    shared: Arc<Shared>,
    until: Option<Deadline>,
    mut merge: Merge,
    answers: Answers,
    _place: OwnedSemaphorePermit,
) {
    let _open = metrics::stream_open("WatchEvents");
    let caller_gives_up = async {
        match until {
            Some(deadline) => tokio::time::sleep_until(deadline.answer_by()).await,
            None => std::future::pending().await,
        }
    };
    let last_word = tokio::select! {
        result = merge.forward(&answers) => result.err(),
        () = shared.stopping.cancelled() => Some(stopping()),
        () = answers.closed() => None,
        () = caller_gives_up => Some(deadline_exceeded()),
    };
    if let Some(status) = last_word {
        let _client_gone = answers.send(Err(status)).await;
    }
}

/// In time for the caller to read it, so that it can tell the end of its own patience from a stream that broke.
fn deadline_exceeded() -> Status {
    errors::status(ErrorReason::DeadlineExceeded, "the deadline of the stream has come")
}

struct Merge {
    /// The partition of `indexes[0]`.
    first: u32,
    scope: Scope,
    indexes: Vec<Option<u64>>,
    /// Not sent yet.
    events: Vec<Event>,
    parts: mpsc::Receiver<Result<Part, Status>>,
    /// Aborted with the merge.
    _followers: JoinSet<()>,
}

impl Merge {
    /// Passes events on until the client is gone (`Ok`) or something ends the stream.
    async fn forward(&mut self, answers: &Answers) -> Result<(), Status> {
        self.position(Instant::now() + START_TIMEOUT).await?;
        let mut heartbeat_at = Instant::now();
        loop {
            let due = self.events.len() >= EVENTS_MAX || Instant::now() >= heartbeat_at;
            if due || (!self.events.is_empty() && self.parts.is_empty()) {
                if answers.send(Ok(self.answer())).await.is_err() {
                    return Ok(());
                }
                heartbeat_at = Instant::now() + HEARTBEAT;
            }
            match tokio::time::timeout_at(heartbeat_at, self.parts.recv()).await {
                Ok(Some(part)) => self.take(part?),
                Ok(None) => return Err(route::unavailable()),
                Err(_) => {}
            }
        }
    }

    /// Waits until every partition has a position.
    async fn position(&mut self, until: Instant) -> Result<(), Status> {
        while self.indexes.contains(&None) {
            let part = tokio::time::timeout_at(until, self.parts.recv()).await;
            let part = part.ok().flatten().ok_or_else(|| {
                errors::status(
                    ErrorReason::PartitionUnavailable,
                    "not every partition could be reached in time",
                )
            })?;
            self.take(part?);
            if self.events.len() > HELD_MAX {
                return Err(errors::status(
                    ErrorReason::Overloaded,
                    "too many events before the stream began",
                ));
            }
        }
        Ok(())
    }

    fn take(&mut self, part: Part) {
        let Some(index) = self.indexes.get_mut((part.partition - self.first) as usize) else { return };
        *index = Some(part.index);
        self.events.extend(part.events);
    }

    fn answer(&mut self) -> WatchEventsResponse {
        let indexes =
            self.indexes.iter().map(|index| index.expect("every partition was positioned")).collect();
        WatchEventsResponse {
            events: std::mem::take(&mut self.events),
            cursor: Cursor { indexes }.encode(self.scope),
        }
    }
}
