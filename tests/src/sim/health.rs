//! Breakers, routes and failover, as the simulator runs them: a mirror of `node/src/delivery/health.rs` and `failover.rs` and of the choice
//! of carrier and sender in `node/src/edge/ingest.rs`, around the same `Breaker`, `route` and `choose`.
use super::node::Waiter;
use super::operator::{carrier_name, put};
use super::world::World;
use carillon_core::meta::routes::{self, Way};
use carillon_core::meta::{MetaView, level::LEVEL_DELIVERY, senders};
use carillon_core::{DueEntry, query};
use carillon_delivery::PRIORITIES;
use carillon_delivery::breaker::{Breaker, BreakerConfig, BreakerState};
use carillon_proto::internal::meta_command::Kind as MetaKind;
use carillon_proto::internal::{BreakerMode, Command, Reroute, SetBreaker, command::Kind};
use carillon_proto::public::Outcome;
use std::collections::{BTreeMap, BTreeSet};

/// Between two looks at what waits for a carrier that is given up.
const LOOK_EVERY_MS: u64 = 1_000;
/// Rows read in one look, of each partition and priority.
const PAGE: usize = 64;

impl World {
    pub fn breaker_hears(&mut self, node: usize, carrier_no: u32, outcome: Outcome) {
        let mono = self.mono(node);
        let new = || Breaker::new(BreakerConfig::default());
        self.nodes[node].wing.breakers.entry(carrier_no).or_insert_with(new).on_outcome(outcome, mono);
    }

    /// Looks at connections and operators' wishes, and tells the scheduler how much each lane may carry.
    pub fn look_at_breakers(&mut self, node: usize) {
        let mono = self.mono(node);
        let up = self.net.carriers_cut.get(&node).is_none_or(|cuts| *cuts == 0);
        let at = &mut self.nodes[node];
        for carrier_no in at.wing.lanes.keys() {
            let new = || Breaker::new(BreakerConfig::default());
            let breaker = at.wing.breakers.entry(*carrier_no).or_insert_with(new);
            let before = breaker.state(mono);
            breaker.set_mode(routes::breaker_mode(&at.meta, *carrier_no));
            breaker.on_link(up, mono);
            let told = at.wing.openings.entry(*carrier_no).or_default();
            if routes::breaker_mode(&at.meta, *carrier_no) == BreakerMode::Open {
                self.trace.count("breaker_opened_by_hand");
            }
            if breaker.opened_total() > *told {
                *told = breaker.opened_total();
                self.trace.count("breaker_opened");
            }
            if before == BreakerState::HalfOpen {
                self.trace.count("breaker_half_open");
            }
            at.wing.scheduler.limit_lane(*carrier_no, breaker.attempts_max(mono));
        }
    }

    /// An operator decides about the breaker of a carrier.
    pub fn set_breaker(&mut self, carrier: usize, mode: BreakerMode) {
        let knows = |view: &&MetaView| view.leases() && !view.is_restoring();
        if !self.operator.is_done() || self.newest_view().filter(knows).is_none() {
            return;
        }
        let set = SetBreaker { carrier: carrier_name(carrier), mode: mode.into() };
        let order = put(MetaKind::SetBreaker(set));
        if !self.operator.has(&order) {
            self.trace.count("breaker_set_by_hand");
            self.operator.push(order);
        }
    }

    /// When all is calm breakers decide again, also those of which only a backup knows that they were opened.
    pub fn look_at_hands(&mut self) {
        let Some(view) = self.newest_view().filter(|_| self.calm) else { return };
        let by_hand = view.breakers.values().filter(|record| record.mode != BreakerMode::Auto as i32);
        let carriers: Vec<usize> = by_hand.map(|record| record.carrier_no as usize - 1).collect();
        carriers.into_iter().for_each(|carrier| self.set_breaker(carrier, BreakerMode::Auto));
    }

    pub fn is_open(&mut self, node: usize, carrier_no: u32) -> bool {
        let mono = self.mono(node);
        let breaker = self.nodes[node].wing.breakers.get_mut(&carrier_no);
        breaker.is_some_and(|breaker| matches!(breaker.state(mono), BreakerState::Open { .. }))
    }

    /// I15: nothing begins on a lane whose breaker is open.
    pub fn judge_breakers(&mut self, node: usize, begun: &[carillon_delivery::BeginDecision]) {
        for decided in begun {
            if self.is_open(node, decided.carrier_no) {
                let (id, carrier_no) = (decided.message_id, decided.carrier_no);
                self.oracle
                    .fail(format!("I15 message {id} begins on carrier {carrier_no}, whose breaker is open"));
            }
        }
    }

    /// Carriers that have a lane here and whose breaker is not open.
    fn usable(&mut self, node: usize) -> Vec<u32> {
        let lanes: Vec<u32> = self.nodes[node].wing.lanes.keys().copied().collect();
        lanes.into_iter().filter(|carrier_no| !self.is_open(node, *carrier_no)).collect()
    }

