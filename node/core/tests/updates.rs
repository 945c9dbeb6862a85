//! Appointments that move: all messages of a reference in one entry, versions, and what was under way already.
mod support;

use bytes::Bytes;
use carillon_core::{CommandResult, Disposition, Refusal, Updated, keys, query, update as versions};
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::*;
use carillon_proto::public::{MessageState, Outcome, WaitingReason};
use support::*;

const MINUTE: u64 = 60_000;

fn changed(n: u64, change: impl FnOnce(&mut MessageUpdate)) -> MessageUpdate {
    let mut one = MessageUpdate { message_id: id(n).to_bytes(), ..Default::default() };
    change(&mut one);
    one
}

fn new_text(n: u64) -> MessageUpdate {
    changed(n, |u| (u.sealed_body, u.encoding, u.segments) = (Bytes::from_static(b"new"), 2, 3))
}

fn report(world: &mut World, kind: Kind) -> Updated {
    match world.one(kind) {
        CommandResult::Updated(updated) => updated,
        other => panic!("{other:?}"),
    }
}

fn dispositions(updated: &Updated) -> Vec<Disposition> {
    updated.outcomes.iter().map(|o| o.disposition).collect()
}

fn body(world: &World, n: u64) -> Bytes {
    let (payload, _) = query::message(&world.tables, &id(n)).unwrap().unwrap();
    payload.accept.unwrap().sealed_body
}

#[test]
fn one_command_moves_edits_and_cancels_and_says_what_was_too_late() {
    let mut world = World::new();
    (1..=6).for_each(|n| world.done(accept(n)));
    world.begin(4);
    world.done(outcome(4, 1, Outcome::Accepted, &["ref-4"]));
    let submitted_ms = world.now_ms;
    world.now_ms += MINUTE;
    world.begin(5);
    let began_ms = world.now_ms;
    world.done(cancel(6));
    let later = world.now_ms + 30 * MINUTE;
    let list = vec![
        changed(1, |u| {
            (u.not_before_ms, u.deadline_ms, u.expires_at_ms) = (later, later + MINUTE, later + MINUTE)
        }),
        new_text(2),
        changed(3, |u| u.cancel = true),
        changed(4, |u| u.cancel = true),
        new_text(5),
    ];
    let updated = report(&mut world, updates(3, 1, list));
    use Disposition::*;
    assert_eq!(dispositions(&updated), [Updated, Updated, Canceled, HandedOver, InDoubt, Canceled]);
    assert_eq!(updated.outcomes[3].handed_over_ms, submitted_ms);
    assert_eq!(updated.outcomes[4].handed_over_ms, began_ms);
    let moved = world.status(1);
    assert_eq!((moved.state(), moved.waiting_reason()), (MessageState::Waiting, WaitingReason::Schedule));
    assert_eq!(
        (moved.due_ms, moved.expires_at_ms, moved.deadline_ms),
        (later, later + MINUTE, later + MINUTE)
    );
    assert_eq!((body(&world, 2).as_ref(), world.status(2).segments), (b"new".as_slice(), 3));
    let CommandResult::Begun(permit) = world.one(begin(2, 1, world.term)) else { panic!("it waits") };
    assert_eq!((permit.sealed_body.as_ref(), permit.segments, permit.encoding), (b"new".as_slice(), 3, 2));
}

