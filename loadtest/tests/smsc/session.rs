//! Binds, links and broken PDUs.

use std::sync::Arc;

use rusmpp::{CommandId, Pdu};

use super::client::{Client, start, submit, within};

#[tokio::test]
async fn binds_are_accepted_or_refused_with_the_right_status() {
    let smsc = start(|config| config.binds_max = 3).await;
    let mut kept = Vec::new();
    for kind in [CommandId::BindTransceiver, CommandId::BindTransmitter, CommandId::BindReceiver] {
        let mut client = Client::connect(smsc.smpp_addr()).await;
        assert_eq!(client.bind(kind, "carillon", "secret").await, 0);
        assert_eq!(client.bind(kind, "carillon", "secret").await, 0x05, "already bound");
        kept.push(client);
    }
    for (system_id, password, status) in
        [("nobody", "secret", 0x0F), ("carillon", "wrong", 0x0E), ("carillon", "secret", 0x0D)]
    {
        let mut client = Client::connect(smsc.smpp_addr()).await;
        assert_eq!(client.bind(CommandId::BindTransceiver, system_id, password).await, status);
        assert!(client.ended().await.is_empty());
    }
    let stats = smsc.stats(0);
    assert_eq!((stats.binds_up, stats.binds_accepted, stats.binds_refused), (3, 3, 6));
}

#[tokio::test]
async fn a_submit_needs_a_bind_that_may_submit() {
    let smsc = start(|_| {}).await;
    let mut client = Client::connect(smsc.smpp_addr()).await;
    assert_eq!(client.submit("+12025550123", "early").await.0, 0x04);
    assert_eq!(client.bind(CommandId::BindReceiver, "carillon", "secret").await, 0);
    assert_eq!(client.submit("+12025550123", "wrong bind").await.0, 0x04);
    assert_eq!((smsc.stats(0).submits, smsc.stats(0).wrong_state), (0, 2));
}

#[tokio::test]
async fn receipts_go_to_a_receiver_and_never_to_a_transmitter() {
    let smsc = start(|_| {}).await;
    let mut sender = Client::connect(smsc.smpp_addr()).await;
    assert_eq!(sender.bind(CommandId::BindTransmitter, "carillon", "secret").await, 0);
    let (status, id) = sender.submit("+12025550123", "hello").await;
    assert_eq!(status, 0);
    let mut receiver = Client::connect(smsc.smpp_addr()).await;
    assert_eq!(receiver.bind(CommandId::BindReceiver, "carillon", "secret").await, 0);
    assert_eq!(receiver.take_receipt().await.id, id);
    let sequence = sender.send(Pdu::Unbind).await;
    assert_eq!(u32::from(sender.answer(sequence).await.status()), 0);
    assert!(sender.ended().await.is_empty());
}

#[tokio::test]
async fn broken_pdus_get_the_right_answer_and_do_not_shift_the_next() {
    let smsc = start(|_| {}).await;
    let mut client = Client::bound(&smsc).await;
    let header = |length: u32, id: u32, sequence: u32| -> Vec<u8> {
        [length, id, 0, sequence].iter().flat_map(|word| word.to_be_bytes()).collect()
    };
    // An unknown request, a submit cut short, a submit without body, a query, a stray answer.
    client.put_raw(&header(16, 0x0000_0777, 900));
    client.put_raw(&[header(20, 0x0000_0004, 901), b"abc\0".to_vec()].concat());
    client.put_raw(&header(16, 0x0000_0004, 902));
    client.put_raw(&[header(21, 0x0000_0003, 903), b"1\0\0\0\0".to_vec()].concat());
    client.put_raw(&header(16, 0x8000_0103, 904));
    // A text whose length says more than there is.
    let mut lying = header(0, 0x0000_0004, 905);
    lying.extend_from_slice(b"\0\0\0\0\0\x0012025550123\0\0\0\0\0\0\x01\0\0\0\x50hello");
    let length = lying.len() as u32;
    lying[..4].copy_from_slice(&length.to_be_bytes());
    client.put_raw(&lying);
    let good = client.put(submit("+12025550123", "still in step"));
    client.flush().await;
    for (sequence, id, status) in [
        (900, 0x8000_0000u32, 0x03u32),
        (901, 0x8000_0004, 0x02),
        (902, 0x8000_0004, 0x02),
        (903, 0x8000_0003, 0x67),
        (905, 0x8000_0004, 0x02),
    ] {
        let answer = client.next().await.unwrap();
        assert_eq!(
            (answer.sequence_number(), u32::from(answer.id()), u32::from(answer.status())),
            (sequence, id, status)
        );
    }
    assert_eq!(client.submitted(good).await.0, 0);
    // A length that cannot be true ends the connection.
    client.put_raw(&header(7, 0x0000_0004, 906));
    client.flush().await;
    let rest = client.ended().await;
    let nack = rest.iter().find(|command| command.id() == CommandId::GenericNack).unwrap();
    assert_eq!((nack.sequence_number(), u32::from(nack.status())), (906, 0x02));
}

