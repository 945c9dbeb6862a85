//! What a carrier's answer does, in time and late.
mod support;

use carillon_core::message::next_attempt_no;
use carillon_core::{CODE_LEADER_CHANGED, CommandResult, DETAIL_RESEND, Refusal, keys};
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::{ReceiptState, RecordOutcome, UnknownPolicy};
use carillon_proto::public::{MessageState, Outcome, WaitingReason};
use support::*;

fn in_flight(policy: UnknownPolicy) -> World {
    let mut world = World::new();
    world.done(accept_with(1, |a| a.retry = Some(with_policy(policy))));
    world.begin(1);
    world
}

#[test]
fn each_outcome_leads_where_the_table_says() {
    use MessageState as S;
    use WaitingReason as W;
    // (outcome, state, reason, counted, shortest wait, longest wait)
    let cases = [
        (Outcome::Accepted, S::Submitted, W::Unspecified, 1, 0, 0),
        (Outcome::Throttled, S::Waiting, W::LaneLimit, 0, 1_000, 1_000),
        (Outcome::CapReached, S::Waiting, W::DailyCap, 0, 60_000, 60_000),
        (Outcome::LaneBroken, S::Waiting, W::BreakerOpen, 0, 30_000, 30_000),
        (Outcome::NotSent, S::Waiting, W::Backoff, 0, 200, 200),
        (Outcome::Transient, S::Waiting, W::Backoff, 1, 8_000, 12_000),
        (Outcome::Ambiguous, S::Unknown, W::Unspecified, 1, 0, 0),
        (Outcome::RejectedNumber, S::Rejected, W::Unspecified, 1, 0, 0),
        (Outcome::RejectedContent, S::Rejected, W::Unspecified, 1, 0, 0),
        (Outcome::OptedOut, S::OptedOut, W::Unspecified, 1, 0, 0),
        (Outcome::Expired, S::Expired, W::Unspecified, 1, 0, 0),
    ];
    for (answer, state, reason, counted, low, high) in cases {
        let mut world = in_flight(UnknownPolicy::Hold);
        let effects = world.run([outcome(1, 1, answer, &[])]);
        let status = world.status(1);
        assert_eq!((status.state(), status.waiting_reason()), (state, reason), "{answer:?}");
        assert_eq!(status.attempts_counted, counted, "{answer:?}");
        let wait = status.due_ms.saturating_sub(START_MS);
        assert!((low..=high).contains(&wait), "{answer:?} waits {wait}");
        let event = &effects.events[0];
        assert_eq!((event.attempt, event.outcome(), event.state()), (1, answer, state));
        let attempt = &status.attempts[0];
        assert_eq!((attempt.outcome(), attempt.code.as_str(), attempt.end_ms), (answer, "code-7", START_MS));
        // Said twice changes nothing.
        assert_eq!(world.outcome(1, 1, answer), CommandResult::Done);
        assert_eq!(world.status(1), status);
    }
}

#[test]
fn the_carriers_hint_is_honoured_and_capped_by_the_expiry() {
    for (hint, due) in [(90_000, START_MS + 90_000), (u32::MAX, START_MS + 3_600_000), (1, START_MS + 1_000)]
    {
        let mut world = in_flight(UnknownPolicy::Hold);
        let Kind::RecordOutcome(o) = outcome(1, 1, Outcome::Throttled, &[]) else { unreachable!() };
        world.done(Kind::RecordOutcome(RecordOutcome { retry_after_ms: hint, ..o }));
        assert_eq!(world.status(1).due_ms, due);
    }
}

#[test]
fn transient_failures_back_off_and_end_in_the_dead_letter() {
    let mut world = World::new();
    world.done(accept(1));
    for (attempt_no, low, high) in [(1, 8_000, 12_000), (2, 16_000, 24_000)] {
        world.begin(1);
        world.outcome(1, attempt_no, Outcome::Transient);
        let wait = world.status(1).due_ms - world.now_ms;
        assert!((low..=high).contains(&wait), "attempt {attempt_no} waits {wait}");
    }
    world.begin(1);
    world.outcome(1, 3, Outcome::Transient);
    assert_eq!(world.state(1), MessageState::Dead);
}

