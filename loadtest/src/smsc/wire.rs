//! The SMPP octets: framing, decoding of requests, encoding of answers.
//!
//! Owns: where one PDU ends and the next begins, what a PDU means to this
//! server ([`Inbound`]), and the octets of everything it sends.
//! Invariants: a PDU whose body is broken never shifts the frame of the next
//! one (every frame is cut out before it is decoded); nothing here logs, and
//! no type that holds a number or a text has `Debug`.
//! Does not: decide anything, keep state, or touch a socket.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rusmpp::decode::DecodeErrorKind;
use rusmpp::pdus::{
    BindReceiverResp, BindTransceiverResp, BindTransmitterResp, DeliverSm, SubmitSm, SubmitSmResp,
};
use rusmpp::tlvs::{MessageDeliveryRequestTlvValue, TlvValue};
use rusmpp::tokio_codec::{CommandCodec, DecodeError};
use rusmpp::types::{COctetString, OctetString};
use rusmpp::values::{EsmClass, InterfaceVersion, MessageState, Npi, Ton};
use rusmpp::{Command, CommandId, CommandStatus, Pdu};
use tokio_util::codec::{Decoder, Encoder};

use super::addr::Addr;
use super::text::Part;

/// The longest PDU taken: a `message_payload` of 64 KiB with its envelope.
pub const PDU_LEN_MAX: usize = 66 * 1024;
const HEADER_LEN: usize = 16;

/// Command statuses that this server answers with, by their SMPP 3.4 names.
pub mod status {
    pub const ROK: u32 = 0x00;
    pub const RINVMSGLEN: u32 = 0x01;
    pub const RINVCMDLEN: u32 = 0x02;
    pub const RINVCMDID: u32 = 0x03;
    pub const RINVBNDSTS: u32 = 0x04;
    pub const RALYBND: u32 = 0x05;
    pub const RSYSERR: u32 = 0x08;
    pub const RINVDSTADR: u32 = 0x0B;
    pub const RBINDFAIL: u32 = 0x0D;
    pub const RINVPASWD: u32 = 0x0E;
    pub const RINVSYSID: u32 = 0x0F;
    pub const RCANCELFAIL: u32 = 0x11;
    pub const RREPLACEFAIL: u32 = 0x13;
    pub const RMSGQFUL: u32 = 0x14;
    pub const RINVESMCLASS: u32 = 0x43;
    pub const RTHROTTLED: u32 = 0x58;
    pub const RQUERYFAIL: u32 = 0x67;
}

/// What a bind may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BindKind {
    Transmitter,
    Receiver,
    Transceiver,
}

impl BindKind {
    pub fn may_submit(self) -> bool {
        self != Self::Receiver
    }

    pub fn may_receive(self) -> bool {
        self != Self::Transmitter
    }
}

/// Which receipts the sender asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiptWish {
    None,
    Always,
    OnFailure,
    OnSuccess,
}

/// A submit_sm, reduced to what the simulator needs.
pub struct Submit {
    pub to: Addr,
    pub from: Addr,
    pub coding: u8,
    /// `None` for a message in one part; `Err` when the header is broken.
    pub part: Result<Option<Part>, BadPart>,
    /// The text octets without a user data header.
    pub octets: Bytes,
    /// The header took this many octets of the short message.
    pub header_len: usize,
    /// The text came in `message_payload`, so the length of one SMS does not bind.
    pub payload: bool,
    pub wish: ReceiptWish,
}

/// A user data header or part numbering that cannot be true.
#[derive(Clone, Copy, Debug)]
pub struct BadPart;

/// What a PDU means to this server.
pub enum Inbound {
    Bind {
        kind: BindKind,
        system_id: String,
        password: String,
    },
    Submit(Box<Submit>),
    EnquireLink,
    EnquireLinkResp,
    Unbind,
    UnbindResp,
    DeliverResp(u32),
    GenericNack(u32),
    /// A request with its own answer that is always refused here (query, cancel, replace).
    Refused(u32),
    /// A request that is unknown or not supported.
    Unsupported,
    /// A known request whose body does not decode: the status to answer.
    Malformed(u32),
    /// An answer to something this server never asked.
    StrayAnswer,
}

/// One decoded PDU.
pub struct Frame {
    pub command_id: u32,
    pub sequence: u32,
    pub body: Inbound,
}

/// The result of looking for the next frame.
pub enum Cut {
    More,
    Frame(BytesMut),
    /// The length cannot be true: the stream is lost. Holds the sequence number.
    Lost(u32),
}

/// Cuts the next whole PDU out of `buffer`.
pub fn cut(buffer: &mut BytesMut) -> Cut {
    if buffer.len() < HEADER_LEN {
        return Cut::More;
    }
    let length = u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]) as usize;
    if !(HEADER_LEN..=PDU_LEN_MAX).contains(&length) {
        return Cut::Lost(u32::from_be_bytes([buffer[12], buffer[13], buffer[14], buffer[15]]));
    }
    if buffer.len() < length {
        buffer.reserve(length - buffer.len());
        return Cut::More;
    }
    Cut::Frame(buffer.split_to(length))
}

