//! The driver: one task that feeds the scheduler with what was applied and carries out what it decides.
//!
//! Order: events of the applier are taken before the results of proposals, because the scheduler wants the changes of a
//! batch before its results. Answers that belong to an earlier term of a partition are dropped.
mod begin;
mod report;

use super::agreement;
use super::backlog::{LaneLook, Looker};
use super::connect::Connect;
use super::facts::Facts;
use super::failover::Failover;
use super::grants::Grants;
use super::health::Health;
use super::lanes::{LaneBuilder, LaneChange, LaneTable};
use super::leases::{Leases, MonoClock};
use super::practices::{self, Practices};
use super::receipts::{ReceiptRouter, ReceiptSink};
use super::reconcile::Reconciler;
use super::renewal::Renewal;
use super::sending::Sender;
use super::shares::ShareKeeper;
use crate::clock::now_ms as clock_ms;
use crate::config::Config;
use crate::engine::peers::PeerChannels;
use crate::engine::{DriverEvent, NodeHandle};
use crate::failpoints;
use crate::hours::Hours;
use crate::meta::MetaClient;
use crate::seal::Keyring;
use bytes::Bytes;
use carillon_carriers::InboundSink;
use carillon_carriers::connector::ConnectorState;
use carillon_core::meta::ease_permille;
use carillon_core::meta::level::LEVEL_DELIVERY;
use carillon_core::{CommandResult, Refusal};
use carillon_delivery::lease::{Stacks, stamp};
use carillon_delivery::{
    BeginDecision, BeginResult, Page, PageRequest, Rooms, Scheduler, SchedulerConfig, read_page,
};
use carillon_proto::MessageId;
use carillon_proto::internal::{BeginAttempt, Command, Expire, command::Kind};
use carillon_proto::public::Outcome;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

/// Time between the commit of an attempt and the last moment at which its first segment may leave; each further one gets
/// the time that the lane's share needs for it.
const SEND_WITHIN_MS: u64 = 2_000;
/// A long message of which the carrier has accepted a part gets so much more for the others. What is not sent by then is missing for good, and the message
/// is held, so it is well above the pauses that carriers ask for. It is bounded because the message keeps its place in the bind's window, a stopping node
/// waits for it, and a leader that takes over calls it AMBIGUOUS meanwhile.
const REST_WITHIN_MS: u64 = 30_000;
/// A lane whose carrier is not connected is looked at again after this time.
const DOWN_PAUSE: Duration = Duration::from_millis(250);
/// Longest sleep of the driver.
const WAKE_MAX_MS: u64 = 500;
/// Decisions are at least this far apart, so that those of one moment share a raft entry.
const DECIDE_EVERY: Duration = Duration::from_millis(4);
/// Scheduler gauges are set this often.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Attempts begun with one proposal.
const BEGIN_MAX: usize = 256;

/// Reports of helpers that the driver has not taken. Helpers wait for room, the driver never waits for them.
const LOCALS_MAX: usize = 8192;
/// A stopping node gives up facts when none was committed for this long: the others are gone, there is no quorum.
const FACT_STALL: Duration = Duration::from_secs(3);

/// What the driver's own helpers report.
pub enum Local {
    Begun {
        partition: u32,
        term: u64,
        results: Vec<(MessageId, BeginResult)>,
    },
    Sent {
        partition: u32,
        term: u64,
        message_id: MessageId,
    },
    Finished {
        partition: u32,
        term: u64,
        message_id: MessageId,
    },
    /// An attempt was answered.
    Answered {
        carrier_no: u32,
        /// 0 = the account's own.
        sender_no: u32,
        outcome: Outcome,
    },
    Pause {
        carrier_no: u32,
        pause: Duration,
    },
    /// Somebody asks how a lane stands.
    Look {
        carrier_no: u32,
        reply: oneshot::Sender<LaneLook>,
    },
    Page {
        partition: u32,
        term: u64,
        request_id: u64,
        page: Option<Page>,
    },
}

/// The running wing.
pub struct Delivery {
    pub lanes: LaneTable,
    pub connect: Connect,
    pub receipts: ReceiptRouter,
    pub facts: Facts,
    pub shares: ShareKeeper,
    pub looker: Looker,
    pub grants: Grants,
    attempts: TaskTracker,
    stop: watch::Sender<bool>,
}

struct Driver {
    handle: NodeHandle,
    scheduler: Scheduler,
    sender: Sender,
    lanes: LaneTable,
    builder: LaneBuilder,
    practices: Practices,
    /// Which limits the messages of each practice need.
    stacks: Stacks,
    rooms: Rooms,
    meta: MetaClient,
    shares: ShareKeeper,
    health: Health,
    leases: Leases,
    grants: Grants,
    channels: Arc<PeerChannels>,
    renewal: Renewal,
    clock: MonoClock,
    /// Term in which this node leads each partition.
    terms: BTreeMap<u32, u64>,
    locals: mpsc::Receiver<Local>,
    reported: Instant,
    decided: Instant,
}

