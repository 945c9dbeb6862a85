//! The command line: what can be said, and which function does it.
mod appointment;
mod backup;
mod breaker;
mod carrier;
mod cluster;
mod dead_letter;
mod forecast;
mod hours;
mod lab;
mod lanes;
mod members;
mod message;
mod output;
mod policy;
mod practices;
mod quarantine;
mod route;
mod sender;
mod series;
mod status;
mod storage;
mod target;
mod unknown;

use carillon_ctl::admin::AdminError;
use carillon_ctl::backup::BackupError;
use carillon_ctl::lab::LabError;
use clap::{Parser, Subcommand};
use output::Format;

/// Operate a Carillon cluster, or run one on this machine.
#[derive(Debug, Parser)]
#[command(name = "carillonctl", version)]
pub struct Cli {
    /// How to print results.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A cluster on this machine, for development, demonstrations and tests. Never for patients' data.
    #[command(subcommand)]
    Lab(lab::Command),
    /// Nodes, partitions, leaders and carriers; asks every node. Exit code 3 if something is wrong.
    Status(target::Target),
    /// Messages, as a tenant: send one, look at it, take it back.
    #[command(subcommand)]
    Message(message::Command),
    /// Appointments: change all messages of one at once.
    #[command(subcommand)]
    Appointment(appointment::AppointmentCommand),
    /// Recurring messages.
    #[command(subcommand)]
    Series(series::SeriesCommand),
    /// Messages whose retries are spent: list them, send them again, drop them.
    #[command(subcommand)]
    DeadLetter(dead_letter::DeadLetterCommand),
    /// Messages whose carrier's answer was lost (UNKNOWN): list them, say what became of them.
    #[command(subcommand)]
    Unknown(unknown::UnknownCommand),
    /// Breakers of carriers: which are open, and the operator's word.
    #[command(subcommand)]
    Breaker(breaker::BreakerCommand),
    /// Rules that choose carriers and senders.
    #[command(subcommand)]
    Route(route::RouteCommand),
    /// Senders of carriers: numbers, short codes and names.
    #[command(subcommand)]
    Sender(sender::SenderCommand),
    /// When backlogs end and which messages will be late, now or under another limit.
    Forecast(forecast::ForecastArgs),
    /// Practices.
    #[command(subcommand)]
    Practice(cluster::PracticeCommand),
    /// When recipients may be texted.
    #[command(subcommand)]
    Hours(hours::Command),
    /// What one recipient may get, and the fuses.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Carrier accounts.
    #[command(subcommand)]
    Carrier(carrier::CarrierCommand),
    /// Lanes: what carriers allow, who holds it, how much of it is used.
    #[command(subcommand)]
    Lane(lanes::LaneCommand),
    /// Limits besides those of the accounts.
    #[command(subcommand)]
    Limit(lanes::LimitCommand),
    /// Nodes: let one join, drain it, take it out, replace it.
    #[command(subcommand)]
    Node(members::NodeCommand),
    /// Partitions.
    #[command(subcommand)]
    Partition(members::PartitionCommand),
    /// Leaders.
    #[command(subcommand)]
    Leader(members::LeaderCommand),
    /// Single copies of partitions.
    #[command(subcommand)]
    Replica(storage::ReplicaCommand),
    /// Backups of a running cluster: make one, list them, check one.
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Restore a backup into a new cluster.
    Restore(Box<backup::RestoreArgs>),
    /// Messages that a restore holds because they may have been sent after the backup.
    #[command(subcommand)]
    Quarantine(quarantine::QuarantineCommand),
    /// Let one node read everything that it stores, with checksums; exit code 3 if something is damaged.
    Scrub(target::Target),
    /// What a running node logs.
    #[command(subcommand)]
    LogFilter(cluster::LogFilterCommand),
    /// The version of this program.
    Version,
}

/// How a command ended that did what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Done,
    Unhealthy,
}

