//! What must be true whatever happens: of raft (`carillon_consensus::oracle`), of proposals and of reads. Keeps the first
//! violation.
use carillon_consensus::oracle::{RaftOracle, Seen};
use carillon_consensus::{CommittedEntry, MemLog, Proposal};
use carillon_proto::internal::RaftMessage;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};

#[derive(Default)]
pub struct Oracle {
    /// Its history: (term, hash) of each entry.
    raft: RaftOracle<(u64, u64)>,
    /// (group, node, index, term) -> hash of what was proposed there.
    pending: BTreeMap<(u32, u64, u64, u64), u64>,
    /// (group, index, hash) that a client was told to be accepted.
    pub acked: BTreeSet<(u32, u64, u64)>,
}

impl Deref for Oracle {
    type Target = RaftOracle<(u64, u64)>;

    fn deref(&self) -> &Self::Target {
        &self.raft
    }
}

impl DerefMut for Oracle {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.raft
    }
}

impl Oracle {
    pub fn proposed(&mut self, group: u32, node: u64, proposal: Proposal, hashes: &[u64]) {
        for (n, hash) in hashes.iter().enumerate() {
            let place = (group, node, proposal.index + n as u64, proposal.term);
            if self.pending.insert(place, *hash).is_some() {
                self.fail(format!("{place:?} was given to two proposals"));
            }
        }
    }

    /// True: a client is told that its proposal is accepted.
    pub fn applied(&mut self, group: u32, node: u64, entry: &CommittedEntry, hash: u64) -> bool {
        if self.raft.applied(group, node, entry.index, (entry.term, hash)) == Seen::Wrong {
            return false;
        }
        let Some(proposed) = self.pending.remove(&(group, node, entry.index, entry.term)) else {
            return false;
        };
        if proposed != hash {
            self.fail(format!("group {group} node {node}: not what was proposed at {}", entry.index));
        }
        self.acked.insert((group, entry.index, hash))
    }

    pub fn acked_index(&self, group: u32) -> u64 {
        let range = (group, 0, 0)..(group + 1, 0, 0);
        self.acked.range(range).next_back().map_or(0, |(_, index, _)| *index)
    }

    pub fn read(&mut self, group: u32, index: u64, at_least: u64) {
        if index < at_least {
            self.fail(format!(
                "group {group}: read at {index} misses {at_least}, acknowledged before it began"
            ));
        }
    }

    pub fn promise(&mut self, group: u32, message: &RaftMessage, log: &MemLog) {
        self.raft.promise(group, message, &log.durable(group).expect("the group exists"));
    }
}
