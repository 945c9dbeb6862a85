//! The delivery wing: drives the sans-IO scheduler and the connectors.
//!
//! Owns the driver (scheduler, one tokio task), the lanes (connector and gate of each carrier account), the fact
//! batchers (outcomes and receipts on their way into the log) and the receipt router.
//!
//! Invariants
//!  - A connector is called only with a permit that this node's own proposal brought back in its own term (P3, D10).
//!  - A receipt is acknowledged to the carrier only after it is recorded, or when it can never be.
//!  - A fact that is known is proposed until it is committed, here or on the leader of its partition.
mod driver;
mod facts;
mod lanes;
mod practices;
mod receipts;
mod refused;
mod sending;
mod shares;

pub use driver::{Delivery, start};
pub use facts::{Fact, Facts, fact_result};
pub use lanes::{LaneStatus, LaneTable};
pub use receipts::{ReceiptRouter, ReceiptSink};
pub use shares::ShareKeeper;
