//! `carillonctl`: the operator's command.
//!
//! Exit codes: 0 done, 1 an error, 2 wrong usage, 3 something is unhealthy, 4 the cluster refused.
mod cli;

use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = cli::Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(cli::run(arguments)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(cli::Verdict::Done) => ExitCode::SUCCESS,
        Ok(cli::Verdict::Unhealthy) => ExitCode::from(3),
        Err(error) => {
            eprintln!("carillonctl: {error:#}");
            ExitCode::from(cli::exit_code(&error))
        }
    }
}
