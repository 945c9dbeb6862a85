//! Status callbacks: due, signed, sent, repeated.
//!
//! A callback that is not answered with 2xx is repeated as a receipt is: after `retry_delay_ms`, `attempts_max` times.
//! Bounds: [`CALLERS`] connections, one callback at a time on each.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};

use super::{Pending, error_code, sid};
use crate::smsc::center::{Center, Event};
use crate::smsc::decide::State;
use crate::smsc::journal::Line;
use crate::smsc::{Server, SmscError};

/// Callbacks under way at most.
pub const CALLERS: usize = 8;
/// When there is no room for a callback it comes again after this.
const ROOM_PAUSE_US: u64 = 50_000;
const ANSWER_OCTETS_MAX: usize = 64 << 10;

/// A callback that is to be made now.
pub struct Job {
    slot: u32,
    url: String,
    body: String,
    signature: String,
}

/// Trusts the CA in this PEM file, for callbacks to https URLs.
pub fn client_config(ca: &std::path::Path) -> Result<Arc<rustls::ClientConfig>, SmscError> {
    use rustls_pki_types::pem::PemObject as _;
    let bad = || SmscError::Config("callback ca does not parse".to_owned());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls_pki_types::CertificateDer::pem_file_iter(ca).map_err(|_| bad())? {
        roots.add(certificate.map_err(|_| bad())?).map_err(|_| bad())?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| bad())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn word(state: State) -> &'static str {
    match state {
        State::Enroute => "sent",
        State::Delivered => "delivered",
        State::Undelivered => "undelivered",
    }
}

impl Center {
    /// Plans one callback.
    pub fn add_callback(&mut self, id: u64, url: &str, state: State, err: u16, at_us: u64) {
        let Some(rest) = &mut self.rest else { return };
        let pending = Pending { id, url: url.to_owned(), state, err, attempts: 0 };
        let slot = match rest.free.pop() {
            Some(slot) => {
                rest.pending[slot as usize] = Some(pending);
                slot
            }
            None => {
                rest.pending.push(Some(pending));
                (rest.pending.len() - 1) as u32
            }
        };
        self.counters.receipts_planned += 1;
        self.schedule(at_us, Event::Callback { slot });
    }

    /// The time of a callback has come.
    pub fn callback_due(&mut self, slot: u32, now_us: u64) {
        let Some(rest) = &mut self.rest else { return };
        let account_sid = rest.config.account_sid.clone();
        let Some(Some(pending)) = rest.pending.get_mut(slot as usize) else { return };
        let (sid, state, id, attempt) = (sid(pending.id), pending.state, pending.id, pending.attempts + 1);
        let mut fields = vec![
            ("MessageSid".to_owned(), sid.clone()),
            ("SmsSid".to_owned(), sid),
            ("MessageStatus".to_owned(), word(state).to_owned()),
            ("SmsStatus".to_owned(), word(state).to_owned()),
            ("AccountSid".to_owned(), account_sid),
            ("ApiVersion".to_owned(), "2010-04-01".to_owned()),
        ];
        if let Some(code) = error_code(state, pending.err) {
            fields.push(("ErrorCode".to_owned(), code.to_string()));
        }
        if let Some(message) = rest.messages.get(&pending.id) {
            fields.push(("To".to_owned(), message.to.clone()));
            fields.push(("From".to_owned(), message.from.clone()));
        }
        fields.sort_unstable();
        let text = fields.iter().fold(pending.url.clone(), |text, (name, value)| text + name + value);
        let signature = STANDARD.encode(hmac::sign(&rest.key, text.as_bytes()).as_ref());
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(&fields).finish();
        let job = Job { slot, url: pending.url.clone(), body, signature };
        if rest.ready.try_send(job).is_err() {
            self.schedule(now_us + ROOM_PAUSE_US, Event::Callback { slot });
            return;
        }
        pending.attempts = attempt;
        self.counters.receipts_sent += 1;
        self.counters.receipts_sent_again += u64::from(attempt > 1);
        let wall_us = self.wall_us(now_us);
        self.seconds.now(wall_us).receipts_sent += 1;
        if let Some(record) = self.truth.of_id(id) {
            record.receipts_sent = record.receipts_sent.saturating_add(1);
            record.state = Some(state);
        }
        if let Some(index) = self.truth.index_of(id) {
            let state = state.name().to_owned();
            self.write_line(|at_us| Line::Receipt { index, at_us, bind: 0, state, attempt }, now_us);
        }
    }

