//! The world: nodes, network, clocks and the queue of events, under one virtual clock. This file owns what everything
//! shares; what happens to it is in the files that extend `World`.
use super::backup::Backups;
use super::carrier::Carrier;
use super::client::Clients;
pub use super::event::{Event, FrameHead};
use super::nights;
use super::node::Node;
use super::operator::Operator;
use super::oracle::Oracle;
use super::plan::Plan;
use super::plant::Plant;
use super::rng::Rng;
use super::trace::Trace;
use carillon_core::meta::level::LEVEL;
use carillon_delivery::hours::Rulebook;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

/// The wall clock at the start of every run, ms since the epoch.
pub const START_MS: u64 = 1_793_000_000_000;
/// Time between two ticks of raft, on a node's monotonic clock.
pub const TICK_MS: u64 = 100;

/// One random stream for each purpose.
pub struct Streams {
    pub net: Rng,
    pub disk: Rng,
    pub apply: Rng,
    pub crash: Rng,
    pub client: Rng,
    pub calls: Rng,
    pub ingest: Rng,
    pub carrier: Rng,
    pub receipts: Rng,
    pub ticks: Rng,
    pub operator: Rng,
    pub care: Rng,
}

/// What is between the nodes.
#[derive(Debug, Default)]
pub struct Net {
    /// How many faults cut each link (from, to).
    pub cut: BTreeMap<(usize, usize), u32>,
    /// Until when a link delivers nothing.
    pub clogged: BTreeMap<(usize, usize), u64>,
    pub clients_cut: BTreeMap<usize, u32>,
    pub carriers_cut: BTreeMap<usize, u32>,
}

/// See the module documentation.
pub struct World {
    pub plan: Plan,
    /// The rules of the hours.
    pub book: Arc<Rulebook>,
    pub now_ms: u64,
    pub trace: Trace,
    pub oracle: Oracle,
    pub nodes: Vec<Node>,
    pub net: Net,
    pub carriers: Vec<Carrier>,
    pub clients: Clients,
    pub operator: Operator,
    pub backups: Backups,
    /// Partition whose restore waits for the answer to a piece, and since when.
    pub fed: Option<(u32, u64)>,
    /// The cluster is lost and the next one is not there yet.
    pub is_dark: bool,
    pub rng: Streams,
    /// Faults that last, as they were carried out.
    pub lasting: BTreeMap<usize, super::plan::Fault>,
    /// The liveness phase: no new trouble.
    pub calm: bool,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
}

impl World {
    pub fn new(plan: Plan, print: bool) -> Self {
        let stream = |purpose| Rng::stream(plan.seed, purpose);
        let rng = Streams {
            net: stream("net"),
            disk: stream("disk"),
            apply: stream("apply"),
            crash: stream("crash"),
            client: stream("client"),
            calls: stream("calls"),
            ingest: stream("ingest"),
            carrier: stream("carrier"),
            receipts: stream("receipts"),
            ticks: stream("ticks"),
            operator: stream("operator"),
            care: stream("care"),
        };
        let nodes = (0..plan.nodes).map(|n| Node::new(n, plan.start_ms(), plan.clocks[n])).collect();
        let carriers = (0..plan.limits.len()).map(|_| Carrier::default()).collect();
        let keeps_taken_over = plan.levels.iter().all(|level| *level == LEVEL);
        let mut world = Self {
            book: Arc::new(nights::rules(plan.nights)),
            now_ms: 0,
            trace: Trace::new(print),
            oracle: Oracle::new(&plan.settings.limits, keeps_taken_over),
            nodes,
            net: Net::default(),
            carriers,
            clients: Clients::new(plan.partitions),
            operator: Operator::new(&plan),
            backups: Backups::default(),
            fed: None,
            is_dark: false,
            rng,
            lasting: BTreeMap::new(),
            calm: false,
            events: BTreeMap::new(),
            sequence: 0,
            plan,
        };
        for node in 0..world.plan.nodes {
            world.nodes[node].founder = true;
            world.nodes[node].level = world.plan.levels[node];
        }
        for node in 0..world.plan.nodes {
            world.restart(node);
        }
        for (number, (at_ms, _)) in world.plan.faults.clone().into_iter().enumerate() {
            world.at(at_ms, Event::Fault(number));
        }
        world.at(300, Event::Operator);
        world.at(800, Event::Client);
        world
    }

