//! The state of a cluster out of what its nodes say: who answers, who leads, and what an operator must look at.
//!
//! Owns: [`ask`], which asks every node at the same time, and [`Health::of`], a pure function of the answers.
//! Invariant: "healthy" is said only when every present member was asked and answers, or is heard by those that answer, and every
//! group has a leader that says so itself or could not be asked.
use crate::admin::{Admin, AdminError};
use carillon_proto::admin::{GetStatusResponse, PartitionStatus};
use carillon_proto::internal::{MetaNode, NodeStatus};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// A node that has not answered by then counts as silent; a stopped process keeps its connections open.
const PATIENCE: Duration = Duration::from_secs(3);

/// Someone to ask.
pub struct Asked {
    /// If it is known before the answer.
    pub node_id: Option<u64>,
    /// As the operator knows it.
    pub name: String,
    pub admin: Admin,
}

/// What came back.
pub struct Answer {
    pub node_id: Option<u64>,
    pub name: String,
    /// `Err`: why there is no answer.
    pub status: Result<GetStatusResponse, String>,
}

/// Asks everybody at the same time. A refusal ends it: it is the operator's certificate that is wrong, not the cluster.
pub async fn ask(asked: Vec<Asked>) -> Result<Vec<Answer>, AdminError> {
    let calls = asked.into_iter().map(|Asked { node_id, name, admin }| async move {
        let status = match tokio::time::timeout(PATIENCE, admin.status()).await {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(error @ (AdminError::Refused(_) | AdminError::Tls(_)))) => return Err(error),
            Ok(Err(AdminError::Failed { message, .. } | AdminError::Untrusted { message, .. })) => {
                Err(message)
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
        };
        Ok(Answer { node_id, name, status })
    });
    futures::future::join_all(calls).await.into_iter().collect()
}

/// Whether a node is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "presence", content = "reason", rename_all = "snake_case")]
pub enum Presence {
    Answers,
    /// It was asked, or others miss it.
    Silent(String),
    /// Nobody knows its operators' address, and nobody misses it.
    NotAsked,
    /// Removed or given up; it is not meant to be there.
    Gone,
}

/// One node.
#[derive(Debug, Clone, Serialize)]
pub struct NodeHealth {
    pub node_id: u64,
    pub peer_address: String,
    pub status: String,
    #[serde(flatten)]
    pub presence: Presence,
    pub version: String,
    /// Partitions with a replica there, by the map; without the meta group.
    pub replicas: usize,
    /// Partitions led; without the meta group.
    pub leads: usize,
    pub storage_near_full: bool,
}

/// One group; partition 0 is the meta group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupHealth {
    pub partition: u32,
    /// 0 = none.
    pub leader: u64,
    pub term: u64,
    /// The furthest of those that answer.
    pub commit: u64,
    pub applied: u64,
    pub replicas: usize,
    /// On nodes that answer or are not missed, and not fenced.
    pub replicas_up: usize,
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct Health {
    pub cluster_id: String,
    pub healthy: bool,
    /// For an operator, one line each; empty when healthy.
    pub problems: Vec<String>,
    pub nodes: Vec<NodeHealth>,
    pub partitions: Vec<GroupHealth>,
}

fn is_member(node: &MetaNode) -> bool {
    !matches!(node.status(), NodeStatus::Removed | NodeStatus::Dead)
}

impl Health {
    pub fn of(answers: &[Answer]) -> Self {
        let mut told: Vec<&GetStatusResponse> =
            answers.iter().filter_map(|a| a.status.as_ref().ok()).collect();
        // The newest view first.
        let age =
            |s: &GetStatusResponse| (s.map.len(), s.map.iter().map(|p| p.epoch).sum::<u64>(), s.nodes.len());
        told.sort_by_key(|s| std::cmp::Reverse(age(s)));
        let newest = told.first().copied().cloned().unwrap_or_default();
        let mut problems = Vec::new();
        if told.is_empty() {
            problems.push("no node answers".to_owned());
        } else if newest.cluster_id.is_empty() {
            problems.push("the cluster is not created yet".to_owned());
        }
        let presence = presence(&newest, answers, &told);
        let partitions = groups(&newest, &told, &presence, &mut problems);
        let nodes = nodes(&newest, &told, &presence, &partitions);
        missing(&presence, answers, &mut problems);
        for status in &told {
            of_one_node(status, &mut problems);
        }
        Self { cluster_id: newest.cluster_id, healthy: problems.is_empty(), problems, nodes, partitions }
    }
}

fn presence(
    newest: &GetStatusResponse,
    answers: &[Answer],
    told: &[&GetStatusResponse],
) -> BTreeMap<u64, Presence> {
    let mut presence = BTreeMap::new();
    for node in &newest.nodes {
        let id = node.node_id;
        let missed = told.iter().find(|s| s.silent_nodes.contains(&id)).map(|s| s.node_id);
        let asked = answers.iter().find(|a| a.node_id == Some(id)).map(|a| &a.status);
        let found = match (told.iter().any(|s| s.node_id == id), asked, missed) {
            (true, ..) => Presence::Answers,
            _ if !is_member(node) => Presence::Gone,
            (false, Some(Err(reason)), _) => Presence::Silent(reason.clone()),
            (false, _, Some(by)) => {
                Presence::Silent(format!("node {by}, which leads groups of it, hears nothing of it"))
            }
            (false, ..) => Presence::NotAsked,
        };
        presence.insert(id, found);
    }
    // Nobody told us who belongs to the cluster: those that were asked.
    for answer in answers.iter().filter(|_| newest.nodes.is_empty()) {
        if let (Some(id), Err(reason)) = (answer.node_id, &answer.status) {
            presence.insert(id, Presence::Silent(reason.clone()));
        }
    }
    presence
}

