//! Snapshots of one group: held back, accepted, written in one piece, given up after a deadline.
#![allow(clippy::field_reassign_with_default)] // generated eraftpb structs
mod mini;

use bytes::Bytes;
use carillon_consensus::{
    Group, GroupConfig, GroupWrite, LogStore as _, MemLog, OfferError, Outputs, SnapshotMark, StepError,
    bootstrap_write,
};
use carillon_proto::internal::{ConfState, RaftEntry, RaftMessage, RaftSnapshot, SnapshotMetadata};
use mini::{GROUP, Mini};
use raft::eraftpb::MessageType;
use std::sync::Arc;

const VOTERS: [u64; 3] = [1, 2, 3];

fn follower() -> (Arc<MemLog>, Group) {
    let log = Arc::new(MemLog::new());
    log.write(&[bootstrap_write(GROUP, &VOTERS)], true).unwrap();
    let group = Group::open(GroupConfig::new(GROUP, 1, 7), log.clone(), 0).unwrap();
    (log, group)
}

fn snapshot(from: u64, term: u64, index: u64, data: &'static [u8]) -> RaftMessage {
    let conf_state = Some(ConfState { voters: VOTERS.to_vec(), ..Default::default() });
    let metadata = Some(SnapshotMetadata { conf_state, index, term: term.min(5) });
    RaftMessage {
        msg_type: MessageType::MsgSnapshot as i32,
        from,
        to: 1,
        term,
        snapshot: Some(RaftSnapshot { data: Bytes::from_static(data), metadata }),
        ..Default::default()
    }
}

fn append(term: u64, after: (u64, u64), indexes: std::ops::RangeInclusive<u64>, commit: u64) -> RaftMessage {
    let entries =
        indexes.map(|index| RaftEntry { index, term, data: vec![1; 20].into(), ..Default::default() });
    RaftMessage {
        msg_type: MessageType::MsgAppend as i32,
        from: 2,
        to: 1,
        term,
        index: after.0,
        log_term: after.1,
        entries: entries.collect(),
        commit,
        ..Default::default()
    }
}

fn poll_all(group: &mut Group) -> Outputs {
    let mut out = Outputs::default();
    while group.poll(&mut out).unwrap() {}
    out
}

#[test]
fn a_snapshot_is_announced_once_and_raft_does_not_see_it_before_its_files_are_there() {
    let (_log, mut group) = follower();
    for _ in 0..3 {
        group.step(snapshot(2, 5, 40, b"m")).unwrap();
    }
    let out = poll_all(&mut group);
    let fetch = out.snapshot_fetch.unwrap();
    assert_eq!((fetch.from, fetch.index, fetch.term, &fetch.data[..]), (2, 40, 5, &b"m"[..]));
    assert!(out.persist.is_empty() && out.send.is_empty());
    assert_eq!((group.last_index(), group.commit(), group.term()), (0, 0, 1));
    group.step(snapshot(2, 5, 40, b"m")).unwrap();
    assert_eq!(poll_all(&mut group).snapshot_fetch, None, "it is being fetched");
    group.step(snapshot(2, 5, 41, b"n")).unwrap();
    assert_eq!(poll_all(&mut group).snapshot_fetch.unwrap().index, 41, "a newer one takes its place");
    assert!(!group.accept_snapshot(40, 5, 1).unwrap());
    group.refuse_snapshot(41, 5);
    assert!(!group.accept_snapshot(41, 5, 1).unwrap());
    group.step(snapshot(2, 5, 41, b"n")).unwrap();
    assert!(poll_all(&mut group).snapshot_fetch.is_some(), "refused, so it may come again");
}

