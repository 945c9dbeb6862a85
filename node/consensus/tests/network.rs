//! Safety and liveness of many groups under random trouble, each run from one seed. A failing seed is repeated with
//! `CARILLON_SEED=<seed> cargo test --release -p carillon-consensus --test network one_seed`.
#![allow(clippy::field_reassign_with_default)] // generated eraftpb structs
mod sim;

use sim::rng::Rng;
use sim::{Faults, Sim, Stats};

const TROUBLE_MS: u64 = 20_000;

fn run(seed: u64, change: impl Fn(&mut Faults)) -> Result<(Stats, u64), String> {
    let mut rng = Rng::new(seed ^ 0xfa17);
    let mut faults = Faults::swarm(&mut rng);
    change(&mut faults);
    Sim::new(seed, 3, faults).run(TROUBLE_MS)
}

fn run_all(seeds: std::ops::Range<u64>, change: impl Fn(&mut Faults)) -> Stats {
    let mut sum = Stats::default();
    for seed in seeds {
        let (stats, _) = run(seed, &change).unwrap_or_else(|text| panic!("seed {seed}: {text}"));
        sum.events += stats.events;
        sum.acked += stats.acked;
        sum.applied += stats.applied;
        sum.terms += stats.terms;
        sum.crashes += stats.crashes;
        sum.lost_writes += stats.lost_writes;
        sum.applied_beyond_commit += stats.applied_beyond_commit;
        sum.reads += stats.reads;
        sum.transfers += stats.transfers;
        sum.dropped += stats.dropped;
        sum.rejections += stats.rejections;
        sum.overwrites += stats.overwrites;
        sum.cuts += stats.cuts;
        sum.exports += stats.exports;
        sum.failed_fetches += stats.failed_fetches;
        sum.installs += stats.installs;
        sum.installs_at_restart += stats.installs_at_restart;
    }
    println!("{sum:?}");
    sum
}

fn check_rare_things_happened(sum: &Stats) {
    assert!(sum.acked > 30_000 && sum.reads > 4000 && sum.terms > 2000, "{sum:?}");
    assert!(sum.crashes > 1000 && sum.lost_writes > 1000 && sum.applied_beyond_commit > 500, "{sum:?}");
    assert!(
        sum.transfers > 1000 && sum.dropped > 10_000 && sum.rejections > 5000 && sum.overwrites > 100,
        "{sum:?}"
    );
}

#[test]
fn first_five_hundred_seeds() {
    check_rare_things_happened(&run_all(0..500, |_| {}));
}

#[test]
fn second_five_hundred_seeds() {
    check_rare_things_happened(&run_all(500..1000, |_| {}));
}

/// raft-rs 557: lost, doubled and late rejections while followers with diverged logs come back.
#[test]
fn followers_catch_up_although_rejections_are_lost_and_reordered() {
    let sum = run_all(1000..1100, |faults| {
        faults.bad_rejections = true;
        faults.crashes = true;
        faults.partitions = true;
        faults.delay_ms_max = 300;
    });
    assert!(sum.rejections > 500 && sum.overwrites > 20, "{sum:?}");
}

/// Logs are cut without regard for anybody, while files get lost, leaders change and nodes crash at any point of an
/// install: everybody ends with everything.
#[test]
fn followers_catch_up_by_snapshots_that_are_lost_late_and_interrupted() {
    let sum = run_all(2000..2200, |faults| {
        faults.cuts = true;
        faults.crashes = true;
        faults.drop = 10;
        faults.apply_ms_max = 400;
    });
    assert!(sum.cuts > 2000 && sum.exports > 300 && sum.failed_fetches > 50 && sum.installs > 200, "{sum:?}");
    assert!(sum.installs_at_restart > 3, "{sum:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 17, 42, 99] {
        let first = run(seed, |_| {}).unwrap();
        assert_eq!(first, run(seed, |_| {}).unwrap());
        assert_ne!(first.1, run(seed + 1, |_| {}).unwrap().1);
    }
}

/// The checks must find what they are there for.
#[test]
fn a_planted_bug_is_found_acknowledging_before_the_write() {
    let planted = |faults: &mut Faults| {
        faults.ack_before_persist = true;
        faults.crashes = true;
        faults.disk_ms_max = 900;
    };
    let found = (0..40).filter(|seed| {
        let result = std::panic::catch_unwind(|| run(*seed, planted));
        !matches!(result, Ok(Ok(_)))
    });
    assert!(found.count() >= 5, "too few of 40 seeds find it");
}

#[test]
fn one_seed() {
    let seed = std::env::var("CARILLON_SEED").map_or(12345, |text| text.parse().expect("a number"));
    println!("{:?}", run(seed, |_| {}).unwrap_or_else(|text| panic!("seed {seed}: {text}")));
}
