//! Replicas come, move and go: learner, joint configuration, leave, remove, with a crash at every step of every replica.
mod mini;

use carillon_consensus::{
    GroupWrite, LogError, LogStore as _, MemLog, MemberChange, OfferError, ProposeError, bootstrap_write,
    join_write,
};
use mini::{GROUP, Mini};

/// The replica that takes over from 3: a later incarnation of a node that had one before.
const NEW: u64 = 1 << 32 | 4;

fn moved_conf(mini: &mut Mini, leader: u64) -> Option<MemberChange> {
    let conf = mini.group(leader).conf_state();
    let (voters, learners) = (conf.voters.clone(), conf.learners.clone());
    if !conf.voters_outgoing.is_empty() {
        return Some(MemberChange::Leave);
    }
    match (voters.contains(&NEW), learners.contains(&NEW), voters.contains(&3)) {
        (false, false, _) => Some(MemberChange::AddLearner(NEW)),
        (false, true, _) => Some(MemberChange::Enter { promote: vec![NEW], demote: vec![3] }),
        (true, _, _) if learners.contains(&3) => Some(MemberChange::Remove(3)),
        _ => None,
    }
}

/// What a planner does: looks, proposes the next step, waits, looks again. Crashed replicas come back after a while.
fn drive(mini: &mut Mini) {
    for round in 0..3000 {
        if round % 25 == 24 {
            for id in mini.replicas.keys().copied().collect::<Vec<_>>() {
                mini.start(id);
            }
        }
        mini.tick(1);
        let Some(leader) = mini.leader() else { continue };
        if leader == 3 {
            drop(mini.group(3).transfer_leader(1));
            mini.settle();
            continue;
        }
        match moved_conf(mini, leader) {
            // Refused while one is pending, or the learner is behind.
            Some(change) => drop(mini.group(leader).propose_member_change(&change)),
            None => {
                let last = mini.group(leader).last_index();
                let there = |r: &mini::Replica| r.group.is_some() && r.applied.len() as u64 == last;
                if [1, 2, NEW].iter().all(|id| there(&mini.replicas[id])) {
                    return;
                }
            }
        }
        mini.settle();
    }
    panic!("the replica did not move");
}

fn check_moved(mini: &mut Mini) {
    let leader = mini.elect();
    let mut voters = mini.group(leader).conf_state().voters;
    voters.sort_unstable();
    assert_eq!(voters, [1, 2, NEW]);
    let history = mini.replicas[&leader].applied.clone();
    assert!(history.iter().filter(|(_, data)| !data.is_empty()).count() >= 20);
    for id in [1, 2, NEW] {
        assert_eq!(mini.replicas[&id].applied, history, "replica {id}");
        let state = mini.replica(id).log.load(GROUP).unwrap().unwrap();
        assert_eq!(state.conf_state.voters.len(), 3);
        assert!(state.conf_state.learners.is_empty() && state.conf_state.voters_outgoing.is_empty());
    }
    // The new member counts: with one of the old ones away there is still a majority.
    mini.isolated.insert(1);
    mini.propose(3);
    let leader = mini.elect();
    assert!([2, NEW].contains(&leader));
    assert_eq!(mini.replicas[&2].applied, mini.replicas[&NEW].applied);
}

fn start(flush: bool) -> Mini {
    let mut mini = Mini::new(&[1, 2, 3]);
    mini.flush = flush;
    mini.propose(20);
    mini.create(NEW, join_write(GROUP, NEW));
    mini
}

#[test]
fn a_replica_moves() {
    let mut mini = start(true);
    drive(&mut mini);
    assert_eq!(mini.replicas[&NEW].installs, 1);
    check_moved(&mut mini);
    let three = mini.replicas[&3].group.as_ref().unwrap();
    assert!(!three.is_member(), "it applied its own removal");
}

/// The log alone does not tell who the first voters were.
#[test]
fn a_new_replica_starts_with_a_snapshot_although_the_log_is_complete() {
    let mut mini = start(true);
    let leader = mini.elect();
    assert_eq!(mini.group(leader).first_index(), 1);
    mini.group(leader).propose_member_change(&MemberChange::AddLearner(NEW)).unwrap();
    mini.settle();
    mini.tick(10);
    let conf = mini.group(NEW).conf_state();
    assert_eq!((conf.voters.len(), conf.learners), (3, vec![NEW]));
    assert_eq!((mini.replicas[&NEW].installs, mini.sent_snapshots), (1, 1));
    assert_eq!(mini.replicas[&NEW].applied, mini.replicas[&leader].applied);
}

#[test]
fn every_step_of_every_replica_may_be_its_last_before_a_crash() {
    let mut crashes = 0;
    for flush in [true, false] {
        for id in [1, 2, 3, NEW] {
            for step in 0..400 {
                let mut mini = start(flush);
                mini.crash_at(id, step);
                drive(&mut mini);
                let crashed = mini.crashes;
                mini.calm();
                check_moved(&mut mini);
                crashes += crashed;
                if crashed == 0 {
                    break;
                }
            }
        }
    }
    assert!(crashes > 200, "{crashes}");
}

