//! What happens to the marked messages, and what is kept of it to be searched: every error, page token, cursor, answer to
//! operators and metrics page goes into files below the lab's directory.
use carillon_loadtest::carrier::Mark;
use carillon_loadtest::smsc::{TruthKey, truth_key};
use carillon_proto::errors;
use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::submit_result::Result as Item;
use carillon_proto::public::*;
use carillon_tests::api::{from_now, number, number_of, timed};
use carillon_tests::faults::{arm, disarm};
use carillon_tests::rig::{Rig, until};
use std::collections::{BTreeSet, HashMap};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::Status;

pub(super) const LIMIT: Duration = Duration::from_secs(40);
/// Longer than the carrier's answer timeout of a lab (5 s).
const TIMEOUT_LIMIT: Duration = Duration::from_secs(60);

/// Some wait for retries.
const SETTLE_LIMIT: Duration = Duration::from_secs(170);

/// The beginning of every kind of marked text; each is a mark.
pub(super) const BODY: &str = "zqBodyVx7Lk";
const NAME: &str = "Quixzotlberta";
pub(super) const REFERENCE: &str = "zqRefJp4Wm";
const LABEL_NAME: &str = "zqLabNm8Ty";
const LABEL_VALUE: &str = "zqLabVl2Gh";
const KEY: &str = "zqKeyTw6Rd";
/// In fields that are refused.
pub(super) const BAD: &str = "zqBadHn3Pf";
const PANIC_LABEL: &str = "carillon-lab-panic";
const ROUTER_PANIC_LABEL: &str = "carillon-lab-panic-router";
/// What is read of a log that grows by megabytes a second.
const TAIL_BYTES: u64 = 8 << 20;

/// Receipts echo the text. Numbers that end in 0187 are refused in the answer, in 0143 by the receipt.
pub const PROFILE: &str = r#"
base = "perfect"
refuse = [ { suffix = "0187", status = 11 }, { suffix = "0143", err = 6 } ]
[receipts]
text_octets = 20
duplicate = 0.2
"#;
const LOST: &str = "base = \"perfect\"\n[faults]\nlost_accepted = 1.0\n[receipts]\nnever = 1.0\n";
const THROTTLED: &str = "base = \"perfect\"\n[faults]\nthrottled = 0.4\ntemporary = 0.4\n";

pub struct Story<'a> {
    pub(super) rig: &'a Rig,
    evidence: PathBuf,
    kept: usize,
    numbers: BTreeSet<String>,
    /// What the carrier must have received, and how often at least.
    sent: Vec<(MessageSpec, u32)>,
    since: Option<Mark>,
}

impl<'a> Story<'a> {
    pub fn new(rig: &'a Rig) -> Self {
        let evidence = rig.lab.dir().join("evidence");
        fs_err::create_dir(&evidence).unwrap();
        Self { rig, evidence, kept: 0, numbers: BTreeSet::new(), sent: Vec::new(), since: None }
    }

    /// Everything that must not be found.
    pub fn marks(&self) -> Vec<String> {
        let words = [BODY, NAME, REFERENCE, LABEL_NAME, LABEL_VALUE, KEY, BAD].map(str::to_owned);
        words.into_iter().chain(self.numbers.iter().cloned()).collect()
    }

    pub(super) fn keep(&mut self, what: &str, bytes: &[u8]) {
        self.kept += 1;
        fs_err::write(self.evidence.join(format!("{:03}-{what}", self.kept)), bytes).unwrap();
    }

    fn keep_status(&mut self, status: &Status) {
        self.keep("error", format!("{status:?}\n{status}\n").as_bytes());
        self.keep("error-details", status.details());
    }

    async fn keep_metrics(&mut self) {
        for (process, page) in self.rig.metrics().await {
            self.keep(&format!("metrics-{process}"), page.as_bytes());
        }
    }

    /// A message with a mark in every field that may hold a patient's data. The text begins with marks, so that
    /// receipts echo them.
    pub(super) fn marked(&mut self, practice: usize, key: &str, at: usize) -> MessageSpec {
        let number = number(at);
        self.numbers.insert(number[2..].to_owned());
        MessageSpec {
            practice: self.rig.practices[practice].clone(),
            recipient: Some(Recipient::PhoneNumber(number)),
            body: format!("{BODY} {NAME}, {key}: the result of your test is here."),
            class: MessageClass::Reminder as i32,
            idempotency_key: format!("{KEY}-{key}"),
            external_reference: format!("{REFERENCE}-{key}"),
            labels: HashMap::from([(LABEL_NAME.to_owned(), format!("{LABEL_VALUE} {NAME}"))]),
            ..MessageSpec::default()
        }
    }

    async fn submit(&self, spec: &MessageSpec) -> String {
        self.rig.submit(vec![spec.clone()]).await.remove(0).message_id
    }

