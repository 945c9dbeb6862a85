//! Runs the simulator: one seed with its trace, or many seeds for some minutes.
//!
//! `cargo sim -- --seed 7 --trace` shows one run; `cargo sim -- --minutes 30` soaks from a fresh base seed;
//! `cargo sim -- --seed 7 --shrink` cuts a failing run down and says how to repeat what is left.
use carillon_tests::sim::{self, Cuts, Plan, Plant, Scenario, Total};
use clap::Parser;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[derive(Debug, Parser)]
#[command(about = "the deterministic simulator of a Carillon cluster")]
struct Args {
    /// The seed of one run, or the first one with --minutes or --count.
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
    /// Print one line for each event.
    #[arg(long)]
    trace: bool,
    /// Run seeds for this long.
    #[arg(long)]
    minutes: Option<f64>,
    /// Run this many seeds.
    #[arg(long)]
    count: Option<u64>,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Cut a failing run down.
    #[arg(long)]
    shrink: bool,
    /// Leave these faults out (numbers of the plan).
    #[arg(long, value_delimiter = ',')]
    without: Vec<usize>,
    /// Turn calm at this moment (simulated ms).
    #[arg(long)]
    until_ms: Option<u64>,
    /// No loss and no repeats on the network.
    #[arg(long)]
    calm_net: bool,
    /// Carriers do nothing odd.
    #[arg(long)]
    calm_carriers: bool,
    /// Plant a bug.
    #[arg(long, value_parser = |text: &str| Plant::parse(text).ok_or_else(|| format!("one of {:?}", Plant::ALL)))]
    plant: Option<Plant>,
    /// Trouble of one kind instead of the seed's own.
    #[arg(long, value_parser = |text: &str| Scenario::parse(text).ok_or_else(|| format!("one of {:?}", Scenario::ALL)))]
    scenario: Option<Scenario>,
    /// Do not compare promises with the disk.
    #[arg(long)]
    no_promises: bool,
}

impl Args {
    fn change(&self, plan: &mut Plan) {
        if let Some(scenario) = self.scenario {
            scenario.shape(plan);
        }
        plan.plant = self.plant;
        plan.check_promises = !self.no_promises;
    }

    fn cuts(&self) -> Cuts {
        Cuts {
            faults: self.without.iter().copied().collect(),
            until_ms: self.until_ms,
            calm_net: self.calm_net,
            calm_carriers: self.calm_carriers,
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let fresh = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_millis() as u64);
    let seed = args.seed.unwrap_or(fresh);
    match (args.minutes, args.count) {
        (None, None) => one(&args, seed),
        (minutes, count) => many(&args, seed, minutes, count),
    }
}

fn one(args: &Args, seed: u64) -> ExitCode {
    sim::quiet_panics();
    let mut plan = Plan::of_seed(seed);
    args.change(&mut plan);
    let start = Instant::now();
    if args.shrink {
        return shrink(&plan, args);
    }
    if args.trace {
        println!("{plan:#?}");
    }
    let report = sim::run(plan.without(&args.cuts()), args.trace);
    let mut total = Total::default();
    total.add(seed, &report);
    println!("seed {seed}: trace hash {:016x}; {}", report.hash, total.summary());
    println!(
        "simulated {:.1} s in {:.2} s",
        report.simulated_ms as f64 / 1000.0,
        start.elapsed().as_secs_f64()
    );
    finish(&total)
}

fn shrink(plan: &Plan, args: &Args) -> ExitCode {
    let Some(shrunk) = sim::shrink(plan, 200) else {
        println!("seed {} does not fail", plan.seed);
        return ExitCode::SUCCESS;
    };
    let cuts = &shrunk.cuts;
    let mut line = format!("cargo sim -- --seed {}", plan.seed);
    if let Some(until_ms) = cuts.until_ms {
        line += &format!(" --until-ms {until_ms}");
    }
    if cuts.calm_net {
        line += " --calm-net";
    }
    if cuts.calm_carriers {
        line += " --calm-carriers";
    }
    if !cuts.faults.is_empty() {
        let numbers: Vec<String> = cuts.faults.iter().map(usize::to_string).collect();
        line += &format!(" --without {}", numbers.join(","));
    }
    if let Some(scenario) = args.scenario {
        line += &format!(" --scenario {scenario:?}");
    }
    if args.no_promises {
        line += " --no-promises";
    }
    if let Some(plant) = plan.plant {
        line += &format!(" --plant {plant:?}");
    }
    println!("{} of {} faults are left after {} runs", shrunk.faults_left, plan.faults.len(), shrunk.runs);
    println!("{}", shrunk.report.violation.unwrap_or_default());
    println!("{line} --trace");
    ExitCode::FAILURE
}

fn many(args: &Args, first: u64, minutes: Option<f64>, count: Option<u64>) -> ExitCode {
    println!("seeds from {first} on");
    let start = Instant::now();
    let end = minutes.map(|minutes| start + Duration::from_secs_f64(minutes * 60.0));
    let told = AtomicU64::new(0);
    let go_on = |number: u64| {
        let seconds = start.elapsed().as_secs();
        if seconds >= told.load(Ordering::Relaxed) + 10 {
            told.store(seconds, Ordering::Relaxed);
            println!("  {number} seeds after {seconds} s");
        }
        count.is_none_or(|count| number < count) && end.is_none_or(|end| Instant::now() < end)
    };
    let total = sim::swarm(first, args.threads, go_on, |plan| args.change(plan));
    let seconds = start.elapsed().as_secs_f64();
    println!("{}", total.summary());
    let per_second = total.simulated_ms as f64 / 60_000.0 / seconds / args.threads as f64;
    println!("{seconds:.1} s; {per_second:.2} simulated minutes in a second of a core");
    for (what, times) in &total.counts {
        println!("  {what}: {times}");
    }
    println!("never: {:?}", total.never());
    finish(&total)
}

fn finish(total: &Total) -> ExitCode {
    for (seed, violation) in &total.failures {
        println!("FAILED seed {seed}: {violation}");
        println!("  cargo sim -- --seed {seed} --trace    (or --shrink)");
    }
    if total.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
