//! The generator: sends the schedule over its connections and tells every second what came of it.
//!
//! Owns: the order of a generator's run: connect, wait for the common start, pace (open loop) or keep windows full (closed
//! loop), wait for the last answers. One process is one generator; several share a schedule (see `workers`).
//! Invariant: when [`run`] returns, everything that was acknowledged is in the spilled files.

pub mod hours;
pub mod interval;
pub mod outlet;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use carillon_proto::tls::TlsFiles;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::scenario::{Kind, Loop, Scenario};
use super::shape::Shape;
use super::spill::Spill;
use super::workload::Workload;
use crate::bench::pacer::{Outlet as _, pace};
use crate::bulk::{Batch, BulkConfig, submit_all, submit_one};
use crate::client::{Client, ClientConfig};
use crate::{proc, watch};
use interval::{Interval, Recorder};
use outlet::{Notes, Outlet, Shared};

pub use outlet::{bucket_of_id, now_us};

/// Answers that wait for the collector of a connection.
const ANSWERS_MAX: usize = 32;
const POLL: Duration = Duration::from_millis(20);
/// How long a run that was stopped waits for answers that are on their way.
const STOPPED_WAIT: Duration = Duration::from_secs(5);

/// Where the cluster is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Address {
    /// host:port of the public API.
    pub router: String,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
}

impl Address {
    pub fn client(&self, config: ClientConfig) -> anyhow::Result<Client> {
        let files = TlsFiles { cert: self.cert.clone(), key: self.key.clone(), ca: self.ca.clone() };
        Ok(Client::connect(&self.router, &files, config)?)
    }
}

/// What one generator has to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    pub scenario: Scenario,
    pub address: Address,
    pub worker: u64,
    pub workers: u64,
    /// Keeps the keys of one run apart from those of another.
    pub run: u32,
    /// When the first message is due to be sent, in ms since the epoch.
    pub start_ms: i64,
    /// Where to write down what was acknowledged.
    pub spill: PathBuf,
}

/// What is left to say at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Messages sent whose answer never came.
    pub in_doubt: u64,
    /// A connection gave up, and sending ended early.
    pub gave_up: Option<String>,
}

/// The moment on this process's clock at which the wall clock shows `at_ms`.
fn instant_of(at_ms: i64) -> Instant {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
    let ahead = Duration::from_millis(at_ms.saturating_sub(now_ms).max(0) as u64);
    Instant::now() + ahead
}

struct Engine {
    shared: Arc<Shared>,
    start: Instant,
    until: Instant,
    stop: CancellationToken,
    stopped: Arc<AtomicBool>,
    bulk: BulkConfig,
    outlets: Vec<Outlet>,
    connections: JoinSet<anyhow::Result<()>>,
}

impl Engine {
    fn new(order: &Order, stop: CancellationToken) -> anyhow::Result<Self> {
        let scenario = order.scenario.clone();
        let start = instant_of(order.start_ms);
        let measure_from = start + Duration::from_secs_f64(scenario.warm_up_s);
        let writer = order.worker.to_string();
        let notes = Notes {
            acks: Spill::create(&order.spill, "acks", &writer)?,
            cancels: Spill::create(&order.spill, "cancels", &writer)?,
        };
        let generator = &scenario.generator;
        let bulk = BulkConfig {
            window: usize::from(generator.window),
            answer_timeout: Duration::from_millis(generator.deadline_ms),
            patience: Duration::from_secs(generator.patience_s),
            ..BulkConfig::default()
        };
        let workload = Workload::new(&scenario, order.run, order.start_ms)?;
        let until = start + Duration::from_secs_f64(scenario.length_s());
        let place = (order.worker, order.workers);
        let recorder = Recorder::new(start, measure_from);
        let shared = Arc::new(Shared::new(scenario, workload, recorder, place, notes));
        let mut engine = Self {
            shared,
            start,
            until,
            stop,
            stopped: Arc::default(),
            bulk,
            outlets: Vec::new(),
            connections: JoinSet::new(),
        };
        engine.connect(&order.address)?;
        Ok(engine)
    }

