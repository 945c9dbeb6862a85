//! The naive model: what a message does, said plainly, without tables, indexes or counters.
#![allow(dead_code)]
use crate::support::*;
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::{Accept, ReceiptState, UnknownPolicy};
use carillon_proto::public::{MessageState as S, Outcome as O};
use proptest::prelude::*;
use std::collections::BTreeMap;

pub const MESSAGES: u64 = 3;

/// One random command; numbers choose among few messages, keys and attempts.
#[derive(Debug, Clone)]
pub enum Op {
    Accept {
        n: u64,
        key: Option<u8>,
        content: u8,
        delay_ms: u64,
        life_ms: u64,
        policy: i32,
        segments: u32,
    },
    Cancel {
        n: u64,
    },
    CancelReference,
    Begin {
        n: u64,
        pause_ms: u64,
        off_by: u32,
        stale: bool,
    },
    /// `back` attempts before the last one.
    Outcome {
        n: u64,
        back: u32,
        outcome: i32,
        refs: usize,
    },
    Receipt {
        n: u64,
        back: u32,
        part: u32,
        state: i32,
        by_id: bool,
        by_ref: bool,
    },
    Expire {
        n: u64,
        pause_ms: u64,
    },
    HoldBack {
        n: u64,
        later_ms: u64,
    },
    LeaderStart,
}

impl Op {
    /// Time that passes before it.
    pub fn pause_ms(&self) -> u64 {
        match self {
            Op::Begin { pause_ms, .. } | Op::Expire { pause_ms, .. } => *pause_ms,
            _ => 10,
        }
    }
}

pub fn batches() -> impl Strategy<Value = Vec<Vec<Op>>> {
    prop::collection::vec(prop::collection::vec(op(), 1..6), 1..16)
}

fn op() -> impl Strategy<Value = Op> {
    let n = 0..MESSAGES;
    prop_oneof![
        4 => (n.clone(), prop::option::of(0..3u8), 0..2u8, prop_oneof![Just(0), Just(20_000u64)],
              prop_oneof![Just(1u64), Just(70_000), Just(3_600_000)], 0..3i32, 1..3u32)
            .prop_map(|(n, key, content, delay_ms, life_ms, policy, segments)| {
                Op::Accept { n, key, content, delay_ms, life_ms, policy, segments }
            }),
        1 => n.clone().prop_map(|n| Op::Cancel { n }),
        1 => Just(Op::CancelReference),
        8 => (n.clone(), prop_oneof![Just(0u64), Just(30_000)], 0..6u32, 0..10u8).prop_map(
            |(n, pause_ms, off, stale)| Op::Begin { n, pause_ms, off_by: u32::from(off == 0), stale: stale == 0 }
        ),
        8 => (n.clone(), prop_oneof![4 => Just(0u32), 1 => Just(1), 1 => Just(2)],
              prop_oneof![2 => 1..12i32, 1 => Just(O::Ambiguous as i32), 1 => Just(O::Accepted as i32)], 0..3usize)
            .prop_map(|(n, back, outcome, refs)| Op::Outcome { n, back, outcome, refs }),
        6 => (n.clone(), 0..2u32, 0..2u32, 1..6i32, any::<bool>(), any::<bool>()).prop_map(
            |(n, back, part, state, by_id, by_ref)| Op::Receipt { n, back, part, state, by_id, by_ref }
        ),
        2 => (n.clone(), prop_oneof![Just(0u64), Just(80_000)]).prop_map(|(n, pause_ms)| Op::Expire { n, pause_ms }),
        2 => (n, 0..5_000u64).prop_map(|(n, later_ms)| Op::HoldBack { n, later_ms }),
        1 => Just(Op::LeaderStart),
    ]
}

struct Try {
    number: u32,
    term: u64,
    outcome: O,
    /// Receipt of each numbered part.
    parts: Vec<Option<ReceiptState>>,
}

struct Message {
    state: S,
    tries: Vec<Try>,
    /// Earliest and latest due time that would be right.
    due: (u64, u64),
    expires_ms: u64,
    policy: UnknownPolicy,
    segments: u32,
    cancel_wished: bool,
    /// A hash decides whether the resend would still be in time.
    resend_or_hold: bool,
}

#[derive(Default)]
pub struct Model {
    messages: BTreeMap<u64, Message>,
    keys: BTreeMap<u8, u64>,
    /// Reference to (message, attempt, part; none = the whole message).
    refs: BTreeMap<String, (u64, u32, Option<usize>)>,
    leader_start_term: u64,
}

fn waits(state: S) -> bool {
    matches!(state, S::Accepted | S::Waiting)
}

