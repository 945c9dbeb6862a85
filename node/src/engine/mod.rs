//! The replicated engine: raft groups on one shard thread, one log writer, one applier, peer streams, snapshots.
//!
//! Start at [`start`]; everything else talks to it through [`NodeHandle`]. Threads, and who waits for whom:
//! the shard for nobody (what the log writer or the applier has no room for stays with it, `hand_over.rs`); log writer,
//! applier and maintenance for room among the completions, which the shard takes in every turn; the applier for the driver.
mod applier;
mod catchup;
mod cell;
mod hand_over;
pub mod handle;
pub mod identity;
mod log_writer;
pub mod maintenance;
pub mod members;
pub mod peers;
mod recovery;
mod references;
mod report;
pub mod scrub;
pub mod shard;
pub mod snapshot;
pub mod transport;
pub mod upkeep;

use crate::config::Config;
use crate::meta::Membership;
use crate::space::Space;
use applier::{Applier, DRIVER_EVENTS_MAX};
use arc_swap::ArcSwap;
use carillon_consensus::{LogStore, Outputs};
use carillon_core::meta::MetaView;
use carillon_store::{EngineLog, EngineLogOptions, PacerLimits, StateDb, StateOptions};
use cell::Cell;
use hand_over::{HAND_OVERS_MAX, HandOver};
pub use handle::{DriverEvent, MemberError, NodeHandle, PROPOSAL_BYTES_MAX, ProposeError};
use handle::{Fenced, Hosted, IN_FLIGHT_BYTES_MAX, Leaders, Shared};
use identity::Identity;
use log_writer::LogWriter;
use maintenance::{Maintenance, MaintenanceMessage};
use members::GroupSettings;
pub use members::MemberMessage;
use parking_lot::Mutex;
use peers::PeerChannels;
pub use references::References;
use scrub::{LastPass, ScrubMessage, Scrubber};
use shard::{COMPLETIONS_MAX, INBOX_MAX, Shard, ShardMessage};
use snapshot::{Hub, HubParts, WORK_MAX};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use upkeep::LogSlack;

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

struct Stores {
    log: Arc<EngineLog>,
    state: Arc<StateDb>,
}

fn open_stores(config: &Config, membership: &Membership, identity: &Identity) -> anyhow::Result<Stores> {
    let log_options = EngineLogOptions {
        purge_threshold_bytes: config.tuning.log_bytes_max,
        ..EngineLogOptions::default()
    };
    let log = Arc::new(EngineLog::open(&config.data_dir.join("log"), &log_options)?);
    let options = StateOptions {
        block_cache_bytes: config.tuning.block_cache_bytes,
        db_write_buffer_bytes: config.tuning.write_buffers_bytes,
        ..StateOptions::default()
    };
    let state = Arc::new(StateDb::open(&config.data_dir.join("state"), &options)?);
    if identity.is_new() {
        // One write, so there are all of them or none. A node that joins is given its replicas later.
        if log.groups().is_empty() && !membership.founders.is_empty() {
            recovery::create_groups(&log, membership)?;
        }
        identity.ready()?;
    }
    Ok(Stores { log, state })
}

/// What lives here, and what of it can run.
struct Opened {
    cells: BTreeMap<u32, Cell>,
    /// Replica ids, fenced ones too.
    hosted: Hosted,
    fenced: BTreeMap<u32, String>,
    /// Applied index of each group, 0 = not here.
    applied: Vec<u64>,
}

fn open_groups(membership: &Membership, settings: &GroupSettings, stores: &Stores) -> anyhow::Result<Opened> {
    let groups_max = membership.partitions as usize + 1;
    let mut opened = Opened {
        cells: BTreeMap::new(),
        hosted: recovery::settle(&stores.log, &stores.state, membership.node_id)?,
        fenced: BTreeMap::new(),
        applied: vec![0; groups_max],
    };
    for (&group, &replica_id) in &opened.hosted {
        anyhow::ensure!(
            (group as usize) < groups_max,
            "the log has group {group} of {}",
            membership.partitions
        );
        match recovery::open_group(&stores.log, &stores.state, settings.config(group, replica_id))? {
            Ok((running, applied)) => {
                opened.cells.insert(group, Cell::new(running));
                opened.applied[group as usize] = applied;
            }
            Err(reason) => {
                tracing::error!(group, reason, "replica fenced");
                opened.fenced.insert(group, reason);
            }
        }
    }
    metrics::gauge!("carillon_replicas_fenced").set(opened.fenced.len() as f64);
    Ok(opened)
}

