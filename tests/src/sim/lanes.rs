//! The lanes of a node and their shares, as the simulator runs them: a mirror of `node/src/delivery/lanes.rs` and `shares.rs` around
//! the same `LaneGate` and `share_of`.
use super::plant::Plant;
use super::wing::Lane;
use super::world::World;
use carillon_core::meta::share_of;
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
                (Some(share), _) => self.set_lane(node, &record, share, mono),
            }
        }
        self.nodes[node].wing.shares.set(epoch, mono);
        self.wake_driver(node, 0);
    }

    fn share(&self, record: &ShareRecord, node_id: u64, limit: u32) -> u32 {
        match self.plan.plant {
            Some(Plant::WholeShare) => limit,
            // The new share is taken before everybody has given up the old ones.
            Some(Plant::ShareTwice) if record.changing => {
                let next = ShareRecord { senders: record.next.clone(), changing: false, ..record.clone() };
                share_of(&next, node_id, limit)
            }
            _ => share_of(record, node_id, limit),
        }
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
