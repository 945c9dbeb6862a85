//! Configuration changes of a group: one at a time, checked before proposing (raft turns a refused one silently into
//! an empty entry), executed when the applier reaches the entry.
//!
//! The order that keeps membership and state in agreement over a crash: `apply_conf_change(index)`, write what it
//! returns with sync through the same log writer, then `applied(index)`. A change that is on disk already is given out
//! as an empty entry after a restart.
//!
//! The record in the entry is decoded by prost, since it may come from a peer.
use crate::error::{GroupError, ProposeError};
use crate::group::Group;
use crate::log_store::GroupWrite;
use crate::output::Proposal;
use crate::wire;
use bytes::Bytes;
use prost::Message as _;
use protobuf::ProtobufEnum as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType,
};

/// One step of a membership change. A replica moves by: add as learner, enter (it becomes a voter, the old one a
/// learner), leave, remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberChange {
    AddLearner(u64),
    /// Takes a learner out of the group.
    Remove(u64),
    /// Enters the joint configuration: until it is left, decisions need a majority of the old and of the new voters.
    Enter {
        promote: Vec<u64>,
        demote: Vec<u64>,
    },
    Leave,
}

/// How far behind the commit index a replica may be that becomes a voter.
const PROMOTE_LAG_ENTRIES_MAX: u64 = 4096;

/// eraftpb.ConfChangeV2
#[derive(Clone, PartialEq, prost::Message)]
struct ChangeRecord {
    #[prost(int32, tag = "1")]
    transition: i32,
    #[prost(message, repeated, tag = "2")]
    changes: Vec<SingleRecord>,
    #[prost(bytes = "bytes", tag = "3")]
    context: Bytes,
}

/// eraftpb.ConfChangeSingle
#[derive(Clone, PartialEq, prost::Message)]
struct SingleRecord {
    #[prost(int32, tag = "1")]
    change_type: i32,
    #[prost(uint64, tag = "2")]
    node_id: u64,
}

impl Group {
    /// Appends one step of a membership change, on the leader and if none is pending. Refuses steps that raft would take
    /// and that hurt: a leader that leaves the voters, a voter that would lag.
    pub fn propose_member_change(&mut self, change: &MemberChange) -> Result<Proposal, ProposeError> {
        self.check_leader()?;
        let conf = self.conf_state();
        let single = |change_type, node_id| {
            let mut single = ConfChangeSingle::default();
            (single.change_type, single.node_id) = (change_type, node_id);
            single
        };
        let mut record = ConfChangeV2::default();
        match change {
            MemberChange::AddLearner(id) if conf.voters.contains(id) => {
                return Err(ProposeError::InvalidChange("it is a voter already"));
            }
            MemberChange::AddLearner(id) => {
                record.changes.push(single(ConfChangeType::AddLearnerNode, *id));
            }
            MemberChange::Remove(id) if !conf.learners.contains(id) => {
                return Err(ProposeError::InvalidChange("only a learner can be removed"));
            }
            // It may be a learner that leads: see `Leave`.
            MemberChange::Remove(id) if *id == self.config.node_id => return Err(ProposeError::LeaderLeaves),
            MemberChange::Remove(id) => record.changes.push(single(ConfChangeType::RemoveNode, *id)),
            MemberChange::Enter { promote, demote } => {
                record.transition = ConfChangeTransition::Explicit;
                self.check_enter(&conf, promote, demote)?;
                let adds = promote.iter().map(|id| single(ConfChangeType::AddNode, *id));
                let learns = demote.iter().map(|id| single(ConfChangeType::AddLearnerNode, *id));
                record.changes = adds.chain(learns).collect();
            }
            // Elected by the old voters: it would go on leading without a vote, and raft 0.7.0 panics when it removes itself.
            MemberChange::Leave if !conf.voters.contains(&self.config.node_id) => {
                return Err(ProposeError::LeaderLeaves);
            }
            MemberChange::Leave => {}
        }
        self.propose_conf_change(&record)
    }

    fn check_enter(&self, conf: &ConfState, promote: &[u64], demote: &[u64]) -> Result<(), ProposeError> {
        if promote.is_empty() && demote.is_empty() {
            return Err(ProposeError::InvalidChange("nothing to change"));
        }
        if demote.contains(&self.config.node_id) {
            return Err(ProposeError::LeaderLeaves);
        }
        if !promote.iter().all(|id| conf.learners.contains(id)) {
            return Err(ProposeError::InvalidChange("only a learner can be promoted"));
        }
        if !demote.iter().all(|id| conf.voters.contains(id)) {
            return Err(ProposeError::InvalidChange("only a voter can be demoted"));
        }
        let lags = |id: &&u64| {
            self.follower(**id).is_none_or(|f| {
                f.in_snapshot || f.matched == 0 || f.matched + PROMOTE_LAG_ENTRIES_MAX < self.commit()
            })
        };
        match promote.iter().find(lags) {
            Some(id) => Err(ProposeError::NotCaughtUp(*id)),
            None => Ok(()),
        }
    }

