//! The connections of one connector seen as one lane: seats, idle connections, pause, state.
//!
//! Invariants
//!  - A seat is the right to have one request without an answer; there are never more than `connections` seats out, and
//!    each has at most one connection.
//!  - A connection is idle only after its last answer was read to the end.
//!  - A pause only ever gets longer.
use super::account::Account;
use super::http::Requests;
use super::meters::Meters;
use crate::connector::ConnectorState;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};

/// A connection is ready for its next request a moment after its last answer, or not at all.
const READY_WITHIN: Duration = Duration::from_secs(1);

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
    /// The last connect worked.
    pub connected: bool,
    /// Our credentials were refused with this HTTP status; until when nothing is tried.
    pub broken: Option<(u32, Instant)>,
    /// The next connect, while none has worked.
    pub next_try: Option<Instant>,
}

impl View {
    pub fn state(&self) -> ConnectorState {
        match self {
            View { phase: Phase::Draining | Phase::Leaving, .. } => ConnectorState::Draining,
            View { broken: Some((status, _)), .. } => ConnectorState::Broken { status: *status },
            View { connected: true, .. } => ConnectorState::Up,
            _ => ConnectorState::Down,
        }
    }

    /// When it is worth to come again.
    pub fn next(&self) -> Option<Instant> {
        self.broken.map(|(_, until)| until).or(self.next_try)
    }
}

struct Idle {
    requests: Requests,
    since: Instant,
}

pub(crate) struct Pool {
    pub account: Account,
    pub meters: Meters,
    seats: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
    paused_until: Mutex<Option<Instant>>,
    view: watch::Sender<View>,
    open: AtomicU32,
    /// Sends that have not ended.
    active: AtomicU32,
    none_active: Notify,
}

impl Pool {
    pub fn new(account: Account) -> Arc<Self> {
        let view = View { phase: Phase::Run, connected: false, broken: None, next_try: None };
        let meters = Meters::new(&account.carrier);
        meters.connections.set(0.0);
        Arc::new(Self {
            seats: Arc::new(Semaphore::new(account.connections)),
            account,
            meters,
            idle: Mutex::default(),
            paused_until: Mutex::default(),
            view: watch::Sender::new(view),
            open: AtomicU32::new(0),
            active: AtomicU32::new(0),
            none_active: Notify::new(),
        })
    }

    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    pub fn view(&self) -> View {
        *self.view.borrow()
    }

    fn change(&self, change: impl FnOnce(&mut View)) {
        self.view.send_if_modified(|view| {
            let before = *view;
            change(view);
            *view != before
        });
    }

    pub fn advance(&self, phase: Phase) {
        self.change(|view| view.phase = view.phase.max(phase));
    }

    /// The carrier refuses our credentials: nothing is tried for a while, because asking often locks accounts.
    pub fn broke(&self, status: u32) {
        let until = Instant::now() + self.account.tuning.broken_retry;
        self.change(|view| view.broken = Some((status, until)));
    }

    /// Connections that are open, in use or not.
    pub fn open(&self) -> u32 {
        self.open.load(Ordering::Acquire)
    }

    /// Waits for a seat. Fair, and safe to give up waiting for.
    pub async fn seat(self: &Arc<Self>) -> Seat {
        let permit = self.seats.clone().acquire_owned().await.expect("the semaphore is never closed");
        Seat { pool: self.clone(), _permit: permit, requests: None }
    }

    /// An idle connection that is still good.
    fn idle_one(&self) -> Option<Requests> {
        loop {
            // The freshest one: the others get old and are closed.
            let Idle { requests, since } = self.idle.lock().pop()?;
            if requests.is_ready() && since.elapsed() < self.account.tuning.idle_max {
                return Some(requests);
            }
            self.closed();
        }
    }

    async fn connect(&self) -> io::Result<Requests> {
        match self.account.origin.connect(&self.account.tuning).await {
            Ok(requests) => {
                let open = self.open.fetch_add(1, Ordering::AcqRel) + 1;
                self.meters.connections.set(f64::from(open));
                self.change(|view| (view.connected, view.next_try) = (true, None));
                Ok(requests)
            }
            Err(error) => {
                self.meters.connect_failures.increment(1);
                self.change(|view| view.connected = false);
                Err(error)
            }
        }
    }

    fn closed(&self) {
        let open = self.open.fetch_sub(1, Ordering::AcqRel) - 1;
        self.meters.connections.set(f64::from(open));
    }

    /// Closes what nobody uses.
    pub fn hang_up(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        idle.iter().for_each(|_| self.closed());
    }

