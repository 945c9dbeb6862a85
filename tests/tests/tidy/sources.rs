//! Rules on Rust sources: length, module docs, ASCII, banned calls, metric names.
use crate::{File, files, report};
use carillon_proto::metric_names::CATALOGUE;
use std::collections::BTreeSet;

const FILE_LINES_MAX: usize = 500;
/// A ratchet: lower it when it can be lowered.
const FUNCTION_LINES_MAX: usize = 110;

fn is_test(path: &str) -> bool {
    path.contains("/tests/")
        || path.contains("/examples/")
        || path.contains("/benches/")
        || path.ends_with("tests.rs")
        || path.ends_with("build.rs")
}

/// Production code of a file: everything but the items under `#[cfg(test)]`, which become blank lines, so that numbers of lines
/// stay true. An item ends with the brace that closes it, or with its semicolon.
fn production(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if !line.trim_start().starts_with("#[cfg(test)]") {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        // The rest of its line belongs to the item, as in `#[cfg(test)] mod tests;`.
        let mut item = Item::default();
        let mut rest = &line[line.find(']').map_or(line.len(), |at| at + 1)..];
        loop {
            kept.push('\n');
            if item.ends_in(rest) {
                break;
            }
            match lines.next() {
                Some(next) => rest = next,
                None => return kept,
            }
        }
    }
    kept
}

/// Where an item ends, by its brackets. Those in texts, characters and comments do not count.
#[derive(Default)]
struct Item {
    depth: usize,
    braced: bool,
    /// In a text; with the number of `#` of a raw one.
    text: Option<Option<usize>>,
}

impl Item {
    /// Reads one more line; true when the item is over.
    fn ends_in(&mut self, line: &str) -> bool {
        let bytes = line.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            at += 1;
            match self.text {
                Some(Some(hashes)) => {
                    if rest[0] == b'"' && rest[1..].iter().take_while(|b| **b == b'#').count() >= hashes {
                        self.text = None;
                    }
                }
                Some(None) => match rest[0] {
                    b'\\' => at += 1,
                    b'"' => self.text = None,
                    _ => {}
                },
                None => match rest[0] {
                    b'/' if rest.get(1) == Some(&b'/') => return false,
                    b'r' if raw_text(rest).is_some() => {
                        let hashes = raw_text(rest).unwrap_or(0);
                        self.text = Some(Some(hashes));
                        at += hashes + 1;
                    }
                    b'"' => self.text = Some(None),
                    // A character, not a lifetime: '{' or '\n'.
                    b'\'' if rest.get(2) == Some(&b'\'') => at += 2,
                    b'\'' if rest.get(1) == Some(&b'\\') => {
                        at += rest[2..].iter().skip(1).position(|b| *b == b'\'').map_or(0, |end| end + 3);
                    }
                    b'{' | b'(' | b'[' => {
                        self.braced |= rest[0] == b'{' && self.depth == 0;
                        self.depth += 1;
                    }
                    b'}' | b')' | b']' => {
                        self.depth = self.depth.saturating_sub(1);
                        if self.depth == 0 && rest[0] == b'}' && self.braced {
                            return true;
                        }
                    }
                    b';' if self.depth == 0 => return true,
                    _ => {}
                },
            }
        }
        false
    }
}

/// `r"`, `r#"`: how many `#`.
fn raw_text(rest: &[u8]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
    (rest.get(1 + hashes) == Some(&b'"')).then_some(hashes)
}

fn too_long(file: &File) -> Option<String> {
    let lines = file.text.lines().count();
    (lines > FILE_LINES_MAX).then(|| format!("{}: {lines} lines, at most {FILE_LINES_MAX}", file.path))
}

/// Functions longer than the ratchet, by indentation of the closing brace.
fn long_functions(file: &File) -> Vec<String> {
    let mut list = Vec::new();
    let mut open: Option<(usize, usize, String)> = None;
    for (number, line) in file.text.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let trimmed = line.trim_start();
        let starts = ["fn ", "pub fn ", "async fn ", "pub async fn ", "pub(crate) fn ", "pub(super) fn "]
            .iter()
            .any(|prefix| trimmed.starts_with(prefix));
        match &open {
            None if starts && !trimmed.ends_with(';') && !trimmed.ends_with('}') => {
                open = Some((number, indent, trimmed.to_owned()));
            }
            Some((start, at, name)) if indent == *at && trimmed == "}" => {
                if number - start > FUNCTION_LINES_MAX {
                    list.push(format!("{}:{}: {} lines: {name}", file.path, start + 1, number - start));
                }
                open = None;
            }
            Some((_, at, _)) if indent == *at && trimmed.ends_with(';') => open = None,
            _ => {}
        }
    }
    list
}

