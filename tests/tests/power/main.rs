//! Power cuts: each node's data is on a disk of its own, which loses what was not synced; one node, then two, then all three
//! at once, under load. Nothing that was acknowledged may be lost, and no operator is needed.
use carillon_tests::faults::Needs;
use carillon_tests::load::LoadOptions;
use carillon_tests::trial::{Trial, skipped};

/// The power of these nodes fails and comes back.
async fn cut(trial: &mut Trial, nodes: &[u64]) {
    trial.rig.cut_power(nodes).unwrap();
    trial.say(&format!("power cut on {nodes:?}"));
    trial.start_nodes(nodes).await;
    trial.works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_power_fails() {
    if skipped("power", Needs::DISKS) {
        return;
    }
    let load = LoadOptions { seed: 3, ..LoadOptions::default() };
    let mut trial = Trial::start("power", Needs::DISKS, load).await;
    let victim = trial.rig.busiest().await;
    cut(&mut trial, &[victim]).await;
    let pair: Vec<u64> = trial.rig.lab.node_ids().into_iter().filter(|node| *node != victim).collect();
    cut(&mut trial, &pair).await;
    for _ in 0..4 {
        cut(&mut trial, &[1, 2, 3]).await;
    }
    trial.finish().await;
}
