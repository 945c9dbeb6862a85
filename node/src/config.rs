//! Configuration of a node: one TOML file, unknown keys are errors, units in the names.
mod carriers;
mod classes;
mod storage;

use carillon_proto::config::{self, ConfigError};
use carillon_proto::identity::is_name;
use carillon_proto::tls::{TlsError, TlsFiles};
pub use carriers::{Callbacks, Carriers};
pub use classes::{ClassKeys, Classes};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
pub use storage::{Disk, Retention, Scrub};

/// Everything a node must be told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the cluster; certificates carry it. 1 to 63 of `[a-z0-9-]`.
    pub cluster_id: String,
    /// Unique in the cluster, from 1; never given to another disk.
    pub node_id: u64,
    /// Where the raft log and the state live. One node a directory.
    pub data_dir: PathBuf,
    /// Allows what must never be used with patients' data: the file key provider. Default false.
    #[serde(default)]
    pub lab: bool,
    /// Number of partitions; fixed when the cluster is created. 1 to 256, default 16.
    #[serde(default = "default_partitions")]
    pub partitions: u32,
    /// Where other nodes and routers connect.
    pub peer_listen: SocketAddr,
    /// Where operators connect.
    pub admin_listen: SocketAddr,
    /// Metrics and health, plain HTTP: bind it to loopback or a management network.
    pub http_listen: SocketAddr,
    /// Syntax of `RUST_LOG`. Default "info".
    #[serde(default = "default_log_filter")]
    pub log_filter: String,
    /// Directory with one file for each secret (carrier passwords).
    pub secrets_dir: PathBuf,
    /// The nodes that the cluster is created with, this one included; looked at only while the data directory is new.
    #[serde(default)]
    pub members: Vec<Member>,
    /// How to come into a cluster that exists, instead of `members`; looked at only while the data directory is new.
    #[serde(default)]
    pub join: Option<Join>,
    /// host:port under which others reach `peer_listen`. Default: `peer_listen` itself.
    #[serde(default)]
    pub advertise: Option<String>,
    /// Pretends to be an older program that understands this feature level only. Needs `lab = true`.
    #[serde(default)]
    pub feature_level_max: Option<u32>,
    pub peer_tls: TlsFiles,
    pub admin_tls: TlsFiles,
    pub keys: KeyConfig,
    /// What the classes of messages set.
    #[serde(default)]
    pub classes: Classes,
    #[serde(default)]
    pub retention: Retention,
    #[serde(default)]
    pub disk: Disk,
    #[serde(default)]
    pub scrub: Scrub,
    #[serde(default)]
    pub carriers: Carriers,
    #[serde(default)]
    pub tuning: Tuning,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    pub node_id: u64,
    /// host:port of its peer plane.
    pub peer_address: String,
}

/// What a new node needs to join.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// host:port of the peer planes of some members.
    pub peers: Vec<String>,
    /// As printed by `carillonctl node token`; better kept in `token_file`.
    #[serde(default)]
    pub token: Option<String>,
    #[serde(default)]
    pub token_file: Option<PathBuf>,
}

/// Without the token.
impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join").field("peers", &self.peers).finish_non_exhaustive()
    }
}

impl Join {
    /// The secret of the token, which names the node that it admits: `carillon-<node id>-<hex>`.
    pub fn secret(&self, node_id: u64) -> anyhow::Result<bytes::Bytes> {
        let text = match (&self.token, &self.token_file) {
            (Some(token), _) => token.clone(),
            (None, Some(path)) => fs_err::read_to_string(path)?,
            (None, None) => {
                anyhow::bail!("join: give token or token_file; `carillonctl node token` makes a token")
            }
        };
        let parts: Vec<&str> = text.trim().split('-').collect();
        let ["carillon", id, secret] = parts.as_slice() else {
            anyhow::bail!("join.token is not a token of `carillonctl node token`");
        };
        anyhow::ensure!(
            id.parse() == Ok(node_id),
            "the token admits node {id} and node_id is {node_id}: they must be the same, and so must the certificate's"
        );
        Ok(hex::decode(secret)?.into())
    }
}

