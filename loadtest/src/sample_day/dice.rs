//! Draws fixed by a seed, for ever.
//!
//! Why not the `rand` crate: its generators may change with a version, and the digest of the sample day is pinned.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

/// A stream of draws: the n-th one is a hash of (seed, n).
pub struct Dice {
    seed: u64,
    drawn: u64,
}

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    fn next(&mut self) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.seed, 0x6361_7269_6c6c_6f6e);
        hasher.write_u64(self.drawn);
        self.drawn += 1;
        hasher.finish()
    }

    /// A number of [0, below).
    pub fn below(&mut self, below: u64) -> u64 {
        assert!(below > 0, "a choice among nothing");
        ((u128::from(self.next()) * u128::from(below)) >> 64) as u64
    }

    /// A number of [from, to].
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// A number of [0, 1).
    pub fn unit(&mut self) -> f64 {
        self.below(1 << 53) as f64 / (1_u64 << 53) as f64
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }

    /// The index of one of `weights`, chosen in proportion.
    pub fn weighted(&mut self, weights: &[u64]) -> usize {
        let mut rest = self.below(weights.iter().sum());
        for (index, weight) in weights.iter().enumerate() {
            if rest < *weight {
                return index;
            }
            rest -= weight;
        }
        weights.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_fixed_by_the_seed_and_follow_the_weights() {
        let draws = |seed| {
            let mut dice = Dice::new(seed);
            (0..8).map(|_| dice.below(1_000)).collect::<Vec<_>>()
        };
        assert_eq!(draws(7), draws(7));
        assert_ne!(draws(7), draws(8));
        let mut dice = Dice::new(1);
        let mut count = [0u32; 3];
        for _ in 0..30_000 {
            count[dice.weighted(&[1, 0, 2])] += 1;
        }
        assert_eq!(count[1], 0);
        assert!(count[0].abs_diff(10_000) < 500, "{count:?}");
        assert!((0..1_000).all(|_| (3..=5).contains(&dice.between(3, 5))));
    }
}
