//! A whole cluster on this machine: nodes, router and carrier simulator as child processes of one directory.
//!
//! Owns: the order of starting and stopping, and who is ready. The directory holds everything: certificates, the key,
//! secrets, configurations, data, logs and the record of the processes, so that another process can go on with it.
//! Invariants: a process is signalled only after its start time has been compared with the record, never by name;
//! `lab.json` is written last and is true for as long as the lab is up. Labs are never for patients' data: the key
//! lies beside the data.
mod bootstrap;
mod files;
mod fixed;
mod grow;
mod placement;
mod plan;
mod process;
mod ready;
mod rebuild;
mod simulators;

pub use bootstrap::{ALL_DAY, CARRIER, HTTP_CARRIER, Practice, carrier_record};
pub use fixed::Fixed;
pub use placement::Placement;
pub use plan::{CLUSTER, NodePlan, OPERATOR, OTHER_TENANT, Plan, ROUTER, TENANT};
pub use process::ProcessState;
pub use rebuild::{Rebuilt, give_up};

use crate::admin::{Admin, AdminError};
use crate::pki::{Ca, PkiError};
use carillon_proto::tls::TlsFiles;
use parking_lot::Mutex;
use process::Processes;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The process of the carrier simulator.
pub const SMSC: &str = "smsc";
/// The process of the second carrier simulator.
pub const SMSC_HTTP: &str = "smsc-http";
/// The process of the router.
pub const ROUTER_PROCESS: &str = "router";

/// How long a graceful stop may take before SIGKILL.
const STOP_LIMIT: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error("{path}: {reason}")]
    File { path: String, reason: String },
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("{0}")]
    Wrong(String),
    #[error("no program {name} in {looked}; build it first (make build), or set CARILLON_BIN_DIR")]
    NoProgram { name: &'static str, looked: String },
    #[error("there is no lab in {0}; `lab init` or `lab up` makes one")]
    NoLab(String),
    #[error("{name} is not ready after {after_s} s: {reason}\n{log}")]
    NotReady { name: String, after_s: u64, reason: String, log: String },
    #[error("{name} has ended\n{log}")]
    Ended { name: String, log: String },
}

/// What a new lab shall be. Of an old one only the lane limit, the profile and the practices can be changed.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// 1, 3, 5 or 7.
    pub nodes: u64,
    /// 1 to 256.
    pub partitions: u32,
    /// Segments per second: limit of the lane and contract of the simulator.
    pub lane_limit: u32,
    /// Practices to register for the tenant `lakeside`.
    pub practices: Vec<Practice>,
    /// A preset of the simulator, or the path of a profile (TOML).
    pub profile: String,
    pub log_filter: String,
    /// More tables of the nodes' configuration (TOML), for example `[retention]`.
    pub node_config: String,
    /// Rules of the hours in which recipients may be texted (TOML); `None` = those built in. A lab's default lets messages go
    /// at any hour, so that what it shows does not depend on the time of day.
    pub hours: Option<String>,
    /// For all waiting together, in milliseconds.
    pub ready_limit_ms: u64,
    /// Of node 1, 2 and so on; those that are missing run on loopback.
    pub placements: Vec<Placement>,
    /// Where the carrier simulator listens for the nodes; loopback if not set.
    pub smsc_address: Option<Ipv4Addr>,
    /// A second carrier, `sim-http`, that speaks Twilio's API over HTTPS. Only of a new lab.
    pub with_rest: bool,
    /// SMPP over TLS: the simulator has a certificate of the lab's CA of carriers. Only of a new lab.
    pub carrier_tls: bool,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            nodes: 3,
            partitions: 16,
            lane_limit: 600,
            practices: Vec::new(),
            profile: "realistic".to_owned(),
            log_filter: "info".to_owned(),
            node_config: String::new(),
            hours: Some(ALL_DAY.to_owned()),
            ready_limit_ms: 60_000,
            placements: Vec::new(),
            smsc_address: None,
            with_rest: false,
            carrier_tls: false,
        }
    }
}

/// The planes; each has its own CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plane {
    Peers,
    Clients,
    Operators,
    /// Between nodes and carriers, both ways; no certificate on it says who a node is.
    Carriers,
}

impl Plane {
    fn stem(self) -> &'static str {
        match self {
            Self::Peers => "peers-ca",
            Self::Clients => "clients-ca",
            Self::Operators => "operators-ca",
            Self::Carriers => "carriers-ca",
        }
    }

    fn name(self) -> String {
        format!("carillon lab {}", self.stem())
    }
}

