//! Failover: messages that wait for a carrier or a sender which cannot be used go to another one, if their route has one. To another
//! sender of the same carrier they go without a route, too.
//!
//! One task. Once a second it looks at the carriers whose breaker is open, and at the senders that are paused, gone or refused by their
//! carrier, and reads what waits for them in the partitions that this node leads; what may move is proposed as `Reroute`, at most
//! [`MOVES_MAX`] in a second. Apply refuses it for a message that may have been handed over, so this only has to ask.
//!
//! A carrier or sender that is being tried again (half open) keeps its messages, but not those that it has failed already: without this the one
//! message that comes back first would be the probe each time, and would lose all its attempts to a carrier that stays broken.
use super::agreement;
use super::health::Health;
use super::lanes::LaneTable;
use super::leases::MonoClock;
use crate::clock::now_ms as clock_ms;
use crate::engine::NodeHandle;
use bytes::Bytes;
use carillon_core::meta::routes::{self, Way};
use carillon_core::meta::{MetaView, level::LEVEL_DELIVERY, senders};
use carillon_core::{CommandResult, query};
use carillon_delivery::PRIORITIES;
use carillon_proto::MessageId;
use carillon_proto::internal::{Command, Reroute, command::Kind};
use prost::Message as _;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Messages moved in one round.
const MOVES_MAX: usize = 2_048;
/// Rows read in one round; the next one goes on where it ended.
const ROWS_MAX: usize = 20_000;
const PAGE: usize = 1_024;
const PROPOSAL_MAX: usize = 256;

pub struct Failover {
    pub handle: NodeHandle,
    pub lanes: LaneTable,
    pub health: Health,
    pub clock: MonoClock,
}

/// What of a carrier's messages goes elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Spare {
    /// It cannot be used.
    Everything,
    /// It is being tried again: what it has failed before.
    Failed,
}

/// What cannot be used at the moment.
#[derive(Debug, Clone, Default)]
struct Spared {
    carriers: BTreeMap<u32, Spare>,
    /// Of carriers that have senders: all that can be used, and those that are tried again.
    senders: BTreeMap<u32, BTreeMap<u32, Option<Spare>>>,
}

impl Spared {
    fn is_empty(&self) -> bool {
        self.carriers.is_empty() && self.senders.values().flat_map(BTreeMap::values).all(Option::is_none)
    }

    /// Why a message that waits for this carrier and sender shall go elsewhere; a sender that is not known any more cannot be used.
    fn of(&self, carrier_no: u32, sender_no: u32) -> Option<Spare> {
        let of_sender = || match self.senders.get(&carrier_no).map(|senders| senders.get(&sender_no)) {
            None => None,
            Some(None) => Some(Spare::Everything),
            Some(Some(spare)) => *spare,
        };
        let spare = [self.carriers.get(&carrier_no).copied(), of_sender()];
        spare.into_iter().flatten().min()
    }
}

/// Where the reading of a partition's priority goes on.
type Positions = BTreeMap<(u32, u8), query::DuePlace>;

impl Failover {
    pub async fn run(self, mut stopped: watch::Receiver<bool>) {
        let mut ticker = tokio::time::interval(LOOK_EVERY);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut positions = Positions::new();
        loop {
            tokio::select! {
                _ = ticker.tick() => {}
                _ = stopped.changed() => return,
            }
            let view = self.handle.meta();
            let nowhere = view.routes.is_empty() && view.senders.is_empty();
            if view.level < LEVEL_DELIVERY || nowhere || view.is_restoring() {
                continue;
            }
            let spared = self.spared(&view);
            if spared.is_empty() {
                positions.clear();
                continue;
            }
            self.round(&view, &spared, &mut positions).await;
        }
    }

