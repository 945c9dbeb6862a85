//! Recurring reminders: a rule (a part of RFC 5545), a first time on the wall clock of a zone, an end, exceptions.
//!
//! Understood: FREQ=DAILY, WEEKLY or MONTHLY; INTERVAL; COUNT or UNTIL (a date, included); BYDAY with WEEKLY (`MO,TH`) and MONTHLY (`1MO`,
//! `-1FR`); BYMONTHDAY with MONTHLY (`1,15,-1`). Weeks begin on Monday. Anything else is an error, never ignored.
//!
//! A time that the clock skips in spring becomes the same time after the gap; one that it shows twice is the first. A day that a month
//! does not have is left out, as the RFC says. COUNT counts exceptions, too.
//!
//! Pure: same series, same occurrences, on every node: the number of an occurrence names it for ever.
use jiff::civil::{Date, DateTime, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, ToSpan as _};
use std::collections::BTreeSet;

/// Occurrences of a series that are looked at, at most: 10 years of days, and some.
pub const OCCURRENCES_MAX: u32 = 4_000;
const INTERVAL_MAX: u32 = 1_000;
/// Exceptions of a series.
pub const EXCEPTIONS_MAX: usize = 366;
/// Periods without any occurrence in a row, at most (February 30th).
const EMPTY_MAX: u32 = 2_000;

/// Why a rule is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    #[error("the rule is not a list of NAME=VALUE")]
    Malformed,
    #[error("{0} is given twice")]
    Twice(&'static str),
    #[error("FREQ must be DAILY, WEEKLY or MONTHLY")]
    Frequency,
    #[error("INTERVAL must be 1 to {INTERVAL_MAX}")]
    Interval,
    #[error("COUNT must be 1 to {OCCURRENCES_MAX}")]
    Count,
    #[error("UNTIL must be a date such as 20271231")]
    Until,
    #[error("COUNT and UNTIL exclude each other")]
    TwoEnds,
    #[error("BYDAY must be days such as MO,TH with WEEKLY, or such as 1MO,-1FR with MONTHLY")]
    ByDay,
    #[error("BYMONTHDAY must be 1 to 31 or -1 to -31, with MONTHLY only and without BYDAY")]
    ByMonthDay,
    #[error("a part of the rule is not supported")]
    Unsupported,
    #[error("the start must be a time on the wall clock such as 2027-01-04T09:00")]
    Start,
    #[error("the time zone is not known")]
    Zone,
    #[error("exceptions must be at most {EXCEPTIONS_MAX} dates such as 20270105")]
    Exceptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frequency {
    Daily,
    Weekly,
    Monthly,
}

/// A rule, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    frequency: Frequency,
    interval: u32,
    count: Option<u32>,
    until: Option<Date>,
    /// With MONTHLY each has a position: the first Monday, the last Friday.
    by_day: Vec<(i8, Weekday)>,
    by_month_day: Vec<i8>,
}

