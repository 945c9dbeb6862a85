//! Follows the events of one partition: asks its leader, goes to the next leader when that one stops leading, and goes on after
//! the last entry it passed on. At least once, in order.
use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::map::MapCache;
use crate::metrics;
use crate::nodes::NodeLink;
use crate::verdict::{self, Verdict};
use carillon_proto::errors;
use carillon_proto::internal::{NodeWatchRequest, NodeWatchResponse};
use carillon_proto::public::Event;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

const PAUSE_MS: std::ops::RangeInclusive<u64> = 20..=1_000;
/// A node must open the stream in this time.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// A stream of a node that lost the leadership may still end by itself; it gets this long.
const GRACE: Duration = Duration::from_millis(500);
/// Longest pause between looks at the map.
const LOOK: Duration = Duration::from_secs(60);

/// News from one partition.
pub struct Part {
    pub partition: u32,
    pub events: Vec<Event>,
    /// All events up to this entry have been passed on.
    pub index: u64,
}

/// What to follow.
pub struct Follower {
    pub map: Arc<MapCache>,
    pub tenant: String,
    /// 0 = all practices of the tenant.
    pub practice_no: u32,
    pub partition: u32,
    /// Events after this entry; `None` = from now on.
    pub after: Option<u64>,
    pub parts: mpsc::Sender<Result<Part, Status>>,
}

enum End {
    /// The node went away or stopped leading.
    Again,
    /// The node named another leader.
    Hinted,
    /// No use in going on.
    Final,
}

impl Follower {
    /// Runs until nobody listens or a node refuses for good; the refusal is the last thing sent.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(PAUSE_MS);
        loop {
            let node = self.map.load().leader(self.partition).cloned();
            let end = match node {
                Some(node) => self.follow(&node, &mut backoff).await,
                None => End::Again,
            };
            match end {
                End::Final => return,
                End::Hinted => tokio::time::sleep(Duration::from_millis(*PAUSE_MS.start())).await,
                End::Again => self.map.pause(backoff.next_pause(), Deadline::within(LOOK)).await,
            }
            metrics::retry("watch");
        }
    }

    async fn follow(&mut self, node: &NodeLink, backoff: &mut Backoff) -> End {
        let mut stream = match self.open(node).await {
            Ok(stream) => stream,
            Err(status) => return self.failed(&status).await,
        };
        let map = Arc::clone(&self.map);
        let partitions = [self.partition];
        let moved = async {
            map.leadership_moved(node.node_id(), &partitions).await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::pin!(moved);
        loop {
            let news = tokio::select! {
                biased;
                news = stream.message() => news,
                () = self.parts.closed() => return End::Final,
                () = &mut moved => return End::Again,
            };
            match news {
                Ok(Some(news)) => {
                    backoff.reset();
                    if let Some(end) = self.pass_on(node, news).await {
                        return end;
                    }
                }
                Ok(None) => return End::Again,
                Err(status) => return self.failed(&status).await,
            }
        }
    }

    async fn open(&self, node: &NodeLink) -> Result<Streaming<NodeWatchResponse>, Status> {
        let asked = NodeWatchRequest {
            tenant: self.tenant.clone(),
            practice_no: self.practice_no,
            partition: self.partition,
            after_index: self.after.unwrap_or(0),
            from_now: self.after.is_none(),
        };
        let mut client = node.events_client();
        let opened = tokio::time::timeout(OPEN_TIMEOUT, client.watch(asked)).await;
        Ok(opened.map_err(|_| Status::unavailable("the node did not open the stream in time"))??.into_inner())
    }

    async fn pass_on(&mut self, node: &NodeLink, news: NodeWatchResponse) -> Option<End> {
        if let Some(hint) = news.not_leader {
            let taken = self.map.hint(self.partition, node.node_id(), hint.leader_hint);
            return Some(if taken { End::Hinted } else { End::Again });
        }
        let part = Part { partition: self.partition, events: news.events, index: news.index };
        if self.parts.send(Ok(part)).await.is_err() {
            return Some(End::Final);
        }
        self.after = Some(news.index);
        None
    }

    async fn failed(&self, status: &Status) -> End {
        match verdict::of_status(status, true) {
            Verdict::Refused(refusal) => {
                let _nobody_listens = self.parts.send(Err(errors::from_rpc(&refusal))).await;
                End::Final
            }
            Verdict::NotProcessed(_) | Verdict::Uncertain | Verdict::Broken => End::Again,
        }
    }
}