#[test]
fn what_does_not_count_can_go_on_for_ever_in_bounded_space() {
    let mut world = World::new();
    world.done(accept(1));
    for attempt_no in 1..=40 {
        world.begin(1);
        world.outcome(1, attempt_no, Outcome::Throttled);
    }
    let status = world.status(1);
    assert_eq!((status.state(), status.attempts_counted), (MessageState::Waiting, 0));
    assert_eq!((status.attempts.len(), next_attempt_no(&status)), (16, 41));
    // An attempt that was dropped from the record has its answer; one that never was is an error.
    assert_eq!(world.outcome(1, 1, Outcome::Accepted), CommandResult::Done);
    assert_eq!(world.outcome(1, 41, Outcome::Accepted), refused(Refusal::WrongState(MessageState::Waiting)));
    assert_eq!(world.status(1), status);
}

#[test]
fn impossible_outcomes_are_refused() {
    let mut world = in_flight(UnknownPolicy::Hold);
    let long = "x".repeat(129);
    let many = ["r"; 17];
    for kind in [
        outcome(1, 1, Outcome::Unspecified, &[]),
        outcome(1, 1, Outcome::Accepted, &[""]),
        outcome(1, 1, Outcome::Accepted, &[&long]),
        outcome(1, 1, Outcome::Accepted, &many),
    ] {
        assert_eq!(world.one(kind), refused(Refusal::Malformed));
    }
    assert_eq!(world.one(outcome(9, 1, Outcome::Accepted, &[])), refused(Refusal::NotFound));
}

#[test]
fn a_code_that_could_be_free_text_is_not_kept() {
    let mut world = in_flight(UnknownPolicy::Hold);
    let Kind::RecordOutcome(o) = outcome(1, 1, Outcome::RejectedContent, &[]) else { unreachable!() };
    world.done(Kind::RecordOutcome(RecordOutcome { code: "Dear Ada, see you".into(), ..o }));
    assert_eq!(world.status(1).detail, "unreadable_code");
    assert!(!world.tables.rows().values().any(|row| row.windows(3).any(|w| w == b"Ada")));
}

#[test]
fn a_new_leader_makes_older_attempts_unknown_and_only_those() {
    let mut world = World::new();
    for n in 1..=3 {
        world.done(accept(n));
    }
    world.begin(1);
    world.change_leader();
    assert_eq!(
        (world.state(1), world.status(1).detail.as_str()),
        (MessageState::Unknown, CODE_LEADER_CHANGED)
    );
    world.begin(2);
    // Said again in the same term it concerns nobody; in another term's entry it is refused.
    world.done(leader_start(world.term));
    assert_eq!(world.state(2), MessageState::InFlight);
    assert_eq!(world.one(leader_start(world.term - 1)), refused(Refusal::StaleTerm));
    assert_eq!(world.one(leader_start(world.term + 1)), refused(Refusal::StaleTerm));
    assert_eq!((world.state(2), world.state(3)), (MessageState::InFlight, MessageState::Accepted));
}

#[test]
fn the_old_leaders_late_answer_resolves_what_it_left() {
    use MessageState as S;
    // (late answer, state, counted)
    let cases = [
        (Outcome::Accepted, S::Submitted, 1),
        (Outcome::NotSent, S::Waiting, 0),
        (Outcome::Throttled, S::Waiting, 0),
        (Outcome::Transient, S::Waiting, 1),
        (Outcome::Ambiguous, S::Unknown, 1),
        (Outcome::RejectedNumber, S::Rejected, 1),
        (Outcome::OptedOut, S::OptedOut, 1),
        (Outcome::Expired, S::Expired, 1),
    ];
    for (answer, state, counted) in cases {
        let mut world = in_flight(UnknownPolicy::Hold);
        world.change_leader();
        world.done(outcome(1, 1, answer, &["late"]));
        let status = world.status(1);
        assert_eq!((status.state(), status.attempts_counted), (state, counted), "{answer:?}");
    }
}

#[test]
fn an_attempt_that_stopped_half_way_tells_how_many_parts_were_acknowledged() {
    let mut world = in_flight(UnknownPolicy::Hold);
    world.done(outcome(1, 1, Outcome::Ambiguous, &["part-1", "part-2"]));
    assert_eq!((world.state(1), world.status(1).attempts[0].segments), (MessageState::Unknown, 2));
    world.done(outcome(1, 1, Outcome::NotSent, &[]));
    assert_eq!(world.status(1).attempts[0].segments, 0);
}

#[test]
fn resend_once_sends_once_more_and_then_holds() {
    let mut world = in_flight(UnknownPolicy::ResendOnce);
    let effects = world.run([outcome(1, 1, Outcome::Ambiguous, &[])]);
    let told: Vec<_> = effects.events.iter().map(|e| (e.state(), e.detail.as_str())).collect();
    assert_eq!(told, [(MessageState::Unknown, "code-7"), (MessageState::Waiting, DETAIL_RESEND)]);
    let wait = world.status(1).due_ms - START_MS;
    assert!((8_000..=12_000).contains(&wait), "{wait}");
    world.begin(1);
    world.outcome(1, 2, Outcome::Ambiguous);
    assert_eq!(world.state(1), MessageState::Unknown);
}