/// A fenced meta group may still be read as far as it goes; a damaged one is unknown here. A node that joins gets it with
/// the first snapshot of the meta group.
fn load_view(state: &StateDb, hosted: bool, fenced: bool) -> anyhow::Result<MetaView> {
    if !hosted && !fenced {
        return Ok(MetaView::default());
    }
    match MetaView::load(&*state.replica(0)?) {
        Err(_) if fenced => Ok(MetaView::default()),
        loaded => Ok(loaded?),
    }
}

/// Opens the stores, recovers every group and starts the threads. Must run inside a tokio runtime (peer streams).
pub fn start(
    config: &Config,
    membership: &Membership,
    channels: &Arc<PeerChannels>,
    identity: &Identity,
) -> anyhow::Result<Engine> {
    let space = Space::new(membership.node_id);
    space.watch(&config.data_dir, &config.disk)?;
    let stores = open_stores(config, membership, identity)?;
    let Stores { log, state } = &stores;
    let settings = GroupSettings::of(config);
    let Opened { cells, hosted, fenced, applied } = open_groups(membership, &settings, &stores)?;
    let groups_max = applied.len();
    let running: Vec<u32> = cells.keys().copied().collect();
    let (applied_senders, applied_receivers): (Vec<_>, Vec<_>) =
        applied.into_iter().map(watch::channel).unzip();
    let meta =
        Arc::new(ArcSwap::from_pointee(load_view(state, hosted.contains_key(&0), fenced.contains_key(&0))?));
    let shared_fenced = Fenced::new(Mutex::new(fenced.clone()));

    let (inbox, inbox_receiver) = crossbeam_channel::bounded(INBOX_MAX);
    let (completions, completions_receiver) = crossbeam_channel::bounded(COMPLETIONS_MAX);
    let (log_tasks, log_tasks_receiver) = crossbeam_channel::bounded(HAND_OVERS_MAX);
    let (apply, apply_receiver) = crossbeam_channel::bounded(HAND_OVERS_MAX);
    let (work, work_receiver) = crossbeam_channel::bounded(WORK_MAX);
    let (maintenance, maintenance_receiver) = crossbeam_channel::bounded(INBOX_MAX);
    let (scrub, scrub_receiver) = crossbeam_channel::bounded(4);
    let (driver, driver_events) = mpsc::channel(DRIVER_EVENTS_MAX);
    let (leaders_sender, leaders) = watch::channel(Arc::new(Leaders::new()));
    let (hosted_sender, hosted) = watch::channel(Arc::new(hosted));
    let (meta_changed_sender, meta_changed) = watch::channel(meta.load().applied_index);
    let unflushed = Arc::new((0..groups_max).map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
    let origin = origin(config, identity, &space);
    let peers = transport::start(origin, channels, inbox.clone());
    let snapshots = Arc::new(open_hub(config, state, &inbox, work, channels)?);

    let references = Arc::new(References::default());
    let shard = Shard {
        node_id: config.node_id,
        settings,
        cells,
        fenced: Arc::clone(&shared_fenced),
        inbox: inbox_receiver,
        completions: completions_receiver,
        log_writer: HandOver::new("log_writer", log_tasks),
        log: Arc::clone(log) as Arc<dyn LogStore>,
        snapshots: Arc::clone(&snapshots),
        applier: HandOver::new("applier", apply),
        peers: peers.clone(),
        maintenance: maintenance.clone(),
        leaders: leaders_sender,
        tick: Duration::from_millis(config.tuning.tick_ms),
        in_flight_max: config.tuning.proposals_in_flight_max,
        next_ctx: 0,
        ticks: 0,
        outputs: Outputs::default(),
        slack: LogSlack { bytes: config.tuning.log_slack_bytes, entries: config.tuning.log_slack_entries },
        groups_max,
        hosted: hosted_sender,
        own_tasks: Vec::new(),
        creating: BTreeMap::new(),
        leaving: BTreeMap::new(),
    };
    let writer = LogWriter {
        log: Arc::clone(log) as Arc<dyn LogStore>,
        tasks: log_tasks_receiver,
        completions: completions.clone(),
        peers,
    };
    let applier = Applier {
        node_id: config.node_id,
        state: Arc::clone(state),
        messages: apply_receiver,
        completions: completions.clone(),
        driver,
        leaders: leaders.clone(),
        meta: Arc::clone(&meta),
        meta_changed: meta_changed_sender,
        applied: applied_senders,
        references: Arc::clone(&references),
        unflushed: Arc::clone(&unflushed),
        snapshots: Arc::clone(&snapshots),
    };
    let keeper = Maintenance {
        log: Arc::clone(log),
        state: Arc::clone(state),
        messages: maintenance_receiver,
        completions: completions.clone(),
        unflushed,
        limits: pacing(config),
        space: Arc::clone(&space),
        fenced: fenced.into_keys().collect(),
    };
    let scrubber = make_scrubber(config, &stores, &running, scrub_receiver, completions);
    let worker = (Arc::clone(&snapshots), work_receiver);
    let mut threads = spawn_all(shard, writer, (applier, running), keeper, worker)?;
    threads.push(spawn("scrub", move || scrubber.run())?);
    let shared = Shared {
        node_id: config.node_id,
        partitions: membership.partitions,
        inbox: inbox.clone(),
        state: Arc::clone(state),
        leaders,
        hosted,
        snapshots: Arc::clone(&snapshots),
        meta,
        meta_changed,
        applied: applied_receivers,
        references,
        admission: Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX)),
        space,
        fenced: shared_fenced,
        scrub: scrub.clone(),
    };
    let handle = NodeHandle { shared: Arc::new(shared) };
    Ok(Engine { handle, driver_events: Some(driver_events), inbox, maintenance, scrub, snapshots, threads })
}

