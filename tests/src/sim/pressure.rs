//! Shaped plans of the delivery engine: lanes with more work than they carry, and what operators set about them. Even seeds have
//! trouble as well; odd ones are left alone, so that what may be used must be used.
use super::plan::{Fault, Plan};
use super::scenario::{Scenario, each, quiet, three};
use super::settings::{PlannedLimit, Scope, Settings};

/// Of segments per window.
fn limit(scope: Scope, amount: u32, window_s: u32, used_permille: u64) -> PlannedLimit {
    PlannedLimit { carrier: 0, scope, amount, window_s, used_permille }
}

/// One busy lane, nothing odd about carriers and callers.
fn busy(plan: &mut Plan, segments_per_second: u32) {
    three(plan);
    plan.clocks.fill((0, 0));
    plan.rates = quiet(&plan.rates);
    plan.rates.flush_ms_max = 500;
    (plan.ops_per_second, plan.stops, plan.long, plan.keyless, plan.repeats) = (40, 0, 0, 0, 0);
    (plan.partitions, plan.practices, plan.small_limits) = (3, 6, false);
    // Who may not be texted now is no backlog.
    plan.nights = false;
    plan.limits = vec![segments_per_second];
    plan.settings = Settings { heavy: vec![0], per_day: 0, per_week: 0, ..Settings::default() };
}

/// The meta group changes its leader, nodes stand still, are cut off and lose power.
fn trouble(plan: &Plan, faults: &mut Vec<(u64, Fault)>) {
    each(plan, 6_000, 5_300, |n| {
        faults.push((n, Fault::Transfer { group: 0, to: n as usize }));
        faults.push((n + 900, Fault::Freeze { node: n as usize / 7, ms: 1_500 }));
        faults.push((n + 2_600, Fault::Power { node: n as usize / 3, down_ms: 700 }));
        faults.push((n + 3_600, Fault::Cut { links: Vec::new(), ms: 1_200 }));
    });
}

impl Scenario {
    pub(super) fn shape_delivery(self, plan: &mut Plan, faults: &mut Vec<(u64, Fault)>) {
        let (seed, healthy) = (plan.seed, plan.seed % 2 == 1);
        match self {
            Self::StackedLimits | Self::Senders | Self::DailyCaps | Self::Pieces => {
                self.shape_limits(plan, faults)
            }
            Self::Fairness => {
                busy(plan, 8);
                (plan.partitions, plan.practices, plan.ops_per_second) = (1, 4, 60);
                plan.safety_ms = 40_000;
                let settings = &mut plan.settings;
                (settings.heavy, settings.weights, settings.window_rows) = (vec![0, 1], vec![1, 3], 400);
                if !healthy {
                    each(plan, 8_000, 7_000, |n| {
                        let practice = 1 + (n / 7_000 % 3) as u32;
                        faults.push((n, Fault::PausePractice { practice, ms: 5_500 }));
                    });
                }
            }
            Self::Fuses => {
                busy(plan, 30);
                (plan.log_slack, plan.rates.flush_ms_max) = (4, 500);
                let settings = &mut plan.settings;
                (settings.duplicate_window_s, settings.burst) = (30, 4);
                each(plan, 7_000, 6_100, |n| {
                    let practice = (n / 6_100 % 4) as u32;
                    faults.push((n, Fault::PausePractice { practice, ms: 2_500 }));
                    faults.push((n + 700, Fault::Power { node: n as usize, down_ms: 3_500 }));
                });
            }
            Self::Failover => {
                busy(plan, 20);
                plan.limits = vec![20, 20];
                (plan.settings.routed, plan.settings.heavy) = (true, Vec::new());
                plan.rates.carrier.answer_late = 30;
                each(plan, 6_000, 8_000, |n| {
                    let carrier = (n / 8_000 % 2) as usize;
                    faults.push((n, Fault::Hang { carrier, ms: 4_500 }));
                    if !healthy {
                        faults.push((n + 3_000, Fault::CarrierCut { node: n as usize, ms: 3_700 }));
                        faults.push((n + 5_500, Fault::Power { node: n as usize, down_ms: 500 }));
                    }
                });
            }
            Self::Throttling => {
                busy(plan, 12);
                plan.safety_ms = 82_000;
                (plan.settings.heavy, plan.settings.throttled_ms) = (Vec::new(), Some((20_000, 23_000)));
                faults.push((20_000, Fault::Throttle { carrier: 0, ms: 3_000 }));
                if !healthy {
                    faults.push((21_000, Fault::Transfer { group: 0, to: seed as usize }));
                }
            }
            _ => return,
        }
        plan.settings.healthy = healthy || self == Self::Throttling;
    }

    /// What may leave is bounded by more than the account.
    fn shape_limits(self, plan: &mut Plan, faults: &mut Vec<(u64, Fault)>) {
        let (seed, healthy) = (plan.seed, plan.seed % 2 == 1);
        match self {
            Self::StackedLimits => {
                busy(plan, 20);
                let settings = &mut plan.settings;
                // The rest of the account is enough for those who need nothing else.
                settings.roomy = (seed / 2 % 2 == 0).then_some(30);
                (settings.heavy, settings.limits) = match seed / 2 % 4 {
                    0 | 2 => (
                        vec![0],
                        vec![
                            limit(Scope::Practice(0), 4, 1, 850),
                            limit(Scope::Campaign(1), 3, 2, 800),
                            limit(Scope::Account, 40, 2, 0),
                        ],
                    ),
                    // Some of what needs the sender is held up by something else.
                    1 => (vec![1], vec![limit(Scope::Sender, 8, 1, 550), limit(Scope::Brand(0), 4, 4, 850)]),
                    _ => (
                        vec![1],
                        vec![
                            limit(Scope::Sender, 8, 1, 550),
                            limit(Scope::Account, 16, 2, 0),
                            limit(Scope::Brand(0), 4, 4, 850),
                        ],
                    ),
                };
                if !healthy {
                    settings.changes = vec![(10_000, 500), (15_000 + seed % 5_000, 1_000), (22_000, 500)];
                }
            }
            Self::DailyCaps => {
                busy(plan, 20);
                plan.safety_ms = 42_000;
                (plan.settings.midnight, plan.settings.roomy) = (true, Some(50));
                plan.settings.limits =
                    vec![limit(Scope::Brand(0), 60, 0, 950), limit(Scope::Account, 15, 1, 0)];
            }
            Self::Senders => {
                busy(plan, 20);
                plan.settings.senders = 3;
                // Every node sends under each of them, so a handful of tokens is always on its way between three.
                plan.settings.limits = vec![
                    limit(Scope::Own(1), 5, 1, 700),
                    limit(Scope::Own(2), 3, 1, 700),
                    limit(Scope::Own(3), 6, 2, 700),
                ];
            }
            Self::Pieces => {
                busy(plan, 24);
                (plan.long, plan.settings.whole, plan.settings.roomy) = (500, Some(0), Some(100));
                plan.settings.limits = match seed / 2 % 2 == 0 {
                    true => vec![limit(Scope::Practice(0), 6, 1, 600)],
                    false => vec![limit(Scope::Brand(0), 3, 1, 600), limit(Scope::Account, 24, 1, 0)],
                };
            }
            _ => return,
        }
        if !healthy {
            trouble(plan, faults);
        }
    }
}
