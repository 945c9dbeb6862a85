//! Replicas are created, changed and ended while the engine of one node runs, and a restart finds what was left.
use bytes::Bytes;
use carillon_consensus::MemberChange;
use carillon_node::config::Config;
use carillon_node::engine::handle::GroupStatus;
use carillon_node::engine::identity::Identity;
use carillon_node::engine::peers::PeerChannels;
use carillon_node::engine::{self, Engine, MemberError, MemberMessage, NodeHandle};
use carillon_node::meta::Membership;
use carillon_proto::internal::{Command, CommandBatch, Expire, command::Kind};
use prost::Message as _;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
const GROUP: u32 = 2;
/// A later replica of the same group on the same node.
const SECOND: u64 = 1 << 32 | 1;

fn config(dir: &Path) -> Config {
    let text = format!(
        r#"
        cluster_id = "lab"
        node_id = 1
        data_dir = {dir:?}
        lab = true
        partitions = 3
        peer_listen = "127.0.0.1:0"
        admin_listen = "127.0.0.1:0"
        http_listen = "127.0.0.1:0"
        secrets_dir = {dir:?}
        members = [{{ node_id = 1, peer_address = "127.0.0.1:1" }}]
        peer_tls = {{ cert = "c", key = "k", ca = "a" }}
        admin_tls = {{ cert = "c", key = "k", ca = "a" }}
        keys = {{ provider = "file", file = "f" }}
        tuning = {{ tick_ms = 20 }}
        "#
    );
    toml::from_str(&text).unwrap()
}

/// Engines start and stop on a thread that may block.
async fn start(dir: &Path) -> Engine {
    let config = config(dir);
    let runtime = tokio::runtime::Handle::current();
    let started = tokio::task::spawn_blocking(move || {
        let _inside = runtime.enter();
        let identity = Identity::open(&config.data_dir, 1, engine::has_log(&config)).unwrap();
        carillon_proto::tls::install_provider();
        let nobody = rustls::RootCertStore::empty();
        let versions = [&rustls::version::TLS13];
        let tls = rustls::ClientConfig::builder_with_protocol_versions(&versions)
            .with_root_certificates(nobody)
            .with_no_client_auth();
        let channels = Arc::new(PeerChannels::new(1, &[], Arc::new(tls)).unwrap());
        let membership = Membership {
            cluster_id: config.cluster_id.clone(),
            node_id: 1,
            partitions: config.partitions,
            founders: vec![1],
            nodes: BTreeMap::new(),
        };
        let mut engine = engine::start(&config, &membership, &channels, &identity).unwrap();
        // Nobody drives here: events are drained so that the applier does not wait.
        let mut events = engine.take_driver_events();
        runtime.spawn(async move { while events.recv().await.is_some() {} });
        engine
    });
    started.await.unwrap()
}

async fn stop(engine: Engine) {
    tokio::task::spawn_blocking(move || engine.stop()).await.unwrap();
}

