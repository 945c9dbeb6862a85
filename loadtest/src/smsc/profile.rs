//! How the simulated carrier behaves: the profile, its presets, its TOML form.
//!
//! Owns: every knob of the behaviour of the carrier (not of the server: ports
//! and accounts are in `SmscConfig`). A file names a preset as its `base` and
//! lists what differs; an unknown key is an error.
//! Invariant: a profile that [`Profile::checked`] passed has probabilities of
//! 0 to 1 whose answer faults sum to at most 1.

use serde::{Deserialize, Serialize};

use super::dist::Delay;
use super::wire::status;

/// The names that [`Profile::preset`] knows.
pub const PRESETS: [&str; 5] = ["perfect", "realistic", "storm", "lossy", "throttled"];

/// A profile that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("unknown preset {0:?}, known are perfect, realistic, storm, lossy, throttled")]
    UnknownPreset(String),
    #[error("profile does not parse: {0}")]
    Parse(String),
    #[error("profile is not valid: {0}")]
    Invalid(String),
}

/// How message ids are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdFormat {
    Decimal,
    HexLower,
    HexUpper,
}

impl IdFormat {
    /// Writes `id`, padded with zeros to `width` digits.
    pub fn write(self, id: u64, width: u8) -> String {
        let width = usize::from(width);
        match self {
            Self::Decimal => format!("{id:0width$}"),
            Self::HexLower => format!("{id:0width$x}"),
            Self::HexUpper => format!("{id:0width$X}"),
        }
    }
}

/// The id in the answer and the id in the receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdFormats {
    pub answer: IdFormat,
    pub receipt: IdFormat,
    /// Digits to pad the receipt's id to with zeros, 0 to 32.
    pub receipt_width: u8,
}

impl Default for IdFormats {
    fn default() -> Self {
        Self { answer: IdFormat::Decimal, receipt: IdFormat::Decimal, receipt_width: 0 }
    }
}

/// The probability of each fault of a submit; at most one happens to a submit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// Answer 0x58, not accepted.
    pub throttled: f64,
    /// Answer 0x14, not accepted.
    pub queue_full: f64,
    /// Answer 0x08, not accepted.
    pub temporary: f64,
    /// Accepted, but no answer ever.
    pub lost_accepted: f64,
    /// Not accepted, and no answer ever.
    pub lost_refused: f64,
    /// Accepted, then the connection is closed instead of an answer.
    pub drop_after_accept: f64,
    /// The connection is closed as if the submit had not been read.
    pub drop_before_read: f64,
}

/// What happens to receipts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Receipts {
    pub delay: Delay,
    /// The final state is UNDELIV.
    pub undelivered: f64,
    /// No receipt at all.
    pub never: f64,
    /// The final receipt is sent twice.
    pub duplicate: f64,
    /// The final receipt takes `late_delay` instead.
    pub late: f64,
    pub late_delay: Delay,
    /// An ENROUTE notification goes out before the final receipt.
    pub intermediate: f64,
    /// An ENROUTE notification goes out after the final receipt.
    pub reordered: f64,
    /// The final receipt goes out before the answer to the submit.
    pub before_answer: f64,
    /// How often one receipt is sent at most, 1 to 20.
    pub attempts_max: u8,
    /// A receipt not acknowledged for this long is sent again.
    pub ack_timeout_ms: u64,
    /// Wait before a refused receipt is sent again.
    pub retry_delay_ms: u64,
    /// Unacknowledged receipts on one bind at most, 1 to 100,000.
    pub window: u32,
    /// Send receipted_message_id and message_state as TLVs too.
    pub tlvs: bool,
    /// This many octets of the message are echoed in `text:`, 0 to 20.
    pub text_octets: u8,
}

impl Default for Receipts {
    fn default() -> Self {
        Self {
            delay: Delay::new(5.0, 20.0, 100.0),
            undelivered: 0.0,
            never: 0.0,
            duplicate: 0.0,
            late: 0.0,
            late_delay: Delay::new(20_000.0, 40_000.0, 120_000.0),
            intermediate: 0.0,
            reordered: 0.0,
            before_answer: 0.0,
            attempts_max: 5,
            ack_timeout_ms: 5_000,
            retry_delay_ms: 500,
            window: 5_000,
            tlvs: true,
            text_octets: 0,
        }
    }
}

