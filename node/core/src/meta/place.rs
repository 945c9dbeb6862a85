//! Where the replicas of a new cluster are, and how replica ids are made. Every founding node computes the same.
use carillon_proto::ReplicaId;
use carillon_proto::internal::{PartitionRecord, ReplicaRecord, ReplicaRole};

/// Voters of a partition, once there are as many nodes.
pub const VOTERS: usize = 3;
/// Voters of the meta group in a cluster of at least five nodes.
pub const META_VOTERS_MAX: usize = 5;
/// Node ids are part of replica ids.
pub const NODE_ID_MAX: u64 = u32::MAX as u64;

/// Voters of a partition with this many nodes to choose from: never an even number.
pub fn voters_wanted(nodes: usize) -> usize {
    if nodes >= VOTERS { VOTERS } else { 1 }
}

/// The same for the meta group.
pub fn meta_voters_wanted(nodes: usize) -> usize {
    if nodes >= META_VOTERS_MAX { META_VOTERS_MAX } else { voters_wanted(nodes) }
}

/// Replicas of a group that is created together with the cluster. `nodes` in rising order. A founding replica has
/// generation 0, so its id is its node's.
pub fn founding(partition: u32, nodes: &[u64]) -> PartitionRecord {
    let replica = |node_id: u64, role: ReplicaRole| ReplicaRecord {
        replica_id: replica_id(node_id, 0),
        node_id,
        role: role.into(),
    };
    let replicas = if partition == 0 {
        let voters = meta_voters_wanted(nodes.len());
        let role = |at| if at < voters { ReplicaRole::Voter } else { ReplicaRole::Learner };
        nodes.iter().enumerate().map(|(at, node)| replica(*node, role(at))).collect()
    } else {
        let voters = voters_wanted(nodes.len()).min(nodes.len());
        let mut chosen: Vec<u64> =
            (0..voters).map(|at| nodes[((partition as usize - 1) * voters + at) % nodes.len()]).collect();
        chosen.sort_unstable();
        chosen.into_iter().map(|node| replica(node, ReplicaRole::Voter)).collect()
    };
    PartitionRecord { partition, epoch: 1, replicas, generation: 0 }
}

/// Of a replica that is given out now; `node_id` is at most [`NODE_ID_MAX`] and not 0, as checked on admission.
pub(super) fn replica_id(node_id: u64, generation: u32) -> u64 {
    ReplicaId::new(node_id, generation).expect("node ids are checked on admission").raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voters(record: &PartitionRecord) -> Vec<u64> {
        record.replicas.iter().filter(|r| r.role() == ReplicaRole::Voter).map(|r| r.node_id).collect()
    }

    #[test]
    fn founding_groups_are_spread_and_have_an_odd_number_of_voters() {
        for (nodes, per_partition, meta) in [(1, 1, 1), (2, 1, 1), (3, 3, 3), (5, 3, 5), (7, 3, 5)] {
            let ids: Vec<u64> = (1..=nodes).collect();
            assert_eq!(voters(&founding(0, &ids)).len(), meta, "{nodes} nodes");
            assert_eq!(founding(0, &ids).replicas.len(), ids.len(), "the meta group is everywhere");
            let mut load = vec![0; nodes as usize + 1];
            for partition in 1..=70 {
                let chosen = voters(&founding(partition, &ids));
                assert_eq!(chosen.len(), per_partition);
                assert!(chosen.windows(2).all(|w| w[0] < w[1]), "distinct");
                chosen.iter().for_each(|node| load[*node as usize] += 1);
            }
            let (least, most) = (load[1..].iter().min().unwrap(), load[1..].iter().max().unwrap());
            assert!(most - least <= 1 || nodes == 2, "{load:?}");
        }
    }
}
