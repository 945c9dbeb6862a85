//! Restores for operators: whether a cluster can take a backup, its meta rows, its partitions.
//!
//! Everything that could be wrong is looked at before the first change; what is found later (a leader lost) leaves a restore that
//! goes on where it stopped when it is run again.
use super::admin::change;
use super::backup::{backup_status, led};
use crate::engine::NodeHandle;
use crate::engine::snapshot::{FEATURE_LEVEL, RestoreRoom};
use crate::meta::MetaClient;
use crate::restore::{self, RestoreError};
use crate::seal::{Keyring, KeyringError};
use carillon_core::query;
use carillon_proto::admin::restore_partition_request::Kind as Part;
use carillon_proto::admin::{
    BeginRestoreRequest, BeginRestoreResponse, CheckRestoreRequest, RestorePartitionRequest,
    RestorePartitionResponse, RestorePartitionStart,
};
use carillon_proto::internal::{
    BeginRestore, ClusterRestore, MetaBackup, PartitionRestore, PartitionRestored, RestoreMeta,
    SnapshotManifest, meta_command::Kind,
};
use carillon_store::snapshot::file_path;
use futures::{Stream, StreamExt as _};
use prost::Message as _;
use tokio::io::AsyncWriteExt as _;
use tonic::Status;

/// Of the rows in one command of the meta group.
const META_PIECE_BYTES: usize = 128 * 1024;
const FILES_MAX: usize = 1 << 16;

pub(super) struct Restores<'a> {
    pub handle: &'a NodeHandle,
    pub meta: &'a MetaClient,
    pub keyring: &'a Keyring,
}

fn restore_status(error: &RestoreError) -> Status {
    match error {
        RestoreError::NotLeader(_) => Status::unavailable(error.to_string()),
        RestoreError::NotFresh(_) | RestoreError::OutOfOrder(_) | RestoreError::Malformed(_) => {
            Status::failed_precondition(error.to_string())
        }
        RestoreError::Propose(error) => Status::unavailable(error.to_string()),
        RestoreError::Tables(_) | RestoreError::Thread => Status::internal(error.to_string()),
    }
}

