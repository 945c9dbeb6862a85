//! What single commands promise beyond the change of state.
mod support;

use bytes::Bytes;
use carillon_core::{CommandResult, EntryMeta, MemTables, Refusal, TableError, apply, keys, query};
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::*;
use carillon_proto::public::{MessageState, Outcome, WaitingReason};
use prost::Message as _;
use support::*;

fn keyed(n: u64, key: u8, mac: u8) -> Kind {
    accept_with(n, |a| {
        a.idempotency_index = index(key);
        a.content_mac = index(mac);
    })
}

#[test]
fn the_same_key_names_the_same_message_for_ever() {
    let mut world = World::new();
    // In one batch: the second command sees the first one's rows.
    let effects = world.run([keyed(1, 9, 50), keyed(2, 9, 50), keyed(3, 9, 51), keyed(4, 8, 50)]);
    let message_id = id(1);
    let expected = [
        CommandResult::Accepted,
        CommandResult::Duplicate { message_id },
        CommandResult::KeyReused { message_id },
        CommandResult::Accepted,
    ];
    assert_eq!(effects.results, expected);
    assert_eq!((world.state(2), world.state(3)), (MessageState::Unspecified, MessageState::Unspecified));
    // Survives the end of the message, time, other leaders and a restart.
    world.done(cancel(1));
    world.now_ms += 7 * 86_400_000;
    world.change_leader();
    world.applier = carillon_core::Applier::open(&world.tables).unwrap();
    assert_eq!(world.one(keyed(5, 9, 50)), CommandResult::Duplicate { message_id });
    assert_eq!(world.one(keyed(5, 9, 52)), CommandResult::KeyReused { message_id });
    // Scoped by practice.
    let other = accept_with(6, |a| {
        (a.idempotency_index, a.practice_no) = (index(9), PRACTICE + 1);
    });
    assert_eq!(world.one(other), CommandResult::Accepted);
}

#[test]
fn an_id_that_exists_is_refused_whatever_its_order() {
    let mut world = World::new();
    for n in [5, 2, 8] {
        world.done(accept(n));
    }
    for n in [2, 5, 8] {
        assert_eq!(world.one(accept(n)), refused(Refusal::Malformed), "{n}");
        assert_eq!(world.one(keyed(n, 1, 1)), refused(Refusal::Malformed), "{n}");
    }
    world.done(accept(3));
    // The refused ones did not take the key.
    assert_eq!(world.one(keyed(9, 1, 1)), CommandResult::Accepted);
}

#[test]
fn impossible_accepts_are_refused_and_leave_no_trace() {
    let broken: [fn(&mut Accept); 14] = [
        |a| a.message_id = Bytes::from_static(b"short"),
        |a| a.message_id = index(0xff),
        |a| a.practice_no = 0,
        |a| a.carrier_no = 0,
        |a| a.segments = 0,
        |a| a.expires_at_ms = 0,
        |a| a.class = 0,
        |a| a.class = 12,
        |a| a.priority = 0,
        |a| a.priority = 5,
        |a| a.retry = None,
        |a| a.reference_index = Bytes::from_static(b"short"),
        |a| a.recipient_index = Bytes::new(),
        |a| (a.idempotency_index, a.content_mac) = (index(1), Bytes::new()),
    ];
    for (i, change) in broken.into_iter().enumerate() {
        let mut world = World::new();
        assert_eq!(world.one(accept_with(1, change)), refused(Refusal::Malformed), "{i}");
        assert_eq!(world.tables.rows().len(), 1, "{i}: only table A");
    }
}

#[test]
fn a_message_is_due_at_not_before_but_never_after_its_expiry() {
    let expiry = START_MS + 3_600_000;
    // (not before, expires, state, reason, due)
    let cases = [
        (0, expiry, MessageState::Accepted, 0, START_MS),
        (START_MS, expiry, MessageState::Accepted, 0, START_MS),
        (START_MS + 1, expiry, MessageState::Waiting, WaitingReason::Schedule as i32, START_MS + 1),
        (expiry + 5, expiry, MessageState::Waiting, WaitingReason::Schedule as i32, expiry),
        (0, START_MS - 5, MessageState::Accepted, 0, START_MS - 5),
    ];
    for (not_before, expires, state, reason, due) in cases {
        let mut world = World::new();
        let kind = accept_with(1, |a| (a.not_before_ms, a.expires_at_ms) = (not_before, expires));
        assert_eq!(world.one(kind), CommandResult::Accepted);
        let status = world.status(1);
        assert_eq!((status.state(), status.waiting_reason, status.due_ms), (state, reason, due));
    }
}

