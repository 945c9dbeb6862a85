//! The leases of this node: what it holds, and the loop that asks the leader of the meta group for it.
//!
//! The arithmetic is `carillon_delivery::lease`; here are its clock, its lock and its calls. Asking goes on for the life of the node, a
//! few times a second, because a lease ends after about one.
use super::grants::Grants;
use crate::engine::NodeHandle;
use crate::engine::peers::PeerChannels;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use carillon_delivery::GateSettings;
use carillon_delivery::lease::{
    Grant, HeldView, Holder, LeaseAnswer, LeaseRequest, LeaseSettings, LimitId, Wait,
};
use carillon_proto::internal::peer_client::PeerClient;
use carillon_proto::internal::{LaneAnswers, LeaseRequest as WireRequest, LeaseResponse, LeaseWant};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

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

    pub fn instant(self, at: Duration) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.0 + at)
    }
}

/// By which settings of limits this node goes (`carillon_delivery::lease::stamp`).
#[derive(Debug, Default)]
struct Limits {
    stamp: u64,
    since: Duration,
    /// The one before.
    before: u64,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Leases(Arc<Inner>);

struct Inner {
    clock: MonoClock,
    holder: Mutex<Holder>,
    /// Segments that wait for each limit; the keys are the limits that this node asks for.
    demand: Mutex<BTreeMap<LimitId, u32>>,
    /// What carriers answered since the last request.
    answers: Mutex<BTreeMap<u32, LaneAnswers>>,
    limits: Mutex<Limits>,
    /// Stamp to which all senders keep, and when the request left that was answered so.
    settled: watch::Sender<(u64, Duration)>,
    hurry: Notify,
    changed: watch::Sender<u64>,
}

impl Leases {
    pub fn new(node_id: u64, clock: MonoClock) -> Self {
        let incarnation = incarnation();
        let holder = Holder::new(LeaseSettings::default(), GateSettings::default(), node_id, incarnation);
        Self(Arc::new(Inner {
            clock,
            holder: Mutex::new(holder),
            demand: Mutex::default(),
            answers: Mutex::default(),
            limits: Mutex::default(),
            settled: watch::Sender::new((0, Duration::ZERO)),
            hurry: Notify::new(),
            changed: watch::Sender::new(0),
        }))
    }

    pub fn clock(&self) -> MonoClock {
        self.0.clock
    }

    pub fn view(&self, limit: LimitId) -> HeldView {
        self.0.holder.lock().view(limit, self.0.clock.now())
    }

    /// What is held of all these limits together: the slowest of them, and when the last of them opens.
    pub fn view_of(&self, stack: &[LimitId]) -> HeldView {
        self.0.holder.lock().view_of(stack, self.0.clock.now())
    }

    /// Permits of all these limits for segments that leave together, and until when they are good.
    pub fn try_take(&self, stack: &[LimitId], segments: u32) -> Result<tokio::time::Instant, Wait> {
        let mut holder = self.0.holder.lock();
        // Under the lock, or a permit could be older than it looks.
        let now = self.0.clock.now();
        let ask_at = holder.ask_at();
        let taken = holder.try_take_all(stack, segments, now);
        if holder.ask_at() < ask_at {
            // It needs more than it holds.
            self.0.hurry.notify_one();
        }
        taken.map(|permit| self.0.clock.instant(permit.fresh_until))
    }

    /// When these limits have permits for so many segments at once; `None` = something is not held.
    pub fn free_at(&self, stack: &[LimitId], segments: u32) -> Option<tokio::time::Instant> {
        let mut holder = self.0.holder.lock();
        let ask_at = holder.ask_at();
        let found = holder.free_at(stack, segments, self.0.clock.now());
        if holder.ask_at() < ask_at {
            // It needs more than it holds.
            self.0.hurry.notify_one();
        }
        found.ok().map(|(free_at, _)| self.0.clock.instant(free_at))
    }