    pub async fn success(&mut self) {
        self.since = Some(self.rig.carrier.mark().await.unwrap());
        for (at, practice) in [0, 1, 2, 3].into_iter().enumerate() {
            let mut spec = self.marked(practice, &format!("success-{at}"), at);
            if at == 3 {
                // Three parts in UCS-2.
                spec.body = format!("{BODY} {NAME} \u{2713} ").repeat(6);
            }
            let id = self.submit(&spec).await;
            let state = self.rig.until_state(&id, MessageState::Delivered, LIMIT).await;
            self.keep("state-detail", state.state_detail.as_bytes());
            let full = self.rig.get(&id, MessageView::Full).await.unwrap();
            assert_eq!((&full.body, full.recipient.as_str()), (&spec.body, number_of(&spec)));
            assert_eq!((&full.external_reference, &full.labels), (&spec.external_reference, &spec.labels));
            self.sent.push((spec, 1));
        }
        let request = ListMessagesRequest {
            practice: self.rig.practices[0].clone(),
            external_reference: format!("{REFERENCE}-success-0"),
            page_size: 1,
            view: MessageView::Full as i32,
            ..Default::default()
        };
        assert_eq!(self.rig.list(request).await.len(), 1);
        let page = ListMessagesRequest { page_size: 1, ..Default::default() };
        let page = self.rig.client.messages().list_messages(timed(page)).await.unwrap().into_inner();
        self.keep("page-token", page.next_page_token.as_bytes());
        let request = WatchEventsRequest { practice: String::new(), cursor: "start".to_owned() };
        let mut watch = self.rig.client.messages().watch_events(timed(request)).await.unwrap().into_inner();
        // The first answers may only say where the stream stands.
        let events = async {
            loop {
                let answer = watch.message().await.unwrap().expect("the stream lives");
                if !answer.events.is_empty() {
                    return answer;
                }
            }
        };
        let answer = tokio::time::timeout(LIMIT, events).await.expect("there are events");
        self.keep("events", format!("{answer:?}").as_bytes());
        self.keep_metrics().await;
    }

    pub async fn rejected_by_validation(&mut self) {
        let long = |text: &str| text.repeat(20);
        let good = self.marked(0, "refused", 4);
        let phone = |text: String| Some(Recipient::PhoneNumber(text));
        let national = |number: &str, region: &str| {
            Some(Recipient::NationalNumber(NationalNumber { number: number.into(), region: region.into() }))
        };
        let with = |change: &dyn Fn(&mut MessageSpec)| {
            let mut spec = good.clone();
            change(&mut spec);
            spec
        };
        let bad = vec![
            with(&|s| s.recipient = phone(format!("+{BAD} {}", number(4)))),
            with(&|s| s.recipient = phone(format!("{}99999999", number(4)))),
            with(&|s| s.recipient = national(BAD, "US")),
            with(&|s| s.recipient = national(&number(4)[2..], BAD)),
            with(&|s| s.body = format!("{BODY} {NAME} \u{7}")),
            with(&|s| s.body = long(BODY).repeat(20)),
            with(&|s| s.time_zone = format!("America/{BAD}")),
            with(&|s| s.idempotency_key = long(KEY)),
            with(&|s| s.external_reference = long(REFERENCE)),
            with(&|s| s.labels = HashMap::from([(long(LABEL_NAME), LABEL_VALUE.to_owned())])),
            with(&|s| s.labels = HashMap::from([(LABEL_NAME.to_owned(), long(LABEL_VALUE))])),
            with(&|s| s.practice = format!("{BAD}-{NAME}")),
            with(&|s| s.expires_at = from_now(-1)),
            with(&|s| s.class = 55),
        ];
        let count = bad.len();
        let request = SubmitMessagesRequest { messages: bad, validate_only: false };
        let results = self.rig.client.submit(request).await.unwrap().results;
        assert_eq!(results.len(), count);
        for result in results {
            let Some(Item::Error(error)) = result.result else { panic!("a bad message was accepted") };
            self.keep_status(&errors::from_rpc(&error));
        }
        let client = || self.rig.client.messages();
        let tokens = [
            client()
                .list_messages(timed(ListMessagesRequest { page_token: BAD.into(), ..Default::default() }))
                .await
                .unwrap_err(),
            client()
                .list_messages(timed(ListMessagesRequest { practice: BAD.into(), ..Default::default() }))
                .await
                .unwrap_err(),
            client()
                .get_message(timed(GetMessageRequest { message_id: BAD.into(), ..Default::default() }))
                .await
                .unwrap_err(),
            client()
                .watch_events(timed(WatchEventsRequest { practice: String::new(), cursor: BAD.into() }))
                .await
                .unwrap_err(),
            client()
                .submit_messages(SubmitMessagesRequest { messages: vec![good.clone()], validate_only: false })
                .await
                .unwrap_err(),
        ];
        let cancel = CancelMessagesRequest { message_ids: vec![BAD.into()], ..Default::default() };
        let canceled = self.rig.client.cancel(cancel).await.unwrap();
        for status in &tokens {
            self.keep_status(status);
        }
        self.keep_status(&errors::from_rpc(canceled[0].error.as_ref().expect("no such message")));
    }

