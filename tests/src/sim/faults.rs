//! Carries out the timed faults of a plan, and heals everything when the run turns calm.
use super::disk::SECTOR;
use super::plan::Fault;
use super::plant::Plant;
use super::world::{Event, World};

impl World {
    pub fn fault(&mut self, number: usize) {
        if self.calm {
            return;
        }
        let fault = self.plan.faults[number].1.clone();
        self.note(&[60, number as u64], || format!("FAULT  #{number} {fault:?}"));
        let lasts = match fault {
            Fault::Kill { node, down_ms } => return self.stop(node, false, down_ms),
            Fault::Power { node, down_ms } => return self.stop(node, true, down_ms),
            Fault::PowerAll { down_ms } => {
                return (0..self.plan.nodes).for_each(|node| self.stop(node, true, down_ms));
            }
            Fault::Freeze { node, ms } => {
                self.nodes[node].frozen_until = self.now_ms + ms;
                return;
            }
            Fault::Cut { links, ms } => {
                for link in links {
                    *self.net.cut.entry(link).or_default() += 1;
                }
                ms
            }
            Fault::Clog { links, ms } => {
                for link in links {
                    let until = self.net.clogged.entry(link).or_default();
                    *until = (*until).max(self.now_ms + ms);
                }
                return;
            }
            Fault::ClientsCut { node, ms } => {
                *self.net.clients_cut.entry(node).or_default() += 1;
                ms
            }
            Fault::CarrierCut { node, ms } => {
                *self.net.carriers_cut.entry(node).or_default() += 1;
                ms
            }
            Fault::Throttle { carrier, ms } => {
                self.carriers[carrier].throttled += 1;
                ms
            }
            Fault::Hang { carrier, ms } => {
                self.carriers[carrier].hanging += 1;
                ms
            }
            Fault::SlowDisk { node, factor, ms } => {
                self.nodes[node].slow = factor;
                ms
            }
            Fault::SyncError { node, down_ms } => {
                self.nodes[node].sync_fails = Some(down_ms);
                return;
            }
            Fault::DiskFull { node, ms } => {
                self.nodes[node].disk.set_full(true);
                ms
            }
            Fault::Rot { node, group, pick } => return self.rot(node, group, pick),
            Fault::ClockJump { node, delta_ms } => {
                let now_ms = self.now_ms;
                return self.nodes[node].clock.jump(delta_ms, now_ms);
            }
            Fault::Transfer { group, to } => return self.transfer(group, to),
        };
        self.at(lasts, Event::FaultEnds(number));
    }

    pub fn fault_ends(&mut self, number: usize) {
        if self.calm {
            return;
        }
        self.note(&[61, number as u64], || format!("HEALED #{number}"));
        match self.plan.faults[number].1.clone() {
            Fault::Cut { links, .. } => {
                for link in links {
                    *self.net.cut.entry(link).or_default() -= 1;
                }
            }
            Fault::ClientsCut { node, .. } => *self.net.clients_cut.entry(node).or_default() -= 1,
            Fault::CarrierCut { node, .. } => *self.net.carriers_cut.entry(node).or_default() -= 1,
            Fault::Throttle { carrier, .. } => self.carriers[carrier].throttled -= 1,
            Fault::Hang { carrier, .. } => self.carriers[carrier].hanging -= 1,
            Fault::SlowDisk { node, .. } => self.nodes[node].slow = 1,
            Fault::DiskFull { node, .. } => self.nodes[node].disk.set_full(false),
            _ => {}
        }
    }

    fn stop(&mut self, node: usize, power: bool, down_ms: u64) {
        self.crash(node, power);
        self.at(down_ms, Event::Restart { node });
    }

    /// The process is gone. With the power go the writes that were not synced, but for a part that had reached the disk.
    pub fn crash(&mut self, node: usize, power: bool) {
        if !self.nodes[node].up {
            return;
        }
        let unsynced = self.nodes[node].disk.unsynced_bytes() as u64;
        let (offset, sectors) = (self.rng.crash.below(SECTOR), self.rng.crash.below(unsynced / SECTOR + 3));
        let bytes = match power {
            true => (sectors * SECTOR).saturating_sub(offset) as usize,
            false => usize::MAX,
        };
        let tail = self.nodes[node].disk.crash(bytes);
        if tail.torn {
            self.trace.count("torn_tail");
        }
        if tail.lost > 0 {
            self.trace.count("unsynced_writes_lost");
        }
        let ahead = self.planted(Plant::AppliedAheadOfFlush);
        for store in self.nodes[node].stores.values_mut() {
            // A memtable may have been flushed without being asked.
            let keep =
                if self.rng.crash.chance(500) { 0 } else { self.rng.crash.below(store.pending() as u64 + 1) };
            match ahead {
                true => store.crash_with_applied_ahead(),
                false => store.crash(keep as usize),
            }
        }
        let id = self.nodes[node].id;
        self.note(&[62, id, tail.kept as u64, tail.lost as u64], || {
            format!(
                "crash  n{id} {} unsynced writes kept, {} lost{}",
                tail.kept,
                tail.lost,
                if tail.torn { ", torn" } else { "" }
            )
        });
        self.nodes[node].forget();
        self.nodes[node].frozen_until = 0;
        // A sync error belongs to the process that meets it.
        self.nodes[node].sync_fails = None;
    }

    /// Damage stays within a minority: beyond it a cluster without backups has lost data.
    fn rot(&mut self, node: usize, group: u32, pick: u64) {
        let others = self.nodes.iter().filter(|other| other.index != node && other.is_damaged()).count();
        if others >= self.plan.minority() {
            return;
        }
        if let Some(store) = self.nodes[node].stores.get_mut(&group) {
            store.rot(pick);
        }
    }

    fn transfer(&mut self, group: u32, to: usize) {
        let leader = (0..self.plan.nodes).find(|n| self.nodes[*n].up && self.nodes[*n].leads(group));
        let Some(leader) = leader else { return };
        let to_id = self.nodes[to].id;
        if let Some(cell) = self.nodes[leader].cells.get_mut(&group) {
            // Refused while it is not the leader any more or hands over already.
            drop(cell.group.transfer_leader(to_id));
        }
        self.pump(leader, group);
    }

    /// No more trouble: every link, disk and carrier works, every node that can be started runs.
    pub fn heal(&mut self) {
        self.calm = true;
        self.note(&[63], || "CALM".to_owned());
        self.net = super::world::Net::default();
        for carrier in &mut self.carriers {
            carrier.throttled = 0;
            carrier.hanging = 0;
        }
        for node in 0..self.plan.nodes {
            let at = &mut self.nodes[node];
            at.slow = 1;
            at.sync_fails = None;
            at.disk.set_full(false);
            at.frozen_until = 0;
            self.restart(node);
        }
    }
}
