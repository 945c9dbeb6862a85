//! Fetches the files of a snapshot from the node that offers it: file by file, each one from where it stopped, verified by
//! its hash before it counts.
use super::{FEATURE_LEVEL, Hub, Work};
use crate::engine::shard::SnapshotMessage;
use crate::failpoints;
use anyhow::{Context as _, ensure};
use carillon_consensus::SnapshotFetch;
use carillon_proto::internal::peer_client::PeerClient;
use carillon_proto::internal::{FetchSnapshotRequest, SnapshotChunk, SnapshotManifest};
use carillon_store::snapshot::{file_path, verify_file};
use prost::Message as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

/// Failures in a row without a byte of progress, after which the snapshot is given up. The leader offers it again.
const FAILURES_MAX: u32 = 6;
/// Nothing came for so long: the stream is dead.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);
const FILES_MAX: usize = 1 << 16;

/// Fetches everything, then hands it to the worker. Gives up with a report.
pub(super) async fn run(hub: Arc<Hub>, group: u32, replica_id: u64, fetch: SnapshotFetch) {
    let start = Instant::now();
    let Ok(_slot) = hub.fetch_slots.clone().acquire_owned().await else { return };
    match all(&hub, group, replica_id, &fetch).await {
        Ok((manifest, dir)) => {
            tracing::info!(
                group,
                index = fetch.index,
                bytes = manifest.bytes,
                took_ms = start.elapsed().as_millis() as u64,
                "snapshot fetched"
            );
            hub.ask(Work::Import { group, replica_id, fetch, manifest: Box::new(manifest), dir });
        }
        Err(error) => {
            tracing::warn!(group, index = fetch.index, error = format!("{error:#}"), "snapshot not fetched");
            metrics::counter!("carillon_snapshot_failures_total", "step" => "fetch").increment(1);
            let message = SnapshotMessage::Fetched { index: fetch.index, term: fetch.term, generation: None };
            hub.tell(group, message);
            hub.report(group, replica_id, fetch.from, fetch.index, false);
        }
    }
}

async fn all(
    hub: &Hub,
    group: u32,
    replica_id: u64,
    fetch: &SnapshotFetch,
) -> anyhow::Result<(SnapshotManifest, PathBuf)> {
    let manifest = SnapshotManifest::decode(fetch.data.clone()).context("manifest")?;
    ensure!(
        (manifest.group, manifest.index, manifest.term) == (group, fetch.index, fetch.term),
        "the manifest is of another snapshot"
    );
    ensure!(manifest.files.len() <= FILES_MAX, "{} files", manifest.files.len());
    ensure!(
        manifest.feature_level == FEATURE_LEVEL,
        "it needs feature level {}, this node has {FEATURE_LEVEL}",
        manifest.feature_level
    );
    let channel = hub.channels.get(manifest.node_id).context("its node is unknown")?;
    let dir = prepare(hub, &manifest).await?;
    for file in 0..manifest.files.len() as u32 {
        let mut failures = 0;
        loop {
            let before = length(&file_path(&dir, file)).await;
            match one(hub, &channel, &manifest, replica_id, &dir, file).await {
                Ok(()) => break,
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(error)) => {
                    let progress = length(&file_path(&dir, file)).await > before;
                    failures = if progress { 0 } else { failures + 1 };
                    if failures >= FAILURES_MAX {
                        return Err(error.context(format!("file {file}, {failures} times in a row")));
                    }
                    tracing::debug!(group, file, error = format!("{error:#}"), "snapshot fetch goes on");
                    tokio::time::sleep(Duration::from_millis(200) * (failures + 1)).await;
                }
            }
        }
    }
    Ok((manifest, dir))
}

enum Failure {
    Again(anyhow::Error),
    Final(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Again(error.into())
    }
}

/// The directory of this snapshot; directories of other snapshots of the group go.
async fn prepare(hub: &Hub, manifest: &SnapshotManifest) -> anyhow::Result<PathBuf> {
    let root = hub.dir.join("in");
    let name = format!("{}-{}-{:016x}", manifest.group, manifest.node_id, manifest.snapshot_id);
    let mut entries = tokio::fs::read_dir(&root).await?;
    while let Some(entry) = entries.next_entry().await? {
        let other = entry.file_name().to_string_lossy().into_owned();
        if other != name && other.starts_with(&format!("{}-", manifest.group)) {
            tokio::fs::remove_dir_all(entry.path()).await?;
        }
    }
    let dir = root.join(name);
    tokio::fs::create_dir_all(&dir).await?;
    Ok(dir)
}

async fn length(path: &Path) -> u64 {
    tokio::fs::metadata(path).await.map_or(0, |m| m.len())
}

/// Appends what comes; gives how far the file has come.
async fn receive(
    hub: &Hub,
    chunks: &mut Streaming<SnapshotChunk>,
    out: &mut tokio::fs::File,
    mut offset: u64,
    bytes: u64,
) -> Result<u64, Failure> {
    loop {
        let chunk =
            tokio::time::timeout(CHUNK_TIMEOUT, chunks.message()).await.context("nothing comes")??;
        let Some(chunk) = chunk else { return Ok(offset) };
        offset += chunk.data.len() as u64;
        if offset > bytes {
            return Ok(offset);
        }
        hub.incoming.take(chunk.data.len()).await;
        out.write_all(&chunk.data).await?;
        metrics::counter!("carillon_snapshot_received_bytes_total").increment(chunk.data.len() as u64);
    }
}

/// The rest of one file, and its check. A file that fails the check starts from nothing.
async fn one(
    hub: &Hub,
    channel: &Channel,
    manifest: &SnapshotManifest,
    replica_id: u64,
    dir: &Path,
    file: u32,
) -> Result<(), Failure> {
    let expected = manifest.files[file as usize].clone();
    let path = file_path(dir, file);
    let mut offset = length(&path).await;
    if offset < expected.bytes {
        if offset > 0 {
            tracing::info!(group = manifest.group, file, offset, "snapshot file goes on where it stopped");
        }
        let mut out = tokio::fs::File::options().create(true).append(true).open(&path).await?;
        let (group, snapshot_id) = (manifest.group, manifest.snapshot_id);
        let request = FetchSnapshotRequest { group, snapshot_id, file, offset, replica_id };
        let call = PeerClient::new(channel.clone()).fetch_snapshot(request).await;
        let mut chunks = match call {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == Code::NotFound => {
                return Err(Failure::Final(anyhow::anyhow!("it is not offered any more")));
            }
            Err(status) => return Err(Failure::Again(status.into())),
        };
        let received = receive(hub, &mut chunks, &mut out, offset, expected.bytes).await;
        // Also after an error: what was written before it must be in the file when its length is looked at again.
        out.flush().await?;
        offset = received?;
        failpoints::hit("snapshot::before_fetched");
        out.sync_all().await?;
    }
    if offset < expected.bytes {
        return Err(Failure::Again(anyhow::anyhow!(
            "the stream ended at {offset} of {} bytes",
            expected.bytes
        )));
    }
    let checked = path.clone();
    let check = tokio::task::spawn_blocking(move || verify_file(&checked, file, &expected)).await?;
    if let Err(error) = check {
        tokio::fs::remove_file(&path).await?;
        return Err(Failure::Again(error.into()));
    }
    failpoints::hit("snapshot::after_fetched");
    Ok(())
}
