//! Hands the messages of one request to the leaders of their partitions and hides what can be hidden.
//!
//! Messages are grouped by leader, one call for each leader, all at once. Every group goes its own way: what it could not
//! hand over is regrouped and tried again without waiting for the others.
//!
//! Rules
//!  - What provably was not processed (not the leader, not sent) is tried again until the deadline is near.
//!  - What may have been processed is tried again only if the message has an idempotency key; otherwise the caller is told
//!    that its fate is unknown.
//!  - A refusal by the leader is final.
//!  - Calls that break off are repeated [`BREAKS_MAX`] times in all: a message that breaks every node it reaches must not reach
//!    them all.
//!  - The deadline never fails the call: messages without an answer get PARTITION_UNAVAILABLE each.
//!
//! Bounds: at most one call for each node at a time for each group, and the messages of one request are in memory once.
use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::map::{ClusterMap, MapCache};
use crate::metrics;
use crate::nodes::{NodeLink, Outgoing};
use crate::verdict::{self, Verdict};
use carillon_proto::MessageId;
use carillon_proto::errors;
use carillon_proto::google::rpc::Status as RpcStatus;
use carillon_proto::internal::{
    IngestMessage, IngestResult, NodeSubmitRequest, NodeSubmitResponse, PartitionSubmit,
};
use carillon_proto::public::ErrorReason;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Pauses between attempts; a change of the map cuts them short.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 20..=200;
/// Hints followed without a pause, in one chain of attempts.
const HINTS_MAX: u32 = 3;
/// Calls of one chain that may break off; then its messages are given back. A killed leader costs one.
const BREAKS_MAX: u32 = 3;
/// A call to a node that lost the leadership may still answer; it gets this long.
const GRACE: Duration = Duration::from_millis(250);

/// What became of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    Accepted(Accepted),
    Refused(RpcStatus),
}

/// What a node said about a message that it accepted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accepted {
    pub message_id: MessageId,
    pub duplicate: bool,
    /// Known to nodes from feature level 5 on, and not for duplicates.
    pub first_send_ms: Option<u64>,
    pub expires_in_quiet_hours: bool,
}

/// Where a message came from, and whether an earlier attempt may have got through.
#[derive(Debug, Clone, Copy)]
struct Place {
    index: usize,
    maybe_accepted: bool,
}

/// Messages to hand over, by partition.
#[derive(Default)]
pub struct Pending {
    partitions: BTreeMap<u32, (Vec<IngestMessage>, Vec<Place>)>,
}

impl Pending {
    /// `index` is the place in the answer.
    pub fn add(&mut self, partition: u32, index: usize, message: IngestMessage) {
        self.put(partition, Place { index, maybe_accepted: false }, message);
    }

    fn put(&mut self, partition: u32, place: Place, message: IngestMessage) {
        let (messages, places) = self.partitions.entry(partition).or_default();
        messages.push(message);
        places.push(place);
    }

    fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }
}

/// One call: messages of partitions with the same leader.
#[derive(Default)]
struct Group {
    request: NodeSubmitRequest,
    places: Vec<Vec<Place>>,
}

/// How far a chain of attempts has come.
#[derive(Clone)]
struct Attempts {
    backoff: Backoff,
    hints: u32,
    breaks: u32,
}

enum Step {
    Answered {
        node: Arc<NodeLink>,
        outgoing: Arc<Outgoing>,
        places: Vec<Vec<Place>>,
        answer: Result<NodeSubmitResponse, Verdict>,
        attempts: Attempts,
    },
    Again {
        pending: Pending,
        attempts: Attempts,
    },
}

/// Hands over `pending` and returns one fate for each of `count` places; `None` where nothing was pending.
pub async fn submit(
    map: &MapCache,
    tenant: &str,
    pending: Pending,
    count: usize,
    deadline: Deadline,
) -> Vec<Option<Fate>> {
    let mut run = Run { map, tenant, deadline, fates: vec![None; count], steps: FuturesUnordered::new() };
    run.dispatch(pending, Attempts { backoff: Backoff::new(PAUSE_MS), hints: 0, breaks: 0 });
    while let Some(step) = run.steps.next().await {
        match step {
            Step::Again { pending, attempts } => run.dispatch(pending, attempts),
            Step::Answered { node, outgoing, places, answer, attempts } => {
                run.settle(&node, outgoing, places, answer, attempts);
            }
        }
    }
    run.fates
}

struct Run<'a> {
    map: &'a MapCache,
    tenant: &'a str,
    deadline: Deadline,
    fates: Vec<Option<Fate>>,
    steps: FuturesUnordered<BoxFuture<'a, Step>>,
}

