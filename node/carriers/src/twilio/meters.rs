//! Metrics of one connector: the handles are made once.
use carillon_proto::public::Outcome;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

pub(crate) struct Meters {
    carrier: String,
    pub connections: Gauge,
    pub connect_failures: Counter,
    pub in_flight: Gauge,
    pub answer_seconds: Histogram,
    pub late_answers: Counter,
    pub pauses: Counter,
}

impl Meters {
    pub fn new(carrier: &str) -> Self {
        let label = || carrier.to_owned();
        Self {
            carrier: label(),
            connections: gauge!("carillon_twilio_connections", "carrier" => label()),
            connect_failures: counter!("carillon_twilio_connect_failures_total", "carrier" => label()),
            in_flight: gauge!("carillon_twilio_in_flight", "carrier" => label()),
            answer_seconds: histogram!("carillon_twilio_answer_seconds", "carrier" => label()),
            late_answers: counter!("carillon_twilio_late_answers_total", "carrier" => label()),
            pauses: counter!("carillon_twilio_pauses_total", "carrier" => label()),
        }
    }

    pub fn outcome(&self, outcome: Outcome) {
        counter!("carillon_twilio_sends_total", "carrier" => self.carrier.clone(), "outcome" => outcome.as_str_name())
            .increment(1);
    }

    /// `result` is one of a fixed set of words, here and below.
    pub fn callback(&self, result: &'static str) {
        counter!("carillon_twilio_callbacks_total", "carrier" => self.carrier.clone(), "result" => result)
            .increment(1);
    }

    pub fn look_up(&self, result: &'static str) {
        counter!("carillon_twilio_look_ups_total", "carrier" => self.carrier.clone(), "result" => result)
            .increment(1);
    }

    pub fn redaction(&self, result: &'static str) {
        counter!("carillon_twilio_redactions_total", "carrier" => self.carrier.clone(), "result" => result)
            .increment(1);
    }
}
