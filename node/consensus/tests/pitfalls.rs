//! One test for each known way to be hurt by raft 0.7.0.
#![allow(clippy::field_reassign_with_default)] // generated eraftpb structs
mod sim;

use bytes::Bytes;
use carillon_consensus::{
    EntryKind, Group, GroupConfig, GroupError, GroupWrite, LogStore as _, MemLog, Outputs, ProposeError,
    StepError, bootstrap_write,
};
use carillon_proto::internal::{RaftEntry, RaftMessage};
use raft::eraftpb::{Entry, HardState, MessageType};
use sim::{Faults, Sim, VOTERS, kind};
use std::sync::Arc;

fn quiet(seed: u64) -> Sim {
    let mut sim = Sim::new(seed, 1, Faults::none());
    (sim.clients, sim.trouble) = (false, false);
    sim
}

/// A settled cluster, its leader and its followers.
fn settled(seed: u64) -> (Sim, usize, [usize; 2]) {
    let mut sim = quiet(seed);
    while !sim.settled() {
        assert!(sim.run_ms(100), "{:?}", sim.oracle.violation);
        assert!(sim.now_ms < 20_000, "no leader in 20 s");
    }
    let leader = (0..3).find(|n| sim.group(*n, 0).is_leader()).unwrap();
    (sim, leader, [(leader + 1) % 3, (leader + 2) % 3])
}

fn poll_all(group: &mut Group) -> Outputs {
    let mut out = Outputs::default();
    while group.poll(&mut out).unwrap() {}
    out
}

fn fresh(voters: &[u64]) -> (Arc<MemLog>, Group) {
    let log = Arc::new(MemLog::new());
    log.write(&[bootstrap_write(1, voters)], true).unwrap();
    let group = Group::open(GroupConfig::new(1, 1, 7), log.clone(), 0).unwrap();
    (log, group)
}

fn entry(index: u64, term: u64) -> Entry {
    let mut entry = Entry::default();
    (entry.index, entry.term, entry.data) = (index, term, Bytes::from_static(b"command"));
    entry
}

fn from_2(msg_type: MessageType, term: u64) -> RaftMessage {
    RaftMessage { msg_type: msg_type as i32, from: 2, to: 1, term, ..Default::default() }
}

fn append(term: u64, after: (u64, u64), entries: &[(u64, u64)], commit: u64) -> RaftMessage {
    let entry = |&(index, term): &(u64, u64)| RaftEntry {
        index,
        term,
        data: vec![1; 20].into(),
        ..Default::default()
    };
    RaftMessage {
        index: after.0,
        log_term: after.1,
        entries: entries.iter().map(entry).collect(),
        commit,
        ..from_2(MessageType::MsgAppend, term)
    }
}

#[test]
fn a_follower_refuses_proposals_and_names_the_leader() {
    let (mut sim, leader, [follower, _]) = settled(1);
    let hint = sim.nodes[leader].id;
    let refused = Err(ProposeError::NotLeader { leader_hint: hint });
    let group = sim.group(follower, 0);
    assert_eq!(group.propose(Bytes::from_static(b"x")).map(|_| ()), refused);
    assert_eq!(group.read_index(1), refused);
    assert_eq!(group.transfer_leader(1), refused);
    assert!(poll_all(group).is_empty(), "nothing is forwarded");
}

#[test]
fn a_proposal_from_a_peer_is_refused() {
    let (mut sim, leader, [follower, _]) = settled(2);
    let (from, to, term) = (sim.nodes[follower].id, sim.nodes[leader].id, sim.group(leader, 0).term());
    for msg_type in [MessageType::MsgPropose, MessageType::MsgReadIndex, MessageType::MsgTransferLeader] {
        let entries = vec![RaftEntry { data: vec![1].into(), ..Default::default() }];
        let message =
            RaftMessage { msg_type: msg_type as i32, from, to, term, entries, ..Default::default() };
        let last = sim.group(leader, 0).last_index();
        assert!(matches!(sim.group(leader, 0).step(message), Err(StepError::Wire(_))));
        assert_eq!(sim.group(leader, 0).last_index(), last);
    }
}

