//! Breakers, routes and failover, as the simulator runs them: a mirror of `node/src/delivery/health.rs` and `failover.rs` and of the choice
//! of a carrier in `node/src/edge/ingest.rs`, around the same `Breaker`, `route` and `choose`.
use super::node::Waiter;
use super::operator::{carrier_name, put};
use super::world::World;
use carillon_core::meta::{MetaView, level::LEVEL_DELIVERY, routes};
use carillon_core::{DueEntry, query};
use carillon_delivery::PRIORITIES;
use carillon_delivery::breaker::{Breaker, BreakerConfig, BreakerState};
use carillon_proto::MessageId;
use carillon_proto::internal::meta_command::Kind as MetaKind;
use carillon_proto::internal::{BreakerMode, Command, Reroute, SetBreaker, command::Kind};
use carillon_proto::public::Outcome;
use std::collections::BTreeMap;

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

    /// The carrier of a new message, and the route that chose it.
    pub fn carrier_of(
        &mut self,
        node: usize,
        practice_no: u32,
        own: u32,
        id: &MessageId,
        class: i32,
    ) -> (u32, u32) {
        let usable = self.usable(node);
        let meta = &self.nodes[node].meta;
        if meta.level < LEVEL_DELIVERY || meta.routes.is_empty() {
            return (own, 0);
        }
        let Some(practice) = meta.practices.get(&practice_no) else { return (own, 0) };
        let Some(route) = routes::route(meta, practice, class, "+1") else { return (own, 0) };
        let chosen = routes::choose(meta, route, id, |no| usable.contains(&no));
        let chosen = chosen.or_else(|| routes::choose(meta, route, id, |_| true));
        chosen.map_or((own, 0), |carrier_no| (carrier_no, route.route_no))
    }

    /// What waits for a carrier whose breaker is open goes to another one, if its route has one. One that is tried again (half open)
    /// keeps its messages, but not those that it has failed already.
    pub fn reroute_from_open(&mut self, node: usize) {
        if self.now_ms < self.nodes[node].wing.failover_at || self.nodes[node].meta.routes.is_empty() {
            return;
        }
        self.nodes[node].wing.failover_at = self.now_ms + LOOK_EVERY_MS;
        let (mono, now_ms) = (self.mono(node), self.wall_ms(node));
        let wing = &mut self.nodes[node].wing;
        let state = |(carrier_no, breaker): (&u32, &mut Breaker)| (*carrier_no, breaker.state(mono));
        let states: BTreeMap<u32, BreakerState> = wing.breakers.iter_mut().map(state).collect();
        let closed = |carrier_no: &u32| states.get(carrier_no).is_none_or(|s| *s == BreakerState::Closed);
        let usable: Vec<u32> = wing.lanes.keys().copied().filter(closed).collect();
        if states.values().all(|state| *state == BreakerState::Closed) {
            return;
        }
        for partition in 1..=self.plan.partitions {
            let commands = self.moves(node, partition, (&states, &usable), now_ms);
            if !commands.is_empty() {
                self.trace.count("rerouted_from_open_breaker");
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
    ) -> Vec<Command> {
        let at = &self.nodes[node];
        let Some(store) = at.stores.get(&partition).filter(|_| at.leads(partition)) else {
            return Vec::new();
        };
        let until_ms = now_ms + 2 * LOOK_EVERY_MS;
        let pages = PRIORITIES.iter().map(|p| query::due_sweep(store, *p, None, until_ms, PAGE));
        let command = |row: DueEntry| {
            let state = states.get(&row.carrier_no).filter(|state| **state != BreakerState::Closed)?;
            let (_, status) = query::message(store, &row.message_id).ok().flatten()?;
            let failed = status.attempts.last().is_some_and(|a| a.carrier_no == row.carrier_no);
            let route = at.meta.routes.get(&status.route_no)?;
            let to = routes::choose(&at.meta, route, &row.message_id, |no| usable.contains(&no))?;
            let reroute = Reroute {
                message_id: row.message_id.to_bytes(),
                from_carrier_no: row.carrier_no,
                to_carrier_no: to,
                due_ms: now_ms,
            };
            let goes = to != row.carrier_no && (failed || *state != BreakerState::HalfOpen);
            goes.then_some(Command { kind: Some(Kind::Reroute(reroute)) })
        };
        pages.filter_map(Result::ok).flatten().filter_map(command).collect()
    }
}
