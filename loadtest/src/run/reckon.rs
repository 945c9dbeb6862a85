//! The ledger of a run: every acknowledged message against ListMessages and the carrier's ground truth.
//!
//! Owns: bringing the three accounts together a bucket at a time, so that memory does not grow with the run: first by id
//! (what was acknowledged, what is listed, what was canceled), then by recipient (the carrier knows no ids). The comparison
//! itself is the ledger's (`crate::ledger`). Beside it: the times between accept, due, carrier and receipt, and fairness.
//! Invariant: messages to one recipient are in one bucket, so copies, parts and order are seen whole.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use carillon_proto::MessageId;
use carillon_proto::public::{Message, MessageClass, MessageState};

use super::engine::bucket_of_id;
use super::fairness::Sums;
use super::spill::{Ack, BUCKETS, Cancel, Entry, ListedRow, Spill, TruthRow, read};
use super::workload::{Workload, phone_number};
use crate::bench::measure::Latency;
use crate::carrier::{Carrier, Mark, Truth};
use crate::client::Client;
use crate::demo::book::part_keys;
use crate::ledger::{Acknowledged, Acks, Finding, Ledger, Listed, Order, compare, state_name};
use crate::sample_day::class_name;
use crate::smsc::{TruthEntry, TruthKey, truth_key};

/// What the ledger is made of.
pub struct Accounts<'a> {
    pub client: &'a Client,
    /// Without a simulator there is no ground truth.
    pub carrier: Option<(&'a Carrier, Mark)>,
    pub workload: &'a Workload,
    pub spill: PathBuf,
    pub start_ms: i64,
    /// The measured time in us since the epoch.
    pub measured_us: (u64, u64),
    /// Messages are due after the run.
    pub stay: bool,
    /// Nobody else uses the cluster: whatever is there must be ours.
    pub alone: bool,
    /// Messages whose answer never came: so many may be there without an acknowledgement.
    pub in_doubt: u64,
    pub repeated: u64,
}

/// The ledger and what comes with it.
#[derive(Clone, Default)]
pub struct Reckoned {
    pub ledger: Ledger,
    pub accept_to_carrier: Latency,
    pub due_to_carrier: Latency,
    pub carrier_to_receipt: Latency,
    /// State and reason of messages that had a lost answer: count.
    pub possible_duplicates: std::collections::BTreeMap<String, u64>,
    pub practices: Vec<Sums>,
}

/// The part of the ground truth that a recipient's messages are in.
fn bucket_of_recipient(destination: u128) -> usize {
    destination as usize
}

fn row(message: &Message) -> Option<ListedRow> {
    let id = message.message_id.parse::<MessageId>().ok()?;
    let listed = Listed::of(message);
    let updated = message.update_time.as_ref();
    Some(ListedRow {
        id: id.as_bytes().to_vec(),
        class: message.class,
        practice: listed.practice,
        state: message.state,
        reason: listed.reason,
        expires_at_ms: listed.expires_at_ms.unwrap_or(0),
        lost_answers: listed.lost_answers,
        updated_ms: updated.map_or(0, |t| t.seconds * 1_000 + i64::from(t.nanos / 1_000_000)),
    })
}

fn text_of(id: &[u8]) -> String {
    MessageId::from_bytes(id).map_or_else(|_| "?".to_owned(), |id| id.to_string())
}

async fn list(accounts: &Accounts<'_>) -> anyhow::Result<()> {
    let mut spill = Spill::<ListedRow>::create(&accounts.spill, "listed", "0")?;
    let mut written = Ok(());
    let take = |message: Message| {
        if let (Ok(()), Some(row)) = (&written, row(&message)) {
            written = spill.write(bucket_of_id(&row.id), &row);
        }
    };
    accounts.client.list(accounts.start_ms, &[], take).await.context("ListMessages")?;
    written?;
    Ok(spill.finish()?)
}

async fn ground_truth(carrier: &Carrier, mark: &Mark, dir: &Path) -> anyhow::Result<()> {
    let mut spill = Spill::<TruthRow>::create(dir, "truth", "0")?;
    let mut written = Ok(());
    let take = |entry: &TruthEntry| {
        if written.is_ok() {
            written = serde_json::to_vec(entry).map_err(io::Error::other).and_then(|json| {
                spill.write(bucket_of_recipient(entry.destination), &TruthRow { entry: json })
            });
        }
    };
    carrier.records(mark, take).await?;
    written?;
    Ok(spill.finish()?)
}

