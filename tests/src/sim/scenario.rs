//! Shaped plans: one kind of trouble, much of it. For bugs that need a coincidence which the swarm meets rarely.
use super::plan::{CarrierRates, Fault, Plan, Rates};
use super::settings::Settings;
use carillon_core::meta::level;

/// What happens all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// Power cuts of one node after the other while disks are slow: for bugs that only a lost write shows.
    PowerCuts,
    /// One node after the other is cut off from its peers while clients still reach it, and at last one is lost for good:
    /// for bugs of deposed leaders and of bare majorities.
    Isolations,
    /// Nodes lose power and are back at once, in the middle of long elections.
    QuickRestarts,
    /// Syncs fail, and soon after the power.
    SyncErrors,
    /// Three nodes grow to five, some leave, and the power of all goes now and then.
    Growth,
    /// The same with busy lanes and nothing else in the way, below the level of leases.
    Shares,
    /// Busy lanes while nodes stand still, are cut off and the meta group changes its leader.
    Leases,
    /// Disks are lost and their nodes started again, while nobody can be asked.
    Wipes,
    /// Older programs that are upgraded late.
    OldPrograms,
    /// Messages and keys are kept for seconds only, and keys are used again.
    ShortRetention,
    /// One disk after the other is nearly full, and most of them at once.
    FullDisks,
    /// A backup, and some time later the loss of everything.
    Restores,
    /// One clock at a time is far off.
    WrongClocks,
    /// Entries of logs rot, followers lag and nodes restart.
    RottenLogs,
    /// Hours of recipients begin and end, clocks are changed, and nodes die and leaders move all the while.
    Nights,
    /// Limits of practices, campaigns, brands and senders on a busy lane.
    StackedLimits,
    /// Senders of one carrier, each with a limit of its own.
    Senders,
    /// Caps of a calendar day that ends within the run.
    DailyCaps,
    /// Long messages that leave in one piece, on a lane with few tokens.
    Pieces,
    /// Practices with a backlog beside others with single messages, weights and pauses.
    Fairness,
    /// The same contents again and again, bursts, practices that are paused, and snapshots.
    Fuses,
    /// Carriers that do not answer, and a route to another one.
    Failover,
    /// A carrier is told too much for a while.
    Throttling,
}

impl Scenario {
    pub const ALL: [Self; 23] = [
        Self::PowerCuts,
        Self::Isolations,
        Self::QuickRestarts,
        Self::SyncErrors,
        Self::Growth,
        Self::Shares,
        Self::Leases,
        Self::Wipes,
        Self::OldPrograms,
        Self::ShortRetention,
        Self::FullDisks,
        Self::Restores,
        Self::WrongClocks,
        Self::RottenLogs,
        Self::Nights,
        Self::StackedLimits,
        Self::Senders,
        Self::DailyCaps,
        Self::Pieces,
        Self::Fairness,
        Self::Fuses,
        Self::Failover,
        Self::Throttling,
    ];

