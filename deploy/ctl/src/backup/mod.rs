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
    #[error("there is no directory {0}, so no backup is in it")]
    NoDirectory(String),
    #[error(
        "{0}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_REGION, and AWS_ENDPOINT for a store that is not Amazon's (a role of the machine: AWS_METADATA_ENDPOINT=http://169.254.169.254)"
    )]
    NoCredentials(String),
    #[error(
        "the backup store does not do it: {0}; look at its address, bucket and credentials (AWS_* variables)"
    )]
    Store(String),
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

/// Errors of stores hold their causes three times over and answers as XML: what an operator needs is one line.
impl From<object_store::Error> for BackupError {
    fn from(error: object_store::Error) -> Self {
        let text = error.to_string();
        let between = |tag: &str| {
            let (_, rest) = text.split_once(&format!("<{tag}>"))?;
            rest.split_once(&format!("</{tag}>")).map(|(found, _)| found.to_owned())
        };
        let line = text.split(": <?xml").next().unwrap_or_default().replace('\n', " ");
        Self::Store(match (between("Code"), between("Message")) {
            (Some(code), Some(message)) => format!("{line}: {code}: {message}"),
            _ => line,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_store_is_one_line() {
        let answer = "404 Not Found: <?xml version=\"1.0\"?>\n<Error><Code>NoSuchBucket</Code><Message>The bucket does not exist</Message></Error>";
        let error = object_store::Error::Generic { store: "S3", source: answer.into() };
        let text = BackupError::from(error).to_string();
        assert!(text.contains("404 Not Found: NoSuchBucket: The bucket does not exist;"), "{text}");
        assert!(!text.contains('\n') && !text.contains('<'), "{text}");
    }
}
