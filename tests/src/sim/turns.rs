//! I13: nobody starves and nobody pushes in, counted where it is decided (the scheduler of a node) in segments that are begun, not in
//! time.
//!
//!  - A practice with a single message lets the others of its priority go first only so far: what fair shares and credit allow.
//!  - While a message is ready, less urgent ones begin only as far as ageing allows: one segment in nine.
//!  - A priority whose message has waited for long gets that part, whatever is more urgent.
//!  - Two practices with a long backlog get segments by their weights.
//!
//! Ready is what may begin at once: due, inside its hours by the rules in force (a message that waits again has them computed anew
//! first), not expired, and without an attempt that is not resolved here.
//!
//! Own books, from the changes of table D and the decisions; the scheduler's are not looked at.
use super::client::{TENANT, practice_name};
use super::settings::practice_of;
use super::world::World;
use carillon_core::{DueEntry, ScheduleChange, query};
use carillon_delivery::BeginDecision;
use carillon_proto::MessageId;
use std::collections::BTreeMap;

/// When a message lets others go first, in the simulator.
pub const AGEING_MS: u64 = 5_000;
/// Messages that are useful for no longer than this go on credit.
pub const URGENT_MS: u64 = 3_000;
/// For each practice of weight 1: what credit allows (16 segments) and the longest message, twice, because the single one may be ahead.
const AHEAD: u64 = 2 * (16 + 3);
/// Of so many urgent segments one is of a priority that has waited for long, ...
const AGED_EVERY: u64 = 8;
/// ... give or take what was open before, and a message or two.
const AGED_SLACK: u64 = 2 * AGED_EVERY + 6;
/// A leader reads the rows of its partition first.
const READ_MS: u64 = 2_000;
/// Rows of a backlog.
const BACKLOG: usize = 20;
/// By so many turns one practice may be ahead of another one with a backlog, since both had one.
const PAIR_SLACK: u64 = 2 * (16 + 3) + 2;

/// A message that is ready and the only one of its practice.
#[derive(Debug, Clone, Copy)]
struct Single {
    carrier_no: u32,
    level: u8,
    practice_no: u32,
    due_ms: u64,
    /// It expires or its hours end.
    until_ms: u64,
    /// Segments begun when it became ready, and when it had waited for long: more urgent, as urgent, less urgent.
    from: [u64; 3],
    aged: Option<[u64; 3]>,
}

/// A message that was chosen, until its attempt is resolved here.
#[derive(Debug, Default)]
struct Open {
    /// The row that it was chosen for has left table D, ...
    row_gone: bool,
    /// ... and this one has come.
    row: Option<DueEntry>,
}

/// Of one node; volatile like its scheduler.
#[derive(Debug, Default)]
pub struct Turns {
    /// Segments begun of each carrier and priority.
    begun: BTreeMap<(u32, u8), u64>,
    singles: BTreeMap<(u32, MessageId), Single>,
    open: BTreeMap<(u32, MessageId), Open>,
    /// Since when each partition is led.
    led: BTreeMap<u32, u64>,
    /// What two practices with a backlog have got since both had it, by carrier and priority.
    pairs: BTreeMap<(u32, u8), [u64; 2]>,
}

impl Turns {
    pub fn lead(&mut self, partition: u32, now_ms: u64) {
        self.unlead(partition);
        self.led.insert(partition, now_ms);
    }

    pub fn unlead(&mut self, partition: u32) {
        self.led.remove(&partition);
        self.singles.retain(|(of, _), _| *of != partition);
        self.open.retain(|(of, _), _| *of != partition);
    }

    /// Clocks were set, or other hours are in force: who is ready is not known any more.
    pub fn forget_singles(&mut self) {
        self.singles.clear();
    }

    /// The practice is paused or goes on: nothing follows from how long it waited.
    pub fn forget(&mut self, practice_no: u32) {
        self.singles.retain(|_, single| single.practice_no != practice_no);
    }

    /// Weights have changed.
    pub fn forget_pairs(&mut self) {
        self.pairs.clear();
    }

