//! Configuration of a router: one TOML file, unknown keys are errors, units in the names.
use carillon_proto::config::{self, ConfigError};
use carillon_proto::identity::is_name;
use carillon_proto::tls::TlsFiles;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

/// Everything a router must be told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the cluster; certificates carry it. 1 to 63 of `[a-z0-9-]`.
    pub cluster_id: String,
    /// Name of this router, for logs. 1 to 63 of `[a-z0-9-]`.
    pub name: String,
    /// Where health systems connect (gRPC over TLS).
    pub listen: SocketAddr,
    /// Metrics and health, plain HTTP: bind it to loopback or a management network.
    pub http_listen: SocketAddr,
    /// Syntax of `RUST_LOG`. Default "info".
    #[serde(default = "default_log_filter")]
    pub log_filter: String,
    /// A lab, never patients' data: a message can ask the router to panic, for the test that panics leave no trace of plaintext.
    /// Default false.
    #[serde(default)]
    pub lab: bool,
    /// host:port of the peer plane of one or more nodes, 1 to 64; the others are learnt from them.
    pub nodes: Vec<String>,
    /// Our certificate towards health systems, and the CA that theirs must come from.
    pub public_tls: TlsFiles,
    /// Our certificate (role router) towards nodes, and the CA that theirs must come from.
    pub node_tls: TlsFiles,
    #[serde(default)]
    pub tuning: Tuning,
}

/// Knobs with good defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tuning {
    /// Threads for gRPC. 1 to 64, default 2.
    pub worker_threads: usize,
    /// HTTP/2 connections to each node. 1 to 16, default 2.
    pub connections_per_node: usize,
    /// Messages that are being accepted may take this much memory; more are read only when some are done.
    /// 8 MiB to 16 GiB, default 256 MiB.
    pub buffer_bytes_max: usize,
    /// Streams and calls on one client connection. 1 to 10000, default 256.
    pub streams_per_connection_max: u32,
    /// On SIGTERM, calls in flight get this long to finish. 0 to 600000, default 10000.
    pub drain_timeout_ms: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            worker_threads: 2,
            connections_per_node: 2,
            buffer_bytes_max: 256 << 20,
            streams_per_connection_max: 256,
            drain_timeout_ms: 10_000,
        }
    }
}

fn default_log_filter() -> String {
    "info".to_owned()
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config: Self = config::read(path)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what the types cannot.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let tuning = &self.tuning;
        let distinct: BTreeSet<&String> = self.nodes.iter().collect();
        let rules = [
            (is_name(&self.cluster_id), "cluster_id", "must be 1 to 63 of a-z, 0-9 and -"),
            (is_name(&self.name), "name", "must be 1 to 63 of a-z, 0-9 and -"),
            ((1..=64).contains(&self.nodes.len()), "nodes", "list 1 to 64 addresses"),
            (distinct.len() == self.nodes.len(), "nodes", "an address is listed twice"),
            (self.nodes.iter().all(|n| is_address(n)), "nodes", "each must be host:port"),
            (self.listen != self.http_listen, "http_listen", "must differ from listen"),
            ((1..=64).contains(&tuning.worker_threads), "tuning.worker_threads", "must be 1 to 64"),
            (
                (1..=16).contains(&tuning.connections_per_node),
                "tuning.connections_per_node",
                "must be 1 to 16",
            ),
            (
                (8 << 20..=16 << 30).contains(&tuning.buffer_bytes_max),
                "tuning.buffer_bytes_max",
                "must be 8388608 to 17179869184",
            ),
            (
                (1..=10_000).contains(&tuning.streams_per_connection_max),
                "tuning.streams_per_connection_max",
                "must be 1 to 10000",
            ),
            (tuning.drain_timeout_ms <= 600_000, "tuning.drain_timeout_ms", "must be 0 to 600000"),
        ];
        config::first_broken(&rules)
    }
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) && !host.contains('/')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        cluster_id = "lab"
        name = "r1"
        listen = "127.0.0.1:7000"
        http_listen = "127.0.0.1:7001"
        nodes = ["127.0.0.1:7101", "node-2.example:7101"]
        public_tls = { cert = "c", key = "k", ca = "a" }
        node_tls = { cert = "c", key = "k", ca = "a" }
    "#;

    fn check(text: &str) -> Result<(), String> {
        let config: Config = toml::from_str(text).map_err(|e| e.to_string())?;
        config.validate().map_err(|e| e.to_string())
    }

    /// The documented file, as it is and with every default said: lines of the form `# key = value` are keys.
    #[test]
    fn the_reference_is_true() {
        let text = include_str!("../../deploy/config/router.toml");
        let as_it_is: Config = toml::from_str(text).unwrap();
        as_it_is.validate().unwrap();
        let key = |line: &str| {
            let name = line.strip_prefix("# ").and_then(|rest| rest.split_once(" = ")).map(|(name, _)| name);
            name.is_some_and(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        };
        let lines = text.lines();
        let said: String = lines.map(|l| if key(l) { &l[2..] } else { l }).flat_map(|l| [l, "\n"]).collect();
        let said: Config = toml::from_str(&said).unwrap();
        said.validate().unwrap();
        assert_eq!(format!("{said:?}"), format!("{as_it_is:?}"), "a default is another one");
    }

    #[test]
    fn a_good_file_passes_and_each_fault_is_named() {
        assert_eq!(check(GOOD), Ok(()));
        for (from, to, expected) in [
            ("cluster_id = \"lab\"", "cluster_id = \"Lab!\"", "cluster_id"),
            ("name = \"r1\"", "name = \"\"", "name"),
            ("nodes = [", "nodes = [] #", "nodes"),
            ("node-2.example:7101", "node-2.example", "nodes"),
            ("node-2.example:7101", "http://node-2:7101", "nodes"),
            ("node-2.example:7101", "127.0.0.1:7101", "twice"),
            ("127.0.0.1:7001", "127.0.0.1:7000", "http_listen"),
            ("name = \"r1\"", "name = \"r1\"\nnmae = 1", "nmae"),
            ("name = \"r1\"", "name = \"r1\"\ntuning = { worker_threads = 0 }", "tuning.worker_threads"),
            ("name = \"r1\"", "name = \"r1\"\ntuning = { buffer_bytes_max = 1 }", "tuning.buffer_bytes_max"),
            ("name = \"r1\"", "name = \"r1\"\ntuning = { drain_timeout_ms = 600001 }", "drain_timeout_ms"),
        ] {
            let error = check(&GOOD.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
