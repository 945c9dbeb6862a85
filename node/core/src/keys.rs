//! Keys of the state tables: one encoder and one decoder for each.
//!
//! The first byte is the table's letter; numbers are big endian, so key order is number order.
//!
//! | table | key after the letter | row |
//! |---|---|---|
//! | M | message_id(16) | what never changes of a message |
//! | S | slot(2) message_id(16) | what changes of a message |
//! | I | practice_no(4) idempotency index(16) | the message that a key names |
//! | D | priority(1) due_ms(8) message_id(16) | a message that waits (ACCEPTED, WAITING); accepted below feature level 5 |
//! | D | priority + 16 (1) practice_no(4) due_ms(8) message_id(16) | a message that waits (ACCEPTED, WAITING) |
//! | F | message_id(16) | a message in flight |
//! | R | carrier_no(4) hash(16) | a carrier's reference |
//! | X | practice_no(4) reference index(16) message_id(16) | an external reference; no value |
//! | O | practice_no(4) recipient index(16) | an opt-out |
//! | N | practice_no(4) recipient index(16) message_id(16) | a message that waits, by its recipient; no value |
//! | G | practice_no(4) recipient index(16) message_id(16) | an ordered message that is not handed over; no value |
//! | H | day(4) practice_no(4) recipient index(16) | messages begun for a recipient on a day |
//! | J | practice_no(4) content index(16) | the last message with this content |
//! | E | entry index(8) | the events of one entry |
//! | K | accepted_ms(8) practice_no(4) idempotency index(16) | a key that outlives its message; no value |
//! | P | nothing | how far retention has come |
//! | B | nothing | the backup that the partition was restored from |
//! | Q | practice_no(4) message_id(16) | a message in quarantine; no value |
//! | V | practice_no(4) reference index(16) | the version of an external reference |
//! | W | 0(1) series_id(16), or 1(1) next_ms(8) series_id(16) | a series that has not ended; when its next message is due, no value |
//! | Y | practice_no(4) message_id(16) | a dead letter that nobody has decided about; no value |
//! | A | nothing | how far the log was applied |
//!
//! A slot's messages are one contiguous range of S. The slot of a key is always the slot of its id; a key where they
//! differ does not decode. M, E and K are in the order of time: new rows go to the end and old ones leave at the front, so
//! compaction moves most of the bytes without rewriting them and dead ranges go as a whole. M holds the payload, which is
//! most of what is stored.
mod changes;

pub use changes::{
    dead_letter, dead_letter_range, decode_dead_letter, decode_series, decode_series_due, decode_version,
    series, series_due, series_due_until, version,
};

use carillon_proto::{MessageId, Slot};
use siphasher::sip128::{Hasher128 as _, SipHasher24};
use std::hash::Hasher as _;

/// Length of the keyed hashes (idempotency key, external reference, carrier reference).
pub const INDEX_BYTES: usize = 16;
/// 16 bytes of a keyed hash.
pub type Index = [u8; INDEX_BYTES];

/// Fixed key of the hash of carrier references, version 1. Never change: it says where stored rows are.
const REFERENCE_HASH_KEY: (u64, u64) = (0x6361_7269_6c6c_6f6e, 0x7265_6665_722d_3031);

/// Rows with `start <= key < end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    pub start: Vec<u8>,
    pub end: Vec<u8>,
}

impl KeyRange {
    /// Every key that begins with `prefix`.
    pub fn of_prefix(prefix: &[u8]) -> Self {
        Self { start: prefix.to_vec(), end: prefix_end(prefix) }
    }

    /// Leaves out `key` and everything before it.
    pub fn after(mut self, key: &[u8]) -> Self {
        let next = successor(key);
        if next > self.start {
            self.start = next;
        }
        self
    }
}

/// The smallest key greater than `key`.
pub fn successor(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

/// The smallest key that is greater than every key with this prefix.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    unreachable!("prefixes begin with a table letter, which is below 255")
}

/// Concatenates a letter and parts with one allocation.
fn join(letter: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|p| p.len()).sum::<usize>());
    key.push(letter);
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

/// Cuts `N` bytes off the front.
fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

/// The part after the letter, if it has exactly `bytes` bytes.
fn body(key: &[u8], letter: u8, bytes: usize) -> Option<&[u8]> {
    let (first, rest) = key.split_first()?;
    (*first == letter && rest.len() == bytes).then_some(rest)
}

