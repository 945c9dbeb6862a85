//! Retention: what is old enough goes, with every row that belongs to it, and nothing else goes.
mod support;

#[path = "support/model.rs"]
mod model;

use carillon_core::{CommandResult, Retired, keys, query};
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::*;
use carillon_proto::public::{MessageState, Outcome};
use model::{Model, Op};
use proptest::prelude::*;
use prost::Message as _;
use support::*;

const HOUR: u64 = 3_600_000;

fn retire(finals_before_ms: u64, keys_before_ms: u64, limit: u32) -> Kind {
    Kind::Retire(Retire { finals_before_ms, keys_before_ms, limit })
}

fn run(world: &mut World, finals_before_ms: u64, keys_before_ms: u64, limit: u32) -> Retired {
    match world.one(retire(finals_before_ms, keys_before_ms, limit)) {
        CommandResult::Retired(retired) => retired,
        other => panic!("{other:?}"),
    }
}

fn keyed(n: u64, key: u8) -> Kind {
    accept_with(n, |a| a.idempotency_index = index(key))
}

/// Accepted, sent and delivered.
fn delivered(world: &mut World, n: u64, key: u8) {
    world.done(keyed(n, key));
    world.begin(n);
    let reference = format!("ref-{n}");
    world.done(outcome(n, 1, Outcome::Accepted, &[&reference]));
    world.done(receipt(&[&reference], ReceiptState::Delivered));
}

fn tables(world: &World, letters: &[u8]) -> Vec<u8> {
    world.tables.rows().keys().map(|key| key[0]).filter(|letter| letters.contains(letter)).collect()
}

/// Nothing points at what is gone, and nothing is left of it.
fn check_rows(world: &World) {
    let rows = world.tables.rows();
    let exists = |id: &carillon_proto::MessageId| rows.contains_key(&keys::status(id));
    let id_of = |bytes: &[u8]| carillon_proto::MessageId::from_bytes(bytes).unwrap();
    let kept: Vec<_> = rows.keys().filter_map(|key| keys::decode_kept_key(key)).collect();
    for (key, row) in rows {
        match key[0] {
            b'M' => assert!(exists(&keys::decode_payload(key).unwrap()), "payload without status"),
            b'S' => assert!(rows.contains_key(&keys::payload(&keys::decode_status(key).unwrap()))),
            b'X' => assert!(exists(&keys::decode_reference(key).unwrap().2), "reference to nothing"),
            b'R' => {
                let record = ReceiptIndexRecord::decode(row.clone()).unwrap();
                assert!(exists(&id_of(&record.message_id)), "carrier reference to nothing");
            }
            b'I' => {
                let record = IdempotencyRecord::decode(row.clone()).unwrap();
                let (practice_no, index) = keys::decode_idempotency(key).unwrap();
                let noted = kept.contains(&(record.accepted_at_ms, practice_no, index));
                assert_ne!(exists(&id_of(&record.message_id)), noted, "a key lives with its message or in K");
            }
            b'K' => {
                let (_, practice_no, index) = keys::decode_kept_key(key).unwrap();
                assert!(rows.contains_key(&keys::idempotency(practice_no, &index)), "K without its key");
            }
            _ => {}
        }
    }
}

#[test]
fn a_final_message_goes_with_every_row_when_its_time_is_over_and_not_before() {
    let mut world = World::new();
    delivered(&mut world, 1, 7);
    let final_ms = world.now_ms;
    world.now_ms += HOUR;
    assert_eq!(run(&mut world, final_ms - 1, final_ms - 1, 100).messages, 0);
    assert_eq!(world.state(1), MessageState::Delivered);
    let retired = run(&mut world, final_ms, final_ms, 100);
    assert_eq!((retired.messages, retired.keys, retired.more), (1, 1, false));
    assert_eq!(retired.event_blocks, 4, "accepted, in flight, submitted, delivered");
    assert_eq!(world.state(1), MessageState::Unspecified);
    assert_eq!(tables(&world, b"MSIDFRXEK"), Vec::<u8>::new(), "nothing is left but A and P");
    assert_eq!(query::last_event_index(&world.tables).unwrap(), 4, "cursors stay where they were");
}

