//! Restores a backup into a new cluster.
//!
//! Order: the whole backup is read and checked; every node is asked whether it could take part; only then the first thing is
//! changed. A restore that breaks off goes on when it is run again: the cluster knows where each partition stands.
use super::create::clock_ms;
use super::location::Location;
use super::manifest::{KEYS, META, Manifest, Part, file_name};
use super::nodes::Nodes;
use super::pace::Pace;
use super::verify::verify;
use super::{AT_A_TIME, BackupError, Progress, Watcher};
use crate::admin::Admin;
use bytes::Bytes;
use carillon_proto::admin::restore_partition_request::Kind as Sent;
use carillon_proto::admin::{
    BeginRestoreRequest, CheckRestoreRequest, RestorePartitionRequest, RestorePartitionResponse,
    RestorePartitionStart,
};
use carillon_proto::internal::{MetaBackup, NodeStatus};
use futures::stream::{self, Stream, StreamExt as _, TryStreamExt as _};
use prost::Message as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const PIECE_BYTES: usize = 256 << 10;
/// A new cluster raises its feature level when every node has registered.
const LEVEL_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(300);

/// What came back.
#[derive(Debug, Clone, Default)]
pub struct Restored {
    pub messages: u64,
    /// Held, until an operator decides.
    pub quarantined: u64,
    /// Go on by themselves when their time comes.
    pub waiting: u64,
    pub took_ms: u64,
}

pub async fn restore(
    nodes: &Nodes,
    from: &Location,
    name: &str,
    bytes_per_second: u64,
    watcher: Watcher<'_>,
) -> Result<Restored, BackupError> {
    let start_ms = clock_ms();
    let manifest = verify(from, name, watcher).await?;
    let bad = |what: &str| BackupError::Damaged { name: name.to_owned(), what: what.to_owned() };
    let backup_id: Bytes = hex::decode(&manifest.id).map_err(|_| bad("its id is none"))?.into();
    let meta = meta(from, name).await?;
    check(nodes, &manifest, &backup_id, &meta).await?;
    let begin = BeginRestoreRequest {
        backup_id: backup_id.clone(),
        backup_now_ms: manifest.now_ms().max(manifest.begun_at_ms),
        meta: Some(meta),
    };
    nodes
        .on_leader(0, |_, admin| {
            let begin = begin.clone();
            async move { Ok(admin.begin_restore(begin).await?) }
        })
        .await?;
    let (pace, done) = (Arc::new(Pace::new(bytes_per_second)), AtomicU32::new(0));
    let parts = stream::iter(&manifest.parts).map(|part| {
        let (backup_id, pace, done) = (&backup_id, &pace, &done);
        async move {
            let send = |_, admin| one(from, name, part, backup_id, admin, pace);
            let answer = nodes.on_leader(part.partition, send).await?;
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            watcher(Progress::Partitions { done, all: manifest.partitions });
            Ok::<_, BackupError>(answer)
        }
    });
    let answers: Vec<RestorePartitionResponse> = parts.buffer_unordered(AT_A_TIME).try_collect().await?;
    let sum = |of: fn(&RestorePartitionResponse) -> u64| answers.iter().map(of).sum();
    Ok(Restored {
        messages: sum(|a| a.messages),
        quarantined: sum(|a| a.quarantined),
        waiting: sum(|a| a.waiting),
        took_ms: clock_ms().saturating_sub(start_ms),
    })
}

async fn meta(from: &Location, name: &str) -> Result<MetaBackup, BackupError> {
    let mut meta = MetaBackup::default();
    for object in [META, KEYS] {
        let data = from.get(&format!("{name}/{object}")).await?.unwrap_or_default();
        let damaged = |e: prost::DecodeError| BackupError::Damaged {
            name: name.to_owned(),
            what: format!("{object}: {e}"),
        };
        meta.merge(data).map_err(damaged)?;
    }
    Ok(meta)
}

