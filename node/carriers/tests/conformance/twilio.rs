//! What only Twilio has: the form, proofs about the body, Retry-After, signed callbacks, look-ups, redaction, TLS.
use crate::api::{Api, some_id};
use crate::fixture::*;
use crate::support::*;
use crate::twilio_fixture::*;
use carillon_carriers::contract::{Contract, ContractHandle};
use carillon_carriers::twilio::TwilioConnector;
use carillon_carriers::{
    CallbackAnswer, Clear, Connector as _, ConnectorState, LookUp, LookUpAnswer, OpenGate, SendRequest,
};
use carillon_proto::internal::ReceiptState;
use carillon_proto::public::Outcome;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

#[tokio::test]
async fn a_create_says_everything_that_the_contract_knows() {
    let mut carrier = Twilio::with(|_| ()).await;
    let body = "Caf\u{e9} & visit = 9:00 + parking?";
    let sending = spawn_send(&carrier.connector, request(5, body));
    let exchange = carrier.api.next().await;
    assert_eq!(exchange.form["To"], "+12125550123");
    assert_eq!(exchange.form["From"], "+12025550100");
    assert_eq!(exchange.form["Body"], body);
    assert_eq!(exchange.form["ValidityPeriod"], "3600");
    let callback = format!("{CALLBACK_URL}&m={}&a=1#rc=5&rp=all", message_id(5));
    assert_eq!(exchange.form["StatusCallback"], callback);
    assert_eq!(exchange.form.len(), 5);
    assert_eq!(exchange.message_id(), message_id(5));
    assert_eq!(exchange.headers["content-type"], "application/x-www-form-urlencoded");
    assert!(exchange.headers["authorization"].starts_with("Basic "));
    carrier.accept(exchange, 1).await;
    assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    // What lasts longer than the carrier keeps a message is cut, and a sender of its own takes the account's place.
    let long = SendRequest {
        validity: Some(Duration::from_secs(86_400)),
        sender: Some("+12025550111".into()),
        ..request(6, "Hi")
    };
    let sending = spawn_send(&carrier.connector, long);
    let exchange = carrier.api.next().await;
    assert_eq!(
        (exchange.form["ValidityPeriod"].as_str(), exchange.form["From"].as_str()),
        ("36000", "+12025550111")
    );
    carrier.accept(exchange, 2).await;
    outcome(sending).await;
    // The end of the recipient's hours.
    let until_night = SendRequest { validity: Some(Duration::from_secs(754)), ..request(7, "Hi") };
    let sending = spawn_send(&carrier.connector, until_night);
    let exchange = carrier.api.next().await;
    assert_eq!(exchange.form["ValidityPeriod"], "754");
    carrier.accept(exchange, 3).await;
    outcome(sending).await;
}

#[tokio::test]
async fn a_messaging_service_sends_without_a_number() {
    let service = format!("MG{:032x}", 5);
    let mut carrier = Twilio::with(|config| {
        config.settings.from.clear();
        config.settings.messaging_service_sid = service.clone();
        config.settings.callback_url.clear();
    })
    .await;
    let sending = spawn_send(&carrier.connector, request(5, "Hi"));
    let exchange = carrier.api.next().await;
    assert_eq!(exchange.form["MessagingServiceSid"], service);
    assert!(!exchange.form.contains_key("From") && !exchange.form.contains_key("StatusCallback"));
    carrier.accept(exchange, 1).await;
    assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    let answer = carrier.connector.callback(callback(TOKEN, "", &[("MessageSid", &sid(1))])).await;
    assert_eq!(answer, CallbackAnswer::NotExpected);
}

#[tokio::test]
async fn what_cannot_travel_never_reaches_the_socket() {
    let mut carrier = Twilio::with(|_| ()).await;
    for (bad, expected, code) in [
        (
            SendRequest { recipient: Clear::new("911x".into()), ..request(1, "Hi") },
            Outcome::RejectedNumber,
            "bad_number",
        ),
        (request(2, &"a".repeat(1_601)), Outcome::RejectedContent, "too_long"),
        (
            SendRequest { sender: Some("no sender at all".into()), ..request(3, "Hi") },
            Outcome::LaneBroken,
            "bad_sender",
        ),
    ] {
        let outcome = within(carrier.connector.send(bad, &OpenGate)).await;
        assert_eq!((outcome.outcome, outcome.code.as_str(), outcome.segments), (expected, code, 0));
    }
    carrier.assert_silent().await;
}

