//! A canary: marked numbers, texts and passwords go through every path that logs, at every log level, and are then
//! looked for in the logs. A binary of its own, because the subscriber is for the whole process.
#[allow(dead_code)]
#[path = "conformance/support.rs"]
mod support;

use carillon_carriers::{Clear, Connector as _, SendRequest};
use carillon_proto::public::Outcome;
use rusmpp::CommandStatus;
use std::io;
use std::sync::{Arc, Mutex};
use support::*;
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl io::Write for Captured {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(octets);
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Captured {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn marked(n: u64) -> SendRequest {
    SendRequest { recipient: Clear::new("+12125557777".into()), ..request(n, "Canary-Text for Ada Lovelace") }
}

#[tokio::test]
async fn no_log_holds_a_number_a_text_or_a_password() {
    let captured = Captured::default();
    tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(captured.clone()).init();
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.settings.response_timeout_ms = 100;
    setup.tuning.broken_retry = std::time::Duration::from_millis(5);
    let (connector, mut inbox) = setup.start();
    smsc.accept().await.answer_bind(CommandStatus::EsmeRinvpaswd).await;
    let mut peer = smsc.bound().await;
    within(connector.bound(1)).await;

    let refused = spawn_send(&connector, marked(1));
    let (sequence, _) = peer.submit().await;
    peer.refuse(sequence, 0x0b).await;
    assert_eq!(outcome(refused).await.outcome, Outcome::RejectedNumber);

    let late = spawn_send(&connector, marked(2));
    let (sequence, _) = peer.submit().await;
    assert_eq!(outcome(late).await.code, "answer_timeout");
    peer.accept(sequence, "1").await;
    inbox.late().await;

    let miscounted = SendRequest { segments: 9, ..marked(3) };
    let accepted = spawn_send(&connector, miscounted);
    let (sequence, _) = peer.submit().await;
    peer.accept(sequence, "2").await;
    assert_eq!(outcome(accepted).await.outcome, Outcome::Accepted);

    peer.deliver_receipt("id:2 stat:DELIVRD text:Canary-Text for Ada").await;
    inbox.receipt().await.ack.commit();
    peer.deliver_receipt("stat:DELIVRD text:Canary-Text for Ada").await;
    peer.delivered().await;
    peer.delivered().await;

    let lost = spawn_send(&connector, marked(4));
    peer.submit().await;
    peer.raw(&[0xff; 32]).await;
    assert_eq!(outcome(lost).await.code, "connection_lost");
    drop(peer);
    within(connector.drain()).await;

    let logs = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    for expected in
        ["bound", "bind failed", "late answer", "impossible pdu length", "another number of parts"]
    {
        assert!(logs.contains(expected), "{expected} is missing in {logs}");
    }
    let hex_of_text = "67, 97, 110, 97, 114, 121";
    for secret in ["2125557777", "5557777", "Canary", "Lovelace", "secret08", hex_of_text] {
        assert!(!logs.contains(secret), "{secret} in {logs}");
    }
}
