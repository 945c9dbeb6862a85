//! The steward's plane, served to other nodes: joining, being looked at, carrying out steps.
use crate::engine::NodeHandle;
use crate::meta::{Carrier, MetaClient, SelfView};
use aws_lc_rs::digest::{SHA256, digest};
use carillon_proto::identity::Role;
use carillon_proto::internal::steward_server::Steward;
use carillon_proto::internal::{
    CarryRequest, CarryResponse, ConfirmRequest, ConfirmResponse, JoinNode, JoinRequest, JoinResponse,
    MetaCommand, SeeRequest, SeeResponse, meta_command::Kind,
};
use tonic::{Request, Response, Status};

pub struct StewardApi {
    pub cluster_id: String,
    pub handle: NodeHandle,
    pub meta: MetaClient,
    pub own: SelfView,
    pub carrier: Carrier,
}

impl StewardApi {
    /// The caller's node id. Nodes that were removed, or whose disk was called lost, get nothing.
    fn check<T>(&self, request: &Request<T>) -> Result<u64, Status> {
        super::authorize_node(request, &self.cluster_id, &self.handle)
    }
}

#[tonic::async_trait]
impl Steward for StewardApi {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let role = super::authorize(&request, &self.cluster_id, |role| matches!(role, Role::Node(_)))?;
        let request = request.into_inner();
        let refuse =
            |text: &str| Ok(Response::new(JoinResponse { refusal: text.to_owned(), ..Default::default() }));
        if role != Role::Node(request.node_id) {
            return refuse("the certificate is not that of the node that the token admits");
        }
        let command = JoinNode {
            node_id: request.node_id,
            secret_hash: digest(&SHA256, &request.secret).as_ref().to_vec().into(),
            store_id: request.store_id,
            peer_address: request.peer_address,
            feature_level: request.feature_level,
        };
        let command = MetaCommand { kind: Some(Kind::JoinNode(command)) };
        let texts =
            self.meta.propose(vec![command]).await.map_err(|error| Status::unavailable(error.to_string()))?;
        if let Some(refusal) = texts.first().filter(|text| !text.is_empty()) {
            return refuse(refusal);
        }
        let view = self.handle.meta();
        Ok(Response::new(JoinResponse {
            cluster_id: view.cluster_id.clone(),
            partitions: view.partitions,
            nodes: view.present().cloned().collect(),
            refusal: String::new(),
        }))
    }

    async fn see(&self, request: Request<SeeRequest>) -> Result<Response<SeeResponse>, Status> {
        self.check(&request)?;
        Ok(Response::new(self.own.see().await))
    }

    async fn carry(&self, request: Request<CarryRequest>) -> Result<Response<CarryResponse>, Status> {
        self.check(&request)?;
        let error = self.carrier.serve(request.into_inner()).await.err().unwrap_or_default();
        Ok(Response::new(CarryResponse { error }))
    }

    async fn confirm(&self, request: Request<ConfirmRequest>) -> Result<Response<ConfirmResponse>, Status> {
        self.check(&request)?;
        let index = self.meta.serve_confirm().await.unwrap_or(0);
        Ok(Response::new(ConfirmResponse { index }))
    }
}
