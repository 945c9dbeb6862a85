//! Leases: how the leader of the meta group gives out the budget of a limit, a second at a time (P5, D9).
//!
//! A limit of `amount` segments in a window is a number of *tokens* that may each be used once in a *frame* ([`Frame`]). Tokens
//! are held by nodes; [`Grantor`] runs where the meta group is led and moves them to where work waits, [`Holder`] runs on
//! every node and paces what it holds.
//!
//! Why the wall holds
//!  - In any interval as long as a frame a node sends at most as many segments as the most tokens that it held during it
//!    (its [`crate::LaneGate`]s). A token that changes hands rests for one frame from its last use that is possible. So all nodes
//!    together send at most `tokens` in any frame, and a window is a whole number of frames, with the slack of the gates inside.
//!  - A node that gives up a few of its tokens skips their next turns ([`crate::LaneGate::give_up`]). Frames that end after its pause hold
//!    so much less of it, so these tokens rest for the pause and not for a frame: whoever begins to need some has them at once.
//!  - A node holds nothing after `ttl` from *before* its request left, by its own monotonic clock: any delay only shortens a
//!    lease. The grantor counts it from *after* it made the grant, and longer by what clocks may differ in speed.
//!  - A node has one request open and takes only the answer to its newest one. Until it asks again it may hold what it said it
//!    held or what it was given, so the larger of both counts.
//!  - The grantor gives only after it was confirmed, later than the request came, that its node still leads the meta group. So
//!    every lease of an older leader ends within one `ttl` of the new leader's election, and a new grantor gives nothing new
//!    for one `ttl` and one frame. It renews what nodes hold: that is no more than the old one counted.
//!  - A lease says by which limits its holder goes ([`LeaseRequest::stamp`]): whoever does not know of a change yet is given nothing until it
//!    does, and what it was given before ends. So a change is in force everywhere one lease after it was made, whoever is stopped
//!    or cut off; and the grantor can tell when ([`LeaseAnswer::settled`]).
//!  - Segments that leave together need as many tokens as they are, at once. A node that holds fewer says so ([`Want::need`]), and nodes get
//!    what they need in turns.
//!  - No lease, no permit; a permit that is not used at once is void ([`Permit::fresh_until`]).
//!
//! Does not: know carriers or messages, send or receive, read a clock.
mod cap;
mod day;
mod ease;
mod frame;
mod grantor;
mod holder;
mod lane;
mod rules;
mod split;
mod stacks;

pub use cap::{slice, slices};
pub use day::day_of;
pub use ease::Easer;
pub use frame::{Frame, Limit};
pub use grantor::{Grantor, LaneView, LimitRule};
pub use holder::{HeldView, Holder, Permit, Wait};
pub use rules::{caps, common, demand, has_senders, of_practice, of_sender, rules, stack, stamp};
pub use stacks::Stacks;

use std::time::Duration;

/// Names a limit: an account's own limit has the number of its carrier, others have numbers above [`LIMIT_BASE`].
pub type LimitId = u32;

/// Limits besides those of the accounts have this plus their number in the meta group.
pub const LIMIT_BASE: LimitId = 1 << 20;

/// Limits of one request, at most.
pub const WANTS_MAX: usize = 1_024;

/// Times of the protocol. The same on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseSettings {
    /// Life of a lease.
    pub ttl: Duration,
    /// By how much the monotonic clocks of two machines may differ in speed, in permille.
    pub drift_permille: u32,
    /// A permit is void after this time; whoever did not write by then takes another one.
    pub stale_after: Duration,
    /// How often a node asks.
    pub renew_every: Duration,
    /// A node's share of the budget follows what it could send in this time.
    pub demand_horizon: Duration,
    /// Shortest turn of a node with a token for which others wait.
    pub turn: Duration,
    /// A node that has nothing and is to get something asks again after this.
    pub ask_again: Duration,
    /// Longest pause of a node for tokens that it gives up.
    pub pause_max: Duration,
    /// A node that goes by older limits than the grantor asks again after this.
    pub behind: Duration,
}

impl Default for LeaseSettings {
    fn default() -> Self {
        Self {
            ttl: Duration::from_millis(1_000),
            drift_permille: 10,
            stale_after: Duration::from_millis(10),
            renew_every: Duration::from_millis(120),
            demand_horizon: Duration::from_millis(500),
            turn: Duration::from_millis(200),
            ask_again: Duration::from_millis(40),
            pause_max: Duration::from_millis(50),
            behind: Duration::from_millis(20),
        }
    }
}

impl LeaseSettings {
    /// How long a node waits for an answer: two may be lost in a row before its lease ends.
    pub fn patience(&self) -> Duration {
        self.ttl * 2 / 5
    }

    /// How long the grantor counts a lease.
    pub fn counted(&self) -> Duration {
        self.stretched(self.ttl) + Duration::from_millis(10)
    }

    /// A time of another machine's clock, on one that may be faster.
    pub(crate) fn stretched(&self, time: Duration) -> Duration {
        time + time * self.drift_permille / 1_000
    }
}

/// What a node says of one limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Want {
    pub limit: LimitId,
    /// Tokens that it holds now.
    pub held: u32,
    /// How long ago this process last used one; `None` = never.
    pub used_ago: Option<Duration>,
    /// Segments that wait to be sent.
    pub segments: u32,
    /// Of what the last answer took from it: tokens whose turns it skips, and for how long it still pauses for them.
    pub skipped: u32,
    pub skipped_for: Duration,
    /// A message that leaves in one piece needs so many tokens at once; 0 = none does.
    pub need: u32,
    /// What it gives back has been used ahead for so long: by a message that was longer than all tokens together.
    pub owes: Duration,
}

/// A node asks for tokens, for every limit that it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRequest {
    pub node_id: u64,
    /// Another one for each start of the process.
    pub incarnation: u64,
    /// Rises with every request.
    pub seq: u64,
    /// [`stamp`] of the limits that it keeps to; 0 = an older program, which does not say.
    pub stamp: u64,
    pub wants: Vec<Want>,
}

/// What a node may use until its lease ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    pub limit: LimitId,
    pub tokens: u32,
    /// All tokens of the limit; 0 = not told, or a daily cap.
    pub whole: u32,
    /// Each token may be used once in this time. Of a daily cap: segments more, for what is left of the day.
    pub frame: Duration,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseAnswer {
    pub seq: u64,
    pub ttl: Duration,
    pub grants: Vec<Grant>,
    /// Tokens become free then: ask again.
    pub ask_after: Option<Duration>,
    /// Whoever may send anything keeps to the limits that the request named, and to nothing older.
    pub settled: bool,
}
