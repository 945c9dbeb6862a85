//! `carillonctl series ...`: recurring messages, as a tenant.
use super::Verdict;
use super::message::show::fields;
use super::message::{Api, Problem, request};
use super::output::Format;
use carillon_proto::public::appointments_client::AppointmentsClient;
use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::{
    CreateSeriesRequest, EndSeriesRequest, GetSeriesRequest, MessageClass, MessageSpec, Series,
};
use clap::Subcommand;
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub enum SeriesCommand {
    /// Begin a series, for example --rule "FREQ=WEEKLY;BYDAY=MO;COUNT=10" --start 2027-01-04T09:00.
    Create {
        #[command(flatten)]
        api: Api,
        #[arg(long)]
        practice: String,
        /// E.164, for example +13125550142.
        #[arg(long)]
        to: String,
        #[arg(long)]
        body: String,
        /// For example reminder or prescription.
        #[arg(long, default_value = "reminder")]
        class: String,
        /// Makes it safe to repeat.
        #[arg(long)]
        idempotency_key: String,
        #[arg(long, default_value = "")]
        reference: String,
        #[arg(long)]
        rule: String,
        /// On the wall clock of the practice.
        #[arg(long)]
        start: String,
        /// A date without a message, such as 20270105; may be repeated.
        #[arg(long)]
        except: Vec<String>,
    },
    /// How far it has come, and what comes next.
    Get {
        #[command(flatten)]
        api: Api,
        id: String,
    },
    /// Make no more messages of it.
    End {
        #[command(flatten)]
        api: Api,
        id: String,
    },
}

pub async fn run(command: SeriesCommand, format: Format) -> anyhow::Result<Verdict> {
    let (series, address) = match command {
        SeriesCommand::Create {
            api,
            practice,
            to,
            body,
            class,
            idempotency_key,
            reference,
            rule,
            start,
            except,
        } => {
            let class = MessageClass::from_str_name(&format!("MESSAGE_CLASS_{}", class.to_ascii_uppercase()))
                .ok_or_else(|| anyhow::anyhow!("unknown class; see MessageClass in messages.proto"))?;
            let message = MessageSpec {
                practice,
                recipient: Some(Recipient::PhoneNumber(to)),
                body,
                class: class as i32,
                idempotency_key,
                external_reference: reference,
                ..Default::default()
            };
            let call = CreateSeriesRequest {
                message: Some(message),
                rule,
                start,
                exceptions: except,
                valid_for: None,
            };
            let (channel, address) = api.channel()?;
            (AppointmentsClient::new(channel).create_series(request(call)).await, address)
        }
        SeriesCommand::Get { api, id } => {
            let call = GetSeriesRequest { series_id: id };
            let (channel, address) = api.channel()?;
            (AppointmentsClient::new(channel).get_series(request(call)).await, address)
        }
        SeriesCommand::End { api, id } => {
            let call = EndSeriesRequest { series_id: id };
            let (channel, address) = api.channel()?;
            (AppointmentsClient::new(channel).end_series(request(call)).await, address)
        }
    };
    let series = series.map_err(|s| Problem::of("manage the series", &address, &s))?.into_inner();
    fields(format, &described(&series))?;
    Ok(Verdict::Done)
}

fn described(series: &Series) -> Value {
    let upcoming: Vec<String> = series.upcoming.iter().map(ToString::to_string).collect();
    json!({
        "series_id": series.series_id,
        "practice": series.practice,
        "made": series.made,
        "upcoming": upcoming,
        "duplicate": series.duplicate,
        "ended": series.ended,
    })
}
