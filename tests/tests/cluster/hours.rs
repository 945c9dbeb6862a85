//! Nobody is texted at night, with real processes at whatever hour the suite runs: the recipient's zone is chosen so that it is night
//! or day there now. The zones are plain offsets, so the suite needs no time-zone arithmetic to know what must come out.
use carillon_ctl::lab::{ALL_DAY, TENANT};
use carillon_proto::admin::{CheckHoursRequest, PutHoursRequest};
use carillon_proto::internal::{PracticeHours, PutPractice};
use carillon_proto::public::{
    MessageClass, MessageSpec, MessageState, MessageView, SubmitMessagesRequest, WaitingReason,
};
use carillon_tests::api::{accepted, from_now, now_ms, refused, spec, timed, timestamp, violations};
use carillon_tests::rig::{Rig, until};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);
const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// A zone in which the clock shows this hour now, and how far it is ahead of UTC.
fn zone_at(hour: i64, now_ms: i64) -> (String, i64) {
    let ahead = (hour - now_ms / HOUR_MS % 24 + 12).rem_euclid(24) - 12;
    let name = match ahead {
        0 => "Etc/GMT".to_owned(),
        // The sign of these names says how far UTC is ahead.
        1.. => format!("Etc/GMT-{ahead}"),
        _ => format!("Etc/GMT+{}", -ahead),
    };
    (name, ahead * HOUR_MS)
}

/// The next moment at which the clock of a zone shows this hour.
fn next(hour: i64, ahead_ms: i64, now_ms: i64) -> i64 {
    let midnight = (now_ms + ahead_ms).div_euclid(DAY_MS) * DAY_MS - ahead_ms;
    let today = midnight + hour * HOUR_MS;
    if today > now_ms { today } else { today + DAY_MS }
}

fn in_zone(rig: &Rig, key: &str, zone: &str) -> MessageSpec {
    MessageSpec { time_zone: zone.to_owned(), ..spec(&rig.practices[0], key, 3) }
}

/// A message for the night waits and says why, one for the day and one for staff go.
pub async fn held(rig: &Rig) -> String {
    until("the cluster knows hours", SOON, async || {
        for id in rig.lab.node_ids() {
            let level = rig.status(id).await?.feature_level;
            if level < 5 {
                return Err(format!("node {id} sees level {level}"));
            }
        }
        Ok(())
    })
    .await;
    let now = now_ms();
    let ((night, ahead), (day, _)) = (zone_at(2, now), zone_at(14, now));
    let morning = next(8, ahead, now);
    let staff = MessageSpec { class: MessageClass::Staff as i32, ..in_zone(rig, "night-staff", &night) };
    let hurry = MessageSpec { expires_at: from_now(2_000), ..in_zone(rig, "night-hurry", &night) };
    let messages = vec![in_zone(rig, "night", &night), in_zone(rig, "day", &day), staff, hurry];
    let told = rig.submit(messages).await;
    assert_eq!(told[0].first_send_time, Some(timestamp(morning)));
    assert_eq!(told[0].time_zone, format!("{night} (message)"));
    assert!(!told[0].expires_in_quiet_hours && told[3].expires_in_quiet_hours);
    for open in [1, 2] {
        rig.until_state(&told[open].message_id, MessageState::Delivered, SOON).await;
    }
    let late = rig.until_state(&told[3].message_id, MessageState::Expired, SOON).await;
    assert_eq!(late.state_detail, "quiet_hours");
    let message = rig.get(&told[0].message_id, MessageView::Basic).await.unwrap();
    assert_eq!(
        (message.state(), message.waiting_reason()),
        (MessageState::Waiting, WaitingReason::QuietHours)
    );
    assert_eq!((message.due_time, message.time_zone), (Some(timestamp(morning)), night));
    assert!(message.attempts.is_empty());
    told[0].message_id.clone()
}

/// What an operator is told about a recipient is what happens to the message.
pub async fn explained(rig: &Rig) {
    let now = now_ms();
    let (night, ahead) = zone_at(2, now);
    let ask = |class: MessageClass| CheckHoursRequest {
        phone_number: "+12125550103".to_owned(),
        time_zone: night.clone(),
        class: class as i32,
        ..Default::default()
    };
    let admin = rig.lab.admin(2).unwrap();
    let reminder = admin.check_hours(ask(MessageClass::Reminder)).await.unwrap();
    assert!(!reminder.open && reminder.exempt.is_empty());
    assert_eq!(reminder.opens_ms as i64, next(8, ahead, now));
    assert_eq!(reminder.place.unwrap_or_default().regions, ["US-NY"]);
    assert!(reminder.rules.iter().any(|rule| rule.contains("US 08:00-21:00")), "{:?}", reminder.rules);
    let staff = admin.check_hours(ask(MessageClass::Staff)).await.unwrap();
    assert!(staff.open && !staff.exempt.is_empty());
    let nowhere = CheckHoursRequest { class: 2, phone_number: "+18005550103".into(), ..Default::default() };
    assert!(admin.check_hours(nowhere).await.is_err(), "a toll-free number says nothing");
}