pub async fn run(cli: Cli) -> anyhow::Result<Verdict> {
    let format = cli.output;
    match cli.command {
        Command::Lab(command) => lab::run(command, format).await,
        Command::Status(target) => status::status(&target, format).await,
        Command::Message(command) => message::run(command, format).await,
        Command::Appointment(command) => appointment::run(command, format).await,
        Command::Series(command) => series::run(command, format).await,
        Command::DeadLetter(command) => dead_letter::run(command, format).await,
        Command::Unknown(command) => unknown::run(command, format).await,
        Command::Breaker(command) => breaker::run(command, format).await,
        Command::Route(command) => route::run(command, format).await,
        Command::Sender(command) => sender::run(command, format).await,
        Command::Forecast(args) => forecast::run(args, format).await,
        Command::Practice(command) => cluster::practice(command, format).await,
        Command::Hours(command) => hours::run(command, format).await,
        Command::Policy(command) => policy::run(command, format).await,
        Command::Carrier(command) => carrier::carrier(command, format).await,
        Command::Lane(command) => lanes::lane(command, format).await,
        Command::Limit(command) => lanes::limit(command, format).await,
        Command::Node(command) => members::node(command, format).await,
        Command::Partition(command) => members::partition(command, format).await,
        Command::Leader(command) => members::leader(command, format).await,
        Command::Replica(command) => storage::replica(command, format).await,
        Command::Backup(command) => backup::run(command, format).await,
        Command::Restore(args) => backup::restore(*args, format).await,
        Command::Quarantine(command) => quarantine::run(command, format).await,
        Command::Scrub(target) => storage::scrub(&target, format).await,
        Command::LogFilter(command) => cluster::log_filter(command).await,
        Command::Version => {
            let version = env!("CARGO_PKG_VERSION");
            output::print(format, &serde_json::json!({ "version": version }), || println!("{version}"))?;
            Ok(Verdict::Done)
        }
    }
}