fn by_slot(letter: u8, id: &MessageId) -> Vec<u8> {
    join(letter, &[&id.slot().get().to_be_bytes(), id.as_bytes()])
}

fn decode_by_slot(letter: u8, key: &[u8]) -> Option<MessageId> {
    let mut rest = body(key, letter, 18)?;
    let slot = u16::from_be_bytes(take(&mut rest)?);
    let id = MessageId::from_bytes(rest).ok()?;
    (id.slot().get() == slot).then_some(id)
}

/// Table M.
pub fn payload(id: &MessageId) -> Vec<u8> {
    join(b'M', &[id.as_bytes()])
}

pub fn decode_payload(key: &[u8]) -> Option<MessageId> {
    MessageId::from_bytes(body(key, b'M', 16)?).ok()
}

/// Table S.
pub fn status(id: &MessageId) -> Vec<u8> {
    by_slot(b'S', id)
}

pub fn decode_status(key: &[u8]) -> Option<MessageId> {
    decode_by_slot(b'S', key)
}

/// The rows of table S from slot `first` to slot `last`, both included.
pub fn status_range(first: Slot, last: Slot) -> KeyRange {
    KeyRange {
        start: join(b'S', &[&first.get().to_be_bytes()]),
        end: prefix_end(&join(b'S', &[&last.get().to_be_bytes()])),
    }
}

/// Table I.
pub fn idempotency(practice_no: u32, index: &Index) -> Vec<u8> {
    join(b'I', &[&practice_no.to_be_bytes(), index])
}

pub fn decode_idempotency(key: &[u8]) -> Option<(u32, Index)> {
    let mut rest = body(key, b'I', 20)?;
    Some((u32::from_be_bytes(take(&mut rest)?), take(&mut rest)?))
}

/// Marks the rows of table D that are sorted by practice.
const BY_PRACTICE: u8 = 16;

/// Position of a row of table D.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DueKey {
    pub priority: u8,
    /// The practice, or 0: a row of before feature level 5, among those of all practices.
    pub flow: u32,
    pub due_ms: u64,
    pub message_id: MessageId,
}

/// Table D. The rows of one priority and one practice are a flow: they are read without meeting those of another practice.
pub fn due(priority: u8, flow: u32, due_ms: u64, id: &MessageId) -> Vec<u8> {
    match flow {
        0 => join(b'D', &[&[priority], &due_ms.to_be_bytes(), id.as_bytes()]),
        _ => join(
            b'D',
            &[&[priority | BY_PRACTICE], &flow.to_be_bytes(), &due_ms.to_be_bytes(), id.as_bytes()],
        ),
    }
}

pub fn decode_due(key: &[u8]) -> Option<DueKey> {
    let by_practice = *key.get(1)? & BY_PRACTICE != 0;
    let mut rest = body(key, b'D', if by_practice { 29 } else { 25 })?;
    let [priority] = take(&mut rest)?;
    let flow = if by_practice { u32::from_be_bytes(take(&mut rest)?) } else { 0 };
    let due_ms = u64::from_be_bytes(take(&mut rest)?);
    let message_id = MessageId::from_bytes(rest).ok()?;
    (by_practice == (flow > 0)).then_some(DueKey {
        priority: priority & !BY_PRACTICE,
        flow,
        due_ms,
        message_id,
    })
}

/// The rows of one flow of table D, earliest first.
pub fn due_range(priority: u8, flow: u32) -> KeyRange {
    match flow {
        0 => KeyRange::of_prefix(&join(b'D', &[&[priority]])),
        _ => KeyRange::of_prefix(&join(b'D', &[&[priority | BY_PRACTICE], &flow.to_be_bytes()])),
    }
}

/// The flows of the same priority after this one.
pub fn due_flows_after(priority: u8, flow: u32) -> KeyRange {
    let all = KeyRange::of_prefix(&join(b'D', &[&[priority | BY_PRACTICE]]));
    match flow {
        0 => all,
        _ => KeyRange { start: due_range(priority, flow).end, end: all.end },
    }
}

/// All rows of table D after those of one flow.
pub fn due_after_flow(priority: u8, flow: u32) -> KeyRange {
    KeyRange { start: due_range(priority, flow).end, end: prefix_end(b"D") }
}

