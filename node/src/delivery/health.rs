//! Breakers of this node's lanes, and which carriers can be used at the moment. The driver feeds it; ingest, failover and explanations ask.
use super::lanes::LaneTable;
use carillon_carriers::connector::ConnectorState;
use carillon_carriers::contract::BreakerTerms;
use carillon_core::meta::{MetaView, routes};
use carillon_delivery::breaker::{Breaker, BreakerConfig, BreakerState};
use carillon_proto::internal::BreakerMode;
use carillon_proto::public::Outcome;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How one lane's breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerLook {
    pub mode: BreakerMode,
    pub open: bool,
    pub half_open: bool,
    /// Until it is tried again; 0 unless the breaker itself opened it.
    pub open_for_ms: u64,
}

struct Kept {
    breaker: Breaker,
    /// As the metrics have it.
    told: u64,
}

/// All breakers of this node; cheap to clone. At most one for each carrier, and one for each sender that its carrier has refused.
#[derive(Clone, Default)]
pub struct Health {
    breakers: Arc<Mutex<BTreeMap<u32, Kept>>>,
    /// By the number of the sender. A sender is only ever refused: whether the carrier works is not said of its senders.
    senders: Arc<Mutex<BTreeMap<u32, Breaker>>>,
}

impl Health {
    /// An attempt was answered. `sender_no`: 0 = the account's own sender.
    pub fn on_outcome(&self, carrier_no: u32, sender_no: u32, outcome: Outcome, mono: Duration) {
        let refused = outcome == Outcome::LaneBroken;
        if sender_no > 0 && (refused || says_it_works(outcome)) {
            self.on_sender(carrier_no, sender_no, outcome, mono);
        }
        // With a sender of its own it is the sender that is broken. If it is the account, then all of its senders are.
        if sender_no == 0 || !refused {
            self.with(carrier_no, |kept| kept.breaker.on_outcome(outcome, mono));
        }
    }

    fn on_sender(&self, carrier_no: u32, sender_no: u32, outcome: Outcome, mono: Duration) {
        let config = self.with(carrier_no, |kept| kept.breaker.config());
        let mut senders = self.senders.lock();
        if outcome == Outcome::LaneBroken {
            senders.entry(sender_no).or_insert_with(|| Breaker::new(config));
            tracing::warn!(
                carrier_no,
                sender_no,
                "the carrier refuses a sender; its messages wait or go to another one"
            );
        }
        let Some(breaker) = senders.get_mut(&sender_no) else { return };
        breaker.on_outcome(outcome, mono);
        if breaker.state(mono) == BreakerState::Closed {
            senders.remove(&sender_no);
        }
    }

    /// Attempts that a sender may have under way; `None`: as many as can be.
    pub fn sender_attempts_max(&self, sender_no: u32, mono: Duration) -> Option<u32> {
        self.senders.lock().get_mut(&sender_no)?.attempts_max(mono)
    }

    /// Until when nothing is tried under a sender that the carrier refuses; 0 = it is not refused, or tried again.
    pub fn sender_refused_for_ms(&self, sender_no: u32, mono: Duration) -> u64 {
        match self.senders.lock().get_mut(&sender_no).map(|breaker| breaker.state(mono)) {
            Some(BreakerState::Open { until }) => until.saturating_sub(mono).as_millis() as u64,
            _ => 0,
        }
    }

    /// Looks at connections and operators' wishes; gives for each lane how many attempts may be under way.
    pub fn look(&self, view: &MetaView, lanes: &LaneTable, mono: Duration) -> Vec<(u32, Option<u32>)> {
        let mut limits = Vec::new();
        for lane in lanes.all() {
            let (carrier_no, name) = (lane.record.carrier_no, &lane.record.name);
            let up = lane.connector.status().state == ConnectorState::Up;
            let mode = routes::breaker_mode(view, carrier_no);
            limits.push((
                carrier_no,
                self.with(carrier_no, |kept| {
                    kept.breaker.set_config(config_of(&lane.contract.get().breaker));
                    kept.breaker.set_mode(mode);
                    kept.breaker.on_link(up, mono);
                    tell(name, kept, mono);
                    kept.breaker.attempts_max(mono)
                }),
            ));
        }
        limits
    }

