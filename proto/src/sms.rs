//! How a text travels in SMS parts: which alphabet it needs, how many parts (segments) it costs, and the octets of
//! each part.
//!
//! Invariants
//!  - Counting and splitting use one greedy fill, so `analyze(t).segments == split(t).len()` for every text.
//!  - Neither an escape pair of GSM 03.38 nor a surrogate pair of UTF-16 is ever divided between two parts.
//!
//! Pure: the router counts with it, the connectors encode with it, and so both always agree on the price.
//! Not here: the concatenation header of a part, the packing of septets (SMPP carries one septet an octet).
use crate::public::Encoding;
use std::fmt;

/// Units of a text that fits one part, and of each part of a longer one.
const GSM7_UNITS: Limits = Limits { alone: 160, part: 153 };
const UCS2_UNITS: Limits = Limits { alone: 70, part: 67 };
/// Announces a character of the extension table.
const ESCAPE: u8 = 0x1b;

#[derive(Clone, Copy)]
struct Limits {
    alone: u32,
    part: u32,
}

/// What a text costs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SmsText {
    pub encoding: Encoding,
    /// Parts; at least 1.
    pub segments: u32,
    /// Septets of GSM 03.38 (extension characters count 2) or code units of UTF-16.
    pub units: u32,
    /// The first character that GSM 03.38 lacks, and its index in characters.
    pub first_ucs2: Option<(char, usize)>,
}

/// Says which position forced UCS-2, not which character: it is a piece of a patient's text.
impl fmt::Debug for SmsText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmsText")
            .field("encoding", &self.encoding)
            .field("segments", &self.segments)
            .field("units", &self.units)
            .field("first_ucs2_index", &self.first_ucs2.map(|(_, index)| index))
            .finish()
    }
}

/// Counts a text.
pub fn analyze(text: &str) -> SmsText {
    let first_ucs2 = text.chars().enumerate().find(|(_, c)| gsm7(*c).is_none()).map(|(i, c)| (c, i));
    let (encoding, limits) = match first_ucs2 {
        None => (Encoding::Gsm7, GSM7_UNITS),
        Some(_) => (Encoding::Ucs2, UCS2_UNITS),
    };
    let units: u32 = text.chars().map(|c| cost(encoding, c)).sum();
    let segments = if units <= limits.alone {
        1
    } else {
        let mut fill = Fill::new(limits.part);
        text.chars().for_each(|c| {
            fill.add(cost(encoding, c));
        });
        fill.parts
    };
    SmsText { encoding, segments, units, first_ucs2 }
}

/// The octets of each part: one septet an octet for GSM 03.38, big endian for UCS-2. A part never grows beyond the
/// capacity it was made with, so no copy of the text is left behind by a reallocation.
pub fn split(text: &str) -> Vec<Vec<u8>> {
    let SmsText { encoding, segments, .. } = analyze(text);
    let (limits, octets_per_unit) = match encoding {
        Encoding::Ucs2 => (UCS2_UNITS, 2),
        _ => (GSM7_UNITS, 1),
    };
    let units_max = if segments == 1 { limits.alone } else { limits.part };
    let new_part = || Vec::with_capacity((units_max * octets_per_unit) as usize);
    let mut parts = Vec::with_capacity(segments as usize);
    let mut part: Vec<u8> = new_part();
    let mut fill = Fill::new(units_max);
    for c in text.chars() {
        if fill.add(cost(encoding, c)) {
            parts.push(std::mem::replace(&mut part, new_part()));
        }
        push(encoding, c, &mut part);
    }
    parts.push(part);
    parts
}

/// Fills parts one after the other, never dividing what belongs to one character.
struct Fill {
    units_max: u32,
    used: u32,
    parts: u32,
}

impl Fill {
    fn new(units_max: u32) -> Self {
        Self { units_max, used: 0, parts: 1 }
    }

    /// True when the character opens a new part.
    fn add(&mut self, cost: u32) -> bool {
        let opens = self.used + cost > self.units_max;
        if opens {
            self.parts += 1;
            self.used = 0;
        }
        self.used += cost;
        opens
    }
}

fn cost(encoding: Encoding, c: char) -> u32 {
    match encoding {
        Encoding::Ucs2 => c.len_utf16() as u32,
        _ => match gsm7(c) {
            Some(Septets::Extended(_)) => 2,
            _ => 1,
        },
    }
}

