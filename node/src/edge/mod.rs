//! The edge: what comes into a node over gRPC. Handlers hold a [`NodeHandle`](crate::engine::NodeHandle) and the keyring, never a database.
//!
//! Planes: [`peer`] (other nodes), [`node_api`] (routers), [`admin`] (operators). Each checks the role in the caller's
//! certificate before anything else.
pub mod admin;
mod backup;
pub mod callbacks;
pub mod cancel;
mod dead_letters;
pub mod delivery_admin;
pub mod events;
pub mod explain;
mod forecasts;
mod hours;
pub mod ids;
pub mod ingest;
pub mod lanes;
mod members;
pub mod node_api;
pub mod peer;
mod policy;
pub mod quarantine;
pub mod query;
mod restore;
mod sameness;
pub mod series;
pub mod steward_api;
mod unknown;
pub mod update;
pub mod view;

use crate::engine::{NodeHandle, ProposeError};
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

/// The caller's node id, if it is a node of this cluster that was neither removed nor called dead.
pub(crate) fn authorize_node<T>(
    request: &tonic::Request<T>,
    cluster_id: &str,
    handle: &NodeHandle,
) -> Result<u64, Status> {
    let role = authorize(request, cluster_id, |role| matches!(role, Role::Node(_)))?;
    let Role::Node(id) = role else { return Err(internal("role was checked")) };
    if handle.meta().admits(id, 0) {
        return Ok(id);
    }
    metrics::counter!("carillon_authorization_refused_total").increment(1);
    Err(errors::status(ErrorReason::WrongIdentity, "this node was removed from the cluster"))
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
