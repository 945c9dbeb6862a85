//! Practices share a lane, urgent messages pass, and what one recipient gets has limits. Counted in what the carrier saw, not in time.
use carillon_ctl::lab::TENANT;
use carillon_loadtest::smsc::TruthPage;
use carillon_proto::admin::PausePracticeRequest;
use carillon_proto::internal::{PutPolicy, SendingPolicy};
use carillon_proto::public::{
    MessageSpec, MessageState, MessageView, Priority, SubmitMessagesRequest, WaitingReason, submit_result,
};
use carillon_tests::api::{number, spec};
use carillon_tests::rig::{Rig, until};
use prost_types::Timestamp;
use std::time::Duration;

/// Segments per second of the whole cluster.
pub const LIMIT: u32 = 120;
/// One practice's backlog: minutes of the lane.
const BACKLOG: usize = 20_000;
/// Texts of the backlog between the acceptance of another's message and its arrival, at most. What was begun before it (100 ms of
/// each node's share, 8 at least) and what passes while it is accepted on a busy machine (2 s of the lane).
const BETWEEN_MAX: usize = 3 * 12 + 2 * LIMIT as usize;
const LIMIT_TIME: Duration = Duration::from_secs(60);

/// When the carrier took each segment over, microseconds since the epoch.
async fn arrivals(rig: &Rig) -> Vec<u64> {
    let mut all = Vec::new();
    loop {
        let path = format!("/truth?since={}&limit=10000", all.len());
        let page = rig.http.get(&rig.lab.smsc_http(), &path).await.unwrap();
        let page: TruthPage = serde_json::from_slice(&page).unwrap();
        if page.records.is_empty() {
            return all;
        }
        all.extend(page.records.into_iter().map(|record| record.at_us));
    }
}

fn micros(at: Option<&Timestamp>) -> u64 {
    at.map_or(0, |at| at.seconds as u64 * 1_000_000 + at.nanos as u64 / 1_000)
}

/// One practice in the partition of the first one, and one in another.
fn others(rig: &Rig) -> (String, String) {
    let big = &rig.practices[0];
    let same = |p: &&String| rig.partition_of(p) == rig.partition_of(big) && *p != big;
    let other = |p: &&String| rig.partition_of(p) != rig.partition_of(big);
    let same = rig.practices.iter().find(same).expect("a practice in the same partition");
    (same.clone(), rig.practices.iter().find(other).expect("one in another").clone())
}

pub async fn a_single_message_passes_a_backlog(rig: &Rig) {
    let big = rig.practices[0].clone();
    let (same, other) = others(rig);
    let meant = rig.carrier.stats().await.unwrap().messages.duplicated;
    let mut at = 0;
    while at < BACKLOG {
        let batch = (at..at + 1_000).map(|i| spec(&big, &format!("backlog-{i}"), i)).collect();
        rig.submit(batch).await;
        at += 1_000;
    }
    // One message of another practice in the same partition, one in another, and an urgent one of the big practice itself.
    let urgent = MessageSpec { priority: Priority::Critical as i32, ..spec(&big, "single-urgent", 3) };
    for (name, message) in [
        ("same", spec(&same, "single-same", 1)),
        ("other", spec(&other, "single-other", 2)),
        ("urgent", urgent),
    ] {
        let id = rig.submit(vec![message]).await.remove(0).message_id;
        let message = rig.until_state(&id, MessageState::Delivered, LIMIT_TIME).await;
        let (from, to) =
            (micros(message.accept_time.as_ref()), micros(message.attempts[0].end_time.as_ref()));
        let between = arrivals(rig).await.iter().filter(|at_us| (from..to).contains(at_us)).count();
        carillon_tests::steps::say(&format!("{name}: {between} texts of a backlog of {BACKLOG} before it"));
        // A node that had nothing to send has no tokens while another one wants them all: it gets its own with the next leases.
        let max = if name == "other" { 4 * LIMIT as usize } else { BETWEEN_MAX };
        assert!(between <= max, "{between} texts were sent before the message of {name}");
    }
    let left = BACKLOG - arrivals(rig).await.len().min(BACKLOG);
    assert!(left > BETWEEN_MAX, "the backlog was gone too early to prove anything");
    let stats = rig.carrier.stats().await.unwrap();
    assert_eq!((stats.violations(), stats.messages.duplicated), (0, meant));
}

async fn policy(rig: &Rig, practice: &str, policy: SendingPolicy) {
    let put =
        PutPolicy { tenant: TENANT.to_owned(), practice: practice.to_owned(), policy: Some(policy.clone()) };
    rig.lab.admin(1).unwrap().put_policy(put).await.unwrap();
    // Every leader must know it.
    let applied = async || {
        for id in rig.lab.node_ids() {
            let status = rig.lab.admin(id).unwrap().status().await.map_err(|e| e.to_string())?;
            if !status.policies.iter().any(|p| p.practice == practice && p.policy == Some(policy.clone())) {
                return Err(format!("node {id}"));
            }
        }
        Ok(())
    };
    until("every node has the policy", LIMIT_TIME, applied).await;
}