fn missing(presence: &BTreeMap<u64, Presence>, answers: &[Answer], problems: &mut Vec<String>) {
    for (id, found) in presence {
        if let Presence::Silent(reason) = found {
            problems.push(format!("node {id} does not answer: {reason}"));
        }
    }
    for answer in answers.iter().filter(|a| a.node_id.is_none()) {
        if let Err(reason) = &answer.status {
            problems.push(format!("{} does not answer: {reason}", answer.name));
        }
    }
}

/// Who leads, by the newest term that anybody knows; a leader that is silent leads nothing.
fn groups(
    newest: &GetStatusResponse,
    told: &[&GetStatusResponse],
    presence: &BTreeMap<u64, Presence>,
    problems: &mut Vec<String>,
) -> Vec<GroupHealth> {
    let mut list = Vec::new();
    for row in &newest.map {
        let seen: Vec<(u64, &PartitionStatus)> = told
            .iter()
            .flat_map(|s| s.partitions.iter().map(|p| (s.node_id, p)))
            .filter(|(_, p)| p.partition == row.partition)
            .collect();
        let led = seen.iter().filter(|(_, p)| p.leader != 0).max_by_key(|(_, p)| p.term);
        let (mut leader, term) = led.map_or((0, 0), |(_, p)| (p.leader, p.term));
        let itself = |node: u64| seen.iter().find(|(id, _)| *id == node);
        let name = if row.partition == 0 {
            "the meta group".to_owned()
        } else {
            format!("partition {}", row.partition)
        };
        match presence.get(&leader) {
            _ if leader == 0 => problems.push(format!("{name} has no leader")),
            Some(Presence::Silent(_)) => {
                problems.push(format!("{name} has no leader: node {leader}, which led it, does not answer"));
                leader = 0;
            }
            Some(Presence::Answers)
                if itself(leader).is_none_or(|(_, p)| p.leader != leader || p.term < term) =>
            {
                problems.push(format!(
                    "{name} has no leader: node {leader}, which led it, says that it does not"
                ));
                leader = 0;
            }
            _ => {}
        }
        let up = |node: u64| {
            let there = matches!(presence.get(&node), Some(Presence::Answers | Presence::NotAsked));
            there && itself(node).is_none_or(|(_, p)| p.blocked.is_empty())
        };
        list.push(GroupHealth {
            partition: row.partition,
            leader,
            term,
            commit: seen.iter().map(|(_, p)| p.commit).max().unwrap_or(0),
            applied: seen.iter().map(|(_, p)| p.applied).max().unwrap_or(0),
            replicas: row.replicas.len(),
            replicas_up: row.replicas.iter().filter(|r| up(r.node_id)).count(),
        });
    }
    list
}

fn nodes(
    newest: &GetStatusResponse,
    told: &[&GetStatusResponse],
    presence: &BTreeMap<u64, Presence>,
    partitions: &[GroupHealth],
) -> Vec<NodeHealth> {
    let data = || newest.map.iter().filter(|p| p.partition != 0);
    let health = |(id, presence): (&u64, &Presence)| {
        let record = newest.nodes.iter().find(|n| n.node_id == *id);
        let own = told.iter().find(|s| s.node_id == *id);
        let status = record.map_or("unknown".to_owned(), |n| {
            n.status().as_str_name().trim_start_matches("NODE_STATUS_").to_ascii_lowercase()
        });
        NodeHealth {
            node_id: *id,
            peer_address: record.map(|n| n.peer_address.clone()).unwrap_or_default(),
            status,
            presence: presence.clone(),
            version: own.map(|s| s.version.clone()).unwrap_or_default(),
            replicas: data().flat_map(|p| &p.replicas).filter(|r| r.node_id == *id).count(),
            leads: partitions.iter().filter(|p| p.partition != 0 && p.leader == *id).count(),
            storage_near_full: own.is_some_and(|s| s.storage_near_full),
        }
    };
    presence.iter().map(health).collect()
}

/// What a node knows only of itself.
fn of_one_node(status: &GetStatusResponse, problems: &mut Vec<String>) {
    let node = status.node_id;
    for p in status.partitions.iter().filter(|p| !p.blocked.is_empty()) {
        problems.push(format!("partition {} is fenced on node {node}: {}", p.partition, p.blocked));
    }
    if status.storage_near_full {
        problems.push(format!("the disk of node {node} is nearly full; submits are refused"));
    }
    for c in status.carriers.iter().filter(|c| c.binds_up == 0) {
        let name = c.carrier.as_ref().map_or("?", |record| &record.name);
        problems.push(format!("carrier {name} has no bind on node {node}"));
    }
}

#[cfg(test)]
mod tests;
