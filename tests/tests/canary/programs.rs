//! What our own programs print about marked messages: `carillonctl`, and the demo with its ledger, at trace like everything else.
//! It is all kept among the evidence. What an operator asks for in so many words (`--full`) is proof that they do have it.
use super::story::{BAD, BODY, LIMIT, REFERENCE, Story};
use carillon_loadtest::sample_day::{DayMessage, class_name};
use carillon_proto::public::ListMessagesRequest;
use carillon_tests::api::number_of;
use carillon_tests::rig::program;
use std::collections::BTreeMap;
use std::process::Output;
use tokio::process::Command;

impl Story<'_> {
    async fn run(&self, name: &str, arguments: &[&str]) -> Output {
        let lab = self.rig.lab.dir();
        let command =
            Command::new(program(name)).args(arguments).arg("--lab").arg(lab).kill_on_drop(true).output();
        tokio::time::timeout(LIMIT * 3, command).await.expect("it ends").expect("it runs")
    }

    /// Everything that it prints is kept; gives its exit code.
    async fn keep_run(&mut self, name: &str, arguments: &[&str]) -> Option<i32> {
        let output = self.run(name, arguments).await;
        self.keep(&format!("{name}-stdout"), &output.stdout);
        self.keep(&format!("{name}-stderr"), &output.stderr);
        assert!(!output.stdout.is_empty() || !output.stderr.is_empty(), "{name} {arguments:?} says nothing");
        output.status.code()
    }

    pub async fn carillonctl(&mut self) {
        let practice = self.rig.practices[0].clone();
        let request = ListMessagesRequest {
            practice: practice.clone(),
            external_reference: format!("{REFERENCE}-success-0"),
            ..Default::default()
        };
        let id = self.rig.list(request).await.remove(0).message_id;
        let shown: [&[&str]; 14] = [
            &["status"],
            &["message", "get", &id],
            &["message", "explain", &id],
            &["message", "list", "--limit=1000"],
            &["message", "list", "--state=unknown", "--state=dead"],
            &["message", "watch", "--from=start", "--count=50"],
            &["practice", "list"],
            &["carrier", "list"],
            &["lane", "list"],
            &["breaker", "list"],
            &["forecast"],
            &["dead-letter", "list"],
            &["quarantine", "list"],
            &["hours", "show"],
        ];
        for arguments in shown {
            for format in ["table", "json"] {
                let arguments = [arguments, &["--output", format]].concat();
                assert_eq!(self.keep_run("carillonctl", &arguments).await, Some(0), "{arguments:?}");
            }
        }
        let to = format!("+{BAD} 2125550100");
        let body = format!("{BODY} \u{7}");
        let reused = ["--idempotency-key", "zqKeyTw6Rd-success-0"];
        let send = ["message", "send", "--practice", &practice, "--body", &body];
        let good = ["message", "send", "--practice", &practice, "--to=+12125550100", "--body", BODY];
        let refused: [&[&str]; 7] = [
            &[&send[..], &["--to", &to]].concat(),
            &[&good[..], &reused].concat(),
            &["message", "get", BAD],
            &["message", "list", "--page-token", BAD],
            &["message", "list", "--practice", BAD],
            &["message", "watch", "--from", BAD],
            &["message", "cancel", BAD],
        ];
        for arguments in refused {
            let code = self.keep_run("carillonctl", arguments).await;
            assert!(code.is_some_and(|code| code != 0), "{arguments:?} ended with {code:?}");
        }
        let full = self.run("carillonctl", &["message", "get", &id, "--full"]).await;
        assert!(String::from_utf8_lossy(&full.stdout).contains(BODY), "the message is another one");
    }

    /// The demo resets the simulator, so this comes after everything else was looked at.
    pub async fn demo(&mut self) {
        let marked: Vec<_> = (0..12).map(|at| self.marked(at % 6, &format!("day-{at}"), 20 + at)).collect();
        let line = |spec: &carillon_proto::public::MessageSpec| DayMessage {
            key: spec.idempotency_key.clone(),
            practice: spec.practice.clone(),
            to: number_of(spec).to_owned(),
            text: spec.body.clone(),
            class: class_name(spec.class()),
            reference: Some(spec.external_reference.clone()),
            labels: spec.labels.clone().into_iter().collect::<BTreeMap<_, _>>(),
            ..Default::default()
        };
        let mut lines: Vec<DayMessage> = marked.iter().map(line).collect();
        let unparsable =
            DayMessage { key: "zqKeyTw6Rd-bad".to_owned(), to: format!("+{BAD}"), ..lines[0].clone() };
        lines.push(DayMessage { refuse: Some("INVALID_FIELDS".to_owned()), ..unparsable });
        let text: String = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
        // Not below the lab's directory: it is the health system's.
        let scratch = tempfile::tempdir().unwrap();
        let (day, profile) = (scratch.path().join("day.jsonl"), scratch.path().join("profile.toml"));
        fs_err::write(&day, text).unwrap();
        fs_err::write(&profile, super::story::PROFILE).unwrap();
        let json = self.rig.lab.dir().join("evidence/ledger.json").display().to_string();
        let demo = [
            "demo",
            "--day",
            day.to_str().unwrap(),
            "--profile",
            profile.to_str().unwrap(),
            "--kill-node=0",
            "--kill-at-s=0",
            "--json",
            &json,
        ];
        let output = self.run("carillon-loadtest", &demo).await;
        let (told, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(told.contains("LEDGER") && told.contains("verdict: CLEAN"), "{told}");
        assert!(log.lines().any(|line| line.contains("\"level\":\"TRACE\"")), "its log is not at trace");
        self.keep("demo-stdout", &output.stdout);
        self.keep("demo-stderr", &output.stderr);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(self.keep_run("carillon-loadtest", &["ledger"]).await, Some(0));
    }
}
