//! The state database of a node: one RocksDB with its WAL off, a column family for each replica generation.
//!
//! Owns the families `g{group}.{generation}` and everything in them. Invariants
//!  - All rows of a replica, its applied record among them, live in one family. Committed rows wait in memory for a while
//!    (`overlay.rs`) and then become part of the database as whole tables in one step (`write_back.rs`), in the order of their
//!    commits. So what is on disk is always a prefix of the apply order and the applied record says which. Memtables stay empty.
//!  - The raft log is the WAL: after a crash the caller replays it from [`StateDb::durable_applied`].
//!  - Any write error is final: everything that comes later gets it, too.
//!  - Of several generations of a group one is live: the one that the raft log names ([`StateDb::set_live`]). Others are
//!    being imported, or wait to be dropped.
//!
//! A clean drop writes everything back, so a planned restart replays nothing.
//! Not here: keys and records of tables (core), when to write back a replica that is quiet ([`FlushPacer`] decides, the caller acts), replay.

mod batch;
mod family;
mod options;
mod overlay;
mod pacer;
mod replica;
mod scrub;
mod stats;
mod write_back;

pub use batch::{ApplyBatch, CommitStats};
pub use family::Family;
pub use options::StateOptions;
pub use pacer::{FlushPacer, PacerLimits};
pub(crate) use replica::SstWriter;
pub use replica::{Replica, ReplicaSnapshot};
pub use scrub::{DAMAGED_FILE, ScrubPosition};
pub use stats::{MemoryStats, StateMetrics};

use crate::failpoints;
use carillon_proto::internal::AppliedRecord;
use options::DbParts;
use parking_lot::Mutex;
use prost::Message;
use rocksdb::{ColumnFamilyDescriptor, DBWithThreadMode, MultiThreaded, ReadOptions, ReadTier};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

/// Of a group that was created here; installed snapshots have later ones.
pub const FIRST_GENERATION: u64 = 1;

pub(crate) type Db = DBWithThreadMode<MultiThreaded>;

/// Why the state database could not do it. All but [`StateError::Ambiguous`] and [`StateError::NoReplica`] are fatal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error("state database: {0}")]
    Database(String),
    /// Stored bytes are not what was written; the text names the file.
    #[error("state database is damaged: {0}")]
    Damaged(String),
    #[error("applied record of group {group} cannot be decoded")]
    CorruptApplied { group: u32 },
    /// A snapshot install was interrupted; the caller knows from the log which generation is live.
    #[error("group {group} has several generations: {generations:?}")]
    Ambiguous { group: u32, generations: Vec<u64> },
    #[error("replica {0} does not exist")]
    NoReplica(Family),
}

impl From<rocksdb::Error> for StateError {
    fn from(error: rocksdb::Error) -> Self {
        match error.kind() {
            rocksdb::ErrorKind::Corruption => Self::Damaged(error.to_string()),
            _ => Self::Database(error.to_string()),
        }
    }
}

impl StateError {
    /// Whether it says that stored bytes changed, and not that something could not be done.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged(_) | Self::CorruptApplied { .. })
    }
}

/// What the database, its replicas and their batches share.
pub(crate) struct Shared {
    pub db: Db,
    pub parts: DbParts,
    pub applied_key: Vec<u8>,
    pub path: PathBuf,
    pub damaged: Mutex<BTreeMap<Family, String>>,
    waiting_bytes: usize,
    share_bytes_min: usize,
    families: AtomicUsize,
    /// Bytes of rows given to RocksDB since open.
    written_bytes: AtomicU64,
    /// The first write error.
    failed: OnceLock<StateError>,
    /// To the thread that writes back, as long as it runs.
    writer: Mutex<Option<SyncSender<Arc<Replica>>>>,
}

/// A replica's share of what may wait in memory is never more: a larger table takes too long to write.
const SHARE_BYTES_MAX: usize = 8 << 20;

