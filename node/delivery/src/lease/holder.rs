//! What a node holds: its tokens of every limit, each paced by a gate, until its lease ends.
//!
//! Invariants
//!  - A permit is taken from all limits of a message or from none.
//!  - Nothing is permitted on a lease that has ended, counted from before its request left.
//!  - Only the answer to the newest request counts.
use super::cap::Slice;
use super::{LeaseAnswer, LeaseRequest, LeaseSettings, LimitId, WANTS_MAX, Want};
use crate::gate::{GateSettings, LaneGate};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

/// Requests are at least this far apart, but for the report of what was given up.
const ASK_APART: Duration = Duration::from_millis(5);

/// One segment may leave now, by `fresh_until` at the latest: whoever comes later takes another permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    pub fresh_until: Duration,
}

/// Why not now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Come again then.
    Until(Duration),
    /// Nothing is held of this limit: come again when that changes.
    NoLease(LimitId),
}

/// What is held of one limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeldView {
    pub tokens: u32,
    pub frame: Duration,
    /// The next permit is free then.
    pub next_permit: Duration,
}

impl HeldView {
    /// Segments in a thousand seconds.
    pub fn per_kilosecond(&self) -> u64 {
        let frame_us = self.frame.as_micros().max(1);
        u64::try_from(u128::from(self.tokens) * 1_000_000_000 / frame_us).unwrap_or(u64::MAX)
    }

    /// When so many segments will have left.
    pub fn after(&self, segments: u64) -> Duration {
        let frame_us = self.frame.as_micros() as u64;
        let wait_us = frame_us.saturating_mul(segments) / u64::from(self.tokens.max(1));
        self.next_permit.saturating_add(Duration::from_micros(wait_us))
    }
}

#[derive(Debug)]
struct Held {
    tokens: u32,
    frame: Duration,
    gate: Option<LaneGate>,
    /// `Duration::MAX`: a fixed share, which does not end.
    ends: Duration,
    used_at: Option<Duration>,
    closed_until: Duration,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Holder {
    settings: LeaseSettings,
    gate: GateSettings,
    node_id: u64,
    incarnation: u64,
    seq: u64,
    asked_at: Option<Duration>,
    ask_at: Duration,
    limits: BTreeMap<LimitId, Held>,
    /// Daily caps.
    caps: BTreeMap<LimitId, Slice>,
    /// Leases that ended while they were held.
    ended: u64,
}

impl Holder {
    /// `incarnation` must differ from that of every earlier process of the node.
    pub fn new(settings: LeaseSettings, gate: GateSettings, node_id: u64, incarnation: u64) -> Self {
        let (limits, caps) = (BTreeMap::new(), BTreeMap::new());
        Self {
            settings,
            gate,
            node_id,
            incarnation,
            seq: 0,
            asked_at: None,
            ask_at: Duration::ZERO,
            limits,
            caps,
            ended: 0,
        }
    }

    pub fn settings(&self) -> &LeaseSettings {
        &self.settings
    }

    /// A share per second that holds until it is changed. 0 closes the limit, for leases too.
    pub fn set_fixed(&mut self, limit: LimitId, share: u32, mono: Duration) {
        let second = Duration::from_secs(1) + self.gate.catch_up + self.gate.jitter_allowance;
        let settings = self.gate;
        let held = self.held(limit);
        match (NonZeroU32::new(share), &mut held.gate) {
            (None, _) => held.gate = None,
            (Some(share), Some(gate)) => gate.set_share(share, mono),
            // Nothing is known of what left before: it starts without credit.
            (Some(share), empty) => *empty = Some(LaneGate::new(share, settings, mono)),
        }
        (held.tokens, held.frame) = (share, second);
        held.ends = if share > 0 { Duration::MAX } else { Duration::ZERO };
    }

