//! Twilio's Messages API over HTTP/1.1: the protocol is hyper's, the proofs are ours.
//!
//! One message: send.rs takes a connection and the lane's permissions (pool.rs), hands the request over and waits; the body
//! tells whether it left (flight.rs), the contract what the answer means (answer.rs). Status callbacks come in through
//! callback.rs, which checks the signature (signature.rs); look_up.rs asks for messages whose fate is unknown; redact.rs
//! removes texts at the carrier.
//!
//! HTTP/1.1 and a connection for each request without an answer, not HTTP/2: a connection that breaks then makes one
//! message ambiguous, not all of them, and hyper can say for each request whether its body was taken.
//!
//! Our reference to a message is in the query of its callback URL. Twilio signs that URL, so a callback finds its message
//! even when the answer with the id was lost.

mod account;
mod answer;
mod callback;
mod flight;
mod http;
mod look_up;
mod meters;
mod pool;
mod redact;
mod send;
mod signature;

pub use account::{TwilioConfig, TwilioConfigError, TwilioTuning};
pub use signature::sign;

use crate::connector::{
    BoxFuture, Callback, CallbackAnswer, Connector, ConnectorState, ConnectorStatus, InboundSink, LookUp,
    LookUpAnswer, SegmentGate, SendOutcome, SendRequest,
};
use crate::contract::LookUpTerms;
use crate::turnstile::Turnstile;
use account::Account;
use pool::{Phase, Pool};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Texts that wait to be removed at the carrier.
const REDACTIONS_MAX: usize = 10_000;

/// What the tasks of one connector share.
pub(crate) struct Shared {
    pool: Arc<Pool>,
    sink: Arc<dyn InboundSink>,
    /// Keeps the order of senders.
    turnstile: Turnstile,
    quota: look_up::Quota,
    redactions: mpsc::Sender<String>,
}

impl Shared {
    fn account(&self) -> &Account {
        &self.pool.account
    }
}

/// A connector to one Twilio account. Dropping it cuts its connections; [`Connector::drain`] ends them well.
pub struct TwilioConnector {
    shared: Arc<Shared>,
    /// Aborts them when dropped.
    helpers: tokio::sync::Mutex<JoinSet<()>>,
}

impl TwilioConnector {
    /// Checks the settings and starts to connect. Must be called inside a tokio runtime.
    pub fn start(config: TwilioConfig, sink: Arc<dyn InboundSink>) -> Result<Self, TwilioConfigError> {
        let (redactions, to_redact) = mpsc::channel(REDACTIONS_MAX);
        let shared = Arc::new(Shared {
            pool: Pool::new(Account::check(config)?),
            sink,
            turnstile: Turnstile::default(),
            quota: look_up::Quota::default(),
            redactions,
        });
        let mut helpers = JoinSet::new();
        helpers.spawn(pool::keep_connected(shared.pool.clone()));
        helpers.spawn(redact::run(shared.clone(), to_redact));
        Ok(Self { shared, helpers: tokio::sync::Mutex::new(helpers) })
    }

    /// Waits until the status satisfies a condition.
    pub async fn until(&self, condition: impl Fn(ConnectorStatus) -> bool) {
        let mut view = self.shared.pool.watch();
        // The sender lives as long as `self`.
        let _ = view.wait_for(|_| condition(self.status())).await;
    }
}

impl Connector for TwilioConnector {
    fn send<'a>(&'a self, request: SendRequest, gate: &'a dyn SegmentGate) -> BoxFuture<'a, SendOutcome> {
        Box::pin(send::send(&self.shared, request, gate))
    }

    fn status(&self) -> ConnectorStatus {
        let pool = &self.shared.pool;
        let state = pool.view().state();
        let open = pool.open();
        ConnectorStatus {
            state,
            // Connections come and go with the load: while it is up it counts as connected.
            binds_up: if state == ConnectorState::Up { open.max(1) } else { open },
            binds_wanted: pool.account.connections as u32,
            in_flight: pool.in_flight(),
            paused_for: pool.paused_until().map(|until| until.saturating_duration_since(Instant::now())),
        }
    }

    fn callback(&self, callback: Callback) -> BoxFuture<'_, CallbackAnswer> {
        Box::pin(callback::take(&self.shared, callback))
    }

    fn look_up_terms(&self) -> Option<LookUpTerms> {
        self.shared.account().contract.get().look_up
    }

    fn look_up(&self, question: LookUp) -> BoxFuture<'_, LookUpAnswer> {
        Box::pin(look_up::look_up(&self.shared, question))
    }

    fn drain(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.shared.pool.advance(Phase::Draining);
            self.shared.pool.idle().await;
            self.shared.pool.advance(Phase::Leaving);
            self.shared.pool.hang_up();
            self.helpers.lock().await.shutdown().await;
        })
    }
}
