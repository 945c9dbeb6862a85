//! The lane gate: says when one segment may leave on a lane, for one node's share of the lane's limit.
//!
//! Owns the arithmetic that makes a carrier's limit a wall: in every half-open sliding window of one second
//! the permits of all nodes together stay within the limit. The enforcement is `governor`'s exact GCRA with a
//! burst of one, driven by the caller's monotonic clock.
//!
//! How a caller that wakes up only every millisecond or two still uses a share of 50,000 segments per second:
//! a permit is booked at the moment at which it became free, at most [`GateSettings::catch_up`] ago. The
//! booked moments `v` are spaced by the period `t` exactly; a real moment lies in `[v, v + catch_up]`. So
//! between the first and the last of `n` permits lie at least `(n - 1) t - catch_up`, and a window of length
//! `W` holds at most `ceil((W + catch_up) / t)` permits. With `t = (1 s + catch_up + jitter_allowance) /
//! share`, rounded up, this is at most `share` even when the way to the carrier compresses the stream by
//! `jitter_allowance`. The price is the derating: 1.5 % of the share with the defaults, at any rate.
//!
//! Segments that leave together (a message in one request) take their permits together: [`LaneGate::try_acquire_all`]. It keeps the
//! next permits closed for as many periods as it has segments, and it waits until the frame that ends with it has room
//! for all of them. So in every frame the share holds: a frame that ends with one segment by the periods, one that ends with
//! several by the count. While it waits shorter messages wait, too, or it would never have its turn. What is longer than the whole share
//! leaves alone: nothing for so many periods before it, and after it.
//!
//! Invariants
//!  - A new gate starts without credit: the first permit comes one period later. A change of the share creates
//!    no credit either, so a window that spans changes holds at most the largest of its shares. It follows that
//!    the wall holds if, at every moment, the sum over the nodes of the largest share that each held during the
//!    last second plus `catch_up` is within the limit. A share that moves to another node must rest that long.
//!  - A permit that is not used is lost, never returned.
//!
//! Does not: lease shares, count daily caps, pause lanes.
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const WINDOW_NS: u128 = 1_000_000_000;

/// Why a lane's limit cannot be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    #[error("a lane's limit cannot be split over no nodes")]
    NoNodes,
    #[error("node index {node_index} is outside the {nodes} nodes of the cluster")]
    NodeIndex { node_index: u32, nodes: u32 },
    #[error(
        "a lane limit of {limit} segments per second cannot be split over {nodes} nodes: it must be at least {nodes}"
    )]
    LimitBelowNodes { limit: u32, nodes: u32 },
}

/// The fixed share of node `node_index` (0-based) in segments per second. The shares of all nodes add up to
/// the limit exactly; a larger limit never makes any node's share smaller.
pub fn share(limit: u32, nodes: u32, node_index: u32) -> Result<NonZeroU32, ShareError> {
    if nodes == 0 {
        return Err(ShareError::NoNodes);
    }
    if node_index >= nodes {
        return Err(ShareError::NodeIndex { node_index, nodes });
    }
    let part = limit / nodes + u32::from(node_index < limit % nodes);
    match NonZeroU32::new(part) {
        Some(part) if limit >= nodes => Ok(part),
        _ => Err(ShareError::LimitBelowNodes { limit, nodes }),
    }
}

/// What the derating pays for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateSettings {
    /// How late a caller may come for a permit without losing it.
    pub catch_up: Duration,
    /// By how much the way to the carrier may compress the stream without breaking the wall.
    pub jitter_allowance: Duration,
}

impl Default for GateSettings {
    fn default() -> Self {
        Self { catch_up: Duration::from_millis(5), jitter_allowance: Duration::from_millis(10) }
    }
}

/// No permit before this moment of the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitUntil(pub Duration);

/// The caller's moment, in nanoseconds of its monotonic clock.
struct GivenClock(AtomicU64);

impl Clock for GivenClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(self.0.load(Ordering::Relaxed))
    }
}

/// GCRA's theoretical arrival time, kept where the gate can read and set it: governor's own store can do
/// neither, and a limiter that is rebuilt with it would hand out a fresh burst.
struct GivenState(Arc<AtomicU64>);

impl StateStore for GivenState {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _key: &NotKeyed, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // The gate is used through `&mut`, so there is no other writer.
        let (outcome, next) = f(Some(Nanos::new(self.0.load(Ordering::Relaxed))))?;
        self.0.store(next.as_u64(), Ordering::Relaxed);
        Ok(outcome)
    }
}

type Limiter = RateLimiter<NotKeyed, GivenState, GivenClock, NoOpMiddleware<Nanos>>;

