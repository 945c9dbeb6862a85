//! Keeps one bind up: connect, bind, serve, and again after a growing, jittered wait.
//!
//! A bind that is lost again and again is damped: at most so many connects a minute. Wrong credentials make the lane broken and are tried again rarely. BINDFAIL (0x0d) is what some carriers say for
//! those and others for a full house: it counts as credentials after [`BIND_FAILURES_MAX`] in a row.
use super::config::SmppTuning;
use super::pdu;
use super::pool::Phase;
use super::session::{Io, Session, SessionEnd};
use super::{Shared, status};
use bytes::BytesMut;
use rusmpp::CommandId;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::{Instant, sleep_until, timeout};

const BIND_FAILURES_MAX: u32 = 5;
/// Number of the bind; the session goes on from here.
const FIRST_SEQUENCE: u32 = 1;

#[derive(Debug, thiserror::Error)]
enum BindError {
    #[error("connect: {0}")]
    Connect(std::io::Error),
    #[error("tls: {0}")]
    Tls(std::io::Error),
    #[error("the carrier did not answer in time")]
    Timeout,
    #[error("the carrier closed the connection")]
    Closed,
    #[error("the carrier's answer is not smpp")]
    Protocol,
    #[error("the bind was refused with status {0:#010x}")]
    Refused(u32),
}

impl BindError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect_failed",
            Self::Tls(_) => "tls_failed",
            Self::Timeout => "bind_timeout",
            Self::Closed => "bind_closed",
            Self::Protocol => "bind_protocol",
            Self::Refused(_) => "bind_refused",
        }
    }
}

/// Runs until the connector leaves.
pub(crate) async fn keep_bound(shared: Arc<Shared>, slot: usize) {
    let mut leaving = shared.pool.watch();
    let mut attempts: u32 = 0;
    let mut bind_failures: u32 = 0;
    let mut storm = Storm::default();
    loop {
        shared.pool.trying(slot);
        storm.connects(Instant::now(), &shared.pool.account.tuning);
        let connected = tokio::select! {
            connected = connect(&shared) => connected,
            _ = leaving.wait_for(|view| view.phase != Phase::Run) => return,
        };
        let mut broken = None;
        match connected {
            Ok((io, inbuf)) => {
                tracing::info!(carrier = shared.pool.account.carrier, slot, "bound");
                bind_failures = 0;
                let up_since = Instant::now();
                let end = Session::run(shared.clone(), slot, io, inbuf, FIRST_SEQUENCE).await;
                shared.pool.meters.disconnected(end.reason());
                tracing::info!(
                    carrier = shared.pool.account.carrier,
                    slot,
                    reason = end.reason(),
                    "bind ended"
                );
                if end == SessionEnd::Unbound {
                    return;
                }
                if up_since.elapsed() >= shared.pool.account.tuning.stable_after {
                    attempts = 0;
                }
            }
            Err(error) => {
                shared.pool.meters.disconnected(error.reason());
                tracing::warn!(carrier = shared.pool.account.carrier, slot, %error, "bind failed");
                if let BindError::Refused(refused) = error {
                    bind_failures = if refused == status::BIND_FAILED { bind_failures + 1 } else { 0 };
                    let broke = status::is_credentials(refused) || bind_failures >= BIND_FAILURES_MAX;
                    broken = broke.then_some(refused);
                }
            }
        }
        let wait = if broken.is_some() {
            shared.pool.account.tuning.broken_retry
        } else {
            backoff(&shared, attempts)
        };
        attempts = attempts.saturating_add(1);
        let next_try = (Instant::now() + wait).max(storm.next_allowed(&shared.pool.account.tuning));
        shared.pool.waiting(slot, next_try, broken);
        tokio::select! {
            () = sleep_until(next_try) => {}
            _ = leaving.wait_for(|view| view.phase != Phase::Run) => return,
        }
    }
}

/// The last connects of one bind. A carrier that takes a bind and drops it soon after, again and again, would otherwise
/// be bound to at the pace of the shortest backoff.
#[derive(Default)]
struct Storm(VecDeque<Instant>);

impl Storm {
    fn connects(&mut self, now: Instant, tuning: &SmppTuning) {
        self.0.push_back(now);
        while self.0.len() > tuning.connects_max {
            self.0.pop_front();
        }
    }

    /// With the oldest of `connects_max` inside the window, the next one waits until it is not.
    fn next_allowed(&self, tuning: &SmppTuning) -> Instant {
        let full = self.0.len() >= tuning.connects_max;
        let oldest = self.0.front().filter(|_| full);
        oldest.map_or_else(Instant::now, |oldest| *oldest + tuning.connects_window)
    }
}

/// Doubles up to the limit; half of it is left to chance, so that nodes do not come back in step.
fn backoff(shared: &Shared, attempts: u32) -> Duration {
    let tuning = &shared.pool.account.tuning;
    let full = tuning.reconnect_base.saturating_mul(1 << attempts.min(20)).min(tuning.reconnect_max);
    full.mul_f64(rand::random_range(0.5..1.0))
}

type Bound = (Box<dyn Io>, BytesMut);

async fn connect(shared: &Shared) -> Result<Bound, BindError> {
    let account = &shared.pool.account;
    let connecting = timeout(account.tuning.connect_timeout, open(shared));
    let mut io = connecting.await.map_err(|_| BindError::Timeout)??;
    let inbuf =
        timeout(account.response_timeout, bind(shared, &mut *io)).await.map_err(|_| BindError::Timeout)??;
    Ok((io, inbuf))
}

async fn open(shared: &Shared) -> Result<Box<dyn Io>, BindError> {
    let tcp = dial(shared).await.map_err(BindError::Connect)?;
    let Some(tls) = &shared.tls else { return Ok(Box::new(tcp)) };
    let stream = tls.connector.connect(tls.server_name.clone(), tcp).await.map_err(BindError::Tls)?;
    Ok(Box::new(stream))
}

/// Connects to the first address that answers. The kernel's send buffer is kept small: what is in it counts as handed
/// over, what is still in ours can be proven unsent.
async fn dial(shared: &Shared) -> std::io::Result<TcpStream> {
    let account = &shared.pool.account;
    let mut failure = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for address in lookup_host(&account.address).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_send_buffer_size(account.tuning.send_buffer_octets)?;
        socket.set_nodelay(true)?;
        match socket.connect(address).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Binds as transceiver. Gives what was read beyond the answer.
async fn bind(shared: &Shared, io: &mut dyn Io) -> Result<BytesMut, BindError> {
    let account = &shared.pool.account;
    let version = account.contract.get().smpp_version;
    let wire = pdu::bind_transceiver(FIRST_SEQUENCE, &account.system_id, &account.password, version)
        .map_err(|_| BindError::Protocol)?;
    io.write_all(wire.octets()).await.map_err(|_| BindError::Closed)?;
    io.flush().await.map_err(|_| BindError::Closed)?;
    let mut inbuf = BytesMut::with_capacity(1024);
    loop {
        if let Some(frame) = pdu::next_frame(&mut inbuf).map_err(|_| BindError::Protocol)? {
            match (frame.header.command, frame.header.status) {
                (CommandId::BindTransceiverResp, status::OK) => return Ok(inbuf),
                (CommandId::BindTransceiverResp | CommandId::GenericNack, refused) => {
                    return Err(BindError::Refused(refused));
                }
                _ => return Err(BindError::Protocol),
            }
        }
        if io.read_buf(&mut inbuf).await.map_err(|_| BindError::Closed)? == 0 {
            return Err(BindError::Closed);
        }
    }
}
