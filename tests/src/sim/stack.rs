//! I6 of stacked limits, by the oracle's own books: in no window and on no day of its zone more segments leave than a limit allows,
//! counted over the whole cluster from the moment on at which every node knows of it; of a limit that was lowered, from the moment on at
//! which the grantor says that nobody goes by the old one. In healthy runs also: what may be used
//! is used.
use super::settings::{MIDNIGHT_MS, PlannedLimit};
use super::truth::Write;
use super::world::World;
use carillon_proto::public::MessageState;
use std::collections::VecDeque;

/// Before this time after a limit came into force its lane is not looked at for whether it is used.
const RAMP_MS: u64 = 4_000;

#[derive(Debug)]
struct Watched {
    /// As it was planned.
    limit: PlannedLimit,
    /// Segments that it allows now, and that operators ordered last.
    amount: u32,
    ordered: u32,
    known_ms: Option<u64>,
    /// Moments of the writes of the last window, and of all.
    window: VecDeque<u64>,
    all: Vec<u64>,
    /// Segments of the days before and after midnight.
    of_day: [u64; 2],
    /// The same when the amount was lowered: that much had left.
    before: [u64; 2],
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
            amount: limit.amount,
            ordered: limit.amount,
            known_ms: None,
            window: VecDeque::new(),
            all: Vec::new(),
            of_day: [0; 2],
            before: [0; 2],
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

    /// Operators want another amount. A higher one may be used at once.
    pub fn ordered(&mut self, number: usize, amount: u32) {
        let watched = &mut self.limits[number];
        (watched.ordered, watched.amount) = (amount, watched.amount.max(amount));
    }

    /// Whatever may be sent from now on keeps to this amount, if none is ordered that has not come into force.
    pub fn settled(&mut self, number: usize, amount: u32, now_ms: u64) {
        let watched = &mut self.limits[number];
        watched.known_ms.get_or_insert(now_ms);
        let amount = amount.max(watched.ordered);
        if amount < watched.amount {
            watched.amount = amount;
            watched.window.clear();
            watched.before = watched.of_day;
        }
    }

    pub fn wrote(&mut self, write: &Write) -> Result<(), String> {
        if write.carrier == 0 {
            self.first.push(write.now_ms);
        }
        for watched in &mut self.limits {
            let limit = watched.limit;
            if watched.known_ms.is_some() && limit.covers(write.carrier, write.practice, write.sender) {
                watched.count(write)?;
            }
        }
        Ok(())
    }

    /// How much of each limit that should have been used was used, and whether that is enough.
    fn used(&self, until_ms: u64) -> Vec<(String, bool)> {
        let watched = self.limits.iter().filter(|watched| watched.limit.used_permille > 0);
        let used = watched.map(|Watched { limit, known_ms, all, of_day, .. }| {
            let Some(known_ms) = known_ms else { return (format!("{limit:?} never came into force"), false) };
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
            let permille = used * 1_000 / possible.max(1);
            let text = format!(
                "{used} of {possible} segments ({permille} permille) of {limit:?} were used ({of_day:?})"
            );
            (text, permille >= limit.used_permille)
        });
        used.collect()
    }
}

impl Stack {
    /// Segments in a thousand seconds to the first carrier.
    fn per_kilosecond(&self, from_ms: u64, until_ms: u64) -> u64 {
        let count = self.first.iter().filter(|at| (from_ms..until_ms).contains(at)).count() as u64;
        count * 1_000_000 / (until_ms - from_ms).max(1)
    }

    /// A lane that was told "too fast" is slower, and comes back.
    fn eased(&self, limit: u32, (from_ms, until_ms): (u64, u64), end_ms: u64) -> (String, bool) {
        let limit = u64::from(limit) * 1_000;
        let before = self.per_kilosecond(from_ms - 5_000, from_ms);
        let after = self.per_kilosecond(until_ms + 500, until_ms + 5_500);
        let at_last = self.per_kilosecond(end_ms - 10_000, end_ms);
        let fine = before * 10 > limit * 9 && after * 100 < limit * 85 && at_last * 10 > limit * 9;
        let text =
            format!("{before} segments in 1000 s before it was too fast, {after} after, {at_last} at last");
        (text, fine)
    }
}

impl Watched {
    fn count(&mut self, write: &Write) -> Result<(), String> {
        let (limit, amount) = (self.limit, u64::from(self.amount));
        self.all.push(write.now_ms);
        if limit.window_s == 0 {
            // Which day it is, as far as the clocks of the nodes can know.
            let day = match write.wall_ms {
                at if at + write.clock_error_ms < MIDNIGHT_MS => 0,
                at if at >= MIDNIGHT_MS + write.clock_error_ms => 1,
                _ => return Ok(()),
            };
            self.of_day[day] += 1;
            if self.of_day[day] > amount.max(self.before[day]) {
                let used = self.of_day[day];
                return Err(format!("I6 {used} segments on a day of {limit:?}, which allows {amount} now"));
            }
            return Ok(());
        }
        self.window.push_back(write.now_ms);
        let length_ms = u64::from(limit.window_s) * 1_000;
        while self.window.front().is_some_and(|at| *at + length_ms <= write.now_ms) {
            self.window.pop_front();
        }
        if self.window.len() as u64 > amount {
            let used = self.window.len();
            return Err(format!(
                "I6 {used} segments within a window of {limit:?}, which allows {amount} now"
            ));
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
        let mut found = self.oracle.stack.used(self.plan.safety_ms);
        if let Some(throttled_ms) = self.plan.settings.throttled_ms {
            found.push(self.oracle.stack.eased(self.plan.limits[0], throttled_ms, self.plan.safety_ms));
        }
        for (text, fine) in found {
            self.note(&[61, u64::from(fine)], || format!("used   {text}"));
            if !fine {
                self.oracle.fail(format!("I8 {text}"));
            }
        }
        let (Some(permille_max), Some(view)) = (self.plan.settings.roomy, self.newest_view()) else { return };
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
        let (mut all, mut expired) = (0, Vec::new());
        for seen in free {
            all += 1;
            if seen.state == MessageState::Expired {
                expired.push((seen.practice_no, seen.accepted_ms - start_ms));
            }
        }
        let text = format!(
            "of {all} messages of practices that are held up by no limit of their own {} expired: {expired:?}",
            expired.len()
        );
        let fine = expired.len() as u64 * 1_000 <= all * permille_max;
        self.note(&[62, u64::from(fine)], || format!("used   {text}"));
        if !fine {
            self.oracle.fail(format!("I13 {text}"));
        }
    }
}