impl Rule {
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        let (mut frequency, mut interval, mut count, mut until) = (None, None, None, None);
        let (mut by_day, mut by_month_day) = (None, None);
        for part in text.strip_prefix("RRULE:").unwrap_or(text).split(';') {
            let (name, value) = part.split_once('=').ok_or(RuleError::Malformed)?;
            match name {
                "FREQ" => once(&mut frequency, "FREQ", read_frequency(value)?)?,
                "INTERVAL" => {
                    once(&mut interval, "INTERVAL", number(value, INTERVAL_MAX).ok_or(RuleError::Interval)?)?
                }
                "COUNT" => {
                    once(&mut count, "COUNT", number(value, OCCURRENCES_MAX).ok_or(RuleError::Count)?)?
                }
                "UNTIL" => once(&mut until, "UNTIL", read_date(value).ok_or(RuleError::Until)?)?,
                "BYDAY" => once(&mut by_day, "BYDAY", read_days(value)?)?,
                "BYMONTHDAY" => once(&mut by_month_day, "BYMONTHDAY", read_month_days(value)?)?,
                "WKST" if value == "MO" => {}
                _ => return Err(RuleError::Unsupported),
            }
        }
        let rule = Self {
            frequency: frequency.ok_or(RuleError::Frequency)?,
            interval: interval.unwrap_or(1),
            count,
            until,
            by_day: by_day.unwrap_or_default(),
            by_month_day: by_month_day.unwrap_or_default(),
        };
        rule.check()
    }

    fn check(self) -> Result<Self, RuleError> {
        if self.count.is_some() && self.until.is_some() {
            return Err(RuleError::TwoEnds);
        }
        let positions = |wanted: bool| self.by_day.iter().all(|(position, _)| (*position != 0) == wanted);
        let days_fit = match self.frequency {
            Frequency::Daily => self.by_day.is_empty(),
            Frequency::Weekly => positions(false),
            Frequency::Monthly => positions(true),
        };
        if !days_fit {
            return Err(RuleError::ByDay);
        }
        let month_days_fit =
            self.by_month_day.is_empty() || (self.frequency == Frequency::Monthly && self.by_day.is_empty());
        if month_days_fit { Ok(self) } else { Err(RuleError::ByMonthDay) }
    }

    /// The dates of the n-th period, in order.
    fn period(&self, start: Date, n: u32) -> Option<Vec<Date>> {
        let steps = i64::from(n.checked_mul(self.interval)?);
        let mut dates = match self.frequency {
            Frequency::Daily => vec![start.checked_add(steps.days()).ok()?],
            Frequency::Weekly => {
                let monday =
                    start.checked_sub(days(i64::from(start.weekday().to_monday_zero_offset()))).ok()?;
                let monday = monday.checked_add(steps.weeks()).ok()?;
                let of_start = [(0, start.weekday())];
                let wanted: &[(i8, Weekday)] = if self.by_day.is_empty() { &of_start } else { &self.by_day };
                let date = |(_, day): &(i8, Weekday)| {
                    monday.checked_add(days(i64::from(day.to_monday_zero_offset()))).ok()
                };
                wanted.iter().filter_map(date).collect()
            }
            Frequency::Monthly => {
                let first = start.first_of_month().checked_add(steps.months()).ok()?;
                self.of_month(first, start.day())
            }
        };
        dates.retain(|date| *date >= start);
        dates.sort_unstable();
        dates.dedup();
        Some(dates)
    }

    fn of_month(&self, first: Date, day_of_start: i8) -> Vec<Date> {
        if !self.by_day.is_empty() {
            let nth = |(position, day): &(i8, Weekday)| first.nth_weekday_of_month(*position, *day).ok();
            return self.by_day.iter().filter_map(nth).collect();
        }
        let of_start = [day_of_start];
        let wanted: &[i8] = if self.by_month_day.is_empty() { &of_start } else { &self.by_month_day };
        let length = first.days_in_month();
        let date = |day: &i8| {
            let day = if *day > 0 { *day } else { length + 1 + *day };
            (1..=length).contains(&day).then(|| first.with().day(day).build().ok()).flatten()
        };
        wanted.iter().filter_map(date).collect()
    }
}

fn days(count: i64) -> Span {
    count.days()
}

fn once<T>(place: &mut Option<T>, name: &'static str, value: T) -> Result<(), RuleError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(RuleError::Twice(name)),
    }
}

fn number(text: &str, max: u32) -> Option<u32> {
    text.parse().ok().filter(|n| (1..=max).contains(n))
}

fn read_frequency(text: &str) -> Result<Frequency, RuleError> {
    match text {
        "DAILY" => Ok(Frequency::Daily),
        "WEEKLY" => Ok(Frequency::Weekly),
        "MONTHLY" => Ok(Frequency::Monthly),
        _ => Err(RuleError::Frequency),
    }
}

