//! What is read, what is refused, and how it is judged.

use super::*;

fn read(text: &str) -> Threshold {
    text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
}

#[test]
fn numbers_are_read_in_the_unit_of_their_metric() {
    for (text, metric, comparison, wanted) in [
        ("response_time.p99 < 250ms", "response_time.p99", Comparison::Less, 250.0),
        ("response_time.p9999<=1.5s", "response_time.p9999", Comparison::AtMost, 1_500.0),
        ("service_time.max > 80 us", "service_time.max", Comparison::More, 0.08),
        ("  lost == 0  ", "lost", Comparison::Equal, 0.0),
        ("duplicates != 3", "duplicates", Comparison::Different, 3.0),
        ("errors.rate < 0.1%", "errors.rate", Comparison::Less, 0.001),
        ("fairness.jain >= 0.95", "fairness.jain", Comparison::AtLeast, 0.95),
        ("accepted.rate >= 1000/s", "accepted.rate", Comparison::AtLeast, 1_000.0),
        ("accepted.rate >= 1000", "accepted.rate", Comparison::AtLeast, 1_000.0),
        ("lane.att.over_limit == 0", "lane.att.over_limit", Comparison::Equal, 0.0),
        ("lane.*.used > 97 %", "lane.*.used", Comparison::More, 0.97),
        ("op.get.p50 < 5ms", "op.get.p50", Comparison::Less, 5.0),
    ] {
        let threshold = read(text);
        assert_eq!((threshold.metric.as_str(), threshold.comparison), (metric, comparison), "{text}");
        assert!((threshold.wanted - wanted).abs() < 1e-9, "{text}: {}", threshold.wanted);
        assert_eq!(threshold.text, text.trim());
    }
}

#[test]
fn what_means_nothing_is_refused_and_says_why() {
    for (text, why) in [
        ("", "no comparison"),
        ("lost", "no comparison"),
        ("lost = 0", "no comparison"),
        ("< 3", "not the name"),
        ("lost == ", "does not begin with a number"),
        ("lost == -1", "does not begin with a number"),
        ("lost == 1.5", "whole number"),
        ("lost == 0ms", "does not fit"),
        ("lost == 0 == 1", "does not fit"),
        ("response_time.p99 < 250", "needs a unit"),
        ("response_time.p98 < 2ms", "there is no metric response_time.p98; there are response_time.%"),
        ("response_time < 2ms", "there is no metric"),
        ("errors.rate < 1ms", "does not fit"),
        ("lane.over_limit == 0", "lane.*.over_limit"),
        ("re sponse.p99 < 1ms", "not the name"),
        ("p99..x < 1ms", "not the name"),
    ] {
        let error = text.parse::<Threshold>().unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn a_star_means_every_one_and_nothing_measured_is_not_held() {
    let values = |list: &[(&str, f64)]| list.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect::<Values>();
    let threshold = read("lane.*.over_limit == 0");
    let both = values(&[("lane.a.over_limit", 0.0), ("lane.b.over_limit", 0.0), ("lost", 7.0)]);
    let judged = threshold.judge(&both);
    assert!(judged.held && judged.measured.len() == 2);
    let one = values(&[("lane.a.over_limit", 0.0), ("lane.b.over_limit", 2.0)]);
    assert!(!threshold.judge(&one).held);
    let none = threshold.judge(&Values::new());
    assert!(!none.held && none.why.is_some());
}

#[test]
fn a_run_is_stopped_only_after_the_delay_and_only_on_evidence() {
    let table: Threshold = toml::from_str::<BTreeMap<String, Threshold>>(
        "t = { check = \"errors.rate < 1%\", abort_on_fail = true, after_s = 5 }",
    )
    .unwrap()
    .remove("t")
    .unwrap();
    let bad = Values::from([("errors.rate".to_owned(), 0.5)]);
    assert!(!table.aborts(&bad, 4.9));
    assert!(table.aborts(&bad, 5.0));
    assert!(!table.aborts(&Values::new(), 6.0));
    assert!(!table.aborts(&Values::from([("errors.rate".to_owned(), 0.0)]), 6.0));
    assert!(!read("errors.rate < 1%").aborts(&bad, 99.0));
    for wrong in ["t = { chck = \"lost == 0\" }", "t = { abort_on_fail = true }", "t = 3"] {
        assert!(toml::from_str::<BTreeMap<String, Threshold>>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn every_metric_of_the_catalogue_can_be_asked_for() {
    for (pattern, kind, _) in METRICS {
        let name = pattern.replace('%', "p99");
        let unit = if *kind == Kind::Time { "ms" } else { "" };
        assert_eq!(read(&format!("{name} >= 1{unit}")).kind, *kind, "{pattern}");
    }
}
