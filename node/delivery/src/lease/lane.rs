//! The books of one limit at the grantor: who may hold how many tokens, and which ones rest.
//!
//! Invariant: nothing is given out unless what nodes may hold, what rests and what is reserved stays within the tokens of the frame. What is
//! counted may be more for a moment (an old request of a node that comes late after a change of the leader): it errs to under-send.
use super::split::{Claim, split};
use super::{Frame, LeaseSettings, Limit, LimitRule, Want};
use std::collections::BTreeMap;
use std::time::Duration;

/// Resting tokens are noted in at most so many heaps; beyond that they rest longer than they must.
const HEAPS_MAX: usize = 64;
/// Processes that may hold tokens at one moment, at most.
const HOLDERS_MAX: usize = 256;
/// Tokens move when at least one part in so many of them is in the wrong place.
const STEP: u32 = 32;

/// A process of a node.
pub(super) type HolderKey = (u64, u64);

#[derive(Debug, Clone)]
struct Holds {
    /// The most that it may hold.
    most: u32,
    /// After this it holds nothing.
    ends: Duration,
    want: u32,
    /// So many at once, for a message that leaves in one piece.
    need: u32,
    /// Segments of that message, which may be more than all tokens.
    longest: u32,
    segments: u32,
    since: Option<Duration>,
    until: Duration,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Lane {
    limit: Limit,
    frame: Frame,
    /// Nothing that is not held already is given out before.
    ready_at: Duration,
    holders: BTreeMap<HolderKey, Holds>,
    /// (tokens, until when)
    resting: Vec<(u32, Duration)>,
    /// Nodes that held more than was known.
    pub surprises: u64,
    /// It gave out what was not there: a defect.
    pub overdrawn: bool,
}

/// What a node gets.
pub(super) struct Given {
    pub tokens: u32,
    /// Of how many.
    pub whole: u32,
    pub frame: Duration,
    pub ask_after: Option<Duration>,
}

impl Lane {
    /// `None`: the limit allows nothing. What nodes hold that nobody knows of yet ends by `unknown_until`.
    pub fn new(limit: Limit, gate: &crate::GateSettings, unknown_until: Option<Duration>) -> Option<Self> {
        let frame = Frame::of(limit, gate)?;
        let ready_at = unknown_until.map_or(Duration::ZERO, |until| until + frame.length);
        Some(Self {
            limit,
            frame,
            ready_at,
            holders: BTreeMap::new(),
            resting: Vec::new(),
            surprises: 0,
            overdrawn: false,
        })
    }

    /// The same lane under another limit, once it is clear; who asks for it stays known.
    pub fn renewed(&self, limit: Limit, gate: &crate::GateSettings) -> Option<Self> {
        let fresh = Self::new(limit, gate, None)?;
        Some(Self { holders: self.holders.clone(), surprises: self.surprises, ..fresh })
    }

    pub fn limit(&self) -> Limit {
        self.limit
    }

    pub fn frame(&self) -> Frame {
        self.frame
    }

    /// Tokens that nodes may hold, and that rest.
    pub fn out(&self) -> (u32, u32) {
        let held = self.holders.values().map(|holds| holds.most).sum();
        (held, self.resting.iter().map(|(tokens, _)| tokens).sum())
    }

    pub fn holders(&self) -> impl Iterator<Item = (u64, u32, u32)> {
        self.holders.iter().map(|((node_id, _), holds)| (*node_id, holds.most, holds.segments))
    }

    /// Nobody holds anything and nothing rests: another limit may begin.
    pub fn is_clear(&self, mono: Duration) -> bool {
        mono >= self.ready_at && self.out() == (0, 0)
    }

    /// Leases that have ended, tokens that have rested.
    pub fn tidy(&mut self, mono: Duration) {
        let mut ended = Vec::new();
        self.holders.retain(|_, holds| {
            let over = holds.ends <= mono;
            if over {
                ended.push((holds.most, holds.ends, holds.longest));
            }
            !over
        });
        for (tokens, ends, longest) in ended {
            self.rest(tokens, ends + self.frame.length + self.used_ahead(longest), mono);
        }
        self.resting.retain(|(_, until)| *until > mono);
    }