/// All rows of table D.
pub fn due_all() -> KeyRange {
    KeyRange::of_prefix(b"D")
}

/// Table F.
pub fn in_flight(id: &MessageId) -> Vec<u8> {
    join(b'F', &[id.as_bytes()])
}

pub fn decode_in_flight(key: &[u8]) -> Option<MessageId> {
    MessageId::from_bytes(body(key, b'F', 16)?).ok()
}

pub fn in_flight_range() -> KeyRange {
    KeyRange::of_prefix(b"F")
}

/// Table R.
pub fn receipt(carrier_no: u32, hash: &Index) -> Vec<u8> {
    join(b'R', &[&carrier_no.to_be_bytes(), hash])
}

pub fn decode_receipt(key: &[u8]) -> Option<(u32, Index)> {
    let mut rest = body(key, b'R', 20)?;
    Some((u32::from_be_bytes(take(&mut rest)?), take(&mut rest)?))
}

/// Hash of a carrier's reference in canonical form, as used in table R.
pub fn carrier_ref_hash(carrier_ref: &str) -> Index {
    let mut hasher = SipHasher24::new_with_keys(REFERENCE_HASH_KEY.0, REFERENCE_HASH_KEY.1);
    hasher.write(carrier_ref.as_bytes());
    hash_bytes(hasher.finish128())
}

/// Byte form of a 128-bit hash; part of the stored format.
pub(crate) fn hash_bytes(hash: siphasher::sip128::Hash128) -> Index {
    let mut bytes = [0u8; INDEX_BYTES];
    bytes[..8].copy_from_slice(&hash.h1.to_be_bytes());
    bytes[8..].copy_from_slice(&hash.h2.to_be_bytes());
    bytes
}

/// Table X.
pub fn reference(practice_no: u32, index: &Index, id: &MessageId) -> Vec<u8> {
    join(b'X', &[&practice_no.to_be_bytes(), index, id.as_bytes()])
}

pub fn decode_reference(key: &[u8]) -> Option<(u32, Index, MessageId)> {
    let mut rest = body(key, b'X', 36)?;
    let practice_no = u32::from_be_bytes(take(&mut rest)?);
    let index = take(&mut rest)?;
    Some((practice_no, index, MessageId::from_bytes(rest).ok()?))
}

/// The messages of one external reference.
pub fn reference_range(practice_no: u32, index: &Index) -> KeyRange {
    KeyRange::of_prefix(&join(b'X', &[&practice_no.to_be_bytes(), index]))
}

/// Table O.
pub fn opt_out(practice_no: u32, recipient: &Index) -> Vec<u8> {
    join(b'O', &[&practice_no.to_be_bytes(), recipient])
}

pub fn decode_opt_out(key: &[u8]) -> Option<(u32, Index)> {
    let mut rest = body(key, b'O', 20)?;
    Some((u32::from_be_bytes(take(&mut rest)?), take(&mut rest)?))
}

pub fn opt_out_range() -> KeyRange {
    KeyRange::of_prefix(b"O")
}

/// Table N.
pub fn queued(practice_no: u32, recipient: &Index, id: &MessageId) -> Vec<u8> {
    join(b'N', &[&practice_no.to_be_bytes(), recipient, id.as_bytes()])
}

pub fn decode_queued(key: &[u8]) -> Option<(u32, Index, MessageId)> {
    let mut rest = body(key, b'N', 36)?;
    let practice_no = u32::from_be_bytes(take(&mut rest)?);
    let recipient = take(&mut rest)?;
    Some((practice_no, recipient, MessageId::from_bytes(rest).ok()?))
}

/// The messages of one recipient that wait.
pub fn queued_range(practice_no: u32, recipient: &Index) -> KeyRange {
    KeyRange::of_prefix(&join(b'N', &[&practice_no.to_be_bytes(), recipient]))
}

/// Table G.
pub fn ordered(practice_no: u32, recipient: &Index, id: &MessageId) -> Vec<u8> {
    join(b'G', &[&practice_no.to_be_bytes(), recipient, id.as_bytes()])
}

pub fn decode_ordered(key: &[u8]) -> Option<(u32, Index, MessageId)> {
    let mut rest = body(key, b'G', 36)?;
    let practice_no = u32::from_be_bytes(take(&mut rest)?);
    let recipient = take(&mut rest)?;
    Some((practice_no, recipient, MessageId::from_bytes(rest).ok()?))
}