pub async fn a_recipient_gets_as_many_as_the_policy_allows(rig: &Rig) {
    let practice = rig.practices[1].clone();
    policy(rig, &practice, SendingPolicy { recipient_per_day: 2, ..Default::default() }).await;
    let messages = (0..5).map(|i| MessageSpec {
        recipient: spec(&practice, "x", 7).recipient,
        ordered: true,
        ..spec(&practice, &format!("capped-{i}"), 7)
    });
    let ids: Vec<String> = rig.submit(messages.collect()).await.into_iter().map(|m| m.message_id).collect();
    for id in &ids[..2] {
        rig.until_state(id, MessageState::Delivered, LIMIT_TIME).await;
    }
    until("the third one waits for tomorrow", LIMIT_TIME, async || {
        let message = rig.get(&ids[2], MessageView::Basic).await.map_err(|e| e.to_string())?;
        match message.waiting_reason() {
            WaitingReason::FrequencyCap if message.due_time.is_some() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // They went in order.
    let first = rig.get(&ids[0], MessageView::Basic).await.unwrap();
    let second = rig.get(&ids[1], MessageView::Basic).await.unwrap();
    let (end, begin) = (first.attempts[0].end_time.as_ref(), second.attempts[0].begin_time.as_ref());
    assert!(micros(end) <= micros(begin), "{end:?} {begin:?}");
}

pub async fn the_same_text_twice_needs_a_word(rig: &Rig) {
    let practice = rig.practices[2].clone();
    policy(rig, &practice, SendingPolicy { duplicate_window_s: 600, ..Default::default() }).await;
    let first = spec(&practice, "twice", 9);
    let id = rig.submit(vec![first.clone()]).await.remove(0).message_id;
    let again = MessageSpec { idempotency_key: "twice-again".to_owned(), ..first.clone() };
    let request = SubmitMessagesRequest { messages: vec![again.clone()], validate_only: false };
    let result = rig.client.submit(request).await.unwrap().results.remove(0).result;
    let Some(submit_result::Result::Error(error)) = result else { panic!("{result:?}") };
    let status = carillon_proto::errors::from_rpc(&error);
    assert_eq!(
        carillon_proto::errors::reason_of(&status),
        Some(carillon_proto::public::ErrorReason::DuplicateContent)
    );
    let details = tonic_types::StatusExt::get_error_details(&status);
    assert_eq!(details.error_info().unwrap().metadata.get("message_id"), Some(&id));
    let meant = MessageSpec { allow_duplicate: true, ..again };
    let other = rig.submit(vec![meant]).await.remove(0);
    assert!(!other.duplicate && other.message_id != id);
    // The carrier counts the second one as a duplicate, which it is: both are there before anybody else counts.
    for id in [&id, &other.message_id] {
        rig.until_state(id, MessageState::Delivered, LIMIT_TIME).await;
    }
}

pub async fn a_burst_pauses_the_practice_until_it_is_resumed(rig: &Rig) {
    let practice = rig.practices[3].clone();
    policy(rig, &practice, SendingPolicy { burst: 4, burst_window_s: 3_600, ..Default::default() }).await;
    let to_one = |i: usize| MessageSpec {
        recipient: Some(carillon_proto::public::message_spec::Recipient::PhoneNumber(number(5))),
        ..spec(&practice, &format!("burst-{i}"), 5)
    };
    let ids: Vec<String> =
        rig.submit((0..6).map(to_one).collect()).await.into_iter().map(|m| m.message_id).collect();
    until("the practice is paused", LIMIT_TIME, async || {
        let status = rig.lab.admin(1).unwrap().status().await.map_err(|e| e.to_string())?;
        if status.pauses.len() == 1 { Ok(()) } else { Err("not paused".to_owned()) }
    })
    .await;
    let mut untried = 0;
    for id in &ids {
        untried += usize::from(rig.get(id, MessageView::Basic).await.unwrap().attempts.is_empty());
    }
    assert_eq!(untried, 2, "the burst is over");
    // Not even to somebody else, as long as nobody has looked.
    let other = rig.submit(vec![spec(&practice, "burst-other", 6)]).await.remove(0).message_id;
    let resume =
        PausePracticeRequest { tenant: TENANT.to_owned(), practice: practice.clone(), ..Default::default() };
    rig.lab.admin(1).unwrap().pause_practice(resume).await.unwrap();
    for id in ids.iter().chain([&other]) {
        rig.until_state(id, MessageState::Delivered, LIMIT_TIME).await;
    }
}
