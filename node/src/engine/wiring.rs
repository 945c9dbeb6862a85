//! The parts of the engine and what connects them.
use super::applier::{Applier, ApplyMessage};
use super::hand_over::{HAND_OVERS_MAX, HandOver};
use super::handle::{DriverEvent, Fenced, Hosted, Leaders};
use super::log_writer::{LogTask, LogWriter};
use super::maintenance::{Maintenance, MaintenanceMessage};
use super::members::GroupSettings;
use super::opening::{Opened, Stores, load_view};
use super::references::References;
use super::scrub::{LastPass, ScrubMessage, Scrubber};
use super::shard::{COMPLETIONS_MAX, Completion, INBOX_MAX, Shard, ShardMessage};
use super::snapshot::{Hub, WORK_MAX, Work};
use super::transport::PeerSender;
use crate::config::Config;
use crate::space::Space;
use arc_swap::ArcSwap;
use carillon_consensus::{LogSlack, LogStore, Outputs};
use carillon_core::meta::MetaView;
use carillon_store::PacerLimits;
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

type Line<T> = (Sender<T>, Receiver<T>);

/// Both ends of every line between the threads; all have a bound.
pub struct Lines {
    pub inbox: Line<ShardMessage>,
    pub completions: Line<Completion>,
    pub log_tasks: Line<Vec<LogTask>>,
    pub apply: Line<ApplyMessage>,
    pub work: Line<Work>,
    pub maintenance: Line<MaintenanceMessage>,
    pub scrub: Line<ScrubMessage>,
}

impl Lines {
    pub fn new() -> Self {
        Self {
            inbox: bounded(INBOX_MAX),
            completions: bounded(COMPLETIONS_MAX),
            log_tasks: bounded(HAND_OVERS_MAX),
            apply: bounded(HAND_OVERS_MAX),
            work: bounded(WORK_MAX),
            maintenance: bounded(INBOX_MAX),
            scrub: bounded(4),
        }
    }
}

/// What several threads look at.
pub struct Common<'a> {
    pub config: &'a Config,
    pub stores: &'a Stores,
    pub space: Arc<Space>,
    pub snapshots: Arc<Hub>,
    pub fenced: Fenced,
    pub meta: Arc<ArcSwap<MetaView>>,
    pub references: Arc<References>,
    /// Log bytes by group that the state on disk does not cover.
    unflushed: Arc<Vec<AtomicU64>>,
    pub leaders: watch::Receiver<Arc<Leaders>>,
    pub hosted: watch::Receiver<Arc<Hosted>>,
    pub meta_changed: watch::Receiver<u64>,
    pub applied: Vec<watch::Receiver<u64>>,
}

/// The writing ends of what is in [`Common`]; each goes to one thread.
pub struct Changing {
    pub leaders: watch::Sender<Arc<Leaders>>,
    pub hosted: watch::Sender<Arc<Hosted>>,
    pub meta_changed: watch::Sender<u64>,
    pub applied: Vec<watch::Sender<u64>>,
}

impl<'a> Common<'a> {
    pub fn new(
        config: &'a Config,
        stores: &'a Stores,
        opened: &Opened,
        (space, snapshots): (Arc<Space>, Arc<Hub>),
    ) -> anyhow::Result<(Self, Changing)> {
        let (hosted_here, is_fenced) = (opened.hosted.contains_key(&0), opened.fenced.contains_key(&0));
        let view = load_view(&stores.state, hosted_here, is_fenced)?;
        let (meta_changed_sender, meta_changed) = watch::channel(view.applied_index);
        let (leaders_sender, leaders) = watch::channel(Arc::new(Leaders::new()));
        let (hosted_sender, hosted) = watch::channel(Arc::new(opened.hosted.clone()));
        let (applied_senders, applied): (Vec<_>, Vec<_>) =
            opened.applied.iter().copied().map(watch::channel).unzip();
        let common = Self {
            config,
            stores,
            space,
            snapshots,
            fenced: Fenced::new(Mutex::new(opened.fenced.clone())),
            meta: Arc::new(ArcSwap::from_pointee(view)),
            references: Arc::default(),
            unflushed: Arc::new(applied.iter().map(|_| AtomicU64::new(0)).collect()),
            leaders,
            hosted,
            meta_changed,
            applied,
        };
        let changing = Changing {
            leaders: leaders_sender,
            hosted: hosted_sender,
            meta_changed: meta_changed_sender,
            applied: applied_senders,
        };
        Ok((common, changing))
    }

