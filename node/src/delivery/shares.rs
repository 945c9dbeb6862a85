//! Which change of the shares this node keeps to, as it tells the steward.
//!
//! Invariant: an epoch is reported only after every gate was set to it for [`REST`], so that no window of a limit that
//! is still open holds permits of a larger share. See `carillon_core::meta::share_of`.
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The widest window of a limit (1 s), and what a gate and the way to the carrier may add to it.
const REST: Duration = Duration::from_millis(1_100);

/// Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ShareKeeper(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    epoch: u64,
    /// Set on the gates, and since when.
    resting: Option<(u64, Instant)>,
}

impl ShareKeeper {
    /// All gates are set to this epoch.
    pub fn set(&self, epoch: u64, now: Instant) {
        let mut kept = self.0.lock();
        kept.advance(now);
        if epoch > kept.epoch && kept.resting.is_none_or(|(resting, _)| epoch > resting) {
            kept.resting = Some((epoch, now));
        }
    }

    pub fn kept(&self, now: Instant) -> u64 {
        let mut kept = self.0.lock();
        kept.advance(now);
        kept.epoch
    }
}

impl Kept {
    fn advance(&mut self, now: Instant) {
        if let Some((epoch, since)) = self.resting
            && now.saturating_duration_since(since) >= REST
        {
            (self.epoch, self.resting) = (epoch, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_counts_after_its_rest_and_the_next_one_rests_anew() {
        let (keeper, start) = (ShareKeeper::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        keeper.set(4, at(0));
        keeper.set(4, at(500));
        assert_eq!(keeper.kept(at(1_099)), 0);
        assert_eq!(keeper.kept(at(1_100)), 4);
        keeper.set(5, at(2_000));
        keeper.set(6, at(2_500));
        assert_eq!(keeper.kept(at(3_500)), 4, "6 took the place of 5 and began its own rest");
        assert_eq!(keeper.kept(at(3_600)), 6);
        keeper.set(5, at(9_000));
        assert_eq!(keeper.kept(at(20_000)), 6);
    }
}
