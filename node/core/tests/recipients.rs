//! What holds for the messages of one recipient: order, caps, and the fuses for bursts and duplicates.
mod support;

use bytes::Bytes;
use carillon_core::{CommandResult, Refusal, keys};
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::{FrequencyRule, Retire};
use carillon_proto::public::{MessageState, Outcome, WaitingReason};
use support::*;

const DAY_MS: u64 = 86_400_000;
const RECIPIENT: [u8; 16] = [200; 16];

fn ordered(n: u64) -> Kind {
    accept_with(n, |a| a.ordered = true)
}

/// Begins the next attempt under a rule, at the present time.
fn try_begin(world: &mut World, n: u64, rule: &FrequencyRule) -> CommandResult {
    let next = carillon_core::message::next_attempt_no(&world.status(n));
    let Kind::BeginAttempt(mut command) = begin(n, next, world.term) else { unreachable!() };
    command.frequency = Some(rule.clone());
    world.one(Kind::BeginAttempt(command))
}

/// The rule on the day of the world's clock; days are those of UTC.
fn rule(world: &World, per_day: u32, per_week: u32) -> FrequencyRule {
    let day = world.now_ms / DAY_MS;
    FrequencyRule {
        day: day as u32,
        day_starts_ms: (1..=7).map(|ahead| (day + ahead) * DAY_MS).collect(),
        per_day,
        per_week,
        ..Default::default()
    }
}

fn lives_long(n: u64) -> Kind {
    accept_with(n, |a| a.expires_at_ms = START_MS + 30 * DAY_MS)
}

fn waits_for(world: &World, n: u64) -> (MessageState, WaitingReason, u64) {
    let status = world.status(n);
    let reason = WaitingReason::try_from(status.waiting_reason).unwrap();
    (status.state(), reason, status.due_ms)
}

#[test]
fn ordered_messages_go_one_after_the_other_in_the_order_of_acceptance() {
    let mut world = World::new();
    (1..=3).for_each(|n| world.done(ordered(n)));
    // Another recipient and one without the wish are not concerned.
    world.done(accept_with(4, |a| (a.ordered, a.recipient_index) = (true, index(99))));
    world.done(accept(5));
    (4..=5).for_each(|n| world.begin(n));
    assert_eq!(world.one(begin(2, 1, world.term)), CommandResult::Refused(Refusal::OutOfTurn));
    assert_eq!(world.one(begin(3, 1, world.term)), CommandResult::Refused(Refusal::OutOfTurn));
    let expiry = world.status(2).expires_at_ms;
    assert_eq!(waits_for(&world, 2), (MessageState::Waiting, WaitingReason::Order, expiry));
    world.begin(1);
    assert_eq!(waits_for(&world, 2).2, expiry, "begun is not handed over");
    world.outcome(1, 1, Outcome::Throttled);
    assert_eq!(waits_for(&world, 2).2, expiry, "it comes back and keeps its place");
    world.begin(1);
    world.outcome(1, 2, Outcome::Accepted);
    assert_eq!(waits_for(&world, 2), (MessageState::Waiting, WaitingReason::Order, world.now_ms));
    assert_eq!(waits_for(&world, 3).2, expiry);
    world.begin(2);
    // Nobody knows what became of it: it does not hold the others up.
    world.outcome(2, 1, Outcome::Ambiguous);
    assert_eq!(world.status(2).state(), MessageState::Unknown);
    world.begin(3);
    world.outcome(3, 1, Outcome::Accepted);
}

#[test]
fn one_that_ends_lets_the_next_one_go_at_its_own_time() {
    let mut world = World::new();
    world.done(accept_with(1, |a| (a.ordered, a.not_before_ms) = (true, START_MS + 60_000)));
    world.done(accept_with(2, |a| (a.ordered, a.not_before_ms) = (true, START_MS + 90_000)));
    world.done(ordered(3));
    world.now_ms = START_MS + 10;
    assert_eq!(world.one(begin(3, 1, world.term)), CommandResult::Refused(Refusal::OutOfTurn));
    world.one(cancel(1));
    world.one(cancel(2));
    assert_eq!(waits_for(&world, 3), (MessageState::Waiting, WaitingReason::Order, world.now_ms));
    world.begin(3);
}

