//! What a lab is made with and keeps: whoever asks an old one for something else is told so, instead of getting the old one in silence.
use super::plan::{FILE, Plan};
use super::{LabError, node_name};
use std::path::Path;

/// What was asked for, as far as it was; `None` and `false` ask for nothing.
#[derive(Debug, Clone, Default)]
pub struct Fixed {
    pub nodes: Option<u64>,
    pub partitions: Option<u32>,
    pub log_filter: Option<String>,
    /// Tables at the end of the nodes' configuration.
    pub node_config: Option<String>,
    pub with_http_carrier: bool,
    pub carrier_tls: bool,
}

impl Fixed {
    /// An error if there is a lab that is made differently.
    pub fn check(&self, dir: &Path) -> Result<(), LabError> {
        if !dir.join(FILE).exists() {
            return Ok(());
        }
        let plan = Plan::load(dir)?;
        let first = plan.nodes.first().map(|node| dir.join(node_name(node.id)).join("config.toml"));
        let config = first.and_then(|path| fs_err::read_to_string(path).ok()).unwrap_or_default();
        let has_filter = |filter: &String| {
            let table = config.parse::<toml::Table>().unwrap_or_default();
            table.get("log_filter").and_then(toml::Value::as_str) == Some(filter.as_str())
        };
        let nodes = plan.nodes.len() as u64;
        let rules = [
            (
                self.nodes.is_none_or(|wanted| wanted == nodes),
                format!("--nodes: it has {nodes}; `lab add-node` adds one"),
            ),
            (
                self.partitions.is_none_or(|wanted| wanted == plan.partitions),
                format!("--partitions: it has {}", plan.partitions),
            ),
            (
                self.log_filter.as_ref().is_none_or(has_filter),
                "--log-filter: `carillonctl log-filter` changes it while a node runs".to_owned(),
            ),
            (
                self.node_config.as_ref().is_none_or(|wanted| config.ends_with(wanted)),
                "--node-config: its nodes have another one".to_owned(),
            ),
            (!self.with_http_carrier || plan.with_rest, "--with-http-carrier: it has none".to_owned()),
            (!self.carrier_tls || plan.carrier_tls, "--carrier-tls: it has none".to_owned()),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, what)) => Err(LabError::Wrong(format!(
                "the lab in {} exists and keeps what it was made with. {what}. Leave the flag out, or use another --dir",
                dir.display()
            ))),
        }
    }
}
