//! The recipient's hours, as apply keeps them: numbers that the leader has computed.
mod support;

use carillon_core::{CommandResult, DETAIL_QUIET_HOURS, Refusal};
use carillon_proto::internal::{Accept, MessageUpdate, Reroute, SetHours, UpdateByReference, command::Kind};
use carillon_proto::public::{MessageState, Outcome, WaitingReason};
use support::*;

const HOUR_MS: u64 = 3_600_000;
const STAMP: u32 = 7;

/// Accepted at night: opens in half an hour, for a quarter of an hour.
fn at_night(accept: &mut Accept) {
    accept.due_ms = START_MS + HOUR_MS / 2;
    accept.open_until_ms = START_MS + HOUR_MS * 3 / 4;
    accept.hours_stamp = STAMP;
}

fn open_until(until_ms: u64) -> impl FnOnce(&mut Accept) {
    move |accept| (accept.open_until_ms, accept.hours_stamp) = (until_ms, STAMP)
}

fn set_hours(n: u64, due_ms: u64, open_until_ms: u64) -> Kind {
    Kind::SetHours(SetHours {
        message_id: id(n).to_bytes(),
        due_ms,
        open_until_ms,
        hours_stamp: STAMP + 1,
        rule: "US-FL".to_owned(),
        ..Default::default()
    })
}

#[test]
fn a_message_of_the_night_waits_until_its_hours_begin() {
    let mut world = World::new();
    let effects = world.run([accept_with(1, at_night)]);
    let event = &effects.events[0];
    assert_eq!(
        (event.state(), event.waiting_reason),
        (MessageState::Waiting, WaitingReason::QuietHours as i32)
    );
    assert_eq!(world.one(begin(1, 1, 1)), refused(Refusal::WrongState(MessageState::Waiting)));
    world.now_ms = START_MS + HOUR_MS / 2;
    let result = world.one(begin(1, 1, 1));
    let CommandResult::Begun(permit) = result else { panic!("{result:?}") };
    assert!(permit.was_held);
    assert_eq!(permit.open_until_ms, START_MS + HOUR_MS * 3 / 4);
}

/// Whatever the leader believes: the clock of the log decides.
#[test]
fn nothing_begins_after_the_hours() {
    let mut world = World::new();
    world.done(accept_with(1, open_until(START_MS + 1_000)));
    world.done(accept_with(2, open_until(START_MS + 1_000)));
    world.now_ms = START_MS + 999;
    let result = world.one(begin(1, 1, 1));
    let CommandResult::Begun(permit) = result else { panic!("{result:?}") };
    assert!(!permit.was_held);
    // The sender asked for two seconds; it gets what is left of the hours.
    assert_eq!(permit.send_by_ms, START_MS + 1_000);
    assert_eq!(world.status(1).attempts[0].send_by_ms, START_MS + 1_000);
    world.now_ms = START_MS + 1_000;
    assert_eq!(world.one(begin(2, 1, 1)), refused(Refusal::QuietHours));
    assert_eq!(world.state(2), MessageState::Accepted);
}

#[test]
fn hours_computed_anew_hold_a_message_back_or_only_renew_its_window() {
    let mut world = World::new();
    world.done(accept_with(1, open_until(START_MS + 1_000)));
    world.now_ms = START_MS + 2_000;
    let effects = world.run([set_hours(1, START_MS + 9_000, START_MS + 20_000)]);
    let event = &effects.events[0];
    assert_eq!((event.waiting_reason, event.detail.as_str()), (WaitingReason::QuietHours as i32, "US-FL"));
    assert_eq!((world.status(1).due_ms, world.status(1).hours_stamp), (START_MS + 9_000, STAMP + 1));
    // Open: state, due time and reason stay, and nobody outside is told.
    world.now_ms = START_MS + 9_000;
    let before = world.status(1);
    let effects = world.run([set_hours(1, 0, START_MS + 60_000)]);
    assert!(effects.events.is_empty());
    let after = world.status(1);
    assert_eq!(
        (after.due_ms, after.state, after.waiting_reason),
        (before.due_ms, before.state, before.waiting_reason)
    );
    assert_eq!(after.open_until_ms, START_MS + 60_000);
    world.begin(1);
    // Only what waits has hours to come.
    let in_flight = refused(Refusal::WrongState(MessageState::InFlight));
    assert_eq!(world.one(set_hours(1, START_MS + 90_000, 0)), in_flight);
    assert_eq!(world.one(set_hours(9, 0, 0)), refused(Refusal::NotFound));
    let Kind::SetHours(set) = set_hours(1, 0, 0) else { unreachable!() };
    let long = Kind::SetHours(SetHours { rule: "x".repeat(65), ..set });
    assert_eq!(world.one(long), refused(Refusal::Malformed));
}

