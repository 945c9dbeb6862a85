//! `carillonctl` on a lab: kills and starts nodes, and says who leads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::Command;
use tokio::time::Instant;

/// Leaders go back to their places a few seconds after a node is well.
const BALANCED_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(200);

/// `carillonctl` on one lab.
pub struct Ctl {
    program: PathBuf,
    lab: PathBuf,
}

impl Ctl {
    /// `program`: default is the one beside this program.
    pub fn new(program: Option<&Path>, lab: &Path) -> anyhow::Result<Self> {
        let program = match program {
            Some(path) => path.to_owned(),
            None => std::env::current_exe()?.with_file_name("carillonctl"),
        };
        Ok(Self { program, lab: lab.to_owned() })
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Stops the lab.
    pub async fn down(&self) -> anyhow::Result<()> {
        let (done, _) = self.call(&["lab", "down", "--dir"]).await?;
        anyhow::ensure!(done, "carillonctl lab down failed");
        Ok(())
    }

    async fn call(&self, arguments: &[&str]) -> anyhow::Result<(bool, Vec<u8>)> {
        let output = Command::new(&self.program).args(arguments).arg(&self.lab).kill_on_drop(true).output();
        let output = output.await.with_context(|| format!("cannot run {}", self.program.display()))?;
        Ok((output.status.success(), output.stdout))
    }

    pub async fn node(&self, verb: &str, node: u64) -> anyhow::Result<()> {
        let (done, _) = self.call(&["lab", verb, &node.to_string(), "--dir"]).await?;
        anyhow::ensure!(done, "carillonctl lab {verb} {node} failed");
        Ok(())
    }

    /// Leader by partition, without the meta group.
    pub async fn leaders(&self) -> anyhow::Result<BTreeMap<u32, u64>> {
        // Not healthy is an answer too.
        let (_, json) = self.call(&["--output", "json", "status", "--lab"]).await?;
        leaders_of(&json)
    }
}

pub fn leaders_of(json: &[u8]) -> anyhow::Result<BTreeMap<u32, u64>> {
    let value: serde_json::Value = serde_json::from_slice(json)?;
    let list = value["partitions"].as_array().context("the status lists no partitions")?;
    let pair =
        |p: &serde_json::Value| Some((u32::try_from(p["partition"].as_u64()?).ok()?, p["leader"].as_u64()?));
    Ok(list.iter().filter_map(pair).filter(|(partition, _)| *partition > 0).collect())
}

/// Waits until every node leads its share.
pub async fn balanced(ctl: &Ctl, nodes: usize) -> anyhow::Result<BTreeMap<u32, u64>> {
    let until = Instant::now() + BALANCED_LIMIT;
    loop {
        let leaders = ctl.leaders().await;
        if let Ok(leaders) = &leaders {
            let mut led = BTreeMap::<u64, usize>::new();
            leaders.values().for_each(|leader| *led.entry(*leader).or_default() += 1);
            let share = leaders.len() / nodes;
            if !led.contains_key(&0) && led.len() == nodes && led.values().all(|count| *count >= share) {
                return Ok(leaders.clone());
            }
        }
        anyhow::ensure!(
            Instant::now() < until,
            "leaders are not spread after {BALANCED_LIMIT:?}: {leaders:?}"
        );
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaders_are_read_from_the_status_without_the_meta_group() {
        let json = br#"{"partitions":[{"partition":0,"leader":2},{"partition":1,"leader":3},{"partition":2,"leader":0}]}"#;
        assert_eq!(leaders_of(json).unwrap(), BTreeMap::from([(1, 3), (2, 0)]));
        assert!(leaders_of(b"{}").is_err() && leaders_of(b"").is_err());
    }
}
