//! Who calls: the tenant in the client certificate, and how long the caller waits.
//!
//! A request never names its tenant. Certificates of nodes, routers and operators come from other CAs and fail in the
//! handshake already; the role is checked again here, so that a CA used for two planes by mistake opens nothing.
use crate::deadline::Deadline;
use carillon_proto::errors;
use carillon_proto::identity::{Identity, Role};
use carillon_proto::public::ErrorReason;
use carillon_proto::tls;
use std::sync::Arc;
use tonic::{Request, Status};

/// An authenticated caller.
#[derive(Debug, Clone)]
pub struct Caller {
    identity: Arc<Identity>,
    /// `None` when the call carries no deadline.
    pub deadline: Option<Deadline>,
}

impl Caller {
    pub fn tenant(&self) -> &str {
        match &self.identity.role {
            Role::Tenant(name) => name,
            _ => unreachable!("authorize makes callers from tenants only"),
        }
    }

    /// The deadline that every call but the long-lived ones must carry.
    pub fn required_deadline(&self) -> Result<Deadline, Status> {
        self.deadline
            .ok_or_else(|| errors::status(ErrorReason::DeadlineRequired, "the call carries no deadline"))
    }
}

/// The tenant of `cluster_id` behind a request.
pub fn authorize<T>(cluster_id: &str, request: &Request<T>) -> Result<Caller, Status> {
    let identity = tls::identity(request).ok_or_else(|| refuse("the certificate names no identity"))?;
    if identity.cluster != cluster_id {
        return Err(refuse("the certificate is for another cluster"));
    }
    if !matches!(identity.role, Role::Tenant(_)) {
        return Err(refuse("the certificate names no tenant"));
    }
    Ok(Caller { identity, deadline: Deadline::of_metadata(request.metadata()) })
}

fn refuse(what: &str) -> Status {
    errors::status(ErrorReason::WrongIdentity, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::tls::PeerInfo;
    use tonic::Code;

    fn request(uri: &str, timeout: Option<&str>) -> Request<()> {
        let mut request = Request::new(());
        let identity = Identity::parse(uri).map(Arc::new);
        request.extensions_mut().insert(PeerInfo { identity });
        if let Some(timeout) = timeout {
            request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        }
        request
    }

    #[test]
    fn only_tenants_of_this_cluster_pass() {
        let caller = authorize("lab", &request("spiffe://lab/tenant/lakeside", Some("5S"))).unwrap();
        assert_eq!(caller.tenant(), "lakeside");
        assert!(caller.required_deadline().is_ok());
        for uri in [
            "spiffe://other/tenant/lakeside",
            "spiffe://lab/node/1",
            "spiffe://lab/router/r1",
            "spiffe://lab/operator/ann",
            "nothing",
        ] {
            let refused = authorize("lab", &request(uri, Some("5S"))).unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "{uri}");
            assert_eq!(errors::reason_of(&refused), Some(ErrorReason::WrongIdentity), "{uri}");
        }
        assert!(authorize("lab", &Request::new(())).is_err());
    }

    #[test]
    fn a_missing_or_unreadable_deadline_is_refused() {
        for timeout in [None, Some("soon")] {
            let caller = authorize("lab", &request("spiffe://lab/tenant/a", timeout)).unwrap();
            let refused = caller.required_deadline().unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert_eq!(errors::reason_of(&refused), Some(ErrorReason::DeadlineRequired));
        }
    }
}
