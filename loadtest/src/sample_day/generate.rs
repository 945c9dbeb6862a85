//! Makes the sample day from a seed. The result is committed; this is how it came to be, and how to make another.
//!
//! The plot of the minute: a morning peak that fills the lanes; a storm at the carrier while a batch of waitlist
//! offers runs out of time; visits taken back early and late; a client that repeats itself; a node that dies at
//! [`KILL_AT_MS`]. Messages of the classes that are sent again after a lost answer (staff, public health) keep
//! away from that moment, because for them a second copy would be right.

use std::collections::{BTreeMap, HashSet};

use super::dice::Dice;
use super::texts::text;
use super::{Again, CancelKeys, CancelReferences, Day, DayError, DayMessage, Line, Practice, practices};

/// The seed of the bundled day.
pub const SEED: u64 = 20_260_408;
/// Messages that must be accepted.
pub const MESSAGES: usize = 10_000;
/// The carrier refuses everything in this time; `profiles/demo.toml` says the same.
pub const STORM_MS: std::ops::Range<u64> = 12_000..15_000;
/// A node is killed here, and started again there.
pub const KILL_AT_MS: u64 = 30_000;
pub const RESTART_AT_MS: u64 = 38_000;
/// Numbers that end so are landlines: the carrier refuses the first kind, and drops the second later.
pub const LANDLINE_REFUSED: &str = "0187";
pub const LANDLINE_DROPPED: &str = "0143";

const OFFERS_IN_STORM: usize = 60;
const LOAD_MS: u64 = 45_000;

/// Share of each class, of 1,000.
const MIX: [(&str, u64); 11] = [
    ("reminder", 330),
    ("confirmation", 180),
    ("prescription", 100),
    ("follow_up", 80),
    ("recall", 90),
    ("staff", 20),
    ("public_health", 20),
    ("waitlist", 30),
    ("payment", 50),
    ("form", 50),
    ("survey", 50),
];

struct Maker {
    dice: Dice,
    practices: Vec<Practice>,
    /// Zipf: the n-th practice is 1/n as large as the first.
    sizes: Vec<u64>,
    seen: HashSet<(String, String)>,
    last_reference: BTreeMap<usize, String>,
    lines: Vec<Line>,
    made: usize,
}

/// Makes a day.
pub fn generate(seed: u64) -> Result<Day, DayError> {
    let practices = practices()?;
    let mut maker = Maker {
        dice: Dice::new(seed),
        sizes: (1..=practices.len() as u64).map(|rank| 1_000_000 / rank).collect(),
        practices,
        seen: HashSet::new(),
        last_reference: BTreeMap::new(),
        lines: Vec::new(),
        made: 0,
    };
    for _ in 0..OFFERS_IN_STORM {
        let message = maker.offer_in_storm();
        maker.lines.push(Line::Message(Box::new(message)));
    }
    while maker.made < MESSAGES {
        let message = maker.ordinary();
        maker.lines.push(Line::Message(Box::new(message)));
    }
    maker.cancel();
    maker.repeat();
    maker.refused();
    let mut lines = maker.lines;
    // Stable: what was made first stays first within a millisecond.
    lines.sort_by_key(Line::at_ms);
    let day = Day { lines };
    day.check()?;
    Ok(day)
}

impl Maker {
    /// When in the day: a morning peak, then less and less.
    fn moment_ms(&mut self) -> u64 {
        let hour = self.dice.weighted(&[50, 30, 30, 10]);
        let (from_ms, to_ms) = [(0, 10_000), (10_000, 20_000), (20_000, 35_000), (35_000, LOAD_MS)][hour];
        self.dice.between(from_ms, to_ms - 1) / 10 * 10
    }

    /// A message of `class` whose recipient and text no other message has together.
    fn message(&mut self, class: &str) -> DayMessage {
        let which = self.dice.weighted(&self.sizes);
        let practice = self.practices[which].clone();
        let call = format!("{}-555-0100", practice.area_codes[0]);
        let (to, text) = loop {
            let area = self.dice.pick(&practice.area_codes).clone();
            let to = format!("+1{area}55501{:02}", self.dice.below(100));
            let text = text(&mut self.dice, class, &practice.title, &call);
            if self.seen.insert((to.clone(), text.clone())) {
                break (to, text);
            }
        };
        self.made += 1;
        let key = format!("m{:05}", self.made);
        DayMessage { key, practice: practice.name, to, text, class: class.to_owned(), ..Default::default() }
    }

    fn offer_in_storm(&mut self) -> DayMessage {
        let mut message = self.message("waitlist");
        message.at_ms = self.dice.between(8_000, 10_000);
        message.not_before_ms = Some(self.dice.between(STORM_MS.start + 300, STORM_MS.start + 1_200));
        message.expires_ms = Some(STORM_MS.end as i64 - 500);
        message
    }

    fn ordinary(&mut self) -> DayMessage {
        let shares = MIX.map(|(_, share)| share);
        let class = MIX[self.dice.weighted(&shares)].0;
        let mut message = self.message(class);
        message.at_ms = self.moment_ms();
        let about_visit = matches!(class, "confirmation" | "reminder" | "form" | "waitlist" | "follow_up");
        if matches!(class, "staff" | "public_health") {
            while (KILL_AT_MS - 8_000..RESTART_AT_MS + 4_000).contains(&message.at_ms) {
                message.at_ms = self.moment_ms();
            }
        } else if self.dice.below(100) < 12 {
            message.not_before_ms = Some(message.at_ms + self.dice.between(5_000, 20_000));
        }
        if about_visit {
            message.deadline_ms = Some(1_000 * self.dice.between(2 * 3_600, 5 * 86_400));
        }
        message.national = self.dice.below(100) < 8;
        self.decorate(&mut message, about_visit);
        message
    }