/// The answer for a later moment must not open the window of a message that an update or another carrier has made due in the night.
#[test]
fn hours_of_a_later_moment_open_nothing_for_a_message_that_has_become_due_sooner() {
    let mut world = World::new();
    world.done(accept_with(1, open_until(START_MS + 1_000)));
    world.now_ms = START_MS + 2_000;
    let Kind::SetHours(late) = set_hours(1, 0, START_MS + 60_000) else { unreachable!() };
    world.done(Kind::SetHours(SetHours { asked_ms: START_MS + 9_000, ..late.clone() }));
    assert_eq!((world.status(1).open_until_ms, world.status(1).hours_stamp), (START_MS + 1_000, STAMP));
    assert_eq!(world.one(begin(1, 1, 1)), refused(Refusal::QuietHours));
    world.done(Kind::SetHours(SetHours { asked_ms: START_MS + 2_000, ..late }));
    assert_eq!(world.status(1).open_until_ms, START_MS + 60_000);
}

#[test]
fn a_message_that_expires_in_the_night_says_so() {
    let mut world = World::new();
    world.done(accept_with(1, |accept| {
        at_night(accept);
        accept.expires_at_ms = START_MS + 1_000;
    }));
    assert_eq!(world.status(1).due_ms, START_MS + 1_000, "due when it can only expire");
    world.now_ms = START_MS + 1_000;
    world.done(expire(1));
    assert_eq!(
        (world.state(1), world.status(1).detail.as_str()),
        (MessageState::Expired, DETAIL_QUIET_HOURS)
    );
    // Another reason is not this one.
    world.done(accept_with(2, open_until(START_MS + HOUR_MS)));
    world.now_ms = START_MS + HOUR_MS;
    world.done(expire(2));
    assert_eq!((world.state(2), world.status(2).detail.as_str()), (MessageState::Expired, ""));
}

/// The hours that are known go with the message through its attempts.
#[test]
fn a_retry_has_the_hours_of_its_message() {
    let mut world = World::new();
    world.done(accept_with(1, open_until(START_MS + 12_000)));
    world.begin(1);
    world.outcome(1, 1, Outcome::Transient);
    let status = world.status(1);
    assert!(status.due_ms > START_MS && status.open_until_ms == START_MS + 12_000);
    world.now_ms = START_MS + 30_000;
    assert_eq!(world.one(begin(1, 2, 1)), refused(Refusal::QuietHours));
}

/// Moved to another time by its sender, or to another carrier at once: the old window says nothing about it.
#[test]
fn a_message_that_is_moved_to_another_time_has_no_hours_until_they_are_computed_anew() {
    let reroute = |n: u64| {
        Kind::Reroute(Reroute {
            message_id: id(n).to_bytes(),
            from_carrier_no: CARRIER,
            to_carrier_no: CARRIER,
            due_ms: START_MS,
            ..Default::default()
        })
    };
    let retime = |n: u64, not_before_ms: u64| {
        let update = MessageUpdate { message_id: id(n).to_bytes(), not_before_ms, ..Default::default() };
        Kind::UpdateByReference(UpdateByReference {
            practice_no: PRACTICE,
            reference_index: index(n as u8),
            version: 1,
            content_mac: index(99),
            updates: vec![update],
        })
    };
    let mut world = World::new();
    for n in 1..=3 {
        world.done(accept_with(n, |accept| {
            at_night(accept);
            accept.reference_index = index(n as u8);
        }));
    }
    world.done(reroute(1));
    world.done(retime(2, START_MS - 1));
    world.done(retime(3, START_MS + 5_000));
    world.now_ms = START_MS + 5_000;
    for n in 1..=3 {
        assert!(world.status(n).due_ms <= world.now_ms && world.status(n).hours_stamp == 0, "{n}");
        assert_eq!(world.one(begin(n, 1, 1)), refused(Refusal::QuietHours), "{n}");
        world.done(set_hours(n, 0, START_MS + 60_000));
        world.begin(n);
    }
}
