//! Labs that grow and shrink: a node more with a token, a node without its disk, a node that pretends to be older.
use super::plan::{NodePlan, free_ports};
use super::{Lab, LabError, Placement, files, node_name};
use crate::admin::retry;
use std::path::PathBuf;
use std::time::Duration;

/// The cluster may be electing.
const TOKEN_LIMIT: Duration = Duration::from_secs(30);

impl Lab {
    /// Starts one more node, which joins with a token. Returns its id; does not wait: see [`Lab::until_node_ready`].
    pub async fn add_node(&self, log_filter: &str) -> Result<u64, LabError> {
        let first =
            *self.node_ids().first().ok_or_else(|| LabError::Wrong("the lab has no node".to_owned()))?;
        self.add_node_through(first, log_filter).await
    }

    /// The same, with a token of the given node.
    pub async fn add_node_through(&self, through: u64, log_filter: &str) -> Result<u64, LabError> {
        let admin = self.admin(through)?;
        let token = retry(TOKEN_LIMIT, || admin.create_token(0)).await?;
        let mut ports = free_ports(4)?.into_iter();
        let mut port = || ports.next().ok_or_else(|| LabError::Wrong("no free port".to_owned()));
        let node = NodePlan {
            id: token.node_id,
            peer_port: port()?,
            admin_port: port()?,
            http_port: port()?,
            callback_port: port()?,
            placement: Placement::default(),
        };
        {
            let mut plan = self.plan.lock();
            plan.nodes.push(node.clone());
            files::write_joining(&self.dir, &plan, &node, log_filter, token.peers, &token.token)?;
            plan.save(&self.dir)?;
        }
        self.start_node(node.id)?;
        Ok(node.id)
    }

    /// Stops a node that left the cluster and forgets it; its directory stays.
    pub fn remove_node(&self, id: u64) -> Result<(), LabError> {
        self.stop_node(id)?;
        let mut plan = self.plan.lock();
        plan.nodes.retain(|n| n.id != id);
        plan.save(&self.dir)?;
        drop(plan);
        if self.dir.join("lab.json").exists() { self.write_lab_json() } else { Ok(()) }
    }

    /// What losing the disk is like. The node must not run.
    pub fn wipe_node(&self, id: u64) -> Result<(), LabError> {
        if self.processes.state(&node_name(id)) == super::ProcessState::Running {
            return Err(LabError::Wrong(format!("node {id} runs; kill it first")));
        }
        fs_err::remove_dir_all(self.data_dir(id))?;
        Ok(fs_err::create_dir(self.data_dir(id))?)
    }

    /// Makes a node pretend, from its next start on, that it understands this feature level only.
    pub fn set_feature_level(&self, id: u64, level: Option<u32>) -> Result<(), LabError> {
        let path = self.config_path(id);
        let wrong = |e: &dyn std::fmt::Display| LabError::File {
            path: path.display().to_string(),
            reason: e.to_string(),
        };
        let mut table: toml::Table =
            fs_err::read_to_string(&path)?.parse().map_err(|e: toml::de::Error| wrong(&e))?;
        match level {
            Some(level) => table.insert("feature_level_max".to_owned(), i64::from(level).into()),
            None => table.remove("feature_level_max"),
        };
        Ok(fs_err::write(&path, toml::to_string(&table).map_err(|e| wrong(&e))?)?)
    }

    fn config_path(&self, id: u64) -> PathBuf {
        self.dir.join(node_name(id)).join("config.toml")
    }
}