    /// A carrier without a lane here has no breaker, and is closed.
    pub fn breaker(&self, carrier_no: u32, mono: Duration) -> BreakerLook {
        let mut breakers = self.breakers.lock();
        let Some(kept) = breakers.get_mut(&carrier_no) else {
            return BreakerLook { mode: BreakerMode::Auto, open: false, half_open: false, open_for_ms: 0 };
        };
        let (state, mode) = (kept.breaker.state(mono), kept.breaker.mode());
        let left = match state {
            BreakerState::Open { until } if mode == BreakerMode::Auto => until.saturating_sub(mono),
            _ => Duration::ZERO,
        };
        BreakerLook {
            mode,
            open: matches!(state, BreakerState::Open { .. }),
            half_open: state == BreakerState::HalfOpen,
            open_for_ms: left.as_millis() as u64,
        }
    }

    /// Whether new messages may be given to a carrier: it has a lane here and its breaker is not open.
    pub fn usable(&self, lanes: &LaneTable, carrier_no: u32, mono: Duration) -> bool {
        lanes.get(carrier_no).is_some() && !self.breaker(carrier_no, mono).open
    }

    fn with<T>(&self, carrier_no: u32, work: impl FnOnce(&mut Kept) -> T) -> T {
        let mut breakers = self.breakers.lock();
        let new = || Kept { breaker: Breaker::new(BreakerConfig::default()), told: 0 };
        work(breakers.entry(carrier_no).or_insert_with(new))
    }
}

/// It says something good of the sender, too.
fn says_it_works(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Accepted | Outcome::RejectedNumber | Outcome::OptedOut)
}

/// The terms of a contract; what it does not say is as everywhere.
fn config_of(terms: &BreakerTerms) -> BreakerConfig {
    let BreakerTerms {
        window,
        failures_min,
        failures_permille,
        open_first,
        open_max,
        probes,
        probes_to_close,
        down_after,
    } = *terms;
    BreakerConfig {
        window,
        failures_min,
        failures_permille,
        open_first,
        open_max,
        probes,
        probes_to_close,
        down_after,
        ..BreakerConfig::default()
    }
}

fn tell(carrier: &str, kept: &mut Kept, mono: Duration) {
    let state = match kept.breaker.state(mono) {
        BreakerState::Closed => 0.0,
        BreakerState::HalfOpen => 1.0,
        BreakerState::Open { .. } => 2.0,
    };
    metrics::gauge!("carillon_breaker_state", "carrier" => carrier.to_owned()).set(state);
    let opened = kept.breaker.opened_total();
    if opened > kept.told {
        metrics::counter!("carillon_breaker_opened_total", "carrier" => carrier.to_owned())
            .increment(opened - kept.told);
        tracing::warn!(carrier, "the breaker opened: the carrier fails or cannot be reached");
        kept.told = opened;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_carriers::contract::{ContractHandle, SMPP_GENERIC, TWILIO};

    #[test]
    fn a_refused_sender_is_spared_and_the_carrier_goes_on() {
        let (health, s) = (Health::default(), Duration::from_secs);
        health.on_outcome(3, 7, Outcome::Accepted, s(1));
        assert!(health.senders.lock().is_empty(), "nothing is kept of a sender that works");
        health.on_outcome(3, 7, Outcome::LaneBroken, s(2));
        assert_eq!(health.sender_attempts_max(7, s(2)), Some(0));
        assert_eq!(health.sender_refused_for_ms(7, s(3)), 4_000);
        assert_eq!(health.sender_attempts_max(8, s(2)), None);
        assert!(!health.breaker(3, s(2)).open, "the account works");
        // It is tried again, one at a time, and closes when it works.
        assert_eq!(health.sender_attempts_max(7, s(8)), Some(1));
        (0..3).for_each(|_| health.on_outcome(3, 7, Outcome::Accepted, s(9)));
        assert_eq!(health.sender_attempts_max(7, s(9)), None);
        assert!(health.senders.lock().is_empty());
        health.on_outcome(3, 0, Outcome::LaneBroken, s(10));
        assert!(health.breaker(3, s(10)).open, "without a sender of its own it is the account");
    }

    #[test]
    fn contracts_that_say_nothing_of_breakers_have_those_of_the_program() {
        for name in [SMPP_GENERIC, TWILIO] {
            let contract = ContractHandle::built_in(name).expect("it is built in").get();
            assert_eq!(config_of(&contract.breaker), BreakerConfig::default(), "{name}");
        }
    }
}
