//! SMPP 3.4 over TCP and TLS: the codec is rusmpp's, the session manager is ours.
//!
//! `rusmppc::Client` was not used: in 0.4.0 it has no reconnect and no send window, flushes each PDU by itself, and
//! does not tell whether a PDU was written, without which `NOT_SENT` could not be proven.
//!
//! One message: send.rs cuts it into parts (parts.rs) and hands each to a bind through the lane (pool.rs); the bind's
//! task (session.rs) numbers and writes it (outbox.rs) and matches the answer (inflight.rs); the contract
//! says what that means. Binds are kept up by bind.rs. Receipts come in through inbound.rs, receipt.rs and id.rs.

mod bind;
mod config;
mod id;
mod inbound;
mod inflight;
mod meters;
mod outbox;
mod parts;
mod pdu;
mod pool;
mod receipt;
mod recent;
mod send;
mod session;
pub mod status;

pub use crate::tls::TlsError;
pub use config::{SmppConfig, SmppConfigError, SmppTuning};
pub(crate) use config::{international_digits, is_e164};
pub use id::{candidates as receipt_id_candidates, canonical as canonical_id};

use crate::connector::{
    BoxFuture, Connector, ConnectorStatus, InboundSink, SegmentGate, SendOutcome, SendRequest,
};
use crate::tls::Tls;
use crate::turnstile::Turnstile;
use config::Account;
use pool::{Phase, Pool};
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What the tasks of one connector share.
pub(crate) struct Shared {
    pool: Arc<Pool>,
    tls: Option<Tls>,
    ids: id::IdReader,
    recent: recent::Recent,
    sink: Arc<dyn InboundSink>,
    /// Keeps the order of senders.
    turnstile: Turnstile,
    concatenation_reference: AtomicU8,
}

/// A connector to one SMPP account. Dropping it cuts its connections; [`Connector::drain`] ends them well.
pub struct SmppConnector {
    shared: Arc<Shared>,
    /// Aborts them when dropped.
    binds: tokio::sync::Mutex<JoinSet<()>>,
}

impl SmppConnector {
    /// Checks the settings and starts to connect. Must be called inside a tokio runtime.
    pub fn start(config: SmppConfig, sink: Arc<dyn InboundSink>) -> Result<Self, SmppConfigError> {
        let tls = tls_of(&config)?;
        let account = Account::check(config)?;
        let binds = account.binds;
        let shared = Arc::new(Shared {
            ids: id::IdReader::new(account.receipt_id_format),
            pool: Pool::new(account),
            tls,
            recent: recent::Recent::default(),
            sink,
            turnstile: Turnstile::default(),
            concatenation_reference: AtomicU8::new(rand::random()),
        });
        let binds: JoinSet<()> = (0..binds).map(|slot| bind::keep_bound(shared.clone(), slot)).collect();
        Ok(Self { shared, binds: tokio::sync::Mutex::new(binds) })
    }

    /// Waits until so many binds are up.
    pub async fn bound(&self, binds: u32) {
        let mut view = self.shared.pool.watch();
        // The sender lives as long as `self`.
        let _ = view.wait_for(|view| view.binds_up >= binds).await;
    }

    /// Waits until the status satisfies a condition.
    pub async fn until(&self, condition: impl Fn(ConnectorStatus) -> bool) {
        let mut view = self.shared.pool.watch();
        let _ = view.wait_for(|_| condition(self.status())).await;
    }
}

/// `None` when the account uses plain TCP.
fn tls_of(config: &SmppConfig) -> Result<Option<Tls>, TlsError> {
    let settings = &config.settings;
    if !settings.tls {
        return Ok(None);
    }
    let own = Some(settings.tls_ca_pem.as_str()).filter(|pem| !pem.is_empty());
    let pem = own.or(config.default_ca_pem.as_deref()).ok_or(TlsError::NoCa)?;
    let host =
        if settings.tls_server_name.is_empty() { &settings.address } else { &settings.tls_server_name };
    Tls::to(host, pem).map(Some)
}

impl Connector for SmppConnector {
    fn send<'a>(&'a self, request: SendRequest, gate: &'a dyn SegmentGate) -> BoxFuture<'a, SendOutcome> {
        Box::pin(send::send(&self.shared, request, gate))
    }

    fn status(&self) -> ConnectorStatus {
        let pool = &self.shared.pool;
        let view = pool.view();
        ConnectorStatus {
            state: view.state(),
            binds_up: view.binds_up,
            binds_wanted: pool.account.binds as u32,
            in_flight: pool.in_flight(),
            paused_for: pool.paused_until().map(|until| until.saturating_duration_since(Instant::now())),
        }
    }

    fn drain(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.shared.pool.advance(Phase::Draining);
            self.shared.pool.idle().await;
            self.shared.pool.advance(Phase::Leaving);
            let mut binds = self.binds.lock().await;
            while binds.join_next().await.is_some() {}
        })
    }
}