    /// A share that needs no lease; 0 = leases only.
    pub fn set_fixed(&self, limit: LimitId, share: u32) {
        let mut holder = self.0.holder.lock();
        if holder.fixed(limit) != share {
            holder.set_fixed(limit, share, self.0.clock.now());
            drop(holder);
            self.wake();
        }
    }

    pub fn forget(&self, limit: LimitId) {
        self.0.holder.lock().forget(limit);
    }

    /// What waits for each limit. First work for a limit of which nothing is held makes the node ask at once.
    pub fn set_demand(&self, demand: BTreeMap<LimitId, u32>) {
        let now = self.0.clock.now();
        let before = std::mem::replace(&mut *self.0.demand.lock(), demand.clone());
        let new =
            demand.iter().filter(|(limit, waits)| **waits > 0 && before.get(limit).is_none_or(|w| *w == 0));
        let mut holder = self.0.holder.lock();
        if new.into_iter().any(|(limit, _)| holder.view(*limit, now).tokens == 0) {
            holder.hurry(now);
            drop(holder);
            self.0.hurry.notify_one();
        }
    }

    /// A carrier answered an attempt; `throttled`: it was too fast, and this is the pause that it asked for.
    pub fn answered(&self, carrier_no: u32, throttled: Option<Duration>) {
        let now = self.0.clock.now();
        {
            let mut answers = self.0.answers.lock();
            let known = answers.entry(carrier_no).or_insert(LaneAnswers { carrier_no, ..Default::default() });
            known.attempts += 1;
            let Some(pause) = throttled else { return };
            known.throttled += 1;
            known.pause_ms = known.pause_ms.max(u32::try_from(pause.as_millis()).unwrap_or(u32::MAX));
        }
        let mut holder = self.0.holder.lock();
        holder.close_until(carrier_no, now + throttled.unwrap_or_default());
        holder.hurry(now);
        drop(holder);
        self.0.hurry.notify_one();
    }

    /// Segments that wait for a limit.
    pub fn waiting(&self, limit: LimitId) -> u64 {
        self.0.demand.lock().get(&limit).copied().unwrap_or(0).into()
    }

    /// Which limits are daily caps, and their amounts.
    pub fn set_caps(&self, caps: &BTreeMap<LimitId, u32>) {
        self.0.holder.lock().set_caps(caps);
    }

    /// From now on no permit is taken by other settings than these: whoever waits at a gate looks again which limits it needs.
    pub fn set_stamp(&self, stamp: u64) {
        let now = self.0.clock.now();
        {
            let mut limits = self.0.limits.lock();
            if limits.stamp == stamp {
                return;
            }
            *limits = Limits { stamp, since: now, before: limits.stamp };
        }
        self.wake();
        self.0.holder.lock().hurry(now);
        self.0.hurry.notify_one();
    }

    pub fn stamp(&self) -> u64 {
        self.0.limits.lock().stamp
    }

    /// What the grantor is told: a change counts when permits that were taken before are used or void.
    fn kept_stamp(&self, stale_after: Duration) -> u64 {
        let limits = self.0.limits.lock();
        let rests = self.0.clock.now() < limits.since + 2 * stale_after;
        if rests && limits.before != 0 { limits.before } else { limits.stamp }
    }

    /// Waits until every sender of the cluster keeps to the settings of a view that this node has now; a sender that does not answer
    /// counts no more when its lease has run out. False: not in this time. `stamp`: of the present view.
    pub async fn until_settled(&self, stamp: impl Fn() -> u64, limit: Duration) -> bool {
        let since = self.0.clock.now();
        let mut settled = self.0.settled.subscribe();
        let seen = settled.wait_for(|(settled, asked_at)| *asked_at >= since && *settled == stamp());
        matches!(tokio::time::timeout(limit, seen).await, Ok(Ok(_)))
    }

    pub fn cap_left(&self, limit: LimitId) -> Option<u32> {
        self.0.holder.lock().cap_left(limit, self.0.clock.now())
    }

    pub fn wake(&self) {
        self.0.changed.send_modify(|count| *count += 1);
    }