#[test]
fn messages_for_others_from_nobody_or_with_senseless_snapshots_are_refused() {
    let (_log, mut group) = fresh(&VOTERS);
    let heartbeat = from_2(MessageType::MsgHeartbeat, 1);
    let to_other = RaftMessage { to: 3, ..heartbeat.clone() };
    assert!(matches!(group.step(to_other), Err(StepError::WrongReplica(3))));
    for from in [0, 1] {
        let message = RaftMessage { from, ..heartbeat.clone() };
        assert!(matches!(group.step(message), Err(StepError::NotAPeer(_))));
    }
    let unknown = RaftMessage { from: 9, ..from_2(MessageType::MsgAppendResponse, 1) };
    assert!(matches!(group.step(unknown), Err(StepError::NotAPeer(9))));
    assert!(matches!(group.step(from_2(MessageType::MsgSnapshot, 1)), Err(StepError::Snapshot(_))));
    let asks = RaftMessage { request_snapshot: 1, ..from_2(MessageType::MsgAppendResponse, 1) };
    assert!(matches!(group.step(asks), Err(StepError::Snapshot(_))));
    assert_eq!(group.term(), 1, "as it was created");
}

#[test]
fn bad_proposals_are_refused_before_raft_sees_them() {
    let (mut sim, leader, _) = settled(3);
    let last = sim.group(leader, 0).last_index();
    let group = sim.group(leader, 0);
    assert_eq!(group.propose(Bytes::new()), Err(ProposeError::Empty));
    assert_eq!(group.propose_many(Vec::new()), Err(ProposeError::Empty));
    let bytes = 1024 * 1024 + 1;
    let large = group.propose(vec![0; bytes].into());
    assert_eq!(large, Err(ProposeError::TooLarge { bytes, bytes_max: 1024 * 1024 }));
    assert_eq!(group.transfer_leader(9), Err(ProposeError::NotAVoter(9)));
    assert_eq!(group.last_index(), last);
}

#[test]
fn proposals_beyond_the_uncommitted_limit_are_dropped_with_an_answer() {
    let (mut sim, leader, _) = settled(4);
    let group = sim.group(leader, 0);
    let proposal = group.propose_many(vec![vec![1; 2000].into(), vec![2; 2000].into()]).unwrap();
    assert_eq!((proposal.term, proposal.index + 1), (group.term(), group.last_index()));
    assert_eq!(group.uncommitted_bytes(), 4000);
    assert_eq!(group.propose(vec![3; 2001].into()), Err(ProposeError::Dropped));
    assert_eq!(group.propose(vec![3; 2000].into()).unwrap().index, proposal.index + 2);
    sim.pump(leader, 0);
    assert!(sim.run_ms(1000));
    assert_eq!(sim.group(leader, 0).uncommitted_bytes(), 0);
}

#[test]
fn a_state_ahead_of_the_written_commit_index_opens() {
    let log = Arc::new(MemLog::new());
    let mut hard_state = HardState::default();
    (hard_state.term, hard_state.vote, hard_state.commit) = (3, 2, 4);
    let mut write = bootstrap_write(1, &VOTERS);
    write.entries = (1..=10).map(|n| entry(n, 3)).collect();
    write.hard_state = Some(hard_state);
    log.write(&[write], true).unwrap();
    let open = |applied| Group::open(GroupConfig::new(1, 1, 7), log.clone(), applied);
    let group = open(8).unwrap();
    assert_eq!((group.commit(), group.applied_index(), group.last_index(), group.term()), (8, 8, 10, 3));
    let mut group = open(2).unwrap();
    let out = poll_all(&mut group);
    let given: Vec<_> = out.committed.iter().map(|e| (e.index, e.kind)).collect();
    assert_eq!(given, [(3, EntryKind::Normal), (4, EntryKind::Normal)]);
    assert!(matches!(open(11), Err(GroupError::AppliedAheadOfLog { applied: 11, last_index: 10, .. })));
    log.truncate(1, 5, 3).unwrap();
    assert!(matches!(open(4), Err(GroupError::AppliedBehindLog { applied: 4, truncated_index: 5, .. })));
    assert_eq!(open(5).unwrap().first_index(), 6);
}

