//! Carries out the timed faults of a plan, and heals everything when the run turns calm.
use super::disk::SECTOR;
use super::node::Cell;
use super::operator::Order;
use super::plan::Fault;
use super::plant::Plant;
use super::world::{Event, World};
use carillon_core::meta::level;
use carillon_proto::internal::{BreakerMode, NodeStatus};
use carillon_proto::replica::node_of;

impl World {
    pub fn fault(&mut self, number: usize) {
        if self.calm || self.is_dark {
            return;
        }
        let fault = self.resolve(self.plan.faults[number].1.clone());
        self.note(&[60, number as u64], || format!("FAULT  #{number} {fault:?}"));
        if let Some(lasts) = self.begin_fault(fault.clone()) {
            self.lasting.insert(number, fault);
            self.at(lasts, Event::FaultEnds(number));
        }
    }

    /// How long it lasts, if it has to be ended.
    fn begin_fault(&mut self, fault: Fault) -> Option<u64> {
        match fault {
            Fault::Cut { links, ms } => {
                for link in links {
                    *self.net.cut.entry(link).or_default() += 1;
                }
                Some(ms)
            }
            Fault::ClientsCut { node, ms } => {
                *self.net.clients_cut.entry(node).or_default() += 1;
                Some(ms)
            }
            Fault::CarrierCut { node, ms } => {
                *self.net.carriers_cut.entry(node).or_default() += 1;
                Some(ms)
            }
            Fault::Throttle { carrier, ms } => {
                self.carriers[carrier].throttled += 1;
                Some(ms)
            }
            Fault::Hang { carrier, ms } => {
                self.carriers[carrier].hanging += 1;
                Some(ms)
            }
            Fault::OpenBreaker { carrier, ms } => {
                self.set_breaker(carrier, BreakerMode::Open);
                Some(ms)
            }
            Fault::PausePractice { practice, ms } => {
                self.pause_by_hand(practice, true);
                Some(ms)
            }
            Fault::SlowDisk { node, factor, ms } => {
                self.nodes[node].slow = factor;
                Some(ms)
            }
            Fault::DiskFull { node, ms } => {
                self.nodes[node].disk.set_full(true);
                Some(ms)
            }
            Fault::NearlyFull { node, ms } => {
                self.fill(node, true);
                Some(ms)
            }
            Fault::MostNearlyFull { but, ms } => {
                for node in (0..self.nodes.len()).filter(|node| *node != but) {
                    self.fill(node, true);
                }
                Some(ms)
            }
            Fault::Drain { node, ms } => {
                let node_id = self.nodes[node].id;
                self.operator.push(Order::Status { node_id, status: NodeStatus::Draining });
                Some(ms)
            }
            at_once => {
                self.strike(at_once);
                None
            }
        }
    }