/// Wall-clock times are the recipient's.
pub async fn local_times(rig: &Rig) {
    let now = now_ms();
    let (zone, ahead) = zone_at(14, now);
    let tomorrow = next(9, ahead, now);
    let (days, clock) = ((tomorrow + ahead).div_euclid(DAY_MS), "09:00");
    let local = format!("{}T{clock}", date_of(days));
    let wanted = MessageSpec { not_before_local: local.clone(), ..in_zone(rig, "local", &zone) };
    let told = rig.submit(vec![wanted.clone()]).await.remove(0);
    assert_eq!(told.first_send_time, Some(timestamp(tomorrow)), "{local} in {zone}");
    let again = rig.submit(vec![wanted.clone()]).await.remove(0);
    assert_eq!((again.duplicate, again.message_id), (true, told.message_id.clone()));
    let message = rig.get(&told.message_id, MessageView::Basic).await.unwrap();
    assert_eq!(
        (message.waiting_reason(), message.not_before),
        (WaitingReason::Schedule, Some(timestamp(tomorrow)))
    );
    let wrong = MessageSpec {
        not_before_local: "tomorrow at nine".into(),
        region: "Florida".into(),
        ..in_zone(rig, "local-wrong", &zone)
    };
    let request = SubmitMessagesRequest { messages: vec![wrong], validate_only: false };
    let answer = rig.client.messages().submit_messages(timed(request)).await.unwrap().into_inner();
    let mut found = violations(&refused(&answer.results[0]));
    found.sort();
    let pair = |field: &str, word: &str| (field.to_owned(), word.to_owned());
    assert_eq!(found, [pair("not_before_local", "NOT_A_LOCAL_TIME"), pair("region", "MALFORMED_REGION")]);
    assert!(
        accepted(
            &rig.client
                .messages()
                .submit_messages(timed(SubmitMessagesRequest { messages: vec![wanted], validate_only: true }))
                .await
                .unwrap()
                .into_inner()
                .results[0]
        )
        .time_zone
        .contains("(message)")
    );
}

/// 1970-01-01 plus days, as a date.
fn date_of(days: i64) -> String {
    let (mut year, mut left) = (1970, days);
    let leap = |y: i64| (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
    while left >= 365 + i64::from(leap(year)) {
        left -= 365 + i64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while left >= lengths[month] {
        left -= lengths[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02}", month + 1, left + 1)
}

/// Other rules are in force at once, for what waits as well, also when they come while its leader stands still: the next one looks at
/// everything that waits.
pub async fn replaced(rig: &Rig, held: &str) {
    let leader = rig.leader_of(&rig.practices[0]).await;
    let other = rig.lab.node_ids().into_iter().find(|id| *id != leader).unwrap();
    let admin = rig.lab.admin(other).unwrap();
    let put = |rules: &str, replaces| PutHoursRequest { rules: rules.to_owned(), replaces, trial: false };
    let before = admin.hours().await.unwrap();
    assert_eq!(before.version, 0);
    let wrong = before.rules.replace("09:00-20:00", "21:00-08:00");
    let text = admin.put_hours(put(&wrong, 0)).await.unwrap_err().to_string();
    assert!(text.contains("rule 5 (US-CT)") && text.contains("ends before it begins"), "{text}");
    let trial = PutHoursRequest { trial: true, ..put(ALL_DAY, 0) };
    assert_eq!(admin.put_hours(trial).await.unwrap(), 0);
    assert!(admin.put_hours(put(ALL_DAY, 9)).await.is_err(), "another version is in force");
    let message = rig.get(held, MessageView::Basic).await.unwrap();
    assert_eq!(message.state(), MessageState::Waiting);
    rig.lab.pause_node(leader).unwrap();
    until("the rules are replaced", SOON, async || match admin.put_hours(put(ALL_DAY, 0)).await {
        Ok(1) => Ok(()),
        // The first try was recorded, and its answer was lost with the leader.
        Err(_) if admin.hours().await.is_ok_and(|hours| hours.version == 1) => Ok(()),
        answer => Err(format!("{answer:?}")),
    })
    .await;
    rig.until_state(held, MessageState::Delivered, SOON).await;
    rig.lab.resume_node(leader).unwrap();
    until("all nodes have the same rules", SOON, async || {
        let mut stamps = Vec::new();
        for id in rig.lab.node_ids() {
            let admin = rig.lab.admin(id).map_err(|e| e.to_string())?;
            stamps.push(admin.hours().await.map_err(|e| e.to_string())?.stamp);
        }
        stamps.dedup();
        if stamps.len() == 1 { Ok(()) } else { Err(format!("{stamps:?}")) }
    })
    .await;
    let pages = rig.metrics().await;
    let sum = |name: &str| -> f64 {
        let lines = pages.values().flat_map(|page| page.lines()).filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    assert!(sum("carillon_hours_held_total") >= 2.0 && sum("carillon_hours_opened_total") >= 1.0);
}

/// A practice's own hours hold its messages under rules that would let them go.
pub async fn own_hours(rig: &Rig) {
    let now = now_ms();
    let (zone, ahead) = zone_at(12, now);
    let practice = rig.practices[1].clone();
    let admin = rig.lab.admin(1).unwrap();
    let put = |hours: &str| PutPractice {
        tenant: TENANT.to_owned(),
        practice: practice.clone(),
        time_zone: "America/Chicago".to_owned(),
        carrier: carillon_ctl::lab::CARRIER.to_owned(),
        hours: Some(PracticeHours {
            mon_fri: hours.into(),
            sat: hours.into(),
            sun: hours.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let text = admin.put_practice(put("17:00-15:00")).await.unwrap_err().to_string();
    assert!(text.contains("refused"), "{text}");
    admin.put_practice(put("15:00-17:00")).await.unwrap();
    let opens = next(15, ahead, now);
    // The node that leads the practice learns it a moment after the one that was told.
    until("the practice's hours hold a message", SOON, async || {
        let key = format!("own-{}", now_ms());
        let message = MessageSpec { time_zone: zone.clone(), ..spec(&practice, &key, 5) };
        let told = rig.submit(vec![message]).await.remove(0);
        match told.first_send_time == Some(timestamp(opens)) {
            true => Ok(()),
            false => Err(format!("{:?}", told.first_send_time)),
        }
    })
    .await;
}