#[test]
fn groups_that_cannot_run_are_refused_at_open() {
    let log = Arc::new(MemLog::new());
    let open = |node, log: &Arc<MemLog>| Group::open(GroupConfig::new(1, node, 7), log.clone(), 0);
    assert!(matches!(open(1, &log), Err(GroupError::Unknown(1))));
    log.write(&[bootstrap_write(1, &VOTERS)], true).unwrap();
    assert!(matches!(open(4, &log), Err(GroupError::NotMember { node_id: 4, .. })));
    let config = GroupConfig { max_size_per_msg: 0, ..GroupConfig::new(1, 1, 7) };
    assert!(matches!(Group::open(config, log.clone(), 0), Err(GroupError::Config(_))));
    let config = GroupConfig { election_ticks: 2, ..GroupConfig::new(1, 1, 7) };
    assert!(matches!(Group::open(config, log.clone(), 0), Err(GroupError::Config(_))));
    let mut hard_state = HardState::default();
    (hard_state.term, hard_state.commit) = (1, 5);
    log.write(&[GroupWrite { group: 1, hard_state: Some(hard_state), ..Default::default() }], true).unwrap();
    assert!(matches!(open(1, &log), Err(GroupError::CommitAheadOfLog { commit: 5, last_index: 0, .. })));
}

/// raft drops such a read without a word.
#[test]
fn a_read_before_the_leader_has_committed_in_its_term_is_answered_with_not_ready() {
    let mut sim = quiet(5);
    let leader = loop {
        if let Some(n) = (0..3).find(|n| sim.group(*n, 0).is_leader()) {
            break n;
        }
        assert!(sim.step());
    };
    assert!(!sim.group(leader, 0).leader_ready());
    assert_eq!(sim.group(leader, 0).read_index(1), Err(ProposeError::NotReady));
    while !sim.group(leader, 0).leader_ready() {
        assert!(sim.step());
    }
    sim.read(leader, 0).unwrap();
    assert!(sim.run_ms(300));
    assert_eq!(sim.stats.reads, 1);
}

#[test]
fn reads_under_way_are_limited() {
    let (mut sim, leader, _) = settled(6);
    let group = sim.group(leader, 0);
    for ctx in 0..1024 {
        group.read_index(ctx).unwrap();
    }
    assert_eq!(group.read_index(1024), Err(ProposeError::TooManyReads(1024)));
}

#[test]
fn a_vote_leaves_only_after_it_is_written() {
    let (_log, mut group) = fresh(&VOTERS);
    group.step(from_2(MessageType::MsgRequestVote, 5)).unwrap();
    let mut out = poll_all(&mut group);
    assert!(out.send.is_empty() && out.role.is_some());
    let task = out.persist.remove(0);
    let hard_state = task.write.hard_state.unwrap();
    assert_eq!((hard_state.term, hard_state.vote, task.must_sync), (5, 2, true));
    assert_eq!(task.after.iter().map(kind).collect::<Vec<_>>(), [MessageType::MsgRequestVoteResponse]);
    assert!(!task.after[0].reject && out.persist.is_empty());
    group.persisted(task.number);
    assert!(poll_all(&mut group).is_empty());
}

#[test]
fn an_acknowledgement_and_all_that_follows_wait_for_the_write_in_order() {
    let (_log, mut group) = fresh(&VOTERS);
    group.step(append(1, (0, 0), &[(1, 1), (2, 1)], 0)).unwrap();
    let first = poll_all(&mut group);
    group.step(from_2(MessageType::MsgHeartbeat, 1)).unwrap();
    let second = poll_all(&mut group);
    assert!(first.send.is_empty() && second.send.is_empty());
    assert_eq!(first.persist[0].write.entries.len(), 2);
    let empty = &second.persist[0];
    assert!(empty.write.entries.is_empty() && empty.write.hard_state.is_none() && !empty.must_sync);
    assert_eq!(kind(&empty.after[0]), MessageType::MsgHeartbeatResponse);
    assert_eq!(group.outstanding_writes(), 2);
    group.persisted(first.persist[0].number);
    group.persisted(empty.number);
    group.step(from_2(MessageType::MsgHeartbeat, 1)).unwrap();
    let idle = poll_all(&mut group);
    assert!(idle.persist.is_empty(), "an idle heartbeat does not wake the log writer");
    assert_eq!(kind(&idle.send[0]), MessageType::MsgHeartbeatResponse);
}

