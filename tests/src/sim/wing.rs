//! The glue of a node's delivery wing, as the simulator runs it: a mirror of `node/src/delivery/driver.rs` around the
//! same `Scheduler`. Attempts are begun in `begin.rs`, lanes are in `lanes.rs`, facts and receipts in `facts.rs`.
use super::facts::{Facts, Reports};
use super::lanes::{Lane, Limits, ShareKeeper};
use super::node::Waiter;
use super::plant::Plant;
use super::turns::{AGEING_MS, Turns, URGENT_MS};
use super::world::{Event, World};
use carillon_core::meta::planner::Step;
use carillon_core::meta::{MetaRefusal, MetaView};
use carillon_core::{DueEntry, Permit, ScheduleChange, query};
use carillon_delivery::breaker::Breaker;
use carillon_delivery::hours::Stamps;
use carillon_delivery::lease::{Holder, LeaseAnswer, LeaseRequest, LimitId, Stacks, common};
use carillon_delivery::{
    BeginDecision, BeginResult, Page, PageRequest, Rooms, Scheduler, SchedulerConfig, read_page,
};
use carillon_proto::MessageId;
use carillon_proto::internal::{
    Command, Expire, FactResult, LaneAnswers, RecordReceipt, SeeResponse, command::Kind,
};
use prost::bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// Time between the commit of an attempt and the last moment at which its first segment may leave.
pub const SEND_WITHIN_MS: u64 = 2_000;
/// A lane whose carrier is not connected is looked at again after this time.
const DOWN_PAUSE_MS: u64 = 250;
/// Longest sleep of the driver.
const WAKE_MAX_MS: u64 = 500;
/// Decisions are at least this far apart.
const DECIDE_EVERY_MS: u64 = 4;
/// A part that is not answered in this time is ambiguous.
pub const RESPONSE_TIMEOUT_MS: u64 = 1_500;

/// What nodes ask of each other besides raft.
#[derive(Debug, Clone)]
pub enum PeerCall {
    Facts(FactBatch),
    FactsAnswer {
        partition: u32,
        batch_no: u64,
        epoch: u64,
        results: Option<Vec<FactResult>>,
    },
    Look {
        report_no: u64,
        receipt: RecordReceipt,
    },
    Looked {
        report_no: u64,
        result: FactResult,
    },
    See {
        round: u64,
        epoch: u64,
    },
    Seen {
        round: u64,
        epoch: u64,
        answer: Box<SeeResponse>,
    },
    Carry(Box<Step>),
    Confirm {
        epoch: u64,
    },
    Confirmed {
        epoch: u64,
        index: u64,
    },
    Lease(Box<LeaseCall>),
    Leased {
        epoch: u64,
        answer: Box<LeaseAnswer>,
    },
    /// A command of the meta group, of which nobody waits for an answer.
    Meta {
        data: Bytes,
    },
    Register {
        epoch: u64,
        data: Bytes,
    },
    Registered {
        epoch: u64,
        refusal: Option<MetaRefusal>,
    },
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
    /// Of which limits it needs permits, and whether before the others.
    pub stack: Vec<LimitId>,
    pub urgent: bool,
    /// Parts that the carrier accepted.
    pub refs: Vec<String>,
    /// The part whose answer is awaited.
    pub awaiting: Option<u32>,
    pub permits_left: u32,
    /// All of it leaves at once.
    pub whole: bool,
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
    pub early: BTreeSet<(MessageId, u32)>,
    /// Messages that this node began for a recipient on a day; only a planted bug counts here.
    pub counted: BTreeMap<((u32, Bytes), u64), BTreeSet<MessageId>>,
    /// When series and what waits for a failed carrier are looked at next.
    pub series_at: u64,
    pub failover_at: u64,
    /// Which limits the messages of each practice need.
    pub limits: Limits,
    pub stacks: Stacks,
    pub rooms: Rooms,
    /// Segments that wait for each limit.
    pub demand: BTreeMap<LimitId, u32>,
    /// What the scheduler was told of practices.
    pub weights: BTreeMap<u32, u32>,
    pub paused: BTreeSet<(u32, u32)>,
    /// The hours that are in force.
    pub stamps: Stamps,
    /// The oracle's books.
    pub turns: Turns,
    pub breakers: BTreeMap<u32, Breaker>,
    /// Openings of breakers that were counted.
    pub openings: BTreeMap<u32, u64>,
}

impl Default for Wing {
    fn default() -> Self {
        Self::new(2)
    }
}

