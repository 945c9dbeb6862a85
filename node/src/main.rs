//! `carillon-node`: one node of a cluster.
use carillon_node::config::{Config, Join};
use carillon_node::{failpoints, node};
use carillon_proto::{telemetry, tls};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A node of a Carillon cluster.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Configuration file (TOML).
    #[arg(long, env = "CARILLON_NODE_CONFIG")]
    config: PathBuf,
    /// Check the configuration and the certificates, then exit.
    #[arg(long)]
    check: bool,
    /// host:port of the peer plane of a member: join its cluster with --token. May be repeated. Takes the place of `join`.
    #[arg(long, value_name = "ADDR", requires = "token")]
    join: Vec<String>,
    /// Token of `carillonctl node token`.
    #[arg(long, env = "CARILLON_JOIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let join = (!cli.join.is_empty()).then_some(Join { peers: cli.join, token: cli.token, token_file: None });
    let config = match Config::load(&cli.config, join) {
        Ok(config) => config,
        Err(error) => {
            match cli.check {
                true => eprintln!("carillon-node: {error}"),
                false => telemetry::last_word("carillon-node", &error.to_string()),
            }
            return ExitCode::from(2);
        }
    };
    tls::install_provider();
    if cli.check {
        if let Err(error) = config.check_tls() {
            eprintln!("carillon-node: {error}");
            return ExitCode::from(2);
        }
        println!("{}: ok", cli.config.display());
        return ExitCode::SUCCESS;
    }
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            telemetry::last_word("carillon-node", &format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    let telemetry = telemetry::install("node", &config.log_filter)?;
    if config.lab {
        failpoints::arm(&config.data_dir)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.tuning.worker_threads)
        .thread_name("worker")
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let node = node::start(config, Some(telemetry)).await?;
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => {}
            result = tokio::signal::ctrl_c() => result?,
        }
        tracing::info!("stopping");
        node.stop().await;
        Ok(())
    })
}
