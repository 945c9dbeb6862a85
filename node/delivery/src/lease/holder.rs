//! What a node holds: its tokens of every limit, each paced by a gate, until its lease ends.
//!
//! Invariants
//!  - A permit is taken from all limits of a message or from none.
//!  - Nothing is permitted on a lease that has ended, counted from before its request left.
//!  - Only the answer to the newest request counts.
//!  - A message that is longer than all tokens of a limit leaves only on a lease whose grantor knows of it: if the node dies right after it, the
//!    tokens rest for as long as they were used ahead.
use super::cap::Slice;
use super::{LeaseAnswer, LeaseRequest, LeaseSettings, LimitId, WANTS_MAX, Want};
use crate::gate::{GateSettings, LaneGate, WaitUntil};
use std::collections::BTreeMap;
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
    /// Tokens of the last answer whose turns are skipped, and until when.
    skipped: u32,
    skipped_until: Duration,
    /// Tokens of the whole limit; 0 = not known.
    whole: u32,
    /// So many tokens a message needs at once, and until when somebody is known to wait for them.
    need: (u32, Duration),
    /// As the request that is under way says, and as the one said that the present lease answers.
    asked_need: u32,
    told_need: u32,
    /// Tokens that were given back had been used ahead until then.
    owes_until: Duration,
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
    /// Work came while an answer was on its way.
    hurried: bool,
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
            hurried: false,
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
        (held.tokens, held.frame, held.whole) = (share, second, share);
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

    /// These limits are daily caps, with their amounts; what is held of others is forgotten.
    pub fn set_caps(&mut self, caps: &BTreeMap<LimitId, u32>) {
        self.caps.retain(|limit, _| caps.contains_key(limit));
        for (limit, amount) in caps {
            self.caps.entry(*limit).or_default().set_amount(*amount, self.seq);
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

    /// Work came for a limit of which nothing is held: asks at once, or as soon as the answer is there that is on its way.
    pub fn hurry(&mut self, mono: Duration) {
        match self.asked_at {
            None => self.ask_at = self.ask_at.min(mono),
            Some(_) => self.hurried = true,
        }
    }

    /// A request, to be sent at once. The answers to earlier ones are void from now on. `demand`: segments that wait; `stamp`: of
    /// the limits that this node keeps to.
    pub fn ask(&mut self, demand: &BTreeMap<LimitId, u32>, stamp: u64, mono: Duration) -> LeaseRequest {
        self.seq += 1;
        self.asked_at = Some(mono);
        self.hurried = false;
        self.ask_at = mono + self.settings.patience();
        let mut wants = Vec::with_capacity(demand.len().min(WANTS_MAX));
        for (limit, segments) in demand.iter().take(WANTS_MAX) {
            if let Some(slice) = self.caps.get(limit) {
                let held = slice.left(mono);
                let (limit, segments) = (*limit, *segments);
                wants.push(Want { limit, held, segments, ..Want::default() });
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
            held.asked_need = if held.need.1 > mono { held.need.0 } else { 0 };
            wants.push(Want {
                limit: *limit,
                held: held.tokens,
                used_ago,
                segments: *segments,
                skipped: held.skipped,
                skipped_for: held.skipped_until.saturating_sub(mono),
                need: held.asked_need,
                owes: held.owes_until.saturating_sub(mono),
            });
        }
        let Self { node_id, incarnation, seq, .. } = *self;
        LeaseRequest { node_id, incarnation, seq, stamp, wants }
    }

    /// Takes an answer.
    pub fn answer(&mut self, answer: &LeaseAnswer, mono: Duration) {
        let Some(asked_at) = self.asked_at.filter(|_| answer.seq == self.seq) else { return };
        self.asked_at = None;
        let ends = asked_at + answer.ttl.min(self.settings.ttl);
        let (settings, pause_max) = (self.gate, self.settings.pause_max);
        let mut lowered = false;
        for grant in &answer.grants {
            if let Some(slice) = self.caps.get_mut(&grant.limit) {
                if grant.tokens > 0 {
                    slice.add(grant.tokens, asked_at.saturating_add(grant.frame), answer.seq);
                }
                continue;
            }
            let held = self.held(grant.limit);
            if held.ends == Duration::MAX {
                continue;
            }
            lowered |= grant.tokens < held.tokens;
            held.skipped = 0;
            match (NonZeroU32::new(grant.tokens), &mut held.gate) {
                (None, _) => held.close(),
                (Some(tokens), Some(_)) if grant.tokens < held.tokens && grant.frame == held.frame => {
                    held.lower(tokens, pause_max, mono);
                }
                (Some(tokens), Some(gate)) => gate.set_frame(tokens, grant.frame, mono),
                // They have rested: the first one can be used at once.
                (Some(tokens), empty) => {
                    let free_at = held.owes_until.max(mono);
                    *empty = Some(LaneGate::of_frame(tokens, grant.frame, settings, free_at));
                }
            }
            (held.tokens, held.frame, held.ends) = (grant.tokens, grant.frame, ends);
            held.whole = grant.whole;
            held.told_need = held.asked_need;
        }
        let soon = answer.ask_after.map_or(Duration::MAX, |after| mono.saturating_add(after.max(ASK_APART)));
        self.ask_at = match lowered {
            // The grantor counts what was given up until it hears of it.
            true => mono,
            false if std::mem::take(&mut self.hurried) => mono.max(asked_at + ASK_APART),
            false => soon.min(asked_at + self.settings.renew_every).max(asked_at + ASK_APART),
        };
    }

    /// When all of these limits have permits for so many segments at once, as far as it is known, and until when they would be good. Where
    /// too few tokens are held for that, what is needed is asked for.
    pub fn free_at(
        &mut self,
        stack: &[LimitId],
        segments: u32,
        mono: Duration,
    ) -> Result<(Duration, Duration), Wait> {
        let found = self.known_free_at(stack, segments, mono);
        if let Err(Wait::NoLease(limit)) = found
            && segments > 1
        {
            self.need(limit, segments, mono);
        }
        found
    }

    fn known_free_at(
        &self,
        stack: &[LimitId],
        segments: u32,
        mono: Duration,
    ) -> Result<(Duration, Duration), Wait> {
        let mut free_at = mono;
        let mut ends = mono + self.settings.stale_after;
        for limit in stack {
            if let Some(slice) = self.caps.get(limit) {
                if slice.left(mono) < segments.max(1) {
                    return Err(Wait::NoLease(*limit));
                }
                ends = ends.min(slice.ends());
                continue;
            }
            let held = self.limits.get(limit).ok_or(Wait::NoLease(*limit))?;
            let gate = held.gate.as_ref().filter(|_| held.ends > mono).ok_or(Wait::NoLease(*limit))?;
            if held.tokens < held.needed(segments) || !held.is_told(segments) {
                return Err(Wait::NoLease(*limit));
            }
            free_at = free_at.max(gate.next_permit()).max(held.closed_until);
            ends = ends.min(held.ends);
        }
        Ok((free_at, ends))
    }

    /// Takes a permit for one segment from all of these limits, or from none.
    pub fn try_take(&mut self, stack: &[LimitId], mono: Duration) -> Result<Permit, Wait> {
        self.try_take_all(stack, 1, mono)
    }

    /// Takes the permits for so many segments that leave together from all of these limits, or from none.
    pub fn try_take_all(&mut self, stack: &[LimitId], segments: u32, mono: Duration) -> Result<Permit, Wait> {
        let (mut free_at, ends) = self.free_at(stack, segments, mono)?;
        for limit in stack.iter().filter(|_| segments > 1) {
            // It goes with fewer tokens, because there are no more: then it needs them for longer.
            if self.limits.get(limit).is_some_and(|held| held.tokens < segments) {
                self.need(*limit, segments, mono);
            }
        }
        if free_at > mono {
            return Err(Wait::Until(free_at));
        }
        for limit in stack {
            let Some(gate) = self.limits.get_mut(limit).and_then(|held| held.gate.as_mut()) else { continue };
            if let Err(WaitUntil(at)) = gate.room_for(segments, mono) {
                free_at = free_at.max(at);
            }
        }
        if free_at > mono {
            return Err(Wait::Until(free_at));
        }
        for limit in stack {
            if let Some(slice) = self.caps.get_mut(limit) {
                slice.take(segments);
                continue;
            }
            let Some(held) = self.limits.get_mut(limit) else { continue };
            held.used_at = Some(mono);
            if let Some(gate) = &mut held.gate {
                gate.try_acquire_all(segments, mono).map_err(|wait| Wait::Until(wait.0))?;
            }
        }
        Ok(Permit { fresh_until: ends })
    }

    /// A message that leaves in one piece needs more tokens of a limit than are held: that is asked for at once.
    fn need(&mut self, limit: LimitId, segments: u32, mono: Duration) {
        if self.caps.contains_key(&limit) {
            return;
        }
        // Known for a lease longer than somebody waits: the next message is probably as long. One that is longer than all tokens
        // together waits here for its free turns.
        let ttl = self.settings.ttl;
        let held = self.held(limit);
        let turns = if segments > held.whole { 2 * segments / held.whole.max(1) } else { 0 };
        let until = mono + ttl + held.frame * turns;
        let before = if held.need.1 > mono { held.need.0 } else { 0 };
        held.need = (before.max(segments), until);
        let lacks = |held: &Held| held.tokens < held.needed(segments) || !held.is_told(segments);
        if before < segments && self.limits.get(&limit).is_some_and(lacks) {
            self.hurry(mono);
        }
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
            skipped: 0,
            skipped_until: Duration::ZERO,
            whole: 0,
            need: (0, Duration::ZERO),
            asked_need: 0,
            told_need: 0,
            owes_until: Duration::ZERO,
        })
    }
}

