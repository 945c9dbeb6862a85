//! When a message is tried again: pure arithmetic on the policy, with jitter from a hash.
//!
//! Every replica computes the same delay from the same (message, attempt); two messages that failed together come
//! back spread over 40 % of the delay.
use carillon_proto::MessageId;
use carillon_proto::internal::RetryPolicy;
use carillon_proto::public::{Outcome, WaitingReason};
use siphasher::sip::SipHasher24;
use std::hash::Hasher as _;

/// Fixed key of the jitter hash, version 1. A change needs a feature level: replicas must agree.
const JITTER_KEY: (u64, u64) = (0x6361_7269_6c6c_6f6e, 0x6a69_7474_6572_3031);
/// Jitter is at most this many thousandths up or down.
const JITTER_PERMILLE: u64 = 200;

/// Delay before the attempt that follows the `counted`-th counted one, without jitter.
pub fn base_delay_ms(policy: &RetryPolicy, counted: u32) -> u64 {
    // 2^32 times any base is above every cap, so a larger exponent changes nothing.
    let exponent = counted.saturating_sub(1).min(32);
    (u64::from(policy.backoff_base_ms) << exponent).min(u64::from(policy.backoff_max_ms))
}

/// The same with jitter: within 20 % of [`base_delay_ms`].
pub fn delay_ms(policy: &RetryPolicy, counted: u32, id: &MessageId, attempt_no: u32) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(JITTER_KEY.0, JITTER_KEY.1);
    hasher.write(id.as_bytes());
    hasher.write(&attempt_no.to_be_bytes());
    let permille = 1000 - JITTER_PERMILLE + hasher.finish() % (2 * JITTER_PERMILLE + 1);
    base_delay_ms(policy, counted) * permille / 1000
}

/// For an outcome that proves that nothing was taken over and does not count: why it waits, and the shortest wait
/// when the carrier names none.
pub fn uncounted_wait(outcome: Outcome) -> Option<(WaitingReason, u64)> {
    match outcome {
        // The lane paces itself; a second is enough not to come straight back.
        Outcome::Throttled => Some((WaitingReason::LaneLimit, 1_000)),
        // Nothing of ours is wrong; go again as soon as there is a connection.
        Outcome::NotSent => Some((WaitingReason::Backoff, 200)),
        // A person must repair it; looking twice a minute costs nothing.
        Outcome::LaneBroken => Some((WaitingReason::BreakerOpen, 30_000)),
        // Caps end at a known hour that the carrier or the lane names; a minute only bridges.
        Outcome::CapReached => Some((WaitingReason::DailyCap, 60_000)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::Slot;

    fn policy() -> RetryPolicy {
        RetryPolicy { attempts_max: 5, backoff_base_ms: 30_000, backoff_max_ms: 1_800_000, unknown_policy: 0 }
    }

    #[test]
    fn delays_double_up_to_the_cap() {
        let delays = [1, 2, 3, 6, 7, 8, u32::MAX].map(|n| base_delay_ms(&policy(), n));
        assert_eq!(delays, [30_000, 60_000, 120_000, 960_000, 1_800_000, 1_800_000, 1_800_000]);
        let huge = RetryPolicy { backoff_base_ms: u32::MAX, backoff_max_ms: u32::MAX, ..policy() };
        assert_eq!(base_delay_ms(&huge, u32::MAX), u64::from(u32::MAX));
    }

    #[test]
    fn jitter_stays_within_a_fifth_and_spreads() {
        let (mut low, mut high) = (u64::MAX, 0);
        for random in 0..2_000 {
            let id = MessageId::new(1, Slot::new(1).unwrap(), random);
            let delay = delay_ms(&policy(), 1, &id, 1);
            assert!((24_000..=36_000).contains(&delay), "{delay}");
            (low, high) = (low.min(delay), high.max(delay));
        }
        assert!(low < 24_200 && high > 35_800, "{low}..{high}");
    }

    /// Pinned: replicas of different releases must compute the same due time.
    #[test]
    fn jitter_is_pinned() {
        let id = MessageId::new(1_793_000_000_123, Slot::new(7).unwrap(), 42);
        assert_eq!([1, 2, 3].map(|n| delay_ms(&policy(), 1, &id, n)), PINNED);
    }
    const PINNED: [u64; 3] = [31_200, 27_420, 30_060];
}
