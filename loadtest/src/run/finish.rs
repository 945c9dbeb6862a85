//! The end of a run: wait until everything is at rest, make the ledger, judge, put the report together.

use std::time::Duration;

use anyhow::Context as _;
use carillon_proto::public::MessageState;
use tokio::time::Instant;

use super::fairness::Fairness;
use super::reckon::{Accounts, Reckoned, reckon};
use super::report::{FORMAT, Ran, Report, Time, Totals, Verdict};
use super::scenario::{Arrivals, Loop};
use super::threshold::Judged;
use super::workload::Workload;
use super::{Run, Sent, environment, faults::Mark, outcome, values};
use crate::bench::measure::Health;
use crate::client::ClientConfig;

const POLL: Duration = Duration::from_millis(500);
/// Receipts that are under way when everything else is at rest get this long.
const RECEIPTS_WAIT: Duration = Duration::from_secs(30);

/// Waits until nothing is on its way; says how long that took after the last send.
async fn drain(run: &Run<'_>, sent: &mut Sent) -> anyhow::Result<Option<f64>> {
    use MessageState as S;
    if run.scenario.messages.stay() {
        return Ok(Some(0.0));
    }
    let (began, patience) = (Instant::now(), Duration::from_secs(run.scenario.drain_s));
    // An interrupted run is not waited for.
    let until = began + if sent.interrupted { Duration::ZERO } else { patience };
    if !run.args.quiet && !sent.interrupted {
        println!("sent; waiting until everything is at rest ...");
    }
    // While the carrier still gets something new there is no need to ask the cluster.
    if let Some(carrier) = &run.target.carrier {
        let mut before = None;
        while Instant::now() < until {
            let stats = carrier.stats().await?;
            let now = (stats.submits, stats.receipts.pending);
            sent.live.carrier(sent.start, stats);
            if before == Some(now) {
                break;
            }
            before = Some(now);
            tokio::time::sleep(POLL).await;
        }
    }
    let client = run.target.address.client(ClientConfig::default())?;
    let moving = [S::Accepted, S::Waiting, S::InFlight];
    let mut rested = client.until_none(sent.start_ms, &moving, until).await?;
    if rested {
        let receipts_until = until.min(Instant::now() + RECEIPTS_WAIT);
        rested = client.until_none(sent.start_ms, &[S::Submitted], receipts_until).await?;
    }
    Ok(rested.then(|| began.elapsed().as_secs_f64()))
}

async fn ledger(run: &Run<'_>, sent: &Sent) -> anyhow::Result<Reckoned> {
    let client = run.target.address.client(ClientConfig::default())?;
    let workload = Workload::new(run.scenario, sent.run, sent.start_ms)?;
    let start_us = sent.start_ms.max(0) as u64 * 1_000;
    let from_us = start_us + (run.scenario.warm_up_s * 1e6) as u64;
    let accounts = Accounts {
        client: &client,
        carrier: run.target.carrier.as_ref().zip(sent.mark),
        workload: &workload,
        spill: run.spill.to_owned(),
        start_ms: sent.start_ms,
        measured_us: (from_us, start_us + (sent.sending_s * 1e6) as u64),
        stay: run.scenario.messages.stay(),
        alone: run.target.launched,
        in_doubt: sent.end.in_doubt,
        repeated: sent.live.sum.repeated,
    };
    reckon(&accounts).await
}

/// Whether the generators were the bottleneck.
fn health(run: &Run<'_>, sent: &Sent, totals: &Totals) -> Health {
    let (sum, processes) = (&sent.live.sum, f64::from(run.scenario.generator.processes));
    let cpu_s = sum.cpu_us as f64 / 1e6;
    let health = Health {
        // Of one process: each has one thread that must keep up.
        cpu_cores: cpu_s / sent.sending_s.max(0.001) / processes,
        cpu_us_per_message: sum.cpu_us as f64 / sum.acknowledged.max(1) as f64,
        lag_p99_ms: if sum.lag.count() > 0 { sum.lag.quantile_ms(0.99) } else { 0.0 },
        late: totals.late,
        skipped: totals.missed,
        invalid: None,
    };
    let paced = run.scenario.pacing == Loop::Open && sum.response.count() > 0;
    health.judge(paced.then(|| sum.response.summary().p99_ms))
}

/// Why the figures say nothing, apart from the generator.
fn incomplete(reckoned: &Result<Reckoned, anyhow::Error>, sent: &Sent) -> Vec<String> {
    let mut why = Vec::new();
    match reckoned {
        Err(error) => why.push(format!("the ledger could not be made: {error:#}")),
        Ok(reckoned) if reckoned.ledger.unrecorded > 0 => {
            why.push(format!("{} submits are missing in the ground truth", reckoned.ledger.unrecorded));
        }
        Ok(_) => {}
    }
    if let Some(gave_up) = &sent.end.gave_up {
        why.push(gave_up.clone());
    }
    why
}

