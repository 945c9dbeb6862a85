//! After a run: asks everybody what happened, and has the accounts compared.
//!
//! Owns: the order. Callers stop and find out what they do not know; the cluster settles; then list, feed, ground truth
//! and digests are read.

use crate::history::{self, Evidence, Feed, Present, ReplicaDigest, Report};
use crate::load::Load;
use crate::rig::{Rig, SETTLED};
use carillon_loadtest::carrier::Mark;
use carillon_loadtest::ledger::Listed;
use carillon_loadtest::sample_day::{class_name, timestamp};
use carillon_proto::public::{
    Event, ListMessagesRequest, Message, MessageState, MessageView, WatchEventsRequest,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tonic::Request;

/// Messages on their way, receipts included, are at rest by then.
const SETTLE_LIMIT: Duration = Duration::from_secs(120);
const FEED_LIMIT: Duration = Duration::from_secs(180);
const DIGEST_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(300);
/// Receipts that come after everything is settled must find it so.
const STRAGGLERS: Duration = Duration::from_secs(2);

/// A run: its callers, and where it began.
pub struct Run {
    pub load: Load,
    mark: Mark,
    since_ms: i64,
    path: PathBuf,
}

impl Run {
    /// Starts callers; the history is a file in the directory of the rig.
    pub async fn start(rig: &Rig, name: &str, options: crate::load::LoadOptions) -> Result<Self, String> {
        let mark = rig.carrier.mark().await.map_err(|e| e.to_string())?;
        let path = rig.dir().join(format!("history-{name}.jsonl"));
        let since_ms = crate::api::now_ms();
        let load = Load::start(&rig.client, &rig.practices, &path, options).map_err(|e| e.to_string())?;
        Ok(Self { load, mark, since_ms, path })
    }

    /// Waits until so many more submits were acknowledged.
    pub async fn until_more(&self, more: u64, limit: Duration) -> Result<(), String> {
        let (wanted, until) = (self.load.acknowledged() + more, Instant::now() + limit);
        while self.load.acknowledged() < wanted {
            if Instant::now() >= until {
                let count = self.load.acknowledged();
                return Err(format!("{count} submits acknowledged and not {wanted} within {limit:?}"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Ends the run and compares. An error is a run that could not be brought to an end, which is a violation too.
    pub async fn judge(self, rig: &Rig) -> Result<Report, String> {
        self.judge_after(rig, SETTLE_LIMIT).await
    }

    /// The same, waiting so long for messages to settle.
    pub async fn judge_after(self, rig: &Rig, settle: Duration) -> Result<Report, String> {
        let Self { load, mark, since_ms, path } = self;
        load.finish().await?;
        let listed = settled(rig, since_ms, settle).await?;
        tokio::time::sleep(STRAGGLERS).await;
        let listed = match listed.is_empty() {
            true => listed,
            // Receipts of the stragglers may have moved them.
            false => settled(rig, since_ms, settle).await?,
        };
        let states = listed.iter().map(|p| (p.listed.id.clone(), p.listed.state)).collect();
        let evidence = Evidence {
            ops: operations(&path)?,
            events: events(rig, &states).await?,
            truth: rig.carrier.truth(&mark).await.map_err(|e| e.to_string())?,
            replicas: digests(rig).await?,
            listed,
        };
        Ok(history::check(&evidence))
    }
}

fn operations(path: &Path) -> Result<Vec<history::Op>, String> {
    let lines = history::read(path).map_err(|e| e.to_string())?;
    history::ops(&lines).map_err(|e| e.to_string())
}

fn present(message: Message) -> Present {
    Present {
        attempts: message.attempts.iter().map(|a| (a.number, a.outcome())).collect(),
        class: class_name(message.class()),
        listed: Listed::of(&message),
        practice: message.practice,
        key: message.external_reference,
    }
}

/// All messages since then, as soon as none of them moves any more.
async fn settled(rig: &Rig, since_ms: i64, limit: Duration) -> Result<Vec<Present>, String> {
    let until = Instant::now() + limit;
    loop {
        // A carrier that has given up a receipt leaves its message handed over for good. Asked before the list is read.
        let silent = rig.carrier.stats().await.is_ok_and(|stats| stats.receipts.pending == 0);
        let listed = list(rig, since_ms).await;
        let at_rest = |p: &&Present| match p.listed.state {
            MessageState::Submitted => silent,
            state => SETTLED.contains(&state),
        };
        let open = match &listed {
            Ok(all) => all.iter().find(|p| !at_rest(p)),
            Err(_) => None,
        };
        match (&listed, open) {
            (Ok(_), None) => return listed,
            // The checker says what did not settle, if nothing else is wrong.
            (Ok(_), Some(_)) if Instant::now() >= until => return listed,
            (Err(why), _) if Instant::now() >= until => {
                return Err(format!("the list cannot be read: {why}"));
            }
            _ => tokio::time::sleep(POLL).await,
        }
    }
}

async fn list(rig: &Rig, since_ms: i64) -> Result<Vec<Present>, String> {
    let mut request = ListMessagesRequest {
        // A leader's clock may have been behind.
        accepted_after: Some(timestamp(since_ms - 7 * 86_400_000)),
        page_size: 1_000,
        view: MessageView::Basic as i32,
        ..Default::default()
    };
    let mut all = Vec::new();
    loop {
        let mut call = Request::new(request.clone());
        call.set_timeout(Duration::from_secs(10));
        let page = rig.client.messages().list_messages(call).await.map_err(|s| s.to_string())?.into_inner();
        all.extend(page.messages.into_iter().map(present));
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        request.page_token = page.next_page_token;
    }
}

fn feed_of(event: &Event) -> Feed {
    let ms = |t: &prost_types::Timestamp| t.seconds * 1_000 + i64::from(t.nanos / 1_000_000);
    Feed {
        id: event.message_id.clone(),
        state: event.state(),
        attempt: event.attempt,
        time_ms: event.time.as_ref().map_or(0, ms),
    }
}

type States = BTreeMap<String, MessageState>;

/// The feed from its start until it has told every state of the list.
async fn events(rig: &Rig, states: &States) -> Result<Vec<Feed>, String> {
    let until = Instant::now() + FEED_LIMIT;
    let (mut all, mut cursor) = (Vec::new(), "start".to_owned());
    let mut open: BTreeSet<&str> = states.keys().map(String::as_str).collect();
    while !open.is_empty() && Instant::now() < until {
        let mut call = Request::new(WatchEventsRequest { cursor: cursor.clone(), ..Default::default() });
        call.set_timeout(FEED_LIMIT);
        let Ok(stream) = rig.client.messages().watch_events(call).await else {
            tokio::time::sleep(POLL).await;
            continue;
        };
        let mut stream = stream.into_inner();
        while !open.is_empty() {
            let Ok(Ok(Some(response))) = tokio::time::timeout_at(until.into(), stream.message()).await else {
                break;
            };
            for event in &response.events {
                // Runs share a cluster: messages of others are none of ours.
                let Some((id, last)) = states.get_key_value(&event.message_id) else { continue };
                all.push(feed_of(event));
                match event.state() == *last {
                    true => open.remove(id.as_str()),
                    false => open.insert(id),
                };
            }
            cursor = response.cursor;
        }
    }
    // What is open now is found by the checker.
    Ok(all)
}

/// Index and digest of every replica, as soon as all are at the same index, or what they are when that takes too long.
async fn digests(rig: &Rig) -> Result<Vec<ReplicaDigest>, String> {
    let until = Instant::now() + DIGEST_LIMIT;
    loop {
        let (mut all, mut indexes) = (Vec::new(), BTreeSet::new());
        for node in rig.lab.node_ids() {
            let status = rig.status(node).await?;
            for p in status.partitions {
                if !p.blocked.is_empty() {
                    return Err(format!("group {} of node {node} is fenced: {}", p.partition, p.blocked));
                }
                indexes.insert((p.partition, p.digest_index));
                let (group, index, digest) = (p.partition, p.digest_index, p.digest.to_vec());
                all.push(ReplicaDigest { node, group, index, digest });
            }
        }
        let groups = all.iter().map(|r| r.group).collect::<BTreeSet<_>>().len();
        if indexes.len() == groups {
            return Ok(all);
        }
        if Instant::now() >= until {
            return Err(format!("replicas do not catch up: {indexes:?}"));
        }
        tokio::time::sleep(POLL).await;
    }
}