    fn sums(&self, carrier_no: u32, level: u8) -> [u64; 3] {
        let mut sums = [0; 3];
        for ((_, other), segments) in self.begun.range((carrier_no, 0)..=(carrier_no, u8::MAX)) {
            sums[match other.cmp(&level) {
                std::cmp::Ordering::Less => 0,
                std::cmp::Ordering::Equal => 1,
                std::cmp::Ordering::Greater => 2,
            }] += segments;
        }
        sums
    }

    /// A decision, and who waits on while it is carried out. `most`: segments of a priority that may go before a single message.
    fn decided(&mut self, decided: &BeginDecision, most: u64, now_ms: u64) -> Option<String> {
        let carrier_no = decided.carrier_no;
        let key = (decided.partition, decided.message_id);
        self.singles.remove(&key);
        self.open.insert(key, Open::default());
        // One that is not ready any more is put aside before anything is chosen.
        self.singles.retain(|_, single| (single.due_ms..single.until_ms).contains(&now_ms));
        *self.begun.entry((carrier_no, decided.priority)).or_default() += u64::from(decided.segments.max(1));
        let mut wrong = None;
        let waiting: Vec<(u32, MessageId)> =
            self.singles.iter().filter(|(_, s)| s.carrier_no == carrier_no).map(|(key, _)| *key).collect();
        for key in waiting {
            let single = self.singles[&key];
            let sums = self.sums(carrier_no, single.level);
            let [more, same, less] = [0, 1, 2].map(|n| sums[n] - single.from[n]);
            let (practice_no, level, id) = (single.practice_no, single.level, key.1);
            let text = |what: String| {
                format!("I13 message {id} of practice {practice_no}, priority {level}, waits while {what}")
            };
            if same > most {
                wrong = wrong.or(Some(text(format!("{same} segments of others begin, not {most}"))));
            }
            // Each of up to three less urgent priorities may have aged.
            if less * AGED_EVERY > 3 * (more + same) + AGED_SLACK * AGED_EVERY {
                wrong =
                    wrong.or(Some(text(format!("{less} less urgent segments begin, {more} more urgent"))));
            }
            if now_ms > single.due_ms + AGEING_MS + 50 {
                let from = *self.singles.get_mut(&key)?.aged.get_or_insert(sums);
                let [more, same, _] = [0, 1, 2].map(|n| sums[n] - from[n]);
                if more > (same + 1) * AGED_EVERY + AGED_SLACK * 2 {
                    let what = format!("{more} more urgent segments begin and {same} of its own priority");
                    wrong = wrong.or(Some(text(format!("it has aged: {what}"))));
                }
            }
        }
        wrong
    }
}

impl World {
    /// What became ready or went.
    pub fn follow_turns(&mut self, node: usize, partition: u32, changes: &[ScheduleChange]) {
        for change in changes {
            let turns = &mut self.nodes[node].wing.turns;
            match change {
                ScheduleChange::Gone { message_id, .. } => {
                    turns.singles.remove(&(partition, *message_id));
                    if let Some(open) = turns.open.get_mut(&(partition, *message_id)) {
                        *open = Open { row_gone: true, row: None };
                    }
                }
                ScheduleChange::Due(entry) => {
                    if let Some(open) = turns.open.get_mut(&(partition, entry.message_id)) {
                        open.row = Some(entry.clone());
                    }
                    self.note_single(node, partition, entry);
                }
            }
        }
    }

    /// The attempt of a message is resolved: it was refused, or it has an outcome. Who waits again is ready from now on, unless what was
    /// refused is the row that waits: that is offered again later.
    pub fn resolve_turn(&mut self, node: usize, partition: u32, id: MessageId, refused: bool) {
        let open = self.nodes[node].wing.turns.open.remove(&(partition, id));
        if let Some(Open { row_gone, row: Some(entry) }) = open
            && (row_gone || !refused)
        {
            self.note_single(node, partition, &entry);
        }
    }

