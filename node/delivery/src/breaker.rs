//! The circuit breaker of a lane: spares a carrier that fails, tries it again carefully, and obeys operators.
//!
//! ```text
//! CLOSED -- many failures, broken credentials, no connection --> OPEN -- its time is over --> HALF_OPEN
//!    ^                                                             ^ twice as long               |  |
//!    +------------------ enough probes were answered --------------|-----------------------------+  |
//!                                                                  +------- a probe failed ---------+
//! ```
//! Messages of an open lane wait, in their order, or go elsewhere by a route. A failure is an answer that says nothing about the
//! message: TRANSIENT, AMBIGUOUS. Throttling is no failure: the lane is only too fast.
//!
//! Sans-IO: time is an argument. Bounded: the last [`BreakerConfig::outcomes_max`] answers are remembered.
use carillon_proto::internal::BreakerMode;
use carillon_proto::public::Outcome;
use std::collections::VecDeque;
use std::time::Duration;

/// When a breaker opens, and how it closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Answers count for this long ...
    pub window: Duration,
    /// ... and at most so many of them.
    pub outcomes_max: usize,
    /// It opens with at least so many failures ...
    pub failures_min: usize,
    /// ... that are at least so many thousandths of all answers.
    pub failures_permille: usize,
    /// It stays open for so long; twice as long each time a probe fails, ...
    pub open_first: Duration,
    /// ... but no longer than this.
    pub open_max: Duration,
    /// Attempts under way while half open.
    pub probes: u32,
    /// So many answered probes in a row close it.
    pub probes_to_close: u32,
    /// It opens when the carrier was not connected for so long.
    pub down_after: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(30),
            outcomes_max: 256,
            failures_min: 5,
            failures_permille: 500,
            open_first: Duration::from_secs(5),
            open_max: Duration::from_secs(300),
            probes: 1,
            probes_to_close: 3,
            down_after: Duration::from_secs(3),
        }
    }
}

/// How a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    Closed,
    /// Nothing is begun before this moment of the monotonic clock.
    Open {
        until: Duration,
    },
    HalfOpen,
}

/// One lane's breaker.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    mode: BreakerMode,
    state: BreakerState,
    /// When, and whether it was a failure.
    recent: VecDeque<(Duration, bool)>,
    /// Times that it opened since it was last closed.
    openings: u32,
    opened_total: u64,
    answered_probes: u32,
    down_since: Option<Duration>,
}

/// What an answer says about the carrier.
enum Sign {
    Works,
    Fails,
    /// Nothing will work until a person repairs it.
    Broken,
}

fn sign(outcome: Outcome) -> Option<Sign> {
    match outcome {
        Outcome::Accepted
        | Outcome::RejectedNumber
        | Outcome::RejectedContent
        | Outcome::OptedOut
        | Outcome::Expired => Some(Sign::Works),
        Outcome::Transient | Outcome::Ambiguous => Some(Sign::Fails),
        Outcome::LaneBroken => Some(Sign::Broken),
        Outcome::Throttled | Outcome::CapReached | Outcome::NotSent | Outcome::Unspecified => None,
    }
}

impl Breaker {
    pub fn new(config: BreakerConfig) -> Self {
        Self {
            config,
            mode: BreakerMode::Auto,
            state: BreakerState::Closed,
            recent: VecDeque::new(),
            openings: 0,
            opened_total: 0,
            answered_probes: 0,
            down_since: None,
        }
    }

    pub fn config(&self) -> BreakerConfig {
        self.config
    }

    /// Other thresholds. Its state stays: an open breaker closes as it would have, and what it remembers is counted by the new ones.
    pub fn set_config(&mut self, config: BreakerConfig) {
        self.config = config;
    }

    /// The operator's word counts until it is taken back; then the breaker begins closed.
    pub fn set_mode(&mut self, mode: BreakerMode) {
        if self.mode != mode {
            self.mode = mode;
            self.close();
        }
    }

    pub fn mode(&self) -> BreakerMode {
        self.mode
    }

    /// How often it has opened.
    pub fn opened_total(&self) -> u64 {
        self.opened_total
    }

    /// An attempt was answered.
    pub fn on_outcome(&mut self, outcome: Outcome, mono: Duration) {
        let Some(sign) = sign(outcome).filter(|_| self.mode == BreakerMode::Auto) else { return };
        let state = self.state(mono);
        match (sign, state) {
            (Sign::Broken, _) => self.open(mono),
            (Sign::Works, BreakerState::HalfOpen) => {
                self.answered_probes += 1;
                if self.answered_probes >= self.config.probes_to_close {
                    self.close();
                }
            }
            (Sign::Fails, BreakerState::HalfOpen) => self.open(mono),
            // Answers to what was under way when it opened.
            (_, BreakerState::Open { .. }) => {}
            (sign, BreakerState::Closed) => {
                self.recent.push_back((mono, matches!(sign, Sign::Fails)));
                self.forget(mono);
                let failures = self.recent.iter().filter(|(_, failed)| *failed).count();
                let share = failures * 1_000 >= self.recent.len() * self.config.failures_permille;
                if failures >= self.config.failures_min && share {
                    self.open(mono);
                }
            }
        }
    }

    /// Whether the carrier is connected, as often as it is looked at.
    pub fn on_link(&mut self, up: bool, mono: Duration) {
        if up {
            // Down was the reason: there is nothing to wait for any more.
            if self.down_since.take().is_some_and(|since| mono >= since + self.config.down_after)
                && let BreakerState::Open { until } = &mut self.state
            {
                *until = (*until).min(mono);
            }
            return;
        }
        let since = *self.down_since.get_or_insert(mono);
        let open = matches!(self.state(mono), BreakerState::Open { .. });
        if self.mode == BreakerMode::Auto && !open && mono >= since + self.config.down_after {
            self.open(mono);
        }
    }

    /// The state at a moment.
    pub fn state(&mut self, mono: Duration) -> BreakerState {
        if let BreakerState::Open { until } = self.state
            && mono >= until
        {
            (self.state, self.answered_probes) = (BreakerState::HalfOpen, 0);
        }
        match self.mode {
            BreakerMode::Auto => self.state,
            BreakerMode::Open => BreakerState::Open { until: Duration::MAX },
            BreakerMode::Closed => BreakerState::Closed,
        }
    }

    /// Attempts that may be under way; `None` = as many as the lane carries.
    pub fn attempts_max(&mut self, mono: Duration) -> Option<u32> {
        match self.state(mono) {
            BreakerState::Closed => None,
            BreakerState::Open { .. } => Some(0),
            BreakerState::HalfOpen => Some(self.config.probes),
        }
    }

    fn open(&mut self, mono: Duration) {
        let factor = 1_u32 << self.openings.min(16);
        let time = self.config.open_first.saturating_mul(factor).min(self.config.open_max);
        self.openings += 1;
        self.opened_total += 1;
        self.state = BreakerState::Open { until: mono.saturating_add(time) };
        self.recent.clear();
    }

    fn close(&mut self) {
        (self.state, self.openings, self.answered_probes) = (BreakerState::Closed, 0, 0);
        self.recent.clear();
    }

    fn forget(&mut self, mono: Duration) {
        while self.recent.len() > self.config.outcomes_max
            || self.recent.front().is_some_and(|(at, _)| *at + self.config.window < mono)
        {
            self.recent.pop_front();
        }
    }
}
