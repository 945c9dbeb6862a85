//! A bound on how far a node's clock may lead it astray: what it takes for the time is never further than a bound from the
//! median of its own and its peers' wall clocks.
//!
//! Entries are stamped with the clock of their leader, and due times are compared with it. A leader whose wall clock is wrong
//! would stamp a future that its successors must wait for, or send late. With the bound it does so by at most the bound, and a
//! node that is further off says so, so that leaders are moved away from it.
//!
//! Peers tell their wall clock with every frame. Frames are late, never early, so a clock is judged by the frame that makes it
//! look furthest ahead. Fewer than three clocks say nothing: of two nobody knows which one is wrong. A majority of
//! wrong clocks is not noticed.
//!
//! Pure: wall and monotonic clocks (both in ms, of this node) come from the caller.
use std::collections::BTreeMap;

/// How long what a peer said about its clock counts.
const FRESH_MS: u64 = 60_000;
/// A peer's clock is judged by the best frame of this long and of as long before.
const WINDOW_MS: u64 = 1_000;
const CLOCKS_MIN: usize = 3;

/// Distance of a wall clock from this node's monotonic clock.
type Offset = i64;

#[derive(Debug, Clone, Copy)]
struct Heard {
    best: Offset,
    since_ms: u64,
    before: Option<Offset>,
    last_ms: u64,
}

impl Heard {
    fn offset(&self) -> Offset {
        self.before.map_or(self.best, |before| self.best.max(before))
    }
}

/// What is known of the clocks at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClockView {
    /// The median; `None` = not known.
    median: Option<Offset>,
    bound_ms: i64,
    /// Own clock minus the median; 0 = not known.
    pub skew_ms: i64,
    /// It was further off than the bound, and has not come back to half of it since.
    pub is_off: bool,
}

impl ClockView {
    /// What to take for the time: the wall clock, no further than the bound from the median. A wall clock that was set since the
    /// look is bounded, too.
    pub fn now_ms(&self, wall_ms: u64, mono_ms: u64) -> u64 {
        let Some(median) = self.median else { return wall_ms };
        let right_ms = mono_ms.saturating_add_signed(median);
        let bound_ms = self.bound_ms.unsigned_abs();
        wall_ms.clamp(right_ms.saturating_sub(bound_ms), right_ms.saturating_add(bound_ms))
    }
}

/// See the module documentation. Bounded by the members.
#[derive(Debug)]
pub struct ClusterClock {
    bound_ms: i64,
    peers: BTreeMap<u64, Heard>,
    is_off: bool,
}

impl ClusterClock {
    pub fn new(bound_ms: u64) -> Self {
        Self { bound_ms: bound_ms.try_into().unwrap_or(i64::MAX), peers: BTreeMap::new(), is_off: false }
    }

    /// Those that left count no more.
    pub fn set_peers(&mut self, peers: &[u64]) {
        self.peers.retain(|node, _| peers.contains(node));
    }

    /// A frame of a peer says what time it was there when it left.
    pub fn hear(&mut self, node: u64, wall_ms: u64, mono_ms: u64) {
        let offset = distance(wall_ms, mono_ms);
        let fresh = Heard { best: offset, since_ms: mono_ms, before: None, last_ms: mono_ms };
        let heard = self.peers.entry(node).or_insert(fresh);
        if mono_ms.saturating_sub(heard.since_ms) > WINDOW_MS {
            (heard.before, heard.best, heard.since_ms) = (Some(heard.best), offset, mono_ms);
        }
        heard.best = heard.best.max(offset);
        heard.last_ms = mono_ms;
    }

