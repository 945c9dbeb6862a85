//! `run`: a scenario against a cluster, from the first message to the report.
//!
//! Owns: the order of a run ([`play`]): open or start the cluster, mark the carrier's ground truth,
//! start the generators and the faults, watch until the last answer, wait until everything is at rest, make the ledger,
//! judge the thresholds, write the report.
//! Invariants: the report is written however the run ends (also after Ctrl-C, unless it is pressed twice); a cluster that
//! was started is stopped. Memory does not grow with the length of a run: intervals become sums and a bounded timeline,
//! messages are on disk until the ledger reads them back a part at a time.

mod args;
pub mod compare;
pub mod engine;
pub mod environment;
pub mod fairness;
pub mod faults;
pub mod finish;
pub mod live;
pub mod presets;
pub mod reckon;
pub mod report;
pub mod scenario;
pub mod screen;
pub mod search;
pub mod shape;
pub mod spill;
pub mod target;
pub mod threshold;
pub mod timeline;
pub mod values;
pub mod workers;
pub mod workload;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::carrier::Mark as TruthMark;
use crate::http::Http;
use crate::scrape::Page;
use engine::{End, Order, now_us};
use faults::Mark;
use live::{Live, since};
use report::{Outcome, Report};
use scenario::Scenario;
use target::Target;

pub use args::{Args, scenario_of};

/// From the start of the generators to the first message: time to connect.
const LEAD: Duration = Duration::from_millis(1_500);
/// How often nodes are asked for changes of leaders.
const LEADERS_EVERY: u64 = 2;
const MARKS_WAITING_MAX: usize = 64;
const LEADER_METRIC: &str = "carillon_raft_leader_changes_total";

/// What a run was and where its files are.
pub struct Played {
    pub report: Report,
    pub dir: PathBuf,
}

/// The whole command; the exit code.
pub async fn run(args: Args) -> anyhow::Result<u8> {
    if args.list {
        for (name, _) in presets::PRESETS {
            println!("{name:<16} {}", presets::load(name)?.about);
        }
        return Ok(0);
    }
    if args.schema {
        print!("{}", report::schema());
        return Ok(0);
    }
    if args.metrics {
        threshold::METRICS.iter().for_each(|(name, _, about)| println!("{name:<24} {about}"));
        println!("% is one of {}", threshold::STATISTICS.join(", "));
        return Ok(0);
    }
    let name = args.scenario.clone().unwrap_or_default();
    if args.print {
        print!("{}", presets::text(&name)?.1);
        return Ok(0);
    }
    let scenario = scenario_of(&args, &name)?;
    if let Some(path) = &args.write_practices {
        fs_err::write(path, target::practices_json(&scenario)?)?;
        return Ok(0);
    }
    let played = play(&args, scenario).await?;
    println!("\n{}", finish::summary(&played.report));
    println!("report: {}", played.dir.display());
    Ok(played.report.verdict.exit_code)
}

fn directory(args: &Args, scenario: &Scenario) -> anyhow::Result<PathBuf> {
    let dir = args.out.clone().unwrap_or_else(|| {
        let at = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        PathBuf::from(format!("loadtest-{}-{at}", scenario.name))
    });
    fs_err::create_dir_all(&dir)?;
    Ok(fs_err::canonicalize(dir)?)
}

/// Runs a scenario on its cluster and writes its report.
pub async fn play(args: &Args, scenario: Scenario) -> anyhow::Result<Played> {
    let dir = directory(args, &scenario)?;
    if !args.quiet {
        println!("{}: {}", scenario.name, scenario.about);
    }
    let target = Target::open(&args.target, &scenario, &dir).await?;
    let signals = Signals::listen()?;
    let result = play_on(args, &scenario, &target, &dir, &signals).await;
    let closed = target.close().await;
    let report = result?;
    closed?;
    if target.launched && !args.keep {
        fs_err::remove_dir_all(dir.join("lab"))?;
    }
    Ok(Played { report, dir })
}

/// Runs a scenario on a cluster that is open.
pub async fn play_on(
    args: &Args,
    scenario: &Scenario,
    target: &Target,
    dir: &Path,
    signals: &Signals,
) -> anyhow::Result<Report> {
    let spill = dir.join("spill");
    // Of an earlier run into the same directory.
    if spill.exists() {
        fs_err::remove_dir_all(&spill)?;
    }
    fs_err::create_dir_all(&spill)?;
    let run = Run { args, scenario, target, dir, spill: &spill, signals };
    let report = tokio::select! {
        report = on_target(&run) => report?,
        () = signals.at_once.cancelled() => anyhow::bail!("interrupted twice"),
    };
    if !args.keep {
        fs_err::remove_dir_all(&spill)?;
    }
    Ok(report)
}

