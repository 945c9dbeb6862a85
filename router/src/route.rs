//! Calls to the leader of one partition that may be repeated at will: get, list, cancel.
use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::map::MapCache;
use crate::metrics;
use crate::verdict::{self, Verdict};
use carillon_proto::errors;
use carillon_proto::internal::NotLeader;
use carillon_proto::internal::node_client::NodeClient;
use carillon_proto::public::ErrorReason;
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Status};

const PAUSE_MS: std::ops::RangeInclusive<u64> = 20..=200;
/// A call to a node that lost the leadership may still answer; it gets this long.
const GRACE: Duration = Duration::from_millis(250);
const HINTS_MAX: u32 = 3;

/// What a node said.
pub enum Reply<T> {
    Done(T),
    NotLeader(NotLeader),
}

/// Calls the leader of `partition` until it answers or the deadline is near. `call` must be safe to repeat.
pub async fn on_leader<T, F, C>(
    map: &MapCache,
    partition: u32,
    method: &'static str,
    deadline: Deadline,
    call: C,
) -> Result<T, Status>
where
    C: Fn(NodeClient<Channel>) -> F,
    F: Future<Output = Result<Reply<T>, Status>>,
{
    let mut backoff = Backoff::new(PAUSE_MS);
    let mut hints = 0;
    while !deadline.has_passed() {
        let snapshot = map.load();
        let Some(node) = snapshot.leader(partition) else {
            metrics::retry("no_leader");
            map.pause(backoff.next_pause(), deadline).await;
            continue;
        };
        let began = Instant::now();
        let partitions = [partition];
        let moved = async {
            map.leadership_moved(node.node_id(), &partitions).await;
            tokio::time::sleep(GRACE).await;
        };
        let reply = tokio::select! {
            biased;
            reply = call(node.client()) => reply,
            () = tokio::time::sleep_until(deadline.answer_by()) => break,
            () = moved => continue,
        };
        metrics::node_call(method, began.elapsed());
        match reply {
            Ok(Reply::Done(answer)) => return Ok(answer),
            Ok(Reply::NotLeader(hint)) => {
                metrics::retry("not_leader");
                if map.hint(partition, node.node_id(), hint.leader_hint) && hints < HINTS_MAX {
                    hints += 1;
                    continue;
                }
            }
            Err(status) => match verdict::of_status(&status, true) {
                Verdict::Refused(refusal) => return Err(errors::from_rpc(&refusal)),
                Verdict::NotProcessed(cause) => metrics::retry(cause),
                Verdict::Uncertain | Verdict::Broken => metrics::retry("uncertain"),
            },
        }
        map.pause(backoff.next_pause(), deadline).await;
    }
    Err(unavailable())
}

/// A request that tells the node how long we wait.
pub fn timed<T>(message: T, deadline: Deadline) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline.remaining());
    request
}

/// Nobody answered in time.
pub fn unavailable() -> Status {
    errors::status(ErrorReason::PartitionUnavailable, "the partition's leader could not be reached in time")
}
