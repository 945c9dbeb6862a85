//! What happens to one submit: a pure function of the profile and a hash.
//!
//! Owns: [`decide`]. The draws come from (seed, recipient, text octets, how
//! often this very submit came before), so two runs with other timing pick
//! the same messages for the same faults. Only storms, the contract and a
//! full simulator depend on time, and they come before the draws.
//! Invariant: the draws are taken in one fixed order, so changing one
//! probability does not move the choices of another.

use super::dist::Draws;
use super::profile::{Faults, Profile};
use super::wire::{ReceiptWish, status};

/// Why a submit was not simply accepted and answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Fault {
    None,
    /// The PDU itself was wrong (number, length, part numbers).
    Invalid,
    Storm,
    OverContract,
    /// The simulator's own bounds were reached.
    Overload,
    RefusedRecipient,
    Throttled,
    QueueFull,
    Temporary,
    LostAccepted,
    LostRefused,
    DropAfterAccept,
    DropBeforeRead,
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Invalid => "invalid",
            Self::Storm => "storm",
            Self::OverContract => "over_contract",
            Self::Overload => "overload",
            Self::RefusedRecipient => "refused_recipient",
            Self::Throttled => "throttled",
            Self::QueueFull => "queue_full",
            Self::Temporary => "temporary",
            Self::LostAccepted => "lost_accepted",
            Self::LostRefused => "lost_refused",
            Self::DropAfterAccept => "drop_after_accept",
            Self::DropBeforeRead => "drop_before_read",
        }
    }
}

/// The state that a receipt reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Enroute,
    Delivered,
    Undelivered,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Enroute => "ENROUTE",
            Self::Delivered => "DELIVRD",
            Self::Undelivered => "UNDELIV",
        }
    }

    /// The value of the message_state TLV.
    pub fn tlv(self) -> u8 {
        match self {
            Self::Enroute => 1,
            Self::Delivered => 2,
            Self::Undelivered => 5,
        }
    }
}

/// The receipts of an accepted submit; delays count from its arrival.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReceiptPlan {
    pub state: Option<State>,
    pub err: u16,
    /// The final receipt, none at all when empty; a second entry is a duplicate.
    pub final_after_us: Vec<u64>,
    pub enroute_after_us: Option<u64>,
    /// The final receipt leaves before the answer.
    pub before_answer: bool,
}

/// What happens to one submit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub fault: Fault,
    pub accepted: bool,
    /// The status to answer with; `None`: no answer.
    pub answer: Option<u32>,
    pub latency_us: u64,
    pub receipts: ReceiptPlan,
}

impl Decision {
    /// A refusal with `status` after `latency_us`.
    pub fn refuse(fault: Fault, code: u32, latency_us: u64) -> Self {
        Self { fault, accepted: false, answer: Some(code), latency_us, receipts: ReceiptPlan::default() }
    }
}

/// The state of the world that the hash does not know.
pub struct Moment {
    /// Microseconds since the profile took effect.
    pub since_profile_us: u64,
    /// Accepting this one would exceed the contract.
    pub over_contract: bool,
}

/// Decides what happens to the submit whose hash is `seed`.
pub fn decide(profile: &Profile, seed: u64, digits: &[u8], wish: ReceiptWish, moment: &Moment) -> Decision {
    let mut draws = Draws::new(seed);
    let u_fault = draws.unit();
    let latency_us = profile.answer_latency.at_us(draws.unit());
    let now_ms = moment.since_profile_us / 1000;
    if let Some(storm) = profile.storms.iter().find(|s| (s.from_ms..s.to_ms).contains(&now_ms)) {
        return Decision::refuse(Fault::Storm, storm.status, latency_us);
    }
    if profile.throttle_over_contract && moment.over_contract {
        return Decision::refuse(Fault::OverContract, status::RTHROTTLED, latency_us);
    }
    let rule = profile.refuse.iter().find(|rule| rule.matches(digits));
    if let Some(code) = rule.and_then(|rule| rule.status) {
        return Decision::refuse(Fault::RefusedRecipient, code, latency_us);
    }
    let fault = pick(&profile.faults, u_fault);
    let (accepted, answer) = match fault {
        Fault::Throttled => (false, Some(status::RTHROTTLED)),
        Fault::QueueFull => (false, Some(status::RMSGQFUL)),
        Fault::Temporary => (false, Some(status::RSYSERR)),
        Fault::LostRefused | Fault::DropBeforeRead => (false, None),
        Fault::LostAccepted | Fault::DropAfterAccept => (true, None),
        _ => (true, Some(status::ROK)),
    };
    let receipts = if accepted {
        plan(profile, &mut draws, rule.map(|rule| rule.err), wish)
    } else {
        ReceiptPlan::default()
    };
    Decision { fault, accepted, answer, latency_us, receipts }
}

fn pick(faults: &Faults, u: f64) -> Fault {
    let ladder = [
        (faults.throttled, Fault::Throttled),
        (faults.queue_full, Fault::QueueFull),
        (faults.temporary, Fault::Temporary),
        (faults.lost_accepted, Fault::LostAccepted),
        (faults.lost_refused, Fault::LostRefused),
        (faults.drop_after_accept, Fault::DropAfterAccept),
        (faults.drop_before_read, Fault::DropBeforeRead),
    ];
    let mut reach = 0.0;
    for (probability, fault) in ladder {
        reach += probability;
        if u < reach {
            return fault;
        }
    }
    Fault::None
}