/// Where the key that wraps data keys comes from.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "provider", rename_all = "snake_case", deny_unknown_fields)]
pub enum KeyConfig {
    /// A file with 32 bytes in hex. Needs `lab = true`.
    File { file: PathBuf },
}

/// Knobs with good defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tuning {
    /// Raft tick; election after 10 to 20 ticks, heartbeat every 2. 20 to 1000, default 100.
    pub tick_ms: u64,
    /// Entries proposed and not applied in one partition before proposals are batched up. 1 to 64, default 2.
    pub proposals_in_flight_max: usize,
    /// Block cache of the state store. Default 64 MiB.
    pub block_cache_bytes: usize,
    /// Committed rows of all partitions that wait in memory before they are written to tables. Default 64 MiB.
    pub write_buffers_bytes: usize,
    /// Bytes of the raft log on disk above which files are freed. 64 MiB to 16 GiB, default 256 MiB.
    pub log_bytes_max: u64,
    /// Log bytes of all partitions that only memory covers, so the bytes that a restart applies again. 16 MiB to 4 GiB, default
    /// 256 MiB.
    pub unflushed_log_bytes_max: u64,
    /// The same for one partition, in time. 1 s to 1 hour, default 5 minutes.
    pub unflushed_log_age_max_s: u64,
    /// Threads for gRPC, peers and connectors. Default 2.
    pub worker_threads: usize,
    /// Bytes per second for making, sending and fetching snapshots, each. 0 = no limit, default 32 MiB.
    pub snapshot_bytes_per_s_max: u64,
    /// A follower that fetches nothing of its snapshot in this time is given up, and offered one again. 1000 to 600000,
    /// default 30000.
    pub snapshot_idle_ms_max: u64,
    /// Log kept in each partition for a follower that is behind; beyond it the follower needs a snapshot. Default 64 MiB.
    pub log_slack_bytes: u64,
    /// The same in entries. 64 to 10000000, default 100000.
    pub log_slack_entries: u64,
    /// How far a node takes the time to be from the median of its own and its peers' wall clocks. A node whose clock is further off
    /// leads nothing as long as another one can. 100 to 60000, default 1000.
    pub clock_skew_ms_max: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            tick_ms: 100,
            proposals_in_flight_max: 2,
            block_cache_bytes: 64 << 20,
            write_buffers_bytes: 64 << 20,
            log_bytes_max: 256 << 20,
            unflushed_log_bytes_max: 256 << 20,
            unflushed_log_age_max_s: 300,
            worker_threads: 2,
            snapshot_bytes_per_s_max: 32 << 20,
            snapshot_idle_ms_max: 30_000,
            log_slack_bytes: 64 << 20,
            log_slack_entries: 100_000,
            clock_skew_ms_max: 1_000,
        }
    }
}

fn default_partitions() -> u32 {
    16
}

fn default_log_filter() -> String {
    "info".to_owned()
}

