//! The glue of a node's delivery wing, as the simulator runs it: a mirror of `node/src/delivery/driver.rs` around the
//! same `Scheduler`. Lanes are in `lanes.rs`, facts and receipts in `facts.rs`.
use super::engine::Refused;
use super::facts::{Facts, Reports};
use super::lanes::ShareKeeper;
use super::node::Waiter;
use super::plant::Plant;
use super::world::{Event, World};
use carillon_core::meta::planner::Step;
use carillon_core::meta::{MetaRefusal, level};
use carillon_core::{CommandResult, Permit, ScheduleChange, query};
use carillon_delivery::lease::{Holder, LeaseAnswer, LeaseRequest};
use carillon_delivery::{BeginDecision, BeginResult, PageRequest, Scheduler, SchedulerConfig, read_page};
use carillon_proto::MessageId;
use carillon_proto::internal::{
    BeginAttempt, Command, Expire, FactResult, FrequencyRule, LaneAnswers, RecordReceipt, SeeResponse,
    command::Kind,
};
use prost::bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Time between the commit of an attempt and the last moment at which its first segment may leave.
const SEND_WITHIN_MS: u64 = 2_000;
/// A lane whose carrier is not connected is looked at again after this time.
const DOWN_PAUSE_MS: u64 = 250;
/// Longest sleep of the driver.
const WAKE_MAX_MS: u64 = 500;
/// Decisions are at least this far apart.
const DECIDE_EVERY_MS: u64 = 4;
/// A day, as the caps for messages to one recipient see it, and these.
const DAY_MS: u64 = 5_000;
pub const PER_DAY: u32 = 1;
pub const PER_WEEK: u32 = 2;
/// A part that is not answered in this time is ambiguous.
pub const RESPONSE_TIMEOUT_MS: u64 = 1_500;

/// What nodes ask of each other besides raft.
#[derive(Debug, Clone)]
pub enum PeerCall {
    Facts(FactBatch),
    FactsAnswer { partition: u32, batch_no: u64, epoch: u64, results: Option<Vec<FactResult>> },
    Look { report_no: u64, receipt: RecordReceipt },
    Looked { report_no: u64, result: FactResult },
    See { round: u64, epoch: u64 },
    Seen { round: u64, epoch: u64, answer: Box<SeeResponse> },
    Carry(Box<Step>),
    Confirm { epoch: u64 },
    Confirmed { epoch: u64, index: u64 },
    Lease(Box<LeaseCall>),
    Leased { epoch: u64, answer: Box<LeaseAnswer> },
    Register { epoch: u64, data: Bytes },
    Registered { epoch: u64, refusal: Option<MetaRefusal> },
}

/// A request for leases, with what goes with it.
#[derive(Debug, Clone)]
pub struct LeaseCall {
    pub from: usize,
    pub epoch: u64,
    pub shares_epoch: u64,
    pub request: LeaseRequest,
    pub answers: Vec<LaneAnswers>,
}

/// Facts on their way to a leader.
#[derive(Debug, Clone)]
pub struct FactBatch {
    pub partition: u32,
    pub batch_no: u64,
    /// Incarnation of the asking process.
    pub epoch: u64,
    pub commands: Vec<Command>,
}

/// One carrier account as a node uses it.
pub struct Lane {
    pub carrier: usize,
    /// Of all nodes together.
    pub limit: u32,
    /// Its fixed share; 0 = it has leases or nothing.
    pub share: u32,
    pub queue: VecDeque<u64>,
    pub wake: bool,
}

/// An attempt that is being handed to a carrier.
#[derive(Debug)]
pub struct Sending {
    pub partition: u32,
    pub term: u64,
    pub permit: Permit,
    /// On the monotonic clock.
    pub send_by: std::time::Duration,
    pub decided_ms: u64,
    pub send_within_ms: u64,
    /// Parts that the carrier accepted.
    pub refs: Vec<String>,
    /// The part whose answer is awaited.
    pub awaiting: Option<u32>,
    pub permits_left: u32,
}

