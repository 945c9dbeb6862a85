//! Fact batchers: outcomes and receipts on their way into the log, one small task for each partition.
//!
//! A fact is proposed until it is committed: here while this node leads the partition, otherwise on its leader. Whatever
//! comes in during one proposal makes the next one (natural batching). Bounded: [`FACTS_MAX`] facts wait in each
//! partition, then the senders wait.
use crate::engine::peers::PeerChannels;
use crate::engine::{NodeHandle, ProposeError};
use carillon_proto::internal::peer_client::PeerClient;
use carillon_proto::internal::{Command, ForwardFactsRequest};
use prost::Message as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

const FACTS_MAX: usize = 4096;
const BATCH_MAX: usize = 256;
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Called with true when the fact is committed.
pub type Done = Box<dyn FnOnce(bool) + Send>;

/// A fact and whom to tell.
pub struct Fact {
    pub command: Command,
    pub done: Option<Done>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Facts {
    senders: Arc<Vec<mpsc::Sender<Fact>>>,
    /// Facts that were pushed and are not committed.
    open: watch::Sender<usize>,
}

impl Facts {
    /// Starts one batcher for each partition.
    pub fn start(handle: &NodeHandle, channels: &Arc<PeerChannels>) -> Self {
        let open = watch::Sender::new(0);
        let senders = (1..=handle.partitions()).map(|partition| {
            let (sender, receiver) = mpsc::channel(FACTS_MAX);
            let batcher = Batcher {
                partition,
                handle: handle.clone(),
                channels: Arc::clone(channels),
                open: open.clone(),
                tries: 0,
            };
            tokio::spawn(batcher.run(receiver));
            sender
        });
        let senders = Arc::new(senders.collect());
        Self { senders, open }
    }

    /// Waits for room, not for the commit.
    pub async fn push(&self, partition: u32, fact: Fact) {
        let Some(sender) = self.senders.get(partition as usize - 1) else { return };
        self.open.send_modify(|open| *open += 1);
        if let Err(gone) = sender.send(fact).await
            && let Some(done) = gone.0.done
        {
            self.open.send_modify(|open| *open -= 1);
            done(false);
        }
    }

    /// Returns once everything that was pushed is committed.
    pub async fn flushed(&self) {
        // The sender is part of `self`, so the wait cannot fail.
        drop(self.open.subscribe().wait_for(|open| *open == 0).await);
    }
}

struct Batcher {
    partition: u32,
    handle: NodeHandle,
    channels: Arc<PeerChannels>,
    open: watch::Sender<usize>,
    /// Nodes asked in vain since somebody knew the leader.
    tries: usize,
}

impl Batcher {
    async fn run(mut self, mut facts: mpsc::Receiver<Fact>) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while facts.recv_many(&mut batch, BATCH_MAX).await > 0 {
            let commands: Vec<Command> = batch.iter().map(|fact| fact.command.clone()).collect();
            while !self.try_commit(&commands).await {
                metrics::counter!("carillon_fact_retries_total").increment(1);
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            self.open.send_modify(|open| *open -= batch.len());
            for done in batch.drain(..).filter_map(|fact| fact.done) {
                done(true);
            }
        }
    }

    async fn try_commit(&mut self, commands: &[Command]) -> bool {
        let encoded = commands.iter().map(|c| c.encode_to_vec().into()).collect();
        let leader = match self.handle.propose(self.partition, encoded).await {
            Ok(_) => return true,
            Err(ProposeError::NotLeader { leader_hint: 0 }) => self.guess(),
            Err(ProposeError::NotLeader { leader_hint }) => leader_hint,
            Err(_) => return false,
        };
        let Some(channel) = self.channels.get(leader) else { return false };
        let mut client = PeerClient::new(channel);
        let mut request = tonic::Request::new(ForwardFactsRequest {
            partition: self.partition,
            commands: commands.to_vec(),
        });
        request.set_timeout(FORWARD_TIMEOUT);
        matches!(client.forward_facts(request).await, Ok(response) if !response.get_ref().not_leader)
    }

    /// A node without a replica of the partition does not hear who leads it: those that have one are asked in turn.
    fn guess(&mut self) -> u64 {
        let view = self.handle.meta();
        let hosts: Vec<u64> =
            view.hosts(self.partition).filter(|node| *node != self.handle.node_id()).collect();
        self.tries += 1;
        hosts.get(self.tries % hosts.len().max(1)).copied().unwrap_or(0)
    }
}
