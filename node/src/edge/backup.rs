//! Backups for operators: the files of partitions, the rows of the meta group. Nothing here opens a message, and no key leaves
//! but wrapped.
use super::propose_status;
use crate::engine::snapshot::{BackupError, ChunkStream};
use crate::engine::{NodeHandle, ProposeError};
use crate::meta::MetaClient;
use carillon_core::applied_record;
use carillon_proto::admin::{
    ExportMetaResponse, ExportPartitionRequest, ExportPartitionResponse, ReleaseExportRequest,
};
use carillon_proto::internal::{FetchSnapshotRequest, LimitBackup, MetaBackup};
use std::time::Duration;
use tonic::Status;

const META_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Backups<'a> {
    pub handle: &'a NodeHandle,
    pub meta: &'a MetaClient,
}

/// A partition that this node leads.
pub(super) fn led(handle: &NodeHandle, partition: u32) -> Result<u32, Status> {
    if !(1..=handle.partitions()).contains(&partition) {
        return Err(Status::invalid_argument(format!("there is no partition {partition}")));
    }
    if !handle.is_leader(partition) {
        let leader = handle.leadership(partition).leader;
        return Err(Status::unavailable(format!(
            "this node does not lead partition {partition}; ask node {leader}"
        )));
    }
    Ok(partition)
}

pub(super) fn backup_status(error: &BackupError) -> Status {
    match error {
        BackupError::Busy | BackupError::RestoresBusy => Status::resource_exhausted(error.to_string()),
        BackupError::Stopping => Status::unavailable(error.to_string()),
        BackupError::Snapshot(_) => Status::aborted(error.to_string()),
    }
}

impl Backups<'_> {
    pub async fn export(&self, request: &ExportPartitionRequest) -> Result<ExportPartitionResponse, Status> {
        let partition = led(self.handle, request.partition)?;
        if self.handle.meta().is_restoring() {
            return Err(Status::failed_precondition("a restore is under way; back up when it is done"));
        }
        if self.handle.space().near_full() {
            return Err(Status::resource_exhausted(
                "the disk of this node is nearly full, and the files of a backup need room; free some or move leaders",
            ));
        }
        // With it everything acknowledged so far is applied here, and so in the files.
        let tables = self.handle.read(partition).await.map_err(|error| match error {
            ProposeError::NotLeader { leader_hint } => Status::unavailable(format!(
                "this node does not lead partition {partition} any more; ask node {leader_hint}"
            )),
            error => propose_status(&error),
        })?;
        let now_ms = applied_record(&*tables).map_err(|_| super::internal("unreadable record"))?.now_ms;
        let made = self.handle.snapshots().export_for_backup(partition).await;
        let manifest = made.map_err(|error| backup_status(&error))?;
        Ok(ExportPartitionResponse { manifest: Some(manifest), now_ms })
    }

    pub fn fetch(&self, request: FetchSnapshotRequest) -> Result<ChunkStream, Status> {
        self.handle.snapshots().serve(FetchSnapshotRequest { replica_id: 0, ..request })
    }

    pub fn release(&self, request: &ReleaseExportRequest) {
        self.handle.snapshots().release_backup(request.partition, request.snapshot_id);
    }

    pub async fn meta(&self) -> Result<ExportMetaResponse, Status> {
        let caught_up = tokio::time::timeout(META_TIMEOUT, self.meta.caught_up()).await;
        caught_up.map_err(|_| Status::unavailable("the meta group has no leader that answers"))?;
        let view = self.handle.meta();
        Ok(ExportMetaResponse {
            cluster_id: view.cluster_id.clone(),
            partitions: view.partitions,
            feature_level: view.level,
            meta: Some(MetaBackup {
                practices: view.practices.values().cloned().collect(),
                carriers: view.carriers.values().cloned().collect(),
                data_keys: view.data_keys.values().cloned().collect(),
                routes: view.routes.values().cloned().collect(),
                policies: super::policy::records(&view),
                limits: view
                    .limits
                    .values()
                    .map(|limit| LimitBackup {
                        limit: Some(limit.clone()),
                        cap: view.caps.get(&limit.limit_no).copied(),
                    })
                    .collect(),
                lanes: view.lanes.values().copied().collect(),
                breakers: view.breakers.values().copied().collect(),
                pauses: view.pauses.values().copied().collect(),
                hours: (view.hours.version > 0).then(|| view.hours.clone()),
            }),
            index: view.applied_index,
        })
    }
}
