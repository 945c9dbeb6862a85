//! Changes rows of the map: replaces replicas of nodes that go, keeps the number of voters, balances replicas, and gives every
//! node a replica of the meta group.
use super::balance::{REPLICAS, lightest_first, mean_load};
use super::{Round, Step, find};
use crate::meta::place::{VOTERS, meta_voters_wanted, voters_wanted};
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::{ChangeReplicas, NodeStatus, PartitionRecord, ReplicaRecord, ReplicaRole};
use carillon_proto::replica::node_of;
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn steps(round: &Round<'_>, taken: &mut BTreeSet<u32>, steps: &mut Vec<Step>) {
    let mut budget = Budget::new(round);
    for record in round.view.map.values() {
        if taken.contains(&record.partition) {
            continue;
        }
        let change = if !round.is_settled(record) {
            give_up(round, record)
        } else if record.partition == 0 {
            meta(round, record)
        } else {
            data(round, record, &mut budget)
        };
        if let Some(change) = change {
            taken.insert(record.partition);
            steps.push(Step::Meta(Kind::ChangeReplicas(change)));
        }
    }
}

fn change_of(record: &PartitionRecord) -> ChangeReplicas {
    ChangeReplicas { partition: record.partition, expected_epoch: record.epoch, ..Default::default() }
}

fn with_role(replica: &ReplicaRecord, role: ReplicaRole) -> ReplicaRecord {
    ReplicaRecord { role: role.into(), ..*replica }
}

fn new_on(node_id: u64, role: ReplicaRole) -> ReplicaRecord {
    ReplicaRecord { replica_id: 0, node_id, role: role.into() }
}

fn of_role(record: &PartitionRecord, role: ReplicaRole) -> impl Iterator<Item = &ReplicaRecord> {
    record.replicas.iter().filter(move |r| r.role() == role)
}

/// How much is being moved, and what every node holds when all of it is done.
struct Budget {
    moves_left: usize,
    moves_of: BTreeMap<u64, usize>,
    weights: BTreeMap<u64, u64>,
    mean_load: u64,
    /// Balancing waits until all active nodes are there and nothing is being moved for a reason.
    may_balance: bool,
}

impl Budget {
    fn new(round: &Round<'_>) -> Self {
        let mean_load = mean_load(round.seen.groups.iter().filter(|(g, _)| **g != 0).map(|(_, s)| s.load));
        let mut weights: BTreeMap<u64, u64> = round.active_nodes().map(|id| (id, 0)).collect();
        let (mut moving, mut moves_of) = (0, BTreeMap::new());
        for record in round.view.map.values().filter(|p| p.partition != 0) {
            let weight = REPLICAS.weight(load(round, record.partition), mean_load);
            for replica in of_role(record, ReplicaRole::Voter) {
                if let Some(sum) = weights.get_mut(&replica.node_id) {
                    *sum += weight;
                }
            }
            if !round.is_settled(record) {
                moving += 1;
                for replica in &record.replicas {
                    *moves_of.entry(replica.node_id).or_default() +=
                        usize::from(is_moving(round, record, replica));
                }
            }
        }
        let may_balance = round.active_nodes().all(|id| round.takes_replicas(id))
            && round.view.nodes.keys().all(|id| !round.is_going(*id) || !holds_data(round, *id));
        Self {
            moves_left: round.limits.moves_max.saturating_sub(moving),
            moves_of,
            weights,
            mean_load,
            may_balance,
        }
    }

    fn has_room(&self, round: &Round<'_>, nodes: &[u64]) -> bool {
        let free = |id: &u64| self.moves_of.get(id).copied().unwrap_or(0) < round.limits.moves_per_node_max;
        self.moves_left > 0 && nodes.iter().all(free)
    }

    fn take(&mut self, nodes: &[u64], weight: u64, to: &[u64], from: Option<u64>) {
        self.moves_left -= 1;
        for id in nodes {
            *self.moves_of.entry(*id).or_default() += 1;
        }
        for id in to {
            *self.weights.entry(*id).or_default() += weight;
        }
        if let Some(sum) = from.and_then(|id| self.weights.get_mut(&id)) {
            *sum = sum.saturating_sub(weight);
        }
    }
}

fn load(round: &Round<'_>, partition: u32) -> u64 {
    round.seen.groups.get(&partition).map_or(0, |g| g.load)
}

fn holds_data(round: &Round<'_>, node_id: u64) -> bool {
    let data = round.view.map.values().filter(|p| p.partition != 0);
    data.flat_map(|p| &p.replicas).any(|r| r.node_id == node_id)
}

