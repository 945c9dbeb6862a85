//! Settings of one Twilio account, checked once before anything connects.
use super::http::Origin;
use super::signature::SigningKey;
use crate::clear::Clear;
use crate::contract::{ContractHandle, Protocol};
use crate::smpp::is_e164;
use crate::tls::TlsError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use carillon_proto::internal::TwilioSettings;
use std::time::Duration;

const CONNECTIONS_MAX: u32 = 1_000;

/// What a connector is started with.
pub struct TwilioConfig {
    /// Name of the carrier account: the `carrier` label of metrics and logs.
    pub carrier: String,
    pub settings: TwilioSettings,
    pub auth_token: Clear<String>,
    /// With `settings.api_key_sid`.
    pub api_key_secret: Option<Clear<String>>,
    /// What its answers mean.
    pub contract: ContractHandle,
    /// Trusted when the settings name no CA of their own; without either, what the system trusts.
    pub default_ca_pem: Option<String>,
    pub tuning: TwilioTuning,
}

/// What the settings of an account do not say. The defaults fit the real API; tests shorten them.
#[derive(Debug, Clone)]
pub struct TwilioTuning {
    /// TCP and TLS together.
    pub connect_timeout: Duration,
    /// First wait after a connect that failed; doubled each time, with jitter.
    pub reconnect_base: Duration,
    pub reconnect_max: Duration,
    /// Wait after the carrier refused our credentials: asking often locks accounts.
    pub broken_retry: Duration,
    /// A connection idle for longer is not used again: the other side closes it about now, and a request that meets the
    /// close is ambiguous.
    pub idle_max: Duration,
    /// How long an answer is still waited for after its message was called ambiguous.
    pub late_wait: Duration,
    /// Send buffer of the kernel for each connection.
    pub send_buffer_octets: u32,
    /// A callback that is not recorded in this time is refused. `None`: as the contract says.
    pub receipt_ack_timeout: Option<Duration>,
    /// First wait after a redaction that failed; doubled each time.
    pub redact_retry: Duration,
}

impl Default for TwilioTuning {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            reconnect_base: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(30),
            broken_retry: Duration::from_secs(60),
            idle_max: Duration::from_secs(20),
            late_wait: Duration::from_secs(60),
            send_buffer_octets: 64 * 1024,
            receipt_ack_timeout: None,
            redact_retry: Duration::from_secs(5),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TwilioConfigError {
    #[error("{field}: must be between {min} and {max}")]
    Range { field: &'static str, min: u32, max: u32 },
    #[error(
        "base_url: must be https://host or https://host:port without a path; http only to a loopback address"
    )]
    BaseUrl,
    #[error("callback_url: must be https://host/path without a fragment; http only to a loopback address")]
    CallbackUrl,
    #[error(
        "from: must be an e.164 number, a short code, or up to 11 characters; or give messaging_service_sid"
    )]
    From,
    #[error("auth_token: must be 1 to 128 ascii characters")]
    AuthToken,
    #[error("api_key_sid: needs its secret, and the secret needs it")]
    ApiKey,
    #[error("contract: is not one for twilio")]
    Contract,
    #[error("tls: {0}")]
    Tls(#[from] TlsError),
}

/// Who a message comes from.
pub(crate) enum Sender {
    Number(String),
    Service(String),
}

/// The checked form.
pub(crate) struct Account {
    pub carrier: String,
    pub origin: Origin,
    pub account_sid: String,
    /// The value of the `Authorization` header.
    pub authorization: Clear<String>,
    pub signing: SigningKey,
    pub sender: Sender,
    /// Without a fragment; `None`: no callbacks.
    pub callback_url: Option<String>,
    pub connections: usize,
    pub response_timeout: Duration,
    pub throttle_pause: Duration,
    pub redact: bool,
    pub contract: ContractHandle,
    pub tuning: TwilioTuning,
}

impl Account {
    pub fn check(config: TwilioConfig) -> Result<Self, TwilioConfigError> {
        let TwilioConfig { carrier, settings, auth_token, api_key_secret, contract, default_ca_pem, tuning } =
            config;
        if contract.get().protocol != Protocol::Twilio {
            return Err(TwilioConfigError::Contract);
        }
        let own_ca = Some(settings.tls_ca_pem.as_str()).filter(|pem| !pem.is_empty());
        let origin = Origin::parse(&settings.base_url, own_ca.or(default_ca_pem.as_deref()))?;
        let token = auth_token.expose();
        if !(1..=128).contains(&token.len()) || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(TwilioConfigError::AuthToken);
        }
        let (user, secret) = match (settings.api_key_sid.as_str(), &api_key_secret) {
            ("", None) => (settings.account_sid.as_str(), &auth_token),
            ("", Some(_)) | (_, None) => return Err(TwilioConfigError::ApiKey),
            (key, Some(secret)) => (key, secret),
        };
        let pair = Clear::new(format!("{user}:{}", secret.expose()));
        let authorization = Clear::new(format!("Basic {}", STANDARD.encode(pair.expose())));
        let sender = match (settings.from.as_str(), settings.messaging_service_sid.as_str()) {
            ("", service) if !service.is_empty() => Sender::Service(service.to_owned()),
            (from, "") if is_sender(from) => Sender::Number(from.to_owned()),
            _ => return Err(TwilioConfigError::From),
        };
        let callback_url = Some(settings.callback_url).filter(|url| !url.is_empty());
        if callback_url.as_ref().is_some_and(|url| !is_callback_url(url)) {
            return Err(TwilioConfigError::CallbackUrl);
        }
        let millis =
            |field, value| in_range(field, value, 10, 3_600_000).map(u64::from).map(Duration::from_millis);
        Ok(Self {
            carrier,
            origin,
            authorization,
            signing: SigningKey::new(&auth_token),
            sender,
            callback_url,
            connections: in_range("connections_per_node", settings.connections_per_node, 1, CONNECTIONS_MAX)?
                as usize,
            response_timeout: millis("response_timeout_ms", settings.response_timeout_ms)?,
            throttle_pause: millis("throttle_pause_ms", settings.throttle_pause_ms)?,
            account_sid: settings.account_sid,
            redact: settings.redact,
            contract,
            tuning,
        })
    }

    pub fn receipt_ack_timeout(&self) -> Duration {
        self.tuning.receipt_ack_timeout.unwrap_or_else(|| self.contract.get().receipt_ack_timeout)
    }

    /// The path of the account's messages.
    pub fn messages_path(&self) -> String {
        format!("/2010-04-01/Accounts/{}/Messages", self.account_sid)
    }
}

