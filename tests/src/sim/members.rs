//! Replicas of a node come and go, and memberships change: a mirror of `node/src/engine/members.rs`.
//!
//! What a change of the membership holds back is in `carillon_consensus::Release`. A replica that was removed ends in this order: its cell, a tombstone in the log, its state.
use super::engine::Refused;
use super::node::{Asker, Cell, Waiter};
use super::plant::Plant;
use super::store::SimStore;
use super::world::World;
use carillon_consensus::{GroupWrite, LogStore as _, MemberChange, PersistTask, join_write};
use carillon_core::Applier;
use carillon_core::meta::planner::{ConfStep, Step};
use carillon_proto::replica::node_of;

/// What the log writer is given.
#[derive(Debug)]
pub enum LogTask {
    Raft(PersistTask),
    /// A write of the shard's own; always synced.
    Own {
        write: GroupWrite,
        then: Written,
    },
}

#[derive(Debug, Clone, Copy)]
pub enum Written {
    Members { index: u64 },
    Created { replica_id: u64 },
    Removed,
}

impl World {
    /// The steward asks this node for one step. What does not fit is planned again.
    pub fn serve_step(&mut self, node: usize, step: &Step) {
        match step {
            Step::Meta(_) => {}
            Step::Create { group, replica_id, .. } => self.create_replica(node, *group, *replica_id),
            Step::Destroy { group, replica_id, .. } => self.destroy_replica(node, *group, *replica_id),
            Step::Transfer { group, to, .. } => self.transfer(node, *group, node_of(*to)),
            Step::Conf { group, change, .. } => self.change_members(node, *group, change),
        }
    }

