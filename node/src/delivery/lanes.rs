//! Lanes: the connector and the gate of each carrier account, kept equal to the meta group.
use carillon_carriers::connector::{BoxFuture, GateClosed, SegmentGate};
use carillon_carriers::smpp::{SmppConfig, SmppConnector, SmppTuning};
use carillon_carriers::{Clear, Connector, InboundSink};
use carillon_core::meta::MetaView;
use carillon_delivery::{GateSettings, LaneConfig, LaneGate, WaitUntil, share};
use carillon_proto::internal::CarrierRecord;
use parking_lot::RwLock;
use std::collections::BTreeMap;
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

/// Waits for the lane's next permit, in the order of arrival.
pub struct NodeGate {
    clock: MonoClock,
    gate: tokio::sync::Mutex<LaneGate>,
}

impl SegmentGate for NodeGate {
    fn acquire(&self) -> BoxFuture<'_, Result<(), GateClosed>> {
        Box::pin(async {
            let mut gate = self.gate.lock().await;
            while let Err(WaitUntil(at)) = gate.try_acquire(self.clock.now()) {
                tokio::time::sleep(at.saturating_sub(self.clock.now())).await;
            }
            Ok(())
        })
    }
}

/// One carrier account as this node uses it.
pub struct Lane {
    pub record: CarrierRecord,
    pub share: u32,
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
            share_segments_per_second: f64::from(lane.share),
            paused_ms: status.paused_for.map_or(0, |d| d.as_millis() as u32),
        }
    }

    /// Builds lanes that are new or changed and returns their scheduler settings. Must run inside a tokio runtime.
    pub fn sync(&self, view: &MetaView, builder: &LaneBuilder) -> Vec<LaneConfig> {
        let mut configs = Vec::new();
        for record in view.carriers.values() {
            let old = self.get(record.carrier_no);
            if old.as_ref().is_some_and(|lane| lane.record == *record) {
                continue;
            }
            match builder.build(record, view) {
                Ok(lane) => {
                    configs.push(LaneConfig {
                        carrier_no: record.carrier_no,
                        share_segments_per_second: lane.share,
                        in_flight_max: lane.in_flight_max,
                    });
                    self.lanes.write().insert(record.carrier_no, Arc::new(lane));
                    if let Some(old) = old {
                        tokio::spawn(async move { old.connector.drain().await });
                    }
                }
                Err(reason) => {
                    metrics::counter!("carillon_lane_faults_total", "carrier" => record.name.clone())
                        .increment(1);
                    tracing::error!(carrier = record.name, reason, "lane cannot be used");
                }
            }
        }
        configs
    }
}

impl LaneBuilder {
    fn build(&self, record: &CarrierRecord, view: &MetaView) -> Result<Lane, String> {
        let settings = record.smpp.clone().ok_or("the carrier has no settings")?;
        let secret = self.secrets_dir.join(&settings.password_secret);
        let password = fs_err::read_to_string(&secret).map_err(|e| e.to_string())?;
        let nodes: Vec<u64> = view.nodes.keys().copied().collect();
        let position =
            nodes.iter().position(|id| *id == self.node_id).ok_or("this node is not in the map")?;
        let share = share(record.segments_per_second, nodes.len() as u32, position as u32)
            .map_err(|e| e.to_string())?;
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
        let gate = LaneGate::new(share, GateSettings::default(), self.clock.now());
        metrics::gauge!("carillon_lane_share_segments_per_second", "carrier" => record.name.clone())
            .set(f64::from(share.get()));
        Ok(Lane {
            record: record.clone(),
            share: share.get(),
            in_flight_max,
            connector: Arc::new(connector),
            gate: Arc::new(NodeGate { clock: self.clock, gate: tokio::sync::Mutex::new(gate) }),
        })
    }
}