    /// As given on a command line.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scenario| format!("{scenario:?}") == text)
    }

    /// Gives the plan of a seed this trouble instead of its own; rates that do not matter stay the seed's.
    pub fn shape(self, plan: &mut Plan) {
        plan.safety_ms = 30_000;
        plan.levels.fill(level::LEVEL);
        plan.settings = Settings::default();
        let mut faults = Vec::new();
        match self {
            Self::PowerCuts => {
                plan.ops_per_second = 40;
                (plan.rates.disk_ms_max, plan.rates.flush_ms_max) = (100, 2_000);
                each(plan, 4_000, 1_900, |n| faults.push((n, Fault::Power { node: 0, down_ms: 300 })));
            }
            Self::Isolations => {
                (plan.nodes, plan.in_flight_max) = (3, 16);
                three(plan);
                plan.rates.net_ms_max = 20;
                plan.ops_per_second = 20;
                each(plan, 3_000, 1_900, |n| faults.push((n, Fault::Cut { links: Vec::new(), ms: 1_700 })));
                let lost = plan.seed as usize % 3;
                faults.push((29_000, Fault::Lose { node: lost }));
            }
            Self::QuickRestarts => {
                plan.nodes = 5;
                plan.clocks.resize(5, (0, 0));
                plan.levels.resize(5, level::LEVEL);
                (plan.rates.net_ms_max, plan.rates.disk_ms_max, plan.ops_per_second) = (300, 1, 3);
                each(plan, 1_000, 330, |n| faults.push((n, Fault::Power { node: 0, down_ms: 20 })));
            }
            Self::SyncErrors => {
                plan.rates.disk_ms_max = 30;
                each(plan, 3_000, 1_700, |n| {
                    faults.push((n, Fault::SyncError { node: 0, down_ms: 500 }));
                    faults.push((n + 400, Fault::Power { node: 0, down_ms: 300 }));
                });
            }
            Self::ShortRetention
            | Self::FullDisks
            | Self::Restores
            | Self::WrongClocks
            | Self::RottenLogs => {
                self.shape_storage(plan, &mut faults);
            }
            Self::Nights => {
                three(plan);
                plan.nights = true;
                (plan.safety_ms, plan.ops_per_second) = (110_000, 8);
                (plan.rates.net_ms_max, plan.rates.disk_ms_max) = (20, 5);
                each(plan, 8_000, 9_700, |n| faults.push((n, Fault::Power { node: 0, down_ms: 900 })));
            }
            Self::StackedLimits
            | Self::Senders
            | Self::DailyCaps
            | Self::Pieces
            | Self::Fairness
            | Self::Fuses
            | Self::Failover
            | Self::Throttling => self.shape_delivery(plan, &mut faults),
            _ => self.shape_members(plan, &mut faults),
        }
        plan.faults = faults;
        if !matches!(self, Self::Wipes | Self::WrongClocks | Self::RottenLogs) {
            spread(plan);
        }
    }

    /// Those in which disks fill and rot, things are dropped and restored, and clocks lie.
    fn shape_storage(self, plan: &mut Plan, faults: &mut Vec<(u64, Fault)>) {
        let seed = plan.seed;
        let turn = |n: u64| (seed + n) as usize % 3;
        match self {
            Self::ShortRetention => {
                plan.ops_per_second = 40;
                (plan.repeats, plan.keyless) = (400, 0);
                (plan.finals_kept_s, plan.keys_kept_s) =
                    if plan.seed.is_multiple_of(2) { (2, 10) } else { (6, 1) };
                each(plan, 4_000, 3_000, |n| faults.push((n, Fault::Power { node: 0, down_ms: 300 })));
            }
            Self::FullDisks => {
                plan.ops_per_second = 40;
                plan.stops = 100;
                each(plan, 4_000, 5_000, |n| {
                    let fault = match n / 1_000 % 2 {
                        0 => Fault::NearlyFull { node: turn(n / 5_000), ms: 4_000 },
                        _ => Fault::MostNearlyFull { but: turn(n / 5_000), ms: 4_000 },
                    };
                    faults.push((n, fault));
                });
            }
            Self::Restores => {
                plan.ops_per_second = 40;
                plan.rates.net_ms_max = plan.rates.net_ms_max.min(80);
                let at_ms = 6_000 + plan.seed % 7 * 1_000;
                faults.push((at_ms, Fault::Backup));
                faults.push((at_ms + 2_500, Fault::LoseAll { down_ms: 1_500 }));
                faults.push((26_000, Fault::Backup));
                faults.push((28_500, Fault::LoseAll { down_ms: 200 }));
            }
            Self::WrongClocks => {
                three(plan);
                plan.rates = quiet(&plan.rates);
                (plan.ops_per_second, plan.stamp_error_ms_max) = (20, Some(2_000));
                plan.clocks.fill((0, 0));
                each(plan, 5_000, 5_000, |n| {
                    let delta_ms = if n / 5_000 % 2 == plan.seed % 2 { 20_000 } else { -20_000 };
                    faults.push((n, Fault::ClockJump { node: turn(n / 5_000), delta_ms }));
                    faults.push((n + 2_200, Fault::ClockJump { node: turn(n / 5_000), delta_ms: -delta_ms }));
                });
            }
            Self::RottenLogs => {
                three(plan);
                (plan.ops_per_second, plan.small_limits, plan.care) = (40, true, 200);
                each(plan, 4_000, 2_600, |n| {
                    let (node, group) =
                        (turn(n / 2_600), 1 + (n / 2_600 % u64::from(plan.partitions)) as u32);
                    faults.push((n, Fault::RotLog { node, group, pick: n }));
                    faults.push((n + 200, Fault::Power { node, down_ms: 300 }));
                });
            }
            _ => {}
        }
    }

    /// Those in which nodes come, go and change.
    fn shape_members(self, plan: &mut Plan, faults: &mut Vec<(u64, Fault)>) {
        match self {
            Self::Growth => {
                three(plan);
                plan.safety_ms = 60_000;
                (plan.rates.disk_ms_max, plan.rates.flush_ms_max, plan.rates.net_ms_max) = (30, 2_000, 20);
                (plan.ops_per_second, plan.care, plan.replaces) = (20, 200, true);
                each(plan, 8_000, 4_300, |n| faults.push((n, Fault::Power { node: 0, down_ms: 300 })));
                faults.extend([(3_000, Fault::Join), (3_500, Fault::Join)]);
                faults.push((25_000, Fault::Wipe { node: plan.seed as usize % 5, down_ms: 500 }));
                for (at_ms, node) in [(40_000, plan.seed as usize), (41_000, plan.seed as usize + 2)] {
                    faults.push((at_ms, Fault::Decommission { node }));
                }
            }
            Self::Leases => {
                three(plan);
                plan.rates = quiet(&plan.rates);
                (plan.ops_per_second, plan.stops, plan.long) = (40, 0, 0);
                (plan.keyless, plan.repeats, plan.partitions, plan.practices) = (0, 0, 4, 16);
                plan.limits = vec![[3, 6, 12, 30][plan.seed as usize % 4]];
                each(plan, 6_000, 5_300, |n| {
                    faults.push((n, Fault::Transfer { group: 0, to: n as usize }));
                    faults.push((n + 900, Fault::Freeze { node: n as usize / 7, ms: 1_500 }));
                    faults.push((n + 3_000, Fault::Cut { links: Vec::new(), ms: 1_200 }));
                });
            }
            Self::Shares => {
                three(plan);
                plan.levels.fill(level::LEVEL_OPT_OUT);
                plan.rates = quiet(&plan.rates);
                (plan.ops_per_second, plan.stops, plan.long) = (40, 0, 0);
                (plan.keyless, plan.repeats, plan.partitions, plan.practices) = (0, 0, 4, 16);
                plan.limits = vec![12];
                faults.push((8_000, Fault::Join));
                faults.push((24_000, Fault::Decommission { node: plan.seed as usize }));
            }
            Self::Wipes => {
                three(plan);
                (plan.rates.net_ms_max, plan.rates.disk_ms_max, plan.ops_per_second) = (20, 5, 20);
                (plan.care, plan.replaces) = (0, true);
                // One falls behind, another one loses its disk at the moment at which it can reach nobody, and then only the two
                // of them are together.
                let [behind, wiped, whole] = [0, 1, 2].map(|n| (plan.seed as usize + n) % 3);
                let both = |a, b| vec![(a, b), (b, a)];
                faults.push((8_000, Fault::Cut { links: both(behind, wiped), ms: 2_200 }));
                faults.push((8_000, Fault::Cut { links: both(behind, whole), ms: 6_000 }));
                faults.push((9_850, Fault::Cut { links: both(wiped, whole), ms: 4_000 }));
                faults.push((9_900, Fault::Wipe { node: wiped, down_ms: 50 }));
            }
            Self::OldPrograms => {
                plan.levels[0] = level::LEVEL_MEMBERSHIP;
                plan.stops = 100;
                faults.push((20_000, Fault::Upgrade { node: 0 }));
            }
            _ => {}
        }
    }
}