/// What becomes of a message to a number that a rule matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefuseRule {
    /// Digits the number begins with (without the plus sign).
    #[serde(default)]
    pub prefix: String,
    /// Digits the number ends with.
    #[serde(default)]
    pub suffix: String,
    /// The refusal in the answer, such as 11 (0x0B). Without it the message is
    /// accepted and its receipt is UNDELIV.
    #[serde(default)]
    pub status: Option<u32>,
    /// The three-digit error of the UNDELIV receipt.
    #[serde(default)]
    pub err: u16,
}

impl RefuseRule {
    pub fn matches(&self, digits: &[u8]) -> bool {
        digits.starts_with(self.prefix.as_bytes()) && digits.ends_with(self.suffix.as_bytes())
    }
}

/// A time, counted from the moment the profile takes effect, in which every
/// submit is refused with `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storm {
    pub from_ms: u64,
    pub to_ms: u64,
    pub status: u32,
}

/// The behaviour of the simulated carrier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    pub name: String,
    pub answer_latency: Delay,
    pub faults: Faults,
    pub receipts: Receipts,
    pub ids: IdFormats,
    /// Refuse with 0x58 what would exceed the contract (counting accepted ones).
    pub throttle_over_contract: bool,
    /// Refusals carry an empty message id instead of no body.
    pub error_body: bool,
    /// At most 64 rules; the first that matches counts.
    pub refuse: Vec<RefuseRule>,
    /// At most 64 windows.
    pub storms: Vec<Storm>,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            name: "perfect".to_owned(),
            answer_latency: Delay::ZERO,
            faults: Faults::default(),
            receipts: Receipts::default(),
            ids: IdFormats::default(),
            throttle_over_contract: false,
            error_body: false,
            refuse: Vec::new(),
            storms: Vec::new(),
        }
    }
}

impl Profile {
    /// A preset by its name.
    pub fn preset(name: &str) -> Result<Self, ProfileError> {
        let profile = match name {
            "perfect" => Self::default(),
            "realistic" => Self::realistic(),
            "storm" => Self {
                storms: vec![
                    Storm { from_ms: 10_000, to_ms: 20_000, status: status::RTHROTTLED },
                    Storm { from_ms: 20_000, to_ms: 25_000, status: status::RSYSERR },
                ],
                ..Self::realistic()
            },
            "lossy" => Self::lossy(),
            "throttled" => Self {
                answer_latency: Delay::new(2.0, 10.0, 60.0),
                faults: Faults { throttled: 0.05, queue_full: 0.01, ..Faults::default() },
                throttle_over_contract: true,
                ..Self::default()
            },
            other => return Err(ProfileError::UnknownPreset(other.to_owned())),
        };
        Ok(Self { name: name.to_owned(), ..profile })
    }

    fn realistic() -> Self {
        Self {
            answer_latency: Delay::new(5.0, 30.0, 200.0),
            faults: Faults {
                throttled: 0.002,
                queue_full: 0.000_5,
                temporary: 0.001,
                lost_accepted: 0.000_2,
                lost_refused: 0.000_2,
                drop_after_accept: 0.000_01,
                drop_before_read: 0.000_01,
            },
            receipts: Receipts {
                delay: Delay::new(200.0, 1_500.0, 10_000.0),
                undelivered: 0.01,
                never: 0.002,
                duplicate: 0.005,
                late: 0.005,
                intermediate: 0.01,
                reordered: 0.005,
                before_answer: 0.002,
                text_octets: 20,
                ..Receipts::default()
            },
            ids: IdFormats { answer: IdFormat::HexLower, receipt: IdFormat::Decimal, receipt_width: 20 },
            refuse: vec![
                RefuseRule {
                    prefix: String::new(),
                    suffix: "0000".to_owned(),
                    status: Some(status::RINVDSTADR),
                    err: 0,
                },
                RefuseRule { prefix: String::new(), suffix: "0001".to_owned(), status: None, err: 6 },
            ],
            ..Self::default()
        }
    }

    fn lossy() -> Self {
        let base = Self::realistic();
        Self {
            faults: Faults {
                lost_accepted: 0.02,
                lost_refused: 0.02,
                drop_after_accept: 0.000_5,
                drop_before_read: 0.000_5,
                ..base.faults
            },
            receipts: Receipts {
                never: 0.05,
                duplicate: 0.05,
                late: 0.02,
                reordered: 0.05,
                before_answer: 0.02,
                ..base.receipts
            },
            ..base
        }
    }

