//! Twilio under the suite.
use crate::api::{Api, Exchange};
use crate::fixture::*;
use crate::support::*;
use carillon_carriers::contract::{ContractHandle, TWILIO};
use carillon_carriers::twilio::{TwilioConfig, TwilioConnector, TwilioTuning, sign};
use carillon_carriers::{Callback, CallbackAnswer, Clear, Connector as _, ConnectorState};
use carillon_proto::internal::{ReceiptState, TwilioSettings};
use carillon_proto::public::Outcome;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

pub const TOKEN: &str = "twilio-auth-token-of-a-test";
pub const CALLBACK_URL: &str = "https://texts.clinic.example/carriers/second?tenant=a%20b";

/// The account of the tests.
pub fn account_sid() -> String {
    format!("AC{:032x}", 0xac)
}

/// The id of message number `n`.
pub fn sid(n: u32) -> String {
    format!("SM{n:032x}")
}

pub struct Twilio {
    pub connector: Arc<TwilioConnector>,
    pub inbox: Inbox,
    pub api: Api,
}

/// The settings of the tests for an API at `url`.
pub fn settings(url: &str) -> TwilioSettings {
    TwilioSettings {
        base_url: url.to_owned(),
        account_sid: account_sid(),
        auth_token_secret: "token".into(),
        from: "+12025550100".into(),
        callback_url: CALLBACK_URL.into(),
        connections_per_node: 8,
        response_timeout_ms: 60_000,
        throttle_pause_ms: 100,
        ..TwilioSettings::default()
    }
}

pub fn tuning() -> TwilioTuning {
    TwilioTuning {
        reconnect_base: Duration::from_millis(5),
        reconnect_max: Duration::from_millis(20),
        broken_retry: Duration::from_millis(300),
        redact_retry: Duration::from_millis(5),
        receipt_ack_timeout: Some(Duration::from_secs(60)),
        ..TwilioTuning::default()
    }
}

pub fn config(settings: TwilioSettings, tuning: TwilioTuning) -> TwilioConfig {
    TwilioConfig {
        carrier: "test".into(),
        settings,
        auth_token: Clear::new(TOKEN.into()),
        api_key_secret: None,
        contract: ContractHandle::built_in(TWILIO).unwrap(),
        default_ca_pem: None,
        tuning,
    }
}

/// A callback as the carrier makes it, signed with `token`.
pub fn callback(token: &str, query: &str, fields: &[(&str, &str)]) -> Callback {
    let (path, _) = CALLBACK_URL.split_once('?').unwrap();
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    Callback {
        query: query.to_owned(),
        signature: Some(sign(token, &format!("{path}?{query}"), fields)),
        body: Clear::new(body.into_bytes()),
    }
}

impl Twilio {
    pub async fn with(change: impl FnOnce(&mut TwilioConfig)) -> Self {
        let api = Api::start(None).await;
        let mut config = config(settings(&api.url), tuning());
        change(&mut config);
        Self::started(api, config).await
    }

    pub async fn started(api: Api, config: TwilioConfig) -> Self {
        let (inbox, sink) = Inbox::with_sink();
        let connector = Arc::new(TwilioConnector::start(config, sink).unwrap());
        within(connector.until(|status| status.state == ConnectorState::Up)).await;
        Self { connector, inbox, api }
    }

    pub fn spawn_callback(&self, callback: Callback) -> Told1 {
        let connector = self.connector.clone();
        tokio::spawn(async move {
            match connector.callback(callback).await {
                CallbackAnswer::Done => Told::Taken,
                CallbackAnswer::TryAgain => Told::Again,
                CallbackAnswer::BadSignature | CallbackAnswer::Malformed | CallbackAnswer::NotExpected => {
                    Told::Refused
                }
            }
        })
    }
}

impl CarrierUnderTest for Twilio {
    type Token = Exchange;
    type Connector = TwilioConnector;

