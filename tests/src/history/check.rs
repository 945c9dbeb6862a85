//! The rules. Each is a function of the accounts and can fail on its own; `tests.rs` has a bad history for each.
//!
//! 1. keys: a key names one message; another text under it is refused, and nothing is refused without such a text.
//! 2. reads: of each message they are linearizable (see `reads`); what was acknowledged is never missing again.
//! 3. list: everything acknowledged is there at the end, in the state that the last reads allow, and nothing else is.
//! 4. events: each message took legal steps only; attempts are numbered without gaps, each was begun once
//!    (one term), and a further one only after a proof that the last one was not handed over.
//! 5. carrier: no attempt was sent twice, no message was accepted twice, and the states are what the carrier's ground truth
//!    says (the ledger's findings). A receipt that was acknowledged to the carrier has moved its message.
//! 6. rest: every message is final, held, or handed over to a carrier that will say no more.
//! 7. replicas: the same index has the same digest.

use super::line::{Answer, Call, End, Op};
use super::reads::{self, Observation};
use carillon_core::message::{is_final, legal};
use carillon_loadtest::carrier::Truth;
use carillon_loadtest::ledger::{Acknowledged, Acks, Finding, Listed, compare, state_name};
use carillon_proto::public::{MessageState, Outcome};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Violations of one rule that are printed.
const SHOWN_MAX: usize = 8;
/// Errors that say for certain that nothing was accepted, and that a busy or electing cluster may give.
const EXPECTED_FAILURES: [&str; 4] = ["OVERLOADED", "PARTITION_UNAVAILABLE", "STORAGE_FULL", "TRANSPORT"];

/// The only rule about liveness: nothing is on its way any more.
pub const COMES_TO_REST: &str = "everything comes to rest";

/// A message in ListMessages after the run.
#[derive(Clone, Debug)]
pub struct Present {
    pub listed: Listed,
    pub practice: String,
    /// Clients put their key into the external reference.
    pub key: String,
    pub class: String,
    /// Number and outcome of each attempt.
    pub attempts: Vec<(u32, Outcome)>,
}

/// One event of the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    pub id: String,
    pub state: MessageState,
    /// 0 if it is about none.
    pub attempt: u32,
    pub time_ms: i64,
}

/// What one replica says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaDigest {
    pub node: u64,
    pub group: u32,
    pub index: u64,
    pub digest: Vec<u8>,
}

/// The accounts of one run.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    pub ops: Vec<Op>,
    pub listed: Vec<Present>,
    /// In the order of the feed.
    pub events: Vec<Feed>,
    pub truth: Truth,
    pub replicas: Vec<ReplicaDigest>,
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    pub rule: &'static str,
    pub what: String,
}

/// What was compared, and what was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub ops: usize,
    pub uncertain: usize,
    pub acknowledged: usize,
    pub listed: usize,
    pub reads: usize,
    pub events: usize,
    pub attempts: usize,
    pub replicas: usize,
    pub at_carrier: u64,
    pub lost: u64,
    pub duplicates: u64,
    pub states: BTreeMap<&'static str, usize>,
    pub violations: Vec<Violation>,
}

impl Report {
    fn add(&mut self, rule: &'static str, what: impl Into<String>) {
        self.violations.push(Violation { rule, what: what.into() });
    }

    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }
}

/// What the submits of one key say.
#[derive(Default)]
struct Key<'a> {
    ids: BTreeSet<&'a str>,
    accepted_variants: BTreeSet<u32>,
    created: usize,
    /// Variant and begin of every submit.
    asked: Vec<(u32, u64)>,
    /// Operation, variant and end.
    refused: Vec<(u64, u32, u64)>,
    truth: &'a str,
}

type Keys<'a> = BTreeMap<(&'a str, &'a str), Key<'a>>;

fn keys_of(ops: &[Op]) -> Keys<'_> {
    let mut keys = Keys::new();
    for op in ops {
        let Call::Submit { practice, key, variant, truth } = &op.call else { continue };
        let entry = keys.entry((practice, key)).or_default();
        entry.asked.push((*variant, op.begin_us));
        match &op.end {
            End::Ok { answer: Answer::Accepted { id, duplicate }, .. } => {
                entry.ids.insert(id);
                entry.accepted_variants.insert(*variant);
                entry.created += usize::from(!duplicate);
                entry.truth = truth;
            }
            End::Ok { answer: Answer::KeyReused, at_us } => entry.refused.push((op.op, *variant, *at_us)),
            _ => {}
        }
    }
    keys
}