#[test]
fn the_caps_hold_for_days_and_weeks_and_open_again() {
    let mut world = World::new();
    (1..=9).for_each(|n| world.done(lives_long(n)));
    let first_day = world.now_ms / DAY_MS;
    // Two a day and three a week.
    for n in [1, 2] {
        let rule = rule(&world, 2, 3);
        assert!(matches!(try_begin(&mut world, n, &rule), CommandResult::Begun(_)));
    }
    let full = rule(&world, 2, 3);
    assert_eq!(try_begin(&mut world, 3, &full), CommandResult::Refused(Refusal::FrequencyCap));
    let tomorrow = (first_day + 1) * DAY_MS;
    assert_eq!(waits_for(&world, 3), (MessageState::Waiting, WaitingReason::FrequencyCap, tomorrow));
    // A message is counted once a day, however often it is tried.
    world.outcome(2, 1, Outcome::Throttled);
    world.now_ms = world.status(2).due_ms;
    let again = rule(&world, 2, 3);
    assert!(matches!(try_begin(&mut world, 2, &again), CommandResult::Begun(_)));
    world.now_ms = tomorrow;
    let open = rule(&world, 2, 3);
    assert!(matches!(try_begin(&mut world, 3, &open), CommandResult::Begun(_)));
    assert_eq!(try_begin(&mut world, 4, &open), CommandResult::Refused(Refusal::FrequencyCap));
    let next_week = (first_day + 7) * DAY_MS;
    assert_eq!(waits_for(&world, 4).2, next_week, "the week is full until its first day has left it");
    world.now_ms = next_week;
    let open = rule(&world, 2, 3);
    for (n, begun) in [(4, true), (5, true), (6, false)] {
        assert_eq!(matches!(try_begin(&mut world, n, &open), CommandResult::Begun(_)), begun, "{n}");
    }
    // Another recipient, another practice, and no caps at all.
    let later = START_MS + 30 * DAY_MS;
    world.done(accept_with(20, |a| (a.recipient_index, a.expires_at_ms) = (index(7), later)));
    world.done(accept_with(21, |a| (a.practice_no, a.expires_at_ms) = (77, later)));
    let full = rule(&world, 1, 1);
    for n in [20, 21] {
        assert!(matches!(try_begin(&mut world, n, &full), CommandResult::Begun(_)), "{n}");
    }
    let none = rule(&world, 0, 0);
    assert!(matches!(try_begin(&mut world, 7, &none), CommandResult::Begun(_)));
}

#[test]
fn the_window_of_a_cap_may_open_after_the_expiry() {
    let mut world = World::new();
    world.done(accept(1));
    world.done(accept(2));
    let rule = rule(&world, 1, 0);
    assert!(matches!(try_begin(&mut world, 1, &rule), CommandResult::Begun(_)));
    assert_eq!(try_begin(&mut world, 2, &rule), CommandResult::Refused(Refusal::FrequencyCap));
    let status = world.status(2);
    assert_eq!(status.due_ms, status.expires_at_ms.min(rule.day_starts_ms[0]));
}

#[test]
fn a_burst_is_refused_until_its_window_or_an_operator_says_otherwise() {
    let mut world = World::new();
    (1..=6).for_each(|n| world.done(lives_long(n)));
    let burst = FrequencyRule { burst: 2, burst_window_ms: 60_000, ..rule(&world, 0, 0) };
    for n in [1, 2] {
        assert!(matches!(try_begin(&mut world, n, &burst), CommandResult::Begun(_)));
    }
    let before = world.status(3);
    assert_eq!(try_begin(&mut world, 3, &burst), CommandResult::Refused(Refusal::Burst));
    assert_eq!(world.status(3), before, "the message stays as it is");
    world.now_ms += 10;
    let resumed = FrequencyRule { burst_since_ms: world.now_ms, ..burst.clone() };
    assert!(matches!(try_begin(&mut world, 3, &resumed), CommandResult::Begun(_)));
    assert!(matches!(try_begin(&mut world, 4, &resumed), CommandResult::Begun(_)));
    assert_eq!(try_begin(&mut world, 5, &resumed), CommandResult::Refused(Refusal::Burst));
    world.now_ms += 60_000;
    assert!(matches!(try_begin(&mut world, 5, &resumed), CommandResult::Begun(_)));
    let bad = FrequencyRule { day_starts_ms: vec![1], ..burst };
    assert_eq!(try_begin(&mut world, 6, &bad), CommandResult::Refused(Refusal::Malformed));
}

