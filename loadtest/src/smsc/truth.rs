//! The ground truth: what the carrier really received, accepted and reported.
//!
//! Owns: the keyed hashes that stand for numbers and texts ([`TruthKey`]), one
//! [`Record`] for every submit_sm, and which messages were accepted more than
//! once. Only hashes are kept: a number or a text is never stored or written.
//! Invariants: the message id of a record is `first_id + index`, so an id is
//! never given twice, also not across resets; a long message counts as one
//! message when all of its parts have been accepted.
//! Bounds: `records_max` records of 112 octets, plus at most 100 octets of
//! index for each: about 200 octets a submit. A submit that finds the store
//! full is refused, never left out.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128, SipHasher13};

use super::decide::{Fault, State};
use super::text::Part;

const CHUNK: usize = 16_384;
const NOT_ANSWERED: u32 = u32::MAX;

/// The key of the hashes in the ground truth.
#[derive(Clone, Copy)]
pub struct TruthKey([u8; 16]);

impl Default for TruthKey {
    /// A fixed key, for numbers and texts that are synthetic anyway.
    fn default() -> Self {
        Self(*b"carillon-truth-1")
    }
}

impl TruthKey {
    pub const fn new(key: [u8; 16]) -> Self {
        Self(key)
    }

    /// Reads 32 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let valid = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let value = valid.then(|| u128::from_str_radix(text, 16).ok())??;
        Some(Self(value.to_be_bytes()))
    }

    fn hash(&self, kind: u8, pieces: [&[u8]; 2]) -> u128 {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        hasher.write_u8(kind);
        for piece in pieces {
            hasher.write_u32(piece.len() as u32);
            hasher.write(piece);
        }
        hasher.finish128().as_u128()
    }

    /// The key of a whole message: its number's digits and its text in UTF-8.
    pub fn message(&self, digits: &[u8], text: &[u8]) -> u128 {
        self.hash(1, [digits, text])
    }

    pub fn number(&self, digits: &[u8]) -> u128 {
        self.hash(2, [digits, &[]])
    }

    /// The text octets of one submit, as they were encoded.
    pub fn octets(&self, octets: &[u8]) -> u128 {
        self.hash(3, [octets, &[]])
    }
}

/// The key under which the ground truth knows a message. The ledger computes
/// the same from what it submitted: the number in E.164 with or without its
/// plus sign, and the text as it should reach the phone.
pub fn truth_key(key: &TruthKey, destination: &str, text: &str) -> u128 {
    let digits = destination.strip_prefix('+').unwrap_or(destination);
    key.message(digits.as_bytes(), text.as_bytes())
}

/// One submit_sm, in about 100 octets.
#[derive(Clone, Copy)]
pub struct Record {
    pub at_us: u64,
    pub destination: u128,
    pub octets: u128,
    pub message: Option<u128>,
    pub sequence: u32,
    pub bind: u32,
    answer: u32,
    pub account: u16,
    pub part: Part,
    pub coding: u8,
    pub fault: Fault,
    pub accepted: bool,
    pub completes: bool,
    pub answer_sent: bool,
    pub receipts_sent: u8,
    pub receipts_acked: u8,
    pub state: Option<State>,
}

impl Record {
    /// A record of a submit that arrived at `at_us` and has no outcome yet.
    pub fn new(at_us: u64, account: u16, bind: u32, sequence: u32) -> Self {
        Self {
            at_us,
            destination: 0,
            octets: 0,
            message: None,
            sequence,
            bind,
            answer: NOT_ANSWERED,
            account,
            part: Part { reference: 0, total: 1, number: 1 },
            coding: 0,
            fault: Fault::None,
            accepted: false,
            completes: false,
            answer_sent: false,
            receipts_sent: 0,
            receipts_acked: 0,
            state: None,
        }
    }

    pub fn set_answer(&mut self, answer: Option<u32>) {
        self.answer = answer.unwrap_or(NOT_ANSWERED);
    }
}

