//! The carrier references that this node saw become known, newest first to keep: receipts find their message here
//! without reading table R.
//!
//! Fed by the applier on every replica, so it does not matter which node sent the message or which one the carrier's
//! report reaches. Bounded by [`REFERENCES_MAX`]; a restart forgets all: then table R is read.
use carillon_core::{Reference, keys};
use carillon_proto::MessageId;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};

/// References remembered on a node: about 20 MiB.
const REFERENCES_MAX: usize = 200_000;

type Key = (u32, [u8; 16]);

/// See the module documentation.
#[derive(Default)]
pub struct References(Mutex<Known>);

#[derive(Default)]
struct Known {
    by_reference: HashMap<Key, MessageId>,
    oldest: VecDeque<Key>,
}

impl References {
    pub fn learn(&self, references: &[Reference]) {
        if references.is_empty() {
            return;
        }
        let mut known = self.0.lock();
        for reference in references {
            let key = (reference.carrier_no, reference.hash);
            if known.by_reference.insert(key, reference.message_id).is_none() {
                known.oldest.push_back(key);
            }
            if known.oldest.len() > REFERENCES_MAX
                && let Some(oldest) = known.oldest.pop_front()
            {
                known.by_reference.remove(&oldest);
            }
        }
    }

    /// The message of the first candidate that is known.
    pub fn find(&self, carrier_no: u32, candidates: &[String]) -> Option<MessageId> {
        let known = self.0.lock();
        candidates
            .iter()
            .find_map(|reference| known.by_reference.get(&(carrier_no, keys::carrier_ref_hash(reference))))
            .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::Slot;

    #[test]
    fn the_oldest_are_forgotten_first() {
        let references = References::default();
        let id = |n: u64| MessageId::new(1_800_000_000_000, Slot::new(1).unwrap(), n);
        let reference = |n: u64| Reference {
            carrier_no: 1,
            hash: keys::carrier_ref_hash(&n.to_string()),
            message_id: id(n),
        };
        let all: Vec<_> = (0..=REFERENCES_MAX as u64).map(reference).collect();
        references.learn(&all);
        references.learn(&all[5..6]);
        assert_eq!(references.find(1, &["0".to_owned()]), None);
        assert_eq!(references.find(1, &["x".to_owned(), "1".to_owned()]), Some(id(1)));
        assert_eq!(references.find(2, &["1".to_owned()]), None, "another account");
        assert_eq!(references.0.lock().oldest.len(), REFERENCES_MAX);
    }
}
