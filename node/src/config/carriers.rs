//! Knobs of what talks to carriers: contracts, trust, and the listener of their callbacks.
use carillon_proto::config::{self, ConfigError};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The table `[carriers]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Carriers {
    /// Directory with one TOML file for each contract that adds to the built-in ones or takes the place of one. Read again
    /// while the node runs. Default: none, only the built-in contracts.
    pub contracts_dir: Option<PathBuf>,
    /// CA (PEM) of carriers whose account names none. Default: none; public APIs are then trusted as the system trusts them.
    pub ca_file: Option<PathBuf>,
    /// Where carriers that report over HTTP call. Default: none.
    pub callbacks: Option<Callbacks>,
}

/// The listener of callbacks. It is the only one that the outside may reach, and best stands behind a proxy.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Callbacks {
    pub listen: SocketAddr,
    /// Certificate chain and key (PEM). They may be left out on a loopback address only.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// Public URL of this listener without a path, as carriers reach it: `/carriers/<name>` is added for accounts that name no
    /// callback URL of their own. With several nodes it best is a proxy's: a node that is gone takes no callbacks.
    #[serde(default)]
    pub public_url: Option<String>,
    /// Connections at a time. 1 to 10000, default 256.
    #[serde(default = "connections_max")]
    pub connections_max: usize,
}

fn connections_max() -> usize {
    256
}

impl Carriers {
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Some(callbacks) = &self.callbacks else { return Ok(()) };
        config::first_broken(&[
            (
                callbacks.cert.is_some() == callbacks.key.is_some(),
                "carriers.callbacks.key",
                "give cert and key, or neither",
            ),
            (
                callbacks.cert.is_some() || callbacks.listen.ip().is_loopback(),
                "carriers.callbacks.cert",
                "is needed unless the address is loopback",
            ),
            (
                (1..=10_000).contains(&callbacks.connections_max),
                "carriers.callbacks.connections_max",
                "must be 1 to 10000",
            ),
        ])
    }
}