    /// The share that needs no lease.
    pub fn fixed(&self, limit: LimitId) -> u32 {
        let held = self.limits.get(&limit).filter(|held| held.ends == Duration::MAX);
        held.map_or(0, |held| held.tokens)
    }

    /// The limit is gone.
    pub fn forget(&mut self, limit: LimitId) {
        self.limits.remove(&limit);
        self.caps.remove(&limit);
    }

    /// These limits are daily caps; what is held of others is forgotten.
    pub fn set_caps(&mut self, caps: &BTreeSet<LimitId>) {
        self.caps.retain(|limit, _| caps.contains(limit));
        for limit in caps {
            self.caps.entry(*limit).or_default();
        }
    }

    /// Nothing of the limit before this moment: the carrier asked for a pause.
    pub fn close_until(&mut self, limit: LimitId, until: Duration) {
        let held = self.held(limit);
        held.closed_until = held.closed_until.max(until);
    }

    /// When to ask next. An answer that takes longer than [`LeaseSettings::patience`] is given up.
    pub fn ask_at(&self) -> Duration {
        self.ask_at
    }

    /// Work came for a limit of which nothing is held: asks soon, unless an answer is on its way.
    pub fn hurry(&mut self, mono: Duration) {
        if self.asked_at.is_none() {
            self.ask_at = self.ask_at.min(mono);
        }
    }

    /// A request, to be sent at once. The answers to earlier ones are void from now on. `demand`: segments that wait.
    pub fn ask(&mut self, demand: &BTreeMap<LimitId, u32>, mono: Duration) -> LeaseRequest {
        self.seq += 1;
        self.asked_at = Some(mono);
        self.ask_at = mono + self.settings.patience();
        let mut wants = Vec::with_capacity(demand.len().min(WANTS_MAX));
        for (limit, segments) in demand.iter().take(WANTS_MAX) {
            if let Some(slice) = self.caps.get(limit) {
                let held = slice.left(mono);
                wants.push(Want { limit: *limit, held, used_ago: None, segments: *segments });
                continue;
            }
            let held = self.held(*limit);
            let over = held.ends <= mono;
            if over && held.tokens > 0 {
                held.close();
                self.ended += 1;
            }
            let held = self.held(*limit);
            let used_ago = held.used_at.map(|at| mono.saturating_sub(at));
            wants.push(Want { limit: *limit, held: held.tokens, used_ago, segments: *segments });
        }
        LeaseRequest { node_id: self.node_id, incarnation: self.incarnation, seq: self.seq, wants }
    }

    /// Takes an answer.
    pub fn answer(&mut self, answer: &LeaseAnswer, mono: Duration) {
        let Some(asked_at) = self.asked_at.filter(|_| answer.seq == self.seq) else { return };
        self.asked_at = None;
        let ends = asked_at + answer.ttl.min(self.settings.ttl);
        let settings = self.gate;
        let mut lowered = false;
        for grant in &answer.grants {
            if let Some(slice) = self.caps.get_mut(&grant.limit) {
                if grant.tokens > 0 {
                    slice.add(grant.tokens, asked_at.saturating_add(grant.frame));
                }
                continue;
            }
            let held = self.held(grant.limit);
            if held.ends == Duration::MAX {
                continue;
            }
            lowered |= grant.tokens < held.tokens;
            match (NonZeroU32::new(grant.tokens), &mut held.gate) {
                (None, _) => held.close(),
                (Some(tokens), Some(gate)) => gate.set_frame(tokens, grant.frame, mono),
                // They have rested: the first one can be used at once.
                (Some(tokens), empty) => {
                    *empty = Some(LaneGate::of_frame(tokens, grant.frame, settings, mono));
                }
            }
            (held.tokens, held.frame, held.ends) = (grant.tokens, grant.frame, ends);
        }
        let soon = answer.ask_after.map_or(Duration::MAX, |after| mono.saturating_add(after.max(ASK_APART)));
        self.ask_at = match lowered {
            // The grantor counts what was given up until it hears of it.
            true => mono,
            false => soon.min(asked_at + self.settings.renew_every).max(asked_at + ASK_APART),
        };
    }

