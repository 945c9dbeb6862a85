//! Each planted bug must be found within a stated number of seeds, and by the invariant that it breaks.
use carillon_tests::sim::{self, Fault, Plan, Plant};

/// Runs seeds with the bug until one fails: (seeds needed, violation).
fn hunt(plant: Plant, seeds_max: u64, change: impl Fn(&mut Plan) + Sync) -> (u64, String) {
    let planted = |plan: &mut Plan| {
        plan.plant = Some(plant);
        change(plan);
    };
    let total = sim::swarm(1_000, 1, |number| number < seeds_max, planted);
    match total.failures.into_iter().next() {
        Some((seed, violation)) => {
            println!("{plant:?}: found after {} seeds: {violation}", seed - 999);
            (seed - 999, violation)
        }
        None => panic!("{plant:?} was not found within {seeds_max} seeds"),
    }
}

fn found_by(plant: Plant, seeds_max: u64, invariants: &[&str]) {
    let (_, violation) = hunt(plant, seeds_max, |_| {});
    let named = invariants.iter().any(|invariant| violation.contains(invariant));
    assert!(named, "{plant:?} was found by {violation}, not by {invariants:?}");
}

/// Power cuts of one node after the other while disks are slow: for bugs that only a lost write shows.
fn power_cuts(plan: &mut Plan) {
    plan.rates.disk_ms_max = 100;
    plan.rates.flush_ms_max = 2_000;
    let cut = |n: u64| (2_000 + n * 700, Fault::Power { node: n as usize % plan.nodes, down_ms: 300 });
    plan.faults = (0..).map(cut).take_while(|(at_ms, _)| *at_ms < plan.safety_ms).collect();
}

fn found_under_power_cuts(plant: Plant, seeds_max: u64, invariants: &[&str]) {
    let (_, violation) = hunt(plant, seeds_max, power_cuts);
    let named = invariants.iter().any(|invariant| violation.contains(invariant));
    assert!(named, "{plant:?} was found by {violation}, not by {invariants:?}");
}

/// Without the comparison of promises with the disk, so that the consequences must show.
fn found_by_its_consequences(plant: Plant, seeds_max: u64) {
    hunt(plant, seeds_max, |plan| plan.check_promises = false);
}

#[test]
fn acknowledging_before_the_write() {
    found_by(Plant::AckBeforePersist, 2, &["I3"]);
    found_by_its_consequences(Plant::AckBeforePersist, 60);
}

#[test]
fn going_on_after_a_failed_sync() {
    found_by(Plant::IgnoreSyncError, 20, &["I3", "I1"]);
}

#[test]
fn answering_waiters_of_another_term() {
    found_by(Plant::SkipTermCheck, 60, &["I1", "I2", "I4"]);
}

#[test]
fn writing_hard_state_apart_from_entries() {
    found_under_power_cuts(Plant::HardStateApart, 40, &["cannot start", "panic"]);
}

#[test]
fn not_writing_the_vote() {
    found_by(Plant::VoteNotPersisted, 2, &["I3"]);
    found_by_its_consequences(Plant::VoteNotPersisted, 100);
}

#[test]
fn applied_index_ahead_of_the_flush() {
    found_by(Plant::AppliedAheadOfFlush, 20, &["I3", "I9", "I1"]);
}

#[test]
fn cutting_the_log_ahead_of_the_flush() {
    found_under_power_cuts(Plant::CutAheadOfFlush, 20, &["cannot start"]);
}

#[test]
fn resending_after_a_lost_answer() {
    found_by(Plant::ResendOnUnknown, 20, &["I5", "I4"]);
}

#[test]
fn gluing_appends_together() {
    found_by(Plant::BatchAppend, 40, &["panic", "I3", "I1"]);
}

#[test]
fn a_lane_share_that_two_nodes_have() {
    found_by(Plant::ShareTwice, 20, &["I6"]);
}

#[test]
fn sending_before_the_attempt_is_committed() {
    found_by(Plant::SendBeforeCommit, 5, &["I4"]);
}

#[test]
fn forgetting_idempotency_keys() {
    found_by(Plant::KeyForgotten, 10, &["I2"]);
}

/// Found by the simulator: a leader that regained a shorter log never appended again, or never knew that it led.
#[test]
fn keeping_waiters_of_lost_entries() {
    found_by(Plant::WaitersOfOldTerms, 120, &["I8"]);
}

/// Found by the simulator: two live replicas of three refuse each other for ever.
#[test]
fn priorities_in_elections() {
    found_by(Plant::Priorities, 400, &["I8"]);
}
