//! Settings of one SMPP account, checked once before anything connects.
use crate::clear::Clear;
use crate::contract::{ContractHandle, Protocol};
use carillon_proto::internal::{ReceiptIdFormat, SmppSettings};
use rusmpp::types::COctetString;
use rusmpp::values::{Npi, Ton};
use std::time::Duration;

const BINDS_MAX: u32 = 64;
const WINDOW_MAX: u32 = 10_000;
/// SMPP 3.4: octets without the terminating zero.
const SYSTEM_ID_MAX: usize = 15;
const PASSWORD_MAX: usize = 8;
/// A sender of so few digits is a short code.
const SHORT_CODE_DIGITS_MAX: usize = 6;

/// What a connector is started with.
pub struct SmppConfig {
    /// Name of the carrier account: the `carrier` label of metrics and logs.
    pub carrier: String,
    pub settings: SmppSettings,
    pub password: Clear<String>,
    /// What its answers mean.
    pub contract: ContractHandle,
    /// Trusted when the settings name no CA of their own.
    pub default_ca_pem: Option<String>,
    pub tuning: SmppTuning,
}

/// What the settings of an account do not say. The defaults fit real carriers; tests shorten them.
#[derive(Debug, Clone)]
pub struct SmppTuning {
    /// TCP and TLS together.
    pub connect_timeout: Duration,
    /// First wait after a lost connection; doubled each time, with jitter.
    pub reconnect_base: Duration,
    pub reconnect_max: Duration,
    /// Wait after the carrier refused our credentials: asking often locks accounts.
    pub broken_retry: Duration,
    /// A connection that lived this long resets the backoff.
    pub stable_after: Duration,
    /// A receipt that is not committed in this time is refused, so that the carrier sends it again. `None`: as the
    /// contract says.
    pub receipt_ack_timeout: Option<Duration>,
    /// Connects of one bind in [`Self::connects_window`], at most: a carrier that drops every bind at once, again and
    /// again, must not be stormed.
    pub connects_max: usize,
    pub connects_window: Duration,
    /// Receipts of one bind waiting for their commit; then it is not read any more.
    pub receipts_unacked_max: usize,
    /// Send buffer of the kernel for each bind. Small means fewer ambiguous messages when a connection breaks; it must
    /// hold the PDUs of one round trip.
    pub send_buffer_octets: u32,
    /// How long to wait for the answer to our unbind, and for answers after the carrier's.
    pub goodbye_timeout: Duration,
}

impl Default for SmppTuning {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            reconnect_base: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(30),
            broken_retry: Duration::from_secs(60),
            stable_after: Duration::from_secs(10),
            receipt_ack_timeout: None,
            connects_max: 12,
            connects_window: Duration::from_secs(60),
            receipts_unacked_max: 512,
            send_buffer_octets: 64 * 1024,
            goodbye_timeout: Duration::from_secs(1),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SmppConfigError {
    #[error("{field}: must be between {min} and {max}")]
    Range { field: &'static str, min: u32, max: u32 },
    #[error("address: must be host:port")]
    Address,
    #[error("system_id: must be 1 to {SYSTEM_ID_MAX} ascii characters")]
    SystemId,
    #[error("password: must be at most {PASSWORD_MAX} ascii characters")]
    Password,
    #[error("source_address: must be digits, or up to 11 ascii characters with a letter")]
    SourceAddress,
    #[error("receipt_id_format: unknown value")]
    ReceiptIdFormat,
    #[error("contract: is not one for smpp")]
    Contract,
    #[error("tls: {0}")]
    Tls(#[from] crate::tls::TlsError),
}

/// The checked form.
pub(crate) struct Account {
    pub carrier: String,
    pub address: String,
    pub system_id: String,
    pub password: Clear<String>,
    pub source: Source,
    pub binds: usize,
    pub window: usize,
    pub enquire_link: Duration,
    pub response_timeout: Duration,
    pub throttle_pause: Duration,
    pub receipt_id_format: ReceiptIdFormat,
    pub contract: ContractHandle,
    pub tuning: SmppTuning,
}

impl Account {
    pub fn check(config: SmppConfig) -> Result<Self, SmppConfigError> {
        let SmppConfig { carrier, settings, password, contract, tuning, .. } = config;
        if contract.get().protocol != Protocol::Smpp {
            return Err(SmppConfigError::Contract);
        }
        let hour_ms = 3_600_000;
        let host_and_port = settings.address.rsplit_once(':');
        if !host_and_port.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
            return Err(SmppConfigError::Address);
        }
        if !fits(&settings.system_id, 1, SYSTEM_ID_MAX) {
            return Err(SmppConfigError::SystemId);
        }
        if !fits(password.expose(), 0, PASSWORD_MAX) {
            return Err(SmppConfigError::Password);
        }
        let receipt_id_format = ReceiptIdFormat::try_from(settings.receipt_id_format)
            .map_err(|_| SmppConfigError::ReceiptIdFormat)?;
        let millis =
            |field, value, max| in_range(field, value, 10, max).map(u64::from).map(Duration::from_millis);
        Ok(Self {
            carrier,
            source: Source::parse(&settings.source_address).ok_or(SmppConfigError::SourceAddress)?,
            binds: in_range("binds_per_node", settings.binds_per_node, 1, BINDS_MAX)? as usize,
            window: in_range("window", settings.window, 1, WINDOW_MAX)? as usize,
            enquire_link: millis("enquire_link_ms", settings.enquire_link_ms, hour_ms)?,
            response_timeout: millis("response_timeout_ms", settings.response_timeout_ms, hour_ms)?,
            throttle_pause: millis("throttle_pause_ms", settings.throttle_pause_ms, hour_ms)?,
            address: settings.address,
            system_id: settings.system_id,
            password,
            receipt_id_format,
            contract,
            tuning,
        })
    }
}

impl Account {
    pub fn receipt_ack_timeout(&self) -> Duration {
        self.tuning.receipt_ack_timeout.unwrap_or_else(|| self.contract.get().receipt_ack_timeout)
    }
}

fn in_range(field: &'static str, value: u32, min: u32, max: u32) -> Result<u32, SmppConfigError> {
    if (min..=max).contains(&value) { Ok(value) } else { Err(SmppConfigError::Range { field, min, max }) }
}

fn fits(text: &str, min: usize, max: usize) -> bool {
    (min..=max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// The sender, with the type of number that its form implies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub ton: Ton,
    pub npi: Npi,
    pub address: COctetString<1, 21>,
}

impl Source {
    /// Digits: a short code or an international number, with or without plus. Otherwise a name.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix('+').unwrap_or(text);
        let (ton, npi, address) = if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
            match digits.len() {
                n if n <= SHORT_CODE_DIGITS_MAX && digits.len() == text.len() && n >= 3 => {
                    (Ton::NetworkSpecific, Npi::Unknown, digits)
                }
                7..=15 => (Ton::International, Npi::Isdn, digits),
                _ => return None,
            }
        } else {
            let name = text.len() <= 11
                && text.bytes().any(|b| b.is_ascii_alphabetic())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b" -.&_".contains(&b));
            if !name {
                return None;
            }
            (Ton::Alphanumeric, Npi::Unknown, text)
        };
        let address = COctetString::from_string(address.to_owned()).ok()?;
        Some(Self { ton, npi, address })
    }
}

