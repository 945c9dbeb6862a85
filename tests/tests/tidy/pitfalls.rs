//! Rules on `node/consensus/PITFALLS.md`: every row names tests that exist, or gives a reason.
use crate::{File, files, report};
use std::collections::BTreeSet;
use std::path::Path;

/// `stem::name` of every test.
fn tests_of(sources: &[File]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in sources {
        let stem = Path::new(&file.path).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let stem = stem.unwrap_or_default();
        let mut marked = false;
        for line in file.text.lines().map(str::trim) {
            marked |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            // Proptest puts the attribute inside of its macro.
            let name = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "));
            if let Some(name) = name.filter(|_| marked) {
                let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(name.len());
                found.insert(format!("{stem}::{}", &name[..end]));
                marked = false;
            }
        }
    }
    found
}

/// What is between backquotes and looks like a test.
fn named(cell: &str) -> Vec<&str> {
    let quoted = cell.split('`').skip(1).step_by(2);
    quoted
        .filter(|text| text.contains("::") && !text.contains(['.', ' ', '(']))
        .filter(|t| !is_type(t))
        .collect()
}

/// `Group::poll` is no test: tests are in files, whose names are small.
fn is_type(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_uppercase())
}

fn complaints(table: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut list = Vec::new();
    for (number, line) in table.lines().enumerate() {
        let cells: Vec<&str> = line.trim().trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, kept_out_by] = cells.as_slice() else { continue };
        if !line.starts_with('|') || *kept_out_by == "kept out by" {
            continue;
        }
        let names = named(kept_out_by);
        if names.is_empty() && !kept_out_by.starts_with("reason: ") {
            list.push(format!("line {}: names no test and gives no reason", number + 1));
        }
        for name in names {
            if !tests.contains(name) {
                list.push(format!("line {}: there is no test {name}", number + 1));
            }
        }
    }
    list
}

#[test]
fn every_pitfall_has_a_test_that_exists_or_a_reason() {
    let table = files(&["PITFALLS.md"]);
    let tests = tests_of(&files(&[".rs"]));
    let text = &table.first().expect("the table is there").text;
    let rows = text.lines().filter(|line| line.starts_with("| ")).count();
    assert!(rows > 80, "{rows} rows");
    report("pitfalls", &complaints(text, &tests));
    let planted = "| x | `main::no_such_test` |\n| y | because |\n| z | reason: `Group::poll` |";
    assert_eq!(complaints(planted, &tests).len(), 2);
}
