//! The wire contract of Carillon: the public API, the internal RPCs, the log format and the stored records,
//! with the identifiers and stable codes that all crates share.
//!
//! With feature `edge` (services, TLS identities, rich errors, telemetry) it is also what every process edge is
//! made of. The pure crates (`core`, `consensus`, `delivery`) do not enable it.

#[allow(clippy::all, missing_docs)]
mod api {
    include!(concat!(env!("OUT_DIR"), "/api.rs"));
}

pub use api::{carillon, google};

/// Operator API.
pub use carillon::admin::v1 as admin;
/// Log format, records, peer and node planes.
pub use carillon::internal::v1 as internal;
/// Public API.
pub use carillon::v1 as public;

/// The compiled descriptor set of all services, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

pub mod ids;
#[cfg(feature = "zones")]
pub mod local_time;
pub mod place;
mod redact;
pub mod region;
pub mod replica;
pub mod slot;
pub mod sms;

pub use ids::MessageId;
pub use replica::ReplicaId;
pub use slot::Slot;

#[cfg(feature = "edge")]
pub mod config;
#[cfg(feature = "edge")]
pub mod errors;
#[cfg(feature = "edge")]
pub mod identity;
#[cfg(feature = "edge")]
pub mod metric_names;
#[cfg(feature = "edge")]
pub mod telemetry;
#[cfg(feature = "edge")]
pub mod tls;
#[cfg(feature = "edge")]
pub mod transport;
