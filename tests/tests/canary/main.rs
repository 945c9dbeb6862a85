//! The PHI canary: marked numbers, names and texts go through everything that can happen to a message while every
//! process logs at `trace`, the most that there is; afterwards no file of the cluster may hold a mark in any form, nor may anything
//! that our programs printed about them.
//!
//! Proof that it can fail: planted files are found by the same search (here and in `carillon_tests::canary`), the carrier
//! did receive the marked texts, readers with the right certificate do get them back, and the logs really are at `trace`.
mod programs;
mod story;

use carillon_ctl::lab::{LabOptions, SMSC};
use carillon_tests::canary::{Canary, forms};
use carillon_tests::rig::Rig;
use carillon_tests::steps::{Steps, say};
use std::process::Command;
use story::Story;

/// Set in the process that runs the story.
const INNER: &str = "CARILLON_CANARY_INNER";

/// The lab gives its filter to nodes and router; the simulator takes `RUST_LOG` from this process's environment, which
/// cannot be changed safely while it runs. So the story runs in a process of its own.
#[test]
fn no_mark_is_left_in_any_file_at_any_log_level() {
    if std::env::var_os(INNER).is_some() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(run());
    }
    let name = "no_mark_is_left_in_any_file_at_any_log_level";
    let inner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INNER, "1")
        .env("RUST_LOG", "trace")
        .status()
        .unwrap();
    assert!(inner.success(), "the story failed; its output is above");
}

async fn run() {
    let profile = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    fs_err::write(profile.path(), story::PROFILE).unwrap();
    let options = LabOptions {
        profile: profile.path().display().to_string(),
        log_filter: "trace".to_owned(),
        ..LabOptions::default()
    };
    let rig = Rig::start(options).await;
    // It has hardly anything to say even at trace, so its log cannot show that it is.
    let smsc = rig.lab.pid(SMSC).expect("the simulator runs");
    let environment = fs_err::read(format!("/proc/{smsc}/environ")).unwrap();
    assert!(environment.split(|byte| *byte == 0).any(|pair| pair == b"RUST_LOG=trace"));
    let mut story = Story::new(&rig);
    let mut steps = Steps::new("canary");
    steps.run("success: delivered, read back, listed, watched", story.success()).await;
    steps.run("rejected by validation, with every error kept", story.rejected_by_validation()).await;
    steps.run("rejected and not delivered by the carrier", story.rejected_by_carrier()).await;
    steps.run("refused for now: throttled and failing", story.refused_for_now()).await;
    steps.run("answer timeout: unknown and held", story.answer_timeout()).await;
    steps.run("panic while the plaintext is held: router, ingest", story.panic()).await;
    steps.run("panic between opening and the carrier's socket", story.panic_while_sending()).await;
    steps.run("crash: kill -9 with attempts in flight", story.crash()).await;
    steps.run("taken back and repeated under another text", story.taken_back()).await;
    steps.run("everything was really processed", story.proof()).await;
    steps.run("everything has settled", story.settled()).await;
    steps.run("carillonctl: what it shows and what it refuses", story.carillonctl()).await;
    steps.run("demo and ledger of a marked day", story.demo()).await;
    let marks = story.marks();
    drop(story);
    steps.run("no file holds a mark", search(&rig, &marks)).await;
    steps.finish();
}

async fn search(rig: &Rig, marks: &[String]) {
    rig.lab.down().unwrap();
    let canary = Canary::new(marks);
    let search = canary.in_tree(rig.lab.dir());
    say(&format!("{} marks, {} files, {} MiB searched", marks.len(), search.files, search.bytes >> 20));
    for name in ["node-1", "node-2", "node-3", "router"] {
        let log = fs_err::read(rig.lab.log_path(name)).unwrap();
        let trace = String::from_utf8_lossy(&log).lines().any(|line| line.contains("\"level\":\"TRACE\""));
        assert!(trace, "the log of {name} is not at trace");
    }
    for id in rig.lab.node_ids() {
        let data = canary.in_tree(&rig.lab.data_dir(id));
        assert!(data.files > 3 && data.bytes > 100_000, "node {id} has no data: {data:?}");
    }
    assert!(search.finds.is_empty(), "marks were found:\n{:#?}", search.finds);
    // The same search finds what is there, for every mark.
    let planted = rig.lab.data_dir(2).join("planted");
    for (form, bytes) in marks.iter().flat_map(|mark| forms(mark)) {
        fs_err::write(&planted, [b"\x00\x01".as_slice(), &bytes, b"\xff"].concat()).unwrap();
        assert!(canary.in_bytes(&planted, &fs_err::read(&planted).unwrap()).is_some(), "{form}");
    }
    assert_eq!(canary.in_tree(&rig.lab.data_dir(2)).finds.len(), 1);
}
