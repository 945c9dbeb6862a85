//! The meta wing: how this node changes the meta group, and the steward that creates the cluster's first record.
//!
//! The meta state itself is pure and lives in `carillon_core::meta`; its replica runs in the engine as group 0.
mod client;
mod steward;

pub use client::{MetaClient, MetaError};
pub use steward::run as run_steward;
