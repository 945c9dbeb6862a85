//! What the cluster says about itself in the middle of the day: when the backlog ends, why one message has not left yet, and at the end how
//! many lost answers were resolved by receipts.

use std::path::Path;

use anyhow::Context as _;
use carillon_proto::public::{ExplainMessageRequest, ListMessagesRequest, MessageState};
use serde_json::Value;
use tokio::process::Command;

use super::DEADLINE;
use super::live::Tracker;
use super::play::Stage;
use super::show::Show;
use crate::lab::Lab;

/// One line for each carrier, from `carillonctl forecast`.
pub async fn forecast(ctl: &Path, lab: &Lab, show: &Show) -> anyhow::Result<()> {
    let output = Command::new(ctl)
        .args(["--output", "json", "forecast", "--lab"])
        .arg(&lab.dir)
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {}", ctl.display()))?;
    anyhow::ensure!(output.status.success(), "forecast: {}", String::from_utf8_lossy(&output.stderr).trim());
    let lanes: Vec<Value> = serde_json::from_slice(&output.stdout).context("the forecast")?;
    lanes.iter().for_each(|lane| show.say(told(lane)));
    Ok(())
}

fn told(lane: &Value) -> String {
    let number = |name: &str| lane[name].as_u64().unwrap_or(0);
    let ends = match lane["backlog_ends_in_s"].as_f64() {
        Some(seconds) => format!("ends in {seconds:.1} s"),
        None => "does not end".to_owned(),
    };
    format!(
        "Forecast: {} messages are due by {} at {} segments/s, which {ends}; {} of {} that wait will be late.",
        number("due"),
        lane["carrier"].as_str().unwrap_or("?"),
        number("segments_per_second"),
        number("late"),
        number("waiting"),
    )
}

/// Why one message that waits has not left yet; nothing if none waits.
pub async fn explain(stage: &Stage, show: &Show) -> anyhow::Result<()> {
    let mut client = stage.client.messages();
    let states =
        vec![MessageState::Waiting as i32, MessageState::Unknown as i32, MessageState::Accepted as i32];
    let mut list = tonic::Request::new(ListMessagesRequest { states, page_size: 1, ..Default::default() });
    list.set_timeout(DEADLINE);
    let page = client.list_messages(list).await.context("a message that waits")?.into_inner();
    let Some(message) = page.messages.into_iter().next() else {
        show.say("Explain: nothing waits.".to_owned());
        return Ok(());
    };
    explain_one(stage, show, &message.message_id).await
}

/// Why this message has not left yet.
pub async fn explain_one(stage: &Stage, show: &Show, id: &str) -> anyhow::Result<()> {
    let mut ask = tonic::Request::new(ExplainMessageRequest { message_id: id.to_owned() });
    ask.set_timeout(DEADLINE);
    let told = stage.client.messages().explain_message(ask).await.context("an explanation")?.into_inner();
    let when = told.estimated_send_time.map_or_else(String::new, |at| format!("; it leaves about {at}"));
    show.say(format!("Explain {id}: {}{when}", told.summary));
    Ok(())
}

/// Lost answers that a receipt or a late answer resolved.
pub fn resolved(tracker: &Tracker, show: &Show) {
    let (lost, resolved) = (tracker.lost, tracker.resolved);
    show.say(format!(
        "Lost answers: {lost} messages were UNKNOWN; receipts and late answers resolved {resolved} of them."
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_told_in_one_line() {
        let lane = serde_json::json!({ "carrier": "sim", "due": 120, "segments_per_second": 60, "late": 3,
            "waiting": 400, "backlog_ends_in_s": 2.04 });
        assert_eq!(
            told(&lane),
            "Forecast: 120 messages are due by sim at 60 segments/s, which ends in 2.0 s; 3 of 400 that wait will be late."
        );
    }
}
