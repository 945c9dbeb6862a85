//! Messages as a tenant sees them: hand one over, look at it, take it back. Speaks the public API, for first steps and for support.
use super::Verdict;
use super::output::{Format, print};
use carillon_ctl::lab::{Lab, Plane};
use carillon_proto::errors;
use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::messages_client::MessagesClient;
use carillon_proto::public::submit_result::Result as Submitted;
use carillon_proto::public::{
    CancelMessagesRequest, GetMessageRequest, Message, MessageClass, MessageSpec, MessageState, MessageView,
    Outcome, SubmitMessagesRequest,
};
use carillon_proto::tls::{self, TlsFiles};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tonic::transport::Channel;

const DEADLINE: Duration = Duration::from_secs(10);

/// Which API to call: a lab's as its tenant `lakeside`, or any with a tenant's certificate.
#[derive(Debug, Args)]
pub struct Api {
    /// Directory of a lab; the certificate of its tenant `lakeside` is used.
    #[arg(long, conflicts_with_all = ["api", "cert", "key", "ca"], required_unless_present = "api")]
    lab: Option<PathBuf>,
    /// host:port of a router.
    #[arg(long, env = "CARILLON_API", requires_all = ["cert", "key", "ca"])]
    api: Option<String>,
    /// Certificate of the tenant (PEM).
    #[arg(long)]
    cert: Option<PathBuf>,
    /// Key of that certificate (PEM).
    #[arg(long)]
    key: Option<PathBuf>,
    /// CA of the router's certificate (PEM).
    #[arg(long)]
    ca: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Hand one message over; prints its id once a majority of replicas has it on disk.
    Send {
        #[command(flatten)]
        api: Api,
        #[arg(long)]
        practice: String,
        /// E.164, for example +13125550142.
        #[arg(long)]
        to: String,
        #[arg(long)]
        body: String,
        /// For example reminder, confirmation or staff.
        #[arg(long, default_value = "reminder")]
        class: String,
        /// Makes it safe to repeat.
        #[arg(long, default_value = "")]
        idempotency_key: String,
        /// Your own handle, such as the appointment.
        #[arg(long, default_value = "")]
        reference: String,
        /// Only check it.
        #[arg(long)]
        validate_only: bool,
    },
    /// Where it is and why, with every attempt.
    Get {
        #[command(flatten)]
        api: Api,
        id: String,
        /// With text and full number.
        #[arg(long)]
        full: bool,
    },
    /// Take it back, if that is still possible.
    Cancel {
        #[command(flatten)]
        api: Api,
        id: String,
    },
}

impl Api {
    fn connect(&self) -> anyhow::Result<MessagesClient<Channel>> {
        let (address, files) = match (&self.lab, &self.api, &self.cert, &self.key, &self.ca) {
            (Some(dir), ..) => {
                let lab = Lab::open(dir)?;
                (lab.router_address(), lab.tls("tenant-lakeside", Plane::Clients))
            }
            (None, Some(api), Some(cert), Some(key), Some(ca)) => {
                (api.clone(), TlsFiles { cert: cert.clone(), key: key.clone(), ca: ca.clone() })
            }
            _ => anyhow::bail!("give --lab, or --api with --cert, --key and --ca"),
        };
        Ok(MessagesClient::new(tls::channel(&address, tls::client_config(&files)?, None)?))
    }
}

fn request<T>(body: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(body);
    request.set_timeout(DEADLINE);
    request
}

