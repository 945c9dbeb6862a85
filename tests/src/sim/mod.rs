//! The deterministic simulator: a whole cluster in one thread under virtual time, everything from one seed.
//!
//! # What runs
//! Three or five founding nodes with a meta group and several partitions, and nodes that join later, run the production code of the
//! pure crates: the raft `Group` of `carillon_consensus`; `apply` of `carillon_core` for partitions and meta group, its planner and
//! its shares of lanes; `Scheduler` and `LaneGate` of `carillon_delivery`. What surrounds them in a node is threads and sockets; its
//! decisions are mirrored here, one file for each: `proposals.rs` (cell), `engine.rs` (shard turn), `log_writer.rs`, `apply.rs`
//! (applier), `recovery.rs` (start, identity), `maintenance.rs`, `members.rs` (replicas come and go), `steward.rs` (what carries the
//! planner's steps out), `operator.rs` (tokens, drain, replace, repair), `wing.rs` (driver), `lanes.rs`, `sending.rs` (one attempt),
//! `facts.rs` (facts, receipts), `snapshot.rs`, `ingest.rs`, `client.rs` (router and callers).
//! A change of that glue in `node/` or `router/` must be made here, too.
//!
//! # What surrounds them
//! `disk.rs` and `store.rs` (unsynced writes lost, torn tails, log and state lost apart, rot, failed syncs, full, slow),
//! `world.rs` (network that drops, repeats, delays, reorders, cuts one way or both, clogs; clocks with offset, drift and
//! jumps), `carrier.rs` (the ground truth; lost, late, double answers and receipts, throttling, hanging).
//!
//! # How a run goes
//! [`Plan::of_seed`] draws the cluster, the rates and the timed faults (each seed its own subset); then trouble for 10 to 30
//! simulated seconds, then calm, in which every message must come to rest, then the comparison. Every random stream has
//! its own salt, so a new draw in one place does not shift another one.
//!
//! # Invariants (`oracle.rs`, `recipients.rs`, `truth.rs`, `finale.rs`)
//!  - I1 every acknowledged submit is there at the end, and found by every read from its acknowledgement on
//!  - I2 one key, one message; another content is a conflict
//!  - I3 no program applies what it does not understand; one leader a term; committed entries, digests and, at the end, whole tables are equal; promises are durable
//!  - I4 a part of an attempt leaves once, after its attempt is committed, and an attempt follows only one that handed
//!    nothing over (or a resend that the class allows and that is counted)
//!  - I5 a message is taken over at most once more often than possible duplicates are counted; EXPIRED, CANCELED and DEAD
//!    messages never were
//!  - I6 no lane passes its limit in any second, whatever happens to the shares; nothing leaves after its expiry; no attempt begins
//!    after a committed STOP
//!  - I7 nothing leaves after `send_by`, unless the writer's wall clock was set
//!  - I8 after the trouble everything ends in bounded time: messages, moves of replicas, repairs, the rise of the feature level
//!  - I9 states move along the table of transitions; the same seed gives the same trace
//!  - I10 ordered messages of a recipient begin one after the other, and never more for a recipient than the caps allow
//!
//! # Bounds of the trouble
//! What is damaged (lost, wiped, rotten) is one node at a time until no group counts on it any more: partitions have three voters.
//! No node is lost below the feature level of membership, where nobody could be called dead.
//!
//! # Not here
//! Retention, admission by disk space, taking opt-outs back. SMPP's own session logic has its conformance suite in `carriers`.

mod apply;
mod carrier;
mod client;
mod disk;
mod engine;
mod facts;
mod faults;
mod finale;
mod follow;
mod ingest;
mod lanes;
mod log_writer;
mod maintenance;
mod members;
mod node;
mod operator;
mod oracle;
mod plan;
mod plant;
mod proposals;
mod recipients;
mod recovery;
mod rng;
mod scenario;
mod sending;
mod settled;
mod shrink;
mod snapshot;
mod steward;
mod store;
mod swarm;
mod trace;
mod truth;
mod wing;
mod world;

pub use finale::{Report, run};
pub use plan::{Cuts, Fault, Plan};
pub use plant::Plant;
pub use scenario::Scenario;
pub use shrink::{Shrunk, shrink};
pub use swarm::{Total, quiet_panics, swarm};
pub use trace::SOMETIMES;
