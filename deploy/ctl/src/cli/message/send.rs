//! `message send`: what can be said about a message on the command line, and what its acceptance looks like.
use super::problem::Problem;
use super::{Router, Verdict, request, show};
use crate::cli::output::Format;
use carillon_proto::errors;
use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::submit_result::Result as Submitted;
use carillon_proto::public::{
    AcceptedMessage, MessageClass, MessageSpec, NationalNumber, Priority, SubmitMessagesRequest,
};
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// The message.
#[derive(Debug, Args)]
pub struct Message {
    #[arg(long)]
    practice: String,
    /// E.164, for example +13125550142; with --region as people write it.
    #[arg(long)]
    to: String,
    /// Region of a national number, for example US.
    #[arg(long)]
    region: Option<String>,
    #[arg(long)]
    body: String,
    /// reminder, confirmation, prescription, follow_up, recall, staff, public_health, waitlist, payment, form or survey.
    #[arg(long, default_value = "reminder", value_parser = class)]
    class: MessageClass,
    /// critical, high, normal or bulk, instead of what the class says.
    #[arg(long, value_parser = priority)]
    priority: Option<Priority>,
    /// Not to be sent earlier: a time as 2026-12-01T09:00:00-06:00, or from now as +90m or +2d.
    #[arg(long, value_parser = time, value_name = "TIME", allow_hyphen_values = true)]
    not_before: Option<Timestamp>,
    /// The same as wall-clock time where the recipient is: 2026-12-03T09:00.
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "LOCAL",
        conflicts_with = "not_before"
    )]
    not_before_local: String,
    /// Never to be sent later; by default the class says.
    #[arg(long, value_parser = time, value_name = "TIME", allow_hyphen_values = true)]
    expires_at: Option<Timestamp>,
    /// The appointment: what the message is about. Nothing is sent after it.
    #[arg(long, value_parser = time, value_name = "TIME", allow_hyphen_values = true)]
    deadline: Option<Timestamp>,
    /// The recipient's IANA time zone; by default the practice's.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "ZONE")]
    time_zone: String,
    /// State, province or country of the recipient, for example US-FL; by default those of the number's area code.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "REGION")]
    recipient_region: String,
    /// Keep the order among the messages to this recipient that ask for it.
    #[arg(long)]
    ordered: bool,
    /// Accept it although the same text went to the same recipient a moment ago.
    #[arg(long)]
    allow_duplicate: bool,
    /// Makes it safe to repeat.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "KEY")]
    idempotency_key: String,
    /// Your own handle, such as the appointment.
    #[arg(long, default_value = "", hide_default_value = true)]
    reference: String,
    /// A label, given back as it is. May be repeated.
    #[arg(long = "label", value_parser = label, value_name = "NAME=VALUE")]
    labels: Vec<(String, String)>,
}

pub(super) fn class(text: &str) -> Result<MessageClass, String> {
    let name = format!("MESSAGE_CLASS_{}", text.to_ascii_uppercase().replace('-', "_"));
    let known = MessageClass::from_str_name(&name).filter(|class| *class != MessageClass::Unspecified);
    known.ok_or_else(|| "not a class".to_owned())
}

fn priority(text: &str) -> Result<Priority, String> {
    let known = Priority::from_str_name(&format!("PRIORITY_{}", text.to_ascii_uppercase()));
    let known = known.filter(|priority| *priority != Priority::Unspecified);
    known.ok_or_else(|| "not critical, high, normal or bulk".to_owned())
}

