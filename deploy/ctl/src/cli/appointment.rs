//! `carillonctl appointment ...`: changes all messages of one external reference, as a tenant.
use super::Verdict;
use super::message::show::word;
use super::message::{Api, Problem, request};
use super::output::{Format, print, table};
use carillon_proto::public::appointments_client::AppointmentsClient;
use carillon_proto::public::{MessageChange, UpdateAppointmentRequest, UpdateAppointmentResponse};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub enum AppointmentCommand {
    /// Take all its messages back.
    Cancel {
        #[command(flatten)]
        what: What,
    },
    /// Move all its messages, for example by 86400 or -3600 seconds.
    Move {
        #[command(flatten)]
        what: What,
        #[arg(long, allow_hyphen_values = true)]
        by_seconds: i64,
    },
    /// Give all its messages another text.
    Edit {
        #[command(flatten)]
        what: What,
        #[arg(long)]
        body: String,
    },
}

#[derive(Debug, Args)]
pub struct What {
    #[command(flatten)]
    api: Api,
    #[arg(long)]
    practice: String,
    /// The external reference of its messages.
    #[arg(long)]
    reference: String,
    /// Of the appointment; rises with every change, and the same one again changes nothing.
    #[arg(long = "version", value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    appointment_version: u64,
    /// Only say what would happen.
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(command: AppointmentCommand, format: Format) -> anyhow::Result<Verdict> {
    let (what, change) = match command {
        AppointmentCommand::Cancel { what } => (what, MessageChange { cancel: true, ..Default::default() }),
        AppointmentCommand::Move { what, by_seconds } => {
            let shift = Some(prost_types::Duration { seconds: by_seconds, nanos: 0 });
            (what, MessageChange { shift, ..Default::default() })
        }
        AppointmentCommand::Edit { what, body } => (what, MessageChange { body, ..Default::default() }),
    };
    let call = UpdateAppointmentRequest {
        practice: what.practice,
        external_reference: what.reference,
        version: what.appointment_version,
        changes: vec![change],
        validate_only: what.dry_run,
    };
    let (channel, address) = what.api.channel()?;
    let answer = AppointmentsClient::new(channel).update_appointment(request(call)).await;
    let answer = answer.map_err(|s| Problem::of("change the appointment", &address, &s))?.into_inner();
    print(format, &described(&answer), || {
        let rows: Vec<Vec<String>> = answer.results.iter().map(row).collect();
        table(&["MESSAGE", "RESULT", "STATE", "HANDED OVER"], &rows);
        if answer.duplicate {
            println!("this version had been applied before");
        }
    })?;
    Ok(Verdict::Done)
}

fn row(result: &carillon_proto::public::UpdateResult) -> Vec<String> {
    vec![
        result.message_id.clone(),
        word(result.disposition().as_str_name(), "UPDATE_DISPOSITION_"),
        word(result.state().as_str_name(), "MESSAGE_STATE_"),
        result.submit_time.as_ref().map(ToString::to_string).unwrap_or_default(),
    ]
}

fn described(answer: &UpdateAppointmentResponse) -> Value {
    let results: Vec<Value> = answer
        .results
        .iter()
        .map(|result| {
            let cells = row(result);
            json!({ "message_id": cells[0], "result": cells[1], "state": cells[2], "handed_over": cells[3] })
        })
        .collect();
    json!({ "duplicate": answer.duplicate, "results": results })
}
