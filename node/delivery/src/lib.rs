//! Deciding what is sent next, and how fast. Sans-IO: time is an argument, decisions are return values.
//!
//! Owns
//!  - [`Scheduler`]: which waiting messages of the led partitions are begun next, on which lane, and which
//!    are expired. Its view of table D is volatile, bounded and rebuilt from pages.
//!  - [`breaker`]: when a carrier that fails is spared, and how it is tried again.
//!  - [`forecast`] and [`explain`]: when messages will leave, and why one has not left yet.
//!  - [`hours`]: when a recipient may be texted.
//!  - [`LaneGate`]: when one segment may leave on a lane, so that the lane's limit is a wall.
//!  - [`lease`]: how the budget of a limit is given out to the nodes, and what a node may send of it.
//!
//! Invariants
//!  - Nothing is begun before its due time, after its expiry or outside the hours that the core knows, and nothing twice: a message that was chosen
//!    is tracked until the driver says what became of it.
//!  - No row of table D is forgotten, whatever the order of changes and pages, and no memory is spent on
//!    messages of the far future.
//!  - Same inputs, same decisions: no clock, no thread, no randomness, no map with a random order.
//!
//! Not here: proposing, sending, retry times (the pure core computes them), network, disk.

pub mod breaker;
mod cells;
mod decide;
pub mod explain;
mod fair;
mod flows;
pub mod forecast;
mod gate;
mod groups;
pub mod hours;
mod key;
mod lane;
pub mod lease;
mod paging;
pub mod recur;
mod rooms;
mod rows;
mod scheduler;
mod stats;
mod types;
mod window;

pub use fair::WEIGHT_MAX;
pub use gate::{GateSettings, LaneGate, ShareError, WaitUntil, share};
pub use paging::read_page;
pub use rooms::Rooms;
pub use scheduler::Scheduler;
pub use stats::{LaneStats, SchedulerStats};
pub use types::{
    BeginDecision, BeginResult, ConfigError, Decision, LaneConfig, PRIORITIES, Page, PageRequest,
    SchedulerConfig, Wanted,
};
