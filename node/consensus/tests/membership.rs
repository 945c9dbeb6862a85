//! Configuration changes: one at a time, durable before they count as applied, in force once.
#![allow(clippy::field_reassign_with_default)] // generated eraftpb structs
use carillon_consensus::{
    CommittedEntry, EntryKind, Group, GroupConfig, GroupError, LogStore as _, MemLog, Outputs, ProposeError,
    bootstrap_write,
};
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};
use std::sync::Arc;

fn lone_leader() -> (Arc<MemLog>, Group) {
    let log = Arc::new(MemLog::new());
    log.write(&[bootstrap_write(4, &[1])], true).unwrap();
    let mut group = Group::open(GroupConfig::new(4, 1, 7), log.clone(), 0).unwrap();
    group.campaign().unwrap();
    let first = run(&log, &mut group);
    assert_eq!(first.len(), 1);
    group.applied(1);
    (log, group)
}

/// Writes whatever is to be written; gives the committed entries.
fn run(log: &MemLog, group: &mut Group) -> Vec<CommittedEntry> {
    let mut committed = Vec::new();
    loop {
        let mut out = Outputs::default();
        if !group.poll(&mut out).unwrap() {
            return committed;
        }
        for task in out.persist {
            log.write(&[task.write], true).unwrap();
            group.persisted(task.number);
        }
        committed.extend(out.committed);
    }
}

fn change(change_type: ConfChangeType, node_id: u64) -> ConfChangeV2 {
    let mut single = ConfChangeSingle::default();
    single.change_type = change_type;
    single.node_id = node_id;
    let mut change = ConfChangeV2::default();
    change.changes.push(single);
    change
}

#[test]
fn a_learner_is_added_and_known_after_a_restart() {
    let (log, mut group) = lone_leader();
    let proposal = group.propose_conf_change(&change(ConfChangeType::AddLearnerNode, 2)).unwrap();
    let committed = run(&log, &mut group);
    assert_eq!(committed.iter().map(|e| (e.index, e.kind)).collect::<Vec<_>>(), [(2, EntryKind::ConfChange)]);
    assert_eq!(proposal.index, 2);
    let write = group.apply_conf_change(2).unwrap();
    let (conf_state, conf_index) = write.conf.clone().unwrap();
    assert_eq!((conf_state.voters, conf_state.learners, conf_index), (vec![1], vec![2], 2));
    assert!(write.hard_state.as_ref().unwrap().commit >= 2);
    log.write(&[write], true).unwrap();
    group.applied(2);
    assert!(matches!(group.apply_conf_change(2), Err(GroupError::ConfChange { index: 2, .. })), "only once");

    // The state was not flushed: the entry comes again, but the change is in force already.
    let mut again = Group::open(GroupConfig::new(4, 1, 8), log.clone(), 1).unwrap();
    assert_eq!(again.conf_state().learners, [2]);
    let committed = run(&log, &mut again);
    assert_eq!(committed.iter().map(|e| (e.index, e.kind)).collect::<Vec<_>>(), [(2, EntryKind::Empty)]);
}

/// raft would turn the second one into an empty entry and say nothing.
#[test]
fn a_second_change_waits_for_the_first() {
    let (log, mut group) = lone_leader();
    group.propose_conf_change(&change(ConfChangeType::AddLearnerNode, 2)).unwrap();
    let second = change(ConfChangeType::AddLearnerNode, 3);
    assert_eq!(group.propose_conf_change(&second), Err(ProposeError::ConfChangePending));
    run(&log, &mut group);
    assert_eq!(group.propose_conf_change(&second), Err(ProposeError::ConfChangePending), "not applied yet");
    group.apply_conf_change(2).unwrap();
    group.applied(2);
    assert_eq!(group.propose_conf_change(&second).unwrap().index, 3);
}

#[test]
fn a_joint_change_is_entered_and_left_explicitly() {
    let (log, mut group) = lone_leader();
    let leave = ConfChangeV2::default();
    assert_eq!(group.propose_conf_change(&leave), Err(ProposeError::ConfChangePending), "not joint");
    let mut enter = change(ConfChangeType::AddLearnerNode, 2);
    enter.transition = ConfChangeTransition::Explicit;
    group.propose_conf_change(&enter).unwrap();
    assert_eq!(run(&log, &mut group).last().map(|e| e.index), Some(2));
    let (conf_state, _) = group.apply_conf_change(2).unwrap().conf.unwrap();
    assert_eq!(conf_state.voters_outgoing, [1]);
    group.applied(2);
    let more = change(ConfChangeType::AddLearnerNode, 3);
    assert_eq!(group.propose_conf_change(&more), Err(ProposeError::ConfChangePending), "joint");
    group.propose_conf_change(&leave).unwrap();
    let committed = run(&log, &mut group);
    assert_eq!(committed.iter().map(|e| (e.index, e.kind)).collect::<Vec<_>>(), [(3, EntryKind::ConfChange)]);
    let (conf_state, _) = group.apply_conf_change(3).unwrap().conf.unwrap();
    assert_eq!(
        (conf_state.voters, conf_state.learners, conf_state.voters_outgoing),
        (vec![1], vec![2], vec![])
    );
}

#[test]
fn only_a_change_that_was_given_out_can_be_applied() {
    let (log, mut group) = lone_leader();
    group.propose(bytes::Bytes::from_static(b"command")).unwrap();
    run(&log, &mut group);
    for index in [0, 2, 3] {
        assert!(matches!(group.apply_conf_change(index), Err(GroupError::ConfChange { .. })), "{index}");
    }
}