    pub async fn rejected_by_carrier(&mut self) {
        // 212-555-0187 and 212-555-0143.
        for (at, state) in [(87, MessageState::Rejected), (43, MessageState::Undelivered)] {
            let spec = self.marked(4, &format!("carrier-{at}"), at);
            let id = self.submit(&spec).await;
            let message = self.rig.until_state(&id, state, LIMIT).await;
            self.keep("state-detail", format!("{} {:?}", message.state_detail, message.attempts).as_bytes());
            self.sent.push((spec, u32::from(state == MessageState::Undelivered)));
        }
    }

    pub async fn refused_for_now(&mut self) {
        self.rig.carrier.set_profile(THROTTLED).await.unwrap();
        let specs: Vec<MessageSpec> = (0..20).map(|i| self.marked(5, &format!("storm-{i}"), 5)).collect();
        self.rig.submit(specs).await;
        until("the carrier has refused some", LIMIT, async || {
            let stats = self.rig.carrier.stats().await.map_err(|e| e.to_string())?;
            let count = |fault: &str| stats.by_fault.get(fault).copied().unwrap_or(0);
            let both = count("throttled") > 0 && count("temporary") > 0;
            if both { Ok(()) } else { Err(format!("{:?}", stats.by_fault)) }
        })
        .await;
        self.rig.carrier.set_profile(PROFILE).await.unwrap();
        self.keep_metrics().await;
    }

    pub async fn answer_timeout(&mut self) {
        self.rig.carrier.set_profile(LOST).await.unwrap();
        for at in 0..3 {
            let spec = self.marked(6 + at, &format!("lost-{at}"), 6 + at);
            let id = self.submit(&spec).await;
            let message = self.rig.until_state(&id, MessageState::Unknown, TIMEOUT_LIMIT).await;
            assert!(!message.state_detail.is_empty());
            self.keep("state-detail", format!("{} {:?}", message.state_detail, message.attempts).as_bytes());
            self.sent.push((spec, 1));
        }
        self.rig.carrier.set_profile(PROFILE).await.unwrap();
    }

    /// Router and ingest panic with number, text and labels in the panic's message.
    pub async fn panic(&mut self) {
        for (at, label) in [(9, PANIC_LABEL), (13, ROUTER_PANIC_LABEL)] {
            let before = self.panics().await;
            let mut spec = self.marked(9, label, at);
            spec.labels.insert(label.to_owned(), LABEL_VALUE.to_owned());
            let mut request =
                tonic::Request::new(SubmitMessagesRequest { messages: vec![spec], validate_only: false });
            request.set_timeout(Duration::from_secs(4));
            match self.rig.client.messages().submit_messages(request).await {
                Err(status) => self.keep_status(&status),
                Ok(answer) => match answer.into_inner().results.remove(0).result {
                    Some(Item::Error(error)) => self.keep_status(&errors::from_rpc(&error)),
                    other => panic!("it did not panic: {:?}", other.is_some()),
                },
            }
            let after = self.panics().await;
            let routers = after.0 > before.0;
            assert_eq!((routers, after.1 > before.1), (label == ROUTER_PANIC_LABEL, label == PANIC_LABEL));
        }
        self.keep_metrics().await;
        // Both go on.
        let after = self.marked(9, "after-the-panic", 10);
        let id = self.submit(&after).await;
        self.rig.until_state(&id, MessageState::Delivered, LIMIT).await;
        self.sent.push((after, 1));
    }

    /// Panics of the router, and of all nodes.
    async fn panics(&self) -> (f64, f64) {
        let (mut router, mut nodes) = (0.0, 0.0);
        for (process, page) in self.rig.metrics().await {
            let count =
                carillon_loadtest::scrape::Page::parse(&page).sum("carillon_panics_total").unwrap_or(0.0);
            *(if process == "router" { &mut router } else { &mut nodes }) += count;
        }
        (router, nodes)
    }

