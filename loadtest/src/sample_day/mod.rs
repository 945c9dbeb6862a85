//! The bundled sample day: one synthetic day of forty practices, pressed into about a minute.
//!
//! Owns: the lines of a day ([`Line`]), the practices, reading and writing them, and turning a line into a
//! `MessageSpec`. Everything is synthetic: numbers come only from the fictitious range 555-0100 to 555-0199.
//! Invariants of a day that [`Day::parse`] returns: keys are unique, lines are sorted by time, every key that is
//! canceled or repeated names an earlier message.
//! Does not: talk to a cluster (see `demo`), or invent lines (see `generate`).

pub(crate) mod dice;
pub mod generate;
mod texts;

pub use texts::YEAR;

use std::collections::{BTreeMap, HashSet};

use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::{MessageClass, MessageSpec, NationalNumber, Priority};
use serde::{Deserialize, Serialize};

/// The tenant for which the practices' names were chosen: under it they cover all of 16 partitions.
pub const TENANT: &str = "lakeside";
/// Lines in a day at most.
pub const LINES_MAX: usize = 1_000_000;

const BUNDLED: &str = include_str!("../../data/sample-day.jsonl");
const PRACTICES: &str = include_str!("../../data/practices.json");

/// A sample day that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DayError {
    #[error("line {line} does not parse: {why}")]
    Parse { line: usize, why: String },
    #[error("line {line}: {why}")]
    Invalid { line: usize, why: &'static str },
    #[error("more than {LINES_MAX} lines")]
    TooLong,
    #[error("practices do not parse: {0}")]
    Practices(String),
}

/// A practice, in order of size: the first is the largest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Practice {
    pub name: String,
    /// As it signs its messages.
    pub title: String,
    pub kind: String,
    pub time_zone: String,
    pub area_codes: Vec<String>,
}

/// The bundled practices.
pub fn practices() -> Result<Vec<Practice>, DayError> {
    serde_json::from_str(PRACTICES).map_err(|e| DayError::Practices(e.to_string()))
}

/// One thing that the health system does. Times are milliseconds after the start of the day.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    Message(Box<DayMessage>),
    Again(Again),
    CancelKeys(CancelKeys),
    CancelReferences(CancelReferences),
}

impl Line {
    pub fn at_ms(&self) -> u64 {
        match self {
            Self::Message(message) => message.at_ms,
            Self::Again(again) => again.at_ms,
            Self::CancelKeys(cancel) => cancel.at_ms,
            Self::CancelReferences(cancel) => cancel.at_ms,
        }
    }
}

/// A message to submit. No `Debug`: it has the form of a patient's data.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DayMessage {
    pub at_ms: u64,
    pub key: String,
    pub practice: String,
    /// E.164.
    pub to: String,
    /// Submit the number as people write it, with its region.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub national: bool,
    pub text: String,
    /// A class in lower case, for example `follow_up`.
    pub class: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The reason for which it must be refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refuse: Option<String>,
}

/// Submits the message of `again` once more, as a client does that missed the answer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Again {
    pub at_ms: u64,
    pub again: String,
}

/// Takes messages back by id.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CancelKeys {
    pub at_ms: u64,
    pub cancel_keys: Vec<String>,
}

/// Takes messages back by the practice's own handle.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CancelReferences {
    pub at_ms: u64,
    pub practice: String,
    pub cancel_references: Vec<String>,
}

/// The class that a lower-case name means.
pub fn class_of(name: &str) -> Option<MessageClass> {
    let found = MessageClass::from_str_name(&format!("MESSAGE_CLASS_{}", name.to_ascii_uppercase()))?;
    (found != MessageClass::Unspecified).then_some(found)
}

/// The lower-case name of a class.
pub fn class_name(class: MessageClass) -> String {
    class.as_str_name().trim_start_matches("MESSAGE_CLASS_").to_ascii_lowercase()
}

/// Milliseconds since the epoch as the API writes a time.
pub fn timestamp(at_ms: i64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: at_ms.div_euclid(1000),
        nanos: (at_ms.rem_euclid(1000) * 1_000_000) as i32,
    }
}

/// `(312) 555-0142` for `+13125550142`.
fn national_form(e164: &str) -> String {
    match (e164.get(2..5), e164.get(5..8), e164.get(8..)) {
        (Some(area), Some(exchange), Some(line)) => format!("({area}) {exchange}-{line}"),
        _ => e164.to_owned(),
    }
}

