//! When a move makes the balance better for certain: weights of count and load, and the margin that keeps it at rest.
use std::collections::BTreeMap;

/// Weight of anything, whatever its load.
const BASE: u64 = 1_000;
/// A mean load below this (entries in a thousand seconds; 20 a second) counts as this much: what an idle cluster does, elections and
/// moves of its own among it, is no reason to move anything.
const MEAN_LOAD_MIN: u64 = 20_000;

/// How much the load counts beside the number, and how much better a move must make it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    /// Weight of the mean load.
    pub mean: u64,
    /// Weight of any load, at most.
    pub most: u64,
    /// Beyond break-even. Less than `BASE`, so that a difference of two of equal weight is always evened out.
    pub margin: u64,
}

/// A replica move copies a partition, so it follows the load less.
pub(super) const REPLICAS: Scale = Scale { mean: 500, most: 1_000, margin: 800 };
pub(super) const LEADERS: Scale = Scale { mean: 1_000, most: 2_000, margin: 600 };

impl Scale {
    pub fn weight(self, load: u64, mean_load: u64) -> u64 {
        let part = load.saturating_mul(self.mean) / mean_load.max(MEAN_LOAD_MIN);
        BASE + part.min(self.most)
    }

    /// Moving `weight` from one node to the other lowers the sum of the squares: the difference is larger than the weight.
    pub fn pays(self, from: u64, to: u64, weight: u64) -> bool {
        from > to + weight + self.margin
    }
}

/// Of the groups that were seen.
pub(super) fn mean_load(loads: impl Iterator<Item = u64>) -> u64 {
    let (mut sum, mut count) = (0_u64, 0);
    for load in loads {
        sum = sum.saturating_add(load);
        count += 1;
    }
    sum.checked_div(count).unwrap_or(0)
}

/// Nodes by rising weight, then id.
pub(super) fn lightest_first(weights: &BTreeMap<u64, u64>) -> Vec<u64> {
    let mut nodes: Vec<u64> = weights.keys().copied().collect();
    nodes.sort_by_key(|node| (weights[node], *node));
    nodes
}
