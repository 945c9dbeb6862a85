//! What a backup says of itself.
//!
//! Invariants: [`FORMAT`] is looked at before anything else; the manifest carries the hash of its own body, so a change of a bit is
//! seen before its contents are believed.
use super::BackupError;
use bytes::Bytes;
use carillon_proto::internal::{SnapshotFile, SnapshotManifest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Version of the layout.
pub const FORMAT: u32 = 1;
pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const BEGUN: &str = "begun.json";
pub(super) const META: &str = "meta.pb";
pub(super) const KEYS: &str = "keys.pb";

/// Size and hash of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    pub bytes: u64,
    pub blake3: String,
}

impl Object {
    pub fn of(data: &[u8]) -> Self {
        Self { bytes: data.len() as u64, blake3: blake3::hash(data).to_hex().to_string() }
    }

    /// What is wrong with the data, if anything is.
    pub fn problem(&self, name: &str, data: Option<&[u8]>) -> Option<String> {
        match data {
            None => Some(format!("{name} is missing")),
            Some(data) if data.len() as u64 != self.bytes => {
                Some(format!("{name} has {} bytes instead of {}", data.len(), self.bytes))
            }
            Some(data) if Self::of(data) != *self => Some(format!("the hash of {name} differs")),
            Some(_) => None,
        }
    }
}

/// A backup that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    pub format: u32,
    /// 16 bytes as hex digits.
    pub id: String,
    pub cluster_id: String,
    pub partitions: u32,
    pub begun_at_ms: u64,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub partition: u32,
    /// Raft position: everything up to this entry is in the files, nothing after it.
    pub index: u64,
    pub term: u64,
    /// Chained digest of the replica there, as hex digits.
    pub digest: String,
    /// Clock of the partition there.
    pub now_ms: u64,
    pub node_id: u64,
    pub snapshot_id: u64,
    pub rows: u64,
    pub state_level: u32,
    pub files: Vec<Object>,
}

impl Part {
    pub fn new(made: &SnapshotManifest, now_ms: u64) -> Self {
        let object = |file: &SnapshotFile| Object { bytes: file.bytes, blake3: hex::encode(&file.blake3) };
        Self {
            partition: made.group,
            index: made.index,
            term: made.term,
            digest: hex::encode(&made.digest),
            now_ms,
            node_id: made.node_id,
            snapshot_id: made.snapshot_id,
            rows: made.rows,
            state_level: made.feature_level,
            files: made.files.iter().map(object).collect(),
        }
    }

    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// As the nodes know it; `None` when a hash is none.
    pub fn snapshot(&self) -> Option<SnapshotManifest> {
        let file = |object: &Object| {
            Some(SnapshotFile { bytes: object.bytes, blake3: hex::decode(&object.blake3).ok()?.into() })
        };
        Some(SnapshotManifest {
            group: self.partition,
            index: self.index,
            term: self.term,
            node_id: self.node_id,
            snapshot_id: self.snapshot_id,
            files: self.files.iter().map(file).collect::<Option<_>>()?,
            bytes: self.bytes(),
            rows: self.rows,
            digest: hex::decode(&self.digest).ok()?.into(),
            feature_level: self.state_level,
        })
    }
}

/// Which key opens a practice's data. The key itself is not in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyId {
    pub practice_no: u32,
    pub epoch: u32,
    pub provider_key_id: String,
}

/// A complete backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// 16 bytes as hex digits.
    pub id: String,
    pub cluster_id: String,
    pub partitions: u32,
    /// The cluster that it is restored into must have this one.
    pub feature_level: u32,
    pub version: String,
    pub begun_at_ms: u64,
    pub finished_at_ms: u64,
    /// Entry of the meta group that `meta.pb` and `keys.pb` are of.
    pub meta_index: u64,
    pub meta: Object,
    pub keys: Object,
    pub key_ids: Vec<KeyId>,
    pub parts: Vec<Part>,
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    format: u32,
    /// Of `backup` as compact JSON.
    blake3: String,
    backup: T,
}

impl Manifest {
    pub fn encode(&self) -> Bytes {
        let envelope = Envelope { format: FORMAT, blake3: self.hash(), backup: self };
        serde_json::to_vec_pretty(&envelope).expect("it has no map with other keys than strings").into()
    }

    fn hash(&self) -> String {
        let body = serde_json::to_vec(self).expect("it has no map with other keys than strings");
        blake3::hash(&body).to_hex().to_string()
    }

