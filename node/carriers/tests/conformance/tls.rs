//! The same over TLS, with a certificate that must be right.
use crate::support::*;
use carillon_carriers::{Connector as _, ConnectorState, OpenGate, SendRequest};
use carillon_proto::public::Outcome;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rusmpp::{CommandId, CommandStatus, Pdu};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;

/// A CA in PEM and a server for `name` that it signed.
pub fn server(name: &str) -> (String, TlsAcceptor) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    (ca.pem(), TlsAcceptor::from(Arc::new(config)))
}

async fn setup(name: &str) -> (Smsc, Setup) {
    let (ca_pem, acceptor) = server(name);
    let smsc = Smsc::with_tls(acceptor).await;
    let mut setup = Setup::new(&smsc);
    setup.settings.tls = true;
    setup.settings.tls_server_name = "smsc.example".into();
    setup.settings.tls_ca_pem = ca_pem;
    (smsc, setup)
}

#[tokio::test]
async fn messages_receipts_and_goodbye_over_tls() {
    let (smsc, mut setup) = setup("smsc.example").await;
    setup.settings.window = 64;
    let (connector, mut inbox, mut peers) = setup.bound(&smsc).await;
    let mut peer = peers.remove(0);
    let sendings: Vec<_> = (0..200).map(|n| spawn_send(&connector, request(n, &"t".repeat(150)))).collect();
    for n in 0..200 {
        let (sequence, _) = peer.submit().await;
        peer.accept(sequence, &n.to_string()).await;
    }
    for sending in sendings {
        assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    }
    peer.deliver_receipt("id:3 stat:DELIVRD").await;
    inbox.receipt().await.ack.commit();
    assert_eq!(peer.delivered().await.1, 0);
    let draining = {
        let connector = connector.clone();
        tokio::spawn(async move { connector.drain().await })
    };
    let unbind = peer.next().await.unwrap();
    assert_eq!(unbind.id(), CommandId::Unbind);
    peer.write(unbind.sequence_number(), CommandStatus::EsmeRok, Pdu::UnbindResp).await;
    within(draining).await.unwrap();
}

#[tokio::test]
async fn a_tls_connection_that_breaks_leaves_written_messages_ambiguous() {
    let (smsc, setup) = setup("smsc.example").await;
    let (connector, _inbox, mut peers) = setup.bound(&smsc).await;
    let sending = spawn_send(&connector, request(1, "Hi"));
    peers[0].submit().await;
    drop(peers);
    let outcome = outcome(sending).await;
    assert_eq!((outcome.outcome, outcome.code.as_str()), (Outcome::Ambiguous, "connection_lost"));
}

#[tokio::test]
async fn a_certificate_of_another_ca_or_name_is_refused() {
    let (smsc, mut other_ca) = setup("smsc.example").await;
    other_ca.settings.tls_ca_pem = server("smsc.example").0;
    let (other_name_smsc, other_name) = setup("other.example").await;
    for (smsc, setup) in [(smsc, other_ca), (other_name_smsc, other_name)] {
        let (connector, _inbox) = setup.start();
        // It tries again and again, and each time it leaves before a word of SMPP.
        for _ in 0..3 {
            assert!(smsc.try_accept().await.is_none());
        }
        assert_eq!(connector.status().state, ConnectorState::Down);
        let soon = SendRequest { send_by: Instant::now() + Duration::from_millis(20), ..request(1, "Hi") };
        let outcome = within(connector.send(soon, &OpenGate)).await;
        assert_eq!((outcome.outcome, outcome.code.as_str()), (Outcome::NotSent, "not_connected"));
    }
}
