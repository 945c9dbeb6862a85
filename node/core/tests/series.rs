//! Series: one for each key, moved on from where it stands and from nowhere else.
mod support;

use bytes::Bytes;
use carillon_core::{CommandResult, Refusal, keys, series};
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::*;
use support::*;

const DAY: u64 = 24 * 3_600_000;

fn put(n: u64, key: u8, content: u8) -> Kind {
    Kind::PutSeries(PutSeries {
        series_id: id(n).to_bytes(),
        practice_no: PRACTICE,
        sealed_plan: Bytes::from_static(b"sealed-plan"),
        key_epoch: 1,
        idempotency_index: if key == 0 { Bytes::new() } else { index(key) },
        content_mac: index(content),
        next_ms: START_MS + DAY,
    })
}

fn advance(n: u64, from: u32, to: u32, next_ms: u64) -> Kind {
    Kind::AdvanceSeries(AdvanceSeries {
        series_id: id(n).to_bytes(),
        practice_no: PRACTICE,
        from,
        to,
        next_ms,
    })
}

fn end(n: u64, practice_no: u32) -> Kind {
    Kind::EndSeries(EndSeries { series_id: id(n).to_bytes(), practice_no })
}

fn due(world: &World, until_ms: u64) -> Vec<carillon_proto::MessageId> {
    series::due(&world.tables, until_ms, 99).unwrap().into_iter().map(|(id, _)| id).collect()
}

fn rows(world: &World) -> usize {
    world.tables.rows().keys().filter(|key| key[0] == b'W').count()
}

#[test]
fn a_key_names_one_series() {
    let mut world = World::new();
    assert_eq!(world.one(put(1, 9, 1)), CommandResult::Accepted);
    assert_eq!(world.one(put(2, 9, 1)), CommandResult::Duplicate { message_id: id(1) });
    assert_eq!(world.one(put(3, 9, 2)), CommandResult::KeyReused { message_id: id(1) });
    assert_eq!(world.one(put(4, 0, 1)), CommandResult::Accepted, "without a key each is its own");
    assert_eq!(rows(&world), 4);
}

#[test]
fn a_series_moves_on_from_where_it_stands() {
    let mut world = World::new();
    world.done(put(1, 9, 1));
    assert_eq!((due(&world, START_MS), due(&world, START_MS + DAY)), (vec![], vec![id(1)]));
    world.done(advance(1, 0, 2, START_MS + 3 * DAY));
    // Another leader made the same messages.
    assert_eq!(world.one(advance(1, 0, 2, START_MS + 3 * DAY)), refused(Refusal::MovedOn));
    assert_eq!((due(&world, START_MS + 2 * DAY), due(&world, START_MS + 3 * DAY)), (vec![], vec![id(1)]));
    let record = series::load(&world.tables, &id(1)).unwrap().unwrap();
    assert_eq!((record.made, rows(&world)), (2, 2));
    world.done(advance(1, 2, 5, 0));
    assert_eq!((rows(&world), series::load(&world.tables, &id(1)).unwrap()), (0, None), "that was the last");
    assert_eq!(
        world.one(put(2, 9, 1)),
        CommandResult::Duplicate { message_id: id(1) },
        "its key is still known"
    );
    let retire = Retire { finals_before_ms: 0, keys_before_ms: world.now_ms, limit: 9 };
    world.done(Kind::Retire(retire));
    assert_eq!(world.one(put(2, 9, 1)), CommandResult::Accepted, "until keys of its time are dropped");
}

#[test]
fn it_ends_for_its_own_practice_only() {
    let mut world = World::new();
    world.done(put(1, 0, 1));
    assert_eq!(world.one(end(1, PRACTICE + 1)), refused(Refusal::NotFound));
    world.done(end(1, PRACTICE));
    assert_eq!(world.one(end(1, PRACTICE)), refused(Refusal::NotFound));
    assert_eq!(world.one(advance(1, 0, 1, 0)), refused(Refusal::NotFound));
    assert_eq!(rows(&world), 0);
}

#[test]
fn impossible_series_are_refused() {
    let mut world = World::new();
    let with = |change: fn(&mut PutSeries)| {
        let Kind::PutSeries(mut put) = put(1, 0, 1) else { unreachable!() };
        change(&mut put);
        Kind::PutSeries(put)
    };
    let bad = [
        with(|p| p.next_ms = 0),
        with(|p| p.sealed_plan = Bytes::new()),
        with(|p| p.sealed_plan = vec![0; series::PLAN_BYTES_MAX + 1].into()),
        with(|p| p.practice_no = 0),
        with(|p| p.series_id = Bytes::from_static(b"x")),
        with(|p| p.content_mac = Bytes::new()),
        with(|p| p.idempotency_index = Bytes::from_static(b"x")),
    ];
    for kind in bad {
        assert_eq!(world.one(kind), refused(Refusal::Malformed));
    }
    assert!(!world.tables.rows().contains_key(&keys::series(&id(1))));
}
