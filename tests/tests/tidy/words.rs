//! Rules on committed text: no path of a workplace, no registry host, documented API.
use crate::{File, files, report};

/// Put together so that this file does not contain them.
fn forbidden() -> Vec<String> {
    let join = |parts: &[&str]| parts.concat();
    vec![
        join(&["/wo", "rk/main"]),
        join(&["/wo", "rk/shared"]),
        join(&["../sha", "red"]),
        join(&["shared/ref", "erence"]),
        join(&["/ro", "ot/"]),
        join(&["static.cra", "tes.io"]),
        join(&["index.cra", "tes.io"]),
    ]
}

fn complaints(file: &File) -> Vec<String> {
    let mut list = Vec::new();
    for word in forbidden() {
        for (number, line) in file.text.lines().enumerate() {
            if line.contains(&word) {
                list.push(format!("{}:{}: contains {word}", file.path, number + 1));
            }
        }
    }
    list
}

/// Elements of a proto file that have no comment directly above or on the line.
fn undocumented(text: &str) -> Vec<String> {
    let mut list = Vec::new();
    let mut previous = "";
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if trimmed.starts_with("rpc ") && !previous.starts_with("//") {
            list.push(format!("line {}: {trimmed}", number + 1));
        }
        previous = trimmed;
    }
    list
}

#[test]
fn nothing_names_a_workplace() {
    let texts = files(&[".rs", ".toml", ".md", ".sh", ".proto", "Makefile", ".yml", ".yaml", ".json"]);
    report("workplace", &texts.iter().flat_map(complaints).collect::<Vec<_>>());
    let planted = File { path: "x".into(), text: format!("see {}", forbidden()[0]) };
    assert_eq!(complaints(&planted).len(), 1);
}

#[test]
fn every_public_call_is_documented() {
    for file in files(&[".proto"]) {
        if file.path.contains("/v1/messages.proto") || file.path.contains("/admin/") {
            report(&file.path, &undocumented(&file.text));
        }
    }
    assert_eq!(undocumented("service X {\n  rpc Y(A) returns (B);\n}").len(), 1);
}
