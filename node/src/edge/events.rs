//! The event feed of one partition: event blocks from table E, filtered for a tenant, in order, from an index on.
//!
//! The index of an entry is the same on every replica, so a cursor holds across leader changes. After a restore the indexes of
//! events go on above all that the old cluster can have given out (`core/restore.rs`), so it holds then, too.
use super::view::timestamp;
use crate::engine::NodeHandle;
use carillon_core::meta::MetaView;
use carillon_core::query;
use carillon_proto::MessageId;
use carillon_proto::errors;
use carillon_proto::internal::{EventBlock, NodeWatchRequest, NodeWatchResponse, NotLeader};
use carillon_proto::public::{ErrorReason, Event};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Event blocks read at a time.
const BLOCKS_MAX: usize = 64;
/// Responses waiting for a slow reader; beyond it the feed waits.
const RESPONSES_MAX: usize = 16;
/// An empty response with the newest index at least this often.
const HEARTBEAT: Duration = Duration::from_secs(5);

pub type WatchStream = ReceiverStream<Result<NodeWatchResponse, Status>>;

/// Starts the feed; it ends when the reader goes away or this node stops leading the partition.
pub fn watch(handle: NodeHandle, request: NodeWatchRequest) -> WatchStream {
    let (sender, receiver) = mpsc::channel(RESPONSES_MAX);
    tokio::spawn(async move {
        if let Err(status) = feed(&handle, &request, &sender).await {
            drop(sender.send(Err(status)).await);
        }
    });
    ReceiverStream::new(receiver)
}

async fn feed(
    handle: &NodeHandle,
    request: &NodeWatchRequest,
    sender: &mpsc::Sender<Result<NodeWatchResponse, Status>>,
) -> Result<(), Status> {
    let partition = request.partition;
    if partition == 0 || partition > handle.partitions() {
        return Err(super::internal("no such partition"));
    }
    let mut applied = handle.applied(partition);
    let now = *applied.borrow() + base(handle, partition)?.unwrap_or_default();
    let mut after = if request.from_now { now } else { request.after_index };
    if !request.from_now && after != 0 {
        let tables = handle.local_tables(partition).map_err(|_| super::internal("no such replica"))?;
        let retired = query::retention(&*tables).map_err(|_| super::internal("unreadable record"))?;
        if after < retired.events_index {
            let what = "events after this cursor were dropped after their retention";
            return Err(errors::status(ErrorReason::InvalidToken, what));
        }
    }
    let mut first = true;
    loop {
        if !handle.is_leader(partition) {
            let leader_hint = handle.leadership(partition).leader;
            let gone =
                NodeWatchResponse { not_leader: Some(NotLeader { leader_hint }), ..Default::default() };
            drop(sender.send(Ok(gone)).await);
            return Ok(());
        }
        let newest = *applied.borrow_and_update();
        // Half of a restore is not for readers.
        let newest = base(handle, partition)?.map_or(after, |base| base + newest);
        let mut heartbeat = std::mem::take(&mut first);
        while after < newest {
            let (events, index) = page(handle, request, after, newest)?;
            after = index;
            if !events.is_empty() {
                heartbeat = false;
                let response = NodeWatchResponse { events, index, not_leader: None };
                if sender.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
        }
        if heartbeat {
            let response = NodeWatchResponse { index: after, ..Default::default() };
            if sender.send(Ok(response)).await.is_err() {
                return Ok(());
            }
        }
        match tokio::time::timeout(HEARTBEAT, applied.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ok(()),
            Err(_) => first = true,
        }
        if sender.is_closed() {
            return Ok(());
        }
    }
}

/// What is added to the index of an entry; `None` while a restore is under way.
fn base(handle: &NodeHandle, partition: u32) -> Result<Option<u64>, Status> {
    let tables = handle.local_tables(partition).map_err(|_| super::internal("no such replica"))?;
    let restore = query::restore(&*tables).map_err(|_| super::internal("unreadable record"))?;
    Ok(match restore {
        None => Some(0),
        Some(restore) => restore.done.then_some(restore.events_base),
    })
}

/// Events of the next blocks, and the index up to which everything was looked at.
fn page(
    handle: &NodeHandle,
    request: &NodeWatchRequest,
    after: u64,
    newest: u64,
) -> Result<(Vec<Event>, u64), Status> {
    let tables = handle.local_tables(request.partition).map_err(|_| super::internal("no such replica"))?;
    let blocks =
        query::events_after(&*tables, after, BLOCKS_MAX).map_err(|_| super::internal("unreadable events"))?;
    let full = blocks.len() == BLOCKS_MAX;
    let last = blocks.last().map_or(newest, |(index, _)| *index);
    let meta = handle.meta();
    let events = blocks.into_iter().flat_map(|(_, block)| public(&meta, request, block)).collect();
    Ok((events, if full { last } else { newest.max(last) }))
}

fn public(meta: &MetaView, request: &NodeWatchRequest, block: EventBlock) -> Vec<Event> {
    let time = timestamp(block.now_ms);
    let events = block.events.into_iter().filter_map(|record| {
        let practice = meta.practices.get(&record.practice_no)?;
        let wanted = practice.tenant == request.tenant
            && (request.practice_no == 0 || request.practice_no == record.practice_no);
        let id = MessageId::from_bytes(&record.message_id).ok()?;
        wanted.then(|| Event {
            message_id: id.to_string(),
            practice: practice.practice.clone(),
            state: record.state,
            waiting_reason: record.waiting_reason,
            time,
            attempt: record.attempt,
            outcome: record.outcome,
            state_detail: record.detail,
        })
    });
    events.collect()
}
