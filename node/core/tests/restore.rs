//! A partition comes back from a backup: what may have been sent since is held, the rest goes on, and nothing is forgotten.
mod support;

use bytes::Bytes;
use carillon_core::{
    CommandResult, EVENTS_GAP, Fate, MemTables, Refusal, Resolved, Tables, fate, keys, next_piece,
    position_after, query,
};
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::*;
use carillon_proto::public::{MessageState, Outcome};
use prost::Message as _;
use support::*;

const BACKUP: [u8; 16] = [9; 16];
/// The backup is made at `START_MS`, the restore is begun so much later.
const LATER_MS: u64 = 600_000;
const GUARD_MS: u64 = START_MS + LATER_MS;

/// One message in every state that a backup can hold, with keys and references of its own: number, state.
const STATES: [(u64, MessageState); 9] = [
    (1, MessageState::Accepted),
    (2, MessageState::Waiting),
    (3, MessageState::Waiting),
    (4, MessageState::InFlight),
    (5, MessageState::Submitted),
    (6, MessageState::Unknown),
    (7, MessageState::Delivered),
    (8, MessageState::Canceled),
    (9, MessageState::Waiting),
];

/// 2 waits for a time before the restore, 3 for one after it, 9 for a resend before it.
fn old_cluster() -> World {
    let mut world = World::new();
    for (n, _) in STATES {
        world.done(accept_with(n, |a| {
            a.idempotency_index = index(n as u8);
            a.reference_index = index(100 + n as u8);
            a.not_before_ms = match n {
                2 => GUARD_MS,
                3 => GUARD_MS + 1,
                _ => 0,
            };
            if n == 9 {
                a.retry = Some(with_policy(UnknownPolicy::ResendOnce));
            }
        }));
    }
    for n in [4, 5, 6, 7, 9] {
        world.begin(n);
    }
    world.done(outcome(5, 1, Outcome::Accepted, &["ref-5"]));
    world.outcome(6, 1, Outcome::Ambiguous);
    world.outcome(9, 1, Outcome::Ambiguous);
    world.done(outcome(7, 1, Outcome::Accepted, &["ref-7"]));
    world.done(receipt(&["ref-7"], ReceiptState::Delivered));
    world.done(cancel(8));
    for (n, state) in STATES {
        assert_eq!(world.state(n), state, "{n}");
    }
    world
}

fn piece(after: RestorePosition, rows: Vec<RestoreRow>, last: bool) -> Restore {
    Restore {
        backup_id: BACKUP.to_vec().into(),
        guard_ms: GUARD_MS,
        events_base: EVENTS_GAP,
        after: Some(after),
        rows,
        last,
    }
}

/// All pieces of a backup, of about so many bytes.
fn pieces(tables: &MemTables, bytes_max: usize) -> Vec<Restore> {
    let (mut pieces, mut position) = (Vec::new(), RestorePosition::default());
    loop {
        let (rows, last) = next_piece(tables, &position, bytes_max).unwrap();
        assert!(!rows.is_empty() || last, "it comes to an end");
        let next = position_after(position.clone(), &rows);
        pieces.push(piece(position, rows, last));
        position = next;
        if last {
            return pieces;
        }
    }
}

fn new_cluster() -> World {
    let mut world = World::new();
    world.now_ms = GUARD_MS + 5_000;
    world.done(leader_start(1));
    world
}

fn restored(old: &World, bytes_max: usize) -> World {
    let mut world = new_cluster();
    for piece in pieces(&old.tables, bytes_max) {
        assert_eq!(world.one(Kind::Restore(piece)), CommandResult::Done);
    }
    world
}

fn resolve(action: QuarantineAction, practice_no: u32, limit: u32) -> Kind {
    let action = action.into();
    Kind::ResolveQuarantine(ResolveQuarantine { practice_no, action, limit, ..Default::default() })
}

fn in_quarantine(world: &World) -> Vec<u64> {
    let held = query::quarantined(&world.tables, 0, None, 100).unwrap();
    let number = |found: (u32, carillon_proto::MessageId)| (1..=30).find(|n| id(*n) == found.1).unwrap();
    held.into_iter().map(number).collect()
}

