//! What an operator is told who asks for what is not there.
use carillon_tests::rig::{Rig, program};
use std::process::{Command, Output};

/// Exit code and what it complained about.
fn run(name: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(program(name));
    for variable in
        ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_METADATA_ENDPOINT", "CARILLON_ADMIN"]
    {
        command.env_remove(variable);
    }
    let Output { status, stdout, stderr } = command.args(arguments).output().expect("the program runs");
    (status.code(), String::from_utf8([stdout, stderr].concat()).expect("it prints text"))
}

fn told(name: &str, arguments: &[&str], code: i32, parts: &[&str]) {
    let (found, text) = run(name, arguments);
    assert_eq!(found, Some(code), "{arguments:?}: {text}");
    for part in parts {
        assert!(text.contains(part), "{arguments:?} does not say {part:?}: {text}");
    }
}

pub fn mistakes(rig: &Rig) {
    let dir = rig.lab.dir().display().to_string();
    let lab = format!("--lab={dir}");
    let ctl = |arguments: &[&str], code: i32, parts: &[&str]| told("carillonctl", arguments, code, parts);
    let transfer = |partition: &str, to: &str, code: i32, part: &str| {
        let arguments = ["partition", "transfer-leader", &lab, "--partition", partition, "--to", to];
        ctl(&arguments, code, &[part]);
    };
    transfer("1", "9", 4, "node 9 is not known");
    transfer("99", "1", 1, "partition 99 does not exist");
    transfer("all", "1", 2, "neither a number nor `meta`");
    let repair = |partition: &str, parts: &[&str]| {
        ctl(&["replica", "repair", &lab, "--partition", partition], 1, parts);
    };
    repair("meta", &["the meta group is fenced on no node that answers"]);
    repair("2", &["partition 2 is fenced on no node that answers"]);
    repair("99", &["partition 99 does not exist"]);
    ctl(&["status"], 2, &["--lab", "--admin"]);
    ctl(&["lab", "up", "--dir", &dir, "--nodes", "5"], 1, &["--nodes: it has 3", "use another --dir"]);
    ctl(
        &["backup", "create", &lab, "--to", "s3://bucket/x"],
        1,
        &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
    );
    told(
        "carillon-loadtest",
        &["demo", "--lab", "/no/such/lab"],
        1,
        &["carillonctl lab up --dir /no/such/lab"],
    );
    told("carillon-router", &["--config", "/no/such/file"], 2, &["/no/such/file"]);
    told("carillon-node", &["--config", "/no/such/file"], 2, &["/no/such/file"]);
}
