//! What the meta group says about practices, as the driver needs it: weights and pauses for the scheduler, and for each attempt
//! the rule about messages to one recipient, with the days of the practice's zone.
use carillon_core::meta::{MetaView, level};
use carillon_delivery::{BeginDecision, Scheduler};
use carillon_proto::internal::{FrequencyRule, meta_command::Kind};
use carillon_proto::internal::{MetaCommand, PauseCause, PausePractice};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use std::collections::{BTreeMap, BTreeSet, HashMap};

const EPOCH: Date = jiff::civil::date(1970, 1, 1);

/// Bounded by the practices, and by the zones that they name.
#[derive(Debug, Default)]
pub struct Practices {
    weights: BTreeMap<u32, u32>,
    paused: BTreeSet<(u32, u32)>,
    days: HashMap<String, Day>,
}

/// A day of a zone, and when the next seven begin.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Day {
    number: u32,
    starts_ms: u64,
    next_ms: Vec<u64>,
}

impl Day {
    fn of(zone: &str, now_ms: u64) -> Option<Self> {
        let zone = TimeZone::get(zone).ok()?;
        let now = Timestamp::from_millisecond(i64::try_from(now_ms).ok()?).ok()?;
        let today = now.to_zoned(zone.clone()).date();
        let start_ms = |ahead: i64| -> Option<u64> {
            let day = today.checked_add(ahead.days()).ok()?;
            u64::try_from(day.to_zoned(zone.clone()).ok()?.timestamp().as_millisecond()).ok()
        };
        let number = u32::try_from(today.duration_since(EPOCH).as_hours() / 24).ok()?;
        Some(Self { number, starts_ms: start_ms(0)?, next_ms: (1..=7).map(start_ms).collect::<Option<_>>()? })
    }

    fn holds(&self, now_ms: u64) -> bool {
        self.starts_ms <= now_ms && self.next_ms.first().is_some_and(|end_ms| now_ms < *end_ms)
    }
}

impl Practices {
    /// Tells the scheduler what has changed.
    pub fn sync(&mut self, view: &MetaView, scheduler: &mut Scheduler) {
        let weighted = view.practices.values().filter(|practice| practice.weight > 1);
        let weights: BTreeMap<u32, u32> = weighted.map(|p| (p.practice_no, p.weight)).collect();
        for practice_no in self.weights.keys().chain(weights.keys()) {
            scheduler.set_weight(*practice_no, weights.get(practice_no).copied().unwrap_or(1));
        }
        self.weights = weights;
        let paused: BTreeSet<(u32, u32)> =
            view.pauses.iter().filter(|(_, pause)| pause.paused).map(|(key, _)| *key).collect();
        for (practice_no, carrier_no) in self.paused.symmetric_difference(&paused) {
            let now = paused.contains(&(*practice_no, *carrier_no));
            scheduler.pause_practice(*carrier_no, *practice_no, now);
        }
        self.paused = paused;
        metrics::gauge!("carillon_practices_paused").set(self.paused.len() as f64);
    }

    /// What holds for this attempt; `None`: nothing, or the cluster is below the level.
    pub fn rule(&mut self, view: &MetaView, decided: &BeginDecision, now_ms: u64) -> Option<FrequencyRule> {
        let practice =
            view.practices.get(&decided.practice_no).filter(|_| view.level >= level::LEVEL_DELIVERY)?;
        let policy = view.policy_of(practice);
        let capped = policy.recipient_per_day > 0 || policy.recipient_per_week > 0 || policy.burst > 0;
        if !capped || policy.exempt_classes.contains(&decided.class) {
            return None;
        }
        let day = self.day(&practice.time_zone, now_ms)?;
        Some(FrequencyRule {
            day: day.number,
            day_starts_ms: day.next_ms.clone(),
            per_day: policy.recipient_per_day,
            per_week: policy.recipient_per_week,
            burst: policy.burst,
            burst_window_ms: policy.burst_window_s.saturating_mul(1_000),
            burst_since_ms: view.resumed_ms(decided.practice_no, decided.carrier_no),
        })
    }

    /// An unknown zone counts as UTC: the caps hold all the same.
    fn day(&mut self, zone: &str, now_ms: u64) -> Option<&Day> {
        if !self.days.get(zone).is_some_and(|day| day.holds(now_ms)) {
            let day = Day::of(zone, now_ms).or_else(|| Day::of("UTC", now_ms))?;
            self.days.insert(zone.to_owned(), day);
        }
        self.days.get(zone)
    }
}

/// A recipient gets too much: the practice stops on the carrier until somebody has looked.
pub fn pause(practice_no: u32, carrier_no: u32) -> MetaCommand {
    let pause = PausePractice { practice_no, carrier_no, paused: true, cause: PauseCause::Burst.into() };
    MetaCommand { kind: Some(Kind::PausePractice(pause)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> u64 {
        text.parse::<Timestamp>().unwrap().as_millisecond() as u64
    }

    #[test]
    fn days_are_those_of_the_zone_and_of_any_length() {
        // In Chicago the clocks went forward on 2026-03-08.
        let day = Day::of("America/Chicago", at("2026-03-08T05:59:59Z")).unwrap();
        assert_eq!((day.number, day.next_ms[0]), (20_519, at("2026-03-08T06:00:00Z")));
        assert_eq!(day.next_ms[1], at("2026-03-09T05:00:00Z"), "a day of 23 hours");
        assert_eq!((day.next_ms.len(), day.next_ms[6]), (7, at("2026-03-14T05:00:00Z")));
        assert!(day.holds(at("2026-03-08T05:59:59Z")) && !day.holds(at("2026-03-08T06:00:00Z")));
        let next = Day::of("America/Chicago", at("2026-03-08T06:00:00Z")).unwrap();
        assert_eq!((next.number, next.starts_ms), (20_520, day.next_ms[0]));
        assert_eq!(Day::of("Mars/Olympus", 5), None);
    }

    #[test]
    fn an_unknown_zone_counts_as_utc() {
        let mut practices = Practices::default();
        assert_eq!(practices.day("Mars/Olympus", at("2026-03-08T05:00:00Z")).unwrap().number, 20_520);
    }
}
