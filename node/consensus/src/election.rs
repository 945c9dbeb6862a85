//! Election timeouts from a seed instead of raft's thread-local generator, so that a run can be repeated.
//!
//! raft draws its own timeout whenever the term or the role changes, but reads it only in `tick`; so it is enough to
//! overwrite it before every tick. The value depends on seed, group, replica, term and the number of elections this
//! replica has started, so two replicas that collide once draw new values for the next round.
use raft::{Raft, StateRole, Storage};

#[derive(Debug)]
pub(crate) struct ElectionTimer {
    seed: u64,
    /// Elections started since the group was opened.
    round: u64,
    ticks: usize,
}

impl ElectionTimer {
    pub fn new(seed: u64, group: u32, node_id: u64, election_ticks: usize) -> Self {
        let seed = mix(mix(seed ^ mix(u64::from(group))) ^ mix(node_id));
        Self { seed, round: 0, ticks: election_ticks }
    }

    /// To be called directly before every tick.
    pub fn before_tick<T: Storage>(&mut self, raft: &mut Raft<T>) {
        let timeout = self.timeout_ticks(raft.term);
        raft.set_randomized_election_timeout(timeout);
        if raft.state != StateRole::Leader && raft.election_elapsed + 1 >= timeout {
            self.round += 1;
        }
    }

    /// In `ticks..2 * ticks`.
    fn timeout_ticks(&self, term: u64) -> usize {
        let draw = mix(self.seed ^ mix(term.rotate_left(32) ^ self.round));
        self.ticks + (draw % self.ticks as u64) as usize
    }
}

/// The finalizer of splitmix64.
fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_in_range_repeatable_and_differ_between_replicas_and_rounds() {
        let draw = |seed, group, node| {
            let mut timer = ElectionTimer::new(seed, group, node, 10);
            (0..64u64)
                .map(|n| {
                    timer.round = n / 8;
                    timer.timeout_ticks(n % 8)
                })
                .collect::<Vec<_>>()
        };
        let one = draw(7, 1, 1);
        assert_eq!(one, draw(7, 1, 1));
        assert!(one.iter().all(|t| (10..20).contains(t)));
        let values: std::collections::BTreeSet<_> = one.iter().collect();
        assert_eq!(values.len(), 10, "all ten values occur");
        for other in [draw(7, 1, 2), draw(7, 2, 1), draw(8, 1, 1)] {
            assert_ne!(one, other);
        }
    }
}