fn times(sent: &Sent, reckoned: &Reckoned) -> std::collections::BTreeMap<String, Time> {
    let sum = &sent.live.sum;
    let mut times: std::collections::BTreeMap<String, Time> = [
        ("response_time", "from the intended moment of sending to the acknowledgement", &sum.response),
        ("service_time", "from sending to the acknowledgement", &sum.service),
        ("pacer_lag", "how late the generator itself was", &sum.lag),
        (
            "accept_to_carrier",
            "from acceptance to the carrier's socket, messages due at once",
            &reckoned.accept_to_carrier,
        ),
        ("due_to_carrier", "from the due time to the carrier's socket", &reckoned.due_to_carrier),
        (
            "carrier_to_receipt",
            "from the carrier's socket to the recorded receipt, the carrier's own delay included",
            &reckoned.carrier_to_receipt,
        ),
    ]
    .map(|(name, about, latency)| (name.to_owned(), Time::new(about, latency)))
    .into();
    for (name, latency) in &sum.operations {
        times.insert(format!("op.{name}"), Time::new("response time of a call", latency));
    }
    times
}

/// What must be known to read the figures, said in the report.
fn notes(run: &Run<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    if run.scenario.pacing == Loop::Closed {
        notes.push(
            "closed loop: a slow cluster is asked less, so times and rates are not those of a schedule"
                .to_owned(),
        );
    }
    if run.scenario.arrivals == Arrivals::Poisson {
        notes.push("arrivals are random (Poisson), from the seed".to_owned());
    }
    if run.target.carrier.is_none() {
        notes.push("no carrier simulator: what the carrier received is not known".to_owned());
    }
    notes
}

/// Waits, reckons, judges.
pub async fn finish(run: &Run<'_>, mut sent: Sent) -> anyhow::Result<Report> {
    let drained_s = drain(run, &mut sent).await.context("while waiting for rest").unwrap_or_else(|error| {
        eprintln!("{error:#}");
        None
    });
    if !run.args.quiet {
        println!("making the ledger ...");
    }
    let reckoned = ledger(run, &sent).await;
    let mut totals = sent.live.totals(sent.sending_s);
    totals.in_doubt = sent.end.in_doubt;
    totals.drained_s = drained_s;
    let generator = health(run, &sent, &totals);
    let mut why = incomplete(&reckoned, &sent);
    why.extend(generator.invalid.iter().map(|why| format!("the generator was the bottleneck: {why}")));
    let has_ledger = reckoned.is_ok();
    let reckoned = reckoned.unwrap_or_default();
    let names = Workload::new(run.scenario, sent.run, sent.start_ms)?.population.practices;
    let fairness = Fairness::new(&reckoned.practices, |at| names[at].name.clone());
    let metrics = {
        let values = values::live(&sent.live.sum, &totals, &sent.live.lanes);
        if has_ledger { values::last(values, &reckoned, &fairness, totals.planned_wrong) } else { values }
    };
    let mut thresholds: Vec<Judged> = run.scenario.thresholds.iter().map(|t| t.judge(&metrics)).collect();
    for judged in thresholds.iter_mut().filter(|judged| Some(&judged.check) == sent.aborted.as_ref()) {
        judged.aborted = true;
        judged.held = false;
    }
    let held = thresholds.iter().all(|judged| judged.held);
    let outcome = outcome(sent.interrupted, !why.is_empty(), held);
    why.extend(
        thresholds.iter().filter(|judged| !judged.held).map(|judged| format!("{} failed", judged.check)),
    );
    for note in notes(run) {
        sent.live.mark(Mark { at_s: 0.0, kind: "note".to_owned(), text: note });
    }
    Ok(Report {
        format: FORMAT.to_owned(),
        verdict: Verdict { outcome, exit_code: outcome.exit_code(), why },
        scenario: Ran::new(run.scenario),
        environment: environment::look(run.target, sent.start_ms),
        thresholds,
        times: times(&sent, &reckoned),
        generator,
        timeline: sent.live.timeline.rows().to_vec(),
        marks: sent.live.marks.clone(),
        lanes: sent.live.lanes.clone(),
        ledger: has_ledger.then_some(reckoned.ledger),
        possible_duplicates: reckoned.possible_duplicates,
        fairness,
        metrics,
        totals,
    })
}

/// The end of the run on a terminal.
pub fn summary(report: &Report) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |parts: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{parts}");
    };
    let totals = &report.totals;
    line(format_args!(
        "asked {:.0}, acknowledged {} ({:.0}/s), failed {}, missed {}, late {}",
        totals.asked,
        totals.acknowledged,
        totals.acknowledged_per_s,
        totals.failed,
        totals.missed,
        totals.late
    ));
    for (name, time) in report.times.iter().filter(|(_, time)| time.summary.count > 0) {
        line(format_args!("{name:<20} {}", time.summary));
    }
    if let Some(ledger) = &report.ledger {
        line(format_args!("{}", ledger.to_string().trim_end()));
    }
    let fairness = &report.fairness;
    if fairness.practices > 0 {
        line(format_args!(
            "fairness             Jain {:.3} over {} practices, longest mean delay {:.0} ms",
            fairness.jain, fairness.practices, fairness.worst_delay_ms
        ));
    }
    line(format_args!("generator            {}", report.generator));
    for judged in &report.thresholds {
        let measured: Vec<String> = judged.measured.values().map(|value| format!("{value:.4}")).collect();
        let state = if judged.held { "held  " } else { "FAILED" };
        let measured = if measured.is_empty() { "-".to_owned() } else { measured.join(", ") };
        line(format_args!("{state} {}  (measured {measured})", judged.check));
    }
    line(format_args!("{}", report.verdict.outcome.word()));
    report.verdict.why.iter().for_each(|why| line(format_args!("  {why}")));
    text.trim_end().to_owned()
}