    /// Reads a profile: `base = "<preset>"` (default perfect) and what differs.
    pub fn from_toml(text: &str) -> Result<Self, ProfileError> {
        let mut given: toml::Table = toml::from_str(text).map_err(parse)?;
        let base = match given.remove("base") {
            None => "perfect".to_owned(),
            Some(toml::Value::String(name)) => name,
            Some(_) => return Err(ProfileError::Parse("base is not a string".to_owned())),
        };
        let mut table = toml::Table::try_from(Self::preset(&base)?).map_err(parse)?;
        merge(&mut table, given);
        table.try_into::<Self>().map_err(parse)?.checked()
    }

    /// The TOML that [`Profile::from_toml`] reads back to the same profile.
    pub fn to_toml(&self) -> Result<String, ProfileError> {
        toml::to_string(self).map_err(|e| ProfileError::Parse(e.to_string()))
    }

    /// Refuses a profile with values out of range.
    pub fn checked(self) -> Result<Self, ProfileError> {
        let (f, r) = (&self.faults, &self.receipts);
        let faults = [
            f.throttled,
            f.queue_full,
            f.temporary,
            f.lost_accepted,
            f.lost_refused,
            f.drop_after_accept,
            f.drop_before_read,
        ];
        let receipts =
            [r.undelivered, r.never, r.duplicate, r.late, r.intermediate, r.reordered, r.before_answer];
        let checks = [
            (faults.iter().chain(&receipts).all(|p| (0.0..=1.0).contains(p)), "a probability is not 0 to 1"),
            (faults.iter().sum::<f64>() <= 1.0, "the faults sum to more than 1"),
            (
                [self.answer_latency, r.delay, r.late_delay].iter().all(Delay::is_valid),
                "a delay is not 0 <= min_ms <= median_ms <= p99_ms <= 1 day",
            ),
            ((1..=20).contains(&r.attempts_max), "receipts.attempts_max is not 1 to 20"),
            ((1..=100_000).contains(&r.window), "receipts.window is not 1 to 100000"),
            ((10..=3_600_000).contains(&r.ack_timeout_ms), "receipts.ack_timeout_ms is not 10 to 3600000"),
            (r.retry_delay_ms <= 3_600_000, "receipts.retry_delay_ms is over 3600000"),
            (r.text_octets <= 20, "receipts.text_octets is over 20"),
            (self.ids.receipt_width <= 32, "ids.receipt_width is over 32"),
            (self.refuse.len() <= 64 && self.storms.len() <= 64, "more than 64 rules or storms"),
            (self.refuse.iter().all(|rule| rule.err <= 999), "refuse.err is over 999"),
        ];
        match checks.iter().find(|(good, _)| !good) {
            Some((_, why)) => Err(ProfileError::Invalid((*why).to_owned())),
            None => Ok(self),
        }
    }
}

fn parse(error: impl std::fmt::Display) -> ProfileError {
    ProfileError::Parse(error.to_string().trim_end().to_owned())
}

/// Puts `given` over `table`; tables are merged, everything else is replaced.
fn merge(table: &mut toml::Table, given: toml::Table) {
    for (key, value) in given {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(value)) => merge(inner, value),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid_and_survives_its_toml_form() {
        for name in PRESETS {
            let preset = Profile::preset(name).unwrap().checked().unwrap();
            assert_eq!(preset.name, name);
            assert_eq!(Profile::from_toml(&preset.to_toml().unwrap()).unwrap(), preset);
        }
    }

    #[test]
    fn a_file_changes_only_what_it_names() {
        let text =
            "base = \"realistic\"\nname = \"x\"\n[faults]\nthrottled = 0.5\n[ids]\nanswer = \"hex_upper\"";
        let profile = Profile::from_toml(text).unwrap();
        let base = Profile::realistic();
        assert_eq!(profile.faults, Faults { throttled: 0.5, ..base.faults });
        assert_eq!(profile.ids, IdFormats { answer: IdFormat::HexUpper, ..base.ids });
        assert_eq!((profile.receipts, profile.refuse), (base.receipts, base.refuse));
    }

    #[test]
    fn unknown_keys_and_values_out_of_range_are_refused() {
        for (text, why) in [
            ("[faults]\nthrotled = 0.5", "throtled"),
            ("base = \"nice\"", "nice"),
            ("[faults]\nthrottled = 0.7\nqueue_full = 0.4", "sum"),
            ("[receipts]\nnever = -0.1", "probability"),
            ("[answer_latency]\nmin_ms = 9.0", "delay"),
            ("[receipts]\nattempts_max = 0", "attempts_max"),
        ] {
            let error = Profile::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
