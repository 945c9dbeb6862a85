//! The receipts that this node had to refuse, so that one that can never match is not refused for ever. Bounded; a restart
//! forgets them and the carrier's repetitions are counted anew.
use carillon_core::keys;
use carillon_proto::internal::RecordReceipt;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// Refused receipts remembered on a node.
const REFUSED_MAX: usize = 50_000;
/// A receipt that nobody knows is refused this long, and at least [`REFUSALS_MIN`] times: an outcome that is on its way into
/// the log arrives long before, because the partitions it could belong to answer.
const PATIENCE: Duration = Duration::from_secs(600);
const REFUSALS_MIN: u32 = 3;

type Key = (u32, [u8; 16]);

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