#[test]
fn an_expired_message_is_accepted_never_begun_and_expires() {
    let mut world = World::new();
    world.done(accept_with(1, |a| a.expires_at_ms = START_MS));
    assert_eq!(world.one(begin(1, 1, 1)), refused(Refusal::Expired));
    world.done(expire(1));
    assert_eq!(world.state(1), MessageState::Expired);
    world.done(accept(2));
    assert_eq!(world.one(expire(2)), refused(Refusal::NotExpired));
}

#[test]
fn a_permission_carries_what_the_sender_needs() {
    let mut world = World::new();
    world.done(accept(1));
    let CommandResult::Begun(permit) = world.one(begin(1, 1, 1)) else { panic!("not begun") };
    assert_eq!((permit.message_id, permit.attempt_no, permit.carrier_no), (id(1), 1, CARRIER));
    assert_eq!(
        (&permit.sealed_recipient[..], &permit.sealed_body[..]),
        (&b"sealed-recipient"[..], &b"sealed-body"[..])
    );
    assert_eq!((permit.key_epoch, permit.segments, permit.send_by_ms), (1, 1, START_MS + 2_000));
    let (_, row) = query::in_flight_page(&world.tables, None, 1).unwrap().remove(0);
    assert_eq!((row.attempt_no, row.term, row.send_by_ms), (1, 1, START_MS + 2_000));
}

#[test]
fn begin_is_refused_unless_everything_fits() {
    let mut world = World::new();
    world.term = 3;
    world.done(leader_start(3));
    world.done(accept(1));
    world.done(accept_with(2, |a| a.not_before_ms = START_MS + 10));
    let wrong = |state| refused(Refusal::WrongState(state));
    let mut no_carrier = begin(1, 1, 3);
    if let Kind::BeginAttempt(b) = &mut no_carrier {
        b.carrier_no = 0;
    }
    let cases = [
        (begin(1, 1, 2), refused(Refusal::StaleTerm)),
        (begin(1, 1, 4), refused(Refusal::StaleTerm)),
        (begin(1, 2, 3), wrong(MessageState::Accepted)),
        (begin(1, 0, 3), wrong(MessageState::Accepted)),
        (begin(2, 1, 3), wrong(MessageState::Waiting)),
        (begin(9, 1, 3), refused(Refusal::NotFound)),
        (no_carrier, refused(Refusal::Malformed)),
    ];
    for (kind, expected) in cases {
        assert_eq!(world.one(kind.clone()), expected, "{kind:?}");
    }
    // Two that race in one batch: one permission.
    let effects = world.run([begin(1, 1, 3), begin(1, 1, 3)]);
    assert!(matches!(effects.results[0], CommandResult::Begun(_)));
    assert_eq!(effects.results[1], wrong(MessageState::InFlight));
}

#[test]
fn cancel_by_reference_answers_for_each_message_of_that_practice() {
    let mut world = World::new();
    for n in 1..=3 {
        world.done(accept(n));
    }
    world.done(accept_with(4, |a| a.reference_index = index(2)));
    world.done(accept_with(5, |a| a.practice_no = PRACTICE + 1));
    world.begin(2);
    let CommandResult::Canceled(outcomes) = world.one(cancel_reference(1)) else { panic!("no outcomes") };
    let answers: Vec<_> = outcomes.iter().map(|o| (o.message_id, o.canceled)).collect();
    assert_eq!(answers, [(id(1), true), (id(2), false), (id(3), true)]);
    assert_eq!((world.state(4), world.state(5)), (MessageState::Accepted, MessageState::Accepted));
    let foreign = Kind::Cancel(Cancel { message_id: id(4).to_bytes(), practice_no: PRACTICE + 1 });
    assert_eq!(world.one(foreign), refused(Refusal::NotFound));
}

#[test]
fn a_cancel_that_came_too_late_stops_the_next_try() {
    for answer in [Outcome::Throttled, Outcome::NotSent, Outcome::Transient] {
        let mut world = World::new();
        world.done(accept(1));
        world.begin(1);
        world.done(cancel(1));
        assert_eq!(world.state(1), MessageState::InFlight);
        world.outcome(1, 1, answer);
        assert_eq!(world.state(1), MessageState::Canceled, "{answer:?}");
    }
    // The same when the answer was lost first.
    let mut world = World::new();
    world.done(accept_with(1, |a| a.retry = Some(with_policy(UnknownPolicy::ResendOnce))));
    world.begin(1);
    world.done(cancel(1));
    world.change_leader();
    assert_eq!(world.state(1), MessageState::Unknown, "not sent again");
    world.outcome(1, 1, Outcome::NotSent);
    assert_eq!(world.state(1), MessageState::Canceled);
}