/// Everything volatile of the wing.
pub struct Wing {
    pub scheduler: Scheduler,
    /// Term in which this node leads each partition.
    terms: BTreeMap<u32, u64>,
    pub lanes: BTreeMap<u32, Lane>,
    pub sends: BTreeMap<u64, Sending>,
    /// Parts that were given up; a late answer resolves them.
    pub timed_out: BTreeMap<(u64, u32), (MessageId, u32, u32, u32)>,
    pub next_send: u64,
    decide_at: Option<u64>,
    decided_ms: u64,
    pub facts: BTreeMap<u32, Facts>,
    pub reports: Reports,
    /// Nodes asked without a known leader.
    pub guesses: usize,
    pub shares: ShareKeeper,
    /// Of this process; made when it first needs one.
    pub holder: Option<Holder>,
    /// What carriers answered since it asked last.
    pub answers: BTreeMap<u32, LaneAnswers>,
    /// When it asks for leases next, if that is planned.
    pub lease_ask: Option<u64>,
    /// Nothing is sent before the meta group is applied up to what it was at the start: what is on the disk may be older than
    /// what this node has acknowledged. `None`: not known yet.
    pub fresh_from: Option<u64>,
    pub fresh: bool,
    /// Recipients that this node knows to have opted out; only a planted bug looks here.
    pub stops: BTreeSet<(u32, Bytes)>,
    /// What a planted bug sent before its time.
    early: BTreeSet<(MessageId, u32)>,
    /// When series are looked at next.
    pub series_at: u64,
}

impl Default for Wing {
    fn default() -> Self {
        let config = SchedulerConfig {
            window_entries_max: 24,
            page_entries_max: 8,
            pages_in_flight_max: 4,
            prefetch_attempts_max: 32,
            expire_max: 16,
            closed_max: 16,
            ageing_ms: 20_000,
            ..SchedulerConfig::default()
        };
        Self {
            scheduler: Scheduler::new(config).expect("every setting is above its minimum"),
            terms: BTreeMap::new(),
            lanes: BTreeMap::new(),
            sends: BTreeMap::new(),
            timed_out: BTreeMap::new(),
            next_send: 0,
            decide_at: None,
            decided_ms: 0,
            facts: BTreeMap::new(),
            reports: Reports::default(),
            guesses: 0,
            shares: ShareKeeper::default(),
            holder: None,
            answers: BTreeMap::new(),
            lease_ask: None,
            fresh_from: None,
            fresh: false,
            stops: BTreeSet::new(),
            early: BTreeSet::new(),
            series_at: 0,
        }
    }
}

impl Wing {
    pub fn current(&self, partition: u32, term: u64) -> bool {
        self.terms.get(&partition) == Some(&term)
    }

    pub fn stats(&self, now_ms: u64, mono: std::time::Duration) -> carillon_delivery::SchedulerStats {
        self.scheduler.stats(now_ms, mono)
    }

    /// Attempts begin a little before their permit is free.
    fn open_lanes(&mut self, mono: std::time::Duration) {
        for carrier_no in self.lanes.keys() {
            if let Some(holder) = &self.holder {
                self.scheduler.lane_opens(*carrier_no, holder.view(*carrier_no, mono).next_permit);
            }
        }
    }

    pub fn gate_opens(&mut self, carrier_no: u32) {
        if let Some(lane) = self.lanes.get_mut(&carrier_no) {
            lane.wake = false;
        }
    }
}

impl World {
    /// This node leads the partition and its `LeaderStart` is applied.
    pub fn lead(&mut self, node: usize, partition: u32, term: u64) {
        let now_ms = self.wall_ms(node);
        let wing = &mut self.nodes[node].wing;
        wing.terms.insert(partition, term);
        wing.scheduler.lead(partition, now_ms);
        self.wake_driver(node, 0);
    }

    pub fn step_down_wing(&mut self, node: usize, partition: u32) {
        let now_ms = self.wall_ms(node);
        let wing = &mut self.nodes[node].wing;
        wing.terms.remove(&partition);
        wing.scheduler.unlead(partition, now_ms);
    }

    pub fn schedule_changed(&mut self, node: usize, partition: u32, changes: &[ScheduleChange]) {
        for change in changes {
            self.nodes[node].wing.scheduler.on_change(partition, change);
        }
        self.wake_driver(node, 0);
    }

    pub fn wake_driver(&mut self, node: usize, delay_ms: u64) {
        let at_ms = (self.now_ms + delay_ms).max(self.nodes[node].wing.decided_ms + DECIDE_EVERY_MS);
        let epoch = self.nodes[node].epoch;
        let wing = &mut self.nodes[node].wing;
        if wing.decide_at.is_some_and(|planned| planned <= at_ms) {
            return;
        }
        wing.decide_at = Some(at_ms);
        self.at(at_ms - self.now_ms, Event::Decide { node, epoch });
    }

