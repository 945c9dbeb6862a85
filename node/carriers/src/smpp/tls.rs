//! TLS to a carrier: rustls with aws-lc, the carrier's CA only, TLS 1.2 allowed because SMSCs are old.
use carillon_proto::internal::SmppSettings;
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
    /// `None` when the account uses plain TCP.
    pub fn of(settings: &SmppSettings, default_ca_pem: Option<&str>) -> Result<Option<Self>, TlsError> {
        if !settings.tls {
            return Ok(None);
        }
        let own = Some(settings.tls_ca_pem.as_str()).filter(|pem| !pem.is_empty());
        let pem = own.or(default_ca_pem).ok_or(TlsError::NoCa)?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            roots.add(certificate.map_err(|_| TlsError::BadCa)?).map_err(|_| TlsError::BadCa)?;
        }
        if roots.is_empty() {
            return Err(TlsError::BadCa);
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_| TlsError::Versions)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let host = settings.address.rsplit_once(':').map_or(settings.address.as_str(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = if settings.tls_server_name.is_empty() { host } else { &settings.tls_server_name };
        let server_name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::BadServerName)?;
        Ok(Some(Self { connector: TlsConnector::from(Arc::new(config)), server_name }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(tls: bool, name: &str) -> SmppSettings {
        SmppSettings { tls, address: "[::1]:2775".into(), tls_server_name: name.into(), ..Default::default() }
    }

    #[test]
    fn plain_needs_nothing_and_tls_needs_a_ca() {
        assert!(Tls::of(&settings(false, ""), None).unwrap().is_none());
        assert_eq!(Tls::of(&settings(true, ""), None).err(), Some(TlsError::NoCa));
        assert_eq!(Tls::of(&settings(true, ""), Some("no pem")).err(), Some(TlsError::BadCa));
    }

    #[test]
    fn the_name_is_taken_from_the_settings_or_the_address() {
        let key = rcgen::generate_simple_self_signed(["smsc.example".to_owned()]).unwrap();
        let pem = key.cert.pem();
        let name = |given| {
            let tls = Tls::of(&settings(true, given), Some(&pem)).map(Option::unwrap);
            tls.map(|tls| tls.server_name.to_str().into_owned())
        };
        assert_eq!(name("smsc.example"), Ok("smsc.example".into()));
        assert_eq!(name(""), Ok("::1".into()));
        assert_eq!(name("not a name"), Err(TlsError::BadServerName));
    }
}