impl Shared {
    pub fn check(&self) -> Result<(), StateError> {
        self.failed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    pub fn fail(&self, error: StateError) -> StateError {
        self.failed.get_or_init(|| error).clone()
    }

    /// Rows of one replica that may wait before they are written.
    pub fn share_bytes(&self) -> usize {
        let even = self.waiting_bytes / self.families.load(Ordering::Relaxed).max(1);
        even.min(SHARE_BYTES_MAX).max(self.share_bytes_min)
    }

    pub fn ask_write_back(&self, replica: Arc<Replica>) -> bool {
        self.writer.lock().as_ref().is_some_and(|writer| writer.try_send(replica).is_ok())
    }

    pub fn count_written(&self, bytes: usize) {
        self.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    pub fn handle(&self, family: &str) -> Option<Arc<rocksdb::BoundColumnFamily<'_>>> {
        self.db.cf_handle(family)
    }
}

/// See the module documentation.
pub struct StateDb {
    shared: Arc<Shared>,
    replicas: Mutex<BTreeMap<Family, Arc<Replica>>>,
    /// Generation by group, where there may be several. At most one entry for each group.
    live: Mutex<BTreeMap<u32, u64>>,
    unknown: Vec<String>,
    writer: Option<JoinHandle<()>>,
}

impl StateDb {
    /// Opens or creates the database with all families that are in it.
    pub fn open(path: &Path, options: &StateOptions) -> Result<Self, StateError> {
        let parts = options.build();
        let damaged = scrub::load(path)?;
        let existing =
            if path.join("CURRENT").exists() { Db::list_cf(&parts.db_options, path)? } else { Vec::new() };
        let descriptors = existing
            .iter()
            .map(|name| {
                let mut family_options = parts.family_options.clone();
                let known = Family::parse(name).is_some_and(|family| damaged.contains_key(&family));
                family_options.set_disable_auto_compactions(known);
                ColumnFamilyDescriptor::new(name.clone(), family_options)
            })
            .collect::<Vec<_>>();
        let db = if descriptors.is_empty() {
            Db::open(&parts.db_options, path)?
        } else {
            Db::open_cf_descriptors(&parts.db_options, path, descriptors)?
        };
        let io = |error: std::io::Error| StateError::Database(format!("writer of tables: {error}"));
        write_back::make_directory(path).map_err(io)?;
        let (sender, writer) = write_back::start().map_err(io)?;
        let shared = Arc::new(Shared {
            db,
            parts,
            applied_key: options.applied_key.clone(),
            path: path.to_path_buf(),
            damaged: Mutex::new(damaged),
            waiting_bytes: options.waiting_bytes,
            share_bytes_min: options.share_bytes_min,
            families: AtomicUsize::new(0),
            written_bytes: AtomicU64::new(0),
            failed: OnceLock::new(),
            writer: Mutex::new(Some(sender)),
        });
        let mut replicas = BTreeMap::new();
        let mut unknown = Vec::new();
        for name in existing.into_iter().filter(|name| name != rocksdb::DEFAULT_COLUMN_FAMILY_NAME) {
            match Family::parse(&name) {
                Some(family) => {
                    replicas.insert(family, Replica::new(shared.clone(), family));
                }
                None => unknown.push(name),
            }
        }
        shared.families.store(replicas.len(), Ordering::Relaxed);
        let writer = Some(writer);
        Ok(Self { shared, replicas: Mutex::new(replicas), live: Mutex::default(), unknown, writer })
    }

    /// All replica families, in order.
    pub fn families(&self) -> Vec<Family> {
        self.replicas.lock().keys().copied().collect()
    }

    /// Families found at open whose name is of no replica. Nothing here touches them.
    pub fn unknown_families(&self) -> &[String] {
        &self.unknown
    }

    /// From now on `replica` gives this generation. It must exist, unless it is the first one.
    pub fn set_live(&self, family: Family) -> Result<(), StateError> {
        if family.generation > FIRST_GENERATION && !self.replicas.lock().contains_key(&family) {
            return Err(StateError::NoReplica(family));
        }
        self.live.lock().insert(family.group, family.generation);
        Ok(())
    }

    /// At start: makes the named generations live and drops every other family: half-made imports, replaced
    /// generations, groups that left. Gives what was dropped.
    pub fn keep_only(&self, live: &BTreeMap<u32, u64>) -> Result<Vec<Family>, StateError> {
        for (group, generation) in live {
            self.set_live(Family { group: *group, generation: *generation })?;
        }
        let others = self.families().into_iter().filter(|f| live.get(&f.group) != Some(&f.generation));
        let others: Vec<Family> = others.collect();
        for family in &others {
            self.destroy_generation(*family)?;
        }
        Ok(others)
    }

    /// The family that reads of a group go to.
    fn live_family(&self, group: u32) -> Option<Family> {
        let live = self.live.lock().get(&group).copied();
        let generation = live.or_else(|| self.generations(group).into_iter().next_back())?;
        Some(Family { group, generation })
    }

    /// A generation of the group that does not exist and is above all that do.
    pub fn next_generation(&self, group: u32) -> u64 {
        let live = self.live.lock().get(&group).copied();
        self.generations(group).into_iter().chain(live).max().unwrap_or(FIRST_GENERATION) + 1
    }

    /// A family that is empty, whatever there was.
    pub(crate) fn fresh(&self, family: Family) -> Result<Arc<Replica>, StateError> {
        assert_ne!(self.live.lock().get(&family.group), Some(&family.generation), "{family} is live");
        match self.destroy_generation(family) {
            Ok(()) | Err(StateError::NoReplica(_)) => self.replica_at(family),
            Err(error) => Err(error),
        }
    }