#[test]
fn a_change_under_way_takes_effect_before_the_next_attempt_and_never_in_a_resend() {
    let mut world = World::new();
    for n in 1..=3 {
        let policy = if n == 3 { UnknownPolicy::ResendOnce } else { UnknownPolicy::Hold };
        world.done(accept_with(n, |a| {
            (a.retry, a.reference_index) = (Some(with_policy(policy)), index(n as u8))
        }));
        world.begin(n);
    }
    let change = |n: u64| {
        Kind::UpdateByReference(UpdateByReference {
            practice_no: PRACTICE,
            reference_index: index(n as u8),
            version: 1,
            content_mac: index(1),
            updates: vec![MessageUpdate { not_before_ms: START_MS + 20 * MINUTE, ..new_text(n) }],
        })
    };
    (1..=3).for_each(|n| assert_eq!(dispositions(&report(&mut world, change(n))), [Disposition::InDoubt]));
    // Not handed over: it waits for its new time with its new text.
    world.done(outcome(1, 1, Outcome::Transient, &[]));
    assert_eq!((world.state(1), world.status(1).due_ms), (MessageState::Waiting, START_MS + 20 * MINUTE));
    assert_eq!((body(&world, 1).as_ref(), world.status(1).pending_update.clone()), (b"new".as_slice(), None));
    // Handed over: nothing changes.
    world.done(outcome(2, 1, Outcome::Accepted, &["ref-2"]));
    assert_eq!(
        (world.state(2), body(&world, 2).as_ref()),
        (MessageState::Submitted, b"sealed-body".as_slice())
    );
    // Nobody knows, and the class would send again: not the old text.
    world.done(outcome(3, 1, Outcome::Ambiguous, &[]));
    assert_eq!(world.state(3), MessageState::Unknown);
    world.done(outcome(3, 1, Outcome::Transient, &[]));
    assert_eq!((world.state(3), body(&world, 3).as_ref()), (MessageState::Waiting, b"new".as_slice()));
}

#[test]
fn a_resend_that_waits_is_called_off_by_a_change() {
    let mut world = World::new();
    world.done(accept_with(1, |a| a.retry = Some(with_policy(UnknownPolicy::ResendOnce))));
    world.begin(1);
    world.done(outcome(1, 1, Outcome::Ambiguous, &[]));
    assert_eq!(world.state(1), MessageState::Waiting);
    let updated = report(&mut world, updates(1, 1, vec![new_text(1)]));
    assert_eq!(dispositions(&updated), [Disposition::InDoubt]);
    assert_eq!(
        (world.state(1), world.status(1).detail.as_str()),
        (MessageState::Unknown, "changed_unresolved")
    );
    world.done(outcome(1, 1, Outcome::NotSent, &[]));
    assert_eq!((world.state(1), body(&world, 1).as_ref()), (MessageState::Waiting, b"new".as_slice()));
}

#[test]
fn versions_rise_and_repeats_change_nothing() {
    let mut world = World::new();
    world.done(accept(1));
    let rows = |world: &World| world.tables.rows().clone();
    report(&mut world, updates(5, 1, vec![new_text(1)]));
    let before: Vec<_> = rows(&world).into_iter().filter(|(key, _)| !b"AE".contains(&key[0])).collect();
    let again = report(&mut world, updates(5, 1, vec![changed(1, |u| u.cancel = true)]));
    assert!(again.duplicate, "the same version and content, whatever the leader made of it");
    assert_eq!(dispositions(&again), [Disposition::Updated]);
    assert_eq!(world.one(updates(5, 2, vec![new_text(1)])), refused(Refusal::VersionReused));
    assert_eq!(world.one(updates(4, 1, vec![new_text(1)])), refused(Refusal::OldVersion { known: 5 }));
    let after: Vec<_> = rows(&world).into_iter().filter(|(key, _)| !b"AE".contains(&key[0])).collect();
    assert_eq!(before, after);
    assert!(!report(&mut world, updates(6, 2, vec![new_text(1)])).duplicate);
}

#[test]
fn a_message_that_the_leader_did_not_see_stops_the_whole_update() {
    let mut world = World::new();
    (1..=2).for_each(|n| world.done(accept(n)));
    assert_eq!(world.one(updates(1, 1, vec![new_text(1)])), refused(Refusal::MovedOn));
    assert_eq!(body(&world, 1).as_ref(), b"sealed-body", "all or nothing");
    assert_eq!(versions::version(&world.tables, PRACTICE, &[1; 16]).unwrap(), None);
    world.done(cancel(2));
    assert_eq!(report(&mut world, updates(1, 1, vec![new_text(1)])).outcomes.len(), 2);
}

