//! `search`: the highest rate of a scenario that holds all thresholds, and a capacity certificate.
//!
//! Owns: the order of the probes: up in steps of two until one fails, then halving what is between. Every probe is a whole
//! run with ledger and report in a directory of its own, on one cluster.
//! Invariant: the certificate names a rate that was run and held, never one in between.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::report::{Outcome, Report};
use super::scenario::ScenarioError;
use super::target::Target;
use super::{Args as RunArgs, Signals, directory, play_on, scenario_of};

/// Find the highest rate of a scenario that holds all thresholds.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub run: RunArgs,
    /// Messages per second of the first probe.
    #[arg(long, default_value = "100", value_parser = super::args::rate)]
    pub from: f64,
    /// Messages per second above which is not searched.
    #[arg(long, default_value = "100000", value_parser = super::args::rate)]
    pub to: f64,
    /// The search ends when what held and what failed are so close, in percent.
    #[arg(long, default_value_t = 10.0)]
    pub precision: f64,
    /// Kill the last node before the search: what can the rest do?
    #[arg(long)]
    pub one_node_down: bool,
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Probe {
    pub rate_per_s: f64,
    pub outcome: Outcome,
    pub acknowledged_per_s: f64,
    pub response_p99_ms: f64,
    pub why: Vec<String>,
}

impl Probe {
    fn of(rate_per_s: f64, report: &Report) -> Self {
        Self {
            rate_per_s,
            outcome: report.verdict.outcome,
            acknowledged_per_s: report.totals.acknowledged_per_s,
            response_p99_ms: report.times.get("response_time").map_or(0.0, |time| time.summary.p99_ms),
            why: report.verdict.why.clone(),
        }
    }
}

/// Which rate comes next; `None` when the search is over.
pub fn next(probes: &[Probe], from: f64, to: f64, precision_percent: f64) -> Option<f64> {
    let held = probes.iter().filter(|p| p.outcome == Outcome::Pass).map(|p| p.rate_per_s).fold(0.0, f64::max);
    let failed = probes
        .iter()
        .filter(|p| p.outcome != Outcome::Pass && p.rate_per_s > held)
        .map(|p| p.rate_per_s)
        .fold(f64::INFINITY, f64::min);
    let rate = match (held > 0.0, failed.is_finite()) {
        (false, false) => from,
        (true, false) if held >= to => return None,
        (true, false) => (held * 2.0).min(to),
        // Down from a first probe that failed, but not for ever.
        (false, true) if failed <= from / 64.0 || failed < 1.0 => return None,
        (false, true) => failed / 2.0,
        (true, true) if failed <= held * (1.0 + precision_percent / 100.0) => return None,
        (true, true) => (held + failed) / 2.0,
    };
    Some(rate)
}

/// The sentence that says what the cluster can do.
pub fn certificate(best: &Probe, args: &Args, target: &str, limits: &str, checks: &[String]) -> String {
    let down = if args.one_node_down { "with one node down " } else { "" };
    format!(
        "{:.0} messages/h ({:.0}/s) at p99 {:.1} ms {down}on {target} under {limits}; held: {}",
        best.acknowledged_per_s * 3_600.0,
        best.acknowledged_per_s,
        best.response_p99_ms,
        checks.join(", ")
    )
}

#[derive(Serialize)]
struct Found<'a> {
    probes: &'a [Probe],
    best: Option<&'a Probe>,
    certificate: Option<String>,
}

async fn probes(args: &Args, target: &Target, dir: &std::path::Path) -> anyhow::Result<Vec<Probe>> {
    let name = args.run.scenario.clone().unwrap_or_default();
    let (mut probes, signals) = (Vec::new(), Signals::listen()?);
    while let Some(rate) = next(&probes, args.from, args.to, args.precision) {
        let run = RunArgs { rate: Some(rate), quiet: true, ..args.run.clone() };
        let out = dir.join(format!("probe-{:02}-{rate:.0}", probes.len() + 1));
        fs_err::create_dir_all(&out)?;
        let report = play_on(&run, &scenario_of(&run, &name)?, target, &out, &signals).await?;
        let probe = Probe::of(rate, &report);
        println!(
            "{rate:>9.1}/s  {:<11}  acknowledged {:.0}/s, p99 {:.1} ms  {}",
            probe.outcome.word(),
            probe.acknowledged_per_s,
            probe.response_p99_ms,
            probe.why.join("; ")
        );
        let interrupted = probe.outcome == Outcome::Interrupted;
        probes.push(probe);
        if interrupted {
            break;
        }
    }
    Ok(probes)
}

