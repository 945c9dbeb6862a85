//! The address book: a connection to every other node, kept equal to the meta group.
//!
//! Invariant: a connection goes to the node that it is kept for, because the certificate at the other end has to say so; an address
//! may therefore change at any time.
use carillon_core::meta::MetaView;
use carillon_proto::identity::Role;
use carillon_proto::tls::{self, TlsError};
use parking_lot::RwLock;
use rustls::ClientConfig;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;
use tonic::transport::Channel;

struct Peer {
    address: String,
    channel: Channel,
}

/// Connections to the peers, for streams and calls alike.
pub struct PeerChannels {
    node_id: u64,
    tls: Arc<ClientConfig>,
    peers: RwLock<BTreeMap<u64, Peer>>,
    changed: watch::Sender<u64>,
}

impl PeerChannels {
    /// Connects when used. `members` may name this node.
    pub fn new(node_id: u64, members: &[(u64, String)], tls: Arc<ClientConfig>) -> Result<Self, TlsError> {
        let book = Self { node_id, tls, peers: RwLock::default(), changed: watch::Sender::new(0) };
        for (id, address) in members {
            book.put(*id, address)?;
        }
        Ok(book)
    }

    fn put(&self, id: u64, address: &str) -> Result<bool, TlsError> {
        let same = self.peers.read().get(&id).is_some_and(|peer| peer.address == address);
        if id == self.node_id || same {
            return Ok(false);
        }
        let channel = tls::channel(address, Arc::clone(&self.tls), Some(Role::Node(id)))?;
        self.peers.write().insert(id, Peer { address: address.to_owned(), channel });
        Ok(true)
    }

    /// Makes the book equal to the present nodes of the view, unless it has none yet.
    pub fn update(&self, view: &MetaView) {
        if view.cluster_id.is_empty() {
            return;
        }
        let mut changed = false;
        for node in view.present() {
            match self.put(node.node_id, &node.peer_address) {
                Ok(put) => changed |= put,
                Err(error) => {
                    tracing::error!(node = node.node_id, %error, "the address of a node is unusable")
                }
            }
        }
        self.peers.write().retain(|id, _| {
            let keep = view.present().any(|n| n.node_id == *id);
            changed |= !keep;
            keep
        });
        if changed {
            self.changed.send_modify(|version| *version += 1);
        }
    }

    pub fn get(&self, node: u64) -> Option<Channel> {
        self.peers.read().get(&node).map(|peer| peer.channel.clone())
    }

    pub fn all(&self) -> Vec<Channel> {
        self.peers.read().values().map(|peer| peer.channel.clone()).collect()
    }

    pub fn ids(&self) -> Vec<u64> {
        self.peers.read().keys().copied().collect()
    }

    /// Changes with the set of nodes and their addresses.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
