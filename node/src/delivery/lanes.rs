//! Lanes: the connector and the gate of each carrier account, kept equal to the meta group.
use carillon_carriers::connector::GateClosed;
use carillon_carriers::smpp::{SmppConfig, SmppConnector, SmppTuning};
use carillon_carriers::{Clear, Connector, InboundSink};
use carillon_core::meta::MetaView;
use carillon_delivery::{GateSettings, LaneConfig, LaneGate, WaitUntil};
use carillon_proto::internal::CarrierRecord;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The node's monotonic clock, as the scheduler and the gates count it.
#[derive(Debug, Clone, Copy)]
pub struct MonoClock(Instant);

impl MonoClock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn now(self) -> Duration {
        self.0.elapsed()
    }
}

/// Waits for the lane's next permit, in the order of arrival; urgent ones go before the others. It outlives changes of the carrier's settings, so that no
/// two gates of a carrier ever give permits side by side.
pub struct NodeGate {
    clock: MonoClock,
    /// Held by whoever is next.
    turn: tokio::sync::Mutex<()>,
    /// Held by the one of those that are not urgent that waits for the turn: the others wait here, and an urgent one finds at most
    /// this one before it.
    ordinary: tokio::sync::Mutex<()>,
    /// `None` = no share: closed.
    gate: Mutex<Option<LaneGate>>,
}

impl NodeGate {
    pub fn closed(clock: MonoClock) -> Self {
        Self {
            clock,
            turn: tokio::sync::Mutex::default(),
            ordinary: tokio::sync::Mutex::default(),
            gate: Mutex::default(),
        }
    }

    /// 0 closes it, for those who wait, too.
    pub fn set_share(&self, share: u32) {
        let mut gate = self.gate.lock();
        match (NonZeroU32::new(share), gate.as_mut()) {
            (None, _) => *gate = None,
            (Some(share), Some(open)) => open.set_share(share, self.clock.now()),
            (Some(share), None) => {
                *gate = Some(LaneGate::new(share, GateSettings::default(), self.clock.now()));
            }
        }
    }

    pub fn share(&self) -> u32 {
        self.gate.lock().as_ref().map_or(0, |gate| gate.share().get())
    }

    /// Takes a permit, or says when to come again.
    fn try_acquire(&self) -> Result<Result<(), WaitUntil>, GateClosed> {
        let mut gate = self.gate.lock();
        Ok(gate.as_mut().ok_or(GateClosed)?.try_acquire(self.clock.now()))
    }
}

impl NodeGate {
    pub async fn acquire_as(&self, urgent: bool) -> Result<(), GateClosed> {
        let _ordinary = if urgent { None } else { Some(self.ordinary.lock().await) };
        let _turn = self.turn.lock().await;
        while let Err(WaitUntil(at)) = self.try_acquire()? {
            tokio::time::sleep(at.saturating_sub(self.clock.now())).await;
        }
        Ok(())
    }
}

/// One carrier account as this node uses it.
pub struct Lane {
    pub record: CarrierRecord,
    pub in_flight_max: u32,
    pub connector: Arc<dyn Connector>,
    pub gate: Arc<NodeGate>,
}

/// What operators see of a lane on this node.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LaneStatus {
    pub binds_up: u32,
    pub in_flight: u32,
    pub share_segments_per_second: f64,
    pub paused_ms: u32,
}

/// All lanes of this node; cheap to clone.
#[derive(Clone, Default)]
pub struct LaneTable {
    lanes: Arc<RwLock<BTreeMap<u32, Arc<Lane>>>>,
}

/// What is needed to build lanes.
pub struct LaneBuilder {
    pub clock: MonoClock,
    pub secrets_dir: PathBuf,
    pub node_id: u64,
    pub sink: Arc<dyn Fn(u32) -> Arc<dyn InboundSink> + Send + Sync>,
}