fn without_module_doc(file: &File) -> Option<String> {
    let first = file.text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    (!first.starts_with("//!")).then(|| format!("{}: begins without //! documentation", file.path))
}

fn not_ascii(file: &File) -> Option<String> {
    let (number, _) = file.text.lines().enumerate().find(|(_, line)| !line.is_ascii())?;
    Some(format!("{}:{}: not ASCII", file.path, number + 1))
}

/// (text, where it is banned, why)
const BANNED: &[(&str, &[&str], &str)] = &[
    ("todo!(", &[""], "unfinished"),
    ("unimplemented!(", &[""], "unfinished"),
    ("dbg!(", &[""], "debug output may hold plaintext"),
    (".unwrap()", &["node/", "router/", "proto/"], "use expect with a proof, or handle it"),
    ("SystemTime::now", &["node/core/", "node/consensus/", "node/delivery/"], "time is an argument"),
    (
        "SystemTime::now",
        &["node/src/delivery/", "node/src/edge/", "node/src/engine/", "node/src/meta/", "node/src/seal/"],
        "crate::clock::now_ms is the node's time",
    ),
    ("Instant::now", &["node/core/", "node/consensus/", "node/delivery/"], "time is an argument"),
    ("std::thread", &["node/core/", "node/consensus/", "node/delivery/"], "no threads in pure crates"),
    ("HashMap", &["node/core/"], "its order differs between replicas"),
    ("HashSet", &["node/core/"], "its order differs between replicas"),
    ("f64", &["node/core/"], "no floats in apply"),
    ("block_in_place", &[""], "starves the runtime"),
    ("unbounded_channel", &[""], "every queue has a bound; say which"),
    ("channel::unbounded", &[""], "every queue has a bound; say which"),
    ("mpsc::unbounded(", &[""], "every queue has a bound; say which"),
    ("sync::mpsc::channel()", &[""], "every queue has a bound; say which"),
    ("#[ignore", &[""], "a test that never runs"),
];

/// A switch that plants a bug of raft: only its declaration and the simulator may name it.
const PLANT: &str = "planted_batch_append";

fn plants(file: &File) -> bool {
    let may = file.path == "node/consensus/src/config.rs" || file.path.starts_with("tests/");
    !may && file.text.contains(PLANT)
}

#[test]
fn nobody_plants_bugs_but_the_simulator() {
    let list: Vec<String> =
        sources().iter().filter(|f| plants(f)).map(|f| format!("{}: names {PLANT}", f.path)).collect();
    report("plants", &list);
    assert!(plants(&File { path: "node/src/engine/mod.rs".into(), text: format!("config.{PLANT} = true;") }));
}

fn banned(file: &File) -> Vec<String> {
    let text = production(&file.text);
    let mut list = Vec::new();
    for (word, places, why) in BANNED {
        if !places.iter().any(|place| file.path.starts_with(place)) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains(word) {
                list.push(format!("{}:{}: {word} is banned here: {why}", file.path, number + 1));
            }
        }
    }
    list
}