    /// Those that are over at once, or end by themselves.
    fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Kill { node, down_ms } => self.stop(node, false, down_ms),
            Fault::Power { node, down_ms } => self.stop(node, true, down_ms),
            Fault::PowerAll { down_ms } => {
                (0..self.nodes.len()).for_each(|node| self.stop(node, true, down_ms));
            }
            Fault::Freeze { node, ms } => {
                let until = &mut self.nodes[node].frozen_until;
                *until = (*until).max(self.now_ms + ms);
            }
            Fault::Clog { links, ms } => {
                for link in links {
                    let until = self.net.clogged.entry(link).or_default();
                    *until = (*until).max(self.now_ms + ms);
                }
            }
            Fault::SyncError { node, down_ms } => self.nodes[node].sync_fails = Some(down_ms),
            Fault::Lose { node } => self.lose(node),
            Fault::Rot { node, group, pick } => self.rot(node, group, pick),
            Fault::ClockJump { node, delta_ms } => {
                let now_ms = self.now_ms;
                self.nodes[node].clock.jump(delta_ms, now_ms);
                self.nodes.iter_mut().for_each(|node| node.wing.turns.forget_singles());
            }
            Fault::Transfer { group, to } => self.transfer_somewhere(group, to),
            Fault::Wipe { node, down_ms } => self.wipe(node, down_ms),
            Fault::Join => self.operator.push(Order::Join),
            Fault::Decommission { node } => {
                let node_id = self.nodes[node].id;
                self.operator.push(Order::Status { node_id, status: NodeStatus::Decommissioning });
            }
            Fault::Upgrade { node } => self.upgrade(node),
            Fault::RotLog { node, group, pick } => self.rot_log(node, group, pick),
            Fault::Backup => self.begin_backup(),
            Fault::LoseAll { down_ms } => self.lose_everything(down_ms),
            _ => {}
        }
    }

    /// A plan names founding nodes; by now others may be there instead.
    fn resolve(&self, mut fault: Fault) -> Fault {
        let there: Vec<usize> = self.nodes.iter().filter(|node| !node.lost).map(|node| node.index).collect();
        let real = |node: &mut usize| *node = there[*node % there.len()];
        match &mut fault {
            Fault::Upgrade { .. } | Fault::PowerAll { .. } | Fault::Join => {}
            Fault::Backup | Fault::LoseAll { .. } => {}
            Fault::Cut { links, .. } | Fault::Clog { links, .. } => {
                for (from, to) in links.iter_mut() {
                    real(from);
                    real(to);
                }
                links.retain(|(from, to)| from != to);
            }
            Fault::Kill { node, .. }
            | Fault::Power { node, .. }
            | Fault::Freeze { node, .. }
            | Fault::ClientsCut { node, .. }
            | Fault::CarrierCut { node, .. }
            | Fault::SlowDisk { node, .. }
            | Fault::SyncError { node, .. }
            | Fault::DiskFull { node, .. }
            | Fault::Rot { node, .. }
            | Fault::RotLog { node, .. }
            | Fault::NearlyFull { node, .. }
            | Fault::MostNearlyFull { but: node, .. }
            | Fault::ClockJump { node, .. }
            | Fault::Lose { node }
            | Fault::Wipe { node, .. }
            | Fault::Drain { node, .. }
            | Fault::Decommission { node }
            | Fault::Transfer { to: node, .. } => real(node),
            Fault::Throttle { .. }
            | Fault::Hang { .. }
            | Fault::OpenBreaker { .. }
            | Fault::PausePractice { .. } => {}
        }
        fault
    }

    pub fn fault_ends(&mut self, number: usize) {
        if self.calm {
            return;
        }
        self.note(&[61, number as u64], || format!("HEALED #{number}"));
        let Some(fault) = self.lasting.remove(&number) else { return };
        match fault {
            Fault::Cut { links, .. } => {
                for link in links {
                    *self.net.cut.entry(link).or_default() -= 1;
                }
            }
            Fault::ClientsCut { node, .. } => *self.net.clients_cut.entry(node).or_default() -= 1,
            Fault::CarrierCut { node, .. } => *self.net.carriers_cut.entry(node).or_default() -= 1,
            Fault::Throttle { carrier, .. } => self.carriers[carrier].throttled -= 1,
            Fault::Hang { carrier, .. } => self.carriers[carrier].hanging -= 1,
            Fault::OpenBreaker { carrier, .. } => self.set_breaker(carrier, BreakerMode::Auto),
            Fault::PausePractice { practice, .. } => self.pause_by_hand(practice, false),
            Fault::SlowDisk { node, .. } => self.nodes[node].slow = 1,
            Fault::DiskFull { node, .. } => self.nodes[node].disk.set_full(false),
            Fault::NearlyFull { node, .. } => self.fill(node, false),
            Fault::MostNearlyFull { but, .. } => {
                for node in (0..self.nodes.len()).filter(|node| *node != but) {
                    self.fill(node, false);
                }
            }
            Fault::Drain { node, .. } => {
                let node_id = self.nodes[node].id;
                self.operator.push(Order::Status { node_id, status: NodeStatus::Active });
            }
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

    /// Damage stays within one node at a time: beyond it a partition of three replicas without backups has lost data.
    fn may_damage(&self, node: usize) -> bool {
        let alone = (0..self.nodes.len()).all(|other| other == node || !self.is_damaged(other));
        !self.nodes[node].lost && alone && self.groups().all(|group| self.has_three_voters(group))
    }

    /// While a damaged replica is being replaced there may be two: then there is none to spare.
    fn has_three_voters(&self, group: u32) -> bool {
        self.leader_of(group).is_some_and(|cell| {
            let conf = cell.group.conf_state();
            conf.voters.len() >= 3 && (conf.voters_outgoing.is_empty() || conf.voters_outgoing.len() >= 3)
        })
    }

    pub fn leader_of(&self, group: u32) -> Option<&Cell> {
        let cells = self.nodes.iter().filter(|node| node.up).filter_map(|node| node.cells.get(&group));
        cells.filter(|cell| cell.group.is_leader()).max_by_key(|cell| cell.group.term())
    }

    /// What was lost counts until no group counts on it any more.
    fn is_damaged(&self, node: usize) -> bool {
        let at = &self.nodes[node];
        if at.lost || at.wiped { self.is_counted_on(at.id) } else { at.is_rotten() }
    }

    fn is_counted_on(&self, node_id: u64) -> bool {
        self.groups().any(|group| {
            // Without a leader nothing is known.
            self.leader_of(group).is_none_or(|cell| {
                let conf = cell.group.conf_state();
                let mut voters = conf.voters.iter().chain(&conf.voters_outgoing);
                voters.any(|id| node_of(*id) == node_id)
            })
        })
    }

    /// Below the level of membership nobody can be called dead, so a cluster that loses a node there is stuck.
    fn may_lose(&self, node: usize) -> bool {
        let level = self.newest_view().map_or(0, |view| view.level);
        level >= level::LEVEL_MEMBERSHIP && self.may_damage(node)
    }

    fn lose(&mut self, node: usize) {
        if self.may_lose(node) {
            self.crash(node, true);
            self.nodes[node].lost = true;
            self.trace.count("node_lost");
        }
    }

    fn wipe(&mut self, node: usize, down_ms: u64) {
        if self.may_lose(node) && !self.nodes[node].wiped {
            self.crash(node, true);
            self.nodes[node].wipe();
            self.trace.count("wiped_disk");
            self.at(down_ms, Event::Restart { node });
        }
    }

    /// Of a replica that is on its way in or out nobody would notice damage.
    fn may_rot(&self, node: usize, group: u32) -> bool {
        let votes = self.nodes[node].cells.get(&group).is_some_and(|cell| {
            let conf = cell.group.conf_state();
            conf.voters_outgoing.is_empty() && conf.voters.contains(&cell.group.node_id())
        });
        votes && self.may_damage(node)
    }

    /// A durable entry of a voter rots.
    fn rot_log(&mut self, node: usize, group: u32, pick: u64) {
        if self.planted(Plant::LogRotIgnored) {
            self.nodes[node].disk.do_not_check();
        }
        if self.may_rot(node, group) && self.nodes[node].disk.rot(group, pick) {
            self.trace.count("log_rotten");
        }
    }

    /// A row of a voter rots.
    fn rot(&mut self, node: usize, group: u32, pick: u64) {
        if !self.may_rot(node, group) {
            return;
        }
        if let Some(store) = self.nodes[node].stores.get_mut(&group) {
            store.rot(pick);
        }
    }

    fn transfer_somewhere(&mut self, group: u32, to: usize) {
        let leader = (0..self.nodes.len()).find(|n| self.nodes[*n].up && self.nodes[*n].leads(group));
        let Some(leader) = leader else { return };
        let to = self.nodes[to].id;
        self.transfer(leader, group, to);
    }

    pub fn upgrade(&mut self, node: usize) {
        let at = &mut self.nodes[node];
        if at.level == level::LEVEL {
            return;
        }
        at.level = level::LEVEL;
        if at.up {
            self.trace.count("upgraded_while_running");
            self.crash(node, false);
            self.at(200, Event::Restart { node });
        }
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
        for node in 0..self.nodes.len() {
            let at = &mut self.nodes[node];
            at.slow = 1;
            at.sync_fails = None;
            at.disk.set_full(false);
            at.frozen_until = 0;
            self.fill(node, false);
            let at = &mut self.nodes[node];
            if at.wiped {
                // Its operator finds out that it is not the node that it was.
                self.crash(node, false);
                self.nodes[node].lost = true;
            }
            self.restart(node);
            self.upgrade(node);
        }
        for fault in std::mem::take(&mut self.lasting).into_values() {
            if let Fault::Drain { node, .. } = fault {
                let node_id = self.nodes[node].id;
                self.operator.push(Order::Status { node_id, status: NodeStatus::Active });
            }
        }
    }
}
