//! Tests of the PDUs we build.
use super::*;
use crate::smpp::config::Source;

fn wire(text: &str, concatenated: bool, validity: Option<Duration>) -> Wire {
    let source = Source::parse("12025550100").unwrap();
    submit(&Submit {
        source: &source,
        recipient: "12125550123",
        encoding: Encoding::Gsm7,
        octets: &Clear::new(text.as_bytes().to_vec()),
        concatenated,
        validity,
        user_message_reference: 0x0102,
    })
    .unwrap()
}

/// The octets are compared with the SMPP 3.4 layout, not with the codec's own idea of it.
#[test]
fn a_submit_is_encoded_as_the_specification_says() {
    let mut wire = wire("Hi", false, Some(Duration::from_secs(26 * 3600 + 65)));
    wire.set_sequence(0x0a0b);
    let mut expected = vec![0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0x0a, 0x0b];
    expected.extend(b"\0\x01\x0112025550100\0\x01\x0112125550123\0");
    expected.extend(b"\x00\x00\x00\x00000001020105000R\x00\x01\x00\x00\x00\x02Hi");
    expected.extend(b"\x02\x04\x00\x02\x01\x02");
    expected[3] = expected.len() as u8;
    assert_eq!(wire.octets(), expected);
}

#[test]
fn a_concatenated_part_sets_only_the_header_flag() {
    let esm_class_at = HEADER_OCTETS + 1 + 2 + 12 + 2 + 12;
    assert_eq!(wire("x", true, None).octets()[esm_class_at], 0x40);
    assert_eq!(wire("x", false, None).octets()[esm_class_at], 0x00);
}

#[test]
fn validity_is_written_as_a_relative_time() {
    let period = |secs| validity_period(Some(Duration::from_secs(secs))).unwrap().as_str().to_owned();
    assert_eq!(period(60), "000000000100000R");
    assert_eq!(period(3_599), "000000005959000R");
    assert_eq!(period(3 * 86_400), "000003000000000R");
    assert_eq!(validity_period(None).unwrap().as_str(), "");
}

#[test]
fn frames_are_cut_at_their_length_whatever_they_hold() {
    let mut buffer = BytesMut::new();
    buffer.extend_from_slice(enquire_link(7).octets());
    // A submit_sm_resp whose body is not terminated, then one without a body.
    buffer.extend_from_slice(&[0, 0, 0, 18, 0x80, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, b'a', b'b']);
    buffer.extend_from_slice(&[0, 0, 0, 16, 0x80, 0, 0, 4, 0, 0, 0, 0x58, 0, 0, 0, 9]);
    buffer.extend_from_slice(&unbind(10).octets()[..9]);

    let frame = next_frame(&mut buffer).unwrap().unwrap();
    assert!(matches!(frame.pdu, Some(Pdu::EnquireLink)));
    let frame = next_frame(&mut buffer).unwrap().unwrap();
    let header = Header { command: CommandId::SubmitSmResp, status: 0, sequence: 8 };
    assert_eq!((frame.header, frame.pdu, frame.undecodable), (header, None, true));
    let frame = next_frame(&mut buffer).unwrap().unwrap();
    let header = Header { command: CommandId::SubmitSmResp, status: 0x58, sequence: 9 };
    assert_eq!((frame.header, frame.pdu, frame.undecodable), (header, None, false));
    assert!(next_frame(&mut buffer).unwrap().is_none());
    buffer.extend_from_slice(&unbind(10).octets()[9..]);
    assert!(matches!(next_frame(&mut buffer).unwrap().unwrap().pdu, Some(Pdu::Unbind)));
    assert!(next_frame(&mut buffer).unwrap().is_none());
}

#[test]
fn impossible_lengths_end_the_stream() {
    for length in [0u32, 15, PDU_OCTETS_MAX as u32 + 1, u32::MAX] {
        let mut buffer = BytesMut::from(&length.to_be_bytes()[..]);
        assert_eq!(next_frame(&mut buffer).err(), Some(BadLength(length as usize)));
    }
}

proptest::proptest! {
    /// Whatever a carrier sends: no panic, and the stream advances frame by frame.
    #[test]
    fn arbitrary_bytes_never_panic(octets in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600)) {
        let mut buffer = BytesMut::from(&octets[..]);
        while let Ok(Some(frame)) = next_frame(&mut buffer) {
            if let Some(Pdu::DeliverSm(deliver)) = &frame.pdu {
                crate::smpp::receipt::read(deliver);
            }
        }
    }

    #[test]
    fn arbitrary_deliver_bodies_never_panic(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let mut buffer = BytesMut::new();
        buffer.extend_from_slice(&((HEADER_OCTETS + body.len()) as u32).to_be_bytes());
        buffer.extend_from_slice(&[0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1]);
        buffer.extend_from_slice(&body);
        let frame = next_frame(&mut buffer).unwrap().unwrap();
        if let Some(Pdu::DeliverSm(deliver)) = &frame.pdu {
            crate::smpp::receipt::read(deliver);
        }
        proptest::prop_assert!(buffer.is_empty());
    }
}
