//! Replicas of this node come and go, and memberships change, while the engine runs: the shard's side of it.
//!
//! What a change of the membership holds back is in `carillon_consensus::Release`. A replica that was removed ends in this order: its cell, its state in the applier, a tombstone in the log, its files. Until the last step is done
//! the group cannot be created here again.
use super::applier::ApplyMessage;
use super::cell::Cell;
use super::handle::{Hosted, Leadership, MemberError};
use super::log_writer::{LogTask, Written};
use super::shard::{Completion, Shard};
use super::snapshot::Work;
use crate::config::Config;
use carillon_consensus::{Group, GroupConfig, GroupWrite, MemberChange, join_write};
use carillon_proto::replica::node_of;
use std::sync::Arc;
use tokio::sync::oneshot;

pub type MemberReply = oneshot::Sender<Result<(), MemberError>>;

/// What the steward asks of this node.
pub enum MemberMessage {
    /// Makes an empty replica that waits to be added. Done already is no error.
    Create { replica_id: u64 },
    /// Ends a replica that its group does not count (any more). Gone already is no error.
    Destroy { replica_id: u64 },
    /// One step, proposed by the leader; answered when it is appended, not when it is in force.
    Change(MemberChange),
}

/// Settings that all groups of a node share.
#[derive(Debug, Clone)]
pub(super) struct GroupSettings {
    pub node_id: u64,
    pub snapshot_ticks_max: u32,
}

impl GroupSettings {
    pub fn of(config: &Config) -> Self {
        let idle_ticks = config.tuning.snapshot_idle_ms_max / config.tuning.tick_ms;
        Self { node_id: config.node_id, snapshot_ticks_max: idle_ticks.max(1) as u32 }
    }

    pub fn config(&self, group: u32, replica_id: u64) -> GroupConfig {
        let mut config = GroupConfig::new(group, replica_id, self.node_id << 32 | u64::from(group));
        // Many groups share a node: keep each one's share of memory small.
        config.cache_bytes_max = 1 << 20;
        config.snapshot_ticks_max = self.snapshot_ticks_max;
        config
    }
}

impl Shard {
    pub(super) fn member(&mut self, group: u32, message: MemberMessage, reply: MemberReply) {
        let result = match message {
            MemberMessage::Change(change) => self.change(group, &change),
            MemberMessage::Create { replica_id } => return self.create(group, replica_id, reply),
            MemberMessage::Destroy { replica_id } => return self.destroy(group, replica_id, reply),
        };
        drop(reply.send(result));
    }

    fn change(&mut self, group: u32, change: &MemberChange) -> Result<(), MemberError> {
        let cell = self.cells.get_mut(&group).ok_or(MemberError::NoReplica)?;
        cell.group.propose_member_change(change)?;
        tracing::info!(group, ?change, "membership change proposed");
        Ok(())
    }

    fn create(&mut self, group: u32, replica_id: u64, reply: MemberReply) {
        let answer = |reply: MemberReply, result| drop(reply.send(result));
        if node_of(replica_id) != self.node_id || group as usize >= self.groups_max {
            return answer(reply, Err(MemberError::NotOfThisNode));
        }
        let here = self.hosted.borrow().get(&group).copied();
        if let Some(here) = here {
            let result = if here == replica_id { Ok(()) } else { Err(MemberError::OtherReplica(here)) };
            return answer(reply, result);
        }
        if self.leaving.contains_key(&group) || self.creating.contains_key(&group) {
            return answer(reply, Err(MemberError::Busy));
        }
        match self.log.removed(group) {
            Ok(Some(gone)) if replica_id <= gone => return answer(reply, Err(MemberError::Removed(gone))),
            Ok(_) => {}
            Err(error) => return answer(reply, Err(MemberError::Log(error.to_string()))),
        }
        self.creating.insert(group, reply);
        self.own_tasks.push(LogTask::Own {
            write: join_write(group, replica_id),
            then: Written::Created { replica_id },
        });
    }

