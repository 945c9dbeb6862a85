//! UpdateByReference: every message of an external reference changes in one entry, or none does.
//!
//! | state of a message | what the change does |
//! |---|---|
//! | ACCEPTED, WAITING, nothing unresolved | takes effect at once |
//! | WAITING for a resend | the resend is called off (UNKNOWN); takes effect if it turns out that no carrier has it |
//! | IN_FLIGHT, UNKNOWN | is kept, and takes effect before anything is sent again |
//! | SUBMITTED, final | none |
//!
//! A cancel goes the way of [`crate::cancel`]. Versions rise: the row of table V is the last one that took effect, and it goes with
//! the last message of the reference. The text of a message in table M changes here and nowhere else.
use crate::cancel;
use crate::effect::{CommandResult, Disposition, Refusal, UpdateOutcome, Updated};
use crate::keys::{self, Index};
use crate::message::{self, Message, Step};
use crate::records::{self, corrupt, decode, encode};
use crate::tables::{ReadTables, TableError};
use crate::turn::Turn;
use carillon_proto::MessageId;
use carillon_proto::internal::{Accept, MessageUpdate, ReferenceVersion, UpdateByReference};
use carillon_proto::public::{MessageState, WaitingReason};
use std::collections::BTreeMap;

/// Messages that one command changes.
pub const UPDATES_MAX: usize = 128;
/// Detail of a message that is held because it may have been handed over before it was changed.
pub const DETAIL_CHANGED: &str = "changed_unresolved";

pub(crate) fn by_reference(turn: &mut Turn, command: UpdateByReference) -> Result<CommandResult, TableError> {
    let Some((index, updates)) = check(&command) else {
        return Ok(CommandResult::Refused(Refusal::Malformed));
    };
    let key = keys::version(command.practice_no, &index);
    let known = turn.tables.get(&key)?.map(|row| decode::<ReferenceVersion>('V', row)).transpose()?;
    let duplicate = match known {
        Some(known) if known.version > command.version => {
            return Ok(CommandResult::Refused(Refusal::OldVersion { known: known.version }));
        }
        Some(known) if known.version == command.version && known.content_mac != command.content_mac => {
            return Ok(CommandResult::Refused(Refusal::VersionReused));
        }
        Some(known) => known.version == command.version,
        None => false,
    };
    let ids = cancel::of_reference(turn.tables, command.practice_no, &index)?;
    let mut messages = Vec::with_capacity(ids.len());
    for id in ids {
        let message = Message::load(turn.tables, id)?
            .ok_or_else(|| corrupt('X', "names a message that does not exist"))?;
        if !duplicate && !message::is_final(message.state()) && !updates.contains_key(&id) {
            return Ok(CommandResult::Refused(Refusal::MovedOn));
        }
        messages.push(message);
    }
    if messages.is_empty() {
        return Ok(CommandResult::Updated(Updated { duplicate, outcomes: Vec::new() }));
    }
    if !duplicate {
        let row = ReferenceVersion {
            version: command.version,
            content_mac: command.content_mac.clone(),
            applied_at_ms: turn.now_ms,
        };
        turn.tables.put(key, encode(&row));
    }
    let mut outcomes = Vec::with_capacity(messages.len());
    for mut message in messages {
        // The answer to a repeat says how things stand now.
        let disposition = match updates.get(&message.id).filter(|_| !duplicate) {
            Some(update) => change(turn, &mut message, update)?,
            None => standing(&message, duplicate),
        };
        outcomes.push(outcome(&message, disposition));
    }
    Ok(CommandResult::Updated(Updated { duplicate, outcomes }))
}

fn check(command: &UpdateByReference) -> Option<(Index, BTreeMap<MessageId, &MessageUpdate>)> {
    let index = Index::try_from(command.reference_index.as_ref()).ok()?;
    let mut updates = BTreeMap::new();
    for update in &command.updates {
        updates.insert(MessageId::from_bytes(&update.message_id).ok()?, update);
    }
    let body_possible = |u: &MessageUpdate| u.sealed_body.is_empty() || u.segments > 0;
    let possible = command.version > 0
        && command.content_mac.len() == keys::INDEX_BYTES
        && command.updates.len() <= UPDATES_MAX
        && updates.len() == command.updates.len()
        && command.updates.iter().all(body_possible);
    possible.then_some((index, updates))
}

fn changes_something(update: &MessageUpdate) -> bool {
    !update.sealed_body.is_empty()
        || update.not_before_ms > 0
        || update.expires_at_ms > 0
        || update.deadline_ms > 0
}

fn change(turn: &mut Turn, message: &mut Message, update: &MessageUpdate) -> Result<Disposition, TableError> {
    let state = message.state();
    if message::rank(state) >= message::rank(MessageState::Submitted) {
        return Ok(standing(message, false));
    }
    if update.cancel {
        cancel::take_back(turn, message);
        return Ok(standing(message, false));
    }
    if !changes_something(update) {
        return Ok(Disposition::Unchanged);
    }
    let waits = message::waits(state);
    if waits && message.unresolved() == 0 {
        now(turn, message, update)?;
        return Ok(Disposition::Updated);
    }
    let update = MessageUpdate { message_id: bytes::Bytes::new(), ..update.clone() };
    message.status.pending_update = Some(merged(message.status.pending_update.take(), update));
    if waits {
        message.advance(turn, Step::to(MessageState::Unknown).detail(DETAIL_CHANGED));
    } else {
        message.save(turn);
    }
    Ok(Disposition::InDoubt)
}

