//! The small parts of the rules: spans of a day, days, dates, regions and classes, and what is wrong with their texts.
use carillon_proto::public::{MessageClass, Priority};
use jiff::civil::{Date, Weekday};

/// What is wrong with rules. The text is for the operator who wrote them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    #[error("not TOML of the expected form: {0}")]
    Form(String),
    #[error("{place}: {what}")]
    Wrong { place: String, what: String },
    #[error("there must be a rule for the region \"*\", so that everybody has hours")]
    NoDefault,
    #[error("at most {max} {what}")]
    TooMany { what: &'static str, max: usize },
}

/// Minutes of a day; empty when the end is not after the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub start: u16,
    pub end: u16,
}

const DAY: u16 = 24 * 60;

impl Span {
    pub const NONE: Self = Self { start: 0, end: 0 };
    pub const ALL: Self = Self { start: 0, end: DAY };

    pub fn and(self, other: Self) -> Self {
        Self { start: self.start.max(other.start), end: self.end.min(other.end) }
    }

    pub fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// "08:00-21:00", "all day" or "none".
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "none" => return Ok(Self::NONE),
            "all day" => return Ok(Self::ALL),
            _ => {}
        }
        let wrong = || format!("{text:?} is not like \"08:00-21:00\", \"all day\" or \"none\"");
        let (start, end) = text.split_once('-').ok_or_else(wrong)?;
        let span = Self { start: minute(start).ok_or_else(wrong)?, end: minute(end).ok_or_else(wrong)? };
        if span.is_empty() {
            return Err(format!("{text:?} ends before it begins; a night is not a window, use two rules"));
        }
        Ok(span)
    }
}

fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let two =
        |s: &str| if s.len() == 2 && s.bytes().all(|b| b.is_ascii_digit()) { s.parse().ok() } else { None };
    let (hour, minute): (u16, u16) = (two(hour)?, two(minute)?);
    (minute < 60 && (hour < 24 || (hour == 24 && minute == 0))).then_some(hour * 60 + minute)
}

/// "2026-12-24"
pub(super) fn date(text: &str) -> Result<Date, String> {
    let plain = text.len() == 10;
    let parsed = if plain { text.parse().ok() } else { None };
    parsed.ok_or_else(|| format!("{text:?} is not a date like \"2026-12-24\""))
}

/// A day that comes every year, or once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Day {
    Yearly {
        month: i8,
        day: i8,
    },
    Once(Date),
    /// `nth` is -1 for the last one.
    Nth {
        nth: i8,
        weekday: Weekday,
        month: i8,
    },
}

const WEEKDAYS: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];
const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

impl Day {
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not like \"12-25\", \"2026-12-24\", \"3 mon jan\" or \"last mon may\"");
        if let [nth, weekday, month] = text.split(' ').collect::<Vec<_>>()[..] {
            let nth = match nth {
                "last" => -1,
                n => n.parse().ok().filter(|n| (1..=5).contains(n)).ok_or_else(wrong)?,
            };
            let weekday = WEEKDAYS.iter().find(|(name, _)| *name == weekday).ok_or_else(wrong)?.1;
            let month = MONTHS.iter().position(|name| *name == month).ok_or_else(wrong)? as i8 + 1;
            return Ok(Self::Nth { nth, weekday, month });
        }
        if let Ok(once) = date(text) {
            return Ok(Self::Once(once));
        }
        // A leap year, so that the 29th of February is a day.
        let yearly = date(&format!("2024-{text}")).map_err(|_| wrong())?;
        Ok(Self::Yearly { month: yearly.month(), day: yearly.day() })
    }

    pub fn is(self, on: Date) -> bool {
        match self {
            Self::Yearly { month, day } => (on.month(), on.day()) == (month, day),
            Self::Once(date) => date == on,
            Self::Nth { nth, weekday, month } => {
                on.month() == month
                    && on.weekday() == weekday
                    && on.nth_weekday_of_month(nth, weekday).is_ok_and(|date| date == on)
            }
        }
    }
}

/// A region of a rule: everybody, a country with its parts, or a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Region(pub String);

impl Region {
    pub fn parse(text: &str) -> Result<Self, String> {
        match text == "*" || carillon_proto::region::is_region(text) {
            true => Ok(Self(text.to_owned())),
            false => Err(format!("region {text:?} is not \"*\", \"US\" or like \"US-FL\"")),
        }
    }

    /// Is the recipient, who may be in any of these, possibly in it?
    pub fn fits(&self, regions: &[String]) -> bool {
        let inside = |region: &String| match region.strip_prefix(self.0.as_str()) {
            Some(rest) => rest.is_empty() || rest.starts_with('-'),
            None => false,
        };
        self.0 == "*" || regions.iter().any(inside)
    }
}

/// "follow_up"
pub(super) fn class(text: &str) -> Result<MessageClass, String> {
    let name = format!("MESSAGE_CLASS_{}", text.to_ascii_uppercase());
    let class = MessageClass::from_str_name(&name).filter(|class| *class != MessageClass::Unspecified);
    class.ok_or_else(|| format!("class {text:?} is unknown"))
}

/// "critical"
pub(super) fn priority(text: &str) -> Result<Priority, String> {
    let name = format!("PRIORITY_{}", text.to_ascii_uppercase());
    let priority = Priority::from_str_name(&name).filter(|priority| *priority != Priority::Unspecified);
    priority.ok_or_else(|| format!("priority {text:?} is unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        assert_eq!(Span::parse("08:00-21:00"), Ok(Span { start: 480, end: 1260 }));
        assert_eq!(Span::parse("00:00-24:00"), Ok(Span::ALL));
        assert!(Span::parse("none").is_ok_and(Span::is_empty));
        for bad in
            ["", "8-21", "08:00", "21:00-08:00", "08:00-08:00", "08:60-09:00", "08:00-24:01", "+8:00-09:00"]
        {
            assert!(Span::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn days_of_a_year() {
        let is = |text: &str, on: &str| Day::parse(text).unwrap().is(on.parse().unwrap());
        assert!(is("12-25", "2026-12-25") && is("12-25", "2031-12-25") && !is("12-25", "2026-12-24"));
        assert!(is("2026-07-03", "2026-07-03") && !is("2026-07-03", "2027-07-03"));
        assert!(is("3 mon jan", "2027-01-18") && !is("3 mon jan", "2027-01-11"));
        assert!(is("last mon may", "2027-05-31") && !is("last mon may", "2027-05-24"));
        assert!(is("4 thu nov", "2026-11-26") && is("02-29", "2028-02-29"));
        for bad in [
            "",
            "13-01",
            "02-30",
            "6 mon jan",
            "0 mon jan",
            "3 Mon jan",
            "third mon jan",
            "3 mon",
            "-1 mon jan",
        ] {
            assert!(Day::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_region_holds_its_parts_and_nothing_else() {
        let fits = |rule: &str, of: &[&str]| {
            let of: Vec<String> = of.iter().map(|s| (*s).to_owned()).collect();
            Region::parse(rule).unwrap().fits(&of)
        };
        assert!(fits("*", &[]) && fits("*", &["US-FL"]));
        assert!(fits("US", &["US-FL"]) && fits("US", &["US"]) && fits("US-FL", &["CA-NS", "US-FL"]));
        assert!(
            !fits("US", &[])
                && !fits("US-FL", &["US"])
                && !fits("US-FL", &["US-TX"])
                && !fits("CA", &["US-CA"])
        );
        assert!(Region::parse("Florida").is_err());
    }
}
