//! The one list of metric names, with type and help text. A tidy test compares it with the sources.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, help }
}
const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, help }
}
#[allow(dead_code)]
const fn histogram(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, help }
}

/// Every metric of every process, by name.
pub const CATALOGUE: &[Metric] = &[
    gauge("carillon_build_info", "Always 1; the version is a label."),
    counter("carillon_panics_total", "Panics caught by the hook; any value above 0 is a defect."),
    counter("carillon_tls_handshake_failures_total", "TLS handshakes that failed or timed out."),
];
