//! What must be true whatever happens. Keeps the first violation.
use carillon_consensus::{CommittedEntry, MemLog, Proposal, RoleChange};
use carillon_proto::internal::RaftMessage;
use raft::eraftpb::MessageType;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub struct Oracle {
    pub violation: Option<String>,
    /// One leader for each (group, term).
    pub leaders: BTreeMap<(u32, u64), u64>,
    /// The one history of a group: (term, hash) of entry i + 1.
    pub history: BTreeMap<u32, Vec<(u64, u64)>>,
    /// (group, node, index, term) -> hash of what was proposed there.
    pending: BTreeMap<(u32, u64, u64, u64), u64>,
    /// (group, index, hash) that a client was told to be accepted.
    pub acked: BTreeSet<(u32, u64, u64)>,
}

impl Oracle {
    pub fn fail(&mut self, text: String) {
        self.violation.get_or_insert(text);
    }

    pub fn role(&mut self, group: u32, node: u64, role: RoleChange) {
        if role.is_leader != (role.leader == node) {
            self.fail(format!("group {group} node {node}: {role:?}"));
        }
        if role.leader == 0 {
            return;
        }
        let known = *self.leaders.entry((group, role.term)).or_insert(role.leader);
        if known != role.leader {
            self.fail(format!("group {group} term {}: leaders {known} and {}", role.term, role.leader));
        }
    }

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
        let history = self.history.entry(group).or_default();
        let found = (entry.term, hash);
        match history.get(entry.index as usize - 1) {
            Some(known) if *known != found => {
                let text =
                    format!("group {group} node {node}: entry {} differs: {known:?} {found:?}", entry.index);
                self.fail(text);
                return false;
            }
            Some(_) => {}
            None if history.len() as u64 + 1 == entry.index => history.push(found),
            None => {
                self.fail(format!("group {group} node {node}: entry {} out of order", entry.index));
                return false;
            }
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

    /// What a message promises must be durable when it leaves.
    pub fn promise(&mut self, group: u32, node: u64, message: &RaftMessage, log: &MemLog) {
        let durable = log.durable(group).expect("the group exists");
        let (term, vote) = (durable.hard_state.term, durable.hard_state.vote);
        let kind = super::kind(message);
        let kept = match kind {
            // They speak of a term to come.
            MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse => true,
            _ if term < message.term => false,
            // It has moved on since: the promise can only be broken by forgetting the newer term.
            _ if term > message.term => true,
            MessageType::MsgRequestVote => vote == node,
            MessageType::MsgRequestVoteResponse if !message.reject => vote == message.to,
            MessageType::MsgAppendResponse if !message.reject => durable.last_index >= message.index,
            _ => true,
        };
        if !kept {
            let last = durable.last_index;
            let text = format!(
                "group {group} node {node} sends {kind:?} term {} index {} to {} with term {term} vote {vote} last {last} \
                 on disk",
                message.term, message.index, message.to
            );
            self.fail(text);
        }
    }
}
