//! Turns what the nodes say into what the planner looks at: who answers, for how long each leader has led, how much each group
//! does.
//!
//! Times are milliseconds of the observer's monotonic clock, from wherever it begins. Bounded by nodes and groups.
use super::planner::{Conf, GroupSeen, NodeSeen, Progress, Seen};
use carillon_proto::internal::{LedGroup, SeeResponse};
use std::collections::BTreeMap;

/// A node that has not answered for this long counts as down.
const ALIVE_MS: u64 = 2_000;
/// Weight of the newest measurement of the load, in percent: half of it is forgotten in about ten seconds.
const NEWEST_PERCENT: u64 = 4;

/// Memory of one term as steward.
#[derive(Debug)]
pub struct Gatherer {
    started_ms: u64,
    heard: BTreeMap<u64, (u64, SeeResponse)>,
    leaders: BTreeMap<u32, Led>,
}

#[derive(Debug)]
struct Led {
    replica_id: u64,
    term: u64,
    since_ms: u64,
    measured_ms: u64,
    last_index: u64,
    /// Entries in a thousand seconds.
    load: u64,
}

impl Gatherer {
    pub fn new(now_ms: u64) -> Self {
        Self { started_ms: now_ms, heard: BTreeMap::new(), leaders: BTreeMap::new() }
    }

    pub fn hear(&mut self, node_id: u64, answer: SeeResponse, now_ms: u64) {
        self.heard.insert(node_id, (now_ms, answer));
    }

    /// Everything about these nodes. A node that never answered has been silent since we began to ask.
    pub fn seen(&mut self, nodes: impl Iterator<Item = u64>, now_ms: u64) -> Seen {
        let mut seen = Seen::default();
        let mut led: BTreeMap<u32, (u64, LedGroup)> = BTreeMap::new();
        for node_id in nodes {
            let Some((at_ms, answer)) = self.heard.get(&node_id) else {
                let silent_ms = now_ms.saturating_sub(self.started_ms);
                seen.nodes.insert(node_id, NodeSeen { silent_ms, ..Default::default() });
                continue;
            };
            let silent_ms = now_ms.saturating_sub(*at_ms);
            let alive = silent_ms < ALIVE_MS;
            let node = NodeSeen {
                alive,
                silent_ms,
                stopping: answer.stopping,
                meta_applied: answer.meta_applied,
                shares_epoch: answer.shares_epoch,
                clock_off: answer.clock_off,
                replicas: answer.replicas.iter().map(|r| (r.group, r.replica_id)).collect(),
                blocked: answer.replicas.iter().filter(|r| !r.blocked.is_empty()).map(|r| r.group).collect(),
            };
            seen.nodes.insert(node_id, node);
            for replica in answer.replicas.iter().filter(|r| alive && r.blocked.is_empty()) {
                let Some(group) = &replica.led else { continue };
                // Of two that say that they lead, the one of the later term is right.
                if led.get(&replica.group).is_none_or(|(_, known)| known.term < group.term) {
                    led.insert(replica.group, (replica.replica_id, group.clone()));
                }
            }
        }
        for (number, (replica_id, group)) in led {
            let known = self.measure(number, replica_id, &group, now_ms);
            seen.groups.insert(number, group_seen(replica_id, group, known));
        }
        seen
    }

    /// For how long it has led in ms, and its load.
    fn measure(&mut self, number: u32, replica_id: u64, group: &LedGroup, now_ms: u64) -> (u64, u64) {
        let led = self.leaders.entry(number).or_insert_with(|| Led {
            replica_id,
            term: group.term,
            since_ms: now_ms,
            measured_ms: now_ms,
            last_index: group.last_index,
            load: 0,
        });
        if (led.replica_id, led.term) != (replica_id, group.term) {
            (led.replica_id, led.term, led.since_ms) = (replica_id, group.term, now_ms);
        }
        let elapsed_ms = now_ms.saturating_sub(led.measured_ms);
        let entries = group.last_index.saturating_sub(led.last_index);
        if let Some(rate) = entries.saturating_mul(1_000_000).checked_div(elapsed_ms) {
            led.load = (led.load * (100 - NEWEST_PERCENT) + rate.min(1 << 40) * NEWEST_PERCENT) / 100;
            (led.measured_ms, led.last_index) = (now_ms, group.last_index);
        }
        (now_ms.saturating_sub(led.since_ms), led.load)
    }
}

fn group_seen(leader: u64, group: LedGroup, (led_ms, load): (u64, u64)) -> GroupSeen {
    let conf = group.conf.unwrap_or_default();
    GroupSeen {
        leader,
        conf: Conf {
            voters: conf.voters.into_iter().collect(),
            outgoing: conf.voters_outgoing.into_iter().collect(),
            learners: conf.learners.into_iter().collect(),
            learners_next: conf.learners_next.into_iter().collect(),
        },
        busy: group.busy,
        last_index: group.last_index,
        progress: group
            .progress
            .into_iter()
            .map(|p| (p.replica_id, Progress { matched: p.matched, active: p.active }))
            .collect(),
        led_ms,
        load,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::internal::HostedReplica;

    fn answer(group: u32, replica_id: u64, term: u64, last_index: u64) -> SeeResponse {
        let led = Some(LedGroup { term, last_index, ..Default::default() });
        SeeResponse {
            replicas: vec![HostedReplica { group, replica_id, led, ..Default::default() }],
            ..Default::default()
        }
    }

    #[test]
    fn the_later_term_leads_and_silence_is_counted_from_the_last_word() {
        let mut gatherer = Gatherer::new(0);
        gatherer.hear(1, answer(7, 1, 5, 10), 0);
        gatherer.hear(2, answer(7, 2, 6, 12), 1_000);
        let seen = gatherer.seen([1, 2, 3].into_iter(), 1_500);
        assert_eq!((seen.groups[&7].leader, seen.groups[&7].led_ms), (2, 0));
        assert_eq!(
            [1, 2, 3].map(|id| (seen.nodes[&id].alive, seen.nodes[&id].silent_ms)),
            [(true, 1_500), (true, 500), (false, 1_500)]
        );
        // Node 2 falls silent: its word no longer counts, and the leader of before has led anew.
        let seen = gatherer.seen([1, 2].into_iter(), 3_500);
        assert!(!seen.nodes[&1].alive && seen.groups.is_empty());
        gatherer.hear(1, answer(7, 1, 7, 20), 3_600);
        gatherer.seen([1, 2].into_iter(), 3_600);
        gatherer.hear(1, answer(7, 1, 7, 20), 4_000);
        assert_eq!(gatherer.seen([1, 2].into_iter(), 4_100).groups[&7].led_ms, 500);
    }

    #[test]
    fn load_is_smoothed_and_an_idle_group_has_none() {
        let mut gatherer = Gatherer::new(0);
        let (mut index, mut loads) = (0, Vec::new());
        for second in 0..200_u64 {
            let now_ms = second * 1_000;
            index += if second < 100 { 50 } else { 0 };
            gatherer.hear(1, answer(1, 1, 1, index), now_ms);
            gatherer.hear(2, answer(2, 2, 1, 9), now_ms);
            let seen = gatherer.seen([1, 2].into_iter(), now_ms);
            assert_eq!(seen.groups[&2].load, 0, "nothing happens");
            loads.push(seen.groups[&1].load);
        }
        assert!((45_000..=50_000).contains(&loads[99]), "{}", loads[99]);
        assert!(loads[20] < loads[50] && loads[110] < loads[100] && loads[199] < 1_000);
    }
}