/// Names in `counter!("carillon_...`, `gauge!` and `histogram!` calls, also when the name is on the next line.
fn metric_names(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in text.match_indices("\"carillon_") {
        let name: String =
            text[at + 1..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        names.insert(name);
    }
    names
}

fn sources() -> Vec<File> {
    files(&[".rs"])
}

#[test]
fn files_and_functions_are_short() {
    let mut list: Vec<String> = sources().iter().filter_map(too_long).collect();
    list.extend(sources().iter().flat_map(long_functions));
    report("length", &list);
    let planted = File { path: "x.rs".into(), text: "x\n".repeat(FILE_LINES_MAX + 1) };
    assert!(too_long(&planted).is_some());
    let body = "    a();\n".repeat(FUNCTION_LINES_MAX + 1);
    let planted = File { path: "x.rs".into(), text: format!("fn long() {{\n{body}}}\n") };
    assert_eq!(long_functions(&planted).len(), 1);
}

#[test]
fn every_file_says_what_it_is() {
    report("module documentation", &sources().iter().filter_map(without_module_doc).collect::<Vec<_>>());
    assert!(without_module_doc(&File { path: "x.rs".into(), text: "use a;\n".into() }).is_some());
}

#[test]
fn sources_are_ascii() {
    report("ascii", &sources().iter().filter_map(not_ascii).collect::<Vec<_>>());
    assert!(not_ascii(&File { path: "x.rs".into(), text: "// caf\u{e9}\n".into() }).is_some());
}

#[test]
fn banned_calls_are_absent() {
    let production: Vec<File> =
        sources().into_iter().filter(|f| !is_test(&f.path) && !f.path.starts_with("tests/")).collect();
    report("banned", &production.iter().flat_map(banned).collect::<Vec<_>>());
    let planted = File { path: "node/core/src/x.rs".into(), text: "let a = HashMap::new();\n".into() };
    assert_eq!(banned(&planted).len(), 1);
    let planted =
        File { path: "router/src/x.rs".into(), text: "a.unwrap();\n#[cfg(test)]\nb.unwrap();\n".into() };
    assert_eq!(banned(&planted).len(), 1);
    for call in ["crossbeam_channel::unbounded()", "tokio::sync::mpsc::unbounded_channel()"] {
        let planted = File { path: "loadtest/src/x.rs".into(), text: format!("let (a, b) = {call};\n") };
        assert_eq!(banned(&planted).len(), 1, "{call}");
    }
}

#[test]
fn production_code_after_tests_is_looked_at_too() {
    let complaints = |text: &str| banned(&File { path: "router/src/x.rs".into(), text: text.into() });
    for test in [
        "#[cfg(test)]\nmod tests {\n    fn a() {\n        b.unwrap();\n    }\n}\n",
        "#[cfg(test)]\nmod tests;\n",
        "#[cfg(test)] mod tests;\n",
        "#[cfg(test)]\nuse a::{b, c};\n",
        "#[cfg(test)]\n#[allow(dead_code)]\nfn a(x: [u8; 4]) -> char {\n    b.unwrap();\n    '}'\n}\n",
        "#[cfg(test)]\nmod tests {\n    const A: &str = \"}{\\\"}\";\n    const B: &str = r#\"}\"}\"#; // }\n    fn a<'a>() { b.unwrap(); }\n}\n",
        "#[cfg(test)]\nmod tests {\n    const C: char = '\\'';\n    fn a() { b.unwrap(); }\n}\n",
    ] {
        assert_eq!(complaints(test), [] as [String; 0], "{test}");
        let found = complaints(&format!("{test}fn late() {{\n    c.unwrap();\n}}\n"));
        let line = test.lines().count() + 2;
        assert_eq!(found.len(), 1, "{test}");
        assert!(found[0].starts_with(&format!("router/src/x.rs:{line}:")), "{found:?}");
    }
}

#[test]
fn the_metric_catalogue_is_complete_and_used() {
    let known: BTreeSet<String> = CATALOGUE.iter().map(|m| m.name.to_owned()).collect();
    assert_eq!(known.len(), CATALOGUE.len(), "a name is listed twice");
    let mut used = BTreeSet::new();
    for file in sources() {
        let skip =
            is_test(&file.path) || file.path.starts_with("tests/") || file.path.ends_with("metric_names.rs");
        let emits = file.path.starts_with("node/")
            || file.path.starts_with("router/")
            || file.path.starts_with("proto/")
            || file.path.starts_with("loadtest/src/smsc");
        if !skip && emits {
            used.extend(metric_names(&production(&file.text)));
        }
    }
    let missing: Vec<String> =
        used.difference(&known).map(|n| format!("{n} is not in the catalogue")).collect();
    report("metrics", &missing);
    let unused: Vec<String> =
        known.difference(&used).map(|n| format!("{n} is in the catalogue only")).collect();
    report("metrics", &unused);
    assert_eq!(metric_names("counter!(\n  \"carillon_x_total\")").len(), 1);
}
