//! How the plan of a seed is drawn: rates, feature levels and timed faults. Each has its own random stream, and what was added later
//! has a stream of its own, so that old seeds keep their meaning.
use super::plan::{CarrierRates, Class, Fault, Rates};
use super::rng::Rng;
use carillon_core::meta::level;

const CLASSES: [Class; 14] = [
    Class::Kill,
    Class::Power,
    Class::Freeze,
    Class::Cut,
    Class::Clog,
    Class::ClientsCut,
    Class::Carrier,
    Class::SlowDisk,
    Class::DiskError,
    Class::Rot,
    Class::Clock,
    Class::Lose,
    Class::Transfer,
    Class::Churn,
];

/// Seconds that final messages and keys are kept: for ever as far as a run is concerned, as long as each other, longer, shorter.
pub const KEPT_S: [(u64, u64); 5] = [(86_400, 86_400), (86_400, 86_400), (3, 3), (2, 14), (8, 1)];

/// Full disks, a rotten log, and the loss of everything after a backup.
pub fn more_faults(rng: &mut Rng, nodes: usize, partitions: u32, safety_ms: u64) -> Vec<(u64, Fault)> {
    let mut list = Vec::new();
    if rng.chance(250) {
        for _ in 0..rng.within(1, 3) {
            let at_ms = rng.within(2_000, safety_ms - 1);
            list.push((at_ms, fault(rng, Class::Space, nodes, partitions)));
        }
    }
    if rng.chance(150) {
        let node = rng.below(nodes as u64) as usize;
        let group = rng.within(1, u64::from(partitions)) as u32;
        list.push((rng.within(4_000, safety_ms - 1), Fault::RotLog { node, group, pick: rng.next() }));
    }
    if rng.chance(150) {
        let at_ms = rng.within(3_000, safety_ms * 2 / 3);
        list.push((at_ms, Fault::Backup));
        list.push((
            rng.within(at_ms + 500, safety_ms - 1),
            Fault::LoseAll { down_ms: rng.within(100, 6_000) },
        ));
    } else if rng.chance(150) {
        list.push((rng.within(3_000, safety_ms - 1), Fault::Backup));
    }
    list
}

/// Feature levels of the founders' programs, and when the older ones are upgraded; the last of them when all is calm.
pub fn levels(rng: &mut Rng, nodes: usize, safety_ms: u64) -> (Vec<u32>, Vec<(u64, Fault)>) {
    let oldest = rng.pick(&[level::LEVEL, level::LEVEL, level::LEVEL_MEMBERSHIP, level::LEVEL_BASE]);
    let levels: Vec<u32> = (0..nodes)
        .map(|_| match rng.chance(500) {
            true => rng.within(oldest.into(), level::LEVEL.into()) as u32,
            false => level::LEVEL,
        })
        .collect();
    let mut upgrades = Vec::new();
    for node in (0..nodes).filter(|node| levels[*node] < level::LEVEL) {
        let at_ms = rng.within(1_000, safety_ms);
        if rng.chance(800) {
            upgrades.push((at_ms, Fault::Upgrade { node }));
        }
    }
    (levels, upgrades)
}

pub fn rates(rng: &mut Rng) -> Rates {
    let rate = |rng: &mut Rng, high: u64| rng.pick(&[0, 0, high / 5, high]);
    Rates {
        drop: rate(rng, 100),
        duplicate: rate(rng, 100),
        net_ms_max: rng.pick(&[2, 20, 80, 300]),
        disk_ms_max: rng.pick(&[1, 5, 30, 200]),
        apply_ms_max: rng.pick(&[1, 10, 100]),
        flush_ms_max: rng.pick(&[500, 3_000, 15_000]),
        call_lost: rate(rng, 100),
        carrier: CarrierRates {
            ms_max: rng.pick(&[5, 50, 400]),
            request_lost: rate(rng, 50),
            answer_lost: rate(rng, 200),
            answer_late: rate(rng, 200),
            answer_twice: rate(rng, 100),
            throttled: rate(rng, 200),
            transient: rate(rng, 100),
            rejected: rate(rng, 50),
            receipt_lost: rate(rng, 100),
            receipt_twice: rate(rng, 200),
            receipt_before_answer: rate(rng, 300),
            receipt_enroute: rate(rng, 200),
            undelivered: rate(rng, 200),
        },
    }
}

