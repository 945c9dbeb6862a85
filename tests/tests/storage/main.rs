//! What is stored, on real processes: kept and dropped in time, refused when disks run full, damaged and fenced, and a disk
//! that fails to sync. One cluster for each suite; the steps have practices of their own.
mod damage;
mod full;
mod rebuild;
mod retention;
mod sync_errors;
mod volume;

use carillon_ctl::lab::LabOptions;
use carillon_tests::rig::Rig;
use carillon_tests::steps::Steps;

fn perfect(node_config: &str) -> LabOptions {
    LabOptions { profile: "perfect".to_owned(), node_config: node_config.to_owned(), ..LabOptions::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_old_is_dropped_and_its_key_remembered() {
    let rig = Rig::start(perfect(retention::CONFIG)).await;
    let mut steps = Steps::new("retention");
    steps.run("a final message goes, its key still names it", retention::dropped(&rig)).await;
    steps.run("what is not final stays", retention::waiting_stays(&rig)).await;
    steps.run("every replica dropped the same", rig.until_caught_up(retention::LIMIT)).await;
    steps.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_and_sync_errors() {
    let rig = Rig::start(perfect("")).await;
    let mut steps = Steps::new("damage");
    steps.run("a failed sync of the log stops the process, nothing is lost", sync_errors::log(&rig)).await;
    steps.run("a failed write of the state stops the process", sync_errors::state(&rig)).await;
    steps.run("a flipped bit fences one replica, the rest goes on", damage::flipped(&rig)).await;
    steps.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_start_is_rebuilt_from_its_peers_by_one_command() {
    let rig = Rig::start(perfect("")).await;
    let mut steps = Steps::new("rebuild");
    steps.run("a flipped bit in the raft log", rebuild::damaged_log(&rig)).await;
    steps.run("a flipped bit in the rows of the meta group", rebuild::damaged_meta_group(&rig)).await;
    steps.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_runs_full() {
    if let Some(reason) = volume::unavailable() {
        carillon_tests::steps::say(&format!("SKIPPED: a_disk_that_runs_full: {reason}"));
        return;
    }
    let rig = Rig::start(perfect(full::CONFIG)).await;
    let mut steps = Steps::new("full disk");
    steps.run("submits are refused, the rest goes on, and it recovers", full::one_node(&rig)).await;
    steps.finish();
}
