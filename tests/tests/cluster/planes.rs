//! A certificate works on one plane only: wrong or expired ones fail in the handshake with an exact alert, and one of the
//! right CA with the wrong role is denied by the service. And a node refuses a key file outside lab mode.
use carillon_ctl::lab::{CLUSTER, Lab, LabOptions, OPERATOR, Plane, TENANT};
use carillon_ctl::pki::{Ca, Leaf, Usage};
use carillon_proto::admin::GetStatusRequest;
use carillon_proto::admin::admin_client::AdminClient;
use carillon_proto::identity::{Identity, Role};
use carillon_proto::internal::node_client::NodeClient;
use carillon_proto::internal::peer_client::PeerClient;
use carillon_proto::internal::{NodeSubmitRequest, ProposeMetaRequest};
use carillon_proto::public::SubmitMessagesRequest;
use carillon_proto::tls::{self, TlsFiles};
use carillon_proto::transport::Cause;
use carillon_tests::api::{spec, timed, told};
use carillon_tests::rig::{Rig, program};
use rustls::pki_types::pem::PemObject as _;
use rustls::{AlertDescription, Error as TlsFault};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{Code, Status};

const LIMIT: Duration = Duration::from_secs(10);

fn tenant() -> Identity {
    Identity { cluster: CLUSTER.to_owned(), role: Role::Tenant(TENANT.to_owned()) }
}

fn operator() -> Identity {
    Identity { cluster: CLUSTER.to_owned(), role: Role::Operator(OPERATOR.to_owned()) }
}

/// Issues a leaf into `dir` and trusts the servers of `plane`.
fn issue(rig: &Rig, dir: &Path, stem: &str, ca: &Ca, leaf: &Leaf, plane: Plane) -> TlsFiles {
    ca.issue(leaf).unwrap().write(dir, stem).unwrap();
    let ca = rig.lab.tls("any", plane).ca;
    TlsFiles { cert: dir.join(format!("{stem}.pem")), key: dir.join(format!("{stem}.key")), ca }
}

/// What the server says to this certificate: `None` when it lets it in. In TLS 1.3 the client is done before the
/// server has looked at its certificate, so the alert comes with the first read.
async fn alert(address: &str, files: &TlsFiles) -> Option<AlertDescription> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(tls::client_config(files).unwrap());
    let name = "127.0.0.1".to_owned().try_into().unwrap();
    let mut stream = connector.connect(name, tcp).await.expect("the server is who it should be");
    let mut byte = [0];
    let error = match tokio::time::timeout(LIMIT, stream.read(&mut byte)).await.expect("the server speaks") {
        Ok(_) => return None,
        Err(error) => error,
    };
    match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsFault>()) {
        Some(TlsFault::AlertReceived(alert)) => Some(*alert),
        other => panic!("not an alert: {other:?} {error}"),
    }
}

async fn handshake_failures(rig: &Rig, process: &str) -> f64 {
    let page = rig.metrics().await.remove(process).expect("the process has a page");
    let page = carillon_loadtest::scrape::Page::parse(&page);
    page.sum("carillon_tls_handshake_failures_total").unwrap_or(0.0)
}

