//! Keys of tables V, W and Y: versions of references, series, dead letters.
use super::{Index, KeyRange, body, join, prefix_end, take};
use carillon_proto::MessageId;

/// Table V.
pub fn version(practice_no: u32, reference: &Index) -> Vec<u8> {
    join(b'V', &[&practice_no.to_be_bytes(), reference])
}

pub fn decode_version(key: &[u8]) -> Option<(u32, Index)> {
    let mut rest = body(key, b'V', 20)?;
    Some((u32::from_be_bytes(take(&mut rest)?), take(&mut rest)?))
}

/// Table W, by id.
pub fn series(id: &MessageId) -> Vec<u8> {
    join(b'W', &[&[0], id.as_bytes()])
}

/// Table W, by time.
pub fn series_due(next_ms: u64, id: &MessageId) -> Vec<u8> {
    join(b'W', &[&[1], &next_ms.to_be_bytes(), id.as_bytes()])
}

pub fn decode_series(key: &[u8]) -> Option<MessageId> {
    let rest = body(key, b'W', 17)?.strip_prefix(&[0])?;
    MessageId::from_bytes(rest).ok()
}

pub fn decode_series_due(key: &[u8]) -> Option<(u64, MessageId)> {
    let mut rest = body(key, b'W', 25)?.strip_prefix(&[1])?;
    let next_ms = u64::from_be_bytes(take(&mut rest)?);
    Some((next_ms, MessageId::from_bytes(rest).ok()?))
}

/// Series whose next message is due at or before a time.
pub fn series_due_until(until_ms: u64) -> KeyRange {
    KeyRange { start: join(b'W', &[&[1]]), end: prefix_end(&join(b'W', &[&[1], &until_ms.to_be_bytes()])) }
}

/// Table Y.
pub fn dead_letter(practice_no: u32, id: &MessageId) -> Vec<u8> {
    join(b'Y', &[&practice_no.to_be_bytes(), id.as_bytes()])
}

pub fn decode_dead_letter(key: &[u8]) -> Option<(u32, MessageId)> {
    let mut rest = body(key, b'Y', 20)?;
    let practice_no = u32::from_be_bytes(take(&mut rest)?);
    Some((practice_no, MessageId::from_bytes(rest).ok()?))
}

/// The dead letters of one practice or (0) of all.
pub fn dead_letter_range(practice_no: u32) -> KeyRange {
    match practice_no {
        0 => KeyRange::of_prefix(b"Y"),
        _ => KeyRange::of_prefix(&join(b'Y', &[&practice_no.to_be_bytes()])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::Slot;

    #[test]
    fn every_key_decodes_to_what_was_encoded() {
        let (a, h) = (MessageId::new(7_000, Slot::new(4095).unwrap(), u64::MAX), [0xab_u8; 16]);
        assert_eq!(decode_version(&version(9, &h)), Some((9, h)));
        assert_eq!(decode_series(&series(&a)), Some(a));
        assert_eq!(decode_series_due(&series_due(7, &a)), Some((7, a)));
        assert_eq!(decode_dead_letter(&dead_letter(9, &a)), Some((9, a)));
        assert_eq!((decode_series(&series_due(7, &a)), decode_series_due(&series(&a))), (None, None));
    }

    #[test]
    fn a_range_of_series_ends_with_its_time() {
        let a = MessageId::new(7_000, Slot::new(1).unwrap(), u64::MAX);
        let range = series_due_until(50);
        let inside = |key: &[u8]| range.start.as_slice() <= key && key < range.end.as_slice();
        assert!(inside(&series_due(0, &a)) && inside(&series_due(50, &a)));
        assert!(!inside(&series_due(51, &a)) && !inside(&series(&a)));
    }
}
