//! The delivery wing: drives the sans-IO scheduler and the connectors.
//!
//! Owns the driver (scheduler, one tokio task), the lanes (connector and gate of each carrier account), the fact
//! batchers (outcomes and receipts on their way into the log), the receipt router, breakers and failover, and
//! what explanations and forecasts read.
//!
//! Invariants
//!  - A connector is called only with a permit that this node's own proposal brought back in its own term (P3, D10).
//!  - A receipt is acknowledged to the carrier only after it is recorded, or when it can never be.
//!  - A fact that is known is proposed until it is committed, here or on the leader of its partition.
mod agreement;
pub mod backlog;
mod connect;
mod driver;
mod facts;
mod failover;
mod grants;
mod health;
mod lanes;
mod leases;
mod practices;
mod receipts;
mod reconcile;
mod refused;
mod renewal;
mod sending;
mod shares;

pub use connect::{Connect, has_baa};
pub use driver::{Delivery, start};
pub use facts::{Fact, Facts};
pub use grants::Grants;
pub use health::{BreakerLook, Health};
pub use lanes::{LaneStatus, LaneTable};
pub use leases::MonoClock;
pub use receipts::{ReceiptRouter, ReceiptSink};
pub use shares::ShareKeeper;