    fn connect(&mut self, address: &Address) -> anyhow::Result<()> {
        let generator = self.shared.scenario.generator.clone();
        let config = ClientConfig {
            deadline: Duration::from_millis(generator.deadline_ms),
            patience: Duration::from_secs(generator.patience_s),
        };
        for connection in 0..usize::from(generator.connections) {
            let client = address.client(config)?;
            let in_flight = Arc::<AtomicUsize>::default();
            let (batches, inbox) = mpsc::channel(usize::from(generator.window));
            self.outlets.push(Outlet {
                shared: self.shared.clone(),
                client: client.clone(),
                batches,
                in_flight: in_flight.clone(),
                window: usize::from(generator.window),
                connection,
                handle: tokio::runtime::Handle::current(),
            });
            let (shared, bulk) = (self.shared.clone(), self.bulk);
            if generator.kind == Kind::Stream {
                self.connections.spawn(stream(shared, client, bulk, inbox, in_flight, connection));
            } else {
                self.connections.spawn(calls(shared, client, bulk, inbox, in_flight));
            }
        }
        Ok(())
    }

    /// Sends until the schedule ends or the run is stopped; says why it ended early.
    async fn send(&mut self) -> anyhow::Result<Option<String>> {
        let outlets = std::mem::take(&mut self.outlets);
        if self.shared.scenario.pacing == Loop::Closed {
            return Ok(self.closed(outlets).await);
        }
        let shape = Shape::new(&self.shared.scenario.phases);
        let times = shape.arrivals(&self.shared.scenario, self.shared.worker, self.shared.workers);
        let (shared, start, stopped) = (self.shared.clone(), self.start, self.stopped.clone());
        let pacer = tokio::task::spawn_blocking(move || {
            pace(&outlets, times, start, &stopped, |lag| shared.recorder.paced(lag))
        });
        let paced = pacer.await.context("the pacer ended early")?;
        Ok(paced.stream_gone.then(|| "a connection gave up, and sending ended early".to_owned()))
    }

    /// Keeps every window full.
    async fn closed(&self, outlets: Vec<Outlet>) -> Option<String> {
        tokio::time::sleep_until(self.start.into()).await;
        while Instant::now() < self.until && !self.stop.is_cancelled() {
            for outlet in &outlets {
                while outlet.has_room() {
                    if !outlet.send(Instant::now()) {
                        return Some("a connection gave up, and sending ended early".to_owned());
                    }
                }
            }
            // The answers that came meanwhile have left a permit.
            let _or_the_end = tokio::time::timeout(POLL, self.shared.answered.notified()).await;
        }
        None
    }

