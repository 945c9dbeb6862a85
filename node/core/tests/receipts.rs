//! Delivery reports: by reference, in parts, early, late, twice.
mod support;

use carillon_core::{CommandResult, Refusal};
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::{ReceiptState, RecordReceipt, UnknownPolicy};
use carillon_proto::public::{MessageState, Outcome};
use support::*;

use ReceiptState::{Delivered, Enroute, Expired, Rejected, Undelivered};

/// Message 1 with that many segments, in flight.
fn in_flight(segments: u32) -> World {
    let mut world = World::new();
    world.done(accept_with(1, |a| a.segments = segments));
    world.begin(1);
    world
}

fn submitted(refs: &[&str]) -> World {
    let mut world = in_flight(refs.len() as u32);
    world.done(outcome(1, 1, Outcome::Accepted, refs));
    assert_eq!(world.status(1).submitted_at_ms, START_MS);
    world
}

#[test]
fn a_message_of_several_parts_is_final_with_its_last_part() {
    // (receipts of the parts a, b, c in this order, final state, detail)
    type Case = (&'static [(&'static str, ReceiptState)], MessageState, &'static str);
    let cases: [Case; 7] = [
        (&[("a", Delivered), ("b", Delivered)], MessageState::Submitted, ""),
        (&[("a", Delivered), ("b", Delivered), ("c", Delivered)], MessageState::Delivered, ""),
        (&[("c", Delivered), ("a", Delivered), ("b", Delivered)], MessageState::Delivered, ""),
        // The same part twice is one part.
        (&[("a", Delivered), ("a", Delivered), ("b", Delivered)], MessageState::Submitted, ""),
        (&[("a", Delivered), ("b", Enroute), ("c", Delivered)], MessageState::Submitted, ""),
        (
            &[("a", Undelivered), ("b", Delivered), ("c", Delivered)],
            MessageState::Undelivered,
            "receipt_undelivered",
        ),
        (
            &[("a", Undelivered), ("b", Rejected), ("c", Expired)],
            MessageState::Undelivered,
            "receipt_rejected",
        ),
    ];
    for (receipts, state, detail) in cases {
        let mut world = submitted(&["a", "b", "c"]);
        for (carrier_ref, receipt_state) in receipts {
            world.done(receipt(&[carrier_ref], *receipt_state));
        }
        let status = world.status(1);
        assert_eq!((status.state(), status.detail.as_str()), (state, detail), "{receipts:?}");
    }
}

#[test]
fn one_reference_for_all_parts_is_the_whole_message() {
    let mut world = in_flight(3);
    world.done(outcome(1, 1, Outcome::Accepted, &["only"]));
    world.done(receipt(&["only"], Delivered));
    assert_eq!(world.state(1), MessageState::Delivered);
    assert_eq!(world.status(1).attempts[0].segments, 3);
}

#[test]
fn final_states_never_change() {
    for (first, second, state) in [
        (Undelivered, Delivered, MessageState::Undelivered),
        (Delivered, Undelivered, MessageState::Delivered),
        (Expired, Delivered, MessageState::Undelivered),
        (Delivered, Enroute, MessageState::Delivered),
    ] {
        let mut world = submitted(&["a"]);
        world.done(receipt(&["a"], first));
        let effects = world.run([receipt(&["a"], second)]);
        assert_eq!((world.state(1), effects.results[0].clone()), (state, CommandResult::Done));
        assert!(effects.events.is_empty());
    }
}

#[test]
fn candidates_are_tried_in_order_and_only_on_their_carrier() {
    let mut world = submitted(&["00ff"]);
    assert_eq!(world.one(receipt(&["255", "0x"], Delivered)), refused(Refusal::UnknownReference));
    let Kind::RecordReceipt(r) = receipt(&["00ff"], Delivered) else { unreachable!() };
    let other = Kind::RecordReceipt(RecordReceipt { carrier_no: CARRIER + 1, ..r });
    assert_eq!(world.one(other), refused(Refusal::UnknownReference));
    world.done(receipt(&["255", "00ff"], Delivered));
    assert_eq!(world.state(1), MessageState::Delivered);
}

#[test]
fn a_known_message_takes_the_part_from_its_own_reference() {
    let mut world = submitted(&["a", "b"]);
    world.done(accept(2));
    world.begin(2);
    world.done(outcome(2, 1, Outcome::Accepted, &["x"]));
    // "x" is another message's; "b" is the first that fits.
    world.done(receipt_for(1, &["x", "b"], Delivered));
    assert_eq!((world.state(1), world.status(1).receipts_final), (MessageState::Submitted, 1));
    world.done(receipt_for(1, &["b"], Delivered));
    assert_eq!(world.status(1).receipts_final, 1, "the same part again");
    world.done(receipt_for(1, &["a"], Delivered));
    assert_eq!((world.state(1), world.state(2)), (MessageState::Delivered, MessageState::Submitted));
}

