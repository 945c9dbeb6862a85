//! Nodes: how they are admitted, what they say of themselves, and which status may follow which.
//!
//! Invariants
//!  - A node id is given out once and belongs to one data directory for ever: another one (`store_id`) is refused, and
//!    a node that is removed or dead never comes back under its id.
//!  - A token admits one node, once, until it expires. Only the hash of its secret is stored.
//!  - The cluster's feature level is never above what a present node understands.
use super::apply::{Change, MetaRefusal, Outcome, slowest_carrier};
use super::rows::is_present;
use super::{NODES_MAX, TOKENS_MAX, keys, level, rows};
use crate::tables::{TableError, Tables};
use carillon_proto::internal::{
    CreateToken, JoinNode, MetaNode, NodeStatus, PartitionRecord, RegisterNode, ReplicaRole, SetNodeStatus,
    TokenRecord,
};
use std::collections::BTreeMap;

pub(super) fn create_token(tables: &mut dyn Tables, now_ms: u64, command: &CreateToken) -> Outcome {
    let expired: Vec<u64> =
        rows::tokens(tables)?.values().filter(|t| t.expires_at_ms <= now_ms).map(|t| t.node_id).collect();
    for node_id in expired {
        tables.delete(keys::token(node_id));
    }
    let tokens = rows::tokens(tables)?;
    if tokens.len() >= TOKENS_MAX {
        return Ok(Err(MetaRefusal::TooMany { what: "unused tokens", max: TOKENS_MAX as u32 }));
    }
    if let Err(refusal) = room_for_one_more(tables, tokens.len())? {
        return Ok(Err(refusal));
    }
    if tokens.values().any(|t| t.secret_hash == command.secret_hash) {
        return Ok(Err(MetaRefusal::Exists));
    }
    let Some(node_id) = next_node_id(tables)? else {
        return Ok(Err(MetaRefusal::TooMany { what: "node ids", max: u32::MAX }));
    };
    let token = TokenRecord {
        node_id,
        secret_hash: command.secret_hash.clone(),
        expires_at_ms: now_ms.saturating_add(u64::from(command.life_s) * 1_000),
    };
    tables.put(keys::token(node_id), crate::records::encode(&token));
    Ok(Ok(Change::Changed))
}

/// Every node needs a share of every lane, and there is a limit to a cluster.
fn room_for_one_more(tables: &dyn Tables, promised: usize) -> Result<Result<(), MetaRefusal>, TableError> {
    let present = rows::nodes(tables)?.values().filter(|n| is_present(n)).count();
    if present + promised >= NODES_MAX {
        return Ok(Err(MetaRefusal::TooMany { what: "nodes", max: NODES_MAX as u32 }));
    }
    let nodes = present as u32 + 1;
    if slowest_carrier(tables)?.is_some_and(|rate| rate < nodes) {
        return Ok(Err(MetaRefusal::TooSlow { nodes }));
    }
    Ok(Ok(()))
}

/// The highest id that was ever given out, plus one.
fn next_node_id(tables: &mut dyn Tables) -> Result<Option<u64>, TableError> {
    let last = match super::apply::number(tables, &keys::counter(keys::Counted::Nodes))? {
        Some(last) => u64::from(last),
        None => rows::nodes(tables)?.keys().next_back().copied().unwrap_or(0),
    };
    let Some(next) = u32::try_from(last + 1).ok() else { return Ok(None) };
    tables.put(keys::counter(keys::Counted::Nodes), next.to_be_bytes().to_vec());
    Ok(Some(u64::from(next)))
}

