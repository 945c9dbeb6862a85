//! Calendar days of daily caps. Only the leader of the meta group, and who shows things to operators, looks at zones; apply never does.
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use std::time::Duration;

/// The day of a zone: its number since 1970-01-01, and how long it still lasts. `None`: no such zone.
pub fn day_of(zone: &str, now_ms: u64) -> Option<(u32, Duration)> {
    let zone = TimeZone::get(zone).ok()?;
    let now = Timestamp::from_millisecond(i64::try_from(now_ms).ok()?).ok()?.to_zoned(zone);
    let next = now.tomorrow().ok()?.start_of_day().ok()?;
    let since = now.date().duration_since(Date::constant(1970, 1, 1));
    let day = u32::try_from(since.as_hours() / 24).ok()?;
    let left_ms = next.timestamp().as_millisecond().checked_sub(now.timestamp().as_millisecond())?;
    Some((day, Duration::from_millis(u64::try_from(left_ms).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn a_day_ends_at_midnight_of_the_zone_also_when_clocks_change() {
        // 2026-11-01 05:30 UTC: 22:30 of October 31 in Los Angeles, the night in which clocks go back.
        let at = 1_793_511_000_000;
        let (day, left) = day_of("America/Los_Angeles", at).unwrap();
        assert_eq!(left, Duration::from_millis(HOUR * 3 / 2));
        let (next, left) = day_of("America/Los_Angeles", at + 2 * HOUR).unwrap();
        assert_eq!((next, left), (day + 1, Duration::from_millis(25 * HOUR - HOUR / 2)));
        assert_eq!(day_of("UTC", 0), Some((0, Duration::from_millis(24 * HOUR))));
        assert_eq!(day_of("Mars/Olympus", at), None);
    }
}