pub(super) fn three(plan: &mut Plan) {
    plan.nodes = 3;
    plan.clocks.resize(3, (0, 0));
    plan.levels.resize(3, level::LEVEL);
}

/// Nothing goes wrong by itself.
pub(super) fn quiet(rates: &Rates) -> Rates {
    let carrier = CarrierRates { ms_max: 20, ..CarrierRates::default() };
    Rates {
        drop: 0,
        duplicate: 0,
        net_ms_max: 10,
        disk_ms_max: 3,
        apply_ms_max: 3,
        call_lost: 0,
        carrier,
        ..rates.clone()
    }
}

pub(super) fn each(plan: &Plan, first_ms: u64, pause_ms: u64, mut fault: impl FnMut(u64)) {
    let mut at_ms = first_ms;
    while at_ms + 1_000 < plan.safety_ms {
        fault(at_ms);
        at_ms += pause_ms;
    }
}

/// Gives the faults to one node after the other.
fn spread(plan: &mut Plan) {
    let nodes = plan.nodes;
    let (mut next, first) = (0, plan.seed as usize);
    for (_, fault) in &mut plan.faults {
        let turn = (first + next) % nodes;
        match fault {
            Fault::Power { node, .. } => *node = turn,
            // The power of the same node follows.
            Fault::SyncError { node, .. } => {
                *node = turn;
                continue;
            }
            Fault::Cut { links, .. } => {
                let others = (0..nodes).filter(|other| *other != turn);
                *links = others.flat_map(|other| [(turn, other), (other, turn)]).collect();
            }
            _ => {}
        }
        next += 1;
    }
}
