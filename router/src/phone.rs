//! Phone numbers: parsed and checked once, here; inside Carillon they are E.164.
//!
//! libphonenumber's rules decide. They cost microseconds a number, so for the numbers that nearly all messages go to there
//! is a short way: an E.164 number of country code 1 whose area code takes every exchange from 200 to 999. Such a
//! number is valid by its form. The short way only ever accepts; everything else goes the long way. Tests compare the two, for
//! every listed area code with every exchange, so an update of the library that changes a rule shows.
use rlibphonenumber::{PHONE_NUMBER_UTIL, PhoneNumber, PhoneNumberFormat, Region};

/// National numbers may be this long, punctuation included.
const NATIONAL_CHARACTERS_MAX: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhoneFault {
    Empty,
    TooLong,
    Unparsable,
    /// Well formed, but no such number can exist.
    Invalid,
    Region,
}

/// Checks an E.164 number and gives it back.
pub fn e164(text: String) -> Result<String, PhoneFault> {
    if text.is_empty() {
        return Err(PhoneFault::Empty);
    }
    if is_plain(text.as_bytes()) {
        return Ok(text);
    }
    let digits = text.strip_prefix('+').ok_or(PhoneFault::Unparsable)?;
    if !(8..=15).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(PhoneFault::Unparsable);
    }
    long_way(&text, None)
}

/// Parses a number as people of `region` write it; the region may be in lower case.
pub fn national(number: &str, region: &str) -> Result<String, PhoneFault> {
    let region = known_region(region).ok_or(PhoneFault::Region)?;
    if number.trim().is_empty() {
        return Err(PhoneFault::Empty);
    }
    if number.chars().count() > NATIONAL_CHARACTERS_MAX {
        return Err(PhoneFault::TooLong);
    }
    // Letters would be read as vanity numbers or extensions; a text cannot be sent to an extension.
    let foreign = |c: char| c.is_alphabetic() || c.is_control() || matches!(c, '#' | '*' | ';' | ',');
    if number.chars().any(foreign) {
        return Err(PhoneFault::Unparsable);
    }
    long_way(number, Some(region))
}

fn known_region(code: &str) -> Option<Region> {
    if code.len() != 2 || !code.bytes().all(|b| b.is_ascii_alphabetic()) {
        return None;
    }
    let region = Region::from_code(&code.to_ascii_uppercase()).ok()?;
    PHONE_NUMBER_UTIL.get_country_code_for_region(region).map(|_| region)
}

fn long_way(text: &str, region: Option<Region>) -> Result<String, PhoneFault> {
    let number = PhoneNumber::parse(text, region).map_err(|_| PhoneFault::Unparsable)?;
    if !number.is_valid() {
        return Err(PhoneFault::Invalid);
    }
    Ok(number.format_as(PhoneNumberFormat::E164).into_owned())
}

/// First and last area codes of runs in which every code takes every exchange from 200 to 999.
#[rustfmt::skip]
const PLAIN_AREAS: &[(usize, usize)] = &[
    (201, 210), (212, 220), (223, 229), (231, 231), (234, 236), (239, 240), (248, 254), (256, 257),
    (260, 260), (262, 263), (267, 267), (269, 270), (272, 274), (276, 276), (279, 279), (281, 281),
    (283, 283), (289, 289), (301, 310), (312, 321), (323, 327), (329, 332), (334, 334), (336, 337),
    (339, 339), (341, 341), (343, 343), (346, 347), (350, 354), (360, 361), (363, 365), (367, 369),
    (380, 380), (382, 382), (385, 386), (401, 410), (412, 419), (423, 425), (428, 428), (430, 432),
    (434, 435), (437, 438), (440, 440), (442, 443), (445, 445), (447, 448), (450, 450), (458, 458),
    (463, 464), (468, 470), (472, 472), (474, 475), (478, 480), (484, 484), (500, 510), (512, 522),
    (525, 534), (539, 541), (544, 544), (548, 548), (551, 551), (557, 557), (559, 559), (561, 564),
    (566, 567), (570, 575), (577, 577), (579, 582), (584, 588), (600, 610), (612, 620), (622, 623),
    (626, 626), (628, 631), (633, 633), (636, 636), (639, 641), (645, 647), (650, 651), (656, 662),
    (667, 667), (669, 669), (672, 672), (678, 678), (680, 683), (686, 686), (689, 689), (701, 709),
    (712, 720), (724, 728), (730, 732), (734, 734), (737, 738), (740, 740), (742, 743), (747, 748),
    (753, 754), (757, 757), (760, 760), (762, 763), (765, 765), (769, 775), (778, 782), (785, 787),
    (800, 810), (812, 821), (825, 826), (828, 833), (835, 835), (838, 840), (843, 845), (847, 850),
    (854, 860), (862, 867), (870, 870), (872, 873), (877, 879), (888, 888), (900, 910), (912, 920),
    (925, 925), (928, 931), (934, 934), (936, 943), (945, 945), (947, 949), (951, 952), (954, 954),
    (956, 956), (959, 959), (970, 973), (975, 975), (978, 980), (984, 986), (989, 989),
];

