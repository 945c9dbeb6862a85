//! Opt-outs: nothing begins after one, and what waits ends.
mod support;

use bytes::Bytes;
use carillon_core::{Applier, CommandResult, OPT_OUT_MESSAGES_MAX, Refusal, keys};
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::{Accept, OptOut, UnknownPolicy};
use carillon_proto::public::{MessageState, Outcome};
use support::*;

fn of(recipient: u8) -> impl FnOnce(&mut Accept) {
    move |a| a.recipient_index = index(recipient)
}

/// As the program before opt-outs accepted them.
fn not_indexed(a: &mut Accept) {
    a.indexed_by_recipient = false;
}

fn opted_out() -> CommandResult {
    CommandResult::Refused(Refusal::OptedOut)
}

#[test]
fn what_waits_for_the_recipient_ends_and_nothing_else_does() {
    let mut world = World::new();
    for n in 1..=3 {
        world.done(accept_with(n, of(7)));
    }
    world.done(accept_with(4, of(8)));
    world.done(accept_with(5, |a| (a.practice_no, a.recipient_index) = (PRACTICE + 1, index(7))));
    world.begin(3);
    let effects = world.run([opt_out(PRACTICE, 7)]);
    assert_eq!((&effects.results[..], effects.events.len()), (&[CommandResult::Done][..], 2));
    let states: Vec<MessageState> = (1..=5).map(|n| world.state(n)).collect();
    use MessageState as S;
    assert_eq!(states, [S::OptedOut, S::OptedOut, S::InFlight, S::Accepted, S::Accepted]);
    assert_eq!(world.status(1).detail, "opted_out");
    // The attempt that had begun may end well.
    world.outcome(3, 1, Outcome::Accepted);
    assert_eq!(world.state(3), S::Submitted);
    // Again: nothing new.
    assert!(world.run([opt_out(PRACTICE, 7)]).events.is_empty());
}

#[test]
fn no_attempt_begins_after_an_opt_out_however_the_message_was_accepted() {
    for change in [(|_| ()) as fn(&mut Accept), not_indexed] {
        let mut world = World::new();
        world.done(accept_with(1, change));
        world.begin(1);
        world.done(opt_out(PRACTICE, 200));
        // It comes back from its attempt, and a new one is accepted.
        world.outcome(1, 1, Outcome::NotSent);
        world.done(accept_with(2, change));
        assert_eq!((world.state(1), world.state(2)), (MessageState::Waiting, MessageState::Accepted));
        // The memo of an applier that was opened later says the same.
        world.applier = Applier::open(&world.tables).unwrap();
        world.now_ms = world.status(1).due_ms;
        assert_eq!(world.one(begin(1, 2, 1)), opted_out());
        assert_eq!(world.one(begin(2, 1, 1)), opted_out());
        assert_eq!((world.state(1), world.state(2)), (MessageState::OptedOut, MessageState::OptedOut));
        // Another recipient is not concerned.
        world.done(accept_with(3, |a| {
            change(a);
            a.recipient_index = index(9);
        }));
        world.begin(3);
    }
}

#[test]
fn the_order_of_the_log_decides_inside_one_entry_too() {
    let mut world = World::new();
    world.done(accept(1));
    world.done(accept(2));
    let effects = world.run([begin(1, 1, 1), opt_out(PRACTICE, 200), begin(2, 1, 1)]);
    assert!(matches!(effects.results[0], CommandResult::Begun(_)));
    let refused = CommandResult::Refused(Refusal::WrongState(MessageState::OptedOut));
    assert_eq!(effects.results[1..], [CommandResult::Done, refused]);
}

#[test]
fn a_lost_answer_stays_unknown_and_is_not_sent_again() {
    for indexed in [true, false] {
        let mut world = World::new();
        world.done(accept_with(1, |a| {
            a.retry = Some(with_policy(UnknownPolicy::ResendOnce));
            a.indexed_by_recipient = indexed;
        }));
        world.begin(1);
        world.outcome(1, 1, Outcome::Ambiguous);
        assert_eq!(world.state(1), MessageState::Waiting);
        world.done(opt_out(PRACTICE, 200));
        if !indexed {
            world.now_ms = world.status(1).due_ms;
            assert_eq!(world.one(begin(1, 2, 1)), opted_out());
        }
        assert_eq!(world.state(1), MessageState::Unknown);
        assert_eq!(world.status(1).detail, "opted_out_unresolved");
        world.outcome(1, 1, Outcome::Accepted);
        assert_eq!(world.state(1), MessageState::Submitted);
    }
}

#[test]
fn one_command_ends_a_bounded_number_and_begin_the_rest() {
    let mut world = World::new();
    let many = OPT_OUT_MESSAGES_MAX as u64 + 2;
    world.run((1..=many).map(accept));
    assert_eq!(world.run([opt_out(PRACTICE, 200)]).events.len(), OPT_OUT_MESSAGES_MAX);
    assert_eq!(world.state(many), MessageState::Accepted);
    assert_eq!(world.one(begin(many, 1, 1)), opted_out());
}

#[test]
fn an_opt_out_without_practice_or_recipient_is_refused() {
    let mut world = World::new();
    let bad = [(0, index(1)), (PRACTICE, Bytes::new()), (PRACTICE, Bytes::from_static(b"short"))];
    for (practice_no, recipient_index) in bad {
        let result = world.one(Kind::OptOut(OptOut { practice_no, recipient_index }));
        assert_eq!(result, CommandResult::Refused(Refusal::Malformed));
    }
    assert!(world.tables.rows().keys().all(|key| keys::decode_opt_out(key).is_none()));
}