fn is_final(state: S) -> bool {
    !waits(state) && !matches!(state, S::InFlight | S::Submitted | S::Unknown)
}

fn counts(outcome: O) -> bool {
    !matches!(outcome, O::Unspecified | O::Throttled | O::CapReached | O::LaneBroken | O::NotSent)
}

impl Message {
    fn lost(&self) -> usize {
        self.tries.iter().filter(|t| t.outcome == O::Ambiguous).count()
    }

    fn taken(&self) -> bool {
        self.tries.iter().any(|t| t.outcome == O::Accepted)
    }

    fn counted(&self) -> u32 {
        self.tries.iter().filter(|t| counts(t.outcome)).count() as u32
    }

    fn decisive(&self) -> Option<&Try> {
        self.tries.iter().rev().find(|t| t.outcome == O::Accepted).or(self.tries.last())
    }

    fn wait(&mut self, from_ms: u64, to_ms: u64) {
        self.state = S::Waiting;
        self.due = (from_ms.min(self.expires_ms), to_ms.min(self.expires_ms));
    }

    /// Not sent, unless nobody knows.
    fn end_unsent(&mut self, state: S) {
        self.cancel_wished = state == S::Canceled;
        self.state = if self.lost() > 0 { S::Unknown } else { state };
    }

    fn backoff(&mut self, now_ms: u64) {
        let delay = (10_000u64 << (self.counted() - 1)).min(60_000);
        self.wait(now_ms + delay * 8 / 10, now_ms + delay * 12 / 10);
    }

    /// Only if its due time, known to a fifth, is before the expiry.
    fn resend(&mut self, now_ms: u64) {
        let before = self.state;
        self.backoff(now_ms);
        let (earliest, latest) = self.due;
        if earliest >= self.expires_ms {
            self.state = before;
        } else {
            self.resend_or_hold = latest >= self.expires_ms;
        }
    }

    fn answer(&mut self, number: u32, outcome: O, now_ms: u64) {
        let last = self.tries.last().map_or(0, |t| t.number);
        let position = self.tries.iter().position(|t| t.number == number).expect("known");
        let before = self.tries[position].outcome;
        if !matches!(before, O::Unspecified | O::Ambiguous) || before == outcome {
            return;
        }
        self.tries[position].outcome = outcome;
        let moves = match self.state {
            S::InFlight => number == last,
            S::Unknown => self.taken() || self.lost() == 0,
            S::Waiting => {
                matches!(
                    outcome,
                    O::Accepted | O::RejectedNumber | O::RejectedContent | O::OptedOut | O::Expired
                )
            }
            _ => false,
        };
        if moves {
            self.resolve(outcome, now_ms);
        }
    }

    fn resolve(&mut self, outcome: O, now_ms: u64) {
        if self.taken() {
            self.state = S::Submitted;
            return;
        }
        match outcome {
            O::Ambiguous => {
                self.state = S::Unknown;
                let again = self.policy == UnknownPolicy::ResendOnce
                    && self.lost() == 1
                    && self.counted() < 3
                    && !self.cancel_wished;
                if self.policy == UnknownPolicy::Abandon {
                    self.state = S::Undelivered;
                } else if again {
                    self.resend(now_ms);
                }
            }
            O::RejectedNumber | O::RejectedContent => self.state = S::Rejected,
            O::OptedOut => self.state = S::OptedOut,
            O::Expired => self.end_unsent(S::Expired),
            _ if self.cancel_wished => self.end_unsent(S::Canceled),
            O::Transient if self.counted() >= 3 => self.end_unsent(S::Dead),
            O::Transient => self.backoff(now_ms),
            O::Throttled => self.wait(now_ms + 1_000, now_ms + 1_000),
            O::CapReached => self.wait(now_ms + 60_000, now_ms + 60_000),
            O::LaneBroken => self.wait(now_ms + 30_000, now_ms + 30_000),
            _ => self.wait(now_ms + 200, now_ms + 200),
        }
    }

    fn take_back(&mut self) {
        match self.state {
            state if waits(state) => self.end_unsent(S::Canceled),
            S::InFlight | S::Unknown => self.cancel_wished = true,
            _ => {}
        }
    }

    /// Proof that the carrier has it. True if that is news.
    fn proof(&mut self) -> bool {
        let news = self.state == S::Unknown || self.state == S::Waiting && self.lost() > 0;
        if news {
            self.state = S::Submitted;
        }
        news
    }
}

impl Model {
    pub fn state(&self, n: u64) -> S {
        self.messages.get(&n).map_or(S::Unspecified, |m| m.state)
    }