const PLAIN: [bool; 1000] = {
    let mut table = [false; 1000];
    let mut run = 0;
    while run < PLAIN_AREAS.len() {
        let mut area = PLAIN_AREAS[run].0;
        while area <= PLAIN_AREAS[run].1 {
            table[area] = true;
            area += 1;
        }
        run += 1;
    }
    table
};

/// `+1`, a plain area code, an exchange that does not begin with 0 or 1, four digits.
fn is_plain(text: &[u8]) -> bool {
    let [b'+', b'1', digits @ ..] = text else { return false };
    let Ok(digits) = <&[u8; 10]>::try_from(digits) else { return false };
    let area = digits[..3].iter().fold(0, |area, d| area * 10 + usize::from(d.wrapping_sub(b'0')));
    digits.iter().all(u8::is_ascii_digit) && digits[3] >= b'2' && PLAIN[area]
}

/// Compiles the rules that most numbers need, so that the first message does not wait for it.
pub fn warm_up() {
    let _known = long_way("+12125550123", None);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_plain_area_code_takes_every_exchange() {
        for area in (0..1000).filter(|area| PLAIN[*area]) {
            for exchange in 200..1000 {
                let text = format!("+1{area:03}{exchange}{:04}", (area * 7919 + exchange * 104_729) % 10_000);
                assert_eq!(long_way(&text, None).as_deref(), Ok(text.as_str()));
            }
        }
        assert!(PLAIN[212] && PLAIN[415] && !PLAIN[555] && !PLAIN[999]);
    }

    #[test]
    fn national_numbers_become_e164() {
        for (number, region, expected) in [
            ("(212) 555-0123", "US", "+12125550123"),
            ("1 212.555.0123", "US", "+12125550123"),
            ("020 7946 0958", "GB", "+442079460958"),
            ("+44 20 7946 0958", "US", "+442079460958"),
            ("416-555-0123", "CA", "+14165550123"),
            ("416-555-0123", "ca", "+14165550123"),
        ] {
            assert_eq!(national(number, region).as_deref(), Ok(expected), "{number}");
        }
    }

    #[test]
    fn faults_are_told_apart() {
        for (text, fault) in [
            ("", PhoneFault::Empty),
            ("12125550123", PhoneFault::Unparsable),
            ("+1 212 555 0123", PhoneFault::Unparsable),
            ("+1212555012", PhoneFault::Invalid),
            ("+1", PhoneFault::Unparsable),
            ("+1234567890123456", PhoneFault::Unparsable),
            ("+15551234567", PhoneFault::Invalid),
            ("+12121550123", PhoneFault::Invalid),
            ("+00000000000", PhoneFault::Unparsable),
            ("call me", PhoneFault::Unparsable),
        ] {
            assert_eq!(e164(text.to_owned()), Err(fault), "{text}");
        }
        for (number, region, fault) in [
            ("", "US", PhoneFault::Empty),
            ("2125550123", "USA", PhoneFault::Region),
            ("2125550123", "1", PhoneFault::Region),
            ("2125550123", "xx", PhoneFault::Region),
            ("2125550123", "", PhoneFault::Region),
            ("2125550123", "ZZ", PhoneFault::Region),
            ("2125550123", "XX", PhoneFault::Region),
            ("212-555-0123 ext 5", "US", PhoneFault::Unparsable),
            ("1-800-FLOWERS", "US", PhoneFault::Unparsable),
            ("123", "US", PhoneFault::Invalid),
            (&"2".repeat(33), "US", PhoneFault::TooLong),
        ] {
            assert_eq!(national(number, region), Err(fault), "{number} {region}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn the_short_way_accepts_only_what_the_library_accepts(text in "\\+1[0-9]{9,11}") {
            let long = long_way(&text, None);
            if is_plain(text.as_bytes()) {
                prop_assert_eq!(long.as_deref(), Ok(text.as_str()));
            }
            if let Ok(found) = e164(text) {
                prop_assert_eq!(long, Ok(found));
            }
        }

        #[test]
        fn no_number_panics(number in any::<String>(), digits in "[-+0-9()./ ]{0,40}", region in "[A-Z]{2}") {
            let _outcome = (e164(number.clone()), national(&number, &region), national(&digits, &region));
        }
    }
}
