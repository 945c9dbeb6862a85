//! Many seeds, one after the other or on several threads (each run is single-threaded), and what they add up to.
use super::finale::{Report, run};
use super::plan::Plan;
use super::trace::SOMETIMES;
use std::collections::BTreeMap;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a set of runs added up to.
#[derive(Debug, Clone, Default)]
pub struct Total {
    pub seeds: u64,
    pub events: u64,
    pub simulated_ms: u64,
    pub messages: u64,
    pub acknowledged: u64,
    pub duplicates: u64,
    pub counts: BTreeMap<&'static str, u64>,
    /// (seed, violation)
    pub failures: Vec<(u64, String)>,
}

impl Total {
    pub fn add(&mut self, seed: u64, report: &Report) {
        self.seeds += 1;
        self.events += report.events;
        self.simulated_ms += report.simulated_ms;
        self.messages += report.messages;
        self.acknowledged += report.acknowledged;
        self.duplicates += report.duplicates;
        for (what, count) in &report.counts {
            *self.counts.entry(what).or_default() += count;
        }
        self.failures.extend(report.violation.iter().map(|violation| (seed, violation.clone())));
    }

    fn merge(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.events += other.events;
        self.simulated_ms += other.simulated_ms;
        self.messages += other.messages;
        self.acknowledged += other.acknowledged;
        self.duplicates += other.duplicates;
        for (what, count) in other.counts {
            *self.counts.entry(what).or_default() += count;
        }
        self.failures.extend(other.failures);
    }

    /// Rare branches that were never reached.
    pub fn never(&self) -> Vec<&'static str> {
        SOMETIMES.into_iter().filter(|what| !self.counts.contains_key(what)).collect()
    }

    /// One line.
    pub fn summary(&self) -> String {
        format!(
            "{} seeds, {} events, {:.2} simulated hours, {} messages ({} acknowledged), {} possible duplicates that were counted, {} violations",
            self.seeds,
            self.events,
            self.simulated_ms as f64 / 3_600_000.0,
            self.messages,
            self.acknowledged,
            self.duplicates,
            self.failures.len()
        )
    }
}

/// Runs seeds from `first` on, as long as `go_on(number)` says so, on `threads` threads; stops at the first violation.
pub fn swarm(
    first: u64,
    threads: usize,
    go_on: impl Fn(u64) -> bool + Sync,
    change: impl Fn(&mut Plan) + Sync,
) -> Total {
    quiet_panics();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let worker = || {
        let mut total = Total::default();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if stop.load(Ordering::Relaxed) || !go_on(number) {
                return total;
            }
            let seed = first + number;
            let mut plan = Plan::of_seed(seed);
            change(&mut plan);
            total.add(seed, &run(plan, false));
            if !total.failures.is_empty() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let mut total = Total::default();
        for worker in workers {
            total.merge(worker.join().expect("a run catches its panics"));
        }
        total
    })
}

/// A panic inside a run is reported as a violation, so it need not be printed as well.
pub fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let ours = info.location().is_some_and(|at| at.file().contains("tests/tests/"));
            if ours || std::env::var_os("SIM_PANICS").is_some() {
                before(info);
            }
        }));
    });
}