pub(super) fn join(tables: &mut dyn Tables, now_ms: u64, command: JoinNode) -> Outcome {
    if let Some(known) = rows::node(tables, command.node_id)? {
        // The answer to the first one was lost, or the node starts anew with its own directory.
        return Ok(match known.store_id == command.store_id && is_present(&known) {
            true => Ok(Change::Same),
            false if !is_present(&known) => Err(MetaRefusal::Gone { node_id: command.node_id }),
            false => Err(MetaRefusal::OtherStore { node_id: command.node_id }),
        });
    }
    let token = rows::tokens(tables)?.remove(&command.node_id);
    if token.is_none_or(|t| t.expires_at_ms <= now_ms || t.secret_hash != command.secret_hash) {
        return Ok(Err(MetaRefusal::BadToken));
    }
    let cluster = rows::level(tables)?;
    if command.feature_level < cluster {
        return Ok(Err(MetaRefusal::TooOld { level: command.feature_level, cluster }));
    }
    if let Err(refusal) = room_for_one_more(tables, 0)? {
        return Ok(Err(refusal));
    }
    let node = MetaNode {
        node_id: command.node_id,
        peer_address: command.peer_address,
        status: NodeStatus::Joining.into(),
        store_id: command.store_id,
        feature_level: command.feature_level,
    };
    if let Err(refusal) = address_is_free(tables, &node)? {
        return Ok(Err(refusal));
    }
    tables.delete(keys::token(node.node_id));
    rows::put_node(tables, &node);
    Ok(Ok(Change::Changed))
}

fn address_is_free(tables: &dyn Tables, node: &MetaNode) -> Result<Result<(), MetaRefusal>, TableError> {
    let other = rows::nodes(tables)?
        .into_values()
        .find(|n| n.node_id != node.node_id && is_present(n) && n.peer_address == node.peer_address);
    Ok(match other {
        Some(other) => Err(MetaRefusal::AddressTaken { node_id: other.node_id }),
        None => Ok(()),
    })
}

pub(super) fn register(tables: &mut dyn Tables, command: RegisterNode) -> Outcome {
    let Some(known) = rows::node(tables, command.node_id)? else {
        return Ok(Err(MetaRefusal::NoNode { node_id: command.node_id }));
    };
    if !is_present(&known) {
        return Ok(Err(MetaRefusal::Gone { node_id: command.node_id }));
    }
    if known.store_id != 0 && known.store_id != command.store_id {
        return Ok(Err(MetaRefusal::OtherStore { node_id: command.node_id }));
    }
    let cluster = rows::level(tables)?;
    if command.feature_level < cluster {
        return Ok(Err(MetaRefusal::TooOld { level: command.feature_level, cluster }));
    }
    let node = MetaNode {
        peer_address: command.peer_address,
        store_id: command.store_id,
        feature_level: command.feature_level,
        ..known.clone()
    };
    if let Err(refusal) = address_is_free(tables, &node)? {
        return Ok(Err(refusal));
    }
    if node == known {
        return Ok(Ok(Change::Same));
    }
    rows::put_node(tables, &node);
    Ok(Ok(Change::Changed))
}

/// The one table of legal changes.
pub fn may_become(from: NodeStatus, to: NodeStatus) -> bool {
    use NodeStatus as S;
    matches!(
        (from, to),
        (S::Joining, S::Active | S::Decommissioning | S::Dead)
            | (S::Active, S::Draining | S::Decommissioning | S::Dead)
            | (S::Draining, S::Active | S::Decommissioning | S::Dead)
            | (S::Decommissioning, S::Active | S::Removed | S::Dead)
            | (S::Dead, S::Removed)
    )
}

pub(super) fn set_status(tables: &mut dyn Tables, command: &SetNodeStatus) -> Outcome {
    let node_id = command.node_id;
    let Some(mut node) = rows::node(tables, node_id)? else {
        return Ok(Err(MetaRefusal::NoNode { node_id }));
    };
    let (from, to) = (node.status(), command.status());
    if from == to {
        return Ok(Ok(Change::Same));
    }
    if !may_become(from, to) {
        return Ok(Err(MetaRefusal::Status { node_id, from: word(from), to: word(to) }));
    }
    let partitions = rows::partitions(tables)?;
    let nodes = rows::nodes(tables)?;
    let check = match to {
        NodeStatus::Removed => may_be_removed(node_id, &partitions, tables)?,
        NodeStatus::Decommissioning => others_suffice(node_id, &partitions, &nodes),
        NodeStatus::Dead => majorities_survive(node_id, &partitions, &nodes),
        _ => Ok(()),
    };
    if let Err(refusal) = check {
        return Ok(Err(refusal));
    }
    node.set_status(to);
    rows::put_node(tables, &node);
    Ok(Ok(Change::Changed))
}

