//! The meta group (group 0): the nodes, carriers, practices and wrapped data keys that all nodes agree on.
//!
//! Same rules as the partitions: pure, deterministic, refusals are values. It has tables of its own, with the same table A
//! and these rows (first byte `m`, then):
//!
//! | key | row |
//! |---|---|
//! | `B` | the Bootstrap of the cluster |
//! | `P` practice_no(4) | PracticeRecord |
//! | `p` tenant 0x00 practice | practice_no(4) |
//! | `C` carrier_no(4) | CarrierRecord |
//! | `c` name | carrier_no(4) |
//! | `K` practice_no(4) epoch(4) | DataKeyRecord |
//! | `#` `P` or `C` | the last number given out(4) |
//!
//! Numbers are never reused: they are in keys and sealed data for ever.

mod apply;
mod check;
mod keys;
mod view;

pub use apply::{MetaEffects, MetaRefusal, apply};
pub use view::{DataKeyId, MetaView};

/// Practices of a cluster, at most.
pub const PRACTICES_MAX: u32 = 100_000;
/// Carrier accounts of a cluster, at most.
pub const CARRIERS_MAX: u32 = 1_000;
/// Nodes of a cluster, at most.
pub const NODES_MAX: usize = 64;
/// Epochs of one practice's data key, at most.
pub const KEY_EPOCHS_MAX: usize = 1_000;