#[test]
fn a_receipt_faster_than_the_answer_counts_and_the_answer_is_still_recorded() {
    let mut world = in_flight(1);
    assert_eq!(
        world.one(receipt(&["a"], Delivered)),
        refused(Refusal::UnknownReference),
        "comes again later"
    );
    world.done(receipt_for(1, &["a"], Delivered));
    assert_eq!(world.state(1), MessageState::Delivered);
    world.done(outcome(1, 1, Outcome::Accepted, &["a"]));
    let status = world.status(1);
    assert_eq!((status.state(), status.attempts[0].outcome()), (MessageState::Delivered, Outcome::Accepted));
}

#[test]
fn one_unnumbered_part_of_several_proves_nothing_about_the_others() {
    let mut world = in_flight(2);
    assert_eq!(world.one(receipt_for(1, &["a"], Delivered)), refused(Refusal::UnknownReference));
    world.change_leader();
    assert_eq!(world.one(receipt_for(1, &["a"], Delivered)), refused(Refusal::UnknownReference));
    assert_eq!((world.state(1), world.status(1).receipts_final), (MessageState::Unknown, 0));
    // The late answer numbers the parts; now they count.
    world.done(outcome(1, 1, Outcome::Accepted, &["a", "b"]));
    world.done(receipt(&["a"], Delivered));
    world.done(receipt(&["b"], Delivered));
    assert_eq!(world.state(1), MessageState::Delivered);
}

#[test]
fn receipts_resolve_a_lost_answer() {
    for (state, expected) in [
        (Enroute, MessageState::Submitted),
        (Delivered, MessageState::Delivered),
        (Undelivered, MessageState::Undelivered),
    ] {
        let mut world = in_flight(1);
        world.outcome(1, 1, Outcome::Ambiguous);
        world.done(receipt_for(1, &[], state));
        let status = world.status(1);
        assert_eq!((status.state(), status.submitted_at_ms), (expected, START_MS), "{state:?}");
    }
}

#[test]
fn parts_of_two_attempts_are_not_added_up() {
    let mut world = World::new();
    world.done(accept_with(1, |a| {
        (a.segments, a.retry) = (2, Some(with_policy(UnknownPolicy::ResendOnce)));
    }));
    world.begin(1);
    world.outcome(1, 1, Outcome::Ambiguous);
    world.begin(1);
    world.done(outcome(1, 1, Outcome::Accepted, &["a1", "a2"]));
    world.done(receipt(&["a1"], Delivered));
    assert_eq!(world.status(1).receipts_final, 1);
    world.done(outcome(1, 2, Outcome::Accepted, &["b1", "b2"]));
    assert_eq!(world.status(1).receipts_final, 0, "the second attempt decides now");
    world.done(receipt(&["b1"], Delivered));
    world.done(receipt(&["a2"], Delivered));
    assert_eq!(world.state(1), MessageState::Submitted);
    world.done(receipt(&["b2"], Delivered));
    assert_eq!(world.state(1), MessageState::Delivered);
}

#[test]
fn the_carriers_code_is_in_the_detail() {
    let mut world = submitted(&["a"]);
    let Kind::RecordReceipt(r) = receipt(&["a"], Undelivered) else { unreachable!() };
    world.done(Kind::RecordReceipt(RecordReceipt { code: "034".into(), ..r }));
    assert_eq!(world.status(1).detail, "receipt_undelivered:034");
}

#[test]
fn impossible_receipts_are_refused() {
    let mut world = submitted(&["a"]);
    let many = ["a"; 17];
    for kind in
        [receipt(&["a"], ReceiptState::Unspecified), receipt(&many, Delivered), receipt(&[""], Delivered)]
    {
        assert_eq!(world.one(kind), refused(Refusal::Malformed));
    }
    assert_eq!(world.one(receipt(&[], Delivered)), refused(Refusal::UnknownReference));
    assert_eq!(world.one(receipt_for(9, &[], Delivered)), refused(Refusal::NotFound));
    world.done(accept(2));
    let wrong = refused(Refusal::WrongState(MessageState::Accepted));
    assert_eq!(world.one(receipt_for(2, &[], Delivered)), wrong, "it was never handed over");
}