impl<'a> Run<'a> {
    /// Starts a call for each leader; what has no leader waits.
    fn dispatch(&mut self, pending: Pending, attempts: Attempts) {
        if self.deadline.has_passed() {
            return self.give_up(pending);
        }
        let map = self.map.load();
        let (groups, leaderless) = self.group(&map, pending);
        for (node, group) in groups {
            let (attempts, cache, deadline) = (attempts.clone(), self.map, self.deadline);
            self.steps.push(Box::pin(async move {
                let outgoing = Outgoing::new(group.request);
                let answer = call(cache, &node, &outgoing, deadline).await;
                Step::Answered { node, outgoing, places: group.places, answer, attempts }
            }));
        }
        if !leaderless.is_empty() {
            metrics::retry("no_leader");
            self.wait(leaderless, attempts);
        }
    }

    fn group(&self, map: &ClusterMap, pending: Pending) -> (Vec<(Arc<NodeLink>, Group)>, Pending) {
        let mut groups: BTreeMap<u64, (Arc<NodeLink>, Group)> = BTreeMap::new();
        let mut leaderless = Pending::default();
        for (partition, (messages, places)) in pending.partitions {
            let Some(node) = map.leader(partition) else {
                leaderless.partitions.insert(partition, (messages, places));
                continue;
            };
            let (_, group) =
                groups.entry(node.node_id()).or_insert_with(|| (Arc::clone(node), Group::default()));
            group.request.partitions.push(PartitionSubmit { partition, messages });
            group.places.push(places);
        }
        for (_, group) in groups.values_mut() {
            group.request.tenant = self.tenant.to_owned();
        }
        (groups.into_values().collect(), leaderless)
    }

    /// Tries again after a pause, or as soon as the map changes.
    fn wait(&mut self, pending: Pending, mut attempts: Attempts) {
        let (map, deadline) = (self.map, self.deadline);
        self.steps.push(Box::pin(async move {
            map.pause(attempts.backoff.next_pause(), deadline).await;
            Step::Again { pending, attempts }
        }));
    }

    fn give_up(&mut self, pending: Pending) {
        for (_, places) in pending.partitions.into_values() {
            for place in places {
                self.fates[place.index] = Some(Fate::Refused(unavailable(place.maybe_accepted)));
            }
        }
    }

    /// Notes the fates in an answer and starts over with what is left.
    fn settle(
        &mut self,
        node: &NodeLink,
        outgoing: Arc<Outgoing>,
        places: Vec<Vec<Place>>,
        answer: Result<NodeSubmitResponse, Verdict>,
        mut attempts: Attempts,
    ) {
        let request = outgoing.take();
        let mut left = Pending::default();
        let mut hinted = false;
        match answer {
            Ok(response) if fits(&request, &response) => {
                let parts = request.partitions.into_iter().zip(response.partitions);
                for ((part, result), places) in parts.zip(places) {
                    if result.not_leader {
                        metrics::retry("not_leader");
                        hinted |= self.map.hint(part.partition, node.node_id(), result.leader_hint);
                        left.partitions.insert(part.partition, (part.messages, places));
                        continue;
                    }
                    let each = part.messages.into_iter().zip(result.results).zip(places);
                    for ((message, result), place) in each {
                        self.settle_one(part.partition, message, result, place, &mut left);
                    }
                }
            }
            Ok(_) => {
                tracing::error!(node = node.node_id(), "a node answered another request than was sent");
                let refusal =
                    errors::to_rpc(&errors::status(ErrorReason::Internal, "a node answered wrongly"));
                places
                    .iter()
                    .flatten()
                    .for_each(|p| self.fates[p.index] = Some(Fate::Refused(refusal.clone())));
            }
            Err(Verdict::Refused(refusal)) => {
                places
                    .iter()
                    .flatten()
                    .for_each(|p| self.fates[p.index] = Some(Fate::Refused(refusal.clone())));
            }
            Err(Verdict::NotProcessed(cause)) => {
                metrics::retry(cause);
                for (part, places) in request.partitions.into_iter().zip(places) {
                    left.partitions.insert(part.partition, (part.messages, places));
                }
            }
            Err(Verdict::Broken) if attempts.breaks + 1 >= BREAKS_MAX => {
                metrics::retry("broken_too_often");
                tracing::error!(
                    node = node.node_id(),
                    "calls with the same messages broke off again and again"
                );
                places.iter().flatten().for_each(|p| self.fates[p.index] = Some(Fate::Refused(broken())));
            }
            Err(verdict @ (Verdict::Broken | Verdict::Uncertain)) => {
                let broken = verdict == Verdict::Broken;
                attempts.breaks += u32::from(broken);
                metrics::retry(if broken { "broken" } else { "uncertain" });
                for (part, places) in request.partitions.into_iter().zip(places) {
                    for (message, place) in part.messages.into_iter().zip(places) {
                        self.uncertain(part.partition, message, place, &mut left);
                    }
                }
            }
        }
        if left.is_empty() {
        } else if hinted && attempts.hints < HINTS_MAX {
            attempts.hints += 1;
            self.steps.push(Box::pin(async move { Step::Again { pending: left, attempts } }));
        } else {
            self.wait(left, attempts);
        }
    }

