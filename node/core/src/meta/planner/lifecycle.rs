//! Nodes become active and are removed, shares follow, and the feature level rises: all by themselves.
use super::{Round, Step};
use crate::meta::level;
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::{NodeStatus, RaiseLevel, SetNodeStatus, SetShares, SettleShares};
use carillon_proto::replica::node_of;
use std::collections::BTreeSet;

pub(super) fn steps(round: &Round<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    steps.extend(raise(round));
    if round.view.level < level::LEVEL_MEMBERSHIP {
        return steps;
    }
    let set = |node_id, status: NodeStatus| {
        Step::Meta(Kind::SetNodeStatus(SetNodeStatus { node_id, status: status.into() }))
    };
    for node in round.view.nodes.values() {
        match node.status() {
            NodeStatus::Joining if knows_enough(round, node.node_id) => {
                steps.push(set(node.node_id, NodeStatus::Active));
            }
            NodeStatus::Decommissioning | NodeStatus::Dead if is_unused(round, node.node_id) => {
                steps.push(set(node.node_id, NodeStatus::Removed));
            }
            _ => {}
        }
    }
    steps.extend(shares(round));
    steps
}

/// To what every present node understands.
fn raise(round: &Round<'_>) -> Option<Step> {
    let level = round.view.present().map(|n| n.feature_level).min()?.min(level::LEVEL);
    (level > round.view.level).then_some(Step::Meta(Kind::RaiseLevel(RaiseLevel { level })))
}

/// It has learned the meta group.
fn knows_enough(round: &Round<'_>, node_id: u64) -> bool {
    let (Some(group), Some(node)) = (round.seen.groups.get(&0), round.seen.nodes.get(&node_id)) else {
        return false;
    };
    let in_group = node.replicas.get(&0).is_some_and(|id| group.conf.holds(*id));
    in_group
        && node.alive
        && node.meta_applied.saturating_add(round.limits.lag_entries_max) >= group.last_index
}

fn is_unused(round: &Round<'_>, node_id: u64) -> bool {
    let shares = &round.view.shares;
    let has_replica = round.view.map.values().flat_map(|p| &p.replicas).any(|r| r.node_id == node_id);
    !has_replica && !shares.senders.contains(&node_id) && !shares.next.contains(&node_id)
}

/// Active nodes send, and others for as long as they have a replica of a partition. From the level of leases on nobody has a
/// fixed share.
fn shares(round: &Round<'_>) -> Option<Step> {
    let record = &round.view.shares;
    if record.changing {
        let everyone = record.senders.iter().chain(&record.next);
        let settled = everyone.copied().all(|node_id| keeps_to(round, node_id, record.epoch));
        return settled.then_some(Step::Meta(Kind::SettleShares(SettleShares { epoch: record.epoch })));
    }
    if round.view.level >= level::LEVEL_DELIVERY {
        let (expected_epoch, senders) = (record.epoch, Vec::new());
        let set = Step::Meta(Kind::SetShares(SetShares { expected_epoch, senders }));
        return (!record.senders.is_empty()).then_some(set);
    }
    let mut wanted: BTreeSet<u64> = round.active_nodes().collect();
    let data = round.view.map.values().filter(|p| p.partition != 0);
    wanted.extend(data.flat_map(|p| &p.replicas).map(|r| r.node_id));
    let senders: Vec<u64> = wanted.into_iter().collect();
    (!senders.is_empty() && senders != record.senders)
        .then(|| Step::Meta(Kind::SetShares(SetShares { expected_epoch: record.epoch, senders })))
}

/// It said so; or it is gone for good, leads nothing that anybody knows, and every permission that it had is over.
fn keeps_to(round: &Round<'_>, node_id: u64, epoch: u64) -> bool {
    let Some(node) = round.seen.nodes.get(&node_id) else {
        // Unknown: nothing was ever heard of it, so nothing is known of what it sends.
        return false;
    };
    if node.alive && node.shares_epoch >= epoch {
        return true;
    }
    // Its votes do not matter: nobody takes a frame of a dead node, so it never leads again.
    let may_lead = |group: &u32| round.seen.groups.get(group).is_none_or(|g| node_of(g.leader) == node_id);
    round.status(node_id) == NodeStatus::Dead
        && !node.alive
        && node.silent_ms >= round.limits.sends_end_ms
        && !round.view.map.keys().filter(|group| **group != 0).any(may_lead)
}