async fn until(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !look().await {
        assert!(Instant::now() < end, "{what}: not in {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn status(handle: &NodeHandle, group: u32) -> Option<GroupStatus> {
    handle.status().await.into_iter().find(|s| s.group == group)
}

async fn until_leading(handle: &NodeHandle) {
    until("it leads", async || handle.read(0).await.is_ok() && handle.read(GROUP).await.is_ok()).await;
}

fn command() -> Bytes {
    let command = Command { kind: Some(Kind::Expire(Expire::default())) };
    assert!(!CommandBatch { now_ms: 0, commands: vec![command.clone()] }.encode_to_vec().is_empty());
    command.encode_to_vec().into()
}

async fn change(handle: &NodeHandle, change: MemberChange) -> Result<(), MemberError> {
    handle.member(GROUP, MemberMessage::Change(change)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_come_and_go_and_a_removed_one_stays_gone() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let handle = engine.handle.clone();
    until_leading(&handle).await;
    handle.propose(GROUP, vec![command()]).await.unwrap();
    let hosted = || handle.hosted().borrow().clone();
    assert_eq!(hosted().iter().map(|(g, r)| (*g, *r)).collect::<Vec<_>>(), [(0, 1), (1, 1), (2, 1), (3, 1)]);

    let create = |replica_id| handle.member(GROUP, MemberMessage::Create { replica_id });
    let destroy = |replica_id| handle.member(GROUP, MemberMessage::Destroy { replica_id });
    assert_eq!(create(1).await, Ok(()), "it is there");
    assert_eq!(create(SECOND).await, Err(MemberError::OtherReplica(1)));
    assert_eq!(create(2).await, Err(MemberError::NotOfThisNode));
    assert_eq!(destroy(SECOND).await, Err(MemberError::OtherReplica(1)));

    assert_eq!(destroy(1).await, Ok(()));
    assert_eq!(destroy(1).await, Ok(()), "it is gone");
    assert!(!hosted().contains_key(&GROUP) && handle.local_tables(GROUP).is_err());
    assert!(handle.leaders().borrow().get(&GROUP).is_none());
    assert!(handle.propose(GROUP, vec![command()]).await.is_err());
    assert_eq!(create(1).await, Err(MemberError::Removed(1)));
    assert_eq!(create(SECOND).await, Ok(()));
    let fresh = status(&handle, GROUP).await.unwrap();
    assert_eq!((fresh.replica_id, fresh.last_index, fresh.members.voters.len()), (SECOND, 0, 0));
    let tables = handle.local_tables(GROUP).unwrap();
    assert_eq!(tables.applied().unwrap(), None, "nothing of the old one is left");
    // Whoever holds a handle or tables keeps the database open.
    drop((tables, handle));
    stop(engine).await;

    let engine = start(dir.path()).await;
    let handle = engine.handle.clone();
    let again = status(&handle, GROUP).await.unwrap();
    assert_eq!((again.replica_id, again.last_index), (SECOND, 0));
    let destroy = |replica_id| handle.member(GROUP, MemberMessage::Destroy { replica_id });
    assert_eq!(destroy(1).await, Err(MemberError::OtherReplica(SECOND)), "an old order does no harm");
    assert_eq!(destroy(SECOND).await, Ok(()));
    drop(handle);
    stop(engine).await;

    let engine = start(dir.path()).await;
    assert!(status(&engine.handle, GROUP).await.is_none());
    assert!(status(&engine.handle, 3).await.is_some(), "the others are not touched");
    stop(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_the_membership_is_in_force_and_durable_before_what_follows_it_is_applied() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let handle = engine.handle.clone();
    until_leading(&handle).await;
    let learners = async |handle: &NodeHandle| status(handle, GROUP).await.unwrap().members.learners;
    change(&handle, MemberChange::AddLearner(9)).await.unwrap();
    // What is proposed behind the change waits for it and is applied.
    handle.propose(GROUP, vec![command()]).await.unwrap();
    assert_eq!(learners(&handle).await, [9]);
    let early = change(&handle, MemberChange::Enter { promote: vec![9], demote: vec![] }).await;
    assert!(matches!(early, Err(MemberError::Refused(_))), "{early:?}");
    change(&handle, MemberChange::AddLearner(10)).await.unwrap();
    until("the second change is in force", async || learners(&handle).await == [9, 10]).await;
    // The meta group too: its entries go another way through the applier.
    handle.member(0, MemberMessage::Change(MemberChange::AddLearner(9))).await.unwrap();
    until("the meta group has a learner", async || {
        let meta = status(&handle, 0).await.unwrap();
        meta.members.learners == [9] && meta.applied == meta.last_index
    })
    .await;
    handle.propose(GROUP, vec![command()]).await.unwrap();
    let before = status(&handle, GROUP).await.unwrap();
    assert_eq!(before.followers.len(), 2);
    drop(handle);
    stop(engine).await;

    let engine = start(dir.path()).await;
    let handle = engine.handle.clone();
    assert_eq!(learners(&handle).await, [9, 10]);
    until_leading(&handle).await;
    assert!(status(&handle, GROUP).await.unwrap().last_index > before.last_index);
    change(&handle, MemberChange::Remove(9)).await.unwrap();
    handle.propose(GROUP, vec![command()]).await.unwrap();
    assert_eq!(learners(&handle).await, [10]);
    assert!(status(&handle, 0).await.unwrap().blocked.is_empty());
    stop(engine).await;
}