    fn spared(&self, view: &MetaView) -> Spared {
        let mono = self.clock.now();
        let carriers = view.carriers.keys().filter_map(|no| Some((*no, self.spare(*no, mono)?)));
        let mut spared = Spared { carriers: carriers.collect(), senders: BTreeMap::new() };
        for ((carrier_no, sender_no), sender) in &view.senders {
            let by_breaker = match self.health.sender_attempts_max(*sender_no, mono) {
                None => None,
                Some(0) => Some(Spare::Everything),
                Some(_) => Some(Spare::Failed),
            };
            let spare = if sender.paused { Some(Spare::Everything) } else { by_breaker };
            spared.senders.entry(*carrier_no).or_default().insert(*sender_no, spare);
        }
        spared
    }

    fn spare(&self, carrier_no: u32, mono: Duration) -> Option<Spare> {
        let look = self.health.breaker(carrier_no, mono);
        look.open.then_some(Spare::Everything).or_else(|| look.half_open.then_some(Spare::Failed))
    }

    async fn round(&self, view: &MetaView, spared: &Spared, positions: &mut Positions) {
        let (handle, spared, mut from) = (self.handle.clone(), spared.clone(), positions.clone());
        let read = tokio::task::spawn_blocking(move || {
            let found = waiting_for(&handle, &spared, &mut from);
            found.map(|found| (found, from, spared))
        });
        let (found, spared) = match read.await {
            Ok(Ok((found, from, spared))) => {
                *positions = from;
                (found, spared)
            }
            Ok(Err(error)) => return tracing::error!(%error, "what waits for a failed carrier is unreadable"),
            Err(_) => return,
        };
        let mut moves: BTreeMap<u32, Vec<(Way, Way, Bytes)>> = BTreeMap::new();
        for waits in found {
            let from = waits.way;
            let Some(to) = self.better(view, &spared, &waits).filter(|to| *to != from) else { continue };
            let kind = Some(Kind::Reroute(move_to(&waits, to)));
            let command = Command { kind }.encode_to_vec().into();
            moves.entry(waits.partition).or_default().push((from, to, command));
        }
        for (partition, list) in moves {
            for chunk in list.chunks(PROPOSAL_MAX) {
                let commands = chunk.iter().map(|(_, _, command)| command.clone()).collect();
                let Ok(results) = self.handle.propose(partition, commands).await else { break };
                for ((from, to, _), result) in chunk.iter().zip(results) {
                    if result == CommandResult::Done {
                        count(view, from.carrier_no, to.carrier_no);
                    }
                }
            }
        }
    }
}

fn move_to(waits: &Waits, to: Way) -> Reroute {
    Reroute {
        message_id: waits.id.to_bytes(),
        from_carrier_no: waits.way.carrier_no,
        to_carrier_no: to.carrier_no,
        from_sender_no: waits.way.sender_no,
        to_sender_no: to.sender_no,
        // Its time stays: it may be that of its schedule or of the recipient's hours.
        due_ms: 0,
    }
}

impl Failover {
    /// Where a message can go: by its route, or to another sender of its carrier. What it may reach is also what may carry its class.
    fn better(&self, view: &MetaView, spared: &Spared, waits: &Waits) -> Option<Way> {
        let mono = self.clock.now();
        let covered = |no: u32| self.lanes.get(no).is_some_and(|lane| agreement::covers(&lane, waits.class));
        let usable = |way: Way| {
            let healthy = self.health.usable(&self.lanes, way.carrier_no, mono) && covered(way.carrier_no);
            healthy && spared.of(way.carrier_no, way.sender_no).is_none() && way.can_be_used(view)
        };
        let carrier_no = waits.way.carrier_no;
        let own = || {
            let way = |sender_no| Way { carrier_no, sender_no };
            senders::of_pool(view, carrier_no, &waits.spread, |no| usable(way(no))).map(way)
        };
        match view.routes.get(&waits.route_no) {
            Some(route) => routes::choose(view, route, &waits.spread, usable),
            None => own(),
        }
    }
}

fn count(view: &MetaView, from: u32, to: u32) {
    let name = |carrier_no: u32| view.carriers.get(&carrier_no).map(|c| c.name.clone()).unwrap_or_default();
    metrics::counter!("carillon_rerouted_total", "from" => name(from), "to" => name(to)).increment(1);
}

