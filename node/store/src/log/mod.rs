//! The raft log of all groups of a node, on disk.
//!
//! Both candidates keep one [`record::GroupRecord`] for each group (hard state, membership, truncation, last index)
//! that is written in the same atomic batch as the entries it describes, and a checksum with each entry.
//! What they do not do: decide when to truncate, or run a thread of their own.

mod checksum;
mod engine;
mod files;
mod preflight;
mod record;
mod rocks;

pub use engine::{EngineLog, EngineLogOptions};
pub use rocks::{RocksLog, RocksLogOptions};

use carillon_consensus::LogError;

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("raft log i/o: {0}")]
    Io(String),
    /// Acknowledged bytes are missing or changed. The replicas of this node must be re-seeded under new ids.
    #[error("raft log is damaged: {file} at byte {offset}: {reason}")]
    Damaged { file: String, offset: u64, reason: String },
    #[error(transparent)]
    Log(#[from] LogError),
}

impl From<std::io::Error> for OpenError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.to_string())
    }
}
