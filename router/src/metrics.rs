//! Every metric that the router emits, in one place. Labels take few values; nothing of a request is a label.
use crate::map::MapCache;
use std::time::Duration;
use tonic::Code;

/// A public call ended.
pub fn request(method: &'static str, code: Code, took: Duration) {
    metrics::counter!("carillon_router_requests_total", "method" => method, "code" => code_word(code))
        .increment(1);
    metrics::histogram!("carillon_router_request_seconds", "method" => method).record(took);
}

/// A batch, of a stream or of a unary submit, was answered.
pub fn batch(accepted: u64, duplicate: u64, refused: u64, unavailable: u64, took: Duration) {
    for (outcome, count) in
        [("accepted", accepted), ("duplicate", duplicate), ("refused", refused), ("unavailable", unavailable)]
    {
        if count > 0 {
            metrics::counter!("carillon_router_items_total", "outcome" => outcome).increment(count);
        }
    }
    metrics::histogram!("carillon_router_batch_seconds").record(took);
}

/// Counts while it lives.
pub struct Held(metrics::Gauge);

impl Held {
    fn new(gauge: metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

pub fn batch_in_flight() -> Held {
    Held::new(metrics::gauge!("carillon_router_batches_in_flight"))
}

pub fn stream_open(method: &'static str) -> Held {
    Held::new(metrics::gauge!("carillon_router_streams_open", "method" => method))
}

/// Something is tried again.
pub fn retry(cause: &'static str) {
    metrics::counter!("carillon_router_retries_total", "cause" => cause).increment(1);
}

/// A call to a node ended.
pub fn node_call(method: &'static str, took: Duration) {
    metrics::histogram!("carillon_router_node_call_seconds", "method" => method).record(took);
}

/// The state of the map.
pub fn map(map: &MapCache) {
    metrics::gauge!("carillon_router_map_age_seconds").set(map.age().as_secs_f64());
    metrics::gauge!("carillon_router_partitions_led").set(map.load().led() as f64);
}

fn code_word(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