/// Decodes one frame that [`cut`] returned.
pub fn parse(mut frame: BytesMut) -> Frame {
    let command_id = (&frame[4..8]).get_u32();
    let sequence = (&frame[12..16]).get_u32();
    let mut codec = CommandCodec::new().with_max_length(PDU_LEN_MAX);
    let body = match codec.decode(&mut frame) {
        Ok(Some(command)) => meaning(command_id, command),
        Ok(None) => Inbound::Malformed(status::RINVCMDLEN),
        Err(error) => malformed(command_id, &error),
    };
    Frame { command_id, sequence, body }
}

fn is_answer(command_id: u32) -> bool {
    command_id & 0x8000_0000 != 0
}

fn malformed(command_id: u32, error: &DecodeError) -> Inbound {
    if is_answer(command_id) {
        return Inbound::StrayAnswer;
    }
    match error {
        DecodeError::Decode(e) if matches!(e.kind(), DecodeErrorKind::OctetStringDecodeError(_)) => {
            Inbound::Malformed(status::RINVMSGLEN)
        }
        _ => Inbound::Malformed(status::RINVCMDLEN),
    }
}

fn meaning(command_id: u32, command: Command) -> Inbound {
    let code = u32::from(command.status());
    match (command.id(), command.pdu()) {
        (CommandId::EnquireLink, _) => Inbound::EnquireLink,
        (CommandId::EnquireLinkResp, _) => Inbound::EnquireLinkResp,
        (CommandId::Unbind, _) => Inbound::Unbind,
        (CommandId::UnbindResp, _) => Inbound::UnbindResp,
        (CommandId::DeliverSmResp, _) => Inbound::DeliverResp(code),
        (CommandId::GenericNack, _) => Inbound::GenericNack(code),
        (_, Some(Pdu::SubmitSm(submit))) => Inbound::Submit(Box::new(submit_of(submit))),
        (_, Some(Pdu::BindTransmitter(b))) => bind_of(BindKind::Transmitter, &b.system_id, &b.password),
        (_, Some(Pdu::BindReceiver(b))) => bind_of(BindKind::Receiver, &b.system_id, &b.password),
        (_, Some(Pdu::BindTransceiver(b))) => bind_of(BindKind::Transceiver, &b.system_id, &b.password),
        (CommandId::QuerySm, _) => Inbound::Refused(status::RQUERYFAIL),
        (CommandId::CancelSm, _) => Inbound::Refused(status::RCANCELFAIL),
        (CommandId::ReplaceSm, _) => Inbound::Refused(status::RREPLACEFAIL),
        _ if is_answer(command_id) => Inbound::StrayAnswer,
        (
            CommandId::SubmitSm
            | CommandId::BindTransmitter
            | CommandId::BindReceiver
            | CommandId::BindTransceiver,
            _,
        ) => Inbound::Malformed(status::RINVCMDLEN),
        _ => Inbound::Unsupported,
    }
}

fn bind_of(kind: BindKind, system_id: &COctetString<1, 16>, password: &COctetString<1, 9>) -> Inbound {
    Inbound::Bind { kind, system_id: system_id.as_str().to_owned(), password: password.as_str().to_owned() }
}

fn submit_of(pdu: &SubmitSm) -> Submit {
    let mut octets = Bytes::from(pdu.short_message().clone());
    let (mut payload, mut sar) = (false, Part { reference: 0, total: 0, number: 0 });
    for tlv in pdu.tlvs() {
        match tlv.value() {
            Some(TlvValue::MessagePayload(value)) => {
                octets = value.value.clone().into_bytes();
                payload = true;
            }
            Some(TlvValue::SarMsgRefNum(value)) => sar.reference = *value,
            Some(TlvValue::SarTotalSegments(value)) => sar.total = *value,
            Some(TlvValue::SarSegmentSeqnum(value)) => sar.number = *value,
            _ => {}
        }
    }
    let mut part = if sar.total > 0 || sar.number > 0 { sar.checked() } else { Ok(None) };
    let mut header_len = 0;
    if u8::from(pdu.esm_class) & 0x40 != 0 {
        header_len = octets.first().map_or(0, |len| usize::from(*len) + 1);
        if header_len < 2 || header_len > octets.len() {
            part = Err(BadPart);
            header_len = 0;
        } else {
            part = Part::from_header(&octets[1..header_len]);
            octets.advance(header_len);
        }
    }
    Submit {
        to: Addr::new(
            pdu.destination_addr.as_str(),
            u8::from(pdu.dest_addr_ton),
            u8::from(pdu.dest_addr_npi),
        ),
        from: Addr::new(
            pdu.source_addr.as_str(),
            u8::from(pdu.source_addr_ton),
            u8::from(pdu.source_addr_npi),
        ),
        coding: u8::from(pdu.data_coding),
        part,
        octets,
        header_len,
        payload,
        wish: match u8::from(pdu.registered_delivery) & 0x03 {
            0 => ReceiptWish::None,
            1 => ReceiptWish::Always,
            2 => ReceiptWish::OnFailure,
            _ => ReceiptWish::OnSuccess,
        },
    }
}

