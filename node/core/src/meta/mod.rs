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
//! | `Q` tenant 0x00 practice | PolicyRecord: what the practice, or (none) all of the tenant may send |
//! | `W` practice_no(4) carrier_no(4) | PauseRecord |
//! | `N` node_id(8) | MetaNode; removed ones stay, so that their identity is refused |
//! | `G` partition(4) | PartitionRecord: the partition map, 0 is the meta group |
//! | `S` | ShareRecord: which nodes may send |
//! | `L` | feature level of the cluster(4) |
//! | `T` node_id(8) | TokenRecord of a node that may join |
//! | `H` | HoursRecord: the rules of the hours, if they were ever replaced |
//! | `R` | ClusterRestore: the backup that the cluster was restored from |
//! | `F` route_no(4) | RouteRecord |
//! | `f` name | route_no(4) |
//! | `O` carrier_no(4) sender_no(4) | SenderRecord |
//! | `b` carrier_no(4) | BreakerRecord |
//! | `V` limit_no(4) | LimitRecord |
//! | `D` limit_no(4) | CapRecord: what is taken of a daily cap |
//! | `E` carrier_no(4) | LaneRecord: paused, eased |
//! | `#` `P`, `C`, `N`, `F`, `V` or `O` | the last number given out(4) |
//!
//! Numbers are never reused: they are in keys and sealed data for ever.

mod apply;
mod check;
mod gather;
mod hours;
mod keys;
pub mod level;
mod limits;
mod members;
pub mod place;
pub mod planner;
mod policy;
mod replicas;
mod restore;
pub mod routes;
mod rows;
pub mod senders;
mod shares;
mod view;

pub use apply::{MetaEffects, MetaRefusal, apply};
pub use gather::Gatherer;
pub use limits::{EASE_PERMILLE_MIN, UNPUBLISHED_MAX, applies, ease_permille};
pub use members::{may_become, word as status_word};
pub use policy::default_policy;
pub use rows::is_present;
pub use shares::share_of;
pub use view::{DataKeyId, MetaView};

/// Practices of a cluster, at most.
pub const PRACTICES_MAX: u32 = 100_000;
/// Carrier accounts of a cluster, at most.
pub const CARRIERS_MAX: u32 = 1_000;
/// Routes of a cluster, at most.
pub const ROUTES_MAX: u32 = 1_000;
/// Senders of a cluster, at most.
pub const SENDERS_MAX: u32 = 10_000;
/// Senders of one carrier account, at most.
pub const SENDERS_OF_CARRIER_MAX: usize = 64;
/// Limits besides those of the accounts, at most.
pub const LIMITS_MAX: usize = 512;
/// Nodes of a cluster, at most.
pub const NODES_MAX: usize = 64;
/// Epochs of one practice's data key, at most.
pub const KEY_EPOCHS_MAX: usize = 1_000;
/// Tokens that were made and not used, at most.
pub const TOKENS_MAX: usize = 64;
/// Longest life of a token.
pub const TOKEN_LIFE_S_MAX: u32 = 7 * 24 * 3600;
/// Replicas of one partition, those that are coming and going included. The meta group has one on every node.
pub const REPLICAS_MAX: usize = 2 * NODES_MAX;