    /// The live replica of a group, or its only one; its family is created (generation 1) when there is none.
    pub fn replica(&self, group: u32) -> Result<Arc<Replica>, StateError> {
        let live = self.live.lock().get(&group).copied();
        if let Some(generation) = live {
            return self.replica_at(Family { group, generation });
        }
        let generations = self.generations(group);
        match generations.as_slice() {
            [] => self.replica_at(Family { group, generation: FIRST_GENERATION }),
            [generation] => self.replica_at(Family { group, generation: *generation }),
            _ => Err(StateError::Ambiguous { group, generations }),
        }
    }

    /// The replica in a named generation, created if it does not exist.
    pub fn replica_at(&self, family: Family) -> Result<Arc<Replica>, StateError> {
        let mut replicas = self.replicas.lock();
        if let Some(replica) = replicas.get(&family) {
            return Ok(replica.clone());
        }
        self.shared.check()?;
        self.shared
            .db
            .create_cf(family.to_string(), &self.shared.parts.family_options)
            .map_err(|error| self.shared.fail(error.into()))?;
        let replica = Replica::new(self.shared.clone(), family);
        replicas.insert(family, replica.clone());
        self.shared.families.store(replicas.len(), Ordering::Relaxed);
        Ok(replica)
    }

    /// Removes all generations of a group and their bytes. Reads of replicas still held elsewhere fail afterwards.
    pub fn destroy(&self, group: u32) -> Result<(), StateError> {
        self.live.lock().remove(&group);
        for generation in self.generations(group) {
            self.destroy_generation(Family { group, generation })?;
        }
        Ok(())
    }

    pub fn destroy_generation(&self, family: Family) -> Result<(), StateError> {
        let mut replicas = self.replicas.lock();
        let Some(replica) = replicas.remove(&family) else { return Err(StateError::NoReplica(family)) };
        self.shared.families.store(replicas.len(), Ordering::Relaxed);
        failpoints::hit("replica::before_drop");
        let dropped = replica.between_writes(|| self.shared.db.drop_cf(&family.to_string()));
        dropped.map_err(|error| self.shared.fail(error.into()))?;
        failpoints::hit("replica::after_drop");
        drop(replicas);
        self.forget_damage(family)
    }

    /// The applied record that would be found after a crash now; `None` when nothing of the group is on disk.
    pub fn durable_applied(&self, group: u32) -> Result<Option<AppliedRecord>, StateError> {
        let replica = self.existing(group)?;
        let handle = replica.handle()?;
        let mut read = ReadOptions::default();
        // Skips memtables, if there were any.
        read.set_read_tier(ReadTier::Persisted);
        let value = self.shared.db.get_pinned_cf_opt(&handle, &self.shared.applied_key, &read)?;
        decode_applied(group, value.as_deref())
    }

    /// Writes all of a group's rows to disk and waits for it. Blocking; for a background thread.
    pub fn flush(&self, group: u32) -> Result<Option<AppliedRecord>, StateError> {
        self.existing(group)?.write_back()?;
        self.durable_applied(group)
    }

    pub fn memory_stats(&self) -> MemoryStats {
        let waiting = self.replicas.lock().values().map(|replica| replica.layers.read().bytes()).sum();
        MemoryStats::read(&self.shared, &self.families(), waiting)
    }

    /// Reads the counters of the database and sets the `carillon_state_*` metrics.
    pub fn metrics(&self) -> StateMetrics {
        let metrics = StateMetrics::read(&self.shared, &self.families());
        metrics.publish(&self.memory_stats());
        metrics
    }

    /// A copy of what is on disk now, without the rows that wait: what a crash would leave. Also the base of backups,
    /// which flush first.
    pub fn checkpoint(&self, path: &Path) -> Result<(), StateError> {
        let checkpoint = rocksdb::checkpoint::Checkpoint::new(&self.shared.db)?;
        Ok(checkpoint.create_checkpoint_with_log_size(path, u64::MAX)?)
    }

    fn generations(&self, group: u32) -> Vec<u64> {
        self.replicas
            .lock()
            .keys()
            .filter(|family| family.group == group)
            .map(|family| family.generation)
            .collect()
    }

    fn existing(&self, group: u32) -> Result<Arc<Replica>, StateError> {
        match self.generations(group).is_empty() {
            true => Err(StateError::NoReplica(Family { group, generation: 1 })),
            false => self.replica(group),
        }
    }
}

impl Drop for StateDb {
    fn drop(&mut self) {
        drop(self.shared.writer.lock().take());
        if let Some(writer) = self.writer.take() {
            drop(writer.join());
        }
        for replica in self.replicas.lock().values() {
            // Without success the next start replays more: the log has everything.
            drop(replica.write_back());
        }
    }
}

pub(crate) fn decode_applied(group: u32, value: Option<&[u8]>) -> Result<Option<AppliedRecord>, StateError> {
    value
        .map(|bytes| AppliedRecord::decode(bytes).map_err(|_| StateError::CorruptApplied { group }))
        .transpose()
}
