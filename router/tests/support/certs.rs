//! Certificate authorities and certificates for tests, written as PEM files.
use carillon_proto::tls::TlsFiles;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType, date_time_ymd,
};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A CA that signs certificates of one plane.
pub struct Authority {
    directory: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
    ca_file: PathBuf,
    serial: AtomicU64,
}

impl Authority {
    pub fn new(directory: &Path, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let ca_file = directory.join(format!("{name}-ca.pem"));
        std::fs::write(&ca_file, issuer.pem()).unwrap();
        let directory = directory.join(name);
        std::fs::create_dir_all(&directory).unwrap();
        Self { directory, issuer, ca_file, serial: AtomicU64::new(0) }
    }

    pub fn ca_file(&self) -> PathBuf {
        self.ca_file.clone()
    }

    /// A certificate for `uri` on 127.0.0.1. `trust` is the CA that its holder believes.
    pub fn issue(&self, uri: &str, trust: &Self) -> TlsFiles {
        self.issue_until(uri, trust, 2100)
    }

    /// One that expired at the beginning of `year`, or will.
    pub fn issue_until(&self, uri: &str, trust: &Self, year: i32) -> TlsFiles {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![
            SanType::URI(uri.to_owned().try_into().unwrap()),
            SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        ];
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str, content: String| {
            let path = self.directory.join(format!("{serial}-{kind}.pem"));
            std::fs::write(&path, content).unwrap();
            path
        };
        TlsFiles {
            cert: file("cert", certificate.pem()),
            key: file("key", key.serialize_pem()),
            ca: trust.ca_file(),
        }
    }
}
