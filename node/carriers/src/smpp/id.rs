//! Carrier ids in one canonical form, so that the id in a receipt finds the id in the answer.
//!
//! Carriers pad ids with zeros, change their case, or answer in hex and report in decimal (or the other way round).
//! Canonical form: trimmed, lower case; when it is a number in hex or decimal digits, without `0x` and leading zeros.
//!
//! A number alone does not say which base it is in, so with `AUTO` a receipt that comes before its answer could be
//! taken for another message's. [`IdReader`] therefore learns the carrier's habit from receipts whose id it gave out
//! itself, and offers other readings only until it has. Where the habit is known, configure it.
use carillon_proto::internal::ReceiptIdFormat;
use parking_lot::Mutex;
use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};

/// Ids remembered for learning; about 0.5 MB, and only while learning.
const RECENT_MAX: usize = 16_384;
/// Receipts that must agree before other readings are dropped.
const VOTES_NEEDED: u32 = 8;
/// How much more often the winner must have been seen than the others together.
const VOTES_MARGIN: u32 = 4;

/// The canonical form of an id as it is written.
pub fn canonical(id: &str) -> String {
    let id = id.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\0').to_ascii_lowercase();
    let digits = id.strip_prefix("0x").unwrap_or(&id);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return id;
    }
    match digits.trim_start_matches('0') {
        "" => "0".into(),
        significant => significant.into(),
    }
}

/// The other base of a canonical number; `None` when it is not one or is longer than 128 bits.
fn decimal_to_hex(id: &str) -> Option<String> {
    let decimal = !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit());
    decimal.then(|| id.parse::<u128>().ok()).flatten().map(|n| format!("{n:x}"))
}

fn hex_to_decimal(id: &str) -> Option<String> {
    let hex = !id.is_empty() && id.bytes().all(|b| b.is_ascii_hexdigit());
    hex.then(|| u128::from_str_radix(id, 16).ok()).flatten().map(|n| n.to_string())
}

/// What the id of a receipt may be called in the answers, best guess first, without repetitions.
pub fn candidates(receipt_id: &str, format: ReceiptIdFormat) -> Vec<String> {
    let id = canonical(receipt_id);
    let (to_hex, to_decimal) = (decimal_to_hex(&id), hex_to_decimal(&id));
    let ordered = match format {
        ReceiptIdFormat::Same => [Some(id), None, None],
        ReceiptIdFormat::HexThenDecimal => [to_hex, Some(id), None],
        ReceiptIdFormat::DecimalThenHex => [to_decimal, Some(id), None],
        ReceiptIdFormat::Auto => [Some(id), to_hex, to_decimal],
    };
    let mut unique: Vec<String> = Vec::with_capacity(3);
    for candidate in ordered.into_iter().flatten() {
        if !unique.contains(&candidate) {
            unique.push(candidate);
        }
    }
    unique
}

/// Reads the ids of one carrier.
pub struct IdReader {
    format: ReceiptIdFormat,
    learning: Mutex<Option<Learner>>,
    /// Set once, when learning is over.
    learned: std::sync::OnceLock<ReceiptIdFormat>,
}

#[derive(Default)]
struct Learner {
    hasher: RandomState,
    /// Hashes of ids given out; bounded by [`RECENT_MAX`].
    known: HashSet<u64>,
    order: VecDeque<u64>,
    votes: [u32; 3],
}

const FORMATS: [ReceiptIdFormat; 3] =
    [ReceiptIdFormat::Same, ReceiptIdFormat::HexThenDecimal, ReceiptIdFormat::DecimalThenHex];

impl IdReader {
    pub fn new(format: ReceiptIdFormat) -> Self {
        let learner = (format == ReceiptIdFormat::Auto).then(Learner::default);
        Self { format, learning: Mutex::new(learner), learned: std::sync::OnceLock::new() }
    }

    /// The id of an answer.
    pub fn answered(&self, id: &str) -> String {
        let id = canonical(id);
        let learning = self.format == ReceiptIdFormat::Auto && self.learned.get().is_none();
        if learning && let Some(learner) = self.learning.lock().as_mut() {
            learner.remember(&id);
        }
        id
    }

    /// The candidates of a receipt.
    pub fn reported(&self, id: &str) -> Vec<String> {
        if self.format != ReceiptIdFormat::Auto {
            return candidates(id, self.format);
        }
        if let Some(learned) = self.learned.get() {
            return candidates(id, *learned);
        }
        let mut learning = self.learning.lock();
        if let Some(format) = learning.as_mut().and_then(|learner| learner.vote(id)) {
            // A race can only set the same value twice: the learner is taken under the lock.
            let _ = self.learned.set(format);
            *learning = None;
            return candidates(id, format);
        }
        candidates(id, ReceiptIdFormat::Auto)
    }

    #[cfg(test)]
    fn learned(&self) -> Option<ReceiptIdFormat> {
        self.learned.get().copied()
    }
}