    pub fn states(&self) -> impl Iterator<Item = S> {
        self.messages.values().map(|m| m.state)
    }

    pub fn counted(&self, n: u64) -> u32 {
        self.messages[&n].counted()
    }

    /// Where a hash decided, takes over what it decided.
    pub fn take_state(&mut self, n: u64, state: S) {
        let Some(message) = self.messages.get_mut(&n) else { return };
        if std::mem::take(&mut message.resend_or_hold) && state == S::Unknown {
            message.state = state;
        }
    }

    /// Checks a due time that depends on a hash, and takes it over.
    pub fn take_due(&mut self, n: u64, due_ms: u64, now_ms: u64) {
        let message = self.messages.get_mut(&n).expect("exists");
        if waits(message.state) {
            let (low, high) = message.due;
            assert!((low..=high).contains(&due_ms), "due {due_ms} not in {low}..={high} at {now_ms}");
            message.due = (due_ms, due_ms);
        }
    }

    fn attempt_no(&self, n: u64, back: u32) -> u32 {
        let last = self.messages.get(&n).and_then(|m| m.tries.last()).map_or(1, |t| t.number);
        last.saturating_sub(back)
    }

    pub fn command(&self, op: &Op, term: u64) -> Kind {
        match op {
            Op::Accept { n, key, content, .. } => accept_with(*n, |a| {
                a.idempotency_index = key.map(index).unwrap_or_default();
                a.content_mac = index(100 + content + 10 * *n as u8);
                a.due_by_practice = n % 2 == 0;
                self.fill(a, op);
            }),
            Op::Cancel { n } => cancel(*n),
            Op::CancelReference => cancel_reference(1),
            Op::Begin { n, off_by, stale, .. } => {
                let next = self.messages.get(n).and_then(|m| m.tries.last()).map_or(1, |t| t.number + 1);
                begin(*n, next + off_by, term - u64::from(*stale))
            }
            Op::Outcome { n, back, outcome: answer, refs } => {
                let number = self.attempt_no(*n, *back);
                let names = self.names(*n, number, *refs);
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                outcome(*n, number, O::try_from(*answer).unwrap(), &names)
            }
            Op::Receipt { n, back, part, state, by_id, by_ref } => {
                let name = name(*n, self.attempt_no(*n, *back), *part);
                let names: &[&str] = if *by_ref { &[&name] } else { &[] };
                let state = ReceiptState::try_from(*state).unwrap();
                if *by_id { receipt_for(*n, names, state) } else { receipt(names, state) }
            }
            Op::Expire { n, .. } => expire(*n),
            Op::HoldBack { n, later_ms } => hold_back(*n, START_MS + later_ms * 40),
            Op::LeaderStart => leader_start(term),
        }
    }

    fn fill(&self, accept: &mut Accept, op: &Op) {
        let Op::Accept { delay_ms, life_ms, policy, segments, .. } = op else { unreachable!() };
        accept.not_before_ms = START_MS + delay_ms;
        accept.expires_at_ms = START_MS + life_ms;
        accept.retry = Some(with_policy(UnknownPolicy::try_from(*policy).unwrap()));
        accept.segments = *segments;
    }

    /// References of an outcome: none, one for all, or one for each segment.
    fn names(&self, n: u64, number: u32, refs: usize) -> Vec<String> {
        let segments = self.messages.get(&n).map_or(1, |m| m.segments);
        let count = [0, 1, segments][refs];
        (0..count).map(|part| name(n, number, part)).collect()
    }

    /// Does it; true if it is refused.
    pub fn apply(&mut self, op: &Op, now_ms: u64, term: u64) -> bool {
        match op {
            Op::Accept { n, key, .. } => return self.accept(*n, *key, op, now_ms),
            Op::Cancel { n } => match self.messages.get_mut(n) {
                Some(message) => message.take_back(),
                None => return true,
            },
            Op::CancelReference => self.messages.values_mut().for_each(Message::take_back),
            Op::Begin { n, off_by, stale, .. } => {
                let Some(message) = self.messages.get_mut(n) else { return true };
                let ready = waits(message.state) && message.expires_ms > now_ms && message.due.0 <= now_ms;
                if !ready || *off_by > 0 || *stale {
                    return true;
                }
                let number = message.tries.last().map_or(1, |t| t.number + 1);
                message.tries.push(Try { number, term, outcome: O::Unspecified, parts: Vec::new() });
                message.state = S::InFlight;
                message.cancel_wished = false;
            }
            Op::Outcome { n, back, outcome, refs } => {
                return self.outcome(*n, *back, *outcome, *refs, now_ms);
            }
            Op::Receipt { .. } => return self.receipt(op),
            Op::Expire { n, .. } => match self.messages.get_mut(n) {
                Some(message) if waits(message.state) && message.expires_ms <= now_ms => {
                    message.end_unsent(S::Expired);
                }
                _ => return true,
            },
            Op::HoldBack { n, later_ms } => match self.messages.get_mut(n) {
                Some(message) if waits(message.state) => {
                    let due_ms = (START_MS + later_ms * 40).max(now_ms);
                    message.wait(due_ms, due_ms);
                }
                _ => return true,
            },
            Op::LeaderStart => {
                if term > self.leader_start_term {
                    self.leader_start_term = term;
                    for message in self.messages.values_mut().filter(|m| m.state == S::InFlight) {
                        let last = message.tries.last().expect("in flight");
                        if last.term < term {
                            message.answer(last.number, O::Ambiguous, now_ms);
                        }
                    }
                }
            }
        }
        false
    }

