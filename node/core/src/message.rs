//! One message as a command works on it, the table of legal transitions, and the only way to change a state.
//!
//! Invariants
//!  - [`legal`] is the one table of transitions; [`Message::advance`] asserts it. An illegal one is a bug and stops
//!    the replica.
//!  - [`rank`] never falls: what a carrier took over never waits again, and a final state never changes.
//!  - A row of table Q exists exactly for a message in quarantine: UNKNOWN, put there by a restore and not resolved since.
//!  - A row of table D exists exactly in ACCEPTED and WAITING, and then one of table N for a message that is indexed by its
//!    recipient; a row of table F exists exactly in IN_FLIGHT. Due times are
//!    never later than the expiry, so a message that can only expire is looked at when it does.
//!  - *Unresolved*: an attempt whose answer was lost (outcome AMBIGUOUS) and has not become known since. A message
//!    with such an attempt never ends as EXPIRED, CANCELED or DEAD, which say "was not handed over": it becomes
//!    UNKNOWN, where a receipt or a late answer can still tell the truth ([`Message::end_unsent`]).
use crate::effect::{DueEntry, ScheduleChange};
use crate::records::{self, corrupt, encode};
use crate::tables::TableError;
use crate::turn::Turn;
use crate::{keys, tables::ReadTables};
use carillon_proto::MessageId;
use carillon_proto::internal::{AttemptRecord, DueRecord, EventRecord, InFlightRecord, MessageStatus};
use carillon_proto::public::{MessageState, Outcome, WaitingReason};

/// Attempts kept in the record, at most. Numbers go on; the oldest resolved ones are dropped.
pub const ATTEMPTS_KEPT_MAX: usize = 16;

/// Detail of a message whose cancel came too late to be certain: if it turns out that no carrier has it, it is
/// canceled instead of tried again.
pub const DETAIL_CANCEL_REQUESTED: &str = "cancel_requested";

/// An end of hours that is always over.
const HOURS_CLOSED_MS: u64 = 1;

/// Code of the attempt that stands for what a cluster may have done after its backup, and detail of the messages in quarantine.
pub const RESTORE_GUARD: &str = "restore_guard";

/// May a message go from one state to the other? `Unspecified` is "does not exist yet".
pub const fn legal(from: MessageState, to: MessageState) -> bool {
    use MessageState::{
        Accepted, Canceled, Dead, Delivered, Expired, InFlight, OptedOut, Rejected, Submitted, Undelivered,
        Unknown, Unspecified, Waiting,
    };
    match from {
        // Unknown: restored from a backup, and perhaps sent after it.
        Unspecified => matches!(to, Accepted | Waiting | Unknown),
        Accepted => matches!(to, Waiting | InFlight | Expired | Canceled | OptedOut),
        // Besides the ordinary ones: a resend is pending and the lost answer of the attempt before turns up
        // (Submitted, Delivered, Undelivered, Rejected, OptedOut) or the resend is called off (Unknown).
        Waiting => matches!(
            to,
            Waiting
                | InFlight
                | Submitted
                | Unknown
                | Delivered
                | Undelivered
                | Expired
                | Canceled
                | Rejected
                | OptedOut
        ),
        // A receipt can be faster than the answer (Delivered, Undelivered).
        InFlight => matches!(
            to,
            Waiting
                | Submitted
                | Unknown
                | Delivered
                | Undelivered
                | Expired
                | Canceled
                | Rejected
                | OptedOut
                | Dead
        ),
        Unknown => matches!(
            to,
            Waiting | Submitted | Delivered | Undelivered | Expired | Canceled | Rejected | OptedOut | Dead
        ),
        Submitted => matches!(to, Delivered | Undelivered),
        Delivered | Undelivered | Expired | Canceled | Rejected | OptedOut | Dead => false,
    }
}

/// How far a message has come; never falls.
pub const fn rank(state: MessageState) -> u8 {
    match state {
        MessageState::Unspecified => 0,
        MessageState::Accepted => 1,
        MessageState::Waiting | MessageState::InFlight | MessageState::Unknown => 2,
        MessageState::Submitted => 3,
        _ => 4,
    }
}

/// Nothing moves it any more.
pub const fn is_final(state: MessageState) -> bool {
    rank(state) == 4
}

/// It waits for its due time: it can be begun, held back, expired and canceled.
pub const fn waits(state: MessageState) -> bool {
    matches!(state, MessageState::Accepted | MessageState::Waiting)
}

/// The state in a record; `Unspecified` for one that is not known.
pub fn state_of(status: &MessageStatus) -> MessageState {
    MessageState::try_from(status.state).unwrap_or(MessageState::Unspecified)
}

