//! The calls of backups and restores on the admin API.
use super::BackupError;
use crate::admin::{Admin, AdminError};
use bytes::Bytes;
use carillon_proto::admin::{
    BeginRestoreRequest, CheckRestoreRequest, ExportMetaRequest, ExportMetaResponse, ExportPartitionRequest,
    ExportPartitionResponse, ListQuarantineRequest, ListQuarantineResponse, ReleaseExportRequest,
    ResolveQuarantineRequest, ResolveQuarantineResponse, RestorePartitionRequest, RestorePartitionResponse,
};
use carillon_proto::internal::{FetchSnapshotRequest, SnapshotChunk};
use futures::Stream;
use std::time::Duration;
use tonic::{Request, Streaming};

/// A node reads all of a partition for an export, and writes all of it for a restore, at a limited rate.
const LONG_TIMEOUT: Duration = Duration::from_secs(4 * 3_600);
/// Keys are unwrapped one by one.
const CHECK_TIMEOUT: Duration = Duration::from_secs(120);

fn long<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

impl Admin {
    pub(super) async fn export_partition(
        &self,
        partition: u32,
    ) -> Result<ExportPartitionResponse, AdminError> {
        let request = long(ExportPartitionRequest { partition }, LONG_TIMEOUT);
        let answer = self.client.clone().export_partition(request).await;
        Ok(answer.map_err(|s| AdminError::of("export of the partition", s))?.into_inner())
    }

    pub(super) async fn fetch_export(
        &self,
        request: FetchSnapshotRequest,
    ) -> Result<Streaming<SnapshotChunk>, AdminError> {
        let answer = self.client.clone().fetch_export(long(request, LONG_TIMEOUT)).await;
        Ok(answer.map_err(|s| AdminError::of("fetch of a file", s))?.into_inner())
    }

    pub(super) async fn release_export(&self, partition: u32, snapshot_id: u64) -> Result<(), AdminError> {
        let request = Self::request(ReleaseExportRequest { partition, snapshot_id });
        let answer = self.client.clone().release_export(request).await;
        answer.map(drop).map_err(|s| AdminError::of("release of the files", s))
    }

    pub(super) async fn export_meta(&self) -> Result<ExportMetaResponse, AdminError> {
        let answer = self.client.clone().export_meta(Self::request(ExportMetaRequest {})).await;
        Ok(answer.map_err(|s| AdminError::of("export of the meta group", s))?.into_inner())
    }

    pub(super) async fn check_restore(&self, request: CheckRestoreRequest) -> Result<(), AdminError> {
        let answer = self.client.clone().check_restore(long(request, CHECK_TIMEOUT)).await;
        answer.map(drop).map_err(|s| AdminError::of("check before the restore", s))
    }

    pub(super) async fn begin_restore(&self, request: BeginRestoreRequest) -> Result<(), AdminError> {
        let answer = self.client.clone().begin_restore(long(request, CHECK_TIMEOUT)).await;
        answer.map(drop).map_err(|s| AdminError::of("begin of the restore", s))
    }

    pub(super) async fn restore_partition(
        &self,
        parts: impl Stream<Item = RestorePartitionRequest> + Send + 'static,
    ) -> Result<RestorePartitionResponse, AdminError> {
        let answer = self.client.clone().restore_partition(long(parts, LONG_TIMEOUT)).await;
        Ok(answer.map_err(|s| AdminError::of("restore of the partition", s))?.into_inner())
    }

    /// Messages in quarantine, of the partitions that the node leads.
    pub async fn list_quarantine(
        &self,
        request: ListQuarantineRequest,
    ) -> Result<ListQuarantineResponse, AdminError> {
        let answer = self.client.clone().list_quarantine(long(request, CHECK_TIMEOUT)).await;
        Ok(answer.map_err(|s| AdminError::of("list of the quarantine", s))?.into_inner())
    }

    /// Gives the number of messages.
    pub async fn resolve_quarantine(
        &self,
        request: ResolveQuarantineRequest,
    ) -> Result<ResolveQuarantineResponse, AdminError> {
        let answer = self.client.clone().resolve_quarantine(long(request, LONG_TIMEOUT)).await;
        Ok(answer.map_err(|s| AdminError::of("change of the quarantine", s))?.into_inner())
    }
}

/// Nothing came for so long: the stream is dead.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);

/// The next chunk of a file.
pub(super) async fn next_chunk(
    node: u64,
    chunks: &mut Streaming<SnapshotChunk>,
) -> Result<Option<Bytes>, BackupError> {
    let chunk = tokio::time::timeout(CHUNK_TIMEOUT, chunks.message()).await;
    let chunk = chunk.map_err(|_| BackupError::Stalled(node))?;
    Ok(chunk.map_err(|s| AdminError::of("fetch of a file", s))?.map(|chunk| chunk.data))
}
