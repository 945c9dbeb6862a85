//! A small SMPP client for the tests, and ways to start a simulator.
//!
//! Every wait has a deadline of ten seconds and fails the test when it passes.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use carillon_loadtest::smsc::{Profile, Smsc, SmscConfig};
use rusmpp::pdus::{BindReceiver, BindTransceiver, BindTransmitter, DeliverSmResp, SubmitSm};
use rusmpp::tlvs::TlvValue;
use rusmpp::tokio_codec::CommandCodec;
use rusmpp::types::{COctetString, OctetString};
use rusmpp::values::{DataCoding, EsmClass, RegisteredDelivery};
use rusmpp::{Command, CommandId, CommandStatus, Pdu};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::codec::{Decoder, Encoder};

pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("no progress for ten seconds")
}

pub async fn start(change: impl FnOnce(&mut SmscConfig)) -> Smsc {
    let mut config = SmscConfig::default();
    change(&mut config);
    Smsc::start(Arc::new(config)).await.unwrap()
}

/// A simulator with the given TOML profile.
pub async fn start_with(profile: &str) -> Smsc {
    let profile = Profile::from_toml(profile).unwrap();
    start(|config| config.profile = profile).await
}

/// A receipt as the client reads it.
#[derive(Debug)]
pub struct Receipt {
    pub sequence: u32,
    pub id: String,
    pub state: String,
    pub err: String,
    pub echo: String,
    pub tlv_id: Option<String>,
    pub tlv_state: Option<u8>,
    pub from: String,
    pub esm_class: u8,
}

pub struct Client {
    io: Box<dyn Io>,
    codec: CommandCodec,
    buffer: BytesMut,
    out: BytesMut,
    inbox: VecDeque<Command>,
    sequence: u32,
}

impl Client {
    pub async fn connect(addr: SocketAddr) -> Self {
        let socket = TcpStream::connect(addr).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self::over(socket)
    }

    pub fn over(io: impl Io + 'static) -> Self {
        Self {
            io: Box::new(io),
            codec: CommandCodec::new(),
            buffer: BytesMut::new(),
            out: BytesMut::new(),
            inbox: VecDeque::new(),
            sequence: 0,
        }
    }

    /// A bound transceiver of the default account.
    pub async fn bound(smsc: &Smsc) -> Self {
        let mut client = Self::connect(smsc.smpp_addr()).await;
        assert_eq!(client.bind(CommandId::BindTransceiver, "carillon", "secret").await, 0);
        client
    }

    pub fn put(&mut self, pdu: impl Into<Pdu>) -> u32 {
        self.sequence += 1;
        let command = Command::new(CommandStatus::EsmeRok, self.sequence, pdu);
        self.codec.encode(&command, &mut self.out).unwrap();
        self.sequence
    }

    pub fn put_raw(&mut self, octets: &[u8]) {
        self.out.extend_from_slice(octets);
    }

    pub async fn flush(&mut self) {
        let out = self.out.split();
        within(self.io.write_all(&out)).await.unwrap();
        within(self.io.flush()).await.unwrap();
    }

    pub async fn send(&mut self, pdu: impl Into<Pdu>) -> u32 {
        let sequence = self.put(pdu);
        self.flush().await;
        sequence
    }