fn plan(profile: &Profile, draws: &mut Draws, rule_err: Option<u16>, wish: ReceiptWish) -> ReceiptPlan {
    let r = &profile.receipts;
    let mut chance = |probability: f64| draws.unit() < probability;
    let undelivered = chance(r.undelivered) || rule_err.is_some();
    let (never, duplicate, late) = (chance(r.never), chance(r.duplicate), chance(r.late));
    let (intermediate, reordered) = (chance(r.intermediate), chance(r.reordered));
    let before_answer = chance(r.before_answer);
    let delay = if late { r.late_delay } else { r.delay };
    let after_us = delay.at_us(draws.unit());
    let gap_us = 1_000 + r.delay.at_us(draws.unit()) / 2;
    let state = if undelivered { State::Undelivered } else { State::Delivered };
    let wanted = match wish {
        ReceiptWish::None => false,
        ReceiptWish::Always => true,
        ReceiptWish::OnFailure => undelivered,
        ReceiptWish::OnSuccess => !undelivered,
    };
    if never || !wanted {
        return ReceiptPlan::default();
    }
    let first_us = if before_answer { 0 } else { after_us };
    let mut final_after_us = vec![first_us];
    if duplicate {
        final_after_us.push(first_us + gap_us);
    }
    let enroute_after_us =
        if reordered { Some(first_us + gap_us) } else { intermediate.then_some(first_us / 2) };
    let err = match (state, rule_err) {
        (State::Undelivered, Some(err)) => err,
        (State::Undelivered, None) => 1,
        _ => 0,
    };
    ReceiptPlan { state: Some(state), err, final_after_us, enroute_after_us, before_answer }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Moment = Moment { since_profile_us: 0, over_contract: false };

    #[test]
    fn the_same_hash_gives_the_same_decision_and_rates_hold() {
        let profile = Profile::preset("lossy").unwrap();
        let run = || -> Vec<Decision> {
            (0..50_000u64)
                .map(|seed| decide(&profile, seed, b"12025550123", ReceiptWish::Always, &CALM))
                .collect()
        };
        let first = run();
        assert_eq!(first, run());
        let share = |f: &dyn Fn(&Decision) -> bool| first.iter().filter(|d| f(d)).count() as f64 / 50_000.0;
        assert!((share(&|d| d.fault == Fault::LostAccepted) - 0.02).abs() < 0.004);
        assert!((share(&|d| d.fault == Fault::LostRefused) - 0.02).abs() < 0.004);
        assert!((share(&|d| d.receipts.final_after_us.len() == 2) - 0.05 * 0.92).abs() < 0.006);
    }

    #[test]
    fn raising_one_probability_does_not_move_the_choices_of_another() {
        let calm = Profile::preset("perfect").unwrap();
        let mut noisy = calm.clone();
        noisy.receipts.duplicate = 0.5;
        let mut both = noisy.clone();
        both.receipts.late = 0.5;
        for seed in 0..2_000 {
            let of = |p: &Profile| decide(p, seed, b"12025550123", ReceiptWish::Always, &CALM);
            assert_eq!(of(&noisy).receipts.final_after_us.len(), of(&both).receipts.final_after_us.len());
            assert_eq!(of(&calm).receipts.final_after_us[0], of(&noisy).receipts.final_after_us[0]);
        }
    }

    #[test]
    fn storms_contract_and_rules_come_before_the_draws() {
        let mut profile = Profile::preset("storm").unwrap();
        let at = |profile: &Profile, ms: u64, over_contract, digits: &[u8]| {
            let moment = Moment { since_profile_us: ms * 1000, over_contract };
            decide(profile, 1, digits, ReceiptWish::Always, &moment)
        };
        assert_eq!(at(&profile, 15_000, false, b"12025550000").answer, Some(status::RTHROTTLED));
        assert_eq!(at(&profile, 20_000, false, b"12025550123").answer, Some(status::RSYSERR));
        assert_eq!(at(&profile, 25_000, false, b"12025550000").answer, Some(status::RINVDSTADR));
        let dead = at(&profile, 0, false, b"12025550001");
        assert_eq!((dead.receipts.state, dead.receipts.err), (Some(State::Undelivered), 6));
        profile.throttle_over_contract = true;
        assert_eq!(at(&profile, 0, true, b"12025550123").fault, Fault::OverContract);
    }

    #[test]
    fn a_receipt_is_sent_only_when_wished_for() {
        let profile = Profile::default();
        let count = |wish| decide(&profile, 3, b"12025550123", wish, &CALM).receipts.final_after_us.len();
        assert_eq!(count(ReceiptWish::None), 0);
        assert_eq!(count(ReceiptWish::Always), 1);
        assert_eq!(count(ReceiptWish::OnFailure), 0);
        assert_eq!(count(ReceiptWish::OnSuccess), 1);
    }
}
