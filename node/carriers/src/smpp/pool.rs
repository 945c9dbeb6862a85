//! The binds of one connector seen as one lane: windows, pause, state.
//!
//! Invariants
//!  - A seat is the right to have one submit_sm unanswered on one bind; a bind never has more than `window` seats out,
//!    and a message keeps its seat until its last part is answered, also when its sender went away.
//!  - `permits + granted but not seated == free seats of live binds + debt`: when a bind goes, its free seats are
//!    taken back from the semaphore, and those that waiters already hold are written to `debt`.
//!  - A pause only ever gets longer.
//!  - Submits of one bind keep the distance that the contract sets (`bind_segments_per_second_max`), so that no second holds more on
//!    it; a bind that comes up begins without credit. A bind is one connection of one node, so nothing has to be shared.
use super::config::Account;
use super::meters::Meters;
use super::session::Submission;
use crate::connector::ConnectorState;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::Instant;

/// Percent of congestion up to which a carrier is well loaded (SMPP 5.0: 80 to 89 is the optimum).
const CONGESTION_NEAR: u32 = 90;

/// By how much the way to the carrier and late wake-ups may compress the submits of a bind.
const PACE_SLACK: Duration = Duration::from_millis(15);
/// How late a sender may come without losing its turn on a bind.
const CATCH_UP: Duration = Duration::from_millis(5);

/// How far the connector has gone towards its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Run,
    /// No new messages; those that are out are waited for.
    Draining,
    /// Say goodbye and end.
    Leaving,
}

/// The state of the lane that senders watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub phase: Phase,
    pub binds_up: u32,
    /// A bind was refused for its credentials, with this status.
    pub broken: Option<u32>,
    /// The next connect, when no bind is up and all of them wait.
    pub next_try: Option<Instant>,
}

impl View {
    pub fn state(&self) -> ConnectorState {
        match self {
            View { phase: Phase::Draining | Phase::Leaving, .. } => ConnectorState::Draining,
            View { binds_up: 1.., .. } => ConnectorState::Up,
            View { broken: Some(status), .. } => ConnectorState::Broken { status: *status },
            _ => ConnectorState::Down,
        }
    }
}

pub(crate) struct Pool {
    pub account: Account,
    pub meters: Meters,
    /// Free seats over all binds; fair, so senders are seated in order.
    seats: Semaphore,
    inner: Mutex<Inner>,
    view: watch::Sender<View>,
    /// Sends that have not ended.
    active: AtomicU32,
    idle: Notify,
}

struct Inner {
    slots: Vec<Slot>,
    debt: usize,
    generations: u64,
    paused_until: Option<Instant>,
}

#[derive(Default)]
struct Slot {
    live: Option<Live>,
    broken: Option<u32>,
    next_try: Option<Instant>,
}

struct Live {
    generation: u64,
    submissions: mpsc::Sender<Submission>,
    seats_out: usize,
    /// The next submit may leave on it.
    free_at: Instant,
}

impl Pool {
    pub fn new(account: Account) -> Arc<Self> {
        let slots = (0..account.binds).map(|_| Slot::default()).collect();
        let view = View { phase: Phase::Run, binds_up: 0, broken: None, next_try: None };
        let meters = Meters::new(&account.carrier);
        meters.binds_up.set(0.0);
        Arc::new(Self {
            account,
            meters,
            seats: Semaphore::new(0),
            inner: Mutex::new(Inner { slots, debt: 0, generations: 0, paused_until: None }),
            view: watch::Sender::new(view),
            active: AtomicU32::new(0),
            idle: Notify::new(),
        })
    }

    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    pub fn view(&self) -> View {
        *self.view.borrow()
    }

    pub fn advance(&self, phase: Phase) {
        self.view.send_if_modified(|view| {
            let changed = view.phase < phase;
            view.phase = view.phase.max(phase);
            changed
        });
    }

    /// A bind is up: its window is added to the lane. Gives the generation that names this session.
    pub fn session_up(&self, slot: usize, submissions: mpsc::Sender<Submission>) -> u64 {
        let mut inner = self.inner.lock();
        inner.generations += 1;
        let generation = inner.generations;
        let free_at = Instant::now() + self.bind_period().unwrap_or_default();
        inner.slots[slot] =
            Slot { live: Some(Live { generation, submissions, seats_out: 0, free_at }), ..Slot::default() };
        self.seats.add_permits(self.account.window);
        self.publish(&inner);
        generation
    }

    /// The session takes no more submits. Idempotent.
    pub fn session_down(&self, slot: usize, generation: u64) {
        let mut inner = self.inner.lock();
        match &inner.slots[slot].live {
            Some(live) if live.generation == generation => {
                let free = self.account.window - live.seats_out;
                inner.slots[slot].live = None;
                inner.debt += free - self.seats.forget_permits(free);
                self.publish(&inner);
            }
            _ => {}
        }
    }

    /// A bind waits for its next try.
    pub fn waiting(&self, slot: usize, next_try: Instant, broken: Option<u32>) {
        let mut inner = self.inner.lock();
        inner.slots[slot] = Slot { live: None, broken, next_try: Some(next_try) };
        self.publish(&inner);
    }

    /// A bind is being tried.
    pub fn trying(&self, slot: usize) {
        let mut inner = self.inner.lock();
        inner.slots[slot].next_try = None;
        self.publish(&inner);
    }

    fn publish(&self, inner: &Inner) {
        let binds_up = inner.slots.iter().filter(|slot| slot.live.is_some()).count() as u32;
        let broken = inner.slots.iter().find_map(|slot| slot.broken);
        let all_wait = inner.slots.iter().all(|slot| slot.next_try.is_some());
        let next_try = inner.slots.iter().filter_map(|slot| slot.next_try).min().filter(|_| all_wait);
        self.meters.binds_up.set(f64::from(binds_up));
        self.view.send_modify(|view| *view = View { phase: view.phase, binds_up, broken, next_try });
    }

