//! Lists, due pages and events: everything once, in order, page by page.
mod support;

use carillon_core::query::{self, ListFilter};
use carillon_core::{CommandResult, keys};
use carillon_proto::internal::Accept;
use carillon_proto::public::{MessageClass, MessageState};
use carillon_proto::{MessageId, Slot};
use std::collections::BTreeSet;
use support::*;

fn slot(n: u16) -> Slot {
    Slot::new(n).unwrap()
}

/// 24 messages in three slots, two practices, two classes; every third is canceled.
fn filled() -> (World, Vec<MessageId>) {
    let mut world = World::new();
    let mut ids = Vec::new();
    for n in 0..24u64 {
        let id = MessageId::new(START_MS + n, slot(10 + (n % 3) as u16), n);
        world.now_ms = START_MS + n;
        let create = accept_with(1, |a: &mut Accept| {
            a.message_id = id.to_bytes();
            a.practice_no = 1 + (n % 2) as u32;
            a.class = if n % 4 == 0 { MessageClass::Recall } else { MessageClass::Reminder } as i32;
            a.reference_index = index((n % 6) as u8);
        });
        assert_eq!(world.one(create), CommandResult::Accepted);
        if n % 3 == 0 {
            let practice_no = 1 + (n % 2) as u32;
            let cancel = carillon_proto::internal::Cancel { message_id: id.to_bytes(), practice_no };
            world.done(carillon_proto::internal::command::Kind::Cancel(cancel));
        }
        ids.push(id);
    }
    (world, ids)
}

/// Reads all pages.
fn all(
    world: &World,
    slots: (u16, u16),
    filter: &ListFilter,
    limit: usize,
    scan_limit: usize,
) -> Vec<MessageId> {
    let (mut found, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let slots = (slot(slots.0), slot(slots.1));
        let page = query::list(&world.tables, slots, after, filter, limit, scan_limit).unwrap();
        assert!(page.rows.len() <= limit);
        for row in &page.rows {
            // The payload is this message's own; its id is in the key only.
            let accept = row.payload.accept.as_ref().unwrap();
            let n = row.message_id.time_ms() - START_MS;
            assert_eq!((&accept.message_id[..], &accept.reference_index), (&b""[..], &index((n % 6) as u8)));
        }
        found.extend(page.rows.iter().map(|r| r.message_id));
        pages += 1;
        assert!(pages < 100, "the list goes on for ever");
        match page.next {
            Some(next) => after = Some(next),
            None => return found,
        }
    }
}

fn check(filter: &ListFilter, slots: (u16, u16), expected: impl Fn(u64) -> bool) {
    let (world, ids) = filled();
    let numbers = (0..24u64).filter(|n| expected(*n));
    let mut expected: Vec<MessageId> = numbers.map(|n| ids[n as usize]).collect();
    expected.sort_by_key(|id| (if filter.reference_index.is_some() { 0 } else { id.slot().get() }, *id));
    assert!(!expected.is_empty());
    for limit in [1, 2, 7, 100] {
        for scan_limit in [1, 3, 100] {
            assert_eq!(all(&world, slots, filter, limit, scan_limit), expected, "{limit} {scan_limit}");
        }
    }
}

#[test]
fn a_list_holds_every_message_that_fits_once_and_in_order() {
    let any = ListFilter::default();
    let practices =
        |p: &[u32]| ListFilter { practices: Some(p.iter().copied().collect()), ..Default::default() };
    check(&any, (0, 4095), |_| true);
    check(&any, (11, 11), |n| n % 3 == 1);
    check(&any, (11, 12), |n| n % 3 != 0);
    check(&practices(&[1]), (0, 4095), |n| n % 2 == 0);
    check(&practices(&[1, 2]), (0, 4095), |_| true);
    let canceled = ListFilter { states: BTreeSet::from([MessageState::Canceled]), ..Default::default() };
    check(&canceled, (0, 4095), |n| n % 3 == 0);
    let recalls = ListFilter { classes: BTreeSet::from([MessageClass::Recall]), ..Default::default() };
    check(&recalls, (0, 4095), |n| n % 4 == 0);
    let (after, before) = (Some(START_MS + 5), Some(START_MS + 9));
    let hour = ListFilter { accepted_after_ms: after, accepted_before_ms: before, ..Default::default() };
    check(&hour, (0, 4095), |n| (5..9).contains(&n));
    let reference = ListFilter { reference_index: Some([4; 16]), ..practices(&[1]) };
    check(&reference, (0, 4095), |n| n % 6 == 4);
    check(&reference, (11, 11), |n| n % 6 == 4);
    let narrow = ListFilter { classes: BTreeSet::from([MessageClass::Recall]), ..reference };
    check(&narrow, (0, 4095), |n| n % 6 == 4 && n % 4 == 0);
}

#[test]
fn a_list_never_shows_what_the_caller_may_not_see() {
    let (world, _) = filled();
    let none = ListFilter { practices: Some(BTreeSet::new()), ..Default::default() };
    assert!(all(&world, (0, 4095), &none, 10, 10).is_empty());
    // References are scoped by practice.
    let both = Some(BTreeSet::from([1, 2]));
    for practices in [None, both, Some(BTreeSet::from([2]))] {
        let filter = ListFilter { practices, reference_index: Some([4; 16]), ..Default::default() };
        assert!(all(&world, (0, 4095), &filter, 10, 10).is_empty());
    }
}