    /// Waits until everything is answered; not for long if the run was stopped.
    async fn settle(&self) {
        let patience = self.bulk.patience + self.bulk.answer_timeout;
        let mut until = Instant::now() + patience;
        while self.shared.open.load(Ordering::Acquire) > 0 && Instant::now() < until {
            if self.stop.is_cancelled() {
                until = until.min(Instant::now() + STOPPED_WAIT);
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// A connection with one stream.
async fn stream(
    shared: Arc<Shared>,
    client: Client,
    bulk: BulkConfig,
    inbox: mpsc::Receiver<Batch>,
    in_flight: Arc<AtomicUsize>,
    connection: usize,
) -> anyhow::Result<()> {
    let (answers, mut answers_out) = mpsc::channel(ANSWERS_MAX);
    let collect = async {
        while let Some(answered) = answers_out.recv().await {
            shared.answered(&answered, &in_flight);
        }
    };
    let (ended, ()) = tokio::join!(submit_all(client, bulk, inbox, answers), collect);
    if let Err(error) = ended {
        shared.gave_up(connection, "connection gave up", &in_flight);
        return Err(error.into());
    }
    Ok(())
}

/// A connection with one call for each batch.
async fn calls(
    shared: Arc<Shared>,
    client: Client,
    bulk: BulkConfig,
    mut inbox: mpsc::Receiver<Batch>,
    in_flight: Arc<AtomicUsize>,
) -> anyhow::Result<()> {
    // No more of them than the window lets through.
    let mut open = JoinSet::new();
    while let Some(batch) = inbox.recv().await {
        let (shared, client, in_flight) = (shared.clone(), client.clone(), in_flight.clone());
        open.spawn(async move {
            let answered = submit_one(&client, &bulk, batch).await;
            shared.answered(&answered, &in_flight);
        });
        while open.try_join_next().is_some() {}
    }
    while open.join_next().await.is_some() {}
    Ok(())
}

/// Tells every second what happened, until `done`.
async fn tell(shared: Arc<Shared>, start: Instant, out: mpsc::Sender<Interval>, done: CancellationToken) {
    let mut cpu_before = proc::cpu_time(None).unwrap_or_default();
    for second in 0.. {
        let end = start + Duration::from_secs(second + 1);
        let last = tokio::select! {
            () = tokio::time::sleep_until(end.into()) => false,
            () = done.cancelled() => true,
        };
        let cpu = proc::cpu_time(None).unwrap_or_default();
        let cpu_us = cpu.saturating_sub(cpu_before).as_micros() as u64;
        cpu_before = cpu;
        let sending = shared.open.load(Ordering::Acquire) > 0;
        if out.send(shared.recorder.take(shared.worker, second, cpu_us, sending)).await.is_err() || last {
            return;
        }
    }
}

fn watchers(order: &Order, shared: &Arc<Shared>, stop: &CancellationToken) -> anyhow::Result<JoinSet<()>> {
    let mut watchers = JoinSet::new();
    if order.worker == 0 {
        for _ in 0..order.scenario.mix.watchers {
            let (client, shared) = (order.address.client(ClientConfig::default())?, shared.clone());
            let stop = stop.clone();
            watchers.spawn(async move {
                let count = shared.clone();
                let followed = watch::follow(client, stop, || {}, move |_| count.recorder.events(1)).await;
                if let Err(status) = followed {
                    shared.recorder.failed(&format!("watch: {:?}", status.code()), 1);
                }
            });
        }
    }
    Ok(watchers)
}

/// Runs one generator. Intervals go to `out` while it runs; `stop` ends sending early.
pub async fn run(order: &Order, out: mpsc::Sender<Interval>, stop: CancellationToken) -> anyhow::Result<End> {
    let mut engine = Engine::new(order, stop.clone())?;
    let shared = engine.shared.clone();
    let done = CancellationToken::new();
    let teller = tokio::spawn(tell(shared.clone(), engine.start, out, done.clone()));
    let mut watchers = watchers(order, &shared, &done)?;
    let stopper = {
        let (stop, stopped, done) = (stop.clone(), engine.stopped.clone(), done.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => stopped.store(true, Ordering::Relaxed),
                () = done.cancelled() => {}
            }
        })
    };
    let mut gave_up = engine.send().await?;
    engine.settle().await;
    let in_doubt = shared.in_doubt();
    if in_doubt > 0 {
        engine.connections.abort_all();
    }
    while let Some(ended) = engine.connections.join_next().await {
        if let Ok(Err(error)) = ended {
            gave_up = Some(error.to_string());
        }
    }
    done.cancel();
    teller.await.context("the interval timer ended early")?;
    stopper.await.context("the stopper ended early")?;
    watchers.abort_all();
    while watchers.join_next().await.is_some() {}
    drop(engine);
    if let Some(error) = shared.notes_error.lock().take() {
        anyhow::bail!("cannot write down what was acknowledged: {error}");
    }
    if let Some(notes) = shared.notes.lock().take() {
        notes.acks.finish()?;
        notes.cancels.finish()?;
    }
    Ok(End { in_doubt, gave_up })
}
