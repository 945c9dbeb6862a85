//! The canary of the HTTP connector: marked numbers, texts and credentials go through every path that logs, at every log
//! level, and are then looked for in the logs. A binary of its own, because the subscriber is for the whole process.
#[allow(dead_code)]
#[path = "conformance/api.rs"]
mod api;
#[allow(dead_code)]
#[path = "conformance/fixture.rs"]
mod fixture;
#[allow(dead_code)]
#[path = "conformance/support.rs"]
mod support;
#[allow(dead_code)]
#[path = "conformance/twilio_fixture.rs"]
mod twilio_fixture;

use carillon_carriers::{CallbackAnswer, Clear, Connector as _, LookUp, SendRequest};
use carillon_proto::public::Outcome;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;
use support::*;
use tracing_subscriber::fmt::MakeWriter;
use twilio_fixture::*;

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

const TEXT: &str = "Canary-Text for Ada Lovelace";

fn marked(n: u64) -> SendRequest {
    SendRequest { recipient: Clear::new("+12125557777".into()), ..request(n, TEXT) }
}

#[tokio::test]
async fn no_log_holds_a_number_a_text_or_a_token() {
    let captured = Captured::default();
    tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(captured.clone()).init();
    let mut carrier = Twilio::with(|config| {
        config.settings.response_timeout_ms = 100;
        config.settings.redact = true;
        config.tuning.broken_retry = std::time::Duration::from_millis(5);
    })
    .await;
    let quoting = format!("{{\"code\":21211,\"message\":\"{TEXT} +12125557777\"}}");
    let refused = spawn_send(&carrier.connector, marked(1));
    carrier.api.next().await.answer(400, &quoting);
    assert_eq!(outcome(refused).await.outcome, Outcome::RejectedNumber);
    let broken = spawn_send(&carrier.connector, marked(2));
    carrier.api.next().await.answer(401, &quoting);
    assert_eq!(outcome(broken).await.outcome, Outcome::RejectedNumber);
    within(carrier.connector.until(|status| status.state == carillon_carriers::ConnectorState::Up)).await;
    let late = spawn_send(&carrier.connector, marked(3));
    let exchange = carrier.api.next().await;
    assert_eq!(outcome(late).await.code, "answer_timeout");
    exchange.answer(201, &format!("{{\"sid\":\"{}\",\"body\":\"{TEXT}\",\"to\":\"+12125557777\"}}", sid(3)));
    carrier.inbox.late().await;
    let lost = spawn_send(&carrier.connector, marked(4));
    carrier.api.next().await.hang_up();
    assert_eq!(outcome(lost).await.code, "connection_lost");
    let id = sid(3);
    let fields =
        [("MessageSid", id.as_str()), ("MessageStatus", "delivered"), ("To", "+12125557777"), ("Body", TEXT)];
    let answer = carrier.spawn_callback(callback(TOKEN, "tenant=a%20b", &fields));
    carrier.inbox.receipt().await.ack.commit();
    assert_eq!(fixture::told(answer).await, fixture::Told::Taken);
    carrier.api.next().await.answer(200, "{}");
    let forged = carrier.connector.callback(callback("wrong-token", "tenant=a%20b", &fields)).await;
    assert_eq!(forged, CallbackAnswer::BadSignature);
    let question = LookUp {
        message_id: message_id(4),
        carrier_ref: None,
        recipient: Clear::new("+12125557777".into()),
        body: Clear::new(TEXT.into()),
        sent_after: SystemTime::now(),
        sent_before: SystemTime::now(),
    };
    let printed = format!("{question:?} {:?} {:?}", marked(5), callback(TOKEN, "q", &fields));
    let connector = carrier.connector.clone();
    let asking = tokio::spawn(async move { connector.look_up(question).await });
    carrier.api.next().await.answer(200, &format!("{{\"messages\":[{{\"body\":\"{TEXT}\"}}]"));
    within(asking).await.unwrap();
    within(carrier.connector.drain()).await;

    let logs = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap() + &printed;
    assert!(logs.contains("late answer"), "{logs}");
    let hex_of_text = "67, 97, 110, 97, 114, 121";
    for secret in ["2125557777", "5557777", "Canary", "Lovelace", TOKEN, "QUMwMDAw", hex_of_text] {
        assert!(!logs.contains(secret), "{secret} in {logs}");
    }
}
