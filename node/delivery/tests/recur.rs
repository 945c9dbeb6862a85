//! Recurring reminders: which days a rule means, and when that is on the clock of a zone.
use carillon_delivery::recur::{OCCURRENCES_MAX, Rule, RuleError, Series, read_date};
use jiff::civil::{DateTime, date};
use jiff::tz::TimeZone;
use proptest::prelude::*;

fn series(rule: &str, start: DateTime, zone: &str, exceptions: &[&str]) -> Series {
    let exceptions = exceptions.iter().map(|text| read_date(text).unwrap()).collect();
    Series::new(Rule::parse(rule).unwrap(), start, TimeZone::get(zone).unwrap(), exceptions)
}

fn dates(rule: &str, start: DateTime, count: usize) -> Vec<String> {
    series(rule, start, "America/Chicago", &[]).after(0).take(count).map(|o| o.date.to_string()).collect()
}

#[test]
fn each_kind_of_rule_means_its_days() {
    let monday = date(2026, 11, 30).at(9, 0, 0, 0);
    assert_eq!(dates("FREQ=DAILY;INTERVAL=3", monday, 3), ["2026-11-30", "2026-12-03", "2026-12-06"]);
    let twice_a_week = dates("FREQ=WEEKLY;BYDAY=TH,MO;WKST=MO", monday, 4);
    assert_eq!(twice_a_week, ["2026-11-30", "2026-12-03", "2026-12-07", "2026-12-10"]);
    let wednesday = date(2026, 12, 2).at(9, 0, 0, 0);
    let begun_midweek = dates("FREQ=WEEKLY;INTERVAL=2;BYDAY=MO,FR", wednesday, 3);
    assert_eq!(begun_midweek, ["2026-12-04", "2026-12-14", "2026-12-18"], "not the Monday before the start");
    assert_eq!(
        dates("FREQ=MONTHLY;BYDAY=1MO,-1FR", monday, 4),
        ["2026-12-07", "2026-12-25", "2027-01-04", "2027-01-29"]
    );
    assert_eq!(
        dates("FREQ=MONTHLY;BYMONTHDAY=15,-1", monday, 4),
        ["2026-11-30", "2026-12-15", "2026-12-31", "2027-01-15"]
    );
    let thirty_first = date(2027, 1, 31).at(9, 0, 0, 0);
    assert_eq!(
        dates("FREQ=MONTHLY", thirty_first, 3),
        ["2027-01-31", "2027-03-31", "2027-05-31"],
        "months without it are left out"
    );
}

#[test]
fn ends_and_exceptions_are_kept() {
    let start = date(2026, 12, 1).at(9, 0, 0, 0);
    assert_eq!(dates("FREQ=DAILY;COUNT=3", start, 99).len(), 3);
    assert_eq!(dates("FREQ=DAILY;UNTIL=20261203", start, 99).len(), 3, "the last day is in it");
    let with_exception = series("FREQ=DAILY;COUNT=3", start, "America/Chicago", &["20261202"]);
    let left: Vec<u32> = with_exception.after(0).map(|o| o.number).collect();
    assert_eq!(left, [1, 3], "an exception counts and keeps its number");
    assert_eq!(with_exception.after(1).map(|o| o.number).collect::<Vec<_>>(), [3]);
    let endless = series("FREQ=DAILY", start, "America/Chicago", &[]);
    assert_eq!(endless.after(0).count(), OCCURRENCES_MAX as usize);
    let never = series("FREQ=MONTHLY;BYMONTHDAY=31;INTERVAL=12", date(2027, 2, 1).at(9, 0, 0, 0), "UTC", &[]);
    assert_eq!(never.after(0).count(), 0, "February has no 31st, in any year");
}

#[test]
fn the_wall_clock_stays_and_changes_of_the_clock_happen_once() {
    // 2027-03-14 02:30 does not exist in Chicago; 2026-11-01 01:30 exists twice.
    let spring = series("FREQ=DAILY;COUNT=3", date(2027, 3, 13).at(2, 30, 0, 0), "America/Chicago", &[]);
    let at: Vec<u64> = spring.after(0).map(|o| o.at_ms).collect();
    assert_eq!([at[1] - at[0], at[2] - at[1]], [24 * 3_600_000, 23 * 3_600_000]);
    let autumn = series("FREQ=DAILY;COUNT=3", date(2026, 10, 31).at(1, 30, 0, 0), "America/Chicago", &[]);
    let at: Vec<u64> = autumn.after(0).map(|o| o.at_ms).collect();
    assert_eq!([at[1] - at[0], at[2] - at[1]], [24 * 3_600_000, 25 * 3_600_000]);
}

