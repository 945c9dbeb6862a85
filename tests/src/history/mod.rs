//! What clients did and were told, as JSON lines, and the checker that compares it with what the cluster, the carrier
//! and the replicas say afterwards.
//!
//! Owns: the format ([`Line`], [`Writer`], [`read`]), operations with begin and end ([`ops`]), and the rules
//! ([`check`]). A rule never needs to know which faults were made. Does not: make calls (see `load`) or fetch the
//! other accounts (see `evidence`).
//!
//! An operation ends as `ok` (an answer that says what is), `fail` (certainly no effect), or `info` (nobody knows; it
//! may take effect at any later time). One that has no end counts as `info`.

mod check;
mod line;
mod reads;
#[cfg(test)]
mod tests;

pub use check::{COMES_TO_REST, Evidence, Feed, Present, ReplicaDigest, Report, Violation, check};
pub use line::{Answer, Call, End, HistoryError, Line, Op, What, Writer, ops, read};