#[test]
fn log_hard_state_membership_and_generation_are_one_write_and_the_answer_waits_for_it() {
    let (log, mut group) = follower();
    group.step(append(4, (0, 0), 1..=3, 2)).unwrap();
    let out = poll_all(&mut group);
    log.write(&[out.persist[0].write.clone()], true).unwrap();
    group.persisted(out.persist[0].number);
    assert_eq!(poll_all(&mut group).committed.len(), 2);

    group.step(snapshot(2, 5, 40, b"m")).unwrap();
    poll_all(&mut group);
    assert!(group.accept_snapshot(40, 5, 7).unwrap());
    // What follows the snapshot may be in the same write.
    group.step(append(5, (40, 5), 41..=42, 41)).unwrap();
    let out = poll_all(&mut group);
    assert_eq!(out.persist.len(), 1);
    let task = &out.persist[0];
    let write = &task.write;
    assert!(task.must_sync && out.send.is_empty() && out.committed.is_empty() && out.installed.is_none());
    assert_eq!(write.snapshot, Some(SnapshotMark { index: 40, term: 5, generation: 7 }));
    let hard_state = write.hard_state.as_ref().unwrap();
    assert_eq!((hard_state.term, hard_state.commit >= 40), (5, true));
    assert_eq!((write.conf.as_ref().unwrap().1, write.entries.len()), (40, 2));
    assert_eq!(task.after.iter().map(|m| m.index).max(), Some(42));

    log.write(std::slice::from_ref(write), false).unwrap();
    let before = log.durable(GROUP).unwrap();
    assert_eq!((before.generation, before.last_index, before.truncated_index), (0, 3, 0));
    log.sync();
    let after = log.durable(GROUP).unwrap();
    assert_eq!(
        (after.generation, after.last_index, after.truncated_index, after.truncated_term),
        (7, 42, 40, 5)
    );
    assert_eq!((after.conf_index, after.hard_state.commit >= 40), (40, true));

    // The applier may still report what it had before.
    group.applied(1);
    group.persisted(task.number);
    let out = poll_all(&mut group);
    assert_eq!(out.installed.unwrap().generation, 7);
    assert!(group.is_installing());
    group.applied(2);
    group.applied(40);
    assert!(!group.is_installing());
    let given: Vec<u64> = out.committed.iter().map(|e| e.index).collect();
    assert_eq!(given, [41]);
    assert_eq!((group.first_index(), group.term_at(40)), (41, Some(5)));
    let again = Group::open(GroupConfig::new(GROUP, 1, 7), log, 40).unwrap();
    assert_eq!((again.first_index(), again.last_index(), again.applied_index()), (41, 42, 40));
}

/// Otherwise raft would count entries of the old log as durable, or be told of the snapshot before it is.
#[test]
fn a_snapshot_waits_for_the_writes_before_it_and_is_announced_when_raft_knows_it() {
    let (_log, mut group) = follower();
    group.step(append(4, (0, 0), 1..=3, 0)).unwrap();
    let first = poll_all(&mut group).persist.remove(0);
    group.step(snapshot(2, 5, 2, b"m")).unwrap();
    poll_all(&mut group);
    assert!(group.accept_snapshot(2, 5, 1).unwrap());
    let second = poll_all(&mut group).persist.remove(0);
    group.step(append(5, (2, 5), 3..=4, 2)).unwrap();
    let third = poll_all(&mut group).persist.remove(0);
    group.step(RaftMessage { from: 3, ..append(6, (2, 5), 3..=3, 2) }).unwrap();
    let fourth = poll_all(&mut group).persist.remove(0);
    for number in [first.number, second.number, third.number] {
        group.persisted(number);
        assert_eq!(poll_all(&mut group).installed, None, "the last write replaces entries of the third");
    }
    group.persisted(fourth.number);
    assert!(poll_all(&mut group).installed.is_some());
    group.applied(2);
}

/// raft 0.7.0 reads the entries after the applied index when it campaigns, and panics when they are not there.
#[test]
fn nothing_starts_an_election_between_a_snapshot_and_its_apply() {
    let (log, mut group) = follower();
    group.step(append(4, (0, 0), 1..=3, 1)).unwrap();
    for task in poll_all(&mut group).persist {
        log.write(&[task.write], true).unwrap();
        group.persisted(task.number);
    }
    group.step(snapshot(2, 5, 40, b"m")).unwrap();
    poll_all(&mut group);
    assert!(group.accept_snapshot(40, 5, 1).unwrap());
    let disturb = |group: &mut Group| {
        for _ in 0..50 {
            group.tick();
        }
        let now = RaftMessage {
            msg_type: MessageType::MsgTimeoutNow as i32,
            from: 2,
            to: 1,
            term: 5,
            ..Default::default()
        };
        group.step(now).unwrap();
        assert!(matches!(group.campaign(), Err(StepError::Snapshot(_))));
        assert_eq!(group.term(), 5);
    };
    disturb(&mut group);
    let task = poll_all(&mut group).persist.remove(0);
    disturb(&mut group);
    group.persisted(task.number);
    assert!(poll_all(&mut group).installed.is_some());
    disturb(&mut group);
    group.applied(40);
    for _ in 0..50 {
        group.tick();
    }
    assert!(poll_all(&mut group).role.is_some_and(|role| role.leader == 0), "now it looks for a leader");
}

