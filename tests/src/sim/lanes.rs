//! The lanes of a node, its shares and its leases, as the simulator runs them: a mirror of `node/src/delivery/lanes.rs`, `shares.rs` and
//! `leases.rs` around the same `Holder`, `Grantor`, `rules` and `share_of`.
use super::node::{Asker, Waiter};
use super::plant::Plant;
use super::wing::{Lane, LeaseCall, PeerCall};
use super::world::{Event, World};
use carillon_core::meta::{level, share_of};
use carillon_delivery::hours::Stamps;
use carillon_delivery::lease::{
    Easer, Frame, Grantor, Holder, LeaseAnswer, LeaseSettings, Limit, rules, stamp,
};
use carillon_delivery::{GateSettings, LaneConfig};
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::{CarrierRecord, EaseLane, MetaCommand, ShareRecord};
use carillon_proto::public::Outcome;
use prost::Message as _;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// The widest window of a limit (1 s), and what a gate and the way to the carrier may add to it.
const REST: Duration = Duration::from_millis(1_100);

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

/// What the leader of the meta group gives out, of one term.
#[derive(Debug)]
pub struct LeaseDesk {
    term: u64,
    grantor: Grantor,
    easer: Easer,
    /// Epoch of the shares that each node keeps to.
    kept: BTreeMap<u64, u64>,
    /// Planted bug: a grantor for each node.
    forgetful: BTreeMap<u64, Grantor>,
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
        self.nodes[node].wing.shares.set(epoch, mono);
        if leases {
            self.plan_lease_ask(node);
        }
        let meta = &self.nodes[node].meta;
        let stamps = match meta.level >= level::LEVEL_DELIVERY {
            true => self.book.stamps(meta.practices.values()),
            false => Stamps::default(),
        };
        self.nodes[node].wing.scheduler.set_hours(stamps);
        self.wake_driver(node, 0);
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
        let fresh = || Lane {
            carrier: carrier_no as usize - 1,
            limit: record.segments_per_second,
            share: 0,
            queue: VecDeque::new(),
            wake: false,
        };
        wing.lanes.entry(carrier_no).or_insert_with(fresh).share = share;
        if let Some(holder) = &mut wing.holder {
            holder.set_fixed(carrier_no, share, mono);
        }
        self.configure_lane(node, carrier_no);
        self.try_gate(node, carrier_no);
    }

    /// Tells the scheduler what the lane can send now.
    fn configure_lane(&mut self, node: usize, carrier_no: u32) {
        let mono = self.mono(node);
        let at = &mut self.nodes[node];
        let Some(record) = at.meta.carriers.get(&carrier_no) else { return };
        let settings = record.smpp.clone().unwrap_or_default();
        let Some(holder) = &at.wing.holder else { return };
        let share = holder.view(carrier_no, mono).per_kilosecond().div_ceil(1_000);
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
        for send_no in lane.queue {
            self.refused_part(node, send_no, Outcome::NotSent, "gate_closed", 0);
        }
    }

    fn plan_lease_ask(&mut self, node: usize) {
        let (mono, epoch) = (self.mono(node), self.nodes[node].epoch);
        let wing = &mut self.nodes[node].wing;
        let Some(holder) = &wing.holder else { return };
        let wait_ms = holder.ask_at().saturating_sub(mono).as_micros().div_ceil(1_000) as u64;
        let at_ms = self.now_ms + wait_ms;
        if wing.lease_ask.is_some_and(|planned| planned <= at_ms) {
            return;
        }
        wing.lease_ask = Some(at_ms);
        let wait = self.true_ms(node, wait_ms);
        self.at(wait, Event::LeaseAsk { node, epoch });
    }

    /// Asks the leader of the meta group for leases.
    pub fn lease_ask(&mut self, node: usize) {
        let mono = self.mono(node);
        let at = &mut self.nodes[node];
        at.wing.lease_ask = None;
        if !at.meta.leases() || !at.wing.fresh {
            return;
        }
        let Some(holder) = at.wing.holder.as_mut() else { return };
        if holder.ask_at() <= mono {
            let mut demand: BTreeMap<u32, u32> =
                at.wing.lanes.keys().map(|carrier_no| (*carrier_no, 0)).collect();
            demand.extend(at.wing.scheduler.demand().filter(|(no, _)| at.wing.lanes.contains_key(no)));
            let ended = holder.ended();
            let request = holder.ask(&demand, stamp(&at.meta), mono);
            if holder.ended() > ended {
                self.trace.count("lease_ended");
            }
            let at = &mut self.nodes[node];
            let answers = std::mem::take(&mut at.wing.answers).into_values().collect();
            let (epoch, shares_epoch) = (at.epoch, at.wing.shares.kept(mono));
            let call = Box::new(LeaseCall { from: node, epoch, shares_epoch, request, answers });
            match at.leader_hint(0) as usize {
                0 => {}
                to if to - 1 == node => self.serve_lease(node, call),
                to => self.peer(node, to - 1, PeerCall::Lease(call)),
            }
            self.refresh_lanes(node);
        }
        self.plan_lease_ask(node);
    }

    /// The leader's side: first a majority confirms that it leads.
    pub fn serve_lease(&mut self, node: usize, call: Box<LeaseCall>) {
        let ctx = 1 << 62 | (call.from as u64) << 56 | (call.epoch & 0xffff) << 40 | call.request.seq;
        let Some(cell) = self.nodes[node].cells.get_mut(&0) else { return };
        if cell.group.read_index(ctx).is_ok() {
            cell.reads_asked.push((ctx, Asker::Lease(call)));
            self.mark(node, 0);
        }
    }

    /// It was confirmed: now it gives.
    pub fn grant(&mut self, node: usize, call: &LeaseCall) {
        let LeaseCall { from, epoch, shares_epoch, ref request, ref answers } = *call;
        let mono = self.mono(node);
        let from_id = self.nodes[from].id;
        let (forget, whole) = (self.planted(Plant::LeaseTwice), self.planted(Plant::WholeShare));
        let at = &mut self.nodes[node];
        let Some((leader, term)) = at.leaders.get(&0).copied().filter(|(leader, _)| *leader == at.id) else {
            return;
        };
        debug_assert_eq!(leader, at.id);
        let new = |since| Grantor::new(LeaseSettings::default(), GateSettings::default(), since);
        let fresh = || LeaseDesk {
            term,
            grantor: new(mono),
            easer: Easer::default(),
            kept: BTreeMap::new(),
            forgetful: BTreeMap::new(),
        };
        let desk = at.leases.get_or_insert_with(fresh);
        if desk.term != term {
            *desk = fresh();
            self.trace.count("grantor_changed");
        }
        desk.kept.insert(from_id, shares_epoch);
        let now_ms = at.clock.wall_ms(self.now_ms);
        let eases: Vec<EaseLane> =
            answers.iter().filter_map(|answer| desk.easer.hear(answer, &at.meta, now_ms, mono)).collect();
        let mut rules = rules(&at.meta, &desk.kept, now_ms);
        desk.easer.pause(&mut rules, mono);
        let grantor = match forget {
            true => desk.forgetful.entry(from_id).or_insert_with(|| new(Duration::ZERO)),
            false => &mut desk.grantor,
        };
        let Some(mut answer) = grantor.serve(request, &rules, stamp(&at.meta), mono) else { return };
        let overdrawn = desk.grantor.overdrawn();
        for ease in eases {
            self.trace.count("lane_eased");
            let command = MetaCommand { kind: Some(Kind::EaseLane(ease)) }.encode_to_vec();
            self.propose_encoded(node, 0, vec![command.into()], Waiter::Nobody);
        }
        if let Some(limit) = overdrawn {
            self.oracle.fail(format!("I6 more of limit {limit} is leased than there is"));
        }
        if whole {
            for grant in &mut answer.grants {
                let limit = rules.get(&grant.limit).map_or(Limit::per_second(1), |rule| rule.limit);
                let frame = Frame::of(limit, &GateSettings::default());
                grant.tokens = frame.map_or(0, |frame| frame.tokens);
            }
        }
        match from == node {
            true => self.leased(node, epoch, &answer),
            false => self.peer(node, from, PeerCall::Leased { epoch, answer: Box::new(answer) }),
        }
    }

    /// The answer is there.
    pub fn leased(&mut self, node: usize, epoch: u64, answer: &LeaseAnswer) {
        let mono = self.mono(node);
        let at = &mut self.nodes[node];
        if at.epoch != epoch || !at.up || !at.meta.leases() {
            return;
        }
        let Some(holder) = at.wing.holder.as_mut() else { return };
        holder.answer(answer, mono);
        self.trace.count("leased");
        self.refresh_lanes(node);
        self.plan_lease_ask(node);
    }

    fn refresh_lanes(&mut self, node: usize) {
        let carriers: Vec<u32> = self.nodes[node].wing.lanes.keys().copied().collect();
        for carrier_no in carriers {
            self.configure_lane(node, carrier_no);
            self.nodes[node].wing.gate_opens(carrier_no);
            self.try_gate(node, carrier_no);
        }
        self.wake_driver(node, 0);
    }
}
