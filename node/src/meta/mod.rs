//! The meta wing: how this node comes into the cluster, how it changes the meta group, and the steward, which on the leader of the
//! meta group makes the cluster what the meta group says.
//!
//! The meta state and the planner are pure and live in `carillon_core::meta`; the replica runs in the engine as group 0.
//!
//! Start: `enter` (membership) -> engine -> `found` (first record) and `register` (this node's row) -> `steward`.
mod carry;
mod client;
mod enter;
mod found;
mod lobby;
mod membership;
mod register;
mod see;
mod steward;

pub use carry::Carrier;
pub use client::{MetaClient, MetaError};
pub use enter::enter;
pub use found::found;
pub use lobby::Lobby;
pub use membership::Membership;
pub use register::Registrar;
pub use see::SelfView;
pub use steward::{Desk, Steward};
