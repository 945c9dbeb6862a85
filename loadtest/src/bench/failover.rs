//! How long callers wait when a node dies that leads a third of the partitions.
//!
//! Owns: the rounds. Each one waits until leadership is spread evenly, kills a node with SIGKILL and measures, for every
//! partition that it led, the first acknowledgement of a submit that began after its death. Submits are begun at a
//! fixed pace whether or not others are answered (open loop), with the deadline that the API recommends and no
//! repetitions, so what is measured includes detection, election, the router, and nothing of a caller's own back-off.
//! The clock starts before the kill is ordered, so the figures are a little too long, never too short.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::submit_result::Result as Item;
use carillon_proto::public::{MessageClass, MessageSpec, SubmitMessagesRequest};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ctl::{Ctl, balanced};
use super::feed::even_practices;
use super::{FAR, now_ms};
use crate::client::{Client, ClientConfig};
use crate::lab::Lab;
use crate::sample_day::{practices, timestamp};

/// Between two submits to one partition.
const PACE: Duration = Duration::from_millis(20);
const DEADLINE: Duration = Duration::from_secs(10);
/// A partition that has acknowledged nothing by then counts with this time.
const GIVE_UP: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The directory that `carillonctl lab up` made.
    #[arg(long)]
    pub lab: PathBuf,
    /// The `carillonctl` that kills and starts nodes; default: the one beside this program.
    #[arg(long)]
    pub ctl: Option<PathBuf>,
    /// Kills, one after the other, of each node in turn.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// The figure must be below this, in seconds.
    #[arg(long, default_value_t = 3.0)]
    pub target_s: f64,
    /// Write the result to this file as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// One kill.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    pub node: u64,
    /// Partition: milliseconds until its first acknowledgement.
    pub first_ack_ms: BTreeMap<u32, u64>,
}

impl Round {
    /// When every partition had one.
    pub fn all_ms(&self) -> u64 {
        self.first_ack_ms.values().copied().max().unwrap_or(0)
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Failover {
    pub rounds: Vec<Round>,
    pub median_ms: u64,
    pub worst_ms: u64,
    pub target_ms: u64,
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    match values.len() {
        0 => 0,
        n if n % 2 == 1 => values[n / 2],
        n => u64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

impl Failover {
    fn new(rounds: Vec<Round>, target_s: f64) -> Self {
        let all: Vec<u64> = rounds.iter().map(Round::all_ms).collect();
        let (worst_ms, target_ms) = (all.iter().copied().max().unwrap_or(0), (target_s * 1e3) as u64);
        Self { rounds, median_ms: median(all), worst_ms, target_ms }
    }

    pub fn held(&self) -> bool {
        self.median_ms <= self.target_ms
    }
}

impl std::fmt::Display for Failover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, round) in self.rounds.iter().enumerate() {
            let each: Vec<u64> = round.first_ack_ms.values().copied().collect();
            let (first, all) = (each.iter().min().unwrap_or(&0), round.all_ms());
            writeln!(
                f,
                "  round {:>2}: node {} killed, {} partitions; first {first} ms, median {} ms, all {all} ms",
                at + 1,
                round.node,
                each.len(),
                median(each.clone())
            )?;
        }
        writeln!(
            f,
            "  every affected partition acknowledges again after: median {} ms, worst {} ms of {} rounds; wanted {} ms: {}",
            self.median_ms,
            self.worst_ms,
            self.rounds.len(),
            self.target_ms,
            if self.held() { "held" } else { "MISSED" }
        )
    }
}

/// The measurement of one partition.
struct Probe {
    client: Client,
    practice: String,
    run: String,
    /// When the node was known to be dead: only later submits count.
    dead: Arc<Mutex<Option<Instant>>>,
    first: Arc<Mutex<Option<Instant>>>,
}

impl Probe {
    async fn submit(client: Client, practice: String, key: String) -> bool {
        let not_before = now_ms().map(|now| timestamp(now + FAR.as_millis() as i64)).ok();
        let spec = MessageSpec {
            practice,
            recipient: Some(Recipient::PhoneNumber("+12125550142".to_owned())),
            body: "A message that is never sent.".to_owned(),
            class: MessageClass::Reminder as i32,
            not_before,
            idempotency_key: key,
            ..MessageSpec::default()
        };
        let mut request =
            tonic::Request::new(SubmitMessagesRequest { messages: vec![spec], validate_only: false });
        request.set_timeout(DEADLINE);
        match client.messages().submit_messages(request).await {
            Ok(answer) => matches!(
                answer.into_inner().results.first().and_then(|r| r.result.as_ref()),
                Some(Item::Accepted(_))
            ),
            Err(_) => false,
        }
    }