type Partitions = BTreeMap<u32, PartitionRecord>;

/// Without a replica it can lead nothing, so it can begin no attempt; and it has no share of a lane.
fn may_be_removed(
    node_id: u64,
    partitions: &Partitions,
    tables: &dyn Tables,
) -> Result<Result<(), MetaRefusal>, TableError> {
    let shares = rows::shares(tables)?;
    let has_replica = partitions.values().flat_map(|p| &p.replicas).any(|r| r.node_id == node_id);
    let sends = shares.senders.contains(&node_id) || shares.next.contains(&node_id);
    Ok(if has_replica || sends { Err(MetaRefusal::StillInUse { node_id }) } else { Ok(()) })
}

fn others_suffice(
    node_id: u64,
    partitions: &Partitions,
    nodes: &BTreeMap<u64, MetaNode>,
) -> Result<(), MetaRefusal> {
    let others = nodes.values().filter(|n| n.node_id != node_id && n.status() == NodeStatus::Active).count();
    let data = partitions.values().filter(|p| p.partition != 0);
    let needed = data.map(|p| voters(p).count()).max().unwrap_or(1).min(super::place::VOTERS);
    if others < needed {
        return Err(MetaRefusal::TooFewNodes { others: others as u32, needed: needed as u32 });
    }
    Ok(())
}

/// Whoever is called dead never comes back, so no group may lose its majority by it. Of a row that is being changed
/// either the old or the new voters may vote, so all of them count as lost. Whoever asks also has to see that every group
/// has a leader without this node: what raft has made of the map is not known here.
fn majorities_survive(
    node_id: u64,
    partitions: &Partitions,
    nodes: &BTreeMap<u64, MetaNode>,
) -> Result<(), MetaRefusal> {
    let is_lost = |id: u64| id == node_id || nodes.get(&id).is_none_or(|n| !is_present(n));
    for record in partitions.values() {
        let lost =
            record.replicas.iter().filter(|r| r.role() != ReplicaRole::Learner && is_lost(r.node_id)).count();
        let here = record.replicas.iter().any(|r| r.role() != ReplicaRole::Learner && r.node_id == node_id);
        if here && lost * 2 >= voters(record).count() {
            return Err(MetaRefusal::NoMajority { node_id, partition: record.partition });
        }
    }
    Ok(())
}

fn voters(record: &PartitionRecord) -> impl Iterator<Item = u64> {
    record.replicas.iter().filter(|r| r.role() == ReplicaRole::Voter).map(|r| r.node_id)
}

/// For people.
pub fn word(status: NodeStatus) -> &'static str {
    match status {
        NodeStatus::Unspecified => "unknown",
        NodeStatus::Joining => "joining",
        NodeStatus::Active => "active",
        NodeStatus::Draining => "draining",
        NodeStatus::Decommissioning => "decommissioning",
        NodeStatus::Removed => "removed",
        NodeStatus::Dead => "dead",
    }
}

pub(super) fn raise_level(tables: &mut dyn Tables, to: u32) -> Outcome {
    let now = rows::level(tables)?;
    if to <= now {
        return Ok(Ok(Change::Same));
    }
    if to > level::LEVEL {
        // Unreachable while every present node has to support it, this one included; a wrong map must not pass.
        return Ok(Err(MetaRefusal::Level { needed: to, level: level::LEVEL }));
    }
    let behind = rows::nodes(tables)?.into_values().find(|n| is_present(n) && n.feature_level < to);
    if let Some(node) = behind {
        return Ok(Err(MetaRefusal::Behind { node_id: node.node_id, level: node.feature_level, to }));
    }
    tables.put(keys::level(), to.to_be_bytes().to_vec());
    Ok(Ok(Change::Changed))
}