/// A later change on top of one that has not taken effect yet.
fn merged(old: Option<MessageUpdate>, new: MessageUpdate) -> MessageUpdate {
    let Some(old) = old else { return new };
    let number = |new: u64, old: u64| if new > 0 { new } else { old };
    let (sealed_body, encoding, segments) = match new.sealed_body.is_empty() {
        true => (old.sealed_body, old.encoding, old.segments),
        false => (new.sealed_body, new.encoding, new.segments),
    };
    MessageUpdate {
        not_before_ms: number(new.not_before_ms, old.not_before_ms),
        expires_at_ms: number(new.expires_at_ms, old.expires_at_ms),
        deadline_ms: number(new.deadline_ms, old.deadline_ms),
        sealed_body,
        encoding,
        segments,
        ..new
    }
}

/// For one that waits and that no carrier can have.
fn now(turn: &mut Turn, message: &mut Message, update: &MessageUpdate) -> Result<(), TableError> {
    rewrite(turn, message, update)?;
    let (now_ms, due_ms) = (turn.now_ms, message.status.due_ms);
    match update.not_before_ms {
        0 => message.refile(turn, due_ms),
        later if later > now_ms => {
            message.forget_hours();
            message.advance(turn, Step::wait(WaitingReason::Schedule, later));
        }
        _ => message.refile(turn, now_ms),
    }
    Ok(())
}

/// New text and times; the caller moves the rows that follow from them.
fn rewrite(turn: &mut Turn, message: &mut Message, update: &MessageUpdate) -> Result<(), TableError> {
    let mut payload = records::payload(turn.tables, &message.id)?
        .ok_or_else(|| corrupt('M', "missing for a message that table S knows"))?;
    let accept: &mut Accept = payload.accept.as_mut().ok_or_else(|| corrupt('M', "holds no message"))?;
    let status = &mut message.status;
    if update.not_before_ms > 0 {
        accept.not_before_ms = update.not_before_ms;
    }
    if update.expires_at_ms > 0 {
        (accept.expires_at_ms, status.expires_at_ms) = (update.expires_at_ms, update.expires_at_ms);
    }
    if update.deadline_ms > 0 {
        (accept.deadline_ms, status.deadline_ms) = (update.deadline_ms, update.deadline_ms);
    }
    if !update.sealed_body.is_empty() {
        accept.sealed_body = update.sealed_body.clone();
        accept.encoding = update.encoding;
        (accept.segments, status.segments) = (update.segments, update.segments);
    }
    turn.tables.put(keys::payload(&message.id), encode(&payload));
    Ok(())
}

/// Before a message waits again: the change that was kept takes effect, unless an attempt with the old text is unresolved. Gives the
/// earliest time to send, 0 = any.
pub(crate) fn take_effect(turn: &mut Turn, message: &mut Message) -> Result<u64, TableError> {
    if message.unresolved() > 0 { Ok(0) } else { take_effect_anyway(turn, message) }
}

/// The same, whatever is unresolved.
pub(crate) fn take_effect_anyway(turn: &mut Turn, message: &mut Message) -> Result<u64, TableError> {
    let Some(update) = message.status.pending_update.take() else { return Ok(0) };
    rewrite(turn, message, &update)?;
    Ok(update.not_before_ms)
}

/// How a message stands that is not changed now.
fn standing(message: &Message, applied_before: bool) -> Disposition {
    match message.state() {
        MessageState::Canceled => Disposition::Canceled,
        MessageState::Submitted | MessageState::Delivered | MessageState::Undelivered => {
            Disposition::HandedOver
        }
        MessageState::InFlight | MessageState::Unknown => Disposition::InDoubt,
        state if message::is_final(state) => Disposition::Ended,
        _ if applied_before => Disposition::Updated,
        _ => Disposition::Unchanged,
    }
}

fn outcome(message: &Message, disposition: Disposition) -> UpdateOutcome {
    let began_ms = message.status.attempts.last().map_or(0, |attempt| attempt.begin_ms);
    let handed_over_ms = match disposition {
        Disposition::HandedOver => message.status.submitted_at_ms,
        Disposition::InDoubt => began_ms,
        _ => 0,
    };
    UpdateOutcome {
        message_id: message.id,
        class: message.status.class,
        state: message.state(),
        disposition,
        handed_over_ms,
    }
}

/// The version of a reference that took effect last.
pub fn version(
    tables: &dyn ReadTables,
    practice_no: u32,
    index: &Index,
) -> Result<Option<ReferenceVersion>, TableError> {
    tables.get(&keys::version(practice_no, index))?.map(|row| decode('V', row)).transpose()
}

/// A message of the reference was dropped; the version goes with the last one.
pub(crate) fn forget(turn: &mut Turn, practice_no: u32, index: &Index) -> Result<(), TableError> {
    let key = keys::version(practice_no, index);
    if turn.tables.get(&key)?.is_none() {
        return Ok(());
    }
    let (range, mut left) = (keys::reference_range(practice_no, index), false);
    turn.tables.scan(&range.start, &range.end, &mut |_, _| {
        left = true;
        false
    })?;
    if !left {
        turn.tables.delete(key);
    }
    Ok(())
}