impl Config {
    /// Reads and checks a file. `join` takes the place of what the file says about it.
    pub fn load(path: &Path, join: Option<Join>) -> Result<Self, ConfigError> {
        let mut config: Self = config::read(path)?;
        config.join = join.or(config.join);
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let (tuning, members) = (&self.tuning, self.members.len());
        let ids: BTreeSet<u64> = self.members.iter().map(|m| m.node_id).collect();
        let joins = self.join.is_some();
        let KeyConfig::File { .. } = &self.keys;
        config::first_broken(&[
            (is_name(&self.cluster_id), "cluster_id", "must be 1 to 63 of a-z, 0-9 and -"),
            ((1..=256).contains(&self.partitions), "partitions", "must be 1 to 256"),
            (ids.len() == members && !ids.contains(&0), "members", "node ids must be unique and not 0"),
            (joins || (members <= 7 && members % 2 == 1), "members", "list 1, 3, 5 or 7 nodes, or give join"),
            (joins || ids.contains(&self.node_id), "node_id", "must be one of members"),
            (!joins || members == 0, "join", "a new node joins or is one of members; leave one of them out"),
            (
                self.join.as_ref().is_none_or(|j| !j.peers.is_empty()),
                "join.peers",
                "name at least one member",
            ),
            (
                self.feature_level_max.is_none_or(|level| self.lab && level > 0),
                "feature_level_max",
                "is for tests: it needs lab = true and is at least 1",
            ),
            ((20..=1000).contains(&tuning.tick_ms), "tuning.tick_ms", "must be 20 to 1000"),
            (
                (1..=64).contains(&tuning.proposals_in_flight_max),
                "tuning.proposals_in_flight_max",
                "must be 1 to 64",
            ),
            ((1..=64).contains(&tuning.worker_threads), "tuning.worker_threads", "must be 1 to 64"),
            (
                (64 << 20..=16 << 30).contains(&tuning.log_bytes_max),
                "tuning.log_bytes_max",
                "must be 67108864 to 17179869184",
            ),
            (
                (16 << 20..=4 << 30).contains(&tuning.unflushed_log_bytes_max),
                "tuning.unflushed_log_bytes_max",
                "must be 16777216 to 4294967296",
            ),
            (
                (1..=3_600).contains(&tuning.unflushed_log_age_max_s),
                "tuning.unflushed_log_age_max_s",
                "must be 1 to 3600",
            ),
            (
                (1_000..=600_000).contains(&tuning.snapshot_idle_ms_max),
                "tuning.snapshot_idle_ms_max",
                "must be 1000 to 600000",
            ),
            (
                (64..=10_000_000).contains(&tuning.log_slack_entries),
                "tuning.log_slack_entries",
                "must be 64 to 10000000",
            ),
            (
                (100..=60_000).contains(&tuning.clock_skew_ms_max),
                "tuning.clock_skew_ms_max",
                "must be 100 to 60000",
            ),
            (
                self.lab,
                "keys.provider",
                "the file provider keeps the key beside the data and is refused unless lab = true; use a key service",
            ),
        ])?;
        self.classes.table()?;
        self.retention.validate(self.lab)?;
        self.disk.validate()?;
        self.carriers.validate()?;
        self.scrub.validate()
    }

    /// Checks that the certificates can be used.
    pub fn check_tls(&self) -> Result<(), TlsError> {
        self.peer_tls.check()?;
        self.admin_tls.check()
    }

    /// Where others reach this node.
    pub fn advertised(&self) -> String {
        let founding = self.members.iter().find(|m| m.node_id == self.node_id);
        match (&self.advertise, founding) {
            (Some(address), _) => address.clone(),
            (None, Some(member)) => member.peer_address.clone(),
            (None, None) => self.peer_listen.to_string(),
        }
    }

    /// What this program says that it understands.
    pub fn feature_level(&self) -> u32 {
        let own = carillon_core::meta::level::LEVEL;
        self.feature_level_max.map_or(own, |most| most.min(own))
    }

