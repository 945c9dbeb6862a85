//! The cached map of the cluster. Requests read an immutable snapshot; the streams of [`watch`] and the hints of nodes
//! change it.
//!
//! Invariant: a snapshot is never changed. A request that has to try again takes a new one.
mod state;
pub mod watch;

pub use state::{Leader, MapError, Practice, Practices};

use crate::deadline::Deadline;
use crate::nodes::{Dialer, NodeLink};
use arc_swap::ArcSwap;
use carillon_proto::internal::MapUpdate;
use parking_lot::Mutex;
use rand::Rng as _;
use state::MapState;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// One consistent view.
#[derive(Default)]
pub struct ClusterMap {
    state: MapState,
    links: HashMap<u64, Arc<NodeLink>>,
}

impl ClusterMap {
    /// 0 = not known yet.
    pub fn partitions(&self) -> u32 {
        self.state.partitions
    }

    /// The leader of a partition; `None` when no node has named one that we can reach.
    pub fn leader(&self, partition: u32) -> Option<&Arc<NodeLink>> {
        let leader = self.state.leaders.get(partition as usize)?;
        self.links.get(&leader.node)
    }

    /// The node id of the leader, 0 if none is known.
    pub fn leader_id(&self, partition: u32) -> u64 {
        self.state.leaders.get(partition as usize).map_or(0, |l| l.node)
    }

    /// How many partitions have a known leader.
    pub fn led(&self) -> usize {
        self.state.leaders.iter().filter(|l| l.node != 0).count()
    }

    /// The practices of a tenant.
    pub fn practices(&self, tenant: &str) -> Option<&Arc<Practices>> {
        self.state.tenants.get(tenant)
    }

    pub fn practice(&self, tenant: &str, name: &str) -> Option<&Practice> {
        self.practices(tenant)?.get(name)
    }

    fn addresses(&self) -> impl Iterator<Item = (u64, &String)> {
        self.state.nodes.iter().map(|(id, address)| (*id, address))
    }
}

/// The map and everybody who waits for it to change.
pub struct MapCache {
    cluster_id: String,
    dialer: Dialer,
    working: Mutex<MapState>,
    snapshot: ArcSwap<ClusterMap>,
    changed: tokio::sync::watch::Sender<u64>,
    /// Map streams that are open now.
    open_streams: AtomicUsize,
    started: Instant,
    /// Milliseconds after `started` at which the last stream was lost.
    lost_at_ms: AtomicU64,
}

impl MapCache {
    pub fn new(cluster_id: String, dialer: Dialer) -> Arc<Self> {
        Arc::new(Self {
            cluster_id,
            dialer,
            working: Mutex::default(),
            snapshot: ArcSwap::default(),
            changed: tokio::sync::watch::Sender::new(0),
            open_streams: AtomicUsize::new(0),
            started: Instant::now(),
            lost_at_ms: AtomicU64::new(0),
        })
    }

    pub fn load(&self) -> Arc<ClusterMap> {
        self.snapshot.load_full()
    }

    /// Wakes at every change after this call.
    pub fn subscribe(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Takes in an update and publishes the result.
    pub fn apply(&self, update: MapUpdate) -> Result<(), MapError> {
        let mut working = self.working.lock();
        if working.apply(&self.cluster_id, update)? {
            self.publish(&working);
        }
        Ok(())
    }

    /// See [`MapState::hint`]. True when the map changed.
    pub fn hint(&self, partition: u32, asked: u64, leader: u64) -> bool {
        let mut working = self.working.lock();
        let taken = working.hint(partition, asked, leader);
        if taken {
            self.publish(&working);
        }
        taken
    }

    fn publish(&self, working: &MapState) {
        let old = self.snapshot.load();
        let mut links = HashMap::with_capacity(working.nodes.len());
        for (id, address) in &working.nodes {
            let known = old.links.get(id).filter(|link| link.address() == address).cloned();
            match known.map_or_else(|| self.dialer.dial(*id, address).map(Arc::new), Ok) {
                Ok(link) => drop(links.insert(*id, link)),
                Err(error) => tracing::error!(node = *id, %error, "the address of a node is unusable"),
            }
        }
        self.snapshot.store(Arc::new(ClusterMap { state: working.clone(), links }));
        self.changed.send_modify(|version| *version += 1);
    }

    /// Returns once another node than `node` is known to lead one of `partitions`.
    pub async fn leadership_moved(&self, node: u64, partitions: &[u32]) {
        let mut changed = self.subscribe();
        loop {
            let map = self.load();
            if partitions.iter().map(|p| map.leader_id(*p)).any(|leader| leader != 0 && leader != node) {
                return;
            }
            if changed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Waits for `pause`, a change of the map or the deadline, whichever is first. After a change callers come back
    /// spread over a few milliseconds.
    pub async fn pause(&self, pause: Duration, deadline: Deadline) {
        let mut changed = self.subscribe();
        let pause = pause.min(deadline.remaining());
        if let Ok(Ok(())) = tokio::time::timeout(pause, changed.changed()).await {
            let spread_ms = rand::rng().random_range(0..=10);
            tokio::time::sleep(Duration::from_millis(spread_ms).min(deadline.remaining())).await;
        }
    }

    /// Ready when the map is known and somebody leads something.
    pub fn ready(&self) -> Result<(), String> {
        let map = self.load();
        match (map.partitions(), map.led()) {
            (0, _) => Err("the map of the cluster is not known yet".to_owned()),
            (_, 0) => Err("no partition has a known leader".to_owned()),
            _ => Ok(()),
        }
    }

    fn stream_opened(&self) {
        self.open_streams.fetch_add(1, Ordering::Relaxed);
    }

    fn stream_closed(&self) {
        self.lost_at_ms.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.open_streams.fetch_sub(1, Ordering::Relaxed);
    }

    /// Zero while a node keeps us up to date, else since when none does.
    pub fn age(&self) -> Duration {
        if self.open_streams.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        let lost = Duration::from_millis(self.lost_at_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(lost)
    }
}
