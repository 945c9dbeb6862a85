//! The eleven message classes: built-in defaults as plain data, what configuration may make of them, and the table that ingest
//! asks.
//!
//! A policy is resolved by the leader that accepts a message and travels in its `Accept`, so replicas agree whatever their
//! configurations say; a changed table counts for what is accepted from then on.
//!
//! How the numbers were chosen
//!  - Priority says who passes when a lane is full: people waiting at this moment before messages about a day,
//!    and those before what may arrive at any time this week.
//!  - Default expiry is the time after which the text is worthless or wrong. The edge caps it by the deadline.
//!  - Retries must fit into the expiry: the sum of the delays stays below it for every class (tested), so a message
//!    is dead because retries were spent, not because the schedule was longer than its life.
//!  - `hold` for everything that a patient would be confused or annoyed to get twice; `resend_once` only where
//!    missing it is worse than getting it twice. No default is `abandon`: it calls a text undelivered that may have
//!    arrived, and holding it costs nothing.
use crate::retry::base_delay_ms;
use carillon_proto::internal::{RetryPolicy, UnknownPolicy};
use carillon_proto::public::{MessageClass, Priority};
use std::collections::BTreeMap;

const SECOND_MS: u32 = 1_000;
const MINUTE_MS: u32 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS as u64;
/// A message must live long enough to be sent, and nothing waits for a month by default.
const EXPIRY_MIN_MS: u64 = MINUTE_MS as u64;
const EXPIRY_MAX_MS: u64 = 30 * 24 * HOUR_MS;
const ATTEMPTS_MAX: u32 = 20;
const BACKOFF_MIN_MS: u32 = 100;

/// What a class sets when the caller does not.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassPolicy {
    pub priority: Priority,
    /// From acceptance, or from `not_before` if that is later.
    pub default_expiry_ms: u64,
    /// Retry schedule and what to do after a lost answer.
    pub retry: RetryPolicy,
}

impl ClassPolicy {
    fn new(
        priority: Priority,
        default_expiry_ms: u64,
        (attempts_max, backoff_base_ms, backoff_max_ms): (u32, u32, u32),
        unknown_policy: UnknownPolicy,
    ) -> Self {
        let retry = RetryPolicy {
            attempts_max,
            backoff_base_ms,
            backoff_max_ms,
            unknown_policy: unknown_policy as i32,
        };
        Self { priority, default_expiry_ms, retry }
    }

    /// What happens to a message of this class whose carrier's answer was lost.
    pub fn unknown_policy(&self) -> UnknownPolicy {
        self.retry.unknown_policy()
    }

    /// The first rule that a policy breaks: which part of it, and what must be so.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let RetryPolicy { attempts_max, backoff_base_ms, backoff_max_ms, .. } = self.retry;
        let rules = [
            (self.priority != Priority::Unspecified, "priority", "must be critical, high, normal or bulk"),
            (
                (EXPIRY_MIN_MS..=EXPIRY_MAX_MS).contains(&self.default_expiry_ms),
                "default_expiry_s",
                "must be 60 to 2592000",
            ),
            ((1..=ATTEMPTS_MAX).contains(&attempts_max), "attempts_max", "must be 1 to 20"),
            (
                (BACKOFF_MIN_MS..=MINUTE_MS * 60).contains(&backoff_base_ms),
                "backoff_base_ms",
                "must be 100 to 3600000",
            ),
            (
                (backoff_base_ms..=MINUTE_MS * 60 * 24).contains(&backoff_max_ms),
                "backoff_max_ms",
                "must be backoff_base_ms to 86400000",
            ),
            (
                UnknownPolicy::try_from(self.retry.unknown_policy).is_ok(),
                "unknown_policy",
                "must be hold, resend_once or abandon",
            ),
            (
                self.retries_ms() < self.default_expiry_ms,
                "attempts_max",
                "is too large: the delays between the attempts must fit into default_expiry_s",
            ),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, part, reason)) => Err((part, reason)),
            None => Ok(()),
        }
    }

    /// All delays together, with the widest jitter.
    fn retries_ms(&self) -> u64 {
        // More attempts than the bound are an error already; the sum need not be exact for them.
        let retries = 1..self.retry.attempts_max.min(ATTEMPTS_MAX + 1);
        retries.map(|n| base_delay_ms(&self.retry, n) * 12 / 10).sum()
    }
}