fn push(encoding: Encoding, c: char, part: &mut Vec<u8>) {
    if encoding == Encoding::Ucs2 {
        let mut units = [0u16; 2];
        for unit in c.encode_utf16(&mut units) {
            part.extend_from_slice(&unit.to_be_bytes());
        }
        return;
    }
    match gsm7(c) {
        Some(Septets::Basic(code)) => part.push(code),
        Some(Septets::Extended(code)) => part.extend_from_slice(&[ESCAPE, code]),
        None => unreachable!("the analysis chose GSM 03.38, so it has every character of the text"),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Septets {
    Basic(u8),
    /// After [`ESCAPE`].
    Extended(u8),
}

fn gsm7(c: char) -> Option<Septets> {
    if c.is_ascii() {
        return ASCII[c as usize];
    }
    if c == '\u{20ac}' {
        return Some(Septets::Extended(0x65));
    }
    NON_ASCII.iter().find(|(known, _)| *known == c).map(|(_, code)| Septets::Basic(*code))
}

/// The ASCII characters that GSM 03.38 moved to the extension table, and form feed.
const EXTENDED: [(u8, u8); 9] = [
    (0x0c, 0x0a),
    (b'^', 0x14),
    (b'{', 0x28),
    (b'}', 0x29),
    (b'\\', 0x2f),
    (b'[', 0x3c),
    (b'~', 0x3d),
    (b']', 0x3e),
    (b'|', 0x40),
];

/// GSM 03.38 for the 128 ASCII characters.
const ASCII: [Option<Septets>; 128] = {
    let mut table = [None; 128];
    let mut c: usize = 0x20;
    while c < 0x7f {
        // Letters, digits and most marks have their ASCII code; these do not.
        let moved = matches!(c as u8, b'$' | b'@' | b'_' | b'`');
        if !moved {
            table[c] = Some(Septets::Basic(c as u8));
        }
        c += 1;
    }
    table[b'@' as usize] = Some(Septets::Basic(0x00));
    table[b'$' as usize] = Some(Septets::Basic(0x02));
    table[b'_' as usize] = Some(Septets::Basic(0x11));
    table[b'\n' as usize] = Some(Septets::Basic(0x0a));
    table[b'\r' as usize] = Some(Septets::Basic(0x0d));
    let mut i = 0;
    while i < EXTENDED.len() {
        table[EXTENDED[i].0 as usize] = Some(Septets::Extended(EXTENDED[i].1));
        i += 1;
    }
    table
};

/// The rest of the basic table (3GPP TS 23.038, 6.2.1).
const NON_ASCII: [(char, u8); 39] = [
    ('\u{a3}', 0x01),
    ('\u{a5}', 0x03),
    ('\u{e8}', 0x04),
    ('\u{e9}', 0x05),
    ('\u{f9}', 0x06),
    ('\u{ec}', 0x07),
    ('\u{f2}', 0x08),
    ('\u{c7}', 0x09),
    ('\u{d8}', 0x0b),
    ('\u{f8}', 0x0c),
    ('\u{c5}', 0x0e),
    ('\u{e5}', 0x0f),
    ('\u{394}', 0x10),
    ('\u{3a6}', 0x12),
    ('\u{393}', 0x13),
    ('\u{39b}', 0x14),
    ('\u{3a9}', 0x15),
    ('\u{3a0}', 0x16),
    ('\u{3a8}', 0x17),
    ('\u{3a3}', 0x18),
    ('\u{398}', 0x19),
    ('\u{39e}', 0x1a),
    ('\u{c6}', 0x1c),
    ('\u{e6}', 0x1d),
    ('\u{df}', 0x1e),
    ('\u{c9}', 0x1f),
    ('\u{a4}', 0x24),
    ('\u{a1}', 0x40),
    ('\u{c4}', 0x5b),
    ('\u{d6}', 0x5c),
    ('\u{d1}', 0x5d),
    ('\u{dc}', 0x5e),
    ('\u{a7}', 0x5f),
    ('\u{bf}', 0x60),
    ('\u{e4}', 0x7b),
    ('\u{f6}', 0x7c),
    ('\u{f1}', 0x7d),
    ('\u{fc}', 0x7e),
    ('\u{e0}', 0x7f),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(text: &str) -> (Encoding, u32, u32) {
        let sms = analyze(text);
        assert_eq!(sms.segments as usize, split(text).len());
        (sms.encoding, sms.segments, sms.units)
    }

    #[test]
    fn golden_vectors_of_segments() {
        let gsm = |text: &str| {
            let (encoding, segments, units) = counted(text);
            assert_eq!(encoding, Encoding::Gsm7);
            (segments, units)
        };
        let ucs = |text: &str| {
            let (encoding, segments, units) = counted(text);
            assert_eq!(encoding, Encoding::Ucs2);
            (segments, units)
        };
        assert_eq!(gsm(""), (1, 0));
        assert_eq!(gsm(&"a".repeat(160)), (1, 160));
        assert_eq!(gsm(&"a".repeat(161)), (2, 161));
        assert_eq!(gsm(&"a".repeat(306)), (2, 306));
        assert_eq!(gsm(&"a".repeat(307)), (3, 307));
        assert_eq!(gsm(&format!("{}\u{20ac}", "a".repeat(159))), (2, 161));
        assert_eq!(ucs(&"\u{44f}".repeat(70)), (1, 70));
        assert_eq!(ucs(&"\u{44f}".repeat(71)), (2, 71));
        assert_eq!(ucs(&"\u{44f}".repeat(134)), (2, 134));
        assert_eq!(ucs(&"\u{44f}".repeat(135)), (3, 135));
        assert_eq!(ucs(&"\u{1f600}".repeat(35)), (1, 70));
        assert_eq!(ucs(&"\u{1f600}".repeat(36)), (2, 72));
    }

    #[test]
    fn an_escape_pair_is_not_divided() {
        // 152 + 2 does not fit into 153: the pair moves to the second part, and with it the count changes.
        let text = format!("{}\u{20ac}{}", "a".repeat(152), "b".repeat(152));
        let parts = split(&text);
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [152, 153, 1]);
        assert_eq!(parts[1][..2], [0x1b, 0x65]);
        assert_eq!(analyze(&text).units, 306);
    }

    #[test]
    fn a_surrogate_pair_is_not_divided() {
        let text = format!("{}\u{1f600}{}", "\u{44f}".repeat(66), "x".repeat(65));
        let parts = split(&text);
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [132, 134]);
        assert_eq!(parts[1][..4], [0xd8, 0x3d, 0xde, 0x00]);
    }

    #[test]
    fn the_character_that_forced_ucs2_is_named() {
        let sms = analyze("Dr. O\u{2019}Hara\u{2026}");
        assert_eq!((sms.encoding, sms.first_ucs2), (Encoding::Ucs2, Some(('\u{2019}', 5))));
        assert_eq!(analyze("Dr. O'Hara, 9 @ noon {ok} \u{20ac}5").first_ucs2, None);
        // The back-quote looks harmless but GSM 03.38 has none.
        assert_eq!(analyze("a`b").first_ucs2, Some(('`', 1)));
        assert!(!format!("{sms:?}").contains('\u{2019}'));
    }

    /// Every code of both tables has exactly one character, and decoding gives the text back.
    #[test]
    fn the_tables_are_complete_and_unambiguous() {
        let mut basic = [None; 128];
        let mut extended = std::collections::BTreeMap::new();
        for c in (0..0x2100).filter_map(char::from_u32) {
            match gsm7(c) {
                Some(Septets::Basic(code)) => {
                    assert_eq!(basic[code as usize].replace(c), None, "{code:#x} twice");
                }
                Some(Septets::Extended(code)) => assert_eq!(extended.insert(code, c), None),
                None => {}
            }
        }
        let missing: Vec<usize> = (0..128).filter(|code| basic[*code].is_none()).collect();
        assert_eq!(missing, [ESCAPE as usize]);
        assert_eq!(extended.len(), 10);
        let known =
            [(0x00, '@'), (0x11, '_'), (0x24, '\u{a4}'), (0x40, '\u{a1}'), (0x7f, '\u{e0}'), (0x20, ' ')];
        for (code, c) in known {
            assert_eq!(basic[code], Some(c));
        }
    }

    #[test]
    fn parts_hold_the_whole_text_in_order() {
        let text: String = (0..500).map(|i| ['a', '[', '\u{e9}', '7', '\u{20ac}'][i % 5]).collect();
        let joined: Vec<u8> = split(&text).concat();
        assert_eq!(joined.len() as u32, analyze(&text).units);
        assert!(split(&text).iter().all(|part| part.len() <= 153 && part.capacity() == 153));
        let text: String = (0..300).map(|i| ['a', '\u{1f600}', '\u{44f}'][i % 3]).collect();
        let units: Vec<u16> =
            split(&text).concat().chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
        assert_eq!(String::from_utf16(&units).unwrap(), text);
    }
}