    /// Decides and starts what was decided.
    pub fn decide(&mut self, node: usize) {
        if self.nodes[node].wing.decide_at.is_none_or(|planned| planned > self.now_ms) {
            return;
        }
        let (now_ms, mono) = (self.wall_ms(node), self.mono(node));
        // Nothing is sent before everything that a backup knows is back.
        if self.nodes[node].meta.is_restoring() {
            self.nodes[node].wing.decide_at = None;
            return self.wake_driver(node, WAKE_MAX_MS);
        }
        let cut = self.net.carriers_cut.get(&node).is_some_and(|cuts| *cuts > 0);
        let wing = &mut self.nodes[node].wing;
        wing.decide_at = None;
        wing.decided_ms = self.now_ms;
        if cut {
            for carrier_no in wing.lanes.keys().copied().collect::<Vec<_>>() {
                let until = mono + std::time::Duration::from_millis(DOWN_PAUSE_MS);
                wing.scheduler.pause_lane(carrier_no, until);
            }
        }
        wing.open_lanes(mono);
        let decision = wing.scheduler.decide(now_ms, mono);
        self.failover(node);
        self.make_series(node);
        let mut begin: BTreeMap<u32, Vec<BeginDecision>> = BTreeMap::new();
        for decided in decision.begin {
            begin.entry(decided.partition).or_default().push(decided);
        }
        let mut expire: BTreeMap<u32, Vec<Command>> = BTreeMap::new();
        for (partition, id) in decision.expire {
            let kind = Kind::Expire(Expire { message_id: id.to_bytes() });
            expire.entry(partition).or_default().push(Command { kind: Some(kind) });
        }
        for (partition, mut list) in begin {
            if self.planted(Plant::StopOutsideApply) {
                let stopped: Vec<MessageId> = list
                    .extract_if(.., |decided| self.stopped_here(node, partition, decided))
                    .map(|decided| decided.message_id)
                    .collect();
                for id in stopped {
                    self.nodes[node].wing.scheduler.on_begun(partition, id, BeginResult::Refused);
                }
            }
            if list.is_empty() {
                continue;
            }
            self.begin(node, partition, list, now_ms);
        }
        for (partition, commands) in expire {
            self.propose(node, partition, commands, Waiter::Nobody);
        }
        self.renew_hours(node, decision.closed, now_ms);
        for request in self.nodes[node].wing.scheduler.wants_pages(now_ms) {
            self.page(node, request);
        }
        let pause =
            decision.next_wake_ms.map_or(WAKE_MAX_MS, |at| at.saturating_sub(now_ms).clamp(1, WAKE_MAX_MS));
        self.wake_driver(node, pause);
    }

    /// A mirror of `node/src/delivery/renewal.rs`.
    fn renew_hours(&mut self, node: usize, closed: Vec<(u32, MessageId)>, now_ms: u64) {
        let mut commands: BTreeMap<u32, Vec<Command>> = BTreeMap::new();
        for (partition, id) in closed {
            let Some(store) = self.nodes[node].stores.get(&partition) else { continue };
            let Some((payload, status)) = query::message(store, &id).ok().flatten() else { continue };
            let Some(accept) = payload.accept else { continue };
            let practice = self.nodes[node].meta.practices.get(&accept.practice_no);
            let set = self.book.renew(&id, &accept, &status, practice, now_ms);
            commands.entry(partition).or_default().push(Command { kind: Some(Kind::SetHours(set)) });
        }
        for (partition, list) in commands {
            self.propose(node, partition, list, Waiter::Nobody);
        }
    }

    fn begin(&mut self, node: usize, partition: u32, list: Vec<BeginDecision>, now_ms: u64) {
        let Some(term) = self.nodes[node].wing.terms.get(&partition).copied() else { return };
        let commands: Vec<Command> = list
            .iter()
            .map(|decided| {
                let begin = BeginAttempt {
                    message_id: decided.message_id.to_bytes(),
                    attempt_no: decided.attempt_no,
                    carrier_no: decided.carrier_no,
                    term,
                    send_by_ms: now_ms + self.send_within_ms(node, decided.carrier_no, decided.segments),
                    node_id: self.nodes[node].id,
                    sender: String::new(),
                    frequency: self.frequency_rule(node, now_ms),
                };
                Command { kind: Some(Kind::BeginAttempt(begin)) }
            })
            .collect();
        if self.planted(Plant::SendBeforeCommit) {
            self.send_early(node, partition, term, &list, now_ms);
        }
        let decided_ms = self.now_ms;
        self.propose(node, partition, commands, Waiter::Begin { partition, term, list, decided_ms });
    }

