//! The partition map: where the replicas of each partition belong. What raft has made of it, the groups' leaders know.
//!
//! Invariants
//!  - The epoch of a row rises with each change; a change that was planned on another epoch is refused.
//!  - A replica id is given out once: the row's generation only rises.
//!  - At most one replica of a partition on a node, and always at least one voter.
use super::apply::{Change, MetaRefusal, Outcome};
use super::rows::is_present;
use super::{REPLICAS_MAX, place, rows};
use crate::tables::Tables;
use carillon_proto::internal::{ChangeReplicas, ReplicaRecord, ReplicaRole};

pub(super) fn change(tables: &mut dyn Tables, command: &ChangeReplicas) -> Outcome {
    let Some(mut record) = rows::partition(tables, command.partition)? else {
        return Ok(Err(MetaRefusal::NoPartition { partition: command.partition }));
    };
    if record.epoch != command.expected_epoch {
        return Ok(Err(MetaRefusal::MovedOn { epoch: record.epoch }));
    }
    let before = record.replicas.clone();
    record.replicas.retain(|r| !command.forget.contains(&r.replica_id));
    for set in &command.set {
        let found = record.replicas.iter_mut().find(|r| r.replica_id == set.replica_id);
        match (found, set.role()) {
            (None, _) => return refuse("is not in the map"),
            (_, ReplicaRole::Unspecified) => return refuse("needs a role"),
            (Some(replica), role) => replica.set_role(role),
        }
    }
    for add in &command.add {
        match rows::node(tables, add.node_id)? {
            Some(node) if is_present(&node) => {}
            _ => return Ok(Err(MetaRefusal::NoNode { node_id: add.node_id })),
        }
        if record.replicas.iter().any(|r| r.node_id == add.node_id) {
            return refuse("would be the second one of the partition on its node");
        }
        if !matches!(add.role(), ReplicaRole::Voter | ReplicaRole::Learner) {
            return refuse("must be added as voter or learner");
        }
        record.generation += 1;
        let replica_id = place::replica_id(add.node_id, record.generation);
        record.replicas.push(ReplicaRecord { replica_id, ..*add });
    }
    if record.replicas.len() > REPLICAS_MAX {
        return Ok(Err(MetaRefusal::TooMany { what: "replicas", max: REPLICAS_MAX as u32 }));
    }
    if !record.replicas.iter().any(|r| r.role() == ReplicaRole::Voter) {
        return refuse("would be the last voter to go");
    }
    record.replicas.sort_by_key(|r| (r.node_id, r.replica_id));
    if record.replicas == before {
        return Ok(Ok(Change::Same));
    }
    record.epoch += 1;
    rows::put_partition(tables, &record);
    Ok(Ok(Change::Changed))
}

fn refuse(rule: &'static str) -> Outcome {
    Ok(Err(MetaRefusal::Invalid { field: "replica", rule }))
}
