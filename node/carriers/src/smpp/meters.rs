//! Metrics of one connector: the handles are made once, because a lookup for each PDU would cost more than the PDU.
use carillon_proto::public::Outcome;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

pub(crate) struct Meters {
    carrier: String,
    pub pdus_written: Counter,
    pub answer_seconds: Histogram,
    pub late_answers: Counter,
    pub pauses: Counter,
    pub congestion: Counter,
    pub binds_up: Gauge,
    pub in_flight: Gauge,
    pub replies: Counter,
    pub bad_pdus: Counter,
    pub receipts_committed: Counter,
    pub receipts_refused: Counter,
    pub receipts_timed_out: Counter,
    pub receipts_unreadable: Counter,
}

impl Meters {
    pub fn new(carrier: &str) -> Self {
        let label = || carrier.to_owned();
        let receipts = |result: &'static str| counter!("carillon_smpp_receipts_total", "carrier" => label(), "result" => result);
        Self {
            carrier: label(),
            pdus_written: counter!("carillon_smpp_submit_pdus_total", "carrier" => label()),
            answer_seconds: histogram!("carillon_smpp_answer_seconds", "carrier" => label()),
            late_answers: counter!("carillon_smpp_late_answers_total", "carrier" => label()),
            pauses: counter!("carillon_smpp_pauses_total", "carrier" => label()),
            congestion: counter!("carillon_smpp_congestion_total", "carrier" => label()),
            binds_up: gauge!("carillon_smpp_binds_up", "carrier" => label()),
            in_flight: gauge!("carillon_smpp_in_flight", "carrier" => label()),
            replies: counter!("carillon_smpp_replies_total", "carrier" => label()),
            bad_pdus: counter!("carillon_smpp_bad_pdus_total", "carrier" => label()),
            receipts_committed: receipts("committed"),
            receipts_refused: receipts("refused"),
            receipts_timed_out: receipts("timeout"),
            receipts_unreadable: receipts("unreadable"),
        }
    }

    pub fn outcome(&self, outcome: Outcome) {
        let outcome = outcome.as_str_name();
        counter!("carillon_smpp_sends_total", "carrier" => self.carrier.clone(), "outcome" => outcome)
            .increment(1);
    }

    /// `reason` is one of a fixed set of words.
    pub fn disconnected(&self, reason: &'static str) {
        counter!("carillon_smpp_disconnects_total", "carrier" => self.carrier.clone(), "reason" => reason)
            .increment(1);
    }
}
