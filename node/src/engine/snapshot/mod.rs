//! The files of snapshots on this node: made and offered by leaders, fetched and imported by followers.
//!
//! Raft decides when (`carillon_consensus`, `snapshot.rs`); the shard asks the [`Hub`], which never blocks it. One thread
//! ([`worker`]) makes, imports and drops; [`fetch`] runs on the runtime; [`serve`] streams to other nodes. All of them
//! share one limit of bytes per second for each direction.
//! Bounds: one export or import at a time, [`FETCHES_MAX`] fetches and [`STREAMS_MAX`] outgoing streams at a time; in the
//! queue of the worker a few items for each group, because the shard asks for one at a time: it never gets to [`WORK_MAX`].
mod backup;
mod fetch;
mod serve;
mod worker;

pub use backup::{BackupError, RestoreRoom, Staged};
pub use serve::ChunkStream;
pub(super) use worker::run as run_worker;

use super::peers::PeerChannels;
use super::shard::{ShardMessage, SnapshotMessage};
use bytes::Bytes;
use carillon_consensus::SnapshotFetch;
use carillon_proto::internal::peer_client::PeerClient;
use carillon_proto::internal::{ReportSnapshotRequest, SnapshotManifest};
use carillon_proto::replica::node_of;
use carillon_store::{Family, StateDb};
use crossbeam_channel::{Sender, TrySendError};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};

/// What apply of this version understands; a snapshot from a later one is refused.
pub const FEATURE_LEVEL: u32 = 0;
/// Orders for the worker: 16 for each of 256 groups.
pub(super) const WORK_MAX: usize = 4096;
const FETCHES_MAX: usize = 2;
const STREAMS_MAX: usize = 4;
/// An export that nobody has asked for in this time is dropped.
const KEEP_EXPORT: Duration = Duration::from_secs(120);
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// What the worker is asked to do.
pub(super) enum Work {
    Export {
        group: u32,
    },
    Import {
        group: u32,
        replica_id: u64,
        fetch: SnapshotFetch,
        manifest: Box<SnapshotManifest>,
        dir: PathBuf,
    },
    /// Files for a backup; raft is not told.
    Backup {
        group: u32,
        reply: oneshot::Sender<Result<SnapshotManifest, BackupError>>,
    },
    /// A family of verified files that is read and then dropped; it never becomes the state.
    Stage {
        manifest: Box<SnapshotManifest>,
        dir: PathBuf,
        reply: oneshot::Sender<Result<Family, BackupError>>,
    },
    /// Passed on to the shard, which may be busy: the worker may wait.
    Tell(ShardMessage),
    /// A family that was replaced. Readers may still hold it for a moment.
    Retire(Family),
    DropFamily(Family),
    /// All of a group that left, then tell the shard.
    Destroy {
        group: u32,
    },
    Stop,
}

/// An offered snapshot.
struct Export {
    dir: PathBuf,
    manifest: SnapshotManifest,
    last_used: Instant,
    /// Of a backup and not of raft.
    backup: bool,
}

/// See the module documentation. Shared by the shard, the worker and the peer plane.
pub struct Hub {
    node_id: u64,
    /// `out`, `in` and `restore` are below it.
    dir: PathBuf,
    bytes_per_second: u64,
    state: Arc<StateDb>,
    inbox: Sender<ShardMessage>,
    work: Sender<Work>,
    runtime: tokio::runtime::Handle,
    channels: Arc<PeerChannels>,
    /// By group and snapshot id. At most two for each group: the offered one and one that is still being fetched; and
    /// those of backups (`backup.rs`).
    exports: Mutex<BTreeMap<(u32, u64), Export>>,
    /// The fetch of each group.
    fetches: Mutex<BTreeMap<u32, tokio::task::AbortHandle>>,
    fetch_slots: Arc<Semaphore>,
    stream_slots: Arc<Semaphore>,
    restore_slots: Arc<Semaphore>,
    outgoing: Throttle,
    incoming: Throttle,
    stop: AtomicBool,
}

pub(super) struct HubParts {
    pub node_id: u64,
    pub dir: PathBuf,
    pub bytes_per_second: u64,
    pub state: Arc<StateDb>,
    pub inbox: Sender<ShardMessage>,
    pub work: Sender<Work>,
    pub channels: Arc<PeerChannels>,
}

