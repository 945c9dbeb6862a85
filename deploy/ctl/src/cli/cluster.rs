//! Commands that go to the admin API of a cluster.
use super::Verdict;
use super::output::{Format, print};
use super::target::Target;
use carillon_proto::internal::{CarrierRecord, PutPractice, ReceiptIdFormat, SmppSettings};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum PracticeCommand {
    /// Register a practice, or change its settings.
    Put {
        #[command(flatten)]
        target: Target,
        #[arg(long)]
        tenant: String,
        #[arg(long)]
        practice: String,
        /// IANA time zone, for example America/Chicago.
        #[arg(long)]
        time_zone: String,
        /// The carrier account that its messages use.
        #[arg(long)]
        carrier: String,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ReceiptIds {
    Auto,
    Same,
    HexThenDecimal,
    DecimalThenHex,
}

#[derive(Debug, Args)]
pub struct PutCarrierArgs {
    #[command(flatten)]
    target: Target,
    #[arg(long)]
    name: String,
    /// host:port of the carrier.
    #[arg(long)]
    address: String,
    /// Use TLS towards the carrier.
    #[arg(long)]
    tls: bool,
    /// CA of the carrier (PEM).
    #[arg(long, requires = "tls")]
    tls_ca: Option<PathBuf>,
    /// Name in the carrier's certificate, if it is not the host.
    #[arg(long, requires = "tls", default_value = "")]
    tls_server_name: String,
    #[arg(long)]
    system_id: String,
    /// Name of the file in the nodes' secrets directory that holds the password.
    #[arg(long)]
    password_secret: String,
    /// Limit of the account.
    #[arg(long)]
    segments_per_second: u32,
    #[arg(long)]
    source_address: String,
    #[arg(long, default_value_t = 2)]
    binds_per_node: u32,
    /// Unanswered submits on one bind, at most.
    #[arg(long, default_value_t = 64)]
    window: u32,
    #[arg(long, default_value_t = 10_000)]
    enquire_link_ms: u32,
    #[arg(long, default_value_t = 5_000)]
    response_timeout_ms: u32,
    /// How the id in a receipt relates to the id in the answer.
    #[arg(long, value_enum, default_value_t = ReceiptIds::Auto)]
    receipt_ids: ReceiptIds,
    #[arg(long, default_value_t = 1_000)]
    throttle_pause_ms: u32,
}

#[derive(Debug, Subcommand)]
pub enum CarrierCommand {
    /// Register a carrier account, or change its settings.
    Put(Box<PutCarrierArgs>),
}

#[derive(Debug, Subcommand)]
pub enum LogFilterCommand {
    /// Change it until the node restarts, for example to "info,carillon_node=debug".
    Set {
        #[command(flatten)]
        target: Target,
        filter: String,
    },
}

pub async fn practice(command: PracticeCommand, format: Format) -> anyhow::Result<Verdict> {
    let PracticeCommand::Put { target, tenant, practice, time_zone, carrier } = command;
    let put = PutPractice { tenant, practice, time_zone, carrier };
    let stored = target.any().await?.put_practice(put).await?;
    let value = json!({
        "practice_no": stored.practice_no, "tenant": stored.tenant, "practice": stored.practice,
        "time_zone": stored.time_zone, "carrier_no": stored.carrier_no,
    });
    print(format, &value, || {
        println!("practice {} of {} has number {}", stored.practice, stored.tenant, stored.practice_no);
    })?;
    Ok(Verdict::Done)
}

pub async fn carrier(command: CarrierCommand, format: Format) -> anyhow::Result<Verdict> {
    let CarrierCommand::Put(args) = command;
    let tls_ca_pem = match &args.tls_ca {
        Some(path) => fs_err::read_to_string(path)?,
        None => String::new(),
    };
    let receipt_id_format = match args.receipt_ids {
        ReceiptIds::Auto => ReceiptIdFormat::Auto,
        ReceiptIds::Same => ReceiptIdFormat::Same,
        ReceiptIds::HexThenDecimal => ReceiptIdFormat::HexThenDecimal,
        ReceiptIds::DecimalThenHex => ReceiptIdFormat::DecimalThenHex,
    };
    let record = CarrierRecord {
        carrier_no: 0,
        name: args.name,
        smpp: Some(SmppSettings {
            address: args.address,
            tls: args.tls,
            tls_ca_pem,
            tls_server_name: args.tls_server_name,
            system_id: args.system_id,
            password_secret: args.password_secret,
            binds_per_node: args.binds_per_node,
            window: args.window,
            enquire_link_ms: args.enquire_link_ms,
            response_timeout_ms: args.response_timeout_ms,
            source_address: args.source_address,
            receipt_id_format: receipt_id_format.into(),
            throttle_pause_ms: args.throttle_pause_ms,
        }),
        segments_per_second: args.segments_per_second,
    };
    let stored = args.target.any().await?.put_carrier(record).await?;
    let value = json!({
        "carrier_no": stored.carrier_no, "name": stored.name, "segments_per_second": stored.segments_per_second,
    });
    print(format, &value, || println!("carrier {} has number {}", stored.name, stored.carrier_no))?;
    Ok(Verdict::Done)
}

pub async fn log_filter(command: LogFilterCommand) -> anyhow::Result<Verdict> {
    let LogFilterCommand::Set { target, filter } = command;
    target.connect()?.set_log_filter(&filter).await?;
    Ok(Verdict::Done)
}