fn check_keys(keys: &Keys, report: &mut Report) {
    for ((practice, key), said) in keys {
        let name = format!("key {key} of {practice}");
        if said.ids.len() > 1 {
            report.add("one id per key", format!("{name} names {:?}", said.ids));
        }
        if said.created > 1 {
            report.add("one id per key", format!("{name} made a new message {} times", said.created));
        }
        if said.accepted_variants.len() > 1 {
            report.add("another text is refused", format!("{name} was accepted with different texts"));
        }
        for (op, variant, end_us) in &said.refused {
            let other = |(asked, begin): &(u32, u64)| asked != variant && begin < end_us;
            if !said.asked.iter().any(other) {
                report.add(
                    "refused for a reason",
                    format!("{name}: operation {op}, no other text was submitted"),
                );
            }
            if said.accepted_variants.contains(variant) {
                report
                    .add("refused for a reason", format!("{name}: operation {op} repeats the accepted text"));
            }
        }
    }
}

fn check_failures(ops: &[Op], report: &mut Report) {
    for op in ops {
        if let End::Fail { why } = &op.end
            && !EXPECTED_FAILURES.contains(&why.as_str())
        {
            report.add("errors are explained", format!("operation {}: {why}", op.op));
        }
    }
}

/// Answers about one message.
#[derive(Default)]
struct Answers {
    observations: Vec<Observation>,
    /// Ends of answers that prove that it exists.
    known_us: Vec<u64>,
    /// Operation and begin of answers that say that it does not.
    missing: Vec<(u64, u64)>,
    canceled: bool,
}

fn answers_of<'a>(ops: &'a [Op], report: &mut Report) -> BTreeMap<&'a str, Answers> {
    let mut all: BTreeMap<&str, Answers> = BTreeMap::new();
    for op in ops {
        let End::Ok { at_us, answer } = &op.end else { continue };
        let mut observe = |id: &'a str, state| {
            let answers = all.entry(id).or_default();
            let seen = Observation { op: op.op, begin_us: op.begin_us, end_us: *at_us, state };
            answers.observations.push(seen);
            answers.known_us.push(*at_us);
        };
        match (&op.call, answer) {
            (Call::Submit { .. }, Answer::Accepted { id, .. }) => {
                all.entry(id).or_default().known_us.push(*at_us)
            }
            (Call::Submit { .. }, Answer::KeyReused) => {}
            (Call::Get { id }, Answer::Seen { state }) => observe(id, *state),
            (Call::Get { id } | Call::Cancel { id }, Answer::Missing) => {
                all.entry(id).or_default().missing.push((op.op, op.begin_us));
            }
            (Call::Cancel { id }, Answer::CancelAnswer { canceled, state }) => {
                observe(id, *state);
                all.entry(id).or_default().canceled |= canceled;
                let waits = matches!(state, MessageState::Accepted | MessageState::Waiting);
                if *canceled != (*state == MessageState::Canceled) || waits {
                    let what =
                        format!("operation {}: canceled {canceled}, state {}", op.op, state_name(*state));
                    report.add("a cancel says what it did", what);
                }
            }
            _ => report.add("answers fit their calls", format!("operation {}", op.op)),
        }
    }
    all
}

fn check_reads(answers: &BTreeMap<&str, Answers>, report: &mut Report) {
    for (id, said) in answers {
        report.reads += said.observations.len() + said.missing.len();
        for what in reads::check(id, &said.observations) {
            report.add("reads are linearizable", what);
        }
        for (op, begin_us) in &said.missing {
            if said.known_us.iter().any(|known| known < begin_us) {
                report
                    .add("reads are linearizable", format!("{id}: operation {op} did not find it any more"));
            }
        }
    }
}