/// An instant, or `+` and a duration from now. `-` and a duration is allowed: the API says what is wrong with it.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    if !text.starts_with(['+', '-']) {
        return text.parse().map_err(|e: jiff::Error| format!("{e}; or +90m, +2h, +3d"));
    }
    let days_and_rest =
        text[1..].split_once('d').filter(|(days, _)| days.bytes().all(|b| b.is_ascii_digit()));
    let (days, rest) = days_and_rest.unwrap_or(("0", &text[1..]));
    let hours = days.parse::<i64>().ok().and_then(|days| days.checked_mul(24)).ok_or("too many days")?;
    let rest = match rest.trim() {
        "" if days_and_rest.is_some() => SignedDuration::ZERO,
        rest => rest.parse().map_err(|e: jiff::Error| e.to_string())?,
    };
    let total =
        SignedDuration::try_from_hours(hours).and_then(|d| d.checked_add(rest)).ok_or("too far away")?;
    let total = if text.starts_with('-') { -total } else { total };
    Timestamp::now().checked_add(total).map_err(|e| e.to_string())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("not name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) fn timestamp(time: Option<Timestamp>) -> Option<prost_types::Timestamp> {
    time.map(|time| {
        let nanos = time.as_nanosecond();
        prost_types::Timestamp {
            seconds: nanos.div_euclid(1_000_000_000) as i64,
            nanos: nanos.rem_euclid(1_000_000_000) as i32,
        }
    })
}

impl Message {
    #[allow(
        clippy::needless_update,
        reason = "the API grows, and what is not said here stays at its default"
    )]
    fn into_spec(self) -> MessageSpec {
        let recipient = match self.region {
            None => Recipient::PhoneNumber(self.to),
            Some(region) => Recipient::NationalNumber(NationalNumber { number: self.to, region }),
        };
        MessageSpec {
            practice: self.practice,
            recipient: Some(recipient),
            body: self.body,
            class: self.class as i32,
            priority: self.priority.unwrap_or_default() as i32,
            not_before: timestamp(self.not_before),
            expires_at: timestamp(self.expires_at),
            deadline: timestamp(self.deadline),
            time_zone: self.time_zone,
            idempotency_key: self.idempotency_key,
            external_reference: self.reference,
            labels: self.labels.into_iter().collect(),
            not_before_local: self.not_before_local,
            region: self.recipient_region,
            ordered: self.ordered,
            allow_duplicate: self.allow_duplicate,
            ..MessageSpec::default()
        }
    }
}

pub async fn run(
    mut router: Router,
    message: Message,
    validate_only: bool,
    format: Format,
) -> anyhow::Result<Verdict> {
    let what = if validate_only { "check the message" } else { "send the message" };
    let call = SubmitMessagesRequest { messages: vec![message.into_spec()], validate_only };
    let answer = router.client.submit_messages(request(call)).await;
    let answer = answer.map_err(|s| Problem::of(what, &router.address, &s))?.into_inner();
    match answer.results.into_iter().next().and_then(|r| r.result) {
        Some(Submitted::Accepted(accepted)) => {
            show::fields(format, &describe(&accepted, validate_only))?;
            Ok(Verdict::Done)
        }
        Some(Submitted::Error(error)) => {
            Err(Problem::of(what, &router.address, &errors::from_rpc(&error)).into())
        }
        None => anyhow::bail!("the router gave no answer"),
    }
}