impl Learner {
    fn remember(&mut self, id: &str) {
        let hash = self.hasher.hash_one(id);
        if self.known.insert(hash) {
            self.order.push_back(hash);
        }
        if self.order.len() > RECENT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// Counts which reading of the id was given out by us; the format when it is beyond doubt.
    fn vote(&mut self, receipt_id: &str) -> Option<ReceiptIdFormat> {
        let id = canonical(receipt_id);
        let readings = [Some(id.clone()), decimal_to_hex(&id), hex_to_decimal(&id)];
        let hits = readings.map(|id| id.is_some_and(|id| self.known.contains(&self.hasher.hash_one(&id))));
        // Only a receipt that fits one reading says something.
        if hits.iter().filter(|hit| **hit).count() == 1 {
            let i = hits.iter().position(|hit| *hit)?;
            self.votes[i] += 1;
            let others: u32 = self.votes.iter().sum::<u32>() - self.votes[i];
            if self.votes[i] >= VOTES_NEEDED && self.votes[i] >= VOTES_MARGIN * others {
                return Some(FORMATS[i]);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ReceiptIdFormat::{Auto, DecimalThenHex, HexThenDecimal, Same};

    #[test]
    fn padding_case_and_prefix_do_not_matter() {
        for (left, right) in [
            ("0000012A", "12a"),
            ("0x12A", "12a"),
            (" 12a\0", "12a"),
            ("000", "0"),
            ("007", "7"),
            ("ABCD-0012", "abcd-0012"),
            ("e7e27e66-a0e4-4d8e-8a42-ff00aa11bb22", "E7E27E66-A0E4-4D8E-8A42-FF00AA11BB22"),
        ] {
            assert_eq!(canonical(left), canonical(right));
        }
        // Leading zeros are kept where they are not padding of a number.
        assert_ne!(canonical("00xyz"), canonical("xyz"));
        assert_eq!(canonical(""), "");
    }

    /// The id of the answer, the id of the receipt, and the formats in which they must meet.
    #[test]
    fn receipts_find_their_answers() {
        let cases: [(&str, &str, &[ReceiptIdFormat]); 9] = [
            ("5F1A", "24346", &[Auto, HexThenDecimal]),
            ("0000005f1a", "0000024346", &[Auto, HexThenDecimal]),
            ("24346", "5F1A", &[Auto, DecimalThenHex]),
            ("0024346", "00005f1a", &[Auto, DecimalThenHex]),
            ("24346", "24346", &[Auto, Same, HexThenDecimal, DecimalThenHex]),
            ("0024346", "24346", &[Auto, Same, HexThenDecimal, DecimalThenHex]),
            ("AbCdEf", "aBcDeF", &[Auto, Same, HexThenDecimal, DecimalThenHex]),
            ("msg-77", "MSG-77", &[Auto, Same, HexThenDecimal, DecimalThenHex]),
            ("ffffffffffffffffffffffffffffffff", "340282366920938463463374607431768211455", &[Auto]),
        ];
        for (answer, receipt, formats) in cases {
            for format in [Auto, Same, HexThenDecimal, DecimalThenHex] {
                let found = candidates(receipt, format).contains(&canonical(answer));
                // A fallback may find more than is promised, never less.
                assert!(found || !formats.contains(&format), "{answer} {receipt} {format:?}");
            }
        }
        assert!(!candidates("24346", Same).contains(&canonical("5f1a")));
    }

    #[test]
    fn candidates_come_in_the_documented_order() {
        assert_eq!(candidates("10", Auto), ["10", "a", "16"]);
        assert_eq!(candidates("10", Same), ["10"]);
        assert_eq!(candidates("10", HexThenDecimal), ["a", "10"]);
        assert_eq!(candidates("10", DecimalThenHex), ["16", "10"]);
        assert_eq!(candidates("5", Auto), ["5"]);
        // Too long for a number: as it is.
        assert_eq!(candidates(&"9".repeat(40), HexThenDecimal), ["9".repeat(40)]);
    }

    #[test]
    fn auto_learns_the_habit_and_then_offers_nothing_else() {
        let reader = IdReader::new(Auto);
        for n in 1000..1100 {
            reader.answered(&format!("{n:x}"));
        }
        for n in 1000..1007 {
            // Dense ids: some decimal readings are known as hex ids too, those do not count.
            assert_eq!(reader.reported(&n.to_string())[0], n.to_string());
        }
        for n in 1007..1100 {
            reader.reported(&n.to_string());
        }
        assert_eq!(reader.learned(), Some(HexThenDecimal));
        assert_eq!(reader.reported("1050"), ["41a", "1050"]);

        let reader = IdReader::new(Auto);
        for n in 0..2000 {
            reader.answered(&n.to_string());
        }
        for n in 1000..1020 {
            reader.reported(&n.to_string());
        }
        assert_eq!(reader.learned(), Some(Same));
        // Without learning this would also name message 64 (0x40).
        assert_eq!(reader.reported("40"), ["40"]);
    }

    #[test]
    fn foreign_receipts_teach_nothing_and_memory_is_bounded() {
        let reader = IdReader::new(Auto);
        for n in 0..3 * RECENT_MAX {
            reader.answered(&format!("m-{n}"));
        }
        for n in 0..100 {
            reader.reported(&format!("other-{n}"));
        }
        assert_eq!(reader.learned(), None);
        let learning = reader.learning.lock();
        let learner = learning.as_ref().unwrap();
        assert_eq!((learner.known.len(), learner.order.len()), (RECENT_MAX, RECENT_MAX));
    }
}