#[test]
fn the_fate_of_a_message_follows_from_state_and_due_time() {
    use MessageState as S;
    for n in 1..=12 {
        let state = S::try_from(n).unwrap();
        for (due_ms, before) in [(GUARD_MS, true), (GUARD_MS + 1, false)] {
            let expected = match state {
                S::Accepted | S::Waiting if before => Fate::Unknown,
                S::Accepted | S::Waiting => Fate::GoesOn,
                S::InFlight => Fate::Unknown,
                _ => Fate::Rests,
            };
            assert_eq!(fate(state, due_ms, GUARD_MS), expected, "{state:?} due {due_ms}");
        }
    }
}

/// Found by the simulator: it waited until its expiry to be woken, and the old cluster woke it and sent it after the backup.
#[test]
fn a_message_that_waited_for_its_turn_may_have_been_sent() {
    let mut old = World::new();
    for n in 1..=3 {
        old.done(accept_with(n, |a| {
            (a.ordered, a.recipient_index) = (true, index(77));
            // The third one cannot have had its turn before the guard.
            a.not_before_ms = if n == 3 { GUARD_MS + 60_000 } else { 0 };
        }));
    }
    old.begin(1);
    for n in [2, 3] {
        old.now_ms = old.now_ms.max(old.status(n).due_ms);
        assert_eq!(old.one(begin(n, 1, old.term)), CommandResult::Refused(Refusal::OutOfTurn), "{n}");
        assert!(old.status(n).due_ms > GUARD_MS + 60_000, "it waits until its expiry");
    }
    let new = restored(&old, 100_000);
    assert_eq!(in_quarantine(&new), [1, 2]);
    let third = new.status(3);
    assert_eq!((third.state(), third.due_ms), (MessageState::Waiting, GUARD_MS + 60_000));
}

#[test]
fn what_may_have_been_sent_is_held_and_the_rest_is_as_it_was() {
    let old = old_cluster();
    let mut world = restored(&old, usize::MAX);
    let expected = [
        (1, MessageState::Unknown),
        (2, MessageState::Unknown),
        (3, MessageState::Waiting),
        (4, MessageState::Unknown),
        (5, MessageState::Submitted),
        (6, MessageState::Unknown),
        (7, MessageState::Delivered),
        (8, MessageState::Canceled),
        (9, MessageState::Unknown),
    ];
    for (n, state) in expected {
        assert_eq!(world.state(n), state, "{n}");
    }
    assert_eq!(in_quarantine(&world), [1, 2, 4, 9], "6 was unknown before, and is nobody's guess");
    for n in [3, 5, 6, 7, 8] {
        assert_eq!(world.status(n), old.status(n), "{n} is untouched");
    }
    let record = query::restore(&world.tables).unwrap().unwrap();
    assert_eq!((record.messages, record.quarantined, record.waiting, record.done), (9, 4, 1, true));

    // Nothing of it is sent, whatever the leader tries.
    world.now_ms += 3_600_000;
    for n in [1, 2, 4, 9] {
        let no = carillon_core::message::next_attempt_no(&world.status(n));
        let tried = world.one(begin(n, no, world.term));
        assert_eq!(tried, refused(Refusal::WrongState(MessageState::Unknown)), "{n}");
        assert_eq!(world.one(expire(n)), refused(Refusal::WrongState(MessageState::Unknown)), "{n}");
    }
    assert_eq!(in_quarantine(&world), [1, 2, 4, 9]);
}

#[test]
fn what_was_not_due_is_sent_once_at_its_time() {
    let mut world = restored(&old_cluster(), usize::MAX);
    assert!(matches!(world.one(begin(3, 1, 1)), CommandResult::Begun(_)), "its time has come since");
    let permit_of_more = world.one(begin(3, 2, 1));
    assert_eq!(permit_of_more, refused(Refusal::WrongState(MessageState::InFlight)));
}

#[test]
fn keys_references_and_receipts_of_the_backup_work() {
    let mut world = restored(&old_cluster(), usize::MAX);
    for (n, _) in STATES {
        let again = accept_with(50 + n, |a| a.idempotency_index = index(n as u8));
        assert_eq!(world.one(again), CommandResult::Duplicate { message_id: id(n) }, "{n}");
    }
    world.done(receipt(&["ref-5"], ReceiptState::Delivered));
    assert_eq!(world.state(5), MessageState::Delivered);
    // A receipt that names the message resolves it, and it leaves the quarantine.
    world.done(receipt_for(4, &[], ReceiptState::Delivered));
    assert_eq!(world.state(4), MessageState::Delivered);
    world.done(receipt_for(1, &[], ReceiptState::Undelivered));
    assert_eq!(world.state(1), MessageState::Undelivered);
    world.done(receipt_for(2, &[], ReceiptState::Enroute));
    assert_eq!(world.state(2), MessageState::Submitted);
    assert_eq!(in_quarantine(&world), [9]);
    world.done(cancel_reference(103));
    assert_eq!(world.state(3), MessageState::Canceled);
    // New messages come in beside the old ones, with ids that the memo of ids must not mistake.
    world.done(accept(20));
    let taken = accept_with(1, |a| a.idempotency_index = Bytes::new());
    assert_eq!(world.one(taken), refused(Refusal::Malformed), "the id exists");
}

