//! What operators set of a run besides its carriers and practices: senders, stacked limits, daily caps, weights, fuses, a route. All of it is put
//! into the meta group once nodes send on leases, and again after a restore.
use super::client::{TENANT, practice_name};
use super::operator::carrier_name;
use super::rng::Rng;
use super::world::World;
use carillon_core::meta::MetaView;
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::{
    LimitRecord, LimitScope, PutLimit, PutPolicy, PutPractice, PutRoute, PutSender, RouteRecord, RouteTarget,
    SenderRecord, SendingPolicy,
};
use carillon_proto::public::MessageClass;

/// The sender of every carrier account.
pub const SENDER: &str = "12345";
/// Zone of the daily caps.
const ZONE: &str = "America/New_York";
/// 2026-10-27T04:00:00Z, worked out by a person: in New York a day begins.
pub const MIDNIGHT_MS: u64 = 1_793_073_600_000;
/// A run with a midnight begins so long before it.
pub const BEFORE_MIDNIGHT_MS: u64 = 20_000;
/// The fuse for bursts looks at this time; there is no shorter one.
pub const BURST_WINDOW_S: u32 = 60;
pub const ROUTE: &str = "all";

/// A sender of a carrier besides its account's own, from 1.
pub fn sender_address(carrier: usize, number: u32) -> String {
    format!("+1212555{carrier:02}{number:02}")
}

/// What a limit applies to. Of campaigns, brands and practices: their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Account,
    /// The account's own sender.
    Sender,
    /// One of the others, from 1.
    Own(u32),
    Campaign(u32),
    Brand(u32),
    Practice(u32),
}

/// At most `amount` segments in every window of so many seconds; 0 = on every day of [`ZONE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedLimit {
    pub carrier: usize,
    pub scope: Scope,
    pub amount: u32,
    pub window_s: u32,
    /// How much of it must be used at least while nothing is in the way; 0 = that is not to be expected.
    pub used_permille: u64,
}

pub fn campaign_of(practice: u32) -> u32 {
    practice % 3
}

pub fn brand_of(practice: u32) -> u32 {
    practice % 4
}

/// The practice of a number, as the sim counts them.
pub fn practice_of(view: &MetaView, practice_no: u32) -> u32 {
    let record = view.practices.get(&practice_no);
    let number = record.and_then(|record| record.practice.strip_prefix("practice-")?.parse().ok());
    number.unwrap_or(u32::MAX)
}

impl PlannedLimit {
    /// The oracle's opinion of what it applies to. `sender`: 0 = the account's own.
    pub fn covers(&self, carrier: usize, practice: u32, sender: u32) -> bool {
        self.carrier == carrier
            && match self.scope {
                Scope::Account => true,
                Scope::Sender => sender == 0,
                Scope::Own(number) => sender == number,
                Scope::Campaign(number) => campaign_of(practice) == number,
                Scope::Brand(number) => brand_of(practice) == number,
                Scope::Practice(number) => practice == number,
            }
    }

    /// Messages of other practices of the carrier do not need it.
    pub fn is_narrow(&self) -> bool {
        !matches!(self.scope, Scope::Account | Scope::Sender | Scope::Own(_))
    }

    fn record(&self, view: &MetaView) -> Option<LimitRecord> {
        let (scope, key, practice) = match self.scope {
            Scope::Account => (LimitScope::Account, String::new(), None),
            Scope::Sender => (LimitScope::Sender, SENDER.to_owned(), None),
            Scope::Own(number) => (LimitScope::Sender, sender_address(self.carrier, number), None),
            Scope::Campaign(number) => (LimitScope::Campaign, format!("campaign-{number}"), None),
            Scope::Brand(number) => (LimitScope::Brand, format!("brand-{number}"), None),
            Scope::Practice(number) => (LimitScope::Practice, String::new(), Some(number)),
        };
        let practice_no = match practice {
            Some(number) => view.practice(TENANT, &practice_name(number))?.practice_no,
            None => 0,
        };
        let network = if matches!(self.scope, Scope::Campaign(_) | Scope::Brand(_)) { "att" } else { "" };
        Some(LimitRecord {
            limit_no: 0,
            carrier_no: view.carrier(&carrier_name(self.carrier))?.carrier_no,
            scope: scope.into(),
            key,
            practice_no,
            network: network.to_owned(),
            amount: self.amount,
            window_s: self.window_s,
            time_zone: if self.window_s == 0 { ZONE.to_owned() } else { String::new() },
        })
    }

    /// How many segments it allows, as far as the view knows it.
    pub fn known(&self, view: &MetaView) -> Option<u32> {
        let own = self.record(view)?;
        let same = |known: &&LimitRecord| {
            let (limit_no, amount) = (known.limit_no, known.amount);
            LimitRecord { limit_no, amount, ..own.clone() } == **known
        };
        view.limits.values().find(same).map(|known| known.amount)
    }

    /// When so many permille of it are set.
    fn changed(&self, permille: u32) -> Self {
        Self { amount: (self.amount * permille / 1_000).max(1), ..*self }
    }
}