    /// The answer to a callback: its HTTP status, or none.
    fn callback_answered(&mut self, slot: u32, status: Option<u16>, now_us: u64) {
        let Some(rest) = &mut self.rest else { return };
        let Some(place) = rest.pending.get_mut(slot as usize) else { return };
        let Some(pending) = place else { return };
        if status == Some(403) {
            rest.stats.signatures_refused += 1;
        }
        if status.is_some_and(|status| (200..300).contains(&status)) {
            let id = pending.id;
            *place = None;
            rest.free.push(slot);
            self.counters.receipts_acked += 1;
            let wall_us = self.wall_us(now_us);
            self.seconds.now(wall_us).receipts_acked += 1;
            self.acknowledged(id, 0, now_us);
            return;
        }
        match status {
            Some(_) => self.counters.receipts_refused += 1,
            None => self.counters.receipts_timed_out += 1,
        }
        if pending.attempts >= self.profile.receipts.attempts_max {
            *place = None;
            rest.free.push(slot);
            self.counters.receipts_given_up += 1;
            return;
        }
        let delay_us = self.profile.receipts.retry_delay_ms * 1000;
        self.schedule(now_us + delay_us.max(1_000), Event::Callback { slot });
    }
}

/// Where a connection goes to.
#[derive(Clone, PartialEq, Eq)]
struct Target {
    secure: bool,
    authority: String,
}

type Connection = (Target, SendRequest<Full<Bytes>>);

/// Makes callbacks until the simulator stops.
pub async fn call(server: Arc<Server>, jobs: Arc<Mutex<mpsc::Receiver<Job>>>) {
    let mut kept: Option<Connection> = None;
    loop {
        let job = tokio::select! {
            () = server.stop.cancelled() => return,
            job = async { jobs.lock().await.recv().await } => job,
        };
        let Some(job) = job else { return };
        let limit = Duration::from_millis(server.center.lock().profile.receipts.ack_timeout_ms);
        let slot = job.slot;
        let made = tokio::time::timeout(limit, make(&server, &mut kept, job)).await;
        let status = match made {
            Ok(Ok(status)) => Some(status),
            _ => {
                kept = None;
                None
            }
        };
        let now_us = server.now_us();
        let mut center = server.center.lock();
        center.callback_answered(slot, status, now_us);
        if center.wake_sooner {
            server.tick_sooner.notify_one();
        }
    }
}

async fn make(server: &Server, kept: &mut Option<Connection>, job: Job) -> io::Result<u16> {
    let uri: Uri = job.url.parse().map_err(io::Error::other)?;
    let authority = uri.authority().ok_or_else(|| io::Error::other("no host"))?.as_str().to_owned();
    let target = Target { secure: uri.scheme_str() == Some("https"), authority };
    let usable = kept.as_mut().is_some_and(|(to, sender)| *to == target && sender.is_ready());
    if !usable {
        *kept = Some((target.clone(), connect(server, &target).await?));
    }
    let Some((_, sender)) = kept else { return Err(io::Error::other("no connection")) };
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let request = Request::post(path)
        .header(header::HOST, target.authority)
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8")
        .header("X-Twilio-Signature", job.signature)
        .body(Full::new(Bytes::from(job.body)))
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status().as_u16();
    Limited::new(response.into_body(), ANSWER_OCTETS_MAX).collect().await.map_err(io::Error::other)?;
    Ok(status)
}

async fn connect(server: &Server, target: &Target) -> io::Result<SendRequest<Full<Bytes>>> {
    let standard = if target.secure { 443 } else { 80 };
    let uri: Uri = format!("http://{}", target.authority).parse().map_err(io::Error::other)?;
    let host = uri.host().unwrap_or_default().to_owned();
    let tcp = TcpStream::connect((host.trim_matches(['[', ']']), uri.port_u16().unwrap_or(standard))).await?;
    tcp.set_nodelay(true)?;
    if !target.secure {
        let (sender, connection) = http1::handshake(TokioIo::new(tcp)).await.map_err(io::Error::other)?;
        tokio::spawn(async move { drop(connection.await) });
        return Ok(sender);
    }
    let config = server.config.rest.as_ref().and_then(|rest| rest.callback_tls.clone());
    let config = config.ok_or_else(|| io::Error::other("no ca for callbacks"))?;
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