    const REFUSALS: &'static [(&'static str, Outcome, &'static str)] = &[
        ("400 21211", Outcome::RejectedNumber, "21211"),
        ("400 21610", Outcome::OptedOut, "21610"),
        ("400 21617", Outcome::RejectedContent, "21617"),
        ("400 21606", Outcome::LaneBroken, "21606"),
        ("400 30003", Outcome::Transient, "30003"),
        ("400 99999", Outcome::Transient, "99999"),
        ("400 63038", Outcome::CapReached, "63038"),
        ("429 20429", Outcome::Throttled, "20429"),
        ("429 0", Outcome::Throttled, "http_429"),
        ("401 20003", Outcome::LaneBroken, "20003"),
        ("404 20404", Outcome::LaneBroken, "20404"),
        ("500 20500", Outcome::Ambiguous, "http_500"),
        ("503 0", Outcome::Ambiguous, "http_503"),
        ("302 0", Outcome::LaneBroken, "http_302"),
    ];
    const THROTTLE: &'static str = "429 20429";
    const WRONGS: &'static [Wrong] = &[Wrong::Signature, Wrong::Oversized, Wrong::Malformed];

    async fn start(terms: Terms) -> Self {
        let mut api = Api::start(None).await;
        if terms.absent {
            // A port that nobody listens on.
            let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
            api.url = format!("http://127.0.0.1:{port}");
        }
        let mut settings = settings(&api.url);
        settings.response_timeout_ms = terms.response_timeout_ms;
        settings.throttle_pause_ms = terms.throttle_pause_ms;
        settings.connections_per_node = terms.window;
        let tuning = TwilioTuning { receipt_ack_timeout: Some(terms.receipt_ack_timeout), ..tuning() };
        let config = config(settings, tuning);
        if terms.absent {
            let (inbox, sink) = Inbox::with_sink();
            let connector = Arc::new(TwilioConnector::start(config, sink).unwrap());
            return Self { connector, inbox, api };
        }
        Self::started(api, config).await
    }

    fn connector(&self) -> Arc<TwilioConnector> {
        self.connector.clone()
    }

    fn inbox(&mut self) -> &mut Inbox {
        &mut self.inbox
    }

    async fn arrived(&mut self) -> Arrived<Exchange> {
        let exchange = self.api.next().await;
        let messages = format!("/2010-04-01/Accounts/{}/Messages.json", account_sid());
        assert_eq!((exchange.method.as_str(), exchange.path.as_str()), ("POST", messages.as_str()));
        let (text, to) = (exchange.form["Body"].clone(), exchange.form["To"].clone());
        Arrived { token: exchange, text, recipient: to.strip_prefix('+').unwrap().to_owned() }
    }

    async fn assert_silent(&mut self) {
        // Every task of this runtime gets its turns; a request over loopback needs a few.
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        assert!(self.api.is_silent());
    }

    async fn accept(&mut self, token: Exchange, n: u32) -> String {
        let body = format!("{{\"sid\":\"{}\",\"status\":\"queued\",\"num_segments\":\"1\"}}", sid(n));
        token.answer(201, &body);
        sid(n)
    }

    async fn refuse(&mut self, token: Exchange, word: &str) {
        let (status, code) = word.split_once(' ').unwrap();
        let body = match code {
            "0" => String::new(),
            code => format!("{{\"code\":{code},\"message\":\"no\",\"status\":{status}}}"),
        };
        token.answer(status.parse().unwrap(), &body);
    }

    async fn hang_up(&mut self, token: Exchange) {
        token.hang_up();
    }

    async fn report(&mut self, n: u32, state: ReceiptState) -> Told1 {
        let word = match state {
            ReceiptState::Delivered => "delivered",
            ReceiptState::Undelivered => "undelivered",
            _ => "sent",
        };
        let (sid, account) = (sid(n), account_sid());
        let fields = [
            ("MessageSid", sid.as_str()),
            ("MessageStatus", word),
            ("AccountSid", account.as_str()),
            ("To", "+12125550123"),
            ("From", "+12025550100"),
        ];
        self.spawn_callback(callback(TOKEN, "tenant=a%20b&a=1", &fields))
    }

    async fn report_wrong(&mut self, wrong: Wrong) -> Told1 {
        let (sid, long) = (sid(1), "x".repeat(20_000));
        let good = [("MessageSid", sid.as_str()), ("MessageStatus", "delivered")];
        let query = "tenant=a%20b";
        self.spawn_callback(match wrong {
            Wrong::Signature => callback("another token", query, &good),
            Wrong::Oversized => callback(TOKEN, query, &[good[0], good[1], ("To", long.as_str())]),
            Wrong::Malformed => {
                callback(TOKEN, query, &[("MessageSid", "SM1"), ("MessageStatus", "delivered")])
            }
        })
    }
}
