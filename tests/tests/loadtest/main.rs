//! The load harness as its users start it: a run with a cluster of its own, and runs against one that is there, with their
//! exit codes and reports.
mod schema;

use carillon_ctl::lab::LabOptions;
use carillon_loadtest::run::report::write::{HISTOGRAMS, HTML, JSON, read};
use carillon_loadtest::run::report::{Outcome, Report};
use carillon_tests::rig::{Rig, program};
use carillon_tests::steps::Steps;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

/// Shorter than the preset: a machine with other tests on it keeps up.
const SHORT: [&str; 4] = ["--duration", "4", "--rate", "200"];

fn harness<S: AsRef<OsStr>>(arguments: &[S]) -> Command {
    let mut command = Command::new(program("carillon-loadtest"));
    command.arg("run").args(arguments).kill_on_drop(true);
    command
}

/// Runs to the end; exit code and both outputs.
async fn run(arguments: &[&str]) -> (i32, String) {
    let output = harness(arguments).output().await.expect("the harness starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the test")
}

/// What every report must be.
fn checked(dir: &Path) -> Report {
    let json = std::fs::read(dir.join(JSON)).expect("there is a report");
    let value: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    let published = include_str!("../../../loadtest/schema/report.schema.json");
    schema::check(&serde_json::from_str(published).expect("JSON"), &value);
    let report = read(dir).expect("the report is read back");
    let html = std::fs::read_to_string(dir.join(HTML)).expect("there is a page");
    schema::offline_page(&html);
    assert!(html.contains(report.verdict.outcome.word()));
    let log = std::fs::read_to_string(dir.join(HISTOGRAMS)).expect("there is a histogram log");
    let intervals = log.lines().filter(|line| line.starts_with("Tag=response,")).count();
    assert!(intervals > 0 || report.times["response_time"].summary.count == 0, "{log}");
    report
}

