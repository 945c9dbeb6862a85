//! The contract of a carrier: what it may be asked, what its answers mean, and what it promises, as a versioned file.
//!
//! Owns: the checked form of a contract ([`Contract`]), its TOML form (file.rs), and the set of contracts of a node, which
//! is read again while it runs (registry.rs). The built-in ones are in `contracts/`.
//!
//! Invariants: a contract that was loaded is complete and possible; code and file say the same (an unknown key is an
//! error); a change of the text needs a higher version. A code never means `NOT_SENT`: only the socket proves that.
//!
//! Not here: the limits of an account, its credentials and its addresses: those are the account's settings.
mod file;
mod registry;

pub use registry::{ContractHandle, Contracts, Listed, Reload};

use carillon_proto::internal::ReceiptState;
use carillon_proto::public::{MessageClass, Outcome};
use std::collections::BTreeMap;
use std::time::Duration;

/// Name of the contract of an SMPP account that names none.
pub const SMPP_GENERIC: &str = "smpp-generic";
/// Name of the contract of a Twilio account that names none.
pub const TWILIO: &str = "twilio";

/// Which connector a contract is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Smpp,
    Twilio,
}

/// The version in a bind. With 5.0 the carrier may say how full it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
pub enum SmppVersion {
    #[default]
    #[serde(rename = "3.4")]
    V3_4,
    #[serde(rename = "5.0")]
    V5_0,
}

/// The meaning of one code of the carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    pub outcome: Outcome,
    /// The lane pauses for this many times the account's throttle pause, unless the carrier says how long.
    pub pauses: u32,
    /// The session cannot be used any more.
    pub rebind: bool,
}

impl Meaning {
    pub const fn of(outcome: Outcome) -> Self {
        Self { outcome, pauses: 0, rebind: false }
    }
}

/// How a carrier can be asked about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LookUpTerms {
    pub quota_per_minute: u32,
    pub page_size: u32,
    pub pages_max: u32,
    pub clock_skew: Duration,
    /// An UNKNOWN message is asked about after this, and a SUBMITTED one without a receipt after that.
    pub unknown_after: Duration,
    pub silent_after: Duration,
    /// `None`: that a message is not listed proves nothing.
    pub absence_is_proof_after: Option<Duration>,
}

/// When the breaker of a lane opens, and how it closes; what each of it means is in `carillon_delivery::breaker`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerTerms {
    pub window: Duration,
    pub failures_min: usize,
    pub failures_permille: usize,
    pub open_first: Duration,
    pub open_max: Duration,
    pub probes: u32,
    pub probes_to_close: u32,
    pub down_after: Duration,
}

/// A checked contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contract {
    pub name: String,
    pub version: u32,
    pub protocol: Protocol,
    /// The carrier signs business associate agreements. Without one it carries only classes that are free of PHI.
    pub baa_offered: bool,
    /// What a bind says that we speak.
    pub smpp_version: SmppVersion,
    /// `None`: nothing is published.
    pub segments_per_second_max: Option<u32>,
    /// Of one bind, besides what the account and others limit.
    pub bind_segments_per_second_max: Option<u32>,
    /// `None`: the segments alone limit a text.
    pub body_chars_max: Option<usize>,
    pub validity_min: Duration,
    pub validity_max: Duration,
    pub retry_after_max: Duration,
    pub receipt_ack_timeout: Duration,
    /// What is added to the callback URL after `#`.
    pub url_fragment: String,
    pub look_up: Option<LookUpTerms>,
    pub breaker: BreakerTerms,
    /// Classes that may go through this carrier without an agreement; `None`: those that are free of PHI by default.
    pub phi_free: Option<Vec<MessageClass>>,
    states: BTreeMap<String, ReceiptState>,
    receipt_codes: BTreeMap<String, ReceiptState>,
    codes: BTreeMap<String, Meaning>,
    default: Meaning,
}

impl Contract {
    /// What the code of an answer means.
    pub fn meaning(&self, code: &str) -> Meaning {
        self.codes.get(code).copied().unwrap_or(self.default)
    }

    /// Whether the contract says something about exactly this code.
    pub fn knows(&self, code: &str) -> bool {
        self.codes.contains_key(code)
    }

    /// What a status word and an error code of a receipt mean together. `None`: the word is unknown.
    pub fn receipt_state(&self, word: &str, code: Option<&str>) -> Option<ReceiptState> {
        let state = *self.states.get(word)?;
        let told = code.and_then(|code| self.receipt_codes.get(code)).copied();
        Some(match state {
            // A code explains a failure; it does not undo a delivery.
            ReceiptState::Undelivered => told.unwrap_or(state),
            _ => state,
        })
    }

    /// The time that the carrier is asked to try, within what it takes.
    pub fn validity(&self, wanted: Duration) -> Duration {
        wanted.clamp(self.validity_min, self.validity_max)
    }

    /// Every code and its meaning, in order.
    pub fn codes(&self) -> impl Iterator<Item = (&str, Meaning)> {
        self.codes.iter().map(|(code, meaning)| (code.as_str(), *meaning))
    }
}

/// A contract that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContractError {
    #[error("contract {file}: {reason}")]
    Syntax { file: String, reason: String },
    #[error("contract {file}: {field} {rule}")]
    Field { file: String, field: String, rule: String },
    #[error("contracts directory {path}: {reason}")]
    Directory { path: String, reason: String },
    #[error("contract {name}: the text changed but the version is still {version}; raise it")]
    SameVersion { name: String, version: u32 },
    #[error(
        "contract {name}: version {version} is older than {loaded}, which is loaded; raise it to go back"
    )]
    OlderVersion { name: String, version: u32, loaded: u32 },
    #[error("contract {name}: the protocol of a contract does not change; use another name")]
    OtherProtocol { name: String },
}

#[cfg(test)]
mod tests;