fn is_moving(round: &Round<'_>, record: &PartitionRecord, replica: &ReplicaRecord) -> bool {
    let voters = round.seen.groups.get(&record.partition).map(|g| &g.conf.voters);
    replica.role() == ReplicaRole::Leaving || voters.is_none_or(|v| !v.contains(&replica.replica_id))
}

/// A change that cannot come to its end is taken back as a whole: a node that a replica was to come to went away, or those who
/// shall vote have no majority any more. The row asks for what the group has, so its number of voters stays odd, and a better
/// place is looked for from there.
fn give_up(round: &Round<'_>, record: &PartitionRecord) -> Option<ChangeReplicas> {
    let group = round.seen.groups.get(&record.partition)?;
    let votes = |r: &ReplicaRecord| group.conf.voters.contains(&r.replica_id);
    let in_map = group.conf.voters.iter().filter(|id| find(record, **id).is_some()).count();
    if group.busy || !group.conf.outgoing.is_empty() || in_map < group.conf.voters.len() {
        return None;
    }
    let hopeless = |r: &&ReplicaRecord| {
        let silent = round.seen.nodes.get(&r.node_id).is_none_or(|n| n.silent_ms >= round.limits.give_up_ms);
        let going = round.is_going(r.node_id);
        (!round.alive(r.node_id) && (going || silent)) || (!votes(r) && going)
    };
    let wanted = of_role(record, ReplicaRole::Voter).count();
    let lost: Vec<&ReplicaRecord> = of_role(record, ReplicaRole::Voter).filter(hopeless).collect();
    let unchanged = wanted == group.conf.voters.len() && of_role(record, ReplicaRole::Voter).all(votes);
    let goes_on = lost.iter().all(|r| votes(r)) && (wanted - lost.len()) * 2 > wanted;
    if unchanged || goes_on {
        return give_up_learner(round, record);
    }
    let taken_back = |r: &ReplicaRecord| match r.role() {
        ReplicaRole::Voter if votes(r) => None,
        _ if votes(r) => Some(with_role(r, ReplicaRole::Voter)),
        // The meta group has a replica everywhere, also on a node that leaves: it still has to hear of the shares.
        ReplicaRole::Voter if record.partition == 0 && round.present(r.node_id) => {
            Some(with_role(r, ReplicaRole::Learner))
        }
        ReplicaRole::Voter => Some(with_role(r, ReplicaRole::Leaving)),
        _ => None,
    };
    Some(ChangeReplicas { set: record.replicas.iter().filter_map(taken_back).collect(), ..change_of(record) })
}

/// A learner of the meta group on a node that is dead.
fn give_up_learner(round: &Round<'_>, record: &PartitionRecord) -> Option<ChangeReplicas> {
    let lost: Vec<ReplicaRecord> = of_role(record, ReplicaRole::Learner)
        .filter(|r| !round.present(r.node_id))
        .map(|r| with_role(r, ReplicaRole::Leaving))
        .collect();
    (!lost.is_empty()).then(|| ChangeReplicas { set: lost, ..change_of(record) })
}

/// A settled row of a partition.
fn data(round: &Round<'_>, record: &PartitionRecord, budget: &mut Budget) -> Option<ChangeReplicas> {
    let (mut going, staying): (Vec<&ReplicaRecord>, Vec<&ReplicaRecord>) =
        of_role(record, ReplicaRole::Voter).partition(|r| round.is_going(r.node_id));
    // Those that are gone first: they are what the partition lacks.
    going.sort_by_key(|r| (round.alive(r.node_id), r.node_id));
    let now = going.len() + staying.len();
    let wanted = voters_wanted(round.active_nodes().count()).max(now.min(VOTERS));
    let free: Vec<u64> = lightest_first(&budget.weights)
        .into_iter()
        .filter(|id| round.takes_replicas(*id) && record.replicas.iter().all(|r| r.node_id != *id))
        .collect();
    let weight = REPLICAS.weight(load(round, record.partition), budget.mean_load);
    let mut change = change_of(record);
    if let Some(leaves) = going.first() {
        if staying.len() >= wanted {
            change.set = going.iter().map(|r| with_role(r, ReplicaRole::Leaving)).collect();
            return Some(change);
        }
        let to = *free.iter().find(|id| budget.has_room(round, &[**id]))?;
        if budget.moves_left == 0 {
            return None;
        }
        budget.take(&[to], weight, &[to], None);
        change.add = vec![new_on(to, ReplicaRole::Voter)];
        change.set = vec![with_role(leaves, ReplicaRole::Leaving)];
        return Some(change);
    }
    if now < wanted {
        let to = free.get(..wanted - now)?;
        if !budget.has_room(round, to) {
            return None;
        }
        budget.take(to, weight, to, None);
        change.add = to.iter().map(|id| new_on(*id, ReplicaRole::Voter)).collect();
        return Some(change);
    }
    if now > wanted {
        let mut surplus = staying;
        surplus.sort_by_key(|r| std::cmp::Reverse((budget.weights.get(&r.node_id).copied(), r.node_id)));
        surplus.truncate(now - wanted);
        change.set = surplus.into_iter().map(|r| with_role(r, ReplicaRole::Leaving)).collect();
        return Some(change);
    }
    balance(round, record, budget, &free, weight)
}

