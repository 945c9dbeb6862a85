//! Every zone and every change of its clocks from 2024 to 2040, against a second opinion.
//!
//! The second opinion knows nothing of windows: it asks what the wall clock of a moment shows, moment by moment.
use crate::{ask, place};
use carillon_delivery::hours::{Answer, MARGIN_MS, Rulebook};
use carillon_proto::local_time;
use jiff::Timestamp;
use jiff::civil::{DateTime, Weekday};
use jiff::tz::TimeZone;
use proptest::prelude::*;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const FIRST: i64 = 1_704_067_200;
const LAST: i64 = 2_240_524_800;

/// Hours that lie in, at and around the changes that zones make.
/// Rules, and whether a local time is inside of them.
type Book = (Rulebook, fn(DateTime) -> bool);

fn books() -> Vec<Book> {
    let book = |every_day: &str, sun: &str| {
        let rules = format!(
            "name = \"x\"\n[[rule]]\nregion = \"*\"\nevery_day = \"{every_day}\"\nsun = \"{sun}\"\nsource = \"x\"\n"
        );
        Rulebook::parse(&rules).unwrap()
    };
    fn within(at: DateTime, from: (i8, i8), to: (i8, i8)) -> bool {
        let minutes = |(hour, minute): (i8, i8)| i32::from(hour) * 60 + i32::from(minute);
        (minutes(from)..minutes(to)).contains(&minutes((at.hour(), at.minute())))
    }
    vec![
        (book("08:00-21:00", "12:00-18:00"), |at| match at.weekday() {
            Weekday::Sunday => within(at, (12, 0), (18, 0)),
            _ => within(at, (8, 0), (21, 0)),
        }),
        (book("01:30-02:30", "01:30-02:30"), |at| within(at, (1, 30), (2, 30))),
        (book("00:00-01:10", "00:00-01:10"), |at| within(at, (0, 0), (1, 10))),
        (book("23:15-24:00", "00:00-24:00"), |at| {
            at.weekday() == Weekday::Sunday || within(at, (23, 15), (24, 0))
        }),
    ]
}

fn shown(zone: &TimeZone, ms: u64) -> DateTime {
    zone.to_datetime(Timestamp::from_millisecond(ms as i64).unwrap())
}

/// What `ask` says about a moment, against the wall clock of every few minutes from there on.
fn agrees(book: &Rulebook, open: fn(DateTime) -> bool, name: &str, from_ms: u64) {
    let zone = local_time::zone(name).unwrap();
    let place = place(&[name], &[]);
    let answer = book.ask(&ask(&place, None, from_ms));
    let Answer::Window(window) = answer else { panic!("{name} {from_ms}: {answer:?}") };
    let close_ms = window.until_ms + MARGIN_MS;
    let step = 5 * MINUTE_MS;
    let mut at_ms = from_ms;
    // Nothing before it is open for longer than the margin.
    let mut open_since = None;
    while at_ms < window.open_ms {
        match (open(shown(zone, at_ms)), open_since) {
            (true, None) => open_since = Some(at_ms),
            (true, Some(since)) => assert!(at_ms - since < MARGIN_MS, "{name}: missed a window at {at_ms}"),
            (false, _) => open_since = None,
        }
        at_ms += step;
    }
    at_ms = window.open_ms;
    while at_ms < close_ms {
        assert!(open(shown(zone, at_ms)), "{name}: {at_ms} lies in {window:?} and is not open");
        at_ms += step;
    }
    assert!(open(shown(zone, close_ms - 1)), "{name}: the last moment of {window:?}");
    let followed = close_ms - window.open_ms >= 24 * HOUR_MS;
    assert!(followed || !open(shown(zone, close_ms)), "{name}: {window:?} ends too early");
    if window.open_ms > from_ms {
        assert!(!open(shown(zone, window.open_ms - 1)), "{name}: {window:?} begins too late");
    }
}

fn changes(zone: &'static TimeZone) -> impl Iterator<Item = u64> {
    let (first, last) = (Timestamp::from_second(FIRST).unwrap(), Timestamp::from_second(LAST).unwrap());
    let changes = zone.following(first).map(|change| change.timestamp());
    changes.take_while(move |at| *at < last).map(|at| at.as_millisecond() as u64)
}

/// Links have the same changes; each kind of zone is looked at once.
fn zones_with_changes() -> Vec<(&'static str, Vec<u64>)> {
    let mut seen = std::collections::BTreeSet::new();
    let mut zones = Vec::new();
    for name in local_time::names() {
        let zone = local_time::zone(name).unwrap();
        let changes: Vec<u64> = changes(zone).collect();
        let offset = zone.to_offset(Timestamp::from_second(FIRST).unwrap()).seconds();
        if seen.insert((offset, changes.clone())) {
            zones.push((name, changes));
        }
    }
    zones
}

