//! TLS on every link: TLS 1.3 only, certificates on both sides, one crypto provider (aws-lc-rs).
//!
//! We terminate TLS ourselves rather than in tonic, so that the protocol version is pinned, the handshake has a time
//! limit, and the peer's [`Identity`] is worked out once per connection.
use crate::identity::{Identity, Role};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, server::TlsStream};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// What is read from a socket at once: rustls asks for 4 KiB at a time, and each time would be a system call.
const READ_BYTES: usize = 32 << 10;
/// Handshakes at a time on one listener; more wait in the kernel's backlog.
const HANDSHAKES_MAX: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {reason}")]
    File { path: String, reason: String },
    #[error("tls configuration: {0}")]
    Config(#[from] rustls::Error),
    #[error("client verifier: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error("not a server name: {0}")]
    ServerName(String),
}

/// Paths of PEM files: own chain, own key, the CA that the other side must come from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
}

impl TlsFiles {
    /// Reads the files and checks that they fit together, for `--check`.
    pub fn check(&self) -> Result<(), TlsError> {
        server_config(self)?;
        client_config(self)?;
        Ok(())
    }
}

/// Installs aws-lc-rs as the process-wide provider; call first in every `main` and test.
pub fn install_provider() {
    let _already_installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn file_error(path: &Path, reason: impl ToString) -> TlsError {
    TlsError::File { path: path.display().to_string(), reason: reason.to_string() }
}

/// The certificates of a PEM file.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let list: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(|e| file_error(path, e))?
        .collect::<Result<_, _>>()
        .map_err(|e| file_error(path, e))?;
    if list.is_empty() {
        return Err(file_error(path, "no certificate in it"));
    }
    Ok(list)
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| file_error(path, e))
}

/// TLS 1.3, client certificates required, ALPN h2.
pub fn server_config(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots(&files.ca)?)).build()?;
    let mut config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&files.cert)?, private_key(&files.key)?)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// TLS 1.3 with our certificate, ALPN h2.
pub fn client_config(files: &TlsFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_root_certificates(roots(&files.ca)?)
        .with_client_auth_cert(certificates(&files.cert)?, private_key(&files.key)?)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// What a handler learns about a connection: `request.extensions().get::<PeerInfo>()`.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// `None` when the certificate has no identity of ours.
    pub identity: Option<Arc<Identity>>,
}

/// A socket that is read in large pieces.
type Socket = BufReader<TcpStream>;

/// An accepted connection.
#[derive(Debug)]
pub struct TlsConnection {
    stream: TlsStream<Socket>,
    info: PeerInfo,
}

impl Connected for TlsConnection {
    type ConnectInfo = PeerInfo;
    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Accepts and handshakes; yields connections for `Server::serve_with_incoming`. Failed handshakes are counted and
/// dropped. Ends when the returned stream is dropped.
pub fn incoming(
    listener: TcpListener,
    config: Arc<ServerConfig>,
) -> tokio_stream::wrappers::ReceiverStream<std::io::Result<TlsConnection>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(HANDSHAKES_MAX);
    let acceptor = TlsAcceptor::from(config);
    let permits = Arc::new(tokio::sync::Semaphore::new(HANDSHAKES_MAX));
    tokio::spawn(async move {
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let Ok((tcp, _)) = accepted else {
                // Out of descriptors or the like: wait a little instead of spinning.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (acceptor, sender) = (acceptor.clone(), sender.clone());
            tokio::spawn(async move {
                let _permit = permit;
                if let Some(connection) = handshake(acceptor, tcp).await {
                    let _receiver_gone = sender.send(Ok(connection)).await;
                }
            });
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

async fn handshake(acceptor: TlsAcceptor, tcp: TcpStream) -> Option<TlsConnection> {
    let _best_effort = tcp.set_nodelay(true);
    let socket = Socket::with_capacity(READ_BYTES, tcp);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => {
            let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let identity = leaf.and_then(|leaf| Identity::of_certificate(leaf)).map(Arc::new);
            Some(TlsConnection { stream, info: PeerInfo { identity } })
        }
        Ok(Err(error)) => {
            metrics::counter!("carillon_tls_handshake_failures_total").increment(1);
            tracing::info!(reason = %error, "tls handshake failed");
            None
        }
        Err(_) => {
            metrics::counter!("carillon_tls_handshake_failures_total").increment(1);
            None
        }
    }
}

/// The certificate is good, but it is another server's.
#[derive(Debug, thiserror::Error)]
#[error("the server has another identity")]
pub struct OtherIdentity;

/// A lazily connecting, self-reconnecting channel to `address` (host:port). With `expect`, connections to a server with another identity
/// fail.
///
/// In TLS 1.3 a client is done before the server has looked at its certificate. A connection therefore counts only when the
/// server has spoken (HTTP/2 servers begin with their settings): a refused certificate is then always a failed connection,
/// UNAVAILABLE with the alert as its cause (`transport::Cause`), and never a call that broke off somewhere.
pub fn channel(address: &str, config: Arc<ClientConfig>, expect: Option<Role>) -> Result<Channel, TlsError> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|_| TlsError::ServerName(host))?;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| TlsError::ServerName(address.to_owned()))?
        .connect_timeout(Duration::from_secs(3))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20);
    let address = address.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let (address, name, config, expect) =
            (address.clone(), name.clone(), Arc::clone(&config), expect.clone());
        async move {
            let tcp = TcpStream::connect(&address).await?;
            tcp.set_nodelay(true)?;
            let socket = Socket::with_capacity(READ_BYTES, tcp);
            let mut stream = TlsConnector::from(config).connect(name, socket).await?;
            if let Some(expect) = expect {
                let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let found = leaf.and_then(|leaf| Identity::of_certificate(leaf)).map(|i| i.role);
                if found.as_ref() != Some(&expect) {
                    return Err(std::io::Error::other(OtherIdentity));
                }
            }
            if stream.fill_buf().await?.is_empty() {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// The identity behind a request, if the certificate had one.
pub fn identity<T>(request: &tonic::Request<T>) -> Option<Arc<Identity>> {
    request.extensions().get::<PeerInfo>()?.identity.clone()
}
