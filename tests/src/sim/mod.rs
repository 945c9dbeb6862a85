//! The deterministic simulator: a whole cluster in one thread under virtual time, everything from one seed.
//!
//! # What runs
//! Three or five founding nodes with a meta group and several partitions, and nodes that join later, run the production code of the
//! pure crates: the raft `Group` of `carillon_consensus` with its proposals, its way to the applier and the cut of its log; `apply` of
//! `carillon_core` for partitions and meta group, its gatherer and planner, its shares of lanes, its cutoffs of retention, its admission
//! by disk space, its bound on clocks, its pieces of a restore; of `carillon_delivery` the `Scheduler`, leases and limits with their
//! slices of daily caps, gates, breakers and hours. What surrounds
//! them in a node is threads and sockets; its decisions are mirrored here, one file for each: `engine.rs` (shard turn), `log_writer.rs`,
//! `apply.rs` (applier), `recovery.rs` (start, identity), `maintenance.rs`, `members.rs` (replicas come and go), `steward.rs` (what
//! carries the planner's steps out), `operator.rs` (tokens, drain, replace, repair), `retention.rs`, `space.rs`, `backup.rs`,
//! `restore.rs`, `wing.rs` (driver), `begin.rs` (attempts begin, practices), `lanes.rs`, `leases.rs`, `sending.rs` (one attempt), `health.rs` (breakers,
//! routes, failover), `facts.rs` (facts, receipts), `care.rs` (appointments), `series.rs` (recurring messages), `snapshot.rs`, `ingest.rs`, `client.rs` (router and callers). A change of that glue in `node/` or `router/` must be made here, too.
//!
//! # What surrounds them
//! `disk.rs` and `store.rs` (unsynced writes lost, torn tails, log and state lost apart, rot in both, failed syncs, full, slow),
//! `world.rs` (network that drops, repeats, delays, reorders, cuts one way or both, clogs; clocks with offset, drift and
//! jumps), `carrier.rs` (the ground truth; lost, late, double answers and receipts, throttling, hanging).
//!
//! # How a run goes
//! [`Plan::of_seed`] draws the cluster, the rates and the timed faults (each seed its own subset, `draw.rs`); then trouble for 10 to 30
//! simulated seconds, then calm, in which every message must come to rest, then the comparison. Every random stream has
//! its own salt, so a new draw in one place does not shift another one. Every step of persistence is an event of its own (written,
//! synced, applied, flushed, cut), so crashes fall between any two of them.
//!
//! # Settings
//! `settings.rs`: what operators set of a run besides (stacked limits and their changes, daily caps, weights, fuses, a route), a part of it in
//! many seeds, more of it in the scenarios of `pressure.rs`.
//!
//! # Invariants (`oracle.rs`, `recipients.rs`, `truth.rs`, `retention.rs`, `space.rs`, `backup.rs`, `finale.rs`)
//!  - I1 every acknowledged submit is there at the end, and found by every read from its acknowledgement on, until its retention has
//!    passed; it is in every backup that began after it
//!  - I2 one key, one message, for as long as the message is there and the key's own time lasts; another content is a conflict
//!  - I3 no program applies what it does not understand; one leader a term; committed entries, digests and, at the end, whole tables
//!    are equal; promises are durable
//!  - I4 a part of an attempt leaves once, after its attempt is committed, and an attempt follows only one that handed
//!    nothing over (or a resend that the class or an operator allows and that is counted)
//!  - I5 a message is taken over at most once more often than possible duplicates are counted; EXPIRED, CANCELED and DEAD
//!    messages never were; nothing in quarantine is begun by itself
//!  - I6 no lane passes its limit in any second, whatever happens to the shares, and no stacked limit in any window or on any day
//!    (`stack.rs`), also not when its parts leave at once, and of a lowered one nothing by the old amount once it counts as settled;
//!    nothing leaves after its expiry; no attempt begins after a committed STOP
//!  - I7 nothing leaves after `send_by`, unless the writer's wall clock was set; no attempt begins and nothing leaves outside the
//!    recipient's hours (`nights.rs`)
//!  - I8 limits are used while nothing is in the way; after the trouble everything ends in bounded time: messages, calls, moves of replicas, repairs, restores, retention, the rise of
//!    the feature level
//!  - I9 states move along the table of transitions; the same seed gives the same trace
//!  - I10 a change of an appointment takes effect for all its messages or for none, versions rise, and no attempt begins with an older
//!    text; what a carrier may have is never given to another one; an occurrence of a series comes into being once; ordered
//!    messages of a recipient begin one after the other, and never more for a recipient than the caps allow
//!  - I11 one wrong clock moves no stamp by more than the bound
//!  - I13 (`turns.rs`) nobody starves: a practice with a single message waits for no more than a counted number of segments of the
//!    others, less urgent ones pass a message only as ageing allows, which they really get, and backlogs share by weight; practices without narrow
//!    limits have room beside those that have them (`stack.rs`)
//!  - I14 (`fuses.rs`) a content is accepted once in its window and refused only for a reason, no recipient gets much more than a burst,
//!    nothing of a paused practice begins
//!  - I15 (`health.rs`) nothing begins on a lane whose breaker is open
//!  - I16 (`rows.rs`) who waits has its rows, and nobody else
//!  - I12 a node that could see that its disk is nearly full takes no new message
//!
//! # Bounds of the trouble
//! What is damaged (lost, wiped, rotten) is one node at a time until no group counts on it any more: partitions have three voters.
//! No node is lost below the feature level of membership, where nobody could be called dead. Beyond that everything may be lost at
//! once, if there is a backup.
//!
//! # Not here
//! Taking opt-outs back. SMPP's own session logic has its conformance suite in `carriers`. There is no audit chain yet, so it
//! is no invariant.

mod apply;
mod backup;
mod begin;
mod care;
mod carrier;
mod client;
mod disk;
mod draw;
mod engine;
mod event;
mod facts;
mod faults;
mod finale;
mod follow;
mod fuses;
mod health;
mod ingest;
mod lanes;
mod leases;
mod log_writer;
mod maintenance;
mod members;
mod nights;
mod node;
mod operator;
mod oracle;
mod plan;
mod plant;
mod pressure;
mod reads;
mod recipients;
mod recovery;
mod restore;
mod retention;
mod rng;
mod rows;
mod scenario;
mod sending;
mod series;
mod settings;
mod settled;
mod shrink;
mod snapshot;
mod space;
mod stack;
mod steward;
mod store;
mod swarm;
mod trace;
mod truth;
mod turns;
mod wing;
mod world;

pub use finale::{Report, run};
pub use plan::{Cuts, Fault, Plan};
pub use plant::Plant;
pub use scenario::Scenario;
pub use shrink::{Shrunk, shrink};
pub use swarm::{Total, quiet_panics, swarm};
pub use trace::SOMETIMES;
