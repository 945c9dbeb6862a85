//! What the simulator counts, as JSON and as metrics.
//!
//! Owns: the counters, the per-second history (the last [`SECONDS_MAX`]
//! seconds) and the shape of `GET /stats`.
//! Invariant: nothing here names a number or a text.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::center::Center;
use super::contract::Alarm;
use super::decide::Fault;
use super::rest::RestStats;
use super::truth::Accepted;

/// Seconds of history at most.
pub const SECONDS_MAX: usize = 3_600;
const FAULTS: [Fault; 13] = [
    Fault::None,
    Fault::Invalid,
    Fault::Storm,
    Fault::OverContract,
    Fault::Overload,
    Fault::RefusedRecipient,
    Fault::Throttled,
    Fault::QueueFull,
    Fault::Temporary,
    Fault::LostAccepted,
    Fault::LostRefused,
    Fault::DropAfterAccept,
    Fault::DropBeforeRead,
];

/// Totals since the start or the last reset.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub submits: u64,
    pub accepted: u64,
    pub unanswered: u64,
    pub unrecorded: u64,
    pub by_fault: [u64; FAULTS.len()],
    /// At most one entry for each status a profile can name.
    pub by_status: BTreeMap<u32, u64>,
    pub receipts_planned: u64,
    pub receipts_sent: u64,
    pub receipts_sent_again: u64,
    pub receipts_acked: u64,
    pub receipts_refused: u64,
    pub receipts_timed_out: u64,
    pub receipts_given_up: u64,
    pub acks_late: u64,
    pub malformed: u64,
    pub wrong_state: u64,
    pub connections: u64,
    pub binds_accepted: u64,
    pub binds_refused: u64,
}

/// What happened in one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Second {
    /// Seconds since the epoch.
    pub at_s: u64,
    pub submits: u64,
    pub accepted: u64,
    pub receipts_sent: u64,
    pub receipts_acked: u64,
}

/// The history by second; seconds in which nothing happened are left out.
#[derive(Default)]
pub struct Seconds(VecDeque<Second>);

impl Seconds {
    /// The second of `wall_us`, to be counted in.
    pub fn now(&mut self, wall_us: u64) -> &mut Second {
        let at_s = wall_us / 1_000_000;
        if self.0.back().is_none_or(|last| last.at_s < at_s) {
            if self.0.len() == SECONDS_MAX {
                self.0.pop_front();
            }
            self.0.push_back(Second { at_s, ..Second::default() });
        }
        let last = self.0.len() - 1;
        &mut self.0[last]
    }

    fn last(&self, count: usize) -> Vec<Second> {
        self.0.iter().skip(self.0.len().saturating_sub(count)).copied().collect()
    }
}

/// The totals of receipts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptStats {
    pub planned: u64,
    /// Every sending counts.
    pub sent: u64,
    pub sent_again: u64,
    pub acked: u64,
    pub refused: u64,
    pub timed_out: u64,
    /// Sent as often as allowed and never acknowledged.
    pub given_up: u64,
    pub acks_late: u64,
    /// Planned, due or under way.
    pub pending: u64,
}

/// One account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountStats {
    pub system_id: String,
    pub binds: u32,
    /// Segments in a window at most; none without a contract.
    pub limit: Option<u32>,
    pub window_ms: u64,
    pub slack_ms: u64,
    pub arrivals: u64,
    pub window_max: u64,
    pub violations: u64,
    pub first_violation_at_us: Option<u64>,
}

/// How late delayed events were, in microseconds: large values mean that the
/// simulator, not the system under test, was too slow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

/// The answer of `GET /stats`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stats {
    pub generation: u32,
    pub profile: String,
    pub seed: u64,
    pub uptime_ms: u64,
    pub submits: u64,
    pub accepted: u64,
    /// Whole messages accepted, and those accepted more than once.
    pub messages: Accepted,
    /// Answers decided on, by status ("0x00000058").
    pub by_status: BTreeMap<String, u64>,
    pub by_fault: BTreeMap<String, u64>,
    /// Submits that never get an answer.
    pub unanswered: u64,
    /// Refused because the ground truth was full: the run is not valid.
    pub unrecorded: u64,
    pub long_messages_open: u64,
    pub long_messages_incomplete: u64,
    pub duplicate_parts: u64,
    pub receipts: ReceiptStats,
    pub accounts: Vec<AccountStats>,
    pub binds_up: u64,
    pub connections: u64,
    pub binds_accepted: u64,
    pub binds_refused: u64,
    pub malformed: u64,
    pub wrong_state: u64,
    pub answers_waiting: u64,
    pub lag: Lag,
    pub truth_lines_lost: u64,
    pub truth_write_failures: u64,
    pub seconds: Vec<Second>,
    /// Of Twilio's API, where it is served.
    #[serde(default)]
    pub rest: Option<RestStats>,
}

/// Distributions for the metrics page. Without a recorder they go nowhere.
pub struct Timers {
    pub answer_delay: metrics::Histogram,
    pub event_lag: metrics::Histogram,
    pub receipt_delay: metrics::Histogram,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            answer_delay: metrics::histogram!("carillon_smsc_answer_delay_seconds"),
            event_lag: metrics::histogram!("carillon_smsc_event_lag_seconds"),
            receipt_delay: metrics::histogram!("carillon_smsc_receipt_delay_seconds"),
        }
    }
}