fn origin(config: &Config, identity: &Identity, space: &Arc<Space>) -> transport::Origin {
    transport::Origin {
        node_id: config.node_id,
        store_id: identity.store_id(),
        cluster_id: Arc::from(config.cluster_id.as_str()),
        space: Arc::clone(space),
    }
}

fn pacing(config: &Config) -> PacerLimits {
    PacerLimits {
        unflushed_total_bytes_max: config.tuning.unflushed_log_bytes_max,
        unflushed_age_max_ms: config.tuning.unflushed_log_age_max_s * 1000,
        ..PacerLimits::default()
    }
}

fn make_scrubber(
    config: &Config,
    stores: &Stores,
    groups: &[u32],
    messages: crossbeam_channel::Receiver<ScrubMessage>,
    completions: crossbeam_channel::Sender<shard::Completion>,
) -> Scrubber {
    Scrubber {
        log: Arc::clone(&stores.log),
        state: Arc::clone(&stores.state),
        groups: groups.to_vec(),
        messages,
        completions,
        settings: config.scrub.clone(),
        last_file: LastPass::new(&config.data_dir),
    }
}

fn open_hub(
    config: &Config,
    state: &Arc<StateDb>,
    inbox: &crossbeam_channel::Sender<ShardMessage>,
    work: crossbeam_channel::Sender<snapshot::Work>,
    channels: &Arc<PeerChannels>,
) -> anyhow::Result<Hub> {
    Hub::new(HubParts {
        node_id: config.node_id,
        dir: config.data_dir.join("snapshots"),
        bytes_per_second: config.tuning.snapshot_bytes_per_s_max,
        state: Arc::clone(state),
        inbox: inbox.clone(),
        work,
        channels: Arc::clone(channels),
    })
}

fn spawn_all(
    shard: Shard,
    writer: LogWriter,
    (applier, groups): (Applier, Vec<u32>),
    keeper: Maintenance,
    (hub, work): (Arc<Hub>, crossbeam_channel::Receiver<snapshot::Work>),
) -> std::io::Result<Vec<JoinHandle<()>>> {
    let apply = move || {
        if let Err(error) = applier.run(&groups) {
            tracing::error!(%error, "applier cannot start; stopping");
            std::process::abort();
        }
    };
    Ok(vec![
        spawn("log-writer", move || writer.run())?,
        spawn("applier", apply)?,
        spawn("maintenance", move || keeper.run())?,
        spawn("snapshots", move || snapshot::run_worker(&hub, &work))?,
        spawn("shard-0", move || shard.run())?,
    ])
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