impl LaneTable {
    pub fn get(&self, carrier_no: u32) -> Option<Arc<Lane>> {
        self.lanes.read().get(&carrier_no).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Lane>> {
        self.lanes.read().values().cloned().collect()
    }

    pub fn status(&self, carrier_no: u32) -> LaneStatus {
        let Some(lane) = self.get(carrier_no) else { return LaneStatus::default() };
        let status = lane.connector.status();
        LaneStatus {
            binds_up: status.binds_up,
            in_flight: status.in_flight,
            share_segments_per_second: f64::from(lane.gate.share()),
            paused_ms: status.paused_for.map_or(0, |d| d.as_millis() as u32),
        }
    }

    /// Makes the lanes and their shares equal to the meta group; a carrier without a share here has no lane. Must run inside
    /// a tokio runtime.
    pub fn sync(&self, view: &MetaView, builder: &LaneBuilder) -> Vec<LaneChange> {
        let mut changes = Vec::new();
        for record in view.carriers.values() {
            let (old, share) = (self.get(record.carrier_no), view.share(record, builder.node_id));
            if share == 0 {
                changes.extend(old.map(|_| self.close(record.carrier_no)));
                continue;
            }
            let same = old.as_ref().filter(|lane| lane.record == *record);
            if let Some(lane) = same {
                if lane.gate.share() != share {
                    lane.set_share(share);
                    changes.push(LaneChange::Set(lane.config()));
                }
                continue;
            }
            let gate = old.as_ref().map(|lane| Arc::clone(&lane.gate));
            match builder.build(record, gate) {
                Ok(lane) => {
                    lane.set_share(share);
                    changes.push(LaneChange::Set(lane.config()));
                    self.lanes.write().insert(record.carrier_no, Arc::new(lane));
                    if let Some(old) = old {
                        tokio::spawn(async move { old.connector.drain().await });
                    }
                }
                Err(reason) => {
                    metrics::counter!("carillon_lane_faults_total", "carrier" => record.name.clone())
                        .increment(1);
                    tracing::error!(carrier = record.name, reason, "lane cannot be used");
                    // An old connector goes on, within the new share.
                    if let Some(old) = old {
                        old.set_share(share);
                    }
                }
            }
        }
        changes
    }

    fn close(&self, carrier_no: u32) -> LaneChange {
        if let Some(lane) = self.lanes.write().remove(&carrier_no) {
            lane.set_share(0);
            tokio::spawn(async move { lane.connector.drain().await });
        }
        LaneChange::Removed(carrier_no)
    }
}

/// What the scheduler has to know.
#[derive(Debug, Clone, Copy)]
pub enum LaneChange {
    Set(LaneConfig),
    Removed(u32),
}

impl Lane {
    fn set_share(&self, share: u32) {
        self.gate.set_share(share);
        metrics::gauge!("carillon_lane_share_segments_per_second", "carrier" => self.record.name.clone())
            .set(f64::from(share));
    }

    fn config(&self) -> LaneConfig {
        LaneConfig {
            carrier_no: self.record.carrier_no,
            share_segments_per_second: self.gate.share(),
            in_flight_max: self.in_flight_max,
        }
    }
}

impl LaneBuilder {
    fn build(&self, record: &CarrierRecord, gate: Option<Arc<NodeGate>>) -> Result<Lane, String> {
        let settings = record.smpp.clone().ok_or("the carrier has no settings")?;
        let secret = self.secrets_dir.join(&settings.password_secret);
        let password = fs_err::read_to_string(&secret).map_err(|e| e.to_string())?;
        let in_flight_max = settings.binds_per_node * settings.window;
        let config = SmppConfig {
            carrier: record.name.clone(),
            settings,
            password: Clear::new(password.trim_end().to_owned()),
            default_ca_pem: None,
            tuning: SmppTuning::default(),
        };
        let sink = (self.sink)(record.carrier_no);
        let connector = SmppConnector::start(config, sink).map_err(|e| e.to_string())?;
        Ok(Lane {
            record: record.clone(),
            in_flight_max,
            connector: Arc::new(connector),
            gate: gate.unwrap_or_else(|| Arc::new(NodeGate::closed(self.clock))),
        })
    }
}
