//! Facts: each one's own result comes back, here and from another node; a stopping node gives up what nobody commits.
mod common;

use bytes::Bytes;
use carillon_core::CommandResult;
use carillon_node::delivery::{self, Fact, Facts, Grants, MonoClock, ShareKeeper};
use carillon_node::edge::peer::PeerApi;
use carillon_node::hours::Hours;
use carillon_node::meta::MetaClient;
use carillon_node::seal::{FileKeyProvider, Keyring};
use carillon_proto::identity::{Identity, Role};
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::peer_server::Peer as _;
use carillon_proto::internal::{
    Command, FactResult, ForwardFactsRequest, ForwardReceiptsRequest, ReceiptState, RecordReceipt,
};
use carillon_proto::tls::PeerInfo;
use carillon_proto::{MessageId, Slot};
use common::{CARRIER, World, no_peers, taken_over};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tonic::Request;

const LIMIT: Duration = Duration::from_secs(60);

fn receipt(message_id: Bytes, refs: Vec<String>) -> RecordReceipt {
    RecordReceipt {
        message_id,
        carrier_no: CARRIER,
        carrier_refs: refs,
        state: ReceiptState::Delivered as i32,
        code: String::new(),
    }
}

fn command(receipt: RecordReceipt) -> Command {
    Command { kind: Some(Kind::RecordReceipt(receipt)) }
}

async fn push(facts: &Facts, command: Command) -> oneshot::Receiver<FactResult> {
    let (sender, told) = oneshot::channel();
    let done: Box<dyn FnOnce(FactResult) + Send> = Box::new(move |result| {
        let _test_is_over = sender.send(result);
    });
    facts.push(1, Fact { command, done: Some(done) }).await;
    told
}

/// As another node would call it.
fn from_node<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let identity = Identity { cluster: "test".to_owned(), role: Role::Node(2) };
    request.extensions_mut().insert(PeerInfo { identity: Some(Arc::new(identity)) });
    request
}

#[tokio::test]
async fn another_node_learns_the_result_of_each_fact() {
    let world = World::alone().await;
    let id = world.in_flight(1, 2).await;
    let api = PeerApi {
        cluster_id: "test".to_owned(),
        handle: world.handle.clone(),
        inbox: world.engine.as_ref().unwrap().inbox.clone(),
        meta: MetaClient::new(world.handle.clone(), no_peers()),
        receipts: world.router.clone(),
        grants: Grants::new(world.handle.clone(), MonoClock::start(), ShareKeeper::default()),
        identity: Arc::clone(&world.identity),
    };
    let nobody = MessageId::new(5, Slot::new(3).unwrap(), 5).to_bytes();
    let commands = vec![
        command(receipt(id.to_bytes(), vec!["a".into()])),
        Command { kind: Some(taken_over(id, &["a", "b"])) },
        command(receipt(id.to_bytes(), vec!["a".into()])),
        command(receipt(nobody, vec!["a".into()])),
        command(RecordReceipt { state: 0, ..receipt(id.to_bytes(), vec![]) }),
    ];
    let request = from_node(ForwardFactsRequest { partition: 1, commands });
    let response = api.forward_facts(request).await.unwrap().into_inner();
    use FactResult::*;
    let expected = [UnknownReference, Recorded, Recorded, NotFound, Malformed];
    assert_eq!(response.results().collect::<Vec<_>>(), expected);
    let receipts = vec![receipt(Bytes::new(), vec!["b".into()]), receipt(Bytes::new(), vec!["c".into()])];
    let response =
        api.forward_receipts(from_node(ForwardReceiptsRequest { receipts })).await.unwrap().into_inner();
    assert_eq!(response.results().collect::<Vec<_>>(), [Recorded, UnknownReference]);
    assert_eq!(response.partitions, [1]);
}

#[tokio::test]
async fn facts_that_fill_more_than_one_proposal_are_all_told() {
    let world = World::alone().await;
    let nobody = MessageId::new(5, Slot::new(3).unwrap(), 5).to_bytes();
    let refs: Vec<String> = (0..16).map(|n| format!("{n:0128}")).collect();
    let mut told = Vec::new();
    for _ in 0..400 {
        told.push(push(&world.facts, command(receipt(nobody.clone(), refs.clone()))).await);
    }
    for answer in told {
        assert_eq!(tokio::time::timeout(LIMIT, answer).await.unwrap(), Ok(FactResult::NotFound));
    }
    world.facts.settled().await;
    assert_eq!(world.facts.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_without_a_quorum_gives_its_facts_up() {
    let mut world = World::without_quorum();
    let channels = no_peers();
    let provider = FileKeyProvider::open(&world.config.secrets_dir.join("lab.key")).unwrap();
    let meta = MetaClient::new(world.handle.clone(), Arc::clone(&channels));
    let keyring = Arc::new(Keyring::new(Arc::new(provider), world.handle.clone(), meta.clone()));
    let events = world.engine.as_mut().unwrap().take_driver_events();
    let delivery = delivery::start(
        &world.config,
        world.handle.clone(),
        keyring,
        channels,
        meta,
        Hours::default(),
        events,
    )
    .unwrap();
    let id = MessageId::new(5, Slot::new(3).unwrap(), 5).to_bytes();
    let told = push(&delivery.facts, command(receipt(id.clone(), vec!["a".into()]))).await;
    let began = tokio::time::Instant::now();
    delivery.drain(LIMIT).await;
    assert_eq!(told.await, Ok(FactResult::Unspecified));
    assert!(began.elapsed() < LIMIT, "virtual time: the limit was waited for");
    assert_eq!(delivery.facts.open(), 0);
    // What comes afterwards is not waited for either.
    let late = push(&delivery.facts, command(receipt(id, vec!["a".into()]))).await;
    assert_eq!(late.await, Ok(FactResult::Unspecified));
}

#[tokio::test]
async fn a_drain_waits_for_facts_that_can_be_committed() {
    let mut world = World::alone().await;
    let channels = no_peers();
    let provider = FileKeyProvider::open(&world.config.secrets_dir.join("lab.key")).unwrap();
    let meta = MetaClient::new(world.handle.clone(), Arc::clone(&channels));
    let keyring = Arc::new(Keyring::new(Arc::new(provider), world.handle.clone(), meta.clone()));
    let events = world.engine.as_mut().unwrap().take_driver_events();
    let id = world.in_flight(1, 2).await;
    let delivery = delivery::start(
        &world.config,
        world.handle.clone(),
        keyring,
        channels,
        meta,
        Hours::default(),
        events,
    )
    .unwrap();
    let told = push(&delivery.facts, Command { kind: Some(taken_over(id, &["a", "b"])) }).await;
    delivery.drain(LIMIT).await;
    assert_eq!(told.await, Ok(FactResult::Recorded));
    let again = world.propose(taken_over(id, &["a", "b"])).await;
    assert_eq!(again, CommandResult::Done);
    assert_eq!(world.status(id).attempts[0].segments, 2);
}
