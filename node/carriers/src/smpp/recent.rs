//! Which message had which `user_message_reference`: carriers that repeat it in the receipt let a message be found
//! even when the answer with its id was lost.
//!
//! The reference has 16 bits and every node counts its own, so it proves nothing alone: the receipt must also come
//! from the number that the message went to. Numbers are kept only as keyed hashes of this process. Bounded by the
//! 65,536 values of the reference.
use carillon_proto::MessageId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

#[derive(Default)]
pub(crate) struct Recent {
    hasher: RandomState,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next: u16,
    sent: HashMap<u16, (MessageId, u64)>,
}

impl Recent {
    /// Gives the reference of a message to these digits.
    pub fn remember(&self, message_id: MessageId, digits: &str) -> u16 {
        let number = self.hasher.hash_one(significant(digits));
        let mut inner = self.inner.lock();
        inner.next = inner.next.wrapping_add(1);
        let reference = inner.next;
        inner.sent.insert(reference, (message_id, number));
        reference
    }

    /// The message that a receipt from `number` with this reference is about.
    pub fn find(&self, reference: u16, number: &str) -> Option<MessageId> {
        let (message_id, hash) = self.inner.lock().sent.get(&reference).copied()?;
        (self.hasher.hash_one(significant(number)) == hash).then_some(message_id)
    }
}

/// A number without plus and leading zeros.
fn significant(number: &str) -> &str {
    number.trim_start_matches(['+', '0'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::Slot;

    #[test]
    fn reference_and_number_must_both_fit() {
        let recent = Recent::default();
        let id = |n| MessageId::new(n, Slot::new(1).unwrap(), n);
        let first = recent.remember(id(1), "12125550123");
        let second = recent.remember(id(2), "12125550124");
        assert_eq!(recent.find(first, "+12125550123"), Some(id(1)));
        assert_eq!(recent.find(second, "0012125550124"), Some(id(2)));
        assert_eq!(recent.find(first, "12125550124"), None);
        assert_eq!(recent.find(second.wrapping_add(1), "12125550124"), None);
        for n in 0..70_000 {
            recent.remember(id(n), "12125550125");
        }
        assert_eq!(recent.inner.lock().sent.len(), 65_536);
        assert_eq!(recent.find(first, "12125550123"), None);
    }
}