    /// Also of a replica that is out of service and has no cell.
    fn destroy(&mut self, group: u32, replica_id: u64, reply: MemberReply) {
        let here = self.hosted.borrow().get(&group).copied();
        let refusal = match here {
            None if self.creating.contains_key(&group) || self.leaving.contains_key(&group) => {
                Err(MemberError::Busy)
            }
            None => Ok(()),
            Some(here) if here != replica_id => Err(MemberError::OtherReplica(here)),
            Some(_) => {
                self.leave(group);
                self.leaving.insert(group, Some(reply));
                return;
            }
        };
        drop(reply.send(refusal));
    }

    /// A write of the shard's own is on disk.
    pub(super) fn written(&mut self, group: u32, written: Written) {
        match written {
            Written::Members { index } => {
                let Some(cell) = self.cells.get_mut(&group) else { return };
                cell.release.written(index, &cell.group);
                tracing::info!(group, index, members = ?cell.group.conf_state(), "membership changed");
                self.release(group);
            }
            Written::Created { replica_id } => {
                let result = self.open_created(group, replica_id);
                if let Some(reply) = self.creating.remove(&group) {
                    drop(reply.send(result));
                }
            }
            Written::Removed => self.snapshots.ask(Work::Destroy { group }),
        }
    }

    fn open_created(&mut self, group: u32, replica_id: u64) -> Result<(), MemberError> {
        let config = self.settings.config(group, replica_id);
        let opened = Group::open(config, self.log.clone(), 0).map_err(|e| MemberError::Log(e.to_string()))?;
        tracing::info!(group, replica_id, "replica created; it waits for a snapshot");
        self.cells.insert(group, Cell::new(opened));
        self.set_hosted(group, Some(replica_id));
        self.applier.push(ApplyMessage::Open { group });
        Ok(())
    }

    /// Gives the applier what is committed, up to a change of the membership that is not durable yet.
    pub(super) fn release(&mut self, group: u32) {
        let Some(cell) = self.cells.get_mut(&group) else { return };
        match cell.release.next(&mut cell.group) {
            Ok(released) => {
                if let Some((write, index)) = released.change {
                    cell.snapshots.offered = None;
                    self.own_tasks.push(LogTask::Own { write, then: Written::Members { index } });
                }
                if !released.entries.is_empty() {
                    self.applier.push(ApplyMessage::Entries { group, entries: released.entries });
                }
            }
            Err(error) => self.complete(Completion::Blocked { group, reason: error.to_string() }),
        }
    }

    /// After an apply: a replica that is removed goes.
    pub(super) fn leave_if_removed(&mut self, group: u32, applied: u64) {
        if self.cells.get(&group).is_some_and(|cell| cell.release.has_left(applied)) {
            tracing::info!(group, "this replica was removed from its group");
            self.leave(group);
            self.leaving.insert(group, None);
        }
    }

    fn leave(&mut self, group: u32) {
        if let Some(mut cell) = self.cells.remove(&group) {
            cell.block("the replica left this node".to_owned());
        }
        self.fenced.lock().remove(&group);
        self.snapshots.forget_fetch(group);
        self.publish(group, Leadership::default());
        self.set_hosted(group, None);
        self.applier.push(ApplyMessage::Close { group });
    }

    /// The applier let go: now the log may forget.
    pub(super) fn closed(&mut self, group: u32) {
        self.own_tasks.push(LogTask::Own { write: GroupWrite::remove(group), then: Written::Removed });
    }

    /// Nothing is left of it.
    pub(super) fn destroyed(&mut self, group: u32) {
        tracing::info!(group, "replica is gone");
        let left = {
            let mut fenced = self.fenced.lock();
            fenced.remove(&group);
            fenced.len()
        };
        metrics::gauge!("carillon_replicas_fenced").set(left as f64);
        if let Some(Some(reply)) = self.leaving.remove(&group) {
            drop(reply.send(Ok(())));
        }
    }

    fn set_hosted(&mut self, group: u32, replica: Option<u64>) {
        self.hosted.send_modify(|hosted| {
            let mut changed = Hosted::clone(hosted);
            match replica {
                Some(id) => drop(changed.insert(group, id)),
                None => drop(changed.remove(&group)),
            }
            *hosted = Arc::new(changed);
        });
    }
}
