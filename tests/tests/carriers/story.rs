//! The steps. The second simulator is the carrier of some practices; what it was told is its own ground truth.
use carillon_ctl::lab::{CARRIER, HTTP_CARRIER, Lab, Plane, TENANT};
use carillon_loadtest::carrier::Carrier;
use carillon_loadtest::smsc::Stats;
use carillon_proto::errors;
use carillon_proto::internal::{Baa, CarrierRecord, PutPractice};
use carillon_proto::public::submit_result::Result as Item;
use carillon_proto::public::{ErrorReason, MessageClass, MessageSpec, MessageState, SubmitMessagesRequest};
use carillon_tests::api::{number_of, spec};
use carillon_tests::canary::Canary;
use carillon_tests::rig::{Rig, until};
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const LIMIT: Duration = Duration::from_secs(40);
const PERFECT: &str = "base = \"perfect\"\n";
/// Taken over, no answer, no callback.
const LOST: &str = "base = \"perfect\"\n[faults]\nlost_accepted = 1.0\n[receipts]\nnever = 1.0\n";
/// Not taken over, no answer.
const NEVER_TAKEN: &str = "base = \"perfect\"\n[faults]\nlost_refused = 1.0\n";
const SILENT: &str = "base = \"perfect\"\n[receipts]\nnever = 1.0\n";
const THROTTLED: &str = "base = \"perfect\"\n[faults]\nthrottled = 0.5\n";

/// Asks about messages so soon that a test can wait for it.
pub const SOON: [(&str, &str); 3] = [
    ("unknown_after_s = 60", "unknown_after_s = 1"),
    ("silent_after_s = 3600", "silent_after_s = 2"),
    ("absence_is_proof_after_s = 0", "absence_is_proof_after_s = 3"),
];

/// Puts Twilio's contract with changes into the lab's directory of contracts.
pub fn write_contract(
    lab: &Lab,
    version: u32,
    changes: impl IntoIterator<Item = (&'static str, &'static str)>,
) {
    let mut text = include_str!("../../../node/carriers/contracts/twilio.toml").replacen(
        "version = 1",
        &format!("version = {version}"),
        1,
    );
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    let dir = lab.dir().join("contracts");
    // A reader must never see half of it.
    fs_err::write(dir.join("twilio.new"), text).unwrap();
    fs_err::rename(dir.join("twilio.new"), dir.join("twilio.toml")).unwrap();
}

pub struct Story<'a> {
    rig: &'a Rig,
    carrier: Carrier,
    /// Of the carrier over HTTP.
    practice: String,
    sent: Mutex<Vec<MessageSpec>>,
}

impl<'a> Story<'a> {
    pub async fn new(rig: &'a Rig) -> Self {
        let practice = rig.practices[0].clone();
        let story = Self {
            rig,
            carrier: Carrier::new(rig.http.clone(), &rig.lab.smsc_http_http()),
            practice: practice.clone(),
            sent: Mutex::default(),
        };
        story.put_practice(&practice, HTTP_CARRIER).await;
        story
    }

    async fn put_practice(&self, practice: &str, carrier: &str) {
        let put = PutPractice {
            tenant: TENANT.to_owned(),
            practice: practice.to_owned(),
            time_zone: "America/Chicago".to_owned(),
            carrier: carrier.to_owned(),
            ..Default::default()
        };
        let record = self.rig.lab.admin(1).unwrap().put_practice(put).await.unwrap();
        until("every node knows the practice's carrier", LIMIT, async || {
            for node in self.rig.lab.node_ids() {
                let status = self.rig.status(node).await?;
                if !status
                    .practices
                    .iter()
                    .any(|p| p.practice_no == record.practice_no && p.carrier_no == record.carrier_no)
                {
                    return Err(format!("node {node} does not"));
                }
            }
            Ok(())
        })
        .await;
    }

    fn spec(&self, key: &str, at: usize) -> MessageSpec {
        let spec = spec(&self.practice, key, at);
        self.sent.lock().unwrap().push(spec.clone());
        spec
    }

    async fn submit(&self, key: &str, at: usize) -> String {
        self.rig.submit(vec![self.spec(key, at)]).await.remove(0).message_id
    }

    async fn stats(&self) -> Stats {
        self.carrier.stats().await.unwrap()
    }

