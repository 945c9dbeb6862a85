//! The steward: on the leader of the meta group, looks at every node a few times a second and has the planner's steps carried out.
//!
//! Invariants
//!  - It has no memory that matters: a new leader of the meta group looks anew and goes on. Steps are idempotent.
//!  - What it saw is judged by a map that is at least as new: it looks first, then confirms with a majority that it still
//!    leads and has applied everything. So no replica that the map has just been given is taken for a stray.
use super::carry::Carrier;
use super::see::SelfView;
use crate::engine::NodeHandle;
use crate::engine::peers::PeerChannels;
use carillon_core::meta::planner::{self, Limits, Seen, Step};
use carillon_core::meta::{Gatherer, MetaView, is_present};
use carillon_proto::internal::steward_client::StewardClient;
use carillon_proto::internal::{SeeRequest, SeeResponse};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

const ROUND: Duration = Duration::from_millis(500);
const SEE_TIMEOUT: Duration = Duration::from_millis(400);

pub struct Steward {
    pub handle: NodeHandle,
    pub channels: Arc<PeerChannels>,
    pub own: SelfView,
    pub carrier: Carrier,
    pub desk: Desk,
}

/// What operators may ask the steward, and what it saw last. Cheap to clone.
#[derive(Clone, Default)]
pub struct Desk(Arc<Inner>);

#[derive(Default)]
struct Inner {
    hurry: Notify,
    in_a_hurry: Mutex<bool>,
    /// Empty while this node is not the steward's.
    seen: Mutex<Option<(Instant, Seen)>>,
}

impl Desk {
    /// Leaders are balanced in the next round, without waiting for their rest.
    pub fn balance_leaders_now(&self) {
        *self.0.in_a_hurry.lock() = true;
        self.0.hurry.notify_one();
    }

    /// The last look, if it is fresh and this node leads the meta group.
    pub fn seen(&self) -> Option<Seen> {
        let seen = self.0.seen.lock();
        seen.as_ref().filter(|(at, _)| at.elapsed() < 4 * ROUND).map(|(_, seen)| seen.clone())
    }
}

impl Steward {
    /// Runs for the life of the node.
    pub async fn run(self) {
        let mut leaders = self.handle.leaders();
        let (mut gatherer, start) = (None, Instant::now());
        let now_ms = || millis(start.elapsed());
        loop {
            if self.handle.is_leader(0) {
                let memory = gatherer.get_or_insert_with(|| Gatherer::new(now_ms()));
                self.round(memory, &now_ms).await;
                drop(tokio::time::timeout(ROUND, self.desk.0.hurry.notified()).await);
            } else {
                gatherer = None;
                *self.desk.0.seen.lock() = None;
                // Woken when leaders change; the meta group's is among them.
                if leaders.changed().await.is_err() {
                    return;
                }
            }
        }
    }

    async fn round(&self, gatherer: &mut Gatherer, now_ms: &(impl Fn() -> u64 + Sync)) {
        let nodes: Vec<u64> =
            self.handle.meta().nodes.values().filter(|n| is_present(n)).map(|n| n.node_id).collect();
        let looks = nodes.iter().map(|id| async move { (*id, self.look(*id).await) });
        for (node_id, answer) in futures::future::join_all(looks).await {
            if let Some(answer) = answer {
                gatherer.hear(node_id, answer, now_ms());
            }
        }
        // Only now: see the module's invariants.
        if self.handle.read(0).await.is_err() {
            return;
        }
        let view = self.handle.meta();
        let seen = gatherer.seen(view.nodes.keys().copied(), now_ms());
        let steps = planner::plan(&view, &seen, &self.limits());
        self.report(&view, &seen);
        *self.desk.0.seen.lock() = Some((Instant::now(), seen));
        let carried = steps.into_iter().map(|step| async move {
            let result = self.carrier.carry(&step).await;
            (step, result)
        });
        for (step, result) in futures::future::join_all(carried).await {
            log(&step, result);
        }
    }

    fn limits(&self) -> Limits {
        let hurry = std::mem::take(&mut *self.desk.0.in_a_hurry.lock());
        let limits = Limits::default();
        if hurry {
            Limits { leader_rest_ms: 0, leader_load_rest_ms: 0, transfers_max: 64, ..limits }
        } else {
            limits
        }
    }

    async fn look(&self, node_id: u64) -> Option<SeeResponse> {
        if node_id == self.handle.node_id() {
            return Some(self.own.see().await);
        }
        let mut client = StewardClient::new(self.channels.get(node_id)?);
        let mut request = tonic::Request::new(SeeRequest {});
        request.set_timeout(SEE_TIMEOUT);
        // The channel waits for a connection longer than that.
        let answer = tokio::time::timeout(SEE_TIMEOUT, client.see(request)).await.ok()?.ok()?.into_inner();
        (answer.node_id == node_id && self.handle.meta().admits(node_id, answer.store_id)).then_some(answer)
    }

    fn report(&self, view: &MetaView, seen: &Seen) {
        let alive = seen.nodes.iter().filter(|(id, n)| n.alive && view.nodes.get(id).is_some_and(is_present));
        metrics::gauge!("carillon_steward_nodes_alive").set(alive.count() as f64);
        metrics::gauge!("carillon_steward_groups_seen").set(seen.groups.len() as f64);
        metrics::gauge!("carillon_steward_feature_level").set(f64::from(view.level));
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

fn log(step: &Step, result: Result<(), String>) {
    let kind = match step {
        Step::Meta(_) => "meta",
        Step::Create { .. } => "create",
        Step::Destroy { .. } => "destroy",
        Step::Conf { .. } => "conf",
        Step::Transfer { .. } => "transfer",
    };
    let outcome = if result.is_ok() { "done" } else { "failed" };
    metrics::counter!("carillon_steward_steps_total", "step" => kind, "outcome" => outcome).increment(1);
    match result {
        Ok(()) => tracing::info!(?step, "step done"),
        Err(reason) => tracing::warn!(?step, reason, "step failed; it will be planned again"),
    }
}
