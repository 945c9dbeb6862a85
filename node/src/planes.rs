//! The planes of a node: what answers peers, routers, operators and carriers' callbacks, each on its own socket with its own CA.
//!
//! Owns: making the services out of the wings, and serving them until the node closes. Does not: start or stop a wing.
use crate::config::Config;
use crate::delivery::Delivery;
use crate::edge::admin::AdminApi;
use crate::edge::callbacks::{self, CallbackApi};
use crate::edge::cancel::Cancels;
use crate::edge::delivery_admin::DeliveryAdminApi;
use crate::edge::explain::Explains;
use crate::edge::ids::RisingIds;
use crate::edge::ingest::Ingest;
use crate::edge::lanes::LaneApi;
use crate::edge::node_api::NodeApi;
use crate::edge::peer::PeerApi;
use crate::edge::query::Queries;
use crate::edge::series::SeriesDesk;
use crate::edge::steward_api::StewardApi;
use crate::edge::update::Updates;
use crate::engine::identity::Identity;
use crate::engine::shard::ShardMessage;
use crate::engine::{NodeHandle, transport};
use crate::hours::Hours;
use crate::meta::{Carrier, Desk, MetaClient, SelfView};
use crate::seal::Keyring;
use crate::series::Maker;
use carillon_core::classes::ClassTable;
use carillon_proto::admin::admin_server::AdminServer;
use carillon_proto::admin::delivery_admin_server::DeliveryAdminServer;
use carillon_proto::admin::lane_admin_server::LaneAdminServer;
use carillon_proto::internal::node_server::NodeServer;
use carillon_proto::internal::peer_server::PeerServer;
use carillon_proto::internal::steward_server::StewardServer;
use carillon_proto::telemetry::Telemetry;
use carillon_proto::tls;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Server;

/// Largest request of a router: 1,000 messages with everything in them.
const NODE_MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Largest request of an operator: practices and wrapped keys of a whole backup.
const ADMIN_MESSAGE_BYTES_MAX: usize = 64 << 20;

/// The sockets, bound already.
pub struct Listeners {
    pub peers: TcpListener,
    pub operators: TcpListener,
    pub callbacks: Option<callbacks::Bound>,
}

/// What the services are made of.
pub struct Parts<'a> {
    pub config: &'a Config,
    pub handle: NodeHandle,
    pub inbox: crossbeam_channel::Sender<ShardMessage>,
    pub meta: MetaClient,
    pub keyring: Arc<Keyring>,
    /// One for all that accept messages.
    pub ids: Arc<RisingIds>,
    pub classes: Arc<ClassTable>,
    pub hours: Hours,
    pub delivery: &'a Delivery,
    pub identity: Arc<Identity>,
    pub own: SelfView,
    pub carrier: Carrier,
    pub desk: Desk,
    pub telemetry: Option<Telemetry>,
}