    /// Changes with everything that is held.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Asks for the life of the node. To be begun when this node knows what it told the others before.
    pub async fn run(self, handle: NodeHandle, channels: Arc<PeerChannels>, grants: Grants) {
        loop {
            if !handle.meta().leases() {
                let mut meta = handle.meta_changes();
                meta.borrow_and_update();
                if !handle.meta().leases() && meta.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let at = self.0.clock.instant(self.0.holder.lock().ask_at());
            if tokio::time::timeout_at(at, self.0.hurry.notified()).await.is_ok() {
                continue;
            }
            self.ask(&handle, &channels, &grants).await;
        }
    }

    async fn ask(&self, handle: &NodeHandle, channels: &PeerChannels, grants: &Grants) {
        let demand = self.0.demand.lock().clone();
        let (request, asked_at) = {
            let mut holder = self.0.holder.lock();
            let ended = holder.ended();
            let (stamp, now) = (self.kept_stamp(holder.settings().stale_after), self.0.clock.now());
            let request = holder.ask(&demand, stamp, now);
            metrics::counter!("carillon_leases_ended_total").increment(holder.ended() - ended);
            (request, now)
        };
        let stamp = request.stamp;
        let answers: Vec<LaneAnswers> = std::mem::take(&mut *self.0.answers.lock()).into_values().collect();
        let leader = handle.leadership(0).leader;
        let limit = self.0.holder.lock().settings().patience();
        let answer = async {
            if leader == handle.node_id() {
                return grants.serve(request, &answers).await;
            }
            let mut call = tonic::Request::new(to_wire(&request, grants.kept(), answers));
            call.set_timeout(limit);
            let answer = PeerClient::new(channels.get(leader)?).lease(call).await.ok()?;
            Some(from_wire(answer.into_inner()))
        };
        let answer = tokio::time::timeout(limit, answer).await.ok().flatten();
        let outcome = if answer.is_some() { "granted" } else { "failed" };
        metrics::counter!("carillon_lease_requests_total", "outcome" => outcome).increment(1);
        let Some(answer) = answer else { return };
        {
            let mut holder = self.0.holder.lock();
            holder.answer(&answer, self.0.clock.now());
        }
        if answer.settled {
            self.0.settled.send_replace((stamp, asked_at));
        }
        self.wake();
    }
}

/// Of this process; nobody had it before.
fn incarnation() -> u64 {
    let mut bytes = [0; 8];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the system has random numbers, or no key could have been made");
    u64::from_be_bytes(bytes)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn to_wire(request: &LeaseRequest, shares_epoch: u64, answers: Vec<LaneAnswers>) -> WireRequest {
    let wants = request.wants.iter().map(|want| LeaseWant {
        limit: want.limit,
        held: want.held,
        used_ago_us: want.used_ago.map_or(0, |ago| micros(ago).saturating_add(1)),
        segments: want.segments,
        skipped: want.skipped,
        // Rounded up: too long is safe.
        skipped_for_us: micros(want.skipped_for).saturating_add(1),
        need: want.need,
        owes_us: if want.owes.is_zero() { 0 } else { micros(want.owes).saturating_add(1) },
    });
    WireRequest {
        incarnation: request.incarnation,
        seq: request.seq,
        stamp: request.stamp,
        shares_epoch,
        wants: wants.collect(),
        answers,
    }
}

fn from_wire(answer: LeaseResponse) -> LeaseAnswer {
    let grants = answer.grants.iter().map(|grant| Grant {
        limit: grant.limit,
        tokens: grant.tokens,
        whole: grant.whole,
        frame: Duration::from_micros(grant.frame_us),
    });
    LeaseAnswer {
        seq: answer.seq,
        ttl: Duration::from_millis(answer.ttl_ms.into()),
        grants: grants.collect(),
        ask_after: (answer.ask_after_us > 0).then(|| Duration::from_micros(answer.ask_after_us)),
        settled: answer.settled,
    }
}