#[test]
fn no_resend_that_could_only_expire_or_that_has_no_attempt_left() {
    let mut world = World::new();
    world.done(accept_with(1, |a| {
        a.retry = Some(with_policy(UnknownPolicy::ResendOnce));
        a.expires_at_ms = START_MS + 5_000;
    }));
    let mut retry = with_policy(UnknownPolicy::ResendOnce);
    retry.attempts_max = 1;
    world.done(accept_with(2, |a| a.retry = Some(retry)));
    for n in [1, 2] {
        world.begin(n);
        world.outcome(n, 1, Outcome::Ambiguous);
        assert_eq!(world.state(n), MessageState::Unknown);
    }
}

#[test]
fn abandon_gives_up() {
    let mut world = in_flight(UnknownPolicy::Abandon);
    world.outcome(1, 1, Outcome::Ambiguous);
    assert_eq!((world.state(1), world.status(1).detail.as_str()), (MessageState::Undelivered, "abandoned"));
}

#[test]
fn a_pending_resend_is_dropped_when_the_first_answer_turns_up() {
    use MessageState as S;
    let cases = [
        (Outcome::Accepted, S::Submitted),
        (Outcome::RejectedNumber, S::Rejected),
        (Outcome::OptedOut, S::OptedOut),
        (Outcome::NotSent, S::Waiting),
        (Outcome::Transient, S::Waiting),
    ];
    for (answer, state) in cases {
        let mut world = in_flight(UnknownPolicy::ResendOnce);
        world.outcome(1, 1, Outcome::Ambiguous);
        world.outcome(1, 1, answer);
        assert_eq!(world.state(1), state, "{answer:?}");
    }
}

#[test]
fn an_answer_that_comes_during_the_resend_is_recorded_and_ends_it() {
    let mut world = in_flight(UnknownPolicy::ResendOnce);
    world.outcome(1, 1, Outcome::Ambiguous);
    world.begin(1);
    world.done(outcome(1, 1, Outcome::Accepted, &["first"]));
    assert_eq!(world.state(1), MessageState::InFlight);
    assert!(world.tables.rows().contains_key(&keys::receipt(CARRIER, &keys::carrier_ref_hash("first"))));
    // Whatever becomes of the second attempt, the message is never tried again.
    world.outcome(1, 2, Outcome::Transient);
    assert_eq!(world.state(1), MessageState::Submitted);
    world.done(receipt(&["first"], ReceiptState::Delivered));
    assert_eq!(world.state(1), MessageState::Delivered);
}

#[test]
fn an_accepted_answer_after_the_end_is_recorded_and_moves_nothing() {
    let mut world = in_flight(UnknownPolicy::Abandon);
    world.change_leader();
    assert_eq!(world.state(1), MessageState::Undelivered);
    world.done(outcome(1, 1, Outcome::Accepted, &["late"]));
    let status = world.status(1);
    assert_eq!(
        (status.state(), status.attempts[0].outcome()),
        (MessageState::Undelivered, Outcome::Accepted)
    );
    assert_eq!(status.submitted_at_ms, START_MS);
    world.done(receipt(&["late"], ReceiptState::Delivered));
    assert_eq!(world.state(1), MessageState::Undelivered);
}

#[test]
fn a_message_that_may_have_arrived_never_ends_as_not_sent() {
    let resend = || {
        let mut world = in_flight(UnknownPolicy::ResendOnce);
        world.outcome(1, 1, Outcome::Ambiguous);
        world
    };
    let mut world = resend();
    world.now_ms = START_MS + 3_600_000;
    world.done(expire(1));
    assert_eq!(
        (world.state(1), world.status(1).detail.as_str()),
        (MessageState::Unknown, "expired_unresolved")
    );
    // When it is known at last that nothing was sent, it expires after all.
    world.outcome(1, 1, Outcome::NotSent);
    world.done(expire(1));
    assert_eq!(world.state(1), MessageState::Expired);

    let mut world = resend();
    for attempt_no in [2, 3] {
        world.begin(1);
        world.outcome(1, attempt_no, Outcome::Transient);
    }
    assert_eq!(
        (world.state(1), world.status(1).detail.as_str()),
        (MessageState::Unknown, "retries_spent_unresolved")
    );
    world.outcome(1, 1, Outcome::Transient);
    assert_eq!(world.state(1), MessageState::Dead);
}