/// State of one process, for people.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Member {
    pub name: String,
    pub pid: Option<u32>,
    pub state: ProcessState,
    pub ready: bool,
    pub detail: String,
}

/// A lab. Dropping the one that [`Lab::init`] or [`Lab::up`] returned kills what it started, unless it is detached.
pub struct Lab {
    dir: PathBuf,
    plan: Mutex<Plan>,
    processes: Processes,
    stop_on_drop: bool,
}

impl Lab {
    /// Makes the directory with certificates, key, secrets and configurations; keeps an old one as it is.
    pub fn init(dir: &Path, options: &LabOptions) -> Result<Self, LabError> {
        let dir = std::path::absolute(dir)?;
        let plan = if dir.join(plan::FILE).exists() {
            Plan::load(&dir)?
        } else {
            if dir.join("lab.json").exists() {
                return Err(LabError::Wrong(format!("{} holds something else than a lab", dir.display())));
            }
            let plan = Plan::new(options)?;
            files::write_all(&dir, &plan, options)?;
            plan.save(&dir)?;
            plan
        };
        let processes = Processes::new(&dir);
        Ok(Self { dir, plan: Mutex::new(plan), processes, stop_on_drop: true })
    }

    /// The lab that is in a directory; dropping it stops nothing.
    pub fn open(dir: &Path) -> Result<Self, LabError> {
        let dir = std::path::absolute(dir)?;
        let plan = Plan::load(&dir)?;
        let processes = Processes::new(&dir);
        Ok(Self { dir, plan: Mutex::new(plan), processes, stop_on_drop: false })
    }

    /// Everything running, ready, with carrier and practices registered. What runs already is left running.
    pub async fn up(dir: &Path, options: &LabOptions) -> Result<Self, LabError> {
        let lab = Self::init(dir, options)?;
        {
            let mut plan = lab.plan.lock();
            let profile = files::profile_text(&options.profile)?;
            let changed =
                plan.lane_limit != options.lane_limit || profile != lab.read("smsc-profile.toml")?.as_str();
            if changed {
                // The contract of a running simulator cannot be changed, and the old one would be wrong.
                lab.processes.stop(SMSC, STOP_LIMIT)?;
                fs_err::write(lab.dir.join("smsc-profile.toml"), profile)?;
                plan.lane_limit = options.lane_limit;
                plan.save(&lab.dir)?;
            }
        }
        let limit = Duration::from_millis(options.ready_limit_ms);
        lab.start_smsc()?;
        if lab.plan().with_rest {
            lab.start_smsc_http()?;
        }
        for id in lab.node_ids() {
            lab.start_node(id)?;
        }
        lab.start_router()?;
        lab.until_ready(limit).await?;
        bootstrap::register(&lab, options, limit).await?;
        bootstrap::until_bound(&lab, limit).await?;
        lab.write_lab_json()?;
        Ok(lab)
    }

    /// Lets the processes outlive this value.
    pub fn detach(mut self) {
        self.stop_on_drop = false;
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Ports and sizes.
    pub fn plan(&self) -> Plan {
        self.plan.lock().clone()
    }

    pub fn node_ids(&self) -> Vec<u64> {
        self.plan.lock().nodes.iter().map(|n| n.id).collect()
    }

    fn node(&self, id: u64) -> Result<NodePlan, LabError> {
        let plan = self.plan.lock();
        let found = plan.nodes.iter().find(|n| n.id == id).cloned();
        found.ok_or_else(|| LabError::Wrong(format!("the lab has no node {id}")))
    }

    /// Certificate files of anyone in the lab, for example `tenant-lakeside` on the plane of the clients.
    pub fn tls(&self, stem: &str, plane: Plane) -> TlsFiles {
        files::tls(&self.dir, stem, plane)
    }

    /// The CA of a plane, to issue more certificates (tests issue wrong ones).
    pub fn ca(&self, plane: Plane) -> Result<Ca, LabError> {
        Ok(Ca::load(&plane.name(), &files::pki_dir(&self.dir), plane.stem())?)
    }

    /// host:port of the public API.
    pub fn router_address(&self) -> String {
        plan::local(self.plan.lock().router_port)
    }

    /// host:port of metrics and health of the router.
    pub fn router_http(&self) -> String {
        plan::local(self.plan.lock().router_http_port)
    }

    /// host:port of metrics and health of a node.
    pub fn node_http(&self, id: u64) -> Result<String, LabError> {
        Ok(self.node(id)?.http())
    }

    /// host:port of the peer plane of a node.
    pub fn node_peer(&self, id: u64) -> Result<String, LabError> {
        Ok(self.node(id)?.peer())
    }

    /// The admin API of a node.
    pub fn admin(&self, id: u64) -> Result<Admin, LabError> {
        let address = self.node(id)?.admin();
        let files = self.tls(&format!("operator-{OPERATOR}"), Plane::Operators);
        Ok(Admin::connect(&address, &files, Some(id))?)
    }

    /// Where a node keeps its data.
    pub fn data_dir(&self, id: u64) -> PathBuf {
        match self.node(id) {
            Ok(node) => files::data_dir(&self.dir, &node),
            Err(_) => self.dir.join(node_name(id)).join("data"),
        }
    }

    /// Standard output and error of a process.
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.processes.log_path(name)
    }

