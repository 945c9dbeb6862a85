//! A test bed: three fake nodes and a real router, all over TLS on loopback.
pub mod certs;
pub mod cluster;
mod node;

use carillon_proto::identity::Role;
use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::messages_client::MessagesClient;
use carillon_proto::public::submit_result::Result as Outcome;
use carillon_proto::public::{AcceptedMessage, MessageSpec, SubmitMessagesRequest, SubmitResult};
use carillon_proto::tls::{self, TlsFiles};
use carillon_proto::{Slot, errors};
use carillon_router::config::{Config, Tuning};
use carillon_router::server::{self, Running};
use certs::Authority;
use cluster::{Cluster, PARTITIONS};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Request, Status};

pub type Client = MessagesClient<Channel>;

pub const TENANT: &str = "lakeside";
/// Practices of [`TENANT`].
pub const PRACTICES: [&str; 6] = ["north", "south", "east", "west", "harbor", "hill"];
/// A practice of another tenant.
pub const FOREIGN: &str = "riverside-main";

pub struct Bed {
    pub cluster: Arc<Cluster>,
    pub clients_ca: Authority,
    pub peers_ca: Authority,
    pub router: Running,
    nodes: Undertaker,
    _directory: tempfile::TempDir,
}

impl Bed {
    /// A cluster in which everything works, and a router that knows it.
    pub async fn start() -> Self {
        tls::install_provider();
        let directory = tempfile::tempdir().unwrap();
        let clients_ca = Authority::new(directory.path(), "clients");
        let peers_ca = Authority::new(directory.path(), "peers");
        let (deaths, mut dying) = tokio::sync::mpsc::channel(16);
        let cluster = Cluster::new(deaths);
        for (practice, zone) in PRACTICES.iter().zip(["America/Chicago", "America/New_York"].iter().cycle()) {
            cluster.add_practice(TENANT, practice, zone);
        }
        cluster.add_practice("riverside", FOREIGN, "America/Denver");
        let nodes = Nodes::default();
        for id in 1..=3 {
            let files = peers_ca.issue(&format!("spiffe://lab/node/{id}"), &peers_ca);
            let (runtime, address) = node::start(id, Arc::clone(&cluster), &files);
            cluster.tell(|state| state.nodes.insert(id, address));
            nodes.0.lock().insert(id, runtime);
        }
        let graves = nodes.clone();
        let survivors = Arc::clone(&cluster);
        tokio::spawn(async move {
            while let Some(id) = dying.recv().await {
                graves.kill(id);
                survivors.fail_over(id, id % 3 + 1);
            }
        });
        let config = Config {
            lab: true,
            cluster_id: "lab".to_owned(),
            name: "r1".to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            http_listen: "127.0.0.1:1".parse().unwrap(),
            log_filter: "info".to_owned(),
            // One seed: the other nodes must be learnt.
            nodes: vec![cluster.with(|state| state.nodes[&1].clone())],
            public_tls: clients_ca.issue("spiffe://lab/router/r1", &clients_ca),
            node_tls: peers_ca.issue("spiffe://lab/router/r1", &peers_ca),
            tuning: Tuning { drain_timeout_ms: 2_000, ..Tuning::default() },
        };
        let listener = tokio::net::TcpListener::bind(config.listen).await.unwrap();
        let router = server::start(&config, listener).await.unwrap();
        router.until_ready().await;
        Self { cluster, clients_ca, peers_ca, router, nodes: Undertaker(nodes), _directory: directory }
    }

    /// A client with a certificate for `uri` from the clients' CA.
    pub fn client_as(&self, uri: &str) -> Client {
        self.client_with(&self.clients_ca.issue(uri, &self.clients_ca))
    }

    pub fn client_with(&self, files: &TlsFiles) -> Client {
        MessagesClient::new(self.channel(files)).max_decoding_message_size(16 << 20)
    }

    pub fn channel(&self, files: &TlsFiles) -> Channel {
        let config = tls::client_config(files).unwrap();
        tls::channel(&self.router.address().to_string(), config, Some(Role::Router("r1".to_owned()))).unwrap()
    }

    /// For the other services of the router, as the own tenant.
    pub fn own_channel(&self) -> Channel {
        self.channel(&self.clients_ca.issue(&format!("spiffe://lab/tenant/{TENANT}"), &self.clients_ca))
    }

    pub fn client(&self) -> Client {
        self.client_as(&format!("spiffe://lab/tenant/{TENANT}"))
    }

    /// Stops the router in order, in the background; the nodes live on.
    pub fn stop_router(self) -> (Arc<Cluster>, tokio::task::JoinHandle<bool>) {
        let cluster = Arc::clone(&self.cluster);
        let stopped = tokio::spawn(async move {
            let Self { router, nodes, .. } = self;
            let drained = router.stop().await;
            drop(nodes);
            drained
        });
        (cluster, stopped)
    }

    /// Cuts a node off at once. Nobody takes over until the test says so.
    pub fn kill(&self, id: u64) {
        self.nodes.0.kill(id);
    }
}

/// The processes of the nodes, in a way.
#[derive(Clone, Default)]
struct Nodes(Arc<Mutex<BTreeMap<u64, Runtime>>>);

impl Nodes {
    fn kill(&self, id: u64) {
        let runtime = self.0.lock().remove(&id);
        runtime.into_iter().for_each(Runtime::shutdown_background);
    }
}

/// The test's handle; when it goes, all nodes go. A runtime must not be dropped inside another one.
struct Undertaker(Nodes);

impl Drop for Undertaker {
    fn drop(&mut self) {
        (1..=3).for_each(|id| self.0.kill(id));
    }
}

pub fn partition_of(practice: &str) -> u32 {
    Slot::of_practice(TENANT, practice).partition(PARTITIONS)
}

/// The number of the practice.
pub fn number_of(practice: &str) -> u32 {
    PRACTICES.iter().position(|p| *p == practice).unwrap() as u32 + 1
}

/// A message with an idempotency key.
pub fn spec(practice: &str, key: &str) -> MessageSpec {
    MessageSpec {
        practice: practice.to_owned(),
        recipient: Some(Recipient::PhoneNumber("+12125550123".to_owned())),
        body: format!("Your appointment is on Tuesday. {key}"),
        class: 2,
        idempotency_key: key.to_owned(),
        external_reference: format!("visit-{key}"),
        ..MessageSpec::default()
    }
}

pub fn keyless(practice: &str) -> MessageSpec {
    MessageSpec { idempotency_key: String::new(), ..spec(practice, "") }
}

/// With a deadline.
pub fn within<T>(timeout: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

pub fn timed<T>(message: T) -> Request<T> {
    within(Duration::from_secs(20), message)
}

pub async fn submit(client: &mut Client, messages: Vec<MessageSpec>) -> Vec<SubmitResult> {
    let request = SubmitMessagesRequest { messages, validate_only: false };
    client.submit_messages(timed(request)).await.unwrap().into_inner().results
}

/// The accepted message of a result.
pub fn accepted(result: &SubmitResult) -> &AcceptedMessage {
    match &result.result {
        Some(Outcome::Accepted(message)) => message,
        other => panic!("not accepted: {other:?}"),
    }
}

/// The error of a result.
pub fn refused(result: &SubmitResult) -> Status {
    match &result.result {
        Some(Outcome::Error(error)) => errors::from_rpc(error),
        other => panic!("not refused: {other:?}"),
    }
}
