//! Wires the wings together, serves the planes, and stops everything in the right order.
//!
//! Stop order: not ready -> drain the carriers -> hand over what it leads -> close the listeners -> stop the engine. So nobody
//! finds an attempt without an answer, and no caller finds a partition without a leader. A crash skips all of it and
//! loses nothing that was acknowledged.
use crate::config::{Config, KeyConfig};
use crate::delivery::{self, Delivery};
use crate::edge::admin::AdminApi;
use crate::edge::callbacks::{self, CallbackApi};
use crate::edge::cancel::Cancels;
use crate::edge::delivery_admin::DeliveryAdminApi;
use crate::edge::explain::Explains;
use crate::edge::ingest::Ingest;
use crate::edge::lanes::LaneApi;
use crate::edge::node_api::NodeApi;
use crate::edge::peer::PeerApi;
use crate::edge::quarantine;
use crate::edge::query::Queries;
use crate::edge::series::SeriesDesk;
use crate::edge::steward_api::StewardApi;
use crate::edge::update::Updates;
use crate::engine::identity::Identity;
use crate::engine::peers::PeerChannels;
use crate::engine::{self, Engine, NodeHandle, transport};
use crate::hours::Hours;
use crate::leave::hand_over;
use crate::meta::{Carrier, Desk, Membership, MetaClient, Registrar, SelfView, Steward, enter, found};
use crate::retention;
use crate::seal::{FileKeyProvider, KeyProvider, Keyring};
use crate::series::Maker;
use carillon_proto::admin::admin_server::AdminServer;
use carillon_proto::admin::delivery_admin_server::DeliveryAdminServer;
use carillon_proto::admin::lane_admin_server::LaneAdminServer;
use carillon_proto::internal::node_server::NodeServer;
use carillon_proto::internal::peer_server::PeerServer;
use carillon_proto::internal::steward_server::StewardServer;
use carillon_proto::telemetry::{self, ReadyCheck, Telemetry};
use carillon_proto::tls;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tonic::transport::Server;

/// Largest request of a router: 1,000 messages with everything in them.
const NODE_MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Largest request of an operator: practices and wrapped keys of a whole backup.
const ADMIN_MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Longest graceful stop.
const DRAIN_LIMIT: Duration = Duration::from_secs(8);
const HAND_OVER_LIMIT: Duration = Duration::from_secs(5);

/// A running node.
pub struct Node {
    pub handle: NodeHandle,
    delivery: Delivery,
    engine: Engine,
    stopping: Arc<AtomicBool>,
    close: watch::Sender<bool>,
}