#[tokio::test]
async fn a_submit_that_cannot_be_true_is_refused() {
    use super::client::part;
    let smsc = start(|_| {}).await;
    let mut client = Client::bound(&smsc).await;
    for (pdu, status) in [
        (submit("", "no number"), 0x0B),
        (submit("+1202CALLME", "letters"), 0x0B),
        (submit("+12025550123", &"x".repeat(161)), 0x01),
        (part("+12025550123", 0, 8, &[0; 142]), 0x01),
        (part("+12025550123", 0x40, 0, b"\x05\x00\x03\x01\x02\x03text"), 0x43),
        (part("+12025550123", 0x40, 0, b"\x99\x00"), 0x43),
        (submit("+12025550123", &"x".repeat(160)), 0),
    ] {
        let sequence = client.send(pdu).await;
        assert_eq!(client.submitted(sequence).await.0, status);
    }
    assert_eq!((smsc.stats(0).submits, smsc.stats(0).accepted), (7, 1));
}

#[tokio::test]
async fn a_silent_bind_is_asked_and_then_closed() {
    let smsc = start(|config| {
        config.enquire_link_ms = 150;
        config.bind_timeout_ms = 400;
    })
    .await;
    let mut stranger = Client::connect(smsc.smpp_addr()).await;
    let mut client = Client::bound(&smsc).await;
    let asked = client.want(|command| command.id() == CommandId::EnquireLink).await;
    assert!(asked.sequence_number() > 0);
    // An answer keeps it alive: it is asked again.
    client.send(Pdu::EnquireLinkResp).await;
    client.want(|command| command.id() == CommandId::EnquireLink).await;
    assert!(client.ended().await.is_empty(), "no answer, so closed");
    assert!(stranger.ended().await.is_empty(), "never bound, so closed");
    within(async {
        while smsc.stats(0).binds_up > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_says_unbind() {
    let smsc = start(|_| {}).await;
    let mut client = Client::bound(&smsc).await;
    smsc.shutdown().await;
    let rest = client.ended().await;
    assert!(rest.iter().any(|command| command.id() == CommandId::Unbind));
}

#[tokio::test]
async fn a_bind_over_tls_works_and_a_wrong_root_does_not() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let tls = carillon_loadtest::smsc::tls::server_config(&cert, &key).unwrap();
    let smsc = start(|config| config.tls = Some(tls)).await;
    let connect = |trust: Option<rustls_pki_types::CertificateDer<'static>>| {
        let mut roots = rustls::RootCertStore::empty();
        if let Some(trust) = trust {
            roots.add(trust).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let addr = smsc.smpp_addr();
        async move {
            let socket = tokio::net::TcpStream::connect(addr).await.unwrap();
            within(connector.connect("localhost".try_into().unwrap(), socket)).await
        }
    };
    assert!(connect(None).await.is_err());
    let mut client = Client::over(connect(Some(made.cert.der().clone())).await.unwrap());
    assert_eq!(client.bind(CommandId::BindTransceiver, "carillon", "secret").await, 0);
    let (status, id) = client.submit("+12025550123", "over tls").await;
    assert_eq!((status, client.take_receipt().await.id), (0, id));
}
