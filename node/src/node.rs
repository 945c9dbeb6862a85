//! Wires the wings together, serves the planes, and stops everything in the right order.
//!
//! Stop order: not ready -> no new calls -> drain the carriers -> close the listeners -> stop the engine. A crash skips all of it
//! and loses nothing that was acknowledged.
use crate::config::{Config, KeyConfig};
use crate::delivery::{self, Delivery};
use crate::edge::admin::AdminApi;
use crate::edge::cancel::Cancels;
use crate::edge::ingest::Ingest;
use crate::edge::node_api::NodeApi;
use crate::edge::peer::PeerApi;
use crate::edge::query::Queries;
use crate::engine::identity::Identity;
use crate::engine::{self, Engine, NodeHandle, transport};
use crate::meta::{MetaClient, run_steward};
use crate::retention;
use crate::seal::{FileKeyProvider, KeyProvider, Keyring};
use carillon_proto::admin::admin_server::AdminServer;
use carillon_proto::internal::node_server::NodeServer;
use carillon_proto::internal::peer_server::PeerServer;
use carillon_proto::telemetry::{self, ReadyCheck, Telemetry};
use carillon_proto::tls;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tonic::transport::Server;

/// Largest request of a router: 1,000 messages with everything in them.
const NODE_MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Longest graceful stop.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// A running node.
pub struct Node {
    pub handle: NodeHandle,
    delivery: Delivery,
    engine: Engine,
    stopping: Arc<AtomicBool>,
    close: watch::Sender<bool>,
}

/// Opens the data, starts everything and serves. Returns once the node can take part in the cluster; readiness follows when it
/// knows its leaders.
pub async fn start(config: Config, telemetry: Option<Telemetry>) -> anyhow::Result<Node> {
    let peer_files = &config.peer_tls;
    let members: Vec<(u64, String)> =
        config.members.iter().map(|m| (m.node_id, m.peer_address.clone())).collect();
    let client = tls::client_config(peer_files)?;
    let channels = Arc::new(transport::channels(config.node_id, &members, &client)?);
    let peer_listener = telemetry::bind("peers", config.peer_listen).await?;
    let admin_listener = telemetry::bind("operators", config.admin_listen).await?;
    let http_listener = telemetry::bind("http", config.http_listen).await?;
    let provider: Arc<dyn KeyProvider> = match &config.keys {
        KeyConfig::File { file } => Arc::new(FileKeyProvider::open(file)?),
    };

    let identity = Identity::open(&config.data_dir, config.node_id, engine::has_log(&config))?;
    if identity.is_new() {
        identity.ask_before_creating(&channels).await?;
    }
    let identity = Arc::new(identity);
    let start_identity = Arc::clone(&identity);
    let start_config = config.clone();
    let start_channels = Arc::clone(&channels);
    let runtime = tokio::runtime::Handle::current();
    let mut engine = tokio::task::spawn_blocking(move || {
        let _inside = runtime.enter();
        engine::start(&start_config, &start_channels, &start_identity)
    })
    .await??;
    let handle = engine.handle.clone();
    let meta = MetaClient::new(handle.clone(), Arc::clone(&channels));
    let keyring = Arc::new(Keyring::new(provider, handle.clone(), meta.clone()));
    let events = engine.take_driver_events();
    let delivery =
        delivery::start(&config, handle.clone(), Arc::clone(&keyring), Arc::clone(&channels), events)?;

    let steward_config = config.clone();
    let steward_handle = handle.clone();
    tokio::spawn(async move {
        if let Err(error) = run_steward(&steward_config, steward_handle).await {
            tracing::error!(%error, "this node does not belong here; stopping");
            std::process::exit(2);
        }
    });

    tokio::spawn(retention::run(handle.clone(), config.retention.clone()));

    let stopping = Arc::new(AtomicBool::new(false));
    let (close, closed) = watch::channel(false);
    let peer_api = PeerApi {
        cluster_id: config.cluster_id.clone(),
        handle: handle.clone(),
        inbox: engine.inbox.clone(),
        meta: meta.clone(),
        receipts: delivery.receipts.clone(),
        identity,
    };
    let node_api = NodeApi {
        cluster_id: config.cluster_id.clone(),
        handle: handle.clone(),
        ingest: Ingest { handle: handle.clone(), keyring: Arc::clone(&keyring), lab: config.lab },
        queries: Queries { handle: handle.clone(), keyring: Arc::clone(&keyring) },
        cancels: Cancels { handle: handle.clone(), keyring: Arc::clone(&keyring) },
    };
    let admin_api = AdminApi {
        cluster_id: config.cluster_id.clone(),
        handle: handle.clone(),
        meta,
        keyring,
        telemetry: telemetry.clone(),
        lanes: delivery.lanes.clone(),
    };
    let peers = tls::incoming(peer_listener, tls::server_config(peer_files)?);
    let operators = tls::incoming(admin_listener, tls::server_config(&config.admin_tls)?);
    let peer_plane = server()
        .add_service(PeerServer::new(peer_api).max_decoding_message_size(transport::FRAME_BYTES_MAX))
        .add_service(NodeServer::new(node_api).max_decoding_message_size(NODE_MESSAGE_BYTES_MAX));
    let until = |mut closed: watch::Receiver<bool>| async move { drop(closed.wait_for(|c| *c).await) };
    tokio::spawn(peer_plane.serve_with_incoming_shutdown(peers, until(closed.clone())));
    let admin_plane = server().add_service(AdminServer::new(admin_api));
    tokio::spawn(admin_plane.serve_with_incoming_shutdown(operators, until(closed)));
    if let Some(telemetry) = telemetry {
        let ready = ready_check(handle.clone(), Arc::clone(&stopping));
        tokio::spawn(async move { telemetry.serve_http(http_listener, ready).await });
    }
    tracing::info!(node = config.node_id, peer = %config.peer_listen, "serving");
    Ok(Node { handle, delivery, engine, stopping, close })
}

fn server() -> Server {
    Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_concurrent_streams(1024)
}

/// Ready: the cluster exists and every group with a replica here has a leader that is known here.
fn ready_check(handle: NodeHandle, stopping: Arc<AtomicBool>) -> ReadyCheck {
    Arc::new(move || {
        if stopping.load(Ordering::Relaxed) {
            return Err("stopping".to_owned());
        }
        if handle.meta().cluster_id.is_empty() {
            return Err("the cluster is not created yet".to_owned());
        }
        let leaders = handle.leaders();
        let leaders = leaders.borrow();
        let hosted = handle.hosted();
        let hosted = hosted.borrow();
        let without = hosted.keys().filter(|g| leaders.get(g).is_none_or(|l| l.leader == 0)).count();
        if without > 0 {
            return Err(format!("{without} groups have no known leader"));
        }
        Ok(())
    })
}

impl Node {
    /// Stops gracefully.
    pub async fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.delivery.drain(DRAIN_LIMIT).await;
        self.close.send_replace(true);
        let engine = self.engine;
        if tokio::task::spawn_blocking(move || engine.stop()).await.is_err() {
            tracing::error!("the engine did not stop cleanly");
        }
    }
}