pub async fn handshakes(rig: &Rig) {
    let dir = tempfile::tempdir().unwrap();
    let (public, peer) = (rig.lab.router_address(), rig.lab.node_peer(1).unwrap());
    let admin = format!("127.0.0.1:{}", rig.lab.plan().nodes[0].admin_port);
    let good = |stem: &str, plane| rig.lab.tls(stem, plane);
    let tenant_files = good(&format!("tenant-{TENANT}"), Plane::Clients);
    let operator_files = good(&format!("operator-{OPERATOR}"), Plane::Operators);
    // Who belongs there gets in: the probe can tell the difference.
    assert_eq!(alert(&public, &tenant_files).await, None);
    assert_eq!(alert(&admin, &operator_files).await, None);
    assert_eq!(alert(&peer, &good("router-r1", Plane::Peers)).await, None);

    let clients = rig.lab.ca(Plane::Clients).unwrap();
    let leaf = Leaf::new(&tenant(), Usage::Client);
    let expired = issue(rig, dir.path(), "expired", &clients, &leaf.clone().expired(), Plane::Clients);
    let stranger = Ca::new("some other ca").unwrap();
    let wrong_ca = issue(rig, dir.path(), "wrong-ca", &stranger, &leaf, Plane::Clients);
    let before = (handshake_failures(rig, "router").await, handshake_failures(rig, "node-1").await);
    assert_eq!(alert(&public, &expired).await, Some(AlertDescription::CertificateExpired));
    assert_eq!(alert(&public, &wrong_ca).await, Some(AlertDescription::UnknownCA));
    let on = |files: &TlsFiles, plane| TlsFiles { ca: rig.lab.tls("any", plane).ca, ..files.clone() };
    for (address, files) in [
        (&peer, on(&tenant_files, Plane::Peers)),
        (&admin, on(&tenant_files, Plane::Operators)),
        (&public, on(&operator_files, Plane::Clients)),
        (&peer, on(&operator_files, Plane::Peers)),
        (&admin, on(&good("router-r1", Plane::Peers), Plane::Operators)),
        (&public, on(&good("node-2", Plane::Peers), Plane::Clients)),
    ] {
        assert_eq!(alert(address, &files).await, Some(AlertDescription::UnknownCA), "{files:?}");
    }
    // A caller over gRPC has no connection, and learns the alert: never an answer of ours.
    for (files, alert) in
        [(&expired, AlertDescription::CertificateExpired), (&wrong_ca, AlertDescription::UnknownCA)]
    {
        let request = SubmitMessagesRequest {
            messages: vec![spec(&rig.practices[11], "never", 0)],
            validate_only: false,
        };
        let status = rig.client_with(files).messages().submit_messages(timed(request)).await.unwrap_err();
        unreachable_with(&status, alert);
    }
    // A tenant, and so a client certificate, on the plane of the peers; an expired peer there; a tenant among operators.
    let peers = rig.lab.ca(Plane::Peers).unwrap();
    let node = Identity { cluster: CLUSTER.to_owned(), role: Role::Node(2) };
    let old_node = Leaf::new(&node, Usage::Client).expired();
    let old_node = issue(rig, dir.path(), "old-node", &peers, &old_node, Plane::Peers);
    for (files, alert) in [
        (on(&tenant_files, Plane::Peers), AlertDescription::UnknownCA),
        (old_node, AlertDescription::CertificateExpired),
    ] {
        let channel = || tls::channel(&peer, tls::client_config(&files).unwrap(), None).unwrap();
        let status =
            NodeClient::new(channel()).submit(timed(NodeSubmitRequest::default())).await.unwrap_err();
        unreachable_with(&status, alert);
        let status =
            PeerClient::new(channel()).propose_meta(timed(ProposeMetaRequest::default())).await.unwrap_err();
        unreachable_with(&status, alert);
    }
    let files = on(&tenant_files, Plane::Operators);
    let channel = tls::channel(&admin, tls::client_config(&files).unwrap(), None).unwrap();
    let status = AdminClient::new(channel).get_status(timed(GetStatusRequest {})).await.unwrap_err();
    unreachable_with(&status, AlertDescription::UnknownCA);
    let after = (handshake_failures(rig, "router").await, handshake_failures(rig, "node-1").await);
    // 4 probes and 2 calls at the router, 4 probes and 5 calls at the node.
    assert!(after.0 >= before.0 + 6.0 && after.1 >= before.1 + 9.0, "{before:?} {after:?}");
}

/// UNAVAILABLE because of this alert, and nothing of ours in it.
fn unreachable_with(status: &Status, alert: AlertDescription) {
    assert_eq!(
        (status.code(), Cause::of(status)),
        (Code::Unavailable, Some(Cause::Alert(alert))),
        "{status:?}"
    );
    assert!(status.details().is_empty(), "{status:?}");
}