#[test]
fn a_key_outlives_its_message_names_it_still_and_can_be_used_again_afterwards() {
    let mut world = World::new();
    let accepted_ms = world.now_ms;
    delivered(&mut world, 1, 7);
    world.now_ms += HOUR;
    let (now_ms, second) = (world.now_ms, keyed(2, 7));
    assert_eq!(run(&mut world, now_ms, accepted_ms - 1, 100).messages, 1);
    assert_eq!(tables(&world, b"MSIK"), b"IK");
    assert_eq!(world.one(second.clone()), CommandResult::Duplicate { message_id: id(1) });
    let retired = run(&mut world, now_ms, accepted_ms, 100);
    assert_eq!((retired.messages, retired.keys), (0, 1));
    assert_eq!(world.one(second), CommandResult::Accepted);
    check_rows(&world);
}

#[test]
fn a_key_lives_as_long_as_its_message() {
    let mut world = World::new();
    world.done(keyed(1, 7));
    world.now_ms += HOUR;
    let now_ms = world.now_ms;
    run(&mut world, now_ms, now_ms, 100);
    assert_eq!(world.one(keyed(2, 7)), CommandResult::Duplicate { message_id: id(1) });
}

#[test]
fn what_is_not_final_is_never_dropped() {
    let mut world = World::new();
    for n in 1..=4 {
        world.done(accept(n));
    }
    for n in 2..=4 {
        world.begin(n);
    }
    world.done(outcome(3, 1, Outcome::Ambiguous, &[]));
    world.done(outcome(4, 1, Outcome::Accepted, &["ref-4"]));
    world.now_ms += 1000 * HOUR;
    let now_ms = world.now_ms;
    assert_eq!(run(&mut world, now_ms, now_ms, 100).messages, 0);
    let states: Vec<_> = (1..=4).map(|n| world.state(n)).collect();
    assert_eq!(
        states,
        [MessageState::Accepted, MessageState::InFlight, MessageState::Unknown, MessageState::Submitted]
    );
    // Its events are gone; the one that makes it final brings it back into view.
    world.done(receipt(&["ref-4"], ReceiptState::Delivered));
    assert_eq!(run(&mut world, now_ms, now_ms, 100).messages, 1);
    assert_eq!(world.state(4), MessageState::Unspecified);
    check_rows(&world);
}

#[test]
fn cutoffs_are_not_later_than_the_clock_and_never_fall() {
    let mut world = World::new();
    delivered(&mut world, 1, 7);
    run(&mut world, u64::MAX, u64::MAX, 100);
    assert_eq!(world.state(1), MessageState::Unspecified, "it was final at this moment");
    let record = query::retention(&world.tables).unwrap();
    assert_eq!((record.finals_before_ms, record.keys_before_ms), (world.now_ms, world.now_ms));
    run(&mut world, 0, 0, 100);
    assert_eq!(query::retention(&world.tables).unwrap(), record);
    // A leader with a longer retention does not bring back what was promised to be gone: the next one goes by the
    // latest cutoff.
    delivered(&mut world, 2, 8);
    assert_eq!(run(&mut world, 0, 0, 100).messages, 1);
    world.now_ms += 10;
    delivered(&mut world, 3, 9);
    assert_eq!(run(&mut world, 0, 0, 100).messages, 0);
    check_rows(&world);
}