#[test]
fn steps_that_hurt_are_refused() {
    let mut mini = start(true);
    let leader = mini.elect();
    let other = if leader == 1 { 2 } else { 1 };
    let mut propose = |change| mini.group(leader).propose_member_change(&change).map(|_| ());
    let enter = |promote: &[u64], demote: &[u64]| MemberChange::Enter {
        promote: promote.to_vec(),
        demote: demote.to_vec(),
    };
    assert_eq!(propose(enter(&[], &[leader])), Err(ProposeError::LeaderLeaves));
    for bad in [
        MemberChange::AddLearner(other),
        MemberChange::Remove(other),
        MemberChange::Remove(77),
        enter(&[], &[]),
        enter(&[77], &[]),
        enter(&[], &[77]),
    ] {
        assert!(matches!(propose(bad.clone()), Err(ProposeError::InvalidChange(_))), "{bad:?}");
    }
    assert_eq!(propose(MemberChange::Leave), Err(ProposeError::ConfChangePending), "not joint");

    mini.isolated.insert(NEW);
    mini.group(leader).propose_member_change(&MemberChange::AddLearner(NEW)).unwrap();
    mini.settle();
    let early = mini.group(leader).propose_member_change(&enter(&[NEW], &[]));
    assert_eq!(early.map(|_| ()), Err(ProposeError::NotCaughtUp(NEW)));
    mini.isolated.clear();
    mini.tick(10);
    mini.group(leader).propose_member_change(&enter(&[NEW], &[])).unwrap();
    let follower = mini.group(other).propose_member_change(&MemberChange::Leave);
    assert!(matches!(follower, Err(ProposeError::NotLeader { .. })));
}

/// raft 0.7.0 panics when a leader that has no vote any more removes itself (found by the simulator).
#[test]
fn a_leader_that_only_the_old_voters_elected_neither_leaves_nor_removes_itself() {
    let mut mini = start(true);
    let leader = mini.elect();
    let other = if leader == 1 { 2 } else { 1 };
    mini.group(leader).propose_member_change(&MemberChange::AddLearner(NEW)).unwrap();
    mini.settle();
    mini.tick(10);
    let enter = MemberChange::Enter { promote: vec![NEW], demote: vec![other] };
    mini.group(leader).propose_member_change(&enter).unwrap();
    mini.settle();
    // As an election of the old voters could have it.
    mini.group(leader).transfer_leader(other).unwrap();
    mini.settle();
    mini.tick(3);
    assert!(mini.group(other).leader_ready());
    assert!(!mini.group(other).conf_state().voters.contains(&other));
    let refused = mini.group(other).propose_member_change(&MemberChange::Leave);
    assert_eq!(refused.map(|_| ()), Err(ProposeError::LeaderLeaves));
    mini.group(other).transfer_leader(NEW).unwrap();
    mini.settle();
    assert!(mini.group(NEW).is_leader());
    mini.group(NEW).propose_member_change(&MemberChange::Leave).unwrap();
    mini.settle();
    mini.group(NEW).propose_member_change(&MemberChange::Remove(other)).unwrap();
    mini.settle();
    assert!(!mini.group(NEW).conf_state().learners.contains(&other));
}

#[test]
fn a_snapshot_from_before_a_change_of_the_membership_is_not_offered() {
    let mut mini = start(true);
    let leader = mini.elect();
    let (index, term) = (mini.group(leader).applied_index(), mini.group(leader).term());
    mini.group(leader).offer_snapshot(index, term, "m".into()).unwrap();
    assert_eq!(mini.group(leader).offered_snapshot(), Some(index));
    mini.isolated.insert(NEW);
    mini.group(leader).propose_member_change(&MemberChange::AddLearner(NEW)).unwrap();
    mini.settle();
    assert_eq!(mini.group(leader).offered_snapshot(), None, "its receiver would not be in it");
    let again = mini.group(leader).offer_snapshot(index, term, "m".into());
    assert!(matches!(again, Err(OfferError::MembersChanged { .. })), "{again:?}");
}

#[test]
fn the_id_of_a_removed_replica_never_comes_back() {
    let log = MemLog::new();
    let write = GroupWrite { replica_id: Some(NEW), ..bootstrap_write(GROUP, &[1, NEW]) };
    log.write(&[write], true).unwrap();
    log.write(&[GroupWrite::remove(GROUP)], true).unwrap();
    assert_eq!((log.load(GROUP).unwrap(), log.removed(GROUP).unwrap()), (None, Some(NEW)));
    for old in [NEW, 4, 3] {
        let refused = log.write(&[join_write(GROUP, old)], true);
        assert!(matches!(refused, Err(LogError::Corrupt { .. })), "{old}");
    }
    assert!(log.write(&[GroupWrite { replica_id: None, ..join_write(GROUP, NEW) }], true).is_err());
    log.write(&[join_write(GROUP, 2 << 32 | 4)], true).unwrap();
    assert_eq!(log.removed(GROUP).unwrap(), None);
    assert_eq!(log.load(GROUP).unwrap().unwrap().replica_id, 2 << 32 | 4);
}