impl Hub {
    /// Must run inside the runtime. Exports of an earlier run are dropped; files that were being fetched are kept, so
    /// that fetching goes on where it stopped.
    pub(super) fn new(parts: HubParts) -> anyhow::Result<Self> {
        let HubParts { node_id, dir, bytes_per_second, state, inbox, work, channels } = parts;
        for old in [dir.join("out"), dir.join("restore")] {
            if old.exists() {
                fs_err::remove_dir_all(&old)?;
            }
            fs_err::create_dir_all(&old)?;
        }
        fs_err::create_dir_all(dir.join("in"))?;
        Ok(Self {
            node_id,
            dir,
            bytes_per_second,
            state,
            inbox,
            work,
            runtime: tokio::runtime::Handle::current(),
            channels,
            exports: Mutex::default(),
            fetches: Mutex::default(),
            fetch_slots: Arc::new(Semaphore::new(FETCHES_MAX)),
            stream_slots: Arc::new(Semaphore::new(STREAMS_MAX)),
            restore_slots: Arc::new(Semaphore::new(backup::RESTORES_MAX)),
            outgoing: Throttle::new(bytes_per_second),
            incoming: Throttle::new(bytes_per_second),
            stop: AtomicBool::new(false),
        })
    }

    /// Never waits. The worker is gone when the node is stopping.
    pub(super) fn ask(&self, work: Work) {
        if let Err(TrySendError::Full(_)) = self.work.try_send(work) {
            tracing::error!("the queue of the snapshot thread is full; an order was dropped");
        }
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        for fetch in std::mem::take(&mut *self.fetches.lock()).into_values() {
            fetch.abort();
        }
        self.ask(Work::Stop);
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Fetches what a leader announced; takes the place of an earlier fetch of the group.
    pub(super) fn fetch(self: &Arc<Self>, group: u32, replica_id: u64, fetch: SnapshotFetch) {
        let task = self.runtime.spawn(fetch::run(Arc::clone(self), group, replica_id, fetch));
        if let Some(earlier) = self.fetches.lock().insert(group, task.abort_handle()) {
            earlier.abort();
        }
    }

    pub(super) fn forget_fetch(&self, group: u32) {
        if let Some(fetch) = self.fetches.lock().remove(&group) {
            fetch.abort();
        }
    }

    /// Tells a leader what became of its snapshot. Best effort: it has a deadline.
    pub(super) fn report(&self, group: u32, replica_id: u64, leader: u64, index: u64, installed: bool) {
        let Some(channel) = self.channels.get(node_of(leader)) else { return };
        self.runtime.spawn(async move {
            let mut request =
                tonic::Request::new(ReportSnapshotRequest { group, replica_id, index, installed });
            request.set_timeout(REPORT_TIMEOUT);
            if let Err(status) = PeerClient::new(channel).report_snapshot(request).await {
                tracing::debug!(group, code = ?status.code(), "snapshot report lost");
            }
        });
    }

    fn tell(&self, group: u32, message: SnapshotMessage) {
        self.ask(Work::Tell(ShardMessage::Snapshot { group, message }));
    }

    fn export_dir(&self, group: u32, snapshot_id: u64) -> PathBuf {
        self.dir.join("out").join(format!("{group}-{snapshot_id:016x}"))
    }

    fn add_export(&self, manifest: SnapshotManifest, dir: PathBuf, backup: bool) {
        let key = (manifest.group, manifest.snapshot_id);
        self.exports.lock().insert(key, Export { dir, manifest, last_used: Instant::now(), backup });
    }

    /// Drops exports that nobody wants; gives their names.
    fn expire_exports(&self) -> Vec<(u32, u64)> {
        let mut exports = self.exports.lock();
        let old = exports.iter().filter(|(_, export)| export.last_used.elapsed() > KEEP_EXPORT);
        let old: Vec<(u32, u64)> = old.map(|(key, _)| *key).collect();
        for key in &old {
            if let Some(export) = exports.remove(key)
                && let Err(error) = fs_err::remove_dir_all(&export.dir)
            {
                tracing::warn!(%error, "snapshot files stay behind until the next start");
            }
        }
        metrics::gauge!("carillon_snapshot_exports").set(exports.len() as f64);
        old
    }
}

/// A made snapshot, as the shard offers it.
#[derive(Debug, Clone)]
pub struct Made {
    pub snapshot_id: u64,
    pub index: u64,
    pub term: u64,
    pub manifest: Bytes,
}

/// A rate that several tasks share: each one reserves its bytes and waits for its turn.
struct Throttle {
    bytes_per_second: u64,
    free_at: Mutex<Instant>,
}

impl Throttle {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    async fn take(&self, bytes: usize) {
        if self.bytes_per_second == 0 {
            return;
        }
        let start = {
            let mut free_at = self.free_at.lock();
            let start = (*free_at).max(Instant::now());
            *free_at = start + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            start
        };
        tokio::time::sleep_until(start.into()).await;
    }
}
