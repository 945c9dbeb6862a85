//! Twilio's API of the simulator: creates, signed callbacks, faults, lists, redaction, the contract.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use carillon_loadtest::smsc::{Contract, Profile, RestConfig, Smsc, SmscConfig, TruthKey, truth_key};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::sync::mpsc;

const SID: &str = "AC0123456789abcdef0123456789abcdef";
const TOKEN: &str = "token-of-a-test";
const PATIENCE: Duration = Duration::from_secs(20);

struct Api {
    smsc: Smsc,
    http: Client<HttpConnector, Full<Bytes>>,
}

async fn api(profile: &str, contract: Contract) -> Api {
    let rest = RestConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        account_sid: SID.to_owned(),
        auth_token: TOKEN.to_owned(),
        contract,
        callback_tls: None,
    };
    let config = SmscConfig {
        rest: Some(rest),
        profile: Profile::from_toml(profile).unwrap(),
        ..SmscConfig::default()
    };
    let smsc = Smsc::start(Arc::new(config)).await.unwrap();
    Api { smsc, http: Client::builder(TokioExecutor::new()).build_http() }
}

impl Api {
    async fn call(
        &self,
        method: Method,
        path: &str,
        form: &[(&str, &str)],
        token: &str,
    ) -> (u16, HeaderMap, Value) {
        let (status, headers, body) = self.try_call(method, path, form, token).await.expect("an answer");
        (status, headers, serde_json::from_slice(&body).unwrap_or_default())
    }

    /// `None`: the connection was closed, or nothing came.
    async fn try_call(
        &self,
        method: Method,
        path: &str,
        form: &[(&str, &str)],
        token: &str,
    ) -> Option<(u16, HeaderMap, Bytes)> {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let address = self.smsc.rest_addr().unwrap();
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{address}/2010-04-01/Accounts/{SID}/{path}"))
            .header("authorization", format!("Basic {}", STANDARD.encode(format!("{SID}:{token}"))))
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let response = self.http.request(request).await.ok()?;
        let (head, body) = response.into_parts();
        Some((head.status.as_u16(), head.headers, body.collect().await.ok()?.to_bytes()))
    }

    async fn create(&self, to: &str, body: &str, callback: &str) -> (u16, HeaderMap, Value) {
        let form = [("To", to), ("From", "+12025550100"), ("Body", body), ("StatusCallback", callback)];
        self.call(Method::POST, "Messages.json", &form, TOKEN).await
    }

    async fn list(&self, query: &str) -> Value {
        self.call(Method::GET, &format!("Messages.json?{query}"), &[], TOKEN).await.2
    }
}

#[derive(Clone)]
struct Hook {
    calls: mpsc::Sender<(String, BTreeMap<String, String>, String)>,
    answers: Arc<std::sync::Mutex<Vec<u16>>>,
}

/// A listener of callbacks: answers with `answers` first, then with 204.
async fn hook(answers: &[u16]) -> (String, mpsc::Receiver<(String, BTreeMap<String, String>, String)>) {
    let (calls, received) = mpsc::channel(64);
    let hook =
        Hook { calls, answers: Arc::new(std::sync::Mutex::new(answers.iter().rev().copied().collect())) };
    let take = |State(hook): State<Hook>, uri: axum::http::Uri, headers: HeaderMap, body: Bytes| async move {
        let fields = form_urlencoded::parse(&body).into_owned().collect();
        let signature = headers["x-twilio-signature"].to_str().unwrap().to_owned();
        hook.calls.send((uri.to_string(), fields, signature)).await.unwrap();
        let status = hook.answers.lock().unwrap().pop().unwrap_or(204);
        StatusCode::from_u16(status).unwrap()
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().route("/c", post(take)).with_state(hook);
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, received)
}

async fn next<T>(received: &mut mpsc::Receiver<T>) -> T {
    tokio::time::timeout(PATIENCE, received.recv()).await.expect("in time").expect("a callback")
}