    pub fn transfer(&mut self, node: usize, group: u32, to: u64) {
        let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return };
        let replica = cell.replica_on(to).unwrap_or(to);
        // Refused while it is not the leader any more or hands over already.
        if cell.group.transfer_leader(replica).is_ok() {
            self.trace.count("leader_transfer");
        }
        self.mark(node, group);
    }

    fn change_members(&mut self, node: usize, group: u32, step: &ConfStep) {
        let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return };
        let change = match step.clone() {
            ConfStep::AddLearner(id) => MemberChange::AddLearner(id),
            ConfStep::Remove(id) => MemberChange::Remove(id),
            ConfStep::Swap { promote, demote } => MemberChange::Enter { promote, demote },
            ConfStep::Leave => MemberChange::Leave,
        };
        if cell.group.propose_member_change(&change).is_err() {
            return;
        }
        let id = self.nodes[node].id;
        self.note(&[80, id, u64::from(group)], || format!("change n{id} g{group} {change:?}"));
        self.mark(node, group);
    }

    fn create_replica(&mut self, node: usize, group: u32, replica_id: u64) {
        let at = &mut self.nodes[node];
        let foreign = node_of(replica_id) != at.id || group > self.plan.partitions;
        if foreign
            || at.replicas.contains_key(&group)
            || at.leaving.contains(&group)
            || at.creating.contains(&group)
        {
            return;
        }
        if at.disk.removed(group).ok().flatten().is_some_and(|gone| replica_id <= gone) {
            self.trace.count("removed_replica_refused");
            return;
        }
        at.creating.insert(group);
        let id = at.id;
        at.queue.push(LogTask::Own {
            write: join_write(group, replica_id),
            then: Written::Created { replica_id },
        });
        self.note(&[81, id, u64::from(group), replica_id], || {
            format!("create n{id} g{group} replica {replica_id:x}")
        });
        self.kick_disk(node);
    }

    fn destroy_replica(&mut self, node: usize, group: u32, replica_id: u64) {
        if self.nodes[node].replicas.get(&group) == Some(&replica_id) {
            self.leave(node, group);
        }
    }

    /// A write of the shard's own is on disk.
    pub fn written(&mut self, node: usize, group: u32, then: Written) {
        match then {
            Written::Members { index } => self.members_written(node, group, index),
            Written::Created { replica_id } => {
                self.nodes[node].creating.remove(&group);
                self.nodes[node].stores.insert(group, SimStore::default());
                match self.open_group(node, group, replica_id, 0) {
                    Ok(cell) => {
                        if self.nodes[node].repairing.remove(&group) {
                            self.trace.count("replica_repaired");
                        }
                        self.nodes[node].cells.insert(group, cell);
                        self.nodes[node].replicas.insert(group, replica_id);
                    }
                    Err(reason) => {
                        self.oracle.fail(format!("node {} group {group}: created, but {reason}", node + 1));
                    }
                }
            }
            Written::Removed => {
                self.nodes[node].stores.remove(&group);
                self.nodes[node].leaving.remove(&group);
                self.trace.count("replica_destroyed");
            }
        }
    }

    fn members_written(&mut self, node: usize, group: u32, index: u64) {
        let id = self.nodes[node].id;
        let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return };
        cell.release.written(index, &cell.group);
        let conf = cell.group.conf_state();
        if !conf.voters_outgoing.is_empty() {
            self.trace.count("joint_configuration");
        }
        self.note(&[82, id, u64::from(group), index], || {
            format!(
                "conf   n{id} g{group} at {index}: {:?}",
                (&conf.voters, &conf.voters_outgoing, &conf.learners)
            )
        });
        self.release(node, group);
    }

    /// Gives the applier what is committed, up to a change of the membership that is not durable yet.
    pub fn release(&mut self, node: usize, group: u32) {
        let early = self.planted(Plant::MembersNotPersisted);
        let mut again = true;
        while again {
            again = false;
            let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return };
            match cell.release.next(&mut cell.group) {
                Ok(released) => {
                    cell.to_apply.extend(released.entries);
                    let Some((write, index)) = released.change else { continue };
                    cell.offered = None;
                    if early {
                        cell.release.written(index, &cell.group);
                        again = true;
                    } else {
                        let task = LogTask::Own { write, then: Written::Members { index } };
                        self.nodes[node].queue.push(task);
                    }
                }
                Err(error) => return self.block(node, group, error.to_string()),
            }
        }
        self.kick_disk(node);
        self.kick_apply(node, group);
    }

    /// After an apply: a replica that is removed goes.
    pub fn leave_if_removed(&mut self, node: usize, group: u32, applied: u64) {
        if self.nodes[node].cells.get(&group).is_some_and(|cell| cell.release.has_left(applied)) {
            self.trace.count("replica_moved");
            self.leave(node, group);
        }
    }

    /// Also of a replica that is out of service and has no cell.
    fn leave(&mut self, node: usize, group: u32) {
        let id = self.nodes[node].id;
        self.note(&[83, id, u64::from(group)], || format!("leave  n{id} g{group}"));
        if let Some(cell) = self.nodes[node].cells.remove(&group) {
            self.fail_waiters(node, group, cell);
        }
        let at = &mut self.nodes[node];
        if at.blocked.remove(&group).is_some() {
            at.repairing.insert(group);
        }
        at.replicas.remove(&group);
        at.leaders.remove(&group);
        at.dirty.remove(&group);
        at.leaving.insert(group);
        at.queue.push(LogTask::Own { write: GroupWrite::remove(group), then: Written::Removed });
        self.kick_disk(node);
    }

    /// A replica ends or goes out of service; everybody who waits for it is told.
    pub fn fail_waiters(&mut self, node: usize, group: u32, mut cell: Cell) {
        self.nodes[node].leaders.insert(group, (0, 0));
        let pending: Vec<Waiter> = cell.proposals.drain_pending().collect();
        let waiting: Vec<Waiter> = cell.proposals.drain_waiters().collect();
        let handed_on = cell.to_apply.drain(..).flat_map(|held| held.waiters).map(|(_, waiter)| waiter);
        let handed_on = handed_on.chain(cell.release.drain());
        let waiting: Vec<Waiter> = waiting.into_iter().chain(handed_on).collect();
        let reads = cell.reads_asked.drain(..).chain(cell.reads_confirmed.drain(..));
        let reads: Vec<Asker> = reads.map(|(_, asker)| asker).collect();
        for waiter in pending {
            self.answer(node, waiter, Err(Refused::Busy));
        }
        for waiter in waiting {
            self.answer(node, waiter, Err(Refused::Uncertain));
        }
        for asker in reads {
            self.answer_read(node, &asker, Err(Refused::Busy));
        }
        if cell.leading.is_some() {
            self.step_down_wing(node, group);
        }
    }

    /// Opens a group that is in the log, applied up to `applied`.
    pub fn open_group(
        &mut self,
        node: usize,
        group: u32,
        replica_id: u64,
        applied: u64,
    ) -> Result<Cell, String> {
        let config = self.group_config(node, group, replica_id);
        let log: std::sync::Arc<dyn carillon_consensus::LogStore> =
            std::sync::Arc::clone(&self.nodes[node].disk) as _;
        let opened =
            carillon_consensus::Group::open(config, log, applied).map_err(|error| error.to_string())?;
        let core = Applier::open(&self.nodes[node].stores[&group]).map_err(|error| error.to_string())?;
        Ok(Cell::new(opened, core))
    }
}