/// An ordered message in this state holds up the ones after it.
pub const fn holds_up(state: MessageState) -> bool {
    waits(state) || matches!(state, MessageState::InFlight)
}

/// The number that the next attempt will have.
pub fn next_attempt_no(status: &MessageStatus) -> u32 {
    status.attempts.last().map_or(1, |a| a.number + 1)
}

/// A change of state, with what the event says about it.
#[derive(Debug)]
pub(crate) struct Step {
    to: MessageState,
    reason: WaitingReason,
    due_ms: u64,
    detail: String,
    attempt_no: u32,
    outcome: Outcome,
}

impl Step {
    pub fn to(to: MessageState) -> Self {
        Self {
            to,
            reason: WaitingReason::Unspecified,
            due_ms: 0,
            detail: String::new(),
            attempt_no: 0,
            outcome: Outcome::Unspecified,
        }
    }

    /// Can be sent as soon as a lane takes it.
    pub fn accepted(due_ms: u64) -> Self {
        Self { due_ms, ..Self::to(MessageState::Accepted) }
    }

    pub fn wait(reason: WaitingReason, due_ms: u64) -> Self {
        Self { reason, due_ms, ..Self::to(MessageState::Waiting) }
    }

    pub fn detail(self, detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), ..self }
    }

    pub fn attempt(self, attempt_no: u32, outcome: Outcome) -> Self {
        Self { attempt_no, outcome, ..self }
    }
}

/// What the tables say about the message at this moment.
#[derive(Debug, Clone, Copy)]
struct Stored {
    state: MessageState,
    reason: i32,
    due_ms: u64,
}

/// A message loaded by a command.
#[derive(Debug)]
pub(crate) struct Message {
    pub id: MessageId,
    pub status: MessageStatus,
    stored: Stored,
}

impl Message {
    /// One that no table knows yet; the first [`Message::advance`] creates it.
    pub fn new(id: MessageId, status: MessageStatus) -> Self {
        let stored = Stored { state: MessageState::Unspecified, reason: 0, due_ms: 0 };
        Self { id, status, stored }
    }

    pub fn load(tables: &dyn ReadTables, id: MessageId) -> Result<Option<Self>, TableError> {
        let Some(status) = records::status(tables, &id)? else { return Ok(None) };
        let state = MessageState::try_from(status.state)
            .ok()
            .filter(|s| *s != MessageState::Unspecified)
            .ok_or_else(|| corrupt('S', "unknown state"))?;
        let stored = Stored { state, reason: status.waiting_reason, due_ms: status.due_ms };
        Ok(Some(Self { id, status, stored }))
    }

    /// One of a backup; `None` when its record makes no sense.
    pub fn restored(id: MessageId, status: MessageStatus) -> Option<Self> {
        let state = MessageState::try_from(status.state).ok()?;
        let possible = state != MessageState::Unspecified
            && (1..=4).contains(&status.priority)
            && (!status.ordered || status.recipient_index.len() == keys::INDEX_BYTES);
        possible.then_some(Self { id, status, stored: Stored { state, reason: 0, due_ms: 0 } })
    }

    /// Goes on as the backup says: rows and schedule, and no event, because nothing happened.
    pub fn go_on(mut self, turn: &mut Turn) {
        let none = Stored { state: MessageState::Unspecified, reason: 0, due_ms: 0 };
        if self.status.waiting_reason == WaitingReason::Order as i32 {
            // What it waited for may be at rest now, and will not wake it.
            self.status.due_ms = self.status.due_ms.max(turn.now_ms).min(self.status.expires_at_ms);
        }
        self.stored.due_ms = self.status.due_ms;
        self.move_rows(turn, none, self.stored);
        self.save(turn);
    }

    /// Nobody knows what became of it after the backup: an attempt without an answer stands for that, and the message
    /// is held until a fact or an operator resolves it.
    pub fn quarantine(mut self, turn: &mut Turn) {
        let (now_ms, ambiguous) = (turn.now_ms, Outcome::Ambiguous as i32);
        for attempt in self.status.attempts.iter_mut().filter(|a| a.outcome == 0) {
            (attempt.outcome, attempt.end_ms) = (ambiguous, now_ms);
            attempt.code = RESTORE_GUARD.to_owned();
            self.status.attempts_counted += 1;
        }
        let number = next_attempt_no(&self.status);
        let carrier_no = self.status.carrier_no;
        self.push_attempt(AttemptRecord {
            number,
            carrier_no,
            begin_ms: now_ms,
            end_ms: now_ms,
            outcome: ambiguous,
            code: RESTORE_GUARD.to_owned(),
            ..Default::default()
        });
        self.stored = Stored { state: MessageState::Unspecified, reason: 0, due_ms: 0 };
        let step = Step::to(MessageState::Unknown).detail(RESTORE_GUARD);
        self.advance(turn, step.attempt(number, Outcome::Ambiguous));
        turn.tables.put_new(keys::quarantine(self.status.practice_no, &self.id), Vec::new());
    }

