//! Room on disks, as the simulator runs it: a mirror of `node/src/space.rs` and of the admission in `node/src/edge/ingest.rs` around the same
//! gate; and what must be true of it:
//!  - I12 a node that has had time to see that its disk is nearly full takes no new message; everything else goes on, and
//!    submits do, too, when there is room again (I8).
use super::node::VOLUME_BYTES;
use super::plant::Plant;
use super::world::{Event, World};
use carillon_core::space::{DiskSpace, NearFull};

/// Between two looks at the volume.
pub const LOOK_EVERY_MS: u64 = 500;

impl World {
    pub fn look_at_space(&mut self, node: usize) {
        let epoch = self.nodes[node].epoch;
        let pause = self.true_ms(node, LOOK_EVERY_MS).max(1);
        self.at(pause, Event::Space { node, epoch });
        let forever = self.planted(Plant::FullForEver);
        let at = &mut self.nodes[node];
        let before = at.gate.near_full();
        let seen = DiskSpace { total_bytes: VOLUME_BYTES, free_bytes: at.free_bytes };
        let near_full = (before && forever) || at.gate.update(seen);
        let members: Vec<u64> = at.meta.present().map(|n| n.node_id).filter(|id| *id != at.id).collect();
        if !members.is_empty() {
            at.space.set_members(at.id, &members);
            at.clocks.set_peers(&members);
        }
        let id = at.id;
        if before != near_full {
            self.note(&[15, id, near_full.into()], || format!("space  n{id} nearly full: {near_full}"));
            self.trace.count(if near_full { "disk_nearly_full" } else { "disk_has_room_again" });
        }
    }

    /// Whether this node refuses new messages now.
    pub fn refuses_for_space(&mut self, node: usize) -> bool {
        let mono_ms = self.mono_ms(node);
        let at = &self.nodes[node];
        let refusal = at.space.refusal(at.gate.near_full(), mono_ms);
        let refusal = refusal.filter(|_| !self.planted(Plant::SpaceIgnored));
        match refusal {
            None => {
                self.judge_admission(node);
                false
            }
            Some(why) => {
                self.trace.count(match why {
                    NearFull::Here => "refused_by_own_disk",
                    NearFull::Majority => "refused_by_disks_of_others",
                });
                true
            }
        }
    }

    /// I12.
    pub fn judge_admission(&mut self, node: usize) {
        let at = &self.nodes[node];
        let known = at.full_since_ms.is_some_and(|since| self.now_ms > since + 2 * LOOK_EVERY_MS)
            && self.now_ms > at.started_ms + 2 * LOOK_EVERY_MS
            && self.now_ms > at.frozen_until + 2 * LOOK_EVERY_MS;
        if known {
            self.oracle.fail(format!("I12 node {} accepts a message while its disk is nearly full", at.id));
        }
    }

    /// What a nearly full node does all the same.
    pub fn count_while_full(&mut self, node: usize, what: &'static str) {
        if self.nodes[node].gate.near_full() {
            self.trace.count(what);
        }
    }

    /// Somebody else's files take the room, or give it back.
    pub fn fill(&mut self, node: usize, full: bool) {
        let now_ms = self.now_ms;
        let at = &mut self.nodes[node];
        at.free_bytes = if full { VOLUME_BYTES / 20 } else { VOLUME_BYTES };
        at.full_since_ms = full.then_some(now_ms);
    }
}
