//! What must be true of raft groups whatever happens, for simulators: this crate's own and that of the whole cluster. Sees
//! everything, influences nothing, keeps the first violation. Nothing that runs in a node uses it.
//!
//! The canonical history: the first replica that applies an index says what it holds; every other one must agree.
use crate::log_store::GroupState;
use crate::output::RoleChange;
use carillon_proto::internal::RaftMessage;
use protobuf::ProtobufEnum as _;
use raft::eraftpb::MessageType;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// What a replica applied, against the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It is the first replica to apply this index.
    First,
    Again,
    /// A violation.
    Wrong,
}

/// See the module documentation. `E` is what must be equal at equal index.
#[derive(Debug)]
pub struct RaftOracle<E> {
    pub violation: Option<String>,
    /// One leader for each (group, term).
    pub leaders: BTreeMap<(u32, u64), u64>,
    /// Entry i + 1 of each group.
    pub history: BTreeMap<u32, Vec<E>>,
}

impl<E> Default for RaftOracle<E> {
    fn default() -> Self {
        Self { violation: None, leaders: BTreeMap::new(), history: BTreeMap::new() }
    }
}

impl<E: PartialEq + Debug> RaftOracle<E> {
    pub fn fail(&mut self, text: String) {
        self.violation.get_or_insert(text);
    }

    /// One leader a term.
    pub fn role(&mut self, group: u32, replica: u64, role: RoleChange) {
        if role.is_leader != (role.leader == replica) {
            self.fail(format!("I3 group {group} replica {replica}: {role:?}"));
        }
        if role.leader == 0 {
            return;
        }
        let known = *self.leaders.entry((group, role.term)).or_insert(role.leader);
        if known != role.leader {
            self.fail(format!("I3 group {group} term {}: leaders {known} and {}", role.term, role.leader));
        }
    }

    /// The committed prefix never changes, and nothing is applied out of order.
    pub fn applied(&mut self, group: u32, replica: u64, index: u64, found: E) -> Seen {
        let history = self.history.entry(group).or_default();
        match history.get(index as usize - 1) {
            Some(known) if *known == found => Seen::Again,
            Some(known) => {
                let text =
                    format!("I3 group {group} replica {replica}: {index} differs: {known:?}, {found:?}");
                self.fail(text);
                Seen::Wrong
            }
            None if history.len() as u64 + 1 == index => {
                history.push(found);
                Seen::First
            }
            None => {
                self.fail(format!("I3 group {group} replica {replica}: entry {index} applied out of order"));
                Seen::Wrong
            }
        }
    }

    /// What a message promises must be durable when it leaves; `durable` is what a crash at this moment would leave.
    pub fn promise(&mut self, group: u32, message: &RaftMessage, durable: &GroupState) {
        let replica = message.from;
        let (term, vote) = (durable.hard_state.term, durable.hard_state.vote);
        let kind = message_kind(message);
        let kept = match kind {
            // They speak of a term to come.
            MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse => true,
            _ if term < message.term => false,
            // It has moved on since: the promise can only be broken by forgetting the newer term.
            _ if term > message.term => true,
            MessageType::MsgRequestVote => vote == replica,
            MessageType::MsgRequestVoteResponse if !message.reject => vote == message.to,
            MessageType::MsgAppendResponse if !message.reject => durable.last_index >= message.index,
            _ => true,
        };
        if !kept {
            self.fail(format!(
                "I3 group {group} replica {replica}: {kind:?} of term {} index {} leaves, but the disk has term {term} vote {vote} last {}",
                message.term, message.index, durable.last_index
            ));
        }
    }
}

/// Kind of a message of a peer; one that is none of raft's counts as `MsgHup`, which peers never send.
pub fn message_kind(message: &RaftMessage) -> MessageType {
    MessageType::from_i32(message.msg_type).unwrap_or(MessageType::MsgHup)
}