/// A record as others read it (JSON).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TruthEntry {
    pub index: u64,
    /// Microseconds since the epoch.
    pub at_us: u64,
    pub system_id: String,
    pub bind: u32,
    pub sequence: u32,
    /// Keyed hash of the number's digits.
    #[serde(with = "hex128")]
    pub destination: u128,
    /// Keyed hash of the text octets of this submit.
    #[serde(with = "hex128")]
    pub octets: u128,
    /// The truth key: of a message in one part, and of a long one where its
    /// last missing part was accepted.
    #[serde(with = "hex128_option")]
    pub message: Option<u128>,
    pub coding: u8,
    pub reference: u16,
    pub total: u8,
    pub number: u8,
    /// The id of this submit, in decimal, whatever the carrier writes.
    pub message_id: u64,
    pub accepted: bool,
    /// A whole message was accepted with this submit.
    pub completes: bool,
    pub fault: String,
    /// The status decided on; none for a lost answer.
    pub answer: Option<u32>,
    /// The answer was handed to the socket.
    pub answer_sent: bool,
    pub receipts_sent: u8,
    pub receipts_acked: u8,
    /// The last state reported.
    pub state: Option<String>,
}

/// A page of the ground truth.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TruthPage {
    /// Grows with every reset; pages of two generations do not belong together.
    pub generation: u32,
    pub total: u64,
    /// Where the next page begins; equal to `total` at the end.
    pub next: u64,
    pub records: Vec<TruthEntry>,
}

/// How often messages were accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Whole messages accepted, copies included.
    pub messages: u64,
    /// Different truth keys accepted.
    pub distinct: u64,
    /// Truth keys accepted more than once.
    pub duplicated: u64,
    /// Copies beyond the first, over all keys.
    pub extra_copies: u64,
}

/// Counts by a key that is a hash already. It is split into small maps because
/// a map that grows is copied while the lock is held: one map of millions
/// would stop the server for so long that arrivals seem to come in bursts.
struct Counts<K, V>(Vec<HashMap<K, V>>);

impl<K: Eq + Hash, V: Copy + Default> Counts<K, V> {
    const MAPS: usize = 64;

    fn new() -> Self {
        Self((0..Self::MAPS).map(|_| HashMap::new()).collect())
    }

    fn of(&mut self, key: K, hash: u64) -> &mut V {
        self.0[hash as usize % Self::MAPS].entry(key).or_default()
    }

    fn get(&self, key: &K, hash: u64) -> Option<V> {
        self.0[hash as usize % Self::MAPS].get(key).copied()
    }
}

/// The store of records.
pub struct Truth {
    pub key: TruthKey,
    chunks: Vec<Vec<Record>>,
    len: usize,
    records_max: usize,
    first_id: u64,
    pub generation: u32,
    /// How often this very submit came before, by hash.
    occurrences: Counts<u64, u16>,
    copies: Counts<[u64; 2], u32>,
    pub accepted: Accepted,
}

impl Truth {
    /// `first_id` must be above every id an earlier run gave.
    pub fn new(key: TruthKey, records_max: usize, first_id: u64) -> Self {
        Self {
            key,
            chunks: Vec::new(),
            len: 0,
            records_max,
            first_id,
            generation: 0,
            occurrences: Counts::new(),
            copies: Counts::new(),
            accepted: Accepted::default(),
        }
    }

    /// Forgets everything but never gives an id again.
    pub fn reset(&mut self) {
        let (first_id, generation) = (self.first_id + self.len as u64, self.generation + 1);
        *self = Self { generation, ..Self::new(self.key, self.records_max, first_id) };
    }

    pub fn is_full(&self) -> bool {
        self.len >= self.records_max
    }

    /// How often a submit with this number and these octets came before;
    /// counts this one.
    pub fn occurrence(&mut self, destination: u128, octets: u128) -> u16 {
        let hash = (destination ^ octets) as u64;
        let seen = self.occurrences.of(hash, hash);
        let before = *seen;
        *seen = seen.saturating_add(1);
        before
    }

