//! Where and how one node of a lab runs, when it is not simply on loopback: fault suites give each node a network
//! namespace, a disk and a clock of its own.
//!
//! Invariant: the prefix must end in an `exec` of the program (as `nsenter` and `env` do), so that the recorded pid is
//! the program's. Does not: make namespaces, disks or clocks; who asks for a placement owns them.
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// The default is a node on loopback with its data in the directory of the lab.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Placement {
    /// The address that it listens on and under which the others reach it.
    pub address: Option<Ipv4Addr>,
    /// Where its data lies.
    pub data_dir: Option<PathBuf>,
    /// What comes before the program, for example `nsenter --net=/run/netns/a`.
    pub command_prefix: Vec<String>,
    /// Environment of the program, besides that of whoever starts it.
    pub env: BTreeMap<String, String>,
}

impl Placement {
    pub fn address(&self) -> Ipv4Addr {
        self.address.unwrap_or(Ipv4Addr::LOCALHOST)
    }

    pub(super) fn at(&self, port: u16) -> String {
        format!("{}:{port}", self.address())
    }
}