/// Starts the driver, the fact batchers and the receipt router.
pub fn start(
    config: &Config,
    handle: NodeHandle,
    keyring: Arc<Keyring>,
    channels: Arc<PeerChannels>,
    meta: MetaClient,
    hours: Hours,
    events: mpsc::Receiver<DriverEvent>,
) -> anyhow::Result<Delivery> {
    let connect = Connect::load(&config.secrets_dir, &config.carriers)?;
    tokio::spawn(connect.clone().keep_fresh());
    let facts = Facts::start(&handle, &channels);
    let (receipts, reports) = ReceiptRouter::new(handle.clone(), Arc::clone(&channels), facts.clone());
    tokio::spawn(receipts.clone().run(reports));
    let (local, locals) = mpsc::channel(LOCALS_MAX);
    let (clock, attempts) = (MonoClock::start(), TaskTracker::new());
    let leases = Leases::new(config.node_id, clock);
    let lanes = LaneTable::new(leases.clone());
    let router = receipts.clone();
    let builder = LaneBuilder {
        leases: leases.clone(),
        connect: connect.clone(),
        node_id: config.node_id,
        sink: Arc::new(move |carrier_no| {
            Arc::new(ReceiptSink { carrier_no, router: router.clone() }) as Arc<dyn InboundSink>
        }),
    };
    let (shares, health) = (ShareKeeper::default(), Health::default());
    let grants = Grants::new(handle.clone(), clock, shares.clone());
    let reconciler = Reconciler::start(handle.clone(), keyring.clone(), facts.clone(), lanes.clone());
    let sweeper = handle.clone();
    let driver = Driver {
        handle: handle.clone(),
        scheduler: Scheduler::new(SchedulerConfig::default())?,
        sender: Sender {
            handle: handle.clone(),
            keyring,
            facts: facts.clone(),
            leases: leases.clone(),
            reconciler,
            local: local.clone(),
            attempts: attempts.clone(),
        },
        lanes: lanes.clone(),
        builder,
        practices: Practices::default(),
        stacks: Stacks::default(),
        rooms: Rooms::default(),
        meta: meta.clone(),
        shares: shares.clone(),
        health: health.clone(),
        leases,
        grants: grants.clone(),
        channels,
        renewal: Renewal::new(sweeper, hours),
        clock,
        terms: BTreeMap::new(),
        locals,
        reported: Instant::now(),
        decided: Instant::now(),
    };
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(driver.run(events, meta, stopped));
    let failover = Failover { handle: handle.clone(), lanes: lanes.clone(), health: health.clone(), clock };
    tokio::spawn(failover.run(stop.subscribe()));
    let looker = Looker { handle, lanes: lanes.clone(), local, health, clock };
    Ok(Delivery { lanes, connect, receipts, facts, shares, grants, looker, attempts, stop })
}

impl Delivery {
    /// Stops beginning attempts and waits for what is really under way: the answers that carriers owe (each connector's own
    /// limits), and the facts of them as long as any is committed at all. Never longer than `limit`. What is left
    /// becomes UNKNOWN, and its receipts are repeated by the carrier.
    pub async fn drain(&self, limit: Duration) {
        self.stop.send_replace(true);
        self.receipts.stop();
        let lanes = self.lanes.all();
        let answers = async {
            futures::future::join_all(lanes.iter().map(|lane| lane.connector.drain())).await;
            self.attempts.close();
            self.attempts.wait().await;
            self.facts.settled().await;
        };
        let work = async {
            tokio::pin!(answers);
            tokio::select! {
                () = &mut answers => return,
                () = self.facts.stalled(FACT_STALL) => {}
            }
            // Nobody commits them. Receipts among them hold up the goodbye to the carrier.
            tracing::warn!(facts = self.facts.open(), "no quorum while draining; facts are given up");
            self.facts.abandon();
            answers.await;
        };
        if tokio::time::timeout(limit, work).await.is_err() {
            tracing::warn!("drain ran out of time; attempts without an answer become UNKNOWN");
        }
    }
}

