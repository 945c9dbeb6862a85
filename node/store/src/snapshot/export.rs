//! Writes one replica into sorted table files.
use super::{Pace, SNAPSHOT_FILE_BYTES, SnapshotError, file_path};
use crate::state::{Replica, SstWriter};
use bytes::Bytes;
use carillon_proto::internal::{SnapshotFile, SnapshotManifest};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Instant;

/// How an export is made and named.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The node that keeps the files, and their name there.
    pub node_id: u64,
    pub snapshot_id: u64,
    pub file_bytes: u64,
    /// Of reading and writing; 0 = no limit.
    pub bytes_per_second: u64,
    pub feature_level: u32,
}

impl ExportOptions {
    pub fn new(node_id: u64, snapshot_id: u64) -> Self {
        Self { node_id, snapshot_id, file_bytes: SNAPSHOT_FILE_BYTES, bytes_per_second: 0, feature_level: 0 }
    }
}

/// Exports what `replica` has applied at this moment into the new directory `dir`, which appears complete or not at all.
/// Blocking, for a background thread; a limit of bytes per second makes it sleep. It ends early when `stop` says so.
pub fn export(
    replica: &Replica,
    dir: &Path,
    options: &ExportOptions,
    stop: &dyn Fn() -> bool,
) -> Result<SnapshotManifest, SnapshotError> {
    let making = dir.with_extension("making");
    for old in [&making, dir] {
        if old.exists() {
            std::fs::remove_dir_all(old)?;
        }
    }
    std::fs::create_dir_all(&making)?;
    let manifest = write_files(replica, &making, options, stop);
    let manifest = manifest.inspect_err(|_| drop(std::fs::remove_dir_all(&making)))?;
    File::open(&making)?.sync_all()?;
    std::fs::rename(&making, dir)?;
    if let Some(parent) = dir.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(manifest)
}

fn write_files(
    replica: &Replica,
    dir: &Path,
    options: &ExportOptions,
    stop: &dyn Fn() -> bool,
) -> Result<SnapshotManifest, SnapshotError> {
    let group = replica.group();
    let view = replica.snapshot()?;
    let applied = view.applied()?.ok_or(SnapshotError::Empty(group))?;
    let (mut pace, start) = (Pace::new(options.bytes_per_second), Instant::now());
    let mut manifest = SnapshotManifest {
        group,
        index: applied.index,
        term: applied.term,
        node_id: options.node_id,
        snapshot_id: options.snapshot_id,
        digest: applied.digest,
        feature_level: options.feature_level,
        ..Default::default()
    };
    let (mut total, mut spent) = (0, 0);
    let mut rows = view.cursor();
    rows.seek_to_first();
    while rows.valid() {
        let path = file_path(dir, manifest.files.len() as u32);
        let mut writer = SstWriter::create(replica, &path)?;
        let mut bytes = 0;
        while let Some((key, value)) = rows.item() {
            if bytes >= options.file_bytes {
                break;
            }
            writer.put(key, value)?;
            manifest.rows += 1;
            let row = (key.len() + value.len()) as u64;
            (bytes, total) = (bytes + row, total + row);
            if total - spent > 256 << 10 {
                if stop() {
                    return Err(SnapshotError::Stopped);
                }
                std::thread::sleep(pace.spend(total - spent, start.elapsed()));
                spent = total;
            }
            rows.next();
        }
        writer.finish()?;
        let file = describe(&path)?;
        manifest.bytes += file.bytes;
        manifest.files.push(file);
    }
    rows.status()?;
    Ok(manifest)
}

/// Size and hash of a file as it is on disk.
pub(super) fn describe(path: &Path) -> Result<SnapshotFile, SnapshotError> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        hasher.update(&buffer[..read]);
    }
    Ok(SnapshotFile { bytes, blake3: Bytes::copy_from_slice(hasher.finalize().as_bytes()) })
}