    /// Days are short here, so that caps fill and open again within a run.
    fn frequency_rule(&self, node: usize, now_ms: u64) -> Option<FrequencyRule> {
        let day = now_ms / DAY_MS;
        (self.nodes[node].meta.level >= level::LEVEL_DELIVERY).then(|| FrequencyRule {
            day: day as u32,
            day_starts_ms: (1..=7).map(|ahead| (day + ahead) * DAY_MS).collect(),
            per_day: PER_DAY,
            per_week: PER_WEEK,
            ..Default::default()
        })
    }

    /// Planted bug: this node looks for an opt-out when it proposes, and nobody when the proposal is applied.
    fn stopped_here(&self, node: usize, partition: u32, decided: &BeginDecision) -> bool {
        let found = query::message(&self.nodes[node].stores[&partition], &decided.message_id).ok().flatten();
        let accept = found.and_then(|(payload, _)| payload.accept);
        accept.is_some_and(|accept| {
            self.nodes[node].wing.stops.contains(&(accept.practice_no, accept.recipient_index))
        })
    }

    pub fn send_within_ms(&self, node: usize, carrier_no: u32, segments: u32) -> u64 {
        let mono = self.mono(node);
        let holder = self.nodes[node].wing.holder.as_ref();
        let after = holder.map_or(mono, |holder| holder.view(carrier_no, mono).after(u64::from(segments)));
        SEND_WITHIN_MS + after.saturating_sub(mono).as_millis() as u64
    }

    /// Planted bug: the permission is used before it is committed.
    fn send_early(&mut self, node: usize, partition: u32, term: u64, list: &[BeginDecision], now_ms: u64) {
        for decided in list {
            let permit = Permit {
                message_id: decided.message_id,
                attempt_no: decided.attempt_no,
                carrier_no: decided.carrier_no,
                practice_no: decided.practice_no,
                class: decided.class,
                key_epoch: 1,
                sealed_recipient: Default::default(),
                sealed_body: Default::default(),
                encoding: 1,
                segments: decided.segments,
                expires_at_ms: decided.expires_at_ms,
                send_by_ms: now_ms + SEND_WITHIN_MS,
                open_until_ms: 0,
                was_held: false,
            };
            self.nodes[node].wing.early.insert((permit.message_id, permit.attempt_no));
            self.start_send(node, (partition, term), permit, now_ms, self.now_ms);
        }
    }

    /// Attempts were committed, refused or dropped.
    pub fn begun(
        &mut self,
        node: usize,
        partition: u32,
        term: u64,
        (list, decided_ms): (Vec<BeginDecision>, u64),
        result: Result<Vec<CommandResult>, Refused>,
    ) {
        let mut results = result.unwrap_or_default().into_iter();
        let mut permits = Vec::new();
        for decided in list {
            let begun = match results.next() {
                Some(CommandResult::Begun(permit)) => {
                    if permit.was_held {
                        self.trace.count("begun_after_hold");
                    }
                    permits.push(*permit);
                    BeginResult::Ok
                }
                _ => BeginResult::Refused,
            };
            let wing = &mut self.nodes[node].wing;
            if wing.current(partition, term) {
                wing.scheduler.on_begun(partition, decided.message_id, begun);
            }
        }
        let now_ms = self.wall_ms(node);
        for permit in permits {
            if !self.nodes[node].wing.early.contains(&(permit.message_id, permit.attempt_no)) {
                self.start_send(node, (partition, term), permit, now_ms, decided_ms);
            }
        }
        self.wake_driver(node, 0);
    }

    fn page(&mut self, node: usize, request: PageRequest) {
        let PageRequest { partition, request_id, wanted } = request;
        let Some(store) = self.nodes[node].stores.get(&partition) else { return };
        let page = read_page(store, &wanted);
        let scheduler = &mut self.nodes[node].wing.scheduler;
        match page {
            Ok(page) => scheduler.on_page(partition, request_id, page),
            Err(_) => scheduler.on_page_failed(partition, request_id),
        }
    }
}