impl Driver {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<DriverEvent>,
        client: MetaClient,
        mut stopped: watch::Receiver<bool>,
    ) {
        let mut meta = self.handle.meta_changes();
        let mut next_wake = Instant::now();
        // What is on disk here may be older than what this node has told the others to keep to.
        let fresh = client.caught_up();
        tokio::pin!(fresh);
        let mut is_fresh = false;
        let mut held = self.leases.changes();
        loop {
            let sleep = next_wake.saturating_duration_since(Instant::now());
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.on_event(event),
                    None => return,
                },
                Some(local) = self.locals.recv() => {
                    self.take_events(&mut events);
                    self.on_local(local);
                }
                () = &mut fresh, if !is_fresh => {
                    is_fresh = true;
                    self.sync_lanes();
                    let (handle, channels) = (self.handle.clone(), Arc::clone(&self.channels));
                    tokio::spawn(self.leases.clone().run(handle, channels, self.grants.clone()));
                }
                _ = held.changed() => self.refresh_lanes(),
                changed = meta.changed(), if is_fresh => {
                    if changed.is_err() { return } else { self.sync_lanes() }
                }
                _ = stopped.changed() => return,
                () = tokio::time::sleep(sleep) => {}
            }
            self.take_events(&mut events);
            while let Ok(local) = self.locals.try_recv() {
                self.take_events(&mut events);
                self.on_local(local);
            }
            let now = Instant::now();
            if now < self.decided + DECIDE_EVERY {
                next_wake = next_wake.min(self.decided + DECIDE_EVERY);
                continue;
            }
            self.decided = now;
            next_wake = now + Duration::from_millis(self.act());
        }
    }

    fn take_events(&mut self, events: &mut mpsc::Receiver<DriverEvent>) {
        while let Ok(event) = events.try_recv() {
            self.on_event(event);
        }
    }

    fn sync_lanes(&mut self) {
        let view = self.handle.meta();
        for change in self.lanes.sync(&view, &self.builder) {
            match change {
                LaneChange::Set(lane) => self.scheduler.set_lane(lane),
                LaneChange::Removed(carrier_no) => self.scheduler.remove_lane(carrier_no),
            }
        }
        self.stacks.sync(&view);
        self.leases.set_stamp(stamp(&view));
        self.practices.sync(&view, &mut self.scheduler);
        self.rooms.sync(&view, &mut self.scheduler);
        self.shares.set(view.shares.epoch, Instant::now());
        if self.scheduler.set_hours(self.renewal.hours.stamps(&view)) {
            for partition in self.terms.keys() {
                tokio::spawn(self.renewal.clone().sweep(*partition));
            }
        }
    }

    /// What is held has changed.
    fn refresh_lanes(&mut self) {
        for lane in self.lanes.all() {
            self.scheduler.set_lane(self.lanes.config(&lane));
        }
    }

    fn on_event(&mut self, event: DriverEvent) {
        match event {
            DriverEvent::Lead { partition, term } => {
                self.terms.insert(partition, term);
                self.scheduler.lead(partition, clock_ms());
                // Rules may have been loosened while another node led, or nobody.
                tokio::spawn(self.renewal.clone().sweep(partition));
            }
            DriverEvent::Unlead { partition } => {
                self.terms.remove(&partition);
                self.scheduler.unlead(partition, clock_ms());
            }
            DriverEvent::Schedule { partition, changes } => {
                for change in &changes {
                    self.scheduler.on_change(partition, change);
                }
            }
        }
    }

    fn current(&self, partition: u32, term: u64) -> bool {
        self.terms.get(&partition) == Some(&term)
    }

    fn on_local(&mut self, local: Local) {
        match local {
            Local::Begun { partition, term, results } if self.current(partition, term) => {
                for (message_id, result) in results {
                    self.scheduler.on_begun(partition, message_id, result);
                }
            }
            Local::Sent { partition, term, message_id } if self.current(partition, term) => {
                self.scheduler.on_sent(partition, message_id);
            }
            Local::Finished { partition, term, message_id } if self.current(partition, term) => {
                self.scheduler.on_finished(partition, message_id);
            }
            Local::Page { partition, term, request_id, page } if self.current(partition, term) => {
                match page {
                    Some(page) => self.scheduler.on_page(partition, request_id, page),
                    None => self.scheduler.on_page_failed(partition, request_id),
                }
            }
            Local::Answered { carrier_no, sender_no, outcome } => {
                self.health.on_outcome(carrier_no, sender_no, outcome, self.clock.now());
            }
            Local::Pause { carrier_no, pause } => {
                self.scheduler.pause_lane(carrier_no, self.clock.now() + pause);
            }
            Local::Look { carrier_no, reply } => {
                let paused_for_ms = self.scheduler.paused_for_ms(carrier_no, self.clock.now());
                // Whoever asked may be gone.
                let _unheard = reply.send(LaneLook { paused_for_ms });
            }
            _ => {}
        }
    }

    /// Decides and starts what was decided. Returns how long to sleep.
    fn act(&mut self) -> u64 {
        if self.handle.meta().is_restoring() {
            return WAKE_MAX_MS;
        }
        let now_ms = clock_ms();
        let lanes = self.lanes.all();
        let carriers = lanes.iter().map(|lane| lane.record.carrier_no);
        let demand = self.scheduler.demand_of(&self.handle.meta(), &mut self.stacks, carriers);
        self.leases.set_demand(demand);
        let held = |limit| (self.leases.view(limit), self.leases.cap_left(limit));
        let mono = self.clock.now();
        let allowed = |sender_no| self.health.sender_attempts_max(sender_no, mono);
        let opens = self.rooms.look(held, allowed, &mut self.scheduler, mono);
        for lane in lanes {
            let carrier_no = lane.record.carrier_no;
            self.scheduler.lane_opens(carrier_no, self.lanes.held(carrier_no).next_permit);
            if lane.connector.status().state != ConnectorState::Up {
                self.scheduler.pause_lane(lane.record.carrier_no, self.clock.now() + DOWN_PAUSE);
            }
        }
        for (carrier_no, attempts_max) in self.health.look(&self.handle.meta(), &self.lanes, self.clock.now())
        {
            self.scheduler.limit_lane(carrier_no, attempts_max);
        }
        let decision = self.scheduler.decide(now_ms, self.clock.now());
        let mut begin: BTreeMap<u32, Vec<BeginDecision>> = BTreeMap::new();
        for decided in decision.begin {
            metrics::histogram!("carillon_scheduler_wait_seconds", "priority" => decided.priority.to_string())
                .record(now_ms.saturating_sub(decided.due_ms) as f64 / 1000.0);
            begin.entry(decided.partition).or_default().push(decided);
        }
        for (partition, mut list) in begin {
            let Some(term) = self.terms.get(&partition).copied() else { continue };
            while !list.is_empty() {
                let rest = list.split_off(list.len().min(BEGIN_MAX));
                self.begin(partition, term, std::mem::replace(&mut list, rest), now_ms);
            }
        }
        let mut expire: BTreeMap<u32, Vec<Bytes>> = BTreeMap::new();
        for (partition, id) in decision.expire {
            let command = Command { kind: Some(Kind::Expire(Expire { message_id: id.to_bytes() })) };
            expire.entry(partition).or_default().push(command.encode_to_vec().into());
        }
        for (partition, commands) in expire {
            // The scheduler decides it again if this does not come back as a change.
            let handle = self.handle.clone();
            tokio::spawn(async move { handle.propose(partition, commands).await.map(drop) });
        }
        let mut closed: BTreeMap<u32, Vec<MessageId>> = BTreeMap::new();
        for (partition, id) in decision.closed {
            closed.entry(partition).or_default().push(id);
        }
        for (partition, ids) in closed {
            tokio::spawn(self.renewal.clone().renew(partition, ids));
        }
        for request in self.scheduler.wants_pages(now_ms) {
            self.page(request);
        }
        if self.reported.elapsed() >= REPORT_EVERY {
            self.reported = Instant::now();
            self.report(now_ms);
        }
        let opens_ms = opens.map_or(WAKE_MAX_MS, |wait| wait.as_millis() as u64 + 1);
        match decision.next_wake_ms {
            Some(at) => at.saturating_sub(now_ms).clamp(1, WAKE_MAX_MS).min(opens_ms),
            None => WAKE_MAX_MS.min(opens_ms),
        }
    }

    /// Messages that their carrier may not carry wait; the scheduler hears of it by the change.
    fn hold_back(&self, partition: u32, term: u64, held: Vec<(MessageId, Bytes)>) {
        let (handle, local) = (self.handle.clone(), self.sender.local.clone());
        tokio::spawn(async move {
            let (ids, commands): (Vec<_>, Vec<_>) = held.into_iter().unzip();
            drop(handle.propose(partition, commands).await);
            let results = ids.into_iter().map(|id| (id, BeginResult::Refused)).collect();
            drop(local.send(Local::Begun { partition, term, results }).await);
        });
    }

    fn page(&self, request: PageRequest) {
        let PageRequest { partition, request_id, wanted } = request;
        let Some(term) = self.terms.get(&partition).copied() else { return };
        let (handle, local) = (self.handle.clone(), self.sender.local.clone());
        tokio::task::spawn_blocking(move || {
            let read = || -> anyhow::Result<_> { Ok(read_page(&*handle.local_tables(partition)?, &wanted)?) };
            let page = read().map_err(|error| tracing::error!(partition, %error, "due page unreadable")).ok();
            drop(local.blocking_send(Local::Page { partition, term, request_id, page }));
        });
    }
}