/// The ordered messages of one recipient that are not handed over, in the order in which they go.
pub fn ordered_range(practice_no: u32, recipient: &Index) -> KeyRange {
    KeyRange::of_prefix(&join(b'G', &[&practice_no.to_be_bytes(), recipient]))
}

/// Table H.
pub fn frequency(day: u32, practice_no: u32, recipient: &Index) -> Vec<u8> {
    join(b'H', &[&day.to_be_bytes(), &practice_no.to_be_bytes(), recipient])
}

pub fn decode_frequency(key: &[u8]) -> Option<(u32, u32, Index)> {
    let mut rest = body(key, b'H', 24)?;
    let day = u32::from_be_bytes(take(&mut rest)?);
    Some((day, u32::from_be_bytes(take(&mut rest)?), take(&mut rest)?))
}

/// What was counted on the days before this one.
pub fn frequency_before(day: u32) -> KeyRange {
    KeyRange { start: vec![b'H'], end: join(b'H', &[&day.to_be_bytes()]) }
}

/// Table J.
pub fn duplicate(practice_no: u32, content: &Index) -> Vec<u8> {
    join(b'J', &[&practice_no.to_be_bytes(), content])
}

pub fn decode_duplicate(key: &[u8]) -> Option<(u32, Index)> {
    let mut rest = body(key, b'J', 20)?;
    Some((u32::from_be_bytes(take(&mut rest)?), take(&mut rest)?))
}

/// Table E.
pub fn events(index: u64) -> Vec<u8> {
    join(b'E', &[&index.to_be_bytes()])
}

pub fn decode_events(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(body(key, b'E', 8)?.try_into().ok()?))
}

/// The event blocks of entries after `index`.
pub fn events_after(index: u64) -> KeyRange {
    KeyRange::of_prefix(b"E").after(&events(index))
}

/// Table K.
pub fn kept_key(accepted_ms: u64, practice_no: u32, index: &Index) -> Vec<u8> {
    join(b'K', &[&accepted_ms.to_be_bytes(), &practice_no.to_be_bytes(), index])
}

pub fn decode_kept_key(key: &[u8]) -> Option<(u64, u32, Index)> {
    let mut rest = body(key, b'K', 28)?;
    let accepted_ms = u64::from_be_bytes(take(&mut rest)?);
    let practice_no = u32::from_be_bytes(take(&mut rest)?);
    Some((accepted_ms, practice_no, take(&mut rest)?))
}

/// Kept keys of messages accepted from `from_ms` to `until_ms`, both included.
pub fn kept_keys(from_ms: u64, until_ms: u64) -> KeyRange {
    KeyRange {
        start: join(b'K', &[&from_ms.to_be_bytes()]),
        end: prefix_end(&join(b'K', &[&until_ms.to_be_bytes()])),
    }
}

/// The one row of table P.
pub fn retention() -> Vec<u8> {
    vec![b'P']
}

/// The one row of table B.
pub fn restore() -> Vec<u8> {
    vec![b'B']
}

/// Table Q.
pub fn quarantine(practice_no: u32, id: &MessageId) -> Vec<u8> {
    join(b'Q', &[&practice_no.to_be_bytes(), id.as_bytes()])
}

pub fn decode_quarantine(key: &[u8]) -> Option<(u32, MessageId)> {
    let mut rest = body(key, b'Q', 20)?;
    let practice_no = u32::from_be_bytes(take(&mut rest)?);
    Some((practice_no, MessageId::from_bytes(rest).ok()?))
}

/// The messages in quarantine, of one practice or (0) of all.
pub fn quarantine_range(practice_no: u32) -> KeyRange {
    match practice_no {
        0 => KeyRange::of_prefix(b"Q"),
        _ => KeyRange::of_prefix(&join(b'Q', &[&practice_no.to_be_bytes()])),
    }
}

/// Everything that a partition holds but tables A to D, which say how it came about and what follows from the rest.
pub fn content_range() -> KeyRange {
    KeyRange { start: vec![b'E'], end: vec![b'Z'] }
}

/// The one row of table A. The meta group has it too.
pub fn applied() -> Vec<u8> {
    vec![b'A']
}

#[cfg(test)]
mod tests;