#[test]
fn committed_entries_come_only_after_they_are_durable_here() {
    let (_log, mut group) = fresh(&VOTERS);
    group.step(append(1, (0, 0), &[(1, 1), (2, 1)], 2)).unwrap();
    let out = poll_all(&mut group);
    assert!(out.committed.is_empty());
    assert_eq!(group.commit(), 2);
    group.persisted(out.persist[0].number);
    let indexes: Vec<_> = poll_all(&mut group).committed.iter().map(|e| e.index).collect();
    assert_eq!(indexes, [1, 2]);
    group.applied(2);
    assert_eq!((group.applied_index(), group.unapplied_bytes()), (2, 0));
}

/// Entries 1..=3 of term 1, replaced from 2 on in term 2, and put back in term 3 by a leader that has the first ones:
/// the first write proves nothing while the others are under way.
#[test]
fn entries_that_are_being_replaced_are_not_taken_for_durable() {
    let (log, mut group) = fresh(&VOTERS);
    group.step(append(1, (0, 0), &[(1, 1), (2, 1), (3, 1)], 0)).unwrap();
    let first = poll_all(&mut group);
    group.step(RaftMessage { from: 3, ..append(2, (1, 1), &[(2, 2)], 0) }).unwrap();
    let second = poll_all(&mut group);
    group.step(append(3, (1, 1), &[(2, 1), (3, 1), (4, 3)], 3)).unwrap();
    let third = poll_all(&mut group);
    let write = |out: &Outputs| log.write(&[out.persist[0].write.clone()], true).unwrap();
    write(&first);
    group.persisted(first.persist[0].number);
    assert!(poll_all(&mut group).committed.is_empty(), "a crash after the second write would lose 2 and 3");
    write(&second);
    group.persisted(second.persist[0].number);
    assert!(poll_all(&mut group).committed.is_empty());
    write(&third);
    group.persisted(third.persist[0].number);
    let given: Vec<_> = poll_all(&mut group).committed.iter().map(|e| (e.index, e.term)).collect();
    assert_eq!(given, [(1, 1), (2, 1), (3, 1)]);
}

#[test]
fn a_slow_applier_is_not_flooded_and_gets_everything_in_order() {
    let (log, _) = fresh(&VOTERS);
    let config =
        GroupConfig { unapplied_bytes_max: 300, committed_bytes_max: 100, ..GroupConfig::new(1, 1, 7) };
    let mut group = Group::open(config, log.clone(), 0).unwrap();
    let entries: Vec<_> = (1..=200).map(|n| (n, 1)).collect();
    group.step(append(1, (0, 0), &entries, 200)).unwrap();
    let out = poll_all(&mut group);
    log.write(&[out.persist[0].write.clone()], true).unwrap();
    group.persisted(out.persist[0].number);
    let mut last = 0;
    while last < 200 {
        let given = poll_all(&mut group).committed;
        assert!(given.iter().map(|e| e.index).eq(last + 1..last + 1 + given.len() as u64));
        assert!(!given.is_empty() && group.unapplied_bytes() <= 400, "{}", group.unapplied_bytes());
        last += given.len() as u64;
        group.applied(last);
    }
    assert!(poll_all(&mut group).committed.is_empty());
}

#[test]
fn a_commit_index_alone_is_not_written_at_once_but_soon() {
    let (_log, mut group) = fresh(&VOTERS);
    group.step(append(1, (0, 0), &[(1, 1)], 0)).unwrap();
    let out = poll_all(&mut group);
    group.persisted(out.persist[0].number);
    group.step(RaftMessage { commit: 1, ..from_2(MessageType::MsgHeartbeat, 1) }).unwrap();
    assert!(poll_all(&mut group).persist.is_empty());
    let mut written = Vec::new();
    for _ in 0..20 {
        group.tick();
        group.step(RaftMessage { commit: 1, ..from_2(MessageType::MsgHeartbeat, 1) }).unwrap();
        for task in poll_all(&mut group).persist {
            written.push((task.write.hard_state.unwrap().commit, task.must_sync));
            group.persisted(task.number);
        }
    }
    assert_eq!(written, [(1, false)]);
}

