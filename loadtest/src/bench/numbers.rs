//! `bench numbers`: the figures that are promised, in one run on one machine.
//!
//! Owns: the order (disk, end to end, accept, accept at half the promised rate, disk, idle), the targets and the verdict.
//! The latency target is relative to the disk, measured in the same run and in the lab's own directory: before and after
//! the load, of which the quieter counts (noise of the disk must not make the target easier), and beside the load, which
//! says what an append costs on a machine that is as busy. Both ratios are shown.

use std::time::Duration;

use serde::Serialize;

use super::e2e::{self, E2eResult};
use super::idle::{self, NodeCost};
use super::load::{Load, LoadResult, Pace};
use super::measure::{Latency, Summary};
use super::{Bench, LoadArgs, fsync};
use crate::lab::Lab;

const ACCEPTED_PER_S_MIN: f64 = 25_000.0;
const DELIVERED_PER_S_MIN: f64 = 8_000.0;
const ACK_TO_FSYNC_MAX: f64 = 3.0;
const IDLE_CPU_PERCENT_MAX: f64 = 3.0;
const RSS_MIB_MAX: f64 = 250.0;
/// Rest before the idle measurement, so that compactions and the like can end.
const REST: Duration = Duration::from_secs(10);

/// All figures of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Numbers {
    pub fsync_before: Summary,
    pub fsync_after: Summary,
    /// The quieter of the two.
    pub fsync: Summary,
    /// During the paced run.
    pub fsync_beside: Summary,
    pub accept_max: LoadResult,
    pub accept_half: LoadResult,
    pub e2e_max: E2eResult,
    pub e2e_paced: E2eResult,
    pub idle: Vec<NodeCost>,
    pub checks: Vec<Check>,
}

/// A target.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    pub what: String,
    pub measured: f64,
    pub target: String,
    pub held: bool,
    /// Why the measurement says nothing.
    pub invalid: Option<String>,
}

impl Numbers {
    pub fn is_valid(&self) -> bool {
        self.checks.iter().all(|check| check.invalid.is_none())
    }

    pub fn all_held(&self) -> bool {
        self.checks.iter().all(|check| check.held)
    }

    fn judge(mut self) -> Self {
        let at_least = |what: &str, measured: f64, min: f64, invalid: &Option<String>| Check {
            what: what.to_owned(),
            measured,
            target: format!("at least {min:.0}"),
            held: measured >= min,
            invalid: invalid.clone(),
        };
        let at_most = |what: String, measured: f64, max: f64, invalid: &Option<String>| Check {
            what,
            measured,
            target: format!("at most {max:.1}"),
            held: measured <= max,
            invalid: invalid.clone(),
        };
        let under = |what: String, measured: f64, max: f64| Check {
            what,
            measured,
            target: format!("under {max:.1}"),
            held: measured < max,
            invalid: None,
        };
        let half = &self.accept_half;
        let ratio_to = |disk: &Summary| {
            if disk.p99_ms > 0.0 { half.response.p99_ms / disk.p99_ms } else { f64::INFINITY }
        };
        let (quiet, beside) = (ratio_to(&self.fsync), ratio_to(&self.fsync_beside));
        // A rate that was not reached would flatter the latency.
        let short = matches!(half.pace, Pace::Rate(rate) if half.accepted_per_s < rate * 0.98);
        let half_invalid = half
            .health
            .invalid
            .clone()
            .or_else(|| short.then(|| "the asked rate was not reached".to_owned()));
        let mut checks = vec![
            at_least(
                "accepted messages per second",
                self.accept_max.accepted_per_s,
                ACCEPTED_PER_S_MIN,
                &self.accept_max.health.invalid,
            ),
            at_most("p99 ack / p99 fsync beside it".to_owned(), beside, ACK_TO_FSYNC_MAX, &half_invalid),
            at_most("p99 ack / p99 fsync, quiet".to_owned(), quiet, ACK_TO_FSYNC_MAX, &half_invalid),
            at_least(
                "delivered messages per second",
                self.e2e_max.delivered_per_s,
                DELIVERED_PER_S_MIN,
                &self.e2e_max.invalid,
            ),
        ];
        for node in &self.idle {
            let id = node.id;
            let idle = format!("node {id} idle, percent of a core");
            checks.push(under(idle, node.cpu_percent, IDLE_CPU_PERCENT_MAX));
            checks.push(under(format!("node {id} resident MiB"), node.rss_mib, RSS_MIB_MAX));
        }
        self.checks = checks;
        self
    }
}

impl std::fmt::Display for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "64 KiB append + fdatasync\n  before  {}\n  after   {}\n  beside  {}",
            self.fsync_before, self.fsync_after, self.fsync_beside
        )?;
        writeln!(f, "accept, maximum\n{}", self.accept_max)?;
        writeln!(f, "accept, half of the promised rate\n{}", self.accept_half)?;
        writeln!(f, "end to end, maximum\n{}", self.e2e_max)?;
        writeln!(f, "end to end, 60 % of it\n{}", self.e2e_paced)?;
        writeln!(f, "{:<38} {:>12}  {:<18} ", "target", "measured", "wanted")?;
        for check in &self.checks {
            let verdict = match (&check.invalid, check.held) {
                (Some(why), _) => format!("INVALID: {why}"),
                (None, true) => "held".to_owned(),
                (None, false) => "MISSED".to_owned(),
            };
            writeln!(f, "{:<38} {:>12.2}  {:<18} {verdict}", check.what, check.measured, check.target)?;
        }
        Ok(())
    }
}