    async fn read(&mut self) -> Option<Command> {
        loop {
            if let Some(command) = self.codec.decode(&mut self.buffer).unwrap() {
                return Some(command);
            }
            match self.io.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next PDU in the order of the wire; `None` when the connection ended.
    pub async fn next(&mut self) -> Option<Command> {
        match self.inbox.pop_front() {
            Some(command) => Some(command),
            None => within(self.read()).await,
        }
    }

    /// The next PDU that is wanted; others are kept.
    pub async fn want(&mut self, wanted: impl Fn(&Command) -> bool) -> Command {
        if let Some(at) = self.inbox.iter().position(&wanted) {
            return self.inbox.remove(at).unwrap();
        }
        loop {
            let command = within(self.read()).await.expect("the connection ended");
            if wanted(&command) {
                return command;
            }
            self.inbox.push_back(command);
        }
    }

    pub async fn answer(&mut self, sequence: u32) -> Command {
        self.want(|command| {
            u32::from(command.id()) & 0x8000_0000 != 0 && command.sequence_number() == sequence
        })
        .await
    }

    pub async fn bind(&mut self, kind: CommandId, system_id: &str, password: &str) -> u32 {
        let (id, pw) = (c_string::<16>(system_id), c_string::<9>(password));
        let sequence = match kind {
            CommandId::BindTransmitter => {
                self.send(BindTransmitter::builder().system_id(id).password(pw).build()).await
            }
            CommandId::BindReceiver => {
                self.send(BindReceiver::builder().system_id(id).password(pw).build()).await
            }
            _ => self.send(BindTransceiver::builder().system_id(id).password(pw).build()).await,
        };
        u32::from(self.answer(sequence).await.status())
    }

    /// Submits one text and returns status and message id of the answer.
    pub async fn submit(&mut self, to: &str, text: &str) -> (u32, String) {
        let sequence = self.send(submit(to, text)).await;
        self.submitted(sequence).await
    }

    pub async fn submitted(&mut self, sequence: u32) -> (u32, String) {
        let answer = self.answer(sequence).await;
        let id = match answer.pdu() {
            Some(Pdu::SubmitSmResp(resp)) => resp.message_id().as_str().to_owned(),
            _ => String::new(),
        };
        (u32::from(answer.status()), id)
    }

    /// Proves that everything sent before was handled: asks and waits.
    pub async fn enquire(&mut self) {
        let sequence = self.send(Pdu::EnquireLink).await;
        self.answer(sequence).await;
    }

    /// The next receipt, not acknowledged yet.
    pub async fn receipt(&mut self) -> Receipt {
        receipt_of(&self.want(|command| command.id() == CommandId::DeliverSm).await)
    }

    pub async fn ack(&mut self, sequence: u32, status: CommandStatus) {
        let command = Command::new(status, sequence, DeliverSmResp::default());
        self.codec.encode(&command, &mut self.out).unwrap();
        self.flush().await;
    }

    /// The next receipt, acknowledged.
    pub async fn take_receipt(&mut self) -> Receipt {
        let receipt = self.receipt().await;
        self.ack(receipt.sequence, CommandStatus::EsmeRok).await;
        receipt
    }

    /// Reads until the connection ends.
    pub async fn ended(&mut self) -> Vec<Command> {
        let mut rest = Vec::new();
        while let Some(command) = self.next().await {
            rest.push(command);
        }
        rest
    }
}

pub fn receipt_of(command: &Command) -> Receipt {
    let Some(Pdu::DeliverSm(pdu)) = command.pdu() else { panic!("not a receipt") };
    let text = pdu.short_message().to_str().unwrap().to_owned();
    let field = |name: &str| {
        let rest = text.split_once(&format!("{name}:")).unwrap().1;
        rest.split(' ').next().unwrap().to_owned()
    };
    let mut receipt = Receipt {
        sequence: command.sequence_number(),
        id: field("id"),
        state: field("stat"),
        err: field("err"),
        echo: text.split_once("text:").unwrap().1.to_owned(),
        tlv_id: None,
        tlv_state: None,
        from: pdu.source_addr.as_str().to_owned(),
        esm_class: u8::from(pdu.esm_class),
    };
    for tlv in pdu.tlvs() {
        match tlv.value() {
            Some(TlvValue::ReceiptedMessageId(id)) => receipt.tlv_id = Some(id.as_str().to_owned()),
            Some(TlvValue::MessageState(state)) => receipt.tlv_state = Some(u8::from(*state)),
            _ => {}
        }
    }
    receipt
}

pub fn c_string<const MAX: usize>(text: &str) -> COctetString<1, MAX> {
    text.parse().unwrap()
}

/// A submit of ASCII text that asks for a receipt.
pub fn submit(to: &str, text: &str) -> SubmitSm {
    part(to, 0, 0, text.as_bytes())
}

/// A submit with the given esm_class, coding and octets.
pub fn part(to: &str, esm_class: u8, coding: u8, octets: &[u8]) -> SubmitSm {
    SubmitSm::builder()
        .source_addr(c_string("40404"))
        .destination_addr(c_string(to))
        .esm_class(EsmClass::from(esm_class))
        .registered_delivery(RegisteredDelivery::from(1))
        .data_coding(DataCoding::from(coding))
        .short_message(OctetString::from_slice(octets).unwrap())
        .build()
}

/// One HTTP request to the control plane: status and body.
pub async fn http(smsc: &Smsc, method: &str, path: &str, body: &str) -> (u16, String) {
    http_at(smsc.http_addr(), method, path, body).await
}

pub async fn http_at(addr: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    within(socket.write_all(request.as_bytes())).await.unwrap();
    let mut answer = String::new();
    within(socket.read_to_string(&mut answer)).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}
