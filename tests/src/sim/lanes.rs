//! The lanes of a node and its shares, as the simulator runs them: a mirror of `node/src/delivery/lanes.rs` and `shares.rs` around the same
//! `Holder`, `stack` and `share_of`.
use super::node::Asker;
use super::plant::Plant;
use super::sending::stack_of;
use super::wing::PeerCall;
use super::world::World;
use carillon_core::meta::{level, share_of};
use carillon_delivery::hours::Stamps;
use carillon_delivery::lease::{self, Holder, LeaseSettings, LimitId, common, stamp};
use carillon_delivery::{GateSettings, LaneConfig};
use carillon_proto::internal::{CarrierRecord, ShareRecord};
use carillon_proto::public::Outcome;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The widest window of a limit (1 s), and what a gate and the way to the carrier may add to it.
const REST: Duration = Duration::from_millis(1_100);

/// What waits for a permit: urgent ones first, in the order of arrival. (not urgent, arrival, attempt)
type Ticket = (bool, u64, u64);

/// One carrier account as a node uses it.
pub struct Lane {
    pub carrier: usize,
    /// Of all nodes together.
    pub limit: u32,
    /// Its fixed share; 0 = it has leases or nothing.
    pub share: u32,
    /// Apart for each set of limits that they need.
    queues: BTreeMap<Vec<LimitId>, BTreeSet<Ticket>>,
    arrivals: u64,
    /// When its gate is looked at again, if that is planned.
    pub wake_at: Option<u64>,
}

impl Lane {
    fn new(carrier: usize, limit: u32) -> Self {
        Self { carrier, limit, share: 0, queues: BTreeMap::new(), arrivals: 0, wake_at: None }
    }

    pub fn push(&mut self, stack: &[LimitId], urgent: bool, send_no: u64) {
        self.arrivals += 1;
        let ticket = (!urgent, self.arrivals, send_no);
        if let Some(queue) = self.queues.get_mut(stack) {
            queue.insert(ticket);
        } else {
            self.queues.insert(stack.to_vec(), BTreeSet::from([ticket]));
        }
    }

    /// The next one of each set of limits.
    pub fn heads(&self) -> Vec<(Ticket, Vec<LimitId>)> {
        let head = |(stack, queue): (&Vec<LimitId>, &BTreeSet<Ticket>)| {
            queue.first().map(|ticket| (*ticket, stack.clone()))
        };
        let mut heads: Vec<_> = self.queues.iter().filter_map(head).collect();
        heads.sort_unstable();
        heads
    }

    pub fn take(&mut self, stack: &[LimitId], ticket: &Ticket) {
        let Some(queue) = self.queues.get_mut(stack) else { return };
        queue.remove(ticket);
        if queue.is_empty() {
            self.queues.remove(stack);
        }
    }

    /// Everybody who waits, in the order of arrival, to be put back under the limits that they need now.
    fn drain(&mut self) -> Vec<Ticket> {
        let mut tickets: Vec<Ticket> = std::mem::take(&mut self.queues).into_values().flatten().collect();
        tickets.sort_unstable();
        tickets
    }

    fn put_back(&mut self, stack: &[LimitId], ticket: Ticket) {
        self.queues.entry(stack.to_vec()).or_default().insert(ticket);
    }

    fn waiting(self) -> impl Iterator<Item = u64> {
        self.queues.into_values().flatten().map(|(.., send_no)| send_no)
    }
}

/// Which change of the shares this node keeps to: an epoch counts when every gate has kept to it for [`REST`].
#[derive(Debug, Default)]
pub struct ShareKeeper {
    epoch: u64,
    resting: Option<(u64, Duration)>,
}

impl ShareKeeper {
    fn set(&mut self, epoch: u64, mono: Duration) {
        self.epoch = self.kept(mono);
        if self.epoch >= self.resting.map_or(0, |(resting, _)| resting) {
            self.resting = None;
        }
        if epoch > self.epoch && self.resting.is_none_or(|(resting, _)| epoch > resting) {
            self.resting = Some((epoch, mono));
        }
    }

    pub fn kept(&self, mono: Duration) -> u64 {
        match self.resting {
            Some((epoch, since)) if mono.saturating_sub(since) >= REST => epoch,
            _ => self.epoch,
        }
    }
}