#[test]
fn small_pieces_are_the_same_as_one_large_one_and_say_when_there_is_more() {
    let (mut whole, mut pieces) = (World::new(), World::new());
    for world in [&mut whole, &mut pieces] {
        for n in 1..=20 {
            world.now_ms += 1000;
            delivered(world, n, n as u8);
        }
        world.now_ms += HOUR;
    }
    let now_ms = whole.now_ms;
    let keys_before_ms = START_MS + 10_500;
    let all = run(&mut whole, now_ms, keys_before_ms, 1024);
    assert_eq!((all.messages, all.keys, all.event_blocks, all.more), (20, 10, 80, false));
    let mut sum = Retired { more: true, ..Retired::default() };
    while sum.more {
        let piece = run(&mut pieces, now_ms, keys_before_ms, 5);
        assert!(piece.messages <= 3, "bounded work");
        sum.messages += piece.messages;
        sum.keys += piece.keys;
        sum.event_blocks += piece.event_blocks;
        sum.more = piece.more;
    }
    assert_eq!(sum, all);
    let rows = |world: &World| {
        world
            .tables
            .rows()
            .iter()
            .filter(|(k, _)| k[0] != b'A')
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    let (one, other): (Vec<_>, Vec<_>) = (rows(&whole), rows(&pieces));
    assert_eq!(one, other);
}

#[test]
fn a_receipt_of_a_dropped_message_is_unknown_and_harmless() {
    let mut world = World::new();
    delivered(&mut world, 1, 7);
    let now_ms = world.now_ms;
    run(&mut world, now_ms, now_ms, 100);
    let late = world.one(receipt(&["ref-1"], ReceiptState::Undelivered));
    assert_eq!(late, refused(carillon_core::Refusal::UnknownReference));
    let late = world.one(receipt_for(1, &["ref-1"], ReceiptState::Undelivered));
    assert_eq!(late, refused(carillon_core::Refusal::NotFound));
    assert_eq!(world.one(cancel(1)), refused(carillon_core::Refusal::NotFound));
}

/// Any history, dropped in any pieces: exactly the old finals are gone and all rows fit together. `World` compares two
/// replicas after each entry, one of which forgets everything that an `Applier` remembers.
fn check(batches: &[Vec<Op>], cut: usize, keys_back_ms: u64, limit: u32) {
    let (mut world, mut model) = (World::new(), Model::default());
    let (mut final_at, mut cutoff_ms) = (std::collections::BTreeMap::new(), START_MS);
    for (number, batch) in batches.iter().enumerate() {
        for op in batch {
            world.now_ms += op.pause_ms();
            if matches!(op, Op::LeaderStart) {
                world.term += 1;
            }
            let kind = model.command(op, world.term);
            for event in world.run([kind]).events {
                if carillon_core::message::is_final(event.state()) {
                    assert!(final_at.insert(event.message_id, world.now_ms).is_none(), "final twice");
                }
            }
            model.apply(op, world.now_ms, world.term);
            for n in 0..model::MESSAGES {
                model.take_state(n, world.state(n));
                if world.state(n) != MessageState::Unspecified {
                    model.take_due(n, world.status(n).due_ms, world.now_ms);
                }
            }
        }
        if number == cut {
            cutoff_ms = world.now_ms;
        }
    }
    let before: Vec<_> = (0..model::MESSAGES).map(|n| world.state(n)).collect();
    while run(&mut world, cutoff_ms, cutoff_ms.saturating_sub(keys_back_ms), limit).more {
        check_rows(&world);
    }
    check_rows(&world);
    for n in 0..model::MESSAGES {
        let gone = final_at.get(&id(n).to_bytes()).is_some_and(|at| *at <= cutoff_ms);
        let expected = if gone { MessageState::Unspecified } else { before[n as usize] };
        assert_eq!(world.state(n), expected, "message {n}");
    }
    let (oldest_block, oldest_key) = query::oldest_kept_ms(&world.tables).unwrap();
    assert!(oldest_block.is_none_or(|at| at > cutoff_ms));
    assert!(oldest_key.is_none_or(|at| at > cutoff_ms.saturating_sub(keys_back_ms)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_is_dropped_cleanly(
        batches in model::batches(),
        cut in 0usize..16,
        keys_back_ms in prop_oneof![Just(0u64), Just(5_000), Just(60_000)],
        limit in 1u32..12,
    ) {
        check(&batches, cut, keys_back_ms, limit);
    }
}
