//! What a caller is told about a request that reached no handler of ours.
//!
//! tonic refuses such a request while it routes or decodes it, with a bare status and a text of its own: above the limit
//! OUT_OF_RANGE, unreadable bytes INTERNAL (as if the defect were ours), a compressed body and an unknown method
//! UNIMPLEMENTED. Every error of our own carries details, so a bare status of these codes is replaced by an error of ours: in
//! the response of a unary call, and at the end of a stream. Nothing of tonic's text is repeated: it tells about the body.
use carillon_proto::errors;
use carillon_proto::public::ErrorReason;
use tonic::body::Body;
use tonic::{Code, Status};

/// A request with 1,000 messages of 300 characters has half a megabyte.
pub const REQUEST_BYTES_MAX: usize = 4 << 20;

/// Tells the caller what it may send instead of a compressed body.
const ACCEPTS: &str = "grpc-accept-encoding";

/// How the texts begin with which tonic's decoder refuses bytes that are no request.
const MALFORMED: [&str; 4] = [
    "failed to decode Protobuf message",
    "protocol error: received message with",
    "Unexpected EOF decoding stream",
    "Missing request message",
];
const COMPRESSED: &str = "Content is compressed with";

/// An error of ours instead of a bare one; everything else as it is.
pub fn explain(status: Status) -> Status {
    if !status.details().is_empty() {
        return status;
    }
    let begins = |start: &&str| status.message().starts_with(start);
    match status.code() {
        Code::OutOfRange => {
            let metadata = [("bytes_max", REQUEST_BYTES_MAX.to_string())];
            errors::status_with(ErrorReason::RequestTooLarge, "the request is too large", &metadata)
        }
        Code::Internal if MALFORMED.iter().any(begins) => {
            errors::status(ErrorReason::MalformedRequest, "the request cannot be read")
        }
        Code::Internal => errors::status(ErrorReason::Internal, "the call could not be processed"),
        Code::Unimplemented if begins(&COMPRESSED) => {
            let mut told = errors::status(ErrorReason::CompressionUnsupported, "the request is compressed");
            if let Some(accepts) = status.metadata().get(ACCEPTS) {
                told.metadata_mut().insert(ACCEPTS, accepts.clone());
            }
            told
        }
        Code::Unimplemented => {
            errors::status(ErrorReason::UnknownMethod, "this router has no such service or method")
        }
        _ => status,
    }
}

/// The same for a response that is nothing but a status.
pub fn explain_response(response: http::Response<Body>) -> http::Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status)
            if matches!(status.code(), Code::OutOfRange | Code::Internal | Code::Unimplemented)
                && status.details().is_empty() =>
        {
            explain(status).into_http()
        }
        _ => response,
    }
}