/// See the module documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub limits: Vec<PlannedLimit>,
    /// Senders of every carrier besides its account's own.
    pub senders: u32,
    /// When an operator sets all limits to so many permille of these.
    pub changes: Vec<(u64, u32)>,
    /// A day of the caps ends within the run.
    pub midnight: bool,
    /// Weights of the practices in order; those that are missing have 1.
    pub weights: Vec<u32>,
    /// These practices have three quarters of all messages.
    pub heavy: Vec<u32>,
    /// Messages to one recipient on a day and in a week (days are short here, see `begin.rs`); 0 = any number.
    pub per_day: u32,
    pub per_week: u32,
    /// The fuses; 0 = off.
    pub duplicate_window_s: u32,
    pub burst: u32,
    /// Messages go by a route: the first carrier, and the second while that one fails.
    pub routed: bool,
    /// This carrier takes a message in one piece (HTTP), not in parts (SMPP).
    pub whole: Option<usize>,
    /// Rows that a scheduler holds for one (partition, priority).
    pub window_rows: usize,
    /// Nothing is in the way of the lanes: limits must be used.
    pub healthy: bool,
    /// The account carries all that the limits of practices let through: of messages that have none of their own so many permille may expire.
    pub roomy: Option<u64>,
    /// The first carrier says "too fast" from when to when; it is eased, and comes back.
    pub throttled_ms: Option<(u64, u64)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Vec::new(),
            senders: 0,
            changes: Vec::new(),
            midnight: false,
            weights: Vec::new(),
            heavy: Vec::new(),
            per_day: 1,
            per_week: 2,
            duplicate_window_s: 0,
            burst: 0,
            routed: false,
            whole: None,
            window_rows: 24,
            healthy: false,
            roomy: None,
            throttled_ms: None,
        }
    }
}

impl Settings {
    pub fn of_seed(seed: u64, practices: u32, carriers: usize) -> Self {
        let mut rng = Rng::stream(seed, "settings");
        let mut drawn = Self::default();
        if rng.chance(300) {
            for _ in 0..rng.within(1, 4) {
                let number = rng.below(u64::from(practices)) as u32;
                let scope = rng.pick(&[
                    Scope::Account,
                    Scope::Sender,
                    Scope::Campaign(campaign_of(number)),
                    Scope::Brand(brand_of(number)),
                    Scope::Practice(number),
                ]);
                let window_s = rng.pick(&[0, 1, 1, 2, 5]);
                let amount = rng.pick(&[2, 5, 20]) * window_s.max(4);
                let carrier = rng.below(carriers as u64) as usize;
                let limit = PlannedLimit { carrier, scope, amount, window_s, used_permille: 0 };
                // The second of a kind would take the place of the first.
                if !drawn.limits.iter().any(|l| (l.carrier, l.scope) == (carrier, scope)) {
                    drawn.limits.push(limit);
                }
            }
            drawn.midnight = rng.chance(400);
        }
        if rng.chance(300) {
            drawn.weights = (0..practices).map(|_| rng.pick(&[1, 1, 3, 8])).collect();
        }
        if rng.chance(200) {
            drawn.heavy = vec![rng.below(u64::from(practices)) as u32];
        }
        if rng.chance(250) {
            (drawn.per_day, drawn.per_week) = (0, 0);
            (drawn.duplicate_window_s, drawn.burst) = (rng.pick(&[5, 30]), rng.pick(&[2, 4]));
        }
        drawn.routed = rng.chance(400);
        drawn.whole = rng.chance(400).then_some(carriers - 1);
        if rng.chance(400) {
            let lower_ms = rng.within(8_000, 14_000);
            drawn.changes = vec![(lower_ms, 500), (lower_ms + rng.within(100, 9_000), 1_000)];
        }
        // Its own stream, so that seeds from before there were senders are as they were.
        let mut rng = Rng::stream(seed, "senders");
        if rng.chance(200) {
            drawn.senders = rng.within(1, 3) as u32;
            if rng.chance(500) {
                let carrier = rng.below(carriers as u64) as usize;
                let scope = Scope::Own(rng.within(1, u64::from(drawn.senders)) as u32);
                let amount = rng.pick(&[2, 5]);
                drawn.limits.push(PlannedLimit { carrier, scope, amount, window_s: 1, used_permille: 0 });
            }
        }
        drawn
    }

    pub fn weight(&self, practice: u32) -> u32 {
        self.weights.get(practice as usize).copied().unwrap_or(1)
    }

    /// Some limit holds for the practice and not for all of the carrier.
    pub fn is_narrow(&self, carrier: usize, practice: u32) -> bool {
        // Some of every practice's messages leave under each sender.
        let of_sender =
            |limit: &PlannedLimit| matches!(limit.scope, Scope::Own(_)) && limit.carrier == carrier;
        let narrow = |limit: &PlannedLimit| limit.is_narrow() && limit.covers(carrier, practice, 0);
        self.limits.iter().any(|limit| narrow(limit) || of_sender(limit))
    }