#[test]
fn senseless_old_and_foreign_snapshots_change_nothing() {
    let (log, mut group) = follower();
    group.step(append(4, (0, 0), 1..=6, 4)).unwrap();
    for task in poll_all(&mut group).persist {
        log.write(&[task.write], true).unwrap();
        group.persisted(task.number);
    }
    poll_all(&mut group);
    let mut outside = snapshot(2, 5, 40, b"m");
    let metadata = outside.snapshot.as_mut().unwrap().metadata.as_mut().unwrap();
    metadata.conf_state = Some(ConfState { voters: vec![2, 3], ..Default::default() });
    assert!(matches!(group.step(outside), Err(StepError::Snapshot(_))));
    assert!(matches!(group.step(snapshot(2, 5, 0, b"m")), Err(StepError::Snapshot(_))));
    let mut future = snapshot(2, 5, 40, b"m");
    future.snapshot.as_mut().unwrap().metadata.as_mut().unwrap().term = 6;
    assert!(matches!(group.step(future), Err(StepError::Snapshot(_))));

    // Committed here already: raft only answers how far it is.
    group.step(snapshot(2, 5, 3, b"m")).unwrap();
    let out = poll_all(&mut group);
    assert!(out.snapshot_fetch.is_none());
    let answers = out.persist.iter().flat_map(|task| &task.after).chain(&out.send);
    assert_eq!(answers.map(|m| m.index).collect::<Vec<_>>(), [4]);
    // Of an old leader.
    group.step(snapshot(3, 4, 50, b"m")).unwrap();
    assert!(poll_all(&mut group).snapshot_fetch.is_none());
    assert_eq!((group.last_index(), group.commit()), (6, 4));
}

#[test]
fn a_snapshot_of_a_leader_that_was_replaced_meanwhile_is_not_taken() {
    let (_log, mut group) = follower();
    group.step(snapshot(2, 5, 40, b"m")).unwrap();
    poll_all(&mut group);
    group.step(RaftMessage { from: 3, ..append(6, (0, 0), 1..=1, 0) }).unwrap();
    poll_all(&mut group);
    assert!(!group.accept_snapshot(40, 5, 1).unwrap());
    assert_eq!((group.last_index(), group.is_installing()), (1, false));
}

/// The applier may have got a configuration change before the snapshot came that has it.
#[test]
fn a_change_of_the_membership_that_a_snapshot_overtook_is_nothing() {
    let (_log, mut group) = follower();
    let mut change = append(4, (0, 0), 1..=1, 1);
    // A ConfChangeV2 that adds learner 9.
    change.entries[0].entry_type = raft::eraftpb::EntryType::EntryConfChangeV2 as i32;
    change.entries[0].data = Bytes::from_static(&[18, 4, 8, 2, 16, 9]);
    group.step(change).unwrap();
    for task in poll_all(&mut group).persist {
        group.persisted(task.number);
    }
    assert_eq!(poll_all(&mut group).committed.len(), 1);
    group.step(snapshot(2, 5, 40, b"m")).unwrap();
    poll_all(&mut group);
    assert!(group.accept_snapshot(40, 5, 1).unwrap());
    let task = poll_all(&mut group).persist.remove(0);
    let write = group.apply_conf_change(1).unwrap();
    assert!(write.is_empty() && write == GroupWrite { group: GROUP, ..Default::default() });
    assert!(group.conf_state().learners.is_empty());
    group.applied(1);
    group.persisted(task.number);
    poll_all(&mut group);
    group.applied(40);
}

fn behind() -> (Mini, u64, u64) {
    let mut mini = Mini::new(&VOTERS);
    mini.flush = true;
    mini.propose(5);
    let leader = mini.elect();
    let slow = if leader == 3 { 2 } else { 3 };
    mini.isolated.insert(slow);
    mini.propose(20);
    mini.cut(leader);
    mini.isolated.clear();
    (mini, leader, slow)
}