fn check_list(evidence: &Evidence, keys: &Keys, answers: &BTreeMap<&str, Answers>, report: &mut Report) {
    let mut of_key: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for present in &evidence.listed {
        let id = present.listed.id.as_str();
        of_key.entry((&present.practice, &present.key)).or_default().push(id);
        *report.states.entry(state_name(present.listed.state)).or_default() += 1;
        let mut seen = answers.get(id).map(|a| a.observations.clone()).unwrap_or_default();
        // The list was read after everything else.
        let last = Observation {
            op: u64::MAX,
            begin_us: u64::MAX - 1,
            end_us: u64::MAX,
            state: present.listed.state,
        };
        seen.retain(|o| o.end_us < last.begin_us);
        for before in seen {
            for what in reads::check(id, &[before, last]) {
                report.add("the list agrees with the reads", what);
            }
        }
    }
    for ((practice, key), ids) in &of_key {
        if ids.len() > 1 {
            report.add("one id per key", format!("key {key} of {practice} is listed as {ids:?}"));
        }
        if !keys.contains_key(&(*practice, *key)) {
            report
                .add("nothing from nowhere", format!("{ids:?}: key {key} of {practice} was never submitted"));
        }
    }
}

/// Outcomes after which a message of a class that is held may be tried again: proof that no carrier has it.
fn allows_another(outcome: Outcome) -> bool {
    use Outcome as O;
    matches!(outcome, O::Throttled | O::CapReached | O::Transient | O::LaneBroken | O::NotSent)
}

fn check_events(evidence: &Evidence, report: &mut Report) {
    let mut feeds: BTreeMap<&str, Vec<&Feed>> = BTreeMap::new();
    for event in &evidence.events {
        let feed = feeds.entry(&event.id).or_default();
        // The feed is at least once: after a break it may repeat what it had said.
        if !feed.contains(&event) {
            feed.push(event);
        }
    }
    report.events = feeds.values().map(Vec::len).sum();
    for present in &evidence.listed {
        let id = &present.listed.id;
        let feed = feeds.remove(id.as_str()).unwrap_or_default();
        let (mut state, mut begun) = (MessageState::Unspecified, 0);
        for event in &feed {
            if !legal(state, event.state) {
                let (from, to) = (state_name(state), state_name(event.state));
                report.add("steps are legal", format!("{id}: {from} to {to} at {}", event.time_ms));
            }
            state = event.state;
            if state == MessageState::InFlight {
                if event.attempt != begun + 1 {
                    let what = format!("{id}: attempt {} after attempt {begun}", event.attempt);
                    report.add("an attempt is begun once", what);
                }
                begun = event.attempt;
            }
        }
        if state != present.listed.state {
            let (told, is) = (state_name(state), state_name(present.listed.state));
            report.add("the feed is complete", format!("{id}: the last event says {told}, the list {is}"));
        }
        let known = present.attempts.last().map_or(0, |(number, _)| *number);
        if known != begun {
            report.add("an attempt is begun once", format!("{id}: {begun} were begun, {known} are recorded"));
        }
        report.attempts += known as usize;
        for (number, outcome) in present.attempts.iter().rev().skip(1) {
            if !allows_another(*outcome) {
                let what = format!("{id}: attempt {number} was {outcome:?}, and another followed");
                report.add("another attempt needs proof", what);
            }
        }
    }
    for id in feeds.keys() {
        report.add("nothing from nowhere", format!("{id} has events and is not listed"));
    }
}

fn truth_key(text: &str) -> u128 {
    u128::from_str_radix(text, 16).unwrap_or_default()
}

