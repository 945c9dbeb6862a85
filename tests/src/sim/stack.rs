//! I6 of stacked limits, by the oracle's own books: in no window and on no day of its zone more segments leave than a limit allows,
//! counted over the whole cluster from the moment on at which every node knows of it. In healthy runs also: what may be used
//! is used.
use super::settings::{MIDNIGHT_MS, PlannedLimit};
use super::truth::Write;
use super::world::World;
use carillon_proto::public::MessageState;
use std::collections::VecDeque;

/// Before this time after a limit came into force its lane is not looked at for whether it is used.
const RAMP_MS: u64 = 4_000;
/// Of the messages that are held up by no limit so many may expire.
const EXPIRED_PERMILLE_MAX: u64 = 30;

#[derive(Debug)]
struct Watched {
    limit: PlannedLimit,
    known_ms: Option<u64>,
    /// Moments of the writes of the last window, and of all.
    window: VecDeque<u64>,
    all: Vec<u64>,
    /// Segments of the days before and after midnight.
    of_day: [u64; 2],
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Stack {
    limits: Vec<Watched>,
    /// Moments of all writes to the first carrier.
    first: Vec<u64>,
}

impl Stack {
    pub fn new(limits: &[PlannedLimit]) -> Self {
        let watched = |limit: &PlannedLimit| Watched {
            limit: *limit,
            known_ms: None,
            window: VecDeque::new(),
            all: Vec::new(),
            of_day: [0; 2],
        };
        Self { limits: limits.iter().map(watched).collect(), first: Vec::new() }
    }

    /// Another cluster goes on, in which nobody knows of a limit.
    pub fn next_cluster(&mut self) {
        let limits: Vec<PlannedLimit> = self.limits.iter().map(|watched| watched.limit).collect();
        *self = Self::new(&limits);
    }

    /// Every node that can send knows it. True: for the first time.
    pub fn known(&mut self, number: usize, now_ms: u64) -> bool {
        let first = self.limits[number].known_ms.is_none();
        self.limits[number].known_ms.get_or_insert(now_ms);
        first
    }

    pub fn wrote(&mut self, write: &Write) -> Result<(), String> {
        if write.carrier == 0 {
            self.first.push(write.now_ms);
        }
        for watched in &mut self.limits {
            let limit = watched.limit;
            // Who began before has no permit of it.
            let counts = watched.known_ms.is_some_and(|known_ms| write.begun_ms >= known_ms);
            if counts && limit.covers(write.carrier, write.practice, write.sender) {
                watched.count(write)?;
            }
        }
        Ok(())
    }

    /// A limit that was not used as it should have been, if there is one.
    fn unused(&self, until_ms: u64) -> Option<String> {
        self.limits.iter().filter(|watched| watched.limit.used_permille > 0).find_map(|watched| {
            let Watched { limit, known_ms, all, of_day, .. } = watched;
            let Some(known_ms) = known_ms else { return Some(format!("{limit:?} never came into force")) };
            let (used, possible) = match limit.window_s {
                // The day on which it was in force from midnight on.
                0 => (of_day[1], u64::from(limit.amount)),
                window_s => {
                    let from_ms = known_ms + RAMP_MS;
                    let used = all.iter().filter(|at| (from_ms..until_ms).contains(at)).count() as u64;
                    let windows_ms = u64::from(window_s) * 1_000;
                    (used, u64::from(limit.amount) * until_ms.saturating_sub(from_ms) / windows_ms)
                }
            };
            (used * 1_000 < possible * limit.used_permille)
                .then(|| format!("{used} of {possible} segments of {limit:?} were used ({of_day:?})"))
        })
    }
}

impl Stack {
    /// Segments in a thousand seconds to the first carrier.
    fn per_kilosecond(&self, from_ms: u64, until_ms: u64) -> u64 {
        let count = self.first.iter().filter(|at| (from_ms..until_ms).contains(at)).count() as u64;
        count * 1_000_000 / (until_ms - from_ms).max(1)
    }

    /// A lane that was told "too fast" is slower, and comes back.
    fn not_eased(&self, limit: u32, (from_ms, until_ms): (u64, u64), end_ms: u64) -> Option<String> {
        let limit = u64::from(limit) * 1_000;
        let before = self.per_kilosecond(from_ms - 5_000, from_ms);
        let after = self.per_kilosecond(until_ms + 500, until_ms + 5_500);
        let at_last = self.per_kilosecond(end_ms - 10_000, end_ms);
        let fine = before * 10 > limit * 9 && after * 100 < limit * 85 && at_last * 10 > limit * 9;
        (!fine).then(|| {
            format!("{before} segments in 1000 s before it was too fast, {after} after, {at_last} at last")
        })
    }
}

impl Watched {
    fn count(&mut self, write: &Write) -> Result<(), String> {
        let limit = self.limit;
        self.all.push(write.now_ms);
        if limit.window_s == 0 {
            // Which day it is, as far as the clocks of the nodes can know.
            let day = match write.wall_ms {
                at if at + write.clock_error_ms < MIDNIGHT_MS => 0,
                at if at >= MIDNIGHT_MS + write.clock_error_ms => 1,
                _ => return Ok(()),
            };
            self.of_day[day] += 1;
            if self.of_day[day] > u64::from(limit.amount) {
                return Err(format!("I6 {} segments on a day of {limit:?}", self.of_day[day]));
            }
            return Ok(());
        }
        self.window.push_back(write.now_ms);
        let length_ms = u64::from(limit.window_s) * 1_000;
        while self.window.front().is_some_and(|at| *at + length_ms <= write.now_ms) {
            self.window.pop_front();
        }
        if self.window.len() > limit.amount as usize {
            return Err(format!("I6 {} segments within a window of {limit:?}", self.window.len()));
        }
        Ok(())
    }
}

impl World {
    /// At the end of the trouble of a healthy run, of which there was none.
    pub fn check_use(&mut self) {
        if !self.plan.settings.healthy {
            return;
        }
        if let Some(text) = self.oracle.stack.unused(self.plan.safety_ms) {
            self.oracle.fail(format!("I8 {text}"));
        }
        if let Some(throttled_ms) = self.plan.settings.throttled_ms {
            let wrong = self.oracle.stack.not_eased(self.plan.limits[0], throttled_ms, self.plan.safety_ms);
            wrong.into_iter().for_each(|text| self.oracle.fail(format!("I8 {text}")));
        }
        let Some(view) = self.newest_view().filter(|_| self.plan.settings.roomy) else { return };
        // Whoever needs no limit but the carrier's has room.
        let start_ms = self.plan.start_ms();
        let looked_at = start_ms + 8_000..start_ms + self.plan.safety_ms - 6_000;
        let free = self.oracle.messages.values().filter(|seen| {
            let practice = super::settings::practice_of(view, seen.practice_no);
            let carrier = practice as usize % self.plan.limits.len();
            let settings = &self.plan.settings;
            looked_at.contains(&seen.accepted_ms)
                && !settings.is_narrow(carrier, practice)
                && !settings.heavy.contains(&practice)
        });
        let (mut all, mut expired) = (0, 0);
        for seen in free {
            all += 1;
            expired += u64::from(seen.state == MessageState::Expired);
        }
        if expired * 1_000 > all * EXPIRED_PERMILLE_MAX {
            self.oracle.fail(format!(
                "I13 {expired} of {all} messages expired whose practices are held up by no limit of their own"
            ));
        }
    }
}