    /// For how long a message may have used the tokens ahead whose sender is not heard of any more: it keeps quiet for its own length and for
    /// a frame ([`crate::LaneGate::try_acquire_all`]). With room for clocks that differ.
    fn used_ahead(&self, longest: u32) -> Duration {
        if longest <= self.frame.tokens {
            return Duration::ZERO;
        }
        let turns = longest.saturating_add(longest / 64).saturating_add(self.frame.tokens);
        self.frame.length.saturating_mul(turns) / self.frame.tokens.max(1)
    }

    fn rest(&mut self, tokens: u32, until: Duration, mono: Duration) {
        if tokens == 0 || until <= mono {
            return;
        }
        if self.resting.len() >= HEAPS_MAX {
            self.resting.sort_by_key(|(_, until)| *until);
            let (first, _) = self.resting.remove(0);
            self.resting[0].0 += first;
        }
        self.resting.push((tokens, until));
    }

    /// What the node says: what it may have held beyond that has come back.
    fn hear(&mut self, key: HolderKey, want: &Want, settings: &LeaseSettings, mono: Duration) {
        let tokens = u64::from(want.segments).saturating_mul(self.frame.length.as_nanos() as u64)
            / (settings.demand_horizon.as_nanos() as u64).max(1);
        let wanted = u32::try_from(tokens).unwrap_or(u32::MAX).max(u32::from(want.segments > 0));
        let frame = self.frame.length;
        let known = self.holders.contains_key(&key);
        let adopts = mono < self.ready_at;
        // What another process of the node wanted is void; what it held is not.
        for (other, earlier) in self.holders.range_mut((key.0, 0)..=(key.0, u64::MAX)) {
            if *other != key {
                (earlier.want, earlier.need, earlier.segments) = (0, 0, 0);
            }
        }
        let holds = self.holders.entry(key).or_insert(Holds {
            most: want.held,
            ends: mono,
            want: 0,
            need: 0,
            longest: 0,
            segments: 0,
            since: None,
            until: Duration::ZERO,
        });
        (holds.need, holds.longest) = (want.need.min(self.frame.tokens), want.need);
        holds.want = wanted.max(want.need).min(self.frame.tokens);
        holds.segments = want.segments;
        let most = std::mem::replace(&mut holds.most, want.held);
        if want.held > 0 {
            holds.since.get_or_insert(mono);
        } else if holds.since.take().is_some() {
            holds.until = mono;
        }
        if (want.held > most || (!known && want.held > 0)) && !adopts {
            self.surprises += 1;
        }
        let back = most.saturating_sub(want.held);
        // It pauses for these: frames that end later hold so much less of it.
        let soon = if want.held > 0 { back.min(want.skipped) } else { 0 };
        self.rest(soon, mono + settings.stretched(want.skipped_for), mono);
        let until = match (want.held, want.used_ago) {
            // It holds nothing, so all that it ever used was used by then.
            (0, None) => mono,
            (0, Some(ago)) => mono.saturating_sub(ago) + frame,
            _ => mono + frame,
        };
        let until = until + settings.stretched(want.owes);
        self.rest(back - soon, until, mono);
    }

