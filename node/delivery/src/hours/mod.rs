//! When a recipient may be texted: rules, and the next window in which all of them agree (P7).
//!
//! Owns
//!  - [`Rulebook`]: the dated rules as text and parsed, with the stamp that marks what was computed by them;
//!  - [`Rulebook::ask`]: for a recipient, a class and a moment, the next window: [`Answer`].
//!
//! Invariants
//!  - A moment is inside exactly when the wall clock of every possible zone is inside every rule that fits, the practice's own
//!    included: rules narrow each other and nothing widens one.
//!  - A window that is named is open from its first moment to its last, across changes of the clocks, and at least
//!    [`MARGIN_MS`] longer than it says, so that the carrier has that time.
//!  - Same rules, same time-zone database, same answer: the database is the bundled one.
//!
//! Leaders compute windows before they propose; apply only compares numbers (DESIGN D6). Not here: where a recipient
//! is (`carillon_proto::place`), and who proposes what.

mod days;
mod open;
mod plan;
mod practice;
mod rules;

pub use days::RulesError;
pub use plan::HoursPlan;
pub use practice::check as check_practice_hours;
pub use rules::Rulebook;

use carillon_proto::internal::{Place, PracticeHours};
use std::collections::BTreeMap;

/// Nothing is handed over in the last minute of a window: carriers take no validity below that.
pub const MARGIN_MS: u64 = 60_000;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    pub place: &'a Place,
    /// carillon.v1.MessageClass and Priority.
    pub class: i32,
    pub priority: i32,
    /// The practice's own hours.
    pub practice: Option<&'a PracticeHours>,
    /// Not before this moment, ms since the epoch.
    pub from_ms: u64,
}

/// The next window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// First moment: `from_ms` if it is open then.
    pub open_ms: u64,
    /// Nothing is handed over at or after this.
    pub until_ms: u64,
    /// The rule that is in the way at `from_ms`; empty if none is.
    pub rule: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// No hours apply, for this reason.
    Exempt(String),
    Window(Window),
    /// There is none within a year, because of this rule.
    Never(String),
}

/// The stamps of what is in force: a message with another one is computed anew before it goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamps {
    /// 0: the hours are not in force (the cluster is below their feature level).
    pub rules: u32,
    /// Practices with hours of their own.
    pub practices: BTreeMap<u32, u32>,
}

impl Stamps {
    /// The stamp that a message of the practice must have.
    pub fn of(&self, practice_no: u32) -> u32 {
        match self.rules {
            0 => 0,
            rules => self.practices.get(&practice_no).copied().unwrap_or(rules),
        }
    }
}
