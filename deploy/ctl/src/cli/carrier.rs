//! `carillonctl carrier ...`: accounts at carriers.
use super::Verdict;
use super::cluster::PutCarrierArgs;
use super::output::{Format, print, table};
use super::target::Target;
use carillon_proto::admin::CarrierStatus;
use carillon_proto::internal::{Baa, CarrierRecord, TwilioSettings};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Whether a business associate agreement with the carrier is on file.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Agreement {
    OnFile,
    None,
}

/// What every account has, whatever its carrier speaks.
#[derive(Debug, Args)]
pub struct Terms {
    /// Name of the account's contract; without it the built-in one of its protocol.
    #[arg(long, default_value = "")]
    contract: String,
    /// Business associate agreement with the carrier: without one the account carries only classes that are free of PHI.
    #[arg(long, value_enum)]
    baa: Option<Agreement>,
}

impl Terms {
    pub fn apply(self, record: CarrierRecord) -> CarrierRecord {
        let baa = match self.baa {
            Some(Agreement::OnFile) => Baa::OnFile,
            Some(Agreement::None) => Baa::None,
            None => Baa::Unspecified,
        };
        CarrierRecord { contract: self.contract, baa: baa.into(), ..record }
    }
}

#[derive(Debug, Args)]
pub struct PutTwilioArgs {
    #[command(flatten)]
    target: Target,
    #[arg(long)]
    name: String,
    /// https://host[:port] of the API.
    #[arg(long, default_value = "https://api.twilio.com")]
    base_url: String,
    /// CA of the carrier (PEM); without it the nodes' `carriers.ca_file`, else what the system trusts.
    #[arg(long)]
    tls_ca: Option<PathBuf>,
    #[arg(long)]
    account_sid: String,
    /// Name of the file in the nodes' secrets directory that holds the account's auth token.
    #[arg(long)]
    auth_token_secret: String,
    /// An API key to call with; recommended.
    #[arg(long, default_value = "", requires = "api_key_secret")]
    api_key_sid: String,
    /// Name of the file that holds its secret.
    #[arg(long, default_value = "")]
    api_key_secret: String,
    /// The sender: a number, a short code or a name.
    #[arg(long, default_value = "", conflicts_with = "messaging_service_sid")]
    from: String,
    #[arg(long, default_value = "")]
    messaging_service_sid: String,
    /// Public URL of the callback listener for this account; without it the nodes' `public_url` is used.
    #[arg(long, default_value = "")]
    callback_url: String,
    /// Limit of the account.
    #[arg(long)]
    segments_per_second: u32,
    #[arg(long, default_value_t = 32)]
    connections_per_node: u32,
    #[arg(long, default_value_t = 10_000)]
    response_timeout_ms: u32,
    #[arg(long, default_value_t = 1_000)]
    throttle_pause_ms: u32,
    /// Remove texts at the carrier once their state is final.
    #[arg(long)]
    redact: bool,
    #[command(flatten)]
    terms: Terms,
}

#[derive(Debug, Subcommand)]
pub enum CarrierCommand {
    /// All accounts: what they speak, what they allow, and how many connections and attempts all nodes together have.
    List(Target),
    /// Register an SMPP account, or change its settings.
    Put(Box<PutCarrierArgs>),
    /// Register a Twilio account, or change its settings.
    PutTwilio(Box<PutTwilioArgs>),
}

pub async fn carrier(command: CarrierCommand, format: Format) -> anyhow::Result<Verdict> {
    let (target, record) = match command {
        CarrierCommand::List(target) => return list(&target, format).await,
        CarrierCommand::Put(args) => args.record()?,
        CarrierCommand::PutTwilio(args) => args.record()?,
    };
    let stored = target.any().await?.put_carrier(record).await?;
    let value = json!({
        "carrier_no": stored.carrier_no, "name": stored.name, "segments_per_second": stored.segments_per_second,
    });
    print(format, &value, || println!("carrier {} has number {}", stored.name, stored.carrier_no))?;
    Ok(Verdict::Done)
}

/// An account as all nodes that answer see it together.
#[derive(Default)]
struct Account {
    seen: CarrierStatus,
    connections: u32,
    in_flight: u32,
}

async fn list(target: &Target, format: Format) -> anyhow::Result<Verdict> {
    let mut accounts = BTreeMap::<u32, Account>::new();
    for carrier in target.every_status().await?.into_iter().flat_map(|status| status.carriers) {
        let number = carrier.carrier.as_ref().map_or(0, |record| record.carrier_no);
        let account = accounts.entry(number).or_default();
        account.connections += carrier.binds_up;
        account.in_flight += carrier.in_flight;
        account.seen = carrier;
    }
    let values: Vec<Value> = accounts.values().map(Account::as_json).collect();
    print(format, &values, || {
        let head = [
            "CARRIER",
            "NUMBER",
            "SPEAKS",
            "ADDRESS",
            "SEGMENTS/S",
            "CONTRACT",
            "PHI",
            "CONNECTIONS",
            "IN FLIGHT",
        ];
        let row = |value: &Value| {
            let text = |name: &str| match &value[name] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let mut row: Vec<String> =
                ["name", "carrier_no", "protocol", "address"].iter().map(|name| text(name)).collect();
            row.push(match value["segments_per_second"].as_u64() {
                Some(0) => "not published".to_owned(),
                _ => text("segments_per_second"),
            });
            row.push(format!("{} v{}", text("contract"), text("contract_version")));
            row.push(if value["carries_phi"] == true { "yes" } else { "no" }.to_owned());
            row.extend(["connections", "in_flight"].iter().map(|name| text(name)));
            row
        };
        table(&head, &values.iter().map(row).collect::<Vec<_>>());
    })?;
    Ok(Verdict::Done)
}

impl Account {
    fn as_json(&self) -> Value {
        let record = self.seen.carrier.clone().unwrap_or_default();
        let (protocol, address) = match (&record.smpp, &record.twilio) {
            (_, Some(twilio)) => ("twilio", twilio.base_url.clone()),
            (Some(smpp), None) if smpp.tls => ("smpp+tls", smpp.address.clone()),
            (Some(smpp), None) => ("smpp", smpp.address.clone()),
            (None, None) => ("unknown", String::new()),
        };
        json!({
            "carrier_no": record.carrier_no, "name": record.name, "protocol": protocol, "address": address,
            "segments_per_second": record.segments_per_second, "campaign": record.campaign, "brand": record.brand,
            "contract": self.seen.contract, "contract_version": self.seen.contract_version,
            "carries_phi": self.seen.carries_phi, "connections": self.connections, "in_flight": self.in_flight,
        })
    }
}

impl PutTwilioArgs {
    fn record(self) -> anyhow::Result<(Target, CarrierRecord)> {
        let tls_ca_pem = self.tls_ca.map(fs_err::read_to_string).transpose()?.unwrap_or_default();
        let settings = TwilioSettings {
            base_url: self.base_url,
            account_sid: self.account_sid,
            auth_token_secret: self.auth_token_secret,
            api_key_sid: self.api_key_sid,
            api_key_secret: self.api_key_secret,
            from: self.from,
            messaging_service_sid: self.messaging_service_sid,
            callback_url: self.callback_url,
            connections_per_node: self.connections_per_node,
            response_timeout_ms: self.response_timeout_ms,
            tls_ca_pem,
            throttle_pause_ms: self.throttle_pause_ms,
            redact: self.redact,
        };
        let record = CarrierRecord {
            name: self.name,
            twilio: Some(settings),
            segments_per_second: self.segments_per_second,
            ..Default::default()
        };
        Ok((self.target, self.terms.apply(record)))
    }
}
