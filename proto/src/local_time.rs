//! Wall-clock times of a place as moments, and back. Only of the bundled tz database, so that every process has the same opinion.
//!
//! A wall-clock time that a zone skips (the clocks go forward) means the first moment after the gap; one that it repeats (they
//! go back) means its first occurrence.
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Entries of the database that name no place.
const PLACEHOLDERS: [&str; 2] = ["Factory", "Etc/Unknown"];

static ZONES: LazyLock<BTreeMap<String, TimeZone>> = LazyLock::new(|| {
    let database = TimeZoneDatabase::bundled();
    let names = database.available().map(|name| name.as_str().to_owned());
    let known = names.filter(|name| !PLACEHOLDERS.contains(&name.as_str()));
    known.filter_map(|name| database.get(&name).ok().map(|zone| (name, zone))).collect()
});

/// An IANA zone or link, in its exact spelling.
pub fn zone(name: &str) -> Option<&'static TimeZone> {
    ZONES.get(name)
}

/// All names.
pub fn names() -> impl Iterator<Item = &'static str> {
    ZONES.keys().map(String::as_str)
}

/// Reads the database, so that the first message does not wait for it.
pub fn warm_up() {
    LazyLock::force(&ZONES);
}

/// "2026-12-03T09:00", with seconds or without, and nothing else: no offset, no zone.
pub fn parse(text: &str) -> Option<DateTime> {
    let digits = |at: usize| text.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    let plain = matches!(text.len(), 16 | 19)
        && text.bytes().enumerate().all(|(at, b)| match at {
            4 | 7 => b == b'-',
            10 => b == b'T',
            13 | 16 => b == b':',
            _ => digits(at),
        });
    if plain { text.parse().ok() } else { None }
}

/// The moment at which a wall clock of the zone shows this time; see the module documentation for the exceptions. `None`
/// outside of what a clock can show.
pub fn moment(zone: &TimeZone, local: DateTime) -> Option<Timestamp> {
    match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(local).ok(),
        AmbiguousOffset::Fold { before, .. } => before.to_timestamp(local).ok(),
        AmbiguousOffset::Gap { before, .. } => {
            // Read with the offset before the gap it lies after the change; the change is the first moment after the gap.
            let after = before.to_timestamp(local).ok()?;
            zone.preceding(Timestamp::from_nanosecond(after.as_nanosecond() + 1).ok()?)
                .next()
                .map(|change| change.timestamp())
        }
    }
}

/// The same as milliseconds since the epoch, in the zone where it comes last. `None` without zones, before 1970, or if a name is
/// not known.
pub fn latest_ms<'a>(zones: impl IntoIterator<Item = &'a str>, local: DateTime) -> Option<u64> {
    let mut latest = None;
    for name in zones {
        let moment = moment(zone(name)?, local)?;
        let ms = u64::try_from(moment.as_millisecond()).ok()?;
        latest = latest.max(Some(ms));
    }
    latest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(zone_name: &str, local: &str) -> String {
        moment(zone(zone_name).unwrap(), parse(local).unwrap()).unwrap().to_string()
    }

    #[test]
    fn ordinary_times() {
        assert_eq!(at("America/Chicago", "2026-12-03T09:00"), "2026-12-03T15:00:00Z");
        assert_eq!(at("America/Chicago", "2026-07-03T09:00:30"), "2026-07-03T14:00:30Z");
        assert_eq!(at("Asia/Kathmandu", "2026-07-03T09:00"), "2026-07-03T03:15:00Z");
    }

    #[test]
    fn a_time_in_a_gap_is_the_first_moment_after_it() {
        for local in ["2026-03-08T02:00", "2026-03-08T02:30", "2026-03-08T02:59:59", "2026-03-08T03:00"] {
            assert_eq!(at("America/New_York", local), "2026-03-08T07:00:00Z", "{local}");
        }
        assert_eq!(at("America/New_York", "2026-03-08T01:59:59"), "2026-03-08T06:59:59Z");
        // Half an hour, and a gap that begins the day.
        assert_eq!(at("Australia/Lord_Howe", "2026-10-04T02:15"), "2026-10-03T15:30:00Z");
        assert_eq!(at("Africa/Cairo", "2026-04-24T00:30"), "2026-04-23T22:00:00Z");
    }

    #[test]
    fn a_time_that_comes_twice_is_its_first_occurrence() {
        assert_eq!(at("America/New_York", "2026-11-01T01:30"), "2026-11-01T05:30:00Z");
        assert_eq!(at("America/New_York", "2026-11-01T02:00"), "2026-11-01T07:00:00Z");
        assert_eq!(at("Europe/London", "2026-10-25T01:00"), "2026-10-25T00:00:00Z");
    }

    #[test]
    fn of_several_zones_the_last_one_counts() {
        let local = parse("2026-12-03T09:00").unwrap();
        let ms = |zones: &[&str]| latest_ms(zones.iter().copied(), local);
        let denver = ms(&["America/Denver"]);
        assert!(denver.is_some());
        assert_eq!(ms(&["America/Denver", "America/New_York"]), denver);
        assert_eq!(ms(&["America/New_York", "Nowhere/Land"]), None);
        assert_eq!(ms(&[]), None);
    }

    #[test]
    fn only_plain_wall_clock_times_are_read() {
        for bad in [
            "",
            "2026-12-03",
            "2026-12-03 09:00",
            "2026-12-03T09:00Z",
            "2026-12-03T09:00-06:00",
            "2026-13-03T09:00",
            "2026-02-30T09:00",
            "2026-12-03T24:00",
            "2026-12-03T09:61",
            "+026-12-03T09:00",
            "2026-12-03T9:00",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