#[test]
fn windows_are_right_around_every_change_of_every_zone() {
    let books = books();
    let (mut looked, zones) = (0, zones_with_changes());
    assert!(zones.len() > 60, "{}", zones.len());
    for (name, changes) in zones {
        for (at, change_ms) in changes.iter().enumerate() {
            // All of the first years and, after that, rules that repeat: one in three.
            if at > 8 && at % 3 != 0 {
                continue;
            }
            for (book, open) in &books {
                for back_ms in [26 * HOUR_MS, 3 * HOUR_MS, HOUR_MS / 2 + 1, 1, 0] {
                    agrees(book, *open, name, change_ms - back_ms);
                    looked += 1;
                }
            }
        }
    }
    assert!(looked > 10_000, "{looked}");
}

/// A wall-clock time that exists is shown at its moment, for the first time; one that does not is the end of its gap.
#[test]
fn wall_clock_times_around_every_change_are_the_first_moment_that_shows_them() {
    for (name, changes) in zones_with_changes() {
        let zone = local_time::zone(name).unwrap();
        for change_ms in changes {
            for minutes in (-130..=130).step_by(13) {
                let near = Timestamp::from_millisecond(change_ms as i64 + minutes * 60_000).unwrap();
                for offset in [
                    zone.to_offset(near),
                    zone.to_offset(Timestamp::from_millisecond(change_ms as i64 - 1).unwrap()),
                ] {
                    let local = offset.to_datetime(near);
                    let moment = local_time::moment(zone, local).unwrap();
                    let before = Timestamp::from_nanosecond(moment.as_nanosecond() - 1).unwrap();
                    let (shows, showed) = (zone.to_datetime(moment), zone.to_datetime(before));
                    if shows == local {
                        // Nothing within three hours before shows it.
                        let earlier = (1..=180).map(|m| {
                            Timestamp::from_millisecond(moment.as_millisecond() - m * 60_000).unwrap()
                        });
                        assert!(
                            earlier.into_iter().all(|at| zone.to_datetime(at) != local),
                            "{name} {local} comes before {moment}"
                        );
                    } else {
                        assert!(
                            showed < local && local < shows,
                            "{name} {local}: {moment} is not the end of its gap"
                        );
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn windows_are_right_at_any_moment(pick in 0usize..10_000, from_s in FIRST..LAST, book in 0usize..4) {
        let names: Vec<&str> = local_time::names().collect();
        let (rules, open) = &books()[book];
        agrees(rules, *open, names[pick % names.len()], from_s as u64 * 1_000 + 7);
    }

    /// With several zones: open exactly when all are.
    #[test]
    fn several_zones_agree(from_s in FIRST..LAST, zones in proptest::sample::subsequence(
        vec!["America/New_York", "America/Chicago", "America/Denver", "America/Phoenix", "America/Los_Angeles", "America/Adak", "America/St_Johns"], 1..4)) {
        let (book, open) = &books()[0];
        let place = place(&zones, &[]);
        let from_ms = from_s as u64 * 1_000;
        let Answer::Window(window) = book.ask(&ask(&place, None, from_ms)) else { panic!("{zones:?}") };
        let all = |ms: u64| zones.iter().all(|name| open(shown(local_time::zone(name).unwrap(), ms)));
        prop_assert!(all(window.open_ms) && all(window.until_ms + MARGIN_MS - 1));
        prop_assert!(window.open_ms == from_ms || !all(window.open_ms - 1));
        prop_assert!(!all(window.until_ms + MARGIN_MS));
        let mut at_ms = from_ms;
        while at_ms < window.open_ms {
            prop_assert!(!all(at_ms) || !all(at_ms + MARGIN_MS), "{} is open", at_ms);
            at_ms += 10 * MINUTE_MS;
        }
    }
}

/// A window that spans the change: an hour more or less, and the right moments.
#[test]
fn the_night_of_the_change_has_the_hours_of_its_wall_clock() {
    let book = Rulebook::built_in();
    let new_york = place(&["America/New_York"], &["US-NY"]);
    let at = |local: &str| {
        let zone = local_time::zone("America/New_York").unwrap();
        local_time::moment(zone, local_time::parse(local).unwrap()).unwrap().as_millisecond() as u64
    };
    for (evening, morning, hours) in [
        ("2026-03-07T21:30", "2026-03-08T08:00", 9),
        ("2026-10-31T21:30", "2026-11-01T08:00", 11),
        ("2026-11-02T21:30", "2026-11-03T08:00", 10),
    ] {
        let window = crate::window(&book, &ask(&new_york, None, at(evening)));
        assert_eq!(window.open_ms, at(morning), "{evening}");
        assert_eq!((window.open_ms - at(evening)) / HOUR_MS, hours);
    }
}
