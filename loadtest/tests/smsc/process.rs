//! The simulator as a process: health, metrics with buckets, JSON logs.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

use rusmpp::CommandId;

use super::client::{Client, http_at, submit, within};

/// A process that is killed when the test ends, however it ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _already_gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn port(ready: &str, name: &str) -> u16 {
    let line: serde_json::Value = serde_json::from_str(ready).expect("the ready line is JSON");
    assert!(
        line["message"] == "ready" && line["timestamp"].is_string() && line["level"] == "INFO",
        "{ready}"
    );
    let port = line[name].as_u64().and_then(|port| u16::try_from(port).ok());
    port.unwrap_or_else(|| panic!("no {name} in {ready:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_shows_health_and_histograms_and_logs_json() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_carillon-loadtest"))
        .args(["smsc", "--limit=1", "--profile=realistic"])
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let mut process = Process(child);
    let mut ready = String::new();
    BufReader::new(stdout).read_line(&mut ready).unwrap();
    let at = |name| std::net::SocketAddr::from(([127, 0, 0, 1], port(&ready, name)));
    for path in ["/livez", "/readyz"] {
        assert_eq!(http_at(at("http"), "GET", path, "").await, (200, "ok\n".to_owned()), "{path}");
    }
    let mut client = Client::connect(at("smpp")).await;
    assert_eq!(client.bind(CommandId::BindTransceiver, "carillon", "secret").await, 0);
    // Both in one window.
    client.put(submit("+12025550123", "Dear Zebediah"));
    let second = client.put(submit("+12025550123", "once more"));
    client.flush().await;
    assert_eq!(client.submitted(second).await.0, 0);
    for _ in 0..2 {
        client.take_receipt().await;
    }
    let has_violation = |page: &str| {
        page.lines().any(|l| l.starts_with("carillon_smsc_contract_violations") && l.ends_with(" 1"))
    };
    let page = within(async {
        loop {
            // Written by the upkeep, ten times a second.
            let page = http_at(at("http"), "GET", "/metrics", "").await.1;
            if has_violation(&page) {
                return page;
            }
        }
    })
    .await;
    for name in [
        "carillon_smsc_answer_delay_seconds",
        "carillon_smsc_event_lag_seconds",
        "carillon_smsc_receipt_delay_seconds",
    ] {
        assert!(page.contains(&format!("# TYPE {name} histogram")), "{name} is missing in {page}");
        assert!(page.contains(&format!("{name}_bucket{{service=\"smsc\",le=\"")), "{name} has no buckets");
    }
    assert!(page.contains("carillon_build_info{service=\"smsc\""), "{page}");

    let killed = Command::new("kill").arg("-TERM").arg(process.0.id().to_string()).status().unwrap();
    assert!(killed.success() && process.0.wait().unwrap().success());
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    for message in ["serving", "bound", "a contract is exceeded", "stopping"] {
        let line = lines.iter().find(|line| line["message"] == message);
        let line = line.unwrap_or_else(|| panic!("{message:?} is not in {log}"));
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
    }
    assert!(!log.contains("Zebediah") && !log.contains("2025550123") && !log.contains("secret"), "{log}");
}
