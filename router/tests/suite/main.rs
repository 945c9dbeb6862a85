//! The router in front of three fake nodes, over real TLS: what it promises to clients, whatever the nodes do.
#[path = "../support/mod.rs"]
mod support;

mod access;
mod appointments;
mod leaders;
mod malformed;
mod process;
mod queries;
mod speed;
mod stream;
mod submit;
mod watch;

use carillon_proto::errors;
use carillon_proto::public::ErrorReason;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Code and reason of a refusal.
fn told(status: &Status) -> (Code, ErrorReason) {
    let details = status.get_error_details();
    assert_eq!(details.error_info().expect("every error has an ErrorInfo").domain, "carillon.v1");
    (status.code(), errors::reason_of(status).expect("the reason is one of ours"))
}

/// Field and word of each violation.
fn violations(status: &Status) -> Vec<(String, String)> {
    assert_eq!(told(status), (Code::InvalidArgument, ErrorReason::InvalidFields));
    let details = status.get_error_details();
    let list = &details.bad_request().expect("BadRequest is there").field_violations;
    list.iter().map(|v| (v.field.clone(), v.reason.clone())).collect()
}

fn violation(field: &str, word: &str) -> Vec<(String, String)> {
    vec![(field.to_owned(), word.to_owned())]
}
