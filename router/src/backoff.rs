//! Pauses that double and are drawn at random, so that callers who failed together do not come back together.
use rand::Rng as _;
use std::ops::RangeInclusive;
use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Backoff {
    bounds_ms: RangeInclusive<u64>,
    ceiling_ms: u64,
}

impl Backoff {
    /// The first pause is near the lower bound, none is above the upper.
    pub fn new(bounds_ms: RangeInclusive<u64>) -> Self {
        let ceiling_ms = Self::first_ceiling(&bounds_ms);
        Self { bounds_ms, ceiling_ms }
    }

    fn first_ceiling(bounds_ms: &RangeInclusive<u64>) -> u64 {
        (bounds_ms.start() * 2).min(*bounds_ms.end())
    }

    /// Between the lower bound and a ceiling that doubles each time.
    pub fn next_pause(&mut self) -> Duration {
        let pause_ms = rand::rng().random_range(*self.bounds_ms.start()..=self.ceiling_ms);
        self.ceiling_ms = (self.ceiling_ms * 2).min(*self.bounds_ms.end());
        Duration::from_millis(pause_ms)
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.ceiling_ms = Self::first_ceiling(&self.bounds_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_stay_in_bounds_and_start_again() {
        let mut backoff = Backoff::new(20..=200);
        assert!(backoff.next_pause() <= Duration::from_millis(40));
        let pauses: Vec<_> = (0..200).map(|_| backoff.next_pause().as_millis()).collect();
        assert!(pauses.iter().all(|p| (20..=200).contains(p)));
        assert!(pauses.iter().any(|p| *p > 80), "the ceiling did not grow");
        backoff.reset();
        assert!(backoff.next_pause() <= Duration::from_millis(40));
    }
}