    /// The simulator speaks nothing but TLS, so that a message that gets there went over it.
    pub async fn over_tls(&self) {
        let status = self.rig.status(1).await.unwrap();
        let record = status.carriers.iter().filter_map(|c| c.carrier.clone()).find(|c| c.name == CARRIER);
        let smpp = record.and_then(|record| record.smpp).unwrap();
        assert!(smpp.tls && smpp.tls_ca_pem.contains("BEGIN CERTIFICATE"));
        assert_eq!(smpp.tls_server_name, "localhost");
        let simulator = Carrier::new(self.rig.http.clone(), &self.rig.lab.smsc_http());
        let before = simulator.stats().await.unwrap();
        let spec = spec(&self.rig.practices[2], "over-tls", 70);
        self.sent.lock().unwrap().push(spec.clone());
        let id = self.rig.submit(vec![spec]).await.remove(0).message_id;
        let message = self.rig.until_state(&id, MessageState::Delivered, LIMIT).await;
        assert_eq!(message.attempts.len(), 1, "{message:?}");
        let after = simulator.stats().await.unwrap();
        assert_eq!(after.messages.messages, before.messages.messages + 1);
        self.refuses_plaintext().await;
    }

    async fn refuses_plaintext(&self) {
        let mut stream = TcpStream::connect(self.rig.lab.plan().smsc()).await.unwrap();
        // An enquire_link, which every SMSC answers, also before a bind.
        stream.write_all(&[0, 0, 0, 16, 0, 0, 0, 0x15, 0, 0, 0, 0, 0, 0, 0, 1]).await.unwrap();
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer).await);
        assert!(!answer.starts_with(&[0, 0, 0, 16]), "{answer:?}");
    }

    pub async fn delivered(&self) {
        let specs: Vec<MessageSpec> = (0..20).map(|at| self.spec(&format!("http-{at}"), at)).collect();
        for accepted in self.rig.submit(specs).await {
            let message = self.rig.until_state(&accepted.message_id, MessageState::Delivered, LIMIT).await;
            assert_eq!(message.attempts.len(), 1, "{message:?}");
        }
        until("the texts are gone at the carrier", LIMIT, async || {
            let rest = self.stats().await.rest.unwrap();
            if rest.redacted == 20 { Ok(()) } else { Err(format!("{rest:?}")) }
        })
        .await;
        let stats = self.stats().await;
        let rest = stats.rest.unwrap();
        assert_eq!((stats.messages.messages, stats.messages.duplicated), (20, 0));
        assert_eq!((rest.creates, rest.unauthorized, rest.signatures_refused), (20, 0, 0));
        assert_eq!((stats.receipts.given_up, stats.violations()), (0, 0));
    }

    pub async fn lost_and_found(&self) {
        self.carrier.set_profile(LOST).await.unwrap();
        let before = self.stats().await;
        let id = self.submit("lost-and-found", 30).await;
        self.rig.until_state(&id, MessageState::Unknown, LIMIT).await;
        self.carrier.set_profile(PERFECT).await.unwrap();
        let message = self.rig.until_state(&id, MessageState::Delivered, LIMIT).await;
        assert_eq!(message.attempts.len(), 1, "it was sent again");
        let after = self.stats().await;
        assert_eq!(after.messages.messages, before.messages.messages + 1);
        assert!(after.rest.unwrap().lists > before.rest.unwrap().lists);
    }

    pub async fn lost_and_absent(&self) {
        self.carrier.set_profile(NEVER_TAKEN).await.unwrap();
        let before = self.stats().await;
        let id = self.submit("lost-and-absent", 31).await;
        self.rig.until_state(&id, MessageState::Unknown, LIMIT).await;
        self.carrier.set_profile(PERFECT).await.unwrap();
        let message = self.rig.until_state(&id, MessageState::Delivered, Duration::from_secs(90)).await;
        assert_eq!(message.attempts.len(), 2, "{message:?}");
        let after = self.stats().await;
        assert_eq!(after.messages.messages, before.messages.messages + 1);
        assert_eq!(after.messages.duplicated, 0);
    }

    pub async fn silent(&self) {
        self.carrier.set_profile(SILENT).await.unwrap();
        let before = self.stats().await.rest.unwrap();
        let id = self.submit("silent", 32).await;
        self.rig.until_state(&id, MessageState::Delivered, LIMIT).await;
        let after = self.stats().await.rest.unwrap();
        assert!(after.reads > before.reads, "it was not asked for by its id");
        self.carrier.set_profile(PERFECT).await.unwrap();
    }

    pub async fn throttled(&self) {
        self.carrier.set_profile(THROTTLED).await.unwrap();
        let specs: Vec<MessageSpec> =
            (0..6).map(|at| self.spec(&format!("throttled-{at}"), 40 + at)).collect();
        let accepted = self.rig.submit(specs).await;
        for message in accepted {
            self.rig.until_state(&message.message_id, MessageState::Delivered, LIMIT).await;
        }
        let stats = self.stats().await;
        assert!(stats.by_fault.get("throttled").is_some_and(|count| *count > 0), "{:?}", stats.by_fault);
        assert_eq!(stats.messages.duplicated, 0);
        self.carrier.set_profile(PERFECT).await.unwrap();
    }

    /// A callback to a node, as somebody without the token would make it. Gives the status.
    async fn forge(&self, node: u64, path: &str, signature: &str) -> u16 {
        let plan = self.rig.lab.plan();
        let address = plan.nodes.iter().find(|n| n.id == node).unwrap().callbacks();
        let mut roots = rustls::RootCertStore::empty();
        let ca = self.rig.lab.tls("smsc-http", Plane::Carriers).ca;
        carillon_proto::tls::certificates(&ca).unwrap().into_iter().for_each(|ca| roots.add(ca).unwrap());
        let config = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13]);
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let tcp = TcpStream::connect(&address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        let body = format!("MessageSid=SM{:032x}&MessageStatus=delivered", 1);
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\nx-twilio-signature: {signature}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        drop(stream.read_to_string(&mut answer).await);
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
    }

    pub async fn bad_signature(&self) {
        let path = format!("/carriers/{HTTP_CARRIER}?m=x&a=1");
        assert_eq!(self.forge(1, &path, "AAAAAAAAAAAAAAAAAAAAAAAAAAA=").await, 403);
        assert_eq!(self.forge(1, "/carriers/nobody", "x").await, 404);
        assert_eq!(self.forge(1, "/other", "x").await, 404);
        let page = self.rig.metrics().await.remove("node-1").unwrap();
        let counted = |line: &&str| {
            line.starts_with("carillon_twilio_callbacks_total{") && line.contains("result=\"bad_signature\"")
        };
        let line = page.lines().find(counted).unwrap_or_else(|| panic!("not counted: {page}"));
        assert!(line.ends_with(" 1"), "{line}");
    }

    async fn versions(&self) -> Result<Vec<(String, u32)>, String> {
        let mut versions = Vec::new();
        for node in self.rig.lab.node_ids() {
            let status = self.rig.status(node).await?;
            let named = |c: &&carillon_proto::admin::CarrierStatus| {
                c.carrier.as_ref().is_some_and(|record| record.name == HTTP_CARRIER)
            };
            let carrier = status.carriers.iter().find(named).ok_or("not there")?;
            versions.push((carrier.contract.clone(), carrier.contract_version));
        }
        Ok(versions)
    }

    async fn until_version(&self, version: u32) {
        until("every node has the new version", LIMIT, async || {
            let seen = self.versions().await?;
            if seen.iter().all(|(name, seen)| name == "twilio" && *seen == version) {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            }
        })
        .await;
    }

    /// A refused number (status 11 of the profile is Twilio's 21211) becomes something else with another contract.
    pub async fn contract(&self) {
        self.until_version(2).await;
        let refuse = "base = \"perfect\"\nrefuse = [ { suffix = \"0150\", status = 11 } ]\n";
        self.carrier.set_profile(refuse).await.unwrap();
        let id = self.submit("refused", 50).await;
        self.rig.until_state(&id, MessageState::Rejected, LIMIT).await;
        let opted = ("\"21211\" = \"rejected_number\"", "\"21211\" = \"opted_out\"");
        write_contract(&self.rig.lab, 3, SOON.into_iter().chain([opted]));
        self.until_version(3).await;
        let id = self.submit("opted-out", 50).await;
        self.rig.until_state(&id, MessageState::OptedOut, LIMIT).await;
        self.carrier.set_profile(PERFECT).await.unwrap();
    }

    pub async fn bad_contract(&self) {
        let path = self.rig.lab.dir().join("contracts/broken.toml");
        fs_err::write(&path, "schema = 1\nname = \"broken\"\n").unwrap();
        until("the fault is a metric of every node", LIMIT, async || {
            let pages = self.rig.metrics().await;
            let faulty = |id: &u64| {
                pages
                    .get(&format!("node-{id}"))
                    .and_then(|page| page.lines().find(|line| line.starts_with("carillon_contract_faults{")))
                    .is_some_and(|line| line.ends_with(" 1"))
            };
            let nodes = self.rig.lab.node_ids();
            if nodes.iter().all(faulty) { Ok(()) } else { Err("not everywhere".to_owned()) }
        })
        .await;
        self.until_version(3).await;
        let id = self.submit("with-a-bad-file", 51).await;
        self.rig.until_state(&id, MessageState::Delivered, LIMIT).await;
        fs_err::remove_file(path).unwrap();
    }

    pub async fn agreement(&self) {
        let status = self.rig.status(1).await.unwrap();
        let known = status.carriers.iter().filter_map(|c| c.carrier.clone()).find(|c| c.name == HTTP_CARRIER);
        let bare = CarrierRecord { name: "bare".to_owned(), baa: Baa::None.into(), ..known.unwrap() };
        self.rig.lab.admin(1).unwrap().put_carrier(bare).await.unwrap();
        let practice = self.rig.practices[1].clone();
        self.put_practice(&practice, "bare").await;
        until("the account without an agreement is seen as one", LIMIT, async || {
            let status = self.rig.status(1).await?;
            let bare = status.carriers.iter().find(|c| c.carrier.as_ref().is_some_and(|r| r.name == "bare"));
            match bare {
                Some(bare) if !bare.carries_phi && bare.binds_up > 0 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        let reminder = spec(&practice, "bare-reminder", 60);
        let notice =
            MessageSpec { class: MessageClass::PublicHealth as i32, ..spec(&practice, "bare-notice", 61) };
        self.sent.lock().unwrap().extend([reminder.clone(), notice.clone()]);
        let request = SubmitMessagesRequest { messages: vec![reminder, notice], validate_only: false };
        let results = self.rig.client.submit(request).await.unwrap().results;
        let Some(Item::Error(refused)) = &results[0].result else { panic!("{:?}", results[0]) };
        assert_eq!(errors::reason_of(&errors::from_rpc(refused)), Some(ErrorReason::CarrierWithoutBaa));
        let Some(Item::Accepted(notice)) = &results[1].result else { panic!("{:?}", results[1]) };
        self.rig.until_state(&notice.message_id, MessageState::Delivered, LIMIT).await;
        self.loses_its_agreement().await;
    }

    /// A message that was accepted while there was an agreement waits when there is none any more.
    async fn loses_its_agreement(&self) {
        let mut later = self.spec("loses-its-agreement", 62);
        later.not_before = carillon_tests::api::from_now(6_000);
        let id = self.rig.submit(vec![later]).await.remove(0).message_id;
        let status = self.rig.status(1).await.unwrap();
        let mut record = status
            .carriers
            .iter()
            .filter_map(|c| c.carrier.clone())
            .find(|c| c.name == HTTP_CARRIER)
            .unwrap();
        let admin = self.rig.lab.admin(1).unwrap();
        record.baa = Baa::None.into();
        admin.put_carrier(record.clone()).await.unwrap();
        until("it waits for an agreement", LIMIT, async || {
            let message = self.rig.get(&id, Default::default()).await.map_err(|s| s.to_string())?;
            let reason = carillon_proto::public::WaitingReason::CarrierWithoutBaa;
            if message.waiting_reason() == reason { Ok(()) } else { Err(format!("{message:?}")) }
        })
        .await;
        let message = self.rig.get(&id, Default::default()).await.unwrap();
        assert!(message.attempts.is_empty(), "{message:?}");
        record.baa = Baa::OnFile.into();
        admin.put_carrier(record).await.unwrap();
        self.rig.until_state(&id, MessageState::Delivered, Duration::from_secs(90)).await;
    }

    pub async fn canary(&self) {
        let sent = self.sent.lock().unwrap().clone();
        let marks: Vec<String> =
            sent.iter().flat_map(|spec| [spec.body.clone(), number_of(spec)[2..].to_owned()]).collect();
        let token = fs_err::read_to_string(self.rig.lab.dir().join("secrets/sim-http-token")).unwrap();
        let marks: Vec<String> = marks.into_iter().chain([token.trim().to_owned()]).collect();
        let search = Canary::new(&marks).in_tree(&self.rig.lab.dir().join("logs"));
        assert!(search.files > 4 && search.bytes > 1_000, "{search:?}");
        assert!(search.finds.is_empty(), "{:?}", search.finds);
        for (process, page) in self.rig.metrics().await {
            for mark in &marks {
                assert!(!page.contains(mark.as_str()), "{mark} in the metrics of {process}");
            }
        }
    }
}
