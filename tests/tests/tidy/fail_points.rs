//! Rules on fail points: those in the sources, those in the table of `node/src/failpoints.rs` and those that a suite arms are the same.
use crate::{File, files, report};
use std::collections::BTreeSet;

const TABLE: &str = "node/src/failpoints.rs";
const CRASH: &str = "tests/tests/crash/";
/// Points that another suite arms, because they are not about dying.
const ELSEWHERE: [(&str, &str); 3] = [
    ("snapshot::stream_error", "tests/tests/cluster/snapshots.rs"),
    ("send::panic_opened", "tests/tests/canary/story.rs"),
    ("send::panic_handed_over", "tests/tests/canary/story.rs"),
];
/// Names of points begin with one of these; what else looks like one must be no point.
const LAYERS: [&str; 12] = [
    "log",
    "apply",
    "state",
    "write",
    "recovery",
    "send",
    "fact",
    "replica",
    "snapshot",
    "identity",
    "membership",
    "damage",
];

/// Everything between two quotes that is named like a fail point.
fn points(text: &str, quote: char) -> BTreeSet<&str> {
    let is_point = |name: &&str| {
        name.split_once("::").is_some_and(|(layer, rest)| {
            LAYERS.contains(&layer)
                && !rest.is_empty()
                && rest.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        })
    };
    text.split(quote).filter(is_point).collect()
}

/// The three lists, compared.
fn complaints(sources: &[File], table: &str, suites: &[File]) -> Vec<String> {
    let hit: BTreeSet<&str> = sources.iter().flat_map(|file| points(&file.text, '"')).collect();
    let documented: BTreeSet<&str> =
        table.lines().filter(|line| line.starts_with("//! | ")).flat_map(|line| points(line, '`')).collect();
    let of = |path: &'static str| suites.iter().filter(move |file| file.path.starts_with(path));
    let mut armed: BTreeSet<&str> = of(CRASH).flat_map(|file| points(&file.text, '"')).collect();
    for (point, path) in ELSEWHERE {
        armed.extend(of(path).flat_map(|file| points(&file.text, '"')).filter(|found| *found == point));
    }
    let mut list = Vec::new();
    let mut differ = |left: &BTreeSet<&str>, right: &BTreeSet<&str>, what: &str| {
        list.extend(left.difference(right).map(|point| format!("{point}: {what}")));
    };
    differ(&hit, &documented, "is not in the table of failpoints.rs");
    differ(&documented, &hit, "is in the table, and no source has it");
    differ(&hit, &armed, "no suite arms it");
    differ(&armed, &hit, "a suite arms it, and no source has it");
    list
}

#[test]
fn every_fail_point_is_in_the_table_and_armed_by_a_suite() {
    let all = files(&[".rs"]);
    let (sources, rest): (Vec<File>, Vec<File>) =
        all.into_iter().partition(|file| file.path.starts_with("node/") && file.path.contains("/src/"));
    let table = sources.iter().find(|file| file.path == TABLE).expect("the table is there").text.clone();
    assert!(points(&table, '`').len() > 40, "the table is read");
    report("fail points", &complaints(&sources, &table, &rest));
}

#[test]
fn a_point_that_nobody_arms_or_describes_is_found() {
    let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
    let sources = [file("node/src/x.rs", "hit(\"log::before_x\"); hit(\"log::after_x\")")];
    let suites = [file("tests/tests/crash/points.rs", "[\"log::before_x\", \"log::gone\"]")];
    let table = "//! | `log::before_x`, `log::old` | writer | x |";
    assert_eq!(complaints(&sources, table, &suites).len(), 4);
}