/// International digits of an E.164 number; `None` when it is not one.
pub(crate) fn international_digits(number: &str) -> Option<&str> {
    let digits = number.strip_prefix('+').unwrap_or(number);
    is_e164(digits).then_some(digits)
}

/// Digits of an international number.
pub(crate) fn is_e164(digits: &str) -> bool {
    (7..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> SmppSettings {
        SmppSettings {
            address: "smsc.example:2775".into(),
            system_id: "carillon".into(),
            binds_per_node: 2,
            window: 64,
            enquire_link_ms: 30_000,
            response_timeout_ms: 10_000,
            source_address: "12025550100".into(),
            throttle_pause_ms: 1_000,
            ..SmppSettings::default()
        }
    }

    fn check(change: impl FnOnce(&mut SmppSettings), password: &str) -> Result<(), SmppConfigError> {
        let mut settings = settings();
        change(&mut settings);
        let password = Clear::new(password.to_owned());
        let tuning = SmppTuning::default();
        let contract = ContractHandle::built_in(crate::contract::SMPP_GENERIC).unwrap();
        let carrier = "c".into();
        let config = SmppConfig { carrier, settings, password, contract, default_ca_pem: None, tuning };
        Account::check(config).map(drop)
    }

    #[test]
    fn settings_are_checked() {
        assert_eq!(check(|_| (), "secret08"), Ok(()));
        assert_eq!(check(|_| (), "secret089"), Err(SmppConfigError::Password));
        for address in ["", "host", ":2775", "host:", "host:99999"] {
            assert_eq!(check(|s| s.address = address.into(), ""), Err(SmppConfigError::Address));
        }
        assert_eq!(check(|s| s.address = "[::1]:2775".into(), ""), Ok(()));
        assert_eq!(check(|s| s.system_id = "x".repeat(16), ""), Err(SmppConfigError::SystemId));
        assert_eq!(check(|s| s.system_id.clear(), ""), Err(SmppConfigError::SystemId));
        assert_eq!(check(|s| s.receipt_id_format = 9, ""), Err(SmppConfigError::ReceiptIdFormat));
        let range = |field, min, max| Err(SmppConfigError::Range { field, min, max });
        assert_eq!(check(|s| s.window = 0, ""), range("window", 1, WINDOW_MAX));
        assert_eq!(check(|s| s.binds_per_node = 65, ""), range("binds_per_node", 1, BINDS_MAX));
        assert_eq!(check(|s| s.response_timeout_ms = 0, ""), range("response_timeout_ms", 10, 3_600_000));
        assert_eq!(
            check(|s| s.source_address = "way too long name".into(), ""),
            Err(SmppConfigError::SourceAddress)
        );
    }

    #[test]
    fn the_form_of_the_sender_gives_its_type() {
        let kind = |text: &str| Source::parse(text).map(|s| (s.ton, s.npi, s.address.as_str().to_owned()));
        assert_eq!(kind("12345"), Some((Ton::NetworkSpecific, Npi::Unknown, "12345".into())));
        assert_eq!(kind("+12025550100"), Some((Ton::International, Npi::Isdn, "12025550100".into())));
        assert_eq!(kind("12025550100"), Some((Ton::International, Npi::Isdn, "12025550100".into())));
        assert_eq!(kind("North Clnc"), Some((Ton::Alphanumeric, Npi::Unknown, "North Clnc".into())));
        for bad in ["", "+", "12", "+123", "1234567890123456", "twelve chars", "na\u{e9}ve", "---"] {
            assert_eq!(kind(bad), None, "{bad}");
        }
    }

    #[test]
    fn recipients_are_e164() {
        assert_eq!(international_digits("+12125550123"), Some("12125550123"));
        assert_eq!(international_digits("12125550123"), Some("12125550123"));
        for bad in ["", "+", "+1212555012a", "0012125550123", "123456", "1234567890123456"] {
            assert_eq!(international_digits(bad), None, "{bad}");
        }
    }
}
