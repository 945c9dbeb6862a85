//! Peer streams: raft messages to and from the other nodes, over TLS with node certificates.
//!
//! Two streams for each peer, so that heartbeats and votes never wait behind entries. Queues are bounded; a full one drops,
//! because raft repeats. Order holds within a stream.
use super::peers::PeerChannels;
use super::shard::ShardMessage;
use crate::leave::Leavers;
use crate::space::Space;
use carillon_proto::internal::peer_client::PeerClient;
use carillon_proto::internal::{GroupMessage, RaftFrame, TruncateHint};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

/// Frames waiting for one stream.
const FRAMES_MAX: usize = 256;
/// Largest frame a peer accepts: `max_size_per_msg` of many groups in one turn stays below.
pub const FRAME_BYTES_MAX: usize = 64 << 20;
/// Entry bytes after which a frame is cut, so that one turn of many groups makes several.
const FRAME_CUT_BYTES: usize = 1 << 20;

/// Sends to peers; cheap to clone, usable from any thread, never blocks.
#[derive(Clone)]
pub struct PeerSender {
    origin: Origin,
    lanes: Arc<RwLock<Lanes>>,
}

/// What a frame says of its sender.
#[derive(Clone)]
pub struct Origin {
    pub node_id: u64,
    pub store_id: u64,
    pub cluster_id: Arc<str>,
    pub space: Arc<Space>,
    pub leavers: Arc<Leavers>,
}

type Lanes = BTreeMap<u64, [mpsc::Sender<RaftFrame>; 2]>;

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
        let nodes: Vec<u64> = self.lanes.read().keys().copied().collect();
        for node in nodes {
            self.push(node, CONTROL, Vec::new(), hints.to_vec());
        }
    }

    fn push(&self, node: u64, lane: usize, messages: Vec<GroupMessage>, hints: Vec<TruncateHint>) {
        if messages.is_empty() && hints.is_empty() {
            return;
        }
        let lanes = self.lanes.read();
        let Some(lanes) = lanes.get(&node) else { return };
        let frame = RaftFrame {
            from_node: self.origin.node_id,
            cluster_id: self.origin.cluster_id.to_string(),
            messages,
            hints,
            from_store: self.origin.store_id,
            storage_near_full: self.origin.space.near_full(),
            clock_ms: crate::clock::system_ms(),
            stopping: self.origin.leavers.is_leaving(),
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

/// Starts the streams to all peers on the current runtime, and those to peers that come later.
pub fn start(
    origin: Origin,
    channels: &Arc<PeerChannels>,
    inbox: crossbeam_channel::Sender<ShardMessage>,
) -> PeerSender {
    let space = Arc::clone(&origin.space);
    let sender = PeerSender { origin, lanes: Arc::default() };
    let (lanes, channels) = (Arc::downgrade(&sender.lanes), Arc::clone(channels));
    let mut changes = channels.changes();
    let follow = move || {
        let Some(lanes) = lanes.upgrade() else { return false };
        space.set_peers(&channels.ids());
        crate::clock::set_peers(&channels.ids());
        follow_book(&channels, &mut lanes.write(), &inbox);
        true
    };
    follow();
    tokio::spawn(async move { while changes.changed().await.is_ok() && follow() {} });
    sender
}

/// Streams of nodes that left end with their senders.
fn follow_book(
    channels: &Arc<PeerChannels>,
    lanes: &mut Lanes,
    inbox: &crossbeam_channel::Sender<ShardMessage>,
) {
    let ids = channels.ids();
    lanes.retain(|id, _| ids.contains(id));
    for id in ids {
        lanes.entry(id).or_insert_with(|| {
            let make = || {
                let (sender, receiver) = mpsc::channel(FRAMES_MAX);
                tokio::spawn(run_stream(id, Arc::clone(channels), receiver, inbox.clone()));
                sender
            };
            [make(), make()]
        });
    }
}

/// Keeps one stream to a peer up for as long as the sender lives.
async fn run_stream(
    node: u64,
    channels: Arc<PeerChannels>,
    mut frames: mpsc::Receiver<RaftFrame>,
    inbox: crossbeam_channel::Sender<ShardMessage>,
) {
    let mut wait = Duration::from_millis(50);
    loop {
        // Connect only when there is something to say, and with something fresh.
        let Some(first) = frames.recv().await else { return };
        // Asked for each time, because its address may have changed.
        let Some(channel) = channels.get(node) else { return };
        let mut client = PeerClient::new(channel).max_decoding_message_size(FRAME_BYTES_MAX);
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
