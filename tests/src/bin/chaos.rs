//! `chaos`: a cluster under steady load, hurt in every way that this machine allows, for as long as asked; then the verdict.
//!
//! Exit codes: 0 every promise was kept, 1 a violation or a cluster that did not come back (data, histories and logs are kept),
//! 2 wrong usage, 3 this machine cannot do it.

use anyhow::Context as _;
use carillon_ctl::lab::LabOptions;
use carillon_tests::evidence::Run;
use carillon_tests::faults::{Needs, missing};
use carillon_tests::history::Report;
use carillon_tests::load::LoadOptions;
use carillon_tests::nemesis::Nemesis;
use carillon_tests::rig::Rig;
use carillon_tests::trial;
use clap::Parser;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Hurt a cluster under load and prove that nothing was lost or doubled.
#[derive(Debug, Parser)]
#[command(name = "chaos", version)]
struct Cli {
    /// How long to hurt it.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_440))]
    minutes: u64,
    /// The faults and the callers' moves follow from it; a new one each time if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Callers at the same time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    callers: u32,
    /// Behaviour of the carrier: perfect, realistic, storm, lossy or throttled.
    #[arg(long, default_value = "perfect")]
    carrier: String,
}

fn new_seed() -> u64 {
    u64::from(std::process::id()) << 20 ^ carillon_tests::api::now_ms() as u64 & 0xF_FFFF
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(why) = missing(Needs::ALL) {
        eprintln!("chaos: this machine cannot do it: {why}");
        return ExitCode::from(3);
    }
    let seed = cli.seed.unwrap_or_else(new_seed);
    println!(
        "chaos: seed {seed}, {} min; again with: make chaos MINUTES={} SEED={seed}",
        cli.minutes, cli.minutes
    );
    let options = LabOptions { profile: cli.carrier.clone(), ..trial::options() };
    let mut rig = Rig::start_in(options, Needs::ALL, |_| {}).await;
    let verdict = tokio::select! {
        verdict = hurt(&mut rig, &cli, seed) => verdict,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match verdict {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => println!("chaos: PROMISES WERE NOT KEPT"),
        Err(error) => println!("chaos: FAILED: {error:#}"),
    }
    println!("chaos: again with: make chaos MINUTES={} SEED={seed}", cli.minutes);
    rig.keep();
    ExitCode::FAILURE
}

async fn hurt(rig: &mut Rig, cli: &Cli, seed: u64) -> anyhow::Result<bool> {
    let profile = trial::PROFILE.replace("perfect", &cli.carrier);
    rig.carrier.set_profile(&profile).await?;
    let load = LoadOptions { callers: cli.callers, seed, ..LoadOptions::default() };
    let run = Run::start(rig, "chaos", load).await.map_err(anyhow::Error::msg)?;
    let mut nemesis = Nemesis::new(seed, rig.lab.node_ids().len() as u64);
    let (began, mut minute) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(60 * cli.minutes) {
        let (pause, fault) = nemesis.draw();
        tokio::time::sleep(pause).await;
        println!("{:7.1} s  {fault}", began.elapsed().as_secs_f64());
        nemesis.strike(rig, &run, &fault).await.map_err(anyhow::Error::msg).context(fault.to_string())?;
        if began.elapsed().as_secs() / 60 > minute {
            minute = began.elapsed().as_secs() / 60;
            let copies = rig.carrier.stats().await?.messages.extra_copies;
            println!(
                "minute {minute}: {}; messages {}, lost {}, duplicates {copies}",
                nemesis.tally,
                run.load.acknowledged(),
                run.load.missing(),
            );
        }
    }
    for node in rig.lab.node_ids() {
        rig.arena.clock().set(node, 0).map_err(anyhow::Error::msg)?;
    }
    println!("{:7.1} s  waiting until everything is settled", began.elapsed().as_secs_f64());
    let report: Report = run.judge(rig).await.map_err(anyhow::Error::msg)?;
    println!("{report}");
    println!(
        "chaos: seed {seed}: {}; messages {}, lost {}, duplicates {}, violations {}",
        nemesis.tally,
        report.acknowledged,
        report.lost,
        report.duplicates,
        report.violations.len()
    );
    Ok(report.is_clean())
}
