//! The carrier's side of the wire, played by the test.
use carillon_carriers::contract::{ContractHandle, SMPP_GENERIC};
use carillon_carriers::smpp::{SmppConfig, SmppConnector, SmppTuning};
use carillon_carriers::{
    Clear, Connector, InboundSink, LateAnswer, OpenGate, ReceiptReport, SendOutcome, SendRequest,
};
use carillon_proto::internal::SmppSettings;
use carillon_proto::{MessageId, Slot, sms};
use futures::{SinkExt as _, StreamExt as _};
use rusmpp::pdus::{BindTransceiverResp, DeliverSm, SubmitSm, SubmitSmResp};
use rusmpp::tokio_codec::CommandCodec;
use rusmpp::types::{COctetString, OctetString};
use rusmpp::values::EsmClass;
use rusmpp::{Command, CommandId, CommandStatus, Pdu};
use std::future::Future;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::codec::Framed;

/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("the test waited too long")
}

pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A listener that hands out its connections.
pub struct Smsc {
    listener: TcpListener,
    tls: Option<tokio_rustls::TlsAcceptor>,
}

impl Smsc {
    pub async fn new() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap(), tls: None }
    }

    pub async fn with_tls(tls: tokio_rustls::TlsAcceptor) -> Self {
        Self { tls: Some(tls), ..Self::new().await }
    }

    /// One whose connections buffer little.
    pub fn with_small_buffers() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self { listener: socket.listen(8).unwrap(), tls: None }
    }

    pub fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// The next connection, before anything was read from it.
    pub async fn accept(&self) -> Peer {
        self.try_accept().await.expect("the handshake failed")
    }

    pub async fn try_accept(&self) -> Option<Peer> {
        let (tcp, _) = within(self.listener.accept()).await.unwrap();
        let io: Box<dyn Io> = match &self.tls {
            Some(tls) => Box::new(within(tls.accept(tcp)).await.ok()?),
            None => Box::new(tcp),
        };
        Some(Peer { framed: Framed::new(io, CommandCodec::new()), sequence: 0 })
    }

    /// The next connection, bound.
    pub async fn bound(&self) -> Peer {
        let mut peer = self.accept().await;
        peer.answer_bind(CommandStatus::EsmeRok).await;
        peer
    }
}

/// What a carrier sees.
#[expect(clippy::large_enum_variant, reason = "a few in a test")]
pub enum Seen {
    Submit(u32, SubmitSm),
    /// A deliver_sm_resp with its status.
    Delivered(u32, u32),
    Nacked(u32),
}

/// One connection, seen from the carrier.
pub struct Peer {
    framed: Framed<Box<dyn Io>, CommandCodec>,
    sequence: u32,
}

impl Peer {
    /// The next PDU; `None` when the connection was closed.
    pub async fn next(&mut self) -> Option<Command> {
        match within(self.framed.next()).await {
            Some(Ok(command)) => Some(command),
            _ => None,
        }
    }

    pub async fn write(&mut self, sequence: u32, status: CommandStatus, pdu: impl Into<Pdu>) {
        within(self.framed.send(Command::new(status, sequence, pdu))).await.unwrap();
    }

    /// Octets that no codec would write.
    pub async fn raw(&mut self, octets: &[u8]) {
        within(self.framed.get_mut().write_all(octets)).await.unwrap();
    }

    pub async fn answer_bind(&mut self, status: CommandStatus) {
        let bind = self.next().await.expect("a bind");
        let Some(Pdu::BindTransceiver(request)) = bind.pdu() else { panic!("not a bind") };
        assert_eq!((request.system_id.as_str(), request.password.as_str()), ("carillon", "secret08"));
        assert_eq!(u8::from(request.interface_version), 0x34);
        self.write(bind.sequence_number(), status, BindTransceiverResp::default()).await;
    }

    /// The next submit_sm, answering enquire_links on the way.
    pub async fn submit(&mut self) -> (u32, SubmitSm) {
        self.submit_or_end().await.expect("a submit_sm")
    }

    pub async fn submit_or_end(&mut self) -> Option<(u32, SubmitSm)> {
        loop {
            let command = self.next().await?;
            match command.pdu() {
                Some(Pdu::SubmitSm(submit)) => return Some((command.sequence_number(), submit.clone())),
                Some(Pdu::EnquireLink) => {
                    let sequence = command.sequence_number();
                    self.write(sequence, CommandStatus::EsmeRok, Pdu::EnquireLinkResp).await;
                }
                _ => panic!("not a submit_sm: {:?}", command.id()),
            }
        }
    }

