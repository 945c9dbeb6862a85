//! Leases, as the simulator runs them: a mirror of `node/src/delivery/leases.rs` (a node asks) and `grants.rs` (the leader of the meta group
//! gives) around the same `Holder`, `Grantor` and `rules`.
use super::node::{Asker, Waiter};
use super::plant::Plant;
use super::wing::{LeaseCall, PeerCall, Wing};
use super::world::{Event, World};
use carillon_delivery::GateSettings;
use carillon_delivery::lease::{
    self, Easer, Frame, Grant, Grantor, LeaseAnswer, LeaseRequest, LeaseSettings, Limit, LimitId, rules,
    stamp,
};
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::{CapRecord, EaseLane, MetaCommand};
use prost::Message as _;
use prost::bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;

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
    /// Planted bug: what is taken of daily caps (limit, day), known to this leader only.
    taken: BTreeMap<(u32, u32), u64>,
}

impl World {
    /// What waits for each limit. First work for a limit of which nothing is held makes the node ask at once.
    pub fn set_demand(&mut self, node: usize) {
        let mono = self.mono(node);
        let at = &mut self.nodes[node];
        let Wing { lanes, scheduler, stacks, .. } = &mut at.wing;
        let carriers = lanes.keys().copied();
        let demand = match self.plan.plant {
            Some(Plant::DemandOfCarrier) => {
                let waits: BTreeMap<u32, u32> = scheduler.demand().collect();
                lease::demand(
                    &at.meta,
                    carriers.map(|no| (no, waits.get(&no).copied().unwrap_or(0))).collect(),
                )
            }
            _ => scheduler.demand_of(&at.meta, stacks, carriers),
        };
        let before = std::mem::replace(&mut at.wing.demand, demand);
        let Some(holder) = &mut at.wing.holder else { return };
        let new = |(limit, waits): (&LimitId, &u32)| {
            *waits > 0
                && before.get(limit).is_none_or(|waits| *waits == 0)
                && holder.view(*limit, mono).tokens == 0
        };
        if at.meta.leases() && at.wing.demand.iter().any(new) {
            holder.hurry(mono);
            self.plan_lease_ask(node);
        }
    }

    pub fn plan_lease_ask(&mut self, node: usize) {
        let (mono, epoch) = (self.mono(node), self.nodes[node].epoch);
        let Some(holder) = &self.nodes[node].wing.holder else { return };
        // From nanoseconds: a part of a microsecond that is lost here would be a loop.
        let wait_ms = holder.ask_at().saturating_sub(mono).as_nanos().div_ceil(1_000_000) as u64;
        let wait = self.true_ms(node, wait_ms);
        let at_ms = self.now_ms + wait;
        let planned = &mut self.nodes[node].wing.lease_ask;
        if planned.is_some_and(|planned| planned <= at_ms) {
            return;
        }
        *planned = Some(at_ms);
        self.at(wait, Event::LeaseAsk { node, epoch });
    }