    pub fn pid(&self, name: &str) -> Option<u32> {
        self.processes.pid(name)
    }

    /// Starts the router; nothing happens if it runs.
    pub fn start_router(&self) -> Result<(), LabError> {
        let config = format!("--config={}", self.dir.join("router.toml").display());
        self.processes.start(ROUTER_PROCESS, "carillon-router", &[config], &Placement::default())
    }

    /// Starts a node; nothing happens if it runs. Does not wait: see [`Lab::until_node_ready`].
    pub fn start_node(&self, id: u64) -> Result<(), LabError> {
        let node = self.node(id)?;
        let config =
            format!("--config={}", self.dir.join(format!("node-{id}")).join("config.toml").display());
        self.processes.start(&node_name(id), "carillon-node", &[config], &node.placement)?;
        if self.dir.join("lab.json").exists() {
            self.write_lab_json()?;
        }
        Ok(())
    }

    /// Changes the environment of a node; it counts from its next start.
    pub fn set_node_env(&self, id: u64, name: &str, value: Option<&str>) -> Result<(), LabError> {
        let mut plan = self.plan.lock();
        let node = plan.nodes.iter_mut().find(|n| n.id == id);
        let node = node.ok_or_else(|| LabError::Wrong(format!("the lab has no node {id}")))?;
        match value {
            Some(value) => drop(node.placement.env.insert(name.to_owned(), value.to_owned())),
            None => drop(node.placement.env.remove(name)),
        }
        plan.save(&self.dir)
    }

    /// SIGSTOP: the node stands still and its clocks go on.
    pub fn pause_node(&self, id: u64) -> Result<(), LabError> {
        self.node(id)?;
        self.processes.pause(&node_name(id))
    }

    /// SIGCONT.
    pub fn resume_node(&self, id: u64) -> Result<(), LabError> {
        self.node(id)?;
        self.processes.resume(&node_name(id))
    }

    pub fn node_state(&self, id: u64) -> ProcessState {
        self.processes.state(&node_name(id))
    }

    /// SIGKILL: what a crash is like.
    pub fn kill_node(&self, id: u64) -> Result<(), LabError> {
        self.node(id)?;
        self.kill(&node_name(id))
    }

    /// SIGKILL for any process of the lab; an error if it does not run.
    pub fn kill(&self, name: &str) -> Result<(), LabError> {
        if self.processes.kill(name)? {
            Ok(())
        } else {
            Err(LabError::Wrong(format!("{name} is not running")))
        }
    }

    /// SIGTERM, and SIGKILL when it takes too long.
    pub fn stop_node(&self, id: u64) -> Result<(), LabError> {
        self.node(id)?;
        self.processes.stop(&node_name(id), STOP_LIMIT)?;
        Ok(())
    }

    /// SIGTERM for the router.
    pub fn stop_router(&self) -> Result<(), LabError> {
        self.processes.stop(ROUTER_PROCESS, STOP_LIMIT)?;
        Ok(())
    }

    /// Stops everything, the router first. Returns how many processes ran.
    pub fn down(&self) -> Result<usize, LabError> {
        let nodes: Vec<String> = self.node_ids().into_iter().map(node_name).collect();
        let mut stopped = usize::from(self.processes.stop(ROUTER_PROCESS, STOP_LIMIT)?);
        // Together: a node that is alone would spend its time electing.
        stopped += self.processes.stop_all(&nodes, STOP_LIMIT)?;
        stopped += usize::from(self.processes.stop(SMSC, STOP_LIMIT)?);
        stopped += usize::from(self.processes.stop(SMSC_HTTP, STOP_LIMIT)?);
        Ok(stopped)
    }