pub async fn run(command: Command, format: Format) -> anyhow::Result<Verdict> {
    match command {
        Command::Send { api, practice, to, body, class, idempotency_key, reference, validate_only } => {
            let name = format!("MESSAGE_CLASS_{}", class.to_ascii_uppercase());
            let class = MessageClass::from_str_name(&name)
                .ok_or_else(|| anyhow::anyhow!("unknown class; see MessageClass in messages.proto"))?;
            let spec = MessageSpec {
                practice,
                recipient: Some(Recipient::PhoneNumber(to)),
                body,
                class: class as i32,
                idempotency_key,
                external_reference: reference,
                ..Default::default()
            };
            let call = SubmitMessagesRequest { messages: vec![spec], validate_only };
            let answer =
                api.connect()?.submit_messages(request(call)).await.map_err(|e| explain(&e))?.into_inner();
            match answer.results.into_iter().next().and_then(|r| r.result) {
                Some(Submitted::Accepted(a)) => {
                    let first_send = a.first_send_time.as_ref().map(ToString::to_string);
                    let value = json!({ "message_id": a.message_id, "duplicate": a.duplicate,
                        "encoding": a.encoding().as_str_name(), "segments": a.segments, "time_zone": a.time_zone,
                        "first_send": first_send, "expires_in_quiet_hours": a.expires_in_quiet_hours });
                    show(format, &value)?;
                    Ok(Verdict::Done)
                }
                Some(Submitted::Error(error)) => Err(explain(&errors::from_rpc(&error))),
                None => anyhow::bail!("the router gave no answer"),
            }
        }
        Command::Get { api, id, full } => {
            let view = if full { MessageView::Full } else { MessageView::Basic };
            let call = GetMessageRequest { message_id: id, view: view as i32 };
            let message =
                api.connect()?.get_message(request(call)).await.map_err(|e| explain(&e))?.into_inner();
            show(format, &describe(&message))?;
            Ok(Verdict::Done)
        }
        Command::Cancel { api, id } => {
            let call = CancelMessagesRequest { message_ids: vec![id], ..Default::default() };
            let answer =
                api.connect()?.cancel_messages(request(call)).await.map_err(|e| explain(&e))?.into_inner();
            let Some(result) = answer.results.into_iter().next() else {
                anyhow::bail!("the router gave no answer")
            };
            if let Some(error) = &result.error {
                return Err(explain(&errors::from_rpc(error)));
            }
            let state = MessageState::try_from(result.state).unwrap_or(MessageState::Unspecified);
            show(
                format,
                &json!({ "canceled": result.canceled, "state": word(state.as_str_name(), "MESSAGE_STATE_") }),
            )?;
            Ok(Verdict::Done)
        }
    }
}

/// The stable reason first, then what to do.
fn explain(status: &tonic::Status) -> anyhow::Error {
    let reason = errors::reason_of(status).map_or("no reason given", errors::word);
    anyhow::anyhow!("{reason}: {}", status.message())
}

fn word(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_owned()
}

fn describe(message: &Message) -> Value {
    let time = |t: &Option<_>| t.as_ref().map(ToString::to_string);
    let attempts: Vec<Value> = message
        .attempts
        .iter()
        .map(|a| {
            let outcome = Outcome::try_from(a.outcome).unwrap_or(Outcome::Unspecified);
            json!({ "number": a.number, "carrier": a.carrier, "outcome": word(outcome.as_str_name(), "OUTCOME_"),
                "code": a.carrier_code, "segments": a.segments, "begin": time(&a.begin_time), "end": time(&a.end_time) })
        })
        .collect();
    json!({
        "message_id": message.message_id,
        "practice": message.practice,
        "recipient": message.recipient,
        "body": message.body,
        "class": word(message.class().as_str_name(), "MESSAGE_CLASS_"),
        "state": word(message.state().as_str_name(), "MESSAGE_STATE_"),
        "detail": message.state_detail,
        "waiting": word(message.waiting_reason().as_str_name(), "WAITING_REASON_"),
        "accepted": time(&message.accept_time),
        "expires": time(&message.expires_at),
        "time_zone": message.time_zone,
        "due": time(&message.due_time),
        "reference": message.external_reference,
        "segments": message.segments,
        "attempts": attempts,
    })
}

/// Fields that say something, one in a line.
fn show(format: Format, value: &Value) -> anyhow::Result<()> {
    print(format, value, || {
        for (name, field) in value.as_object().into_iter().flatten() {
            match field {
                Value::String(text) if text.is_empty() || text == "UNSPECIFIED" => {}
                Value::String(text) => println!("{name:<12} {text}"),
                Value::Array(list) => list.iter().for_each(|item| println!("{name:<12} {item}")),
                Value::Null => {}
                other => println!("{name:<12} {other}"),
            }
        }
    })
}
