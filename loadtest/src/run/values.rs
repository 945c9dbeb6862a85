//! The values of all metrics that thresholds can name.
//!
//! Owns: [`live`] (what is known while the run goes on) and [`last`] (everything). Times are in milliseconds.

use super::engine::interval::Interval;
use super::fairness::Fairness;
use super::reckon::Reckoned;
use super::report::{Lane, Totals};
use super::threshold::{STATISTICS, Values};
use crate::bench::measure::Latency;
use crate::ledger::Finding;

/// A statistic of a time by its name.
pub fn statistic(latency: &Latency, name: &str) -> Option<f64> {
    let quantile = match name {
        "mean" => return Some(latency.mean_ms()),
        "max" => return Some(latency.summary().max_ms),
        "p50" => 0.5,
        "p90" => 0.9,
        "p95" => 0.95,
        "p99" => 0.99,
        "p999" => 0.999,
        "p9999" => 0.9999,
        _ => return None,
    };
    Some(latency.quantile_ms(quantile))
}

fn times(values: &mut Values, name: &str, latency: &Latency) {
    if latency.count() == 0 {
        return;
    }
    for which in STATISTICS {
        if let Some(value) = statistic(latency, which) {
            values.insert(format!("{name}.{which}"), value);
        }
    }
}

/// What is known while the run goes on; `asked` are the messages of the schedule so far (0 in a closed loop).
pub fn live(sum: &Interval, totals: &Totals, lanes: &[Lane]) -> Values {
    let mut values = Values::new();
    let mut put = |name: &str, value: f64| {
        values.insert(name.to_owned(), value);
    };
    let part = |count: u64, of: u64| count as f64 / of.max(1) as f64;
    put("errors.count", totals.failed as f64);
    put("errors.rate", part(totals.failed, totals.acknowledged + totals.calls + totals.failed));
    put("missed.count", totals.missed as f64);
    put("missed.rate", part(totals.missed, totals.missed + totals.requests));
    put("late.rate", part(totals.late, totals.requests));
    put("ack_gap.max", sum.ack_gap_ms as f64);
    put("accepted.rate", totals.acknowledged_per_s);
    if totals.asked > 0.0 {
        put("achieved.ratio", totals.acknowledged as f64 / totals.asked);
    }
    if let Some(rate) = totals.carrier_per_s {
        put("carrier.rate", rate);
    }
    for lane in lanes {
        put(&format!("lane.{}.over_limit", lane.name), lane.over_limit as f64);
        put(&format!("lane.{}.window_max", lane.name), lane.window_max as f64);
        if let Some(used) = lane.used {
            put(&format!("lane.{}.used", lane.name), used);
        }
    }
    times(&mut values, "response_time", &sum.response);
    times(&mut values, "service_time", &sum.service);
    times(&mut values, "pacer_lag", &sum.lag);
    for (name, latency) in &sum.operations {
        times(&mut values, &format!("op.{name}"), latency);
    }
    values
}

/// Everything, after the ledger.
pub fn last(mut values: Values, reckoned: &Reckoned, fairness: &Fairness, planned_wrong: u64) -> Values {
    let ledger = &reckoned.ledger;
    let findings: u64 = ledger.findings.values().map(|found| found.count).sum();
    let early = ledger.count(Finding::SentBeforeDue);
    for (name, count) in [
        ("lost", ledger.lost()),
        ("duplicates", ledger.duplicates()),
        ("possible_duplicates", reckoned.possible_duplicates.values().sum()),
        ("unsettled", ledger.count(Finding::Unsettled)),
        ("out_of_order", ledger.count(Finding::OutOfOrder)),
        ("out_of_window", early + planned_wrong),
        ("after_expiry", ledger.count(Finding::SentAfterExpiry)),
        ("findings", findings + planned_wrong + ledger.unrecorded),
    ] {
        values.insert(name.to_owned(), count as f64);
    }
    if fairness.practices > 0 {
        values.insert("fairness.jain".to_owned(), fairness.jain);
        values.insert("fairness.worst_delay".to_owned(), fairness.worst_delay_ms);
    }
    times(&mut values, "accept_to_carrier", &reckoned.accept_to_carrier);
    times(&mut values, "due_to_carrier", &reckoned.due_to_carrier);
    times(&mut values, "carrier_to_receipt", &reckoned.carrier_to_receipt);
    values
}

#[cfg(test)]
mod tests {
    use super::super::threshold::kind_of;
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_value_is_a_metric_of_the_catalogue_and_every_metric_has_a_value() {
        let mut sum = Interval::default();
        let mut reckoned = Reckoned::default();
        sum.operations.insert("get".to_owned(), Latency::default());
        for latency in [
            &mut sum.response,
            &mut sum.service,
            &mut sum.lag,
            &mut reckoned.accept_to_carrier,
            &mut reckoned.due_to_carrier,
            &mut reckoned.carrier_to_receipt,
        ] {
            latency.record(Duration::from_millis(3), 1);
        }
        sum.operations.values_mut().for_each(|latency| latency.record(Duration::from_millis(3), 1));
        let totals = Totals { asked: 1.0, carrier_per_s: Some(1.0), ..Totals::default() };
        let lanes = [Lane { name: "sim".to_owned(), used: Some(1.0), ..Lane::default() }];
        let fairness = Fairness { practices: 1, ..Fairness::default() };
        let values = last(live(&sum, &totals, &lanes), &reckoned, &fairness, 0);
        for name in values.keys() {
            assert!(kind_of(name).is_some(), "{name}");
        }
        for (pattern, ..) in super::super::threshold::METRICS {
            let name = pattern.replace('%', "p99").replace("op.*", "op.get").replace('*', "sim");
            assert!(values.contains_key(&name), "{name}");
        }
        assert_eq!(values["response_time.p99"].round(), 3.0);
    }
}
