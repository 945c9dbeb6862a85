//! The next window: the wall clocks of all possible zones, walked from one change of the clocks to the next.
//!
//! Between two changes a wall clock runs like the time itself, so a day's hours are plain sums there; the change itself is a
//! border. So gaps and repeated hours need no rule of their own.
use super::{Answer, Ask, MARGIN_MS, Rulebook, Window};
use carillon_proto::local_time;
use jiff::Timestamp;
use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 24 * 60 * MINUTE_MS;
/// How far a window is looked for.
const HORIZON_MS: u64 = 370 * DAY_MS;
/// A window is followed this far; what is open longer is computed again then.
const FOLLOWED_MS: u64 = 2 * DAY_MS;

/// A wall clock at a moment.
struct Clock {
    day: Date,
    ms_of_day: u64,
    /// When the clock is changed next.
    change_ms: u64,
}

fn clock(zone: &TimeZone, at_ms: u64) -> Option<Clock> {
    let at = Timestamp::from_millisecond(i64::try_from(at_ms).ok()?).ok()?;
    let local = zone.to_datetime(at);
    let ms_of_day = local.time().duration_since(Time::midnight()).as_millis();
    let change = zone.following(at).next().map(|change| change.timestamp().as_millisecond());
    Some(Clock {
        day: local.date(),
        ms_of_day: u64::try_from(ms_of_day).ok()?,
        change_ms: change.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(u64::MAX),
    })
}

/// Where a moment is in the hours of its day.
enum Spot {
    /// Open for at least this long.
    Open(u64),
    /// Closed for at least this long.
    Closed(u64),
}

impl Rulebook {
    /// The next window of the recipient.
    pub fn ask(&self, ask: &Ask<'_>) -> Answer {
        if let Some(reason) = self.exemption(ask) {
            return Answer::Exempt(reason.to_owned());
        }
        let zones: Option<Vec<&TimeZone>> =
            ask.place.time_zones.iter().map(|name| local_time::zone(name)).collect();
        let window = match zones.as_deref() {
            // A zone that this program does not know: nobody can say that it is day there.
            None | Some([]) => None,
            Some(zones) => self.next_window(ask, zones),
        };
        let why = || self.in_the_way(ask, zones.as_deref().unwrap_or_default());
        match window {
            None => Answer::Never(why()),
            Some((open_ms, until_ms)) => {
                let rule = if open_ms > ask.from_ms { why() } else { String::new() };
                Answer::Window(Window { open_ms, until_ms, rule })
            }
        }
    }

    /// First moment at which all zones are inside, and when the first of them is not any more, the margin taken off.
    fn next_window(&self, ask: &Ask<'_>, zones: &[&TimeZone]) -> Option<(u64, u64)> {
        let end_ms = ask.from_ms.saturating_add(HORIZON_MS);
        let mut at_ms = ask.from_ms;
        'search: while at_ms < end_ms {
            let mut until_ms = at_ms + FOLLOWED_MS;
            for zone in zones {
                match self.spot(ask, zone, at_ms)? {
                    Spot::Closed(ms) => {
                        at_ms += ms;
                        continue 'search;
                    }
                    Spot::Open(ms) => until_ms = until_ms.min(at_ms + ms),
                }
            }
            if at_ms + MARGIN_MS < until_ms {
                return Some((at_ms, until_ms - MARGIN_MS));
            }
            at_ms = until_ms;
        }
        None
    }

    /// Follows an open moment over midnights and changes of the clock.
    fn spot(&self, ask: &Ask<'_>, zone: &TimeZone, at_ms: u64) -> Option<Spot> {
        let mut open_ms = match self.look(ask, zone, at_ms)? {
            Spot::Open(ms) => ms,
            closed => return Some(closed),
        };
        while open_ms < FOLLOWED_MS {
            match self.look(ask, zone, at_ms + open_ms)? {
                Spot::Open(ms) => open_ms += ms,
                Spot::Closed(_) => break,
            }
        }
        Some(Spot::Open(open_ms))
    }

    /// Up to the next border: of the hours, of the day, or of the clock.
    fn look(&self, ask: &Ask<'_>, zone: &TimeZone, at_ms: u64) -> Option<Spot> {
        let clock = clock(zone, at_ms)?;
        let span = self.span(ask, clock.day);
        let (start_ms, end_ms) = (u64::from(span.start) * MINUTE_MS, u64::from(span.end) * MINUTE_MS);
        let left = |border_ms: u64| (border_ms - clock.ms_of_day).min(clock.change_ms - at_ms);
        Some(if span.is_empty() || clock.ms_of_day >= end_ms {
            Spot::Closed(left(DAY_MS))
        } else if clock.ms_of_day < start_ms {
            Spot::Closed(left(start_ms))
        } else {
            Spot::Open(left(end_ms))
        })
    }

    /// The last of the rules, the narrowest as they are written, that forbids the moment asked for.
    fn in_the_way(&self, ask: &Ask<'_>, zones: &[&TimeZone]) -> String {
        for zone in zones {
            let Some(clock) = clock(zone, ask.from_ms) else { continue };
            let minute = u64::from(u16::MAX).min(clock.ms_of_day / MINUTE_MS) as u16;
            let forbids = self
                .said(ask, clock.day)
                .filter(|said| said.span.is_empty() || !(said.span.start..said.span.end).contains(&minute))
                .last();
            if let Some(said) = forbids {
                return said.rule.to_owned();
            }
        }
        String::new()
    }

    /// The rules that fit on the day of `from_ms` in each zone, for people.
    pub fn explain(&self, ask: &Ask<'_>) -> Vec<String> {
        let mut lines = Vec::new();
        for name in &ask.place.time_zones {
            let Some(clock) = local_time::zone(name).and_then(|zone| clock(zone, ask.from_ms)) else {
                continue;
            };
            for said in self.said(ask, clock.day) {
                let hours = match said.span.is_empty() {
                    true => "none".to_owned(),
                    false => format!("{}-{}", wall(said.span.start), wall(said.span.end)),
                };
                lines.push(format!("{name} {}: {} {hours} ({})", clock.day, said.rule, said.source));
            }
        }
        lines
    }

    /// The wall clocks of the zones at `from_ms`, for people.
    pub fn wall_clocks(ask: &Ask<'_>) -> Vec<String> {
        let at = i64::try_from(ask.from_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let show = |name: &String| {
            let zone = local_time::zone(name)?;
            Some(format!("{name} {}", at?.to_zoned(zone.clone()).strftime("%a %Y-%m-%d %H:%M:%S %:z")))
        };
        ask.place.time_zones.iter().filter_map(show).collect()
    }
}

fn wall(minute: u16) -> String {
    format!("{:02}:{:02}", minute / 60, minute % 60)
}
