//! What must be true whatever happens (invariants I1 to I9 of the module documentation). Sees everything, influences
//! nothing, keeps the first violation.
//!
//! The canonical history: the first replica that applies an index says what it holds; every other one must agree, with
//! the digest that chains all results and events. What messages went through is read from the events of that history.
use super::disk::SimDisk;
use super::recipients::Recipients;
use super::truth::Truth;
use carillon_consensus::{LogStore as _, RoleChange};
use carillon_core::{CommandResult, DETAIL_RESEND, message};
use carillon_proto::MessageId;
use carillon_proto::internal::{EventRecord, MessageStatus, RaftMessage, UnknownPolicy};
use carillon_proto::public::{MessageState, Outcome};
use prost::bytes::Bytes;
use raft::eraftpb::MessageType;
use std::collections::{BTreeMap, BTreeSet};

/// One applied entry: its term, a hash of its data and the digest after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub term: u64,
    pub data: u64,
    pub digest: Vec<u8>,
}

/// A message as the canonical history knows it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub state: MessageState,
    pub detail: String,
    /// Second sends that a class allowed.
    pub resends: u32,
    pub attempts: u32,
}

/// See the module documentation.
#[derive(Default)]
pub struct Oracle {
    pub violation: Option<String>,
    /// One leader for each (group, term).
    pub leaders: BTreeMap<(u32, u64), u64>,
    pub history: BTreeMap<u32, Vec<Applied>>,
    pub messages: BTreeMap<MessageId, Seen>,
    /// (practice, key) -> content and id that a client was told.
    pub keys: BTreeMap<(u32, u64), (u64, MessageId)>,
    /// Every id that a client was told.
    pub acked: BTreeMap<MessageId, u32>,
    pub canceled: BTreeMap<MessageId, u64>,
    /// (practice, recipient) of the opt-outs that are committed.
    pub stopped: BTreeSet<(u32, Bytes)>,
    pub recipients: Recipients,
    pub truth: Truth,
}

impl Oracle {
    pub fn fail(&mut self, text: String) {
        self.violation.get_or_insert(text);
    }

    /// I3: one leader a term.
    pub fn role(&mut self, group: u32, node: u64, role: RoleChange) {
        if role.is_leader != (role.leader == node) {
            self.fail(format!("I3 group {group} node {node}: {role:?}"));
        }
        if role.leader == 0 {
            return;
        }
        let known = *self.leaders.entry((group, role.term)).or_insert(role.leader);
        if known != role.leader {
            self.fail(format!("I3 group {group} term {}: leaders {known} and {}", role.term, role.leader));
        }
    }

    /// I3: the committed prefix never changes and equal indexes have equal digests. True for the first replica.
    pub fn applied(&mut self, group: u32, node: u64, index: u64, found: Applied) -> bool {
        let history = self.history.entry(group).or_default();
        match history.get(index as usize - 1) {
            Some(known) if *known == found => false,
            Some(known) => {
                let what =
                    if (known.term, known.data) == (found.term, found.data) { "digest" } else { "entry" };
                let text = format!("I3 group {group} node {node}: another {what} at {index}");
                self.fail(text);
                false
            }
            None if history.len() as u64 + 1 == index => {
                history.push(found);
                true
            }
            None => {
                self.fail(format!("I3 group {group} node {node}: entry {index} applied out of order"));
                false
            }
        }
    }

    /// Follows a message; `status` is what the tables say of it after the entry. Returns the state before.
    pub fn event(&mut self, event: &EventRecord, status: &MessageStatus) -> MessageState {
        let Ok(id) = MessageId::from_bytes(&event.message_id) else {
            self.fail("I9 an event without a message".to_owned());
            return MessageState::Unspecified;
        };
        let to = MessageState::try_from(event.state).unwrap_or(MessageState::Unspecified);
        let fresh = Seen { state: MessageState::Unspecified, detail: String::new(), resends: 0, attempts: 0 };
        let seen = self.messages.entry(id).or_insert(fresh);
        let from = std::mem::replace(&mut seen.state, to);
        seen.detail.clone_from(&event.detail);
        seen.resends += u32::from(to == MessageState::Waiting && event.detail == DETAIL_RESEND);
        let mut wrong = None;
        if !message::legal(from, to) {
            wrong = Some(format!("I9 message {id} went from {from:?} to {to:?}"));
        }
        if to == MessageState::InFlight {
            if event.attempt != seen.attempts + 1 {
                wrong = Some(format!("I4 message {id}: attempt {} after {}", event.attempt, seen.attempts));
            }
            seen.attempts = event.attempt;
            wrong = wrong.or_else(|| begun_too_early(&id, event.attempt, status));
        }
        if to == MessageState::Delivered && !self.truth.is_accepted(&id) {
            wrong = Some(format!("I9 message {id} is DELIVERED but no carrier has it"));
        }
        if let Some(text) = wrong {
            self.fail(text);
        }
        from
    }

    /// I6: nothing begins for a recipient whose opt-out is before it in the log.
    pub fn begun(&mut self, message_id: &[u8], recipient: (u32, Bytes)) {
        if self.stopped.contains(&recipient) {
            let id = MessageId::from_bytes(message_id).map_or_else(|_| "?".to_owned(), |id| id.to_string());
            self.fail(format!("I6 an attempt of message {id} begun after a committed STOP of its recipient"));
        }
    }

