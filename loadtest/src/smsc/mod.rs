//! The carrier simulator: an SMPP 3.4 SMSC over TCP or TLS, and Twilio's Messages
//! API over HTTP (`rest`), that keep their own ground truth.
//!
//! Owns: a server that behaves like a carrier ([`Profile`]), makes the faults
//! carriers make, reproducibly from a seed, raises an alarm when a contract
//! is exceeded in any sliding window, and knows what it really received.
//!
//! ```text
//! socket -> conn (cut, parse) -> center: submit -> decide, truth, assembly
//!                                        receipts, bind   | answers now
//! socket <- outbox (one write) <---------+<- tick <- heap of delayed events
//! ```
//! Invariants: an answer of success is in the ground truth before it can be
//! written; numbers and texts are never logged or stored, only keyed hashes.
//! Memory: about 200 octets a submit (up to `records_max`), 250 a receipt that
//! is not done (up to `pending_max`), 4 MiB of output a connection.
//! Does not: inbound messages (replies), delivery to anywhere, SMPP 5.

mod addr;
mod args;
mod assembly;
mod center;
mod conn;
mod contract;
mod decide;
mod dist;
mod http;
mod journal;
mod outbox;
mod profile;
mod receipts;
mod rest;
mod stats;
mod submit;
mod text;
mod tick;
pub mod tls;
mod truth;
mod wire;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use args::{Args, run};
pub use contract::Contract;
pub use dist::Delay;
pub use journal::{JournalError, Line, read as read_journal};
pub use profile::{Faults, IdFormat, IdFormats, Profile, ProfileError, Receipts, RefuseRule, Storm};
pub use rest::{RestConfig, RestStats, client_config as callback_tls};
pub use stats::{AccountStats, Lag, ReceiptStats, Second, Stats};
pub use truth::{Accepted, TruthEntry, TruthKey, TruthPage, truth_key};

use center::Center;
use journal::Journal;
use tick::UPKEEP_US;

/// Renders the metrics of the process in the Prometheus text format.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// A simulator that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SmscError {
    #[error("carrier simulator: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("carrier simulator: {0}")]
    Config(String),
}

/// One account: who may bind, and its contract.
#[derive(Clone)]
pub struct AccountConfig {
    pub system_id: String,
    pub password: String,
    pub contract: Contract,
}

impl AccountConfig {
    pub fn new(system_id: &str, password: &str, contract: Contract) -> Self {
        Self { system_id: system_id.to_owned(), password: password.to_owned(), contract }
    }
}

/// The server; how it behaves is the profile's.
#[derive(Clone)]
pub struct SmscConfig {
    pub listen: SocketAddr,
    /// Port of the control plane on loopback.
    pub http_port: u16,
    /// 1 to 1,000 accounts.
    pub accounts: Vec<AccountConfig>,
    pub profile: Profile,
    pub seed: u64,
    pub truth_key: TruthKey,
    pub truth_file: Option<PathBuf>,
    /// Submits recorded at most, 1 to 16,000,000; further ones are refused.
    pub records_max: usize,
    /// Receipts not done, and delayed answers, at most.
    pub pending_max: usize,
    /// Connections at most.
    pub connections_max: usize,
    /// Binds of one account at most.
    pub binds_max: u32,
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// A connection that has not bound by then is closed.
    pub bind_timeout_ms: u64,
    /// A silent bind is asked after this long, and closed after as long again.
    pub enquire_link_ms: u64,
    /// The name in bind answers, at most 15 octets.
    pub server_id: String,
    pub metrics_text: Option<RenderMetrics>,
    /// Twilio's API beside SMPP, with `tls` if that is set.
    pub rest: Option<RestConfig>,
}

impl Default for SmscConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            http_port: 0,
            accounts: vec![AccountConfig::new("carillon", "secret", Contract::default())],
            profile: Profile::default(),
            seed: 1,
            truth_key: TruthKey::default(),
            truth_file: None,
            records_max: 4_000_000,
            pending_max: 1_000_000,
            connections_max: 1_024,
            binds_max: 64,
            tls: None,
            bind_timeout_ms: 10_000,
            enquire_link_ms: 30_000,
            server_id: "carillon-smsc".to_owned(),
            metrics_text: None,
            rest: None,
        }
    }
}

