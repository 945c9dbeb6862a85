//! Which cluster this data directory belongs to: written when a node first starts, read at every start after.
//!
//! Invariants: the file is written (synced, renamed into place) before the raft log is made, so a directory with a log always
//! has one. The address book in it is only where a restart begins: the meta group has the truth.
use crate::failpoints;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

const FILE: &str = "membership.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    pub cluster_id: String,
    pub node_id: u64,
    pub partitions: u32,
    /// The nodes that the cluster was created with; empty on a node that joined later.
    pub founders: Vec<u64>,
    /// Addresses of the peer planes as last known.
    pub nodes: BTreeMap<u64, String>,
}

impl Membership {
    pub fn load(data_dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = data_dir.join(FILE);
        match fs_err::read(&path) {
            Ok(bytes) => {
                let found = serde_json::from_slice(&bytes);
                Ok(Some(found.with_context(|| {
                    let remedy = "put the node back in its place with `carillonctl node rebuild` (deploy/runbooks/damage-and-repair.md)";
                    format!("{} is damaged; {remedy}", path.display())
                })?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let has_data = data_dir.join("log").exists() || data_dir.join("state").exists();
                anyhow::ensure!(
                    !has_data,
                    "{} has data but no {FILE}: it belongs to an older version or was tampered with",
                    data_dir.display()
                );
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    pub fn save(&self, data_dir: &Path) -> anyhow::Result<()> {
        fs_err::create_dir_all(data_dir)?;
        failpoints::hit("membership::before_save");
        let temporary = data_dir.join(format!("{FILE}.new"));
        let mut file = fs_err::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs_err::rename(&temporary, data_dir.join(FILE))?;
        fs_err::File::open(data_dir)?.sync_all()?;
        failpoints::hit("membership::after_save");
        Ok(())
    }

    pub fn members(&self) -> Vec<(u64, String)> {
        self.nodes.iter().map(|(id, address)| (*id, address.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_written_and_data_without_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Membership::load(dir.path()).unwrap(), None);
        let member = Membership {
            cluster_id: "lab".into(),
            node_id: 4,
            partitions: 16,
            founders: vec![],
            nodes: BTreeMap::from([(1, "n1:7000".to_owned())]),
        };
        member.save(dir.path()).unwrap();
        assert_eq!(Membership::load(dir.path()).unwrap(), Some(member));
        let other = tempfile::tempdir().unwrap();
        fs_err::create_dir(other.path().join("log")).unwrap();
        assert!(Membership::load(other.path()).unwrap_err().to_string().contains("no membership.json"));
    }
}