/// 4 for "the cluster said no", 3 for "it is not healthy", else 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let admin = match error.downcast_ref::<BackupError>() {
        Some(BackupError::Damaged { .. } | BackupError::Incomplete(_)) => return 3,
        Some(BackupError::Wrong(_)) => return 4,
        Some(BackupError::Admin(admin)) => Some(admin),
        _ => error.downcast_ref::<AdminError>(),
    };
    if let Some(problem) = error.downcast_ref::<message::Problem>() {
        return if problem.refused { 4 } else { 1 };
    }
    match (error.downcast_ref::<LabError>(), admin) {
        (Some(LabError::NotReady { .. } | LabError::Ended { .. }), _) => 3,
        (Some(LabError::Admin(AdminError::Refused(_))), _) | (_, Some(AdminError::Refused(_))) => 4,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent_and_exit_codes_tell_the_kinds_of_failure_apart() {
        Cli::command().debug_assert();
        let refused = || AdminError::Refused(tonic::Status::failed_precondition("no such carrier"));
        let ended = LabError::Ended { name: "node-1".into(), log: String::new() };
        assert_eq!(exit_code(&refused().into()), 4);
        assert_eq!(exit_code(&LabError::from(refused()).into()), 4);
        assert_eq!(exit_code(&ended.into()), 3);
        assert_eq!(exit_code(&LabError::NoLab("x".into()).into()), 1);
    }

    #[test]
    fn a_target_is_a_lab_or_an_address_with_certificates_but_not_half_of_it() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(drop).map_err(|e| e.exit_code());
        assert_eq!(parse("carillonctl status --lab lab"), Ok(()));
        assert_eq!(parse("carillonctl status --admin a:1 --cert c --key k --ca a"), Ok(()));
        assert_eq!(parse("carillonctl status --admin a:1 --cert c --key k"), Err(2));
        assert_eq!(parse("carillonctl status"), Err(2));
        assert_eq!(parse("carillonctl lab up --dir d --lane-limit 0"), Err(2));
        assert_eq!(parse("carillonctl node drain 3 --lab lab"), Ok(()));
        assert_eq!(parse("carillonctl lane set-limit sim 0 --lab lab"), Ok(()));
        let put = "carillonctl limit put --lab lab --carrier sim --amount 75";
        assert_eq!(
            parse(&format!("{put} --scope campaign --scope-key c1 --network att --window-s 60")),
            Ok(())
        );
        assert_eq!(parse(&format!("{put} --scope brand --scope-key b --day-in America/Los_Angeles")), Ok(()));
        assert_eq!(parse(&format!("{put} --scope account")), Err(2), "a window or a day");
        assert_eq!(parse(&format!("{put} --scope account --window-s 4000")), Err(2));
        assert_eq!(parse("carillonctl node drain --lab lab"), Err(2));
        assert_eq!(parse("carillonctl partition move --partition 1 --from 1 --to 2 --lab lab"), Ok(()));
        assert_eq!(parse("carillonctl backup create --to d --admin a:1,b:1 --cert c --key k --ca a"), Ok(()));
        assert_eq!(parse("carillonctl restore --from d --lab lab"), Ok(()));
        assert_eq!(parse("carillonctl hours check --phone +18505550123 --lab lab"), Ok(()));
        assert_eq!(parse("carillonctl hours check --practice p --lab lab"), Err(2), "of which tenant");
        assert_eq!(parse("carillonctl hours replace --lab lab"), Err(2), "by what");
        assert_eq!(parse("carillonctl hours replace --built-in --lab lab"), Ok(()));
        assert_eq!(parse("carillonctl quarantine drop --all --dry-run --lab lab"), Ok(()));
        assert_eq!(parse("carillonctl quarantine release --lab lab"), Err(2), "say of whom");
        assert_eq!(parse("carillonctl quarantine release --tenant t --practice p --all --lab lab"), Err(2));
        assert_eq!(
            parse("carillonctl dead-letter replay --tenant t --practice p --dry-run --lab lab"),
            Ok(())
        );
        assert_eq!(parse("carillonctl dead-letter drop --all --lab lab"), Err(2), "say why");
        assert_eq!(parse("carillonctl forecast --limit 50 --lab lab"), Err(2), "say of which carrier");
        assert_eq!(parse("carillonctl unknown list --older-than-s 3600 --lab lab"), Ok(()));
        let resolve = "carillonctl unknown resolve m1 m2 --lab lab";
        assert_eq!(parse(&format!("{resolve} --as delivered --reason portal --dry-run")), Ok(()));
        assert_eq!(parse(&format!("{resolve} --as delivered")), Err(2), "say why");
        assert_eq!(parse(&format!("{resolve} --reason portal")), Err(2), "say what");
        assert_eq!(
            parse("carillonctl unknown resolve --as failed --reason r --lab lab"),
            Err(2),
            "say which"
        );
        assert_eq!(
            parse("carillonctl appointment cancel --practice p --reference r --version 2 --lab lab"),
            Ok(())
        );
        assert_eq!(parse("carillonctl breaker open main --lab lab"), Ok(()));
        assert_eq!(parse("carillonctl route put r --to main=3 --to spare=0 --class staff --lab lab"), Ok(()));
        assert_eq!(parse("carillonctl route put r --to main=x --lab lab"), Err(2));
        assert_eq!(
            parse("carillonctl route put r --to main:+12125550100=3 --to main:CLINIC=1 --lab lab"),
            Ok(())
        );
        assert_eq!(parse("carillonctl sender put main +12125550100 --weight 3 --paused --lab lab"), Ok(()));
        let send = "carillonctl message send --practice p --to +13125550142 --body b --idempotency-key k";
        assert_eq!(parse(&format!("{send} --lab lab")), Ok(()));
        assert_eq!(parse(&format!("{send} --api a:1 --cert c --key k --ca a")), Ok(()));
        assert_eq!(parse(send), Err(2));
        assert_eq!(parse("carillonctl message cancel m1 m2 --lab lab"), Ok(()));
        assert_eq!(parse("carillonctl message cancel --practice p --reference visit-1 --lab lab"), Ok(()));
        assert_eq!(parse("carillonctl message list --state unknown --limit 5 --lab lab"), Ok(()));
        assert_eq!(parse("carillonctl message list --reference visit-1 --lab lab"), Err(2), "of whom");
        assert_eq!(parse("carillonctl message watch --from start --count 3 --lab lab"), Ok(()));
        assert_eq!(parse("carillonctl message watch --from start --cursor-file f --lab lab"), Err(2));
        assert_eq!(parse("carillonctl carrier list --lab lab"), Ok(()));
        assert_eq!(parse("carillonctl practice list --tenant t --lab lab"), Ok(()));
        assert_eq!(parse("carillonctl message cancel --lab lab"), Err(2), "say which");
        assert_eq!(parse("carillonctl message cancel --reference visit-1 --lab lab"), Err(2), "of whom");
        assert_eq!(parse("carillonctl status --admin a:1,b:1 --cert c --key k --ca a"), Ok(()));
    }
}
