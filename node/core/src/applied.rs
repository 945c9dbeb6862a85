//! Which entry comes next: table A read once and carried from entry to entry.
use crate::digest::Digest;
use crate::keys;
use crate::records::encode;
use crate::tables::Tables;
use bytes::Bytes;
use carillon_proto::internal::AppliedRecord;

/// Where an entry stands in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryMeta {
    pub index: u64,
    pub term: u64,
}

/// Stops the replica when an entry is not the one after `last`: applying it would corrupt the state.
pub(crate) fn check_order(last: &AppliedRecord, meta: EntryMeta) {
    assert!(
        meta.index == last.index + 1 && meta.term >= last.term,
        "entry {} of term {} does not follow entry {} of term {}",
        meta.index,
        meta.term,
        last.index,
        last.term,
    );
}

/// Moves table A over an entry that changes nothing else (raft's own entries).
pub(crate) fn pass(tables: &mut dyn Tables, last: &AppliedRecord, meta: EntryMeta) -> AppliedRecord {
    check_order(last, meta);
    let digest = Digest::of_entry(&last.digest, meta, &[]).finish();
    write(tables, last, meta, last.now_ms, last.leader_start_term, digest)
}

/// Writes table A.
pub(crate) fn write(
    tables: &mut dyn Tables,
    last: &AppliedRecord,
    meta: EntryMeta,
    now_ms: u64,
    leader_start_term: u64,
    digest: Bytes,
) -> AppliedRecord {
    let now_ms = now_ms.max(last.now_ms);
    let record = AppliedRecord { index: meta.index, term: meta.term, now_ms, digest, leader_start_term };
    tables.put(keys::applied(), encode(&record));
    record
}
