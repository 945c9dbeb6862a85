//! The world: nodes, network, clocks and the queue of events, under one virtual clock. This file owns what everything
//! shares; what happens to it is in the files that extend `World`.
use super::carrier::{Carrier, Submit};
use super::client::{Answer, Clients, Request};
use super::nights;
use super::node::Node;
use super::operator::Operator;
use super::oracle::Oracle;
use super::plan::Plan;
use super::plant::Plant;
use super::rng::Rng;
use super::trace::Trace;
use super::wing::PeerCall;
use carillon_consensus::SnapshotFetch;
use carillon_delivery::hours::Rulebook;
use carillon_proto::internal::RaftMessage;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The wall clock at the start of every run, ms since the epoch.
pub const START_MS: u64 = 1_793_000_000_000;
/// Time between two ticks of raft, on a node's monotonic clock.
pub const TICK_MS: u64 = 100;

/// Something that will happen. `epoch` names the incarnation of a node: what was meant for an earlier one is void.
#[derive(Debug)]
pub enum Event {
    Tick {
        node: usize,
        epoch: u64,
    },
    Raft {
        from: usize,
        to: usize,
        store_id: u64,
        group: u32,
        message: Box<RaftMessage>,
    },
    /// A turn of the shard: groups that took messages are polled.
    Turn {
        node: usize,
        epoch: u64,
    },
    Exported {
        node: usize,
        epoch: u64,
        group: u32,
    },
    Fetched {
        node: usize,
        epoch: u64,
        group: u32,
        fetch: SnapshotFetch,
    },
    DiskDone {
        node: usize,
        epoch: u64,
    },
    Apply {
        node: usize,
        epoch: u64,
        group: u32,
    },
    Flush {
        node: usize,
        epoch: u64,
    },
    FlushDone {
        node: usize,
        epoch: u64,
        group: u32,
        batches: usize,
    },
    Restart {
        node: usize,
    },
    Steward {
        node: usize,
        epoch: u64,
    },
    StewardLooked {
        node: usize,
        epoch: u64,
        round: u64,
    },
    Decide {
        node: usize,
        epoch: u64,
    },
    Gate {
        node: usize,
        epoch: u64,
        carrier_no: u32,
    },
    SendTimeout {
        node: usize,
        epoch: u64,
        send_no: u64,
        part: u32,
    },
    CarrierGets {
        carrier: usize,
        submit: Box<Submit>,
    },
    CarrierAnswer {
        node: usize,
        epoch: u64,
        answer: super::carrier::PartAnswer,
    },
    Receipt {
        carrier: usize,
        receipt_no: u64,
    },
    ReceiptLook {
        node: usize,
        epoch: u64,
        report_no: u64,
    },
    FactsRetry {
        node: usize,
        epoch: u64,
        partition: u32,
    },
    Peer {
        from: usize,
        to: usize,
        call: Box<PeerCall>,
    },
    Client,
    Call {
        op: u64,
    },
    CallArrives {
        node: usize,
        op: u64,
        call_no: u32,
        request: Box<Request>,
    },
    CallAnswer {
        op: u64,
        call_no: u32,
        node: usize,
        answer: Box<Answer>,
    },
    CallTimeout {
        op: u64,
        call_no: u32,
    },
    MapNews {
        partition: u32,
        leader: u64,
        term: u64,
    },
    Operator,
    Fault(usize),
    FaultEnds(usize),
}

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
        };
        let nodes = (0..plan.nodes).map(|n| Node::new(n, plan.start_ms(), plan.clocks[n])).collect();
        let carriers = (0..plan.limits.len()).map(|_| Carrier::default()).collect();
        let mut world = Self {
            book: Arc::new(nights::rules(plan.nights)),
            now_ms: 0,
            trace: Trace::new(print),
            oracle: Oracle::default(),
            nodes,
            net: Net::default(),
            carriers,
            clients: Clients::new(plan.partitions),
            operator: Operator::new(&plan),
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

    pub fn wall_ms(&self, node: usize) -> u64 {
        self.nodes[node].clock.wall_ms(self.now_ms)
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
        self.handle(event);
        self.oracle.violation.is_none()
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
        let node = match event {
            Event::Tick { node, .. }
            | Event::Turn { node, .. }
            | Event::Exported { node, .. }
            | Event::Fetched { node, .. }
            | Event::DiskDone { node, .. }
            | Event::Apply { node, .. }
            | Event::Flush { node, .. }
            | Event::FlushDone { node, .. }
            | Event::Decide { node, .. }
            | Event::Gate { node, .. }
            | Event::SendTimeout { node, .. }
            | Event::CarrierAnswer { node, .. }
            | Event::ReceiptLook { node, .. }
            | Event::FactsRetry { node, .. }
            | Event::Steward { node, .. }
            | Event::StewardLooked { node, .. }
            | Event::CallArrives { node, .. } => *node,
            Event::Raft { to, .. } | Event::Peer { to, .. } => *to,
            _ => return None,
        };
        let until = self.nodes[node].frozen_until;
        (until > self.now_ms).then_some(until)
    }

    /// The process that the event was meant for still runs.
    fn alive(&self, node: usize, epoch: u64) -> bool {
        self.nodes[node].up && self.nodes[node].epoch == epoch
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick { node, epoch } if self.alive(node, epoch) => self.tick(node),
            Event::Raft { from, to, store_id, group, message } => {
                self.deliver(from, to, store_id, group, *message);
            }
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
            Event::Steward { node, epoch } if self.alive(node, epoch) => self.steward(node),
            Event::StewardLooked { node, epoch, round } if self.alive(node, epoch) => {
                self.steward_looked(node, round);
            }
            Event::Decide { node, epoch } if self.alive(node, epoch) => self.decide(node),
            Event::Gate { node, epoch, carrier_no } if self.alive(node, epoch) => {
                self.nodes[node].wing.gate_opens(carrier_no);
                self.try_gate(node, carrier_no);
            }
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
            Event::Fault(number) => self.fault(number),
            Event::FaultEnds(number) => self.fault_ends(number),
            // For a process that is gone.
            _ => {}
        }
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
