//! The binary: `--check`, the side port, no plaintext in what it writes, an orderly end on SIGTERM.
use crate::support::*;
use carillon_proto::identity::Role;
use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::*;
use carillon_proto::tls::{self, TlsFiles};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const MARKS: [&str; 3] = ["2125550177", "Zebediah", "visit-canary"];

fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn table(files: &TlsFiles) -> String {
    format!("{{ cert = {:?}, key = {:?}, ca = {:?} }}", files.cert, files.key, files.ca)
}

/// A configuration for a router process beside the one of the bed.
fn configuration(bed: &Bed, directory: &Path, listen: SocketAddr, http: SocketAddr, filter: &str) -> PathBuf {
    let seed = bed.cluster.with(|state| state.nodes[&2].clone());
    let text = format!(
        "cluster_id = \"lab\"\nname = \"r1\"\nlisten = \"{listen}\"\nhttp_listen = \"{http}\"\nlog_filter = \"{filter}\"\n\
         nodes = [\"{seed}\"]\npublic_tls = {}\nnode_tls = {}\n",
        table(&bed.clients_ca.issue("spiffe://lab/router/r1", &bed.clients_ca)),
        table(&bed.peers_ca.issue("spiffe://lab/router/r1", &bed.peers_ca)),
    );
    let file = directory.join("router.toml");
    std::fs::write(&file, text).unwrap();
    file
}

fn run(config: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_carillon-router"));
    command.arg("--config").arg(config).args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn page(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

/// A router process beside the one of the bed.
pub struct Process {
    child: Option<Child>,
    directory: tempfile::TempDir,
    listen: SocketAddr,
    http: SocketAddr,
}

impl Process {
    /// Returns when it is ready.
    pub async fn start(bed: &Bed, filter: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (listen, http) = (free_port(), free_port());
        let file = configuration(bed, directory.path(), listen, http, filter);
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let child = Some(run(&file, &[]).stderr(log).spawn().unwrap());
        let ready = async {
            while !page(http, "/readyz").await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ready).await.expect("it becomes ready");
        Self { child, directory, listen, http }
    }

    pub fn client(&self, bed: &Bed) -> Client {
        let files = bed.clients_ca.issue("spiffe://lab/tenant/lakeside", &bed.clients_ca);
        let config = tls::client_config(&files).unwrap();
        let expect = Some(Role::Router("r1".to_owned()));
        Client::new(tls::channel(&self.listen.to_string(), config, expect).unwrap())
    }

    /// Processor time so far, where the system tells it.
    pub fn cpu(&self) -> Option<Duration> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.as_ref()?.id())).ok()?;
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Duration::from_millis(ticks * 10))
    }

    /// Asks it to end; gives how it ended and what it logged.
    async fn terminate(mut self) -> (ExitStatus, String) {
        let mut child = self.child.take().unwrap();
        let killed = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status().unwrap();
        assert!(killed.success());
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
        (status, std::fs::read_to_string(self.directory.path().join("log")).unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _already_gone = child.kill();
            let _reaped = child.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_tells_good_from_bad() {
    let bed = Bed::start().await;
    let directory = tempfile::tempdir().unwrap();
    let file = configuration(&bed, directory.path(), free_port(), free_port(), "info");
    let good = run(&file, &["--check"]).output().unwrap();
    assert!(good.status.success() && told(&good).contains("good"), "{}", told(&good));
    let text = std::fs::read_to_string(&file).unwrap();
    for (from, to, expected) in [
        ("name = \"r1\"", "naem = \"r1\"", "naem"),
        ("-cert.pem", "-none.pem", "none.pem"),
        ("\"lab\"", "\"\"", "cluster_id"),
    ] {
        std::fs::write(&file, text.replacen(from, to, 1)).unwrap();
        let bad = run(&file, &["--check"]).output().unwrap();
        assert!(!bad.status.success() && told(&bad).contains(expected), "{}", told(&bad));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_serves_shows_its_state_keeps_secrets_and_ends_in_order() {
    let bed = Bed::start().await;
    let router = Process::start(&bed, "trace").await;
    // Nothing was asked yet: an alert must see zeros, not holes.
    let fresh = page(router.http, "/metrics").await.unwrap();
    for name in [
        "requests_total{",
        "items_total{",
        "retries_total{",
        "request_seconds_count{",
        "batch_seconds_count{",
    ] {
        let start = format!("carillon_router_{name}");
        let lines: Vec<_> = fresh.lines().filter(|line| line.starts_with(&start)).collect();
        assert!(!lines.is_empty(), "{start} is missing in {fresh}");
        // The router looks for leaders while it starts, so a retry may have been counted.
        assert!(name.starts_with("retries") || lines.iter().all(|line| line.ends_with(" 0")), "{lines:?}");
    }
    assert!(fresh.contains("method=\"ListMessages\",code=\"UNAVAILABLE\""), "{fresh}");
    let mut client = router.client(&bed);
    let marked = MessageSpec {
        recipient: Some(Recipient::PhoneNumber(format!("+1{}", MARKS[0]))),
        body: format!("Dear {}", MARKS[1]),
        external_reference: MARKS[2].to_owned(),
        ..spec("north", MARKS[2])
    };
    let bad = MessageSpec { time_zone: MARKS[1].to_owned(), class: 99, ..marked.clone() };
    let results = submit(&mut client, vec![marked, bad]).await;
    assert!(!accepted(&results[0]).duplicate);
    assert!(!format!("{:?}", refused(&results[1])).contains(MARKS[1]));
    let list = ListMessagesRequest {
        practice: "north".into(),
        external_reference: MARKS[2].into(),
        ..Default::default()
    };
    client.list_messages(timed(list)).await.unwrap();

    let metrics = page(router.http, "/metrics").await.unwrap();
    for expected in [
        "carillon_router_items_total{",
        "carillon_router_requests_total{",
        "carillon_router_request_seconds_bucket{",
        "carillon_router_partitions_led",
        "carillon_router_map_age_seconds",
    ] {
        assert!(metrics.contains(expected), "{expected} is missing in {metrics}");
    }
    let (status, log) = router.terminate().await;
    assert!(status.success(), "{status}: {log}");
    assert!(log.contains("\"message\":\"stopped\""), "{log}");
    for mark in MARKS {
        assert!(!metrics.contains(mark) && !log.contains(mark), "{mark} was written down");
    }
}