    fn settle_one(
        &mut self,
        partition: u32,
        message: IngestMessage,
        result: IngestResult,
        place: Place,
        left: &mut Pending,
    ) {
        let fate = match (result.uncertain, result.error) {
            (true, _) => return self.uncertain(partition, message, place, left),
            (false, Some(error)) => match verdict::of_item(error) {
                Verdict::Refused(error) => Fate::Refused(error),
                Verdict::Uncertain | Verdict::Broken => {
                    return self.uncertain(partition, message, place, left);
                }
                Verdict::NotProcessed(cause) => {
                    metrics::retry(cause);
                    return left.put(partition, place, message);
                }
            },
            (false, None) => match MessageId::from_bytes(&result.message_id) {
                Ok(message_id) => Fate::Accepted(Accepted {
                    message_id,
                    duplicate: result.duplicate,
                    first_send_ms: Some(result.first_send_ms).filter(|ms| *ms > 0),
                    expires_in_quiet_hours: result.expires_in_quiet_hours,
                }),
                Err(_) => Fate::Refused(errors::to_rpc(&errors::status(
                    ErrorReason::Internal,
                    "a node answered without a message id",
                ))),
            },
        };
        self.fates[place.index] = Some(fate);
    }

    /// Only a key makes a repeat safe.
    fn uncertain(&mut self, partition: u32, message: IngestMessage, place: Place, left: &mut Pending) {
        if message.idempotency_key.is_empty() {
            self.fates[place.index] = Some(Fate::Refused(unavailable(true)));
        } else {
            left.put(partition, Place { maybe_accepted: true, ..place }, message);
        }
    }
}

/// The answer has the shape of the request.
fn fits(request: &NodeSubmitRequest, response: &NodeSubmitResponse) -> bool {
    request.partitions.len() == response.partitions.len()
        && request.partitions.iter().zip(&response.partitions).all(|(asked, got)| {
            asked.partition == got.partition && (got.not_leader || got.results.len() == asked.messages.len())
        })
}

/// One call, until it answers, the deadline is near, or its node has lost a partition of it to another one.
async fn call(
    map: &MapCache,
    node: &NodeLink,
    outgoing: &Arc<Outgoing>,
    deadline: Deadline,
) -> Result<NodeSubmitResponse, Verdict> {
    let began = Instant::now();
    let moved = async {
        map.leadership_moved(node.node_id(), &outgoing.partitions()).await;
        tokio::time::sleep(GRACE).await;
    };
    let result = tokio::select! {
        biased;
        result = node.submit(Arc::clone(outgoing), deadline.remaining()) => {
            result.map_err(|status| verdict::of_status(&status, outgoing.was_sent()))
        }
        () = tokio::time::sleep_until(deadline.answer_by()) => Err(verdict::of_silence(outgoing.was_sent())),
        () = moved => Err(verdict::of_silence(outgoing.was_sent())),
    };
    metrics::node_call("Submit", began.elapsed());
    result
}

/// PARTITION_UNAVAILABLE that says whether the message may have been accepted.
fn unavailable(maybe_accepted: bool) -> RpcStatus {
    let (what, fate) = if maybe_accepted {
        ("the partition's leader could not be reached in time, the message may have been accepted", "unknown")
    } else {
        ("the partition's leader could not be reached in time, the message was not accepted", "not_accepted")
    };
    let metadata = [("fate", fate.to_owned())];
    errors::to_rpc(&errors::status_with(ErrorReason::PartitionUnavailable, what, &metadata))
}

/// PARTITION_UNAVAILABLE for messages whose calls broke off too often.
fn broken() -> RpcStatus {
    let what = "nodes broke off every call that held the message, the message may have been accepted";
    let metadata = [("fate", "unknown".to_owned()), ("calls_broken", BREAKS_MAX.to_string())];
    errors::to_rpc(&errors::status_with(ErrorReason::PartitionUnavailable, what, &metadata))
}
