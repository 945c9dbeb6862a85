//! Messages as a tenant sees them: hand one over, look at it, list them, follow them, take them back. Speaks the public API, for first steps and for support.
mod list;
mod problem;
mod send;
pub(super) mod show;
mod watch;

use super::Verdict;
use super::output::{Format, print};
use carillon_ctl::lab::{Lab, Plane};
use carillon_proto::errors;
use carillon_proto::public::messages_client::MessagesClient;
use carillon_proto::public::{
    CancelMessagesRequest, CancelResult, ExplainMessageRequest, GetMessageRequest, MessageState, MessageView,
};
use carillon_proto::tls::{self, TlsFiles};
use clap::{Args, Subcommand};
pub use problem::Problem;
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
        #[command(flatten)]
        message: Box<send::Message>,
        /// Only check it: encoding, segments, and the character that forced UCS-2.
        #[arg(long)]
        validate_only: bool,
    },
    /// Where it is and why, with every attempt.
    Get {
        #[command(flatten)]
        api: Api,
        id: String,
        /// With text, full number, reference and labels.
        #[arg(long)]
        full: bool,
    },
    /// Which messages there are.
    List {
        #[command(flatten)]
        api: Api,
        #[command(flatten)]
        filter: Box<list::Filter>,
    },
    /// What happens to messages, as it happens, until Ctrl-C; in JSON one document in a line.
    Watch {
        #[command(flatten)]
        api: Api,
        #[command(flatten)]
        watch: watch::Watch,
    },
    /// Why it has not left yet, what binds it, and when it will probably leave.
    Explain {
        #[command(flatten)]
        api: Api,
        id: String,
    },
    /// Take messages back, if that is still possible: by id, or all that have an external reference.
    Cancel {
        #[command(flatten)]
        api: Api,
        /// Ids of messages.
        #[arg(required_unless_present = "reference")]
        ids: Vec<String>,
        /// An external reference of `--practice`. May be repeated.
        #[arg(long, requires = "practice")]
        reference: Vec<String>,
        /// The practice of the references.
        #[arg(long, default_value = "", hide_default_value = true)]
        practice: String,
    },
}

/// A connection, and how it is called in errors.
struct Router {
    client: MessagesClient<Channel>,
    address: String,
}

impl Api {
    fn connect(&self) -> anyhow::Result<Router> {
        let (channel, address) = self.channel()?;
        Ok(Router { client: MessagesClient::new(channel), address })
    }

    /// A connection for any service of the router, and how it is called in errors.
    pub(super) fn channel(&self) -> anyhow::Result<(Channel, String)> {
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
        tls::install_provider();
        let channel = tls::channel(&address, tls::client_config(&files)?, None)?;
        Ok((channel, address))
    }
}

pub(super) fn request<T>(body: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(body);
    request.set_timeout(DEADLINE);
    request
}

pub async fn run(command: Command, format: Format) -> anyhow::Result<Verdict> {
    match command {
        Command::Send { api, message, validate_only } => {
            send::run(api.connect()?, *message, validate_only, format).await
        }
        Command::Get { api, id, full } => {
            let view = if full { MessageView::Full } else { MessageView::Basic };
            let call = GetMessageRequest { message_id: id, view: view as i32 };
            let mut router = api.connect()?;
            let answer = router.client.get_message(request(call)).await;
            let message = answer.map_err(|s| Problem::of("look the message up", &router.address, &s))?;
            show::fields(format, &show::message(&message.into_inner(), full))?;
            Ok(Verdict::Done)
        }
        Command::Explain { api, id } => {
            let call = ExplainMessageRequest { message_id: id };
            let mut router = api.connect()?;
            let answer = router.client.explain_message(request(call)).await;
            let explained = answer.map_err(|s| Problem::of("explain the message", &router.address, &s))?;
            show::fields(format, &show::explained(&explained.into_inner()))?;
            Ok(Verdict::Done)
        }
        Command::List { api, filter } => list::run(api.connect()?, *filter, format).await,
        Command::Watch { api, watch } => watch::run(api.connect()?, watch, format).await,
        Command::Cancel { api, ids, reference, practice } => {
            let call = CancelMessagesRequest { message_ids: ids, external_references: reference, practice };
            cancel(api.connect()?, call, format).await
        }
    }
}

/// One block for each message, or one list; fails when one of them could not be processed or a reference has no message, after
/// all are shown.
async fn cancel(mut router: Router, call: CancelMessagesRequest, format: Format) -> anyhow::Result<Verdict> {
    let what = "take the messages back";
    let (practice, asked) = (call.practice.clone(), call.external_references.clone());
    let answer = router.client.cancel_messages(request(call)).await;
    let results = answer.map_err(|s| Problem::of(what, &router.address, &s))?.into_inner().results;
    let (good, bad): (Vec<_>, Vec<_>) = results.iter().partition(|result| result.error.is_none());
    let shown: Vec<Value> = good.into_iter().map(canceled).collect();
    print(format, &shown, || {
        for (at, result) in shown.iter().enumerate() {
            if at > 0 {
                println!();
            }
            show::lines(result);
        }
    })?;
    let problems = bad.into_iter().filter_map(|result| {
        let status = errors::from_rpc(result.error.as_ref()?);
        Some(Problem::of(&format!("{what}: {}", result.message_id), &router.address, &status))
    });
    match Problem::all(problems.chain(without_message(&practice, &asked, &results))) {
        Some(problem) => Err(problem.into()),
        None => Ok(Verdict::Done),
    }
}

/// The references that no result is about: a misspelt one must not look like a cancel that worked.
fn without_message(practice: &str, asked: &[String], results: &[CancelResult]) -> Vec<Problem> {
    let found = |reference: &&String| results.iter().any(|result| result.external_reference == **reference);
    let missing = asked.iter().filter(|reference| !found(reference));
    missing
        .map(|reference| {
            Problem::refusal(format!(
                "no message of practice {practice} has the reference {reference}; nothing was taken back for it: check the \
                 reference and the practice"
            ))
        })
        .collect()
}

fn canceled(result: &CancelResult) -> Value {
    let state = MessageState::try_from(result.state).unwrap_or(MessageState::Unspecified);
    json!({
        "message_id": result.message_id,
        "canceled": result.canceled,
        "state": show::word(state.as_str_name(), "MESSAGE_STATE_"),
        "submitted": result.submit_time.as_ref().map(ToString::to_string),
        "reference": result.external_reference,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_without_a_message_is_a_failure_that_names_it() {
        let asked = ["visit-1".to_owned(), "nothing".to_owned()];
        let found = CancelResult {
            external_reference: "visit-1".to_owned(),
            canceled: true,
            ..CancelResult::default()
        };
        assert!(without_message("hill", &asked[..1], std::slice::from_ref(&found)).is_empty());
        assert!(without_message("", &[], &[]).is_empty());
        for results in [vec![found], Vec::new()] {
            let expected = asked.len() - results.len();
            let problems = without_message("hill", &asked, &results);
            assert_eq!(problems.len(), expected);
            let problem = Problem::all(problems).unwrap();
            let text = problem.to_string();
            assert!(text.contains("no message of practice hill has the reference nothing;"), "{text}");
            assert_eq!(super::super::exit_code(&problem.into()), 4);
        }
    }
}