/// The policy of every class.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassTable(BTreeMap<i32, ClassPolicy>);

impl Default for ClassTable {
    fn default() -> Self {
        Self(all().map(|class| (class as i32, default_policy(class))).collect())
    }
}

impl ClassTable {
    pub fn get(&self, class: MessageClass) -> ClassPolicy {
        self.0.get(&(class as i32)).cloned().unwrap_or_else(|| default_policy(class))
    }

    pub fn set(&mut self, class: MessageClass, policy: ClassPolicy) {
        self.0.insert(class as i32, policy);
    }
}

/// Every class, in the order of the API.
pub fn all() -> impl Iterator<Item = MessageClass> {
    (1..=11).filter_map(|number| MessageClass::try_from(number).ok())
}

/// The default policy of a class. `Unspecified`, which the edge refuses, gets the cautious middle.
pub fn default_policy(class: MessageClass) -> ClassPolicy {
    use UnknownPolicy::{Hold, ResendOnce};
    let day_schedule = (5, 30 * SECOND_MS, 30 * MINUTE_MS);
    let week_schedule = (6, MINUTE_MS, 2 * HOUR_MS as u32);
    match class {
        // The patient has just booked and looks at the phone; a second text reads like a second booking.
        MessageClass::Confirmation => {
            ClassPolicy::new(Priority::High, 12 * HOUR_MS, (6, 10 * SECOND_MS, 30 * MINUTE_MS), Hold)
        }
        // About tomorrow: a day is the longest that it helps, and half an hour between tries loses nothing.
        MessageClass::Reminder => ClassPolicy::new(Priority::Normal, 24 * HOUR_MS, day_schedule, Hold),
        // The pharmacy keeps it for days; twice would suggest two prescriptions.
        MessageClass::Prescription => ClassPolicy::new(Priority::Normal, 48 * HOUR_MS, week_schedule, Hold),
        // Instructions after a visit matter within the day or two in which they are followed.
        MessageClass::FollowUp => ClassPolicy::new(Priority::Normal, 48 * HOUR_MS, week_schedule, Hold),
        // "You are due for a visit" is true all week.
        MessageClass::Recall => ClassPolicy::new(Priority::Bulk, 72 * HOUR_MS, week_schedule, Hold),
        // Staff act on it now; a page that comes twice is harmless, a page that never comes is not.
        MessageClass::Staff => {
            ClassPolicy::new(Priority::Critical, HOUR_MS, (8, 2 * SECOND_MS, 5 * MINUTE_MS), ResendOnce)
        }
        // A warning must arrive; repeating a public notice reveals and confuses nothing.
        MessageClass::PublicHealth => {
            ClassPolicy::new(Priority::High, 24 * HOUR_MS, (8, 10 * SECOND_MS, 30 * MINUTE_MS), ResendOnce)
        }
        // First come, first served: after a quarter of an hour the place is gone. A second offer of a taken
        // place is worse than none.
        MessageClass::Waitlist => {
            ClassPolicy::new(Priority::High, HOUR_MS / 4, (5, 5 * SECOND_MS, 2 * MINUTE_MS), Hold)
        }
        // A bill can come any day this week, never twice.
        MessageClass::Payment => ClassPolicy::new(Priority::Bulk, 72 * HOUR_MS, week_schedule, Hold),
        // To be filled in before the visit; the edge caps it by the appointment.
        MessageClass::Form => ClassPolicy::new(Priority::Normal, 48 * HOUR_MS, week_schedule, Hold),
        // A lost survey is not worth anybody's time.
        MessageClass::Survey => {
            ClassPolicy::new(Priority::Bulk, 72 * HOUR_MS, (3, MINUTE_MS, 2 * HOUR_MS as u32), Hold)
        }
        MessageClass::Unspecified => ClassPolicy::new(Priority::Normal, 24 * HOUR_MS, day_schedule, Hold),
    }
}

