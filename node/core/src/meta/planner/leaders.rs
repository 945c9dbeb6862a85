//! Moves leaders: off nodes that must not lead, and otherwise to where they weigh less.
use super::balance::{LEADERS, mean_load};
use super::{GroupSeen, Round, Step};
use carillon_proto::internal::PartitionRecord;
use carillon_proto::replica::node_of;
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn steps(round: &Round<'_>, taken: &mut BTreeSet<u32>, steps: &mut Vec<Step>) {
    let mean_load = mean_load(round.seen.groups.iter().filter(|(g, _)| **g != 0).map(|(_, s)| s.load));
    let mut weights: BTreeMap<u64, u64> = round.view.present().map(|n| (n.node_id, 0)).collect();
    let mut counts = BTreeMap::<u64, usize>::new();
    for (number, group) in &round.seen.groups {
        // The meta group's leader has the steward, which weighs next to nothing.
        if *number != 0 {
            *weights.entry(node_of(group.leader)).or_default() += LEADERS.weight(group.load, mean_load);
            *counts.entry(node_of(group.leader)).or_default() += 1;
        }
    }
    let mut left = round.limits.transfers_max;
    for must_go in [true, false] {
        for record in round.view.map.values() {
            if left == 0 {
                return;
            }
            let Some(group) = round.seen.groups.get(&record.partition) else { continue };
            let from = node_of(group.leader);
            let may_stay = round.may_lead(from, record.partition);
            if taken.contains(&record.partition) || group.busy || may_stay == must_go || !round.alive(from) {
                continue;
            }
            let weight = LEADERS.weight(group.load, mean_load);
            let Some(to) = heir(round, record, group, &weights, &counts, weight, must_go) else { continue };
            if record.partition != 0 {
                *weights.entry(from).or_default() -= weight;
                *weights.entry(node_of(to)).or_default() += weight;
                *counts.entry(from).or_default() -= 1;
                *counts.entry(node_of(to)).or_default() += 1;
            }
            taken.insert(record.partition);
            steps.push(Step::Transfer { node_id: from, group: record.partition, to });
            left -= 1;
        }
    }
}

fn heir(
    round: &Round<'_>,
    record: &PartitionRecord,
    group: &GroupSeen,
    weights: &BTreeMap<u64, u64>,
    counts: &BTreeMap<u64, usize>,
    weight: u64,
    must_go: bool,
) -> Option<u64> {
    if !group.conf.outgoing.is_empty() {
        return None;
    }
    let weight_of = |id: u64| weights.get(&node_of(id)).copied().unwrap_or(0);
    let to = group
        .conf
        .voters
        .iter()
        .copied()
        .filter(|id| *id != group.leader)
        .filter(|id| {
            round.may_lead(node_of(*id), record.partition) && round.caught_up(record.partition, group, *id)
        })
        .min_by_key(|id| (weight_of(*id), *id))?;
    if must_go {
        return Some(to);
    }
    let pays = LEADERS.pays(weight_of(group.leader), weight_of(to), weight);
    if record.partition == 0 || !pays || !round.is_settled(record) {
        return None;
    }
    let count_of = |id: u64| counts.get(&node_of(id)).copied().unwrap_or(0);
    let rest_ms = match count_of(group.leader) > count_of(to) + 1 {
        true => round.limits.leader_rest_ms,
        false => round.limits.leader_load_rest_ms,
    };
    (group.led_ms >= rest_ms).then_some(to)
}
