//! The leader's side of leases: gives them out while this node leads the meta group.
//!
//! Invariant: it gives only after a majority has confirmed, later than the request came, that this node still leads; and each term
//! begins with empty books (`carillon_delivery::lease` says why that is safe).
//!
//! What carriers answer comes with the requests. Where more than a few attempts were too fast, the lane pauses for everybody and is
//! eased: that is a command of the meta group, so the next leader knows it; it gets back what it lost with time.
//! Slices of daily caps are commands, too: a slice is given only after it is committed as taken.
use super::leases::MonoClock;
use super::shares::ShareKeeper;
use crate::clock::now_ms as clock_ms;
use crate::engine::NodeHandle;
use carillon_core::meta::MetaView;
use carillon_delivery::GateSettings;
use carillon_delivery::lease::{
    Easer, Grant, Grantor, LaneView, LeaseAnswer, LeaseRequest, LeaseSettings, LimitId, WANTS_MAX, Want,
    rules, slices, stamp,
};
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::{
    LaneAnswers, LeaseGrant, LeaseRequest as WireRequest, LeaseResponse, MetaCommand,
};
use parking_lot::Mutex;
use prost::Message as _;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Cheap to clone.
#[derive(Clone)]
pub struct Grants(Arc<Inner>);

struct Inner {
    handle: NodeHandle,
    clock: MonoClock,
    shares: ShareKeeper,
    desk: Mutex<Option<Desk>>,
}

/// The books of one term.
struct Desk {
    term: u64,
    grantor: Grantor,
    /// Epoch of the shares that each node keeps to.
    kept: BTreeMap<u64, u64>,
    easer: Easer,
    surprises: u64,
}

impl Grants {
    pub fn new(handle: NodeHandle, clock: MonoClock, shares: ShareKeeper) -> Self {
        Self(Arc::new(Inner { handle, clock, shares, desk: Mutex::default() }))
    }

    /// Epoch of the shares that this node keeps to.
    pub fn kept(&self) -> u64 {
        self.0.shares.kept(Instant::now())
    }

    /// This node's own request.
    pub async fn serve(&self, request: LeaseRequest, answers: &[LaneAnswers]) -> Option<LeaseAnswer> {
        self.give(request, self.kept(), answers).await
    }

    /// Another node's request. `None`: not the leader, or not confirmed.
    pub async fn serve_wire(&self, node_id: u64, request: WireRequest) -> Option<LeaseResponse> {
        if request.wants.len() > WANTS_MAX {
            return None;
        }
        let wants = request.wants.iter().map(|want| Want {
            limit: want.limit,
            held: want.held,
            used_ago: (want.used_ago_us > 0).then(|| Duration::from_micros(want.used_ago_us - 1)),
            segments: want.segments,
            skipped: want.skipped,
            skipped_for: Duration::from_micros(want.skipped_for_us),
            need: want.need,
            owes: Duration::from_micros(want.owes_us),
        });
        let own = LeaseRequest {
            node_id,
            incarnation: request.incarnation,
            seq: request.seq,
            stamp: request.stamp,
            wants: wants.collect(),
        };
        let answer = self.give(own, request.shares_epoch, &request.answers).await?;
        let grants = answer.grants.iter().map(|grant| LeaseGrant {
            limit: grant.limit,
            tokens: grant.tokens,
            whole: grant.whole,
            frame_us: u64::try_from(grant.frame.as_nanos().div_ceil(1_000)).unwrap_or(u64::MAX),
        });
        let ask_after = answer.ask_after.map_or(0, |after| after.as_micros().max(1) as u64);
        Some(LeaseResponse {
            seq: answer.seq,
            ttl_ms: answer.ttl.as_millis() as u32,
            grants: grants.collect(),
            ask_after_us: ask_after,
            settled: answer.settled,
        })
    }

    async fn give(
        &self,
        request: LeaseRequest,
        shares_epoch: u64,
        answers: &[LaneAnswers],
    ) -> Option<LeaseAnswer> {
        let handle = &self.0.handle;
        if !handle.is_leader(0) {
            return None;
        }
        handle.read(0).await.ok()?;
        let leadership = handle.leadership(0);
        if leadership.leader != handle.node_id() {
            return None;
        }
        let view = handle.meta();
        let stamp = stamp(&view);
        // Whoever does not know of a cap yet gets nothing of it: the grantor sends it away.
        let slices = match request.stamp {
            0 => self.take_caps(&request, &view).await,
            kept if kept == stamp => self.take_caps(&request, &view).await,
            _ => Vec::new(),
        };
        let mut books = self.0.desk.lock();
        let now = self.0.clock.now();
        if books.as_ref().is_none_or(|desk| desk.term != leadership.term) {
            *books = Some(Desk {
                term: leadership.term,
                grantor: Grantor::new(LeaseSettings::default(), GateSettings::default(), now),
                kept: BTreeMap::new(),
                easer: Easer::default(),
                surprises: 0,
            });
        }
        let desk = books.as_mut()?;
        desk.kept.insert(request.node_id, shares_epoch);
        desk.kept.retain(|node_id, _| view.nodes.contains_key(node_id));
        for answer in answers {
            if let Some(command) = desk.easer.hear(answer, &view, clock_ms(), now) {
                let handle = handle.clone();
                let kind = Some(Kind::EaseLane(command));
                let command = MetaCommand { kind }.encode_to_vec().into();
                tokio::spawn(async move { handle.propose_meta(vec![command]).await.map(drop) });
            }
        }
        let mut rules = rules(&view, &desk.kept, clock_ms());
        desk.easer.pause(&mut rules, now);
        let mut answer = desk.grantor.serve(&request, &rules, stamp, now)?;
        answer.grants.extend(slices);
        let (_, surprises) = desk.grantor.counts();
        metrics::counter!("carillon_lease_surprises_total")
            .increment(surprises.saturating_sub(std::mem::replace(&mut desk.surprises, surprises)));
        Some(answer)
    }

    /// Slices of the daily caps that the node has too little of, all of them with one proposal: the answer must not take longer
    /// because there are many. What is refused, or may have been taken, is lost.
    async fn take_caps(&self, request: &LeaseRequest, view: &MetaView) -> Vec<Grant> {
        let wanted = slices(request, view, clock_ms());
        if wanted.is_empty() {
            return Vec::new();
        }
        let command = |take| MetaCommand { kind: Some(Kind::TakeCap(take)) }.encode_to_vec().into();
        let commands = wanted.iter().map(|(take, _)| command(*take)).collect();
        let Ok((_, texts)) = self.0.handle.propose_meta(commands).await else { return Vec::new() };
        let taken = wanted.into_iter().zip(texts).filter(|(_, text)| text.is_empty());
        taken.map(|((_, grant), _)| grant).collect()
    }

    /// The books of a limit, while this node leads the meta group.
    pub fn view(&self, limit: LimitId) -> Option<LaneView> {
        let leadership = self.0.handle.leadership(0);
        let desk = self.0.desk.lock();
        let desk = desk.as_ref().filter(|desk| desk.term == leadership.term)?;
        (leadership.leader == self.0.handle.node_id()).then(|| desk.grantor.view(limit)).flatten()
    }
}