async fn disk(lab: &Lab, length: Duration, pause: Duration) -> anyhow::Result<Latency> {
    let dir = lab.dir.clone();
    Ok(tokio::task::spawn_blocking(move || fsync::run(&dir, length, pause)).await??)
}

/// Runs everything.
pub async fn run(bench: &Bench, args: &LoadArgs, idle_s: u64) -> anyhow::Result<Numbers> {
    let probe = Duration::from_secs(5);
    let say = |what: &str| eprintln!("{what} ...");
    say("disk");
    let before = disk(&bench.lab, probe, Duration::ZERO).await?;
    // First, while the state is small: what is accepted below stays.
    say("end to end, maximum");
    bench.calm_carrier().await?;
    let e2e_max = e2e_run(bench, args, Pace::Max).await?;
    say("end to end, 60 % of it");
    let e2e_paced = e2e_run(bench, args, Pace::Rate((e2e_max.delivered_per_s * 0.6).max(1.0))).await?;
    say("accept, maximum");
    // As much as there is, in the batches that bulk is meant to use.
    let bulk = LoadArgs { batch: 1_000, window: 4, ..args.clone() };
    let accept_max = bench.load(&bulk, Pace::Max, true, 300)?.run().await?;
    say("accept, half of the promised rate");
    // Not half of what was just measured: that was with bulk batches, which trade latency for rate. A batch is one practice's
    // own upload here, as a scheduling system sends it: it waits for one partition, not for the slowest of all.
    let uploads = LoadArgs { row: u64::from(args.batch), ..args.clone() };
    let half = Pace::Rate(ACCEPTED_PER_S_MIN / 2.0);
    let beside = Duration::from_secs(args.secs);
    let (accept_half, beside) = tokio::join!(
        bench.load(&uploads, half, true, 300)?.run(),
        disk(&bench.lab, beside, fsync::BESIDE_A_LOAD)
    );
    let (accept_half, beside) = (accept_half?, beside?);
    say("disk");
    let after = disk(&bench.lab, probe, Duration::ZERO).await?;
    say("idle");
    tokio::time::sleep(REST).await;
    let idle = idle::measure(&bench.lab.nodes, Duration::from_secs(idle_s)).await?;
    let (fsync_before, fsync_after) = (before.summary(), after.summary());
    let numbers = Numbers {
        fsync_before,
        fsync_after,
        fsync: if fsync_before.p99_ms <= fsync_after.p99_ms { fsync_before } else { fsync_after },
        fsync_beside: beside.summary(),
        accept_max,
        accept_half,
        e2e_max,
        e2e_paced,
        idle,
        checks: Vec::new(),
    };
    Ok(numbers.judge())
}

/// One end-to-end run.
pub async fn e2e_run(bench: &Bench, args: &LoadArgs, pace: Pace) -> anyhow::Result<E2eResult> {
    let parts = bench.parts(args, pace, false, args.e2e_body_bytes)?;
    e2e::run(bench.client()?, move || Load::new(parts.0, parts.1, parts.2)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::cost::Cost;
    use crate::bench::measure::Health;
    use std::collections::BTreeMap;

    fn load(pace: Pace, per_s: f64, p99_ms: f64) -> LoadResult {
        let response = Summary { p99_ms, ..Summary::default() };
        LoadResult {
            pace,
            connections: 2,
            batch: 100,
            window: 8,
            accepted: 1,
            refused: BTreeMap::new(),
            measured_s: 1.0,
            accepted_per_s: per_s,
            response,
            service: response,
            health: Health::default(),
            cost: Cost::default(),
        }
    }

    fn numbers() -> Numbers {
        let e2e = E2eResult {
            load: load(Pace::Max, 9_000.0, 5.0),
            delivered_per_s: 9_000.0,
            latency: Summary::default(),
            by_state: BTreeMap::new(),
            unfinished: 0,
            event_streams: 1,
            invalid: None,
        };
        let fsync = Summary { p99_ms: 2.0, ..Summary::default() };
        Numbers {
            fsync_before: fsync,
            fsync_after: fsync,
            fsync,
            fsync_beside: fsync,
            accept_max: load(Pace::Max, 30_000.0, 9.0),
            accept_half: load(Pace::Rate(15_000.0), 15_000.0, 5.9),
            e2e_max: e2e.clone(),
            e2e_paced: e2e,
            idle: vec![NodeCost { id: 1, cpu_percent: 1.0, rss_mib: 100.0 }],
            checks: Vec::new(),
        }
    }

    #[test]
    fn targets_are_held_missed_or_invalid() {
        let good = numbers().judge();
        assert!(good.all_held() && good.is_valid(), "{good}");
        assert_eq!(good.checks.len(), 6);
        let mut slow = numbers();
        slow.accept_half.response.p99_ms = 6.1;
        let slow = slow.judge();
        assert!(!slow.all_held() && slow.is_valid());
        let mut short = numbers();
        short.accept_half.accepted_per_s = 14_000.0;
        assert!(!short.judge().is_valid());
        let mut bound = numbers();
        bound.accept_max.health.invalid = Some("generator".to_owned());
        let bound = bound.judge();
        assert!(!bound.is_valid() && bound.to_string().contains("INVALID"));
        let mut heavy = numbers();
        heavy.idle[0].cpu_percent = 3.0;
        assert!(heavy.judge().to_string().contains("MISSED"));
    }
}
