//! Another carrier for what waits, and never for what a carrier may have.
mod support;

use carillon_core::{CommandResult, Refusal, ScheduleChange};
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::{BeginAttempt, Reroute, UnknownPolicy};
use carillon_proto::public::{MessageState, Outcome};
use support::*;

const OTHER: u32 = CARRIER + 1;

fn reroute(n: u64, from_carrier_no: u32, to_carrier_no: u32, due_ms: u64) -> Kind {
    let message_id = id(n).to_bytes();
    Kind::Reroute(Reroute { message_id, from_carrier_no, to_carrier_no, due_ms, ..Default::default() })
}

fn to_sender(n: u64, from_sender_no: u32, to_sender_no: u32) -> Kind {
    let Kind::Reroute(reroute) = reroute(n, CARRIER, CARRIER, 0) else { unreachable!() };
    Kind::Reroute(Reroute { from_sender_no, to_sender_no, ..reroute })
}

#[test]
fn a_message_goes_to_another_sender_and_its_attempts_say_which() {
    let mut world = World::new();
    world.done(accept_with(1, |a| a.sender_no = 4));
    let begin_under = |sender_no, world: &World| {
        let Kind::BeginAttempt(begin) = begin(1, 1, world.term) else { unreachable!() };
        Kind::BeginAttempt(BeginAttempt { sender_no, sender: format!("+1212555010{sender_no}"), ..begin })
    };
    let effects = world.run([to_sender(1, 4, 5)]);
    let moved = effects.schedule.iter().any(|c| matches!(c, ScheduleChange::Due(e) if e.sender_no == 5));
    assert!(moved, "{:?}", effects.schedule);
    assert_eq!(
        world.one(to_sender(1, 4, 6)),
        refused(Refusal::WrongState(MessageState::Accepted)),
        "not its sender any more"
    );
    // The leader decided on the old sender before it knew.
    assert_eq!(world.one(begin_under(4, &world)), refused(Refusal::WrongState(MessageState::Accepted)));
    let begun = world.one(begin_under(5, &world));
    assert!(
        matches!(&begun, CommandResult::Begun(p) if (p.sender_no, p.sender.as_str()) == (5, "+12125550105")),
        "{begun:?}"
    );
    let attempt = world.status(1).attempts[0].clone();
    assert_eq!((attempt.sender_no, attempt.sender.as_str()), (5, "+12125550105"));
}

#[test]
fn a_message_that_waits_is_begun_on_its_new_carrier() {
    let mut world = World::new();
    world.done(accept(1));
    let effects = world.run([reroute(1, CARRIER, OTHER, 0)]);
    assert!(effects.events.is_empty(), "its state did not change");
    let moved = effects.schedule.iter().any(|c| matches!(c, ScheduleChange::Due(e) if e.carrier_no == OTHER));
    assert!(moved, "{:?}", effects.schedule);
    assert_eq!(
        world.one(reroute(1, CARRIER, OTHER, 0)),
        refused(Refusal::WrongState(MessageState::Accepted))
    );
    // The leader decided on the old carrier before it knew.
    assert_eq!(world.one(begin(1, 1, world.term)), refused(Refusal::WrongState(MessageState::Accepted)));
    world.done(begin_on(OTHER, 1, 1, world.term));
    assert_eq!(
        world.one(reroute(1, OTHER, CARRIER, 0)),
        refused(Refusal::WrongState(MessageState::InFlight))
    );
}

fn begin_on(carrier_no: u32, n: u64, attempt_no: u32, term: u64) -> Kind {
    let Kind::BeginAttempt(begin) = begin(n, attempt_no, term) else { unreachable!() };
    Kind::BeginAttempt(BeginAttempt { carrier_no, ..begin })
}

#[test]
fn a_failed_attempt_goes_elsewhere_without_the_rest_of_its_pause() {
    let mut world = World::new();
    world.done(accept(1));
    world.begin(1);
    world.done(outcome(1, 1, Outcome::Transient, &[]));
    let backoff_ms = world.status(1).due_ms;
    assert!(backoff_ms > world.now_ms);
    world.done(reroute(1, CARRIER, OTHER, world.now_ms));
    assert_eq!((world.status(1).due_ms, world.status(1).carrier_no), (world.now_ms, OTHER));
    world.done(reroute(1, OTHER, CARRIER, world.now_ms + 9_000_000));
    assert_eq!(world.status(1).due_ms, world.now_ms, "never later");
}

/// Failover asks without a time: what waits for its schedule, for the recipient's hours or for its backoff goes on waiting for it.
#[test]
fn a_message_that_is_moved_keeps_its_time_and_its_hours() {
    let mut world = World::new();
    let later_ms = world.now_ms + 1_500;
    world.done(accept_with(1, |a| a.not_before_ms = later_ms));
    world.done(accept_with(2, |a| {
        a.place = Some(Default::default());
        (a.due_ms, a.open_until_ms, a.hours_stamp) = (later_ms, later_ms + 60_000, 7);
    }));
    world.done(accept(3));
    world.begin(3);
    world.done(outcome(3, 1, Outcome::Transient, &[]));
    for n in [1, 2, 3] {
        let before = world.status(n);
        assert!(before.due_ms > world.now_ms, "{n} waits");
        let effects = world.run([reroute(n, CARRIER, OTHER, 0)]);
        let after = world.status(n);
        assert_eq!((after.carrier_no, after.due_ms), (OTHER, before.due_ms), "{n}");
        assert_eq!(
            (after.waiting_reason, after.open_until_ms, after.hours_stamp),
            (before.waiting_reason, before.open_until_ms, before.hours_stamp),
            "{n}"
        );
        let due = |c: &ScheduleChange| matches!(c, ScheduleChange::Due(e) if e.due_ms == before.due_ms);
        assert!(effects.schedule.iter().any(due), "{n}: {:?}", effects.schedule);
        let next = after.attempts.len() as u32 + 1;
        let early = world.one(begin_on(OTHER, n, next, world.term));
        assert!(matches!(early, CommandResult::Refused(_)), "{n} is not due: {early:?}");
    }
}

#[test]
fn what_a_carrier_may_have_never_goes_to_another() {
    let mut world = World::new();
    world.done(accept_with(1, |a| a.retry = Some(with_policy(UnknownPolicy::ResendOnce))));
    world.done(accept(2));
    for n in [1, 2] {
        world.begin(n);
        world.done(outcome(n, 1, Outcome::Ambiguous, &[]));
    }
    assert_eq!((world.state(1), world.state(2)), (MessageState::Waiting, MessageState::Unknown));
    for n in [1, 2] {
        assert_eq!(
            world.one(reroute(n, CARRIER, OTHER, 0)),
            refused(Refusal::WrongState(MessageState::Unknown))
        );
        assert_eq!(world.status(n).carrier_no, CARRIER);
    }
    world.done(outcome(2, 1, Outcome::NotSent, &[]));
    world.done(reroute(2, CARRIER, OTHER, 0));
    assert_eq!(world.one(reroute(77, CARRIER, OTHER, 0)), refused(Refusal::NotFound));
    assert_eq!(world.one(reroute(2, CARRIER, 0, 0)), refused(Refusal::Malformed));
}