#[test]
fn the_version_goes_with_the_last_message_of_its_reference() {
    let mut world = World::new();
    (1..=2).for_each(|n| world.done(accept(n)));
    report(&mut world, updates(1, 1, vec![changed(1, |u| u.cancel = true), new_text(2)]));
    let retire = |at_ms| Kind::Retire(Retire { finals_before_ms: at_ms, keys_before_ms: at_ms, limit: 100 });
    world.done(retire(world.now_ms));
    assert!(versions::version(&world.tables, PRACTICE, &[1; 16]).unwrap().is_some());
    world.now_ms += MINUTE;
    world.done(cancel(2));
    world.done(retire(world.now_ms));
    assert!(!world.tables.rows().keys().any(|key| b"VXSM".contains(&key[0])));
}

#[test]
fn impossible_updates_are_refused() {
    let mut world = World::new();
    world.done(accept(1));
    let bad = [
        updates(0, 1, vec![new_text(1)]),
        updates(1, 1, vec![new_text(1), new_text(1)]),
        updates(1, 1, vec![changed(1, |u| u.sealed_body = Bytes::from_static(b"x"))]),
        updates(1, 1, vec![MessageUpdate::default()]),
    ];
    for kind in bad {
        assert_eq!(world.one(kind), refused(Refusal::Malformed));
    }
    let unknown = UpdateByReference { reference_index: index(77), ..command(updates(1, 1, vec![])) };
    assert!(report(&mut world, Kind::UpdateByReference(unknown)).outcomes.is_empty());
    assert!(!world.tables.rows().contains_key(&keys::version(PRACTICE, &[77; 16])), "nothing to remember");
}

fn command(kind: Kind) -> UpdateByReference {
    match kind {
        Kind::UpdateByReference(command) => command,
        _ => unreachable!(),
    }
}

/// Message `n` spends its only attempt.
fn die(world: &mut World, n: u64) {
    world.done(accept_with(n, |a| a.retry.as_mut().unwrap().attempts_max = 1));
    world.begin(n);
    world.done(outcome(n, 1, Outcome::Transient, &[]));
    assert_eq!(world.state(n), MessageState::Dead);
}

fn replay(n: u64, of: u64) -> Kind {
    accept_with(n, |a| a.replay_of = id(of).to_bytes())
}

#[test]
fn a_dead_letter_is_listed_until_it_is_dropped_or_replayed_once() {
    let mut world = World::new();
    (1..=3).for_each(|n| die(&mut world, n));
    let listed = |world: &World| -> Vec<_> {
        let rows = query::dead_letters(&world.tables, PRACTICE, None, 99).unwrap();
        rows.into_iter().map(|(_, id)| id).collect()
    };
    assert_eq!(listed(&world), [id(1), id(2), id(3)]);
    world.done(drop_dead_letter(1, "duplicate_patient"));
    world.done(drop_dead_letter(1, "again"));
    assert_eq!(world.status(1).dead_letter.unwrap().dropped, "duplicate_patient");
    assert_eq!(world.one(replay(10, 1)), refused(Refusal::WrongState(MessageState::Dead)));
    assert_eq!(world.one(replay(11, 2)), CommandResult::Accepted);
    assert_eq!(world.one(replay(12, 2)), CommandResult::Duplicate { message_id: id(11) });
    assert_eq!((world.state(11), world.state(12)), (MessageState::Accepted, MessageState::Unspecified));
    assert_eq!(world.state(2), MessageState::Dead, "final states never change");
    assert_eq!(listed(&world), [id(3)]);
    let retire = Kind::Retire(Retire { finals_before_ms: world.now_ms, keys_before_ms: 0, limit: 100 });
    world.done(retire);
    assert!(listed(&world).is_empty(), "the row goes with its message");
}