impl Parts<'_> {
    fn cluster_id(&self) -> String {
        self.config.cluster_id.clone()
    }

    fn ingest(&self) -> Ingest {
        Ingest {
            handle: self.handle.clone(),
            keyring: Arc::clone(&self.keyring),
            ids: Arc::clone(&self.ids),
            classes: Arc::clone(&self.classes),
            hours: self.hours.clone(),
            lanes: self.delivery.looker.clone(),
            connect: self.delivery.connect.clone(),
            lab: self.config.lab,
        }
    }

    /// What fills series as their time comes.
    pub fn maker(&self) -> Maker {
        Maker { handle: self.handle.clone(), keyring: Arc::clone(&self.keyring), ingest: self.ingest() }
    }

    fn peer_api(&self) -> PeerApi {
        PeerApi {
            cluster_id: self.cluster_id(),
            handle: self.handle.clone(),
            inbox: self.inbox.clone(),
            meta: self.meta.clone(),
            receipts: self.delivery.receipts.clone(),
            grants: self.delivery.grants.clone(),
            identity: Arc::clone(&self.identity),
        }
    }

    fn steward_api(&self) -> StewardApi {
        StewardApi {
            cluster_id: self.cluster_id(),
            handle: self.handle.clone(),
            meta: self.meta.clone(),
            own: self.own.clone(),
            carrier: self.carrier.clone(),
        }
    }

    fn node_api(&self) -> NodeApi {
        let (handle, keyring) = (|| self.handle.clone(), || Arc::clone(&self.keyring));
        let looker = self.delivery.looker.clone();
        let queries = Queries { handle: handle(), keyring: keyring(), looker: looker.clone() };
        NodeApi {
            cluster_id: self.cluster_id(),
            handle: handle(),
            ingest: self.ingest(),
            cancels: Cancels { handle: handle(), keyring: keyring() },
            updates: Updates { handle: handle(), keyring: keyring(), classes: Arc::clone(&self.classes) },
            series: SeriesDesk { handle: handle(), keyring: keyring() },
            explains: Explains { queries: queries.clone(), looker },
            queries,
        }
    }

    fn delivery_admin_api(&self) -> DeliveryAdminApi {
        DeliveryAdminApi {
            cluster_id: self.cluster_id(),
            handle: self.handle.clone(),
            keyring: Arc::clone(&self.keyring),
            ingest: self.ingest(),
            looker: self.delivery.looker.clone(),
            meta: self.meta.clone(),
        }
    }

    fn lane_api(&self) -> LaneApi {
        LaneApi {
            cluster_id: self.cluster_id(),
            handle: self.handle.clone(),
            meta: self.meta.clone(),
            lanes: self.delivery.lanes.clone(),
            grants: self.delivery.grants.clone(),
        }
    }

    fn admin_api(&self) -> AdminApi {
        AdminApi {
            cluster_id: self.cluster_id(),
            handle: self.handle.clone(),
            meta: self.meta.clone(),
            keyring: Arc::clone(&self.keyring),
            telemetry: self.telemetry.clone(),
            lanes: self.delivery.lanes.clone(),
            connect: self.delivery.connect.clone(),
            hours: self.hours.clone(),
            desk: self.desk.clone(),
        }
    }

    /// Serves in the background until the value that is given back says that the node closes.
    pub fn serve(self, listeners: Listeners) -> Result<watch::Sender<bool>, tls::TlsError> {
        let (close, closed) = watch::channel(false);
        let until = |mut closed: watch::Receiver<bool>| async move { drop(closed.wait_for(|c| *c).await) };
        let peers = tls::incoming(listeners.peers, tls::server_config(&self.config.peer_tls)?);
        let operators = tls::incoming(listeners.operators, tls::server_config(&self.config.admin_tls)?);
        let peer_plane = server()
            .add_service(
                PeerServer::new(self.peer_api()).max_decoding_message_size(transport::FRAME_BYTES_MAX),
            )
            .add_service(StewardServer::new(self.steward_api()))
            .add_service(NodeServer::new(self.node_api()).max_decoding_message_size(NODE_MESSAGE_BYTES_MAX));
        tokio::spawn(peer_plane.serve_with_incoming_shutdown(peers, until(closed.clone())));
        let admin_plane = server()
            .add_service(
                AdminServer::new(self.admin_api()).max_decoding_message_size(ADMIN_MESSAGE_BYTES_MAX),
            )
            .add_service(DeliveryAdminServer::new(self.delivery_admin_api()))
            .add_service(LaneAdminServer::new(self.lane_api()));
        tokio::spawn(admin_plane.serve_with_incoming_shutdown(operators, until(closed.clone())));
        if let Some(bound) = listeners.callbacks {
            let api = CallbackApi { handle: self.handle.clone(), lanes: self.delivery.lanes.clone() };
            tokio::spawn(callbacks::serve(bound, api, closed));
        }
        Ok(close)
    }
}

fn server() -> Server {
    Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(512 << 10)
        .max_concurrent_streams(1024)
}