fn describe(accepted: &AcceptedMessage, validate_only: bool) -> Value {
    let mut value = json!({
        "encoding": show::word(accepted.encoding().as_str_name(), "ENCODING_"),
        "segments": accepted.segments,
        "time_zone": accepted.time_zone,
        "first_send": accepted.first_send_time.as_ref().map(ToString::to_string),
    });
    if accepted.expires_in_quiet_hours {
        value["expires_in_quiet_hours"] = json!(true);
    }
    if validate_only {
        value["valid"] = json!(true);
    } else {
        value["message_id"] = json!(accepted.message_id);
        value["duplicate"] = json!(accepted.duplicate);
    }
    if let Some(character) = accepted.ucs2_character.chars().next() {
        let at = accepted.ucs2_character_index;
        value["ucs2_character"] = json!(accepted.ucs2_character);
        value["ucs2_character_index"] = json!(at);
        value["ucs2_because"] = json!(format!(
            "character {} of the text is U+{:04X}, which no GSM alphabet has",
            u64::from(at) + 1,
            u32::from(character)
        ));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        message: Message,
    }

    fn parse(more: &[&str]) -> Result<MessageSpec, String> {
        let line = ["x", "--practice", "p", "--to", "+13125550142", "--body", "b"];
        let parsed = Line::try_parse_from(line.iter().chain(more)).map_err(|e| e.to_string())?;
        Ok(parsed.message.into_spec())
    }

    #[test]
    fn everything_that_the_api_takes_can_be_said() {
        let spec = parse(&[
            "--class=public-health",
            "--priority=high",
            "--not-before=2026-12-01T09:00:00-06:00",
            "--expires-at=2026-12-02T00:00:00.5Z",
            "--deadline=2026-12-02T09:00:00Z",
            "--time-zone=America/Chicago",
            "--reference=visit-1",
            "--label=site=north wing",
            "--label=empty=",
            "--idempotency-key=k",
        ])
        .unwrap();
        assert_eq!((spec.class(), spec.priority()), (MessageClass::PublicHealth, Priority::High));
        assert_eq!(spec.not_before.map(|t| t.seconds), Some(1_796_137_200));
        assert_eq!(spec.expires_at.map(|t| (t.seconds, t.nanos)), Some((1_796_169_600, 500_000_000)));
        assert_eq!(spec.deadline.map(|t| t.seconds), Some(1_796_202_000));
        assert_eq!(
            (spec.time_zone.as_str(), spec.external_reference.as_str()),
            ("America/Chicago", "visit-1")
        );
        assert_eq!((spec.labels["site"].as_str(), spec.labels["empty"].as_str()), ("north wing", ""));
        let local = [
            "--not-before-local=2026-12-03T09:00",
            "--recipient-region=US-FL",
            "--ordered",
            "--allow-duplicate",
        ];
        let local = parse(&local).unwrap();
        assert_eq!((local.not_before_local.as_str(), local.region.as_str()), ("2026-12-03T09:00", "US-FL"));
        assert!(local.ordered && local.allow_duplicate && !spec.ordered && !spec.allow_duplicate);
        assert!(
            parse(&["--not-before-local=2026-12-03T09:00", "--not-before=+1h"]).is_err(),
            "one of the two"
        );
        let national = parse(&["--region=US"]).unwrap().recipient;
        assert!(matches!(national, Some(Recipient::NationalNumber(n)) if n.region == "US"));
    }

    #[test]
    fn times_may_be_counted_from_now() {
        for (text, seconds) in
            [("+90m", 5_400), ("+2d", 172_800), ("+1d 6h", 108_000), ("+1d6h", 108_000), ("-60s", -60)]
        {
            let found = (time(text).unwrap().as_second() - Timestamp::now().as_second() - seconds).abs();
            assert!(found <= 60, "{text}: {found} s off");
        }
        for bad in ["tomorrow", "+", "+x", "2026-12-01", "+99999999999999999999d"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_on_the_line_is_told_before_anything_is_sent() {
        for bad in
            ["--class=unspecified", "--class=fax", "--priority=unspecified", "--label=x", "--not-before=x"]
        {
            assert!(parse(&[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_character_that_forced_ucs2_is_named_with_its_place() {
        let accepted = AcceptedMessage {
            encoding: 2,
            segments: 1,
            ucs2_character: "\u{2019}".to_owned(),
            ucs2_character_index: 2,
            ..AcceptedMessage::default()
        };
        let value = describe(&accepted, true);
        assert_eq!(value["ucs2_because"], "character 3 of the text is U+2019, which no GSM alphabet has");
        assert_eq!(
            (&value["encoding"], &value["segments"], &value["valid"]),
            (&json!("UCS2"), &json!(1), &json!(true))
        );
        assert!(value.get("message_id").is_none());
        let plain = describe(&AcceptedMessage { encoding: 1, ..AcceptedMessage::default() }, false);
        assert!(plain.get("ucs2_because").is_none() && plain["duplicate"] == json!(false));
    }
}