/// raft would panic here, at every restart again.
#[test]
fn lost_log_is_noticed_when_the_leader_counts_on_it() {
    let (_log, mut group) = fresh(&VOTERS);
    let heartbeat = RaftMessage { commit: 7, ..from_2(MessageType::MsgHeartbeat, 1) };
    assert!(matches!(group.step(heartbeat), Err(StepError::LogLost { commit: 7, last_index: 0 })));
}

/// raft-rs 557: while it probes, 0.7.0 takes a late rejection for news and falls back behind what is acknowledged.
#[test]
fn a_late_rejection_does_not_set_a_follower_back() {
    let (mut sim, leader, [follower, _]) = settled(7);
    for _ in 0..5 {
        sim.propose(leader, 0, 3).unwrap();
        assert!(sim.run_ms(500));
    }
    let (from, to) = (sim.nodes[follower].id, sim.nodes[leader].id);
    let group = sim.group(leader, 0);
    let (term, last) = (group.term(), group.last_index());
    assert_eq!(group.slowest_match(), Some(last));
    group.report_unreachable(from);
    let msg_type = MessageType::MsgAppendResponse as i32;
    let late = RaftMessage {
        msg_type,
        from,
        to,
        term,
        index: last,
        reject: true,
        log_term: 1,
        ..Default::default()
    };
    group.step(late).unwrap();
    group.propose(Bytes::from_static(b"next")).unwrap();
    let sent = poll_all(group).send;
    let appends: Vec<_> = sent.iter().filter(|m| m.to == from && kind(m) == MessageType::MsgAppend).collect();
    assert_eq!(appends.iter().map(|m| m.index).collect::<Vec<_>>(), [last]);
}

/// raft 0.7.0 panics when it refuses a pre-vote in term 0; with priorities it refuses at the first election.
#[test]
fn a_new_group_can_refuse_a_pre_vote_of_lower_priority() {
    let log = Arc::new(MemLog::new());
    log.write(&[bootstrap_write(1, &[1, 2, 3])], true).unwrap();
    let mut config = GroupConfig::new(1, 1, 7);
    config.priority = 1;
    let mut group = Group::open(config, log, 0).unwrap();
    let term = group.term() + 1;
    group.step(from_2(MessageType::MsgRequestPreVote, term)).unwrap();
    let out = poll_all(&mut group);
    assert!(out.send.iter().chain(out.persist.iter().flat_map(|p| &p.after)).any(|m| m.reject), "{out:?}");
}

#[test]
fn a_follower_that_hears_nothing_does_not_disturb_the_leader() {
    let (mut sim, leader, [deaf, other]) = settled(8);
    let term = sim.group(leader, 0).term();
    sim.cuts.extend([(leader, deaf), (other, deaf)]);
    assert!(sim.run_ms(30_000));
    assert!(sim.group(leader, 0).is_leader());
    assert_eq!(sim.group(leader, 0).term(), term, "pre-votes do not raise the term");
    sim.propose(leader, 0, 1).unwrap();
    sim.cuts.clear();
    assert!(sim.run_ms(5000));
    assert!(sim.settled() && sim.group(leader, 0).is_leader());
    assert_eq!(sim.group(deaf, 0).term(), term);
}

#[test]
fn a_leader_that_hears_nothing_steps_down_and_another_takes_over() {
    let (mut sim, leader, [a, b]) = settled(9);
    sim.cuts.extend([(a, leader), (b, leader)]);
    assert!(sim.run_ms(10_000));
    assert!(!sim.group(leader, 0).is_leader());
    let new = [a, b].into_iter().find(|n| sim.group(*n, 0).leader_ready()).expect("a new leader");
    sim.propose(new, 0, 1).unwrap();
    sim.cuts.clear();
    assert!(sim.run_ms(5000));
    assert!(sim.settled(), "{:?}", sim.oracle.violation);
}

