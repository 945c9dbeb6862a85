//! Lanes: the connector and the gate of each carrier account, kept equal to the meta group. What they may send is in `leases.rs`.
use super::connect::{Connect, Connected};
use super::leases::Leases;
use carillon_carriers::contract::ContractHandle;
use carillon_carriers::{Connector, InboundSink};
use carillon_core::meta::MetaView;
use carillon_delivery::LaneConfig;
use carillon_delivery::lease::{HeldView, LimitId, Wait, caps, common};
use carillon_proto::internal::CarrierRecord;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

/// A permit that is free in less than this is near.
const NEAR: Duration = Duration::from_millis(5);
/// Gates of one lane beyond which idle ones are dropped.
const GATES_MAX: usize = 1_024;

/// The limits that a message of a lane needs a permit of, in the order of arrival; urgent ones go before the others. It outlives changes of the carrier's settings, so that
/// a message that waits keeps its place.
pub struct NodeGate {
    leases: Leases,
    stack: Vec<LimitId>,
    /// Held by whoever is next.
    turn: tokio::sync::Mutex<()>,
    /// Held by the one of those that are not urgent that waits for the turn: the others wait here, and an urgent one finds at most
    /// this one before it.
    ordinary: tokio::sync::Mutex<()>,
    /// Held by whoever may go to the connector.
    line: Arc<tokio::sync::Mutex<()>>,
    /// As `ordinary`, for the line.
    ordinary_line: tokio::sync::Mutex<()>,
    closed: AtomicBool,
}

impl NodeGate {
    fn new(leases: Leases, stack: Vec<LimitId>) -> Self {
        Self {
            leases,
            stack,
            turn: tokio::sync::Mutex::default(),
            ordinary: tokio::sync::Mutex::default(),
            line: Arc::default(),
            ordinary_line: tokio::sync::Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// Waits for the turn among the messages that need the same limits, and until their permit is near. Connectors keep all
    /// messages of a carrier in one order, so nobody may wait inside of one for a limit that the others do not have.
    /// `None`: other limits are in force than those of `stamp`. `segments`: that leave together.
    pub async fn near(&self, urgent: bool, stamp: u64, segments: u32) -> Option<OwnedMutexGuard<()>> {
        let _ordinary = if urgent { None } else { Some(self.ordinary_line.lock().await) };
        let turn = Arc::clone(&self.line).lock_owned().await;
        let mut changes = self.leases.changes();
        loop {
            changes.borrow_and_update();
            if self.leases.stamp() != stamp {
                return None;
            }
            let near =
                self.leases.free_at(&self.stack, segments).map(|at| at.checked_sub(NEAR).unwrap_or(at));
            if self.closed.load(Ordering::Relaxed) || near.is_some_and(|near| near <= Instant::now()) {
                return Some(turn);
            }
            let changed = changes.changed();
            let news = match near {
                Some(near) => tokio::time::timeout_at(near, changed).await.unwrap_or(Ok(())),
                None => changed.await,
            };
            if news.is_err() {
                return Some(turn);
            }
        }
    }

    /// For those who wait, too.
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.leases.wake();
    }
}

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPermit {
    Closed,
    /// Other limits are in force: see which ones the message needs now.
    Changed,
}

impl NodeGate {
    /// Waits for permits of every limit for segments that leave together; they are void from the moment that is given back on. `stamp`: of the
    /// settings by which this gate was chosen.
    pub async fn acquire_as(&self, urgent: bool, stamp: u64, segments: u32) -> Result<Instant, NoPermit> {
        let _ordinary = if urgent { None } else { Some(self.ordinary.lock().await) };
        let _turn = self.turn.lock().await;
        let mut changes = self.leases.changes();
        loop {
            changes.borrow_and_update();
            if self.closed.load(Ordering::Relaxed) {
                return Err(NoPermit::Closed);
            }
            if self.leases.stamp() != stamp {
                return Err(NoPermit::Changed);
            }
            let until = match self.leases.try_take(&self.stack, segments) {
                Ok(fresh_until) => return Ok(fresh_until),
                Err(Wait::Until(at)) => Some(self.leases.clock().instant(at)),
                Err(Wait::NoLease(_)) => None,
            };
            let changed = changes.changed();
            let news = match until {
                Some(until) => tokio::time::timeout_at(until, changed).await.unwrap_or(Ok(())),
                None => changed.await,
            };
            news.map_err(|_| NoPermit::Closed)?;
        }
    }
}

/// One carrier account as this node uses it.
pub struct Lane {
    pub record: CarrierRecord,
    pub in_flight_max: u32,
    pub connector: Arc<dyn Connector>,
    pub contract: ContractHandle,
    gates: Arc<Gates>,
}

/// The gates of a lane, one for each set of limits that its messages need. Bounded by the limits that there are.
struct Gates {
    leases: Leases,
    closed: AtomicBool,
    of: Mutex<BTreeMap<Vec<LimitId>, Arc<NodeGate>>>,
}

impl Lane {
    /// The gate of messages that need permits of these limits.
    pub fn gate(&self, stack: &[LimitId]) -> Arc<NodeGate> {
        let mut of = self.gates.of.lock();
        if let Some(gate) = of.get(stack) {
            return Arc::clone(gate);
        }
        let gate = Arc::new(NodeGate::new(self.gates.leases.clone(), stack.to_vec()));
        if self.gates.closed.load(Ordering::Relaxed) {
            gate.close();
        }
        // Those that nobody waits at are not needed any more.
        if of.len() >= GATES_MAX {
            of.retain(|_, gate| Arc::strong_count(gate) > 1);
        }
        of.insert(stack.to_vec(), Arc::clone(&gate));
        gate
    }

