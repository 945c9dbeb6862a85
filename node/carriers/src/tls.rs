//! TLS to a carrier: rustls with aws-lc, TLS 1.2 allowed because carriers are old. Trusted is the CA of the account, else the
//! node's one for carriers, else (public APIs only) the certificates of the system.
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use tokio_rustls::TlsConnector;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    #[error("no certificate authority is configured")]
    NoCa,
    #[error("the certificate authority file is not a list of pem certificates")]
    BadCa,
    #[error("the server name is not a host name or address")]
    BadServerName,
    #[error("the protocol versions cannot be set up")]
    Versions,
}

/// A connector and the name that the carrier's certificate must have.
#[derive(Clone)]
pub(crate) struct Tls {
    pub connector: TlsConnector,
    pub server_name: ServerName<'static>,
}

impl Tls {
    /// `pem`: the CAs to trust. `host`: what the certificate must name; a host, host:port or [v6]:port.
    pub fn to(host: &str, pem: &str) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            roots.add(certificate.map_err(|_| TlsError::BadCa)?).map_err(|_| TlsError::BadCa)?;
        }
        if roots.is_empty() {
            return Err(TlsError::BadCa);
        }
        Self::with_roots(host, roots)
    }

    /// Trusts what the system trusts. Certificates of the system that cannot be read are left out.
    pub fn to_public(host: &str) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(TlsError::NoCa);
        }
        Self::with_roots(host, roots)
    }

    fn with_roots(host: &str, roots: RootCertStore) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_| TlsError::Versions)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let port = |(_, port): &(&str, &str)| port.bytes().all(|b| b.is_ascii_digit());
        let host = host.rsplit_once(':').filter(port).map_or(host, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let server_name = ServerName::try_from(host.to_owned()).map_err(|_| TlsError::BadServerName)?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), server_name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_that_of_the_host_and_the_ca_must_be_one() {
        let pem = rcgen::generate_simple_self_signed(["smsc.example".to_owned()]).unwrap().cert.pem();
        let name = |host| Tls::to(host, &pem).map(|tls| tls.server_name.to_str().into_owned());
        assert_eq!(name("smsc.example"), Ok("smsc.example".into()));
        assert_eq!(name("smsc.example:2775"), Ok("smsc.example".into()));
        assert_eq!(name("[::1]:2775"), Ok("::1".into()));
        assert_eq!(name("not a name"), Err(TlsError::BadServerName));
        assert_eq!(Tls::to("smsc.example", "no pem").err(), Some(TlsError::BadCa));
    }
}
