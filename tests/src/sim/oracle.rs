//! What must be true whatever happens (invariants I1 to I9 of the module documentation). Sees everything, influences
//! nothing, keeps the first violation.
//!
//! What is true of raft groups is in `carillon_consensus::oracle`; here entries agree when their digests, which chain all results and
//! events, do. What messages went through is read from the events of that history.
use super::disk::SimDisk;
use super::recipients::Recipients;
use super::settings::{PlannedLimit, Settings};
use super::stack::Stack;
use super::truth::Truth;
use carillon_consensus::LogStore as _;
use carillon_consensus::oracle::{RaftOracle, Seen as RaftSeen};
use carillon_core::keys::Index;
use carillon_core::{CommandResult, DETAIL_RESEND, message};
use carillon_proto::MessageId;
use carillon_proto::internal::{EventRecord, MessagePayload, MessageStatus, RaftMessage, UnknownPolicy};
use carillon_proto::public::{MessageState, Outcome};
use prost::bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};

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
    /// Second sends that a class or an operator allowed.
    pub resends: u32,
    pub attempts: u32,
    pub practice_no: u32,
    pub key: Option<Index>,
    /// What the key named, as its text says (`care.rs`).
    pub text: Option<(u64, u64)>,
    /// By the clock of the tables.
    pub accepted_ms: u64,
    pub changed_ms: u64,
    /// Retention dropped it, or its key.
    pub retired: bool,
    pub key_gone: bool,
    /// Held since a restore.
    pub quarantined: bool,
    /// An operator let it out of quarantine.
    pub released: bool,
}

impl Seen {
    fn new(payload: &MessagePayload) -> Self {
        let accept = payload.accept.clone().unwrap_or_default();
        Self {
            state: MessageState::Unspecified,
            detail: String::new(),
            resends: 0,
            attempts: 0,
            practice_no: accept.practice_no,
            key: Index::try_from(accept.idempotency_index.as_ref()).ok(),
            text: super::series::named(&accept),
            accepted_ms: payload.accepted_at_ms,
            changed_ms: 0,
            retired: false,
            key_gone: false,
            quarantined: false,
            released: false,
        }
    }
}

/// See the module documentation.
#[derive(Default)]
pub struct Oracle {
    raft: RaftOracle<Applied>,
    pub messages: BTreeMap<MessageId, Seen>,
    /// (practice, key) -> content and id that a client was told.
    pub keys: BTreeMap<(u32, u64), (u64, MessageId)>,
    /// Every id that a client was told.
    pub acked: BTreeMap<MessageId, u32>,
    pub canceled: BTreeMap<MessageId, u64>,
    /// Messages that were accepted after the backup that a lost cluster was restored from.
    pub lost: BTreeSet<MessageId>,
    /// (practice, recipient) of the opt-outs that are committed.
    pub stopped: BTreeSet<(u32, Bytes)>,
    /// Hours of messages that were begun.
    hours: BTreeMap<MessageId, (u64, u64)>,
    pub recipients: Recipients,
    pub truth: Truth,
    /// What is known of stacked limits, and of fuses.
    pub stack: Stack,
    pub fuses: super::fuses::Fuses,
    pub changes: super::care::Changes,
    /// Whoever releases messages after a restore leaves those that a carrier is known to have.
    pub keeps_taken_over: bool,
}

impl Deref for Oracle {
    type Target = RaftOracle<Applied>;

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
    pub fn new(limits: &[PlannedLimit], keeps_taken_over: bool) -> Self {
        Self { stack: Stack::new(limits), keeps_taken_over, ..Self::default() }
    }

    /// I3: the committed prefix never changes and equal indexes have equal digests. True for the first replica.
    pub fn first_to_apply(&mut self, group: u32, node: u64, index: u64, found: Applied) -> bool {
        self.raft.applied(group, node, index, found) == RaftSeen::First
    }

    /// Nothing may be expected of it any more.
    pub fn is_gone(&self, id: &MessageId) -> bool {
        self.lost.contains(id) || self.messages.get(id).is_some_and(|seen| seen.retired)
    }

    /// Its key may name another message by now.
    fn is_key_gone(&self, id: &MessageId) -> bool {
        self.lost.contains(id) || self.messages.get(id).is_some_and(|seen| seen.key_gone)
    }

