//! A recipient for whom it is night: the message is held, the reason is shown, and then it is taken back.
//!
//! At whatever hour the demo runs: the zone is the one in which it is 2 o'clock now. The day's own messages go at any hour
//! because a lab's rules let them; a region that nobody lives in keeps the hours of the rules.

use std::time::Duration;

use anyhow::Context as _;
use carillon_proto::public::{
    CancelMessagesRequest, GetMessageRequest, Message, MessageState, SubmitMessagesRequest, WaitingReason,
    submit_result::Result as Item,
};

use super::book::Origin;
use super::outlook;
use super::play::Stage;
use super::show::Show;
use crate::sample_day::{Day, DayMessage};

/// Antarctica: the rules of a lab have hours there.
const REGION: &str = "AQ";
const KEY: &str = "quiet-hours";
const HOUR_MS: i64 = 3_600_000;
const DEADLINE: Duration = Duration::from_secs(10);

/// The zone without summer time in which it is this hour.
pub fn zone_at(hour: i64, now_ms: i64) -> String {
    let ahead = (hour - now_ms / HOUR_MS % 24 + 12).rem_euclid(24) - 12;
    match ahead {
        0 => "Etc/GMT".to_owned(),
        // The sign of these names says how far UTC is ahead.
        1.. => format!("Etc/GMT-{ahead}"),
        _ => format!("Etc/GMT+{}", -ahead),
    }
}

/// Submits, shows, takes back. The ledger knows the message like any other.
pub async fn hold(stage: &Stage, day: &Day, show: &Show, now_ms: i64) -> anyhow::Result<()> {
    let practice = day.messages().next().context("the day has no messages")?.practice.clone();
    let zone = zone_at(2, now_ms);
    let message = DayMessage {
        key: KEY.to_owned(),
        practice,
        to: "+12125550199".to_owned(),
        text: "Your appointment is tomorrow at 9:30.".to_owned(),
        class: "reminder".to_owned(),
        time_zone: Some(zone.clone()),
        ..Default::default()
    };
    let mut spec = message.to_spec(stage.start_ms, &stage.run);
    spec.region = REGION.to_owned();
    let request = SubmitMessagesRequest { messages: vec![spec], validate_only: false };
    let answer = stage.client.submit(request).await.context("the message of the night")?;
    let accepted = match answer.results.into_iter().next().and_then(|result| result.result) {
        Some(Item::Accepted(accepted)) => accepted,
        other => anyhow::bail!("the message of the night was not accepted: {other:?}"),
    };
    let id = accepted.message_id.clone();
    {
        let mut book = stage.book.lock();
        book.answer(&Origin::Message(Box::new(message)), &Ok(accepted), stage.start_ms);
        book.acks.of_quiet_hours += 1;
    }
    let held = look(stage, &id).await?;
    let by_hours =
        held.state() == MessageState::Waiting && held.waiting_reason() == WaitingReason::QuietHours;
    if !by_hours {
        stage.book.lock().surprise(format!("at night it was {}", held.state().as_str_name()));
    }
    show.say(told(&held, &zone));
    outlook::explain_one(stage, show, &id).await?;
    let request = CancelMessagesRequest { message_ids: vec![id], ..Default::default() };
    for result in stage.client.cancel(request).await? {
        stage.book.lock().cancel_answer(&result);
    }
    Ok(())
}

async fn look(stage: &Stage, id: &str) -> anyhow::Result<Message> {
    let mut request = tonic::Request::new(GetMessageRequest { message_id: id.to_owned(), view: 0 });
    request.set_timeout(DEADLINE);
    Ok(stage.client.messages().get_message(request).await?.into_inner())
}

fn told(held: &Message, zone: &str) -> String {
    let due = held.due_time.as_ref().map(ToString::to_string).unwrap_or_default();
    let reason = held.waiting_reason().as_str_name().trim_start_matches("WAITING_REASON_");
    format!(
        "Quiet hours: it is 2 at night in {zone}; {} is held ({reason}) until {due} and is taken back now. The messages of the day go at any hour: a lab's rules let them.",
        held.message_id
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_zone_for_every_hour() {
        let at = |hour: i64| hour * HOUR_MS + 1_234;
        assert_eq!(zone_at(2, at(2)), "Etc/GMT");
        assert_eq!(zone_at(2, at(7)), "Etc/GMT+5");
        assert_eq!(zone_at(2, at(14)), "Etc/GMT+12");
        assert_eq!(zone_at(2, at(15)), "Etc/GMT-11");
        assert_eq!(zone_at(2, at(23)), "Etc/GMT-3");
    }
}
