//! Where the carrier is, and one HTTP/1.1 connection to it.
use super::account::{TwilioConfigError, TwilioTuning};
use super::flight::Payload;
use crate::tls::Tls;
use http::Uri;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::io;
use std::net::IpAddr;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;

/// Headers of an answer, at most.
const HEADERS_MAX: usize = 64;
/// Octets of the head of an answer, at most.
const BUFFER_OCTETS_MAX: usize = 64 * 1024;

/// The handle of one connection: one request at a time.
pub(crate) type Requests = http1::SendRequest<Payload>;

/// Scheme, host and port of the carrier's API.
pub(crate) struct Origin {
    /// host:port to connect to.
    address: String,
    /// The value of the `Host` header.
    pub authority: String,
    tls: Option<Tls>,
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Origin {
    /// `https`, or `http` to this machine.
    pub fn is_allowed(url: &str) -> bool {
        let Ok(uri) = url.parse::<Uri>() else { return false };
        match (uri.scheme_str(), uri.host()) {
            (Some("https"), Some(host)) => !host.is_empty(),
            (Some("http"), Some(host)) => is_loopback(host),
            _ => false,
        }
    }

    pub fn parse(url: &str, ca_pem: Option<&str>) -> Result<Self, TwilioConfigError> {
        let bad = TwilioConfigError::BaseUrl;
        let uri: Uri = url.parse().map_err(|_| bad.clone())?;
        let pathless = matches!(uri.path(), "" | "/") && uri.query().is_none();
        let Some(authority) = uri.authority().filter(|_| pathless && Self::is_allowed(url)) else {
            return Err(bad);
        };
        let secure = uri.scheme_str() == Some("https");
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let host = authority.host();
        let tls = match ca_pem {
            _ if !secure => None,
            Some(pem) => Some(Tls::to(host, pem)?),
            None => Some(Tls::to_public(host)?),
        };
        Ok(Self { address: format!("{host}:{port}"), authority: authority.as_str().to_owned(), tls })
    }

    /// Connects, with TLS where the URL says so. Nothing of a message is sent.
    pub async fn connect(&self, tuning: &TwilioTuning) -> io::Result<Requests> {
        timeout(tuning.connect_timeout, self.open(tuning)).await.map_err(io::Error::other)?
    }

    async fn open(&self, tuning: &TwilioTuning) -> io::Result<Requests> {
        let tcp = self.dial(tuning).await?;
        let mut builder = http1::Builder::new();
        builder.max_headers(HEADERS_MAX).max_buf_size(BUFFER_OCTETS_MAX);
        let Some(tls) = &self.tls else {
            let (requests, connection) =
                builder.handshake(TokioIo::new(tcp)).await.map_err(io::Error::other)?;
            // It ends when its handle is dropped; what went wrong is told to the request.
            tokio::spawn(async move { drop(connection.await) });
            return Ok(requests);
        };
        let stream = tls.connector.connect(tls.server_name.clone(), tcp).await?;
        let (requests, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(requests)
    }

    async fn dial(&self, tuning: &TwilioTuning) -> io::Result<TcpStream> {
        let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in lookup_host(&self.address).await? {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_send_buffer_size(tuning.send_buffer_octets)?;
            socket.set_nodelay(true)?;
            match socket.connect(address).await {
                Ok(tcp) => return Ok(tcp),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}
