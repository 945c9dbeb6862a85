//! `carillon-loadtest`: the carrier simulator, the demo, the benches and the ledger on the command line.
//!
//! Exit codes: 0 all is well, 1 an error, 2 wrong usage or a scenario that cannot be run, 98 a run in which the generator was
//! the bottleneck, 99 a ledger that is not clean or a threshold or target that was missed, 130 interrupted.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use carillon_loadtest::client::{Client, ClientConfig};
use carillon_loadtest::demo::{self, AcksFile, reckon};
use carillon_loadtest::http::Http;
use carillon_loadtest::lab::Lab;
use carillon_loadtest::run::scenario::ScenarioError;
use carillon_loadtest::sample_day::{self, Day, generate};
use carillon_loadtest::{bench, run, smsc};
use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const USAGE: u8 = 2;
const INVALID: u8 = 98;
const FAILED: u8 = 99;

/// The load harness of Carillon.
#[derive(Debug, Parser)]
#[command(name = "carillon-loadtest", version)]
struct Cli {
    /// Which log lines go to standard error (JSON), in the syntax of RUST_LOG. Default: warn, info for the simulator.
    #[arg(long, global = true, env = "RUST_LOG")]
    log: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put the load of a scenario on a cluster, prove what became of every message, and write a report.
    Run(Box<run::Args>),
    /// Find the highest rate of a scenario that holds all thresholds.
    Search(Box<run::search::Args>),
    /// Compare two runs of the same scenario.
    Compare(run::compare::Args),
    /// One of the generators of a run (started by `run`).
    #[command(hide = true)]
    Generator,
    /// Run a simulated carrier.
    Smsc(smsc::Args),
    /// Play the sample day against a lab and prove what became of every message.
    Demo(demo::Args),
    /// Show, check or write the sample day.
    SampleDay(SampleDayArgs),
    /// Measure a lab.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Compare again what a demo was told with the cluster and the carrier.
    Ledger(LedgerArgs),
}

#[derive(Debug, clap::Args)]
struct SampleDayArgs {
    /// Generate the day and write it to this file; without it the bundled day is checked and described.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Another day for another seed.
    #[arg(long, default_value_t = generate::SEED)]
    seed: u64,
}

#[derive(Debug, clap::Args)]
struct LedgerArgs {
    /// The directory that `carillonctl lab up` made.
    #[arg(long)]
    lab: PathBuf,
    /// What the demo was told; default: demo-acks.json in the lab directory.
    #[arg(long)]
    acks: Option<PathBuf>,
    /// Write the ledger to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Its output is a log; that of the others is for people.
    let logs = matches!(cli.command, Command::Smsc(_));
    match start(cli) {
        Ok(code) => code,
        Err(error) => {
            match logs {
                true => carillon_proto::telemetry::last_word("carillon-loadtest", &format!("{error:#}")),
                false => eprintln!("carillon-loadtest: {error:#}"),
            }
            if error.is::<ScenarioError>() {
                return ExitCode::from(USAGE);
            }
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    carillon_proto::tls::install_provider();
    let (service, filter) = match cli.command {
        Command::Smsc(_) => ("smsc", "info"),
        _ => ("loadtest", "warn"),
    };
    let telemetry = carillon_proto::telemetry::install(service, cli.log.as_deref().unwrap_or(filter))?;
    let mut runtime = match cli.command {
        // The generator has one thread: its health is judged by that, and two cores are shared with a cluster.
        Command::Bench(_) | Command::Run(_) | Command::Search(_) | Command::Generator => {
            tokio::runtime::Builder::new_current_thread()
        }
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().build().context("cannot start the runtime")?;
    let code = runtime.block_on(async {
        match cli.command {
            Command::Run(args) => run::run(*args).await,
            Command::Search(args) => run::search::run(*args).await,
            Command::Compare(args) => run::compare::run(&args),
            Command::Generator => run::workers::generator().await.map(|()| 0),
            Command::Smsc(args) => {
                telemetry.keep_up();
                let render: smsc::RenderMetrics = Arc::new(move || telemetry.render());
                smsc::run(args, Some(render)).await?;
                Ok(0)
            }
            Command::Demo(args) => Ok(if demo::run(args).await? { 0 } else { FAILED }),
            Command::SampleDay(args) => show_day(&args),
            Command::Bench(command) => Ok(match bench::run(command).await? {
                bench::Verdict::Held => 0,
                bench::Verdict::Missed => FAILED,
                bench::Verdict::Invalid => INVALID,
            }),
            Command::Ledger(args) => ledger(&args).await,
        }
    });
    // A blocked helper thread must not hold up the end.
    runtime.shutdown_background();
    code.map(|code: u8| ExitCode::from(code))
}

fn show_day(args: &SampleDayArgs) -> anyhow::Result<u8> {
    let (day, text) = match &args.write {
        Some(path) => {
            let day = generate::generate(args.seed)?;
            let text = day.to_jsonl()?;
            fs_err::write(path, &text)?;
            (day, text)
        }
        None => {
            let day = Day::bundled()?;
            let text = day.to_jsonl()?;
            (day, text)
        }
    };
    println!("messages  {}", day.messages().count());
    println!("lines     {}", day.lines.len());
    println!("seconds   {}", day.length_ms().div_ceil(1000));
    println!("octets    {}", text.len());
    println!("digest    {}", sample_day::digest(&text));
    Ok(0)
}

async fn ledger(args: &LedgerArgs) -> anyhow::Result<u8> {
    let lab = Lab::open(&args.lab)?;
    let path = args.acks.clone().unwrap_or_else(|| lab.dir.join("demo-acks.json"));
    let file: AcksFile = serde_json::from_slice(&fs_err::read(&path)?)
        .with_context(|| format!("{} does not parse", path.display()))?;
    let client = Client::connect(&lab.router, &lab.tls(), ClientConfig::default())?;
    let ledger = reckon(&client, &lab, &Http::default(), &file).await?;
    println!("{ledger}");
    if let Some(path) = demo::keep_held(&ledger, &lab.dir)? {
        println!("  all held messages: {}", path.display());
    }
    if let Some(path) = &args.json {
        fs_err::write(path, serde_json::to_vec_pretty(&ledger)?)?;
    }
    Ok(if ledger.is_clean() { 0 } else { FAILED })
}
