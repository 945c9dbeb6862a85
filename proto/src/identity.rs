//! Who is at the other end of a TLS connection: the URI SAN of its certificate.
//!
//! `spiffe://<cluster>/node/<id>`, `/router/<name>`, `/tenant/<name>`, `/operator/<name>`. Nodes and routers are issued by the
//! peers' CA, tenants by the clients' CA, operators by the operators' CA; a listener trusts one CA only, and each
//! service also checks the role, so that no certificate works on another plane.
use std::fmt;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    pub cluster: String,
    pub role: Role,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Role {
    Node(u64),
    Router(String),
    Tenant(String),
    Operator(String),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cluster = &self.cluster;
        match &self.role {
            Role::Node(id) => write!(f, "spiffe://{cluster}/node/{id}"),
            Role::Router(name) => write!(f, "spiffe://{cluster}/router/{name}"),
            Role::Tenant(name) => write!(f, "spiffe://{cluster}/tenant/{name}"),
            Role::Operator(name) => write!(f, "spiffe://{cluster}/operator/{name}"),
        }
    }
}

impl Identity {
    /// Reads the text form.
    pub fn parse(uri: &str) -> Option<Self> {
        let rest = uri.strip_prefix("spiffe://")?;
        let mut parts = rest.split('/');
        let (cluster, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || cluster.is_empty() || !is_name(name) {
            return None;
        }
        let role = match kind {
            "node" => Role::Node(name.parse().ok().filter(|id| *id > 0)?),
            "router" => Role::Router(name.to_owned()),
            "tenant" => Role::Tenant(name.to_owned()),
            "operator" => Role::Operator(name.to_owned()),
            _ => return None,
        };
        Some(Self { cluster: cluster.to_owned(), role })
    }

    /// From a DER certificate; `None` unless it has exactly one URI SAN of our form.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let san = certificate.subject_alternative_name().ok()??;
        let mut found = san.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let uri = found.next()?;
        if found.next().is_some() {
            return None;
        }
        Self::parse(uri)
    }
}

/// Names of tenants, practices, routers and operators: 1 to 63 of `[a-z0-9-]`.
pub fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Seconds since the epoch at which a DER certificate expires.
pub fn expires_at_s(der: &[u8]) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_bad_forms_are_refused() {
        for uri in ["spiffe://lab/node/3", "spiffe://lab/router/r1", "spiffe://lab/tenant/lakeside"] {
            assert_eq!(Identity::parse(uri).unwrap().to_string(), uri);
        }
        for uri in [
            "spiffe://lab/node/0",
            "spiffe://lab/node/x",
            "spiffe://lab/tenant/",
            "spiffe://lab/tenant/A",
            "spiffe://lab/tenant/a/b",
            "spiffe:///tenant/a",
            "https://lab/tenant/a",
            "spiffe://lab/boss/a",
        ] {
            assert_eq!(Identity::parse(uri), None, "{uri}");
        }
    }
}
