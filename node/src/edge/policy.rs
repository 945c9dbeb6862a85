//! What operators set about practices, beside their registration: policies and pauses.
use carillon_core::meta::MetaView;
use carillon_proto::admin::PausePracticeRequest;
use carillon_proto::internal::{PauseCause, PausePractice};
use tonic::Status;

/// Names become numbers.
pub fn pause(view: &MetaView, request: &PausePracticeRequest) -> Result<PausePractice, Status> {
    let practice = view.practice(&request.tenant, &request.practice);
    let practice = practice.ok_or_else(|| Status::not_found("no such practice"))?;
    let carrier_no = match request.carrier.as_str() {
        "" => practice.carrier_no,
        name => view.carrier(name).ok_or_else(|| Status::not_found("no such carrier"))?.carrier_no,
    };
    let cause = PauseCause::Operator.into();
    Ok(PausePractice { practice_no: practice.practice_no, carrier_no, paused: request.paused, cause })
}
