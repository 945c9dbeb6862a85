//! Nodes that are killed with SIGKILL: nothing acknowledged is lost, nothing is sent twice, callers notice nothing, and
//! what comes back catches up and leads again.
use crate::accept::key_names_only;
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
const PAUSE: Duration = Duration::from_millis(30);
const LIMIT: Duration = Duration::from_secs(60);

/// What one caller was told: what was acknowledged, and what failed.
#[derive(Default)]
struct Told {
    acknowledged: Vec<(String, MessageSpec)>,
    failures: Vec<String>,
}

struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    callers: Vec<tokio::task::JoinHandle<Told>>,
}

impl Load {
    fn start(rig: &Rig) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let callers = (0..SUBMITTERS).map(|caller| {
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
            let (client, practices) = (rig.client.clone(), rig.practices.clone());
            tokio::spawn(async move {
                let mut told = Told::default();
                let mut pace = tokio::time::interval(PAUSE);
                pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                for turn in 0.. {
                    pace.tick().await;
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let specs: Vec<MessageSpec> = (0..ITEMS)
                        .map(|i| {
                            let at = caller + SUBMITTERS * (turn * ITEMS + i);
                            spec(&practices[at % practices.len()], &format!("load-{at}"), at)
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

    async fn until_more(&self, more: usize) {
        let wanted = self.count.load(Ordering::Relaxed) + more;
        until(&format!("{wanted} messages are acknowledged"), LIMIT, async || {
            let count = self.count.load(Ordering::Relaxed);
            if count >= wanted { Ok(()) } else { Err(format!("{count}")) }
        })
        .await;
    }

    async fn finish(self) -> Told {
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

pub async fn killed_under_load(rig: &Rig) {
    let since = carillon_tests::api::now_ms();
    let mark = rig.carrier.mark().await.unwrap();
    let load = Load::start(rig);
    load.until_more(300).await;
    let victim = rig.busiest().await;
    rig.lab.kill_node(victim).unwrap();
    load.until_more(1_200).await;
    rig.start_node(victim).await;
    load.until_more(300).await;
    let told = load.finish().await;
    say(&format!("node {victim} was killed; {} messages were acknowledged", told.acknowledged.len()));
    assert_eq!(told.failures, [] as [String; 0], "callers saw errors");

    let request = ListMessagesRequest {
        accepted_after: Some(carillon_tests::api::timestamp(since)),
        page_size: 1_000,
        ..Default::default()
    };
    let stored: BTreeMap<String, Message> = until("everything settles", LIMIT, async || {
        let all = rig.list(request.clone()).await;
        match all.iter().find(|m| !SETTLED.contains(&m.state())) {
            None => Ok(all.into_iter().map(|m| (m.message_id.clone(), m)).collect()),
            Some(open) => Err(format!("{} is {:?}", open.message_id, open.state())),
        }
    })
    .await;
    reconcile(&told, &stored, &rig.carrier.truth(&mark).await.unwrap());

    // The same keys still name the same messages.
    for chunk in told.acknowledged.chunks(told.acknowledged.len().div_ceil(10).max(1)) {
        let (id, spec) = &chunk[0];
        let again = rig.submit(vec![spec.clone()]).await.remove(0);
        assert_eq!((again.message_id.as_str(), again.duplicate), (id.as_str(), true));
    }
    rig.until_caught_up(LIMIT).await;
    until("the node that came back leads again", LIMIT, async || {
        let leaders = rig.leaders().await;
        if leaders.values().any(|leader| *leader == victim) { Ok(()) } else { Err(format!("{leaders:?}")) }
    })
    .await;
}

/// What callers were told, what the cluster says and what the carrier received must agree.
fn reconcile(told: &Told, stored: &BTreeMap<String, Message>, truth: &Truth) {
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
    // What one node can have in flight: 2 binds with windows of 64.
    assert!(held <= 128, "{held} are held");
}

async fn names_the_same(rig: &Rig, first: &MessageSpec, id: &str) {
    let ids = submit_within_deadline(&rig.client, vec![first.clone()]).await.expect("no error in 10 s");
    assert_eq!(ids, [id.to_owned()]);
    assert!(rig.submit(vec![first.clone()]).await[0].duplicate);
    key_names_only(rig, first, id).await;
}

pub async fn key_survives_leader(rig: &Rig) {
    let practice = &rig.practices[12];
    let first = spec(practice, "survivor-1", 500);
    let id = rig.submit(vec![first.clone()]).await.remove(0).message_id;
    let leader = rig.leader_of(practice).await;
    rig.lab.kill_node(leader).unwrap();
    names_the_same(rig, &first, &id).await;
    assert_ne!(rig.leader_of(practice).await, leader);
    rig.start_node(leader).await;
    rig.until_caught_up(LIMIT).await;
}

pub async fn key_survives_restart(rig: &Rig) {
    let practice = &rig.practices[13];
    let first = spec(practice, "survivor-2", 501);
    let id = rig.submit(vec![first.clone()]).await.remove(0).message_id;
    for node in rig.lab.node_ids() {
        rig.lab.kill_node(node).unwrap();
    }
    for node in rig.lab.node_ids() {
        rig.lab.start_node(node).unwrap();
    }
    for node in rig.lab.node_ids() {
        rig.lab.until_node_ready(node, LIMIT).await.unwrap();
    }
    rig.lab.until_router_ready(LIMIT).await.unwrap();
    names_the_same(rig, &first, &id).await;
    rig.until_caught_up(LIMIT).await;
}
