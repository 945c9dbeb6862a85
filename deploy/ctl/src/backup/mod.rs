//! Backups of a running cluster in a directory or an S3-compatible store, and their restore into a new cluster.
//!
//! Layout below the location, one directory for each backup:
//!
//! | object | what |
//! |---|---|
//! | `begun.json` | written first: which cluster, which id |
//! | `partition-00003/000000.sst` | files of a partition as its leader made them; every value is sealed |
//! | `partition-00003/part.json` | raft position, digest, sizes and hashes; says that the partition is complete |
//! | `meta.pb` | practices and carriers |
//! | `keys.pb` | the data keys as the cluster has them: wrapped by the key provider, whose own keys are never here |
//! | `manifest.json` | written last, with a checksum of its own; without it there is no backup |
//!
//! Invariants: an object is never changed once it is written; a backup without a manifest is not restored; a file that differs in a
//! bit is not restored. Each partition is consistent by itself, as of its own entry; nothing spans partitions.
//! Bounds: [`AT_A_TIME`] partitions at a time, each with one file (about 64 MiB) in memory.
mod calls;
mod create;
mod location;
mod manifest;
mod nodes;
mod pace;
mod restore;
mod verify;

pub use create::{CreateOptions, Created, create};
pub use location::Location;
pub use manifest::{FORMAT, Manifest, Part};
pub use nodes::Nodes;
pub use restore::{Restored, restore};
pub use verify::{Listed, list, newest, verify};

use crate::admin::AdminError;

/// Partitions that are copied at the same time.
const AT_A_TIME: usize = 2;

/// What happened, for whoever watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// So many more bytes were copied or checked.
    Bytes(u64),
    /// So many partitions of all are complete.
    Partitions { done: u32, all: u32 },
}

/// Tells how far it is.
pub type Watcher<'a> = &'a (dyn Fn(Progress) + Sync);

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("{0} is neither a directory nor s3://bucket/prefix")]
    Location(String),
    #[error("backup store: {0}")]
    Store(#[from] object_store::Error),
    #[error("{name} cannot be read: {reason}")]
    Unreadable { name: String, reason: String },
    #[error("there is no backup {0}; `carillonctl backup list` shows what there is")]
    NotFound(String),
    #[error(
        "backup {0} is not complete: it has no manifest; finish it with `carillonctl backup create --resume {0}`, or use another one"
    )]
    Incomplete(String),
    #[error(
        "{name} has format {found} and this program knows {FORMAT}; use the version of carillonctl that made it, or a newer one"
    )]
    NewerFormat { name: String, found: u32 },
    #[error("backup {name} is damaged: {what}; use another backup")]
    Damaged { name: String, what: String },
    #[error("{0}")]
    Wrong(String),
    #[error("node {node} sent another file than it promised: {what}; run `carillonctl scrub` on it")]
    BadFile { node: u64, what: String },
    #[error("node {0} stopped sending")]
    Stalled(u64),
}
