//! What the shard tells others of its groups: leaders for everybody, the whole state for operators and the steward.
use super::handle::{GroupStatus, Leadership};
use super::shard::Shard;
use carillon_proto::replica::node_of;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Shard {
    /// A group without a replica here is not listed.
    pub(super) fn publish(&mut self, group: u32, leadership: Leadership) {
        let hosted = self.cells.contains_key(&group);
        self.leaders.send_modify(|leaders| {
            let mut changed = BTreeMap::clone(leaders);
            match hosted {
                true => drop(changed.insert(group, leadership)),
                false => drop(changed.remove(&group)),
            }
            *leaders = Arc::new(changed);
        });
        let led = self.leaders.borrow().values().filter(|l| l.leader == self.node_id).count();
        metrics::gauge!("carillon_raft_groups_led").set(led as f64);
    }

    pub(super) fn status(&self) -> Vec<GroupStatus> {
        let fenced = self.fenced.lock();
        let closed = fenced.iter().filter(|(group, _)| !self.cells.contains_key(group));
        let hosted = self.hosted.borrow();
        let closed = closed.map(|(group, reason)| GroupStatus {
            group: *group,
            replica_id: hosted.get(group).copied().unwrap_or(0),
            blocked: reason.clone(),
            ..GroupStatus::default()
        });
        self.cells
            .iter()
            .map(|(group, cell)| GroupStatus {
                group: *group,
                replica_id: cell.replica_id(),
                leader: node_of(cell.group.leader_id()),
                term: cell.group.term(),
                commit: cell.group.commit(),
                applied: cell.group.applied_index(),
                first_index: cell.group.first_index(),
                last_index: cell.group.last_index(),
                blocked: cell.blocked.clone().unwrap_or_default(),
                members: carillon_consensus::wire::conf_state_to_wire(cell.group.conf_state()),
                changing: cell.group.is_changing() || cell.release.is_writing(),
                installing: cell.group.is_installing(),
                followers: cell.group.followers(),
            })
            .chain(closed)
            .collect()
    }
}