    /// Follows a message; `found` is what the tables say of it after the entry, `now_ms` their clock. Returns the state before.
    pub fn event(
        &mut self,
        event: &EventRecord,
        (payload, status): &(MessagePayload, MessageStatus),
        now_ms: u64,
    ) -> MessageState {
        let Ok(id) = MessageId::from_bytes(&event.message_id) else {
            self.fail("I9 an event without a message".to_owned());
            return MessageState::Unspecified;
        };
        let to = MessageState::try_from(event.state).unwrap_or(MessageState::Unspecified);
        let seen = self.messages.entry(id).or_insert_with(|| Seen::new(payload));
        let from = std::mem::replace(&mut seen.state, to);
        seen.changed_ms = now_ms;
        seen.detail.clone_from(&event.detail);
        let resent = to == MessageState::Waiting && event.detail.starts_with(DETAIL_RESEND);
        seen.resends += u32::from(resent);
        let mut wrong = None;
        let guarded = to == MessageState::Unknown && event.detail == message::RESTORE_GUARD;
        if guarded {
            // A restore, which is no step of the message: an attempt stands for what nobody knows.
            seen.attempts = event.attempt;
        } else if seen.quarantined && to == MessageState::InFlight {
            wrong = Some(format!("I5 message {id} is in quarantine and begun by itself"));
        }
        seen.released |= seen.quarantined && resent;
        seen.quarantined = guarded;
        if !guarded && !message::legal(from, to) {
            wrong = Some(format!("I9 message {id} went from {from:?} to {to:?}"));
        }
        if to == MessageState::InFlight {
            if event.attempt != seen.attempts + 1 {
                wrong = Some(format!("I4 message {id}: attempt {} after {}", event.attempt, seen.attempts));
            }
            seen.attempts = event.attempt;
            wrong = wrong.or_else(|| {
                let released = (seen.released, self.keeps_taken_over);
                begun_too_early(&id, event.attempt, status, released)
            });
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

    /// I7: no attempt begins outside of the recipient's hours, by the clock of the log. The last minute is the carrier's.
    pub fn hours_of_begun(&mut self, message_id: &[u8], hours: Option<(u64, u64)>, begun_ms: u64) {
        let (Ok(id), Some((open_ms, close_ms))) = (MessageId::from_bytes(message_id), hours) else { return };
        self.hours.insert(id, (open_ms, close_ms));
        if begun_ms < open_ms || begun_ms + 60_000 > close_ms {
            self.fail(format!(
                "I7 an attempt of message {id} begun at {begun_ms}, its hours are {open_ms} to {close_ms}"
            ));
        }
    }

    /// I10: order and caps of one recipient.
    pub fn recipient(
        &mut self,
        event: &EventRecord,
        status: &MessageStatus,
        recipient: (Bytes, bool),
        caps: &Settings,
    ) {
        if let Err(text) = self.recipients.event(event, status, recipient, caps) {
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
            // An answer that was late: the key has named another message since.
            Some(_) if self.is_key_gone(&id) => {}
            Some((_, first)) if self.is_key_gone(first) => match same {
                true => drop(self.keys.insert((practice_no, key), (content, id))),
                false => drop(self.keys.remove(&(practice_no, key))),
            },
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
    pub fn promised(&mut self, group: u32, message: &RaftMessage, disk: &SimDisk) {
        match disk.durable(group) {
            Some(durable) => self.raft.promise(group, message, &durable),
            // It was removed from its group, which counts on nothing of it any more.
            None if disk.removed(group).ok().flatten().is_some() => {}
            None => self
                .fail(format!("I3 group {group} replica {}: speaks before it exists on disk", message.from)),
        }
    }

    /// I4, I6, I7 at the moment at which a part leaves a node.
    pub fn wrote(&mut self, write: &super::truth::Write) {
        let wrong = [self.truth.wrote(write).err(), self.stack.wrote(write).err()];
        wrong.into_iter().flatten().for_each(|text| self.fail(text));
        // By right clocks, and with the minute that is kept for the carrier for those that are wrong.
        if let Some((open_ms, close_ms)) = self.hours.get(&write.id).copied()
            && !write.clock_jumped
            && (write.wall_ms + write.wall_error_ms < open_ms
                || write.wall_ms >= close_ms + write.wall_error_ms.saturating_sub(60_000))
        {
            self.fail(format!(
                "I7 message {} left at {}, its hours are {open_ms} to {close_ms}",
                write.id, write.wall_ms
            ));
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
    pub fn carrier_accepted(&mut self, id: MessageId, part: (u32, u32, u32)) {
        let resends = self.messages.get(&id).map_or(0, |seen| seen.resends);
        let sends = self.truth.accept(id, part);
        if sends > 1 + resends {
            self.fail(format!(
                "I5 message {id} was taken over by {sends} attempts, {resends} possible duplicates are counted"
            ));
        }
    }
}

/// I4: an attempt follows only one that provably handed nothing over, or a recorded decision of the class.
fn begun_too_early(
    id: &MessageId,
    attempt_no: u32,
    status: &MessageStatus,
    (released, keeps_taken_over): (bool, bool),
) -> Option<String> {
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
            Outcome::Ambiguous if attempt.code == message::RESTORE_GUARD => released,
            Outcome::Ambiguous => policy == UnknownPolicy::ResendOnce,
            Outcome::Unspecified => false,
            // Its answer came later, in the same entry: what counted was that there was none.
            _ if attempt.end_ms >= begun => policy == UnknownPolicy::ResendOnce,
            // An operator may release after a restore what the old cluster had been told of, but has to say so.
            Outcome::Accepted => released && !keeps_taken_over,
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
