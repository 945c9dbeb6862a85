//! Gives out leases. Runs where the meta group is led; a new one for each term.
//!
//! Use: confirm with a majority that this node still leads the meta group, later than the request came; then
//! [`Grantor::serve`]; then send the answer. The times are of the grantor's own monotonic clock, at the moment of the call.
use super::lane::{HolderKey, Lane};
use super::{Grant, LeaseAnswer, LeaseRequest, LeaseSettings, Limit, LimitId, WANTS_MAX};
use crate::gate::GateSettings;
use std::collections::BTreeMap;
use std::time::Duration;

/// A limit as it is in force now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitRule {
    pub limit: Limit,
    /// How much of it may be used, in permille: less after a carrier said "too fast".
    pub ease_permille: u32,
    /// Nothing is given out.
    pub paused: bool,
    /// Segments per window that nodes send without a lease (below the feature level of leases), and how many nodes.
    pub fixed: u32,
    pub fixed_nodes: u32,
}

impl LimitRule {
    pub fn of(limit: Limit) -> Self {
        Self { limit, ease_permille: 1_000, paused: false, fixed: 0, fixed_nodes: 0 }
    }

    /// Tokens that are not to be given out.
    pub(super) fn reserved(&self, per_window: u32) -> u32 {
        if self.fixed == 0 { 0 } else { self.fixed / per_window.max(1) + self.fixed_nodes }
    }
}

/// What operators see of one limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaneView {
    pub tokens: u32,
    pub frame: Duration,
    pub held: u32,
    pub resting: u32,
    /// Node, tokens, segments that wait there.
    pub holders: Vec<(u64, u32, u32)>,
}

/// Programs that do not say by which limits they go are not waited for.
fn is_behind(kept: u64, stamp: u64) -> bool {
    kept != 0 && kept != stamp
}

/// See the module documentation.
#[derive(Debug)]
pub struct Grantor {
    settings: LeaseSettings,
    gate: GateSettings,
    /// Leases of earlier grantors have ended by then.
    unknown_until: Duration,
    lanes: BTreeMap<LimitId, Lane>,
    /// Newest request of each process, and when it came.
    heard: BTreeMap<HolderKey, (u64, Duration)>,
    /// By which limits each process goes with what it was given, and until when.
    keeps: BTreeMap<HolderKey, (u64, Duration)>,
    granted: u64,
}

impl Grantor {
    /// `since`: this node has led the meta group at least since then.
    pub fn new(settings: LeaseSettings, gate: GateSettings, since: Duration) -> Self {
        Self {
            unknown_until: since + settings.counted(),
            settings,
            gate,
            lanes: BTreeMap::new(),
            heard: BTreeMap::new(),
            keeps: BTreeMap::new(),
            granted: 0,
        }
    }

    /// `None`: the request is older than another one of the same process, or asks for too much. `stamp`: of the settings that the
    /// rules are made of.
    pub fn serve(
        &mut self,
        request: &LeaseRequest,
        rules: &BTreeMap<LimitId, LimitRule>,
        stamp: u64,
        mono: Duration,
    ) -> Option<LeaseAnswer> {
        let key = (request.node_id, request.incarnation);
        let newest = self.heard.get(&key).map_or(0, |(seq, _)| *seq);
        if request.seq <= newest || request.wants.len() > WANTS_MAX {
            return None;
        }
        let forget = 4 * self.settings.counted();
        self.heard.retain(|_, (_, at)| mono.saturating_sub(*at) < forget);
        self.heard.insert(key, (request.seq, mono));
        self.follow(rules, mono);
        let mut answer = LeaseAnswer {
            seq: request.seq,
            ttl: self.settings.ttl,
            grants: Vec::new(),
            ask_after: None,
            settled: false,
        };
        if is_behind(request.stamp, stamp) {
            // What it has ends as it would have; it gets more when it knows what holds now.
            answer.ask_after = Some(self.settings.behind);
            return Some(answer);
        }
        self.keeps.insert(key, (request.stamp, mono + self.settings.counted()));
        for want in &request.wants {
            let Some(rule) = rules.get(&want.limit) else { continue };
            let Some(lane) = self.lanes.get_mut(&want.limit) else { continue };
            let given = lane.give(key, want, rule, &self.settings, mono);
            let (limit, tokens, whole, frame) = (want.limit, given.tokens, given.whole, given.frame);
            answer.grants.push(Grant { limit, tokens, whole, frame });
            answer.ask_after = [answer.ask_after, given.ask_after].into_iter().flatten().min();
        }
        answer.settled = request.stamp == stamp && self.is_settled(rules, stamp, mono);
        self.granted += 1;
        Some(answer)
    }

    /// Nobody may send by other settings than these: not on a lease of an earlier grantor, not on one that was given before a node knew of
    /// the change, not on tokens of another limit.
    fn is_settled(&mut self, rules: &BTreeMap<LimitId, LimitRule>, stamp: u64, mono: Duration) -> bool {
        self.keeps.retain(|_, (_, until)| *until > mono);
        let known = !self.keeps.values().any(|(kept, _)| is_behind(*kept, stamp));
        let is_old = |(limit, lane): (&LimitId, &Lane)| {
            let rule = rules.get(limit);
            lane.out().0 > 0 && rule.is_none_or(|rule| rule.paused || rule.limit != lane.limit())
        };
        mono >= self.unknown_until && known && !self.lanes.iter().any(is_old)
    }

    /// Lanes for new limits; changed ones begin anew when the old ones have come to rest.
    fn follow(&mut self, rules: &BTreeMap<LimitId, LimitRule>, mono: Duration) {
        for lane in self.lanes.values_mut() {
            lane.tidy(mono);
        }
        self.lanes.retain(|limit, lane| rules.contains_key(limit) || !lane.is_clear(mono));
        for (limit, rule) in rules {
            match self.lanes.get_mut(limit) {
                Some(lane) if lane.limit() != rule.limit && lane.is_clear(mono) => {
                    match lane.renewed(rule.limit, &self.gate) {
                        Some(new) => *lane = new,
                        None => drop(self.lanes.remove(limit)),
                    }
                }
                Some(_) => {}
                None => {
                    let unknown =
                        (mono < self.unknown_until + rule.limit.window).then_some(self.unknown_until);
                    if let Some(lane) = Lane::new(rule.limit, &self.gate, unknown) {
                        self.lanes.insert(*limit, lane);
                    }
                }
            }
        }
    }

    /// A limit of which more was given out than there is, for tests and the simulator.
    pub fn overdrawn(&self) -> Option<LimitId> {
        self.lanes.iter().find(|(_, lane)| lane.overdrawn).map(|(limit, _)| *limit)
    }

    pub fn view(&self, limit: LimitId) -> Option<LaneView> {
        let lane = self.lanes.get(&limit)?;
        let (held, resting) = lane.out();
        let frame = lane.frame();
        let holders = lane.holders().collect();
        Some(LaneView { tokens: frame.tokens, frame: frame.length, held, resting, holders })
    }

    /// Answers given, and reports of nodes that held more than was known.
    pub fn counts(&self) -> (u64, u64) {
        (self.granted, self.lanes.values().map(|lane| lane.surprises).sum())
    }
}
