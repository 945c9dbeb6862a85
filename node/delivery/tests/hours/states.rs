//! The built-in rules.
use crate::{area, ask, ms, place, spoken, text, window};
use carillon_delivery::hours::{Answer, Ask, MARGIN_MS, Rulebook, check_practice_hours};
use carillon_proto::internal::PracticeHours;
use carillon_proto::public::{MessageClass, Priority};

/// Region, a zone of it, and the hours of Monday to Friday, Saturday and Sunday.
const STATES: &[(&str, &str, &str, &str, &str)] = &[
    ("US-AL", "America/Chicago", "08-20", "08-20", "none"),
    ("US-CA", "America/Los_Angeles", "09-21", "09-21", "09-21"),
    ("US-CT", "America/New_York", "09-20", "09-20", "09-20"),
    ("US-FL", "America/New_York", "08-20", "08-20", "08-20"),
    ("US-IL", "America/Chicago", "09-21", "09-21", "09-21"),
    ("US-KY", "America/New_York", "10-21", "10-21", "10-21"),
    ("US-LA", "America/Chicago", "08-20", "08-20", "none"),
    ("US-MA", "America/New_York", "08-20", "08-20", "08-20"),
    ("US-MD", "America/New_York", "08-20", "08-20", "08-20"),
    ("US-MI", "America/Detroit", "09-21", "09-21", "09-21"),
    ("US-MN", "America/Chicago", "09-21", "09-21", "09-21"),
    ("US-MS", "America/Chicago", "08-20", "08-20", "none"),
    ("US-NJ", "America/New_York", "08-20", "08-20", "08-20"),
    ("US-NM", "America/Denver", "09-21", "09-21", "09-21"),
    ("US-NV", "America/Los_Angeles", "09-20", "09-20", "09-20"),
    ("US-OK", "America/Chicago", "08-20", "08-20", "08-20"),
    ("US-RI", "America/New_York", "09-18", "10-17", "10-17"),
    ("US-TX", "America/Chicago", "09-21", "09-21", "12-21"),
    ("US-WA", "America/Los_Angeles", "08-20", "08-20", "08-20"),
    // Without rules of their own: the federal ones.
    ("US-NY", "America/New_York", "08-21", "08-21", "08-21"),
    ("US-PR", "America/Puerto_Rico", "08-21", "08-21", "08-21"),
    ("CA-ON", "America/Toronto", "08-21", "08-21", "08-21"),
    ("DE", "Europe/Berlin", "08-21", "08-21", "08-21"),
];

/// The first window of a local day, "09-21" or "none".
fn hours_of_day(book: &Rulebook, zone: &str, regions: &[&str], day: &str) -> String {
    let tz = jiff::tz::TimeZone::get(zone).unwrap();
    let midnight = day.parse::<jiff::civil::Date>().unwrap().to_zoned(tz.clone()).unwrap();
    let place = place(&[zone], regions);
    let found = window(book, &ask(&place, None, midnight.timestamp().as_millisecond() as u64));
    let local = |ms: u64| jiff::Timestamp::from_millisecond(ms as i64).unwrap().to_zoned(tz.clone());
    let (open, close) = (local(found.open_ms), local(found.until_ms + MARGIN_MS));
    assert_eq!((open.minute(), close.minute()), (0, 0));
    match open.date() == midnight.date() {
        true => format!("{:02}-{:02}", open.hour(), close.hour()),
        false => "none".to_owned(),
    }
}

#[test]
fn each_state_has_its_hours() {
    let book = Rulebook::built_in();
    for (region, zone, mon_fri, sat, sun) in STATES {
        let of = |day: &str| hours_of_day(&book, zone, &[region], day);
        // A week in summer and one in winter.
        for [friday, saturday, sunday] in
            [["2026-07-10", "2026-07-11", "2026-07-12"], ["2026-12-04", "2026-12-05", "2026-12-06"]]
        {
            assert_eq!([of(friday), of(saturday), of(sunday)], [*mon_fri, *sat, *sun], "{region} {friday}");
        }
    }
    assert_eq!(hours_of_day(&book, "America/New_York", &[], "2026-07-10"), "08-21", "nothing known");
}

#[test]
fn alabama_has_holidays() {
    let book = Rulebook::built_in();
    let of = |day: &str| hours_of_day(&book, "America/Chicago", &["US-AL"], day);
    assert_eq!(
        [of("2026-12-24"), of("2026-12-25"), of("2026-11-26"), of("2027-01-18")],
        ["08-20", "none", "none", "none"]
    );
    assert_eq!(hours_of_day(&book, "America/Chicago", &["US-TX"], "2026-12-25"), "09-21", "Texas has none");
}