    /// Node ids in rising order.
    pub fn member_ids(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = self.members.iter().map(|m| m.node_id).collect();
        ids.sort_unstable();
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        cluster_id = "lab"
        node_id = 1
        data_dir = "/tmp/x"
        lab = true
        peer_listen = "127.0.0.1:7101"
        admin_listen = "127.0.0.1:7201"
        http_listen = "127.0.0.1:7301"
        secrets_dir = "/tmp/s"
        members = [{ node_id = 1, peer_address = "127.0.0.1:7101" }]
        peer_tls = { cert = "c", key = "k", ca = "a" }
        admin_tls = { cert = "c", key = "k", ca = "a" }
        keys = { provider = "file", file = "f" }
    "#;

    fn check(text: &str) -> Result<(), String> {
        let config: Config = toml::from_str(text).map_err(|e| e.to_string())?;
        config.validate().map_err(|e| e.to_string())
    }

    /// The documented file, as it is and with every default said: lines of the form `# key = value` are keys.
    #[test]
    fn the_reference_is_true() {
        // Not beside members; and its default is another key.
        const ALTERNATIVES: [&str; 2] = ["# join = ", "# advertise = "];
        let shipped = include_str!("../../deploy/config/node.toml");
        let refused = toml::from_str::<Config>(shipped).unwrap().validate().unwrap_err().to_string();
        assert!(refused.contains("keys.provider"), "as it is shipped it is for patients' data: {refused}");
        let text = &shipped.replace("\nlab = false\n", "\nlab = true\n");
        let as_it_is: Config = toml::from_str(text).unwrap();
        as_it_is.validate().unwrap();
        let key = |line: &str| {
            let name = line.strip_prefix("# ").and_then(|rest| rest.split_once(" = ")).map(|(name, _)| name);
            name.is_some_and(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        };
        let lines = text.lines().filter(|line| !ALTERNATIVES.iter().any(|key| line.starts_with(key)));
        let said: String = lines.map(|l| if key(l) { &l[2..] } else { l }).flat_map(|l| [l, "\n"]).collect();
        let said: Config = toml::from_str(&said).unwrap();
        said.validate().unwrap();
        assert_eq!(said.classes.table().unwrap(), as_it_is.classes.table().unwrap());
        let without_classes =
            |config: &Config| format!("{:?}", Config { classes: Classes::default(), ..config.clone() });
        assert_eq!(without_classes(&said), without_classes(&as_it_is), "a default is another one");
    }

    #[test]
    fn a_good_file_passes_and_each_fault_is_named() {
        assert_eq!(check(GOOD), Ok(()));
        for (from, to, expected) in [
            ("cluster_id = \"lab\"", "cluster_id = \"Lab!\"", "cluster_id"),
            ("node_id = 1\n", "node_id = 9\n", "node_id"),
            ("lab = true", "lab = false", "keys.provider"),
            ("lab = true", "lab = true\npartitions = 0", "partitions"),
            ("lab = true", "lab = true\nlabb = true", "labb"),
            ("members = [{ node_id = 1, peer_address = \"127.0.0.1:7101\" }]", "", "members"),
            ("lab = true", "lab = true\njoin = { peers = [\"a:1\"] }", "join"),
            (
                "members = [{ node_id = 1, peer_address = \"127.0.0.1:7101\" }]",
                "join = { peers = [] }",
                "join.peers",
            ),
            ("lab = true", "lab = true\nfeature_level_max = 0", "feature_level_max"),
            (
                "lab = true",
                "lab = true\ncarriers = { callbacks = { listen = \"0.0.0.0:7443\" } }",
                "carriers.callbacks.cert",
            ),
            (
                "lab = true",
                "lab = true\ncarriers = { callbacks = { listen = \"127.0.0.1:7443\", cert = \"c\" } }",
                "carriers.callbacks.key",
            ),
            ("lab = true", "lab = true\ncarriers = { contract_dir = \"c\" }", "contract_dir"),
            ("lab = true", "lab = true\ntuning = { tick_ms = 5 }", "tuning.tick_ms"),
            ("lab = true", "lab = true\ntuning = { log_bytes_max = 5 }", "tuning.log_bytes_max"),
            ("lab = true", "lab = true\nretention = { final_messages_s = 0 }", "retention.final_messages_s"),
            (
                "lab = true",
                "lab = true\nretention = { idempotency_keys_s = 0 }",
                "retention.idempotency_keys_s",
            ),
            ("lab = true", "lab = true\ndisk = { free_percent_min = 51 }", "disk.free_percent_min"),
            ("lab = true", "lab = true\nscrub = { every_s = 59 }", "scrub.every_s"),
            ("lab = true", "lab = true\ntuning = { log_slack_entries = 5 }", "tuning.log_slack_entries"),
            (
                "lab = true",
                "lab = true\nclasses = { staff = { attempts_max = 21 } }",
                "classes.staff.attempts_max",
            ),
            (
                "lab = true",
                "lab = true\ntuning = { snapshot_idle_ms_max = 5 }",
                "tuning.snapshot_idle_ms_max",
            ),
        ] {
            let error = check(&GOOD.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_token_names_its_node_and_is_not_printed() {
        let join = |token: &str| Join { peers: vec![], token: Some(token.to_owned()), token_file: None };
        assert_eq!(&join("carillon-4-00ff\n").secret(4).unwrap()[..], [0, 0xff]);
        for (token, expected) in
            [("carillon-5-00ff", "admits node 5"), ("00ff", "not a token"), ("carillon-4-x", "")]
        {
            assert!(join(token).secret(4).unwrap_err().to_string().contains(expected), "{token}");
        }
        assert!(!format!("{:?}", join("carillon-4-00ff")).contains("00ff"));
    }
}