    /// When all of these limits have a permit, as far as it is known, and until when it would be good.
    pub fn free_at(&self, stack: &[LimitId], mono: Duration) -> Result<(Duration, Duration), Wait> {
        let mut free_at = mono;
        let mut ends = mono + self.settings.stale_after;
        for limit in stack {
            if let Some(slice) = self.caps.get(limit) {
                if slice.left(mono) == 0 {
                    return Err(Wait::NoLease(*limit));
                }
                ends = ends.min(slice.ends());
                continue;
            }
            let held = self.limits.get(limit).ok_or(Wait::NoLease(*limit))?;
            let gate = held.gate.as_ref().filter(|_| held.ends > mono).ok_or(Wait::NoLease(*limit))?;
            free_at = free_at.max(gate.next_permit()).max(held.closed_until);
            ends = ends.min(held.ends);
        }
        Ok((free_at, ends))
    }

    /// Takes a permit for one segment from all of these limits, or from none.
    pub fn try_take(&mut self, stack: &[LimitId], mono: Duration) -> Result<Permit, Wait> {
        let (free_at, ends) = self.free_at(stack, mono)?;
        if free_at > mono {
            return Err(Wait::Until(free_at));
        }
        for limit in stack {
            if let Some(slice) = self.caps.get_mut(limit) {
                slice.take();
                continue;
            }
            let Some(held) = self.limits.get_mut(limit) else { continue };
            held.used_at = Some(mono);
            if let Some(gate) = &mut held.gate {
                gate.try_acquire(mono).map_err(|wait| Wait::Until(wait.0))?;
            }
        }
        Ok(Permit { fresh_until: ends })
    }

    /// What is held of a limit at this moment; nothing of a lease that has ended.
    pub fn view(&self, limit: LimitId, mono: Duration) -> HeldView {
        let held = self.limits.get(&limit).filter(|held| held.ends > mono);
        held.and_then(|held| Some((held, held.gate.as_ref()?))).map_or(HeldView::default(), |(held, gate)| {
            let next_permit = gate.next_permit().max(held.closed_until);
            HeldView { tokens: held.tokens, frame: held.frame, next_permit }
        })
    }

    /// What is held of all these limits together: the slowest of them, and when the last of them opens. A daily cap has no speed,
    /// but when nothing of it is left nothing of the others can be used.
    pub fn view_of(&self, stack: &[LimitId], mono: Duration) -> HeldView {
        let mut slowest: Option<HeldView> = None;
        for limit in stack {
            let held = match self.cap_left(*limit, mono) {
                Some(0) => return HeldView::default(),
                Some(_) => continue,
                None => self.view(*limit, mono),
            };
            slowest = Some(match slowest {
                Some(other) => {
                    let slower = if other.per_kilosecond() <= held.per_kilosecond() { other } else { held };
                    HeldView { next_permit: other.next_permit.max(held.next_permit), ..slower }
                }
                None => held,
            });
        }
        slowest.unwrap_or_default()
    }

    /// Segments that may leave of a daily cap.
    pub fn cap_left(&self, limit: LimitId, mono: Duration) -> Option<u32> {
        self.caps.get(&limit).map(|slice| slice.left(mono))
    }

    /// Leases that ended while they were held: nobody renewed them.
    pub fn ended(&self) -> u64 {
        self.ended
    }

    fn held(&mut self, limit: LimitId) -> &mut Held {
        self.limits.entry(limit).or_insert(Held {
            tokens: 0,
            frame: Duration::from_secs(1),
            gate: None,
            ends: Duration::ZERO,
            used_at: None,
            closed_until: Duration::ZERO,
        })
    }
}

impl Held {
    fn close(&mut self) {
        self.tokens = 0;
        self.gate = None;
        self.ends = Duration::ZERO;
    }
}