    /// Distance of two submits on one bind.
    fn bind_period(&self) -> Option<Duration> {
        let most = self.account.contract.get().bind_segments_per_second_max?;
        Some((Duration::from_secs(1) + PACE_SLACK) / most)
    }

    /// Waits for a seat on the bind that is free first, of several the one with the fewest unanswered submits. Fair, and safe to give up waiting for.
    pub async fn seat(self: &Arc<Self>) -> Seat {
        loop {
            let permit = self.seats.acquire().await.expect("the semaphore is never closed");
            permit.forget();
            let mut inner = self.inner.lock();
            if inner.debt > 0 {
                inner.debt -= 1;
                continue;
            }
            let (window, now) = (self.account.window, Instant::now());
            let freest = inner
                .slots
                .iter_mut()
                .enumerate()
                .filter_map(|(slot, state)| state.live.as_mut().map(|live| (slot, live)))
                .filter(|(_, live)| live.seats_out < window)
                .min_by_key(|(_, live)| (live.free_at.max(now), live.seats_out));
            let (slot, live) = freest.expect("a permit without debt is a free seat of a live bind");
            live.seats_out += 1;
            let (generation, submissions) = (live.generation, live.submissions.clone());
            return Seat { pool: self.clone(), slot, generation, submissions };
        }
    }

    fn give_back(&self, slot: usize, generation: u64) {
        let mut inner = self.inner.lock();
        if let Some(live) = inner.slots[slot].live.as_mut().filter(|live| live.generation == generation) {
            live.seats_out -= 1;
            self.seats.add_permits(1);
        }
    }

    /// The carrier said "slow down": everybody waits. Gives the time until the end of the pause.
    pub fn pause(&self, times: u32) -> Duration {
        self.pause_for(self.account.throttle_pause * times)
    }

    /// The carrier says how full it is, in percent (5.0): near its limit the lane rests for a part of the throttle pause, at
    /// the limit for all of it, before it has to refuse anything.
    pub fn congested(&self, percent: u8) {
        let tenths = u32::from(percent.min(100)).saturating_sub(CONGESTION_NEAR);
        if tenths > 0 {
            self.meters.congestion.increment(1);
            self.pause_for(self.account.throttle_pause * tenths / 10);
        }
    }

    fn pause_for(&self, base: Duration) -> Duration {
        // Up to a fifth longer, so that nodes do not come back in step.
        let pause = base + base.mul_f64(rand::random_range(0.0..0.2));
        let until = Instant::now() + pause;
        let mut inner = self.inner.lock();
        let longest = inner.paused_until.map_or(until, |known| known.max(until));
        if inner.paused_until.is_none_or(|known| known <= Instant::now()) {
            self.meters.pauses.increment(1);
        }
        inner.paused_until = Some(longest);
        longest - Instant::now()
    }

    pub fn paused_until(&self) -> Option<Instant> {
        self.inner.lock().paused_until.filter(|until| *until > Instant::now())
    }

    pub fn in_flight(&self) -> u32 {
        self.active.load(Ordering::Acquire)
    }

    /// Counts a send until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> ActiveSend {
        self.active.fetch_add(1, Ordering::AcqRel);
        self.meters.in_flight.increment(1.0);
        ActiveSend(self.clone())
    }

    /// Waits until no send is under way.
    pub async fn idle(&self) {
        loop {
            let woken = self.idle.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            woken.await;
        }
    }
}

/// One send under way.
pub(crate) struct ActiveSend(Arc<Pool>);

impl Drop for ActiveSend {
    fn drop(&mut self) {
        self.0.meters.in_flight.decrement(1.0);
        if self.0.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// The right to have one submit_sm unanswered on one bind.
pub(crate) struct Seat {
    pool: Arc<Pool>,
    slot: usize,
    generation: u64,
    submissions: mpsc::Sender<Submission>,
}

impl Seat {
    /// When the bind has a turn.
    pub fn free_at(&self) -> Instant {
        let inner = self.pool.inner.lock();
        let live = inner.slots[self.slot].live.as_ref().filter(|live| live.generation == self.generation);
        // What is handed to a session that has ended comes back.
        live.map_or_else(Instant::now, |live| live.free_at)
    }

    /// Takes the next turn of the bind. False: somebody else was faster.
    pub fn take_turn(&self) -> bool {
        let Some(period) = self.pool.bind_period() else { return true };
        let mut inner = self.pool.inner.lock();
        let live = inner.slots[self.slot].live.as_mut().filter(|live| live.generation == self.generation);
        live.is_none_or(|live| take_turn(&mut live.free_at, period, Instant::now()))
    }

    /// Hands a PDU to the session; gives it back when the session has ended.
    pub fn submit(&self, submission: Submission) -> Result<(), Submission> {
        use mpsc::error::TrySendError::{Closed, Full};
        // The channel has room for every seat, so `Full` cannot happen; if it did, nothing would be written.
        self.submissions.try_send(submission).map_err(|(Closed(submission) | Full(submission))| submission)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.pool.give_back(self.slot, self.generation);
    }
}

/// Turns are a period apart; who comes a little late has not lost the time.
fn take_turn(free_at: &mut Instant, period: Duration, now: Instant) -> bool {
    if *free_at > now {
        return false;
    }
    *free_at = now.checked_sub(CATCH_UP).map_or(now, |early| early.max(*free_at)) + period;
    true
}

#[cfg(test)]
mod tests;