    fn note_single(&mut self, node: usize, partition: u32, entry: &DueEntry) {
        let now_ms = self.wall_ms(node);
        let practice = practice_of(&self.nodes[node].meta, entry.practice_no);
        let narrow = self.plan.settings.is_narrow(entry.carrier_no as usize - 1, practice);
        let at = &mut self.nodes[node];
        let turns = &mut at.wing.turns;
        // Another message of the practice may go before the one that waited.
        turns
            .singles
            .retain(|_, single| (single.practice_no, single.level) != (entry.practice_no, entry.priority));
        let known_long = turns.led.get(&partition).is_some_and(|since| since + READ_MS < self.now_ms);
        let free = known_long && !narrow && !self.plan.nights && entry.flow > 0;
        let paused = at.wing.paused.contains(&(entry.practice_no, entry.carrier_no));
        let open = at.wing.turns.open.contains_key(&(partition, entry.message_id));
        let stamp = at.wing.stamps.of(entry.practice_no);
        let hours_known = stamp == 0 || entry.hours_stamp == stamp;
        let closes_ms = if stamp > 0 && entry.open_until_ms > 0 { entry.open_until_ms } else { u64::MAX };
        let until_ms = entry.expires_at_ms.min(closes_ms);
        let ready = hours_known && !open && (entry.due_ms..until_ms).contains(&now_ms);
        if !free || paused || !ready {
            return;
        }
        let Some(store) = at.stores.get(&partition) else { return };
        let flow = (entry.priority, entry.flow);
        let alone = query::due_page(store, flow, None, u64::MAX, 2).is_ok_and(|page| page.entries.len() == 1);
        if alone {
            let from = at.wing.turns.sums(entry.carrier_no, entry.priority);
            let single = Single {
                carrier_no: entry.carrier_no,
                level: entry.priority,
                practice_no: entry.practice_no,
                due_ms: entry.due_ms,
                until_ms,
                from,
                aged: None,
            };
            at.wing.turns.singles.insert((partition, entry.message_id), single);
            self.trace.count("single_message_among_others");
        }
    }

    /// In the order of the scheduler.
    pub fn judge_turns(&mut self, node: usize, list: &[BeginDecision]) {
        let now_ms = self.wall_ms(node);
        for decided in list {
            let at = &mut self.nodes[node];
            let key = (decided.practice_no, decided.carrier_no);
            if at.meta.pauses.get(&key).is_some_and(|pause| pause.paused) {
                let (id, practice_no) = (decided.message_id, decided.practice_no);
                self.oracle.fail(format!("I14 message {id} begins, and practice {practice_no} is paused"));
            }
            let all: u64 = at.meta.practices.values().map(|practice| u64::from(practice.weight.max(1))).sum();
            let turns = &mut at.wing.turns;
            if let Some(text) = turns.decided(decided, AHEAD * all, now_ms) {
                self.oracle.fail(text);
            }
            self.judge_pair(node, decided, now_ms);
        }
    }

    /// Of the two practices with most messages each has a backlog here: they share by weight.
    fn judge_pair(&mut self, node: usize, decided: &BeginDecision, now_ms: u64) {
        let &[first, second] = self.plan.settings.heavy.as_slice() else { return };
        let at = &self.nodes[node];
        let record = |practice| at.meta.practice(TENANT, &practice_name(practice));
        let (Some(first), Some(second)) = (record(first), record(second)) else { return };
        let numbers = [first.practice_no, second.practice_no];
        let weights = [first, second].map(|practice| u64::from(practice.weight.max(1)));
        let Some(place) = numbers.iter().position(|number| *number == decided.practice_no) else { return };
        let Some(store) = at.stores.get(&decided.partition) else { return };
        let backlog = |number: u32| {
            let page = query::due_page(store, (decided.priority, number), None, now_ms, BACKLOG + 1);
            let paused = at.wing.paused.contains(&(number, decided.carrier_no));
            !paused && page.is_ok_and(|page| page.entries.len() > BACKLOG)
        };
        let both = numbers.into_iter().all(backlog);
        let key = (decided.carrier_no, decided.priority);
        let pairs = &mut self.nodes[node].wing.turns.pairs;
        if !both {
            pairs.remove(&key);
            return;
        }
        let got = pairs.entry(key).or_default();
        got[place] += u64::from(decided.segments.max(1));
        let got = *got;
        if (got[0] * weights[1]).abs_diff(got[1] * weights[0]) > PAIR_SLACK * weights[0] * weights[1] {
            self.oracle.fail(format!(
                "I13 of two practices with weights {weights:?} and a backlog each got {got:?} segments"
            ));
        }
        if got.iter().sum::<u64>() > 100 {
            self.trace.count("shared_by_weight");
        }
    }
}
