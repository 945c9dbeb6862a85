//! Makes one group what its row of the map says: learner, caught up, joint change, leave, remove, destroy, forget.
use super::{ConfStep, GroupSeen, Round, Step, find, role};
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::{ChangeReplicas, PartitionRecord, ReplicaRole};
use carillon_proto::replica::node_of;
use std::collections::BTreeSet;

/// The next step of a group, if one can be done now.
pub(super) fn step(round: &Round<'_>, record: &PartitionRecord) -> Option<Step> {
    let group = round.seen.groups.get(&record.partition)?;
    let leader_node = node_of(group.leader);
    if group.busy || !round.alive(leader_node) {
        return None;
    }
    let conf_step = |change| Step::Conf { node_id: leader_node, group: record.partition, change };
    if !group.conf.voters.contains(&group.leader) {
        // One of the old voters was elected while the configuration was joint. A leader that leaves the voters, and then
        // removes itself, is what raft cannot do: another one leads the group out of it.
        let to = heirs(round, record, group, &group.conf.voters).first().copied()?;
        return Some(Step::Transfer { node_id: leader_node, group: record.partition, to });
    }
    if !group.conf.outgoing.is_empty() {
        return Some(conf_step(ConfStep::Leave));
    }
    add(round, record, group)
        .or_else(|| swap(round, record, group))
        .or_else(|| {
            let gone = |id: &&u64| matches!(role(record, **id), None | Some(ReplicaRole::Leaving));
            group.conf.learners.iter().find(gone).map(|id| conf_step(ConfStep::Remove(*id)))
        })
        .or_else(|| clean_up(round, record, group))
}

/// A replica that the map has and the group does not know.
fn add(round: &Round<'_>, record: &PartitionRecord, group: &GroupSeen) -> Option<Step> {
    for replica in &record.replicas {
        let (replica_id, node_id) = (replica.replica_id, replica.node_id);
        if replica.role() == ReplicaRole::Leaving || group.conf.holds(replica_id) {
            continue;
        }
        if !round.alive(node_id) || !round.present(node_id) {
            continue;
        }
        let hosted = round.seen.nodes.get(&node_id).and_then(|n| n.replicas.get(&record.partition)).copied();
        return match hosted {
            Some(hosted) if hosted == replica_id => Some(Step::Conf {
                node_id: node_of(group.leader),
                group: record.partition,
                change: ConfStep::AddLearner(replica_id),
            }),
            // An older copy of the group is in the way.
            Some(old) if is_stray(record, group, old) => {
                Some(Step::Destroy { node_id, group: record.partition, replica_id: old })
            }
            Some(_) => None,
            None => Some(Step::Create { node_id, group: record.partition, replica_id }),
        };
    }
    None
}

fn is_stray(record: &PartitionRecord, group: &GroupSeen, replica_id: u64) -> bool {
    find(record, replica_id).is_none() && !group.conf.holds(replica_id)
}

/// Promotes and demotes in one joint change, once everyone who shall vote has caught up.
fn swap(round: &Round<'_>, record: &PartitionRecord, group: &GroupSeen) -> Option<Step> {
    let conf = &group.conf;
    let wanted: BTreeSet<u64> =
        record.replicas.iter().filter(|r| r.role() == ReplicaRole::Voter).map(|r| r.replica_id).collect();
    let promote: Vec<u64> = wanted.difference(&conf.voters).copied().collect();
    let demote: Vec<u64> = conf.voters.difference(&wanted).copied().collect();
    if promote.is_empty() && demote.is_empty() {
        return None;
    }
    if !promote.iter().all(|id| conf.learners.contains(id) && round.caught_up(record.partition, group, *id)) {
        return None;
    }
    if !round.healthy_majority(record.partition, group, &conf.voters)
        || !round.healthy_majority(record.partition, group, &wanted)
    {
        return None;
    }
    let node_id = node_of(group.leader);
    if demote.contains(&group.leader) {
        let both: BTreeSet<u64> = wanted.intersection(&conf.voters).copied().collect();
        if let Some(to) = heirs(round, record, group, &both).first() {
            return Some(Step::Transfer { node_id, group: record.partition, to: *to });
        }
        // Nobody but the leader votes in both: the newcomers vote first, and one of them takes over.
        if promote.is_empty() {
            return None;
        }
        let change =
            ConfStep::Swap { promote, demote: demote.into_iter().filter(|d| *d != group.leader).collect() };
        return Some(Step::Conf { node_id, group: record.partition, change });
    }
    Some(Step::Conf { node_id, group: record.partition, change: ConfStep::Swap { promote, demote } })
}

/// Those of `among` that can lead now, the best first.
fn heirs(round: &Round<'_>, record: &PartitionRecord, group: &GroupSeen, among: &BTreeSet<u64>) -> Vec<u64> {
    let able = |id: &u64| round.alive(node_of(*id)) && round.caught_up(record.partition, group, *id);
    let mut heirs: Vec<u64> = among.iter().copied().filter(able).collect();
    heirs.sort_by_key(|id| (!round.may_lead(node_of(*id), record.partition), *id));
    heirs
}

/// Deletes replicas that nobody knows any more, and rows of replicas that are gone.
fn clean_up(round: &Round<'_>, record: &PartitionRecord, group: &GroupSeen) -> Option<Step> {
    for (node_id, node) in &round.seen.nodes {
        let Some(hosted) = node.replicas.get(&record.partition).copied() else { continue };
        let leaving = role(record, hosted) == Some(ReplicaRole::Leaving) && !group.conf.holds(hosted);
        if node.alive && (leaving || is_stray(record, group, hosted)) {
            return Some(Step::Destroy { node_id: *node_id, group: record.partition, replica_id: hosted });
        }
    }
    let gone: Vec<u64> = record
        .replicas
        .iter()
        .filter(|r| r.role() == ReplicaRole::Leaving && !group.conf.holds(r.replica_id))
        .map(|r| r.replica_id)
        .collect();
    (!gone.is_empty()).then(|| {
        Step::Meta(Kind::ChangeReplicas(ChangeReplicas {
            partition: record.partition,
            expected_epoch: record.epoch,
            forget: gone,
            ..Default::default()
        }))
    })
}