/// Comes into the cluster, opens the data, starts everything and serves. Returns once the node can take part; readiness follows
/// when it knows its leaders.
pub async fn start(config: Config, telemetry: Option<Telemetry>) -> anyhow::Result<Node> {
    let peer_files = &config.peer_tls;
    let client = tls::client_config(peer_files)?;
    let peer_listener = telemetry::bind("peers", config.peer_listen).await?;
    let admin_listener = telemetry::bind("operators", config.admin_listen).await?;
    let http_listener = telemetry::bind("http", config.http_listen).await?;
    // From the first moment: waiting for others and replaying a log may take long, and both are life.
    let ready = Arc::new(OnceLock::new());
    if let Some(telemetry) = telemetry.clone() {
        let ready = until_known(Arc::clone(&ready));
        tokio::spawn(async move { telemetry.serve_http(http_listener, ready).await });
    }
    let callback_listener = callbacks::bind(config.carriers.callbacks.as_ref()).await?;
    let provider: Arc<dyn KeyProvider> = match &config.keys {
        KeyConfig::File { file } => Arc::new(FileKeyProvider::open(file)?),
    };
    let identity = Identity::open(&config.data_dir, config.node_id, engine::has_log(&config))?;
    let identity = Arc::new(identity);
    let membership = enter(&config, &identity, &client, &peer_listener).await?;
    let channels = Arc::new(PeerChannels::new(config.node_id, &membership.members(), client)?);
    let mut engine = open_engine(&config, &membership, &channels, &identity).await?;
    let handle = engine.handle.clone();
    let meta = MetaClient::new(handle.clone(), Arc::clone(&channels));
    let keyring = Arc::new(Keyring::new(provider, handle.clone(), meta.clone()));
    let events = engine.take_driver_events();
    let hours = Hours::default();
    let delivery = delivery::start(
        &config,
        handle.clone(),
        Arc::clone(&keyring),
        Arc::clone(&channels),
        meta.clone(),
        hours.clone(),
        events,
    )?;
    tokio::spawn(retention::run(handle.clone(), config.retention.clone()));
    tokio::spawn(quarantine::watch(handle.clone()));
    let stopping = Arc::new(AtomicBool::new(false));
    let own = SelfView {
        handle: handle.clone(),
        shares: delivery.shares.clone(),
        store_id: identity.store_id(),
        stopping: Arc::clone(&stopping),
    };
    let carrier = Carrier { handle: handle.clone(), channels: Arc::clone(&channels), meta: meta.clone() };
    let desk = start_steward(&own, &carrier);
    tokio::spawn(belong(membership, registrar(&config, &carrier, &identity)));

    let (close, closed) = watch::channel(false);
    let peer_api = PeerApi {
        cluster_id: config.cluster_id.clone(),
        handle: handle.clone(),
        inbox: engine.inbox.clone(),
        meta: meta.clone(),
        receipts: delivery.receipts.clone(),
        grants: delivery.grants.clone(),
        identity: Arc::clone(&identity),
    };
    let steward_api = StewardApi {
        cluster_id: config.cluster_id.clone(),
        handle: handle.clone(),
        meta: meta.clone(),
        own,
        carrier,
    };
    let queries = Queries { handle: handle.clone(), keyring: Arc::clone(&keyring) };
    let classes = Arc::new(config.classes.table()?);
    let ingest = Ingest {
        handle: handle.clone(),
        keyring: Arc::clone(&keyring),
        classes: Arc::clone(&classes),
        hours: hours.clone(),
        lanes: delivery.looker.clone(),
        connect: delivery.connect.clone(),
        lab: config.lab,
    };
    let maker = Maker { handle: handle.clone(), keyring: Arc::clone(&keyring), ingest: ingest.clone() };
    tokio::spawn(maker.run());
    let delivery_admin = DeliveryAdminApi {
        cluster_id: config.cluster_id.clone(),
        handle: handle.clone(),
        keyring: Arc::clone(&keyring),
        ingest: ingest.clone(),
        looker: delivery.looker.clone(),
        meta: meta.clone(),
    };
    let node_api = NodeApi {
        cluster_id: config.cluster_id.clone(),
        handle: handle.clone(),
        ingest,
        cancels: Cancels { handle: handle.clone(), keyring: Arc::clone(&keyring) },
        updates: Updates { handle: handle.clone(), keyring: Arc::clone(&keyring), classes },
        series: SeriesDesk { handle: handle.clone(), keyring: Arc::clone(&keyring) },
        explains: Explains { queries: queries.clone(), looker: delivery.looker.clone() },
        queries,
    };
    let lane_api = LaneApi {
        cluster_id: config.cluster_id.clone(),
        handle: handle.clone(),
        meta: meta.clone(),
        lanes: delivery.lanes.clone(),
        grants: delivery.grants.clone(),
    };
    let admin_api = AdminApi {
        cluster_id: config.cluster_id.clone(),
        handle: handle.clone(),
        meta,
        keyring,
        telemetry: telemetry.clone(),
        lanes: delivery.lanes.clone(),
        connect: delivery.connect.clone(),
        hours,
        desk,
    };
    let peers = tls::incoming(peer_listener, tls::server_config(peer_files)?);
    let operators = tls::incoming(admin_listener, tls::server_config(&config.admin_tls)?);
    let peer_plane = server()
        .add_service(PeerServer::new(peer_api).max_decoding_message_size(transport::FRAME_BYTES_MAX))
        .add_service(StewardServer::new(steward_api))
        .add_service(NodeServer::new(node_api).max_decoding_message_size(NODE_MESSAGE_BYTES_MAX));
    let until = |mut closed: watch::Receiver<bool>| async move { drop(closed.wait_for(|c| *c).await) };
    tokio::spawn(peer_plane.serve_with_incoming_shutdown(peers, until(closed.clone())));
    let admin_plane = server()
        .add_service(AdminServer::new(admin_api).max_decoding_message_size(ADMIN_MESSAGE_BYTES_MAX))
        .add_service(DeliveryAdminServer::new(delivery_admin))
        .add_service(LaneAdminServer::new(lane_api));
    if let Some(bound) = callback_listener {
        let api = CallbackApi { handle: handle.clone(), lanes: delivery.lanes.clone() };
        tokio::spawn(callbacks::serve(bound, api, closed.clone()));
    }
    tokio::spawn(admin_plane.serve_with_incoming_shutdown(operators, until(closed)));
    let _set_only_here = ready.set(ready_check(handle.clone(), Arc::clone(&stopping)));
    tracing::info!(node = config.node_id, peer = %config.peer_listen, "serving");
    Ok(Node { handle, delivery, engine, stopping, close })
}

