//! The side port of every process: metric pages hold histograms with buckets and only names of the catalogue.
use carillon_ctl::lab::SMSC;
use carillon_proto::metric_names::{CATALOGUE, Kind};
use carillon_tests::rig::Rig;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// `# TYPE name kind` of a page.
fn types(page: &str) -> BTreeMap<&str, &str> {
    page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
}

/// What is wrong with a page.
fn complaints(page: &str) -> Vec<String> {
    let mut list = Vec::new();
    let types = types(page);
    for (name, kind) in &types {
        let expected = CATALOGUE.iter().find(|m| m.name == *name).map(|m| match m.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        });
        match expected {
            None => list.push(format!("{name} is not in the catalogue")),
            Some(expected) if expected != *kind => list.push(format!("{name} is a {kind}, not a {expected}")),
            Some(_) => {}
        }
        if !page.contains(&format!("# HELP {name} ")) {
            list.push(format!("{name} has no help"));
        }
        let bucket = format!("{name}_bucket{{");
        if *kind == "histogram" && !page.lines().any(|line| line.starts_with(&bucket)) {
            list.push(format!("{name} has no buckets"));
        }
    }
    for line in page.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        if !types.contains_key(name) && family.is_none_or(|f| types.get(f) != Some(&"histogram")) {
            list.push(format!("a sample without a type: {line}"));
        }
        if line.contains("quantile=") {
            list.push(format!("a quantile: {line}"));
        }
    }
    list
}

pub async fn pages(rig: &Rig) {
    let pages = rig.metrics().await;
    let names: Vec<&str> = pages.keys().map(String::as_str).collect();
    assert_eq!(names, ["node-1", "node-2", "node-3", "router", "smsc"]);
    let mut histograms = BTreeSet::new();
    for (process, page) in &pages {
        assert_eq!(complaints(page), [] as [String; 0], "{process}");
        assert!(page.contains("carillon_build_info"), "{process}");
        assert!(
            !page.lines().any(|l| l.starts_with("carillon_panics_total") && !l.ends_with(" 0")),
            "{process}"
        );
        histograms.extend(types(page).into_iter().filter(|t| t.1 == "histogram").map(|t| t.0.to_owned()));
    }
    for expected in [
        "carillon_log_sync_seconds",
        "carillon_smpp_answer_seconds",
        "carillon_router_request_seconds",
        "carillon_smsc_receipt_delay_seconds",
    ] {
        assert!(histograms.contains(expected), "{histograms:?}");
    }
    // Lines of dependencies say which module wrote them, and not where the program was built.
    let log = fs_err::read_to_string(rig.lab.log_path("node-1")).unwrap();
    assert!(log.contains("raft_engine"), "no line of a dependency in it");
    assert!(!log.contains("/registry/src/") && !log.contains("\"log.file\""), "a path of the builder");
    let mut addresses: Vec<String> =
        rig.lab.node_ids().into_iter().map(|id| rig.lab.node_http(id).unwrap()).collect();
    addresses.extend([rig.lab.router_http(), rig.lab.smsc_http()]);
    for address in addresses {
        for path in ["/livez", "/readyz"] {
            assert_eq!(rig.http.get(&address, path).await.unwrap().as_ref(), b"ok\n", "{address}{path}");
        }
    }
}

#[test]
fn a_bad_page_is_noticed() {
    let good = "# HELP carillon_log_sync_seconds x\n# TYPE carillon_log_sync_seconds histogram\n\
        carillon_log_sync_seconds_bucket{le=\"1\"} 1\ncarillon_log_sync_seconds_sum 1\n";
    assert_eq!(complaints(good), [] as [String; 0]);
    for (from, to) in [
        ("_bucket{le", "{quantile"),
        ("log_sync_seconds", "secret_seconds"),
        ("# HELP", "# HALP"),
        (" histogram", " gauge"),
    ] {
        assert!(!complaints(&good.replace(from, to)).is_empty(), "{from} {to}");
    }
}

/// Of every process, from its first line on, through kills and starts.
pub fn logs(rig: &Rig) {
    let names = ["node-1", "node-2", "node-3", "router", SMSC];
    for name in names {
        let text = fs_err::read_to_string(rig.lab.log_path(name)).unwrap();
        for line in text.lines() {
            let value: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{name}: {e}: {line}"));
            for field in ["timestamp", "level", "message"] {
                assert!(value[field].is_string(), "{name}: no {field} in {line}");
            }
        }
        assert!(!text.is_empty(), "{name} logs nothing");
    }
    let smsc = fs_err::read_to_string(rig.lab.log_path(SMSC)).unwrap();
    assert!(smsc.contains("\"message\":\"ready\""), "{smsc}");
}

/// A cluster in order that is stopped as a whole has nothing to warn of.
pub async fn stopped(rig: &Rig) {
    rig.until_caught_up(Duration::from_secs(60)).await;
    let logs = ["node-1", "node-2", "node-3", "router", SMSC].map(|name| rig.lab.log_path(name));
    let lengths = logs.clone().map(|path| fs_err::metadata(path).unwrap().len() as usize);
    assert_eq!(rig.lab.down().unwrap(), 5);
    for (path, length) in logs.iter().zip(lengths) {
        let text = fs_err::read_to_string(path).unwrap();
        let new: Vec<&str> = text[length..].lines().collect();
        assert!(!new.is_empty(), "{} does not say that it stops", path.display());
        let loud = |line: &&&str| line.contains("\"level\":\"WARN\"") || line.contains("\"level\":\"ERROR\"");
        let loud: Vec<_> = new.iter().filter(loud).collect();
        assert!(loud.is_empty(), "{}: {loud:#?}", path.display());
    }
}