impl Wing {
    pub fn new(window_rows: usize) -> Self {
        let config = SchedulerConfig {
            window_entries_max: window_rows,
            page_entries_max: 8,
            pages_in_flight_max: 4,
            prefetch_attempts_max: 32,
            expire_max: 16,
            closed_max: 16,
            ageing_ms: AGEING_MS,
            urgent_ms: URGENT_MS,
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
            counted: BTreeMap::new(),
            series_at: 0,
            failover_at: 0,
            limits: Limits::default(),
            stacks: Stacks::default(),
            rooms: Rooms::default(),
            demand: BTreeMap::new(),
            weights: BTreeMap::new(),
            paused: BTreeSet::new(),
            stamps: Stamps::default(),
            turns: Turns::default(),
            breakers: BTreeMap::new(),
            openings: BTreeMap::new(),
        }
    }

    /// What limits that only some messages need let through soon. Gives when one that does not opens.
    fn look_at_rooms(&mut self, mono: std::time::Duration) -> Option<std::time::Duration> {
        let holder = self.holder.as_ref()?;
        let held = |limit| (holder.view(limit, mono), holder.cap_left(limit, mono));
        // No carrier refuses a sender here.
        self.rooms.look(held, |_| None, &mut self.scheduler, mono)
    }

    pub fn term_of(&self, partition: u32) -> Option<u64> {
        self.terms.get(&partition).copied()
    }

    pub fn current(&self, partition: u32, term: u64) -> bool {
        self.terms.get(&partition) == Some(&term)
    }

    pub fn stats(&self, now_ms: u64, mono: std::time::Duration) -> carillon_delivery::SchedulerStats {
        self.scheduler.stats(now_ms, mono)
    }

    /// Attempts begin a little before their permit is free.
    fn open_lanes(&mut self, meta: &MetaView, mono: std::time::Duration) {
        for carrier_no in self.lanes.keys() {
            if let Some(holder) = &self.holder {
                let held = holder.view_of(&common(meta, *carrier_no), mono);
                self.scheduler.lane_opens(*carrier_no, held.next_permit);
            }
        }
    }

    pub fn gate_opens(&mut self, carrier_no: u32) {
        if let Some(lane) = self.lanes.get_mut(&carrier_no) {
            lane.wake_at = None;
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
        wing.turns.lead(partition, self.now_ms);
        self.wake_driver(node, 0);
    }

    pub fn step_down_wing(&mut self, node: usize, partition: u32) {
        let now_ms = self.wall_ms(node);
        let wing = &mut self.nodes[node].wing;
        wing.terms.remove(&partition);
        wing.scheduler.unlead(partition, now_ms);
        wing.turns.unlead(partition);
    }

    pub fn schedule_changed(&mut self, node: usize, partition: u32, changes: &[ScheduleChange]) {
        let as_one = self.planted(Plant::FairnessIgnored);
        for change in changes {
            let scheduler = &mut self.nodes[node].wing.scheduler;
            match change {
                ScheduleChange::Due(entry) if as_one => {
                    let entry = DueEntry { practice_no: 1, ..entry.clone() };
                    scheduler.on_change(partition, &ScheduleChange::Due(entry));
                }
                change => scheduler.on_change(partition, change),
            }
        }
        self.follow_turns(node, partition, changes);
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
        self.nodes[node].wing.decide_at = None;
        self.set_demand(node);
        self.look_at_breakers(node);
        let cut = self.net.carriers_cut.get(&node).is_some_and(|cuts| *cuts > 0);
        let at = &mut self.nodes[node];
        let wing = &mut at.wing;
        wing.decided_ms = self.now_ms;
        if cut {
            for carrier_no in wing.lanes.keys().copied().collect::<Vec<_>>() {
                let until = mono + std::time::Duration::from_millis(DOWN_PAUSE_MS);
                wing.scheduler.pause_lane(carrier_no, until);
            }
        }
        wing.open_lanes(&at.meta, mono);
        let opens = wing.look_at_rooms(mono);
        let decision = wing.scheduler.decide(now_ms, mono);
        self.judge_breakers(node, &decision.begin);
        self.judge_turns(node, &decision.begin);
        self.reroute_from_open(node);
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
                    self.resolve_turn(node, partition, id, true);
                }
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
        let opens = opens.map_or(WAKE_MAX_MS, |wait| (wait.as_millis() as u64).max(1));
        self.wake_driver(node, pause.min(opens));
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

    fn page(&mut self, node: usize, request: PageRequest) {
        let PageRequest { partition, request_id, wanted } = request;
        let Some(store) = self.nodes[node].stores.get(&partition) else { return };
        let mut page = read_page(store, &wanted);
        if self.planted(Plant::FairnessIgnored)
            && let Ok(Page::Rows(rows)) = &mut page
        {
            rows.entries.iter_mut().for_each(|entry| entry.practice_no = 1);
        }
        let scheduler = &mut self.nodes[node].wing.scheduler;
        match page {
            Ok(page) => scheduler.on_page(partition, request_id, page),
            Err(_) => scheduler.on_page_failed(partition, request_id),
        }
        self.wake_driver(node, 0);
    }
}
