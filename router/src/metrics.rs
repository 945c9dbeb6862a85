//! Every metric that the router emits, in one place. Labels take few values; nothing of a request is a label.
use crate::map::MapCache;
use std::time::Duration;
use tonic::Code;

/// Every method of the public services.
pub const METHODS: [&str; 11] = [
    "SubmitMessages",
    "StreamMessages",
    "GetMessage",
    "ExplainMessage",
    "ListMessages",
    "CancelMessages",
    "WatchEvents",
    "UpdateAppointment",
    "CreateSeries",
    "GetSeries",
    "EndSeries",
];
/// The codes that alerts are made of; the others appear with their first call.
const CODES_WATCHED: [Code; 4] = [Code::Ok, Code::Unavailable, Code::ResourceExhausted, Code::Internal];
const OUTCOMES: [&str; 4] = ["accepted", "duplicate", "refused", "unavailable"];
const NODE_METHODS: [&str; 8] =
    ["Submit", "Get", "Explain", "List", "Cancel", "Update", "CreateSeries", "ManageSeries"];
const RETRY_CAUSES: [&str; 7] =
    ["no_leader", "not_leader", "broken_too_often", "watch", "uncertain", "unsent", "practice_unknown"];

/// Puts every counter and histogram on the page with zero, so that an alert can tell "none so far" from "no router", and a
/// rate sees the first event.
pub fn start_at_zero() {
    for method in METHODS {
        for code in CODES_WATCHED {
            requests(method, code).increment(0);
        }
        let _shown = request_seconds(method);
    }
    for outcome in OUTCOMES {
        items(outcome).increment(0);
    }
    let _shown = batch_seconds();
    for cause in RETRY_CAUSES {
        retries(cause).increment(0);
    }
    for method in NODE_METHODS {
        let _shown = node_call_seconds(method);
    }
    metrics::counter!("carillon_tls_handshake_failures_total").increment(0);
    metrics::counter!("carillon_panics_total").increment(0);
}

fn requests(method: &'static str, code: Code) -> metrics::Counter {
    metrics::counter!("carillon_router_requests_total", "method" => method, "code" => code_word(code))
}

fn request_seconds(method: &'static str) -> metrics::Histogram {
    metrics::histogram!("carillon_router_request_seconds", "method" => method)
}

fn items(outcome: &'static str) -> metrics::Counter {
    metrics::counter!("carillon_router_items_total", "outcome" => outcome)
}

fn batch_seconds() -> metrics::Histogram {
    metrics::histogram!("carillon_router_batch_seconds")
}

fn retries(cause: &'static str) -> metrics::Counter {
    metrics::counter!("carillon_router_retries_total", "cause" => cause)
}

fn node_call_seconds(method: &'static str) -> metrics::Histogram {
    metrics::histogram!("carillon_router_node_call_seconds", "method" => method)
}

/// A public call ended.
pub fn request(method: &'static str, code: Code, took: Duration) {
    requests(method, code).increment(1);
    request_seconds(method).record(took);
}

/// A batch, of a stream or of a unary submit, was answered.
pub fn batch(accepted: u64, duplicate: u64, refused: u64, unavailable: u64, took: Duration) {
    for (outcome, count) in OUTCOMES.into_iter().zip([accepted, duplicate, refused, unavailable]) {
        items(outcome).increment(count);
    }
    batch_seconds().record(took);
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
    retries(cause).increment(1);
}

/// A call to a node ended.
pub fn node_call(method: &'static str, took: Duration) {
    node_call_seconds(method).record(took);
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
