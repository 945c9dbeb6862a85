//! What both log stores remember about each group, and how a write changes it.
//!
//! The record carries the last index, so a store that comes back with fewer entries than were acknowledged is caught
//! at open, and entries that an engine resurrects from below a truncation are never served.
//! Bound: one record for each group of the node.
use carillon_consensus::{GroupState, GroupWrite, LogError};
use carillon_proto::internal::ConfState;
use prost::Message;
use raft::eraftpb::{Entry, HardState};
use std::collections::BTreeMap;

/// One group's state, stored beside its entries.
#[derive(Clone, PartialEq, Message)]
pub(super) struct GroupRecord {
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(uint64, tag = "2")]
    pub vote: u64,
    #[prost(uint64, tag = "3")]
    pub commit: u64,
    #[prost(message, optional, tag = "4")]
    pub conf: Option<ConfState>,
    #[prost(uint64, tag = "5")]
    pub conf_index: u64,
    #[prost(uint64, tag = "6")]
    pub truncated_index: u64,
    #[prost(uint64, tag = "7")]
    pub truncated_term: u64,
    #[prost(uint64, tag = "8")]
    pub last_index: u64,
    #[prost(uint64, tag = "9")]
    pub replica_id: u64,
    #[prost(uint64, tag = "10")]
    pub generation: u64,
    /// Nothing is left but the replica's id.
    #[prost(bool, tag = "11")]
    pub removed: bool,
}

impl GroupRecord {
    /// Checksum (with the group mixed in), then the message.
    pub fn to_bytes(&self, group: u32) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        self.encode(&mut bytes).expect("a vector grows");
        let sum = record_sum(group, &bytes[4..]);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    pub fn from_bytes(group: u32, bytes: &[u8]) -> Result<Self, LogError> {
        let corrupt = |reason: &str| LogError::Corrupt { group, reason: reason.to_string() };
        let (sum, body) =
            bytes.split_first_chunk::<4>().ok_or_else(|| corrupt("group record is too short"))?;
        if u32::from_le_bytes(*sum) != record_sum(group, body) {
            return Err(corrupt("group record fails its checksum"));
        }
        Self::decode(body).map_err(|_| corrupt("group record cannot be decoded"))
    }

    fn to_state(&self) -> GroupState {
        let Self { term, vote, commit, .. } = *self;
        GroupState {
            hard_state: HardState { term, vote, commit, ..HardState::default() },
            conf_state: self.conf.clone().unwrap_or_default(),
            conf_index: self.conf_index,
            truncated_index: self.truncated_index,
            truncated_term: self.truncated_term,
            last_index: self.last_index,
            replica_id: self.replica_id,
            generation: self.generation,
        }
    }
}

fn record_sum(group: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&group.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// One group's part of a batch that is about to be written.
pub(super) struct Planned<'a> {
    pub group: u32,
    pub entries: &'a [Entry],
    pub record: GroupRecord,
    /// Entries that this write makes void: from the first replaced one to the old last one.
    pub replaced: Option<(u64, u64)>,
    /// All entries from before this write are void: a snapshot took their place, or the replica is removed.
    pub cleared: bool,
}

/// The records of all groups.
#[derive(Default)]
pub(super) struct GroupTable {
    rows: BTreeMap<u32, GroupRecord>,
}

impl GroupTable {
    pub fn insert(&mut self, group: u32, record: GroupRecord) {
        self.rows.insert(group, record);
    }

    /// Removed ones too.
    pub fn rows(&self) -> impl Iterator<Item = (&u32, &GroupRecord)> {
        self.rows.iter()
    }

    pub fn get(&self, group: u32) -> Option<&GroupRecord> {
        self.rows.get(&group)
    }

    /// `None` for a group whose replica was removed.
    pub fn state(&self, group: u32) -> Option<GroupState> {
        self.rows.get(&group).filter(|row| !row.removed).map(GroupRecord::to_state)
    }

    /// The id of a removed replica.
    pub fn removed(&self, group: u32) -> Option<u64> {
        self.rows.get(&group).filter(|row| row.removed).map(|row| row.replica_id)
    }

    pub fn groups(&self) -> Vec<u32> {
        self.rows.iter().filter(|(_, row)| !row.removed).map(|(group, _)| *group).collect()
    }

