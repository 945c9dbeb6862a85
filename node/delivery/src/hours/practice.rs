//! A practice's own hours. They narrow what the rules allow.
use super::days::{Span, date};
use carillon_proto::internal::PracticeHours;
use jiff::civil::{Date, Weekday};

/// What is wrong with a practice's hours, if anything is; the field first.
pub fn check(hours: &PracticeHours) -> Result<(), (&'static str, String)> {
    let mut any = false;
    for (field, text) in [("mon_fri", &hours.mon_fri), ("sat", &hours.sat), ("sun", &hours.sun)] {
        any |= !span(text).map_err(|what| (field, what))?.is_empty();
    }
    if !any {
        return Err(("mon_fri", "at least one day must have hours".to_owned()));
    }
    let dates = hours.closed_dates.iter().try_for_each(|text| date(text).map(drop));
    dates.map_err(|what| ("closed_dates", what))
}

fn span(text: &str) -> Result<Span, String> {
    if text.is_empty() { Ok(Span::ALL) } else { Span::parse(text) }
}

/// The hours of a day. Texts that were never checked close the day: too little is the smaller mistake.
pub(super) fn on(hours: &PracticeHours, day: Date) -> Span {
    if hours.closed_dates.iter().any(|text| date(text) == Ok(day)) {
        return Span::NONE;
    }
    let text = match day.weekday() {
        Weekday::Saturday => &hours.sat,
        Weekday::Sunday => &hours.sun,
        _ => &hours.mon_fri,
    };
    span(text).unwrap_or(Span::NONE)
}
