//! Networks, pauses and clocks: each node is in a network namespace of its own. Whatever is cut, paused or set wrong, no two
//! leaders act, nothing that was acknowledged is lost, and afterwards everything goes on by itself.
mod clocks;
mod cuts;
mod pauses;

use carillon_tests::faults::Needs;
use carillon_tests::load::LoadOptions;
use carillon_tests::trial::{Trial, skipped};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_networks_lose_and_double_nothing() {
    if skipped("partition", Needs::NET) {
        return;
    }
    let load = LoadOptions { seed: 5, ..LoadOptions::default() };
    let trial = Trial::start("partition", Needs::NET, load).await;
    cuts::leader_cut_off(&trial).await;
    cuts::leader_cut_off_from_peers_only(&trial).await;
    cuts::one_way(&trial).await;
    cuts::bridge(&trial).await;
    cuts::everybody_alone(&trial).await;
    trial.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stood_still_finds_itself_deposed() {
    let load = LoadOptions { seed: 7, ..LoadOptions::default() };
    let trial = Trial::start("pause", Needs::default(), load).await;
    pauses::leader(&trial).await;
    pauses::short_and_long(&trial).await;
    trial.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_jump_by_seconds_disturb_nothing() {
    if skipped("clock", Needs::CLOCK) {
        return;
    }
    let load = LoadOptions { seed: 9, ..LoadOptions::default() };
    let trial = Trial::start("clock", Needs::CLOCK, load).await;
    clocks::jumps(&trial, &clocks::SMALL_S).await;
    trial.finish().await;
}

/// What a leader whose clock is a day ahead accepts is dated a day ahead and waits for it afterwards (DECISIONS.md), but
/// nothing is lost, doubled or answered wrongly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_jump_by_hours_double_and_lose_nothing() {
    if skipped("clock", Needs::CLOCK) {
        return;
    }
    let load = LoadOptions { seed: 15, ..LoadOptions::default() };
    let trial = Trial::start("clock far", Needs::CLOCK, load).await;
    clocks::jumps(&trial, &clocks::LARGE_S).await;
    trial.finish_safe().await;
}
