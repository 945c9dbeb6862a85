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

/// All breakers of this node; cheap to clone. At most one for each carrier.
#[derive(Clone, Default)]
pub struct Health {
    breakers: Arc<Mutex<BTreeMap<u32, Kept>>>,
}

impl Health {
    /// An attempt was answered.
    pub fn on_outcome(&self, carrier_no: u32, outcome: Outcome, mono: Duration) {
        self.with(carrier_no, |kept| kept.breaker.on_outcome(outcome, mono));
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
    fn contracts_that_say_nothing_of_breakers_have_those_of_the_program() {
        for name in [SMPP_GENERIC, TWILIO] {
            let contract = ContractHandle::built_in(name).expect("it is built in").get();
            assert_eq!(config_of(&contract.breaker), BreakerConfig::default(), "{name}");
        }
    }
}
