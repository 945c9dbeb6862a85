//! Sans-IO consensus: one raft group around `raft::RawNode`.

pub mod log_store;

pub use log_store::{GroupState, GroupWrite, LogError, LogStore};
