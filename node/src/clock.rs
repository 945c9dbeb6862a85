//! What time it is on this node: the system's wall clock, bounded by those of the peers (`carillon_core::clock`).
//!
//! One for the process, because every part of a node must agree on the time. Whatever is compared with times of messages or
//! stamped into entries asks [`now_ms`]; [`system_ms`] is for what peers are told, and for nothing else.
use carillon_core::clock::{ClockView, ClusterClock};
use parking_lot::{Mutex, RwLock};
use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

static CLOCK: LazyLock<NodeClock> = LazyLock::new(|| NodeClock {
    start: Instant::now(),
    // Nothing is bounded before `bound` says how.
    known: Mutex::new(ClusterClock::new(u64::MAX)),
    view: RwLock::new(ClockView::default()),
});

struct NodeClock {
    start: Instant,
    known: Mutex<ClusterClock>,
    view: RwLock<ClockView>,
}

impl NodeClock {
    fn mono_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}

/// The wall clock of the system, as it is.
pub fn system_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

pub fn now_ms() -> u64 {
    let view = *CLOCK.view.read();
    view.now_ms(system_ms(), CLOCK.mono_ms())
}

/// From the configuration, once.
pub fn bound(skew_ms_max: u64) {
    *CLOCK.known.lock() = ClusterClock::new(skew_ms_max);
}

/// A frame of a peer says what its clock showed; 0 = it did not say.
pub fn hear(node: u64, wall_ms: u64) {
    if wall_ms > 0 {
        let mono_ms = CLOCK.mono_ms();
        let mut known = CLOCK.known.lock();
        known.hear(node, wall_ms, mono_ms);
        *CLOCK.view.write() = known.look(system_ms(), mono_ms);
    }
}

/// Nodes that left count no more.
pub fn set_peers(peers: &[u64]) {
    CLOCK.known.lock().set_peers(peers);
}

/// As of now: how far this node is off, and the figures of each peer go to the metrics.
pub fn look() -> ClockView {
    let (wall_ms, mono_ms) = (system_ms(), CLOCK.mono_ms());
    let mut known = CLOCK.known.lock();
    let view = known.look(wall_ms, mono_ms);
    for (peer, skew_ms) in known.peers(wall_ms, mono_ms) {
        metrics::gauge!("carillon_clock_skew_ms", "peer" => peer.to_string()).set(skew_ms as f64);
    }
    metrics::gauge!("carillon_clock_off").set(f64::from(u8::from(view.is_off)));
    *CLOCK.view.write() = view;
    view
}