    /// Waits until simulator, nodes and router say that they are ready.
    pub async fn until_ready(&self, limit: Duration) -> Result<(), LabError> {
        ready::wait(&self.processes, SMSC, &self.smsc_http(), "/readyz", limit).await?;
        if self.plan().with_rest {
            ready::wait(&self.processes, SMSC_HTTP, &self.smsc_http_http(), "/readyz", limit).await?;
        }
        for id in self.node_ids() {
            self.until_node_ready(id, limit).await?;
        }
        ready::wait(&self.processes, ROUTER_PROCESS, &self.router_http(), "/readyz", limit).await
    }

    pub async fn until_node_ready(&self, id: u64, limit: Duration) -> Result<(), LabError> {
        ready::wait(&self.processes, &node_name(id), &self.node_http(id)?, "/readyz", limit).await
    }

    pub async fn until_router_ready(&self, limit: Duration) -> Result<(), LabError> {
        ready::wait(&self.processes, ROUTER_PROCESS, &self.router_http(), "/readyz", limit).await
    }

    /// What runs and what is ready.
    pub async fn status(&self) -> Result<Vec<Member>, LabError> {
        let mut planned = vec![(SMSC.to_owned(), self.smsc_http(), "/readyz")];
        if self.plan().with_rest {
            planned.push((SMSC_HTTP.to_owned(), self.smsc_http_http(), "/readyz"));
        }
        for id in self.node_ids() {
            planned.push((node_name(id), self.node_http(id)?, "/readyz"));
        }
        planned.push((ROUTER_PROCESS.to_owned(), self.router_http(), "/readyz"));
        let mut members = Vec::with_capacity(planned.len());
        for (name, address, path) in planned {
            let state = self.processes.state(&name);
            let (ready, detail) = match state {
                ProcessState::Running => match ready::probe(&address, path).await {
                    Ok(()) => (true, address),
                    Err(reason) => (false, reason),
                },
                _ => (false, String::new()),
            };
            members.push(Member { pid: self.processes.pid(&name), name, state, ready, detail });
        }
        Ok(members)
    }

    fn read(&self, file: &str) -> Result<String, LabError> {
        Ok(fs_err::read_to_string(self.dir.join(file))?)
    }

    /// The file that the load harness reads.
    fn write_lab_json(&self) -> Result<(), LabError> {
        let plan = self.plan();
        let nodes: Vec<_> = plan
            .nodes
            .iter()
            .map(|n| {
                serde_json::json!({
                    "id": n.id, "http": n.http(), "admin": n.admin(),
                    "pid": self.pid(&node_name(n.id)).unwrap_or(0),
                })
            })
            .collect();
        let stem = |name: &str, ext: &str| format!("pki/{name}.{ext}");
        let (tenant, operator) = (format!("tenant-{TENANT}"), format!("operator-{OPERATOR}"));
        let json = serde_json::json!({
            "cluster_id": CLUSTER,
            "router": plan::local(plan.router_port), "router_http": plan::local(plan.router_http_port),
            "ca": stem(Plane::Clients.stem(), "pem"),
            "tenant_cert": stem(&tenant, "pem"), "tenant_key": stem(&tenant, "key"),
            "operators_ca": stem(Plane::Operators.stem(), "pem"),
            "operator_cert": stem(&operator, "pem"), "operator_key": stem(&operator, "key"),
            "smsc": plan.smsc(), "smsc_http": plan::local(plan.smsc_http_port),
            "smsc_http_http": plan.with_rest.then(|| plan::local(plan.rest_http_port)),
            "lane_limit": plan.lane_limit,
            "router_pid": self.pid(ROUTER_PROCESS).unwrap_or(0), "smsc_pid": self.pid(SMSC).unwrap_or(0),
            "nodes": nodes,
        });
        let text = serde_json::to_vec_pretty(&json).map_err(|e| LabError::Wrong(e.to_string()))?;
        // A reader must never see half of it.
        let (path, new) = (self.dir.join("lab.json"), self.dir.join("lab.json.new"));
        fs_err::write(&new, text)?;
        Ok(fs_err::rename(new, path)?)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.stop_on_drop {
            self.processes.kill_started();
        }
    }
}

/// The process name of a node.
pub fn node_name(id: u64) -> String {
    format!("node-{id}")
}