/// Enforces one node's share of one lane's limit, a segment at a time.
pub struct LaneGate {
    settings: GateSettings,
    share: NonZeroU32,
    /// In which the share may be used once.
    frame_ns: u128,
    period_ns: u64,
    /// The moment from which the next permit is free.
    free_at_ns: Arc<AtomicU64>,
    limiter: Limiter,
    /// What left in the last frame, by its booked moments, and the sum of it. At most the share.
    log: VecDeque<(u64, u32)>,
    logged: u64,
    /// Segments of a message for which permits are saved, and until when.
    saving: Option<(u32, u64)>,
}

impl LaneGate {
    /// A gate without credit: the first permit is free one period after `mono`.
    pub fn new(share: NonZeroU32, settings: GateSettings, mono: Duration) -> Self {
        let frame_ns = second_ns(settings);
        let period_ns = period_ns(share, frame_ns);
        let free_at = Duration::from_nanos(nanos(mono).saturating_add(period_ns));
        let mut gate = Self::of(share, frame_ns, settings, free_at);
        // What left before is not known: it may have been all of it, until now.
        gate.log(nanos(mono), share.get());
        gate
    }

    /// A gate for tokens that each may be used once in a frame and that have all rested: the first permit is free at
    /// `free_at`. The frame has the slack of the settings inside.
    pub fn of_frame(tokens: NonZeroU32, frame: Duration, settings: GateSettings, free_at: Duration) -> Self {
        Self::of(tokens, frame.as_nanos().max(1), settings, free_at)
    }

    fn of(share: NonZeroU32, frame_ns: u128, settings: GateSettings, free_at: Duration) -> Self {
        let period_ns = period_ns(share, frame_ns);
        let free_at_ns = Arc::new(AtomicU64::new(nanos(free_at)));
        let limiter = limiter(period_ns, &free_at_ns);
        let (log, logged, saving) = (VecDeque::new(), 0, None);
        Self { settings, share, frame_ns, period_ns, free_at_ns, limiter, log, logged, saving }
    }

    /// Takes the permit for one segment, or says when to come again.
    pub fn try_acquire(&mut self, mono: Duration) -> Result<(), WaitUntil> {
        self.try_acquire_all(1, mono)
    }

    /// Takes the permits of so many segments that leave together, or says when to come again.
    pub fn try_acquire_all(&mut self, segments: u32, mono: Duration) -> Result<(), WaitUntil> {
        let booked = self.room_for(segments, mono)?;
        self.limiter.clock().0.store(booked, Ordering::Relaxed);
        self.limiter
            .check()
            .map_err(|wait| WaitUntil(Duration::from_nanos(wait.earliest_possible().as_u64())))?;
        // After one that is longer than the share its frame says nothing: what comes next may itself be as long as the share.
        let share = self.share.get();
        let extra = if segments > share { share - 1 } else { 0 };
        let others = u64::from(segments.saturating_sub(1)) + u64::from(extra);
        let others_ns = self.period_ns.saturating_mul(others);
        let next = self.free_at_ns.load(Ordering::Relaxed).saturating_add(others_ns);
        self.free_at_ns.store(next, Ordering::Relaxed);
        self.log(booked, segments);
        self.saving = self.saving.filter(|(wanted, _)| *wanted > segments);
        Ok(())
    }

    /// The moment as which the permits of so many segments would be booked now, or when to come again.
    pub(crate) fn room_for(&mut self, segments: u32, mono: Duration) -> Result<u64, WaitUntil> {
        let now = nanos(mono);
        let free_at = self.free_at_ns.load(Ordering::Relaxed);
        let catch_up = nanos(self.settings.catch_up);
        if let Some((wanted, until)) = self.saving {
            let given_up = until.saturating_add(catch_up);
            if segments < wanted && now < given_up {
                return Err(WaitUntil(Duration::from_nanos(given_up.max(free_at))));
            }
        }
        if now < free_at {
            return Err(WaitUntil(Duration::from_nanos(free_at)));
        }
        // Never before `free_at`, so the spacing stays exact; never after `now`.
        let booked = free_at.max(now.saturating_sub(catch_up));
        if segments <= 1 {
            return Ok(booked);
        }
        let fits_at = self.fits_at(segments, booked, free_at);
        if fits_at > now {
            self.saving = Some((segments, fits_at));
            return Err(WaitUntil(Duration::from_nanos(fits_at)));
        }
        Ok(booked.max(fits_at))
    }