impl DayMessage {
    /// The message for a day that starts at `start_ms` (since the epoch). `run` keeps the keys and references of
    /// one run apart from those of another on the same cluster.
    pub fn to_spec(&self, start_ms: i64, run: &str) -> MessageSpec {
        let priority = self.priority.as_ref().map_or(Priority::Unspecified, |name| {
            Priority::from_str_name(&format!("PRIORITY_{}", name.to_ascii_uppercase())).unwrap_or_default()
        });
        let recipient = if self.national {
            let number = national_form(&self.to);
            Recipient::NationalNumber(NationalNumber { number, region: "US".to_owned() })
        } else {
            Recipient::PhoneNumber(self.to.clone())
        };
        let at = |offset_ms: u64| timestamp(start_ms + offset_ms as i64);
        MessageSpec {
            practice: self.practice.clone(),
            recipient: Some(recipient),
            body: self.text.clone(),
            class: class_of(&self.class).unwrap_or(MessageClass::Unspecified) as i32,
            priority: priority as i32,
            not_before: self.not_before_ms.map(at),
            expires_at: self.expires_ms.map(|offset_ms| timestamp(start_ms + offset_ms)),
            deadline: self.deadline_ms.map(at),
            time_zone: self.time_zone.clone().unwrap_or_default(),
            idempotency_key: format!("{run}-{}", self.key),
            external_reference: self.reference.as_ref().map(|r| format!("{run}-{r}")).unwrap_or_default(),
            labels: self.labels.clone().into_iter().collect(),
            ..MessageSpec::default()
        }
    }
}

/// A whole day.
#[derive(Clone, PartialEq)]
pub struct Day {
    pub lines: Vec<Line>,
}

impl Day {
    /// The day that comes with the program.
    pub fn bundled() -> Result<Self, DayError> {
        Self::parse(BUNDLED)
    }

    /// Reads JSON lines.
    pub fn parse(text: &str) -> Result<Self, DayError> {
        let mut lines = Vec::new();
        for (at, line) in text.lines().enumerate() {
            if lines.len() == LINES_MAX {
                return Err(DayError::TooLong);
            }
            // The error of serde could quote the line; say only where it is.
            let line = serde_json::from_str(line).map_err(|e| DayError::Parse {
                line: at + 1,
                why: format!("{:?} error at column {}", e.classify(), e.column()),
            })?;
            lines.push(line);
        }
        let day = Self { lines };
        day.check()?;
        Ok(day)
    }

    fn check(&self) -> Result<(), DayError> {
        let mut keys = HashSet::new();
        let mut before_ms = 0;
        for (at, line) in self.lines.iter().enumerate() {
            let bad = |why| Err(DayError::Invalid { line: at + 1, why });
            if line.at_ms() < before_ms {
                return bad("is earlier than the line before");
            }
            before_ms = line.at_ms();
            let known = match line {
                Line::Message(message) => {
                    if class_of(&message.class).is_none() {
                        return bad("unknown class");
                    }
                    // A line that must be refused may reuse a key: that can be the reason.
                    if !keys.insert(message.key.as_str()) && message.refuse.is_none() {
                        return bad("the key was used before");
                    }
                    true
                }
                Line::Again(again) => keys.contains(again.again.as_str()),
                Line::CancelKeys(cancel) => cancel.cancel_keys.iter().all(|k| keys.contains(k.as_str())),
                Line::CancelReferences(_) => true,
            };
            if !known {
                return bad("names a key that no earlier line has");
            }
        }
        Ok(())
    }

    /// The JSON lines.
    pub fn to_jsonl(&self) -> Result<String, DayError> {
        let mut text = String::new();
        for (at, line) in self.lines.iter().enumerate() {
            let json = serde_json::to_string(line)
                .map_err(|e| DayError::Parse { line: at + 1, why: e.to_string() })?;
            text.push_str(&json);
            text.push('\n');
        }
        Ok(text)
    }

    /// The messages that the cluster must accept.
    pub fn messages(&self) -> impl Iterator<Item = &DayMessage> {
        self.lines.iter().filter_map(|line| match line {
            Line::Message(message) if message.refuse.is_none() => Some(message.as_ref()),
            _ => None,
        })
    }

    /// When the last line happens.
    pub fn length_ms(&self) -> u64 {
        self.lines.last().map_or(0, Line::at_ms)
    }
}

/// The BLAKE3 digest of the JSON lines, in hexadecimal.
pub fn digest(jsonl: &str) -> String {
    blake3::hash(jsonl.as_bytes()).to_hex().to_string()
}

/// The digest of the bundled day.
pub fn bundled_digest() -> String {
    digest(BUNDLED)
}

/// True when `jsonl` is what the program carries.
pub fn is_bundled(jsonl: &str) -> bool {
    jsonl == BUNDLED
}