pub fn faults(rng: &mut Rng, nodes: usize, partitions: u32, safety_ms: u64) -> Vec<(u64, Fault)> {
    let mut weights: Vec<(Class, u64)> = Vec::new();
    for class in CLASSES {
        if rng.chance(400) {
            weights.push((class, rng.within(1, 4)));
        }
    }
    let total: u64 = weights.iter().map(|(_, weight)| weight).sum();
    let mut list = Vec::new();
    if total == 0 {
        return list;
    }
    let pause_ms = rng.pick(&[400, 1_500, 4_000]);
    // The first seconds bring the cluster up.
    let mut at_ms = 1_500;
    loop {
        at_ms += rng.within(pause_ms / 4, pause_ms * 2);
        if at_ms >= safety_ms {
            return list;
        }
        let mut draw = rng.below(total);
        let class = weights.iter().find(|(_, weight)| match draw.checked_sub(*weight) {
            Some(rest) => {
                draw = rest;
                false
            }
            None => true,
        });
        list.push((at_ms, fault(rng, class.expect("the draw is below the total").0, nodes, partitions)));
    }
}

fn fault(rng: &mut Rng, class: Class, nodes: usize, partitions: u32) -> Fault {
    let node = rng.below(nodes as u64) as usize;
    let ms = rng.pick(&[200, 1_000, 3_000, 8_000]);
    let ms = rng.within(ms / 2, ms);
    match class {
        Class::Kill => Fault::Kill { node, down_ms: ms },
        Class::Power if rng.chance(150) => Fault::PowerAll { down_ms: ms / 4 + 1 },
        Class::Power => Fault::Power { node, down_ms: ms },
        Class::Freeze => Fault::Freeze { node, ms },
        Class::Cut => Fault::Cut { links: links(rng, node, nodes), ms },
        Class::Clog => Fault::Clog { links: links(rng, node, nodes), ms: ms / 2 },
        Class::ClientsCut => Fault::ClientsCut { node, ms },
        Class::Carrier => {
            let carrier = rng.below(2) as usize;
            match rng.below(3) {
                0 => Fault::CarrierCut { node, ms },
                1 => Fault::Throttle { carrier, ms: ms / 2 },
                _ => Fault::Hang { carrier, ms: ms / 2 },
            }
        }
        Class::SlowDisk => Fault::SlowDisk { node, factor: rng.pick(&[10, 50, 300]), ms },
        Class::DiskError if rng.chance(300) => Fault::DiskFull { node, ms },
        Class::DiskError => Fault::SyncError { node, down_ms: ms },
        Class::Rot => {
            Fault::Rot { node, group: rng.within(1, u64::from(partitions)) as u32, pick: rng.next() }
        }
        Class::Clock => {
            let size = rng.pick(&[100, 2_000, 20_000]);
            Fault::ClockJump { node, delta_ms: rng.below(2 * size) as i64 - size as i64 }
        }
        Class::Lose if rng.chance(600) => Fault::Wipe { node, down_ms: ms },
        Class::Lose => Fault::Lose { node },
        Class::Churn => match rng.below(5) {
            0 | 1 => Fault::Join,
            2 | 3 => Fault::Decommission { node },
            _ => Fault::Drain { node, ms: 2 * ms },
        },
        Class::Upgrade => Fault::Upgrade { node },
        Class::Space if rng.chance(400) => Fault::MostNearlyFull { but: node, ms },
        Class::Space => Fault::NearlyFull { node, ms },
        Class::Restore => Fault::Backup,
        Class::Transfer => Fault::Transfer { group: rng.below(u64::from(partitions) + 1) as u32, to: node },
    }
}

/// One way or both, one peer or all: also the bridge, where only one link is cut.
fn links(rng: &mut Rng, node: usize, nodes: usize) -> Vec<(usize, usize)> {
    let others: Vec<usize> = (0..nodes).filter(|other| *other != node).collect();
    let some = if rng.chance(400) { vec![rng.pick(&others)] } else { others };
    let (out, back) = rng.pick(&[(true, true), (true, true), (true, false), (false, true)]);
    let away = some.iter().filter(|_| out).map(|other| (node, *other));
    let home = some.iter().filter(|_| back).map(|other| (*other, node));
    away.chain(home).collect()
}