impl Held {
    /// Tokens without which so many segments cannot leave together. What is longer than the whole limit goes with all of it.
    fn needed(&self, segments: u32) -> u32 {
        if segments <= 1 { 1 } else { segments.min(self.whole) }
    }

    /// Whoever gives out the tokens knows that so many segments may use them ahead. A fixed share is given out by nobody.
    fn is_told(&self, segments: u32) -> bool {
        segments <= self.whole.max(1) || self.ends == Duration::MAX || self.told_need >= segments
    }

    fn close(&mut self) {
        self.tokens = 0;
        if let Some(gate) = self.gate.take() {
            self.owes_until = gate.next_permit().saturating_sub(gate.period());
        }
        self.ends = Duration::ZERO;
        self.skipped = 0;
    }

    /// Gives up all but `tokens`; of a few it skips the turns, so that somebody else has them soon. For many the pause would be long.
    fn lower(&mut self, tokens: NonZeroU32, pause_max: Duration, mono: Duration) {
        let Some(gate) = &mut self.gate else { return };
        let turns = pause_max.as_nanos() / gate.period().as_nanos().max(1);
        let turns = u32::try_from(turns).unwrap_or(u32::MAX).max(1);
        self.skipped = self.tokens.saturating_sub(tokens.get()).min(turns);
        gate.give_up(tokens, self.skipped, mono);
        self.skipped_until = gate.next_permit();
    }
}
