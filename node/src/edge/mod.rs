//! The edge: what comes into a node over gRPC. Handlers hold a [`NodeHandle`](crate::engine::NodeHandle) and the keyring, never a database.
//!
//! Planes: [`peer`] (other nodes), [`node_api`] (routers), [`admin`] (operators). Each checks the role in the caller's
//! certificate before anything else.
pub mod admin;
pub mod cancel;
pub mod events;
pub mod ingest;
pub mod node_api;
pub mod peer;
pub mod query;
pub mod view;

use crate::engine::ProposeError;
use carillon_proto::errors;
use carillon_proto::identity::Role;
use carillon_proto::public::ErrorReason;
use carillon_proto::tls;
use tonic::Status;

/// The caller's role, if its certificate belongs to this cluster and the role passes the check.
pub(crate) fn authorize<T>(
    request: &tonic::Request<T>,
    cluster_id: &str,
    allowed: impl Fn(&Role) -> bool,
) -> Result<Role, Status> {
    match tls::identity(request) {
        Some(identity) if identity.cluster == cluster_id && allowed(&identity.role) => {
            Ok(identity.role.clone())
        }
        _ => {
            metrics::counter!("carillon_authorization_refused_total").increment(1);
            Err(errors::status(ErrorReason::WrongIdentity, "this certificate may not call this service"))
        }
    }
}

/// A proposal that failed, as a status for one item.
pub(crate) fn propose_status(error: &ProposeError) -> Status {
    match error {
        ProposeError::NotLeader { .. } => errors::status(ErrorReason::NotLeader, "not the leader"),
        ProposeError::Busy => errors::status(ErrorReason::Overloaded, "too much in flight on this node"),
        ProposeError::Uncertain | ProposeError::Stopping | ProposeError::Blocked(_) => {
            errors::status(ErrorReason::PartitionUnavailable, "leadership was lost; the fate is unknown")
        }
        ProposeError::TooLarge => errors::status(ErrorReason::Internal, "proposal too large"),
    }
}

pub(crate) fn internal(what: &'static str) -> Status {
    errors::status(ErrorReason::Internal, what)
}