    fn close(&self) {
        self.gates.closed.store(true, Ordering::Relaxed);
        self.gates.of.lock().values().for_each(|gate| gate.close());
    }
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
#[derive(Clone)]
pub struct LaneTable {
    leases: Leases,
    /// The limits that every segment of a carrier needs.
    common: Arc<RwLock<BTreeMap<u32, Vec<LimitId>>>>,
    lanes: Arc<RwLock<BTreeMap<u32, Arc<Lane>>>>,
}

/// What is needed to build lanes.
pub struct LaneBuilder {
    pub connect: Connect,
    pub leases: Leases,
    pub node_id: u64,
    pub sink: Arc<dyn Fn(u32) -> Arc<dyn InboundSink> + Send + Sync>,
}

impl LaneTable {
    pub fn new(leases: Leases) -> Self {
        Self { leases, common: Arc::default(), lanes: Arc::default() }
    }

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
            share_segments_per_second: self.held(carrier_no).per_kilosecond() as f64 / 1_000.0,
            paused_ms: status.paused_for.map_or(0, |d| d.as_millis() as u32),
        }
    }

    /// Makes the lanes and their shares equal to the meta group; a carrier without a share here has no lane. Where nodes send on
    /// leases every carrier has one. Must run inside a tokio runtime.
    pub fn sync(&self, view: &MetaView, builder: &LaneBuilder) -> Vec<LaneChange> {
        let mut changes = Vec::new();
        self.leases.set_caps(&caps(view));
        *self.common.write() = view.carriers.keys().map(|no| (*no, common(view, *no))).collect();
        for record in view.carriers.values() {
            let (old, share) = (self.get(record.carrier_no), view.share(record, builder.node_id));
            if share == 0 && !view.leases() {
                changes.extend(old.map(|_| self.close(record.carrier_no)));
                continue;
            }
            self.leases.set_fixed(record.carrier_no, share);
            if let Some(lane) = old.as_ref().filter(|lane| lane.record == *record) {
                changes.push(LaneChange::Set(self.config(lane)));
                continue;
            }
            let gates = old.as_ref().map(|lane| Arc::clone(&lane.gates));
            match builder.build(record, gates) {
                Ok(lane) => {
                    changes.push(LaneChange::Set(self.config(&lane)));
                    self.lanes.write().insert(record.carrier_no, Arc::new(lane));
                    if let Some(old) = old {
                        tokio::spawn(async move { old.connector.drain().await });
                    }
                }
                // An old connector goes on, within the new share.
                Err(reason) => {
                    metrics::counter!("carillon_lane_faults_total", "carrier" => record.name.clone())
                        .increment(1);
                    tracing::error!(carrier = record.name, reason, "lane cannot be used");
                }
            }
        }
        changes
    }

    fn close(&self, carrier_no: u32) -> LaneChange {
        self.leases.forget(carrier_no);
        if let Some(lane) = self.lanes.write().remove(&carrier_no) {
            lane.close();
            tokio::spawn(async move { lane.connector.drain().await });
        }
        LaneChange::Removed(carrier_no)
    }

    /// Waits until every sender keeps to the limits of the view that `stamp` is of.
    pub async fn until_settled(&self, stamp: impl Fn() -> u64, limit: Duration) -> bool {
        self.leases.until_settled(stamp, limit).await
    }

    /// What this node holds of one limit, in segments per second.
    pub fn held_of(&self, limit: LimitId) -> f64 {
        self.leases.view(limit).per_kilosecond() as f64 / 1_000.0
    }

    /// Segments that may leave of a daily cap.
    pub fn cap_left(&self, limit: LimitId) -> Option<u32> {
        self.leases.cap_left(limit)
    }

    /// Segments that wait for a limit.
    pub fn waiting(&self, limit: LimitId) -> u64 {
        self.leases.waiting(limit)
    }

    /// What is held of the limits that every segment of the carrier needs.
    pub fn held(&self, carrier_no: u32) -> HeldView {
        let common = self.common.read();
        self.leases.view_of(common.get(&carrier_no).map_or(&[carrier_no][..], Vec::as_slice))
    }

    /// What the lane can send now.
    pub fn config(&self, lane: &Lane) -> LaneConfig {
        let (carrier_no, name) = (lane.record.carrier_no, lane.record.name.clone());
        let held = self.held(carrier_no);
        metrics::gauge!("carillon_lane_share_segments_per_second", "carrier" => name)
            .set(held.per_kilosecond() as f64 / 1_000.0);
        let share = u32::try_from(held.per_kilosecond().div_ceil(1_000)).unwrap_or(u32::MAX);
        LaneConfig { carrier_no, share_segments_per_second: share, in_flight_max: lane.in_flight_max }
    }
}

/// What the scheduler has to know.
#[derive(Debug, Clone, Copy)]
pub enum LaneChange {
    Set(LaneConfig),
    Removed(u32),
}

impl LaneBuilder {
    fn gates(&self) -> Gates {
        Gates { leases: self.leases.clone(), closed: AtomicBool::new(false), of: Mutex::default() }
    }

    fn build(&self, record: &CarrierRecord, gates: Option<Arc<Gates>>) -> Result<Lane, String> {
        let sink = (self.sink)(record.carrier_no);
        let Connected { connector, contract, in_flight_max } = self.connect.connect(record, sink)?;
        Ok(Lane {
            record: record.clone(),
            in_flight_max,
            connector,
            contract,
            gates: gates.unwrap_or_else(|| Arc::new(self.gates())),
        })
    }
}