#[test]
fn an_operator_releases_or_drops_what_is_held() {
    let mut world = restored(&old_cluster(), usize::MAX);
    assert_eq!(world.one(resolve(QuarantineAction::Unspecified, 0, 9)), refused(Refusal::Malformed));
    let resolved = |messages: u32, more: bool, last: Option<u64>| {
        let last = last.map(|n| (PRACTICE, id(n)));
        CommandResult::Resolved(Resolved { messages, more, kept: Vec::new(), last })
    };
    let other = resolve(QuarantineAction::Release, PRACTICE + 1, 9);
    assert_eq!(world.one(other), resolved(0, false, None));
    assert_eq!(in_quarantine(&world).len(), 4);

    // Asked to be taken back while it was held: a release must not send it.
    world.done(cancel(2));
    assert_eq!(world.one(resolve(QuarantineAction::Release, PRACTICE, 2)), resolved(2, true, Some(2)));
    assert_eq!((world.state(1), world.state(2)), (MessageState::Waiting, MessageState::Undelivered));
    assert_eq!(world.status(1).detail, "resend", "it counts as a possible duplicate");
    assert_eq!(world.one(resolve(QuarantineAction::Drop, 0, 9)), resolved(2, false, Some(9)));
    assert_eq!((world.state(4), world.state(9)), (MessageState::Undelivered, MessageState::Undelivered));
    assert_eq!(world.status(4).detail, "restore_dropped");
    assert!(in_quarantine(&world).is_empty());

    world.begin(1);
    assert_eq!(world.status(1).attempts.last().unwrap().number, 2);
    world.done(outcome(1, 2, Outcome::Accepted, &["ref-1"]));
    assert_eq!(world.state(1), MessageState::Submitted);
}

/// 20: sent again after a lost answer, which came late; 21: a carrier acknowledged one part of three; 22: nobody knows anything.
fn cluster_that_was_told() -> World {
    let mut world = World::new();
    for n in [20, 21, 22] {
        world.done(accept_with(n, |a| {
            a.segments = if n == 21 { 3 } else { 1 };
            a.retry = Some(with_policy(UnknownPolicy::ResendOnce));
        }));
    }
    for n in [20, 22] {
        world.begin(n);
        world.outcome(n, 1, Outcome::Ambiguous);
    }
    world.begin(21);
    world.done(outcome(21, 1, Outcome::Ambiguous, &["part-1"]));
    world.now_ms = START_MS + 60_000;
    world.begin(20);
    world.done(outcome(20, 1, Outcome::Accepted, &["late"]));
    for (n, state) in [(20, MessageState::InFlight), (21, MessageState::Waiting), (22, MessageState::Waiting)]
    {
        assert_eq!(world.state(n), state, "{n}");
    }
    world
}

#[test]
fn what_a_carrier_is_known_to_have_is_released_only_if_that_is_said() {
    let release = |after: Option<u64>, keep_taken_over, limit| {
        let (after_practice_no, after_message_id) =
            after.map(|n| (PRACTICE, id(n).to_bytes())).unwrap_or_default();
        Kind::ResolveQuarantine(ResolveQuarantine {
            action: QuarantineAction::Release.into(),
            limit,
            keep_taken_over,
            after_practice_no,
            after_message_id,
            ..Default::default()
        })
    };
    let mut world = restored(&cluster_that_was_told(), usize::MAX);
    assert_eq!(in_quarantine(&world), [20, 21, 22]);
    let expected = |messages, more, kept: &[u64], last| {
        let kept = kept.iter().map(|n| id(*n)).collect();
        CommandResult::Resolved(Resolved { messages, more, kept, last: Some((PRACTICE, id(last))) })
    };
    assert_eq!(world.one(release(None, true, 2)), expected(0, true, &[20, 21], 21));
    assert_eq!(world.one(release(Some(21), true, 2)), expected(1, false, &[], 22));
    assert_eq!(in_quarantine(&world), [20, 21], "they stay");
    assert_eq!(world.state(22), MessageState::Waiting);
    // Nobody is asked about a drop: it sends nothing.
    let mut dropped = restored(&cluster_that_was_told(), usize::MAX);
    assert_eq!(dropped.one(resolve(QuarantineAction::Drop, 0, 9)), expected(3, false, &[], 22));
    // An operator who says so.
    assert_eq!(world.one(release(None, false, 9)), expected(2, false, &[], 21));
    assert_eq!((world.state(20), world.state(21)), (MessageState::Waiting, MessageState::Waiting));
    let broken = ResolveQuarantine {
        action: QuarantineAction::Release.into(),
        after_message_id: Bytes::from_static(b"short"),
        ..Default::default()
    };
    assert_eq!(world.one(Kind::ResolveQuarantine(broken)), refused(Refusal::Malformed));
}