#[test]
fn of_several_regions_the_narrowest_hours_count() {
    let book = Rulebook::built_in();
    assert_eq!(hours_of_day(&book, "America/Chicago", &["US-KY", "US-FL"], "2026-07-10"), "10-20");
}

/// Area codes: every zone that they span must be inside.
#[test]
fn area_codes_wait_for_all_their_zones() {
    let book = Rulebook::built_in();
    // Friday, summer time; from midnight UTC on, when it is evening or night everywhere.
    let from = "2026-07-10T05:00:00Z";
    let expect = |code: u16, opens: &str, closes: &str| {
        let at = |hour: &str| format!("2026-07-{hour}:00:00Z");
        assert_eq!(spoken(&book, &area(code), from), (at(opens), at(closes)), "{code}");
    };
    // Florida: 08-20; the panhandle opens with Central and closes with Eastern time.
    expect(305, "10T12", "11T00");
    expect(850, "10T13", "11T00");
    // Indiana (federal 08-21): Indianapolis, and the west with two zones.
    expect(317, "10T12", "11T01");
    expect(219, "10T13", "11T01");
    // Arizona has no summer time; the Navajo Nation has, an hour ahead of Phoenix.
    expect(602, "10T15", "11T04");
    expect(928, "10T15", "11T03");
    // Puerto Rico and Hawaii have none; in Hawaii it is still the evening before.
    expect(787, "10T12", "11T01");
    expect(808, "10T05", "10T07");
    // Idaho: Boise opens before Los Angeles; Kentucky west: 10-21 in two zones.
    expect(208, "10T15", "11T03");
    expect(270, "10T15", "11T01");
}

/// Alaska's area code spans two zones: Adak opens an hour after Anchorage, which closes an hour before it.
#[test]
fn alaska_opens_with_adak() {
    let book = Rulebook::built_in();
    let alaska = spoken(&book, &area(907), "2026-07-10T08:00:00Z");
    // The area code has numbers in Hawaii's zone, too: 08:00 there is 18:00 UTC.
    assert_eq!(alaska, ("2026-07-10T18:00:00Z".to_owned(), "2026-07-11T05:00:00Z".to_owned()));
    let winter = spoken(&book, &area(907), "2026-12-04T08:00:00Z");
    assert_eq!(winter, ("2026-12-04T18:00:00Z".to_owned(), "2026-12-05T06:00:00Z".to_owned()));
}

#[test]
fn a_message_inside_its_hours_goes_at_once_and_one_after_them_waits_for_the_next_morning() {
    let book = Rulebook::built_in();
    let chicago = place(&["America/Chicago"], &["US-NE"]);
    let at = |time: &str| spoken(&book, &chicago, time);
    let next = ("2026-07-11T13:00:00Z".to_owned(), "2026-07-12T02:00:00Z".to_owned());
    assert_eq!(
        at("2026-07-10T17:23:45Z"),
        ("2026-07-10T17:23:45Z".to_owned(), "2026-07-11T02:00:00Z".to_owned())
    );
    assert_eq!(at("2026-07-11T01:58:59Z").0, "2026-07-11T01:58:59Z");
    // The last minute is the carrier's.
    for late in
        ["2026-07-11T01:59:00Z", "2026-07-11T02:00:00Z", "2026-07-11T08:00:00Z", "2026-07-11T12:59:59Z"]
    {
        assert_eq!(at(late), next, "{late}");
    }
    let held = window(&book, &ask(&chicago, None, ms("2026-07-11T02:00:00Z")));
    assert_eq!(held.rule, "US", "the last rule in the way is named");
    assert_eq!(window(&book, &ask(&chicago, None, ms("2026-07-10T17:00:00Z"))).rule, "");
}

#[test]
fn staff_and_urgent_public_notices_do_not_wait() {
    let book = Rulebook::built_in();
    let chicago = place(&["America/Chicago"], &["US-IL"]);
    let night = ms("2026-07-11T08:00:00Z");
    let answer = |class, priority| {
        let ask = Ask { class: class as i32, priority: priority as i32, ..ask(&chicago, None, night) };
        matches!(book.ask(&ask), Answer::Exempt(_))
    };
    assert!(answer(MessageClass::Staff, Priority::Critical) && answer(MessageClass::Staff, Priority::Bulk));
    assert!(answer(MessageClass::PublicHealth, Priority::Critical));
    assert!(!answer(MessageClass::PublicHealth, Priority::High));
    // A caller cannot make a bill urgent.
    for class in [MessageClass::Payment, MessageClass::Reminder, MessageClass::Waitlist] {
        assert!(!answer(class, Priority::Critical), "{class:?}");
    }
}

