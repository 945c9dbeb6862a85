//! Deciding what is sent next, and how fast. Sans-IO: time is an argument, decisions are return values.
//!
//! Owns
//!  - [`Scheduler`]: which waiting messages of the led partitions are begun next, on which lane, and which
//!    are expired. Its view of table D is volatile, bounded and rebuilt from pages.
//!  - [`LaneGate`]: when one segment may leave on a lane, so that the lane's limit is a wall.
//!
//! Invariants
//!  - Nothing is begun before its due time or after its expiry, and nothing twice: a message that was chosen
//!    is tracked until the driver says what became of it.
//!  - No row of table D is forgotten, whatever the order of changes and pages, and no memory is spent on
//!    messages of the far future.
//!  - Same inputs, same decisions: no clock, no thread, no randomness, no map with a random order.
//!
//! Not here: proposing, sending, retry times (the pure core computes them), time zones, network, disk.

mod cells;
mod decide;
mod fair;
mod flows;
mod gate;
mod key;
mod lane;
mod paging;
mod rows;
mod scheduler;
mod stats;
mod types;
mod window;

pub use fair::WEIGHT_MAX;
pub use gate::{GateSettings, LaneGate, ShareError, WaitUntil, share};
pub use paging::read_page;
pub use scheduler::Scheduler;
pub use stats::{LaneStats, SchedulerStats};
pub use types::{
    BeginDecision, BeginResult, ConfigError, Decision, LaneConfig, PRIORITIES, Page, PageRequest,
    SchedulerConfig, Wanted,
};