/// The figures of a run in which nothing went wrong.
fn sound(report: &Report) {
    let (totals, ledger) = (&report.totals, report.ledger.as_ref().expect("a ledger"));
    assert!(totals.acknowledged > 300 && totals.failed == 0 && totals.in_doubt == 0, "{totals:?}");
    assert_eq!(ledger.accepted + totals.repeated, totals.acknowledged, "{ledger}");
    assert!(ledger.is_clean(), "{ledger}");
    assert!(report.thresholds.iter().all(|judged| !judged.measured.is_empty()), "{:?}", report.thresholds);
    for time in ["response_time", "service_time", "accept_to_carrier", "carrier_to_receipt"] {
        assert!(report.times[time].summary.count > 100, "{time}: {:?}", report.times[time].summary);
    }
    let delivered: u64 = report.timeline.iter().map(|row| row.acknowledged).sum();
    assert_eq!(delivered, totals.acknowledged);
    assert!(totals.calls > 0 && report.times.contains_key("op.get"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_starts_its_own_cluster_and_takes_it_down() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("run");
    let mut arguments = vec!["smoke", "--launch", "1", "--out", text(&out), "--generators", "2"];
    arguments.extend(SHORT);
    let (code, said) = run(&arguments).await;
    let report = checked(&out);
    // A machine that is too busy for the generator says so: then the figures mean nothing, but the ledger does.
    assert!(matches!(code, 0 | 98), "exit code {code}\n{said}");
    assert_eq!(i32::from(report.verdict.exit_code), code);
    sound(&report);
    assert!(report.environment.launched && !out.join("lab").exists() && !out.join("spill").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_against_a_cluster_that_is_there_end_with_their_exit_codes() {
    let options =
        LabOptions { nodes: 1, profile: "perfect".to_owned(), lane_limit: 2_000, ..LabOptions::default() };
    let rig = Rig::start(options).await;
    let lab = text(rig.lab.dir()).to_owned();
    let mut steps = Steps::new("loadtest");
    steps.run("a threshold that fails: 99", failed_threshold(&lab)).await;
    steps.run("a threshold that stops the run", stopped(&lab)).await;
    steps.run("Ctrl-C: 130, with a report", interrupted(&lab)).await;
    steps.run("scenarios that mean nothing: 2", refused()).await;
    steps.finish();
}

async fn failed_threshold(lab: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let out = text(dir.path());
    let mut arguments =
        vec!["smoke", "--target", lab, "--out", out, "--threshold", "response_time.p50 < 1us"];
    arguments.extend(SHORT);
    let (code, said) = run(&arguments).await;
    let report = checked(dir.path());
    sound(&report);
    let failed: Vec<_> = report.thresholds.iter().filter(|judged| !judged.held).collect();
    assert!(failed.iter().any(|judged| judged.check == "response_time.p50 < 1us"), "{said}");
    assert!(matches!(code, 99 | 98), "exit code {code}\n{said}");
    assert_eq!(code == 99, report.verdict.outcome == Outcome::Fail);
}

async fn stopped(lab: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let scenario = dir.path().join("stop.toml");
    let text_of = "name = \"stop\"\nthresholds = [{ check = \"accepted.rate > 1000000/s\", abort_on_fail = true, after_s = 2 }]\n\
        [[phase]]\nduration_s = 600\nrate_per_s = 20\n[generator]\nkind = \"unary\"\n[launch]\nnodes = 1\n";
    std::fs::write(&scenario, text_of).expect("written");
    let (code, said) = run(&[text(&scenario), "--target", lab, "--out", text(&dir.path().join("out"))]).await;
    let report = checked(&dir.path().join("out"));
    assert!(matches!(code, 99 | 98), "exit code {code}\n{said}");
    assert!(report.thresholds[0].aborted && report.totals.sending_s < 300.0, "{:?}", report.totals);
    assert!(report.marks.iter().any(|mark| mark.kind == "abort"));
    assert!(report.ledger.expect("a ledger").is_clean());
}

async fn interrupted(lab: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let out = text(dir.path());
    let arguments = ["smoke", "--target", lab, "--out", out, "--duration", "10m", "--rate", "100"];
    let mut child = harness(&arguments).stdout(Stdio::piped()).spawn().expect("the harness starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut said = Vec::new();
    while let Some(line) = lines.next_line().await.expect("its output is text") {
        let first = line.contains(" acked ") && !said.iter().any(|l: &String| l.contains(" acked "));
        said.push(line);
        if first {
            let pid = child.id().expect("it runs").to_string();
            let done = Command::new("kill").args(["-INT", &pid]).status().await.expect("kill runs");
            assert!(done.success());
        }
    }
    let status = child.wait().await.expect("it ends");
    assert_eq!(status.code(), Some(130), "{}", said.join("\n"));
    let report = checked(dir.path());
    assert_eq!(report.verdict.outcome, Outcome::Interrupted);
    assert!(report.totals.sending_s < 300.0 && report.totals.acknowledged > 0);
}

async fn refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let scenario = dir.path().join("wrong.toml");
    std::fs::write(&scenario, "name = \"x\"\n[[phase]]\nduration_s = 1\nrate_pers = 5\n").expect("written");
    let (code, said) = run(&[text(&scenario)]).await;
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("line 4") && said.contains("rate_pers"), "{said}");
    let (code, said) = run(&["smok"]).await;
    assert!(code == 2 && said.contains("--list"), "{said}");
    let (code, said) = run(&["smoke", "--threshold", "lots == 0"]).await;
    assert!(code == 2 && said.contains("there is no metric lots"), "{said}");
    let (code, said) = run(&["--schema"]).await;
    let published = include_str!("../../../loadtest/schema/report.schema.json");
    assert!(
        code == 0 && said == published,
        "loadtest/schema/report.schema.json is not what `run --schema` prints"
    );
    let (code, said) = run(&["--list"]).await;
    assert!(code == 0 && said.contains("morning-peak"), "{said}");
}