fn check_carrier(evidence: &Evidence, keys: &Keys, answers: &BTreeMap<&str, Answers>, report: &mut Report) {
    let by_id: BTreeMap<&str, &Present> = evidence.listed.iter().map(|p| (p.listed.id.as_str(), p)).collect();
    let mut acks = Acks::default();
    for said in keys.values() {
        for id in &said.ids {
            let present = by_id.get(id).copied();
            acks.accepted.push(Acknowledged {
                id: (*id).to_owned(),
                truth_key: truth_key(said.truth),
                parts: Vec::new(),
                class: present.map(|p| p.class.clone()).unwrap_or_default(),
                ..Acknowledged::default()
            });
            let received = evidence.truth.received.get(&truth_key(said.truth));
            let told = received.is_some_and(|r| r.acknowledged);
            if told && present.is_some_and(|p| !is_final(p.listed.state)) {
                let what = format!("{id}: the carrier's receipt was acknowledged, and it is not final");
                report.add("an acknowledged receipt is kept", what);
            }
            let arrivals = received.map_or(0, |r| r.arrivals) as usize;
            // The oldest attempts are dropped from a record when there are many, so the numbers count.
            let begun = present.and_then(|p| p.attempts.last()).map_or(0, |(number, _)| *number as usize);
            let unsent = |p: &Present| p.attempts.iter().filter(|a| a.1 == Outcome::NotSent).count();
            let sent = begun - present.map_or(0, unsent).min(begun);
            if arrivals > sent {
                let what =
                    format!("{id}: {sent} attempts may have sent it, the carrier saw it {arrivals} times");
                report.add("an attempt is sent once", what);
            }
        }
    }
    acks.canceled = answers.iter().filter(|(_, a)| a.canceled).map(|(id, _)| (*id).to_owned()).collect();
    let listed: Vec<Listed> = evidence.listed.iter().map(|p| p.listed.clone()).collect();
    let ledger = compare(&acks, &listed, &evidence.truth);
    report.acknowledged = acks.accepted.len();
    report.at_carrier = ledger.received;
    (report.lost, report.duplicates) = (ledger.lost(), ledger.duplicates());
    for (finding, found) in &ledger.findings {
        let rule = match finding {
            Finding::LostMissing | Finding::LostNotReceived => "nothing acknowledged is lost",
            Finding::Duplicate => "nothing is sent twice",
            Finding::Unsettled => COMES_TO_REST,
            _ => "states are what the carrier saw",
        };
        let what = format!("{} ({}): {:?}", finding.text(), found.count, found.ids);
        report.add(rule, what);
    }
    if ledger.over_limit > 0 {
        report.add("the limit is a wall", format!("{} windows over {:?}", ledger.over_limit, ledger.limit));
    }
    if ledger.unrecorded > 0 {
        report
            .add("the ground truth is complete", format!("{} submits were not recorded", ledger.unrecorded));
    }
}

fn check_replicas(replicas: &[ReplicaDigest], report: &mut Report) {
    report.replicas = replicas.len();
    let mut first: BTreeMap<(u32, u64), &ReplicaDigest> = BTreeMap::new();
    for replica in replicas {
        let one = first.entry((replica.group, replica.index)).or_insert(replica);
        if one.digest != replica.digest {
            let (group, index) = (replica.group, replica.index);
            let what = format!("group {group} at {index}: node {} and node {}", one.node, replica.node);
            report.add("replicas are equal", what);
        }
    }
}

/// Compares the accounts.
pub fn check(evidence: &Evidence) -> Report {
    let uncertain = evidence.ops.iter().filter(|op| op.end == End::Info).count();
    let mut report =
        Report { ops: evidence.ops.len(), uncertain, listed: evidence.listed.len(), ..Report::default() };
    let keys = keys_of(&evidence.ops);
    let answers = answers_of(&evidence.ops, &mut report);
    check_failures(&evidence.ops, &mut report);
    check_keys(&keys, &mut report);
    check_reads(&answers, &mut report);
    check_list(evidence, &keys, &answers, &mut report);
    check_events(evidence, &mut report);
    check_carrier(evidence, &keys, &answers, &mut report);
    check_replicas(&evidence.replicas, &mut report);
    report
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "history: {} operations ({} uncertain), {} acknowledged, {} listed, {} reads, {} events, {} attempts, \
             {} at the carrier, {} replicas",
            self.ops,
            self.uncertain,
            self.acknowledged,
            self.listed,
            self.reads,
            self.events,
            self.attempts,
            self.at_carrier,
            self.replicas
        )?;
        writeln!(f, "  states {:?}; lost {}, duplicates {}", self.states, self.lost, self.duplicates)?;
        let mut by_rule: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for violation in &self.violations {
            by_rule.entry(violation.rule).or_default().push(&violation.what);
        }
        for (rule, list) in by_rule {
            writeln!(f, "  VIOLATED: {rule} ({} times)", list.len())?;
            list.iter().take(SHOWN_MAX).try_for_each(|what| writeln!(f, "    {what}"))?;
        }
        write!(f, "  verdict: {}", if self.is_clean() { "CLEAN" } else { "NOT CLEAN" })
    }
}