impl Restores<'_> {
    pub fn check(&self, request: &CheckRestoreRequest) -> Result<(), Status> {
        let node = self.handle.node_id();
        self.keyring.can_open(&request.data_keys).map_err(|error| {
            let own = self.keyring.provider_key_id();
            let needed = request.data_keys.iter().find(|key| key.provider_key_id != own);
            let needed = needed.map_or("another", |key| key.provider_key_id.as_str());
            Status::failed_precondition(match error {
                KeyringError::Provider(_) => format!(
                    "the key provider of node {node} (key {own}) does not open the keys of the backup, which were wrapped \
                     with {needed}: give every node of the new cluster the key provider of the old one (`[keys]` of its \
                     configuration), restart it, and try again"
                ),
                error => format!("node {node} cannot look at the keys: {error}"),
            })
        })?;
        if self.handle.space().near_full() {
            return Err(Status::failed_precondition(format!(
                "the disk of node {node} is nearly full; a restore needs about three times the size of the backup"
            )));
        }
        let view = self.handle.meta();
        match &view.restore {
            Some(restore) if restore.backup_id != request.backup_id => {
                return Err(Status::failed_precondition(
                    "this cluster was begun with another backup; restore into a new cluster",
                ));
            }
            Some(restore) if restore.done => {
                return Err(Status::failed_precondition(
                    "this backup was restored into this cluster already",
                ));
            }
            Some(_) => return Ok(()),
            None => {}
        }
        if !view.practices.is_empty() {
            return Err(Status::failed_precondition(
                "the cluster has practices of its own; restore into a new cluster, before any practice is registered",
            ));
        }
        for group in self.handle.hosted().borrow().keys().filter(|group| **group != 0) {
            let tables = self.handle.local_tables(*group).map_err(|_| super::internal("no such replica"))?;
            if query::holds_messages(&*tables).map_err(|_| super::internal("unreadable rows"))? {
                return Err(Status::failed_precondition(format!(
                    "partition {group} holds messages; restore into a new cluster"
                )));
            }
        }
        Ok(())
    }

    pub async fn begin(&self, request: BeginRestoreRequest) -> Result<BeginRestoreResponse, Status> {
        let BeginRestoreRequest { backup_id, backup_now_ms, meta } = request;
        let meta = meta.unwrap_or_default();
        let keys = meta.data_keys.clone();
        self.check(&CheckRestoreRequest { backup_id: backup_id.clone(), data_keys: keys })?;
        let begin = BeginRestore { backup_id: backup_id.clone(), backup_now_ms };
        change(self.meta, Kind::BeginRestore(begin)).await?;
        for rows in meta_pieces(meta) {
            let piece = RestoreMeta { backup_id: backup_id.clone(), rows: Some(rows) };
            change(self.meta, Kind::RestoreMeta(piece)).await?;
        }
        tracing::info!(backup = hex::encode(&backup_id), "restore of a backup begun");
        Ok(BeginRestoreResponse { restore: self.handle.meta().restore.clone() })
    }

    /// The files of one partition come in, are checked, and their rows are proposed.
    pub async fn partition(
        &self,
        mut parts: impl Stream<Item = Result<RestorePartitionRequest, Status>> + Unpin,
    ) -> Result<RestorePartitionResponse, Status> {
        let first = parts.next().await.transpose()?.and_then(|part| part.kind);
        let Some(Part::Start(start)) = first else {
            return Err(Status::invalid_argument("the first part must be the start"));
        };
        let (cluster, manifest) = self.check_start(start)?;
        let partition = manifest.group;
        let standing =
            restore::standing(self.handle, partition).await.map_err(|error| restore_status(&error))?;
        let record = match standing {
            Some(record) if record.done && record.backup_id == cluster.backup_id => record,
            _ => {
                let hub = self.handle.snapshots();
                let room = hub.restore_room().map_err(|error| backup_status(&error))?;
                receive(&room, &manifest, parts).await?;
                let staged = hub.stage_restore(manifest, room).await;
                let staged = staged.map_err(|error| backup_status(&error))?;
                let fed = restore::feed(self.handle, partition, &cluster, &staged).await;
                fed.map_err(|error| restore_status(&error))?
            }
        };
        let backup_id = cluster.backup_id.clone();
        change(self.meta, Kind::PartitionRestored(PartitionRestored { backup_id, partition })).await?;
        let PartitionRestore { messages, quarantined, waiting, .. } = record;
        tracing::info!(partition, messages, quarantined, waiting, "partition restored");
        Ok(RestorePartitionResponse { messages, quarantined, waiting })
    }

    fn check_start(
        &self,
        start: RestorePartitionStart,
    ) -> Result<(ClusterRestore, SnapshotManifest), Status> {
        let manifest = start.manifest.unwrap_or_default();
        led(self.handle, manifest.group)?;
        let cluster = self.handle.meta().restore.clone();
        let cluster = cluster.filter(|restore| restore.backup_id == start.backup_id).ok_or_else(|| {
            Status::failed_precondition("this restore was not begun here; begin with the meta group")
        })?;
        if manifest.files.is_empty() || manifest.files.len() > FILES_MAX {
            return Err(Status::invalid_argument("the manifest names no files, or too many"));
        }
        if manifest.feature_level > FEATURE_LEVEL {
            return Err(Status::failed_precondition(format!(
                "the backup needs feature level {}, this node has {FEATURE_LEVEL}; install a newer version",
                manifest.feature_level
            )));
        }
        Ok((cluster, manifest))
    }
}