#[test]
fn rules_that_are_not_understood_are_refused() {
    let cases = [
        ("", RuleError::Malformed),
        ("COUNT=3", RuleError::Frequency),
        ("FREQ=YEARLY", RuleError::Frequency),
        ("FREQ=DAILY;FREQ=DAILY", RuleError::Twice("FREQ")),
        ("FREQ=DAILY;INTERVAL=0", RuleError::Interval),
        ("FREQ=DAILY;COUNT=99999", RuleError::Count),
        ("FREQ=DAILY;UNTIL=2026-12-01", RuleError::Until),
        ("FREQ=DAILY;COUNT=1;UNTIL=20261201", RuleError::TwoEnds),
        ("FREQ=DAILY;BYDAY=MO", RuleError::ByDay),
        ("FREQ=WEEKLY;BYDAY=1MO", RuleError::ByDay),
        ("FREQ=MONTHLY;BYDAY=MO", RuleError::ByDay),
        ("FREQ=WEEKLY;BYDAY=XX", RuleError::ByDay),
        ("FREQ=WEEKLY;BYMONTHDAY=1", RuleError::ByMonthDay),
        ("FREQ=MONTHLY;BYMONTHDAY=32", RuleError::ByMonthDay),
        ("FREQ=DAILY;BYHOUR=9", RuleError::Unsupported),
        ("FREQ=WEEKLY;WKST=SU", RuleError::Unsupported),
    ];
    for (text, error) in cases {
        assert_eq!(Rule::parse(text), Err(error), "{text}");
    }
}

#[test]
fn texts_of_callers_are_read_or_named() {
    let parse = |start: &str, zone: &str, exceptions: &[&str]| {
        let exceptions: Vec<String> = exceptions.iter().map(|text| (*text).to_owned()).collect();
        Series::parse("FREQ=DAILY", start, zone, &exceptions)
            .map(|series| series.after(0).next().unwrap().date)
    };
    let good = parse("2027-01-04T09:00", "America/Chicago", &["20270104"]);
    assert_eq!(good, Ok(date(2027, 1, 5)));
    assert_eq!(parse("tomorrow", "UTC", &[]), Err(RuleError::Start));
    assert_eq!(parse("2027-01-04T09:00", "Mars/Base", &[]), Err(RuleError::Zone));
    assert_eq!(parse("2027-01-04T09:00", "UTC", &["2027-01-05"]), Err(RuleError::Exceptions));
}

proptest! {
    #[test]
    fn no_text_panics(text in "[A-Z0-9=;,:\\-\u{e9}]{0,40}") {
        let _outcome = Rule::parse(&text);
    }

    /// Occurrences rise, keep their numbers wherever one begins to read, and never repeat.
    #[test]
    fn numbers_name_occurrences(
        interval in 1_u32..40, kind in 0..4, day in 1_i8..29, month in 1_i8..13, from in 0_u32..20,
    ) {
        let rule = match kind {
            0 => format!("FREQ=DAILY;INTERVAL={interval}"),
            1 => format!("FREQ=WEEKLY;INTERVAL={interval};BYDAY=MO,WE,SU"),
            2 => format!("FREQ=MONTHLY;INTERVAL={interval};BYMONTHDAY=1,-1"),
            _ => format!("FREQ=MONTHLY;INTERVAL={interval};BYDAY=2TU"),
        };
        let series = series(&rule, date(2026, month, day).at(9, 0, 0, 0), "America/New_York", &[]);
        let all: Vec<_> = series.after(0).take(30).collect();
        prop_assert!(all.windows(2).all(|pair| pair[0].at_ms < pair[1].at_ms && pair[0].number < pair[1].number));
        let rest: Vec<_> = series.after(from).take(10).collect();
        let expected: Vec<_> = all.iter().filter(|o| o.number > from).take(10).copied().collect();
        prop_assert_eq!(&rest, &expected);
    }
}