/// What a run left behind when the last answer had come.
pub struct Sent {
    pub live: Live,
    pub end: End,
    pub start: Instant,
    pub start_ms: i64,
    pub run: u32,
    pub sending_s: f64,
    pub mark: Option<TruthMark>,
    pub interrupted: bool,
    /// The threshold that stopped it.
    pub aborted: Option<String>,
}

async fn on_target(run: &Run<'_>) -> anyhow::Result<Report> {
    faults::check(&run.scenario.faults, run.target)?;
    let mark = match &run.target.carrier {
        Some(carrier) => {
            if run.target.launched {
                carrier.reset().await?;
            }
            Some(carrier.mark().await.context("the carrier simulator does not answer")?)
        }
        None => None,
    };
    let sent = run.send(mark).await?;
    let report = finish::finish(run, sent).await?;
    report::write::json(run.dir, &report)?;
    report::html::write(run.dir, &report)?;
    Ok(report)
}

/// Interrupts: the first one ends sending, the second one everything.
pub struct Signals {
    stop: CancellationToken,
    at_once: CancellationToken,
}

impl Signals {
    /// From now on, until the end of the process.
    pub fn listen() -> anyhow::Result<Self> {
        let signals = Self { stop: CancellationToken::new(), at_once: CancellationToken::new() };
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (stop, at_once) = (signals.stop.clone(), signals.at_once.clone());
        tokio::spawn(async move {
            for token in [stop, at_once] {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                eprintln!("stopping; the report follows (Ctrl-C once more ends at once)");
                token.cancel();
            }
        });
        Ok(signals)
    }
}

/// A run and its place.
pub struct Run<'a> {
    pub args: &'a Args,
    pub scenario: &'a Scenario,
    pub target: &'a Target,
    pub dir: &'a Path,
    pub spill: &'a Path,
    pub signals: &'a Signals,
}

/// What may happen while a run goes on.
enum Event {
    Interval(Option<Box<engine::interval::Interval>>),
    Mark(Option<Mark>),
    Tick,
}

impl Run<'_> {
    /// Sends everything and follows it to the last answer.
    async fn send(&self, mark: Option<TruthMark>) -> anyhow::Result<Sent> {
        let workers = u64::from(self.scenario.generator.processes);
        let start = Instant::now() + LEAD;
        let start_ms = (now_us() / 1_000) as i64 + LEAD.as_millis() as i64;
        let run = start_ms as u32;
        let order = Order {
            scenario: self.scenario.clone(),
            address: self.target.address.clone(),
            worker: 0,
            workers,
            run,
            start_ms,
            spill: self.spill.to_owned(),
        };
        let first = match &self.target.carrier {
            Some(carrier) => Some(carrier.stats().await?),
            None => None,
        };
        let mut following = Following {
            live: Live::new(self.scenario, workers, first),
            log: report::write::HistogramLog::create(self.dir, start_ms)?,
            start,
            stop: self.signals.stop.child_token(),
            screen: if self.args.tui { Some(screen::Screen::open()?) } else { None },
            leaders: BTreeMap::new(),
            ticks: 0,
            aborted: None,
        };
        let (out, intervals) = mpsc::channel(workers::INTERVALS_MAX);
        let (say, marks) = mpsc::channel(MARKS_WAITING_MAX);
        let generators = workers::run(order, out, following.stop.clone());
        let accidents = faults::run(self.scenario.faults.clone(), self.target, start, say);
        let stop = following.stop.clone();
        let accidents = async {
            tokio::select! {
                made = accidents => made.inspect_err(|_| stop.cancel()),
                () = stop.cancelled() => Ok(()),
            }
        };
        let (end, followed, made) =
            tokio::join!(generators, self.follow(&mut following, intervals, marks), accidents);
        let (end, ()) = (end?, followed?);
        made?;
        drop(following.screen.take());
        following.log.finish()?;
        let length_s = self.scenario.length_s();
        let interrupted = self.signals.stop.is_cancelled();
        let stopped = interrupted || following.aborted.is_some();
        let sending_s = if stopped { since(start).as_secs_f64().min(length_s) } else { length_s };
        Ok(Sent {
            live: following.live,
            end,
            start,
            start_ms,
            run,
            sending_s,
            mark,
            interrupted,
            aborted: following.aborted,
        })
    }

    async fn follow(
        &self,
        following: &mut Following,
        mut intervals: mpsc::Receiver<engine::interval::Interval>,
        mut marks: mpsc::Receiver<Mark>,
    ) -> anyhow::Result<()> {
        let mut tick =
            tokio::time::interval_at(following.start + Duration::from_secs(1), Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        // Faults may go on when everything is answered, and the other way round.
        let (mut telling, mut marking) = (true, true);
        while telling || marking {
            let event = tokio::select! {
                interval = intervals.recv(), if telling => Event::Interval(interval.map(Box::new)),
                mark = marks.recv(), if marking => Event::Mark(mark),
                _ = tick.tick() => Event::Tick,
            };
            match event {
                Event::Interval(None) => telling = false,
                Event::Mark(None) => marking = false,
                Event::Interval(Some(interval)) => following.interval(self, &interval)?,
                Event::Mark(Some(mark)) => {
                    if !self.args.quiet && !self.args.tui {
                        println!("       *** {:.1} s: {}", mark.at_s, mark.text);
                    }
                    following.live.mark(mark);
                }
                Event::Tick => following.tick(self).await,
            }
        }
        Ok(())
    }
}

