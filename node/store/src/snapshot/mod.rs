//! Snapshots of one replica as files: export, check, import.
//!
//! An export is a directory of sorted tables, made from one view of the database. The applied record is a row like the
//! others, so whatever moment the view is of, it says exactly which entries are in it; nobody has to stop for it.
//! An import ingests such files into a family of a new generation and compares the applied record with the manifest. The
//! family counts only once the raft log names its generation: until then it is a leftover that the next start drops.
//!
//! Values are sealed by those who write them, so the files tell no more than the database does.
//! Not here: moving files between nodes, choosing generations, when to make or drop one.

mod export;
mod import;

pub use export::{ExportOptions, export};
pub use import::verify_file;

use crate::StateError;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Of one table file; the last one may be smaller.
pub const SNAPSHOT_FILE_BYTES: u64 = 64 << 20;

/// Why a snapshot could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("snapshot i/o: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    State(#[from] StateError),
    /// There is nothing to export: no entry was applied.
    #[error("group {0} has applied nothing")]
    Empty(u32),
    #[error("stopped")]
    Stopped,
    #[error("snapshot file {file} is not what the manifest says: {reason}")]
    Damaged { file: u32, reason: String },
    /// The files are intact, but their content is not what the manifest says.
    #[error("snapshot of group {group} is not what the manifest says: {reason}")]
    Mismatch { group: u32, reason: String },
}

impl From<rocksdb::Error> for SnapshotError {
    fn from(error: rocksdb::Error) -> Self {
        Self::State(error.into())
    }
}

/// Where a file of a snapshot lies in its directory.
pub fn file_path(dir: &Path, file: u32) -> PathBuf {
    dir.join(format!("{file:06}.sst"))
}

/// Holds work to a rate, over the whole of it. Sans-IO: time comes from the caller.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: u64,
    bytes: u64,
}

impl Pace {
    /// 0 = no limit.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, bytes: 0 }
    }

    /// Counts bytes; gives how long to wait before the next ones, `elapsed` after the start.
    pub fn spend(&mut self, bytes: u64, elapsed: Duration) -> Duration {
        self.bytes += bytes;
        if self.bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let due = Duration::from_secs_f64(self.bytes as f64 / self.bytes_per_second as f64);
        due.saturating_sub(elapsed)
    }
}
