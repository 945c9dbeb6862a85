//! What a short message says: alphabets, part numbers, length limits.
//!
//! Owns: turning text octets of a `data_coding` into UTF-8 (so that the truth
//! key of a message does not depend on how it was encoded), reading the part
//! numbers of a long message, and the largest text of one SMS.
//! Does not: reassemble (see `assembly`), nor refuse unknown codings: their
//! octets are taken as they are.

use super::wire::BadPart;

/// Where a part stands in a long message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub reference: u16,
    pub total: u8,
    pub number: u8,
}

impl Part {
    /// A part of a single-part message counts as none.
    pub fn checked(self) -> Result<Option<Self>, BadPart> {
        match self {
            Self { total: 0, .. } | Self { number: 0, .. } => Err(BadPart),
            part if part.number > part.total => Err(BadPart),
            Self { total: 1, .. } => Ok(None),
            part => Ok(Some(part)),
        }
    }

    /// Reads the concatenation element (8 or 16-bit reference) of a user data
    /// header, given without its length octet.
    pub fn from_header(mut header: &[u8]) -> Result<Option<Self>, BadPart> {
        let mut found = None;
        while !header.is_empty() {
            let [element, len, rest @ ..] = header else { return Err(BadPart) };
            if rest.len() < usize::from(*len) {
                return Err(BadPart);
            }
            let (value, next) = rest.split_at(usize::from(*len));
            match (*element, value) {
                (0x00, [reference, total, number]) => {
                    found = Some(Self { reference: u16::from(*reference), total: *total, number: *number });
                }
                (0x08, [high, low, total, number]) => {
                    let reference = u16::from_be_bytes([*high, *low]);
                    found = Some(Self { reference, total: *total, number: *number });
                }
                (0x00 | 0x08, _) => return Err(BadPart),
                _ => {}
            }
            header = next;
        }
        found.map_or(Ok(None), Self::checked)
    }
}

/// How the octets of a text are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alphabet {
    Gsm7,
    Latin1,
    Utf16,
    /// ASCII and everything this simulator does not know.
    Raw,
}

fn alphabet(coding: u8) -> Alphabet {
    match coding {
        0x00 | 0xF0..=0xF3 => Alphabet::Gsm7,
        0x03 => Alphabet::Latin1,
        0x08 => Alphabet::Utf16,
        _ => Alphabet::Raw,
    }
}

/// The most text octets one SMS can carry beside a header of `header_len`
/// octets. GSM 7-bit text travels unpacked here, one octet a septet.
pub fn octets_max(coding: u8, header_len: usize) -> usize {
    let room = 140usize.saturating_sub(header_len);
    if alphabet(coding) == Alphabet::Gsm7 { room * 8 / 7 } else { room }
}

/// Appends the UTF-8 of `octets` to `out`.
pub fn decode(coding: u8, octets: &[u8], out: &mut Vec<u8>) {
    match alphabet(coding) {
        Alphabet::Raw => out.extend_from_slice(octets),
        Alphabet::Latin1 => octets.iter().for_each(|octet| push(out, char::from(*octet))),
        Alphabet::Utf16 => {
            let units = octets.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            for unit in char::decode_utf16(units) {
                push(out, unit.unwrap_or(char::REPLACEMENT_CHARACTER));
            }
        }
        Alphabet::Gsm7 => gsm7(octets, out),
    }
}

fn push(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

fn gsm7(octets: &[u8], out: &mut Vec<u8>) {
    let mut escaped = false;
    for octet in octets {
        if escaped {
            escaped = false;
            push(out, extension(*octet).unwrap_or_else(|| basic(*octet)));
        } else if *octet == 0x1B {
            escaped = true;
        } else {
            push(out, basic(*octet));
        }
    }
}

/// The basic table of 3GPP TS 23.038 where it differs from ASCII.
fn basic(octet: u8) -> char {
    const LOW: [char; 32] = [
        '@', '\u{a3}', '$', '\u{a5}', '\u{e8}', '\u{e9}', '\u{f9}', '\u{ec}', '\u{f2}', '\u{c7}', '\n',
        '\u{d8}', '\u{f8}', '\r', '\u{c5}', '\u{e5}', '\u{394}', '_', '\u{3a6}', '\u{393}', '\u{39b}',
        '\u{3a9}', '\u{3a0}', '\u{3a8}', '\u{3a3}', '\u{398}', '\u{39e}', ' ', '\u{c6}', '\u{e6}', '\u{df}',
        '\u{c9}',
    ];
    match octet {
        0x00..=0x1F => LOW[usize::from(octet)],
        0x24 => '\u{a4}',
        0x40 => '\u{a1}',
        0x5B => '\u{c4}',
        0x5C => '\u{d6}',
        0x5D => '\u{d1}',
        0x5E => '\u{dc}',
        0x5F => '\u{a7}',
        0x60 => '\u{bf}',
        0x7B => '\u{e4}',
        0x7C => '\u{f6}',
        0x7D => '\u{f1}',
        0x7E => '\u{fc}',
        0x7F => '\u{e0}',
        0x80..=0xFF => char::REPLACEMENT_CHARACTER,
        _ => char::from(octet),
    }
}

fn extension(octet: u8) -> Option<char> {
    Some(match octet {
        0x0A => '\u{c}',
        0x14 => '^',
        0x28 => '{',
        0x29 => '}',
        0x2F => '\\',
        0x3C => '[',
        0x3D => '~',
        0x3E => ']',
        0x40 => '|',
        0x65 => '\u{20ac}',
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(coding: u8, octets: &[u8]) -> String {
        let mut out = Vec::new();
        decode(coding, octets, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_text_reads_the_same_in_every_alphabet() {
        assert_eq!(text(0, b"Caf\x05 \x1b\x65 5"), "Caf\u{e9} \u{20ac} 5");
        assert_eq!(text(3, b"Caf\xe9"), "Caf\u{e9}");
        assert_eq!(text(8, &[0, b'C', 0, b'a', 0, b'f', 0, 0xe9]), "Caf\u{e9}");
        assert_eq!(text(8, &[0xD8, 0x3D, 0xDE, 0x00]), "\u{1F600}");
        assert_eq!(text(0, b"\x1b\x28x\x1b\x29 \x00"), "{x} @");
    }

    #[test]
    fn part_numbers_are_read_from_both_headers_and_checked() {
        let wanted = Part { reference: 7, total: 3, number: 2 };
        assert_eq!(Part::from_header(&[0, 3, 7, 3, 2]).unwrap(), Some(wanted));
        assert_eq!(Part::from_header(&[8, 4, 0, 7, 3, 2]).unwrap(), Some(wanted));
        assert_eq!(Part::from_header(&[5, 4, 1, 1, 1, 1]).unwrap(), None);
        assert_eq!(Part::from_header(&[0, 3, 7, 1, 1]).unwrap(), None);
        for bad in [&[0u8, 3, 7, 3, 4][..], &[0, 3, 7, 3, 0], &[0, 3, 7, 0, 0], &[0, 4, 7], &[0, 2, 7, 3]] {
            assert!(Part::from_header(bad).is_err());
        }
    }

    #[test]
    fn one_sms_holds_160_septets_or_140_octets() {
        assert_eq!((octets_max(0, 0), octets_max(0, 6), octets_max(0, 7)), (160, 153, 152));
        assert_eq!((octets_max(8, 0), octets_max(8, 6)), (140, 134));
    }
}