/// Writes the files of the manifest, one after the other. Their hashes are checked when they are read.
async fn receive(
    room: &RestoreRoom,
    manifest: &SnapshotManifest,
    mut parts: impl Stream<Item = Result<RestorePartitionRequest, Status>> + Unpin,
) -> Result<(), Status> {
    let io = |error: std::io::Error| Status::aborted(format!("the files cannot be written: {error}"));
    let mut data = bytes::Bytes::new();
    for (number, expected) in (0..).zip(&manifest.files) {
        let path = file_path(&room.dir, number);
        let mut file = tokio::fs::File::create(path).await.map_err(io)?;
        let mut left = expected.bytes;
        while left > 0 {
            if data.is_empty() {
                data = match parts.next().await.transpose()?.and_then(|part| part.kind) {
                    Some(Part::Data(data)) => data,
                    _ => return Err(Status::invalid_argument("the files ended early")),
                };
            }
            let piece = data.split_to(data.len().min(left.min(1 << 20) as usize));
            file.write_all(&piece).await.map_err(io)?;
            left -= piece.len() as u64;
            metrics::counter!("carillon_restore_received_bytes_total").increment(piece.len() as u64);
        }
        file.sync_all().await.map_err(io)?;
    }
    Ok(())
}

/// Rows in commands that fit: carriers first, because practices name them.
fn meta_pieces(rows: MetaBackup) -> Vec<MetaBackup> {
    let mut pieces = vec![MetaBackup::default()];
    let mut bytes = 0;
    let mut room = |pieces: &mut Vec<MetaBackup>, row: usize| {
        if bytes + row > META_PIECE_BYTES {
            pieces.push(MetaBackup::default());
            bytes = 0;
        }
        bytes += row + 8;
    };
    macro_rules! give {
        ($($list:ident),*) => {$(
            for row in rows.$list {
                room(&mut pieces, row.encoded_len());
                pieces.last_mut().expect("there is one").$list.push(row);
            }
        )*};
    }
    give!(carriers, practices, policies, data_keys, senders, routes, limits, lanes, breakers, pauses);
    if let Some(row) = rows.hours {
        room(&mut pieces, row.encoded_len());
        pieces.last_mut().expect("there is one").hours = Some(row);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::internal::*;

    #[test]
    fn meta_rows_are_cut_into_commands_that_fit_and_none_is_lost() {
        let practice =
            |practice_no| PracticeRecord { practice_no, practice: "x".repeat(100), ..Default::default() };
        let key = |practice_no| DataKeyRecord {
            practice_no,
            wrapped_key: vec![7; 60].into(),
            ..Default::default()
        };
        let rows = MetaBackup {
            carriers: vec![CarrierRecord { carrier_no: 1, ..Default::default() }],
            practices: (1..=3_000).map(practice).collect(),
            data_keys: (1..=3_000).map(key).collect(),
            routes: vec![RouteRecord { route_no: 1, ..Default::default() }],
            policies: vec![PolicyRecord { tenant: "t".to_owned(), ..Default::default() }],
            limits: vec![LimitBackup { cap: Some(Default::default()), ..Default::default() }],
            lanes: vec![LaneRecord { carrier_no: 1, ..Default::default() }],
            breakers: vec![BreakerRecord { carrier_no: 1, ..Default::default() }],
            pauses: vec![PauseRecord { practice_no: 3, ..Default::default() }],
            hours: Some(HoursRecord { version: 2, ..Default::default() }),
            senders: vec![SenderRecord { sender_no: 1, ..Default::default() }],
        };
        let pieces = meta_pieces(rows.clone());
        assert!(pieces.len() > 3 && pieces.iter().all(|p| p.encoded_len() < META_PIECE_BYTES + 64 * 1024));
        let joined = pieces.into_iter().fold(MetaBackup::default(), |mut all, piece| {
            all.carriers.extend(piece.carriers);
            all.practices.extend(piece.practices);
            all.data_keys.extend(piece.data_keys);
            all.routes.extend(piece.routes);
            all.policies.extend(piece.policies);
            all.limits.extend(piece.limits);
            all.lanes.extend(piece.lanes);
            all.breakers.extend(piece.breakers);
            all.pauses.extend(piece.pauses);
            all.senders.extend(piece.senders);
            all.hours = all.hours.or(piece.hours);
            all
        });
        assert_eq!(joined, rows);
    }
}
