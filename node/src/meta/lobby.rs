//! The peer plane of a node that has not entered its cluster yet: it answers who it is, and nothing else.
//!
//! The members of a new cluster ask each other before they create anything, so each of them must be able to answer before it
//! has begun. The plane itself takes over the same socket afterwards; callers of other calls are told to come again.
use crate::engine::identity::Identity;
use crate::engine::snapshot::ChunkStream;
use carillon_proto::identity::Role;
use carillon_proto::internal::peer_server::{Peer, PeerServer};
use carillon_proto::internal::{
    FetchSnapshotRequest, ForwardFactsRequest, ForwardFactsResponse, ForwardReceiptsRequest,
    ForwardReceiptsResponse, HelloRequest, HelloResponse, LeaseRequest, LeaseResponse, ProposeMetaRequest,
    ProposeMetaResponse, RaftClosed, RaftFrame, ReportSnapshotRequest, ReportSnapshotResponse,
};
use carillon_proto::tls;
use rustls::ServerConfig;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

/// Answers that are being written get so long.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Serves until it is closed or dropped.
pub struct Lobby {
    stop: CancellationToken,
    served: JoinHandle<()>,
}

impl Lobby {
    /// Answers on the socket of `listener`, which nobody else may use meanwhile.
    pub fn open(
        listener: &TcpListener,
        tls: Arc<ServerConfig>,
        cluster_id: &str,
        identity: Arc<Identity>,
    ) -> std::io::Result<Self> {
        let twin = std::net::TcpListener::from(listener.as_fd().try_clone_to_owned()?);
        let incoming = tls::incoming(TcpListener::from_std(twin)?, tls);
        let stop = CancellationToken::new();
        let service = PeerServer::new(Doorkeeper { cluster_id: cluster_id.to_owned(), identity });
        let serving = Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let served = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::warn!(%error, "the lobby ended");
            }
        });
        Ok(Self { stop, served })
    }

    /// The socket is free when this returns.
    pub async fn close(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(CLOSE_LIMIT, &mut self.served).await.is_err() {
            self.served.abort();
        }
    }
}

impl Drop for Lobby {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Doorkeeper {
    cluster_id: String,
    identity: Arc<Identity>,
}

fn not_yet<T>() -> Result<Response<T>, Status> {
    Err(Status::unavailable("this node has not entered its cluster yet"))
}

#[tonic::async_trait]
impl Peer for Doorkeeper {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloResponse>, Status> {
        let role = crate::edge::authorize(&request, &self.cluster_id, |role| matches!(role, Role::Node(_)))?;
        let Role::Node(node) = role else { return Err(Status::permission_denied("not a node")) };
        Ok(Response::new(HelloResponse {
            node_id: self.identity.node_id(),
            store_id: self.identity.store_id(),
            created: false,
            known_store_id: self.identity.known(node),
        }))
    }

    async fn raft(&self, _: Request<Streaming<RaftFrame>>) -> Result<Response<RaftClosed>, Status> {
        not_yet()
    }

    async fn propose_meta(
        &self,
        _: Request<ProposeMetaRequest>,
    ) -> Result<Response<ProposeMetaResponse>, Status> {
        not_yet()
    }

    async fn forward_receipts(
        &self,
        _: Request<ForwardReceiptsRequest>,
    ) -> Result<Response<ForwardReceiptsResponse>, Status> {
        not_yet()
    }

    async fn forward_facts(
        &self,
        _: Request<ForwardFactsRequest>,
    ) -> Result<Response<ForwardFactsResponse>, Status> {
        not_yet()
    }

    async fn lease(&self, _: Request<LeaseRequest>) -> Result<Response<LeaseResponse>, Status> {
        not_yet()
    }

    type FetchSnapshotStream = ChunkStream;

    async fn fetch_snapshot(
        &self,
        _: Request<FetchSnapshotRequest>,
    ) -> Result<Response<ChunkStream>, Status> {
        not_yet()
    }

    async fn report_snapshot(
        &self,
        _: Request<ReportSnapshotRequest>,
    ) -> Result<Response<ReportSnapshotResponse>, Status> {
        not_yet()
    }
}