    /// Appends a configuration change, on the leader and if none is pending. A change without steps leaves the joint
    /// configuration.
    pub fn propose_conf_change(&mut self, change: &ConfChangeV2) -> Result<Proposal, ProposeError> {
        self.check_leader()?;
        let joint = !self.conf_state().voters_outgoing.is_empty();
        if self.raw.raft.has_pending_conf() || joint != change.changes.is_empty() {
            return Err(ProposeError::ConfChangePending);
        }
        let mut entry = Entry::default();
        entry.entry_type = EntryType::EntryConfChangeV2;
        entry.data = encode(change);
        self.append(vec![entry])
    }

    /// Puts the change of the committed entry `index` into force, and returns what has to be durable before `index`
    /// may be reported as applied.
    pub fn apply_conf_change(&mut self, index: u64) -> Result<GroupWrite, GroupError> {
        let group = self.config.group;
        let refuse = |reason: &str| GroupError::ConfChange { group, index, reason: reason.to_owned() };
        if index > 0 && index <= self.snapshots.last_index {
            // A snapshot that was restored meanwhile has it already.
            return Ok(GroupWrite { group, ..Default::default() });
        }
        if index <= self.conf_index || index > self.emitted {
            return Err(refuse("not one that was given out"));
        }
        let entry = self.raw.store().read(index, index + 1, 0)?.remove(0);
        if entry.entry_type != EntryType::EntryConfChangeV2 {
            return Err(refuse("wrong type"));
        }
        let change = decode(entry.data).ok_or_else(|| refuse("cannot be decoded"))?;
        let conf_state = self.raw.apply_conf_change(&change)?;
        self.conf_index = index;
        let view = self.raw.mut_store();
        view.members_changed = true;
        // Made before the change: its receiver may not be in it.
        view.set_offer(None);
        // As of the last ready, so no entry that it speaks of is still to be handed out.
        let mut hard_state = self.hard_state.clone();
        hard_state.commit = hard_state.commit.max(index);
        Ok(GroupWrite {
            group,
            hard_state: Some(hard_state),
            conf: Some((wire::conf_state_to_wire(conf_state), index)),
            ..Default::default()
        })
    }

    /// A change of the membership is not applied yet, or leadership is being handed over.
    pub fn is_changing(&self) -> bool {
        self.raw.raft.has_pending_conf() || self.is_handing_over()
    }

    /// Leadership is being handed over; proposals would be dropped.
    pub fn is_handing_over(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// The membership in force.
    pub fn conf_state(&self) -> ConfState {
        self.raw.raft.prs().conf().to_conf_state()
    }
}

fn encode(change: &ConfChangeV2) -> Bytes {
    let single =
        |c: &ConfChangeSingle| SingleRecord { change_type: c.change_type.value(), node_id: c.node_id };
    let record = ChangeRecord {
        transition: change.transition.value(),
        changes: change.changes.iter().map(single).collect(),
        context: change.context.clone(),
    };
    record.encode_to_vec().into()
}

fn decode(data: Bytes) -> Option<ConfChangeV2> {
    let record = ChangeRecord::decode(data).ok()?;
    let mut change = ConfChangeV2::default();
    change.transition = ConfChangeTransition::from_i32(record.transition)?;
    for step in record.changes {
        let mut single = ConfChangeSingle::default();
        single.change_type = ConfChangeType::from_i32(step.change_type)?;
        single.node_id = step.node_id;
        change.changes.push(single);
    }
    change.context = record.context;
    Some(change)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::Message as _;

    #[test]
    fn records_are_what_eraftpb_writes_and_garbage_is_refused() {
        let mut change = ConfChangeV2::default();
        change.transition = ConfChangeTransition::Explicit;
        change.context = Bytes::from_static(b"why");
        for (change_type, node_id) in [(ConfChangeType::AddLearnerNode, 4), (ConfChangeType::RemoveNode, 300)]
        {
            let mut single = ConfChangeSingle::default();
            single.change_type = change_type;
            single.node_id = node_id;
            change.changes.push(single);
        }
        assert_eq!(encode(&change), change.write_to_bytes().unwrap());
        assert_eq!(decode(encode(&change)), Some(change));
        assert_eq!(decode(Bytes::new()), Some(ConfChangeV2::default()));
        assert_eq!(decode(Bytes::from_static(b"\xff\xff\xff")), None);
        assert_eq!(decode(Bytes::from_static(&[8, 99])), None, "unknown transition");
    }
}