    /// Checks the writes against what is stored and works out the records after them. Nothing changes until
    /// [`Self::publish`]. The same group may appear several times; later writes see earlier ones.
    pub fn plan<'a>(&self, writes: &'a [GroupWrite]) -> Result<Vec<Planned<'a>>, LogError> {
        let mut planned: Vec<Planned<'a>> = Vec::with_capacity(writes.len());
        for write in writes {
            if write.is_empty() {
                continue;
            }
            let earlier = planned.iter().rev().find(|p| p.group == write.group).map(|p| &p.record);
            let mut record = earlier.or_else(|| self.get(write.group)).cloned().unwrap_or_default();
            if write.remove {
                let record =
                    GroupRecord { removed: true, replica_id: record.replica_id, ..Default::default() };
                planned.push(Planned {
                    group: write.group,
                    entries: &[],
                    record,
                    replaced: None,
                    cleared: true,
                });
                continue;
            }
            create(write, &mut record)?;
            let cleared = apply_snapshot(write, &mut record)?;
            let replaced = apply_entries(write.group, &mut record, &write.entries)?;
            if let Some(hard_state) = &write.hard_state {
                record.term = hard_state.term;
                record.vote = hard_state.vote;
                record.commit = hard_state.commit;
            }
            if let Some((conf, index)) = &write.conf {
                record.conf = Some(conf.clone());
                record.conf_index = *index;
            }
            planned.push(Planned { group: write.group, entries: &write.entries, record, replaced, cleared });
        }
        Ok(planned)
    }

    /// Makes a written plan visible.
    pub fn publish(&mut self, planned: Vec<Planned<'_>>) {
        for part in planned {
            self.rows.insert(part.group, part.record);
        }
    }

    /// The record after a truncation, or `None` when it is already truncated that far.
    pub fn plan_truncate(&self, group: u32, index: u64, term: u64, divergent: bool) -> Option<GroupRecord> {
        let mut record = self.get(group).cloned().unwrap_or_default();
        if index <= record.truncated_index || record.removed {
            return None;
        }
        record.truncated_index = index;
        record.truncated_term = term;
        if divergent || record.last_index < index {
            record.last_index = index;
        }
        Some(record)
    }

    /// Whether `low..high` can be served.
    pub fn check_range(&self, group: u32, low: u64, high: u64) -> Result<(), LogError> {
        let Some(record) = self.get(group).filter(|record| !record.removed) else {
            return Err(LogError::Missing { group, index: low });
        };
        if low <= record.truncated_index {
            return Err(LogError::Compacted { group, index: record.truncated_index });
        }
        if high > record.last_index + 1 {
            return Err(LogError::Missing { group, index: low.max(record.last_index + 1) });
        }
        Ok(())
    }
}

/// A replica's id is given once; after a removal it must be a later one.
fn create(write: &GroupWrite, record: &mut GroupRecord) -> Result<(), LogError> {
    let refuse = |reason: String| Err(LogError::Corrupt { group: write.group, reason });
    match write.replica_id {
        Some(id) if record.removed && id <= record.replica_id => refuse(format!("replica {id} was removed")),
        Some(id) => {
            record.removed = false;
            record.replica_id = id;
            Ok(())
        }
        None if record.removed => refuse("the replica was removed".to_string()),
        None => Ok(()),
    }
}

/// True: the entries before are void.
fn apply_snapshot(write: &GroupWrite, record: &mut GroupRecord) -> Result<bool, LogError> {
    let Some(mark) = write.snapshot else { return Ok(false) };
    if mark.index < record.truncated_index {
        let reason = format!("snapshot {} is older than the log", mark.index);
        return Err(LogError::Corrupt { group: write.group, reason });
    }
    (record.truncated_index, record.truncated_term) = (mark.index, mark.term);
    (record.last_index, record.generation) = (mark.index, mark.generation);
    Ok(true)
}

/// Moves the last index; refuses gaps and entries below the truncation, which are bugs of the caller.
fn apply_entries(
    group: u32,
    record: &mut GroupRecord,
    entries: &[Entry],
) -> Result<Option<(u64, u64)>, LogError> {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(None) };
    let refuse = |reason: String| Err(LogError::Corrupt { group, reason });
    if entries.windows(2).any(|pair| pair[1].index != pair[0].index + 1) {
        return refuse(format!("entries from {} are not consecutive", first.index));
    }
    if first.index <= record.truncated_index {
        return refuse(format!(
            "entry {} is at or below the truncation {}",
            first.index, record.truncated_index
        ));
    }
    if first.index > record.last_index + 1 {
        return refuse(format!("entry {} leaves a gap after {}", first.index, record.last_index));
    }
    let replaced = (first.index <= record.last_index).then_some((first.index, record.last_index));
    record.last_index = last.index;
    Ok(replaced)
}

/// Takes entries while they fit; at least one.
pub(super) struct Budget {
    left: u64,
    taken: usize,
}

impl Budget {
    pub fn new(bytes_max: u64) -> Self {
        Self { left: bytes_max, taken: 0 }
    }

    pub fn admits(&mut self, entry: &Entry) -> bool {
        let size = u64::from(protobuf::Message::compute_size(entry));
        if self.taken > 0 && size > self.left {
            return false;
        }
        self.left = self.left.saturating_sub(size);
        self.taken += 1;
        true
    }
}
