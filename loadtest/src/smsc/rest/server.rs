//! The listener of the HTTP side: connections, authentication, routes.
//!
//! Served with hyper and not with axum, because some faults are no answer at all: a connection that is closed, or that
//! stays silent.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, mpsc};

use super::callbacks::{self, CALLERS, Job};
use super::create::{Create, Reply};
use crate::smsc::Server;

const BODY_OCTETS_MAX: usize = 64 << 10;
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// A caller that waits for an answer that never comes is let go after this.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// Serves until the simulator stops.
pub async fn serve(server: Arc<Server>, listener: TcpListener, jobs: mpsc::Receiver<Job>) {
    let jobs = Arc::new(Mutex::new(jobs));
    for _ in 0..CALLERS {
        tokio::spawn(callbacks::call(server.clone(), jobs.clone()));
    }
    let room = Arc::new(Semaphore::new(server.config.connections_max));
    loop {
        let accepted = tokio::select! {
            () = server.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (Ok((socket, _)), Ok(permit)) = (accepted, room.clone().try_acquire_owned()) else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let server = server.clone();
        tokio::spawn(async move {
            let ended = tokio::select! {
                () = server.stop.cancelled() => Ok(()),
                ended = connection(&server, socket) => ended,
            };
            if let Err(error) = ended {
                tracing::debug!(kind = ?error.kind(), "connection ended with an error");
            }
            drop(permit);
        });
    }
}

async fn connection(server: &Arc<Server>, socket: TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let service = service_fn(|request| handle(server.clone(), request));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new());
    match &server.tls {
        None => http.serve_connection(TokioIo::new(socket), service).await.map_err(io::Error::other),
        Some(acceptor) => {
            let accepted = tokio::time::timeout(TLS_TIMEOUT, acceptor.accept(socket)).await;
            let stream = accepted.map_err(io::Error::other)??;
            http.serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
        }
    }
}

type Answer = Result<Response<Full<Bytes>>, io::Error>;

async fn handle(server: Arc<Server>, request: Request<Incoming>) -> Answer {
    let authorized = is_authorized(&server, &request);
    let (parts, body) = request.into_parts();
    let Ok(body) = Limited::new(body, BODY_OCTETS_MAX).collect().await else {
        return write(Reply::problem(413, 20_413, 0)).await;
    };
    let body = body.to_bytes();
    // The arrival time of the whole request.
    let now_us = server.now_us();
    let reply = {
        let mut center = server.center.lock();
        let reply = if authorized {
            route(&mut center, &parts.method, &parts.uri, &body, now_us)
        } else {
            if let Some(rest) = &mut center.rest {
                rest.stats.unauthorized += 1;
            }
            Reply::problem(401, 20_003, 0)
        };
        if center.wake_sooner {
            server.tick_sooner.notify_one();
        }
        reply
    };
    write(reply).await
}

fn is_authorized(server: &Server, request: &Request<Incoming>) -> bool {
    let Some(rest) = &server.config.rest else { return false };
    let wanted = format!("{}:{}", rest.account_sid, rest.auth_token);
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given =
        given.and_then(|value| value.strip_prefix("Basic ")).and_then(|b64| STANDARD.decode(b64).ok());
    given.is_some_and(|given| given == wanted.as_bytes())
}

fn route(
    center: &mut crate::smsc::center::Center,
    method: &Method,
    uri: &http::Uri,
    body: &[u8],
    now_us: u64,
) -> Reply {
    let Some(rest) = &mut center.rest else { return Reply::HangUp };
    let base = format!("/2010-04-01/Accounts/{}/Messages", rest.config.account_sid);
    let path = uri.path();
    let pairs = |octets: &[u8]| form_urlencoded::parse(octets).into_owned().collect::<HashMap<_, _>>();
    let query = pairs(uri.query().unwrap_or_default().as_bytes());
    let one = path.strip_prefix(&format!("{base}/")).and_then(|rest| rest.strip_suffix(".json"));
    match (method, one) {
        (&Method::POST, None) if path == format!("{base}.json") => {
            let mut form = pairs(body);
            let mut take = |name: &str| form.remove(name).unwrap_or_default();
            let from = [take("From"), take("MessagingServiceSid")].concat();
            let callback = take("StatusCallback");
            let callback = callback.split('#').next().filter(|url| !url.is_empty()).map(str::to_owned);
            center.create(Create { to: take("To"), from, body: take("Body"), callback }, now_us)
        }
        (&Method::GET, None) if path == format!("{base}.json") => center.list(path, &query, now_us),
        (&Method::GET, Some(sid)) => center.read(sid, now_us),
        (&Method::POST, Some(sid)) => center.redact(sid, &pairs(body), now_us),
        _ => {
            rest.stats.malformed += 1;
            Reply::problem(404, 20_404, 0)
        }
    }
}

async fn write(reply: Reply) -> Answer {
    match reply {
        Reply::Answer { status, retry_after_s, body, after } => {
            if !after.is_zero() {
                tokio::time::sleep(after).await;
            }
            let status = StatusCode::from_u16(status).map_err(io::Error::other)?;
            let mut response =
                Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
            if let Some(seconds) = retry_after_s {
                response = response.header(header::RETRY_AFTER, seconds);
            }
            response.body(Full::new(Bytes::from(body))).map_err(io::Error::other)
        }
        Reply::Silence => {
            // It ends when the caller goes away.
            tokio::time::sleep(SILENCE_MAX).await;
            Err(io::Error::from(io::ErrorKind::TimedOut))
        }
        Reply::HangUp => Err(io::Error::from(io::ErrorKind::ConnectionAborted)),
    }
}