#[test]
fn only_dead_letters_of_the_same_practice_are_replayed() {
    let mut world = World::new();
    die(&mut world, 1);
    world.done(accept(2));
    assert_eq!(world.one(replay(9, 2)), refused(Refusal::WrongState(MessageState::Accepted)));
    assert_eq!(world.one(replay(9, 77)), refused(Refusal::NotFound));
    let foreign = accept_with(9, |a| (a.replay_of, a.practice_no) = (id(1).to_bytes(), PRACTICE + 1));
    assert_eq!(world.one(foreign), refused(Refusal::NotFound));
    assert_eq!(world.one(drop_dead_letter(2, "x")), refused(Refusal::WrongState(MessageState::Accepted)));
    assert_eq!(world.one(drop_dead_letter(1, "")), refused(Refusal::Malformed));
}

/// `World` compares the rows of D, N, G and F with the messages after each command.
#[test]
fn messages_of_a_series_keep_their_rows_in_their_flow_whatever_becomes_of_their_appointment() {
    let mut world = World::new();
    let series = id(900);
    world.done(Kind::PutSeries(PutSeries {
        series_id: series.to_bytes(),
        practice_no: PRACTICE,
        sealed_plan: Bytes::from_static(b"plan"),
        key_epoch: 1,
        content_mac: index(9),
        next_ms: START_MS + MINUTE,
        ..Default::default()
    }));
    let occurrence = |n: u64| {
        accept_with(n, |a| {
            (a.due_by_practice, a.ordered) = (true, true);
            (a.not_before_ms, a.idempotency_index) = (START_MS + n * MINUTE, index(100 + n as u8));
        })
    };
    let advance = |from, to| {
        let (series_id, next_ms) = (series.to_bytes(), START_MS + u64::from(to + 1) * MINUTE);
        Kind::AdvanceSeries(AdvanceSeries { series_id, practice_no: PRACTICE, from, to, next_ms })
    };
    world.run((1..=4).map(occurrence).chain([advance(0, 4)]));
    let flow_of = |world: &World, n: u64| {
        let status = world.status(n);
        let key = keys::due(status.priority as u8, PRACTICE, status.due_ms, &id(n));
        world.tables.rows().contains_key(&key)
    };
    let at = |n: u64, ms: u64| changed(n, |u| u.not_before_ms = START_MS + ms);
    // (what changes, which messages wait in the flow of their practice afterwards)
    let table: [(Vec<MessageUpdate>, &[u64]); 5] = [
        (vec![at(1, 30 * MINUTE), at(2, MINUTE), new_text(3), changed(4, |_| {})], &[1, 2, 3, 4]),
        (vec![at(1, 1), at(2, 1), at(3, 1), at(4, 1)], &[1, 2, 3, 4]),
        (vec![new_text(1), changed(2, |u| u.cancel = true), new_text(3), at(4, 9 * MINUTE)], &[1, 3, 4]),
        (vec![at(1, 2), changed(2, |_| {}), changed(3, |_| {}), changed(4, |_| {})], &[1, 3, 4]),
        (vec![new_text(1), new_text(2), at(3, 2 * MINUTE), changed(4, |u| u.cancel = true)], &[1, 3]),
    ];
    for (version, (list, waiting)) in (1..).zip(table) {
        world.now_ms += 1_000;
        assert!(matches!(world.one(updates(version, version as u8, list)), CommandResult::Updated(_)));
        for n in 1..=4 {
            assert_eq!(flow_of(&world, n), waiting.contains(&n), "message {n} after version {version}");
        }
    }
    // One under way, and the next ones of the series come after the changes.
    world.now_ms += MINUTE;
    world.begin(1);
    world.run([occurrence(5), occurrence(6), advance(4, 6)]);
    let list = vec![at(1, 20 * MINUTE), at(3, 1), at(5, 1), changed(6, |_| {})];
    assert!(matches!(world.one(updates(9, 9, list)), CommandResult::Updated(_)));
    world.done(outcome(1, 1, Outcome::Transient, &[]));
    assert!([1, 3, 5, 6].into_iter().all(|n| flow_of(&world, n)));
    assert_eq!(
        world.status(1).due_ms,
        START_MS + 20 * MINUTE,
        "the change took effect when nothing was sent"
    );
}
