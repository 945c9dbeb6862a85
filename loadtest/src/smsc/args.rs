//! The command line of the simulator: `smsc`.
//!
//! Owns: the flags, what they mean as an [`SmscConfig`], and [`run`].

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::contract::Contract;
use super::profile::{PRESETS, Profile};
use super::truth::TruthKey;
use super::{AccountConfig, RenderMetrics, RestConfig, Smsc, SmscConfig, SmscError, callback_tls, tls};

/// Run a simulated carrier: an SMPP 3.4 SMSC with its own ground truth.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address to listen on for SMPP; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Port of the control plane, always on loopback; 0 takes any free one.
    #[arg(long, default_value_t = 0)]
    pub http_port: u16,
    /// An account as system_id:password; may be given several times.
    #[arg(long = "account", default_value = "carillon:secret")]
    pub accounts: Vec<String>,
    /// perfect, realistic, storm, lossy, throttled, or the path of a TOML profile.
    #[arg(long, default_value = "perfect")]
    pub profile: String,
    /// Seed of every fault and delay.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Contract: segments in any window at most, for each account.
    #[arg(long)]
    pub limit: Option<u32>,
    /// Contract: length of the sliding window in milliseconds.
    #[arg(long, default_value_t = 1_000)]
    pub window_ms: u64,
    /// Contract: forgive this much network delay, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pub slack_ms: u64,
    /// Write the ground truth to this file as JSON lines.
    #[arg(long)]
    pub truth_file: Option<PathBuf>,
    /// Key of the hashes in the ground truth, 32 hexadecimal digits.
    #[arg(long)]
    pub truth_key: Option<String>,
    /// Submits recorded at most (about 200 octets each); further ones are refused.
    #[arg(long, default_value_t = 4_000_000)]
    pub records_max: usize,
    /// Certificate chain (PEM): listen with TLS.
    #[arg(long, requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key (PEM) of the certificate.
    #[arg(long, requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Serve Twilio's Messages API here, too, with the same profile and the same certificate.
    #[arg(long, requires = "rest_account")]
    pub rest_listen: Option<SocketAddr>,
    /// The account of that API as account_sid:auth_token.
    #[arg(long, requires = "rest_listen")]
    pub rest_account: Option<String>,
    /// CA (PEM) of the listeners that status callbacks go to over https.
    #[arg(long, requires = "rest_listen")]
    pub rest_callback_ca: Option<PathBuf>,
    /// Seconds without a PDU after which a bind is asked whether it lives.
    #[arg(long, default_value_t = 30)]
    pub enquire_link_s: u64,
}

impl Args {
    /// Reads files and checks values.
    pub fn config(self) -> Result<SmscConfig, SmscError> {
        let bad = |what: &str| SmscError::Config(what.to_owned());
        let profile = if PRESETS.contains(&self.profile.as_str()) {
            Profile::preset(&self.profile)?
        } else {
            Profile::from_toml(&std::fs::read_to_string(&self.profile)?)?
        };
        let contract = Contract {
            limit: self.limit.unwrap_or(u32::MAX),
            window_ms: self.window_ms,
            slack_ms: self.slack_ms,
        };
        let account = |text: &String| {
            let (system_id, password) = text.split_once(':')?;
            Some(AccountConfig::new(system_id, password, contract))
        };
        let accounts = self.accounts.iter().map(account).collect::<Option<Vec<_>>>();
        let truth_key = match &self.truth_key {
            None => TruthKey::default(),
            Some(text) => TruthKey::from_hex(text).ok_or_else(|| bad("truth key is not 32 hex digits"))?,
        };
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some(tls::server_config(cert, key)?),
            _ => None,
        };
        let rest = match (self.rest_listen, &self.rest_account) {
            (Some(listen), Some(account)) => {
                let pair = account.split_once(':');
                let (sid, token) = pair.ok_or_else(|| bad("rest account is not account_sid:auth_token"))?;
                Some(RestConfig {
                    listen,
                    account_sid: sid.to_owned(),
                    auth_token: token.to_owned(),
                    contract,
                    callback_tls: self.rest_callback_ca.as_deref().map(callback_tls).transpose()?,
                })
            }
            _ => None,
        };
        Ok(SmscConfig {
            rest,
            listen: self.listen,
            http_port: self.http_port,
            accounts: accounts.ok_or_else(|| bad("account is not system_id:password"))?,
            profile,
            seed: self.seed,
            truth_key,
            truth_file: self.truth_file,
            records_max: self.records_max,
            tls,
            enquire_link_ms: self.enquire_link_s.saturating_mul(1000),
            ..SmscConfig::default()
        })
    }
}

/// Serves until SIGINT or SIGTERM. When it can be used it says so on standard output, whatever the log filter is: a line as all the
/// others, with the ports as `smpp`, `http` and (if it is served) `rest`. `metrics_text` renders the metrics that `main` records.
pub async fn run(args: Args, metrics_text: Option<RenderMetrics>) -> Result<(), SmscError> {
    let config = SmscConfig { metrics_text, ..args.config()? };
    let smsc = Smsc::start(Arc::new(config)).await?;
    let mut out = std::io::stdout();
    let mut ready = serde_json::json!({
        "timestamp": jiff::Timestamp::now().to_string(), "level": "INFO", "message": "ready",
        "smpp": smsc.smpp_addr().port(), "http": smsc.http_addr().port(),
    });
    if let Some(rest) = smsc.rest_addr() {
        ready["rest"] = rest.port().into();
    }
    writeln!(out, "{ready}")?;
    out.flush()?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    smsc.shutdown().await;
    Ok(())
}