    /// Asks the leader of the meta group for leases.
    pub fn lease_ask(&mut self, node: usize) {
        let (mono, now_ms) = (self.mono(node), self.now_ms);
        let at = &mut self.nodes[node];
        // An earlier plan took its place: without this every plan would go on for ever.
        if at.wing.lease_ask.is_none_or(|planned| planned > now_ms) {
            return;
        }
        at.wing.lease_ask = None;
        if !at.meta.leases() || !at.wing.fresh {
            return;
        }
        let Some(holder) = at.wing.holder.as_mut() else { return };
        if holder.ask_at() <= mono {
            let ended = holder.ended();
            let request = holder.ask(&at.wing.demand, at.wing.limits.kept(mono), mono);
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

    /// It was confirmed: slices of daily caps are taken first, then it gives.
    pub fn grant(&mut self, node: usize, call: Box<LeaseCall>) {
        let now_ms = self.wall_ms(node);
        if self.planted(Plant::CapForgotten) {
            let slices = self.slices_by_heart(node, &call.request, now_ms);
            return self.give(node, &call, slices);
        }
        let meta = &self.nodes[node].meta;
        let wanted = lease::slices(&call.request, meta, now_ms);
        // Whoever does not know of a cap yet gets nothing of it.
        let is_behind = call.request.stamp != 0 && call.request.stamp != stamp(meta);
        if wanted.is_empty() || is_behind {
            return self.give(node, &call, Vec::new());
        }
        let command =
            |take| -> Bytes { MetaCommand { kind: Some(Kind::TakeCap(take)) }.encode_to_vec().into() };
        let (commands, grants): (Vec<Bytes>, Vec<Grant>) =
            wanted.into_iter().map(|(take, grant)| (command(take), grant)).unzip();
        self.propose_encoded(node, 0, commands, Waiter::Slices { call, grants });
    }

    /// The slices that were taken; what was refused, or may have been taken, is lost.
    pub fn sliced(&mut self, node: usize, call: &LeaseCall, grants: Vec<Grant>, taken: &[bool]) {
        for taken in taken {
            self.trace.count(if *taken { "cap_slice_taken" } else { "cap_slice_refused" });
        }
        let grants = grants.into_iter().zip(taken).filter(|(_, taken)| **taken).map(|(grant, _)| grant);
        self.give(node, call, grants.collect());
    }

    /// Planted bug: what is taken of a day is known to the leader, not to the log.
    fn slices_by_heart(&mut self, node: usize, request: &LeaseRequest, now_ms: u64) -> Vec<Grant> {
        let at = &mut self.nodes[node];
        let term = at.leaders.get(&0).map_or(0, |(_, term)| *term);
        let Some(desk) = at.leases.as_mut().filter(|desk| desk.term == term) else { return Vec::new() };
        let mut view = at.meta.clone();
        for ((limit_no, day), taken) in &desk.taken {
            let cap = CapRecord { limit_no: *limit_no, day: *day, taken: *taken };
            view.caps.insert(*limit_no, cap);
        }
        let slices = lease::slices(request, &view, now_ms);
        for (take, _) in &slices {
            *desk.taken.entry((take.limit_no, take.day)).or_default() += u64::from(take.segments);
        }
        slices.into_iter().map(|(_, grant)| grant).collect()
    }

    fn give(&mut self, node: usize, call: &LeaseCall, slices: Vec<Grant>) {
        let LeaseCall { from, epoch, shares_epoch, ref request, ref answers } = *call;
        let (mono, now_ms) = (self.mono(node), self.wall_ms(node));
        let from_id = self.nodes[from].id;
        let (forget, whole) = (self.planted(Plant::LeaseTwice), self.planted(Plant::WholeShare));
        let forget_stack = self.planted(Plant::StackLeaseTwice);
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
            taken: BTreeMap::new(),
        };
        let desk = at.leases.get_or_insert_with(fresh);
        if desk.term != term {
            *desk = fresh();
            self.trace.count("grantor_changed");
        }
        desk.kept.insert(from_id, shares_epoch);
        let eases: Vec<EaseLane> =
            answers.iter().filter_map(|answer| desk.easer.hear(answer, &at.meta, now_ms, mono)).collect();
        let mut rules = rules(&at.meta, &desk.kept, now_ms);
        desk.easer.pause(&mut rules, mono);
        let stamp = stamp(&at.meta);
        let mut forgetful = || {
            let grantor = desk.forgetful.entry(from_id).or_insert_with(|| new(Duration::ZERO));
            grantor.serve(request, &rules, stamp, mono)
        };
        let answer = match forget {
            true => forgetful(),
            false if forget_stack => {
                let twice = forgetful();
                let answer = desk.grantor.serve(request, &rules, stamp, mono);
                answer.zip(twice).map(|(mut answer, twice)| {
                    let stacked = |grant: &Grant| grant.limit > lease::LIMIT_BASE;
                    answer.grants.retain(|grant| !stacked(grant));
                    answer.grants.extend(twice.grants.into_iter().filter(stacked));
                    answer
                })
            }
            false => desk.grantor.serve(request, &rules, stamp, mono),
        };
        let Some(mut answer) = answer else { return };
        answer.grants.extend(slices);
        if answer.settled {
            self.limits_settled(node);
        }
        let Some(desk) = &self.nodes[node].leases else { return };
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
