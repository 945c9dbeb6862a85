//! Connections to nodes, and the one call that is made often enough to avoid copies: `Node.Submit`.
//!
//! A submit is encoded from a shared request, so that a call that provably failed before it was sent, or that met a
//! node which does not lead, gives the messages back for the next attempt without a copy of them.
use carillon_proto::identity::Role;
use carillon_proto::internal::node_client::NodeClient;
use carillon_proto::internal::{NodeSubmitRequest, NodeSubmitResponse};
use carillon_proto::tls::{self, TlsError};
use prost::Message as _;
use rustls::ClientConfig;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};

/// The largest answer that we take from a node: a page of full messages, or a whole map.
const ANSWER_BYTES_MAX: usize = 64 << 20;
const SUBMIT_PATH: &str = "/carillon.internal.v1.Node/Submit";

/// Makes connections.
pub struct Dialer {
    tls: Arc<ClientConfig>,
    connections_per_node: usize,
}

impl Dialer {
    pub fn new(tls: Arc<ClientConfig>, connections_per_node: usize) -> Self {
        Self { tls, connections_per_node }
    }

    /// Connections to a node that must prove to be this one.
    pub fn dial(&self, node_id: u64, address: &str) -> Result<NodeLink, TlsError> {
        let channels = (0..self.connections_per_node)
            .map(|_| tls::channel(address, Arc::clone(&self.tls), Some(Role::Node(node_id))))
            .collect::<Result<_, _>>()?;
        let events = tls::channel(address, Arc::clone(&self.tls), Some(Role::Node(node_id)))?;
        Ok(NodeLink { node_id, address: address.to_owned(), channels, events, next: AtomicUsize::new(0) })
    }

    /// A connection of its own to a node whose id is not known yet.
    pub fn seed(&self, address: &str) -> Result<NodeClient<Channel>, TlsError> {
        let channel = tls::channel(address, Arc::clone(&self.tls), None)?;
        Ok(NodeClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX))
    }
}

/// A node and our connections to it, used in turn.
pub struct NodeLink {
    node_id: u64,
    address: String,
    channels: Vec<Channel>,
    /// Long-lived streams have a connection of their own, so that they never use up the places of calls.
    events: Channel,
    next: AtomicUsize,
}

impl NodeLink {
    pub fn node_id(&self) -> u64 {
        self.node_id
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    fn channel(&self) -> Channel {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.channels[turn % self.channels.len()].clone()
    }

    pub fn client(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub fn events_client(&self) -> NodeClient<Channel> {
        NodeClient::new(self.events.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Sends a submit. [`Outgoing::was_sent`] says afterwards whether the node can have seen it.
    pub async fn submit(
        &self,
        outgoing: Arc<Outgoing>,
        timeout: Duration,
    ) -> Result<NodeSubmitResponse, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel()).max_decoding_message_size(ANSWER_BYTES_MAX);
        grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let mut request = Request::new(outgoing);
        request.set_timeout(timeout);
        let path = http::uri::PathAndQuery::from_static(SUBMIT_PATH);
        let codec = SharedCodec::<NodeSubmitResponse>(PhantomData);
        Ok(grpc.unary(request, path, codec).await?.into_inner())
    }
}

/// A submit that is shared between us and the call that sends it.
pub struct Outgoing {
    request: NodeSubmitRequest,
    sent: AtomicBool,
}

impl Outgoing {
    pub fn new(request: NodeSubmitRequest) -> Arc<Self> {
        Arc::new(Self { request, sent: AtomicBool::new(false) })
    }

    /// False = no byte of it can have left this process.
    pub fn was_sent(&self) -> bool {
        self.sent.load(Ordering::Acquire)
    }

    pub fn partitions(&self) -> Vec<u32> {
        self.request.partitions.iter().map(|p| p.partition).collect()
    }

    /// The request back, without a copy once the call is over.
    pub fn take(self: Arc<Self>) -> NodeSubmitRequest {
        Arc::try_unwrap(self).map_or_else(|shared| shared.request.clone(), |own| own.request)
    }
}

struct SharedCodec<T>(PhantomData<T>);
struct SharedEncoder;
struct ProstDecoder<T>(PhantomData<T>);

impl<T: prost::Message + Default + 'static> Codec for SharedCodec<T> {
    type Encode = Arc<Outgoing>;
    type Decode = T;
    type Encoder = SharedEncoder;
    type Decoder = ProstDecoder<T>;

    fn encoder(&mut self) -> SharedEncoder {
        SharedEncoder
    }

    fn decoder(&mut self) -> ProstDecoder<T> {
        ProstDecoder(PhantomData)
    }
}

impl Encoder for SharedEncoder {
    type Item = Arc<Outgoing>;
    type Error = Status;

    fn encode(&mut self, item: Arc<Outgoing>, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.sent.store(true, Ordering::Release);
        dst.reserve(item.request.encoded_len());
        item.request.encode(dst).map_err(|_| Status::internal("a request could not be encoded"))
    }
}

impl<T: prost::Message + Default> Decoder for ProstDecoder<T> {
    type Item = T;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<T>, Status> {
        T::decode(src).map(Some).map_err(|_| Status::internal("an answer could not be decoded"))
    }
}