    fn decorate(&mut self, message: &mut DayMessage, about_visit: bool) {
        let which = self.practices.iter().position(|p| p.name == message.practice).unwrap_or(0);
        if about_visit || self.dice.one_in(3) {
            let reference = match self.last_reference.get(&which) {
                Some(last) if self.dice.one_in(5) => last.clone(),
                _ => format!("visit-{}", message.key),
            };
            self.last_reference.insert(which, reference.clone());
            message.reference = Some(reference);
        }
        if self.dice.below(100) < 6 {
            let zones = ["America/New_York", "America/Chicago", "America/Denver", "America/Los_Angeles"];
            message.time_zone = Some((*self.dice.pick(&zones)).to_owned());
        }
        if self.dice.one_in(10) {
            let site = (*self.dice.pick(&["north", "south", "main"])).to_owned();
            message.labels.insert("site".to_owned(), site);
        }
        if self.dice.one_in(100) {
            message.priority = Some((*self.dice.pick(&["high", "bulk"])).to_owned());
        }
        if message.class == "survey" && self.dice.one_in(20) {
            // Perhaps in time, perhaps not: an impatient caller.
            message.expires_ms = Some(message.at_ms as i64 + 1_500);
            message.not_before_ms = None;
        }
    }

    fn chosen(&mut self, count: usize, fits: impl Fn(&DayMessage) -> bool) -> Vec<DayMessage> {
        let mut fitting: Vec<DayMessage> = self
            .lines
            .iter()
            .filter_map(|line| match line {
                Line::Message(message) if fits(message) => Some(message.as_ref().clone()),
                _ => None,
            })
            .collect();
        let mut chosen = Vec::new();
        while chosen.len() < count && !fitting.is_empty() {
            let at = self.dice.below(fitting.len() as u64) as usize;
            chosen.push(fitting.swap_remove(at));
        }
        chosen
    }

    fn cancel(&mut self) {
        let scheduled = |m: &DayMessage| m.not_before_ms.is_some_and(|at| at >= m.at_ms + 8_000);
        // Right away, while it waits for its time.
        for message in self.chosen(150, scheduled) {
            let at_ms = message.at_ms + self.dice.between(1_000, 3_000);
            self.lines.push(Line::CancelKeys(CancelKeys { at_ms, cancel_keys: vec![message.key] }));
        }
        // Long after it left, in lists as a practice's system sends them.
        let gone =
            self.chosen(60, |m| m.not_before_ms.is_none() && m.at_ms < 25_000 && m.expires_ms.is_none());
        for list in gone.chunks(6) {
            let cancel_keys = list.iter().map(|m| m.key.clone()).collect();
            let at_ms = 40_000 + self.dice.below(10_000);
            self.lines.push(Line::CancelKeys(CancelKeys { at_ms, cancel_keys }));
        }
        // Whole visits, some parts of which have left.
        for early in [true, false] {
            for message in self.chosen(20, |m| m.reference.is_some() && scheduled(m) == early) {
                let at_ms = message.at_ms + self.dice.between(1_500, 4_000);
                let Some(reference) = message.reference else { continue };
                self.lines.push(Line::CancelReferences(CancelReferences {
                    at_ms,
                    practice: message.practice,
                    cancel_references: vec![reference],
                }));
            }
        }
    }

    fn repeat(&mut self) {
        for message in self.chosen(60, |_| true) {
            let at_ms = message.at_ms + self.dice.between(1_000, 6_000);
            self.lines.push(Line::Again(Again { at_ms, again: message.key }));
        }
    }

    /// What a health system gets wrong; none of it may be accepted.
    fn refused(&mut self) {
        let mut wrong = Vec::new();
        for number in ["+1212555", "+121255501234567", "not a number", "+12121110123"] {
            let mut message = self.message("reminder");
            message.to = number.to_owned();
            wrong.push((message, "INVALID_FIELDS"));
        }
        let mut empty = self.message("reminder");
        empty.text.clear();
        wrong.push((empty, "INVALID_FIELDS"));
        let mut over = self.message("confirmation");
        over.expires_ms = Some(-60_000);
        wrong.push((over, "INVALID_FIELDS"));
        let mut upside_down = self.message("reminder");
        (upside_down.not_before_ms, upside_down.deadline_ms) = (Some(7_200_000), Some(3_600_000));
        wrong.push((upside_down, "INVALID_FIELDS"));
        for _ in 0..2 {
            let mut foreign = self.message("recall");
            foreign.practice = "not-a-customer".to_owned();
            wrong.push((foreign, "PRACTICE_NOT_FOUND"));
        }
        for (mut message, reason) in wrong {
            message.at_ms = self.moment_ms();
            message.refuse = Some(reason.to_owned());
            self.lines.push(Line::Message(Box::new(message)));
        }
        for mut reused in self.chosen(3, |m| m.refuse.is_none() && m.expires_ms.is_none()) {
            reused.at_ms += 3_000;
            reused.text.push_str(" (corrected)");
            reused.not_before_ms = None;
            reused.refuse = Some("IDEMPOTENCY_KEY_REUSED".to_owned());
            self.lines.push(Line::Message(Box::new(reused)));
        }
    }
}
