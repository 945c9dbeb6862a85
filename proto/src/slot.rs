//! Slots: 4096 for ever. A practice's messages live in the slot of its tenant and name; slots are
//! spread evenly over the partitions chosen when the cluster was created.
use siphasher::sip::SipHasher24;
use std::hash::Hasher as _;

/// Number of slots; part of the stored format.
pub const SLOTS: u16 = 4096;

/// Fixed key of the slot hash, version 1. Never change: it says where stored data is.
const HASH_KEY: (u64, u64) = (0x6361_7269_6c6c_6f6e, 0x736c_6f74_2d76_3031);

/// 0..4096
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u16);

impl Slot {
    /// `None` when out of range.
    pub fn new(value: u16) -> Option<Self> {
        (value < SLOTS).then_some(Self(value))
    }

    /// SipHash-2-4 with a fixed key over `tenant 0x00 practice`, modulo 4096.
    pub fn of_practice(tenant: &str, practice: &str) -> Self {
        let mut hasher = SipHasher24::new_with_keys(HASH_KEY.0, HASH_KEY.1);
        hasher.write(tenant.as_bytes());
        hasher.write(&[0]);
        hasher.write(practice.as_bytes());
        Self((hasher.finish() % u64::from(SLOTS)) as u16)
    }

    pub fn get(self) -> u16 {
        self.0
    }

    /// The partition (1-based; group 0 is the meta group) that owns this slot among `partitions`.
    pub fn partition(self, partitions: u32) -> u32 {
        assert!(partitions > 0 && partitions <= u32::from(SLOTS), "partitions out of range");
        u32::from(self.0) * partitions / u32::from(SLOTS) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pinned: a change here loses data.
    #[test]
    fn hash_is_pinned() {
        let slots = [("acme", "north"), ("acme", "south"), ("", ""), ("lakeside", "cardiology-7")]
            .map(|(t, p)| Slot::of_practice(t, p).get());
        assert_eq!(slots, PINNED);
    }
    const PINNED: [u16; 4] = [2022, 492, 767, 2218];

    #[test]
    fn every_partition_gets_its_share_of_slots() {
        for partitions in [1u32, 3, 16, 64, 4096] {
            let mut count = vec![0u32; partitions as usize + 1];
            for s in 0..SLOTS {
                count[Slot(s).partition(partitions) as usize] += 1;
            }
            assert_eq!(count[0], 0);
            let (min, max) = (count[1..].iter().min().unwrap(), count[1..].iter().max().unwrap());
            assert!(max - min <= 1, "{partitions}: {min}..{max}");
        }
    }
}