/// Found by the simulator: what was counted on a later day was not seen by one that came again.
#[test]
fn a_day_that_comes_again_because_a_clock_went_back_is_the_later_one() {
    let mut world = World::new();
    (1..=4).for_each(|n| world.done(lives_long(n)));
    let yesterday = rule(&world, 1, 2);
    assert!(matches!(try_begin(&mut world, 1, &yesterday), CommandResult::Begun(_)));
    world.now_ms += DAY_MS;
    let today = rule(&world, 1, 2);
    assert!(matches!(try_begin(&mut world, 2, &today), CommandResult::Begun(_)));
    // The next leader's clock is behind midnight; the log's is not.
    world.now_ms += 1;
    let third = FrequencyRule { per_day: 2, ..yesterday.clone() };
    assert_eq!(try_begin(&mut world, 3, &third), CommandResult::Refused(Refusal::FrequencyCap));
    assert_eq!(world.status(3).due_ms, yesterday.day_starts_ms[6], "the first one is a week old then");
    let free = FrequencyRule { per_day: 0, per_week: 0, ..yesterday };
    assert!(matches!(try_begin(&mut world, 4, &free), CommandResult::Begun(_)));
    assert_eq!(world.status(4).counted_day, today.day);
}

#[test]
fn counters_of_past_weeks_are_dropped_by_retention() {
    let mut world = World::new();
    world.done(accept(1));
    let rule = rule(&world, 1, 0);
    assert!(matches!(try_begin(&mut world, 1, &rule), CommandResult::Begun(_)));
    let key = keys::frequency(rule.day, PRACTICE, &RECIPIENT);
    let retire = || Kind::Retire(Retire { finals_before_ms: 0, keys_before_ms: 0, limit: 10 });
    for (days, kept) in [(9, true), (11, false)] {
        world.now_ms = START_MS + days * DAY_MS;
        world.one(retire());
        assert_eq!(world.tables.rows().contains_key(&key), kept, "after {days} days");
    }
}

#[test]
fn the_same_content_is_refused_within_the_window_unless_it_is_meant_or_never_left() {
    let mut world = World::new();
    let same = |n: u64, window_ms: u32| {
        accept_with(n, |a| (a.duplicate_index, a.duplicate_window_ms) = (index(50), window_ms))
    };
    world.done(same(1, 600_000));
    assert_eq!(world.one(same(2, 600_000)), CommandResult::SameContent { message_id: id(1) });
    world.done(accept_with(3, |a| (a.duplicate_index, a.duplicate_window_ms) = (index(51), 600_000)));
    // It is meant: from now on it is the last one.
    world.now_ms += 1_000;
    world.done(same(4, 0));
    assert_eq!(world.one(same(5, 600_000)), CommandResult::SameContent { message_id: id(4) });
    world.one(cancel(4));
    world.done(same(5, 600_000));
    world.now_ms += 600_000;
    world.done(same(6, 600_000));
    // A repeat with the same idempotency key is a repeat, not a duplicate.
    let keyed = |n: u64| {
        accept_with(n, |a| {
            (a.duplicate_index, a.duplicate_window_ms) = (index(52), 600_000);
            a.idempotency_index = index(9);
        })
    };
    world.done(keyed(10));
    assert_eq!(world.one(keyed(11)), CommandResult::Duplicate { message_id: id(10) });
    let cut = accept_with(12, |a| a.duplicate_index = Bytes::from_static(b"short"));
    assert_eq!(world.one(cut), CommandResult::Refused(Refusal::Malformed));
}
