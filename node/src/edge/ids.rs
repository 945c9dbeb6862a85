//! Ids of new messages: for each slot they rise in the order in which this node makes them, also within a millisecond.
//!
//! Apply then sees at a glance that an id is new (core's `HighestIds`), and payloads come to the state store in key order.
//! That is all it is good for: nothing depends on it, and ids of two leaders may cross.
//! The first id of a millisecond has 64 random bits, each further one adds 32 random bits to it.
use carillon_proto::slot::SLOTS;
use carillon_proto::{MessageId, Slot};
use parking_lot::Mutex;

/// A clock that was set back by more than this is followed; ids then fall once.
const BACK_MS_MAX: u64 = 1_000;

/// Time and random part of the last id of one slot.
#[derive(Debug, Clone, Copy, Default)]
struct Last {
    time_ms: u64,
    random: u64,
}

/// One for a node. Bounded by the number of slots.
pub struct RisingIds(Vec<Mutex<Last>>);

impl Default for RisingIds {
    fn default() -> Self {
        Self((0..SLOTS).map(|_| Mutex::default()).collect())
    }
}

impl RisingIds {
    /// A new id. `now_ms` is this node's clock.
    pub fn next(&self, now_ms: u64, slot: Slot) -> MessageId {
        let mut last = self.0[usize::from(slot.get())].lock();
        *last = after(*last, now_ms, rand::random());
        MessageId::new(last.time_ms, slot, last.random)
    }
}

fn after(last: Last, now_ms: u64, random: u64) -> Last {
    let fresh = |time_ms| Last { time_ms, random };
    if now_ms > last.time_ms || last.time_ms - now_ms > BACK_MS_MAX {
        return fresh(now_ms);
    }
    let step = 1 + (random >> 32);
    match last.random.checked_add(step) {
        Some(random) => Last { time_ms: last.time_ms, random },
        None => fresh(last.time_ms + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_rise_within_a_millisecond_and_when_the_clock_goes_back_a_little() {
        let (ids, slot) = (RisingIds::default(), Slot::new(7).unwrap());
        let mut last = ids.next(5_000, slot);
        for now_ms in [5_000, 5_000, 5_001, 5_001, 4_500, 5_001, 5_002] {
            let next = ids.next(now_ms, slot);
            assert!(next > last && next.slot() == slot, "{now_ms}");
            last = next;
        }
        assert_eq!(ids.next(3_000, slot).time_ms(), 3_000, "the clock was really set back");
    }

    #[test]
    fn an_exhausted_millisecond_is_followed_by_the_next() {
        let last = Last { time_ms: 9, random: u64::MAX - 1 };
        let next = after(last, 9, u64::MAX);
        assert_eq!((next.time_ms, next.random), (10, u64::MAX));
    }
}
