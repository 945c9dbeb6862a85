//! The listener of carriers' callbacks: `POST /carriers/<name>`, over TLS unless it is on loopback.
//!
//! It is on the node and not on the router because callbacks are signed with the account's secret, which only nodes have,
//! and because a callback may be answered with yes only after its receipt is recorded, which a node knows without another hop.
//! Any node takes any callback: the receipt router finds the leader.
//!
//! Bounds: `connections_max` connections, [`BODY_OCTETS_MAX`] octets a body, [`HEAD_TIMEOUT`] for a head and
//! [`CALL_TIMEOUT`] for a whole call. Nothing of a call is logged: query and body may name a patient.
use crate::config::Callbacks;
use crate::delivery::LaneTable;
use crate::engine::NodeHandle;
use bytes::Bytes;
use carillon_carriers::{Callback, CallbackAnswer, Clear};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

/// A little more than connectors read, so that they can say that it is too much.
const BODY_OCTETS_MAX: usize = 32 * 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
const SIGNATURE: &str = "x-twilio-signature";
const PATH: &str = "/carriers/";

/// What the listener needs. Cheap to clone.
#[derive(Clone)]
pub struct CallbackApi {
    pub handle: NodeHandle,
    pub lanes: LaneTable,
}

/// A listener that is bound, and not served yet.
pub struct Bound {
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    connections_max: usize,
}

/// Binds what is configured.
pub async fn bind(callbacks: Option<&Callbacks>) -> anyhow::Result<Option<Bound>> {
    let Some(callbacks) = callbacks else { return Ok(None) };
    Ok(Some(Bound {
        listener: carillon_proto::telemetry::bind("callbacks", callbacks.listen).await?,
        acceptor: acceptor(callbacks)?,
        connections_max: callbacks.connections_max,
    }))
}

/// The TLS side of the configuration.
fn acceptor(callbacks: &Callbacks) -> anyhow::Result<Option<TlsAcceptor>> {
    let (Some(cert), Some(key)) = (&callbacks.cert, &callbacks.key) else { return Ok(None) };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| anyhow::anyhow!("{}: {e}", cert.display()))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| anyhow::anyhow!("{}: {e}", key.display()))?;
    // Carriers call, and not all of them speak TLS 1.3.
    let versions = &[&rustls::version::TLS13, &rustls::version::TLS12];
    let config = ServerConfig::builder_with_protocol_versions(versions);
    let mut config = config.with_no_client_auth().with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// Serves until the node closes. Calls that are under way then end with their connection: the carrier repeats them.
pub async fn serve(bound: Bound, api: CallbackApi, mut closed: watch::Receiver<bool>) {
    let Bound { listener, acceptor, connections_max } = bound;
    let room = Arc::new(Semaphore::new(connections_max));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = closed.wait_for(|closed| *closed) => return,
        };
        let Ok((tcp, _)) = accepted else {
            // Out of descriptors or the like: wait a little instead of spinning.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (api, acceptor, mut closed) = (api.clone(), acceptor.clone(), closed.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = connection(api, acceptor, tcp) => {}
                _ = closed.wait_for(|closed| *closed) => {}
            }
            drop(permit);
        });
    }
}

async fn connection(api: CallbackApi, acceptor: Option<TlsAcceptor>, tcp: TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let service = service_fn(|request| answer(api.clone(), request));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_headers(64).max_buf_size(32 * 1024);
    let Some(acceptor) = acceptor else {
        return http.serve_connection(TokioIo::new(tcp), service).await.map_err(io::Error::other);
    };
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await;
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        _ => {
            metrics::counter!("carillon_tls_handshake_failures_total").increment(1);
            return Ok(());
        }
    };
    http.serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
}

async fn answer(api: CallbackApi, request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let status = tokio::time::timeout(CALL_TIMEOUT, take(&api, request)).await;
    let status = status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let mut response = Response::new(Empty::new());
    *response.status_mut() = status;
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, http::HeaderValue::from_static("5"));
    }
    Ok(response)
}

async fn take(api: &CallbackApi, request: Request<Incoming>) -> StatusCode {
    if request.method() != Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED;
    }
    let view = api.handle.meta();
    let name = request.uri().path().strip_prefix(PATH).unwrap_or_default();
    let lane = view.carrier(name).and_then(|record| api.lanes.get(record.carrier_no));
    let Some(lane) = lane else {
        metrics::counter!("carillon_callbacks_without_carrier_total").increment(1);
        return StatusCode::NOT_FOUND;
    };
    let query = request.uri().query().unwrap_or_default().to_owned();
    let signature = request.headers().get(SIGNATURE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let Ok(body) = Limited::new(request.into_body(), BODY_OCTETS_MAX).collect().await else {
        return StatusCode::PAYLOAD_TOO_LARGE;
    };
    let body = Clear::new(body.to_bytes().to_vec());
    match lane.connector.callback(Callback { query, signature, body }).await {
        CallbackAnswer::Done => StatusCode::NO_CONTENT,
        CallbackAnswer::TryAgain => StatusCode::SERVICE_UNAVAILABLE,
        CallbackAnswer::BadSignature => StatusCode::FORBIDDEN,
        CallbackAnswer::Malformed => StatusCode::BAD_REQUEST,
        CallbackAnswer::NotExpected => StatusCode::NOT_FOUND,
    }
}
