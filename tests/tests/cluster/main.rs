//! The whole product as real processes: three nodes, a router and a carrier simulator. The steps of a suite share one
//! cluster because a start takes seconds; each has practices of its own.
mod accept;
mod backup;
mod backup_resume;
mod bad_input;
mod ctl;
mod failover;
mod fairness;
mod hours;
mod limits;
mod load;
mod members;
mod metrics;
mod operators;
mod planes;
mod snapshots;

use carillon_ctl::lab::LabOptions;
use carillon_tests::rig::Rig;
use carillon_tests::steps::Steps;

fn perfect() -> LabOptions {
    LabOptions { profile: "perfect".to_owned(), ..LabOptions::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_cluster_does_what_its_api_says() {
    let rig = Rig::start(LabOptions { node_config: accept::CLASSES.to_owned(), ..perfect() }).await;
    let mut steps = Steps::new("cluster");
    steps
        .run("accept: a reminder reaches the carrier and comes back delivered", accept::delivered(&rig))
        .await;
    steps.run("accept: lists filter and page", accept::lists(&rig)).await;
    steps.run("accept: a watch goes on from its cursor", accept::watch(&rig)).await;
    steps.run("accept: cancels in time and too late", accept::cancels(&rig)).await;
    steps.run("accept: validate_only accepts nothing", accept::validate_only(&rig)).await;
    steps.run("accept: a stream acknowledges every batch", accept::stream(&rig)).await;
    steps.run("accept: a key names one message", accept::keys(&rig)).await;
    steps.run("accept: classes are configuration", accept::classes(&rig)).await;
    steps.run("bad input: each field with its word", bad_input::fields(&rig)).await;
    steps.run("bad input: calls as a whole", bad_input::calls(&rig)).await;
    steps.run("bad input: another tenant", bad_input::foreign(&rig)).await;
    steps.run("bad input: tokens and ids", bad_input::tokens(&rig)).await;
    steps.run("planes: certificates that fail in the handshake", planes::handshakes(&rig)).await;
    steps.run("planes: TLS 1.2 is refused on every plane", planes::old_tls(&rig)).await;
    steps.run("planes: certificates with another role", planes::roles(&rig)).await;
    steps.run("metrics: pages, names and health", metrics::pages(&rig)).await;
    steps.run("ctl: messages, with everything that can be said", ctl::messages(&rig)).await;
    steps.run("ctl: errors say what is wrong and what to do", ctl::errors(&rig)).await;
    steps.run("ctl: what fails on the way", ctl::transport(&rig)).await;
    steps.run("ctl: lists of practices, carriers and messages", ctl::lists(&rig)).await;
    steps.run("ctl: a watch goes on from its cursor", ctl::watch(&rig)).await;
    steps.run("ctl: lost answers are resolved by an operator", ctl::unknown(&rig)).await;
    steps.run("ctl: status asks every node", ctl::status(&rig)).await;
    steps.run("operators: mistakes are named", async { operators::mistakes(&rig) }).await;
    steps.run("failover: kill -9 under a stream of submits", failover::killed_under_load(&rig)).await;
    steps.run("failover: a key survives the kill of its leader", failover::key_survives_leader(&rig)).await;
    steps.run("failover: a key survives the kill of all nodes", failover::key_survives_restart(&rig)).await;
    steps.run("logs: every line of every process is JSON", async { metrics::logs(&rig) }).await;
    steps.run("logs: nobody complains when all is stopped", metrics::stopped(&rig)).await;
    steps.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_carriers_limit_is_a_wall_and_the_lane_is_kept_busy() {
    let rig = Rig::start(LabOptions { lane_limit: limits::LIMIT, ..perfect() }).await;
    let mut steps = Steps::new("limits");
    steps.run("30 segments a second for 210 segments", limits::wall(&rig)).await;
    steps.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_texted_at_night() {
    // The rules built in, as in production.
    let rig = Rig::start(LabOptions { hours: None, ..perfect() }).await;
    let mut steps = Steps::new("hours");
    let mut held = String::new();
    steps
        .run("a message of the night waits, day and staff go", async { held = hours::held(&rig).await })
        .await;
    steps.run("an operator is told why", hours::explained(&rig)).await;
    steps.run("wall-clock times are the recipient's", hours::local_times(&rig)).await;
    steps.run("other rules are in force at once", hours::replaced(&rig, &held)).await;
    steps.run("a practice's own hours", hours::own_hours(&rig)).await;
    steps.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn practices_share_a_lane_and_recipients_are_spared() {
    let rig = Rig::start(LabOptions { lane_limit: fairness::LIMIT, ..perfect() }).await;
    let mut steps = Steps::new("fairness");
    steps
        .run(
            "a recipient gets what the policy allows",
            fairness::a_recipient_gets_as_many_as_the_policy_allows(&rig),
        )
        .await;
    steps.run("the same text twice needs a word", fairness::the_same_text_twice_needs_a_word(&rig)).await;
    steps
        .run("a burst pauses the practice", fairness::a_burst_pauses_the_practice_until_it_is_resumed(&rig))
        .await;
    steps
        .run("one message passes a backlog of 20,000", fairness::a_single_message_passes_a_backlog(&rig))
        .await;
    steps.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_shrinks_and_restarts_and_nobody_notices() {
    let rig = Rig::start(LabOptions { lane_limit: members::LIMIT, ..perfect() }).await;
    let mut steps = Steps::new("scale");
    steps.run("rolling restart under load", members::rolling_restart(&rig)).await;
    steps.run("3 -> 5 -> 3 nodes under load", members::scale(&rig)).await;
    steps.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_drained_moved_and_replaced() {
    let rig = Rig::start(perfect()).await;
    let mut steps = Steps::new("members");
    steps.run("drain and activate", members::drain(&rig)).await;
    steps.run("a lost disk is refused and replaced", members::replace_lost_disk(&rig)).await;
    steps.run("a replica is moved by hand", members::moved_by_hand(&rig)).await;
    steps.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seven_nodes_work() {
    let rig = Rig::start(LabOptions { nodes: 7, ready_limit_ms: 120_000, ..perfect() }).await;
    let mut steps = Steps::new("seven");
    steps.run("three replicas each, five meta voters, one node fails", members::seven(&rig)).await;
    steps.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_mix_until_the_level_rises() {
    let older = |lab: &carillon_ctl::lab::Lab| lab.set_feature_level(3, Some(1)).unwrap();
    // Rules of hours need the level that is not there yet; at the first one there are no hours.
    let rig = Rig::start_with(LabOptions { hours: None, ..perfect() }, older).await;
    let mut steps = Steps::new("levels");
    steps.run("an older node holds the level, an upgraded one raises it", members::mixed_levels(&rig)).await;
    steps.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_missed_much_catches_up_and_one_that_lost_its_disk_does_not_come_back() {
    let rig = Rig::start(perfect()).await;
    let mut steps = Steps::new("snapshots");
    steps.run("a follower whose log was cut catches up by snapshots", snapshots::catch_up(&rig)).await;
    steps.run("a fetch that breaks off goes on where it stopped", snapshots::broken_off(&rig)).await;
    steps.run("a wiped disk is not the old node", snapshots::wiped(&rig)).await;
    steps.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_comes_back_in_a_new_cluster_and_nothing_is_sent_twice() {
    let mut steps = Steps::new("backup");
    let old = Rig::start(LabOptions { lane_limit: backup::LIMIT, ..perfect() }).await;
    let mut story = backup::Story::new();
    steps.run("back up under load", story.back_up(&old)).await;
    steps.run("a backup that broke off is finished", backup_resume::resumed(&old)).await;
    steps.run("refused: a cluster that holds messages", story.not_fresh(&old)).await;
    steps.run("the old cluster sends on, then it is destroyed", story.disaster(&old)).await;
    drop(old);
    steps.run("refused: damaged, incomplete and newer backups", story.bad_backups()).await;
    let new = Rig::start_empty(LabOptions { lane_limit: backup::LIMIT, ..perfect() }).await;
    steps.run("refused: another key provider", story.wrong_key(&new)).await;
    steps.run("restore, through the kill of a node", story.restore(&new)).await;
    steps.run("nothing acknowledged is lost, keys work, replicas agree", story.compare(&new)).await;
    steps.run("what was not due is sent, nothing twice", story.nothing_twice(&new)).await;
    steps.run("an operator drops and releases what is held", story.quarantine(&new)).await;
    steps.finish();
}
