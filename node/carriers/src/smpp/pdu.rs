//! Builds and frames PDUs with the codec of rusmpp; no field is written by hand.
//!
//! [`Wire`] is an encoded PDU that is wiped on drop: a submit holds a number and a text. `Debug` of a rusmpp command
//! prints everything in it, so no command is ever formatted here, and rusmpp's `tracing` feature stays off.
use super::config::Source;
use crate::clear::Clear;
use crate::contract::SmppVersion;
use bytes::{Bytes, BytesMut};
use carillon_proto::public::Encoding;
use rusmpp::decode::DecodeWithLength as _;
use rusmpp::pdus::{BindTransceiver, DeliverSmResp, SubmitSm, SubmitSmResp};
use rusmpp::tlvs::{MessageSubmissionRequestTlvValue, TlvValue};
use rusmpp::tokio_codec::CommandCodec;
use rusmpp::types::{COctetString, EmptyOrFullCOctetString, OctetString};
use rusmpp::values::{
    DataCoding, EsmClass, InterfaceVersion, Npi, RegisteredDelivery, Ton, UserMessageReference,
};
use rusmpp::{Command, CommandId, CommandStatus, Pdu};
use std::time::Duration;
use tokio_util::codec::Encoder as _;
use zeroize::{Zeroize as _, Zeroizing};

/// Octets of a PDU header.
pub const HEADER_OCTETS: usize = 16;
/// A longer PDU is a broken stream: nothing that an SMSC sends us comes near it.
pub const PDU_OCTETS_MAX: usize = 64 * 1024;
/// `registered_delivery`: a receipt for success and failure.
const WITH_RECEIPT: u8 = 1;
/// `esm_class`: the text begins with a header.
const WITH_HEADER: u8 = 0x40;

/// A field does not fit its PDU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a field does not fit the pdu")]
pub struct BadField;

/// One encoded PDU, wiped on drop.
pub struct Wire(BytesMut);

impl Wire {
    pub fn octets(&self) -> &[u8] {
        &self.0
    }

    /// The number is known only when the PDU joins a session.
    pub fn set_sequence(&mut self, sequence: u32) {
        self.0[12..HEADER_OCTETS].copy_from_slice(&sequence.to_be_bytes());
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.0.as_mut().zeroize();
    }
}

/// What one submit_sm says.
pub struct Submit<'a> {
    pub source: &'a Source,
    /// International digits without plus.
    pub recipient: &'a str,
    pub encoding: Encoding,
    pub octets: &'a Clear<Vec<u8>>,
    /// The octets begin with a concatenation header.
    pub concatenated: bool,
    /// Within what the contract allows.
    pub validity: Option<Duration>,
    pub user_message_reference: u16,
}

/// Encodes a submit_sm with sequence number 0.
pub fn submit(submit: &Submit<'_>) -> Result<Wire, BadField> {
    let data_coding = match submit.encoding {
        Encoding::Ucs2 => DataCoding::Ucs2,
        _ => DataCoding::McSpecific,
    };
    let octets = Bytes::from_owner(Zeroizing::new(submit.octets.expose().clone()));
    // Not `EsmClass::default()`: in rusmpp 0.4.0 that is 0x08, "delivery acknowledgement".
    let esm_class = EsmClass::from(if submit.concatenated { WITH_HEADER } else { 0 });
    let pdu = SubmitSm::builder()
        .source_addr_ton(submit.source.ton)
        .source_addr_npi(submit.source.npi)
        .source_addr(submit.source.address.clone())
        .dest_addr_ton(Ton::International)
        .dest_addr_npi(Npi::Isdn)
        .destination_addr(sealed_c_string(submit.recipient)?)
        .esm_class(esm_class)
        .validity_period(validity_period(submit.validity)?)
        .registered_delivery(RegisteredDelivery::from(WITH_RECEIPT))
        .data_coding(data_coding)
        .short_message(OctetString::from_bytes(octets).map_err(|_| BadField)?)
        .tlvs(vec![MessageSubmissionRequestTlvValue::UserMessageReference(UserMessageReference::new(
            submit.user_message_reference,
        ))])
        .build();
    Ok(encode(&Command::new(CommandStatus::EsmeRok, 0, pdu)))
}

/// Relative time `YYMMDDhhmmsstnnR`.
fn validity_period(validity: Option<Duration>) -> Result<EmptyOrFullCOctetString<17>, BadField> {
    let Some(validity) = validity else { return Ok(EmptyOrFullCOctetString::empty()) };
    let secs = validity.as_secs();
    let (days, hours, minutes) = (secs / 86_400, secs / 3600 % 24, secs / 60 % 60);
    let text = format!("0000{days:02}{hours:02}{minutes:02}{:02}000R\0", secs % 60);
    EmptyOrFullCOctetString::from_slice(text.as_bytes()).map_err(|_| BadField)
}

