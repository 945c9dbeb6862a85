//! A node that stands still (SIGSTOP) for longer than an election takes: a new leader acts, and then the old one wakes up,
//! with everything in its queues and sockets that it had.
use carillon_tests::rig::until;
use carillon_tests::trial::{RECOVERY_LIMIT, Trial};

/// Waits until no other node believes that `node` leads.
async fn until_deposed(trial: &Trial, node: u64) {
    let other = if node == 1 { 2 } else { 1 };
    until("a new leader is elected", RECOVERY_LIMIT, async || {
        let status = trial.rig.status(other).await?;
        match status.partitions.iter().find(|p| p.leader == 0 || p.leader == node) {
            None => Ok(()),
            Some(p) => Err(format!("group {} is led by {}", p.partition, p.leader)),
        }
    })
    .await;
}

pub async fn leader(trial: &Trial) {
    for _ in 0..3 {
        let leader = trial.rig.busiest().await;
        trial.rig.lab.pause_node(leader).unwrap();
        until_deposed(trial, leader).await;
        // The new leaders accept and send before the old one wakes up.
        trial.works().await;
        trial.rig.lab.resume_node(leader).unwrap();
        trial.start_nodes(&[]).await;
        trial.works().await;
        trial.say(&format!("node {leader} stood still and woke up deposed"));
    }
}

/// Pauses around the election timeout: sometimes it is deposed, sometimes not.
pub async fn short_and_long(trial: &Trial) {
    for turn in 0..6_u64 {
        let node = 1 + turn % 3;
        trial.rig.lab.pause_node(node).unwrap();
        // Real time must pass: how long is what is tried.
        tokio::time::sleep(std::time::Duration::from_millis(400 + 350 * turn)).await;
        trial.rig.lab.resume_node(node).unwrap();
        trial.works().await;
    }
    trial.start_nodes(&[]).await;
    trial.say("pauses of 0.4 to 2.2 s");
}