    /// The next PDU that means something; `None` when the connection was closed. Safe to give up waiting for.
    pub async fn seen(&mut self) -> Option<Seen> {
        loop {
            let command = self.framed.next().await?.ok()?;
            let sequence = command.sequence_number();
            match (command.id(), command.pdu()) {
                (_, Some(Pdu::SubmitSm(submit))) => return Some(Seen::Submit(sequence, submit.clone())),
                (CommandId::DeliverSmResp, _) => {
                    return Some(Seen::Delivered(sequence, command.status().into()));
                }
                (CommandId::GenericNack, _) => return Some(Seen::Nacked(sequence)),
                (CommandId::EnquireLink, _) => {
                    self.write(sequence, CommandStatus::EsmeRok, Pdu::EnquireLinkResp).await;
                }
                (CommandId::Unbind, _) => {
                    self.write(sequence, CommandStatus::EsmeRok, Pdu::UnbindResp).await;
                    return None;
                }
                _ => {}
            }
        }
    }

    pub async fn accept(&mut self, sequence: u32, id: &str) {
        let resp = SubmitSmResp::builder().message_id(COctetString::from_str(id).unwrap()).build();
        self.write(sequence, CommandStatus::EsmeRok, resp).await;
    }

    /// Refuses as most carriers do: with no body.
    pub async fn refuse(&mut self, sequence: u32, status: u32) {
        let mut octets = vec![0, 0, 0, 16, 0x80, 0, 0, 4];
        octets.extend(status.to_be_bytes());
        octets.extend(sequence.to_be_bytes());
        self.raw(&octets).await;
    }

    /// Asks whether the other side is alive and gives every PDU that came before its answer: what the session had
    /// to write at that time, it has written.
    pub async fn probe(&mut self) -> Vec<Command> {
        self.sequence += 1;
        let probe = 0x1000_0000 + self.sequence;
        self.write(probe, CommandStatus::EsmeRok, Pdu::EnquireLink).await;
        let mut before = Vec::new();
        loop {
            let command = self.next().await.expect("an answer to the probe");
            if command.id() == CommandId::EnquireLinkResp && command.sequence_number() == probe {
                return before;
            }
            before.push(command);
        }
    }

    /// Probes until the connector had every chance to write, and says that it wrote nothing.
    pub async fn assert_silent(&mut self) {
        for _ in 0..20 {
            let before: Vec<CommandId> = self.probe().await.iter().map(Command::id).collect();
            assert!(before.iter().all(|id| *id == CommandId::EnquireLink), "{before:?}");
        }
    }

    pub async fn deliver(&mut self, deliver: DeliverSm) -> u32 {
        self.sequence += 1;
        self.write(self.sequence, CommandStatus::EsmeRok, deliver).await;
        self.sequence
    }

    pub async fn deliver_receipt(&mut self, text: &str) -> u32 {
        self.deliver(receipt(text)).await
    }

    /// The next deliver_sm_resp.
    pub async fn delivered(&mut self) -> (u32, u32) {
        loop {
            let command = self.next().await.expect("a deliver_sm_resp");
            match command.id() {
                CommandId::DeliverSmResp => return (command.sequence_number(), command.status().into()),
                CommandId::EnquireLink => {}
                other => panic!("not a deliver_sm_resp: {other:?}"),
            }
        }
    }
}

pub fn receipt(text: &str) -> DeliverSm {
    DeliverSm::builder()
        .esm_class(EsmClass::from(0x04))
        .source_addr(COctetString::from_str("12125550123").unwrap())
        .short_message(OctetString::from_slice(text.as_bytes()).unwrap())
        .build()
}

const INBOX_MAX: usize = 4096;

/// Collects what comes in.
pub struct Inbox {
    pub receipts: mpsc::Receiver<ReceiptReport>,
    pub late: mpsc::Receiver<LateAnswer>,
}

impl Inbox {
    pub async fn receipt(&mut self) -> ReceiptReport {
        within(self.receipts.recv()).await.expect("a receipt")
    }

    pub async fn late(&mut self) -> LateAnswer {
        within(self.late.recv()).await.expect("a late answer")
    }
}

