//! Puts the accepted parts of long messages together.
//!
//! Owns: the parts seen so far, by account, number, reference and part count.
//! Bounds: [`OPEN_MAX`] messages and [`OCTETS_MAX`] octets; the oldest is given
//! up first and counted, and so is one that stays open for [`OPEN_MS_MAX`].
//! Texts are held in memory only while parts are missing.

use std::collections::{HashMap, VecDeque};

use super::text::{Part, decode};

/// Messages with missing parts at most.
pub const OPEN_MAX: usize = 50_000;
/// Octets of their parts at most.
pub const OCTETS_MAX: usize = 32 << 20;
/// How long a message may miss parts.
pub const OPEN_MS_MAX: u64 = 600_000;

/// Which long message a part belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AssemblyKey {
    pub account: u16,
    pub destination: u128,
    pub reference: u16,
    pub total: u8,
}

struct Open {
    opened_at_us: u64,
    coding: u8,
    parts: Vec<Option<Box<[u8]>>>,
}

impl Open {
    fn octets(&self) -> usize {
        self.parts.iter().flatten().map(|part| part.len()).sum()
    }
}

/// The long messages with missing parts.
#[derive(Default)]
pub struct Assembly {
    open: HashMap<AssemblyKey, Open>,
    order: VecDeque<(AssemblyKey, u64)>,
    octets: usize,
    /// Messages given up with parts missing.
    pub incomplete: u64,
    /// Accepted parts that were there already.
    pub duplicate_parts: u64,
}

impl Assembly {
    pub fn open_count(&self) -> usize {
        self.open.len()
    }

    /// Adds an accepted part; returns the whole text in UTF-8 when it was the last.
    pub fn add(
        &mut self,
        now_us: u64,
        key: AssemblyKey,
        part: Part,
        coding: u8,
        octets: &[u8],
    ) -> Option<Vec<u8>> {
        let at = usize::from(part.number) - 1;
        if let Some(there) = self.open.get(&key).and_then(|open| open.parts[at].as_deref()) {
            if there == octets {
                self.duplicate_parts += 1;
                return None;
            }
            // The reference came round again: another message begins.
            self.give_up(&key);
        }
        let open = self.open.entry(key).or_insert_with(|| {
            self.order.push_back((key, now_us));
            Open { opened_at_us: now_us, coding, parts: vec![None; usize::from(key.total)] }
        });
        open.parts[at] = Some(octets.into());
        self.octets += octets.len();
        if open.parts.iter().any(Option::is_none) {
            self.shrink();
            return None;
        }
        let open = self.open.remove(&key)?;
        self.octets -= open.octets();
        // Joined before decoding, so a character split across parts survives.
        let whole: Vec<u8> = open.parts.iter().flatten().flat_map(|part| part.iter().copied()).collect();
        let mut text = Vec::with_capacity(whole.len());
        decode(open.coding, &whole, &mut text);
        Some(text)
    }

    fn give_up(&mut self, key: &AssemblyKey) {
        if let Some(open) = self.open.remove(key) {
            self.octets -= open.octets();
            self.incomplete += 1;
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((key, opened_at_us)) = self.order.pop_front()
            && self.open.get(&key).is_some_and(|open| open.opened_at_us == opened_at_us)
        {
            self.give_up(&key);
        }
    }

    fn shrink(&mut self) {
        while (self.open.len() > OPEN_MAX || self.octets > OCTETS_MAX || self.order.len() > 4 * OPEN_MAX)
            && !self.order.is_empty()
        {
            self.drop_oldest();
        }
    }

    /// Gives up what has been open for too long.
    pub fn expire(&mut self, now_us: u64) {
        while self.order.front().is_some_and(|(_, at)| at + OPEN_MS_MAX * 1000 <= now_us) {
            self.drop_oldest();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(reference: u16) -> AssemblyKey {
        AssemblyKey { account: 0, destination: 5, reference, total: 2 }
    }

    fn part(number: u8) -> Part {
        Part { reference: 1, total: 2, number }
    }

    #[test]
    fn parts_in_any_order_make_one_text() {
        let mut assembly = Assembly::default();
        assert_eq!(assembly.add(0, key(1), part(2), 0, b"world"), None);
        assert_eq!(assembly.add(0, key(1), part(2), 0, b"world"), None);
        assert_eq!(assembly.add(0, key(1), part(1), 0, b"hello "), Some(b"hello world".to_vec()));
        assert_eq!((assembly.duplicate_parts, assembly.open_count(), assembly.octets), (1, 0, 0));
    }

    #[test]
    fn a_surrogate_pair_split_across_parts_is_one_character() {
        let mut assembly = Assembly::default();
        assert_eq!(assembly.add(0, key(1), part(1), 8, &[0xD8, 0x3D]), None);
        let text = assembly.add(0, key(1), part(2), 8, &[0xDE, 0x00]).unwrap();
        assert_eq!(text, "\u{1F600}".as_bytes());
    }

    #[test]
    fn a_reference_that_comes_round_begins_another_message() {
        let mut assembly = Assembly::default();
        assembly.add(0, key(1), part(1), 0, b"old");
        assembly.add(1, key(1), part(1), 0, b"new ");
        assert_eq!(assembly.add(2, key(1), part(2), 0, b"text"), Some(b"new text".to_vec()));
        assert_eq!(assembly.incomplete, 1);
    }

    #[test]
    fn open_messages_are_bounded_in_number_and_time() {
        let mut assembly = Assembly::default();
        for destination in 0..(OPEN_MAX as u128 + 10) {
            assembly.add(destination as u64, AssemblyKey { destination, ..key(1) }, part(1), 0, b"x");
        }
        assert_eq!((assembly.open_count(), assembly.incomplete), (OPEN_MAX, 10));
        assembly.expire(OPEN_MS_MAX * 1000 + OPEN_MAX as u64 + 10);
        assert_eq!((assembly.open_count(), assembly.octets), (0, 0));
    }
}