    pub fn planted(&self, plant: Plant) -> bool {
        self.plan.plant == Some(plant)
    }

    /// Groups of every node: the meta group and the partitions.
    pub fn groups(&self) -> std::ops::RangeInclusive<u32> {
        0..=self.plan.partitions
    }

    /// Schedules an event.
    pub fn at(&mut self, delay_ms: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now_ms + delay_ms, self.sequence), event);
    }

    pub fn note(&mut self, words: &[u64], text: impl FnOnce() -> String) {
        self.trace.note(self.now_ms, words, text);
    }

    /// What a node takes for the time: its wall clock, bounded by those of its peers.
    pub fn wall_ms(&mut self, node: usize) -> u64 {
        let wall_ms = self.nodes[node].clock.wall_ms(self.now_ms);
        if self.planted(Plant::ClockUnbounded) {
            return wall_ms;
        }
        let mono_ms = self.mono_ms(node);
        self.nodes[node].clocks.look(wall_ms, mono_ms).now_ms(wall_ms, mono_ms)
    }

    pub fn mono_ms(&self, node: usize) -> u64 {
        self.mono(node).as_millis() as u64
    }

    pub fn mono(&self, node: usize) -> std::time::Duration {
        self.nodes[node].clock.mono(self.now_ms)
    }

    /// A time that a node measures, in true milliseconds (at least as long).
    pub fn true_ms(&self, node: usize, mono_ms: u64) -> u64 {
        self.nodes[node].clock.true_ms(mono_ms)
    }

    /// Handles the next event. False: a violation was found, or nothing is left.
    pub fn step(&mut self) -> bool {
        let Some(((at, _), event)) = self.events.pop_first() else { return false };
        self.now_ms = at;
        if let Some(until) = self.frozen(&event) {
            self.at(until - self.now_ms, event);
            return true;
        }
        self.trace.events += 1;
        match event.node().filter(|node| self.nodes[*node].disk.is_rotten()) {
            Some(node) => self.handle_beside_rot(node, event),
            None => self.handle(event),
        }
        self.oracle.violation.is_none()
    }

    /// raft panics when it meets a damaged entry, and the process with it: it comes back with that replica out of service.
    fn handle_beside_rot(&mut self, node: usize, event: Event) {
        let handled = catch_unwind(AssertUnwindSafe(|| self.handle(event)));
        let Err(panic) = handled else { return };
        let text = panic.downcast_ref::<String>().map_or("", String::as_str);
        if !text.contains("damaged") && !text.contains("Damaged") {
            resume_unwind(panic);
        }
        self.trace.count("log_rot_met_by_raft");
        self.note(&[16, node as u64], || format!("halt   n{} met a damaged entry", node + 1));
        self.crash(node, false);
        self.at(500, Event::Restart { node });
    }

    pub fn run_until(&mut self, end_ms: u64) -> bool {
        while self.events.first_key_value().is_some_and(|((at, _), _)| *at <= end_ms) {
            if !self.step() {
                return false;
            }
        }
        self.now_ms = end_ms;
        true
    }

    /// Until when the node that the event needs stands still, if it does.
    fn frozen(&self, event: &Event) -> Option<u64> {
        let until = self.nodes[event.node()?].frozen_until;
        (until > self.now_ms).then_some(until)
    }

    /// The process that the event was meant for still runs.
    fn alive(&self, node: usize, epoch: u64) -> bool {
        self.nodes[node].up && self.nodes[node].epoch == epoch
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick { node, epoch } if self.alive(node, epoch) => self.tick(node),
            Event::Raft { from, to, head, group, message } => self.deliver(from, to, head, group, *message),
            Event::Turn { node, epoch } if self.alive(node, epoch) => self.turn(node),
            Event::Exported { node, epoch, group } if self.alive(node, epoch) => self.exported(node, group),
            Event::Fetched { node, epoch, group, fetch } if self.alive(node, epoch) => {
                self.fetched(node, group, fetch);
            }
            Event::DiskDone { node, epoch } if self.alive(node, epoch) => self.disk_done(node),
            Event::Apply { node, epoch, group } if self.alive(node, epoch) => self.apply(node, group),
            Event::Flush { node, epoch } if self.alive(node, epoch) => self.flush(node),
            Event::FlushDone { node, epoch, group, batches } if self.alive(node, epoch) => {
                self.flush_done(node, group, batches);
            }
            Event::Restart { node } => self.restart(node),
            Event::Space { node, epoch } if self.alive(node, epoch) => self.look_at_space(node),
            Event::Retention { node, epoch } if self.alive(node, epoch) => self.look_for_old(node),
            Event::RetireMore { node, epoch, partition } if self.alive(node, epoch) => {
                self.retire(node, partition);
            }
            Event::Steward { node, epoch } if self.alive(node, epoch) => self.steward(node),
            Event::StewardLooked { node, epoch, round } if self.alive(node, epoch) => {
                self.steward_looked(node, round);
            }
            Event::Decide { node, epoch } if self.alive(node, epoch) => self.decide(node),
            Event::Gate { node, epoch, carrier_no } if self.alive(node, epoch) => {
                self.nodes[node].wing.gate_opens(carrier_no);
                self.try_gate(node, carrier_no);
            }
            Event::LeaseAsk { node, epoch } if self.alive(node, epoch) => self.lease_ask(node),
            Event::SendTimeout { node, epoch, send_no, part } if self.alive(node, epoch) => {
                self.send_timeout(node, send_no, part);
            }
            Event::CarrierGets { carrier, submit } => self.carrier_gets(carrier, *submit),
            Event::CarrierAnswer { node, epoch, answer } if self.alive(node, epoch) => {
                self.part_answered(node, answer);
            }
            Event::Receipt { carrier, receipt_no } => self.receipt_leaves(carrier, receipt_no),
            Event::ReceiptLook { node, epoch, report_no } if self.alive(node, epoch) => {
                self.look_again(node, report_no);
            }
            Event::FactsRetry { node, epoch, partition } if self.alive(node, epoch) => {
                self.facts_go(node, partition);
            }
            Event::Peer { from, to, call } => self.peer_call(from, to, *call),
            Event::Client => self.client(),
            Event::Call { op } => self.call(op),
            Event::CallArrives { node, op, call_no, request } => {
                self.call_arrives(node, op, call_no, *request)
            }
            Event::CallAnswer { op, call_no, node, answer } => self.call_answered(op, call_no, node, *answer),
            Event::CallTimeout { op, call_no } => self.call_timeout(op, call_no),
            Event::MapNews { partition, leader, term } => self.clients.learn(partition, leader, term),
            Event::Operator => self.operate(),
            Event::Backup { no } => self.go_on_with_backup(no),
            Event::Rebuild => self.rebuild(),
            Event::Quarantine => self.decide_on_quarantine(),
            Event::Fault(number) => self.fault(number),
            Event::FaultEnds(number) => self.fault_ends(number),
            // For a process that is gone.
            _ => {}
        }
    }

    /// Whatever nodes were to do or to hear; carriers, callers and faults go on.
    pub fn forget_events_of_nodes(&mut self) {
        self.events.retain(|_, event| event.is_outside_of_nodes());
    }

    /// Puts a message between two nodes on its way; `None` = lost.
    pub fn net_delay(&mut self, from: usize, to: usize) -> Option<u64> {
        if self.net.cut.get(&(from, to)).is_some_and(|cuts| *cuts > 0) {
            return None;
        }
        if !self.calm && self.rng.net.chance(self.plan.rates.drop) {
            return None;
        }
        let high = if self.calm { 5 } else { self.plan.rates.net_ms_max };
        let delay = 1 + self.rng.net.below(high);
        let clogged = self.net.clogged.get(&(from, to)).copied().unwrap_or(0);
        Some(delay + clogged.saturating_sub(self.now_ms))
    }
}
