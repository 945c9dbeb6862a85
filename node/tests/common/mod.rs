//! One node's engine with its receipt router, in this process: alone in its cluster, or one of three whose other two
//! never came. Dropping it stops the threads.
#![allow(dead_code)]
use bytes::Bytes;
use carillon_carriers::ReceiptAck;
use carillon_carriers::connector::{InboundSink as _, ReceiptReport};
use carillon_core::{CommandResult, query};
use carillon_node::config::{Carriers, Classes, Config, Disk, KeyConfig, Member, Retention, Scrub, Tuning};
use carillon_node::delivery::{Facts, ReceiptRouter, ReceiptSink};
use carillon_node::engine::identity::Identity;
use carillon_node::engine::peers::PeerChannels;
use carillon_node::engine::{self, Engine, NodeHandle};
use carillon_node::meta::Membership;
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::{
    Accept, BeginAttempt, Command, MessageStatus, ReceiptState, RecordOutcome, RetryPolicy,
};
use carillon_proto::public::{Encoding, MessageClass, MessageState, Outcome, Priority};
use carillon_proto::tls::TlsFiles;
use carillon_proto::{MessageId, Slot};
use prost::Message as _;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::oneshot;

pub const CARRIER: u32 = 7;

pub struct World {
    pub config: Config,
    pub handle: NodeHandle,
    pub facts: Facts,
    pub router: ReceiptRouter,
    pub engine: Option<Engine>,
    pub identity: Arc<Identity>,
    sink: ReceiptSink,
    dir: tempfile::TempDir,
}

/// Nobody to talk to.
pub fn no_peers() -> Arc<PeerChannels> {
    carillon_proto::tls::install_provider();
    let nobody = rustls::RootCertStore::empty();
    let versions = [&rustls::version::TLS13];
    let tls = rustls::ClientConfig::builder_with_protocol_versions(&versions)
        .with_root_certificates(nobody)
        .with_no_client_auth();
    Arc::new(PeerChannels::new(1, &[], Arc::new(tls)).unwrap())
}

/// A configuration with so many members, all of them here but only node 1 running.
fn config(dir: &std::path::Path, members: u64) -> Config {
    let files = TlsFiles { cert: "unused".into(), key: "unused".into(), ca: "unused".into() };
    let nowhere = "127.0.0.1:1".parse().unwrap();
    std::fs::write(dir.join("lab.key"), "ab".repeat(32)).unwrap();
    Config {
        cluster_id: "test".to_owned(),
        node_id: 1,
        data_dir: dir.join("data"),
        lab: true,
        partitions: 1,
        peer_listen: nowhere,
        admin_listen: nowhere,
        http_listen: nowhere,
        log_filter: "off".to_owned(),
        secrets_dir: dir.to_owned(),
        members: (1..=members)
            .map(|node_id| Member { node_id, peer_address: "127.0.0.1:1".to_owned() })
            .collect(),
        join: None,
        advertise: None,
        feature_level_max: None,
        peer_tls: files.clone(),
        admin_tls: files,
        keys: KeyConfig::File { file: dir.join("lab.key") },
        classes: Classes::default(),
        carriers: Carriers::default(),
        retention: Retention::default(),
        disk: Disk::default(),
        scrub: Scrub::default(),
        tuning: Tuning { tick_ms: 20, ..Tuning::default() },
    }
}

impl World {
    /// Leads its only partition.
    pub async fn alone() -> Self {
        let world = Self::of(1);
        let mut leaders = world.handle.leaders();
        let leads = leaders.wait_for(|groups| groups.get(&1).is_some_and(|l| l.leader == 1));
        drop(leads.await.expect("the engine runs"));
        world
    }

    /// Without a quorum: nobody leads, nothing is committed.
    pub fn without_quorum() -> Self {
        Self::of(3)
    }

