//! TLS of the simulated carrier: one certificate, no client certificates (as
//! carriers do it), rustls with aws-lc.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::SmscError;

/// Reads a certificate chain and its key from PEM files.
pub fn server_config(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, SmscError> {
    let bad = |what: &str| SmscError::Config(format!("tls {what} does not parse"));
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|_| bad("certificate"))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|_| bad("key"))?;
    server_config_of(chain, key)
}

/// The same from memory.
pub fn server_config_of(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, SmscError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| SmscError::Config(format!("tls: {error}")))?;
    Ok(Arc::new(config))
}