    /// From when on the frame that ends with so many segments has room for them.
    fn fits_at(&self, segments: u32, booked: u64, free_at: u64) -> u64 {
        let share = u64::from(self.share.get());
        if u64::from(segments) > share {
            return free_at.saturating_add(self.period_ns.saturating_mul(u64::from(segments - 1)));
        }
        let frame_ns = u64::try_from(self.frame_ns).unwrap_or(u64::MAX);
        let (mut at, mut left) = (booked, self.logged);
        for (when, count) in &self.log {
            let leaves = when.saturating_add(frame_ns);
            if leaves > at && left + u64::from(segments) <= share {
                break;
            }
            at = at.max(leaves);
            left -= u64::from(*count);
        }
        at
    }

    fn log(&mut self, booked: u64, segments: u32) {
        let frame_ns = u64::try_from(self.frame_ns).unwrap_or(u64::MAX);
        while let Some((when, count)) = self.log.front().copied()
            && when.saturating_add(frame_ns) <= booked
        {
            self.log.pop_front();
            self.logged -= u64::from(count);
        }
        self.log.push_back((booked, segments));
        self.logged += u64::from(segments);
    }

    /// The moment at which the next permit is free.
    pub fn next_permit(&self) -> Duration {
        Duration::from_nanos(self.free_at_ns.load(Ordering::Relaxed))
    }

    /// The present share in segments per second.
    pub fn share(&self) -> NonZeroU32 {
        self.share
    }

    /// Time between two permits under backlog.
    pub fn period(&self) -> Duration {
        Duration::from_nanos(self.period_ns)
    }

    /// Changes the share. A gate at which nobody waits starts a new period now; one that is being used keeps
    /// the part of the period that has passed, so frequent changes cannot starve a slow lane.
    pub fn set_share(&mut self, share: NonZeroU32, mono: Duration) {
        self.change(share, second_ns(self.settings), mono);
    }

    /// The same for tokens and their frame.
    pub fn set_frame(&mut self, tokens: NonZeroU32, frame: Duration, mono: Duration) {
        self.change(tokens, frame.as_nanos().max(1), mono);
    }

    /// Gives up all tokens but `tokens`, and skips the turns of `skipped` of them at once: for so many periods nothing leaves. From
    /// the next permit on, no frame that ends there or later holds more than what is left of them, so somebody else may use
    /// them from then on.
    pub fn give_up(&mut self, tokens: NonZeroU32, skipped: u32, mono: Duration) {
        let pause_ns = self.period_ns.saturating_mul(skipped.into());
        let next = self.free_at_ns.load(Ordering::Relaxed).max(nanos(mono)).saturating_add(pause_ns);
        self.change(tokens, self.frame_ns, mono);
        self.free_at_ns.store(next, Ordering::Relaxed);
    }

    fn change(&mut self, share: NonZeroU32, frame_ns: u128, mono: Duration) {
        if share == self.share && frame_ns == self.frame_ns {
            return;
        }
        let now = nanos(mono);
        let next_period_ns = period_ns(share, frame_ns);
        let wait = self.free_at_ns.load(Ordering::Relaxed).saturating_sub(now);
        let wait = if wait == 0 {
            next_period_ns
        } else {
            let scaled = (u128::from(wait) * u128::from(next_period_ns)).div_ceil(u128::from(self.period_ns));
            u64::try_from(scaled).unwrap_or(u64::MAX)
        };
        self.share = share;
        self.frame_ns = frame_ns;
        self.period_ns = next_period_ns;
        self.free_at_ns.store(now.saturating_add(wait), Ordering::Relaxed);
        self.limiter = limiter(next_period_ns, &self.free_at_ns);
    }
}

impl fmt::Debug for LaneGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaneGate")
            .field("share", &self.share)
            .field("period_ns", &self.period_ns)
            .field("next_permit", &self.next_permit())
            .finish()
    }
}

/// The frame of a limit per second.
fn second_ns(settings: GateSettings) -> u128 {
    WINDOW_NS + settings.catch_up.as_nanos() + settings.jitter_allowance.as_nanos()
}

/// Rounded up, so that rounding errs to under-send.
fn period_ns(share: NonZeroU32, frame_ns: u128) -> u64 {
    u64::try_from(frame_ns.div_ceil(u128::from(share.get()))).unwrap_or(u64::MAX)
}

fn limiter(period_ns: u64, free_at_ns: &Arc<AtomicU64>) -> Limiter {
    let quota = Quota::with_period(Duration::from_nanos(period_ns)).expect("a period is at least 1 ns");
    // Built while the clock reads 0: from then on governor's relative nanoseconds are the caller's.
    RateLimiter::new(quota, GivenState(Arc::clone(free_at_ns)), GivenClock(AtomicU64::new(0)))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
