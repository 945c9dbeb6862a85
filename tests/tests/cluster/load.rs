//! Callers that submit all the time, what they were told, and how it is compared with the cluster and the carrier.
use carillon_loadtest::carrier::Truth;
use carillon_loadtest::smsc::{TruthKey, truth_key};
use carillon_proto::public::{ListMessagesRequest, Message, MessageSpec, MessageState};
use carillon_tests::api::{number_of, spec};
use carillon_tests::rig::{Rig, SETTLED, submit_within_deadline, until};
use carillon_tests::steps::say;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Each is a caller that submits without a pause but this.
const SUBMITTERS: usize = 3;
const ITEMS: usize = 4;
const LIMIT: Duration = Duration::from_secs(60);

/// What one caller was told: what was acknowledged, and what failed.
#[derive(Default)]
pub struct Told {
    pub acknowledged: Vec<(String, MessageSpec)>,
    pub failures: Vec<String>,
}

pub struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    callers: Vec<tokio::task::JoinHandle<Told>>,
}

impl Load {
    /// Each caller submits once in `pause`; `tag` is part of every key.
    pub fn start(rig: &Rig, tag: &'static str, pause: Duration) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let callers = (0..SUBMITTERS).map(|caller| {
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
            let (client, practices) = (rig.client.clone(), rig.practices.clone());
            tokio::spawn(async move {
                let mut told = Told::default();
                let mut pace = tokio::time::interval(pause);
                pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                for turn in 0.. {
                    pace.tick().await;
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let specs: Vec<MessageSpec> = (0..ITEMS)
                        .map(|i| {
                            let at = caller + SUBMITTERS * (turn * ITEMS + i);
                            spec(&practices[at % practices.len()], &format!("{tag}-{at}"), at)
                        })
                        .collect();
                    match submit_within_deadline(&client, specs.clone()).await {
                        Ok(ids) => {
                            count.fetch_add(ids.len(), Ordering::Relaxed);
                            told.acknowledged.extend(ids.into_iter().zip(specs));
                        }
                        Err(failure) => told.failures.push(failure),
                    }
                }
                told
            })
        });
        let callers = callers.collect();
        Self { stop, count, callers }
    }

    pub async fn until_more(&self, more: usize) {
        let wanted = self.count.load(Ordering::Relaxed) + more;
        until(&format!("{wanted} messages are acknowledged"), LIMIT, async || {
            let count = self.count.load(Ordering::Relaxed);
            if count >= wanted { Ok(()) } else { Err(format!("{count}")) }
        })
        .await;
    }

    pub async fn finish(self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Told::default();
        for caller in self.callers {
            let told = caller.await.unwrap();
            all.acknowledged.extend(told.acknowledged);
            all.failures.extend(told.failures);
        }
        all
    }
}

/// The node that leads the most groups: its death hurts the most.
pub async fn busiest(rig: &Rig) -> u64 {
    let mut counts = BTreeMap::<u64, usize>::new();
    for leader in rig.leaders().await.into_values() {
        *counts.entry(leader).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).unwrap().0
}

/// Everything that was accepted since then, once nothing of it moves any more.
pub async fn settled_since(rig: &Rig, since_ms: i64, limit: Duration) -> BTreeMap<String, Message> {
    let request = ListMessagesRequest {
        accepted_after: Some(carillon_tests::api::timestamp(since_ms)),
        page_size: 1_000,
        ..Default::default()
    };
    until("everything settles", limit, async || {
        let all = rig.list(request.clone()).await;
        match all.iter().find(|m| !SETTLED.contains(&m.state())) {
            None => Ok(all.into_iter().map(|m| (m.message_id.clone(), m)).collect()),
            Some(open) => Err(format!("{} is {:?}", open.message_id, open.state())),
        }
    })
    .await
}

/// What callers were told, what the cluster says and what the carrier received must agree.
/// Returns how many are held.
pub fn reconcile(told: &Told, stored: &BTreeMap<String, Message>, truth: &Truth) -> usize {
    let (mut delivered, mut held) = (0, 0);
    for (id, spec) in &told.acknowledged {
        let message = stored.get(id).unwrap_or_else(|| panic!("{id} was acknowledged and is lost"));
        let key = truth_key(&TruthKey::default(), number_of(spec), &spec.body);
        let copies = truth.received.get(&key).map_or(0, |r| r.accepted);
        match message.state() {
            MessageState::Delivered => {
                delivered += 1;
                assert_eq!(copies, 1, "{id} is delivered, and the carrier accepted it {copies} times");
            }
            // Its answer died with the node: it is held, and may have been sent once.
            MessageState::Unknown => {
                held += 1;
                assert!(copies <= 1, "{id} is held, and the carrier accepted it {copies} times");
                assert!(!message.state_detail.is_empty(), "{id} is held without a reason");
            }
            other => panic!("{id} is {other:?} ({})", message.state_detail),
        }
    }
    say(&format!("{delivered} delivered, {held} held, {} at the carrier", truth.messages));
    assert_eq!(told.acknowledged.len(), stored.len(), "a repeated submit made a second message");
    assert!(truth.received.values().all(|r| r.accepted <= 1), "the carrier has duplicates");
    assert!(truth.messages >= delivered && truth.messages <= delivered + held);
    assert_eq!((truth.violations, truth.unrecorded), (0, 0));
    held
}