    /// What puts them into force.
    fn kinds(&self, view: &MetaView, carriers: usize) -> Vec<Kind> {
        // Below the level of limits campaigns and brands were not kept.
        let practice = |practice| {
            let put = PutPractice { weight: self.weight(practice), ..put_practice(practice, carriers) };
            Kind::PutPractice(put)
        };
        let mut kinds: Vec<Kind> = (0..view.practices.len() as u32).map(practice).collect();
        for carrier in 0..carriers {
            let put = |number| {
                let sender = SenderRecord {
                    address: sender_address(carrier, number),
                    weight: 1,
                    ..SenderRecord::default()
                };
                Kind::PutSender(PutSender { carrier: carrier_name(carrier), sender: Some(sender) })
            };
            kinds.extend((1..=self.senders).map(put));
        }
        let limits = self.limits.iter().filter_map(|limit| limit.record(view));
        kinds.extend(limits.map(|record| Kind::PutLimit(PutLimit { limit: Some(record) })));
        // Days are the simulator's own; here are the fuses, and whom they leave alone.
        let policy = SendingPolicy {
            exempt_classes: vec![MessageClass::Staff as i32],
            duplicate_window_s: self.duplicate_window_s,
            burst: self.burst,
            burst_window_s: BURST_WINDOW_S,
            ..SendingPolicy::default()
        };
        kinds.push(Kind::PutPolicy(PutPolicy {
            tenant: TENANT.to_owned(),
            practice: String::new(),
            policy: Some(policy),
        }));
        if self.routed && carriers > 1 {
            let target =
                |number, weight| RouteTarget { carrier: carrier_name(number), weight, sender: String::new() };
            let route = RouteRecord {
                name: ROUTE.to_owned(),
                rank: 1,
                targets: vec![target(0, 1), target(1, 0)],
                ..RouteRecord::default()
            };
            kinds.push(Kind::PutRoute(PutRoute { route: Some(route) }));
        }
        kinds
    }
}

/// How a practice is registered.
pub fn put_practice(practice: u32, carriers: usize) -> PutPractice {
    PutPractice {
        tenant: TENANT.to_owned(),
        practice: practice_name(practice),
        time_zone: "Europe/Berlin".to_owned(),
        carrier: carrier_name(practice as usize % carriers),
        campaign: format!("campaign-{}", campaign_of(practice)),
        brand: format!("brand-{}", brand_of(practice)),
        ..Default::default()
    }
}

impl World {
    /// From time to time: puts the settings into force once that is possible, and notes which limits everybody knows.
    pub fn look_after_settings(&mut self) {
        if !self.operator.is_done() {
            return;
        }
        let Some(view) = self.newest_view().filter(|view| view.leases() && !view.is_restoring()) else {
            return;
        };
        if !self.operator.has_settings {
            let kinds = self.plan.settings.kinds(view, self.plan.limits.len());
            self.operator.put_settings(kinds);
        } else {
            let due = self.plan.settings.changes.get(self.operator.limits_changed);
            if let Some((_, permille)) = due.filter(|(at_ms, _)| *at_ms <= self.now_ms) {
                let limits = self.plan.settings.limits.iter().map(|limit| limit.changed(*permille));
                let limits: Vec<PlannedLimit> = limits.collect();
                let records = limits.iter().filter_map(|limit| limit.record(view));
                let kinds = records.map(|limit| Kind::PutLimit(PutLimit { limit: Some(limit) })).collect();
                self.change_limits(&limits, kinds);
            }
        }
        // A node that stands still may not know yet; one that is down learns it before it sends again.
        let knows = |limit: &PlannedLimit| {
            let mut running = self.nodes.iter().filter(|node| node.up && !node.wiped);
            running.all(|node| limit.known(&node.meta).is_some())
        };
        let known: Vec<bool> = self.plan.settings.limits.iter().map(knows).collect();
        let burst = self.plan.settings.burst;
        let knows_burst = |view: &MetaView| {
            let policy = view.policies.get(TENANT).and_then(|of_tenant| of_tenant.get(""));
            policy.is_some_and(|policy| policy.burst == burst)
        };
        let all = self.nodes.iter().filter(|node| node.up && !node.wiped).all(|n| knows_burst(&n.meta));
        let now_ms = self.now_ms;
        if all {
            self.oracle.fuses.known_ms.get_or_insert(now_ms);
        }
        for (number, _) in known.into_iter().enumerate().filter(|(_, known)| *known) {
            if self.oracle.stack.known(number, now_ms) {
                self.trace.count("stacked_limit_in_force");
            }
        }
    }

    fn change_limits(&mut self, limits: &[PlannedLimit], kinds: Vec<Kind>) {
        self.operator.change_limits(kinds);
        for (number, limit) in limits.iter().enumerate() {
            self.oracle.stack.ordered(number, limit.amount);
        }
        self.trace.count("limits_changed");
    }

    /// The grantor, which is on this node, says that every sender keeps to the limits that it knows.
    pub fn limits_settled(&mut self, node: usize) {
        self.trace.count("limits_settled");
        let (view, now_ms) = (&self.nodes[node].meta, self.now_ms);
        for (number, limit) in self.plan.settings.limits.iter().enumerate() {
            if let Some(amount) = limit.known(view) {
                self.oracle.stack.settled(number, amount, now_ms);
            }
        }
    }
}
