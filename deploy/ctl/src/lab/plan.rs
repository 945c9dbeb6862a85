//! The plan of a lab: ports and sizes, chosen once and kept in `plan.json`.
//!
//! Ports are below the range from which the kernel takes ports for outgoing connections: a node that is killed must
//! find its port free again.
use super::{LabError, LabOptions, Placement};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

/// Name of the cluster in certificates.
pub const CLUSTER: &str = "lab";
/// The tenant of the sample day.
pub const TENANT: &str = "lakeside";
/// A second tenant, to try what one may not see of the other.
pub const OTHER_TENANT: &str = "otherco";
pub const OPERATOR: &str = "lab";
pub const ROUTER: &str = "r1";
/// The account at the second carrier simulator.
pub const REST_ACCOUNT_SID: &str = "AC0123456789abcdef0123456789abcdef";
/// The account at the carrier simulator.
pub(super) const SYSTEM_ID: &str = "carillon";
pub(super) const FILE: &str = "plan.json";

const PORTS: std::ops::Range<u16> = 10_240..32_000;
const TRIES: usize = 10_000;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodePlan {
    pub id: u64,
    pub peer_port: u16,
    pub admin_port: u16,
    pub http_port: u16,
    /// Callbacks of carriers; 0 in labs that are older than callbacks.
    #[serde(default)]
    pub callback_port: u16,
    #[serde(default)]
    pub placement: Placement,
}

impl NodePlan {
    /// host:port of the peer plane.
    pub fn peer(&self) -> String {
        self.placement.at(self.peer_port)
    }

    /// host:port of the operators' plane.
    pub fn admin(&self) -> String {
        self.placement.at(self.admin_port)
    }

    /// host:port of the listener of callbacks.
    pub fn callbacks(&self) -> String {
        self.placement.at(self.callback_port)
    }

    /// host:port of metrics and health.
    pub fn http(&self) -> String {
        self.placement.at(self.http_port)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub partitions: u32,
    pub lane_limit: u32,
    pub nodes: Vec<NodePlan>,
    pub router_port: u16,
    pub router_http_port: u16,
    pub smsc_port: u16,
    pub smsc_http_port: u16,
    /// Where the carrier simulator listens for the nodes; loopback if not set.
    #[serde(default)]
    pub smsc_address: Option<Ipv4Addr>,
    /// The second carrier simulator, which speaks Twilio's API; 0 in labs that are older than it.
    #[serde(default)]
    pub rest_port: u16,
    #[serde(default)]
    pub rest_http_port: u16,
    /// It is part of the lab.
    #[serde(default)]
    pub with_rest: bool,
    /// The nodes talk to the carrier simulator over TLS.
    #[serde(default)]
    pub carrier_tls: bool,
}

impl Plan {
    pub(super) fn new(options: &LabOptions) -> Result<Self, LabError> {
        if !matches!(options.nodes, 1 | 3 | 5 | 7) {
            return Err(LabError::Wrong("nodes must be 1, 3, 5 or 7".to_owned()));
        }
        let mut ports = free_ports(6 + 4 * options.nodes as usize)?.into_iter();
        let mut port = || ports.next().ok_or_else(|| LabError::Wrong("no free port".to_owned()));
        let mut nodes = Vec::new();
        for id in 1..=options.nodes {
            let placement = options.placements.get(id as usize - 1).cloned().unwrap_or_default();
            nodes.push(NodePlan {
                id,
                peer_port: port()?,
                admin_port: port()?,
                http_port: port()?,
                callback_port: port()?,
                placement,
            });
        }
        Ok(Self {
            partitions: options.partitions,
            lane_limit: options.lane_limit,
            nodes,
            router_port: port()?,
            router_http_port: port()?,
            smsc_port: port()?,
            smsc_http_port: port()?,
            smsc_address: options.smsc_address,
            rest_port: port()?,
            rest_http_port: port()?,
            with_rest: options.with_rest,
            carrier_tls: options.carrier_tls,
        })
    }

    /// host:port of the carrier simulator, as the nodes reach it.
    pub fn smsc(&self) -> String {
        format!("{}:{}", self.smsc_address.unwrap_or(Ipv4Addr::LOCALHOST), self.smsc_port)
    }

    pub(super) fn load(dir: &Path) -> Result<Self, LabError> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Err(LabError::NoLab(dir.display().to_string()));
        }
        let wrong =
            |e: serde_json::Error| LabError::File { path: path.display().to_string(), reason: e.to_string() };
        serde_json::from_slice(&fs_err::read(&path)?).map_err(wrong)
    }

    pub(super) fn save(&self, dir: &Path) -> Result<(), LabError> {
        let text = serde_json::to_vec_pretty(self).map_err(|e| LabError::Wrong(e.to_string()))?;
        Ok(fs_err::write(dir.join(FILE), text)?)
    }
}

/// host:port on loopback.
pub(super) fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// Different ports that nobody listens on now. All are held until the last is found.
pub(super) fn free_ports(count: usize) -> Result<Vec<u16>, LabError> {
    let mut random = rand::rng();
    let mut held = Vec::with_capacity(count);
    for _ in 0..TRIES {
        if held.len() == count {
            break;
        }
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, random.random_range(PORTS))) {
            held.push(listener);
        }
    }
    if held.len() < count {
        return Err(LabError::Wrong(format!("found only {} free ports of {count}", held.len())));
    }
    Ok(held.iter().map(|l| l.local_addr().map(|a| a.port())).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_different_and_an_even_number_of_nodes_is_refused() {
        let plan = Plan::new(&LabOptions::default()).unwrap();
        let mut ports: Vec<u16> = plan
            .nodes
            .iter()
            .flat_map(|n| [n.peer_port, n.admin_port, n.http_port, n.callback_port])
            .collect();
        ports.extend([plan.router_port, plan.router_http_port, plan.smsc_port, plan.smsc_http_port]);
        ports.extend([plan.rest_port, plan.rest_http_port]);
        let count = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!((count, ports.len()), (18, 18));
        assert!(ports.iter().all(|p| PORTS.contains(p)));
        assert!(Plan::new(&LabOptions { nodes: 2, ..LabOptions::default() }).is_err());
    }
}
