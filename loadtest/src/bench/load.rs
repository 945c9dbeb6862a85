//! One load: connections, a pace, and what came of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use super::cost::{Cost, Process, Watch};
use super::feed::Feed;
use super::measure::{Health, Summary};
use super::pacer::{Paced, pace};
use super::stream::{Backlog, Connection, Seen, Shared};
use crate::client::{Client, why};
use crate::proc;

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// Closed loop: every window is kept full.
    Max,
    /// Open loop: messages per second.
    Rate(f64),
}

impl std::str::FromStr for Pace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        match text.parse::<f64>() {
            Ok(rate) if (1.0..=10_000_000.0).contains(&rate) => Ok(Self::Rate(rate)),
            _ => Err("neither max nor a rate of 1 to 10000000 messages a second".to_owned()),
        }
    }
}

/// A load to put on.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    pub pace: Pace,
    pub warm_up: Duration,
    pub measured: Duration,
    /// Messages in a batch, 1 to 1,000.
    pub batch: usize,
    /// Batches in flight on each connection, 1 to 32.
    pub window: usize,
    /// Accepted messages that are not finished, at most (closed loop only).
    pub unfinished_max: u64,
    /// Whose cost is measured.
    pub processes: Vec<Process>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct LoadResult {
    pub pace: Pace,
    pub connections: usize,
    pub batch: usize,
    pub window: usize,
    pub accepted: u64,
    pub refused: BTreeMap<String, u64>,
    pub measured_s: f64,
    pub accepted_per_s: f64,
    /// From the intended time; in a closed loop the same as `service`.
    pub response: Summary,
    pub service: Summary,
    pub health: Health,
    pub cost: Cost,
}

impl std::fmt::Display for LoadResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pace = match self.pace {
            Pace::Max => "closed loop, as fast as it goes".to_owned(),
            Pace::Rate(rate) => format!("open loop, {rate:.0}/s asked"),
        };
        let Self { connections, batch, window, .. } = self;
        writeln!(f, "  {pace}; {connections} connections, batches of {batch}, {window} in flight on each")?;
        writeln!(
            f,
            "  accepted       {:.0}/s over {:.1} s ({} in all)",
            self.accepted_per_s, self.measured_s, self.accepted
        )?;
        if !self.refused.is_empty() {
            writeln!(f, "  refused        {:?}", self.refused)?;
        }
        writeln!(f, "  response time  {}", self.response)?;
        writeln!(f, "  service time   {}", self.service)?;
        writeln!(f, "  generator      {}", self.health)?;
        write!(f, "{}", self.cost)
    }
}

/// A load under way; `shared` is there before it ends so that others can count into its backlog.
pub struct Load {
    pub shared: Arc<Shared>,
    clients: Vec<Client>,
    config: LoadConfig,
    start: Instant,
}

impl Load {
    pub fn new(clients: Vec<Client>, feed: Feed, config: LoadConfig) -> Self {
        // Time to connect before the first batch is due.
        let start = Instant::now() + Duration::from_millis(300);
        let measure_from = start + config.warm_up;
        let shared = Arc::new(Shared {
            feed: Mutex::new(feed),
            next_batch: AtomicU64::new(1),
            batch: config.batch,
            window: config.window,
            measure_from,
            send_until: measure_from + config.measured,
            stop: AtomicBool::new(false),
            backlog: Backlog::new(config.unfinished_max),
        });
        Self { shared, clients, config, start }
    }

    /// Runs to the last answer.
    pub async fn run(self) -> anyhow::Result<LoadResult> {
        let (cpu_before, begun) = (proc::cpu_time(None)?, Instant::now());
        let deadline = self.config.warm_up + self.config.measured + Duration::from_secs(60);
        let mut connections = Vec::new();
        for client in &self.clients {
            connections.push({
                let opened = Connection::open(client, self.shared.clone(), deadline).await;
                opened.map_err(|status| anyhow::anyhow!("the stream was refused: {}", why(&status)))?
            });
        }
        let shared = &self.shared;
        let watch = Watch::between(self.config.processes.clone(), shared.measure_from, shared.send_until);
        let watch = tokio::spawn(watch);
        let (seen, paced) = match self.config.pace {
            Pace::Max => (self.closed(connections).await?, Paced::default()),
            Pace::Rate(rate) => self.open(connections, rate).await?,
        };
        let cpu = (proc::cpu_time(None)? - cpu_before).as_secs_f64();
        let health = Health {
            cpu_cores: cpu / begun.elapsed().as_secs_f64(),
            cpu_us_per_message: cpu * 1e6 / seen.accepted.max(1) as f64,
            lag_p99_ms: if paced.lag.count() > 0 { paced.lag.quantile_ms(0.99) } else { 0.0 },
            late: paced.late,
            skipped: paced.skipped,
            invalid: None,
        };
        let (response, service) = (seen.response.summary(), seen.service.summary());
        let paced_p99_ms = matches!(self.config.pace, Pace::Rate(_)).then_some(response.p99_ms);
        let measured_s = self.config.measured.as_secs_f64();
        Ok(LoadResult {
            pace: self.config.pace,
            connections: self.clients.len(),
            batch: self.config.batch,
            window: self.config.window,
            accepted: seen.accepted,
            refused: seen.refused,
            measured_s,
            accepted_per_s: seen.accepted_measured as f64 / measured_s,
            response,
            service,
            health: health.judge(paced_p99_ms),
            cost: watch.await??.of_each(seen.accepted_measured),
        })
    }

    async fn closed(&self, connections: Vec<Connection>) -> anyhow::Result<Seen> {
        let running = connections.into_iter().map(Connection::run_closed);
        let mut sum = Seen::default();
        for seen in futures::future::try_join_all(running).await? {
            sum.add(&seen);
        }
        Ok(sum)
    }

    async fn open(&self, connections: Vec<Connection>, rate: f64) -> anyhow::Result<(Seen, Paced)> {
        let senders: Vec<_> = connections.iter().map(|connection| connection.sender.clone()).collect();
        let every = Duration::from_secs_f64(self.config.batch as f64 / rate);
        let (shared, start, until) = (self.shared.clone(), self.start, self.shared.send_until);
        let pacer = tokio::task::spawn_blocking(move || {
            let times = (0_u32..).map(|n| every.saturating_mul(n)).take_while(|at| start + *at < until);
            let never = AtomicBool::new(false);
            let paced = pace(&senders, times, start, &never, |_| {});
            shared.stop.store(true, Ordering::Release);
            paced
        });
        let mut sum = Seen::default();
        let running = connections.into_iter().map(Connection::run_open);
        for seen in futures::future::try_join_all(running).await? {
            sum.add(&seen);
        }
        let paced = pacer.await?;
        anyhow::ensure!(!paced.stream_gone, "a stream ended while the pacer was sending");
        Ok((sum, paced))
    }
}