#[test]
fn holding_back_longer_for_the_same_reason_is_not_an_event() {
    let mut world = World::new();
    world.done(accept(1));
    assert_eq!(world.run([hold_back(1, START_MS + 1_000)]).events.len(), 1);
    assert_eq!(world.run([hold_back(1, START_MS + 2_000)]).events.len(), 0);
    assert_eq!(world.status(1).due_ms, START_MS + 2_000);
    let unspecified = Kind::HoldBack(HoldBack { message_id: id(1).to_bytes(), due_ms: 1, reason: 0 });
    assert_eq!(world.one(unspecified), refused(Refusal::Malformed));
}

#[test]
fn the_clock_of_the_tables_never_goes_back() {
    let mut world = World::new();
    world.run([accept(1)]);
    world.now_ms = START_MS - 60_000;
    world.run([accept(2)]);
    assert_eq!(world.status(2).accepted_at_ms, START_MS);
    assert_eq!(world.applier.last().now_ms, START_MS);
}

#[test]
fn the_digest_tells_entries_results_and_order_apart() {
    let digest_of = |entries: &[Vec<Kind>]| {
        let mut world = World::new();
        for entry in entries {
            world.run(entry.clone());
        }
        world.applier.last().digest.clone()
    };
    let base = digest_of(&[vec![accept(1), accept(2)]]);
    assert_eq!(base, digest_of(&[vec![accept(1), accept(2)]]));
    let others = [
        digest_of(&[vec![accept(2), accept(1)]]),
        digest_of(&[vec![accept(1)], vec![accept(2)]]),
        digest_of(&[vec![accept(1), accept(2)], vec![]]),
        digest_of(&[vec![accept(1), accept_with(2, |a| a.segments = 2)]]),
    ];
    assert!(others.iter().all(|d| *d != base));
    // The same entry with another result: on one side the message exists already.
    let entry = Bytes::from(CommandBatch { now_ms: 1, commands: vec![] }.encode_to_vec());
    let (mut a, mut b) = (World::new(), World::new());
    a.raw(&entry);
    b.raw(&Bytes::new());
    assert_ne!(a.applier.last().digest, b.applier.last().digest);
}

#[test]
fn rafts_own_entries_only_move_the_applied_index() {
    let mut world = World::new();
    world.run([accept(1)]);
    let (now_ms, rows) = (world.applier.last().now_ms, world.tables.rows().len());
    let effects = world.raw(&Bytes::new());
    assert_eq!(effects, Default::default());
    assert_eq!((world.applier.last().index, world.applier.last().now_ms), (2, now_ms));
    assert_eq!(world.tables.rows().len(), rows);
}

#[test]
fn a_batch_that_cannot_be_read_is_corruption() {
    let mut tables = MemTables::default();
    let data = Bytes::from_static(b"\xff\xff\xff");
    let meta = EntryMeta { index: 1, term: 1 };
    let error = apply(&mut tables, meta, &data, &mut Default::default()).unwrap_err();
    assert!(matches!(error, TableError::Corrupt { .. }), "{error}");
    assert!(tables.rows().is_empty());
}

#[test]
fn a_row_that_cannot_be_read_is_corruption() {
    use carillon_core::Tables as _;
    let mut world = World::new();
    world.done(accept(1));
    world.tables.put(keys::status(&id(1)), vec![0xff]);
    let data = CommandBatch { now_ms: 1, commands: vec![Command { kind: Some(cancel(1)) }] }.encode_to_vec();
    let meta = EntryMeta { index: 2, term: 1 };
    let error = apply(&mut world.tables, meta, &Bytes::from(data), &mut Default::default()).unwrap_err();
    assert!(matches!(error, TableError::Corrupt { table: 'S', .. }), "{error}");
}

#[test]
#[should_panic(expected = "does not follow")]
fn a_gap_in_the_log_stops_the_replica() {
    let mut tables = MemTables::default();
    let _ = apply(&mut tables, EntryMeta { index: 2, term: 1 }, &Bytes::new(), &mut Default::default());
}

#[test]
fn a_command_of_a_later_release_is_refused_alike_everywhere() {
    let mut world = World::new();
    let data = CommandBatch { now_ms: START_MS, commands: vec![Command { kind: None }] }.encode_to_vec();
    assert_eq!(world.raw(&Bytes::from(data)).results, [refused(Refusal::Malformed)]);
}
