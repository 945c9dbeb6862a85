//! Whether the membership has come to rest: part of I8.
use super::world::World;
use carillon_core::meta::level;
use carillon_proto::internal::{NodeStatus, ReplicaRole};
use std::collections::BTreeSet;

impl World {
    /// What the operator, the planner or the feature level still have to do, if anything.
    pub fn members_unsettled(&self) -> Option<String> {
        if !self.operator.is_idle() {
            return Some(format!("the operator has work: {:?}", self.operator));
        }
        let view = self.newest_view()?;
        if view.level != level::LEVEL {
            let nodes: Vec<(u64, u32)> = view.present().map(|n| (n.node_id, n.feature_level)).collect();
            return Some(format!("the feature level is {}, the nodes have {nodes:?}", view.level));
        }
        let is_lost = |id: u64| self.nodes[id as usize - 1].lost;
        if let Some(node) = view.present().find(|n| is_lost(n.node_id)) {
            return Some(format!("node {} is lost and counts as {:?}", node.node_id, node.status()));
        }
        if let Some(node) = view.present().find(|n| n.status() == NodeStatus::Joining) {
            return Some(format!("node {} is still joining", node.node_id));
        }
        let active = view.present().filter(|n| n.status() == NodeStatus::Active).count();
        let leaves = |n: &&carillon_proto::internal::MetaNode| n.status() == NodeStatus::Decommissioning;
        if let Some(node) = view.present().find(leaves).filter(|_| active >= 3) {
            return Some(format!("node {} is still leaving; {}", node.node_id, self.shares_picture()));
        }
        if view.shares.changing {
            return Some(self.shares_picture());
        }
        self.groups().find_map(|group| self.row_unsettled(group))
    }

    /// Epoch of the shares that each node keeps to, and that it knows of.
    fn shares_picture(&self) -> String {
        let kept = self.nodes.iter().filter(|node| node.up).map(|node| {
            let kept = node.wing.shares.kept(self.mono(node.index));
            (node.id, kept, node.meta.shares.epoch, node.wing.fresh)
        });
        let shares = self.newest_view().map(|view| &view.shares);
        format!("shares {shares:?}, kept {:?}", kept.collect::<Vec<_>>())
    }

    /// The map says one thing and raft another.
    fn row_unsettled(&self, group: u32) -> Option<String> {
        let view = self.newest_view()?;
        let row = view.map.get(&group)?;
        let cells = self.nodes.iter().filter_map(|node| node.cells.get(&group));
        let leader = cells.filter(|cell| cell.group.is_leader()).max_by_key(|cell| cell.group.term())?;
        let conf = leader.group.conf_state();
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        let of = |role| {
            let replicas = row.replicas.iter().filter(|r| r.role() == role);
            replicas.map(|r| r.replica_id).collect::<BTreeSet<u64>>()
        };
        let settled = conf.voters_outgoing.is_empty()
            && of(ReplicaRole::Leaving).is_empty()
            && of(ReplicaRole::Voter) == set(&conf.voters)
            && of(ReplicaRole::Learner) == set(&conf.learners);
        (!settled).then(|| format!("group {group}: the map has {row:?}, raft has {conf:?}"))
    }
}