impl SmscConfig {
    fn check(&self) -> Result<(), SmscError> {
        let account = |a: &AccountConfig| {
            (1..=15).contains(&a.system_id.len())
                && a.password.len() <= 8
                && a.contract.limit > 0
                && (1..=86_400_000).contains(&a.contract.window_ms)
                && a.contract.slack_ms < a.contract.window_ms
        };
        let checks = [
            ((1..=1_000).contains(&self.accounts.len()), "there must be 1 to 1000 accounts"),
            (
                self.accounts.iter().all(account),
                "an account needs a system_id of 1 to 15 octets, a password of at most 8, and a contract with a limit and a window longer than its slack",
            ),
            ((1..=16_000_000).contains(&self.records_max), "records_max is not 1 to 16000000"),
            ((1..=16_000_000).contains(&self.pending_max), "pending_max is not 1 to 16000000"),
            (
                self.rest.as_ref().is_none_or(RestConfig::is_possible),
                "the rest account is AC and 32 hex digits, with a token and a possible contract",
            ),
            (self.server_id.len() <= 15 && self.server_id.is_ascii(), "server_id is over 15 octets"),
        ];
        match checks.iter().find(|(good, _)| !good) {
            Some((_, why)) => Err(SmscError::Config((*why).to_owned())),
            None => Ok(()),
        }
    }
}

/// What the tasks of the simulator share.
pub(crate) struct Server {
    config: Arc<SmscConfig>,
    center: Mutex<Center>,
    tls: Option<TlsAcceptor>,
    started: Instant,
    tick_sooner: Notify,
    stop: CancellationToken,
    connections: TaskTracker,
}

impl Server {
    fn now_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    fn stats(&self, seconds: usize) -> Stats {
        self.center.lock().stats(seconds, self.now_us())
    }

    fn truth(&self, since: u64, limit: usize) -> TruthPage {
        let center = self.center.lock();
        center.truth.page(since, limit, |account| center.accounts[usize::from(account)].system_id.clone())
    }

    fn set_profile(&self, profile: Profile) -> Result<Profile, ProfileError> {
        let profile = profile.checked()?;
        self.center.lock().set_profile(profile.clone(), self.now_us());
        Ok(profile)
    }

    fn reset(&self) {
        self.center.lock().reset(self.now_us());
    }

    /// Whether submits are taken and their ground truth is kept.
    fn ready(&self) -> Result<(), &'static str> {
        let center = self.center.lock();
        if self.stop.is_cancelled() {
            Err("stopping")
        } else if center.truth.is_full() {
            Err("the ground truth is full: submits are refused")
        } else if center.journal.as_ref().is_some_and(|journal| journal.failures() > 0) {
            Err("the ground truth file cannot be written")
        } else {
            Ok(())
        }
    }

    /// Waits until the ground truth file holds everything; false without a file.
    async fn flush(&self) -> bool {
        let wait = self.center.lock().journal.as_mut().map(Journal::flush);
        match wait {
            Some(wait) => tokio::task::spawn_blocking(wait).await.is_ok(),
            None => false,
        }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(self.config.connections_max));
        let mut next_id = 1u32;
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (Ok((socket, _)), Ok(permit)) = (accepted, room.clone().try_acquire_owned()) else {
                // Out of descriptors or over the bound: let others finish first.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let (server, id) = (self.clone(), next_id);
            next_id = next_id.wrapping_add(1);
            self.connections.spawn(async move {
                conn::serve(server, socket, id).await;
                drop(permit);
            });
        }
    }

    async fn tick(self: Arc<Self>) {
        let mut upkeep_at_us = 0;
        loop {
            let now_us = self.now_us();
            let wake_us = {
                let mut center = self.center.lock();
                if now_us >= upkeep_at_us {
                    center.upkeep(now_us);
                    upkeep_at_us = now_us + UPKEEP_US;
                }
                center.tick(now_us)
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep_until(self.started + Duration::from_micros(wake_us)) => {}
                () = self.tick_sooner.notified() => {}
            }
        }
    }
}

