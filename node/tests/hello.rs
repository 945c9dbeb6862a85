//! A node with an empty directory asks before it takes part: until a majority has answered, and it heeds a no.
use carillon_ctl::pki::{Ca, Leaf, Usage};
use carillon_node::engine::identity::Identity;
use carillon_node::engine::peers::PeerChannels;
use carillon_node::meta::Lobby;
use carillon_proto::identity::{Identity as Who, Role};
use carillon_proto::tls::{self, TlsFiles};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

const CLUSTER: &str = "test";
/// Longer than one question, and than the time that those are given whom a majority does not need.
const SILENCE: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(30);

/// Three members of a new cluster on this machine.
struct Three {
    dir: tempfile::TempDir,
    ca: Ca,
    listeners: Vec<Option<TcpListener>>,
    addresses: Vec<(u64, String)>,
}

impl Three {
    async fn new() -> Self {
        tls::install_provider();
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new("peers").unwrap();
        ca.write(dir.path(), "ca").unwrap();
        let (mut listeners, mut addresses) = (Vec::new(), Vec::new());
        for id in 1..=3u64 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push((id, listener.local_addr().unwrap().to_string()));
            listeners.push(Some(listener));
        }
        Self { dir, ca, listeners, addresses }
    }

    fn files(&self, id: u64) -> TlsFiles {
        let who = Who { cluster: CLUSTER.to_owned(), role: Role::Node(id) };
        let stem = format!("node-{id}");
        self.ca.issue(&Leaf::new(&who, Usage::Both)).unwrap().write(self.dir.path(), &stem).unwrap();
        let file = |name: &str| -> PathBuf { self.dir.path().join(name) };
        TlsFiles { cert: file(&format!("{stem}.pem")), key: file(&format!("{stem}.key")), ca: file("ca.pem") }
    }

    fn identity(&self, id: u64) -> Arc<Identity> {
        Arc::new(Identity::open(&self.dir.path().join(format!("data-{id}")), id, false).unwrap())
    }

    /// Node `id` begins to answer; the store of node 1 that it knows is `known`, 0 = none.
    fn answers(&self, id: u64, known: u64) -> Lobby {
        let identity = self.identity(id);
        if known != 0 {
            assert!(identity.check(1, known));
        }
        let listener = self.listeners[id as usize - 1].as_ref().expect("it was not taken");
        Lobby::open(listener, tls::server_config(&self.files(id)).unwrap(), CLUSTER, identity).unwrap()
    }

    /// Node 1 asks.
    fn ask(&self) -> tokio::task::JoinHandle<anyhow::Result<()>> {
        let client = tls::client_config(&self.files(1)).unwrap();
        let (identity, addresses) = (self.identity(1), self.addresses.clone());
        tokio::spawn(async move {
            let channels = PeerChannels::new(1, &addresses, client).unwrap();
            identity.ask_before_creating(&channels).await
        })
    }
}

/// The others listen and say nothing for longer than a question lasts, as on a machine that is very busy: the node waits, and when
/// one of them can speak at last and knows another disk, it heeds that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_waits_for_slow_peers_and_is_refused() {
    let three = Three::new().await;
    let mut asking = three.ask();
    assert!(tokio::time::timeout(SILENCE, &mut asking).await.is_err(), "it went on without any answer");
    let _lobby = three.answers(2, 77);
    let error =
        tokio::time::timeout(LIMIT, asking).await.expect("it hears").unwrap().unwrap_err().to_string();
    assert!(error.contains("node 2 knows another one") && error.contains("node replace 1"), "{error}");
}

/// All members of a new cluster ask each other at the same time, and each has to answer before it has begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_members_let_each_other_in_and_a_majority_is_enough() {
    let three = Three::new().await;
    let _lobbies = (three.answers(1, 0), three.answers(2, 0));
    // The third never comes.
    tokio::time::timeout(LIMIT, three.ask()).await.expect("one of two others is enough").unwrap().unwrap();
}

/// The one that says no may be the slower one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_no_that_comes_in_time_counts() {
    let three = Three::new().await;
    let _lobbies = (three.answers(2, 0), three.answers(3, 77));
    let error = tokio::time::timeout(LIMIT, three.ask()).await.expect("both answer").unwrap().unwrap_err();
    assert!(error.to_string().contains("node 3 knows another one"), "{error}");
}

/// The plane takes the socket over from the lobby.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_lobby_leaves_the_socket_to_others() {
    let mut three = Three::new().await;
    three.answers(2, 0).close().await;
    let listener = three.listeners[1].take().unwrap();
    let address = three.addresses[1].1.clone();
    let client = tokio::spawn(async move { tokio::net::TcpStream::connect(address).await });
    let (_, from) = tokio::time::timeout(LIMIT, listener.accept()).await.expect("it comes to us").unwrap();
    assert_eq!(client.await.unwrap().unwrap().local_addr().unwrap(), from);
}
