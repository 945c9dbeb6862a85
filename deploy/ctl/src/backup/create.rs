//! Makes a backup of a running cluster.
//!
//! Partition by partition: the leader makes files of everything that was acknowledged so far, they are copied and checked, then
//! `part.json` says that the partition is complete. The meta group comes after the partitions, so it has every practice and key
//! that their messages use. The manifest comes last. A backup that broke off is finished with its name: complete partitions stay.
use super::calls::next_chunk;
use super::location::Location;
use super::manifest::{
    BEGUN, Begun, FORMAT, KEYS, KeyId, MANIFEST, META, Manifest, Object, Part, file_name, part_name,
};
use super::nodes::Nodes;
use super::pace::Pace;
use super::{AT_A_TIME, BackupError, Progress, Watcher};
use crate::admin::Admin;
use bytes::{Bytes, BytesMut};
use carillon_proto::internal::{FetchSnapshotRequest, MetaBackup, SnapshotFile, SnapshotManifest};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use prost::Message as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;

/// A file whose stream breaks goes on where it stopped, so often.
const FILE_TRIES: u32 = 5;

#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// 0 = as fast as the nodes send, which have a limit of their own.
    pub bytes_per_second: u64,
    /// Name of a backup that broke off.
    pub resume: Option<String>,
}

/// What was made.
#[derive(Debug, Clone)]
pub struct Created {
    pub name: String,
    pub manifest: Manifest,
}

pub(super) fn clock_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

pub async fn create(
    nodes: &Nodes,
    to: &Location,
    options: &CreateOptions,
    watcher: Watcher<'_>,
) -> Result<Created, BackupError> {
    let (name, begun) = begin(nodes, to, options).await?;
    let (pace, done) = (Pace::new(options.bytes_per_second), AtomicU32::new(0));
    let all = begun.partitions;
    let parts = stream::iter(1..=all).map(|partition| {
        let (name, pace, done) = (&name, &pace, &done);
        async move {
            let part = match finished(to, name, partition).await? {
                Some(part) => part,
                None => {
                    let copy = |node, admin| one(to, name, partition, node, admin, pace, watcher);
                    nodes.on_leader(partition, copy).await?
                }
            };
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            watcher(Progress::Partitions { done, all });
            Ok::<_, BackupError>(part)
        }
    });
    let mut parts: Vec<Part> = parts.buffer_unordered(AT_A_TIME).try_collect().await?;
    parts.sort_by_key(|part| part.partition);
    let manifest = finish(nodes, to, &name, begun, parts).await?;
    Ok(Created { name, manifest })
}

async fn begin(
    nodes: &Nodes,
    to: &Location,
    options: &CreateOptions,
) -> Result<(String, Begun), BackupError> {
    let statuses = nodes.statuses().await?;
    let (status, _) = &statuses[0];
    if status.restore.as_ref().is_some_and(|restore| !restore.done) {
        return Err(BackupError::Wrong("a restore is under way; back up when it is done".to_owned()));
    }
    if status.cluster_id.is_empty() {
        return Err(BackupError::Wrong(
            "the cluster is not created yet; wait until `status` is healthy".to_owned(),
        ));
    }
    let partitions = status.map.iter().filter(|row| row.partition != 0).count() as u32;
    if let Some(name) = &options.resume {
        let text = to.get(&format!("{name}/{BEGUN}")).await?;
        let text = text.ok_or_else(|| BackupError::NotFound(name.clone()))?;
        let begun: Begun = serde_json::from_slice(&text)
            .map_err(|e| BackupError::Damaged { name: name.clone(), what: e.to_string() })?;
        if begun.format > FORMAT {
            return Err(BackupError::NewerFormat { name: name.clone(), found: begun.format });
        }
        if to.get(&format!("{name}/{MANIFEST}")).await?.is_some() {
            return Err(BackupError::Wrong(format!("backup {name} is complete already")));
        }
        if (begun.cluster_id.as_str(), begun.partitions) != (status.cluster_id.as_str(), partitions) {
            return Err(BackupError::Wrong(format!(
                "backup {name} is of cluster {} with {} partitions, this is {} with {partitions}",
                begun.cluster_id, begun.partitions, status.cluster_id
            )));
        }
        return Ok((name.clone(), begun));
    }
    let id: [u8; 16] = rand::random();
    let begun_at_ms = clock_ms();
    let name = format!("{}-{}", stamp(begun_at_ms), hex::encode(&id[..4]));
    let id = hex::encode(id);
    let begun = Begun { format: FORMAT, id, cluster_id: status.cluster_id.clone(), partitions, begun_at_ms };
    let text = serde_json::to_vec_pretty(&begun).expect("it is plain data");
    to.put(&format!("{name}/{BEGUN}"), text.into()).await?;
    Ok((name, begun))
}

