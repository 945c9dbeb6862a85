//! Cuts a failing run down: an earlier end first, then background noise, then faults, one group after the other and then
//! one by one. Because faults are data with a time, leaving one out does not change when the others come.
use super::finale::{Report, run};
use super::plan::{Cuts, Plan};

/// What is left of a failing run.
#[derive(Debug, Clone)]
pub struct Shrunk {
    pub cuts: Cuts,
    pub report: Report,
    pub faults_left: usize,
    /// Runs that it took.
    pub runs: usize,
}

/// Shrinks `plan`, which fails, in at most `runs_max` runs. Any violation counts: shrinking may find a simpler one.
pub fn shrink(plan: &Plan, runs_max: usize) -> Option<Shrunk> {
    let report = run(plan.clone(), false);
    report.violation.as_ref()?;
    let mut best = Shrunk { cuts: Cuts::default(), report, faults_left: plan.faults.len(), runs: 1 };
    // Nothing that comes after the violation matters.
    let until = best.report.simulated_ms.min(plan.safety_ms);
    try_cut(plan, &mut best, runs_max, |cuts| cuts.until_ms = Some(until));
    try_cut(plan, &mut best, runs_max, |cuts| cuts.calm_net = true);
    try_cut(plan, &mut best, runs_max, |cuts| cuts.calm_carriers = true);
    let mut size = plan.faults.len().div_ceil(2);
    while size > 0 && best.runs < runs_max {
        let left: Vec<usize> = (0..plan.faults.len()).filter(|n| !best.cuts.faults.contains(n)).collect();
        for group in left.chunks(size) {
            try_cut(plan, &mut best, runs_max, |cuts| cuts.faults.extend(group));
        }
        size /= 2;
    }
    best.faults_left = plan.faults.len() - best.cuts.faults.len();
    Some(best)
}

fn try_cut(plan: &Plan, best: &mut Shrunk, runs_max: usize, cut: impl Fn(&mut Cuts)) {
    if best.runs >= runs_max {
        return;
    }
    let mut cuts = best.cuts.clone();
    cut(&mut cuts);
    best.runs += 1;
    let report = run(plan.clone().without(&cuts), false);
    if report.violation.is_some() {
        best.cuts = cuts;
        best.report = report;
    }
}