    fn log(&self) -> Arc<dyn LogStore> {
        Arc::clone(&self.stores.log) as Arc<dyn LogStore>
    }

    pub fn shard(
        &self,
        lines: &Lines,
        (settings, cells): (GroupSettings, BTreeMap<u32, super::cell::Cell>),
        (leaders, hosted): (watch::Sender<Arc<Leaders>>, watch::Sender<Arc<Hosted>>),
        peers: PeerSender,
    ) -> Shard {
        let tuning = &self.config.tuning;
        Shard {
            node_id: self.config.node_id,
            settings,
            cells,
            fenced: Arc::clone(&self.fenced),
            inbox: lines.inbox.1.clone(),
            completions: lines.completions.1.clone(),
            log_writer: HandOver::new("log_writer", lines.log_tasks.0.clone()),
            log: self.log(),
            snapshots: Arc::clone(&self.snapshots),
            applier: HandOver::new("applier", lines.apply.0.clone()),
            peers,
            maintenance: lines.maintenance.0.clone(),
            leaders,
            tick: Duration::from_millis(tuning.tick_ms),
            in_flight_max: tuning.proposals_in_flight_max,
            next_ctx: 0,
            ticks: 0,
            outputs: Outputs::default(),
            slack: LogSlack { bytes: tuning.log_slack_bytes, entries: tuning.log_slack_entries },
            groups_max: self.applied.len(),
            hosted,
            own_tasks: Vec::new(),
            creating: BTreeMap::new(),
            leaving: BTreeMap::new(),
        }
    }

    pub fn log_writer(&self, lines: &Lines, peers: PeerSender) -> LogWriter {
        LogWriter {
            log: self.log(),
            tasks: lines.log_tasks.1.clone(),
            completions: lines.completions.0.clone(),
            peers,
        }
    }

    pub fn applier(
        &self,
        lines: &Lines,
        driver: mpsc::Sender<DriverEvent>,
        (meta_changed, applied): (watch::Sender<u64>, Vec<watch::Sender<u64>>),
    ) -> Applier {
        Applier {
            node_id: self.config.node_id,
            state: Arc::clone(&self.stores.state),
            messages: lines.apply.1.clone(),
            completions: lines.completions.0.clone(),
            driver,
            leaders: self.leaders.clone(),
            meta: Arc::clone(&self.meta),
            meta_changed,
            applied,
            references: Arc::clone(&self.references),
            unflushed: Arc::clone(&self.unflushed),
            snapshots: Arc::clone(&self.snapshots),
        }
    }

    pub fn keeper(&self, lines: &Lines) -> Maintenance {
        Maintenance {
            log: Arc::clone(&self.stores.log),
            state: Arc::clone(&self.stores.state),
            messages: lines.maintenance.1.clone(),
            completions: lines.completions.0.clone(),
            unflushed: Arc::clone(&self.unflushed),
            limits: PacerLimits {
                unflushed_total_bytes_max: self.config.tuning.unflushed_log_bytes_max,
                unflushed_age_max_ms: self.config.tuning.unflushed_log_age_max_s * 1000,
                ..PacerLimits::default()
            },
            space: Arc::clone(&self.space),
            fenced: Arc::clone(&self.fenced),
        }
    }

    pub fn scrubber(&self, lines: &Lines) -> Scrubber {
        Scrubber {
            log: Arc::clone(&self.stores.log),
            state: Arc::clone(&self.stores.state),
            hosted: self.hosted.clone(),
            fenced: Arc::clone(&self.fenced),
            messages: lines.scrub.1.clone(),
            completions: lines.completions.0.clone(),
            settings: self.config.scrub.clone(),
            last_file: LastPass::new(&self.config.data_dir),
        }
    }
}
