//! `message watch`: what happens to the tenant's messages, as it happens, from a cursor that outlives the command.
//!
//! Invariant: a cursor is shown or written only after the events before it were. So whoever goes on from it may see events twice
//! and misses none.
use super::problem::may_pass;
use super::{Problem, Router, Verdict, show};
use crate::cli::output::Format;
use carillon_proto::public::{Event, Outcome, WatchEventsRequest, WatchEventsResponse};
use carillon_proto::transport::Cause;
use clap::Args;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::{Request, Status};

/// The server says something at least every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(45);
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Whose events, and from where on.
#[derive(Debug, Args)]
pub struct Watch {
    /// Of this practice; without it of all practices of the tenant.
    #[arg(long, default_value = "", hide_default_value = true)]
    practice: String,
    /// Where to go on: a cursor of before, "start" for the oldest event that is kept, "now".
    #[arg(long, default_value = "now")]
    from: String,
    /// Keep the cursor in this file: go on from it if it is there, and write it after every answer.
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    cursor_file: Option<PathBuf>,
    /// End once so many events were shown (a few more may come with the last answer), and show the cursor.
    #[arg(long, value_name = "EVENTS")]
    count: Option<u64>,
}

pub async fn run(mut router: Router, watch: Watch, format: Format) -> anyhow::Result<Verdict> {
    let mut cursor = watch.start()?;
    let (mut shown, mut pause) = (0, PAUSE_MIN);
    loop {
        let call = WatchEventsRequest { practice: watch.practice.clone(), cursor: cursor.clone() };
        let one = async {
            let mut answers = router.client.watch_events(Request::new(call)).await?.into_inner();
            loop {
                let answer = tokio::time::timeout(SILENCE_MAX, answers.message()).await;
                let Some(answer) = answer.map_err(|_| Status::unavailable("the stream fell silent"))?? else {
                    return Err(Status::unavailable("the stream ended"));
                };
                pause = PAUSE_MIN;
                shown += answer.events.len() as u64;
                tell(&answer, format).map_err(|e| Status::aborted(format!("standard output: {e}")))?;
                cursor = answer.cursor;
                if let Some(path) = &watch.cursor_file {
                    keep(path, &cursor).map_err(|e| Status::aborted(format!("{}: {e}", path.display())))?;
                }
                if watch.count.is_some_and(|count| shown >= count) {
                    return Ok(());
                }
            }
        };
        let ended = tokio::select! {
            ended = one => ended,
            interrupted = tokio::signal::ctrl_c() => { interrupted?; Ok(()) }
        };
        match ended {
            Ok(()) => break,
            Err(status) if !passes(&status) => {
                return Err(Problem::of("watch the messages", &router.address, &status).into());
            }
            Err(status) => {
                eprintln!("{}; going on from the cursor", Problem::of("go on", &router.address, &status));
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
    if format == Format::Table {
        println!("go on with: --from {cursor}");
    }
    Ok(Verdict::Done)
}

/// Whether another stream may do better.
fn passes(status: &Status) -> bool {
    may_pass(status.code()) && !Cause::of(status).is_some_and(|cause| cause.is_permanent())
}

impl Watch {
    fn start(&self) -> anyhow::Result<String> {
        let kept = match &self.cursor_file {
            Some(path) if path.exists() => Some(fs_err::read_to_string(path)?.trim().to_owned()),
            _ => None,
        };
        let from = kept.unwrap_or_else(|| self.from.clone());
        Ok(if from == "now" { String::new() } else { from })
    }
}

/// A file of that name is always whole.
fn keep(path: &Path, cursor: &str) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    fs_err::write(&beside, cursor)?;
    fs_err::rename(&beside, path)
}

/// A line for each event; in JSON each is a document, and the cursor is the last one of an answer.
fn tell(answer: &WatchEventsResponse, format: Format) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let lines = answer.events.iter().map(|event| match format {
        Format::Json => as_json(event).to_string(),
        Format::Table => as_line(event),
    });
    let cursor = (format == Format::Json).then(|| json!({ "cursor": answer.cursor }).to_string());
    for line in lines.chain(cursor) {
        writeln!(out, "{line}")?;
    }
    out.flush()
}

fn as_json(event: &Event) -> Value {
    let outcome = Outcome::try_from(event.outcome).unwrap_or(Outcome::Unspecified);
    json!({
        "message_id": event.message_id, "practice": event.practice,
        "time": event.time.as_ref().map(ToString::to_string),
        "state": show::word(event.state().as_str_name(), "MESSAGE_STATE_"),
        "waiting": show::word(event.waiting_reason().as_str_name(), "WAITING_REASON_"),
        "attempt": event.attempt, "outcome": show::word(outcome.as_str_name(), "OUTCOME_"),
        "detail": event.state_detail,
    })
}

fn as_line(event: &Event) -> String {
    let value = as_json(event);
    let said = |name: &str| value[name].as_str().filter(|text| *text != "UNSPECIFIED").unwrap_or_default();
    let line = [
        said("time"),
        &event.message_id,
        &event.practice,
        said("state"),
        said("waiting"),
        said("outcome"),
        &event.state_detail,
    ];
    line.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn a_kept_cursor_is_gone_on_from_and_the_first_time_begins_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cursor");
        let watch = |from: &str, file: Option<PathBuf>| Watch {
            practice: String::new(),
            from: from.to_owned(),
            cursor_file: file,
            count: None,
        };
        assert_eq!(watch("now", Some(path.clone())).start().unwrap(), "");
        keep(&path, "c1").unwrap();
        keep(&path, "c2").unwrap();
        assert_eq!(watch("now", Some(path.clone())).start().unwrap(), "c2");
        assert_eq!(watch("start", None).start().unwrap(), "start");
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn refusals_end_it_and_broken_streams_do_not() {
        assert!(passes(&Status::unavailable("x")) && passes(&Status::unknown("x")));
        for code in [Code::InvalidArgument, Code::NotFound, Code::PermissionDenied, Code::Aborted] {
            assert!(!passes(&Status::new(code, "x")), "{code:?}");
        }
    }
}