    /// Settles what a node says and decides what it may hold from now on.
    pub fn give(
        &mut self,
        key: HolderKey,
        want: &Want,
        rule: &LimitRule,
        settings: &LeaseSettings,
        mono: Duration,
    ) -> Given {
        self.tidy(mono);
        if self.holders.len() >= HOLDERS_MAX && !self.holders.contains_key(&key) {
            return Given { tokens: 0, whole: 0, frame: self.frame.length, ask_after: None };
        }
        self.hear(key, want, settings, mono);
        let changing = rule.limit != self.limit;
        let eased = self.frame.eased(rule.ease_permille);
        let reserved = rule.reserved(self.frame.per_window);
        let tokens = if rule.paused || changing { 0 } else { eased.tokens.saturating_sub(reserved) };
        let (held, resting) = self.out();
        let target = self.target(key, tokens, settings, mono);
        let now = want.held;
        let given = if mono < self.ready_at {
            // What it holds an earlier grantor has counted.
            if tokens == 0 { 0 } else { now }
        } else if target >= now {
            // Never more than is free of the whole, whatever the split says.
            let free = self.frame.tokens.min(tokens + reserved).saturating_sub(held + resting + reserved);
            now + free.min(target - now)
        } else {
            let left = now - self.to_move(key, now - target, tokens, settings, mono);
            if left == 0 && tokens > 0 && self.is_about_to_use(want, settings) { now } else { left }
        };
        let ends = mono + settings.counted();
        let short = given < target;
        if let Some(holds) = self.holders.get_mut(&key) {
            holds.most = now.max(given);
            holds.ends = ends;
            if given > 0 {
                holds.since.get_or_insert(mono);
            }
        }
        let (held, resting) = self.out();
        self.overdrawn |= given > now && held + resting + reserved > self.frame.tokens;
        let next = match mono < self.ready_at {
            true => Some(self.ready_at),
            false => self.resting.iter().map(|(_, until)| *until).min(),
        };
        // Others give up what it lacks when they ask next. Where they take turns it waits for its own.
        let asks_again = given == 0 && tokens >= self.wanting() && mono >= self.ready_at;
        let next = [next, asks_again.then(|| mono + settings.ask_again)].into_iter().flatten().min();
        let ask_after = next.filter(|_| short).map(|at| at.saturating_sub(mono));
        Given { tokens: given, whole: tokens, frame: eased.length, ask_after }
    }

    fn wanting(&self) -> u32 {
        self.holders.values().filter(|holds| holds.want > 0).count() as u32
    }

    /// How many of its surplus tokens a node gives up: what others lack and is not free or about to be.
    fn to_move(
        &self,
        key: HolderKey,
        surplus: u32,
        tokens: u32,
        settings: &LeaseSettings,
        mono: Duration,
    ) -> u32 {
        let (held, resting) = self.out();
        let over = held.saturating_sub(tokens);
        let mut lacking = 0;
        let mut starving = false;
        for (other, holds) in self.holders.iter().filter(|(other, _)| **other != key) {
            let lacks = self.target(*other, tokens, settings, mono).saturating_sub(holds.most);
            lacking += lacks;
            starving |= lacks > 0 && holds.most < holds.need.max(1);
        }
        let free = tokens.saturating_sub(held + resting);
        let needed = lacking.saturating_sub(free + resting).max(over).min(surplus);
        if needed < (self.frame.tokens / STEP).max(1) && !starving && over == 0 { 0 } else { needed }
    }

    /// Its token has rested before anybody else could be told that it is free: it uses it once more.
    fn is_about_to_use(&self, want: &Want, settings: &LeaseSettings) -> bool {
        let frame = self.frame.length;
        let news = settings.renew_every * 6 / 5;
        frame > 2 * news && want.used_ago.is_some_and(|ago| ago < frame && ago + news > frame)
    }

    fn target(&self, key: HolderKey, tokens: u32, settings: &LeaseSettings, mono: Duration) -> u32 {
        let claims: Vec<Claim> = self
            .holders
            .iter()
            .map(|((node_id, _), holds)| Claim {
                node_id: *node_id,
                want: holds.want.min(tokens),
                need: holds.need.min(tokens),
                holds_since: holds.since,
                held_until: holds.until,
            })
            .collect();
        // A message that is longer than all tokens keeps them for its length before it and after it.
        let longest = self.holders.values().map(|holds| holds.longest).max().unwrap_or(0);
        let alone = if longest > tokens {
            self.frame.length * (2 * longest + tokens) / tokens.max(1)
        } else {
            Duration::ZERO
        };
        let turn = settings.turn.max((2 * self.frame.length).min(2 * settings.ttl)).max(alone);
        let parts = split(tokens, &claims, turn, mono);
        let place = self.holders.keys().position(|other| *other == key);
        place.and_then(|place| parts.get(place)).copied().unwrap_or(0)
    }
}
