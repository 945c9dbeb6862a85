//! How much of a lane's limit is used under backlog, and how much the carrier saw in any window.
//!
//! Owns: a backlog of practices with sizes like one over their rank (so the nodes that lead them have very different amounts of work), and
//! the count of what arrived. What is counted is what the carrier received, by its own clock.

use std::path::PathBuf;
use std::time::Duration;

use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::{MessageClass, MessageSpec, SubmitMessagesRequest};
use serde::Serialize;

use super::now_ms;
use crate::carrier::Carrier;
use crate::client::{Client, ClientConfig};
use crate::http::Http;
use crate::lab::Lab;
use crate::sample_day::practices;
use crate::smsc::TruthPage;

const BATCH: usize = 500;
const WINDOW_US: u64 = 1_000_000;
const POLL: Duration = Duration::from_millis(500);
/// Seconds at the beginning that do not count: the backlog builds up.
const WARM_UP_S: u64 = 5;

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The directory that `carillonctl lab up` made.
    #[arg(long)]
    pub lab: PathBuf,
    /// Segments per second that the lane allows; must be the lab's limit.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    pub limit: u32,
    /// Seconds measured.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(5..=3_600))]
    pub secs: u64,
    /// Part of the limit that must be used.
    #[arg(long, default_value_t = 0.97)]
    pub target: f64,
    /// Write the result to this file as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Lane {
    pub limit: u32,
    pub seconds: u64,
    pub practices: usize,
    pub messages: usize,
    pub segments: u64,
    /// Of what the limit allows.
    pub used: f64,
    pub target: f64,
    /// The most in any sliding second of the whole run.
    pub fullest_second: usize,
    /// What the carrier's own alarm counted.
    pub violations: u64,
}

impl Lane {
    pub fn held(&self) -> bool {
        self.used >= self.target && self.violations == 0 && self.fullest_second <= self.limit as usize
    }
}

impl std::fmt::Display for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "  {} messages of {} practices, the largest first; {} segments in {} s of {} allowed",
            self.messages,
            self.practices,
            self.segments,
            self.seconds,
            u64::from(self.limit) * self.seconds
        )?;
        writeln!(
            f,
            "  used {:.1} % (wanted {:.0} %); fullest second {} of {}; violations {}: {}",
            self.used * 100.0,
            self.target * 100.0,
            self.fullest_second,
            self.limit,
            self.violations,
            if self.held() { "held" } else { "MISSED" }
        )
    }
}

/// The most in any half-open window; sorted times.
fn fullest(times_us: &[u64]) -> usize {
    let (mut first, mut most) = (0, 0);
    for (last, at) in times_us.iter().enumerate() {
        while times_us[first] + WINDOW_US <= *at {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    most
}

/// Messages of each practice: `total` split like one over the rank.
fn sizes(total: usize, practices: usize) -> Vec<usize> {
    let weights: f64 = (1..=practices).map(|rank| 1.0 / rank as f64).sum();
    (1..=practices).map(|rank| (total as f64 / weights / rank as f64).ceil() as usize).collect()
}

async fn upload(client: &Client, names: &[String], total: usize) -> anyhow::Result<usize> {
    let run = now_ms()?;
    let mut specs = Vec::with_capacity(total);
    for (name, size) in names.iter().zip(sizes(total, names.len())) {
        specs.extend((0..size).map(|i| MessageSpec {
            practice: name.clone(),
            recipient: Some(Recipient::PhoneNumber(format!("+1312555{:04}", 100 + i % 100))),
            body: format!("Your visit {i} of {run} is tomorrow."),
            class: MessageClass::Reminder as i32,
            idempotency_key: format!("lane-{run:x}-{name}-{i}"),
            ..MessageSpec::default()
        }));
    }
    let count = specs.len();
    while !specs.is_empty() {
        let rest = specs.split_off(specs.len().min(BATCH));
        let messages = std::mem::replace(&mut specs, rest);
        client.submit(SubmitMessagesRequest { messages, validate_only: false }).await?;
    }
    Ok(count)
}

async fn arrivals(http: &Http, smsc: &str) -> anyhow::Result<Vec<u64>> {
    let (mut times, mut since) = (Vec::new(), 0);
    loop {
        let page = http.get(smsc, &format!("/truth?since={since}&limit=10000")).await?;
        let page: TruthPage = serde_json::from_slice(&page)?;
        times.extend(page.records.iter().map(|record| record.at_us));
        if page.next >= page.total || page.records.is_empty() {
            times.sort_unstable();
            return Ok(times);
        }
        since = page.next;
    }
}

/// Builds up the backlog and counts.
pub async fn run(args: &Args) -> anyhow::Result<Lane> {
    let lab = Lab::open(&args.lab)?;
    let (http, names) = (Http::default(), practices()?.into_iter().map(|p| p.name).collect::<Vec<_>>());
    let carrier = Carrier::new(http.clone(), &lab.smsc_http);
    carrier.reset().await?;
    carrier.set_profile("base = \"perfect\"\n").await?;
    let client = Client::connect(&lab.router, &lab.tls(), ClientConfig::default())?;
    // Enough that nobody runs dry: the sizes are uneven.
    let total = (u64::from(args.limit) * (args.secs + WARM_UP_S + 10)) as usize;
    let messages = upload(&client, &names, total).await?;
    let wanted = u64::from(args.limit) * (args.secs + WARM_UP_S + 1);
    while carrier.stats().await?.messages.messages < wanted {
        tokio::time::sleep(POLL).await;
    }
    let times = arrivals(&http, &lab.smsc_http).await?;
    let from = times.first().copied().unwrap_or(0) + WARM_UP_S * WINDOW_US;
    let to = from + args.secs * WINDOW_US;
    let segments = times.iter().filter(|at| (from..to).contains(*at)).count() as u64;
    let allowed = u64::from(args.limit) * args.secs;
    Ok(Lane {
        limit: args.limit,
        seconds: args.secs,
        practices: names.len(),
        messages,
        segments,
        used: segments as f64 / allowed as f64,
        target: args.target,
        fullest_second: fullest(&times),
        violations: carrier.stats().await?.violations(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_fall_like_one_over_the_rank_and_windows_are_half_open() {
        let sizes = sizes(1_000, 10);
        assert!(sizes.iter().sum::<usize>() >= 1_000);
        assert!(sizes[0] >= 9 * sizes[9] && sizes[0] <= 11 * sizes[9]);
        assert_eq!(fullest(&[0, 999_999, 1_000_000]), 2);
    }
}