    /// A restore put it into quarantine, some time.
    fn was_guarded(&self) -> bool {
        self.status.attempts.iter().any(|a| a.code == RESTORE_GUARD)
    }

    pub fn state(&self) -> MessageState {
        self.stored.state
    }

    /// Lost answers that are still lost.
    pub fn unresolved(&self) -> usize {
        self.status.attempts.iter().filter(|a| a.outcome == Outcome::Ambiguous as i32).count()
    }

    /// Some carrier has it.
    pub fn taken_over(&self) -> bool {
        self.status.attempts.iter().any(|a| a.outcome == Outcome::Accepted as i32)
    }

    pub fn cancel_requested(&self) -> bool {
        self.status.detail == DETAIL_CANCEL_REQUESTED
    }

    /// Adds an attempt; drops the oldest one that is not needed any more to stay within the bound.
    pub fn push_attempt(&mut self, attempt: AttemptRecord) {
        let attempts = &mut self.status.attempts;
        while attempts.len() >= ATTEMPTS_KEPT_MAX {
            let oldest = attempts.iter().position(|a| a.outcome != Outcome::Ambiguous as i32).unwrap_or(0);
            attempts.remove(oldest);
        }
        attempts.push(attempt);
    }

    /// Writes changes that are not a change of state.
    pub fn save(&self, turn: &mut Turn) {
        turn.tables.put(keys::status(&self.id), encode(&self.status));
    }

    /// The only way to change a state: checks the table of transitions, keeps S, D and F in step, and tells.
    pub fn advance(&mut self, turn: &mut Turn, step: Step) {
        let from = self.stored;
        assert!(legal(from.state, step.to), "illegal transition {:?} to {:?}", from.state, step.to);
        let status = &mut self.status;
        status.state = step.to as i32;
        status.waiting_reason = step.reason as i32;
        status.due_ms = if waits(step.to) { step.due_ms.min(status.expires_at_ms) } else { 0 };
        status.updated_at_ms = turn.now_ms;
        status.detail = step.detail;
        let to = Stored { state: step.to, reason: status.waiting_reason, due_ms: status.due_ms };
        self.stored = to;
        self.move_rows(turn, from, to);
        // A new due time alone is not news for anybody outside.
        if from.state != to.state || from.reason != to.reason {
            turn.events.push(EventRecord {
                message_id: self.id.to_bytes(),
                practice_no: self.status.practice_no,
                state: to.state as i32,
                waiting_reason: to.reason,
                attempt: step.attempt_no,
                outcome: step.outcome as i32,
                detail: self.status.detail.clone(),
            });
        }
        self.save(turn);
    }

    /// Stays what it is, waits until another time: rows and schedule follow what was written into the status.
    pub fn refile(&mut self, turn: &mut Turn, due_ms: u64) {
        let from = self.stored;
        assert!(waits(from.state), "only what waits has a due time, this is {:?}", from.state);
        if due_ms < from.due_ms {
            self.forget_hours();
        }
        self.status.due_ms = due_ms.min(self.status.expires_at_ms);
        self.stored.due_ms = self.status.due_ms;
        self.move_rows(turn, from, self.stored);
        self.save(turn);
    }

    /// It may go at another time than the one that its hours were computed for. Nothing begins before they are computed anew.
    pub fn forget_hours(&mut self) {
        if self.status.hours_stamp != 0 {
            (self.status.hours_stamp, self.status.open_until_ms) = (0, HOURS_CLOSED_MS);
        }
    }

    /// Goes on waiting as before; what the scheduler knows of it has changed.
    pub fn stay(&mut self, turn: &mut Turn) {
        self.move_rows(turn, self.stored, self.stored);
        self.save(turn);
    }

    /// Ends a message that was not handed over - unless an attempt is unresolved: then nobody can say that, and it
    /// is held as UNKNOWN.
    pub fn end_unsent(&mut self, turn: &mut Turn, step: Step) {
        if self.unresolved() == 0 {
            return self.advance(turn, step);
        }
        let detail = match step.to {
            MessageState::Canceled => DETAIL_CANCEL_REQUESTED,
            MessageState::Expired => "expired_unresolved",
            MessageState::OptedOut => "opted_out_unresolved",
            _ => "retries_spent_unresolved",
        };
        self.advance(turn, Step { to: MessageState::Unknown, ..step }.detail(detail));
    }

