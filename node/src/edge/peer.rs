//! The peer plane: what other nodes send. Frames count only when the certificate names the node they claim to be from.
use crate::delivery::{Grants, ReceiptRouter};
use crate::engine::NodeHandle;
use crate::engine::identity::Identity;
use crate::engine::shard::ShardMessage;
use crate::engine::snapshot::ChunkStream;
use crate::meta::MetaClient;
use carillon_proto::internal::peer_server::Peer;
use carillon_proto::internal::{
    FetchSnapshotRequest, ForwardFactsRequest, ForwardFactsResponse, ForwardReceiptsRequest,
    ForwardReceiptsResponse, GroupMessage, HelloRequest, HelloResponse, LeaseRequest, LeaseResponse,
    MetaCommand, ProposeMetaRequest, ProposeMetaResponse, RaftClosed, RaftFrame, ReportSnapshotRequest,
    ReportSnapshotResponse, command::Kind, meta_command,
};
use carillon_proto::replica::node_of;
use prost::Message as _;
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

pub struct PeerApi {
    pub cluster_id: String,
    pub handle: NodeHandle,
    pub inbox: crossbeam_channel::Sender<ShardMessage>,
    pub meta: MetaClient,
    pub receipts: ReceiptRouter,
    pub grants: Grants,
    pub identity: Arc<Identity>,
}

impl PeerApi {
    fn check<T>(&self, request: &Request<T>) -> Result<u64, Status> {
        super::authorize_node(request, &self.cluster_id, &self.handle)
    }

    fn take_frame(&self, node: u64, frame: RaftFrame) {
        if frame.from_node != node || frame.cluster_id != self.cluster_id {
            dropped("wrong_sender");
            return;
        }
        if !self.identity.check(node, frame.from_store) {
            // Its disk was lost or replaced: it has forgotten its votes and what it acknowledged.
            dropped("wrong_store");
            return;
        }
        self.handle.space().peer(node, frame.storage_near_full);
        self.handle.leavers().hear(node, frame.stopping);
        crate::clock::hear(node, frame.clock_ms);
        let own = |m: &GroupMessage| m.message.as_ref().is_some_and(|r| node_of(r.from) == node);
        let messages: Vec<_> = frame.messages.into_iter().filter(own).collect();
        if !messages.is_empty() && self.inbox.try_send(ShardMessage::Raft(messages)).is_err() {
            dropped("inbox_full");
        }
        if !frame.hints.is_empty() {
            drop(self.inbox.try_send(ShardMessage::Hints(frame.hints)));
        }
    }
}

fn dropped(reason: &'static str) {
    metrics::counter!("carillon_raft_messages_dropped_total", "reason" => reason).increment(1);
}

#[tonic::async_trait]
impl Peer for PeerApi {
    async fn raft(&self, request: Request<Streaming<RaftFrame>>) -> Result<Response<RaftClosed>, Status> {
        let node = self.check(&request)?;
        let mut frames = request.into_inner();
        while let Some(frame) = frames.message().await? {
            self.take_frame(node, frame);
        }
        Ok(Response::new(RaftClosed {}))
    }

    type FetchSnapshotStream = ChunkStream;

    async fn fetch_snapshot(
        &self,
        request: Request<FetchSnapshotRequest>,
    ) -> Result<Response<ChunkStream>, Status> {
        let node = self.check(&request)?;
        let request = request.into_inner();
        if node_of(request.replica_id) != node {
            return Err(Status::invalid_argument("the replica is of another node"));
        }
        self.handle.snapshots().serve(request).map(Response::new)
    }

    async fn report_snapshot(
        &self,
        request: Request<ReportSnapshotRequest>,
    ) -> Result<Response<ReportSnapshotResponse>, Status> {
        let node = self.check(&request)?;
        let report = request.into_inner();
        if node_of(report.replica_id) != node {
            return Err(Status::invalid_argument("the replica is of another node"));
        }
        self.handle.snapshots().reported(&report);
        Ok(Response::new(ReportSnapshotResponse {}))
    }

    async fn lease(&self, request: Request<LeaseRequest>) -> Result<Response<LeaseResponse>, Status> {
        let node = self.check(&request)?;
        let answer = self.grants.serve_wire(node, request.into_inner()).await;
        answer.map(Response::new).ok_or_else(|| Status::unavailable("not the leader of the meta group"))
    }

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloResponse>, Status> {
        let node = self.check(&request)?;
        Ok(Response::new(HelloResponse {
            node_id: self.handle.node_id(),
            store_id: self.identity.store_id(),
            created: !self.handle.meta().cluster_id.is_empty(),
            known_store_id: self.identity.known(node),
        }))
    }

    async fn propose_meta(
        &self,
        request: Request<ProposeMetaRequest>,
    ) -> Result<Response<ProposeMetaResponse>, Status> {
        let caller = self.check(&request)?;
        let request = request.into_inner();
        let foreign = |command: &MetaCommand| match &command.kind {
            Some(meta_command::Kind::RegisterNode(register)) => register.node_id != caller,
            _ => false,
        };
        if request.commands.iter().any(foreign) {
            return Err(Status::permission_denied("a node registers itself only"));
        }
        let result = Some(self.meta.serve(request).await);
        Ok(Response::new(ProposeMetaResponse { result }))
    }

    async fn forward_receipts(
        &self,
        request: Request<ForwardReceiptsRequest>,
    ) -> Result<Response<ForwardReceiptsResponse>, Status> {
        self.check(&request)?;
        Ok(Response::new(self.receipts.record_here(request.into_inner().receipts).await))
    }

    async fn forward_facts(
        &self,
        request: Request<ForwardFactsRequest>,
    ) -> Result<Response<ForwardFactsResponse>, Status> {
        self.check(&request)?;
        let request = request.into_inner();
        let facts = request
            .commands
            .iter()
            .all(|command| matches!(command.kind, Some(Kind::RecordOutcome(_) | Kind::RecordReceipt(_))));
        if !facts {
            return Err(Status::invalid_argument("only facts can be forwarded"));
        }
        let commands = request.commands.iter().map(|c| c.encode_to_vec().into()).collect();
        let response = match self.handle.propose(request.partition, commands).await {
            Ok(results) => ForwardFactsResponse {
                results: results.iter().map(|result| result.fact() as i32).collect(),
                ..Default::default()
            },
            Err(crate::engine::ProposeError::NotLeader { leader_hint }) => {
                ForwardFactsResponse { not_leader: true, leader_hint, ..Default::default() }
            }
            Err(error) => return Err(super::propose_status(&error)),
        };
        Ok(Response::new(response))
    }
}
