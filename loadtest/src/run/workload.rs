//! The n-th message of a run: a pure function of the scenario, the seed and n.
//!
//! Owns: practices and their sizes ([`Population`]), and the messages ([`Workload`]). Nothing that was sent is remembered:
//! the ledger makes the n-th message again when it needs its text.
//! Invariants: every text holds the number of its message, so the carrier's ground truth can tell any two apart; a
//! repetition is equal to the message that it repeats, key and all. Everything is synthetic: numbers come only from the
//! fictitious range 555-0100 to 555-0199.

use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::{MessageClass, MessageSpec};

use super::scenario::{Loop, Messages, Practices, Scenario};
use super::shape::Shape;
use crate::sample_day::dice::Dice;
use crate::sample_day::{DayError, Practice, class_of, practices, timestamp};

/// A repetition is of one of so many messages before.
const REPEAT_WITHIN: u64 = 1_000;
/// How far in the future messages lie that must not be delivered.
const FAR_MS: i64 = 300 * 86_400_000;
const FILL: &str = "Please come a little early. ";
/// Makes a body need another encoding.
const UNICODE: char = '\u{2713}';

/// Something chosen in proportion to its weight.
#[derive(Clone, Debug)]
struct Weighted(Vec<f64>);

impl Weighted {
    fn new(weights: impl Iterator<Item = f64>) -> Self {
        let mut sum = 0.0;
        Self(
            weights
                .map(|weight| {
                    sum += weight;
                    sum
                })
                .collect(),
        )
    }

    fn pick(&self, unit: f64) -> usize {
        let at = unit * self.0.last().copied().unwrap_or(0.0);
        self.0.partition_point(|reach| *reach <= at).min(self.0.len().saturating_sub(1))
    }
}

/// Who sends, and how much each.
#[derive(Clone, Debug)]
pub struct Population {
    pub practices: Vec<Practice>,
    sizes: Weighted,
}

impl Population {
    pub fn new(of: &Practices) -> Result<Self, DayError> {
        let bundled = practices()?;
        let one = |at: usize| {
            let mut practice = bundled[at % bundled.len()].clone();
            if let series @ 1.. = at / bundled.len() {
                practice.name = format!("{}-{}", practice.name, series + 1);
                practice.title = format!("{} {}", practice.title, series + 1);
            }
            practice
        };
        let practices: Vec<_> = (0..of.count as usize).map(one).collect();
        let sizes = Weighted::new((1..=practices.len()).map(|rank| (rank as f64).powf(-of.skew)));
        Ok(Self { practices, sizes })
    }
}

/// A message as the ledger needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The message that it repeats, or itself.
    pub original: u64,
    pub practice: usize,
    pub class: MessageClass,
    pub ordered: bool,
    /// Milliseconds since the epoch; `None` is at once.
    pub not_before_ms: Option<i64>,
    pub expires_ms: Option<i64>,
}

/// All messages of a run.
#[derive(Clone, Debug)]
pub struct Workload {
    pub population: Population,
    messages: Messages,
    shape: Option<Shape>,
    classes: Vec<MessageClass>,
    class_sizes: Weighted,
    lengths: Weighted,
    seed: u64,
    /// Keeps the keys of one run apart from those of another.
    run: u32,
    start_ms: i64,
}

impl Workload {
    pub fn new(scenario: &Scenario, run: u32, start_ms: i64) -> Result<Self, DayError> {
        let messages = scenario.messages.clone();
        let open = scenario.pacing == Loop::Open;
        Ok(Self {
            population: Population::new(&scenario.practices)?,
            shape: open.then(|| Shape::new(&scenario.phases)),
            classes: messages.classes.keys().filter_map(|name| class_of(name)).collect(),
            class_sizes: Weighted::new(messages.classes.values().copied()),
            lengths: Weighted::new(messages.sizes.iter().map(|size| size.weight)),
            messages,
            seed: scenario.seed,
            run,
            start_ms,
        })
    }

    fn dice(&self, n: u64, what: u64) -> Dice {
        Dice::new(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n.wrapping_mul(4).wrapping_add(what))
    }

    /// The message that n repeats, or n.
    fn original(&self, n: u64) -> u64 {
        let mut at = n;
        while at > 0 && self.messages.repeat_share > 0.0 {
            let mut dice = self.dice(at, 1);
            if dice.unit() >= self.messages.repeat_share {
                break;
            }
            at -= 1 + dice.below(at.min(REPEAT_WITHIN));
        }
        at
    }

    /// Milliseconds after the start of the run at which message n is due, by the even schedule.
    fn due_ms(&self, n: u64, spread: f64) -> i64 {
        let sent_s = self.shape.as_ref().and_then(|shape| shape.time_of(n as f64)).unwrap_or(0.0);
        let after_s = self.messages.due_after_s + self.messages.due_spread_s * spread;
        ((sent_s + after_s) * 1_000.0) as i64
    }