    /// Submits at its pace until the first one that counts is acknowledged.
    async fn run(self) {
        let (mut pace, mut made, mut calls) = (tokio::time::interval(PACE), 0_u64, JoinSet::new());
        while self.first.lock().is_none() {
            pace.tick().await;
            made += 1;
            let (client, practice) = (self.client.clone(), self.practice.clone());
            let (key, began) = (format!("{}-{made}", self.run), Instant::now());
            let (dead, first) = (Arc::clone(&self.dead), Arc::clone(&self.first));
            calls.spawn(async move {
                let accepted = Self::submit(client, practice, key).await;
                let counts = dead.lock().is_some_and(|dead| began >= dead);
                if accepted && counts {
                    first.lock().get_or_insert_with(Instant::now);
                }
            });
            while calls.try_join_next().is_some() {}
        }
    }
}

struct Bench {
    ctl: Ctl,
    lab: Lab,
    tenant: String,
}

impl Bench {
    async fn round(&self, number: u32, node: u64) -> anyhow::Result<Round> {
        let leaders = balanced(&self.ctl, self.lab.nodes.len()).await?;
        let (chosen, _) = even_practices(&self.tenant, &practices()?, leaders.len() as u32);
        let of = |name: &str| {
            carillon_proto::Slot::of_practice(&self.tenant, name).partition(leaders.len() as u32)
        };
        let dead = Arc::new(Mutex::new(None));
        let (mut probes, mut firsts) = (JoinSet::new(), BTreeMap::new());
        for practice in chosen.iter().filter(|p| leaders.get(&of(&p.name)) == Some(&node)) {
            let client = Client::connect(&self.lab.router, &self.lab.tls(), ClientConfig::default())?;
            let first = Arc::new(Mutex::new(None));
            let run = format!("failover-{:x}-{number}-{}", now_ms()?, practice.name);
            // The first message of a practice makes its key; that is not what is measured.
            anyhow::ensure!(
                Probe::submit(client.clone(), practice.name.clone(), format!("{run}-0")).await,
                "{} does not accept",
                practice.name
            );
            firsts.insert(of(&practice.name), Arc::clone(&first));
            let (practice, dead) = (practice.name.clone(), Arc::clone(&dead));
            probes.spawn(Probe { client, practice, run, dead, first }.run());
        }
        anyhow::ensure!(!firsts.is_empty(), "node {node} leads no partition");
        // Submits are on their way when it dies.
        tokio::time::sleep(10 * PACE).await;
        let killed = Instant::now();
        self.ctl.node("kill-node", node).await?;
        *dead.lock() = Some(Instant::now());
        let all = async { while probes.join_next().await.is_some() {} };
        let _those_without_count_with_the_limit = tokio::time::timeout(GIVE_UP, all).await;
        let took = |first: &Arc<Mutex<Option<Instant>>>| match *first.lock() {
            Some(at) => at.duration_since(killed).as_millis() as u64,
            None => GIVE_UP.as_millis() as u64,
        };
        let first_ack_ms = firsts.iter().map(|(partition, first)| (*partition, took(first))).collect();
        self.ctl.node("start-node", node).await?;
        Ok(Round { node, first_ack_ms })
    }
}

/// All rounds.
pub async fn run(args: &Args) -> anyhow::Result<Failover> {
    let lab = Lab::open(&args.lab)?;
    let tenant = lab.tenant()?;
    let bench = Bench { ctl: Ctl::new(args.ctl.as_deref(), &args.lab)?, lab, tenant };
    let nodes: Vec<u64> = bench.lab.nodes.iter().map(|node| node.id).collect();
    let mut rounds = Vec::new();
    for number in 0..args.rounds {
        let round = bench.round(number, nodes[number as usize % nodes.len()]).await?;
        eprintln!("round {}: node {}: {:?} ms", number + 1, round.node, round.first_ack_ms);
        rounds.push(round);
    }
    Ok(Failover::new(rounds, args.target_s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_is_the_median_of_the_slowest_partitions() {
        let round = |slowest| Round { node: 1, first_ack_ms: BTreeMap::from([(1, 100), (4, slowest)]) };
        let result = Failover::new([900, 2_500, 4_000, 1_500].map(round).to_vec(), 2.0);
        assert_eq!((result.median_ms, result.worst_ms), (2_000, 4_000));
        assert!(result.held());
        assert!(!Failover::new(vec![round(2_001)], 2.0).held());
        assert_eq!(median(vec![3, 1, 2]), 2);
    }
}
