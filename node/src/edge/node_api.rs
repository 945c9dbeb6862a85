//! The node plane: the service that routers call. Only conversions and checks; the work is in the sibling modules.
use super::cancel::Cancels;
use super::events::{self, WatchStream};
use super::explain::Explains;
use super::ingest::Ingest;
use super::query::Queries;
use super::series::SeriesDesk;
use super::update::Updates;
use crate::engine::NodeHandle;
use carillon_proto::identity::Role;
use carillon_proto::internal::node_server::Node;
use carillon_proto::internal::{
    MapUpdate, NodeCancelRequest, NodeCancelResponse, NodeExplainRequest, NodeExplainResponse,
    NodeGetRequest, NodeGetResponse, NodeListRequest, NodeListResponse, NodeSeriesRequest,
    NodeSeriesResponse, NodeSubmitRequest, NodeSubmitResponse, NodeUpdateRequest, NodeUpdateResponse,
    NodeWatchRequest, PartitionLeader, WatchMapRequest,
};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// A map update at least this often, so that a router notices a dead node.
const MAP_HEARTBEAT: Duration = Duration::from_secs(3);

pub struct NodeApi {
    pub cluster_id: String,
    pub handle: NodeHandle,
    pub ingest: Ingest,
    pub queries: Queries,
    pub cancels: Cancels,
    pub updates: Updates,
    pub explains: Explains,
    pub series: SeriesDesk,
}

impl NodeApi {
    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        super::authorize(request, &self.cluster_id, |role| matches!(role, Role::Router(_))).map(|_| ())
    }

    /// Also that everything is there: half of a restore would be told as "no such message".
    fn check_whole<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.check(request)?;
        match self.handle.meta().is_restoring() {
            true => Err(super::ingest::restoring()),
            false => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl Node for NodeApi {
    async fn submit(
        &self,
        request: Request<NodeSubmitRequest>,
    ) -> Result<Response<NodeSubmitResponse>, Status> {
        self.check(&request)?;
        Ok(Response::new(self.ingest.submit(request.into_inner()).await))
    }

    async fn get(&self, request: Request<NodeGetRequest>) -> Result<Response<NodeGetResponse>, Status> {
        self.check_whole(&request)?;
        self.queries.get(request.into_inner()).await.map(Response::new)
    }

    async fn list(&self, request: Request<NodeListRequest>) -> Result<Response<NodeListResponse>, Status> {
        self.check_whole(&request)?;
        self.queries.list(request.into_inner()).await.map(Response::new)
    }

    async fn cancel(
        &self,
        request: Request<NodeCancelRequest>,
    ) -> Result<Response<NodeCancelResponse>, Status> {
        self.check_whole(&request)?;
        self.cancels.cancel(request.into_inner()).await.map(Response::new)
    }

    async fn explain(
        &self,
        request: Request<NodeExplainRequest>,
    ) -> Result<Response<NodeExplainResponse>, Status> {
        self.check_whole(&request)?;
        self.explains.explain(request.into_inner()).await.map(Response::new)
    }

    async fn update(
        &self,
        request: Request<NodeUpdateRequest>,
    ) -> Result<Response<NodeUpdateResponse>, Status> {
        self.check_whole(&request)?;
        self.updates.update(request.into_inner()).await.map(Response::new)
    }

    async fn manage_series(
        &self,
        request: Request<NodeSeriesRequest>,
    ) -> Result<Response<NodeSeriesResponse>, Status> {
        self.check_whole(&request)?;
        self.series.manage(request.into_inner()).await.map(Response::new)
    }

    type WatchStream = WatchStream;

    async fn watch(&self, request: Request<NodeWatchRequest>) -> Result<Response<WatchStream>, Status> {
        self.check(&request)?;
        Ok(Response::new(events::watch(self.handle.clone(), request.into_inner())))
    }

    type WatchMapStream = ReceiverStream<Result<MapUpdate, Status>>;

    async fn watch_map(
        &self,
        request: Request<WatchMapRequest>,
    ) -> Result<Response<Self::WatchMapStream>, Status> {
        self.check(&request)?;
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(send_map(self.handle.clone(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// The whole map first and whenever the meta group changed; leaders alone otherwise.
async fn send_map(handle: NodeHandle, sender: mpsc::Sender<Result<MapUpdate, Status>>) {
    let (mut meta, mut leaders) = (handle.meta_changes(), handle.leaders());
    let mut full = true;
    loop {
        let update = map_update(&handle, std::mem::take(&mut full));
        if sender.send(Ok(update)).await.is_err() {
            return;
        }
        tokio::select! {
            changed = meta.changed() => if changed.is_err() { return } else { full = true },
            changed = leaders.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(MAP_HEARTBEAT) => {}
            () = sender.closed() => return,
        }
    }
}

fn map_update(handle: &NodeHandle, full: bool) -> MapUpdate {
    let view = handle.meta();
    let leaders = handle
        .leaders()
        .borrow()
        .iter()
        .filter(|(group, _)| **group != 0)
        .map(|(group, l)| PartitionLeader {
            partition: *group,
            leader: l.leader,
            term: l.term,
            epoch: view.map.get(group).map_or(0, |row| row.epoch),
        })
        .collect();
    let mut update = MapUpdate {
        full,
        cluster_id: view.cluster_id.clone(),
        partitions: view.partitions,
        leaders,
        meta_index: view.applied_index,
        node_id: handle.node_id(),
        ..Default::default()
    };
    if full {
        update.nodes = view.present().cloned().collect();
        update.practices = view.practices.values().cloned().collect();
    }
    update
}
