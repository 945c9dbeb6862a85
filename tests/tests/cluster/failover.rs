//! Nodes that are killed with SIGKILL: nothing acknowledged is lost, nothing is sent twice, callers notice nothing, and
//! what comes back catches up and leads again.
use crate::accept::key_names_only;
use crate::load::{Load, busiest, reconcile, settled_since};
use carillon_proto::public::MessageSpec;
use carillon_tests::api::spec;
use carillon_tests::rig::{Rig, submit_within_deadline, until};
use carillon_tests::steps::say;
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(30);
const LIMIT: Duration = Duration::from_secs(60);

pub async fn killed_under_load(rig: &Rig) {
    let since = carillon_tests::api::now_ms();
    let mark = rig.carrier.mark().await.unwrap();
    let load = Load::start(rig, "load", PAUSE);
    load.until_more(300).await;
    let victim = rig.busiest().await;
    rig.lab.kill_node(victim).unwrap();
    load.until_more(1_200).await;
    rig.start_node(victim).await;
    load.until_more(300).await;
    let told = load.finish().await;
    say(&format!("node {victim} was killed; {} messages were acknowledged", told.acknowledged.len()));
    assert_eq!(told.failures, [] as [String; 0], "callers saw errors");

    let stored = settled_since(rig, since, LIMIT).await;
    let held = reconcile(&told, &stored, &rig.carrier.truth(&mark).await.unwrap());
    // What one node can have in flight: 2 binds with windows of 64.
    assert!(held <= 128, "{held} are held");

    // The same keys still name the same messages.
    for chunk in told.acknowledged.chunks(told.acknowledged.len().div_ceil(10).max(1)) {
        let (id, spec) = &chunk[0];
        let again = rig.submit(vec![spec.clone()]).await.remove(0);
        assert_eq!((again.message_id.as_str(), again.duplicate), (id.as_str(), true));
    }
    rig.until_caught_up(LIMIT).await;
    until("the node that came back leads again", LIMIT, async || {
        let leaders = rig.leaders().await;
        if leaders.values().any(|leader| *leader == victim) { Ok(()) } else { Err(format!("{leaders:?}")) }
    })
    .await;
}

async fn names_the_same(rig: &Rig, first: &MessageSpec, id: &str) {
    let ids = submit_within_deadline(&rig.client, vec![first.clone()]).await.expect("no error in 10 s");
    assert_eq!(ids, [id.to_owned()]);
    assert!(rig.submit(vec![first.clone()]).await[0].duplicate);
    key_names_only(rig, first, id).await;
}

pub async fn key_survives_leader(rig: &Rig) {
    let practice = &rig.practices[12];
    let first = spec(practice, "survivor-1", 500);
    let id = rig.submit(vec![first.clone()]).await.remove(0).message_id;
    let leader = rig.leader_of(practice).await;
    rig.lab.kill_node(leader).unwrap();
    names_the_same(rig, &first, &id).await;
    assert_ne!(rig.leader_of(practice).await, leader);
    rig.start_node(leader).await;
    rig.until_caught_up(LIMIT).await;
}

pub async fn key_survives_restart(rig: &Rig) {
    let practice = &rig.practices[13];
    let first = spec(practice, "survivor-2", 501);
    let id = rig.submit(vec![first.clone()]).await.remove(0).message_id;
    for node in rig.lab.node_ids() {
        rig.lab.kill_node(node).unwrap();
    }
    for node in rig.lab.node_ids() {
        rig.lab.start_node(node).unwrap();
    }
    for node in rig.lab.node_ids() {
        rig.lab.until_node_ready(node, LIMIT).await.unwrap();
    }
    rig.lab.until_router_ready(LIMIT).await.unwrap();
    names_the_same(rig, &first, &id).await;
    rig.until_caught_up(LIMIT).await;
}
