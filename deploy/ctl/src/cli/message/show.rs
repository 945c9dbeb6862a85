//! A message as lines of a terminal, or as JSON.
use crate::cli::output::{Format, print};
use carillon_proto::public::{ExplainMessageResponse, Message, Outcome};
use serde_json::{Value, json};

/// `REMINDER` for `MESSAGE_CLASS_REMINDER`.
pub fn word(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_owned()
}

/// Reference and labels may name a patient, and the API gives them in every view: they are shown only where everything was asked for.
pub fn message(message: &Message, full: bool) -> Value {
    let time = |t: &Option<_>| t.as_ref().map(ToString::to_string);
    let attempts: Vec<Value> = message
        .attempts
        .iter()
        .map(|a| {
            let outcome = Outcome::try_from(a.outcome).unwrap_or(Outcome::Unspecified);
            json!({ "number": a.number, "carrier": a.carrier, "sender": a.sender, "outcome": word(outcome.as_str_name(), "OUTCOME_"),
                "code": a.carrier_code, "segments": a.segments, "begin": time(&a.begin_time), "end": time(&a.end_time) })
        })
        .collect();
    let mut labels: Vec<String> =
        message.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    labels.sort();
    if !full {
        labels.clear();
    }
    json!({
        "message_id": message.message_id,
        "practice": message.practice,
        "recipient": message.recipient,
        "body": message.body,
        "class": word(message.class().as_str_name(), "MESSAGE_CLASS_"),
        "priority": word(message.priority().as_str_name(), "PRIORITY_"),
        "state": word(message.state().as_str_name(), "MESSAGE_STATE_"),
        "detail": message.state_detail,
        "waiting": word(message.waiting_reason().as_str_name(), "WAITING_REASON_"),
        "accepted": time(&message.accept_time),
        "updated": time(&message.update_time),
        "not_before": time(&message.not_before),
        "due": time(&message.due_time),
        "expires": time(&message.expires_at),
        "deadline": time(&message.deadline),
        "time_zone": message.time_zone,
        "reference": if full { message.external_reference.as_str() } else { "" },
        "labels": labels,
        "encoding": word(message.encoding().as_str_name(), "ENCODING_"),
        "segments": message.segments,
        "attempts": attempts,
    })
}

/// The message with everything that it waits for.
pub fn explained(answer: &ExplainMessageResponse) -> Value {
    let time = |t: &Option<_>| t.as_ref().map(ToString::to_string);
    let holds: Vec<Value> = answer
        .holds
        .iter()
        .map(|hold| {
            json!({ "reason": word(hold.reason().as_str_name(), "WAITING_REASON_"), "limit": hold.limit,
                "until": time(&hold.until) })
        })
        .collect();
    let mut value = json!({
        "summary": answer.summary,
        "binds": answer.binding_limit,
        "holds": holds,
        "position": answer.position,
        "leaves_about": time(&answer.estimated_send_time),
        "will_expire": answer.will_expire,
        "lower_bound": answer.lower_bound,
    });
    if let (Some(all), Some(about)) = (value.as_object_mut(), &answer.message)
        && let Value::Object(fields) = message(about, false)
    {
        all.extend(fields);
    }
    value
}

/// Fields that say something, one in a line; or JSON.
pub fn fields(format: Format, value: &Value) -> anyhow::Result<()> {
    print(format, value, || lines(value))
}

pub fn lines(value: &Value) {
    for (name, field) in value.as_object().into_iter().flatten() {
        let shown: Vec<&Value> = match field {
            Value::Array(list) => list.iter().collect(),
            one => vec![one],
        };
        for item in shown {
            match item {
                Value::Null => {}
                Value::String(text) if text.is_empty() || text == "UNSPECIFIED" => {}
                Value::String(text) => println!("{name:<12} {text}"),
                other => println!("{name:<12} {other}"),
            }
        }
    }
}