/// Appends a PDU that is only a header.
pub fn put_header(out: &mut BytesMut, command_id: u32, code: u32, sequence: u32) {
    out.reserve(HEADER_LEN);
    out.put_u32(HEADER_LEN as u32);
    out.put_u32(command_id);
    out.put_u32(code);
    out.put_u32(sequence);
}

/// The command id of the answer to `command_id`.
pub fn answer_id(command_id: u32) -> u32 {
    command_id | 0x8000_0000
}

pub const ENQUIRE_LINK: u32 = 0x15;
pub const UNBIND: u32 = 0x06;
pub const SUBMIT_SM: u32 = 0x04;
pub const GENERIC_NACK: u32 = 0x8000_0000;

fn put(out: &mut BytesMut, code: u32, sequence: u32, pdu: impl Into<Pdu>) {
    let command = Command::new(CommandStatus::from(code), sequence, pdu);
    // The encoder writes to memory only, so it has no error to give.
    let encoded = CommandCodec::new().encode(&command, out);
    debug_assert!(encoded.is_ok());
}

fn c_string<const MAX: usize>(text: &[u8]) -> COctetString<1, MAX> {
    let mut octets = Vec::with_capacity(text.len() + 1);
    octets.extend_from_slice(text);
    octets.push(0);
    COctetString::from_vec(octets).unwrap_or_else(|_| COctetString::null())
}

/// Appends the answer to an accepted bind.
pub fn put_bind_ok(out: &mut BytesMut, kind: BindKind, sequence: u32, server_id: &str) {
    let id = c_string(server_id.as_bytes());
    let version = Some(InterfaceVersion::Smpp3_4);
    match kind {
        BindKind::Transmitter => put(out, 0, sequence, BindTransmitterResp::new(id, version)),
        BindKind::Receiver => put(out, 0, sequence, BindReceiverResp::new(id, version)),
        BindKind::Transceiver => put(out, 0, sequence, BindTransceiverResp::new(id, version)),
    }
}

/// Appends a submit_sm_resp. A refusal has no body unless the carrier is one
/// of those that send an empty message id with it.
pub fn put_submit_resp(out: &mut BytesMut, code: u32, sequence: u32, message_id: &str, error_body: bool) {
    if code != status::ROK && !error_body {
        return put_header(out, answer_id(SUBMIT_SM), code, sequence);
    }
    let id = if code == status::ROK { message_id } else { "" };
    put(out, code, sequence, SubmitSmResp::builder().message_id(c_string(id.as_bytes())).build());
}

/// The content of one receipt on the wire.
pub struct ReceiptPdu<'a> {
    pub sequence: u32,
    pub recipient: &'a Addr,
    pub sender: &'a Addr,
    pub text: &'a [u8],
    pub message_id: &'a str,
    pub state: u8,
    /// Send the `receipted_message_id` and `message_state` TLVs too.
    pub tlvs: bool,
    /// An intermediate notification instead of a final receipt.
    pub intermediate: bool,
}

/// Appends a deliver_sm that carries a receipt.
pub fn put_receipt(out: &mut BytesMut, receipt: &ReceiptPdu<'_>) {
    let mut tlvs = Vec::new();
    if receipt.tlvs {
        tlvs.push(MessageDeliveryRequestTlvValue::ReceiptedMessageId(c_string(
            receipt.message_id.as_bytes(),
        )));
        tlvs.push(MessageDeliveryRequestTlvValue::MessageState(MessageState::from(receipt.state)));
    }
    let esm_class: u8 = if receipt.intermediate { 0x20 } else { 0x04 };
    let text = OctetString::from_slice(receipt.text).unwrap_or_else(|_| OctetString::null());
    let mut pdu = DeliverSm::builder()
        .source_addr_ton(Ton::from(receipt.recipient.ton))
        .source_addr_npi(Npi::from(receipt.recipient.npi))
        .source_addr(c_string(receipt.recipient.as_bytes()))
        .dest_addr_ton(Ton::from(receipt.sender.ton))
        .dest_addr_npi(Npi::from(receipt.sender.npi))
        .destination_addr(c_string(receipt.sender.as_bytes()))
        .short_message(text)
        .build();
    pdu.esm_class = EsmClass::from(esm_class);
    pdu.set_tlvs(tlvs);
    put(out, 0, receipt.sequence, pdu);
}
