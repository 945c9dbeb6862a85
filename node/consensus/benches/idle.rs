//! What a group costs: `cargo bench -p carillon-consensus --bench idle`.
//!
//! Idle: all replicas of a three-replica group ticked and polled, heartbeats and their answers delivered (every second
//! tick). Busy: proposals of 64 KiB carried through all three replicas, disk in memory.
use bytes::Bytes;
use carillon_consensus::{Group, GroupConfig, LogStore as _, MemLog, Outputs, bootstrap_write};
use std::sync::Arc;
use std::time::Instant;

struct Trio {
    groups: Vec<(Arc<MemLog>, Group)>,
    out: Outputs,
}

impl Trio {
    fn new(group: u32) -> Self {
        let open = |id| {
            let log = Arc::new(MemLog::new());
            log.write(&[bootstrap_write(group, &[1, 2, 3])], true).expect("memory");
            let opened = Group::open(GroupConfig::new(group, id, 1), log.clone(), 0).expect("it was created");
            (log, opened)
        };
        let mut trio = Self { groups: (1..=3).map(open).collect(), out: Outputs::default() };
        trio.groups[0].1.campaign().expect("a voter");
        while !trio.groups[0].1.leader_ready() {
            trio.turn();
        }
        trio
    }

    /// Polls until nothing moves.
    fn turn(&mut self) {
        loop {
            let mut messages = Vec::new();
            for (log, group) in &mut self.groups {
                while group.poll(&mut self.out).expect("healthy") {}
                for task in self.out.persist.drain(..) {
                    log.write(&[task.write], true).expect("memory");
                    messages.extend(task.after);
                    group.persisted(task.number);
                }
                while group.poll(&mut self.out).expect("healthy") {}
                if let Some(last) = self.out.committed.last() {
                    group.applied(last.index);
                }
                messages.append(&mut self.out.send);
                assert!(self.out.persist.is_empty(), "one write is enough in a turn");
                self.out.clear();
            }
            if messages.is_empty() {
                return;
            }
            for message in messages {
                let to = (message.to - 1) as usize;
                self.groups[to].1.step(message).expect("a good message");
            }
        }
    }
}

fn main() {
    for count in [1u32, 16, 64, 256] {
        let mut trios: Vec<_> = (0..count).map(Trio::new).collect();
        let ticks = 200_000 / count;
        let started = Instant::now();
        for _ in 0..ticks {
            for trio in &mut trios {
                for (_, group) in &mut trio.groups {
                    group.tick();
                }
                trio.turn();
            }
        }
        let per_group_ns = started.elapsed().as_nanos() / u128::from(ticks * count);
        println!("idle: {count:>3} groups: {per_group_ns} ns a tick and group, all three replicas together");
    }
    let mut trio = Trio::new(1);
    let data = Bytes::from(vec![7; 64 * 1024]);
    let rounds = 2000u32;
    let started = Instant::now();
    for _ in 0..rounds {
        trio.groups[0].1.propose(data.clone()).expect("the leader");
        trio.turn();
    }
    let per_entry_us = started.elapsed().as_micros() / u128::from(rounds);
    println!("busy: {per_entry_us} us an entry of 64 KiB, one at a time, all three replicas together");
}
