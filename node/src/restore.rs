//! Feeds the rows of a backup to a partition that this node leads, as commands like any other.
//!
//! Invariants: one piece at a time, each after the one before is applied; where the partition stands is read from its own state,
//! so a feed that broke off (a leader lost, a node killed) is done again from there, here or on another node.
//! Not here: files (`engine/snapshot/backup.rs`), what becomes of a row (`core/restore.rs`).
use crate::engine::snapshot::Staged;
use crate::engine::{NodeHandle, ProposeError};
use bytes::Bytes;
use carillon_core::{
    CommandResult, Refusal, TableError, base_of_restored_events, next_piece, position_after, query,
};
use carillon_proto::internal::{ClusterRestore, Command, PartitionRestore, Restore, command::Kind};
use prost::Message as _;
use std::sync::Arc;
use std::time::Duration;

/// Of one piece: it fits into a proposal with room for what encoding adds.
const PIECE_BYTES: usize = 160 * 1024;
/// The node has too much in flight.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(
        "this node does not lead partition {0} any more; run the restore again, it goes on where it stopped"
    )]
    NotLeader(u32),
    #[error("partition {0} holds messages or another backup; restore into a new cluster")]
    NotFresh(u32),
    #[error("somebody else restores partition {0} at this moment; run the restore again when that has ended")]
    OutOfOrder(u32),
    #[error("partition {0} refused a piece of the backup; it was made by another version, use that one")]
    Malformed(u32),
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error(transparent)]
    Tables(#[from] TableError),
    #[error("a thread of the node ended")]
    Thread,
}

/// Where the partition stands, confirmed with a majority.
pub async fn standing(handle: &NodeHandle, partition: u32) -> Result<Option<PartitionRestore>, RestoreError> {
    let tables = handle.read(partition).await.map_err(|error| match error {
        ProposeError::NotLeader { .. } => RestoreError::NotLeader(partition),
        error => error.into(),
    })?;
    Ok(query::restore(&*tables)?)
}

/// Proposes everything that the partition does not have yet.
pub async fn feed(
    handle: &NodeHandle,
    partition: u32,
    cluster: &ClusterRestore,
    staged: &Staged,
) -> Result<PartitionRestore, RestoreError> {
    let events_base = base_of_restored_events(&*staged.rows)?;
    let before = standing(handle, partition).await?;
    let mut position = before.and_then(|record| record.position).unwrap_or_default();
    loop {
        let (tables, after) = (Arc::clone(&staged.rows), position.clone());
        let cut = tokio::task::spawn_blocking(move || next_piece(&*tables, &after, PIECE_BYTES)).await;
        let (rows, last) = cut.map_err(|_| RestoreError::Thread)??;
        let next = position_after(position.clone(), &rows);
        metrics::counter!("carillon_restore_rows_total").increment(rows.len() as u64);
        let piece = Restore {
            backup_id: cluster.backup_id.clone(),
            guard_ms: cluster.guard_ms,
            events_base,
            after: Some(position),
            rows,
            last,
        };
        propose(handle, partition, piece).await?;
        position = next;
        if last {
            return standing(handle, partition).await?.ok_or(RestoreError::NotFresh(partition));
        }
    }
}

async fn propose(handle: &NodeHandle, partition: u32, piece: Restore) -> Result<(), RestoreError> {
    let command = Bytes::from(Command { kind: Some(Kind::Restore(piece)) }.encode_to_vec());
    loop {
        let answer = match handle.propose(partition, vec![command.clone()]).await {
            Ok(results) => results.into_iter().next(),
            Err(ProposeError::Busy) => {
                tokio::time::sleep(BUSY_PAUSE).await;
                continue;
            }
            Err(ProposeError::NotLeader { .. } | ProposeError::Uncertain) => {
                return Err(RestoreError::NotLeader(partition));
            }
            Err(error) => return Err(error.into()),
        };
        return match answer {
            Some(CommandResult::Done) => Ok(()),
            Some(CommandResult::Refused(Refusal::NotFresh)) => Err(RestoreError::NotFresh(partition)),
            Some(CommandResult::Refused(Refusal::OutOfOrder)) => Err(RestoreError::OutOfOrder(partition)),
            _ => Err(RestoreError::Malformed(partition)),
        };
    }
}
