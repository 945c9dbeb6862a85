//! Certificates for labs and tests: a CA per plane, and leaves that carry an identity.
//!
//! Invariants: keys are ECDSA P-256 and are written with mode 0600; every leaf has one URI SAN at most; a leaf lives
//! one year unless it is asked to be expired. Not for production: the CA's key lies beside the certificates.
use carillon_proto::identity::Identity;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use time::{Duration, OffsetDateTime};

/// Clocks of other machines may be behind ours by this much.
const SKEW: Duration = Duration::HOUR;
const LEAF_LIFE: Duration = Duration::days(365);
const CA_LIFE: Duration = Duration::days(10 * 365);

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error(transparent)]
    File(#[from] std::io::Error),
}

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    Server,
    Client,
    Both,
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// From an hour ago for a year.
    OneYear,
    /// From the day before yesterday until yesterday.
    Expired,
}

/// What a leaf certificate shall say. It always names `localhost` and 127.0.0.1 as well.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// The URI SAN; `None` makes a certificate without an identity.
    pub uri: Option<String>,
    pub usage: Usage,
    pub validity: Validity,
    /// Where it is reached besides loopback.
    pub address: Option<Ipv4Addr>,
}

impl Leaf {
    pub fn new(identity: &Identity, usage: Usage) -> Self {
        Self { uri: Some(identity.to_string()), usage, validity: Validity::OneYear, address: None }
    }

    /// The same, for a server with this address.
    pub fn reached_at(self, address: Ipv4Addr) -> Self {
        Self { address: Some(address), ..self }
    }

    /// The same, but its life has ended.
    pub fn expired(self) -> Self {
        Self { validity: Validity::Expired, ..self }
    }
}

/// A certificate and its key as PEM.
pub struct Issued {
    pub cert_pem: String,
    pub key_pem: String,
}

impl Issued {
    /// Writes `<stem>.pem` and `<stem>.key` (mode 0600).
    pub fn write(&self, dir: &Path, stem: &str) -> Result<(), PkiError> {
        fs_err::write(dir.join(format!("{stem}.pem")), &self.cert_pem)?;
        write_private(&dir.join(format!("{stem}.key")), self.key_pem.as_bytes())?;
        Ok(())
    }
}

/// A certificate authority.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    cert_pem: String,
}

impl Ca {
    /// A new one with a new key.
    pub fn new(name: &str) -> Result<Self, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let params = ca_params(name);
        let cert_pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), cert_pem })
    }

    /// One that [`Ca::write`] has stored. `name` must be the one it was made with: issuers are matched by name.
    pub fn load(name: &str, dir: &Path, stem: &str) -> Result<Self, PkiError> {
        let cert_pem = fs_err::read_to_string(dir.join(format!("{stem}.pem")))?;
        let key = KeyPair::from_pem(&fs_err::read_to_string(dir.join(format!("{stem}.key")))?)?;
        Ok(Self { issuer: Issuer::new(ca_params(name), key), cert_pem })
    }

    /// Writes `<stem>.pem` and `<stem>.key` (mode 0600).
    pub fn write(&self, dir: &Path, stem: &str) -> Result<(), PkiError> {
        let issued = Issued { cert_pem: self.cert_pem.clone(), key_pem: self.issuer.key().serialize_pem() };
        issued.write(dir, stem)
    }

    /// The certificate that others must trust.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// A new key and its certificate.
    pub fn issue(&self, leaf: &Leaf) -> Result<Issued, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        (params.not_before, params.not_after) = match leaf.validity {
            Validity::OneYear => (now - SKEW, now + LEAF_LIFE),
            Validity::Expired => (now - Duration::days(2), now - Duration::DAY),
        };
        params.distinguished_name = named(leaf.uri.as_deref().unwrap_or("no identity"));
        params.subject_alt_names = vec![
            SanType::DnsName(Ia5String::try_from("localhost")?),
            SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        ];
        if let Some(address) = leaf.address.filter(|a| *a != Ipv4Addr::LOCALHOST) {
            params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(address)));
        }
        if let Some(uri) = &leaf.uri {
            params.subject_alt_names.push(SanType::URI(Ia5String::try_from(uri.as_str())?));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if leaf.usage != Usage::Client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if leaf.usage != Usage::Server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { cert_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn ca_params(name: &str) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = (now - SKEW, now + CA_LIFE);
    params.distinguished_name = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Writes a file that only its owner can read.
pub fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut options = fs_err::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(content)
}