/// A message that waits for a carrier or sender that cannot be used.
struct Waits {
    partition: u32,
    id: MessageId,
    way: Way,
    route_no: u32,
    class: i32,
    /// What names its recipient.
    spread: Bytes,
}

fn waiting_for(handle: &NodeHandle, spared: &Spared, from: &mut Positions) -> anyhow::Result<Vec<Waits>> {
    let (mut found, mut rows_left) = (Vec::new(), ROWS_MAX);
    // Due before the round after the next one, so that nothing is begun on a carrier that was given up.
    let until_ms = clock_ms() + 2 * LOOK_EVERY.as_millis() as u64;
    for partition in (1..=handle.partitions()).filter(|p| handle.is_leader(*p)) {
        let tables = handle.local_tables(partition)?;
        for priority in PRIORITIES {
            loop {
                if rows_left == 0 || found.len() >= MOVES_MAX {
                    return Ok(found);
                }
                let after = from.get(&(partition, priority)).copied();
                let page = query::due_sweep(&*tables, priority, after, until_ms, PAGE.min(rows_left))?;
                rows_left -= page.len();
                match page.last() {
                    Some(last) => drop(from.insert((partition, priority), query::due_place(last))),
                    None => {
                        from.remove(&(partition, priority));
                        break;
                    }
                }
                for entry in &page {
                    let Some(spare) = spared.of(entry.carrier_no, entry.sender_no) else { continue };
                    let Some((payload, status)) = query::message(&*tables, &entry.message_id)? else {
                        continue;
                    };
                    let way = Way { carrier_no: entry.carrier_no, sender_no: entry.sender_no };
                    let failed = status
                        .attempts
                        .last()
                        .is_some_and(|a| a.carrier_no == way.carrier_no && a.sender_no == way.sender_no);
                    // Without a route only another sender will do.
                    let may_move = status.route_no > 0 || spared.senders.contains_key(&way.carrier_no);
                    if may_move && (failed || spare == Spare::Everything) {
                        found.push(Waits {
                            partition,
                            id: entry.message_id,
                            way,
                            route_no: status.route_no,
                            class: status.class,
                            spread: payload.accept.map(|accept| accept.recipient_index).unwrap_or_default(),
                        });
                    }
                }
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::Slot;

    #[test]
    fn a_message_that_is_moved_keeps_its_time() {
        let way = |carrier_no, sender_no| Way { carrier_no, sender_no };
        let waits = Waits {
            partition: 1,
            id: MessageId::new(1, Slot::new(9).unwrap(), 1),
            way: way(1, 4),
            route_no: 2,
            class: 2,
            spread: Bytes::new(),
        };
        let moved = move_to(&waits, way(2, 0));
        assert_eq!((moved.from_carrier_no, moved.from_sender_no), (1, 4));
        assert_eq!((moved.to_carrier_no, moved.to_sender_no), (2, 0));
        assert_eq!(moved.due_ms, 0, "now would send it before its schedule, or at night");
    }

    #[test]
    fn what_is_spared_is_a_carrier_or_one_of_its_senders() {
        let everything = Some(Spare::Everything);
        let mut spared = Spared::default();
        assert!(spared.is_empty());
        spared.carriers.insert(1, Spare::Failed);
        let of_two = BTreeMap::from([(4, None), (5, everything), (6, Some(Spare::Failed))]);
        spared.senders.insert(2, of_two);
        assert!(!spared.is_empty());
        assert_eq!(spared.of(1, 0), Some(Spare::Failed));
        assert_eq!(spared.of(3, 0), None);
        assert_eq!((spared.of(2, 4), spared.of(2, 5)), (None, everything));
        assert_eq!(spared.of(2, 6), Some(Spare::Failed));
        assert_eq!(spared.of(2, 0), everything, "from before the carrier had senders");
        assert_eq!(spared.of(2, 9), everything, "one that is gone");
        spared.carriers.insert(2, Spare::Everything);
        assert_eq!(spared.of(2, 6), everything, "the stronger reason");
    }
}
