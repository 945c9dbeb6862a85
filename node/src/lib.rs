//! The node: replicas of partitions and of the meta group, and everything around them.
//!
//! Wings: [`engine`] (raft, log, apply), [`edge`] (what comes in over gRPC), [`seal`] (encryption), [`delivery`] (what goes
//! out to carriers), [`meta`] (changes of the meta group). [`node`] wires them together and stops them in order.
pub mod clock;
pub mod config;
pub mod delivery;
pub mod edge;
pub mod engine;
pub mod failpoints;
pub mod hours;
pub mod leave;
pub mod meta;
pub mod node;
pub mod planes;
pub mod restore;
pub mod retention;
pub mod seal;
pub mod series;
pub mod space;
