//! Files of partitions for backups, and families made of the files of a backup.
//!
//! A backup takes the same files as a snapshot, from a view of the leader that has everything acknowledged before; raft does not
//! hear of them. A restore brings such files back into a family beside the live one, which checks every hash and compares the
//! content with the manifest; its rows are read from there and proposed as commands (`crate::restore`), then it is dropped. A
//! restart drops it too, because the raft log does not name it.
//! Bounds: [`BACKUPS_MAX`] exports for backups and [`RESTORES_MAX`] restores at a time on a node.
use super::{Hub, Work};
use carillon_proto::internal::SnapshotManifest;
use carillon_store::snapshot::SnapshotError;
use carillon_store::{Family, Replica};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

const BACKUPS_MAX: usize = 4;
pub(super) const RESTORES_MAX: usize = 2;

/// Why files were not made or not taken.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{BACKUPS_MAX} exports for backups are open on this node; try again in two minutes")]
    Busy,
    #[error("{RESTORES_MAX} restores are running on this node; try again later")]
    RestoresBusy,
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("the node is stopping")]
    Stopping,
}

/// The rows of a backup, for as long as this is kept.
pub struct Staged {
    hub: Arc<Hub>,
    family: Family,
    pub rows: Arc<Replica>,
    _room: RestoreRoom,
}

/// Where the files of a backup are collected; removed when this is dropped.
pub struct RestoreRoom {
    pub dir: PathBuf,
    _slot: OwnedSemaphorePermit,
}

impl Drop for RestoreRoom {
    fn drop(&mut self) {
        if let Err(error) = fs_err::remove_dir_all(&self.dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "files of a restore stay behind until the next start");
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.hub.ask(Work::DropFamily(self.family));
    }
}

impl Hub {
    /// Makes files of what this node has of the group. Confirm its leadership before.
    pub async fn export_for_backup(&self, group: u32) -> Result<SnapshotManifest, BackupError> {
        if self.exports.lock().values().filter(|export| export.backup).count() >= BACKUPS_MAX {
            return Err(BackupError::Busy);
        }
        let (reply, made) = oneshot::channel();
        self.ask(Work::Backup { group, reply });
        made.await.unwrap_or(Err(BackupError::Stopping))
    }

    /// On the worker.
    pub(super) fn backup(&self, group: u32) -> Result<SnapshotManifest, BackupError> {
        let (snapshot_id, manifest) = self.make(group)?;
        tracing::info!(group, index = manifest.index, bytes = manifest.bytes, "exported for a backup");
        metrics::counter!("carillon_backup_exports_total").increment(1);
        self.add_export(manifest.clone(), self.export_dir(group, snapshot_id), true);
        Ok(manifest)
    }

    /// The files were fetched, or are not wanted any more.
    pub fn release_backup(&self, group: u32, snapshot_id: u64) {
        let mut exports = self.exports.lock();
        if !exports.get(&(group, snapshot_id)).is_some_and(|export| export.backup) {
            return;
        }
        if let Some(export) = exports.remove(&(group, snapshot_id))
            && let Err(error) = fs_err::remove_dir_all(&export.dir)
        {
            tracing::warn!(%error, "files of a backup stay behind until the next start");
        }
    }

    /// A new directory for the files of one partition.
    pub fn restore_room(&self) -> Result<RestoreRoom, BackupError> {
        let slot =
            Arc::clone(&self.restore_slots).try_acquire_owned().map_err(|_| BackupError::RestoresBusy)?;
        let dir = self.dir.join("restore").join(format!("{:016x}", rand::random::<u64>()));
        fs_err::create_dir_all(&dir).map_err(SnapshotError::Io)?;
        Ok(RestoreRoom { dir, _slot: slot })
    }

    /// Makes a readable family of the files in a room. They must be what the manifest says.
    pub async fn stage_restore(
        self: &Arc<Self>,
        manifest: SnapshotManifest,
        room: RestoreRoom,
    ) -> Result<Staged, BackupError> {
        let (reply, made) = oneshot::channel();
        self.ask(Work::Stage { manifest: Box::new(manifest), dir: room.dir.clone(), reply });
        let family = made.await.unwrap_or(Err(BackupError::Stopping))?;
        let rows = self.state.replica_at(family).map_err(SnapshotError::State)?;
        Ok(Staged { hub: Arc::clone(self), family, rows, _room: room })
    }

    /// On the worker, so that nobody else makes a generation of the group meanwhile.
    pub(super) fn stage(
        &self,
        manifest: &SnapshotManifest,
        dir: &Path,
        reply: oneshot::Sender<Result<Family, BackupError>>,
    ) {
        let family = Family { group: manifest.group, generation: self.state.next_generation(manifest.group) };
        let made = self.state.import(family, manifest, dir).map(|()| family);
        if let Err(Ok(family)) = reply.send(made.map_err(BackupError::from)) {
            // The caller has gone away.
            self.drop_family(family);
        }
    }
}
