//! The replicated engine: raft groups on one shard thread, one log writer, one applier, peer streams.
//!
//! Start at [`start`]; everything else talks to it through [`NodeHandle`]. Threads, and who waits for whom:
//! the shard for nobody (what the log writer or the applier has no room for stays with it, `hand_over.rs`); log writer,
//! applier and maintenance for room among the completions, which the shard takes in every turn; the applier for the driver.
mod applier;
mod cell;
mod hand_over;
pub mod handle;
mod log_writer;
pub mod maintenance;
mod recovery;
mod references;
pub mod scrub;
pub mod shard;
pub mod transport;

use crate::config::Config;
use crate::space::Space;
use applier::{Applier, DRIVER_EVENTS_MAX};
use arc_swap::ArcSwap;
use carillon_consensus::{GroupConfig, LogStore, Outputs};
use carillon_core::meta::MetaView;
use carillon_store::{EngineLog, EngineLogOptions, PacerLimits, StateDb, StateOptions};
use cell::Cell;
use hand_over::{HAND_OVERS_MAX, HandOver};
pub use handle::{DriverEvent, NodeHandle, PROPOSAL_BYTES_MAX, ProposeError};
use handle::{Fenced, IN_FLIGHT_BYTES_MAX, Leaders, Shared};
use log_writer::LogWriter;
use maintenance::{Maintenance, MaintenanceMessage};
use parking_lot::Mutex;
pub use references::References;
use scrub::{LastPass, ScrubMessage, Scrubber};
use shard::{COMPLETIONS_MAX, INBOX_MAX, Shard, ShardMessage};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use transport::PeerChannels;

/// Running threads, and what to tell them to stop.
pub struct Engine {
    pub handle: NodeHandle,
    driver_events: Option<mpsc::Receiver<DriverEvent>>,
    pub inbox: crossbeam_channel::Sender<ShardMessage>,
    pub maintenance: crossbeam_channel::Sender<MaintenanceMessage>,
    scrub: crossbeam_channel::Sender<ScrubMessage>,
    threads: Vec<JoinHandle<()>>,
}

