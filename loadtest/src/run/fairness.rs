//! Whether practices were served alike: how long each waited, and Jain's index of their shares.
//!
//! What a practice gets is compared with what it would get if everything that the carrier took in the measured time had been
//! shared out as evenly as possible, nobody getting more than it asked for (max-min). The index over these quotients is 1
//! when everybody got exactly that, and 1/n when one of n got everything.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Practices that are listed by name.
const LISTED_MAX: usize = 10;

/// What one practice asked for and got.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Messages due in the measured time.
    pub asked: u64,
    /// Messages that reached the carrier in it.
    pub served: u64,
    /// Messages with a delay, its sum and its maximum.
    pub delayed: u64,
    pub delay_us: u64,
    pub delay_max_us: u64,
}

/// A practice in the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PracticeDelay {
    pub practice: String,
    pub messages: u64,
    pub mean_ms: f64,
    pub max_ms: f64,
}

/// How practices were served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Fairness {
    /// Practices that asked for anything.
    pub practices: u64,
    pub jain: f64,
    /// Mean delay from due to carrier of the practice that waited longest.
    pub worst_delay_ms: f64,
    /// Those that waited longest, on average.
    pub worst: Vec<PracticeDelay>,
}

/// The level up to which everybody is served when `total` is shared out evenly.
fn level(asked: &[u64], total: f64) -> f64 {
    let mut sorted: Vec<f64> = asked.iter().map(|asked| *asked as f64).collect();
    sorted.sort_by(f64::total_cmp);
    let (mut left, mut before) = (total, 0.0);
    for (at, asked) in sorted.iter().enumerate() {
        let share = left / (sorted.len() - at) as f64;
        if *asked >= share {
            return share;
        }
        left -= asked;
        before = *asked;
    }
    before
}

/// Jain's index of what was served over what an even share would be.
fn jain(sums: &[Sums]) -> f64 {
    let asked: Vec<u64> = sums.iter().map(|sums| sums.asked).collect();
    let total: u64 = sums.iter().map(|sums| sums.served.min(sums.asked)).sum();
    let level = level(&asked, total as f64);
    let quotients = sums.iter().map(|sums| {
        let fair = (sums.asked as f64).min(level).max(1e-9);
        sums.served.min(sums.asked) as f64 / fair
    });
    let (sum, squares) = quotients.fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
    if squares == 0.0 { 0.0 } else { sum * sum / (sums.len() as f64 * squares) }
}

impl Fairness {
    pub fn new(sums: &[Sums], name: impl Fn(usize) -> String) -> Self {
        let asking: Vec<Sums> = sums.iter().copied().filter(|sums| sums.asked > 0).collect();
        if asking.is_empty() {
            return Self::default();
        }
        let mean_ms = |sums: &Sums| sums.delay_us as f64 / sums.delayed.max(1) as f64 / 1_000.0;
        let mut waited: Vec<(usize, &Sums)> =
            sums.iter().enumerate().filter(|(_, s)| s.delayed > 0).collect();
        waited.sort_by(|a, b| mean_ms(b.1).total_cmp(&mean_ms(a.1)));
        let listed = waited.iter().take(LISTED_MAX).map(|(at, sums)| PracticeDelay {
            practice: name(*at),
            messages: sums.delayed,
            mean_ms: mean_ms(sums),
            max_ms: sums.delay_max_us as f64 / 1_000.0,
        });
        Self {
            practices: asking.len() as u64,
            jain: jain(&asking),
            worst_delay_ms: waited.first().map_or(0.0, |(_, sums)| mean_ms(sums)),
            worst: listed.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(list: &[(u64, u64)]) -> Vec<Sums> {
        list.iter()
            .map(|(asked, served)| Sums { asked: *asked, served: *served, ..Sums::default() })
            .collect()
    }

    #[test]
    fn everybody_served_is_fair_however_uneven_the_sizes() {
        assert!((jain(&sums(&[(1_000, 1_000), (10, 10), (1, 1)])) - 1.0).abs() < 1e-9);
        // The largest waits, the small ones do not: that is an even share, too.
        assert!((jain(&sums(&[(1_000, 89), (10, 10), (1, 1)])) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn one_that_takes_everything_is_unfair() {
        assert!((jain(&sums(&[(100, 100), (100, 0), (100, 0), (100, 0)])) - 0.25).abs() < 1e-9);
        let half = jain(&sums(&[(1_000, 95), (10, 5), (10, 0)]));
        assert!(half < 0.7, "{half}");
        assert_eq!(jain(&sums(&[(5, 0)])), 0.0);
    }

    #[test]
    fn the_practice_that_waited_longest_is_named_first() {
        let mut list = sums(&[(2, 2), (1, 1), (0, 0)]);
        list[0] = Sums { delayed: 2, delay_us: 3_000, delay_max_us: 2_000, ..list[0] };
        list[1] = Sums { delayed: 1, delay_us: 9_000, delay_max_us: 9_000, ..list[1] };
        let fairness = Fairness::new(&list, |at| format!("p{at}"));
        assert_eq!((fairness.practices, fairness.worst[0].practice.as_str()), (2, "p1"));
        assert_eq!((fairness.worst_delay_ms, fairness.worst[1].mean_ms), (9.0, 1.5));
    }
}