    fn accept(&mut self, n: u64, key: Option<u8>, op: &Op, now_ms: u64) -> bool {
        let Op::Accept { delay_ms, life_ms, policy, segments, .. } = op else { unreachable!() };
        if key.is_some_and(|key| self.keys.contains_key(&key)) {
            return false;
        }
        if self.messages.contains_key(&n) {
            return true;
        }
        if let Some(key) = key {
            self.keys.insert(key, n);
        }
        let expires_ms = START_MS + life_ms;
        let not_before = START_MS + delay_ms;
        let due_ms = not_before.max(now_ms).min(expires_ms);
        let message = Message {
            state: if not_before > now_ms { S::Waiting } else { S::Accepted },
            tries: Vec::new(),
            due: (due_ms, due_ms),
            expires_ms,
            policy: UnknownPolicy::try_from(*policy).unwrap(),
            segments: *segments,
            cancel_wished: false,
            resend_or_hold: false,
        };
        self.messages.insert(n, message);
        false
    }

    fn outcome(&mut self, n: u64, back: u32, outcome: i32, refs: usize, now_ms: u64) -> bool {
        let number = self.attempt_no(n, back);
        let names = self.names(n, number, refs);
        let Some(message) = self.messages.get_mut(&n) else { return true };
        let outcome = O::try_from(outcome).unwrap();
        let Some(attempt) = message.tries.iter_mut().find(|t| t.number == number) else { return true };
        let open = matches!(attempt.outcome, O::Unspecified | O::Ambiguous);
        if open && outcome == O::Accepted {
            attempt.parts = if names.len() > 1 { vec![None; names.len()] } else { Vec::new() };
            for (i, name) in names.iter().enumerate() {
                let part = (names.len() > 1).then_some(i);
                self.refs.insert(name.clone(), (n, number, part));
            }
        }
        message.answer(number, outcome, now_ms);
        false
    }

    fn receipt(&mut self, op: &Op) -> bool {
        let Op::Receipt { n, back, part, state, by_id, by_ref } = op else { unreachable!() };
        let state = ReceiptState::try_from(*state).unwrap();
        let name = name(*n, self.attempt_no(*n, *back), *part);
        let row = self.refs.get(&name).filter(|_| *by_ref).copied();
        if !*by_id && row.is_none() {
            return true;
        }
        let Some(message) = self.messages.get_mut(n) else { return true };
        if is_final(message.state) {
            return false;
        }
        if message.tries.is_empty() {
            return true;
        }
        let decisive = message.decisive().map_or(0, |t| t.number);
        match (state, row) {
            (ReceiptState::Enroute, _) => {
                if message.segments <= 1 || !*by_ref {
                    message.proof();
                }
            }
            (_, Some((_, number, Some(part)))) => {
                let attempt = message.tries.iter_mut().find(|t| t.number == number).expect("named it");
                attempt.parts[part].get_or_insert(state);
                let all = attempt.parts.iter().all(Option::is_some);
                let delivered = attempt.parts.iter().all(|p| *p == Some(ReceiptState::Delivered));
                if all && number == decisive {
                    message.state = if delivered { S::Delivered } else { S::Undelivered };
                }
            }
            (_, None) if *by_ref && message.segments > 1 => return true,
            (_, row) => {
                let retrying = message.state == S::Waiting && message.lost() == 0;
                let counts = row.is_none_or(|(_, number, _)| number == decisive);
                if state == ReceiptState::Delivered {
                    message.state = S::Delivered;
                } else if counts && !retrying {
                    message.state = S::Undelivered;
                }
            }
        }
        false
    }
}

fn name(n: u64, number: u32, part: u32) -> String {
    format!("message-{n}-attempt-{number}-part-{part}")
}