/// Whether this cluster can take this backup. Changes nothing.
async fn check(
    nodes: &Nodes,
    manifest: &Manifest,
    backup_id: &Bytes,
    meta: &MetaBackup,
) -> Result<(), BackupError> {
    let wrong = |text: String| Err(BackupError::Wrong(text));
    let until = Instant::now() + LEVEL_LIMIT;
    let mut statuses = nodes.statuses().await?;
    while Instant::now() < until && statuses.iter().any(|(s, _)| s.feature_level < manifest.feature_level) {
        tokio::time::sleep(PAUSE).await;
        statuses = nodes.statuses().await?;
    }
    for (status, _) in &statuses {
        if status.cluster_id != manifest.cluster_id {
            return wrong(format!(
                "the backup is of cluster {}, and sealed messages open only in a cluster of that name; node {} is of cluster {}: \
                 create the new cluster with cluster_id = {:?}",
                manifest.cluster_id, status.node_id, status.cluster_id, manifest.cluster_id
            ));
        }
        let partitions = status.map.iter().filter(|row| row.partition != 0).count() as u32;
        if partitions != manifest.partitions {
            return wrong(format!(
                "the backup has {} partitions and the cluster {partitions}: create the new cluster with partitions = {}",
                manifest.partitions, manifest.partitions
            ));
        }
        if status.feature_level < manifest.feature_level {
            return wrong(format!(
                "the backup needs feature level {} and the cluster is at {}; upgrade every node first, `carillonctl node list` \
                 shows who is behind",
                manifest.feature_level, status.feature_level
            ));
        }
    }
    let gone = [NodeStatus::Removed, NodeStatus::Dead];
    let members = statuses[0].0.nodes.iter().filter(|node| !gone.contains(&node.status())).count();
    if statuses.len() < members {
        return wrong(format!(
            "only {} of {members} nodes answer, and each must have the right key provider; name all of them and wait until they run",
            statuses.len()
        ));
    }
    for (_, admin) in statuses {
        let request = CheckRestoreRequest { backup_id: backup_id.clone(), data_keys: meta.data_keys.clone() };
        admin.check_restore(request).await?;
    }
    Ok(())
}

/// One partition to its leader.
async fn one(
    from: &Location,
    name: &str,
    part: &Part,
    backup_id: &Bytes,
    admin: Admin,
    pace: &Arc<Pace>,
) -> Result<RestorePartitionResponse, BackupError> {
    let manifest = part.snapshot();
    let start = RestorePartitionStart { backup_id: backup_id.clone(), manifest };
    let first = RestorePartitionRequest { kind: Some(Sent::Start(start)) };
    let files = (0..part.files.len()).map(|number| format!("{name}/{}", file_name(part.partition, number)));
    let data = data(from.clone(), files.collect(), Arc::clone(pace));
    Ok(admin.restore_partition(stream::iter([first]).chain(data)).await?)
}

/// The bytes of the files in pieces, one file in memory at a time. A file that cannot be read ends the stream, which the node
/// refuses as too short.
fn data(
    from: Location,
    files: Vec<String>,
    pace: Arc<Pace>,
) -> impl Stream<Item = RestorePartitionRequest> + Send + 'static {
    let files = stream::iter(files).then(move |file| {
        let from = from.clone();
        async move { from.get(&file).await.ok().flatten() }
    });
    let files = files.take_while(|data| std::future::ready(data.is_some())).map(Option::unwrap_or_default);
    let pieces = files.flat_map(|data: Bytes| {
        let cuts = (0..data.len()).step_by(PIECE_BYTES);
        let pieces: Vec<Bytes> = cuts.map(|at| data.slice(at..data.len().min(at + PIECE_BYTES))).collect();
        stream::iter(pieces)
    });
    pieces.then(move |piece| {
        let pace = Arc::clone(&pace);
        async move {
            pace.take(piece.len()).await;
            RestorePartitionRequest { kind: Some(Sent::Data(piece)) }
        }
    })
}