/// The command; the exit code.
pub async fn run(args: Args) -> anyhow::Result<u8> {
    let name = args.run.scenario.clone().unwrap_or_default();
    let wanted = scenario_of(&args.run, &name)?;
    if wanted.thresholds.is_empty() {
        let why = "a search needs thresholds".to_owned();
        return Err(ScenarioError::Wrong { name, line: 1, key: "thresholds".to_owned(), why }.into());
    }
    let dir: PathBuf = directory(&args.run, &wanted)?;
    let target = Target::open(&args.run.target, &wanted, &dir).await?;
    let searched = async {
        if args.one_node_down {
            let (ctl, lab) = (target.ctl.as_ref(), target.lab());
            let (Some(ctl), Some(lab)) = (ctl, lab) else { anyhow::bail!("--one-node-down needs a lab") };
            ctl.node("kill-node", lab.nodes.iter().map(|node| node.id).max().unwrap_or(1)).await?;
        }
        probes(&args, &target, &dir).await
    };
    let probes = searched.await;
    let text = target.text.clone();
    let closed = target.close().await;
    let probes = probes?;
    closed?;
    if target.launched && !args.run.keep {
        fs_err::remove_dir_all(dir.join("lab"))?;
    }
    let best = probes
        .iter()
        .filter(|probe| probe.outcome == Outcome::Pass)
        .max_by(|a, b| a.rate_per_s.total_cmp(&b.rate_per_s));
    let limits = format!("a lane limit of {} segments/s", wanted.launch.lane_limit);
    let checks: Vec<String> = wanted.thresholds.iter().map(|threshold| threshold.text.clone()).collect();
    let certificate = best.map(|best| certificate(best, &args, &text, &limits, &checks));
    println!("{}", certificate.as_deref().unwrap_or("no rate held all thresholds"));
    let found = Found { probes: &probes, best, certificate };
    fs_err::write(dir.join("search.json"), serde_json::to_vec_pretty(&found)?)?;
    println!("reports: {}", dir.display());
    Ok(if best.is_some() { 0 } else { Outcome::Fail.exit_code() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(capacity: f64, from: f64, to: f64) -> (Vec<f64>, f64) {
        let mut probes: Vec<Probe> = Vec::new();
        while let Some(rate_per_s) = next(&probes, from, to, 10.0) {
            assert!(probes.len() < 40);
            let outcome = if rate_per_s <= capacity { Outcome::Pass } else { Outcome::Fail };
            probes.push(Probe {
                rate_per_s,
                outcome,
                acknowledged_per_s: rate_per_s,
                response_p99_ms: 1.0,
                why: Vec::new(),
            });
        }
        let best =
            probes.iter().filter(|p| p.outcome == Outcome::Pass).map(|p| p.rate_per_s).fold(0.0, f64::max);
        (probes.iter().map(|p| p.rate_per_s).collect(), best)
    }

    #[test]
    fn it_ends_close_below_what_the_cluster_can_do() {
        for capacity in [130.0, 777.0, 5_000.0, 90_000.0] {
            let (_, best) = search(capacity, 100.0, 100_000.0);
            assert!(best <= capacity && best * 1.1 >= capacity, "{capacity}: {best}");
        }
        // From above as well, and never beyond the bound.
        let (_, best) = search(30.0, 100.0, 1_000.0);
        assert!(best <= 30.0 && best * 1.1 >= 30.0);
        assert_eq!(search(1e9, 100.0, 1_000.0).1, 1_000.0);
        let (probes, best) = search(0.0, 100.0, 1_000.0);
        assert!(best == 0.0 && probes.len() < 10);
    }
}