    pub fn facts(&self, n: u64) -> Facts {
        let (original, messages) = (self.original(n), &self.messages);
        let practice = self.population.sizes.pick(self.dice(original / messages.row, 2).unit());
        let mut dice = self.dice(original, 3);
        let class = self.classes[self.class_sizes.pick(dice.unit())];
        let ordered = dice.unit() < messages.ordered_share;
        let delayed = messages.due_after_s > 0.0 || messages.due_spread_s > 0.0;
        let due_ms = self.start_ms + self.due_ms(original, dice.unit());
        let not_before_ms = match (messages.far, delayed) {
            (true, _) => Some(self.start_ms + FAR_MS),
            (false, true) => Some(due_ms),
            (false, false) => None,
        };
        let expires_after_ms = (messages.expires_after_s * 1_000.0) as i64;
        let expires_ms = (expires_after_ms > 0).then(|| not_before_ms.unwrap_or(due_ms) + expires_after_ms);
        Facts { original, practice, class, ordered, not_before_ms, expires_ms }
    }

    fn body(&self, original: u64, title: &str, dice: &mut Dice) -> String {
        let length = self.messages.sizes[self.lengths.pick(dice.unit())].bytes;
        let mut body = format!("Visit {:08x}-{original:x} at {title}. ", self.run);
        while body.len() < length {
            body.push_str(FILL);
        }
        body.truncate(length);
        if dice.unit() < self.messages.unicode_share {
            body.pop();
            body.push(UNICODE);
        }
        body
    }

    /// Message n.
    pub fn message(&self, n: u64) -> MessageSpec {
        let facts = self.facts(n);
        let (original, mut dice) = (facts.original, self.dice(facts.original, 0));
        let practice = &self.population.practices[facts.practice];
        let codes = practice.area_codes.len() as u64;
        let recipient = dice.below(u64::from(self.messages.recipients).min(codes * 100));
        let code = &practice.area_codes[(recipient % codes) as usize];
        let local = &self.messages.due_local;
        MessageSpec {
            practice: practice.name.clone(),
            recipient: Some(Recipient::PhoneNumber(format!("+1{code}5550{:03}", 100 + recipient / codes))),
            body: self.body(original, &practice.title, &mut dice),
            class: facts.class as i32,
            not_before: facts.not_before_ms.map(timestamp),
            expires_at: facts.expires_ms.map(timestamp),
            not_before_local: if local.is_empty() { String::new() } else { dice.pick(local).clone() },
            idempotency_key: format!("{:08x}{original:016x}", self.run),
            external_reference: format!("visit-{:08x}-{original:x}", self.run),
            ordered: facts.ordered,
            ..MessageSpec::default()
        }
    }
}

/// The number of a message, if it has the form that [`Workload`] uses.
pub fn phone_number(message: &MessageSpec) -> &str {
    match &message.recipient {
        Some(Recipient::PhoneNumber(number)) => number,
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn workload(text: &str) -> Workload {
        let text = format!("name = \"x\"\n[[phase]]\nduration_s = 100\nrate_per_s = 100\n{text}");
        Workload::new(&Scenario::parse("x", &text).unwrap(), 7, 1_800_000_000_000).unwrap()
    }

    #[test]
    fn messages_are_the_same_every_time_and_no_two_alike() {
        let workload =
            workload("[messages]\nsizes = [{ bytes = 100, weight = 1 }, { bytes = 300, weight = 1 }]\n");
        let mut texts = HashMap::new();
        for n in 0..500 {
            let message = workload.message(n);
            assert_eq!(message, workload.message(n));
            assert!(matches!(message.body.len(), 100 | 300));
            assert!(phone_number(&message).len() == 12 && phone_number(&message)[5..9] == *"5550");
            assert!(texts.insert((phone_number(&message).to_owned(), message.body), n).is_none());
        }
    }

    #[test]
    fn sizes_of_practices_follow_their_rank() {
        let workload = workload("[practices]\ncount = 100\nskew = 1.0\n");
        assert_eq!(workload.population.practices.len(), 100);
        let mut names: Vec<_> = workload.population.practices.iter().map(|p| p.name.clone()).collect();
        names.dedup();
        assert_eq!(names.len(), 100);
        let mut counts = vec![0_u32; 100];
        (0..20_000).for_each(|n| counts[workload.facts(n).practice] += 1);
        assert!(counts[0] > 3_000 && counts[0] < 4_600, "{}", counts[0]);
        assert!(counts[0] > 5 * counts[9] && counts[99] < 100);
    }

    #[test]
    fn a_repetition_is_equal_to_its_original() {
        let workload = workload("[messages]\nrepeat_share = 0.2\n");
        let repeated: Vec<_> = (0..2_000).filter(|n| workload.facts(*n).original != *n).collect();
        assert!((300..500).contains(&repeated.len()), "{}", repeated.len());
        for n in repeated {
            let original = workload.facts(n).original;
            assert!(original < n && workload.facts(original).original == original);
            assert_eq!(workload.message(n), workload.message(original));
        }
    }

    #[test]
    fn due_times_follow_the_schedule() {
        let workload = workload("[messages]\ndue_after_s = 5\ndue_spread_s = 10\nexpires_after_s = 60\n");
        for n in [0, 5_000] {
            let facts = workload.facts(n);
            let due_ms = facts.not_before_ms.unwrap() - 1_800_000_000_000;
            let sent_ms = n as i64 * 10;
            assert!((sent_ms + 5_000..=sent_ms + 15_000).contains(&due_ms), "{due_ms}");
            assert_eq!(facts.expires_ms.unwrap() - facts.not_before_ms.unwrap(), 60_000);
        }
    }
}