/// Whether texts of the class hold nothing about a person: only those may go through a carrier without a business associate
/// agreement. A text to staff may name a patient, and a confirmation says by itself that somebody is one.
pub fn is_phi_free(class: MessageClass) -> bool {
    class == MessageClass::PublicHealth
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_a_usable_policy_whose_retries_fit_its_life() {
        assert_eq!(all().count(), 11);
        for class in all() {
            let policy = default_policy(class);
            assert_eq!(policy.check(), Ok(()), "{class:?}");
            assert!(policy.retry.attempts_max >= 3, "{class:?}");
            assert_eq!(ClassTable::default().get(class), policy);
        }
    }

    #[test]
    fn each_rule_of_a_policy_is_checked() {
        let broken = |change: fn(&mut ClassPolicy)| {
            let mut policy = default_policy(MessageClass::Reminder);
            change(&mut policy);
            policy.check().map_err(|(part, _)| part)
        };
        assert_eq!(broken(|p| p.priority = Priority::Unspecified), Err("priority"));
        assert_eq!(broken(|p| p.default_expiry_ms = 59_999), Err("default_expiry_s"));
        assert_eq!(broken(|p| p.default_expiry_ms = 30 * 24 * HOUR_MS + 1), Err("default_expiry_s"));
        assert_eq!(broken(|p| p.retry.attempts_max = 0), Err("attempts_max"));
        assert_eq!(broken(|p| p.retry.attempts_max = u32::MAX), Err("attempts_max"));
        assert_eq!(broken(|p| p.retry.backoff_base_ms = 99), Err("backoff_base_ms"));
        assert_eq!(broken(|p| p.retry.backoff_max_ms = 29_999), Err("backoff_max_ms"));
        assert_eq!(broken(|p| p.retry.unknown_policy = 3), Err("unknown_policy"));
        // Six attempts with an hour between them do not fit into an hour.
        let long = |p: &mut ClassPolicy| {
            (p.retry.attempts_max, p.retry.backoff_base_ms, p.retry.backoff_max_ms) =
                (6, 3_600_000, 3_600_000);
            p.default_expiry_ms = HOUR_MS;
        };
        assert_eq!(broken(long), Err("attempts_max"));
        assert_eq!(broken(|p| p.retry.attempts_max = 1), Ok(()));
    }

    #[test]
    fn a_table_is_changed_for_one_class_only() {
        let mut table = ClassTable::default();
        let policy = ClassPolicy { default_expiry_ms: HOUR_MS, ..default_policy(MessageClass::Survey) };
        table.set(MessageClass::Survey, policy.clone());
        assert_eq!(table.get(MessageClass::Survey), policy);
        assert_eq!(table.get(MessageClass::Recall), default_policy(MessageClass::Recall));
    }

    #[test]
    fn only_what_goes_to_the_public_is_free_of_phi() {
        assert_eq!(
            all().filter(|class| is_phi_free(*class)).collect::<Vec<_>>(),
            [MessageClass::PublicHealth]
        );
        assert!(!is_phi_free(MessageClass::Unspecified));
    }

    #[test]
    fn only_staff_and_public_health_are_ever_sent_again_without_an_answer() {
        let resent: Vec<_> =
            all().filter(|c| default_policy(*c).unknown_policy() == UnknownPolicy::ResendOnce).collect();
        assert_eq!(resent, [MessageClass::Staff, MessageClass::PublicHealth]);
    }

    #[test]
    fn a_waitlist_offer_lives_a_quarter_of_an_hour() {
        let policy = default_policy(MessageClass::Waitlist);
        assert_eq!((policy.priority, policy.default_expiry_ms), (Priority::High, 15 * 60_000));
    }
}
