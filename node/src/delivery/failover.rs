//! Failover: messages that wait for a carrier which cannot be used go to another one, if their route has one.
//!
//! One task. Once a second it looks at the carriers whose breaker is open and reads what waits for them in the partitions that this
//! node leads; what a route allows to move is proposed as `Reroute`, at most [`MOVES_MAX`] in a second. Apply refuses it for a message
//! that may have been handed over, so this only has to ask.
//!
//! A carrier that is being tried again (half open) keeps its messages, but not those that it has failed already: without this the one
//! message that comes back first would be the probe each time, and would lose all its attempts to a carrier that stays broken.
use super::agreement;
use super::health::Health;
use super::lanes::LaneTable;
use super::leases::MonoClock;
use crate::clock::now_ms as clock_ms;
use crate::engine::NodeHandle;
use bytes::Bytes;
use carillon_core::meta::{MetaView, level::LEVEL_DELIVERY, routes};
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
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spare {
    /// Its breaker is open.
    Everything,
    /// It is being tried again: what it has failed before.
    Failed,
}

type Spared = BTreeMap<u32, Spare>;

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
            if view.level < LEVEL_DELIVERY || view.routes.is_empty() || view.is_restoring() {
                continue;
            }
            let mono = self.clock.now();
            let spared: Spared =
                view.carriers.keys().filter_map(|no| Some((*no, self.spare(*no, mono)?))).collect();
            if spared.is_empty() {
                positions.clear();
                continue;
            }
            self.round(&view, &spared, &mut positions).await;
        }
    }

    fn spare(&self, carrier_no: u32, mono: Duration) -> Option<Spare> {
        let look = self.health.breaker(carrier_no, mono);
        look.open.then_some(Spare::Everything).or_else(|| look.half_open.then_some(Spare::Failed))
    }

    async fn round(&self, view: &MetaView, spared: &Spared, positions: &mut Positions) {
        let (handle, spared, mut from) = (self.handle.clone(), spared.clone(), positions.clone());
        let read = tokio::task::spawn_blocking(move || {
            let found = waiting_for(&handle, &spared, &mut from);
            found.map(|found| (found, from))
        });
        let found = match read.await {
            Ok(Ok((found, from))) => {
                *positions = from;
                found
            }
            Ok(Err(error)) => return tracing::error!(%error, "what waits for a failed carrier is unreadable"),
            Err(_) => return,
        };
        let mono = self.clock.now();
        let mut moves: BTreeMap<u32, Vec<(u32, u32, Bytes)>> = BTreeMap::new();
        for Waits { partition, id, carrier_no, route_no, class } in found {
            let Some(route) = view.routes.get(&route_no) else { continue };
            let covered = |no: u32| self.lanes.get(no).is_some_and(|lane| agreement::covers(&lane, class));
            let usable = |no: u32| {
                self.health.usable(&self.lanes, no, mono) && covered(no) && self.spare(no, mono).is_none()
            };
            let Some(to) = routes::choose(view, route, &id, usable).filter(|to| *to != carrier_no) else {
                continue;
            };
            let reroute = Reroute {
                message_id: id.to_bytes(),
                from_carrier_no: carrier_no,
                to_carrier_no: to,
                // Its time stays: it may be that of its schedule or of the recipient's hours.
                due_ms: 0,
            };
            let command = Command { kind: Some(Kind::Reroute(reroute)) }.encode_to_vec().into();
            moves.entry(partition).or_default().push((carrier_no, to, command));
        }
        for (partition, list) in moves {
            for chunk in list.chunks(PROPOSAL_MAX) {
                let commands = chunk.iter().map(|(_, _, command)| command.clone()).collect();
                let Ok(results) = self.handle.propose(partition, commands).await else { break };
                for ((from, to, _), result) in chunk.iter().zip(results) {
                    if result == CommandResult::Done {
                        count(view, *from, *to);
                    }
                }
            }
        }
    }
}

fn count(view: &MetaView, from: u32, to: u32) {
    let name = |carrier_no: u32| view.carriers.get(&carrier_no).map(|c| c.name.clone()).unwrap_or_default();
    metrics::counter!("carillon_rerouted_total", "from" => name(from), "to" => name(to)).increment(1);
}

/// A message that waits for a carrier that cannot be used.
struct Waits {
    partition: u32,
    id: MessageId,
    carrier_no: u32,
    route_no: u32,
    class: i32,
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
                    let Some(spare) = spared.get(&entry.carrier_no) else { continue };
                    let Some((_, status)) = query::message(&*tables, &entry.message_id)? else { continue };
                    let failed = status.attempts.last().is_some_and(|a| a.carrier_no == entry.carrier_no);
                    if status.route_no > 0 && (failed || *spare == Spare::Everything) {
                        found.push(Waits {
                            partition,
                            id: entry.message_id,
                            carrier_no: entry.carrier_no,
                            route_no: status.route_no,
                            class: status.class,
                        });
                    }
                }
            }
        }
    }
    Ok(found)
}