/// Brings together what has the same id, and puts it where its recipient is.
fn join(dir: &Path, workload: &Workload) -> io::Result<()> {
    let mut out = Spill::<Entry>::create(dir, "entries", "0")?;
    for bucket in 0..BUCKETS {
        let mut entries: HashMap<Vec<u8>, Entry> = HashMap::new();
        let new = |id: &Vec<u8>| Entry { id: id.clone(), ..Entry::default() };
        read(dir, "acks", bucket, |ack: Ack| {
            let entry = entries.entry(ack.id.clone()).or_insert_with(|| new(&ack.id));
            // The first acknowledgement counts.
            if entry.ack.as_ref().is_none_or(|known| ack.acked_us < known.acked_us) {
                entry.ack = Some(ack);
            }
            Ok(())
        })?;
        read(dir, "listed", bucket, |row: ListedRow| {
            let entry = entries.entry(row.id.clone()).or_insert_with(|| new(&row.id));
            entry.listed = Some(row);
            Ok(())
        })?;
        read(dir, "cancels", bucket, |cancel: Cancel| {
            if let Some(entry) = entries.get_mut(&cancel.id)
                && entry.cancel.as_ref().is_none_or(|known| !known.in_time)
            {
                entry.cancel = Some(cancel);
            }
            Ok(())
        })?;
        for entry in entries.into_values() {
            let destination = entry.ack.as_ref().map_or(0, |ack| recipient(workload, ack.n));
            out.write(bucket_of_recipient(destination), &entry)?;
        }
    }
    out.finish()
}

fn digits(number: &str) -> &[u8] {
    number.trim_start_matches('+').as_bytes()
}

fn recipient(workload: &Workload, n: u64) -> u128 {
    TruthKey::default().number(digits(phone_number(&workload.message(n))))
}

/// One bucket of recipients.
#[derive(Default)]
struct Bucket {
    acks: Acks,
    listed: Vec<Listed>,
    truth: Truth,
    /// For times: number, id, when the state was reached.
    times: Vec<(Ack, MessageId, MessageState, i64, u128)>,
    ids: HashMap<u64, Vec<u8>>,
}

impl Bucket {
    fn add(&mut self, entry: Entry, accounts: &Accounts<'_>, reckoned: &mut Reckoned) {
        let id = text_of(&entry.id);
        let (mut state, mut updated_ms) = (MessageState::Unspecified, 0);
        if let Some(row) = &entry.listed {
            state = MessageState::try_from(row.state).unwrap_or_default();
            updated_ms = row.updated_ms;
            self.listed.push(Listed {
                id: id.clone(),
                class: class_name(MessageClass::try_from(row.class).unwrap_or_default()),
                practice: row.practice.clone(),
                state,
                reason: row.reason.clone(),
                expires_at_ms: (row.expires_at_ms != 0).then_some(row.expires_at_ms),
                lost_answers: row.lost_answers,
                carriers: Vec::new(),
            });
            if row.lost_answers > 0 {
                let what = format!("{} {}", state_name(state), row.reason);
                *reckoned.possible_duplicates.entry(what).or_insert(0) += 1;
            }
        }
        if let Some(cancel) = &entry.cancel {
            if cancel.in_time {
                self.acks.canceled.push(id.clone());
            } else {
                let state = state_name(MessageState::try_from(cancel.state).unwrap_or_default());
                *self.acks.too_late.entry(state.to_owned()).or_insert(0) += 1;
            }
        }
        let Some(ack) = entry.ack else { return };
        let (facts, message) = (accounts.workload.facts(ack.n), accounts.workload.message(ack.n));
        let number = phone_number(&message).to_owned();
        if let Some(known) = self.ids.insert(facts.original, entry.id.clone())
            && known != entry.id
        {
            self.acks.repeated_with_other_id.push(id.clone());
        }
        let key = truth_key(&TruthKey::default(), &number, &message.body);
        let group = TruthKey::default().number(digits(&number)) as u64 ^ facts.practice as u64;
        let order = Order { group, sent_us: ack.sent_us, acked_us: ack.acked_us };
        self.acks.accepted.push(Acknowledged {
            id,
            truth_key: key,
            parts: part_keys(&number, &message.body),
            class: class_name(facts.class),
            expires_at_ms: facts.expires_ms,
            not_before_ms: facts.not_before_ms,
            stays: accounts.stay,
            order: facts.ordered.then_some(order),
        });
        if let Ok(id) = MessageId::from_bytes(&entry.id) {
            self.times.push((ack, id, state, updated_ms, key));
        }
    }

