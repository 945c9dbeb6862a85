//! The command line of `run`, and what it changes in a scenario.

use std::path::PathBuf;

use super::presets;
use super::scenario::{Scenario, ScenarioError};
use super::target::TargetArgs;
use super::threshold::Threshold;

/// Put the load of a scenario on a cluster, prove what became of every message, and write a report.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// A preset (see --list) or the path of a scenario (TOML).
    #[arg(required_unless_present_any = ["list", "schema", "metrics"])]
    pub scenario: Option<String>,
    /// List the presets.
    #[arg(long)]
    pub list: bool,
    /// Print the scenario instead of running it: the beginning of one's own.
    #[arg(long)]
    pub print: bool,
    /// Print the JSON schema of reports.
    #[arg(long)]
    pub schema: bool,
    /// List the metrics that thresholds can name.
    #[arg(long)]
    pub metrics: bool,
    /// Write the practices of the scenario to this file instead of running it, to register them in a cluster of one's own.
    #[arg(long)]
    pub write_practices: Option<PathBuf>,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Another run for another seed.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Highest rate of the run in messages per second: all phases are scaled to it.
    #[arg(long, value_parser = rate)]
    pub rate: Option<f64>,
    /// Length of the run in seconds: all phases, and the times of faults, are scaled to it.
    #[arg(long, value_parser = seconds)]
    pub duration: Option<f64>,
    /// Generator processes; they share the schedule.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub generators: Option<u16>,
    /// One more threshold; may be given several times.
    #[arg(long = "threshold", value_name = "CHECK")]
    pub thresholds: Vec<Threshold>,
    /// Directory of the report; default: a new one, named after the scenario and the time.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Keep the launched cluster's directory and what the ledger was made of.
    #[arg(long)]
    pub keep: bool,
    /// No line a second.
    #[arg(long)]
    pub quiet: bool,
    /// A dashboard on the terminal instead of lines.
    #[arg(long, conflicts_with = "quiet")]
    pub tui: bool,
}

/// Reads `20000` or `20000/s`.
pub fn rate(text: &str) -> Result<f64, String> {
    match text.trim_end_matches("/s").parse::<f64>() {
        Ok(rate) if (0.1..=10_000_000.0).contains(&rate) => Ok(rate),
        _ => Err("a rate is 0.1 to 10000000, such as 20000 or 20000/s".to_owned()),
    }
}

/// Reads `90`, `90s`, `10m`, `8h`.
pub fn seconds(text: &str) -> Result<f64, String> {
    let (number, scale) = match text.as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1.0),
        Some(b'm') => (&text[..text.len() - 1], 60.0),
        Some(b'h') => (&text[..text.len() - 1], 3_600.0),
        _ => (text, 1.0),
    };
    match number.parse::<f64>() {
        Ok(number) if (0.1..=604_800.0).contains(&(number * scale)) => Ok(number * scale),
        _ => Err("a length is 0.1 s to 7 days, such as 90, 90s, 10m or 8h".to_owned()),
    }
}

/// The scenario with what the command line changes.
pub fn scenario_of(args: &Args, name: &str) -> Result<Scenario, ScenarioError> {
    let mut scenario = presets::load(name)?;
    if let Some(seed) = args.seed {
        scenario.seed = seed;
    }
    if let Some(rate) = args.rate {
        scenario.scale_rate(rate);
    }
    if let Some(duration_s) = args.duration {
        scenario.scale_time(duration_s);
    }
    if let Some(processes) = args.generators {
        scenario.generator.processes = processes;
    }
    scenario.thresholds.extend(args.thresholds.iter().cloned());
    Ok(scenario)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_lengths_are_read_with_their_units() {
        assert_eq!((rate("20000/s"), rate("0.5")), (Ok(20_000.0), Ok(0.5)));
        assert_eq!((seconds("90"), seconds("10m"), seconds("8h")), (Ok(90.0), Ok(600.0), Ok(28_800.0)));
        assert!(
            rate("fast").is_err() && rate("0").is_err() && seconds("0").is_err() && seconds("m").is_err()
        );
    }
}