#[test]
fn due_pages_give_every_waiting_message_once_in_due_order() {
    let mut world = World::new();
    for (flow, base) in [(0, 0), (PRACTICE, 100)] {
        for n in 1..=9u64 {
            // Three share each due time.
            world.done(accept_with(base + n, |a| {
                a.not_before_ms = START_MS + 10 * (n % 3 + 1);
                a.due_by_practice = flow > 0;
            }));
        }
        let (mut after, mut found) = (None, Vec::new());
        loop {
            let page = query::due_page(&world.tables, (3, flow), after, START_MS + 20, 2).unwrap();
            let Some(last) = page.entries.last() else {
                assert_eq!(page.next_due_ms, Some(START_MS + 30), "what is beyond the page is told");
                break;
            };
            after = Some((last.due_ms, last.message_id));
            found.extend(page.entries.iter().map(|e| (e.due_ms - START_MS, e.message_id)));
        }
        let expected: Vec<_> =
            [(10, 3), (10, 6), (10, 9), (20, 1), (20, 4), (20, 7)].map(|(t, n)| (t, id(base + n))).into();
        assert_eq!(found, expected);
    }
    world.done(accept_with(10, |a| a.priority = 1));
    let urgent = query::due_page(&world.tables, (1, 0), None, u64::MAX, 10).unwrap();
    assert_eq!((urgent.entries.len(), urgent.entries[0].message_id, urgent.next_due_ms), (1, id(10), None));
    let none = query::due_page(&world.tables, (3, 0), None, u64::MAX, 0).unwrap();
    assert_eq!((none.entries.len(), none.next_due_ms), (0, Some(START_MS + 10)));
}

#[test]
fn every_flow_is_found_with_its_first_row_however_many_rows_others_have() {
    let mut world = World::new();
    world.done(accept_with(1, |a| a.not_before_ms = START_MS + 70));
    for n in 2..=40 {
        world.done(accept_with(n, |a| {
            (a.practice_no, a.due_by_practice) = (5, true);
            a.not_before_ms = START_MS + 100 - n;
        }));
    }
    world.done(accept_with(41, |a| (a.practice_no, a.due_by_practice, a.priority) = (u32::MAX, true, 3)));
    world.done(accept_with(42, |a| (a.practice_no, a.due_by_practice, a.priority) = (2, true, 4)));
    let expected = [(3, 0, 70), (3, 5, 60), (3, u32::MAX, 0), (4, 2, 0)];
    let (mut after, mut found) = (None, Vec::new());
    loop {
        let page = query::due_flows(&world.tables, after, 3).unwrap();
        let Some(last) = page.last() else { break };
        after = Some((last.priority, last.flow));
        found.extend(page.iter().map(|f| (f.priority, f.flow, f.due_ms - START_MS)));
    }
    assert_eq!(found, expected);
}

#[test]
fn events_go_on_where_the_cursor_is() {
    let mut world = World::new();
    assert_eq!(query::last_event_index(&world.tables).unwrap(), 0);
    let mut with_events = Vec::new();
    for n in 1..=40u64 {
        // Every third entry causes something.
        if n % 3 == 0 {
            world.run([accept(n), accept(1000 + n)]);
            with_events.push(world.index);
        } else {
            world.run([]);
        }
        let last = with_events.last().copied().unwrap_or(0);
        assert_eq!(query::last_event_index(&world.tables).unwrap(), last, "after entry {n}");
    }
    let (mut after, mut seen) = (0, Vec::new());
    loop {
        let blocks = query::events_after(&world.tables, after, 5).unwrap();
        let Some((last, _)) = blocks.last() else { break };
        after = *last;
        seen.extend(blocks.iter().map(|(index, block)| (*index, block.events.len())));
    }
    let expected: Vec<_> = with_events.iter().map(|index| (*index, 2)).collect();
    assert_eq!(seen, expected);
    assert!(world.tables.rows().contains_key(&keys::events(3)));
    assert!(query::events_after(&world.tables, u64::MAX, 5).unwrap().is_empty());
}

#[test]
fn a_sweep_meets_every_row_of_a_priority_once_whatever_its_flow() {
    let mut world = World::new();
    for n in 1..=30u64 {
        world.done(accept_with(n, |a| {
            (a.practice_no, a.due_by_practice) = (1 + (n % 5) as u32, n % 5 > 0);
            a.priority = if n % 7 == 0 { 4 } else { 3 };
            a.not_before_ms = START_MS + 10 * n;
        }));
    }
    let (mut after, mut found) = (None, Vec::new());
    loop {
        let rows = query::due_sweep(&world.tables, 3, after, START_MS + 250, 4).unwrap();
        let Some(last) = rows.last() else { break };
        after = Some(query::due_place(last));
        found.extend(rows.iter().map(|row| row.message_id));
    }
    found.sort_unstable();
    let expected: Vec<_> = (1..=25).filter(|n| n % 7 != 0).map(id).collect();
    assert_eq!(found, expected);
}