/// A running simulator. Dropping it stops it without saying goodbye.
pub struct Smsc {
    server: Arc<Server>,
    smpp_addr: SocketAddr,
    http_addr: SocketAddr,
    rest_addr: Option<SocketAddr>,
}

impl Smsc {
    /// Binds both ports and serves.
    pub async fn start(config: Arc<SmscConfig>) -> Result<Self, SmscError> {
        config.check()?;
        let profile = config.profile.clone().checked()?;
        let config = Arc::new(SmscConfig { profile, ..(*config).clone() });
        let journal = config.truth_file.as_deref().map(Journal::create).transpose()?;
        let listener = TcpListener::bind(config.listen).await?;
        let http = TcpListener::bind((Ipv4Addr::LOCALHOST, config.http_port)).await?;
        let (smpp_addr, http_addr) = (listener.local_addr()?, http.local_addr()?);
        let rest_listener = match &config.rest {
            Some(rest) => Some(TcpListener::bind(rest.listen).await?),
            None => None,
        };
        let rest_addr = rest_listener.as_ref().map(TcpListener::local_addr).transpose()?;
        let wall_us = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?.as_micros();
        let (center, jobs) = Center::new(config.clone(), wall_us as u64, journal);
        let server = Arc::new(Server {
            center: Mutex::new(center),
            tls: config.tls.clone().map(TlsAcceptor::from),
            config,
            started: Instant::now(),
            tick_sooner: Notify::new(),
            stop: CancellationToken::new(),
            connections: TaskTracker::new(),
        });
        let accounts = server.config.accounts.len();
        tracing::info!(%smpp_addr, %http_addr, accounts, profile = server.config.profile.name, "serving");
        tokio::spawn(server.clone().accept(listener));
        tokio::spawn(server.clone().tick());
        if let (Some(listener), Some(jobs)) = (rest_listener, jobs) {
            tokio::spawn(rest::serve(server.clone(), listener, jobs));
        }
        let stopped = server.stop.clone().cancelled_owned();
        let router = http::router(server.clone());
        tokio::spawn(async move {
            let served = axum::serve(http, router).with_graceful_shutdown(stopped).await;
            if let Err(error) = served {
                tracing::warn!(%error, "control plane of the carrier simulator ended");
            }
        });
        Ok(Self { server, smpp_addr, http_addr, rest_addr })
    }

    pub fn smpp_addr(&self) -> SocketAddr {
        self.smpp_addr
    }

    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Where Twilio's API is, if it is.
    pub fn rest_addr(&self) -> Option<SocketAddr> {
        self.rest_addr
    }

    /// The stats with the last `seconds` of history.
    pub fn stats(&self, seconds: usize) -> Stats {
        self.server.stats(seconds)
    }

    /// Up to `limit` records from index `since`.
    pub fn truth(&self, since: u64, limit: usize) -> TruthPage {
        self.server.truth(since, limit)
    }

    /// How often the message with this truth key was accepted.
    pub fn copies_of(&self, message: u128) -> u32 {
        self.server.center.lock().truth.copies_of(message)
    }

    /// Swaps the behaviour of the carrier; storms count from now.
    pub fn set_profile(&self, profile: Profile) -> Result<(), ProfileError> {
        self.server.set_profile(profile).map(drop)
    }

    /// Forgets everything recorded and counted.
    pub fn reset(&self) {
        self.server.reset();
    }

    /// Drops every connection at once; returns how many there were.
    pub fn disconnect_all(&self) -> usize {
        self.server.center.lock().close_all(false)
    }

    /// Waits until the ground truth file holds everything; false without a file.
    pub async fn flush(&self) -> bool {
        self.server.flush().await
    }

    /// Unbinds everybody, waits for the connections (5 s at most), and writes
    /// the rest of the ground truth.
    pub async fn shutdown(self) {
        tracing::info!("stopping");
        self.server.stop.cancel();
        self.server.center.lock().close_all(true);
        self.server.connections.close();
        let _ = tokio::time::timeout(Duration::from_secs(5), self.server.connections.wait()).await;
        self.server.flush().await;
    }
}

impl Drop for Smsc {
    fn drop(&mut self) {
        self.server.stop.cancel();
        self.server.center.lock().close_all(false);
    }
}