    /// I10: order and caps of one recipient.
    pub fn recipient(&mut self, event: &EventRecord, status: &MessageStatus, recipient: Bytes) {
        if let Err(text) = self.recipients.event(event, status, recipient) {
            self.fail(text);
        }
    }

    /// I2: what a client was told about a key.
    pub fn submitted(
        &mut self,
        practice_no: u32,
        key: Option<u64>,
        content: u64,
        result: &CommandResult,
        new: MessageId,
    ) {
        let (id, same) = match result {
            CommandResult::Accepted => (new, true),
            CommandResult::Duplicate { message_id } => (*message_id, true),
            CommandResult::KeyReused { message_id } => (*message_id, false),
            other => return self.fail(format!("I2 a submit was answered with {other:?}")),
        };
        if same {
            self.acked.insert(id, practice_no);
        }
        let Some(key) = key else { return };
        match self.keys.get(&(practice_no, key)) {
            None if same => drop(self.keys.insert((practice_no, key), (content, id))),
            // The first one's answer was lost.
            None => {}
            Some((known, first)) => {
                let fits = *first == id && same == (*known == content);
                if !fits {
                    let text = format!(
                        "I2 key {key} of practice {practice_no} names {first} (content {known}), then {id} for content {content}: {result:?}"
                    );
                    self.fail(text);
                }
            }
        }
    }

    /// What a message promises must be durable when it leaves (part of I3).
    pub fn promise(&mut self, group: u32, message: &RaftMessage, disk: &SimDisk) {
        let node = message.from;
        let Some(durable) = disk.durable(group) else {
            // It was removed from its group, which counts on nothing of it any more.
            if disk.removed(group).ok().flatten().is_some() {
                return;
            }
            return self.fail(format!("I3 group {group} node {node}: speaks before it exists on disk"));
        };
        let (term, vote) = (durable.hard_state.term, durable.hard_state.vote);
        let kind = message_kind(message);
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
            self.fail(format!(
                "I3 group {group} node {node}: {kind:?} of term {} index {} leaves, but the disk has term {term} vote {vote} last {}",
                message.term, message.index, durable.last_index
            ));
        }
    }

    /// I4, I6, I7 at the moment at which a part leaves a node.
    pub fn wrote(&mut self, write: &super::truth::Write) {
        if let Err(text) = self.truth.wrote(write) {
            self.fail(text);
        }
        let state = self.messages.get(&write.id).map_or(MessageState::Unspecified, |seen| seen.state);
        if matches!(
            state,
            MessageState::Unspecified | MessageState::Canceled | MessageState::Expired | MessageState::Dead
        ) || self.messages.get(&write.id).is_some_and(|seen| seen.attempts < write.attempt_no)
        {
            self.fail(format!(
                "I4 message {} attempt {} was sent in state {state:?}, without a committed attempt",
                write.id, write.attempt_no
            ));
        }
    }

    /// I5 at the moment at which a carrier takes a part over.
    pub fn carrier_accepted(&mut self, id: MessageId, attempt_no: u32, part: u32) {
        let resends = self.messages.get(&id).map_or(0, |seen| seen.resends);
        let sends = self.truth.accept(id, attempt_no, part);
        if sends > 1 + resends {
            self.fail(format!(
                "I5 message {id} was taken over by {sends} attempts, {resends} possible duplicates are counted"
            ));
        }
    }
}

/// I4: an attempt follows only one that provably handed nothing over, or a recorded decision of the class.
fn begun_too_early(id: &MessageId, attempt_no: u32, status: &MessageStatus) -> Option<String> {
    let earlier = status.attempts.iter().filter(|a| a.number < attempt_no);
    let policy = status.retry.unwrap_or_default().unknown_policy();
    let begun = status.attempts.iter().find(|a| a.number == attempt_no).map_or(0, |a| a.begin_ms);
    for attempt in earlier {
        let outcome = Outcome::try_from(attempt.outcome).unwrap_or(Outcome::Unspecified);
        let last = attempt.number + 1 == attempt_no;
        let fine = match outcome {
            Outcome::Throttled
            | Outcome::CapReached
            | Outcome::Transient
            | Outcome::LaneBroken
            | Outcome::NotSent => true,
            Outcome::Ambiguous => policy == UnknownPolicy::ResendOnce,
            Outcome::Unspecified => false,
            // Its answer came later, in the same entry: what counted was that there was none.
            _ if attempt.end_ms >= begun => policy == UnknownPolicy::ResendOnce,
            Outcome::Accepted => false,
            // A late refusal of an attempt before the last one: nothing was handed over by it.
            _ => !last && policy == UnknownPolicy::ResendOnce,
        };
        if !fine {
            return Some(format!(
                "I4 message {id}: attempt {attempt_no} begun after {outcome:?} ({policy:?})"
            ));
        }
    }
    None
}

pub fn message_kind(message: &RaftMessage) -> MessageType {
    use protobuf::ProtobufEnum as _;
    MessageType::from_i32(message.msg_type).unwrap_or(MessageType::MsgHup)
}