pub fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

impl Stats {
    /// Violations of every contract together.
    pub fn violations(&self) -> u64 {
        self.accounts.iter().map(|account| account.violations).sum()
    }
}

impl Center {
    /// The stats with the last `seconds` of history.
    pub fn stats(&self, seconds: usize, now_us: u64) -> Stats {
        let c = &self.counters;
        let by_status = c.by_status.iter().map(|(code, count)| (format!("{code:#010x}"), *count));
        let by_fault = FAULTS.iter().map(|fault| (fault.name().to_owned(), c.by_fault[*fault as usize]));
        Stats {
            generation: self.truth.generation,
            profile: self.profile.name.clone(),
            seed: self.config.seed,
            uptime_ms: now_us / 1000,
            submits: c.submits,
            accepted: c.accepted,
            messages: self.truth.accepted,
            by_status: by_status.collect(),
            by_fault: by_fault.filter(|(_, count)| *count > 0).collect(),
            unanswered: c.unanswered,
            unrecorded: c.unrecorded,
            long_messages_open: self.assembly.open_count() as u64,
            long_messages_incomplete: self.assembly.incomplete,
            duplicate_parts: self.assembly.duplicate_parts,
            receipts: ReceiptStats {
                planned: c.receipts_planned,
                sent: c.receipts_sent,
                sent_again: c.receipts_sent_again,
                acked: c.receipts_acked,
                refused: c.receipts_refused,
                timed_out: c.receipts_timed_out,
                given_up: c.receipts_given_up,
                acks_late: c.acks_late,
                pending: self.receipts_pending() as u64,
            },
            accounts: self.accounts.iter().map(account_stats).collect(),
            binds_up: self.accounts.iter().map(|account| u64::from(account.binds)).sum(),
            connections: c.connections,
            binds_accepted: c.binds_accepted,
            binds_refused: c.binds_refused,
            malformed: c.malformed,
            wrong_state: c.wrong_state,
            answers_waiting: self.answers_waiting as u64,
            lag: Lag {
                p50_us: self.lag_us.value_at_quantile(0.5),
                p99_us: self.lag_us.value_at_quantile(0.99),
                max_us: self.lag_us.max(),
            },
            truth_lines_lost: self.journal.as_ref().map_or(0, |journal| journal.lost_lines),
            truth_write_failures: self.journal.as_ref().map_or(0, |journal| journal.failures()),
            seconds: self.seconds.last(seconds),
            rest: self.rest.as_ref().map(|rest| rest.stats),
        }
    }

    /// Adds what was counted since the last call to the metrics.
    pub fn emit_metrics(&mut self) {
        let (now, before) = (&self.counters, &self.reported);
        for fault in FAULTS {
            let delta = now.by_fault[fault as usize] - before.by_fault[fault as usize];
            if delta > 0 {
                metrics::counter!("carillon_smsc_submits_total", "outcome" => fault.name()).increment(delta);
            }
        }
        let receipts = [
            ("sent", now.receipts_sent - before.receipts_sent),
            ("acked", now.receipts_acked - before.receipts_acked),
            ("refused", now.receipts_refused - before.receipts_refused),
            ("timed_out", now.receipts_timed_out - before.receipts_timed_out),
            ("given_up", now.receipts_given_up - before.receipts_given_up),
        ];
        for (outcome, delta) in receipts.into_iter().filter(|(_, delta)| *delta > 0) {
            metrics::counter!("carillon_smsc_receipts_total", "outcome" => outcome).increment(delta);
        }
        metrics::counter!("carillon_smsc_malformed_total").increment(now.malformed - before.malformed);
        let alarms = self.accounts.iter().map(|account| account.meter.alarm);
        let (violations, window_max) =
            alarms.fold((0, 0), |(sum, max), alarm| (sum + alarm.violations, alarm.window_max.max(max)));
        let binds: u32 = self.accounts.iter().map(|account| account.binds).sum();
        if violations > 0 && self.violations_told == 0 {
            tracing::warn!(violations, window_max, "a contract is exceeded");
        }
        self.violations_told = violations;
        metrics::gauge!("carillon_smsc_contract_violations").set(violations as f64);
        metrics::gauge!("carillon_smsc_contract_window_max_segments").set(window_max as f64);
        metrics::gauge!("carillon_smsc_duplicate_messages").set(self.truth.accepted.extra_copies as f64);
        metrics::gauge!("carillon_smsc_binds").set(f64::from(binds));
        metrics::gauge!("carillon_smsc_receipts_pending").set(self.receipts_pending() as f64);
        self.reported = self.counters.clone();
    }
}

fn account_stats(account: &super::center::Account) -> AccountStats {
    let Alarm { arrivals, window_max, violations, first_violation_at_us } = account.meter.alarm;
    let contract = account.meter.contract;
    AccountStats {
        system_id: account.system_id.clone(),
        binds: account.binds,
        limit: (contract.limit != u32::MAX).then_some(contract.limit),
        window_ms: contract.window_ms,
        slack_ms: contract.slack_ms,
        arrivals,
        window_max,
        violations,
        first_violation_at_us,
    }
}
