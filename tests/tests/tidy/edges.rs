//! The dependency direction of DESIGN section 4: which crate may see which, and what the pure crates may never see.
use crate::{report, root};
use serde_json::Value;
use std::process::Command;

/// Allowed normal dependencies between our crates.
const ALLOWED: &[(&str, &[&str])] = &[
    ("carillon-proto", &[]),
    ("carillon-core", &["carillon-proto"]),
    ("carillon-consensus", &["carillon-proto", "carillon-core"]),
    ("carillon-store", &["carillon-proto", "carillon-core", "carillon-consensus"]),
    ("carillon-delivery", &["carillon-proto", "carillon-core"]),
    ("carillon-carriers", &["carillon-proto", "carillon-core"]),
    (
        "carillon-node",
        &[
            "carillon-proto",
            "carillon-core",
            "carillon-consensus",
            "carillon-store",
            "carillon-delivery",
            "carillon-carriers",
        ],
    ),
    ("carillon-router", &["carillon-proto"]),
    ("carillon-loadtest", &["carillon-proto"]),
    ("carillon-ctl", &["carillon-proto"]),
];

/// What a crate may never depend on.
const FORBIDDEN: &[(&str, &[&str])] = &[
    (
        "carillon-core",
        &["tokio", "tonic", "rocksdb", "raft", "rand", "tracing", "metrics", "jiff", "chrono", "parking_lot"],
    ),
    ("carillon-consensus", &["tokio", "tonic", "rocksdb", "rand", "metrics"]),
    ("carillon-delivery", &["tokio", "tonic", "rocksdb", "rand", "raft"]),
    ("carillon-store", &["tonic", "tokio"]),
    ("carillon-carriers", &["rocksdb", "raft", "tonic"]),
];

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

/// (crate, normal dependencies)
fn edges(metadata: &Value) -> Vec<(String, Vec<String>)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().expect("packages");
    let normal = |package: &Value| {
        let list = package["dependencies"].as_array().expect("dependencies");
        list.iter().filter(|d| d["kind"].is_null()).map(|d| text(&d["name"])).collect()
    };
    packages.iter().map(|package| (text(&package["name"]), normal(package))).collect()
}

fn complaints(edges: &[(String, Vec<String>)]) -> Vec<String> {
    let mut list = Vec::new();
    for (name, dependencies) in edges {
        let allowed = ALLOWED.iter().find(|(n, _)| n == name).map(|(_, allowed)| *allowed);
        let forbidden =
            FORBIDDEN.iter().find(|(n, _)| n == name).map_or(&[][..], |(_, forbidden)| *forbidden);
        for dependency in dependencies {
            let ours = dependency.starts_with("carillon-");
            if ours && allowed.is_some_and(|allowed| !allowed.contains(&dependency.as_str())) {
                list.push(format!("{name} must not depend on {dependency}"));
            }
            if forbidden.contains(&dependency.as_str()) {
                list.push(format!("{name} must never see {dependency}"));
            }
        }
    }
    list
}

#[test]
fn dependencies_run_one_way() {
    let edges = edges(&metadata());
    for (name, _) in ALLOWED {
        assert!(edges.iter().any(|(n, _)| n == name), "{name} is not in the workspace");
    }
    report("dependency direction", &complaints(&edges));
}

#[test]
fn a_forbidden_edge_is_found() {
    let planted = |name: &str, dependency: &str| vec![(name.to_owned(), vec![dependency.to_owned()])];
    assert_eq!(complaints(&planted("carillon-core", "tokio")).len(), 1);
    assert_eq!(complaints(&planted("carillon-router", "carillon-core")).len(), 1);
    assert_eq!(complaints(&planted("carillon-store", "carillon-core")).len(), 0);
}