    pub fn decode(name: &str, data: &[u8]) -> Result<Self, BackupError> {
        let damaged = |what: &str| BackupError::Damaged { name: name.to_owned(), what: what.to_owned() };
        let outer: serde_json::Value =
            serde_json::from_slice(data).map_err(|_| damaged("its manifest is not JSON"))?;
        let format = outer.get("format").and_then(serde_json::Value::as_u64);
        match format.and_then(|format| u32::try_from(format).ok()) {
            None | Some(0) => return Err(damaged("its manifest has no format")),
            Some(found) if found > FORMAT => {
                return Err(BackupError::NewerFormat { name: name.to_owned(), found });
            }
            Some(_) => {}
        }
        let envelope: Envelope<Self> =
            serde_json::from_value(outer).map_err(|e| damaged(&format!("its manifest: {e}")))?;
        let manifest = envelope.backup;
        if manifest.hash() != envelope.blake3 {
            return Err(damaged("the hash of its manifest differs"));
        }
        let parts: BTreeSet<u32> = manifest.parts.iter().map(|part| part.partition).collect();
        if !parts.into_iter().eq(1..=manifest.partitions)
            || manifest.parts.len() as u32 != manifest.partitions
        {
            return Err(damaged("its manifest does not name every partition once"));
        }
        Ok(manifest)
    }

    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(Part::bytes).sum::<u64>() + self.meta.bytes + self.keys.bytes
    }

    /// The latest clock that is known from it.
    pub fn now_ms(&self) -> u64 {
        self.parts.iter().map(|part| part.now_ms).max().unwrap_or(0)
    }
}

pub(super) fn part_dir(partition: u32) -> String {
    format!("partition-{partition:05}")
}

pub(super) fn file_name(partition: u32, file: usize) -> String {
    format!("{}/{file:06}.sst", part_dir(partition))
}

pub(super) fn part_name(partition: u32) -> String {
    format!("{}/part.json", part_dir(partition))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two partitions of two files each.
    pub fn manifest() -> Manifest {
        let part = |partition| Part {
            partition,
            index: 7,
            term: 2,
            digest: "ab".repeat(16),
            now_ms: 1_000 + u64::from(partition),
            node_id: 1,
            snapshot_id: 9,
            rows: 3,
            state_level: 0,
            files: vec![Object::of(b"rows"), Object::of(b"more")],
        };
        Manifest {
            id: "0f".repeat(16),
            cluster_id: "lab".to_owned(),
            partitions: 2,
            feature_level: 3,
            version: "0.1.0".to_owned(),
            begun_at_ms: 1,
            finished_at_ms: 2,
            meta_index: 5,
            meta: Object::of(b"meta"),
            keys: Object::of(b"keys"),
            key_ids: vec![KeyId { practice_no: 1, epoch: 1, provider_key_id: "file:1".to_owned() }],
            parts: vec![part(1), part(2)],
        }
    }

    #[test]
    fn a_manifest_is_read_as_written_and_a_part_becomes_what_nodes_know() {
        let manifest = manifest();
        assert_eq!(Manifest::decode("b", &manifest.encode()).unwrap(), manifest);
        assert_eq!((manifest.now_ms(), manifest.bytes()), (1_002, 24));
        let snapshot = manifest.parts[1].snapshot().unwrap();
        assert_eq!(Part::new(&snapshot, 1_002), manifest.parts[1]);
    }

    #[test]
    fn a_newer_format_damage_and_missing_partitions_are_told_apart() {
        let told = |data: &[u8]| Manifest::decode("b", data).unwrap_err().to_string();
        let text = String::from_utf8(manifest().encode().to_vec()).unwrap();
        assert!(told(text.replace("\"format\": 1", "\"format\": 2").as_bytes()).contains("has format 2"));
        assert!(told(text.replace("\"format\": 1", "\"former\": 1").as_bytes()).contains("has no format"));
        assert!(
            told(text.replace("\"index\": 7", "\"index\": 8").as_bytes()).contains("hash of its manifest")
        );
        assert!(told(&text.as_bytes()[..text.len() / 2]).contains("not JSON"));
        let short = Manifest { parts: manifest().parts[..1].to_vec(), ..manifest() };
        assert!(told(&short.encode()).contains("every partition once"));
        let twice = Manifest { parts: vec![manifest().parts[0].clone(); 2], ..manifest() };
        assert!(told(&twice.encode()).contains("every partition once"));
    }

    #[test]
    fn an_object_says_what_is_wrong_with_it() {
        let object = Object::of(b"rows");
        assert_eq!(object.problem("a", Some(b"rows")), None);
        assert!(object.problem("a", None).unwrap().contains("missing"));
        assert!(object.problem("a", Some(b"row")).unwrap().contains("3 bytes instead of 4"));
        assert!(object.problem("a", Some(b"rowz")).unwrap().contains("hash"));
    }
}
