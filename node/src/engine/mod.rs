//! The replicated engine: raft groups on one shard thread, one log writer, one applier, peer streams, snapshots.
//!
//! Start at [`start`]; everything else talks to it through [`NodeHandle`]. Threads, and who waits for whom:
//! the shard for nobody (what the log writer or the applier has no room for stays with it, `hand_over.rs`); log writer,
//! applier and maintenance for room among the completions, which the shard takes in every turn; the applier for the driver.
mod applier;
mod catchup;
mod cell;
mod damage;
mod hand_over;
pub mod handle;
pub mod identity;
mod log_writer;
pub mod maintenance;
pub mod members;
mod opening;
pub mod peers;
mod recovery;
mod references;
mod report;
pub mod scrub;
pub mod shard;
pub mod snapshot;
pub mod transport;
pub mod upkeep;
mod wiring;

use crate::config::Config;
use crate::leave::Leavers;
use crate::meta::Membership;
use crate::space::Space;
use applier::DRIVER_EVENTS_MAX;
use carillon_store::StateDb;
pub use damage::remedy;
pub use handle::{DriverEvent, MemberError, NodeHandle, PROPOSAL_BYTES_MAX, ProposeError};
use handle::{IN_FLIGHT_BYTES_MAX, Shared};
use identity::Identity;
use maintenance::MaintenanceMessage;
use members::GroupSettings;
pub use members::MemberMessage;
use opening::{open_groups, open_stores};
use peers::PeerChannels;
pub use references::References;
use scrub::ScrubMessage;
use shard::ShardMessage;
use snapshot::{Hub, HubParts};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::{Semaphore, mpsc};
use wiring::{Common, Lines};

/// Running threads, and what to tell them to stop.
pub struct Engine {
    pub handle: NodeHandle,
    driver_events: Option<mpsc::Receiver<DriverEvent>>,
    pub inbox: crossbeam_channel::Sender<ShardMessage>,
    pub maintenance: crossbeam_channel::Sender<MaintenanceMessage>,
    scrub: crossbeam_channel::Sender<ScrubMessage>,
    snapshots: Arc<Hub>,
    threads: Vec<JoinHandle<()>>,
}

/// Whether there is a raft log.
pub fn has_log(config: &Config) -> bool {
    config.data_dir.join("log").exists()
}

/// Opens the stores, recovers every group and starts the threads. Must run inside a tokio runtime (peer streams).
pub fn start(
    config: &Config,
    membership: &Membership,
    channels: &Arc<PeerChannels>,
    identity: &Identity,
) -> anyhow::Result<Engine> {
    open(config, membership, channels, identity)
        .map_err(|error| damage::with_remedy(error, config.node_id, &config.data_dir))
}

fn open(
    config: &Config,
    membership: &Membership,
    channels: &Arc<PeerChannels>,
    identity: &Identity,
) -> anyhow::Result<Engine> {
    crate::clock::bound(config.tuning.clock_skew_ms_max);
    let space = Space::new(membership.node_id);
    space.watch(&config.data_dir, &config.disk)?;
    let stores = open_stores(config, membership, identity)?;
    let settings = GroupSettings::of(config);
    let opened = open_groups(membership, &settings, &stores)?;
    let running: Vec<u32> = opened.cells.keys().copied().collect();
    let lines = Lines::new();
    let leavers = Arc::<Leavers>::default();
    let origin = origin(config, identity, (&space, &leavers));
    let peers = transport::start(origin, channels, lines.inbox.0.clone());
    let snapshots = Arc::new(open_hub(config, &stores.state, &lines, channels)?);
    let (common, changing) =
        Common::new(config, &stores, &opened, (Arc::clone(&space), Arc::clone(&snapshots)))?;

    let (driver, driver_events) = mpsc::channel(DRIVER_EVENTS_MAX);
    let groups = (settings, opened.cells);
    let shard = common.shard(&lines, groups, (changing.leaders, changing.hosted), peers.clone());
    let writer = common.log_writer(&lines, peers);
    let applier = common.applier(&lines, driver, (changing.meta_changed, changing.applied));
    let apply = move || {
        if let Err(error) = applier.run(&running) {
            tracing::error!(%error, "applier cannot start; stopping");
            std::process::abort();
        }
    };
    let (keeper, scrubber) = (common.keeper(&lines), common.scrubber(&lines));
    let (hub, work) = (Arc::clone(&snapshots), lines.work.1.clone());
    let threads = vec![
        spawn("log-writer", move || writer.run())?,
        spawn("applier", apply)?,
        spawn("maintenance", move || keeper.run())?,
        spawn("snapshots", move || snapshot::run_worker(&hub, &work))?,
        spawn("shard-0", move || shard.run())?,
        spawn("scrub", move || scrubber.run())?,
    ];
    let Lines { inbox, maintenance, scrub, .. } = lines;
    let shared = Shared {
        node_id: config.node_id,
        partitions: membership.partitions,
        inbox: inbox.0.clone(),
        state: Arc::clone(&stores.state),
        leaders: common.leaders,
        hosted: common.hosted,
        snapshots: Arc::clone(&snapshots),
        meta: common.meta,
        meta_changed: common.meta_changed,
        applied: common.applied,
        references: common.references,
        admission: Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX)),
        space,
        leavers,
        fenced: common.fenced,
        scrub: scrub.0.clone(),
    };
    Ok(Engine {
        handle: NodeHandle { shared: Arc::new(shared) },
        driver_events: Some(driver_events),
        inbox: inbox.0,
        maintenance: maintenance.0,
        scrub: scrub.0,
        snapshots,
        threads,
    })
}

fn origin(
    config: &Config,
    identity: &Identity,
    (space, leavers): (&Arc<Space>, &Arc<Leavers>),
) -> transport::Origin {
    transport::Origin {
        node_id: config.node_id,
        store_id: identity.store_id(),
        cluster_id: Arc::from(config.cluster_id.as_str()),
        space: Arc::clone(space),
        leavers: Arc::clone(leavers),
    }
}

fn open_hub(
    config: &Config,
    state: &Arc<StateDb>,
    lines: &Lines,
    channels: &Arc<PeerChannels>,
) -> anyhow::Result<Hub> {
    Hub::new(HubParts {
        node_id: config.node_id,
        dir: config.data_dir.join("snapshots"),
        bytes_per_second: config.tuning.snapshot_bytes_per_s_max,
        state: Arc::clone(state),
        inbox: lines.inbox.0.clone(),
        work: lines.work.0.clone(),
        channels: Arc::clone(channels),
    })
}

/// A hot thread: a panic in it stops the process, because a half-dead engine must not go on acknowledging.
fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err() {
            std::process::abort();
        }
    })
}

impl Engine {
    /// What the delivery driver listens to. Can be taken once.
    pub fn take_driver_events(&mut self) -> mpsc::Receiver<DriverEvent> {
        self.driver_events.take().expect("taken once, by the node's start")
    }

    /// Stops the threads: what is acknowledged is on disk already, the rest is replayed at the next start. Blocks.
    pub fn stop(self) {
        self.snapshots.stop();
        drop(self.inbox.send(ShardMessage::Stop));
        drop(self.maintenance.send(MaintenanceMessage::Stop));
        drop(self.scrub.send(ScrubMessage::Stop));
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread ended badly");
            }
        }
    }
}