#[test]
fn a_released_message_that_expires_is_not_called_unsent() {
    let mut world = restored(&old_cluster(), usize::MAX);
    world.now_ms = START_MS + 3_600_000;
    world.done(resolve(QuarantineAction::Release, 0, 9));
    world.done(expire(1));
    assert_eq!(
        (world.state(1), world.status(1).detail.as_str()),
        (MessageState::Unknown, "expired_unresolved")
    );
    assert!(in_quarantine(&world).is_empty(), "the operator has decided already");
}

#[test]
fn however_it_is_cut_the_result_is_the_same_and_a_repeat_changes_nothing() {
    let old = old_cluster();
    let rows = |world: &World| {
        let all = world.tables.rows().iter();
        // The log positions differ, and with them table A and the events of the restore itself.
        let kept = all.filter(|(key, _)| !matches!(key[0], b'A' | b'B') && !own_events(key));
        kept.map(|(key, row)| (key.clone(), row.clone())).collect::<Vec<_>>()
    };
    let whole = rows(&restored(&old, usize::MAX));
    for bytes_max in [1, 90, 300, 1_000, 5_000] {
        let mut world = new_cluster();
        for piece in pieces(&old.tables, bytes_max) {
            let (again, last) = (Kind::Restore(piece.clone()), piece.last);
            let moves = !piece.rows.is_empty();
            world.done(Kind::Restore(piece));
            let repeated = world.one(again);
            match (last, moves) {
                (true, _) | (_, false) => assert_eq!(repeated, CommandResult::Done),
                (false, true) => assert_eq!(repeated, refused(Refusal::OutOfOrder)),
            }
        }
        assert!(rows(&world) == whole, "cut at {bytes_max}");
    }
}

/// Events that the new cluster wrote itself.
fn own_events(key: &[u8]) -> bool {
    keys::decode_events(key).is_some_and(|index| index > EVENTS_GAP)
}

#[test]
fn while_pieces_are_missing_nothing_else_is_taken() {
    let old = old_cluster();
    let mut world = new_cluster();
    let mut pieces = pieces(&old.tables, 300).into_iter();
    world.done(Kind::Restore(pieces.next().unwrap()));
    let retire = Kind::Retire(Retire { finals_before_ms: u64::MAX, keys_before_ms: u64::MAX, limit: 100 });
    let hopeful =
        [accept(30), retire, cancel(1), expire(1), begin(3, 1, 1), resolve(QuarantineAction::Drop, 0, 1)];
    for kind in hopeful {
        assert_eq!(world.one(kind.clone()), refused(Refusal::Restoring), "{kind:?}");
    }
    world.change_leader();
    // A new leader opens the partition anew and goes on where it stands.
    let position = query::restore(&world.tables).unwrap().unwrap().position.unwrap();
    let (rows, last) = next_piece(&old.tables, &position, usize::MAX).unwrap();
    assert!(last);
    world.done(Kind::Restore(piece(position, rows, true)));
    assert_eq!(in_quarantine(&world), [1, 2, 4, 9]);
    world.done(accept(30));
}

