//! What may go wrong in a run.
use super::rng::Rng;

/// What may go wrong, in percent of the occasions and in milliseconds.
#[derive(Debug, Clone)]
pub struct Faults {
    pub drop: u64,
    pub duplicate: u64,
    pub delay_ms_max: u64,
    pub disk_ms_max: u64,
    pub apply_ms_max: u64,
    /// Rejections are lost, doubled and late.
    pub bad_rejections: bool,
    pub crashes: bool,
    pub partitions: bool,
    /// Logs are cut without regard for followers, so that they need snapshots.
    pub cuts: bool,
    /// Planted bug: promises leave before they are durable.
    pub ack_before_persist: bool,
}

impl Faults {
    pub fn none() -> Self {
        Self {
            drop: 0,
            duplicate: 0,
            delay_ms_max: 5,
            disk_ms_max: 5,
            apply_ms_max: 5,
            bad_rejections: false,
            crashes: false,
            partitions: false,
            cuts: false,
            ack_before_persist: false,
        }
    }

    /// A random subset with random weights.
    pub fn swarm(rng: &mut Rng) -> Self {
        let disk_ms_max = [2, 20, 150, 900][rng.below(4) as usize];
        Self {
            drop: [0, 0, 2, 10][rng.below(4) as usize],
            duplicate: [0, 0, 2, 10][rng.below(4) as usize],
            delay_ms_max: [5, 40, 300][rng.below(3) as usize],
            disk_ms_max,
            apply_ms_max: [2, 50, 400][rng.below(3) as usize],
            bad_rejections: rng.chance(30),
            crashes: rng.chance(70),
            partitions: rng.chance(50),
            cuts: rng.chance(50),
            ack_before_persist: false,
        }
    }
}