impl Inbox {
    /// An inbox and the sink that fills it.
    pub fn with_sink() -> (Self, Arc<dyn InboundSink>) {
        let ((receipts, receipts_in), (late, late_in)) = (mpsc::channel(INBOX_MAX), mpsc::channel(INBOX_MAX));
        (Self { receipts: receipts_in, late: late_in }, Arc::new(Sink { receipts, late }))
    }
}

struct Sink {
    receipts: mpsc::Sender<ReceiptReport>,
    late: mpsc::Sender<LateAnswer>,
}

impl InboundSink for Sink {
    fn receipt(&self, report: ReceiptReport) {
        self.receipts.try_send(report).expect("a test reads its inbox");
    }

    fn late_answer(&self, answer: LateAnswer) {
        self.late.try_send(answer).expect("a test reads its inbox");
    }
}

/// A connector under test; each setting can be changed before it starts.
pub struct Setup {
    pub settings: SmppSettings,
    pub tuning: SmppTuning,
    pub contract: ContractHandle,
    pub ca_pem: Option<String>,
}

impl Setup {
    /// One bind, long times: what a test is about it shortens itself.
    pub fn new(smsc: &Smsc) -> Self {
        let settings = SmppSettings {
            address: smsc.address(),
            system_id: "carillon".into(),
            binds_per_node: 1,
            window: 16,
            enquire_link_ms: 60_000,
            response_timeout_ms: 60_000,
            source_address: "12025550100".into(),
            throttle_pause_ms: 100,
            ..SmppSettings::default()
        };
        let tuning = SmppTuning {
            reconnect_base: Duration::from_millis(5),
            reconnect_max: Duration::from_millis(20),
            ..SmppTuning::default()
        };
        let contract = ContractHandle::built_in(SMPP_GENERIC).unwrap();
        Self { settings, tuning, contract, ca_pem: None }
    }

    pub fn start(self) -> (Arc<SmppConnector>, Inbox) {
        let (inbox, sink) = Inbox::with_sink();
        let config = SmppConfig {
            carrier: "test".into(),
            settings: self.settings,
            password: Clear::new("secret08".into()),
            contract: self.contract,
            default_ca_pem: self.ca_pem,
            tuning: self.tuning,
        };
        (Arc::new(SmppConnector::start(config, sink).unwrap()), inbox)
    }

    /// Starts it and binds all of its binds.
    pub async fn bound(self, smsc: &Smsc) -> (Arc<SmppConnector>, Inbox, Vec<Peer>) {
        let binds = self.settings.binds_per_node;
        let (connector, inbox) = self.start();
        let mut peers = Vec::new();
        for _ in 0..binds {
            peers.push(smsc.bound().await);
        }
        within(connector.bound(binds)).await;
        (connector, inbox, peers)
    }
}

/// One bind with the settings of [`Setup::new`].
pub async fn one_bind() -> (Smsc, Arc<SmppConnector>, Inbox, Peer) {
    let smsc = Smsc::new().await;
    let (connector, inbox, mut peers) = Setup::new(&smsc).bound(&smsc).await;
    (smsc, connector, inbox, peers.remove(0))
}

pub fn message_id(n: u64) -> MessageId {
    MessageId::new(1_793_000_000_000, Slot::new(7).unwrap(), n)
}

pub fn request(n: u64, body: &str) -> SendRequest {
    let counted = sms::analyze(body);
    SendRequest {
        message_id: message_id(n),
        attempt_no: 1,
        recipient: Clear::new("+12125550123".into()),
        body: Clear::new(body.into()),
        sender: None,
        encoding: counted.encoding,
        segments: counted.segments,
        validity: Some(Duration::from_secs(3600)),
        valid_until_ms: 0,
        send_by: Instant::now() + PATIENCE,
        start_by: Instant::now() + PATIENCE,
        urgent: false,
    }
}

/// Sends on a task of its own.
pub fn spawn_send<C>(connector: &Arc<C>, request: SendRequest) -> JoinHandle<SendOutcome>
where
    C: Connector + ?Sized + 'static,
{
    let connector = connector.clone();
    tokio::spawn(async move { connector.send(request, &OpenGate).await })
}

pub async fn outcome(sending: JoinHandle<SendOutcome>) -> SendOutcome {
    within(sending).await.unwrap()
}

/// The text of a part, for ASCII bodies.
pub fn text_of(submit: &SubmitSm) -> String {
    String::from_utf8(submit.short_message().as_ref().to_vec()).unwrap()
}
