//! The pure core: what a message, an attempt and an event are, and how commands change them.
//!
//! Invariants
//!  - Deterministic: the same tables and the same batches give the same tables, results and digest on every
//!    replica. Time comes from the batch, jitter from hashes, order from ordered maps. No clock, no thread, no
//!    randomness, no float, no default-hasher map, no I/O.
//!  - A business refusal is a [`CommandResult::Refused`], never an `Err`. `Err` means corrupt storage and fences
//!    the replica.
//!  - Nothing here sees plaintext of a patient.
//!
//! Not here: time zones, keys, carriers, networks, disks.

pub mod effect;
pub mod tables;

pub use effect::{
    CancelOutcome, CommandResult, DueEntry, Effects, Permit, Refusal, ScheduleChange,
};
pub use tables::{MemTables, ReadTables, TableError, Tables};