/// A C string whose memory is wiped when the PDU is dropped.
fn sealed_c_string<const MIN: usize, const MAX: usize>(
    text: &str,
) -> Result<COctetString<MIN, MAX>, BadField> {
    let mut octets = Zeroizing::new(Vec::with_capacity(text.len() + 1));
    octets.extend_from_slice(text.as_bytes());
    octets.push(0);
    COctetString::from_bytes(Bytes::from_owner(octets)).map_err(|_| BadField)
}

pub fn bind_transceiver(
    sequence: u32,
    system_id: &str,
    password: &Clear<String>,
    version: SmppVersion,
) -> Result<Wire, BadField> {
    let pdu = BindTransceiver::builder()
        .system_id(COctetString::from_string(system_id.to_owned()).map_err(|_| BadField)?)
        .password(sealed_c_string(password.expose())?)
        .interface_version(match version {
            SmppVersion::V3_4 => InterfaceVersion::Smpp3_4,
            SmppVersion::V5_0 => InterfaceVersion::Smpp5_0,
        })
        .build();
    Ok(encode(&Command::new(CommandStatus::EsmeRok, sequence, pdu)))
}

/// How full the carrier says it is, in percent.
pub fn congestion(resp: &SubmitSmResp) -> Option<u8> {
    resp.tlvs().iter().find_map(|tlv| match tlv.value() {
        Some(TlvValue::CongestionState(state)) => Some(u8::from(*state)),
        _ => None,
    })
}

pub fn enquire_link(sequence: u32) -> Wire {
    encode(&Command::new(CommandStatus::EsmeRok, sequence, Pdu::EnquireLink))
}

pub fn enquire_link_resp(sequence: u32) -> Wire {
    encode(&Command::new(CommandStatus::EsmeRok, sequence, Pdu::EnquireLinkResp))
}

pub fn unbind(sequence: u32) -> Wire {
    encode(&Command::new(CommandStatus::EsmeRok, sequence, Pdu::Unbind))
}

pub fn unbind_resp(sequence: u32) -> Wire {
    encode(&Command::new(CommandStatus::EsmeRok, sequence, Pdu::UnbindResp))
}

pub fn generic_nack(sequence: u32, status: u32) -> Wire {
    encode(&Command::new(CommandStatus::from(status), sequence, Pdu::GenericNack))
}

pub fn deliver_sm_resp(sequence: u32, status: u32) -> Wire {
    encode(&Command::new(CommandStatus::from(status), sequence, DeliverSmResp::default()))
}

/// One allocation of the exact size, so nothing is left behind by a growing buffer.
fn encode(command: &Command) -> Wire {
    let mut octets = BytesMut::new();
    CommandCodec::new().encode(command, &mut octets).expect("encoding into memory cannot fail");
    Wire(octets)
}

/// The header of a received PDU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub command: CommandId,
    pub status: u32,
    pub sequence: u32,
}

/// A received PDU. A body that cannot be decoded does not lose the header, nor the place in the stream.
pub struct Frame {
    pub header: Header,
    /// `None` when the body is absent or cannot be decoded.
    pub pdu: Option<Pdu>,
    pub undecodable: bool,
}

/// The length field of a PDU is impossible: the stream cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("impossible pdu length {0}")]
pub struct BadLength(pub usize);

/// Takes the next whole PDU out of the buffer.
pub fn next_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, BadLength> {
    let Some(length) = buffer.first_chunk::<4>().map(|octets| u32::from_be_bytes(*octets) as usize) else {
        return Ok(None);
    };
    if !(HEADER_OCTETS..=PDU_OCTETS_MAX).contains(&length) {
        return Err(BadLength(length));
    }
    if buffer.len() < length {
        buffer.reserve(length - buffer.len());
        return Ok(None);
    }
    let mut frame = buffer.split_to(length);
    let word = |at: usize| {
        let octets = frame[at..at + 4].try_into().expect("the frame holds a header");
        u32::from_be_bytes(octets)
    };
    let header = Header { command: CommandId::from(word(4)), status: word(8), sequence: word(12) };
    let mut body = frame.split_off(4);
    let decoded = Command::decode(&mut body, length - 4);
    let undecodable = decoded.is_err();
    let pdu = decoded.ok().and_then(|(command, _)| command.pdu().cloned());
    Ok(Some(Frame { header, pdu, undecodable }))
}

#[cfg(test)]
mod tests;