/// Opens the stores, recovers every group and starts the threads. Must run inside a tokio runtime (peer streams).
pub fn start(config: &Config, channels: &PeerChannels) -> anyhow::Result<Engine> {
    let members = config.member_ids();
    let groups: Vec<u32> = (0..=config.partitions).collect();
    fs_err::create_dir_all(&config.data_dir)?;
    let space = Space::new(&members);
    space.watch(&config.data_dir, &config.disk)?;
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
    recovery::create_groups(&log, &groups, &members)?;

    let mut cells = BTreeMap::new();
    let mut fenced = BTreeMap::new();
    let mut applied_senders = Vec::new();
    let mut applied_receivers = Vec::new();
    for group in &groups {
        let mut group_config =
            GroupConfig::new(*group, config.node_id, config.node_id << 32 | u64::from(*group));
        // 17 groups share a node: keep each one's share of memory small.
        group_config.cache_bytes_max = 1 << 20;
        let applied = match recovery::open_group(&log, &state, group_config)? {
            Ok((opened, applied)) => {
                cells.insert(*group, Cell::new(opened));
                applied
            }
            Err(reason) => {
                tracing::error!(group, reason, "replica fenced");
                fenced.insert(*group, reason);
                0
            }
        };
        let (sender, receiver) = watch::channel(applied);
        applied_senders.push(sender);
        applied_receivers.push(receiver);
    }
    metrics::gauge!("carillon_replicas_fenced").set(fenced.len() as f64);
    let shared_fenced = Fenced::new(Mutex::new(fenced.clone()));
    let running: Vec<u32> = cells.keys().copied().collect();
    // A fenced meta group may still be read as far as it goes; a damaged one is unknown here.
    let view = match MetaView::load(&*state.replica(0)?) {
        Err(_) if fenced.contains_key(&0) => MetaView::default(),
        loaded => loaded?,
    };
    let meta = Arc::new(ArcSwap::from_pointee(view));

    let (inbox, inbox_receiver) = crossbeam_channel::bounded(INBOX_MAX);
    let (completions, completions_receiver) = crossbeam_channel::bounded(COMPLETIONS_MAX);
    let (log_tasks, log_tasks_receiver) = crossbeam_channel::bounded(HAND_OVERS_MAX);
    let (apply, apply_receiver) = crossbeam_channel::bounded(HAND_OVERS_MAX);
    let (maintenance, maintenance_receiver) = crossbeam_channel::bounded(INBOX_MAX);
    let (scrub, scrub_receiver) = crossbeam_channel::bounded(4);
    let (driver, driver_events) = mpsc::channel(DRIVER_EVENTS_MAX);
    let (leaders_sender, leaders) = watch::channel(Arc::new(Leaders::new()));
    let (meta_changed_sender, meta_changed) = watch::channel(meta.load().applied_index);
    let unflushed = Arc::new((0..groups.len()).map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
    let peers =
        transport::start(config.node_id, &config.cluster_id, Arc::clone(&space), channels, inbox.clone());

    let references = Arc::new(References::default());

    let shard = Shard {
        node_id: config.node_id,
        members,
        cells,
        fenced: Arc::clone(&shared_fenced),
        inbox: inbox_receiver,
        completions: completions_receiver,
        log_writer: HandOver::new("log_writer", log_tasks),
        applier: HandOver::new("applier", apply),
        peers: peers.clone(),
        maintenance: maintenance.clone(),
        leaders: leaders_sender,
        tick: Duration::from_millis(config.tuning.tick_ms),
        in_flight_max: config.tuning.proposals_in_flight_max,
        next_ctx: 0,
        ticks: 0,
        outputs: Outputs::default(),
    };
    let writer = LogWriter {
        log: Arc::clone(&log) as Arc<dyn LogStore>,
        tasks: log_tasks_receiver,
        completions: completions.clone(),
        peers,
    };
    let applier = Applier {
        node_id: config.node_id,
        state: Arc::clone(&state),
        messages: apply_receiver,
        completions: completions.clone(),
        driver,
        leaders: leaders.clone(),
        meta: Arc::clone(&meta),
        meta_changed: meta_changed_sender,
        applied: applied_senders,
        references: Arc::clone(&references),
        unflushed: Arc::clone(&unflushed),
    };
    let keeper = Maintenance {
        log: Arc::clone(&log),
        state: Arc::clone(&state),
        messages: maintenance_receiver,
        completions: completions.clone(),
        unflushed,
        limits: PacerLimits {
            unflushed_total_bytes_max: config.tuning.unflushed_log_bytes_max,
            unflushed_age_max_ms: config.tuning.unflushed_log_age_max_s * 1000,
            ..PacerLimits::default()
        },
        space: Arc::clone(&space),
        fenced: fenced.into_keys().collect(),
    };
    let scrubber = Scrubber {
        log,
        state: Arc::clone(&state),
        groups: running.clone(),
        messages: scrub_receiver,
        completions,
        settings: config.scrub.clone(),
        last_file: LastPass::new(&config.data_dir),
    };

    let threads = vec![
        spawn("log-writer", move || writer.run())?,
        spawn("applier", move || {
            if let Err(error) = applier.run(&running) {
                tracing::error!(%error, "applier cannot start; stopping");
                std::process::abort();
            }
        })?,
        spawn("maintenance", move || keeper.run())?,
        spawn("scrub", move || scrubber.run())?,
        spawn("shard-0", move || shard.run())?,
    ];
    let shared = Shared {
        node_id: config.node_id,
        partitions: config.partitions,
        inbox: inbox.clone(),
        state,
        leaders,
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
    Ok(Engine { handle, driver_events: Some(driver_events), inbox, maintenance, scrub, threads })
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