    /// Carrier and sender of a new message, and the route that chose them.
    pub fn way_of(
        &mut self,
        node: usize,
        practice_no: u32,
        own: u32,
        spread: &[u8],
        class: i32,
    ) -> (Way, u32) {
        let usable = self.usable(node);
        let meta = &self.nodes[node].meta;
        let way = |carrier_no, sender_no| Way { carrier_no, sender_no };
        if meta.level < LEVEL_DELIVERY {
            return (way(own, 0), 0);
        }
        let own_sender = || {
            let can = |sender_no| way(own, sender_no).can_be_used(meta);
            way(own, senders::of_pool(meta, own, spread, can).unwrap_or(0))
        };
        let Some(practice) = meta.practices.get(&practice_no) else { return (own_sender(), 0) };
        let Some(route) = routes::route(meta, practice, class, "+1") else { return (own_sender(), 0) };
        let can = |way: Way| usable.contains(&way.carrier_no) && way.can_be_used(meta);
        let chosen = routes::choose(meta, route, spread, can);
        let chosen = chosen.or_else(|| routes::choose(meta, route, spread, |way| way.can_be_used(meta)));
        chosen.map_or_else(|| (own_sender(), 0), |way| (way, route.route_no))
    }

    /// What waits for a carrier whose breaker is open goes to another one, if its route has one. One that is tried again (half open)
    /// keeps its messages, but not those that it has failed already.
    pub fn reroute_from_open(&mut self, node: usize) {
        let meta = &self.nodes[node].meta;
        let nowhere = meta.routes.is_empty() && meta.senders.is_empty();
        if self.now_ms < self.nodes[node].wing.failover_at || meta.level < LEVEL_DELIVERY || nowhere {
            return;
        }
        self.nodes[node].wing.failover_at = self.now_ms + LOOK_EVERY_MS;
        let (mono, now_ms) = (self.mono(node), self.wall_ms(node));
        let wing = &mut self.nodes[node].wing;
        let state = |(carrier_no, breaker): (&u32, &mut Breaker)| (*carrier_no, breaker.state(mono));
        let states: BTreeMap<u32, BreakerState> = wing.breakers.iter_mut().map(state).collect();
        let closed = |carrier_no: &u32| states.get(carrier_no).is_none_or(|s| *s == BreakerState::Closed);
        let usable: Vec<u32> = wing.lanes.keys().copied().filter(closed).collect();
        let any_sender = !self.nodes[node].meta.senders.is_empty();
        if !any_sender && states.values().all(|state| *state == BreakerState::Closed) {
            return;
        }
        for partition in 1..=self.plan.partitions {
            let moves = self.moves(node, partition, (&states, &usable), now_ms);
            for what in moves.iter().map(|(what, _)| *what).collect::<BTreeSet<_>>() {
                self.trace.count(what);
            }
            if !moves.is_empty() {
                let commands = moves.into_iter().map(|(_, command)| command).collect();
                self.propose(node, partition, commands, Waiter::Nobody);
            }
        }
    }

    fn moves(
        &self,
        node: usize,
        partition: u32,
        (states, usable): (&BTreeMap<u32, BreakerState>, &[u32]),
        now_ms: u64,
    ) -> Vec<(&'static str, Command)> {
        let at = &self.nodes[node];
        let Some(store) = at.stores.get(&partition).filter(|_| at.leads(partition)) else {
            return Vec::new();
        };
        let until_ms = now_ms + 2 * LOOK_EVERY_MS;
        let pages = PRIORITIES.iter().map(|p| query::due_sweep(store, *p, None, until_ms, PAGE));
        let command = |row: DueEntry| {
            let from = Way { carrier_no: row.carrier_no, sender_no: row.sender_no };
            let state = states.get(&row.carrier_no).filter(|state| **state != BreakerState::Closed);
            let sender_lost = !from.can_be_used(&at.meta);
            if state.is_none() && !sender_lost {
                return None;
            }
            let (payload, status) = query::message(store, &row.message_id).ok().flatten()?;
            let spread = payload.accept.map(|accept| accept.recipient_index).unwrap_or_default();
            let failed = status.attempts.last().is_some_and(|a| a.carrier_no == row.carrier_no);
            let can = |way: Way| usable.contains(&way.carrier_no) && way.can_be_used(&at.meta);
            let to = match at.meta.routes.get(&status.route_no) {
                Some(route) => routes::choose(&at.meta, route, &spread, can)?,
                None => {
                    let carrier_no = row.carrier_no;
                    let way = |sender_no| Way { carrier_no, sender_no };
                    way(senders::of_pool(&at.meta, carrier_no, &spread, |no| can(way(no)))?)
                }
            };
            let reroute = Reroute {
                message_id: row.message_id.to_bytes(),
                from_carrier_no: from.carrier_no,
                to_carrier_no: to.carrier_no,
                from_sender_no: from.sender_no,
                to_sender_no: to.sender_no,
                due_ms: 0,
            };
            let goes = to != from && (failed || sender_lost || state != Some(&BreakerState::HalfOpen));
            let what = match to.carrier_no == from.carrier_no {
                true => "rerouted_to_another_sender",
                false => "rerouted_from_open_breaker",
            };
            goes.then_some((what, Command { kind: Some(Kind::Reroute(reroute)) }))
        };
        pages.filter_map(Result::ok).flatten().filter_map(command).collect()
    }
}
