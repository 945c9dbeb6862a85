//! Cuts of the network, each under load and healed afterwards.
use carillon_tests::faults::{HOST, Net};
use carillon_tests::rig::until;
use carillon_tests::trial::{RECOVERY_LIMIT, Trial};
use std::collections::BTreeMap;

fn others(of: u64) -> Vec<u64> {
    (1..=3).filter(|node| *node != of).collect()
}

async fn heal(trial: &Trial, what: &str) {
    trial.rig.arena.net().heal().unwrap();
    trial.start_nodes(&[]).await;
    trial.works().await;
    trial.say(&format!("healed: {what}"));
}

/// Waits until `node` sees none of the partitions led by one of `not`.
async fn until_led_without(trial: &Trial, node: u64, not: &[u64]) {
    until("the others elect", RECOVERY_LIMIT, async || {
        let status = trial.rig.status(node).await?;
        let old: BTreeMap<u32, u64> = status
            .partitions
            .iter()
            .filter(|p| p.leader == 0 || not.contains(&p.leader))
            .map(|p| (p.partition, p.leader))
            .collect();
        if old.is_empty() { Ok(()) } else { Err(format!("{old:?}")) }
    })
    .await;
}

/// Nobody reaches the node that leads most: the others take over, and it acknowledges nothing meanwhile.
pub async fn leader_cut_off(trial: &Trial) {
    let leader = trial.rig.busiest().await;
    let rest = others(leader);
    let everybody: Vec<u64> = rest.iter().copied().chain([HOST]).collect();
    trial.rig.arena.net().cut(&Net::between(&[leader], &everybody)).unwrap();
    until_led_without(trial, rest[0], &[leader]).await;
    trial.works().await;
    heal(trial, &format!("node {leader} was cut off from everybody")).await;
}

/// Router and carrier still reach the stale leader, so it is asked to accept and it could send.
pub async fn leader_cut_off_from_peers_only(trial: &Trial) {
    let leader = trial.rig.busiest().await;
    let rest = others(leader);
    trial.rig.arena.net().cut(&Net::between(&[leader], &rest)).unwrap();
    until_led_without(trial, rest[0], &[leader]).await;
    trial.works().await;
    heal(trial, &format!("node {leader} was cut off from its peers")).await;
}

/// What the leader says is lost, what it is told arrives; then the other way round.
pub async fn one_way(trial: &Trial) {
    for deaf in [false, true] {
        let leader = trial.rig.busiest().await;
        let rest = others(leader);
        let pairs: Vec<(u64, u64)> =
            rest.iter().map(|other| if deaf { (*other, leader) } else { (leader, *other) }).collect();
        trial.rig.arena.net().cut(&pairs).unwrap();
        until_led_without(trial, rest[0], &[leader]).await;
        trial.works().await;
        heal(trial, &format!("node {leader} was {}", if deaf { "deaf" } else { "dumb" })).await;
    }
}

/// Two nodes do not hear each other; the third hears both. Everything must go on.
pub async fn bridge(trial: &Trial) {
    let middle = trial.rig.busiest().await;
    let ends = others(middle);
    trial.rig.arena.net().cut(&Net::between(&ends[..1], &ends[1..])).unwrap();
    trial.works().await;
    trial.works().await;
    heal(trial, &format!("only node {middle} heard both others")).await;
}

/// No majority anywhere: nothing can be acknowledged, and it goes on when the network does.
pub async fn everybody_alone(trial: &Trial) {
    let alone: Vec<(u64, u64)> =
        [Net::between(&[1], &[2, 3]), Net::between(&[2], &[3])].concat().into_iter().collect();
    trial.rig.arena.net().cut(&alone).unwrap();
    until("every leader steps down", RECOVERY_LIMIT, async || {
        for node in 1..=3 {
            let status = trial.rig.status(node).await?;
            if let Some(p) = status.partitions.iter().find(|p| p.leader == node) {
                return Err(format!("node {node} leads {}", p.partition));
            }
        }
        Ok(())
    })
    .await;
    let alone_since = std::time::Instant::now();
    // Callers give up and come again in this time; none of them may be told "accepted".
    tokio::time::sleep(trial.run.load.deadline() + std::time::Duration::from_secs(1)).await;
    let told = trial.run.load.acknowledged_since(alone_since);
    assert!(!told, "a submit that began without a majority was acknowledged");
    heal(trial, "every node was alone").await;
}
