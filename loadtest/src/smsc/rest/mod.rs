//! The same carrier over HTTP: Twilio's Messages API, with the profile, the ground truth and the contract alarm of the SMPP
//! side.
//!
//! Owns: the messages as the API shows them ([`Rest`]), creates (create.rs), lists and redaction (list.rs), signed status
//! callbacks (callbacks.rs) and the listener (server.rs).
//! Invariants: an answer of success is in the ground truth before it can be written; number and text are held in memory
//! only, because the list must show them, and until they are redacted.
//! Bounds: as many messages as the ground truth has records, `pending_max` callbacks that are not done, requests of
//! 64 KiB.

mod callbacks;
mod create;
mod list;
mod server;

pub use callbacks::{Job, client_config};
pub use server::serve;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::contract::Contract;
use super::decide::State;

/// Callbacks that wait for a connection.
const READY_MAX: usize = 4_096;

/// The account that may call, and how callbacks get out.
#[derive(Clone)]
pub struct RestConfig {
    pub listen: SocketAddr,
    /// AC and 32 hex digits.
    pub account_sid: String,
    /// Calls are authenticated and callbacks signed with it.
    pub auth_token: String,
    pub contract: Contract,
    /// For callbacks to https URLs.
    pub callback_tls: Option<Arc<rustls::ClientConfig>>,
}

impl RestConfig {
    pub fn is_possible(&self) -> bool {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let sid = self.account_sid.strip_prefix("AC");
        let contract = &self.contract;
        sid.is_some_and(|sid| sid.len() == 32 && sid.bytes().all(hex))
            && (1..=128).contains(&self.auth_token.len())
            && contract.limit > 0
            && (1..=86_400_000).contains(&contract.window_ms)
            && contract.slack_ms < contract.window_ms
    }
}

/// What the HTTP side counts besides the totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestStats {
    pub creates: u64,
    pub lists: u64,
    pub reads: u64,
    pub redacted: u64,
    pub unauthorized: u64,
    pub malformed: u64,
    /// Callbacks that were answered with 403: the signature was not believed.
    pub signatures_refused: u64,
}

/// A message as the API shows it.
struct Message {
    to: String,
    from: String,
    body: String,
    segments: u32,
    created_us: u64,
    /// When its last state begins; before it is queued or sent.
    final_at_us: u64,
    state: State,
    err: u16,
}

impl Message {
    fn status(&self, wall_us: u64) -> &'static str {
        match self.state {
            _ if wall_us < self.final_at_us => "sent",
            State::Enroute => "sent",
            State::Delivered => "delivered",
            State::Undelivered => "undelivered",
        }
    }
}

/// A callback that is not done.
struct Pending {
    id: u64,
    url: String,
    state: State,
    err: u16,
    attempts: u8,
}

/// The HTTP side of the carrier.
pub struct Rest {
    pub config: RestConfig,
    /// Its number among the accounts.
    pub account: u16,
    key: hmac::Key,
    messages: HashMap<u64, Message>,
    /// Ids by number, oldest first.
    by_number: HashMap<String, Vec<u64>>,
    pending: Vec<Option<Pending>>,
    free: Vec<u32>,
    ready: mpsc::Sender<callbacks::Job>,
    pub stats: RestStats,
}

impl Rest {
    /// The state, and what the callers of callbacks read from.
    pub fn new(config: RestConfig, account: u16) -> (Self, mpsc::Receiver<callbacks::Job>) {
        let (ready, jobs) = mpsc::channel(READY_MAX);
        let rest = Self {
            key: hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, config.auth_token.as_bytes()),
            config,
            account,
            messages: HashMap::new(),
            by_number: HashMap::new(),
            pending: Vec::new(),
            free: Vec::new(),
            ready,
            stats: RestStats::default(),
        };
        (rest, jobs)
    }

    /// Forgets messages and counts. Callbacks under way are still made.
    pub fn reset(&mut self) {
        self.messages.clear();
        self.by_number.clear();
        self.stats = RestStats::default();
    }

    pub fn callbacks_pending(&self) -> usize {
        self.pending.len() - self.free.len()
    }
}

/// The id of a message as the API writes it.
fn sid(id: u64) -> String {
    format!("SM{id:032x}")
}

fn id_of(sid: &str) -> Option<u64> {
    u64::from_str_radix(sid.strip_prefix("SM").filter(|hex| hex.len() == 32)?, 16).ok()
}

/// Twilio's code for an undelivered message.
fn error_code(state: State, err: u16) -> Option<u32> {
    match (state, err) {
        (State::Undelivered, 6) => Some(30_005),
        (State::Undelivered, _) => Some(30_003),
        _ => None,
    }
}