/// By which settings of limits a node goes (`lease::stamp`).
#[derive(Debug, Default)]
pub struct Limits {
    stamp: u64,
    since: Duration,
    /// The one before.
    before: u64,
}

impl Limits {
    /// True: from now on no permit is taken by other settings than these.
    fn set(&mut self, stamp: u64, mono: Duration) -> bool {
        let changes = self.stamp != stamp;
        if changes {
            *self = Self { stamp, since: mono, before: self.stamp };
        }
        changes
    }

    /// What the grantor is told: a change counts when permits that were taken before are used or void.
    pub fn kept(&self, mono: Duration) -> u64 {
        let rests = mono < self.since + 2 * LeaseSettings::default().stale_after;
        if rests && self.before != 0 { self.before } else { self.stamp }
    }
}

impl World {
    /// Makes the lanes and their shares equal to the meta group; a carrier without a share here has no lane. Where nodes send on
    /// leases every carrier has one.
    pub fn sync_lanes(&mut self, node: usize) {
        if !self.is_fresh(node) {
            return;
        }
        let mono = self.mono(node);
        self.make_holder(node);
        let (id, epoch) = (self.nodes[node].id, self.nodes[node].meta.shares.epoch);
        let leases = self.nodes[node].meta.leases();
        let at = &mut self.nodes[node];
        if let Some(holder) = &mut at.wing.holder {
            holder.set_caps(&lease::caps(&at.meta));
        }
        let carriers: Vec<CarrierRecord> = self.nodes[node].meta.carriers.values().cloned().collect();
        for record in carriers {
            let share = self.share(&self.nodes[node].meta.shares, id, record.segments_per_second);
            let known = self.nodes[node].wing.lanes.get(&record.carrier_no).map(|lane| lane.share);
            match known {
                None if share == 0 && !leases => {}
                Some(_) if share == 0 && !leases => self.close_lane(node, record.carrier_no),
                Some(known) if share == known => {}
                // It says that it has given up what the others get, and keeps it.
                Some(known) if self.planted(Plant::ShareTwice) && share < known => {}
                _ => self.set_lane(node, &record, share, mono),
            }
        }
        let at = &mut self.nodes[node];
        at.wing.stacks.sync(&at.meta);
        at.wing.rooms.sync(&at.meta, &mut at.wing.scheduler);
        if at.wing.limits.set(stamp(&at.meta), mono) && !self.planted(Plant::StackKept) {
            self.choose_again(node, mono);
        }
        self.sync_practices(node);
        self.nodes[node].wing.shares.set(epoch, mono);
        if leases {
            self.plan_lease_ask(node);
        }
        let meta = &self.nodes[node].meta;
        let stamps = match meta.level >= level::LEVEL_DELIVERY {
            true => self.book.stamps(meta.practices.values()),
            false => Stamps::default(),
        };
        let wing = &mut self.nodes[node].wing;
        if wing.scheduler.set_hours(stamps.clone()) {
            wing.stamps = stamps;
            wing.turns.forget_singles();
        }
        self.wake_driver(node, 0);
    }

    /// Other limits are in force: whoever waits at a gate looks again which ones it needs.
    fn choose_again(&mut self, node: usize, mono: Duration) {
        let plant = self.plan.plant;
        let at = &mut self.nodes[node];
        for lane in at.wing.lanes.values_mut() {
            for ticket in lane.drain() {
                let Some(sending) = at.wing.sends.get_mut(&ticket.2) else { continue };
                sending.stack = stack_of(&at.meta, &sending.permit, plant);
                lane.put_back(&sending.stack, ticket);
            }
            lane.wake_at = None;
        }
        if let Some(holder) = &mut at.wing.holder {
            holder.hurry(mono);
        }
        let carriers: Vec<u32> = at.wing.lanes.keys().copied().collect();
        carriers.into_iter().for_each(|carrier_no| self.try_gate(node, carrier_no));
    }

    fn make_holder(&mut self, node: usize) {
        let (id, epoch) = (self.nodes[node].id, self.nodes[node].epoch);
        let holder = || Holder::new(LeaseSettings::default(), GateSettings::default(), id, epoch + 1);
        self.nodes[node].wing.holder.get_or_insert_with(holder);
    }

