//! `carillonctl`: the operator's command.
//!
//! Exit codes: 0 done, 1 an error, 2 wrong usage, 3 something is unhealthy, 4 the cluster refused.
mod cli;

use clap::Parser as _;
use std::process::ExitCode;

/// Whoever reads our output may stop reading, as `head` does: that is no defect of ours, and the rest need not be said.
fn end_with_the_reader() {
    let otherwise = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>().map(String::as_str).unwrap_or_default();
        if text.starts_with("failed printing to stdout") && text.contains("Broken pipe") {
            std::process::exit(0);
        }
        otherwise(panic);
    }));
}

fn main() -> ExitCode {
    end_with_the_reader();
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