    fn of(members: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), members);
        let channels = no_peers();
        let identity = Identity::open(&config.data_dir, 1, false).unwrap();
        let membership = Membership {
            cluster_id: config.cluster_id.clone(),
            node_id: 1,
            partitions: config.partitions,
            founders: (1..=members).collect(),
            nodes: BTreeMap::new(),
        };
        let engine = engine::start(&config, &membership, &channels, &identity).unwrap();
        let handle = engine.handle.clone();
        let facts = Facts::start(&handle, &channels);
        let (router, reports) = ReceiptRouter::new(handle.clone(), channels, facts.clone());
        tokio::spawn(router.clone().run(reports));
        let sink = ReceiptSink { carrier_no: CARRIER, router: router.clone() };
        Self { config, handle, facts, router, engine: Some(engine), identity: Arc::new(identity), sink, dir }
    }

    /// A report of the carrier. The answer: true = acknowledged, false = to be repeated.
    pub fn report(
        &self,
        known: Option<MessageId>,
        refs: &[&str],
        state: ReceiptState,
    ) -> oneshot::Receiver<bool> {
        let (sender, answer) = oneshot::channel();
        self.sink.receipt(ReceiptReport {
            carrier_refs: refs.iter().map(|r| (*r).to_owned()).collect(),
            state,
            code: String::new(),
            known,
            ack: ReceiptAck::new(move |committed| {
                let _test_is_over = sender.send(committed);
            }),
        });
        answer
    }

    pub async fn propose(&self, kind: Kind) -> CommandResult {
        let command = Bytes::from(Command { kind: Some(kind) }.encode_to_vec());
        self.handle.propose(1, vec![command]).await.unwrap().remove(0)
    }

    /// A message with so many segments.
    pub async fn accepted(&self, number: u64, segments: u32) -> MessageId {
        let id = MessageId::new(1_800_000_000_000, Slot::new(3).unwrap(), number);
        let result = self.propose(Kind::Accept(accept(id, segments))).await;
        assert_eq!(result, CommandResult::Accepted);
        id
    }

    /// The same, with one attempt under way.
    pub async fn in_flight(&self, number: u64, segments: u32) -> MessageId {
        let id = self.accepted(number, segments).await;
        let begin = BeginAttempt {
            message_id: id.to_bytes(),
            attempt_no: 1,
            carrier_no: CARRIER,
            term: self.handle.leadership(1).term,
            send_by_ms: u64::MAX,
            node_id: 1,
            sender: String::new(),
            ..Default::default()
        };
        let result = self.propose(Kind::BeginAttempt(begin)).await;
        assert!(matches!(result, CommandResult::Begun(_)), "{result:?}");
        id
    }

    pub fn status(&self, id: MessageId) -> MessageStatus {
        query::message(&*self.handle.local_tables(1).unwrap(), &id).unwrap().expect("it exists").1
    }

    pub fn state(&self, id: MessageId) -> MessageState {
        MessageState::try_from(self.status(id).state).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.stop();
        }
    }
}

fn accept(id: MessageId, segments: u32) -> Accept {
    Accept {
        message_id: id.to_bytes(),
        practice_no: 1,
        class: MessageClass::Reminder as i32,
        priority: Priority::Normal as i32,
        expires_at_ms: u64::MAX / 2,
        encoding: Encoding::Gsm7 as i32,
        segments,
        carrier_no: CARRIER,
        retry: Some(RetryPolicy { attempts_max: 3, backoff_base_ms: 1_000, ..Default::default() }),
        ..Default::default()
    }
}

/// The carrier took it over under these references.
pub fn taken_over(id: MessageId, refs: &[&str]) -> Kind {
    Kind::RecordOutcome(RecordOutcome {
        message_id: id.to_bytes(),
        attempt_no: 1,
        outcome: Outcome::Accepted as i32,
        carrier_refs: refs.iter().map(|r| (*r).to_owned()).collect(),
        segments: refs.len() as u32,
        ..Default::default()
    })
}