/// YYYYMMDD.
pub fn read_date(text: &str) -> Option<Date> {
    if text.len() != 8 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Date::new(text[..4].parse().ok()?, text[4..6].parse().ok()?, text[6..].parse().ok()?).ok()
}

fn read_days(text: &str) -> Result<Vec<(i8, Weekday)>, RuleError> {
    let one = |item: &str| {
        let at = item.len().checked_sub(2)?;
        let (position, day) = (item.get(..at)?, item.get(at..)?);
        let day = match day {
            "MO" => Weekday::Monday,
            "TU" => Weekday::Tuesday,
            "WE" => Weekday::Wednesday,
            "TH" => Weekday::Thursday,
            "FR" => Weekday::Friday,
            "SA" => Weekday::Saturday,
            "SU" => Weekday::Sunday,
            _ => return None,
        };
        let position: i8 = if position.is_empty() { 0 } else { position.parse().ok().filter(|p| *p != 0)? };
        (-5..=5).contains(&position).then_some((position, day))
    };
    let list: Option<Vec<_>> = text.split(',').map(one).collect();
    list.filter(|list| list.len() <= 35).ok_or(RuleError::ByDay)
}

fn read_month_days(text: &str) -> Result<Vec<i8>, RuleError> {
    let one = |item: &str| item.parse::<i8>().ok().filter(|day| *day != 0 && (-31..=31).contains(day));
    let list: Option<Vec<_>> = text.split(',').map(one).collect();
    list.filter(|list| list.len() <= 62).ok_or(RuleError::ByMonthDay)
}

/// One time of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occurrence {
    /// From 1; exceptions have numbers, too.
    pub number: u32,
    pub date: Date,
    pub at_ms: u64,
}

/// A rule with its first time, zone and exceptions.
#[derive(Debug, Clone)]
pub struct Series {
    rule: Rule,
    start: DateTime,
    zone: TimeZone,
    exceptions: BTreeSet<Date>,
}

impl Series {
    pub fn new(rule: Rule, start: DateTime, zone: TimeZone, exceptions: BTreeSet<Date>) -> Self {
        Self { rule, start, zone, exceptions }
    }

    /// The same from the texts of a caller.
    pub fn parse(rule: &str, start: &str, zone: &str, exceptions: &[String]) -> Result<Self, RuleError> {
        let rule = Rule::parse(rule)?;
        let start: DateTime = start.parse().map_err(|_| RuleError::Start)?;
        let zone = TimeZone::get(zone).map_err(|_| RuleError::Zone)?;
        let dates: Option<BTreeSet<Date>> = exceptions.iter().map(|text| read_date(text)).collect();
        let dates = dates.filter(|_| exceptions.len() <= EXCEPTIONS_MAX).ok_or(RuleError::Exceptions)?;
        Ok(Self::new(rule, start, zone, dates))
    }

    /// The occurrences after number `after` (0 = all), in order; at most [`OCCURRENCES_MAX`] in all.
    pub fn after(&self, after: u32) -> impl Iterator<Item = Occurrence> + '_ {
        let end = self.rule.count.unwrap_or(OCCURRENCES_MAX).min(OCCURRENCES_MAX);
        let until = self.rule.until;
        let mut empty = 0;
        let dates = (0..)
            .map_while(|n| self.rule.period(self.start.date(), n))
            .take_while(move |dates| {
                empty = if dates.is_empty() { empty + 1 } else { 0 };
                empty < EMPTY_MAX
            })
            .flatten()
            .take_while(move |date| until.is_none_or(|until| *date <= until));
        (1..=end)
            .zip(dates)
            .filter(move |(number, date)| *number > after && !self.exceptions.contains(date))
            .filter_map(|(number, date)| {
                let local = date.to_datetime(self.start.time());
                let zoned = self.zone.to_ambiguous_zoned(local).compatible().ok()?;
                let at_ms = u64::try_from(zoned.timestamp().as_millisecond()).ok()?;
                Some(Occurrence { number, date, at_ms })
            })
    }
}
