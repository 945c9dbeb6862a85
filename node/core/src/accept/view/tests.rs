//! What is read from an encoded Accept, compared with what prost makes of it.
use super::*;
use bytes::Bytes;
use carillon_proto::internal::{Accept, Command, MessagePayload, Place, command::Kind};
use proptest::prelude::*;

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn accepts() -> impl Strategy<Value = Accept> {
    let head = (bytes(17), any::<u32>(), -1..12_i32, 0..5_i32, any::<u64>(), any::<u64>(), any::<u64>());
    let sealed = (bytes(60), bytes(17), bytes(400), bytes(80), any::<u32>(), 0..3_i32, 0..4_u32);
    let keys = (bytes(17), bytes(17), bytes(17), any::<u32>(), any::<[u32; 3]>(), bytes(17), bytes(17));
    let flags = (
        any::<[bool; 6]>(),
        any::<u64>(),
        any::<u64>(),
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
    );
    (head, sealed, keys, flags, "[a-zA-Z/]{0,12}").prop_map(|(head, sealed, keys, flags, zone)| Accept {
        message_id: head.0,
        practice_no: head.1,
        class: head.2,
        priority: head.3,
        not_before_ms: head.4,
        expires_at_ms: head.5,
        deadline_ms: head.6,
        time_zone: if flags.0[0] { zone.clone() } else { String::new() },
        sealed_recipient: sealed.0,
        recipient_index: sealed.1,
        sealed_body: sealed.2,
        sealed_details: sealed.3,
        key_epoch: sealed.4,
        encoding: sealed.5,
        segments: sealed.6,
        idempotency_index: keys.0,
        content_mac: keys.1,
        reference_index: keys.2,
        carrier_no: keys.3,
        retry: flags.0[1].then(|| RetryPolicy {
            attempts_max: keys.4[0],
            backoff_base_ms: keys.4[1],
            backoff_max_ms: keys.4[2],
            unknown_policy: 1,
        }),
        indexed_by_recipient: flags.0[2],
        place: flags.0[3].then(|| Place { time_zones: vec![zone], ..Default::default() }),
        due_ms: flags.1,
        open_until_ms: flags.2,
        hours_stamp: flags.3,
        dead_letter_listed: flags.0[4],
        replay_of: keys.5,
        route_no: flags.4,
        due_by_practice: flags.0[5],
        duplicate_index: keys.6,
        duplicate_window_ms: flags.5,
        ordered: flags.0[5],
        sender_no: flags.6,
    })
}

/// What prost makes of the same fields.
fn same(view: &AcceptView<'_>, accept: &Accept) {
    let numbers = |v: &AcceptView<'_>| (v.practice_no, v.class, v.priority, v.segments, v.carrier_no);
    let a = accept;
    assert_eq!(numbers(view), (a.practice_no, a.class, a.priority, a.segments, a.carrier_no));
    assert_eq!(
        (view.not_before_ms, view.expires_at_ms, view.deadline_ms, view.due_ms, view.open_until_ms),
        (a.not_before_ms, a.expires_at_ms, a.deadline_ms, a.due_ms, a.open_until_ms)
    );
    assert_eq!(
        (view.hours_stamp, view.route_no, view.duplicate_window_ms, view.retry, view.sender_no),
        (a.hours_stamp, a.route_no, a.duplicate_window_ms, a.retry, a.sender_no)
    );
    assert_eq!(
        [view.indexed_by_recipient, view.dead_letter_listed, view.due_by_practice, view.ordered],
        [a.indexed_by_recipient, a.dead_letter_listed, a.due_by_practice, a.ordered]
    );
    assert_eq!((view.message_id, view.recipient_index), (&a.message_id[..], &a.recipient_index[..]));
    assert_eq!((view.idempotency_index, view.content_mac), (&a.idempotency_index[..], &a.content_mac[..]));
    assert_eq!((view.reference_index, view.replay_of), (&a.reference_index[..], &a.replay_of[..]));
    assert_eq!(view.duplicate_index, &a.duplicate_index[..]);
}

proptest! {
    /// Whatever an Accept holds, it is read as prost reads it, and its row of table M is what prost would write.
    #[test]
    fn fields_and_payload_row_are_those_of_prost(accept in accepts(), now_ms in any::<u64>()) {
        let command = Command { kind: Some(Kind::Accept(accept.clone())) }.encode_to_vec();
        let view = AcceptView::of_command(&command).expect("written by prost");
        same(&view, &accept);
        let stored = Accept {
            message_id: Bytes::new(),
            content_mac: Bytes::new(),
            retry: None,
            duplicate_window_ms: 0,
            ..accept
        };
        let payload = MessagePayload { accept: Some(stored), accepted_at_ms: now_ms };
        prop_assert_eq!(view.payload_row(now_ms), payload.encode_to_vec());
    }

    /// Damaged bytes are refused or read, and never make anything panic.
    #[test]
    fn any_bytes_are_read_or_left_to_the_general_way(bytes in bytes(80), cut in 0..80_usize, accept in accepts()) {
        let _maybe = AcceptView::of_accept(&bytes);
        let encoded = accept.encode_to_vec();
        let _maybe = AcceptView::of_accept(&encoded[..cut.min(encoded.len())]);
    }
}

#[test]
fn what_prost_would_not_write_is_left_to_the_general_way() {
    let twice = [0x10, 1, 0x10, 2];
    let falling = [0x18, 1, 0x10, 2];
    let unknown = [0x10, 1, 0xfa, 0x07, 0];
    let other_type = [0x12, 1, 1];
    for body in [&twice[..], &falling, &unknown, &other_type, &[0x42, 1, 0xff], &[0x10]] {
        assert!(AcceptView::of_accept(body).is_none(), "{body:?}");
    }
    assert!(AcceptView::of_accept(&[]).is_some());
    let with_more = [0x0a, 2, 0x10, 1, 0x12, 0];
    assert!(AcceptView::of_command(&with_more).is_none(), "a second kind takes the place of the first");
    assert!(AcceptView::of_command(&[0x12, 0]).is_none() && AcceptView::of_command(&[]).is_none());
}
