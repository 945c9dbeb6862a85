//! Crashes: nodes die at every fail point, on both sides of everything that is persisted or sent, and at random
//! moments. Afterwards what callers were told, the list, the feed, the carrier and the replicas must agree.
mod membership;
mod points;
mod random;

use carillon_ctl::lab::LabOptions;
use carillon_tests::faults::Needs;
use carillon_tests::load::LoadOptions;
use carillon_tests::trial::{Trial, options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_may_die_at_every_fail_point() {
    let load = LoadOptions { seed: 11, ..LoadOptions::default() };
    let lab = LabOptions { node_config: points::NODE_CONFIG.to_owned(), ..options() };
    let trial = Trial::start_with(lab, "crash", Needs::default(), load).await;
    points::each(&trial).await;
    trial.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_may_die_while_it_joins_and_while_replicas_come_and_go() {
    let load = LoadOptions { seed: 12, ..LoadOptions::default() };
    let lab = LabOptions { node_config: points::NODE_CONFIG.to_owned(), ..options() };
    let trial = Trial::start_after(lab, "members", Needs::default(), load, membership::while_founding).await;
    membership::each(&trial).await;
    trial.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_may_die_at_any_moment() {
    let load = LoadOptions { seed: 13, ..LoadOptions::default() };
    let trial = Trial::start("kill", Needs::default(), load).await;
    random::kills(&trial, 17).await;
    trial.finish().await;
}
