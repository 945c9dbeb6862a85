//! `message list`: which messages there are, filtered, page by page.
use super::send::{class, time, timestamp};
use super::{Problem, Router, Verdict, request, show};
use crate::cli::output::{Format, print, table};
use carillon_proto::public::{ListMessagesRequest, Message, MessageClass, MessageState, MessageView};
use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

/// Messages shown by one command, at most: they are all in memory.
const LIMIT_MAX: u32 = 100_000;
/// What the API gives at once.
const PAGE_MAX: u32 = 1_000;

/// Which messages; every filter that is given must fit.
#[derive(Debug, Args)]
pub struct Filter {
    /// Of this practice; without it of all practices of the tenant.
    #[arg(long, default_value = "", hide_default_value = true)]
    practice: String,
    /// In this state: accepted, waiting, in-flight, submitted, unknown, delivered, undelivered, expired, canceled, rejected,
    /// opted-out or dead. May be repeated.
    #[arg(long, value_parser = state, value_name = "STATE")]
    state: Vec<MessageState>,
    /// Of this class. May be repeated.
    #[arg(long, value_parser = class, value_name = "CLASS")]
    class: Vec<MessageClass>,
    /// With exactly this external reference of the practice.
    #[arg(long, default_value = "", hide_default_value = true, requires = "practice")]
    reference: String,
    /// Accepted at this time or later: 2026-12-01T09:00:00-06:00, or from now, as -2h or -3d.
    #[arg(long, value_parser = time, value_name = "TIME", allow_hyphen_values = true)]
    after: Option<Timestamp>,
    /// Accepted before this time.
    #[arg(long, value_parser = time, value_name = "TIME", allow_hyphen_values = true)]
    before: Option<Timestamp>,
    /// At most so many; what the list ends with says how to go on.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=i64::from(LIMIT_MAX)))]
    limit: u32,
    /// Go on where a list ended, with the same filters.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TOKEN")]
    page_token: String,
    /// With text, full number, reference and labels (in JSON).
    #[arg(long)]
    full: bool,
}

/// A state by its name, in any case, with hyphens or underscores.
pub(super) fn state(text: &str) -> Result<MessageState, String> {
    let name = format!("MESSAGE_STATE_{}", text.to_ascii_uppercase().replace('-', "_"));
    let known = MessageState::from_str_name(&name).filter(|state| *state != MessageState::Unspecified);
    known.ok_or_else(|| "not a state of messages".to_owned())
}

impl Filter {
    fn into_request(self) -> ListMessagesRequest {
        let view = if self.full { MessageView::Full } else { MessageView::Basic };
        ListMessagesRequest {
            practice: self.practice,
            states: self.state.into_iter().map(|state| state as i32).collect(),
            classes: self.class.into_iter().map(|class| class as i32).collect(),
            external_reference: self.reference,
            accepted_after: timestamp(self.after),
            accepted_before: timestamp(self.before),
            page_size: 0,
            page_token: self.page_token,
            view: view as i32,
        }
    }
}

pub async fn run(mut router: Router, filter: Filter, format: Format) -> anyhow::Result<Verdict> {
    let (limit, full) = (filter.limit as usize, filter.full);
    let mut call = filter.into_request();
    let mut found: Vec<Message> = Vec::new();
    loop {
        // A page may be short, so what is left is asked for again and again; it is never longer.
        call.page_size = PAGE_MAX.min((limit - found.len()) as u32) as i32;
        let answer = router.client.list_messages(request(call.clone())).await;
        let page = answer.map_err(|s| Problem::of("list the messages", &router.address, &s))?.into_inner();
        found.extend(page.messages);
        call.page_token = page.next_page_token;
        if call.page_token.is_empty() || found.len() >= limit {
            break;
        }
    }
    let messages: Vec<Value> = found.iter().map(|message| show::message(message, full)).collect();
    print(format, &json!({ "messages": messages, "next_page_token": call.page_token }), || {
        table(&["MESSAGE", "ACCEPTED", "PRACTICE", "CLASS", "TO", "STATE", "WHY"], &rows(&found));
        match call.page_token.as_str() {
            "" => println!("{} messages", found.len()),
            token => println!("{} messages; for more: --page-token {token}", found.len()),
        }
    })?;
    Ok(Verdict::Done)
}

fn rows(found: &[Message]) -> Vec<Vec<String>> {
    let row = |m: &Message| {
        let waiting = show::word(m.waiting_reason().as_str_name(), "WAITING_REASON_");
        let why = match (waiting.as_str(), m.state_detail.as_str()) {
            ("UNSPECIFIED", detail) => detail.to_owned(),
            (waiting, "") => waiting.to_owned(),
            (waiting, detail) => format!("{waiting} {detail}"),
        };
        vec![
            m.message_id.clone(),
            m.accept_time.as_ref().map(ToString::to_string).unwrap_or_default(),
            m.practice.clone(),
            show::word(m.class().as_str_name(), "MESSAGE_CLASS_"),
            m.recipient.clone(),
            show::word(m.state().as_str_name(), "MESSAGE_STATE_"),
            why,
        ]
    };
    found.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        filter: Filter,
    }

    #[test]
    fn every_filter_of_the_api_can_be_said() {
        let line = [
            "x",
            "--practice=hill",
            "--state=in-flight",
            "--state=UNKNOWN",
            "--class=recall",
            "--reference=visit-1",
            "--after=2026-12-01T09:00:00Z",
            "--before=2026-12-02T09:00:00Z",
            "--full",
        ];
        let call = Line::try_parse_from(line).unwrap().filter.into_request();
        assert_eq!(call.states, [MessageState::InFlight as i32, MessageState::Unknown as i32]);
        assert_eq!(call.classes, [MessageClass::Recall as i32]);
        assert_eq!((call.practice.as_str(), call.external_reference.as_str()), ("hill", "visit-1"));
        assert_eq!(call.accepted_after.map(|t| t.seconds), Some(1_796_115_600));
        assert_eq!(call.accepted_before.map(|t| t.seconds), Some(1_796_202_000));
        assert_eq!(call.view, MessageView::Full as i32);
        let parse = |more: &str| Line::try_parse_from(["x", more]).is_ok();
        assert!(parse("--after=-3d") && parse("--limit=100000"));
        for bad in ["--state=unspecified", "--state=lost", "--reference=r", "--limit=0", "--limit=100001"] {
            assert!(!parse(bad), "{bad}");
        }
    }
}