#[tokio::test]
async fn retry_after_decides_how_long_the_lane_rests() {
    let mut carrier = Twilio::with(|_| ()).await;
    let sending = spawn_send(&carrier.connector, request(1, "Hi"));
    carrier.api.next().await.answer_with(429, "retry-after: 7\r\n", "{\"code\":20429}");
    let outcome = outcome(sending).await;
    let after = outcome.retry_after.unwrap();
    assert!(after > Duration::from_secs(6) && after <= Duration::from_millis(8_400), "{after:?}");
    assert!(carrier.connector.status().paused_for.is_some());
}

#[tokio::test]
async fn refused_credentials_stop_the_lane_until_they_are_tried_again() {
    let mut carrier = Twilio::with(|_| ()).await;
    let sending = spawn_send(&carrier.connector, request(1, "Hi"));
    carrier.api.next().await.answer(401, "{\"code\":20003}");
    let broken = outcome(sending).await;
    assert_eq!((broken.outcome, broken.code.as_str()), (Outcome::LaneBroken, "20003"));
    assert_eq!(carrier.connector.status().state, ConnectorState::Broken { status: 401 });
    let kept = within(carrier.connector.send(request(2, "Hi"), &OpenGate)).await;
    assert_eq!((kept.outcome, kept.code.as_str(), kept.segments), (Outcome::LaneBroken, "http_401", 0));
    assert!(kept.retry_after.is_some_and(|after| after <= Duration::from_millis(300)));
    within(carrier.connector.until(|status| status.state == ConnectorState::Up)).await;
    let sending = spawn_send(&carrier.connector, request(3, "Hi"));
    let exchange = carrier.api.next().await;
    carrier.accept(exchange, 3).await;
    assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
}

