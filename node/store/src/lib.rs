//! The two storage engines of a node: the raft log of all groups and the state database.
//!
//! Owns
//!  - [`log`]: two candidates behind `LogStore`, [`EngineLog`] (raft-engine, one segment log for all groups) and
//!    [`RocksLog`] (a WAL-synced RocksDB). Both pass one conformance suite.
//!  - [`snapshot`]: a replica as files, and files as a replica.
//!  - [`state`]: one RocksDB with its WAL off, a column family for each replica generation. The raft log is the WAL.
//!
//! Invariants
//!  - What `LogStore::write` acknowledged with `sync` is found again after any crash, or opening fails. It is never
//!    silently shortened.
//!  - The applied record of a replica and its rows are one prefix of the apply order, in memory and on disk.
//!  - Any error of a write is final: the store refuses everything after it, the caller stops the process.
//!
//! Not here: raft, apply, when to truncate, threads.

pub mod failpoints;
pub mod log;
pub mod snapshot;
pub mod state;

pub use log::{EngineLog, EngineLogOptions, OpenError, RocksLog, RocksLogOptions};
pub use snapshot::SnapshotError;
pub use state::{
    ApplyBatch, CommitStats, DAMAGED_FILE, FIRST_GENERATION, Family, FlushPacer, MemoryStats, PacerLimits,
    Replica, ReplicaSnapshot, ScrubPosition, StateDb, StateError, StateMetrics, StateOptions,
};
