//! Repairs a node whose data cannot be used, from its peers: it is given up, and a new node takes its place.
//!
//! Invariants: nothing is deleted, the data directory is set aside; it is touched only after the cluster has given the node up, which it
//! refuses while some partition has no leader without it. The old identity never comes back (replica ids are never used twice).
//! Done means that every partition has as many replicas as before, all of them up.
use super::{Lab, LabError, node_name};
use crate::admin::{Admin, AdminError};
use crate::health::{Asked, Health, ask};
use carillon_proto::admin::{GetStatusResponse, NodeAction};
use carillon_proto::internal::{NodeStatus, ReplicaRole};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const POLL: Duration = Duration::from_millis(250);
/// The meta leader has to notice that the node is gone, or is being elected.
const GIVE_UP_LIMIT: Duration = Duration::from_secs(60);

/// What was done.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Rebuilt {
    /// Takes the place of the old node.
    pub node: u64,
    /// Where the old data is now.
    pub set_aside: PathBuf,
}

/// Gives a node up, once the cluster sees that it is gone.
pub async fn give_up(leader: impl AsyncFn() -> Result<Admin, LabError>, node: u64) -> Result<(), LabError> {
    let end = Instant::now() + GIVE_UP_LIMIT;
    loop {
        let given_up = match leader().await {
            Ok(admin) => admin.set_node(node, NodeAction::Replace).await.map_err(LabError::from),
            Err(error) => Err(error),
        };
        match given_up {
            Ok(()) => return Ok(()),
            Err(LabError::Admin(error)) if may_pass(&error, node) && Instant::now() < end => {
                tokio::time::sleep(POLL).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// A stopped node is silent for a moment before anybody says so, and its partitions elect meanwhile.
fn may_pass(error: &AdminError, node: u64) -> bool {
    let passing =
        [format!("node {node} answers"), "has no leader now".to_owned(), "does not lead".to_owned()];
    match error {
        AdminError::Refused(status) => passing.iter().any(|text| status.message().contains(text)),
        error => error.is_transient(),
    }
}

/// Voters and learners of each partition that stay.
fn sizes(status: &GetStatusResponse) -> BTreeMap<u32, usize> {
    let staying = |role: ReplicaRole| role != ReplicaRole::Leaving;
    let rows = status.map.iter();
    rows.map(|row| (row.partition, row.replicas.iter().filter(|r| staying(r.role())).count())).collect()
}

impl Lab {
    /// See the module documentation. `tell` hears of each step.
    pub async fn rebuild_node(
        &self,
        node: u64,
        log_filter: &str,
        limit: Duration,
        tell: &(dyn Fn(&str) + Sync),
    ) -> Result<Rebuilt, LabError> {
        self.node(node)?;
        let before = sizes(&self.newest_without(node).await?);
        self.stop_node(node)?;
        tell(&format!("node {node} is stopped"));
        give_up(async || self.meta_leader_without(node).await, node).await?;
        tell(&format!("node {node} is given up: its identity never comes back"));
        let set_aside = self.set_aside(node)?;
        tell(&format!("its data is in {}", set_aside.display()));
        let through = self.meta_leader_id_without(node).await?;
        let new = self.add_node_through(through, log_filter).await?;
        self.until_node_ready(new, limit).await?;
        tell(&format!("node {new} has joined; waiting until it has every replica"));
        self.until_whole(node, new, &before, limit).await?;
        self.remove_node(node)?;
        Ok(Rebuilt { node: new, set_aside })
    }

    fn set_aside(&self, node: u64) -> Result<PathBuf, LabError> {
        let data = self.data_dir(node);
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let aside = data.with_extension(format!("damaged-{seconds}"));
        fs_err::rename(&data, &aside)?;
        Ok(aside)
    }

    /// What the others say, the newest first.
    async fn statuses_without(&self, node: u64) -> Result<(Vec<GetStatusResponse>, Health), LabError> {
        let others = self.node_ids().into_iter().filter(|id| *id != node);
        let asked = others.map(|id| -> Result<Asked, LabError> {
            Ok(Asked { node_id: Some(id), name: node_name(id), admin: self.admin(id)? })
        });
        let answers = ask(asked.collect::<Result<_, LabError>>()?).await?;
        let health = Health::of(&answers);
        let mut told: Vec<_> = answers.into_iter().filter_map(|answer| answer.status.ok()).collect();
        told.sort_by_key(|s| std::cmp::Reverse(s.map.iter().map(|p| p.epoch).sum::<u64>()));
        Ok((told, health))
    }

    async fn newest_without(&self, node: u64) -> Result<GetStatusResponse, LabError> {
        let (told, _) = self.statuses_without(node).await?;
        told.into_iter().next().ok_or_else(|| {
            LabError::Wrong(format!("no other node answers, so there is nothing to rebuild node {node} from"))
        })
    }

    async fn meta_leader_id_without(&self, node: u64) -> Result<u64, LabError> {
        let (told, _) = self.statuses_without(node).await?;
        let known = told.iter().flat_map(|s| &s.partitions).filter(|p| p.partition == 0 && p.leader != 0);
        let newest = known.filter(|p| p.leader != node).max_by_key(|p| p.term).map(|p| p.leader);
        newest.ok_or_else(|| {
            LabError::Wrong("the meta group has no leader: bring missing nodes back first".to_owned())
        })
    }

    async fn meta_leader_without(&self, node: u64) -> Result<Admin, LabError> {
        let end = Instant::now() + GIVE_UP_LIMIT;
        loop {
            match self.meta_leader_id_without(node).await {
                Ok(leader) => return self.admin(leader),
                Err(error) if Instant::now() >= end => return Err(error),
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Nothing refers to the old node, and nothing is missing.
    async fn until_whole(
        &self,
        old: u64,
        new: u64,
        before: &BTreeMap<u32, usize>,
        limit: Duration,
    ) -> Result<(), LabError> {
        let began = Instant::now();
        loop {
            let (told, health) = self.statuses_without(old).await?;
            let lacks = match told.first() {
                None => "no node answers".to_owned(),
                Some(newest) => match lacks(newest, &health, (old, new), before) {
                    None => return Ok(()),
                    Some(reason) => reason,
                },
            };
            if began.elapsed() >= limit {
                let after_s = limit.as_secs();
                return Err(LabError::Wrong(format!(
                    "node {new} has taken the place of node {old}, but not everything is there after {after_s} s: {lacks}; \
                     it goes on by itself, `carillonctl status` shows how far it is"
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// What is still missing.
fn lacks(
    newest: &GetStatusResponse,
    health: &Health,
    (old, new): (u64, u64),
    before: &BTreeMap<u32, usize>,
) -> Option<String> {
    let status = |node: u64| newest.nodes.iter().find(|n| n.node_id == node).map(|n| n.status());
    if !matches!(status(old), None | Some(NodeStatus::Removed)) {
        return Some(format!("node {old} still has a place in the map"));
    }
    if status(new) != Some(NodeStatus::Active) {
        return Some(format!("node {new} is not active yet"));
    }
    let now = sizes(newest);
    let short = before.iter().find(|(partition, count)| now.get(partition).is_none_or(|have| have < count));
    if let Some((partition, count)) = short {
        return Some(format!("partition {partition} does not have its {count} replicas yet"));
    }
    if let Some(group) = health.partitions.iter().find(|p| p.replicas_up < p.replicas || p.leader == 0) {
        return Some(format!(
            "partition {}: {} of {} replicas",
            group.partition, group.replicas_up, group.replicas
        ));
    }
    health.problems.first().cloned()
}