    /// How far each peer's clock is from this node's, in ms.
    pub fn peers(&self, wall_ms: u64, mono_ms: u64) -> impl Iterator<Item = (u64, i64)> + '_ {
        let own = distance(wall_ms, mono_ms);
        self.fresh(mono_ms).map(move |(node, heard)| (node, heard.offset().saturating_sub(own)))
    }

    fn fresh(&self, mono_ms: u64) -> impl Iterator<Item = (u64, &Heard)> + '_ {
        let fresh = move |heard: &Heard| mono_ms.saturating_sub(heard.last_ms) <= FRESH_MS;
        self.peers.iter().filter(move |(_, heard)| fresh(heard)).map(|(node, heard)| (*node, heard))
    }

    pub fn look(&mut self, wall_ms: u64, mono_ms: u64) -> ClockView {
        let own = distance(wall_ms, mono_ms);
        let mut offsets: Vec<Offset> = self.fresh(mono_ms).map(|(_, heard)| heard.offset()).collect();
        offsets.push(own);
        if offsets.len() < CLOCKS_MIN {
            self.is_off = false;
            return ClockView::default();
        }
        offsets.sort_unstable();
        let (low, high) = (offsets[(offsets.len() - 1) / 2], offsets[offsets.len() / 2]);
        let median = low + (high - low) / 2;
        let skew_ms = own.saturating_sub(median);
        let limit = if self.is_off { self.bound_ms / 2 } else { self.bound_ms };
        self.is_off = skew_ms.saturating_abs() > limit;
        ClockView { median: Some(median), bound_ms: self.bound_ms, skew_ms, is_off: self.is_off }
    }
}

fn distance(wall_ms: u64, mono_ms: u64) -> Offset {
    wall_ms.wrapping_sub(mono_ms) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: u64 = 1_793_000_000_000;

    /// Two peers that are right at `mono`.
    fn right(clock: &mut ClusterClock, mono: u64) {
        clock.hear(2, WALL + mono, mono);
        clock.hear(3, WALL + mono, mono);
    }

    #[test]
    fn a_wrong_clock_is_bounded_both_ways_and_a_small_error_is_left_alone() {
        let mut clock = ClusterClock::new(1_000);
        right(&mut clock, 10);
        for (error, bounded) in [(0, 0), (900, 900), (-900, -900), (20_000, 1_000), (-20_000, -1_000)] {
            let wall = WALL.checked_add_signed(error).unwrap() + 10;
            let view = clock.look(wall, 10);
            assert_eq!(
                (view.skew_ms, view.now_ms(wall, 10)),
                (error, WALL.checked_add_signed(bounded).unwrap() + 10)
            );
        }
        // Set after the look.
        let view = clock.look(WALL + 10, 10);
        assert_eq!(view.now_ms(WALL + 99_000, 20), WALL + 1_020);
    }

    #[test]
    fn two_clocks_say_nothing_and_old_words_do_not_count() {
        let mut clock = ClusterClock::new(1_000);
        clock.hear(2, WALL, 0);
        assert_eq!(clock.look(WALL + 50_000, 0), ClockView::default());
        clock.hear(3, WALL, 0);
        assert_eq!(clock.look(WALL + 50_000, 0).now_ms(WALL + 50_000, 0), WALL + 1_000);
        assert_eq!(clock.look(WALL + 50_000, FRESH_MS + 1), ClockView::default());
        clock.set_peers(&[2]);
        assert_eq!(clock.look(WALL + 50_000, 0), ClockView::default());
    }

    #[test]
    fn a_late_frame_does_not_make_a_peer_look_slow() {
        let mut clock = ClusterClock::new(1_000);
        right(&mut clock, 0);
        // Sent at 100, here at 4,000.
        clock.hear(2, WALL + 100, 4_000);
        clock.hear(3, WALL + 100, 4_000);
        assert_eq!(clock.look(WALL + 4_000, 4_000).skew_ms, 0);
        assert_eq!(clock.peers(WALL + 4_000, 4_000).collect::<Vec<_>>(), [(2, 0), (3, 0)]);
    }

    #[test]
    fn a_peer_that_was_set_back_is_believed_after_two_windows() {
        let mut clock = ClusterClock::new(1_000);
        right(&mut clock, 0);
        for mono in [1_000, 6_000, 12_000] {
            clock.hear(2, WALL + mono - 500, mono);
        }
        assert_eq!(clock.peers(WALL + 12_000, 12_000).find(|(node, _)| *node == 2), Some((2, -500)));
    }

    #[test]
    fn being_off_has_hysteresis() {
        let mut clock = ClusterClock::new(1_000);
        right(&mut clock, 0);
        let off = [900_u64, 1_001, 700, 501, 500, 900].map(|error| clock.look(WALL + error, 0).is_off);
        assert_eq!(off, [false, true, true, true, false, false]);
    }
}
