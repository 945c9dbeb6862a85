//! A report without a run: its page, its JSON form, its schema.

use super::super::faults::Mark;
use super::super::threshold::Threshold;
use super::super::timeline::Row;
use super::*;
use std::time::Duration;

fn sample(threshold: &str) -> Report {
    let text = "name = \"x<y\"\nabout = \"a & b\"\n[[phase]]\nduration_s = 4\nrate_per_s = 100\n";
    let scenario = Scenario::parse("x", text).unwrap();
    let mut latency = Latency::default();
    (1..=1_000).for_each(|ms| latency.record(Duration::from_millis(ms), 1));
    let metrics: BTreeMap<String, f64> = [("response_time.p99".to_owned(), 990.0)].into();
    let judged = threshold.parse::<Threshold>().unwrap().judge(&metrics);
    let outcome = if judged.held { Outcome::Pass } else { Outcome::Fail };
    let row = |at: u32| Row {
        from_s: f64::from(at),
        length_s: 1.0,
        asked: 100.0,
        acknowledged: 100,
        lanes: [("sim".to_owned(), 90)].into(),
        heat: [(8, 99), (40, 1)].into(),
        max_ms: 120.0,
        backlog: 10,
        ..Row::default()
    };
    Report {
        format: FORMAT.to_owned(),
        verdict: Verdict { outcome, exit_code: outcome.exit_code(), why: Vec::new() },
        scenario: Ran::new(&scenario),
        environment: Environment::default(),
        thresholds: vec![judged],
        totals: Totals::default(),
        times: [("response_time".to_owned(), Time::new("about", &latency))].into(),
        generator: Health::default(),
        timeline: (0..4).map(row).collect(),
        marks: vec![Mark { at_s: 2.0, kind: "fault".to_owned(), text: "node 2 <killed>".to_owned() }],
        lanes: vec![Lane { name: "sim".to_owned(), limit: Some(100), window_ms: 1_000, ..Lane::default() }],
        ledger: Some(Ledger::default()),
        possible_duplicates: BTreeMap::new(),
        fairness: Fairness::default(),
        metrics,
    }
}

#[test]
fn the_page_says_the_verdict_first_and_escapes_what_it_shows() {
    let page = html::page(&sample("response_time.p99 < 1s"));
    let body = page.split_once("<body>").unwrap().1;
    assert!(body.starts_with("<header class=\"pass\"><h1>PASS: x&lt;y</h1>"), "{}", &body[..100]);
    for wanted in ["a &amp; b", "node 2 &lt;killed&gt;", "limit 100 segments in 1000 ms", "p99.99", "990"] {
        assert!(page.contains(wanted), "{wanted}");
    }
    // Lines of a fault, and one column for each second with both of its steps.
    assert_eq!(page.matches("class=\"mark fault\"").count(), 4);
    assert_eq!(page.matches("<rect").count(), 8);
    let failed = html::page(&sample("response_time.p99 < 1ms"));
    assert!(failed.contains("<header class=\"fail\">") && failed.contains("<tr class=\"bad\">"));
    let nothing = html::page(&sample("lost == 0"));
    assert!(nothing.contains("nothing was measured"));
}

#[test]
fn a_report_is_read_back_and_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let report = sample("response_time.p99 < 1s");
    write::json(dir.path(), &report).unwrap();
    let back = write::read(dir.path()).unwrap();
    assert_eq!((back.verdict, back.marks, back.lanes), (report.verdict, report.marks, report.lanes));
    assert_eq!((back.scenario, back.timeline), (report.scenario, report.timeline));
    let text = std::fs::read_to_string(dir.path().join(write::JSON)).unwrap();
    std::fs::write(dir.path().join(write::JSON), text.replace(FORMAT, "other/9")).unwrap();
    assert!(write::read(dir.path()).unwrap_err().to_string().contains("other/9"));
}

#[test]
fn the_spectrum_goes_to_the_longest_and_numbers_have_the_digits_that_one_reads() {
    let report = sample("response_time.p99 < 1s");
    let time = &report.times["response_time"];
    assert_eq!(time.spectrum.len(), PERCENTILES.len());
    assert!(time.spectrum.windows(2).all(|pair| pair[0].1 <= pair[1].1));
    let numbers = [0.0, 0.0123, 0.5, 12.34, 1234.5].map(number_text);
    assert_eq!(numbers, ["0", "0.0123", "0.50", "12.3", "1234"]);
}
