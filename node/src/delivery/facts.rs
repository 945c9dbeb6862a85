//! Fact batchers: outcomes and receipts on their way into the log, one small task for each partition.
//!
//! A fact is proposed until it is committed: here while this node leads the partition, otherwise on its leader. Whatever
//! comes in during one proposal makes the next one (natural batching). Committed is not recorded: apply may refuse a
//! fact, and each one's own result is told. Bounded: [`FACTS_MAX`] facts wait in each partition, then the senders wait.
use crate::engine::peers::PeerChannels;
use crate::engine::{NodeHandle, PROPOSAL_BYTES_MAX, ProposeError};
use crate::failpoints;
use bytes::Bytes;
use carillon_core::CommandResult;
use carillon_proto::internal::peer_client::PeerClient;
use carillon_proto::internal::{Command, FactResult, ForwardFactsRequest};
use prost::Message as _;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const FACTS_MAX: usize = 4096;
const BATCH_MAX: usize = 256;
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);
/// What a command costs in a proposal besides its own bytes.
const COMMAND_OVERHEAD_BYTES: usize = 8;
/// How often a stopping node looks at what is still waiting.
const LOOK: Duration = Duration::from_millis(20);

/// Called once with what became of the fact; `Unspecified` when it was given up because the node stops.
pub type Done = Box<dyn FnOnce(FactResult) + Send>;

/// A fact and whom to tell.
pub struct Fact {
    pub command: Command,
    pub done: Option<Done>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Facts {
    senders: Arc<Vec<mpsc::Sender<Waiting>>>,
    counts: Arc<Counts>,
    abandoned: CancellationToken,
}

#[derive(Default)]
struct Counts {
    /// Handed in and not told yet.
    open: AtomicUsize,
    /// Proposals that went through, ever.
    commits: AtomicU64,
}

struct Waiting {
    fact: Fact,
    _open: Open,
}

/// Counts a fact until it is dropped.
struct Open(Arc<Counts>);

impl Open {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.open.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(counts))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Facts {
    /// Starts one batcher for each partition.
    pub fn start(handle: &NodeHandle, channels: &Arc<PeerChannels>) -> Self {
        let (counts, abandoned) = (Arc::<Counts>::default(), CancellationToken::new());
        let senders = (1..=handle.partitions()).map(|partition| {
            let (sender, receiver) = mpsc::channel(FACTS_MAX);
            let batcher = Batcher {
                partition,
                handle: handle.clone(),
                channels: Arc::clone(channels),
                counts: Arc::clone(&counts),
                abandoned: abandoned.clone(),
                turn: AtomicUsize::new(0),
            };
            tokio::spawn(batcher.run(receiver));
            sender
        });
        Self { senders: Arc::new(senders.collect()), counts, abandoned }
    }

    /// Waits for room, not for the commit.
    pub async fn push(&self, partition: u32, fact: Fact) {
        let Some(sender) = self.senders.get(partition as usize - 1) else { return };
        let waiting = Waiting { fact, _open: Open::new(&self.counts) };
        if let Err(gone) = sender.send(waiting).await
            && let Some(done) = gone.0.fact.done
        {
            done(FactResult::Unspecified);
        }
    }

    /// Facts that were handed in and not told yet, over all partitions.
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::Acquire)
    }

    /// Returns once facts wait and none was committed for this long: there is no quorum, or no leader.
    pub async fn stalled(&self, limit: Duration) {
        let (mut commits, mut since) = (0, Instant::now());
        loop {
            let now = self.counts.commits.load(Ordering::Acquire);
            if self.open() == 0 || now != commits {
                (commits, since) = (now, Instant::now());
            } else if since.elapsed() >= limit {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Returns once nothing is open.
    pub async fn settled(&self) {
        while self.open() > 0 {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Gives up what is not committed, and whatever comes from now on: everybody is told `Unspecified`.
    pub fn abandon(&self) {
        self.abandoned.cancel();
    }
}

struct Batcher {
    partition: u32,
    handle: NodeHandle,
    channels: Arc<PeerChannels>,
    counts: Arc<Counts>,
    abandoned: CancellationToken,
    /// Nodes asked without a known leader.
    turn: AtomicUsize,
}

impl Batcher {
    async fn run(self, mut facts: mpsc::Receiver<Waiting>) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while facts.recv_many(&mut batch, BATCH_MAX).await > 0 {
            let commands: Vec<Command> = batch.iter().map(|waiting| waiting.fact.command.clone()).collect();
            let encoded: Vec<Bytes> = commands.iter().map(|c| c.encode_to_vec().into()).collect();
            let mut batch = batch.drain(..);
            for range in proposals(&encoded) {
                let count = range.len();
                failpoints::hit("fact::before_commit");
                let results = self.commit(&commands[range.clone()], &encoded[range]).await;
                failpoints::hit("fact::after_commit");
                for (waiting, result) in batch.by_ref().take(count).zip(results) {
                    if let Some(done) = waiting.fact.done {
                        done(result);
                    }
                }
            }
        }
    }

    /// One result for each command.
    async fn commit(&self, commands: &[Command], encoded: &[Bytes]) -> Vec<FactResult> {
        let committed = async {
            loop {
                if let Some(results) = self.try_commit(commands, encoded).await {
                    self.counts.commits.fetch_add(1, Ordering::AcqRel);
                    return results;
                }
                metrics::counter!("carillon_fact_retries_total").increment(1);
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        };
        let mut results = tokio::select! {
            biased;
            () = self.abandoned.cancelled() => Vec::new(),
            results = committed => results,
        };
        results.resize(commands.len(), FactResult::Unspecified);
        results
    }

    async fn try_commit(&self, commands: &[Command], encoded: &[Bytes]) -> Option<Vec<FactResult>> {
        let leader = match self.handle.propose(self.partition, encoded.to_vec()).await {
            Ok(results) => return Some(results.iter().map(CommandResult::fact).collect()),
            Err(ProposeError::NotLeader { leader_hint: 0 }) => self.guess(),
            Err(ProposeError::NotLeader { leader_hint }) => leader_hint,
            Err(_) => return None,
        };
        let mut client = PeerClient::new(self.channels.get(leader)?);
        let mut request = tonic::Request::new(ForwardFactsRequest {
            partition: self.partition,
            commands: commands.to_vec(),
        });
        request.set_timeout(FORWARD_TIMEOUT);
        let response = client.forward_facts(request).await.ok()?.into_inner();
        (!response.not_leader).then(|| response.results().collect())
    }

    /// A node without a replica of the partition does not hear who leads it: those that have one are asked in turn.
    fn guess(&self) -> u64 {
        let view = self.handle.meta();
        let hosts: Vec<u64> =
            view.hosts(self.partition).filter(|node| *node != self.handle.node_id()).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        hosts.get(turn % hosts.len().max(1)).copied().unwrap_or(0)
    }
}

/// Cuts a batch where one proposal would be too large.
fn proposals(encoded: &[Bytes]) -> Vec<Range<usize>> {
    let (mut ranges, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (at, command) in encoded.iter().enumerate() {
        let more = command.len() + COMMAND_OVERHEAD_BYTES;
        if bytes + more > PROPOSAL_BYTES_MAX && at > start {
            ranges.push(start..at);
            (start, bytes) = (at, 0);
        }
        bytes += more;
    }
    if start < encoded.len() {
        ranges.push(start..encoded.len());
    }
    ranges
}
