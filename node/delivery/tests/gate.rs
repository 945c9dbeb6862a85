//! The wall: however callers come, whatever the share, no sliding second holds more than the limit.
use carillon_delivery::{GateSettings, LaneGate, ShareError, WaitUntil, share};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::num::NonZeroU32;
use std::time::Duration;

const SECOND_NS: u64 = 1_000_000_000;
const MS_NS: u64 = 1_000_000;

fn ns(n: u64) -> Duration {
    Duration::from_nanos(n)
}

fn rate(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

fn gate(share: NonZeroU32, at_ns: u64) -> LaneGate {
    LaneGate::new(share, GateSettings::default(), ns(at_ns))
}

/// The most permits in any half-open window of one second.
fn fullest_second(permits: &mut [u64]) -> usize {
    permits.sort_unstable();
    let mut first = 0;
    let mut most = 0;
    for (i, at) in permits.iter().enumerate() {
        while permits[first] + SECOND_NS <= *at {
            first += 1;
        }
        most = most.max(i + 1 - first);
    }
    most
}

/// How a caller comes to the gate.
#[derive(Debug, Clone, Copy)]
enum Caller {
    /// Always at the very moment at which a permit is free.
    Exact,
    /// Every 1 to 2 ms, with endless demand.
    Polling,
    /// Demand in bursts after idle times, taken as fast as the gate allows.
    Bursts,
    /// At any time.
    Random,
}

const CALLERS: [Caller; 4] = [Caller::Exact, Caller::Polling, Caller::Bursts, Caller::Random];

/// Runs one gate from `start` to `end`; gives the moments of its permits.
fn run(gate: &mut LaneGate, caller: Caller, start: u64, end: u64, rng: &mut SmallRng) -> Vec<u64> {
    let mut permits = Vec::new();
    let period = gate.period().as_nanos() as u64;
    let mut now = start;
    let mut burst = 0u32;
    while now < end {
        let wait = gate.try_acquire(ns(now)).err();
        if wait.is_none() {
            permits.push(now);
        }
        let free_at = gate.next_permit().as_nanos() as u64;
        now = match caller {
            Caller::Exact => free_at.max(now),
            Caller::Polling if wait.is_some() => now + rng.random_range(MS_NS..2 * MS_NS),
            Caller::Polling => now,
            Caller::Bursts if burst == 0 => {
                burst = rng.random_range(1..200);
                now + rng.random_range(0..SECOND_NS)
            }
            Caller::Bursts => {
                burst -= 1;
                free_at.max(now)
            }
            Caller::Random => now + rng.random_range(0..2 * period),
        };
    }
    permits
}

#[test]
fn all_nodes_together_stay_within_the_limit_in_every_sliding_second() {
    let mut rng = SmallRng::seed_from_u64(1);
    for round in 0..400 {
        let nodes = rng.random_range(1..=5u32);
        let limit = match round % 4 {
            0 => rng.random_range(nodes..=nodes + 10),
            1 => rng.random_range(nodes..=200),
            2 => rng.random_range(400..=3_000),
            _ => rng.random_range(1_000..=50_000),
        };
        let mut permits = Vec::new();
        for node in 0..nodes {
            // Any phase; and one node in three starts again in the middle with nothing remembered.
            let start = rng.random_range(SECOND_NS..2 * SECOND_NS);
            let restart = start + rng.random_range(0..3 * SECOND_NS);
            let share = share(limit, nodes, node).unwrap();
            for (from, to) in [(start, restart), (restart, start + 4 * SECOND_NS)] {
                let caller = CALLERS[rng.random_range(0..CALLERS.len())];
                permits.extend(run(&mut gate(share, from), caller, from, to, &mut rng));
            }
        }
        // The way to the carrier delays each segment by a different time.
        let allowance = GateSettings::default().jitter_allowance.as_nanos() as u64;
        let mut arrivals: Vec<u64> = permits.iter().map(|at| at + rng.random_range(0..=allowance)).collect();
        let most = fullest_second(&mut permits).max(fullest_second(&mut arrivals));
        assert!(most <= limit as usize, "round {round}: {most} in a second, limit {limit}, {nodes} nodes");
        assert!(!permits.is_empty());
    }
}

#[test]
fn the_wall_does_not_rest_on_the_derating() {
    let exact = GateSettings { catch_up: Duration::ZERO, jitter_allowance: Duration::ZERO };
    let mut rng = SmallRng::seed_from_u64(5);
    for share in (1..=40).chain([333, 700, 999, 4_567]) {
        let mut gate = LaneGate::new(rate(share), exact, ns(SECOND_NS));
        let mut permits = run(&mut gate, Caller::Exact, SECOND_NS, 5 * SECOND_NS, &mut rng);
        assert_eq!(fullest_second(&mut permits), share as usize, "exactly the share, not one more");
    }
}

#[test]
fn the_worst_case_reaches_the_limit_and_does_not_pass_it() {
    // All nodes in phase, idle, then endless demand; then everything held up by the whole allowance.
    for (limit, nodes) in [(3, 3), (10, 3), (100, 4), (1_000, 3), (50_000, 3)] {
        let mut permits = Vec::new();
        for node in 0..nodes {
            let mut gate = gate(share(limit, nodes, node).unwrap(), 0);
            let mut now = 10 * SECOND_NS;
            while now < 13 * SECOND_NS {
                let _ = gate.try_acquire(ns(now)).map(|()| permits.push(now));
                now = now.max(gate.next_permit().as_nanos() as u64);
            }
        }
        let most = fullest_second(&mut permits) as f64;
        assert!(most <= f64::from(limit) && most >= 0.97 * f64::from(limit), "{most} of {limit}");
        let stall = 12 * SECOND_NS;
        let held_from = stall - 10 * MS_NS;
        let mut held: Vec<u64> =
            permits.iter().map(|at| if (held_from..stall).contains(at) { stall } else { *at }).collect();
        assert!(fullest_second(&mut held) <= limit as usize, "a stall of 10 ms breaks the wall of {limit}");
    }
}

#[test]
fn a_polling_caller_gets_at_least_95_percent_of_every_share() {
    let mut rng = SmallRng::seed_from_u64(2);
    for share in [1, 2, 5, 20, 100, 333, 499, 500, 501, 999, 1_000, 2_500, 16_667, 50_000] {
        let start = SECOND_NS + rng.random_range(0..SECOND_NS);
        let mut gate = gate(rate(share), start);
        let seconds = if share < 100 { 200 } else { 20 };
        // The first period is the price of starting; it is not counted.
        let from = gate.next_permit().as_nanos() as u64;
        let permits = run(&mut gate, Caller::Polling, from, from + seconds * SECOND_NS, &mut rng);
        let achieved = permits.len() as f64 / (f64::from(share) * seconds as f64);
        println!("share {share}: {:.2} %", achieved * 100.0);
        assert!(achieved >= 0.95, "share {share}: {achieved}");
    }
}

#[test]
fn a_new_gate_and_an_idle_gate_with_a_new_share_wait_one_period() {
    let mut gate = gate(rate(10), 5 * SECOND_NS);
    let first = ns(5 * SECOND_NS) + gate.period();
    assert_eq!(gate.try_acquire(ns(5 * SECOND_NS)), Err(WaitUntil(first)));
    assert_eq!(gate.try_acquire(first - ns(1)), Err(WaitUntil(first)));
    assert_eq!(gate.try_acquire(first), Ok(()));
    let idle = ns(90 * SECOND_NS);
    gate.set_share(rate(40), idle);
    assert_eq!(gate.period(), ns(25_375_000));
    assert_eq!(gate.try_acquire(idle), Err(WaitUntil(idle + gate.period())));
    assert_eq!(gate.try_acquire(idle + gate.period()), Ok(()));
    assert!(gate.try_acquire(idle + gate.period()).is_err());
    // The same share again is no change.
    let next = gate.next_permit();
    gate.set_share(rate(40), idle + gate.period() * 100);
    assert_eq!(gate.next_permit(), next);
}

#[test]
fn changes_of_the_limit_never_leak_a_burst() {
    let mut rng = SmallRng::seed_from_u64(3);
    for round in 0..300 {
        let nodes = rng.random_range(1..=4u32);
        let limits: [u32; 3] = std::array::from_fn(|_| rng.random_range(nodes..=nodes + 30 * (round + 1)));
        let mut permits = Vec::new();
        for node in 0..nodes {
            // Nodes learn of a change at different times.
            let mut now = rng.random_range(SECOND_NS..2 * SECOND_NS);
            let mut gate = gate(share(limits[0], nodes, node).unwrap(), now);
            for limit in limits {
                gate.set_share(share(limit, nodes, node).unwrap(), ns(now));
                let until = now + rng.random_range(0..2 * SECOND_NS);
                let caller = CALLERS[rng.random_range(0..CALLERS.len())];
                permits.extend(run(&mut gate, caller, now, until, &mut rng));
                now = until;
            }
        }
        let most = fullest_second(&mut permits);
        assert!(most <= *limits.iter().max().unwrap() as usize, "round {round}: {most}, limits {limits:?}");
    }
}

#[test]
fn a_share_that_rests_a_second_on_its_way_to_another_node_keeps_the_wall() {
    let mut rng = SmallRng::seed_from_u64(4);
    for round in 0..300 {
        let limit = rng.random_range(4..=60u32);
        let (low, high) = (rng.random_range(1..limit / 2), limit / 2);
        let settings = GateSettings::default();
        let hand_over = rng.random_range(3 * SECOND_NS..4 * SECOND_NS);
        let rest = SECOND_NS + settings.catch_up.as_nanos() as u64;
        let end = hand_over + 4 * SECOND_NS;
        let mut permits = Vec::new();
        for (before, after, at) in [(high, low, hand_over), (limit - high, limit - low, hand_over + rest)] {
            let start = rng.random_range(SECOND_NS..2 * SECOND_NS);
            let mut gate = gate(rate(before), start);
            permits.extend(run(&mut gate, Caller::Exact, start, at, &mut rng));
            gate.set_share(rate(after), ns(at));
            permits.extend(run(&mut gate, Caller::Polling, at, end, &mut rng));
        }
        let most = fullest_second(&mut permits);
        assert!(most <= limit as usize, "round {round}: {most} of {limit}");
    }
}

#[test]
fn frequent_changes_do_not_starve_a_slow_lane() {
    let mut gate = gate(rate(2), 0);
    let mut permits = 0;
    for ms in 0..60_000u64 {
        let now = ns(ms * MS_NS);
        if ms.is_multiple_of(300) {
            gate.set_share(rate(2 + (ms / 300 % 2) as u32), now);
        }
        permits += u32::from(gate.try_acquire(now).is_ok());
    }
    assert!((135..=150).contains(&permits), "{permits} in a minute at 2 to 3 a second");
}

#[test]
fn shares_add_up_to_the_limit_and_grow_with_it() {
    for nodes in 1..=7 {
        for limit in nodes..=60 {
            let of = |limit, node| share(limit, nodes, node).unwrap().get();
            assert_eq!((0..nodes).map(|node| of(limit, node)).sum::<u32>(), limit);
            assert!((0..nodes).all(|node| of(limit + 1, node) >= of(limit, node)));
        }
    }
    assert_eq!(share(2, 3, 0), Err(ShareError::LimitBelowNodes { limit: 2, nodes: 3 }));
    assert_eq!(share(2, 0, 0), Err(ShareError::NoNodes));
    assert_eq!(share(9, 3, 3), Err(ShareError::NodeIndex { node_index: 3, nodes: 3 }));
    assert_eq!(
        share(2, 3, 0).unwrap_err().to_string(),
        "a lane limit of 2 segments per second cannot be split over 3 nodes: it must be at least 3"
    );
}

/// Sizes of messages that leave in one piece: constant ones, mixtures, and some that are longer than the share.
const SIZES: [&[u32]; 7] = [&[1], &[2], &[3], &[1, 2], &[1, 1, 1, 4], &[7, 1, 2], &[10, 3]];

/// The most segments in any half-open window of so many seconds; (when, how many).
fn fullest_of(messages: &[(u64, u32)], seconds: u64) -> u32 {
    let (mut first, mut sum, mut most) = (0, 0, 0);
    for (at, size) in messages {
        sum += size;
        while messages[first].0 + seconds * SECOND_NS <= *at {
            sum -= messages[first].1;
            first += 1;
        }
        most = most.max(sum);
    }
    most
}

/// Messages of these sizes in any order, taken as a caller comes, for so many seconds.
fn run_sizes(share: u32, sizes: &[u32], polls: bool, seconds: u64, rng: &mut SmallRng) -> Vec<(u64, u32)> {
    let mut gate = gate(rate(share), SECOND_NS);
    let (mut now, mut sent) = (SECOND_NS, Vec::new());
    let mut size = sizes[0];
    while now < (seconds + 1) * SECOND_NS {
        match gate.try_acquire_all(size, ns(now)) {
            Ok(()) => {
                sent.push((now, size));
                size = sizes[rng.random_range(0..sizes.len())];
                if rng.random_range(0..40) == 0 && polls {
                    now += rng.random_range(0..2 * SECOND_NS);
                }
            }
            Err(WaitUntil(at)) if polls => {
                now = now.max(at.as_nanos() as u64) + rng.random_range(0..2 * MS_NS)
            }
            Err(WaitUntil(at)) => now = at.as_nanos() as u64,
        }
    }
    sent
}

#[test]
fn messages_that_leave_in_one_piece_stay_within_the_share_in_every_window() {
    let mut rng = SmallRng::seed_from_u64(8);
    for share in [1, 2, 3, 4, 7, 10, 30, 64, 75, 120, 600] {
        for sizes in SIZES {
            for polls in [false, true] {
                let sent = run_sizes(share, sizes, polls, 120, &mut rng);
                let longest = *sizes.iter().max().unwrap();
                assert!(
                    sent.iter().any(|(_, size)| *size == longest),
                    "{share} a second, {sizes:?}: none passes"
                );
                // What is longer than the share leaves alone: windows as long as it takes hold it, and nothing more.
                let seconds = u64::from(longest.div_ceil(share));
                let most = fullest_of(&sent, seconds);
                assert!(most <= share * seconds as u32, "{most} in {seconds} s, {share} a second, {sizes:?}");
            }
        }
    }
}

#[test]
fn messages_of_one_size_use_what_the_share_holds_of_them() {
    let mut rng = SmallRng::seed_from_u64(9);
    for (share, size) in [(10, 2), (10, 3), (12, 4), (30, 3), (64, 4), (120, 10), (600, 7), (5, 5)] {
        let sent = run_sizes(share, &[size], false, 100, &mut rng);
        let used: u32 = sent.iter().map(|(_, size)| size).sum();
        let possible = 100 * (share / size) * size;
        assert!(used * 100 >= possible * 97, "{size} at {share} a second: {used} of {possible}");
    }
    let mixed = run_sizes(120, &[1, 2, 3], false, 100, &mut rng);
    let used: u32 = mixed.iter().map(|(_, size)| size).sum();
    assert!(used >= 120 * 90, "mixed sizes: {used} of {}", 120 * 100);
}

#[test]
fn short_messages_wait_while_a_long_one_saves_and_go_on_when_it_gives_up() {
    let mut gate = gate(rate(10), 0);
    let mut now = 5 * SECOND_NS;
    // The share is full of single segments.
    let single = |gate: &mut LaneGate, now: &mut u64| {
        while let Err(WaitUntil(at)) = gate.try_acquire(ns(*now)) {
            *now = (*now).max(at.as_nanos() as u64);
        }
    };
    (0..20).for_each(|_| single(&mut gate, &mut now));
    now = gate.next_permit().as_nanos() as u64;
    let Err(WaitUntil(fits)) = gate.try_acquire_all(4, ns(now)) else { panic!("the frame is full") };
    let Err(WaitUntil(after)) = gate.try_acquire(ns(now)) else { panic!("it is saved for the other one") };
    assert!(after > fits);
    assert_eq!(gate.try_acquire_all(4, fits), Ok(()));
    assert!(gate.try_acquire(fits).is_err());
    // The next one never comes: the others go on a moment later.
    let mut now = gate.next_permit().as_nanos() as u64;
    (0..20).for_each(|_| single(&mut gate, &mut now));
    now = gate.next_permit().as_nanos() as u64;
    let Err(WaitUntil(fits)) = gate.try_acquire_all(4, ns(now)) else { panic!("the frame is full") };
    assert_eq!(gate.try_acquire(fits + Duration::from_millis(6)), Ok(()));
}
