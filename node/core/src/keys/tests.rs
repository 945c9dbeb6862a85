//! Keys keep the order that their tables need, and come back as they were.
use super::*;

fn id(time_ms: u64, slot: u16, random: u64) -> MessageId {
    MessageId::new(time_ms, Slot::new(slot).unwrap(), random)
}

#[test]
fn every_key_decodes_to_what_was_encoded() {
    let (a, h) = (id(7_000, 4095, u64::MAX), [0xabu8; 16]);
    assert_eq!(decode_payload(&payload(&a)), Some(a));
    assert_eq!(decode_status(&status(&a)), Some(a));
    assert_eq!(decode_idempotency(&idempotency(u32::MAX, &h)), Some((u32::MAX, h)));
    for flow in [0, 1, u32::MAX] {
        let key = DueKey { priority: 4, flow, due_ms: u64::MAX, message_id: a };
        assert_eq!(decode_due(&due(4, flow, u64::MAX, &a)), Some(key));
    }
    assert_eq!(decode_in_flight(&in_flight(&a)), Some(a));
    assert_eq!(decode_receipt(&receipt(9, &h)), Some((9, h)));
    assert_eq!(decode_reference(&reference(9, &h, &a)), Some((9, h, a)));
    assert_eq!(decode_opt_out(&opt_out(9, &h)), Some((9, h)));
    assert_eq!(decode_queued(&queued(9, &h, &a)), Some((9, h, a)));
    assert_eq!(decode_ordered(&ordered(9, &h, &a)), Some((9, h, a)));
    assert_eq!(decode_frequency(&frequency(7, 9, &h)), Some((7, 9, h)));
    assert_eq!(decode_duplicate(&duplicate(9, &h)), Some((9, h)));
    assert_eq!(decode_events(&events(77)), Some(77));
    assert_eq!(decode_kept_key(&kept_key(7, 9, &h)), Some((7, 9, h)));
    assert_eq!(decode_quarantine(&quarantine(9, &a)), Some((9, a)));
}

#[test]
fn foreign_short_and_long_keys_do_not_decode() {
    let a = id(7_000, 12, 1);
    let mut wrong_slot = status(&a);
    wrong_slot[2] ^= 1;
    assert_eq!(decode_status(&wrong_slot), None);
    assert_eq!(decode_status(&payload(&a)), None);
    assert_eq!(decode_due(&due(1, 0, 1, &a)[..24]), None);
    assert_eq!(decode_due(&due(1, 7, 1, &a)[..25]), None);
    assert_eq!(decode_due(b"D"), None);
    assert_eq!(decode_events(&successor(&events(1))), None);
    assert_eq!(decode_in_flight(b""), None);
}

#[test]
fn key_order_is_due_order_and_ranges_are_exact() {
    let (a, b) = (id(1, 0, 0), id(2, 0, 0));
    for flow in [0, 3] {
        let due = |priority, due_ms, id| due(priority, flow, due_ms, id);
        assert!(due(1, 9, &b) < due(1, 10, &a) && due(1, u64::MAX, &a) < due(2, 0, &a));
        let range = due_range(1, flow);
        let inside = |k: &[u8]| range.start.as_slice() <= k && k < range.end.as_slice();
        assert!(inside(&due(1, 0, &a)) && inside(&due(1, u64::MAX, &b)) && !inside(&due(2, 0, &a)));
        assert!(!inside(&super::due(1, 4, 0, &a)) && !inside(&super::due(1, 2, 0, &a)));
        assert!(due_after_flow(1, flow).start <= due(2, 0, &a));
    }
    let kept = kept_keys(5, 6);
    let inside = |k: &[u8]| kept.start.as_slice() <= k && k < kept.end.as_slice();
    let h = [0xffu8; 16];
    assert!(inside(&kept_key(5, 0, &h)) && inside(&kept_key(6, u32::MAX, &h)));
    assert!(!inside(&kept_key(4, u32::MAX, &h)) && !inside(&kept_key(7, 0, &[0; 16])));
    assert!(payload(&a) < payload(&b), "payloads are in the order of time");
    assert!(events_after(5).start > events(5) && events_after(5).start <= events(6));
}

#[test]
fn a_slot_range_holds_exactly_its_slots() {
    let (first, last) = (Slot::new(255).unwrap(), Slot::new(256).unwrap());
    let range = status_range(first, last);
    for (slot, expected) in [(254, false), (255, true), (256, true), (257, false)] {
        let key = status(&id(u64::MAX >> 16, slot, u64::MAX));
        assert_eq!(range.start <= key && key < range.end, expected, "{slot}");
    }
}

/// Pinned: a change here makes stored receipts unfindable.
#[test]
fn carrier_reference_hash_is_pinned() {
    assert_eq!(carrier_ref_hash("1a2b3c").map(|b| format!("{b:02x}")).concat(), PINNED);
    assert_ne!(carrier_ref_hash("1a2b3c"), carrier_ref_hash("1A2B3C"));
}
const PINNED: &str = "5de77af84ae820b2d2438526e06b2091";
