//! How a limit becomes tokens and a frame.
//!
//! A window of a limit is cut into equal frames, and its amount into as many equal parts. Whoever keeps to the part in every
//! interval as long as a frame keeps to the amount in every window. Short frames let budget move between nodes quickly, because
//! a token rests for one frame when it changes hands; many tokens let it be split finely. What the cut cannot divide is lost,
//! at most half a percent.
use crate::gate::GateSettings;
use std::time::Duration;

/// No frame is shorter: the gates' slack would weigh too much.
const FRAME_MIN: Duration = Duration::from_millis(100);
/// Frames are not longer than this if the amount allows it.
const FRAME_GOOD: Duration = Duration::from_millis(1_100);
/// With so many tokens a finer split is worth less than a shorter frame.
const TOKENS_GOOD: u32 = 64;
/// Of the amount that may be lost by the cut: one part in so many.
const LOSS: u32 = 200;
/// Cuts that are tried, at most.
const CUTS_MAX: u32 = 36_000;

/// At most `amount` segments in every window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub amount: u32,
    pub window: Duration,
}

impl Limit {
    pub fn per_second(amount: u32) -> Self {
        Self { amount, window: Duration::from_secs(1) }
    }
}

/// See the module documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub tokens: u32,
    pub length: Duration,
    /// Frames in a window.
    pub per_window: u32,
}

impl Frame {
    /// `None`: a limit of nothing.
    pub fn of(limit: Limit, gate: &GateSettings) -> Option<Self> {
        if limit.amount == 0 || limit.window.is_zero() {
            return None;
        }
        let window = limit.window + gate.catch_up + gate.jitter_allowance;
        let by_length = u32::try_from(limit.window.as_nanos() / FRAME_MIN.as_nanos()).unwrap_or(u32::MAX);
        let cuts = by_length.min(limit.amount).clamp(1, CUTS_MAX);
        let mut best = Self { tokens: limit.amount, length: window, per_window: 1 };
        for per_window in 2..=cuts {
            let tokens = limit.amount / per_window;
            if (limit.amount - tokens * per_window).saturating_mul(LOSS) > limit.amount {
                continue;
            }
            if best.length <= FRAME_GOOD && tokens < TOKENS_GOOD {
                break;
            }
            // Rounded up, so that rounding errs to under-send.
            let nanos = window.as_nanos().div_ceil(u128::from(per_window));
            let length = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            best = Self { tokens, length, per_window };
        }
        Some(best)
    }

    /// What is left of it at so many permille; at less than one token the frame grows.
    pub fn eased(&self, permille: u32) -> Self {
        let permille = permille.min(1_000);
        let share = u64::from(self.tokens) * u64::from(permille);
        if permille == 0 {
            return Self { tokens: 0, ..*self };
        }
        if share >= 1_000 {
            return Self { tokens: (share / 1_000) as u32, ..*self };
        }
        let nanos = self.length.as_nanos() * 1_000 / u128::from(share.max(1));
        let length = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        Self { tokens: 1, length, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(amount: u32, window_s: u64) -> Frame {
        let limit = Limit { amount, window: Duration::from_secs(window_s) };
        Frame::of(limit, &GateSettings::default()).unwrap()
    }

    #[test]
    fn no_window_holds_more_than_the_amount_and_little_is_lost() {
        let slack = Duration::from_millis(15);
        for window_s in [1, 10, 60, 3_600] {
            let window = Duration::from_secs(window_s);
            for amount in (1..=300).chain([333, 600, 999, 1_000, 4_567, 50_000]) {
                let frame = frame(amount, window_s);
                assert!(frame.tokens * frame.per_window <= amount, "{amount} in {window_s} s: {frame:?}");
                assert!(frame.length * frame.per_window >= window + slack, "{amount}: {frame:?}");
                let lost = amount - frame.tokens * frame.per_window;
                assert!(lost * 200 <= amount, "{amount} in {window_s} s: {frame:?}");
                let long = frame.length > FRAME_GOOD;
                assert!(!long || frame.tokens == 1 || window_s > 1, "{amount} in {window_s} s: {frame:?}");
            }
        }
        assert_eq!(Frame::of(Limit::per_second(0), &GateSettings::default()), None);
    }

    #[test]
    fn frames_are_short_where_there_is_enough_and_tokens_are_whole_where_there_is_not() {
        assert_eq!((frame(1, 1).tokens, frame(1, 1).per_window), (1, 1));
        assert_eq!((frame(30, 1).tokens, frame(30, 1).per_window), (30, 1));
        assert_eq!((frame(600, 1).tokens, frame(600, 1).per_window), (75, 8));
        assert_eq!((frame(50_000, 1).tokens, frame(50_000, 1).per_window), (5_000, 10));
        assert_eq!((frame(240, 60).tokens, frame(240, 60).per_window), (4, 60));
        assert_eq!((frame(75, 60).tokens, frame(75, 60).per_window), (1, 75));
        assert_eq!((frame(1, 10).tokens, frame(1, 10).length), (1, Duration::from_millis(10_015)));
    }

    #[test]
    fn an_eased_frame_is_slower_by_that_much() {
        let whole = frame(600, 1);
        assert_eq!(whole.eased(1_000), whole);
        assert_eq!(whole.eased(500).tokens, 37);
        let single = frame(1, 1);
        assert_eq!((single.eased(250).tokens, single.eased(250).length), (1, single.length * 4));
        assert_eq!(single.eased(0).tokens, 0);
    }
}
