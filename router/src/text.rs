//! Is a text fit to send, and what does it cost.
//!
//! `sms::analyze` is the one authority. Nearly all texts are plain (each character one septet of GSM 03.38), and for those
//! one pass over the bytes gives the same answer; a test compares the two.
use carillon_proto::public::Encoding;
use carillon_proto::sms::{self, SmsText};

/// Characters of a text at most.
pub const CHARACTERS_MAX: usize = 1_600;
/// SMS parts of a text at most.
pub const SEGMENTS_MAX: u32 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextFault {
    Empty,
    TooLong,
    TooManySegments,
    ControlCharacter,
}

/// Checks and counts.
pub fn check(body: &str) -> Result<SmsText, TextFault> {
    if body.trim().is_empty() {
        return Err(TextFault::Empty);
    }
    let plain = is_plain(body);
    if !plain {
        // No character takes more than 4 bytes, so this bounds the work before the text is looked at.
        if body.len() > CHARACTERS_MAX * 4 || body.chars().count() > CHARACTERS_MAX {
            return Err(TextFault::TooLong);
        }
        if body.chars().any(|c| c.is_control() && c != '\n') {
            return Err(TextFault::ControlCharacter);
        }
    } else if body.len() > CHARACTERS_MAX {
        return Err(TextFault::TooLong);
    }
    let sms = if plain { count_plain(body) } else { sms::analyze(body) };
    if sms.segments > SEGMENTS_MAX {
        return Err(TextFault::TooManySegments);
    }
    Ok(sms)
}

/// ASCII characters that take one septet and are no control characters, line feed excepted.
const PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0x20;
    while byte < 0x7f {
        table[byte] = !matches!(byte as u8, b'`' | b'^' | b'{' | b'}' | b'\\' | b'[' | b'~' | b']' | b'|');
        byte += 1;
    }
    table[b'\n' as usize] = true;
    table
};

fn is_plain(body: &str) -> bool {
    body.bytes().all(|byte| PLAIN[usize::from(byte)])
}

fn count_plain(body: &str) -> SmsText {
    let units = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let segments = if units <= 160 { 1 } else { units.div_ceil(153) };
    SmsText { encoding: Encoding::Gsm7, segments, units, first_ucs2: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn faults_are_found_at_their_limits() {
        let gsm = "a".repeat(1530);
        assert_eq!(check(&gsm).unwrap().segments, 10);
        assert_eq!(check(&format!("{gsm}a")), Err(TextFault::TooManySegments));
        assert_eq!(check(&"a".repeat(1600)), Err(TextFault::TooManySegments));
        assert_eq!(check(&"a".repeat(1601)), Err(TextFault::TooLong));
        assert_eq!(check(&"\u{1f600}".repeat(1601)), Err(TextFault::TooLong));
        assert_eq!(check(&"\u{44f}".repeat(670)).unwrap().segments, 10);
        assert_eq!(check(&"\u{44f}".repeat(671)), Err(TextFault::TooManySegments));
        for empty in ["", " ", "\n\n", "\u{a0}"] {
            assert_eq!(check(empty), Err(TextFault::Empty));
        }
        for control in ["a\tb", "a\r\nb", "a\0b", "a\u{7f}b", "a\u{85}b", "a\u{1b}b"] {
            assert_eq!(check(control), Err(TextFault::ControlCharacter));
        }
        assert!(check("line\nline").is_ok());
    }

    #[test]
    fn plain_characters_are_exactly_those_of_one_septet() {
        for c in (0u8..128).map(char::from) {
            let sms = sms::analyze(&c.to_string());
            let one_septet = sms.encoding == Encoding::Gsm7 && sms.units == 1;
            let plain = is_plain(&c.to_string());
            assert_eq!(plain, one_septet && (!c.is_control() || c == '\n'), "{c:?}");
        }
    }

    proptest! {
        #[test]
        fn the_short_way_counts_like_the_authority(text in "[ -~\n]{1,900}") {
            if is_plain(&text) {
                prop_assert!(count_plain(&text) == sms::analyze(&text));
            }
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _outcome = check(&text);
        }
    }
}
