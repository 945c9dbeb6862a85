//! The screen of a run: a progress bar on a terminal, and one line a second everywhere.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::live::{Figures, SYNC_METRIC, Tracker, line};
use super::play::Stage;
use crate::http::Http;
use crate::lab::Lab;
use crate::sample_day::{Day, Line};
use crate::scrape::{Buckets, Page};

/// A scrape that takes longer is left out of its line.
const SCRAPE_TIMEOUT: Duration = Duration::from_millis(700);

/// Prints; cheap to clone.
#[derive(Clone)]
pub struct Show {
    /// On a terminal only.
    bar: Option<ProgressBar>,
    http: Http,
    nodes: Vec<String>,
    stage: Arc<Stage>,
    tracker: Arc<Mutex<Tracker>>,
}

impl Show {
    pub fn new(day: &Day, http: Http, lab: &Lab, stage: Arc<Stage>, tracker: Arc<Mutex<Tracker>>) -> Self {
        let answers = day.lines.iter().filter(|l| matches!(l, Line::Message(_) | Line::Again(_))).count();
        let bar = std::io::stdout().is_terminal().then(|| {
            let bar = ProgressBar::new(answers as u64);
            let style = ProgressStyle::with_template("{bar:40} {pos}/{len} answered, {elapsed} {msg}");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let nodes = lab.nodes.iter().map(|node| node.http.clone()).collect();
        Self { bar, http, nodes, stage, tracker }
    }

    /// Prints a line above the bar.
    pub fn say(&self, text: String) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => println!("{text}"),
        }
    }

    /// What became of lost answers.
    pub fn lost(&self) {
        super::outlook::resolved(&self.tracker.lock(), self);
    }

    /// One line a second until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut every =
            tokio::time::interval_at(self.stage.start + Duration::from_secs(1), Duration::from_secs(1));
        every.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (mut before, mut sync_before) = (Figures::default(), vec![Buckets::default(); self.nodes.len()]);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = every.tick() => {}
            }
            let sync = self.sync_since(&mut sync_before).await;
            let (accepted, answered) = {
                let book = self.stage.book.lock();
                (book.acks.accepted.len() as u64, book.answered)
            };
            let now = self.tracker.lock().figures(accepted);
            self.say(line(Instant::now() - self.stage.start, &now, &before, &sync));
            if let Some(bar) = &self.bar {
                bar.set_position(answered);
            }
            before = now;
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// The fsyncs of all nodes since the last call. A node that is down has none.
    async fn sync_since(&self, before: &mut [Buckets]) -> Buckets {
        let scrapes = self.nodes.iter().map(|node| async {
            let page = tokio::time::timeout(SCRAPE_TIMEOUT, self.http.get(node, "/metrics")).await;
            page.ok()?.ok().map(|body| Page::parse(&String::from_utf8_lossy(&body)).buckets(SYNC_METRIC))
        });
        let mut sum = Buckets::default();
        for (scraped, before) in futures::future::join_all(scrapes).await.into_iter().zip(before) {
            if let Some(now) = scraped {
                sum.add(&now.since(before));
                *before = now;
            }
        }
        sum
    }
}
