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

mod accept;
mod applied;
mod apply;
mod attempt;
mod cancel;
pub mod classes;
pub mod clock;
mod dead_letter;
mod digest;
mod duplicate;
pub mod effect;
mod frequency;
pub mod keys;
mod leader;
pub mod message;
pub mod meta;
mod opt_out;
mod order;
mod outcome;
mod pieces;
mod quarantine;
pub mod query;
mod receipt;
mod records;
mod reroute;
mod restore;
mod retire;
mod retry;
mod schedule;
pub mod series;
pub mod space;
pub mod tables;
mod turn;
pub mod unknown;
pub mod update;

pub use applied::EntryMeta;
pub use apply::{Applier, apply};
pub use cancel::CANCEL_BY_REFERENCE_MAX;
pub use effect::{
    CancelOutcome, CommandResult, Disposition, DueEntry, Effects, Permit, Reference, Refusal, Resolved,
    Retired, ScheduleChange, UpdateOutcome, Updated,
};
pub use leader::CODE_LEADER_CHANGED;
pub use opt_out::OPT_OUT_MESSAGES_MAX;
pub use outcome::{CARRIER_REF_BYTES_MAX, CARRIER_REFS_MAX, CODE_CHARS_MAX, DETAIL_RESEND};
pub use pieces::{next_piece, position_after};
pub use quarantine::{RESOLVE_LIMIT_MAX, is_taken_over};
pub use records::applied_record;
pub use restore::{EVENTS_GAP, Fate, base_of_restored_events, fate};
pub use retire::{Cutoffs, RETIRE_LIMIT_MAX};
pub use schedule::DETAIL_QUIET_HOURS;
pub use tables::{MemTables, ReadTables, TableError, Tables};
pub use update::{DETAIL_CHANGED, UPDATES_MAX};