/// A connection that dies while it is idle: whatever a message meets, it is never called unsent and seen.
#[tokio::test]
async fn a_connection_that_was_closed_while_idle_loses_no_proof() {
    let mut carrier = Twilio::with(|_| ()).await;
    for n in 0..50 {
        let sending = spawn_send(&carrier.connector, request(n, "Hi"));
        let exchange = carrier.api.next().await;
        let answer = "HTTP/1.1 201 X\r\nconnection: close\r\ncontent-length: 67\r\n\r\n";
        let body = format!("{{\"sid\":\"{}\",\"status\":\"queued\"}}", sid(n as u32));
        let answer = answer.replace("67", &body.len().to_string());
        exchange.raw(format!("{answer}{body}").into_bytes());
        assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    }
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_ambiguous() {
    let mut carrier = Twilio::with(|_| ()).await;
    for (octets, code) in [
        ("HTTP/1.1 201 X\r\ncontent-length: 5\r\n\r\nhello", "answer_unreadable"),
        ("HTTP/1.1 201 X\r\ncontent-length: 2\r\n\r\n{}", "answer_unreadable"),
        ("220 smtp.example ready\r\n", "connection_lost"),
    ] {
        let sending = spawn_send(&carrier.connector, request(1, "Hi"));
        carrier.api.next().await.raw(octets.as_bytes().to_vec());
        let outcome = outcome(sending).await;
        assert_eq!((outcome.outcome, outcome.code.as_str()), (Outcome::Ambiguous, code), "{octets}");
    }
}

/// The message is known by our own reference even when its id never came.
#[tokio::test]
async fn a_callback_names_the_message_that_its_url_was_made_for() {
    let mut carrier = Twilio::with(|config| config.settings.response_timeout_ms = 50).await;
    let sending = spawn_send(&carrier.connector, request(42, "Hi"));
    let exchange = carrier.api.next().await;
    assert_eq!(outcome(sending).await.outcome, Outcome::Ambiguous);
    let url = exchange.form["StatusCallback"].clone();
    let (_, query) = url.split('#').next().unwrap().split_once('?').unwrap();
    let id = sid(9);
    let fields =
        [("MessageSid", id.as_str()), ("MessageStatus", "delivered"), ("AccountSid", &account_sid())];
    let told = carrier.spawn_callback(callback(TOKEN, query, &fields));
    let report = carrier.inbox.receipt().await;
    assert_eq!((report.known, report.state), (Some(message_id(42)), ReceiptState::Delivered));
    assert_eq!(report.carrier_refs, std::slice::from_ref(&id));
    report.ack.commit();
    assert_eq!(self::told(told).await, Told::Taken);
    // The reference is signed: nobody makes one for another message.
    let forged = query.replace(&message_id(42).to_string(), &some_id(43).to_string());
    let mut forged_callback = callback(TOKEN, query, &fields);
    forged_callback.query = forged;
    assert_eq!(carrier.connector.callback(forged_callback).await, CallbackAnswer::BadSignature);
    let mut unsigned = callback(TOKEN, query, &fields);
    unsigned.signature = None;
    assert_eq!(carrier.connector.callback(unsigned).await, CallbackAnswer::BadSignature);
}

#[tokio::test]
async fn codes_and_words_of_callbacks_become_states() {
    let mut carrier = Twilio::with(|_| ()).await;
    let id = sid(1);
    for (word, error, expected) in [
        ("failed", Some("30007"), (ReceiptState::Rejected, "30007")),
        ("undelivered", Some("30003"), (ReceiptState::Undelivered, "30003")),
        ("read", None, (ReceiptState::Delivered, "read")),
        ("queued", None, (ReceiptState::Enroute, "queued")),
    ] {
        let mut fields = vec![("MessageSid", id.as_str()), ("MessageStatus", word)];
        fields.extend(error.map(|code| ("ErrorCode", code)));
        let answer = carrier.spawn_callback(callback(TOKEN, "tenant=a%20b", &fields));
        let report = carrier.inbox.receipt().await;
        assert_eq!((report.state, report.code.as_str()), expected);
        report.ack.commit();
        assert_eq!(told(answer).await, Told::Taken);
    }
    // A word that the contract does not know is acknowledged, and changes nothing.
    let fields = [("MessageSid", id.as_str()), ("MessageStatus", "teleported")];
    let answer = carrier.spawn_callback(callback(TOKEN, "tenant=a%20b", &fields));
    assert_eq!(told(answer).await, Told::Taken);
    assert!(carrier.inbox.receipts.try_recv().is_err());
}

fn question(carrier_ref: Option<String>) -> LookUp {
    let now = SystemTime::now();
    LookUp {
        message_id: message_id(1),
        carrier_ref,
        recipient: Clear::new("+12125550123".into()),
        body: Clear::new("Hi".into()),
        sent_after: now - Duration::from_secs(5),
        sent_before: now,
    }
}

fn listed(n: u32, to: &str, body: &str, status: &str, age_s: i64) -> String {
    let at = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(age_s);
    let date = jiff::fmt::rfc2822::to_string(&at.to_zoned(jiff::tz::TimeZone::UTC)).unwrap();
    format!(
        "{{\"sid\":\"{}\",\"to\":\"{to}\",\"body\":\"{body}\",\"status\":\"{status}\",\"error_code\":null,\
         \"direction\":\"outbound-api\",\"date_created\":\"{date}\"}}",
        sid(n)
    )
}

fn page(messages: &[String], next: Option<&str>) -> String {
    let next = next.map_or("null".to_owned(), |next| format!("\"{next}\""));
    format!("{{\"messages\":[{}],\"next_page_uri\":{next}}}", messages.join(","))
}

async fn asked(carrier: &mut Twilio, question: LookUp, pages: &[String]) -> LookUpAnswer {
    let connector = carrier.connector.clone();
    let asking = tokio::spawn(async move { connector.look_up(question).await });
    for page in pages {
        let exchange = carrier.api.next().await;
        assert_eq!(exchange.method, "GET");
        exchange.answer(200, page);
    }
    within(asking).await.unwrap()
}

#[tokio::test]
async fn a_message_without_an_id_is_found_by_number_text_and_time() {
    let mut carrier = Twilio::with(|_| ()).await;
    let ours = listed(3, "+12125550123", "Hi", "delivered", 3);
    let others = [
        listed(1, "+12125550199", "Hi", "sent", 3),
        listed(2, "+12125550123", "Other text", "sent", 3),
        listed(4, "+12125550123", "Hi", "sent", 600),
    ];
    let found =
        LookUpAnswer::Found { carrier_ref: sid(3), state: ReceiptState::Delivered, code: "delivered".into() };
    let mut all = others.to_vec();
    all.push(ours.clone());
    assert_eq!(asked(&mut carrier, question(None), &[page(&all, None)]).await, found);
    // On a later page, too.
    let next = format!("/2010-04-01/Accounts/{}/Messages.json?Page=1&PageToken=x", account_sid());
    let pages = [page(&others, Some(&next)), page(std::slice::from_ref(&ours), None)];
    assert_eq!(asked(&mut carrier, question(None), &pages).await, found);
    // Two that fit: nobody can tell.
    let twice = [ours, listed(5, "+12125550123", "Hi", "sent", 4)];
    assert_eq!(asked(&mut carrier, question(None), &[page(&twice, None)]).await, LookUpAnswer::Several);
    let absent = LookUpAnswer::Absent { proven: false };
    assert_eq!(asked(&mut carrier, question(None), &[page(&others, None)]).await, absent);
    // An answer does not send us to other places.
    let elsewhere = page(&others, Some("/elsewhere.json?Page=1"));
    assert_eq!(asked(&mut carrier, question(None), &[elsewhere]).await, absent);
}

#[tokio::test]
async fn the_list_is_asked_for_the_number_and_the_day() {
    let mut carrier = Twilio::with(|_| ()).await;
    let connector = carrier.connector.clone();
    let asking = tokio::spawn(async move { connector.look_up(question(None)).await });
    let exchange = carrier.api.next().await;
    let (path, query) = exchange.path.split_once('?').unwrap();
    assert_eq!(path, format!("/2010-04-01/Accounts/{}/Messages.json", account_sid()));
    let pairs: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let day = (jiff::Timestamp::now() - jiff::SignedDuration::from_secs(65)).strftime("%Y-%m-%d").to_string();
    let expected = [("To", "+12125550123"), ("DateSent>", &day), ("PageSize", "200")];
    assert_eq!(pairs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    exchange.answer(503, "");
    assert!(matches!(within(asking).await.unwrap(), LookUpAnswer::NotNow { .. }));
}

fn terms(change: &[(&str, &str)]) -> ContractHandle {
    let mut text = include_str!("../../contracts/twilio.toml").to_owned();
    for (from, to) in change {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    ContractHandle::fixed(Contract::parse("test.toml", &text).unwrap())
}

#[tokio::test]
async fn absence_is_proof_only_where_the_contract_says_so() {
    let contract = terms(&[("absence_is_proof_after_s = 0", "absence_is_proof_after_s = 60")]);
    let mut carrier = Twilio::with(|config| config.contract = contract).await;
    let fresh = question(None);
    assert_eq!(asked(&mut carrier, fresh, &[page(&[], None)]).await, LookUpAnswer::Absent { proven: false });
    let old = SystemTime::now() - Duration::from_secs(61);
    let old = LookUp { sent_after: old, sent_before: old, ..question(None) };
    assert_eq!(asked(&mut carrier, old, &[page(&[], None)]).await, LookUpAnswer::Absent { proven: true });
}

#[tokio::test]
async fn a_message_with_an_id_is_asked_for_by_it_within_the_quota() {
    let contract = terms(&[("quota_per_minute = 60", "quota_per_minute = 2")]);
    let mut carrier = Twilio::with(|config| config.contract = contract).await;
    let known = || question(Some(sid(8)));
    let body = format!("{{\"sid\":\"{}\",\"status\":\"undelivered\",\"error_code\":30005}}", sid(8));
    let found =
        LookUpAnswer::Found { carrier_ref: sid(8), state: ReceiptState::Rejected, code: "30005".into() };
    assert_eq!(asked(&mut carrier, known(), &[body]).await, found);
    let connector = carrier.connector.clone();
    let asking = tokio::spawn(async move { connector.look_up(known()).await });
    let exchange = carrier.api.next().await;
    assert_eq!(exchange.path, format!("/2010-04-01/Accounts/{}/Messages/{}.json", account_sid(), sid(8)));
    exchange.answer(404, "");
    assert_eq!(within(asking).await.unwrap(), LookUpAnswer::Absent { proven: false });
    // The third call of this minute is not made.
    let LookUpAnswer::NotNow { retry_after } = within(carrier.connector.look_up(known())).await else {
        panic!("the quota is used up");
    };
    assert!(retry_after > Duration::from_secs(50) && retry_after <= Duration::from_secs(60));
    carrier.assert_silent().await;
}

#[tokio::test]
async fn a_final_state_that_is_recorded_takes_the_text_away() {
    let mut carrier = Twilio::with(|config| config.settings.redact = true).await;
    for (word, commit) in [("sent", true), ("delivered", false), ("delivered", true)] {
        let id = sid(4);
        let fields = [("MessageSid", id.as_str()), ("MessageStatus", word)];
        let answer = carrier.spawn_callback(callback(TOKEN, "tenant=a%20b", &fields));
        let report = carrier.inbox.receipt().await;
        if commit {
            report.ack.commit()
        } else {
            report.ack.refuse()
        }
        assert_eq!(told(answer).await, if commit { Told::Taken } else { Told::Again });
        if word == "sent" || !commit {
            carrier.assert_silent().await;
        }
    }
    let path = format!("/2010-04-01/Accounts/{}/Messages/{}.json", account_sid(), sid(4));
    for status in [500, 200] {
        let exchange = carrier.api.next().await;
        assert_eq!((exchange.method.as_str(), exchange.path.as_str()), ("POST", path.as_str()));
        assert_eq!(exchange.form.get("Body").map(String::as_str), Some(""));
        exchange.answer(status, "{}");
    }
    carrier.assert_silent().await;
}

#[tokio::test]
async fn a_contract_that_is_read_again_counts_from_the_next_message_on() {
    let dir = tempfile::tempdir().unwrap();
    let contracts = carillon_carriers::contract::Contracts::load(Some(dir.path())).unwrap();
    let contract = contracts.get("twilio").unwrap();
    let mut carrier = Twilio::with(|config| config.contract = contract).await;
    let refused = |carrier: &mut Twilio, n| (spawn_send(&carrier.connector, request(n, "Hi")), n);
    let (sending, _) = refused(&mut carrier, 1);
    carrier.api.next().await.answer(400, "{\"code\":21212}");
    assert_eq!(outcome(sending).await.outcome, Outcome::Transient);
    let text = include_str!("../../contracts/twilio.toml")
        .replacen("version = 1", "version = 2", 1)
        .replacen("\"21211\" =", "\"21212\" = \"lane_broken\"\n\"21211\" =", 1);
    std::fs::write(dir.path().join("twilio.toml"), text).unwrap();
    assert_eq!(contracts.reload().changed, [("twilio".to_owned(), 2)]);
    let (sending, _) = refused(&mut carrier, 2);
    carrier.api.next().await.answer(400, "{\"code\":21212}");
    assert_eq!(outcome(sending).await.outcome, Outcome::LaneBroken);
}

#[tokio::test]
async fn over_tls_with_a_certificate_that_must_be_right() {
    let (ca_pem, acceptor) = crate::tls::server("localhost");
    let mut api = Api::start(Some(acceptor.clone())).await;
    let mut right = config(settings(&api.url), tuning());
    right.settings.tls_ca_pem = ca_pem;
    let (_inbox, sink) = Inbox::with_sink();
    let connector = Arc::new(TwilioConnector::start(right, sink).unwrap());
    let sending = spawn_send(&connector, request(1, "Hi"));
    api.next().await.answer(201, &format!("{{\"sid\":\"{}\"}}", sid(1)));
    assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    let mut wrong = config(settings(&api.url), tuning());
    wrong.settings.tls_ca_pem = crate::tls::server("localhost").0;
    let (_inbox, sink) = Inbox::with_sink();
    let connector = TwilioConnector::start(wrong, sink).unwrap();
    let soon = SendRequest { send_by: Instant::now() + Duration::from_millis(100), ..request(2, "Hi") };
    let outcome = within(connector.send(soon, &OpenGate)).await;
    assert_eq!((outcome.outcome, outcome.code.as_str()), (Outcome::NotSent, "not_connected"));
    assert!(api.is_silent());
}
