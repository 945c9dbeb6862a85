//! The lanes of a node and their shares, as the simulator runs them: a mirror of `node/src/delivery/lanes.rs` and `shares.rs` around
//! the same `LaneGate` and `share_of`.
use super::node::Asker;
use super::plant::Plant;
use super::wing::{Lane, PeerCall};
use super::world::World;
use carillon_core::meta::{level, share_of};
use carillon_delivery::hours::Stamps;
use carillon_delivery::{GateSettings, LaneConfig, LaneGate};
use carillon_proto::internal::{CarrierRecord, ShareRecord};
use carillon_proto::public::Outcome;
use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;

/// The widest window of a limit (1 s), and what a gate and the way to the carrier may add to it.
const REST: Duration = Duration::from_millis(1_100);

/// Which change of the shares this node keeps to: an epoch counts when every gate has kept to it for [`REST`].
#[derive(Debug, Default)]
pub struct ShareKeeper {
    epoch: u64,
    resting: Option<(u64, Duration)>,
}

impl ShareKeeper {
    fn set(&mut self, epoch: u64, mono: Duration) {
        self.epoch = self.kept(mono);
        if self.epoch >= self.resting.map_or(0, |(resting, _)| resting) {
            self.resting = None;
        }
        if epoch > self.epoch && self.resting.is_none_or(|(resting, _)| epoch > resting) {
            self.resting = Some((epoch, mono));
        }
    }

    pub fn kept(&self, mono: Duration) -> u64 {
        match self.resting {
            Some((epoch, since)) if mono.saturating_sub(since) >= REST => epoch,
            _ => self.epoch,
        }
    }
}

impl World {
    /// Makes the lanes and their shares equal to the meta group; a carrier without a share here has no lane.
    pub fn sync_lanes(&mut self, node: usize) {
        if !self.is_fresh(node) {
            return;
        }
        let mono = self.mono(node);
        let (id, epoch) = (self.nodes[node].id, self.nodes[node].meta.shares.epoch);
        let carriers: Vec<CarrierRecord> = self.nodes[node].meta.carriers.values().cloned().collect();
        for record in carriers {
            let share = self.share(&self.nodes[node].meta.shares, id, record.segments_per_second);
            let known = self.nodes[node].wing.lanes.get(&record.carrier_no).map(|lane| lane.share);
            match (NonZeroU32::new(share), known) {
                (None, None) => {}
                (None, Some(_)) => self.close_lane(node, record.carrier_no),
                (Some(share), Some(known)) if share.get() == known => {}
                // It says that it has given up what the others get, and keeps it.
                (Some(share), Some(known)) if self.planted(Plant::ShareTwice) && share.get() < known => {}
                (Some(share), _) => self.set_lane(node, &record, share, mono),
            }
        }
        self.nodes[node].wing.shares.set(epoch, mono);
        let meta = &self.nodes[node].meta;
        let stamps = match meta.level >= level::LEVEL_DELIVERY {
            true => self.book.stamps(meta.practices.values()),
            false => Stamps::default(),
        };
        self.nodes[node].wing.scheduler.set_hours(stamps);
        self.wake_driver(node, 0);
    }

    fn is_fresh(&mut self, node: usize) -> bool {
        let at = &mut self.nodes[node];
        let applied = at.cells.get(&0).map_or(0, |cell| cell.group.applied_index());
        at.wing.fresh |= at.wing.fresh_from.is_some_and(|index| applied >= index);
        at.wing.fresh
    }

    /// Asks the leader of the meta group how far it is, until it knows.
    pub fn freshen(&mut self, node: usize) {
        if self.nodes[node].wing.fresh {
            return;
        }
        if self.nodes[node].wing.fresh_from.is_some() {
            return self.sync_lanes(node);
        }
        let (leader, epoch) = (self.nodes[node].leader_hint(0) as usize, self.nodes[node].epoch);
        match leader {
            0 => {}
            leader if leader - 1 == node => self.serve_confirm(node, node, epoch),
            leader => self.peer(node, leader - 1, PeerCall::Confirm { epoch }),
        }
    }

    /// The leader's side of it.
    pub fn serve_confirm(&mut self, node: usize, from: usize, epoch: u64) {
        let Some(cell) = self.nodes[node].cells.get_mut(&0) else { return };
        let ctx = 3 << 62 | (from as u64) << 32 | epoch;
        if cell.group.read_index(ctx).is_ok() {
            cell.reads_asked.push((ctx, Asker::Confirm { from, epoch }));
            self.mark(node, 0);
        }
    }

    pub fn serve_confirmed(&mut self, node: usize, from: usize, epoch: u64) {
        let index = self.nodes[node].cells.get(&0).map_or(0, |cell| cell.group.applied_index());
        match from == node {
            true => self.confirmed_fresh(node, epoch, index),
            false => self.peer(node, from, PeerCall::Confirmed { epoch, index }),
        }
    }

    pub fn confirmed_fresh(&mut self, node: usize, epoch: u64, index: u64) {
        if self.nodes[node].epoch == epoch && self.nodes[node].up {
            self.nodes[node].wing.fresh_from.get_or_insert(index);
            self.sync_lanes(node);
        }
    }

    fn share(&self, record: &ShareRecord, node_id: u64, limit: u32) -> u32 {
        if self.planted(Plant::WholeShare) { limit } else { share_of(record, node_id, limit) }
    }

    fn set_lane(&mut self, node: usize, record: &CarrierRecord, share: NonZeroU32, mono: Duration) {
        let carrier_no = record.carrier_no;
        let settings = record.smpp.clone().unwrap_or_default();
        let wing = &mut self.nodes[node].wing;
        wing.scheduler.set_lane(LaneConfig {
            carrier_no,
            share_segments_per_second: share.get(),
            in_flight_max: settings.binds_per_node * settings.window,
        });
        let fresh = || Lane {
            carrier: carrier_no as usize - 1,
            limit: record.segments_per_second,
            share: share.get(),
            gate: LaneGate::new(share, GateSettings::default(), mono),
            queue: VecDeque::new(),
            wake: false,
        };
        let lane = wing.lanes.entry(carrier_no).or_insert_with(fresh);
        if lane.share != share.get() {
            lane.share = share.get();
            lane.gate.set_share(share, mono);
        }
        self.try_gate(node, carrier_no);
    }

    /// Who waits for its gate is told that nothing left.
    fn close_lane(&mut self, node: usize, carrier_no: u32) {
        let wing = &mut self.nodes[node].wing;
        let Some(lane) = wing.lanes.remove(&carrier_no) else { return };
        wing.scheduler.remove_lane(carrier_no);
        self.trace.count("lane_closed");
        for send_no in lane.queue {
            self.refused_part(node, send_no, Outcome::NotSent, "gate_closed", 0);
        }
    }
}
