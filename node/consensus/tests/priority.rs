//! Why groups run without raft's election priorities: with a majority up, two replicas can refuse each other for ever.
//! raft 0.7.0 refuses a candidate of lower priority unless its log is longer; a log that is newer but not longer does
//! not help. The simulator found it (a group without a leader for minutes).
use carillon_consensus::{Group, GroupConfig, GroupWrite, LogStore as _, MemLog, Outputs, bootstrap_write};
use raft::eraftpb::{Entry, HardState};
use std::sync::Arc;

const GROUP: u32 = 1;
const VOTERS: [u64; 3] = [1, 2, 3];

/// A replica whose log has one entry, of this term.
fn replica(id: u64, priority: i64, term: u64) -> (Group, Arc<MemLog>) {
    let log = Arc::new(MemLog::new());
    log.write(&[bootstrap_write(GROUP, &VOTERS)], true).unwrap();
    let entry = Entry { index: 1, term, ..Default::default() };
    let hard_state = Some(HardState { term: 3, ..Default::default() });
    let write = GroupWrite { group: GROUP, entries: vec![entry], hard_state, ..Default::default() };
    log.write(&[write], true).unwrap();
    let config = GroupConfig { priority, ..GroupConfig::new(GROUP, id, 7) };
    (Group::open(config, log.clone(), 0).unwrap(), log)
}

/// Runs replicas 1 and 2 (the third one is down); true when one of them leads within `ticks`.
fn elects(priority: i64, ticks: usize) -> bool {
    // The preferred replica has the older log.
    let mut replicas = [replica(1, priority, 2), replica(2, 0, 3)];
    for _ in 0..ticks {
        let mut inbox = Vec::new();
        replicas.iter_mut().for_each(|(group, _)| group.tick());
        for _ in 0..8 {
            for (group, log) in &mut replicas {
                let mut out = Outputs::default();
                while group.poll(&mut out).unwrap() {}
                inbox.append(&mut out.send);
                for task in out.persist {
                    log.write(&[task.write], true).unwrap();
                    inbox.extend(task.after);
                    group.persisted(task.number);
                }
                if let Some(last) = out.committed.last() {
                    group.applied(last.index);
                }
            }
            for message in std::mem::take(&mut inbox) {
                if let Some((group, _)) = replicas.get_mut(message.to as usize - 1) {
                    group.step(message).unwrap();
                }
            }
        }
        if replicas.iter().any(|(group, _)| group.is_leader()) {
            return true;
        }
    }
    false
}

#[test]
fn two_replicas_of_three_elect_a_leader_without_priorities() {
    assert!(elects(0, 200));
}

#[test]
fn with_priorities_they_may_never_do() {
    assert!(!elects(1, 20_000), "raft has changed: priorities could be used again");
}