#[test]
fn a_partition_that_holds_anything_takes_no_backup() {
    let old = old_cluster();
    let first = || Kind::Restore(pieces(&old.tables, usize::MAX).remove(0));
    let mut world = World::new();
    world.done(accept(1));
    assert_eq!(world.one(first()), refused(Refusal::NotFresh));
    let mut world = restored(&old, usize::MAX);
    let Kind::Restore(other) = first() else { unreachable!() };
    let other = Restore { backup_id: vec![8; 16].into(), ..other };
    assert_eq!(world.one(Kind::Restore(other)), refused(Refusal::NotFresh), "another backup");
    // Retention leaves its mark before there is anything; that is no message.
    let mut world = World::new();
    world.done(Kind::Retire(Retire { finals_before_ms: 5, keys_before_ms: 5, limit: 1 }));
    world.done(first());
}

#[test]
fn pieces_that_make_no_sense_change_nothing() {
    let old = old_cluster();
    let good = pieces(&old.tables, usize::MAX).remove(0);
    let mut world = new_cluster();
    let row = |key: Vec<u8>, value: &'static [u8]| RestoreRow {
        key: key.into(),
        value: Bytes::from_static(value),
        append: false,
    };
    let with = |rows: Vec<RestoreRow>| Restore { rows, ..good.clone() };
    let mut backwards = good.rows.clone();
    backwards.reverse();
    let bad = [
        Restore { backup_id: Bytes::from_static(b"short"), ..good.clone() },
        Restore { events_base: EVENTS_GAP - 1, ..good.clone() },
        with(backwards),
        with(vec![row(keys::applied(), b"")]),
        with(vec![row(keys::in_flight(&id(1)), b"")]),
        with(vec![row(b"M123".to_vec(), b"")]),
        with(vec![row(keys::status(&id(1)), b"\xff\xff")]),
        with(vec![row(keys::status(&id(1)), b"")]),
        with(vec![RestoreRow { append: true, ..row(keys::payload(&id(1)), b"x") }]),
    ];
    for (n, piece) in bad.into_iter().enumerate() {
        assert_eq!(world.one(Kind::Restore(piece)), refused(Refusal::Malformed), "{n}");
    }
    let nowhere = RestorePosition { key: keys::payload(&id(1)).into(), value_bytes: 0 };
    let skips = Restore { after: Some(nowhere), ..good.clone() };
    assert_eq!(world.one(Kind::Restore(skips)), refused(Refusal::OutOfOrder));
    assert_eq!(query::restore(&world.tables).unwrap(), None);
    world.done(Kind::Restore(good));
}

#[test]
fn a_long_value_comes_in_parts() {
    let mut tables = MemTables::default();
    let block = EventBlock {
        now_ms: 7,
        events: (0..4_000)
            .map(|n| EventRecord { message_id: id(n).to_bytes(), ..Default::default() })
            .collect(),
    };
    tables.put(keys::events(12), block.encode_to_vec());
    tables.put(keys::events(13), EventBlock { now_ms: 8, ..Default::default() }.encode_to_vec());
    let mut world = new_cluster();
    let pieces = pieces(&tables, 10_000);
    assert!(pieces.len() > 5, "{}", pieces.len());
    for piece in pieces {
        world.done(Kind::Restore(piece));
    }
    let found = query::events_after(&world.tables, 0, 9).unwrap();
    assert_eq!(found[0], (12, block));
    assert_eq!(found[1].0, 13);
}

#[test]
fn events_go_on_above_everything_that_was_ever_given_out() {
    let old = old_cluster();
    let last_old = query::last_event_index(&old.tables).unwrap();
    let mut world = restored(&old, usize::MAX);
    let held = query::events_after(&world.tables, last_old, 9).unwrap();
    assert_eq!(held.len(), 1, "the quarantine is told");
    assert_eq!(held[0].0, EVENTS_GAP + world.index);
    assert_eq!(held[0].1.events.len(), 4);
    assert!(held[0].1.events.iter().all(|e| e.detail == "restore_guard" && e.state == 5));
    world.done(accept(40));
    assert_eq!(query::last_event_index(&world.tables).unwrap(), EVENTS_GAP + world.index);
    // Old events are there for those who have not read them, and retention finds its way through both.
    assert_eq!(query::events_after(&world.tables, 0, 100).unwrap().len() as u64, last_old + 2);
    world.now_ms += 86_400_000;
    let retire = Retire { finals_before_ms: world.now_ms, keys_before_ms: world.now_ms, limit: 1_000 };
    world.done(Kind::Retire(retire));
    assert_eq!(world.state(7), MessageState::Unspecified, "final for long enough");
    assert_eq!(world.state(1), MessageState::Unknown, "what is held is never dropped");
}