/// A run under way.
struct Following {
    live: Live,
    log: report::write::HistogramLog,
    start: Instant,
    stop: CancellationToken,
    screen: Option<screen::Screen>,
    /// How often each node became leader, at the last look.
    leaders: BTreeMap<u64, f64>,
    ticks: u64,
    aborted: Option<String>,
}

impl Following {
    fn interval(&mut self, run: &Run<'_>, interval: &engine::interval::Interval) -> anyhow::Result<()> {
        let Some(whole) = self.live.interval(interval) else { return Ok(()) };
        let from_s = whole.second as f64;
        let asked = self.live.asked(from_s, from_s + 1.0);
        self.live.timeline.asked(whole.second, asked);
        self.log.add("response", from_s, 1.0, &whole.response)?;
        self.log.add("service", from_s, 1.0, &whole.service)?;
        match &mut self.screen {
            Some(screen) => screen.draw(run.scenario, &self.live, &whole)?,
            None if run.args.quiet => {}
            None => println!("{}", self.live.line(&whole, asked)),
        }
        let at_s = from_s + 1.0;
        let values = self.live.values(at_s);
        if let Some(failed) = run.scenario.thresholds.iter().find(|t| t.aborts(&values, at_s))
            && self.aborted.is_none()
            && !self.stop.is_cancelled()
        {
            self.live.mark(Mark::new(self.start, "abort", format!("stopped by {}", failed.text)));
            self.aborted = Some(failed.text.clone());
            self.stop.cancel();
        }
        Ok(())
    }

    /// Asks the carrier and the nodes. One that does not answer now is asked again.
    async fn tick(&mut self, run: &Run<'_>) {
        self.ticks += 1;
        if let Some(carrier) = &run.target.carrier
            && let Ok(stats) = carrier.stats().await
        {
            self.live.carrier(self.start, stats);
        }
        if self.ticks.is_multiple_of(LEADERS_EVERY) {
            for (node, count) in leader_changes(run.target).await {
                // A node that was started again counts from 0.
                let before = self.leaders.insert(node, count).filter(|before| *before <= count);
                let more = before.map_or(count, |before| count - before);
                // What came before the first look was not in this run.
                if more > 0.0 && self.ticks > LEADERS_EVERY {
                    let text = format!("node {node} became leader of {more:.0} groups");
                    self.live.mark(Mark::new(self.start, "leader", text));
                }
            }
        }
    }
}

/// How often each node that answers became leader so far.
async fn leader_changes(target: &Target) -> BTreeMap<u64, f64> {
    let (http, mut counts) = (Http::default(), BTreeMap::new());
    for node in target.lab().map(|lab| lab.nodes).unwrap_or_default() {
        let page = tokio::time::timeout(Duration::from_millis(500), http.get(&node.http, "/metrics")).await;
        if let Ok(Ok(body)) = page {
            let count = Page::parse(&String::from_utf8_lossy(&body)).sum(LEADER_METRIC);
            counts.insert(node.id, count.unwrap_or(0.0));
        }
    }
    counts
}

/// How the run ended.
fn outcome(interrupted: bool, invalid: bool, held: bool) -> Outcome {
    match (interrupted, invalid, held) {
        (true, ..) => Outcome::Interrupted,
        (false, true, _) => Outcome::Invalid,
        (false, false, false) => Outcome::Fail,
        (false, false, true) => Outcome::Pass,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_stronger_than_a_bottleneck_and_that_than_a_threshold() {
        assert_eq!(outcome(true, true, false).exit_code(), 130);
        assert_eq!(outcome(false, true, false).exit_code(), 98);
        assert_eq!(outcome(false, false, false).exit_code(), 99);
        assert_eq!(outcome(false, false, true).exit_code(), 0);
    }
}