#[test]
fn a_practice_narrows_and_never_widens() {
    let book = Rulebook::built_in();
    let chicago = place(&["America/Chicago"], &["US-NE"]);
    let hours = |mon_fri: &str, sat: &str, closed: &[&str]| PracticeHours {
        mon_fri: mon_fri.to_owned(),
        sat: sat.to_owned(),
        sun: String::new(),
        closed_dates: closed.iter().map(|s| (*s).to_owned()).collect(),
    };
    let from = ms("2026-07-10T05:00:00Z");
    let opens = |own: &PracticeHours| {
        let found = window(&book, &ask(&chicago, Some(own), from));
        (text(found.open_ms), text(found.until_ms + MARGIN_MS))
    };
    let at = |open: &str, close: &str| (format!("2026-07-{open}:00Z"), format!("2026-07-{close}:00Z"));
    assert_eq!(opens(&hours("10:00-16:30", "", &[])), at("10T15:00", "10T21:30"));
    assert_eq!(opens(&hours("06:00-23:00", "", &[])), at("10T13:00", "11T02:00"), "as the rules say");
    assert_eq!(opens(&hours("10:00-16:00", "none", &["2026-07-10"])), at("12T13:00", "13T02:00"));
    assert_eq!(check_practice_hours(&hours("10:00-16:00", "none", &["2026-07-10"])), Ok(()));
    let wrong = |own: &PracticeHours| check_practice_hours(own).unwrap_err().0;
    assert_eq!(wrong(&hours("16:00-10:00", "", &[])), "mon_fri");
    assert_eq!(wrong(&hours("", "noon", &[])), "sat");
    assert_eq!(wrong(&hours("", "", &["soon"])), "closed_dates");
    let never = PracticeHours { sun: "none".into(), ..hours("none", "none", &[]) };
    assert_eq!(wrong(&never), "mon_fri");
    // Texts that were never checked close the day.
    let night = window(&book, &ask(&chicago, Some(&hours("noon", "", &[])), from));
    assert_eq!(text(night.open_ms), "2026-07-11T13:00:00Z");
}

/// Zones that never have day at the same time: no window, and that is said.
#[test]
fn hours_that_never_meet_are_no_window() {
    let book = Rulebook::built_in();
    let apart = place(&["America/New_York", "Asia/Bangkok"], &["US-RI"]);
    assert_eq!(book.ask(&ask(&apart, None, ms("2026-07-10T05:00:00Z"))), Answer::Never("US-RI".to_owned()));
    let unknown = place(&["Mars/Olympus"], &[]);
    assert_eq!(book.ask(&ask(&unknown, None, 1)), Answer::Never(String::new()));
    assert_eq!(book.ask(&ask(&place(&[], &[]), None, 1)), Answer::Never(String::new()));
}

#[test]
fn rules_have_dates_and_classes() {
    let rules = r#"
name = "dated"
[[rule]]
region = "*"
every_day = "08:00-21:00"
source = "always"
[[rule]]
region = "US"
every_day = "10:00-12:00"
classes = ["survey", "payment"]
from = "2027-01-31"
until = "2027-03-01"
source = "for a month"
"#;
    let book = Rulebook::parse(rules).unwrap();
    let new_york = place(&["America/New_York"], &["US-NY"]);
    let opens = |class, day: &str| {
        let ask = Ask { class: class as i32, ..ask(&new_york, None, ms(&format!("{day}T06:00:00Z"))) };
        text(window(&book, &ask).open_ms)
    };
    assert_eq!(opens(MessageClass::Survey, "2027-01-30"), "2027-01-30T13:00:00Z");
    assert_eq!(opens(MessageClass::Survey, "2027-01-31"), "2027-01-31T15:00:00Z");
    assert_eq!(opens(MessageClass::Reminder, "2027-01-31"), "2027-01-31T13:00:00Z");
    assert_eq!(opens(MessageClass::Payment, "2027-02-28"), "2027-02-28T15:00:00Z");
    assert_eq!(opens(MessageClass::Payment, "2027-03-01"), "2027-03-01T13:00:00Z");
}