    /// The carrier said "slow down": everybody waits, for the time it named or for so many throttle pauses. Gives the
    /// time until the end of the pause.
    pub fn pause(&self, told: Option<Duration>, times: u32) -> Duration {
        let base = told.unwrap_or(self.account.throttle_pause * times);
        // Up to a fifth longer, so that nodes do not come back in step.
        let until = Instant::now() + base + base.mul_f64(rand::random_range(0.0..0.2));
        let mut paused = self.paused_until.lock();
        if paused.is_none_or(|known| known <= Instant::now()) {
            self.meters.pauses.increment(1);
        }
        let longest = paused.map_or(until, |known| known.max(until));
        *paused = Some(longest);
        longest - Instant::now()
    }

    pub fn paused_until(&self) -> Option<Instant> {
        self.paused_until.lock().filter(|until| *until > Instant::now())
    }

    pub fn in_flight(&self) -> u32 {
        self.active.load(Ordering::Acquire)
    }

    /// Counts a send until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> Active {
        self.active.fetch_add(1, Ordering::AcqRel);
        self.meters.in_flight.increment(1.0);
        Active(self.clone())
    }

    /// Waits until nothing is under way.
    pub async fn idle(&self) {
        loop {
            let woken = self.none_active.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            woken.await;
        }
    }
}

/// One send or callback under way.
pub(crate) struct Active(Arc<Pool>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.meters.in_flight.decrement(1.0);
        if self.0.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none_active.notify_waiters();
        }
    }
}

/// The right to have one request without an answer, and the connection for it.
pub(crate) struct Seat {
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
    requests: Option<Requests>,
}

impl Seat {
    /// The connection of this seat: an idle one, or a new one.
    pub async fn connected(&mut self) -> io::Result<&mut Requests> {
        if self.requests.as_ref().is_some_and(Requests::is_closed) {
            self.requests = None;
            self.pool.closed();
        }
        if self.requests.is_none() {
            self.requests = match self.pool.idle_one() {
                Some(requests) => Some(requests),
                None => Some(self.pool.connect().await?),
            };
        }
        Ok(self.requests.as_mut().expect("set above"))
    }

    /// The last answer was read to its end: the connection can serve again as soon as it says so.
    pub async fn keep(mut self) {
        let ready = match &mut self.requests {
            Some(requests) => timeout(READY_WITHIN, requests.ready()).await.is_ok_and(|ready| ready.is_ok()),
            None => false,
        };
        if ready
            && self.pool.view().phase != Phase::Leaving
            && let Some(requests) = self.requests.take()
        {
            self.pool.idle.lock().push(Idle { requests, since: Instant::now() });
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.requests.take().is_some() {
            self.pool.closed();
        }
    }
}

/// Connects until it works, and again when it no longer does; ends a broken time. Runs until the connector leaves.
pub(crate) async fn keep_connected(pool: Arc<Pool>) {
    let mut view = pool.watch();
    let mut attempts: u32 = 0;
    loop {
        let now = *view.borrow_and_update();
        if now.phase != Phase::Run {
            return;
        }
        if let Some((_, until)) = now.broken {
            tokio::select! {
                () = sleep_until(until) => pool.change(|view| view.broken = None),
                changed = view.changed() => if changed.is_err() { return },
            }
            continue;
        }
        if now.connected {
            attempts = 0;
            if view.changed().await.is_err() {
                return;
            }
            continue;
        }
        match pool.connect().await {
            Ok(requests) => pool.idle.lock().push(Idle { requests, since: Instant::now() }),
            Err(error) => {
                // Without the error's text: it may name what a proxy put into it.
                tracing::warn!(carrier = pool.account.carrier, kind = ?error.kind(), "connect failed");
                let next_try = Instant::now() + backoff(&pool, attempts);
                attempts = attempts.saturating_add(1);
                pool.change(|view| view.next_try = Some(next_try));
                let leaving = view.wait_for(|view| view.phase != Phase::Run || view.connected);
                tokio::select! {
                    () = sleep_until(next_try) => {}
                    gone = leaving => if gone.is_err() { return },
                }
            }
        }
    }
}

/// Doubles up to the limit; half of it is left to chance, so that nodes do not come back in step.
fn backoff(pool: &Pool, attempts: u32) -> Duration {
    let tuning = &pool.account.tuning;
    let full = tuning.reconnect_base.saturating_mul(1 << attempts.min(20)).min(tuning.reconnect_max);
    full.mul_f64(rand::random_range(0.5..1.0))
}
