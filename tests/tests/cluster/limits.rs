//! A carrier's limit is a wall, and inside it the lane is kept busy.
use carillon_loadtest::smsc::TruthPage;
use carillon_proto::public::{MessageSpec, MessageState};
use carillon_tests::api::spec;
use carillon_tests::rig::{Rig, until};
use carillon_tests::window::{fullest, middle_rate};
use std::time::Duration;

/// Segments per second of the whole cluster: 10 for each of three nodes.
pub const LIMIT: u32 = 30;
/// For each node's share: 60 messages of one segment and 5 of two.
const SHORT: usize = 60;
const LONG: usize = 5;
const SEGMENTS: usize = 3 * (SHORT + 2 * LONG);
const WINDOW_US: u64 = 1_000_000;

pub async fn wall(rig: &Rig) {
    crate::members::until_balanced(rig, &rig.lab.node_ids(), Duration::from_secs(60)).await;
    let leaders = rig.leaders().await;
    let mut messages = Vec::new();
    for node in rig.lab.node_ids() {
        let led = |practice: &&String| leaders[&rig.partition_of(practice)] == node;
        let practice = rig.practices.iter().find(led).unwrap_or_else(|| panic!("node {node} leads nothing"));
        messages.extend((0..SHORT).map(|i| spec(practice, &format!("wall-{node}-{i}"), i)));
        messages.extend((0..LONG).map(|i| MessageSpec {
            body: format!("Please bring form {i} of {node}. ").repeat(8),
            ..spec(practice, &format!("wall-long-{node}-{i}"), i)
        }));
    }
    let count = messages.len();
    let ids = rig.submit(messages).await;
    assert_eq!(ids.iter().map(|m| m.segments as usize).sum::<usize>(), SEGMENTS);
    until("the carrier has all of them", Duration::from_secs(90), async || {
        let stats = rig.carrier.stats().await.map_err(|e| e.to_string())?;
        if stats.messages.messages == count as u64 {
            Ok(())
        } else {
            Err(format!("{} messages", stats.messages.messages))
        }
    })
    .await;
    let page = rig.http.get(&rig.lab.smsc_http(), "/truth?since=0&limit=10000").await.unwrap();
    let page: TruthPage = serde_json::from_slice(&page).unwrap();
    let mut arrivals: Vec<u64> = page.records.iter().map(|r| r.at_us).collect();
    arrivals.sort_unstable();
    assert_eq!(arrivals.len(), SEGMENTS, "a segment was sent twice or not at all");
    let most = fullest(&arrivals, WINDOW_US);
    let busy = middle_rate(&arrivals);
    carillon_tests::steps::say(&format!(
        "fullest window {most} of {LIMIT} segments; middle of the run {busy:.1}/s"
    ));
    assert!(most <= LIMIT as usize, "{most} segments in one window");
    assert!(busy >= 0.8 * f64::from(LIMIT), "{busy} segments a second in the middle of the run");
    let stats = rig.carrier.stats().await.unwrap();
    assert_eq!((stats.violations(), stats.messages.duplicated), (0, 0));
    assert!(stats.accounts.iter().all(|a| a.limit == Some(LIMIT) && a.window_max <= u64::from(LIMIT)));
    for id in &ids {
        rig.until_state(&id.message_id, MessageState::Delivered, Duration::from_secs(30)).await;
    }
}
