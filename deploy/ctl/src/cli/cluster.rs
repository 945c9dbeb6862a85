//! Commands that go to the admin API of a cluster.
use super::Verdict;
use super::carrier::Terms;
use super::output::{Format, print};
use super::target::Target;
use carillon_proto::internal::{
    CarrierRecord, PracticeHours, PutPractice, ReceiptIdFormat, RecipientZones, SmppSettings,
};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum PracticeCommand {
    /// All practices, with their settings, where they live, and whether they are paused.
    List(super::practices::ListArgs),
    /// Register a practice, or change its settings.
    Put(Box<PutPracticeArgs>),
    /// Stop a practice's messages on a carrier; they wait.
    Pause(super::policy::PauseArgs),
    /// Let a practice go on that was paused, by an operator or by the fuse for bursts.
    Resume(super::policy::PauseArgs),
}

#[derive(Debug, Args)]
pub struct PutPracticeArgs {
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
    /// The practice's own hours, inside of what the rules allow: "09:00-18:00", "none" or "all day".
    #[arg(long)]
    mon_fri: Option<String>,
    #[arg(long)]
    sat: Option<String>,
    #[arg(long)]
    sun: Option<String>,
    /// A day without messages, for example 2026-12-24; may be given several times.
    #[arg(long)]
    closed_date: Vec<String>,
    /// Which zone counts for a recipient when a message names none.
    #[arg(long, value_enum, default_value_t = Zones::Practice)]
    recipient_zones: Zones,
    /// 10DLC campaign and brand of its messages; the carrier's if not given.
    #[arg(long, default_value = "")]
    campaign: String,
    #[arg(long, default_value = "")]
    brand: String,
    /// Its share of a lane among those of the other practices, 1 to 1000.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    weight: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Zones {
    /// The practice's.
    Practice,
    /// All those of the number's area code.
    AreaCode,
    /// All of them together.
    Both,
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
    /// 10DLC campaign and brand of messages whose practice names none.
    #[arg(long, default_value = "")]
    campaign: String,
    #[arg(long, default_value = "")]
    brand: String,
    #[command(flatten)]
    terms: Terms,
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
    let args = match command {
        PracticeCommand::List(args) => return super::practices::list(args, format).await,
        PracticeCommand::Pause(args) => return super::policy::pause(args, true, format).await,
        PracticeCommand::Resume(args) => return super::policy::pause(args, false, format).await,
        PracticeCommand::Put(args) => args,
    };
    let (hours, recipient_zones) = hours_of(&args);
    let put = PutPractice {
        tenant: args.tenant,
        practice: args.practice,
        time_zone: args.time_zone,
        carrier: args.carrier,
        campaign: args.campaign,
        brand: args.brand,
        hours,
        recipient_zones: recipient_zones.into(),
        // 1 is what a cluster below level 5 understands without the field.
        weight: if args.weight == 1 { 0 } else { args.weight },
    };
    let stored = args.target.any().await?.put_practice(put).await?;
    let value = json!({
        "practice_no": stored.practice_no, "tenant": stored.tenant, "practice": stored.practice,
        "time_zone": stored.time_zone, "carrier_no": stored.carrier_no, "weight": stored.weight.max(1),
    });
    print(format, &value, || {
        println!("practice {} of {} has number {}", stored.practice, stored.tenant, stored.practice_no);
    })?;
    Ok(Verdict::Done)
}

/// What the command says of hours; nothing if it does not.
fn hours_of(args: &PutPracticeArgs) -> (Option<PracticeHours>, RecipientZones) {
    let PutPracticeArgs { mon_fri, sat, sun, closed_date, recipient_zones, .. } = args;
    let any = mon_fri.is_some() || sat.is_some() || sun.is_some() || !closed_date.is_empty();
    let text = |own: &Option<String>| own.clone().unwrap_or_default();
    let hours = PracticeHours {
        mon_fri: text(mon_fri),
        sat: text(sat),
        sun: text(sun),
        closed_dates: closed_date.clone(),
    };
    let zones = match recipient_zones {
        Zones::Practice => RecipientZones::Practice,
        Zones::AreaCode => RecipientZones::AreaCode,
        Zones::Both => RecipientZones::Both,
    };
    (any.then_some(hours), zones)
}

impl PutCarrierArgs {
    pub fn record(self) -> anyhow::Result<(Target, CarrierRecord)> {
        let tls_ca_pem = match &self.tls_ca {
            Some(path) => fs_err::read_to_string(path)?,
            None => String::new(),
        };
        let receipt_id_format = match self.receipt_ids {
            ReceiptIds::Auto => ReceiptIdFormat::Auto,
            ReceiptIds::Same => ReceiptIdFormat::Same,
            ReceiptIds::HexThenDecimal => ReceiptIdFormat::HexThenDecimal,
            ReceiptIds::DecimalThenHex => ReceiptIdFormat::DecimalThenHex,
        };
        let record = CarrierRecord {
            name: self.name,
            smpp: Some(SmppSettings {
                address: self.address,
                tls: self.tls,
                tls_ca_pem,
                tls_server_name: self.tls_server_name,
                system_id: self.system_id,
                password_secret: self.password_secret,
                binds_per_node: self.binds_per_node,
                window: self.window,
                enquire_link_ms: self.enquire_link_ms,
                response_timeout_ms: self.response_timeout_ms,
                source_address: self.source_address,
                receipt_id_format: receipt_id_format.into(),
                throttle_pause_ms: self.throttle_pause_ms,
            }),
            segments_per_second: self.segments_per_second,
            campaign: self.campaign,
            brand: self.brand,
            ..Default::default()
        };
        Ok((self.target, self.terms.apply(record)))
    }
}

pub async fn log_filter(command: LogFilterCommand) -> anyhow::Result<Verdict> {
    let LogFilterCommand::Set { target, filter } = command;
    target.connect()?.set_log_filter(&filter).await?;
    Ok(Verdict::Done)
}