/// Sorts like time.
fn stamp(at_ms: u64) -> String {
    let at = OffsetDateTime::from_unix_timestamp((at_ms / 1000) as i64).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

/// A partition that an earlier run has completed.
async fn finished(to: &Location, name: &str, partition: u32) -> Result<Option<Part>, BackupError> {
    let Some(text) = to.get(&format!("{name}/{}", part_name(partition))).await? else { return Ok(None) };
    Ok(serde_json::from_slice(&text).ok())
}

/// One partition from its leader.
async fn one(
    to: &Location,
    name: &str,
    partition: u32,
    node: u64,
    admin: Admin,
    pace: &Pace,
    watcher: Watcher<'_>,
) -> Result<Part, BackupError> {
    let made = admin.export_partition(partition).await?;
    let empty = || BackupError::BadFile { node, what: "no manifest".to_owned() };
    let manifest = made.manifest.ok_or_else(empty)?;
    if manifest.group != partition || manifest.files.is_empty() {
        return Err(empty());
    }
    let copied = copy(to, name, &manifest, node, &admin, pace, watcher).await;
    // Best effort: what is not released goes away by itself.
    drop(admin.release_export(partition, manifest.snapshot_id).await);
    copied?;
    let part = Part::new(&manifest, made.now_ms);
    let text = serde_json::to_vec_pretty(&part).expect("it is plain data");
    to.put(&format!("{name}/{}", part_name(partition)), text.into()).await?;
    Ok(part)
}

async fn copy(
    to: &Location,
    name: &str,
    manifest: &SnapshotManifest,
    node: u64,
    admin: &Admin,
    pace: &Pace,
    watcher: Watcher<'_>,
) -> Result<(), BackupError> {
    for (number, file) in manifest.files.iter().enumerate() {
        let data = fetch(manifest, number as u32, file, node, admin, pace, watcher).await?;
        if blake3::hash(&data).as_bytes().as_slice() != file.blake3.as_ref() {
            return Err(BackupError::BadFile { node, what: format!("the hash of file {number} differs") });
        }
        to.put(&format!("{name}/{}", file_name(manifest.group, number)), data).await?;
    }
    Ok(())
}

async fn fetch(
    manifest: &SnapshotManifest,
    number: u32,
    file: &SnapshotFile,
    node: u64,
    admin: &Admin,
    pace: &Pace,
    watcher: Watcher<'_>,
) -> Result<Bytes, BackupError> {
    let mut data = BytesMut::new();
    for tries in 1.. {
        let request = FetchSnapshotRequest {
            group: manifest.group,
            snapshot_id: manifest.snapshot_id,
            file: number,
            offset: data.len() as u64,
            replica_id: 0,
        };
        let reading = async {
            let mut chunks = admin.fetch_export(request).await?;
            while let Some(chunk) = next_chunk(node, &mut chunks).await? {
                pace.take(chunk.len()).await;
                data.extend_from_slice(&chunk);
                watcher(Progress::Bytes(chunk.len() as u64));
                if data.len() as u64 > file.bytes {
                    break;
                }
            }
            Ok::<_, BackupError>(())
        };
        match reading.await {
            Ok(()) if data.len() as u64 == file.bytes => break,
            Err(error) if tries == FILE_TRIES => return Err(error),
            Ok(()) if tries == FILE_TRIES || data.len() as u64 > file.bytes => {
                let what = format!("file {number} has {} bytes instead of {}", data.len(), file.bytes);
                return Err(BackupError::BadFile { node, what });
            }
            _ => {}
        }
    }
    Ok(data.freeze())
}

/// The meta group, then the manifest.
async fn finish(
    nodes: &Nodes,
    to: &Location,
    name: &str,
    begun: Begun,
    parts: Vec<Part>,
) -> Result<Manifest, BackupError> {
    let exported = nodes.on_leader(0, |_, admin| async move { Ok(admin.export_meta().await?) }).await?;
    if exported.cluster_id != begun.cluster_id || exported.partitions != begun.partitions {
        return Err(BackupError::Wrong("the nodes are not of one cluster".to_owned()));
    }
    let meta = exported.meta.unwrap_or_default();
    let key_ids = meta.data_keys.iter().map(|key| KeyId {
        practice_no: key.practice_no,
        epoch: key.epoch,
        provider_key_id: key.provider_key_id.clone(),
    });
    let key_ids = key_ids.collect();
    let keys = MetaBackup { data_keys: meta.data_keys, ..Default::default() };
    let rest = MetaBackup { data_keys: Vec::new(), ..meta };
    let (rest, keys) = (Bytes::from(rest.encode_to_vec()), Bytes::from(keys.encode_to_vec()));
    to.put(&format!("{name}/{META}"), rest.clone()).await?;
    to.put(&format!("{name}/{KEYS}"), keys.clone()).await?;
    let manifest = Manifest {
        id: begun.id,
        cluster_id: begun.cluster_id,
        partitions: begun.partitions,
        feature_level: exported.feature_level,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        begun_at_ms: begun.begun_at_ms,
        finished_at_ms: clock_ms(),
        meta_index: exported.index,
        meta: Object::of(&rest),
        keys: Object::of(&keys),
        key_ids,
        parts,
    };
    to.put(&format!("{name}/{MANIFEST}"), manifest.encode()).await?;
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_like_time() {
        assert_eq!(stamp(1_795_383_005_000), "20261122T213005Z");
        assert!(stamp(1_795_383_005_000) < stamp(1_795_383_006_000));
    }
}