async fn until(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let looking = async {
        while !look().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_create_is_answered_reported_signed_and_repeated_until_it_is_taken() {
    let api = api("[receipts]\nretry_delay_ms = 10", Contract::default()).await;
    let (url, mut calls) = hook(&[503, 503]).await;
    let (status, _, message) = api.create("+12125550123", "Hello", &format!("{url}/c?m=7#rc=5")).await;
    assert_eq!(
        (status, &message["status"], &message["num_segments"]),
        (201, &Value::from("queued"), &Value::from("1"))
    );
    let mut expected = None;
    for _ in 0..3 {
        let (uri, fields, signature) = next(&mut calls).await;
        assert_eq!(uri, "/c?m=7", "the fragment is not sent");
        assert_eq!(Value::from(fields["MessageSid"].clone()), message["sid"]);
        assert_eq!((fields["MessageStatus"].as_str(), fields["AccountSid"].as_str()), ("delivered", SID));
        let text = fields.iter().fold(format!("{url}/c?m=7"), |text, (name, value)| text + name + value);
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, TOKEN.as_bytes());
        assert_eq!(signature, STANDARD.encode(hmac::sign(&key, text.as_bytes()).as_ref()));
        assert_eq!(*expected.get_or_insert_with(|| fields.clone()), fields);
    }
    until("acknowledged", async || api.smsc.stats(0).receipts.acked == 1).await;
    let stats = api.smsc.stats(0);
    assert_eq!((stats.receipts.sent, stats.receipts.refused, stats.receipts.pending), (3, 2, 0));
    assert_eq!((stats.messages.messages, stats.rest.unwrap().creates), (1, 1));
    let key = truth_key(&TruthKey::default(), "+12125550123", "Hello");
    assert_eq!(api.smsc.copies_of(key), 1);
}

#[tokio::test]
async fn faults_are_told_in_the_words_of_the_api() {
    let profile = "refuse = [ { suffix = \"0187\", status = 11 }, { suffix = \"0188\", status = 21610 } ]";
    let api = api(profile, Contract::default()).await;
    for (to, body, status, code) in [
        ("+12125550187", "x", 400, 21_211),
        ("+12125550188", "x", 400, 21_610),
        ("12125550123", "x", 400, 21_211),
        ("+12125550123", "", 400, 21_602),
        ("+12125550123", &"y".repeat(1_601), 400, 21_617),
    ] {
        let (got, _, problem) = api.create(to, body, "").await;
        assert_eq!((got, problem["code"].as_u64()), (status, Some(code)), "{to}");
    }
    let wrong = api.call(Method::POST, "Messages.json", &[("To", "+12125550123")], "wrong").await;
    assert_eq!((wrong.0, wrong.2["code"].as_u64()), (401, Some(20_003)));
    assert_eq!(api.smsc.stats(0).rest.unwrap().unauthorized, 1);
    for (fault, status) in [("throttled", 429), ("queue_full", 400), ("temporary", 503)] {
        api.smsc.set_profile(Profile::from_toml(&format!("[faults]\n{fault} = 1.0")).unwrap()).unwrap();
        let (got, headers, _) = api.create("+12125550123", fault, "").await;
        assert_eq!((got, headers.contains_key("retry-after")), (status, status == 429), "{fault}");
    }
    // Accepted or not: the caller hears nothing, and the ground truth knows.
    for (fault, copies) in
        [("drop_after_accept", 1), ("drop_before_read", 0), ("lost_accepted", 1), ("lost_refused", 0)]
    {
        api.smsc.set_profile(Profile::from_toml(&format!("[faults]\n{fault} = 1.0")).unwrap()).unwrap();
        let form = [("To", "+12125550123"), ("From", "+12025550100"), ("Body", fault)];
        let call = api.try_call(Method::POST, "Messages.json", &form, TOKEN);
        match tokio::time::timeout(Duration::from_millis(300), call).await {
            Ok(answer) => assert!(answer.is_none() && fault.starts_with("drop"), "{fault}"),
            Err(_) => assert!(fault.starts_with("lost"), "{fault}"),
        }
        assert_eq!(
            api.smsc.copies_of(truth_key(&TruthKey::default(), "+12125550123", fault)),
            copies,
            "{fault}"
        );
    }
}

#[tokio::test]
async fn messages_are_listed_read_and_redacted() {
    let profile = "[receipts]\nnever = 1.0";
    let api = api(profile, Contract::default()).await;
    let mut sids = Vec::new();
    for n in 0..5 {
        let to = if n == 3 { "+12125550199" } else { "+12125550123" };
        sids.push(api.create(to, &format!("text {n}"), "").await.2["sid"].as_str().unwrap().to_owned());
    }
    let today = jiff::Timestamp::now().strftime("%Y-%m-%d");
    let page = api.list(&format!("To=%2B12125550123&DateSent%3E={today}&PageSize=3")).await;
    let listed = |page: &Value| -> Vec<String> {
        page["messages"].as_array().unwrap().iter().map(|m| m["sid"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed(&page), [4, 2, 1].map(|n| sids[n].clone()));
    let next = page["next_page_uri"].as_str().unwrap().split_once("Messages.json?").unwrap().1.to_owned();
    let last = api.list(&next).await;
    assert_eq!((listed(&last), last["next_page_uri"].is_null()), (vec![sids[0].clone()], true));
    assert_eq!(page["messages"][0]["body"], "text 4");
    assert!(listed(&api.list("To=%2B12125550123&DateSent%3E=2999-01-01").await).is_empty());
    let one = format!("Messages/{}.json", sids[0]);
    assert_eq!(api.call(Method::GET, &one, &[], TOKEN).await.2["status"], "delivered");
    assert_eq!(api.call(Method::GET, "Messages/SM1.json", &[], TOKEN).await.0, 404);
    let (status, _, redacted) = api.call(Method::POST, &one, &[("Body", "")], TOKEN).await;
    assert_eq!((status, &redacted["body"]), (200, &Value::from("")));
    assert_eq!(api.call(Method::POST, &one, &[("Body", "other")], TOKEN).await.0, 400);
    assert_eq!(api.smsc.stats(0).rest.unwrap().redacted, 1);
    // Before its last state a text cannot be taken away.
    let late = "[receipts]\ndelay = { min_ms = 60000.0, median_ms = 60000.0, p99_ms = 60000.0 }";
    api.smsc.set_profile(Profile::from_toml(late).unwrap()).unwrap();
    let (url, _calls) = hook(&[]).await;
    let (_, _, message) = api.create("+12125550123", "early", &format!("{url}/c")).await;
    let path = format!("Messages/{}.json", message["sid"].as_str().unwrap());
    assert_eq!(api.call(Method::POST, &path, &[("Body", "")], TOKEN).await.2["code"], 20_009);
}

#[tokio::test]
async fn the_contract_counts_segments_and_throttles_by_them() {
    let contract = Contract { limit: 4, window_ms: 60_000, slack_ms: 0 };
    let api = api("throttle_over_contract = true", contract).await;
    // Three segments, then one, then one more than the contract has.
    for (n, body, expected) in [(0, "a".repeat(400), 201), (1, "b".to_owned(), 201), (2, "c".to_owned(), 429)]
    {
        assert_eq!(api.create("+12125550123", &body, "").await.0, expected, "{n}");
    }
    let stats = api.smsc.stats(0);
    let account = stats.accounts.iter().find(|a| a.system_id == SID).unwrap();
    assert_eq!((account.arrivals, account.window_max, account.violations), (5, 5, 1));
}