/// Everybody's certificate is good; only the version of TLS is not.
pub async fn old_tls(rig: &Rig) {
    let admin = format!("127.0.0.1:{}", rig.lab.plan().nodes[0].admin_port);
    for (address, files) in [
        (rig.lab.router_address(), rig.lab.tls(&format!("tenant-{TENANT}"), Plane::Clients)),
        (rig.lab.node_peer(1).unwrap(), rig.lab.tls("router-r1", Plane::Peers)),
        (admin, rig.lab.tls(&format!("operator-{OPERATOR}"), Plane::Operators)),
    ] {
        assert_eq!(alert(&address, &files).await, None, "{address} with TLS 1.3");
        let mut roots = rustls::RootCertStore::empty();
        tls::certificates(&files.ca).unwrap().into_iter().for_each(|ca| roots.add(ca).unwrap());
        let key = rustls::pki_types::PrivateKeyDer::from_pem_file(&files.key).unwrap();
        let old = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS12])
            .with_root_certificates(roots)
            .with_client_auth_cert(tls::certificates(&files.cert).unwrap(), key)
            .unwrap();
        let tcp = TcpStream::connect(&address).await.unwrap();
        let name = "127.0.0.1".to_owned().try_into().unwrap();
        let connected = TlsConnector::from(std::sync::Arc::new(old)).connect(name, tcp).await;
        let error = connected.expect_err("TLS 1.2 is refused");
        let fault = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsFault>());
        assert_eq!(fault, Some(&TlsFault::AlertReceived(AlertDescription::ProtocolVersion)), "{address}");
    }
}

pub async fn roles(rig: &Rig) {
    let dir = tempfile::tempdir().unwrap();
    let denied = (Code::PermissionDenied, "WRONG_IDENTITY".to_owned());
    let issue = |stem: &str, plane, identity: &Identity| {
        let ca = rig.lab.ca(plane).unwrap();
        issue(rig, dir.path(), stem, &ca, &Leaf::new(identity, Usage::Client), plane)
    };
    let channel = |address: &str, files: &TlsFiles| {
        tls::channel(address, tls::client_config(files).unwrap(), None).unwrap()
    };
    let peer = rig.lab.node_peer(1).unwrap();
    let admin = format!("127.0.0.1:{}", rig.lab.plan().nodes[0].admin_port);

    let files = issue("tenant-of-peers", Plane::Peers, &tenant());
    let mut node = NodeClient::new(channel(&peer, &files));
    assert_eq!(told(&node.submit(timed(NodeSubmitRequest::default())).await.unwrap_err()), denied);
    let mut peers = PeerClient::new(channel(&peer, &files));
    assert_eq!(told(&peers.propose_meta(timed(ProposeMetaRequest::default())).await.unwrap_err()), denied);
    // A router is no node.
    let mut peers = PeerClient::new(channel(&peer, &rig.lab.tls("router-r1", Plane::Peers)));
    assert_eq!(told(&peers.propose_meta(timed(ProposeMetaRequest::default())).await.unwrap_err()), denied);

    let files = issue("tenant-of-operators", Plane::Operators, &tenant());
    let mut operators = AdminClient::new(channel(&admin, &files));
    assert_eq!(told(&operators.get_status(timed(GetStatusRequest {})).await.unwrap_err()), denied);

    let other_cluster = Identity { cluster: "elsewhere".to_owned(), ..tenant() };
    for (stem, identity) in [("operator-of-clients", operator()), ("elsewhere", other_cluster)] {
        let files = issue(stem, Plane::Clients, &identity);
        let request = SubmitMessagesRequest {
            messages: vec![spec(&rig.practices[11], "never", 0)],
            validate_only: false,
        };
        let status = rig.client_with(&files).messages().submit_messages(timed(request)).await.unwrap_err();
        assert_eq!(told(&status), denied, "{stem}");
    }
}

#[test]
fn a_node_refuses_a_key_file_outside_lab_mode() {
    tls::install_provider();
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::init(dir.path(), &LabOptions::default()).unwrap();
    let config = lab.dir().join("node-1/config.toml");
    let text = fs_err::read_to_string(&config).unwrap();
    let check = |text: &str| {
        fs_err::write(&config, text).unwrap();
        let output = Command::new(program("carillon-node"))
            .arg(format!("--config={}", config.display()))
            .arg("--check")
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check(&text).0, Some(0), "the configuration of a lab is good");
    let production = text.replace("lab = true", "lab = false");
    assert_ne!(production, text);
    // Said so and not said at all: false is the default.
    for text in [production, text.replace("lab = true\n", "")] {
        fs_err::write(&config, text).unwrap();
        let output = Command::new(program("carillon-node"))
            .arg(format!("--config={}", config.display()))
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("keys.provider") && error.contains("lab = true"), "{error}");
        assert!(
            !lab.data_dir(1).join("raft").exists()
                && fs_err::read_dir(lab.data_dir(1)).unwrap().next().is_none()
        );
    }
}
