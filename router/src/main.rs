//! The router process.
use anyhow::Context as _;
use carillon_proto::{telemetry, tls};
use carillon_router::config::Config;
use carillon_router::server;
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The front door of Carillon: authenticates, validates, and hands messages to the leaders of their partitions.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and the certificates, then exit.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (result, code) = match prepare(&arguments) {
        Ok(_) if arguments.check => (Ok(()), ExitCode::SUCCESS),
        Ok(config) => (run(config), ExitCode::FAILURE),
        // As the node does: what is wrong is what it was given.
        Err(error) => (Err(error), ExitCode::from(2)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match arguments.check {
                true => eprintln!("carillon-router: {error:#}"),
                false => telemetry::last_word("carillon-router", &format!("{error:#}")),
            }
            code
        }
    }
}

fn prepare(arguments: &Arguments) -> anyhow::Result<Config> {
    tls::install_provider();
    let config = Config::load(&arguments.config)?;
    server::check(&config)?;
    if arguments.check {
        println!("the configuration is good");
    }
    Ok(config)
}

fn run(config: Config) -> anyhow::Result<()> {
    let telemetry = telemetry::install("router", &config.log_filter)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.tuning.worker_threads)
        .thread_name("router")
        .enable_all()
        .build()?;
    runtime.block_on(serve(config, telemetry))
}

async fn serve(config: Config, telemetry: telemetry::Telemetry) -> anyhow::Result<()> {
    let listener = telemetry::bind("clients", config.listen).await?;
    let http = telemetry::bind("metrics and health", config.http_listen).await?;
    let mut running = server::start(&config, listener).await?;
    let side_port = tokio::spawn({
        let ready = running.ready_check();
        async move { telemetry.serve_http(http, ready).await }
    });
    let mut terminate = signal(SignalKind::terminate()).context("signal handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signal handler")?;
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        reason = running.ended() => Err(anyhow::anyhow!("{reason}")),
    };
    if outcome.is_ok() {
        tracing::info!("stopping");
        let drained = running.stop().await;
        tracing::info!(drained, "stopped");
    }
    side_port.abort();
    outcome
}
