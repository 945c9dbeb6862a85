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

/// What an element of a proto file is, if the line declares one: services, calls, messages, enums, oneofs, fields, values.
fn declares(line: &str) -> bool {
    let opens = ["service ", "rpc ", "message ", "enum ", "oneof "];
    let number = |text: &str| {
        let text = text.trim_start();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        digits > 0 && text[digits..].trim_start().starts_with([';', '['])
    };
    // A field or a value: `something = 7;`
    let has_number = line.split_once('=').is_some_and(|(name, rest)| {
        let name = name.trim();
        !name.is_empty() && !name.starts_with("option ") && number(rest)
    });
    opens.iter().any(|word| line.starts_with(word)) || has_number
}

/// Elements without a comment of their own: directly above, or at the end of the line.
fn undocumented(text: &str) -> Vec<String> {
    let mut list = Vec::new();
    let mut previous = "";
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        let code = trimmed.split("//").next().unwrap_or_default().trim();
        if declares(code) && !previous.starts_with("//") && !trimmed[code.len()..].contains("// ") {
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

/// The public and the operators' API.
#[test]
fn everything_that_is_public_is_documented() {
    for file in files(&[".proto"]) {
        if file.path.contains("carillon/v1/") || file.path.contains("/admin/") {
            report(&file.path, &undocumented(&file.text));
        }
    }
    for planted in [
        "service X {\n",
        "  rpc Y(A) returns (B);",
        "message M {",
        "  string a = 1;",
        "  repeated x.y.Z many = 12;",
        "  map<string, string> labels = 13;",
        "  uint32 old = 3 [deprecated = true];",
        "enum E {",
        "  E_UNSPECIFIED = 0;",
        "  oneof kind {",
    ] {
        assert_eq!(undocumented(planted).len(), 1, "{planted}");
        assert_eq!(undocumented(&format!("// Why.\n{planted}")).len(), 0, "{planted}");
        assert_eq!(undocumented(&format!("// Why.\n\n{planted}")).len(), 1, "not directly above: {planted}");
        assert_eq!(undocumented(&format!("{planted} // Why.").replace("\n", "")).len(), 0, "{planted}");
    }
    for other in
        ["syntax = \"proto3\";", "option java_package = \"x\";", "reserved 4, 5;", "}", "  // a = 1;"]
    {
        assert_eq!(undocumented(other).len(), 0, "{other}");
    }
}