/// Recovery may take seconds and reads files, so it gets a thread of its own.
async fn open_engine(
    config: &Config,
    membership: &Membership,
    channels: &Arc<PeerChannels>,
    identity: &Arc<Identity>,
) -> anyhow::Result<Engine> {
    let (config, membership) = (config.clone(), membership.clone());
    let (channels, identity) = (Arc::clone(channels), Arc::clone(identity));
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let _inside = runtime.enter();
        engine::start(&config, &membership, &channels, &identity)
    })
    .await?
}

fn start_steward(own: &SelfView, carrier: &Carrier) -> Desk {
    let desk = Desk::default();
    let steward = Steward {
        handle: carrier.handle.clone(),
        channels: Arc::clone(&carrier.channels),
        own: own.clone(),
        carrier: carrier.clone(),
        desk: desk.clone(),
    };
    tokio::spawn(steward.run());
    desk
}

fn registrar(config: &Config, carrier: &Carrier, identity: &Identity) -> Registrar {
    Registrar {
        handle: carrier.handle.clone(),
        meta: carrier.meta.clone(),
        channels: Arc::clone(&carrier.channels),
        store_id: identity.store_id(),
        data_dir: config.data_dir.clone(),
        peer_address: config.advertised(),
        feature_level: config.feature_level(),
    }
}

/// Creates the cluster or makes sure that it is the right one, then keeps this node registered in it. A cluster that does not want
/// this node must not have it: its data is left as it is, for the operator to see.
async fn belong(membership: Membership, registrar: Registrar) {
    let belonging = async {
        found(&membership, &registrar.handle).await?;
        registrar.run(membership).await
    };
    if let Err(error) = belonging.await {
        tracing::error!(%error, "this node does not belong here; stopping");
        std::process::exit(2);
    }
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

/// Until there is a check, the node is not ready.
fn until_known(check: Arc<OnceLock<ReadyCheck>>) -> ReadyCheck {
    Arc::new(move || match check.get() {
        Some(check) => check(),
        None => Err("starting: it comes into its cluster, or reads what it has".to_owned()),
    })
}

/// Ready: the cluster exists, this node learns its meta group, and every group that it has a replica of has a known leader.
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
        if !hosted.contains_key(&0) {
            return Err("this node has not learned the meta group yet".to_owned());
        }
        let without = hosted.keys().filter(|g| leaders.get(g).is_none_or(|l| l.leader == 0));
        // A replica that is out of service knows nothing; the node serves with the others.
        let without = without.filter(|group| !handle.is_fenced(**group)).count();
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
        hand_over(&self.handle, HAND_OVER_LIMIT).await;
        self.close.send_replace(true);
        let engine = self.engine;
        if tokio::task::spawn_blocking(move || engine.stop()).await.is_err() {
            tracing::error!("the engine did not stop cleanly");
        }
    }
}
