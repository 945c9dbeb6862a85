//! The checksum that stays with an entry from append to read.
//!
//! It covers the group and every field, so an entry that is changed, cut, or read at the wrong place is refused. It
//! is independent of the checksums of the store below, which only protect its own blocks.
use carillon_consensus::LogError;
use protobuf::ProtobufEnum;
use raft::eraftpb::Entry;

/// Number of the extra field that carries the checksum inside a stored `eraftpb.Entry`; raft uses 1 to 6.
const CHECKSUM_FIELD: u32 = 15;

pub(super) fn of_entry(group: u32, entry: &Entry) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&group.to_le_bytes());
    hasher.update(&entry.entry_type.value().to_le_bytes());
    hasher.update(&entry.term.to_le_bytes());
    hasher.update(&entry.index.to_le_bytes());
    hasher.update(&[u8::from(entry.sync_log)]);
    hasher.update(&(entry.data.len() as u64).to_le_bytes());
    hasher.update(&entry.data);
    hasher.update(&entry.context);
    hasher.finalize()
}

/// A copy with its checksum in an extra field. The data itself is shared, not copied.
pub(super) fn seal(group: u32, entry: &Entry) -> Entry {
    let mut sealed = entry.clone();
    sealed.unknown_fields = protobuf::UnknownFields::default();
    sealed.unknown_fields.add_fixed32(CHECKSUM_FIELD, of_entry(group, entry));
    sealed
}

/// Checks an entry that was read and takes the extra field off.
pub(super) fn unseal(group: u32, index: u64, mut entry: Entry) -> Result<Entry, LogError> {
    let corrupt = |reason: String| LogError::Corrupt { group, reason };
    let stored = entry.unknown_fields.get(CHECKSUM_FIELD).and_then(|values| values.fixed32.first().copied());
    entry.unknown_fields = protobuf::UnknownFields::default();
    if entry.index != index {
        return Err(corrupt(format!("entry {index} holds index {}", entry.index)));
    }
    match stored {
        None => Err(corrupt(format!("entry {index} has no checksum"))),
        Some(sum) if sum != of_entry(group, &entry) => {
            Err(corrupt(format!("entry {index} fails its checksum")))
        }
        Some(_) => Ok(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::Message;

    fn entry() -> Entry {
        Entry { term: 3, index: 9, data: vec![7; 100].into(), context: vec![1].into(), ..Entry::default() }
    }

    #[test]
    fn a_sealed_entry_survives_the_wire_and_comes_back_equal() {
        let bytes = seal(4, &entry()).write_to_bytes().unwrap();
        let read = Entry::parse_from_bytes(&bytes).unwrap();
        assert_eq!(unseal(4, 9, read).unwrap(), entry());
    }

    #[test]
    fn every_flipped_bit_wrong_group_and_wrong_place_is_refused() {
        let bytes = seal(4, &entry()).write_to_bytes().unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = Entry::parse_from_bytes(&changed) {
                assert!(unseal(4, 9, read).is_err(), "bit {bit}");
            }
        }
        assert!(unseal(5, 9, seal(4, &entry())).is_err());
        assert!(unseal(4, 8, seal(4, &entry())).is_err());
        assert!(unseal(4, 9, entry()).is_err());
    }
}