    /// Stores a record and returns its message id.
    pub fn push(&mut self, record: Record) -> u64 {
        if self.len.is_multiple_of(CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        self.chunks[self.len / CHUNK].push(record);
        self.len += 1;
        self.first_id + self.len as u64 - 1
    }

    /// The record of a message id, if it is of this generation.
    pub fn of_id(&mut self, id: u64) -> Option<&mut Record> {
        let index = usize::try_from(id.checked_sub(self.first_id)?).ok()?;
        if index >= self.len { None } else { self.chunks.get_mut(index / CHUNK)?.get_mut(index % CHUNK) }
    }

    pub fn index_of(&self, id: u64) -> Option<u64> {
        id.checked_sub(self.first_id).filter(|index| *index < self.len as u64)
    }

    /// Counts one whole message as accepted; true when it was before.
    pub fn count_message(&mut self, message: u128) -> bool {
        let key = [(message >> 64) as u64, message as u64];
        let copies = self.copies.of(key, key[0]);
        *copies += 1;
        self.accepted.messages += 1;
        match *copies {
            1 => self.accepted.distinct += 1,
            2 => {
                self.accepted.duplicated += 1;
                self.accepted.extra_copies += 1;
            }
            _ => self.accepted.extra_copies += 1,
        }
        *copies > 1
    }

    /// How often the message with this truth key was accepted.
    pub fn copies_of(&self, message: u128) -> u32 {
        let key = [(message >> 64) as u64, message as u64];
        self.copies.get(&key, key[0]).unwrap_or(0)
    }

    /// The entry at `index`; `account_name` turns an account number into its system_id.
    pub fn entry(&self, index: u64, account_name: impl Fn(u16) -> String) -> Option<TruthEntry> {
        let at = usize::try_from(index).ok()?;
        let record = self.chunks.get(at / CHUNK)?.get(at % CHUNK)?;
        Some(TruthEntry {
            index,
            at_us: record.at_us,
            system_id: account_name(record.account),
            bind: record.bind,
            sequence: record.sequence,
            destination: record.destination,
            octets: record.octets,
            message: record.message,
            coding: record.coding,
            reference: record.part.reference,
            total: record.part.total,
            number: record.part.number,
            message_id: self.first_id + index,
            accepted: record.accepted,
            completes: record.completes,
            fault: record.fault.name().to_owned(),
            answer: (record.answer != NOT_ANSWERED).then_some(record.answer),
            answer_sent: record.answer_sent,
            receipts_sent: record.receipts_sent,
            receipts_acked: record.receipts_acked,
            state: record.state.map(|state| state.name().to_owned()),
        })
    }

    /// Up to `limit` entries from index `since`.
    pub fn page(&self, since: u64, limit: usize, account_name: impl Fn(u16) -> String) -> TruthPage {
        let total = self.len as u64;
        let next = since.saturating_add(limit as u64).min(total).max(since.min(total));
        let records = (since.min(total)..next).filter_map(|i| self.entry(i, &account_name)).collect();
        TruthPage { generation: self.generation, total, next, records }
    }
}

/// A 128-bit hash as 32 hexadecimal digits (JSON numbers cannot hold it).
pub mod hex128 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:032x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = String::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

mod hex128_option {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &Option<u128>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::hex128::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u128>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| u128::from_str_radix(&text, 16).map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_ignores_the_plus_sign_and_nothing_else() {
        let key = TruthKey::default();
        let of = |number, text| truth_key(&key, number, text);
        assert_eq!(of("+12025550123", "hello"), of("12025550123", "hello"));
        assert_ne!(of("12025550123", "hello"), of("12025550124", "hello"));
        assert_ne!(of("1202555012", "3hello"), of("12025550123", "hello"));
        let other = TruthKey::from_hex("000102030405060708090a0b0c0d0e0f").unwrap();
        assert_ne!(truth_key(&other, "12025550123", "hello"), of("12025550123", "hello"));
        assert!(TruthKey::from_hex("0001").is_none());
    }

    #[test]
    fn a_record_stays_small_and_ids_survive_a_reset() {
        assert!(size_of::<Record>() <= 112, "{}", size_of::<Record>());
        let mut truth = Truth::new(TruthKey::default(), 3, 1_000);
        let record = Record::new(1, 0, 1, 1);
        assert_eq!((truth.push(record), truth.push(record), truth.push(record)), (1_000, 1_001, 1_002));
        assert!(truth.is_full());
        truth.reset();
        assert!(truth.of_id(1_002).is_none() && !truth.is_full());
        assert_eq!(truth.push(record), 1_003);
        assert!(truth.of_id(1_003).is_some());
    }

    #[test]
    fn copies_are_counted_by_message() {
        let mut truth = Truth::new(TruthKey::default(), 9, 1);
        let seen: Vec<bool> = [7, 8, 7, 7].map(|message| truth.count_message(message)).to_vec();
        assert_eq!(seen, [false, false, true, true]);
        let wanted = Accepted { messages: 4, distinct: 2, duplicated: 1, extra_copies: 2 };
        assert_eq!(truth.accepted, wanted);
        assert_eq!((truth.copies_of(7), truth.copies_of(9)), (3, 0));
    }
}
