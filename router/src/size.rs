//! The largest request, and what a caller is told above it.
//!
//! tonic refuses such a request while it decodes, before any handler, with a bare OUT_OF_RANGE. No handler of ours
//! uses that code, so it is replaced by an error of ours: in the response of a unary call, and at the end of a stream.
use carillon_proto::errors;
use carillon_proto::public::ErrorReason;
use tonic::body::Body;
use tonic::{Code, Status};

/// A request with 1,000 messages of 300 characters has half a megabyte.
pub const REQUEST_BYTES_MAX: usize = 4 << 20;

/// REQUEST_TOO_LARGE instead of what the decoder said; everything else as it is.
pub fn explain(status: Status) -> Status {
    if status.code() == Code::OutOfRange && status.details().is_empty() {
        let metadata = [("bytes_max", REQUEST_BYTES_MAX.to_string())];
        return errors::status_with(ErrorReason::RequestTooLarge, "the request is too large", &metadata);
    }
    status
}

/// The same for a response that is nothing but a status.
pub fn explain_response(response: http::Response<Body>) -> http::Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == Code::OutOfRange => explain(status).into_http(),
        _ => response,
    }
}