#[test]
fn leadership_is_handed_over_and_proposals_are_dropped_meanwhile() {
    let (mut sim, leader, [target, other]) = settled(10);
    sim.propose(leader, 0, 5).unwrap();
    sim.cuts.extend([(leader, target), (target, leader)]);
    let to = sim.nodes[target].id;
    sim.group(leader, 0).transfer_leader(to).unwrap();
    assert_eq!(sim.group(leader, 0).propose(Bytes::from_static(b"x")), Err(ProposeError::Dropped));
    sim.pump(leader, 0);
    sim.cuts.clear();
    assert!(sim.run_ms(3000));
    assert!(!sim.group(other, 0).is_leader());
    let now = if sim.group(target, 0).is_leader() { target } else { leader };
    sim.propose(now, 0, 1).unwrap();
    let to = sim.nodes[3 - now - other].id;
    sim.group(now, 0).transfer_leader(to).unwrap();
    sim.pump(now, 0);
    assert!(sim.run_ms(1000));
    assert_eq!(sim.group(other, 0).leader_id(), to);
}

/// No soft state changes then.
#[test]
fn a_new_term_without_a_leader_is_told() {
    let (_log, mut group) = fresh(&VOTERS);
    group.step(from_2(MessageType::MsgHeartbeat, 3)).unwrap();
    let role = poll_all(&mut group).role.unwrap();
    assert_eq!((role.term, role.leader, role.is_leader), (3, 2, false));
    assert_eq!(poll_all(&mut group).role, None);
    for _ in 0..10 {
        group.tick();
    }
    group.step(RaftMessage { from: 3, ..from_2(MessageType::MsgRequestVote, 7) }).unwrap();
    let role = poll_all(&mut group).role.unwrap();
    assert_eq!((role.term, role.leader), (7, 0));
    group.step(RaftMessage { from: 3, ..from_2(MessageType::MsgRequestVote, 9) }).unwrap();
    assert_eq!(poll_all(&mut group).role.unwrap().term, 9);
}

#[test]
fn a_restarted_follower_catches_up_from_a_log_that_left_the_cache() {
    let (mut sim, leader, [down, _]) = settled(11);
    sim.crash(down);
    for _ in 0..60 {
        sim.propose(leader, 0, 4).unwrap();
        assert!(sim.run_ms(50));
    }
    assert!(sim.group(leader, 0).cache_bytes() < 10_000, "{}", sim.group(leader, 0).cache_bytes());
    sim.restart(down);
    assert!(sim.run_ms(10_000));
    assert!(sim.settled(), "{:?}", sim.oracle.violation);
    assert!(sim.replica(down, 0).applied.len() > 240);
}

#[test]
fn the_log_can_be_cut_below_what_everybody_has() {
    let (mut sim, leader, _) = settled(12);
    for _ in 0..10 {
        sim.propose(leader, 0, 4).unwrap();
        assert!(sim.run_ms(100));
    }
    let cut = sim.group(leader, 0).slowest_match().unwrap();
    let term = sim.group(leader, 0).term_at(cut).unwrap();
    assert!(cut > 30 && sim.settled());
    for n in 0..3 {
        sim.nodes[n].log.truncate(0, cut, term).unwrap();
        sim.group(n, 0).log_truncated(cut, term);
        assert_eq!((sim.group(n, 0).first_index(), sim.group(n, 0).term_at(cut)), (cut + 1, Some(term)));
    }
    sim.propose(leader, 0, 2).unwrap();
    assert!(sim.run_ms(2000));
    assert!(sim.settled(), "{:?}", sim.oracle.violation);
}

#[test]
fn a_lone_voter_elects_itself_and_commits_after_its_own_write() {
    let (_log, mut group) = fresh(&[1]);
    group.campaign().unwrap();
    let out = poll_all(&mut group);
    assert!(group.is_leader() && !group.leader_ready() && out.committed.is_empty());
    for task in out.persist {
        group.persisted(task.number);
    }
    let out = poll_all(&mut group);
    assert_eq!(out.committed.iter().map(|e| e.kind).collect::<Vec<_>>(), [EntryKind::Empty]);
    assert!(group.leader_ready());
    group.read_index(77).unwrap();
    assert_eq!(poll_all(&mut group).reads.iter().map(|r| (r.ctx, r.index)).collect::<Vec<_>>(), [(77, 1)]);
}
