//! Shaped plans: one kind of trouble, much of it. For bugs that need a coincidence which the swarm meets rarely.
use super::plan::{Fault, Plan};

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
}

impl Scenario {
    pub const ALL: [Self; 4] = [Self::PowerCuts, Self::Isolations, Self::QuickRestarts, Self::SyncErrors];

    /// As given on a command line.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scenario| format!("{scenario:?}") == text)
    }

    /// Gives the plan of a seed this trouble instead of its own; rates that do not matter stay the seed's.
    pub fn shape(self, plan: &mut Plan) {
        plan.safety_ms = 30_000;
        let mut faults = Vec::new();
        match self {
            Self::PowerCuts => {
                plan.ops_per_second = 40;
                (plan.rates.disk_ms_max, plan.rates.flush_ms_max) = (100, 2_000);
                each(plan, 4_000, 1_900, |n| faults.push((n, Fault::Power { node: 0, down_ms: 300 })));
            }
            Self::Isolations => {
                (plan.nodes, plan.in_flight_max) = (3, 16);
                plan.clocks.resize(3, (0, 0));
                plan.rates.net_ms_max = 20;
                plan.ops_per_second = 20;
                each(plan, 3_000, 1_900, |n| faults.push((n, Fault::Cut { links: Vec::new(), ms: 1_700 })));
                let lost = plan.seed as usize % 3;
                faults.push((29_000, Fault::Lose { node: lost }));
            }
            Self::QuickRestarts => {
                plan.nodes = 5;
                plan.clocks.resize(5, (0, 0));
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
        }
        plan.faults = faults;
        spread(plan);
    }
}

fn each(plan: &Plan, first_ms: u64, pause_ms: u64, mut fault: impl FnMut(u64)) {
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
