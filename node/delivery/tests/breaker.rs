//! The breaker: what opens it, how it is tried again, and who has the last word.
use carillon_delivery::breaker::{Breaker, BreakerConfig, BreakerState};
use carillon_proto::internal::BreakerMode;
use carillon_proto::public::Outcome;
use proptest::prelude::*;
use std::time::Duration;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn feed(breaker: &mut Breaker, outcome: Outcome, count: usize, at: Duration) {
    (0..count).for_each(|_| breaker.on_outcome(outcome, at));
}

fn open_until(breaker: &mut Breaker, at: Duration) -> Option<Duration> {
    match breaker.state(at) {
        BreakerState::Open { until } => Some(until),
        _ => None,
    }
}

#[test]
fn failures_open_it_when_they_are_many_and_most() {
    let mut breaker = Breaker::new(BreakerConfig::default());
    feed(&mut breaker, Outcome::Transient, 4, s(1));
    assert_eq!(breaker.attempts_max(s(1)), None);
    feed(&mut breaker, Outcome::Accepted, 6, s(1));
    feed(&mut breaker, Outcome::Ambiguous, 1, s(1));
    assert_eq!(breaker.state(s(1)), BreakerState::Closed, "five of eleven");
    feed(&mut breaker, Outcome::Ambiguous, 1, s(2));
    assert_eq!(open_until(&mut breaker, s(2)), Some(s(7)));
    assert_eq!(breaker.attempts_max(s(6)), Some(0));
    let mut old = Breaker::new(BreakerConfig::default());
    feed(&mut old, Outcome::Transient, 4, s(1));
    feed(&mut old, Outcome::Transient, 4, s(40));
    assert_eq!(old.state(s(40)), BreakerState::Closed, "the first ones are forgotten");
}

#[test]
fn throttling_and_what_was_never_sent_are_no_failures() {
    let mut breaker = Breaker::new(BreakerConfig::default());
    for outcome in [Outcome::Throttled, Outcome::CapReached, Outcome::NotSent] {
        feed(&mut breaker, outcome, 100, s(1));
    }
    feed(&mut breaker, Outcome::RejectedNumber, 100, s(1));
    assert_eq!(breaker.state(s(1)), BreakerState::Closed);
}

#[test]
fn probes_close_it_and_a_failed_one_opens_it_for_twice_as_long() {
    let mut breaker = Breaker::new(BreakerConfig::default());
    breaker.on_outcome(Outcome::LaneBroken, s(0));
    assert_eq!(open_until(&mut breaker, s(0)), Some(s(5)), "at once");
    assert_eq!((breaker.state(s(5)), breaker.attempts_max(s(5))), (BreakerState::HalfOpen, Some(1)));
    breaker.on_outcome(Outcome::Accepted, s(5));
    breaker.on_outcome(Outcome::Transient, s(6));
    assert_eq!(open_until(&mut breaker, s(6)), Some(s(16)), "twice as long");
    breaker.on_outcome(Outcome::Accepted, s(7));
    assert_eq!(open_until(&mut breaker, s(7)), Some(s(16)), "an answer to what was under way");
    feed(&mut breaker, Outcome::Accepted, 3, s(16));
    assert_eq!((breaker.state(s(16)), breaker.opened_total()), (BreakerState::Closed, 2));
    feed(&mut breaker, Outcome::Transient, 5, s(17));
    assert_eq!(open_until(&mut breaker, s(17)), Some(s(22)), "the first time is short again");
}

#[test]
fn a_carrier_that_is_gone_opens_it_and_one_that_comes_back_is_tried_at_once() {
    let mut breaker = Breaker::new(BreakerConfig::default());
    breaker.on_link(false, s(10));
    assert_eq!(breaker.state(s(12)), BreakerState::Closed, "a reconnect is no outage");
    breaker.on_link(true, s(12));
    (20..=60).for_each(|at| breaker.on_link(false, s(at)));
    assert!(open_until(&mut breaker, s(60)).is_some());
    breaker.on_link(true, s(61));
    assert_eq!(breaker.state(s(61)), BreakerState::HalfOpen);
}

#[test]
fn the_operator_has_the_last_word() {
    let mut breaker = Breaker::new(BreakerConfig::default());
    breaker.set_mode(BreakerMode::Open);
    assert_eq!(breaker.attempts_max(s(9_999)), Some(0));
    breaker.set_mode(BreakerMode::Closed);
    feed(&mut breaker, Outcome::Transient, 50, s(1));
    assert_eq!(breaker.attempts_max(s(1)), None);
    breaker.set_mode(BreakerMode::Auto);
    assert_eq!(breaker.state(s(1)), BreakerState::Closed, "it begins anew");
}

proptest! {
    /// Whatever comes, an open breaker is tried again within its longest time, and a carrier that works closes it.
    #[test]
    fn it_never_stays_open_for_ever(outcomes in prop::collection::vec((0_i32..12, 0_u64..60, any::<bool>()), 1..200)) {
        let config = BreakerConfig::default();
        let mut breaker = Breaker::new(config);
        let mut at = s(1);
        for (outcome, wait_s, up) in outcomes {
            at += s(wait_s);
            breaker.on_link(up, at);
            breaker.on_outcome(Outcome::try_from(outcome).unwrap(), at);
            if let Some(until) = open_until(&mut breaker, at) {
                prop_assert!(until <= at + config.open_max);
            }
        }
        breaker.on_link(true, at);
        at += config.open_max;
        for _ in 0..config.probes_to_close {
            prop_assert!(breaker.attempts_max(at) != Some(0));
            breaker.on_outcome(Outcome::Accepted, at);
        }
        prop_assert_eq!(breaker.state(at), BreakerState::Closed);
    }
}

#[test]
fn other_thresholds_count_at_once_and_leave_its_state_alone() {
    let mut breaker = Breaker::new(BreakerConfig::default());
    feed(&mut breaker, Outcome::Transient, 2, s(1));
    let strict = BreakerConfig { failures_min: 3, open_first: s(60), ..BreakerConfig::default() };
    breaker.set_config(strict);
    assert_eq!(breaker.state(s(1)), BreakerState::Closed);
    feed(&mut breaker, Outcome::Transient, 1, s(1));
    assert_eq!(open_until(&mut breaker, s(1)), Some(s(61)), "the two from before count");
    breaker.set_config(BreakerConfig { open_first: s(1), probes: 4, ..strict });
    assert_eq!(open_until(&mut breaker, s(30)), Some(s(61)));
    assert_eq!(breaker.attempts_max(s(61)), Some(4));
}