    /// Between opening a message and the carrier's socket a node panics with the plaintext in the panic: before its connector was
    /// called (it is tried again), and where that may have begun to write (it is held).
    pub async fn panic_while_sending(&mut self) {
        for (at, point, class, state) in [
            (14, "send::panic_opened", MessageClass::Staff, MessageState::Delivered),
            (15, "send::panic_handed_over", MessageClass::Reminder, MessageState::Unknown),
        ] {
            let mut spec = self.marked(at, &point.replace("::", "-"), at);
            spec.class = class as i32;
            let before = self.panics().await.1;
            let leader = self.rig.leader_of(&spec.practice).await;
            arm(&self.rig.lab.data_dir(leader), &[(point, "1*return")]).unwrap();
            let log = self.rig.lab.log_path(&format!("node-{leader}"));
            until("the fail point is armed", LIMIT, async || {
                let armed =
                    log_tail(&log).lines().any(|l| l.contains("fail point armed") && l.contains(point));
                if armed { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await;
            let id = self.submit(&spec).await;
            let message = self.rig.until_state(&id, state, LIMIT).await;
            let first = &message.attempts[0];
            let outcome =
                if state == MessageState::Unknown { Outcome::Ambiguous } else { Outcome::Transient };
            assert_eq!((first.outcome(), first.carrier_code.as_str()), (outcome, "panic"));
            self.keep("state-detail", format!("{} {:?}", message.state_detail, message.attempts).as_bytes());
            assert!(self.panics().await.1 > before, "nothing panicked");
            disarm(&self.rig.lab.data_dir(leader)).unwrap();
            self.sent.push((spec, u32::from(state == MessageState::Delivered)));
        }
        self.keep_metrics().await;
    }

    pub async fn crash(&mut self) {
        self.rig.carrier.set_profile(LOST).await.unwrap();
        let spec = self.marked(10, "crash", 11);
        let id = self.submit(&spec).await;
        self.rig.until_state(&id, MessageState::InFlight, LIMIT).await;
        let key = truth_key(&TruthKey::default(), number_of(&spec), &spec.body);
        let since = self.since.expect("the story began");
        until("the carrier has it", LIMIT, async || {
            let truth = self.rig.carrier.truth(&since).await.map_err(|e| e.to_string())?;
            if truth.received.contains_key(&key) { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        let leader = self.rig.leader_of(&spec.practice).await;
        self.rig.lab.kill_node(leader).unwrap();
        self.rig.carrier.set_profile(PROFILE).await.unwrap();
        self.rig.start_node(leader).await;
        self.rig.until_state(&id, MessageState::Unknown, LIMIT).await;
        self.sent.push((spec, 1));
        for id in self.rig.lab.node_ids() {
            let status = self.rig.status(id).await.unwrap();
            self.keep("admin-status", format!("{status:?}").as_bytes());
        }
    }

    pub async fn taken_back(&mut self) {
        let mut spec = self.marked(11, "taken-back", 12);
        spec.not_before = from_now(3_600_000);
        let id = self.submit(&spec).await;
        let request = CancelMessagesRequest {
            external_references: vec![spec.external_reference.clone()],
            practice: spec.practice.clone(),
            ..Default::default()
        };
        assert!(self.rig.client.cancel(request).await.unwrap()[0].canceled);
        let other = MessageSpec { body: format!("{BODY} {NAME} in other words"), ..spec };
        let request = SubmitMessagesRequest { messages: vec![other], validate_only: false };
        match self.rig.client.submit(request).await.unwrap().results.remove(0).result {
            Some(Item::Error(error)) => self.keep_status(&errors::from_rpc(&error)),
            _ => panic!("the key of {id} was given to another text"),
        }
    }

    /// No message is on its way any more.
    pub async fn settled(&mut self) {
        let moving =
            [MessageState::Accepted, MessageState::Waiting, MessageState::InFlight, MessageState::Submitted];
        let request = ListMessagesRequest {
            states: moving.map(|state| state as i32).to_vec(),
            page_size: 1_000,
            ..Default::default()
        };
        until("every message has settled", SETTLE_LIMIT, async || {
            match self.rig.list(request.clone()).await.first() {
                None => Ok(()),
                Some(open) => Err(format!("{} is {:?}", open.message_id, open.state())),
            }
        })
        .await;
    }

    /// A canary that was never there is not found either.
    pub async fn proof(&mut self) {
        let truth = self.rig.carrier.truth(&self.since.expect("the story began")).await.unwrap();
        for (spec, times) in &self.sent {
            let key = truth_key(&TruthKey::default(), number_of(spec), &spec.body);
            let received = truth.received.get(&key).map_or(0, |r| r.accepted);
            assert_eq!(received, *times, "{}", spec.idempotency_key);
        }
        assert!(self.sent.len() >= 10 && self.kept >= 60, "{} {}", self.sent.len(), self.kept);
        for path in ["/truth?since=0&limit=10000", "/stats?seconds=60", "/profile"] {
            let answer = self.rig.http.get(&self.rig.lab.smsc_http(), path).await.unwrap();
            self.keep("simulator", &answer);
        }
        self.keep_metrics().await;
    }
}

/// The end of a log.
fn log_tail(path: &Path) -> String {
    let mut file = fs_err::File::open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