    fn is_fresh(&mut self, node: usize) -> bool {
        let at = &mut self.nodes[node];
        let applied = at.cells.get(&0).map_or(0, |cell| cell.group.applied_index());
        at.wing.fresh |= at.wing.fresh_from.is_some_and(|index| applied >= index);
        at.wing.fresh
    }

    /// Asks the leader of the meta group how far it is, until it knows.
    pub fn freshen(&mut self, node: usize) {
        if self.nodes[node].wing.fresh {
            return;
        }
        if self.nodes[node].wing.fresh_from.is_some() {
            return self.sync_lanes(node);
        }
        let (leader, epoch) = (self.nodes[node].leader_hint(0) as usize, self.nodes[node].epoch);
        match leader {
            0 => {}
            leader if leader - 1 == node => self.serve_confirm(node, node, epoch),
            leader => self.peer(node, leader - 1, PeerCall::Confirm { epoch }),
        }
    }

    /// The leader's side of it.
    pub fn serve_confirm(&mut self, node: usize, from: usize, epoch: u64) {
        let Some(cell) = self.nodes[node].cells.get_mut(&0) else { return };
        let ctx = 3 << 62 | (from as u64) << 32 | epoch;
        if cell.group.read_index(ctx).is_ok() {
            cell.reads_asked.push((ctx, Asker::Confirm { from, epoch }));
            self.mark(node, 0);
        }
    }

    pub fn serve_confirmed(&mut self, node: usize, from: usize, epoch: u64) {
        let index = self.nodes[node].cells.get(&0).map_or(0, |cell| cell.group.applied_index());
        match from == node {
            true => self.confirmed_fresh(node, epoch, index),
            false => self.peer(node, from, PeerCall::Confirmed { epoch, index }),
        }
    }

    pub fn confirmed_fresh(&mut self, node: usize, epoch: u64, index: u64) {
        if self.nodes[node].epoch == epoch && self.nodes[node].up {
            self.nodes[node].wing.fresh_from.get_or_insert(index);
            self.sync_lanes(node);
        }
    }

    fn share(&self, record: &ShareRecord, node_id: u64, limit: u32) -> u32 {
        if self.planted(Plant::WholeShare) { limit } else { share_of(record, node_id, limit) }
    }

    fn set_lane(&mut self, node: usize, record: &CarrierRecord, share: u32, mono: Duration) {
        let carrier_no = record.carrier_no;
        let wing = &mut self.nodes[node].wing;
        let fresh = || Lane::new(carrier_no as usize - 1, record.segments_per_second);
        wing.lanes.entry(carrier_no).or_insert_with(fresh).share = share;
        if let Some(holder) = &mut wing.holder {
            holder.set_fixed(carrier_no, share, mono);
        }
        self.configure_lane(node, carrier_no);
        self.try_gate(node, carrier_no);
    }

    /// Tells the scheduler what the lane can send now.
    pub fn configure_lane(&mut self, node: usize, carrier_no: u32) {
        let mono = self.mono(node);
        let at = &mut self.nodes[node];
        let Some(record) = at.meta.carriers.get(&carrier_no) else { return };
        let settings = record.smpp.clone().unwrap_or_default();
        let Some(holder) = &at.wing.holder else { return };
        let held = holder.view_of(&common(&at.meta, carrier_no), mono);
        let share = held.per_kilosecond().div_ceil(1_000);
        at.wing.scheduler.set_lane(LaneConfig {
            carrier_no,
            share_segments_per_second: share as u32,
            in_flight_max: settings.binds_per_node * settings.window,
        });
    }

    /// Who waits for its gate is told that nothing left.
    fn close_lane(&mut self, node: usize, carrier_no: u32) {
        let wing = &mut self.nodes[node].wing;
        let Some(lane) = wing.lanes.remove(&carrier_no) else { return };
        if let Some(holder) = &mut wing.holder {
            holder.forget(carrier_no);
        }
        wing.scheduler.remove_lane(carrier_no);
        for send_no in lane.waiting() {
            self.refused_part(node, send_no, Outcome::NotSent, "gate_closed", 0);
        }
    }
}