    /// Rows of D, F and N follow from the states.
    fn move_rows(&self, turn: &mut Turn, from: Stored, to: Stored) {
        let (priority, flow) = (self.priority(), self.flow());
        if waits(from.state) && (!waits(to.state) || from.due_ms != to.due_ms) {
            turn.tables.delete(keys::due(priority, flow, from.due_ms, &self.id));
            let (message_id, due_ms) = (self.id, from.due_ms);
            turn.schedule.push(ScheduleChange::Gone { message_id, priority, flow, due_ms });
        }
        if waits(to.state) {
            let entry = self.due_entry(priority);
            let (key, row) = (keys::due(priority, flow, to.due_ms, &self.id), encode(&due_record(&entry)));
            match waits(from.state) && from.due_ms == to.due_ms {
                true => turn.tables.put(key, row),
                false => turn.tables.put_new(key, row),
            }
            turn.schedule.push(ScheduleChange::Due(entry));
        }
        if waits(from.state) != waits(to.state)
            && let Some(key) = self.queued_key()
        {
            match waits(to.state) {
                true => turn.tables.put_new(key, Vec::new()),
                false => turn.tables.delete(key),
            }
        }
        if let Some(recipient) = self.ordered_recipient()
            && holds_up(from.state) != holds_up(to.state)
        {
            let key = keys::ordered(self.status.practice_no, &recipient, &self.id);
            if holds_up(to.state) {
                turn.tables.put_new(key, Vec::new());
            } else {
                turn.tables.delete(key);
                turn.wakes.push((self.status.practice_no, recipient));
            }
        }
        if from.state == MessageState::InFlight && to.state != MessageState::InFlight {
            turn.tables.delete(keys::in_flight(&self.id));
        }
        if from.state == MessageState::Unknown && to.state != MessageState::Unknown && self.was_guarded() {
            turn.tables.delete(keys::quarantine(self.status.practice_no, &self.id));
        }
        if to.state == MessageState::Dead && self.status.dead_letter.as_ref().is_some_and(|d| d.listed) {
            turn.tables.put_new(keys::dead_letter(self.status.practice_no, &self.id), Vec::new());
        }
        if to.state == MessageState::InFlight {
            let attempt = self.status.attempts.last().expect("a message in flight has an attempt");
            let row = InFlightRecord {
                attempt_no: attempt.number,
                term: attempt.term,
                send_by_ms: attempt.send_by_ms,
            };
            turn.tables.put_new(keys::in_flight(&self.id), encode(&row));
        }
    }

    /// Its row of table N while it waits, if it has one.
    fn queued_key(&self) -> Option<Vec<u8>> {
        let recipient = &self.status.recipient_index;
        (!recipient.is_empty()).then(|| {
            let recipient = recipient.as_ref().try_into().expect("accept admits 16 bytes only");
            keys::queued(self.status.practice_no, recipient, &self.id)
        })
    }

    /// Whose messages go one after the other, if this is one of them.
    pub fn ordered_recipient(&self) -> Option<keys::Index> {
        let recipient = self.status.ordered.then_some(self.status.recipient_index.as_ref())?;
        Some(recipient.try_into().expect("accept admits ordered messages with 16 bytes only"))
    }

    fn priority(&self) -> u8 {
        u8::try_from(self.status.priority).expect("accept admits priorities 1 to 4 only")
    }

    /// Where its rows of table D are.
    fn flow(&self) -> u32 {
        if self.status.due_by_practice { self.status.practice_no } else { 0 }
    }

    fn due_entry(&self, priority: u8) -> DueEntry {
        let status = &self.status;
        DueEntry {
            message_id: self.id,
            priority,
            flow: self.flow(),
            due_ms: status.due_ms,
            practice_no: status.practice_no,
            class: status.class,
            segments: status.segments,
            expires_at_ms: status.expires_at_ms,
            deadline_ms: status.deadline_ms,
            carrier_no: status.carrier_no,
            attempt_no: next_attempt_no(status),
            open_until_ms: status.open_until_ms,
            hours_stamp: status.hours_stamp,
            sender_no: status.sender_no,
        }
    }
}

fn due_record(entry: &DueEntry) -> DueRecord {
    DueRecord {
        practice_no: entry.practice_no,
        class: entry.class,
        segments: entry.segments,
        expires_at_ms: entry.expires_at_ms,
        deadline_ms: entry.deadline_ms,
        carrier_no: entry.carrier_no,
        attempt_no: entry.attempt_no,
        open_until_ms: entry.open_until_ms,
        hours_stamp: entry.hours_stamp,
        sender_no: entry.sender_no,
    }
}

#[cfg(test)]
mod tests;
