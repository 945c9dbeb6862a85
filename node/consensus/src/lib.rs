//! Sans-IO consensus: one raft group around `raft::RawNode`. No thread, no clock, no disk, no network: the caller
//! feeds a [`Group`] with messages, ticks, proposals and completions, and [`Group::poll`] says what to do next.
//!
//! # How to drive a group
//! 1. Feed inputs (`step`, `tick`, `propose`, `persisted`, `applied`, ...) in any order, never inside `poll`.
//! 2. `while group.poll(&mut out)? {}`, then carry out [`Outputs`]:
//!    send `send` at once; hand `persist` in order to the log writer; hand `committed` in order to the applier.
//! 3. A [`PersistTask`] is written (with fsync if `must_sync`); then its `after` messages are sent and
//!    `persisted(number)` is called, strictly in order. Nothing of `after` may leave earlier: it holds the promises
//!    (votes, acknowledgements) that the write makes true.
//! 4. When the state batch that holds index `i` is written, call `applied(i)`.
//!    A committed configuration change needs `apply_conf_change` and a write before: see `membership.rs`.
//! 5. Poll again after `persisted` and `applied`: both may release more work.
//!    [`Proposals`] remembers who waits for which entry, [`Release`] keeps what a change of the membership holds back.
//! 6. Snapshots: `snapshot.rs`. The caller makes and moves the files, the group decides when one is needed and when it
//!    counts.
//!
//! # Invariants
//!  - A promise never leaves before it is durable; only a leader's appends overtake its own disk.
//!  - Entries are given to the applier only when they are committed and durable on this replica.
//!  - Proposals are made only on the leader and never forwarded; peers cannot propose.
//!  - Peer bytes are never parsed by rust-protobuf: see [`wire`].
//!  - The same seed and the same inputs give the same outputs.
//!
//! # Panics
//! raft 0.7.0 panics (`fatal!`, `assert!`) when it meets a state that it holds to be impossible, for example a
//! conflict with a committed entry. After a panic the group must not be used again; whether to fence the replica or to
//! stop the process is the caller's decision.
//!
//! # Not here
//! The files of snapshots, threads, transport, the log writer, the applier, when to cut the log (below the applied index
//! that is durable; how much is kept for slow followers is the caller's policy).
#![allow(clippy::field_reassign_with_default)] // generated eraftpb structs are set field by field, as in raft itself

pub mod batch;
mod config;
mod election;
mod error;
mod group;
mod log_slack;
mod log_store;
mod log_view;
pub mod mem_log;
mod membership;
pub mod oracle;
mod output;
mod proposals;
mod ready;
mod release;
mod snapshot;
pub mod wire;

pub use config::GroupConfig;
pub use error::{GroupError, ProposeError, StepError};
pub use group::{Group, bootstrap_write, join_write};
pub use log_slack::{LogMarks, LogSlack, cut_index};
pub use log_store::{GroupState, GroupWrite, LogError, LogStore, SnapshotMark};
pub use mem_log::MemLog;
pub use membership::MemberChange;
pub use output::{
    CommittedEntry, EntryKind, Follower, Outputs, PersistTask, Proposal, ReadReady, RoleChange, SnapshotFetch,
};
pub use proposals::{Appended, Parts, Pending, Proposals, Taken, is_leader_start};
pub use release::{Awaited, Release, Released};
pub use snapshot::OfferError;