fn in_range(field: &'static str, value: u32, min: u32, max: u32) -> Result<u32, TwilioConfigError> {
    if (min..=max).contains(&value) { Ok(value) } else { Err(TwilioConfigError::Range { field, min, max }) }
}

/// An E.164 number with its plus, a short code, or a name.
pub(crate) fn is_sender(text: &str) -> bool {
    if let Some(digits) = text.strip_prefix('+') {
        return is_e164(digits);
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return (3..=8).contains(&text.len());
    }
    text.len() <= 11
        && text.bytes().any(|b| b.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b" -.&_".contains(&b))
}

fn is_callback_url(url: &str) -> bool {
    let possible = url.bytes().all(|b| b.is_ascii_graphic()) && !url.contains('#') && url.len() <= 1_024;
    possible && Origin::is_allowed(url)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::contract::{SMPP_GENERIC, TWILIO};

    pub fn config() -> TwilioConfig {
        TwilioConfig {
            carrier: "c".into(),
            settings: TwilioSettings {
                base_url: "http://127.0.0.1:8080".into(),
                account_sid: format!("AC{:032x}", 1),
                auth_token_secret: "t".into(),
                from: "+12025550100".into(),
                callback_url: "https://texts.example/c".into(),
                connections_per_node: 4,
                response_timeout_ms: 10_000,
                throttle_pause_ms: 1_000,
                ..TwilioSettings::default()
            },
            auth_token: Clear::new("token".into()),
            api_key_secret: None,
            contract: ContractHandle::built_in(TWILIO).unwrap(),
            default_ca_pem: None,
            tuning: TwilioTuning::default(),
        }
    }

    fn check(change: impl FnOnce(&mut TwilioConfig)) -> Option<TwilioConfigError> {
        let mut config = config();
        change(&mut config);
        Account::check(config).err()
    }

    #[test]
    fn settings_are_checked() {
        use TwilioConfigError as E;
        assert_eq!(check(|_| ()), None);
        for url in
            ["http://api.example", "https://", "https://a/path", "ftp://a", "https://a b", "http://10.0.0.1"]
        {
            assert_eq!(check(|c| c.settings.base_url = url.into()), Some(E::BaseUrl), "{url}");
        }
        for url in ["http://texts.example/c", "https://texts.example/c#x", "texts.example"] {
            assert_eq!(check(|c| c.settings.callback_url = url.into()), Some(E::CallbackUrl), "{url}");
        }
        assert_eq!(check(|c| c.settings.callback_url = "http://127.0.0.1:9/c?a=b".into()), None);
        assert_eq!(check(|c| c.settings.callback_url.clear()), None);
        for from in ["", "2025550100", "+0", "name that is too long"] {
            assert_eq!(check(|c| c.settings.from = from.into()), Some(E::From), "{from}");
        }
        assert_eq!(check(|c| c.settings.from = "Clinic".into()), None);
        assert_eq!(check(|c| c.settings.messaging_service_sid = "MG1".into()), Some(E::From));
        assert_eq!(check(|c| c.settings.api_key_sid = "SK1".into()), Some(E::ApiKey));
        assert_eq!(check(|c| c.auth_token = Clear::new(String::new())), Some(E::AuthToken));
        let smpp = ContractHandle::built_in(SMPP_GENERIC).unwrap();
        assert_eq!(check(|c| c.contract = smpp), Some(E::Contract));
        let range = |field, min, max| Some(E::Range { field, min, max });
        assert_eq!(check(|c| c.settings.connections_per_node = 0), range("connections_per_node", 1, 1_000));
        assert_eq!(
            check(|c| c.settings.response_timeout_ms = 9),
            range("response_timeout_ms", 10, 3_600_000)
        );
    }

    #[test]
    fn an_api_key_takes_the_place_of_the_account_and_its_token() {
        let plain = Account::check(config()).unwrap();
        assert_eq!(
            *plain.authorization.expose(),
            format!("Basic {}", STANDARD.encode(format!("AC{:032x}:token", 1)))
        );
        let mut keyed = config();
        keyed.settings.api_key_sid = "SKx".into();
        keyed.api_key_secret = Some(Clear::new("secret".into()));
        let keyed = Account::check(keyed).unwrap();
        assert_eq!(*keyed.authorization.expose(), format!("Basic {}", STANDARD.encode("SKx:secret")));
    }
}
