//! Checks the files of a snapshot and makes a family of them.
use super::export::describe;
use super::{SnapshotError, file_path};
use crate::failpoints;
use crate::state::{Family, Replica, StateDb};
use carillon_proto::internal::{SnapshotFile, SnapshotManifest};
use std::path::{Path, PathBuf};

/// Whether a file on disk is the one that the manifest names.
pub fn verify_file(path: &Path, number: u32, expected: &SnapshotFile) -> Result<(), SnapshotError> {
    let found = describe(path)?;
    let damaged = |reason: String| Err(SnapshotError::Damaged { file: number, reason });
    if found.bytes != expected.bytes {
        return damaged(format!("{} bytes instead of {}", found.bytes, expected.bytes));
    }
    if found.blake3 != expected.blake3 {
        return damaged("its hash differs".to_owned());
    }
    Ok(())
}

impl StateDb {
    /// Makes `family`, which must not be live, of the verified files in `dir`; they are moved away. When this returns,
    /// the family is complete on disk. On an error nothing is left of it.
    pub fn import(
        &self,
        family: Family,
        manifest: &SnapshotManifest,
        dir: &Path,
    ) -> Result<(), SnapshotError> {
        let mismatch = |reason: String| SnapshotError::Mismatch { group: family.group, reason };
        if manifest.group != family.group || manifest.index == 0 || manifest.files.is_empty() {
            return Err(mismatch("it is of another group, or empty".to_owned()));
        }
        let mut paths: Vec<PathBuf> = Vec::with_capacity(manifest.files.len());
        for (number, expected) in (0..).zip(&manifest.files) {
            let path = file_path(dir, number);
            verify_file(&path, number, expected)?;
            paths.push(path);
        }
        let replica = self.fresh(family)?;
        failpoints::hit("snapshot::before_import");
        let result =
            replica.ingest(paths).map_err(SnapshotError::from).and_then(|()| check(&replica, manifest));
        drop(replica);
        failpoints::hit("snapshot::after_import");
        result.inspect_err(|_| drop(self.destroy_generation(family)))
    }
}

fn check(replica: &Replica, manifest: &SnapshotManifest) -> Result<(), SnapshotError> {
    let group = replica.group();
    let found = replica.applied()?.ok_or(SnapshotError::Empty(group))?;
    if (found.index, found.term, &found.digest) == (manifest.index, manifest.term, &manifest.digest) {
        return Ok(());
    }
    let reason = format!(
        "it holds entry {} of term {}, the manifest names {} of term {}, or the digests differ",
        found.index, found.term, manifest.index, manifest.term
    );
    Err(SnapshotError::Mismatch { group, reason })
}