#[test]
fn a_follower_whose_log_was_cut_off_catches_up_by_a_snapshot() {
    let (mut mini, leader, slow) = behind();
    mini.tick(10);
    assert_eq!((mini.replicas[&slow].installs, mini.sent_snapshots), (1, 1));
    mini.propose(3);
    assert_eq!(mini.replicas[&slow].applied, mini.replicas[&leader].applied);
    assert_eq!(mini.replicas[&slow].installs, 1, "the log does the rest");
}

#[test]
fn a_follower_is_never_left_in_the_snapshot_state() {
    let (mut mini, leader, slow) = behind();
    mini.hold_files = true;
    mini.tick(10);
    assert!(mini.group(leader).follower(slow).unwrap().in_snapshot);
    let count = mini.sent_snapshots;
    // As long as it fetches, it is left alone.
    for _ in 0..10 {
        mini.group(leader).snapshot_progress(slow);
        mini.tick(15);
    }
    assert_eq!(mini.sent_snapshots, count);
    // It stops: after the deadline the leader looks again, and sends it again.
    mini.tick(60);
    assert!(mini.sent_snapshots > count);
    // A failure that is reported needs no deadline.
    let count = mini.sent_snapshots;
    mini.group(leader).report_snapshot(slow, false);
    mini.tick(5);
    assert!(mini.sent_snapshots > count);
    mini.hold_files = false;
    mini.fetch(slow);
    mini.tick(10);
    assert_eq!(mini.replicas[&slow].applied, mini.replicas[&leader].applied);
}

#[test]
fn only_snapshots_of_this_log_are_offered() {
    let (mut mini, leader, _) = behind();
    let group = mini.group(leader);
    let (applied, term) = (group.applied_index(), group.term());
    let offer = |group: &mut Group, index, term| group.offer_snapshot(index, term, Bytes::from_static(b"m"));
    for (index, term) in [(0, 0), (applied + 1, term), (applied - 1, term), (applied, term + 1)] {
        let refused = offer(group, index, term);
        assert!(matches!(refused, Err(OfferError::NotOfThisLog { .. })), "{index} {term}: {refused:?}");
    }
    offer(group, applied, term).unwrap();
    assert_eq!(group.offered_snapshot(), Some(applied));
    let large = vec![0; 1 << 21].into();
    assert!(matches!(group.offer_snapshot(applied, term, large), Err(OfferError::TooLarge { .. })));
    group.withdraw_snapshot();
    assert_eq!(group.offered_snapshot(), None);
}

#[test]
fn a_stalled_disk_does_not_fill_the_memory_of_a_follower() {
    let log = Arc::new(MemLog::new());
    log.write(&[bootstrap_write(GROUP, &VOTERS)], true).unwrap();
    let config = GroupConfig {
        outstanding_writes_max: 5,
        outstanding_bytes_max: 500,
        ..GroupConfig::new(GROUP, 1, 7)
    };
    let mut group = Group::open(config, log, 0).unwrap();
    let mut tasks = Vec::new();
    let mut refused = None;
    for n in 0..100u64 {
        match group.step(append(1, (n, u64::from(n > 0)), n + 1..=n + 1, 0)) {
            Ok(()) => tasks.extend(poll_all(&mut group).persist),
            Err(error) => {
                refused = Some((n, error));
                break;
            }
        }
    }
    assert!(matches!(refused, Some((5, StepError::DiskBusy { writes: 5 }))), "{refused:?}");
    let heartbeat = RaftMessage {
        msg_type: MessageType::MsgHeartbeat as i32,
        from: 2,
        to: 1,
        term: 1,
        ..Default::default()
    };
    assert!(matches!(group.step(heartbeat.clone()), Err(StepError::DiskBusy { .. })));
    // Votes still get through.
    group
        .step(RaftMessage {
            msg_type: MessageType::MsgRequestPreVote as i32,
            from: 3,
            term: 2,
            ..heartbeat.clone()
        })
        .unwrap();
    for task in tasks {
        group.persisted(task.number);
    }
    group.step(heartbeat).unwrap();
    group.step(append(1, (5, 1), 6..=40, 0)).unwrap();
    poll_all(&mut group);
    let more = group.step(append(1, (40, 1), 41..=41, 0));
    assert!(matches!(more, Err(StepError::DiskBusy { .. })), "by bytes");
}