/// Moves one replica from the heaviest of its nodes to the lightest of the others, if that pays.
fn balance(
    round: &Round<'_>,
    record: &PartitionRecord,
    budget: &mut Budget,
    free: &[u64],
    weight: u64,
) -> Option<ChangeReplicas> {
    if !budget.may_balance {
        return None;
    }
    let leader = round.seen.groups.get(&record.partition)?.leader;
    let to = *free.first()?;
    let weight_of = |id: u64| budget.weights.get(&id).copied().unwrap_or(0);
    // Rather not the leader's: that costs a transfer, too.
    let from = of_role(record, ReplicaRole::Voter)
        .filter(|r| budget.weights.contains_key(&r.node_id))
        .max_by_key(|r| (weight_of(r.node_id), r.replica_id != leader, r.node_id))?;
    if !REPLICAS.pays(weight_of(from.node_id), weight_of(to), weight)
        || !budget.has_room(round, &[from.node_id, to])
    {
        return None;
    }
    budget.take(&[from.node_id, to], weight, &[to], Some(from.node_id));
    Some(ChangeReplicas {
        add: vec![new_on(to, ReplicaRole::Voter)],
        set: vec![with_role(from, ReplicaRole::Leaving)],
        ..change_of(record)
    })
}

/// The settled row of the meta group: enough voters, a learner on every other node, nothing on nodes that are gone.
fn meta(round: &Round<'_>, record: &PartitionRecord) -> Option<ChangeReplicas> {
    let mut change = change_of(record);
    let missing = round.view.present().map(|n| n.node_id).find(|id| {
        !round.is_going(*id) && round.alive(*id) && record.replicas.iter().all(|r| r.node_id != *id)
    });
    if let Some(node_id) = missing {
        change.add = vec![new_on(node_id, ReplicaRole::Learner)];
        return Some(change);
    }
    let (going, mut staying): (Vec<&ReplicaRecord>, Vec<&ReplicaRecord>) =
        of_role(record, ReplicaRole::Voter).partition(|r| round.is_going(r.node_id));
    let now = going.len() + staying.len();
    let wanted = meta_voters_wanted(round.active_nodes().count()).max(now.min(VOTERS));
    let heirs: Vec<&ReplicaRecord> =
        of_role(record, ReplicaRole::Learner).filter(|r| round.takes_replicas(r.node_id)).collect();
    let demoted = |r: &ReplicaRecord| match round.status(r.node_id) {
        NodeStatus::Dead | NodeStatus::Removed => with_role(r, ReplicaRole::Leaving),
        _ => with_role(r, ReplicaRole::Learner),
    };
    let enough = staying.len() + heirs.len() >= wanted;
    if enough && (!going.is_empty() || now != wanted) {
        let promoted = heirs.iter().take(wanted.saturating_sub(staying.len()));
        change.set = promoted.map(|r| with_role(r, ReplicaRole::Voter)).collect();
        change.set.extend(going.into_iter().map(demoted));
        // Newest first, and not the leader if it can be helped.
        let leader = round.seen.groups.get(&0)?.leader;
        staying.sort_by_key(|r| (r.replica_id == leader, std::cmp::Reverse(r.node_id)));
        let surplus = staying.len().saturating_sub(wanted);
        change.set.extend(staying.into_iter().take(surplus).map(|r| with_role(r, ReplicaRole::Learner)));
        return Some(change);
    }
    let shares = &round.view.shares;
    let done = |r: &&ReplicaRecord| match round.status(r.node_id) {
        NodeStatus::Dead | NodeStatus::Removed => true,
        NodeStatus::Decommissioning => {
            !holds_data(round, r.node_id)
                && !shares.senders.contains(&r.node_id)
                && !shares.next.contains(&r.node_id)
        }
        _ => false,
    };
    change.set = of_role(record, ReplicaRole::Learner)
        .filter(done)
        .map(|r| with_role(r, ReplicaRole::Leaving))
        .collect();
    debug_assert!(change.set.iter().all(|r| node_of(r.replica_id) == r.node_id));
    (!change.set.is_empty()).then_some(change)
}