    fn times(&self, accounts: &Accounts<'_>, reckoned: &mut Reckoned) {
        let (from_us, until_us) = accounts.measured_us;
        for (ack, id, state, updated_ms, key) in &self.times {
            let facts = accounts.workload.facts(ack.n);
            let accepted_us = id.time_ms() * 1_000;
            let due_us = facts.not_before_ms.map_or(0, |ms| ms.max(0) as u64 * 1_000).max(accepted_us);
            let sums = &mut reckoned.practices[facts.practice];
            let in_time = (from_us..until_us).contains(&due_us) && !accounts.stay;
            sums.asked += u64::from(in_time);
            let Some(received) = self.truth.received.get(key).filter(|r| r.first_arrival_us > 0) else {
                continue;
            };
            let arrived_us = received.first_arrival_us;
            sums.served += u64::from((from_us..until_us).contains(&arrived_us) && in_time);
            if ack.sent_us < from_us {
                continue;
            }
            let since = |from_us: u64| Duration::from_micros(arrived_us.saturating_sub(from_us));
            if due_us == accepted_us {
                reckoned.accept_to_carrier.record(since(accepted_us), 1);
            }
            let delay = since(due_us);
            reckoned.due_to_carrier.record(delay, 1);
            sums.delayed += 1;
            sums.delay_us += delay.as_micros() as u64;
            sums.delay_max_us = sums.delay_max_us.max(delay.as_micros() as u64);
            if matches!(state, MessageState::Delivered | MessageState::Undelivered) && received.accepted > 0 {
                let recorded_us = (*updated_ms).max(0) as u64 * 1_000;
                let took_us = recorded_us.saturating_sub(received.first_accept_us);
                reckoned.carrier_to_receipt.record(Duration::from_micros(took_us), 1);
            }
        }
    }
}

fn bucket(at: usize, accounts: &Accounts<'_>, reckoned: &mut Reckoned) -> io::Result<()> {
    let mut bucket = Bucket::default();
    read(&accounts.spill, "entries", at, |entry: Entry| {
        bucket.add(entry, accounts, reckoned);
        Ok(())
    })?;
    read(&accounts.spill, "truth", at, |row: TruthRow| {
        bucket.truth.add(&serde_json::from_slice(&row.entry).map_err(io::Error::other)?);
        Ok(())
    })?;
    bucket.times(accounts, reckoned);
    reckoned.ledger.merge(compare(&bucket.acks, &bucket.listed, &bucket.truth));
    Ok(())
}

/// Makes the ledger.
pub async fn reckon(accounts: &Accounts<'_>) -> anyhow::Result<Reckoned> {
    list(accounts).await?;
    if let Some((carrier, mark)) = &accounts.carrier {
        ground_truth(carrier, mark, &accounts.spill).await.context("ground truth of the carrier")?;
    }
    join(&accounts.spill, accounts.workload)?;
    let practices = vec![Sums::default(); accounts.workload.population.practices.len()];
    let mut reckoned = Reckoned { practices, ..Reckoned::default() };
    for at in 0..BUCKETS {
        bucket(at, accounts, &mut reckoned)?;
    }
    let ledger = &mut reckoned.ledger;
    ledger.repeated = accounts.repeated;
    if let Some((carrier, mark)) = &accounts.carrier {
        let stats = carrier.stats().await?;
        ledger.over_limit = stats.violations().saturating_sub(mark.violations);
        ledger.unrecorded = stats.unrecorded.saturating_sub(mark.unrecorded);
        ledger.window_max = stats.accounts.iter().map(|a| a.window_max).max().unwrap_or(0);
        ledger.limit = stats.accounts.iter().filter_map(|a| a.limit).max();
    } else {
        // Nobody can say what the carrier received.
        ledger.explain(Finding::LostNotReceived, u64::MAX);
    }
    let explained = if accounts.alone { accounts.in_doubt } else { u64::MAX };
    ledger.explain(Finding::NeverAcknowledged, explained);
    ledger.explain(Finding::ReceivedFromNowhere, explained);
    Ok(reckoned)
}
