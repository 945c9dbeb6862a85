//! Peer streams: raft messages to and from the other nodes, over TLS with node certificates.
//!
//! Two streams for each peer, so that heartbeats and votes never wait behind entries. Queues are bounded; a full one drops,
//! because raft repeats. Order holds within a stream.
use super::shard::ShardMessage;
use crate::space::Space;
use carillon_proto::identity::Role;
use carillon_proto::internal::peer_client::PeerClient;
use carillon_proto::internal::{GroupMessage, RaftFrame, TruncateHint};
use carillon_proto::tls;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Frames waiting for one stream.
const FRAMES_MAX: usize = 256;
/// Largest frame a peer accepts: `max_size_per_msg` of many groups in one turn stays below.
pub const FRAME_BYTES_MAX: usize = 64 << 20;
/// Entry bytes after which a frame is cut, so that one turn of many groups makes several.
const FRAME_CUT_BYTES: usize = 1 << 20;

/// Sends to peers; cheap to clone, usable from any thread, never blocks.
#[derive(Clone)]
pub struct PeerSender {
    node_id: u64,
    store_id: u64,
    cluster_id: Arc<str>,
    space: Arc<Space>,
    lanes: Arc<BTreeMap<u64, [mpsc::Sender<RaftFrame>; 2]>>,
}

const CONTROL: usize = 0;
const BULK: usize = 1;

impl PeerSender {
    /// Queues messages; those with entries take the bulk stream.
    pub fn send(&self, node: u64, messages: Vec<GroupMessage>) {
        let (bulk, control): (Vec<_>, Vec<_>) = messages.into_iter().partition(has_entries);
        self.push(node, CONTROL, control, Vec::new());
        let (mut frame, mut bytes) = (Vec::new(), 0);
        for message in bulk {
            bytes += entry_bytes(&message);
            frame.push(message);
            if bytes >= FRAME_CUT_BYTES {
                self.push(node, BULK, std::mem::take(&mut frame), Vec::new());
                bytes = 0;
            }
        }
        self.push(node, BULK, frame, Vec::new());
    }

    /// Tells every peer how far it may cut its logs.
    pub fn send_hints(&self, hints: &[TruncateHint]) {
        for node in self.lanes.keys() {
            self.push(*node, CONTROL, Vec::new(), hints.to_vec());
        }
    }

    fn push(&self, node: u64, lane: usize, messages: Vec<GroupMessage>, hints: Vec<TruncateHint>) {
        if messages.is_empty() && hints.is_empty() {
            return;
        }
        let Some(lanes) = self.lanes.get(&node) else { return };
        let frame = RaftFrame {
            from_node: self.node_id,
            cluster_id: self.cluster_id.to_string(),
            messages,
            hints,
            storage_near_full: self.space.near_full(),
            from_store: self.store_id,
        };
        if lanes[lane].try_send(frame).is_err() {
            metrics::counter!("carillon_raft_messages_dropped_total", "reason" => "peer_queue_full")
                .increment(1);
        }
    }
}

fn has_entries(message: &GroupMessage) -> bool {
    message.message.as_ref().is_some_and(|m| !m.entries.is_empty())
}

fn entry_bytes(message: &GroupMessage) -> usize {
    message.message.as_ref().map_or(0, |m| m.entries.iter().map(|e| e.data.len() + 32).sum())
}

/// Channels to the peers, for streams and calls alike.
pub type PeerChannels = BTreeMap<u64, Channel>;

/// Makes the channels (they connect when used).
pub fn channels(
    node_id: u64,
    members: &[(u64, String)],
    config: &Arc<rustls::ClientConfig>,
) -> Result<PeerChannels, tls::TlsError> {
    members
        .iter()
        .filter(|(id, _)| *id != node_id)
        .map(|(id, address)| Ok((*id, tls::channel(address, Arc::clone(config), Some(Role::Node(*id)))?)))
        .collect()
}

/// Starts the stream tasks on the current runtime.
pub fn start(
    (node_id, store_id): (u64, u64),
    cluster_id: &str,
    space: Arc<Space>,
    channels: &PeerChannels,
    inbox: crossbeam_channel::Sender<ShardMessage>,
) -> PeerSender {
    let mut lanes = BTreeMap::new();
    for (id, channel) in channels {
        let make = || {
            let (sender, receiver) = mpsc::channel(FRAMES_MAX);
            tokio::spawn(run_stream(*id, channel.clone(), receiver, inbox.clone()));
            sender
        };
        lanes.insert(*id, [make(), make()]);
    }
    PeerSender { node_id, store_id, cluster_id: Arc::from(cluster_id), space, lanes: Arc::new(lanes) }
}

/// Keeps one stream to a peer up for as long as the sender lives.
async fn run_stream(
    node: u64,
    channel: Channel,
    mut frames: mpsc::Receiver<RaftFrame>,
    inbox: crossbeam_channel::Sender<ShardMessage>,
) {
    let mut client = PeerClient::new(channel).max_decoding_message_size(FRAME_BYTES_MAX);
    let mut wait = Duration::from_millis(50);
    loop {
        // Connect only when there is something to say, and with something fresh.
        let Some(first) = frames.recv().await else { return };
        let (sender, receiver) = mpsc::channel(16);
        drop(sender.try_send(first));
        let call = client.raft(ReceiverStream::new(receiver).map(|frame: RaftFrame| frame));
        tokio::pin!(call);
        let mut sent = 0_u64;
        let error = loop {
            tokio::select! {
                result = &mut call => break result.err().map(|status| status.code()),
                frame = frames.recv() => match frame {
                    None => return,
                    Some(frame) => {
                        // Bounded by the stream's own window: wait for room, or for the call to end.
                        tokio::select! {
                            result = &mut call => break result.err().map(|status| status.code()),
                            result = sender.send(frame) => if result.is_err() { break None },
                        }
                        sent += 1;
                    }
                },
            }
        };
        if sent > 100 {
            wait = Duration::from_millis(50);
        }
        tracing::debug!(node, ?error, "peer stream ended");
        metrics::counter!("carillon_peer_stream_breaks_total").increment(1);
        drop(inbox.try_send(ShardMessage::Unreachable { node }));
        while frames.try_recv().is_ok() {}
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(1));
    }
}
