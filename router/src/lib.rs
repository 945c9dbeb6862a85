//! The router: the stateless front door of a Carillon cluster.
//!
//! It authenticates health systems by certificate, validates every field, finds the leader of each message's partition in a
//! cached map, regroups requests by leader and hides leader changes inside the caller's deadline. It keeps nothing: any
//! router can serve any request, and all tokens and cursors carry their own state.
//!
//! It knows only `carillon-proto`. Not here: sealing, durability, scheduling; that is the nodes' work.
mod api;
pub mod auth;
pub mod backoff;
mod batch;
pub mod config;
pub mod deadline;
mod follow;
pub mod map;
mod metrics;
pub mod nodes;
pub mod phone;
mod route;
pub mod server;
pub mod text;
pub mod token;
mod undecoded;
pub mod validate;
mod verdict;
pub mod violations;
