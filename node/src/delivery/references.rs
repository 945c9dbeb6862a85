//! What a node remembers of carrier references: those of messages that it handed over, and those of receipts that it had
//! to refuse. Both are bounded, and a restart forgets both: then table R and the carrier's repetitions take over.
use carillon_core::keys;
use carillon_proto::MessageId;
use carillon_proto::internal::RecordReceipt;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// References remembered on a node.
const REFERENCES_MAX: usize = 200_000;
/// Refused receipts remembered on a node.
const REFUSED_MAX: usize = 50_000;
/// A receipt that nobody knows is refused this long, and at least [`REFUSALS_MIN`] times: an outcome that is on its way into
/// the log arrives long before, because the partitions it could belong to answer.
const PATIENCE: Duration = Duration::from_secs(600);
const REFUSALS_MIN: u32 = 3;

type Key = (u32, [u8; 16]);

/// Carrier references of messages that this node handed over lately.
#[derive(Clone, Default)]
pub struct References(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    by_reference: HashMap<Key, MessageId>,
    oldest: VecDeque<Key>,
}

impl References {
    pub fn learn(&self, carrier_no: u32, refs: &[String], id: MessageId) {
        let mut known = self.0.lock();
        for reference in refs {
            let key = (carrier_no, keys::carrier_ref_hash(reference));
            if known.by_reference.insert(key, id).is_none() {
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

/// Receipts that were refused, and since when.
#[derive(Default)]
pub(super) struct Refused {
    since: HashMap<Key, (Instant, u32)>,
    oldest: VecDeque<Key>,
}

impl Refused {
    /// Notes one more refusal. True: it came often and long enough, nobody will ever know it.
    pub fn enough(&mut self, receipt: &RecordReceipt) -> bool {
        let candidate = receipt.carrier_refs.first().map_or("", String::as_str);
        let key = (receipt.carrier_no, keys::carrier_ref_hash(&format!("{} {candidate}", receipt.state)));
        let (since, times) = self.since.entry(key).or_insert_with(|| {
            self.oldest.push_back(key);
            (Instant::now(), 0)
        });
        *times += 1;
        let enough = *times >= REFUSALS_MIN && since.elapsed() >= PATIENCE;
        if enough {
            self.since.remove(&key);
        }
        // A key that was removed above may be listed twice; then it is forgotten early, which costs repetitions only.
        while self.oldest.len() > REFUSED_MAX
            && let Some(oldest) = self.oldest.pop_front()
        {
            self.since.remove(&oldest);
        }
        enough
    }
}
