//! What operators decide about messages whose answer was lost.
mod support;

use carillon_core::{CommandResult, DETAIL_RESEND, Refusal, query};
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::{EventRecord, ReceiptState, ResolveUnknown, UnknownVerdict};
use carillon_proto::public::{MessageState, Outcome};
use support::*;

/// Message 1, UNKNOWN.
fn held() -> World {
    let mut world = World::new();
    world.done(accept(1));
    world.begin(1);
    world.done(outcome(1, 1, Outcome::Ambiguous, &[]));
    assert_eq!(world.state(1), MessageState::Unknown);
    world
}

fn last_event(world: &World) -> EventRecord {
    let blocks = query::events_after(&world.tables, 0, 1_000).unwrap();
    blocks.last().unwrap().1.events.last().unwrap().clone()
}

fn refused(refusal: Refusal) -> CommandResult {
    CommandResult::Refused(refusal)
}

#[test]
fn what_the_operator_says_becomes_the_state_and_the_reason_is_told() {
    for (verdict, state) in [
        (UnknownVerdict::Delivered, MessageState::Delivered),
        (UnknownVerdict::Failed, MessageState::Undelivered),
    ] {
        let mut world = held();
        world.done(resolve_unknown(1, verdict, "carrier_portal"));
        assert_eq!((world.state(1), world.status(1).detail.as_str()), (state, "operator:carrier_portal"));
        let event = last_event(&world);
        assert_eq!((event.state, event.detail.as_str()), (state as i32, "operator:carrier_portal"));
        assert_eq!(world.status(1).submitted_at_ms > 0, state == MessageState::Delivered);
        // Final is final: a repeat is refused, a receipt that comes after all changes nothing.
        let again = world.one(resolve_unknown(1, verdict, "carrier_portal"));
        assert_eq!(again, refused(Refusal::WrongState(state)));
        world.done(receipt_for(1, &[], ReceiptState::Delivered));
        assert_eq!(world.state(1), state);
    }
}

#[test]
fn sent_again_it_is_one_possible_duplicate_and_goes_on_as_any_other() {
    let mut world = held();
    world.done(resolve_unknown(1, UnknownVerdict::SendAgain, "asked_by_practice"));
    assert_eq!(world.state(1), MessageState::Waiting);
    let event = last_event(&world);
    assert_eq!(event.detail, format!("{DETAIL_RESEND}:asked_by_practice"));
    world.begin(1);
    world.done(outcome(1, 2, Outcome::Accepted, &["ref-2"]));
    world.done(receipt(&["ref-2"], ReceiptState::Delivered));
    assert_eq!(world.state(1), MessageState::Delivered);
}

#[test]
fn a_late_answer_of_the_first_attempt_calls_the_resend_off() {
    let mut world = held();
    world.done(resolve_unknown(1, UnknownVerdict::SendAgain, "asked_by_practice"));
    world.done(outcome(1, 1, Outcome::Accepted, &["ref-1"]));
    assert_eq!(world.state(1), MessageState::Submitted);
}

#[test]
fn what_was_taken_back_or_has_expired_is_not_sent_again_but_can_be_closed() {
    let mut world = held();
    world.done(cancel(1));
    let again = resolve_unknown(1, UnknownVerdict::SendAgain, "asked");
    assert_eq!(world.one(again.clone()), refused(Refusal::TakenBack));
    world.done(resolve_unknown(1, UnknownVerdict::Failed, "asked"));
    let mut world = held();
    world.now_ms = world.status(1).expires_at_ms;
    assert_eq!(world.one(again), refused(Refusal::Expired));
    world.done(resolve_unknown(1, UnknownVerdict::Delivered, "carrier_portal"));
}

#[test]
fn a_message_with_a_change_that_waits_is_sent_again_with_the_change() {
    let mut world = held();
    world.done(update(1, 7, |u| (u.sealed_body, u.segments) = (index(9), 2)));
    assert_eq!(world.state(1), MessageState::Unknown);
    world.done(resolve_unknown(1, UnknownVerdict::SendAgain, "asked"));
    let (payload, status) = query::message(&world.tables, &id(1)).unwrap().unwrap();
    assert_eq!((payload.accept.unwrap().sealed_body, status.segments), (index(9), 2));
}

#[test]
fn half_a_command_and_another_practice_are_refused() {
    let mut world = held();
    let good = || {
        let Kind::ResolveUnknown(command) = resolve_unknown(1, UnknownVerdict::Failed, "asked") else {
            unreachable!()
        };
        command
    };
    for (command, refusal) in [
        (ResolveUnknown { reason: String::new(), ..good() }, Refusal::Malformed),
        (ResolveUnknown { verdict: 0, ..good() }, Refusal::Malformed),
        (ResolveUnknown { verdict: 99, ..good() }, Refusal::Malformed),
        (ResolveUnknown { message_id: index(1).slice(..3), ..good() }, Refusal::Malformed),
        (ResolveUnknown { practice_no: PRACTICE + 1, ..good() }, Refusal::NotFound),
        (ResolveUnknown { message_id: id(77).to_bytes(), ..good() }, Refusal::NotFound),
    ] {
        assert_eq!(world.one(Kind::ResolveUnknown(command)), refused(refusal));
    }
    assert_eq!(world.state(1), MessageState::Unknown);
    // Free text could name a patient: it is not kept.
    world.done(Kind::ResolveUnknown(ResolveUnknown { reason: "told by Ada".to_owned(), ..good() }));
    assert_eq!(world.status(1).detail, "operator:unreadable_code");
}
