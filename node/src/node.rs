//! Wires the wings together, serves the planes, and stops everything in the right order.
//!
//! Stop order: not ready -> drain the carriers -> hand over what it leads -> close the listeners -> stop the engine. So nobody
//! finds an attempt without an answer, and no caller finds a partition without a leader. A crash skips all of it and
//! loses nothing that was acknowledged.
use crate::config::{Config, KeyConfig};
use crate::delivery::{self, Delivery};
use crate::edge::callbacks;
use crate::edge::quarantine;
use crate::engine::identity::Identity;
use crate::engine::peers::PeerChannels;
use crate::engine::{self, Engine, NodeHandle};
use crate::hours::Hours;
use crate::leave::hand_over;
use crate::meta::{Carrier, Desk, Membership, MetaClient, Registrar, SelfView, Steward, enter, found};
use crate::planes::{Listeners, Parts};
use crate::retention;
use crate::seal::{FileKeyProvider, KeyProvider, Keyring};
use carillon_proto::telemetry::{self, ReadyCheck, Telemetry};
use carillon_proto::tls;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;

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
    let client = tls::client_config(&config.peer_tls)?;
    let peer_listener = telemetry::bind("peers", config.peer_listen).await?;
    let admin_listener = telemetry::bind("operators", config.admin_listen).await?;
    let http_listener = telemetry::bind("http", config.http_listen).await?;
    // From the first moment: waiting for others and replaying a log may take long, and both are life.
    let ready = Arc::new(OnceLock::new());
    if let Some(telemetry) = telemetry.clone() {
        let ready = until_known(Arc::clone(&ready));
        tokio::spawn(async move { telemetry.serve_http(http_listener, ready).await });
    }
    let callbacks = callbacks::bind(config.carriers.callbacks.as_ref()).await?;
    let provider: Arc<dyn KeyProvider> = match &config.keys {
        KeyConfig::File { file } => Arc::new(FileKeyProvider::open(file)?),
    };
    let identity = Identity::open(&config.data_dir, config.node_id, engine::has_log(&config))?;
    let identity = Arc::new(identity);
    let membership = enter(&config, &identity, &client, &peer_listener).await?;
    let listeners = Listeners { peers: peer_listener, operators: admin_listener, callbacks };
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

    let parts = Parts {
        config: &config,
        handle: handle.clone(),
        inbox: engine.inbox.clone(),
        meta,
        keyring,
        ids: Arc::default(),
        classes: Arc::new(config.classes.table()?),
        hours,
        delivery: &delivery,
        identity,
        own,
        carrier,
        desk,
        telemetry,
    };
    tokio::spawn(parts.maker().run());
    let close = parts.serve(listeners)?;
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
        self.handle.leavers().leave();
        self.delivery.drain(DRAIN_LIMIT).await;
        hand_over(&self.handle, HAND_OVER_LIMIT).await;
        self.close.send_replace(true);
        let engine = self.engine;
        if tokio::task::spawn_blocking(move || engine.stop()).await.is_err() {
            tracing::error!("the engine did not stop cleanly");
        }
    }
}
