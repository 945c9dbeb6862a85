//! Reads a `deliver_sm`: a delivery receipt, or a text from a person.
//!
//! TLVs (`receipted_message_id`, `message_state`) are preferred; the common text form
//! (`id:... sub:... dlvrd:... submit date:... done date:... stat:... err:... text:...`) is read with tolerance for
//! case, order and missing fields. The `text:` field quotes the patient's message: it is skipped, never kept.
use carillon_proto::internal::ReceiptState;
use rusmpp::pdus::DeliverSm;
use rusmpp::tlvs::TlvValue;
use rusmpp::values::{DataCoding, MessageState, MessageType};

/// Longest error code that is kept.
const CODE_CHARS_MAX: usize = 16;

/// What a `deliver_sm` is.
#[derive(Debug, PartialEq, Eq)]
pub enum Inbound {
    Receipt(Receipt),
    /// Marked as a receipt, but without an id.
    Unreadable,
    /// A text from a person.
    Message,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Receipt {
    /// As written by the carrier.
    pub id: String,
    pub state: ReceiptState,
    pub code: String,
    /// Our own number for the part, when the carrier repeats it.
    pub user_message_reference: Option<u16>,
}

pub fn read(deliver: &DeliverSm) -> Inbound {
    let tlvs = Tlvs::of(deliver);
    let marked = matches!(
        deliver.esm_class.message_type,
        MessageType::ShortMessageContainsMCDeliveryReceipt
            | MessageType::ShortMessageContainsIntermediateDeliveryNotification
    );
    if !marked && tlvs.id.is_none() {
        return Inbound::Message;
    }
    let text = text_of(deliver);
    let fields = Fields::parse(&text);
    let Some(id) = tlvs.id.or(fields.id).filter(|id| !id.trim().is_empty()) else {
        return Inbound::Unreadable;
    };
    let named = tlvs.state.or_else(|| fields.stat.as_deref().and_then(state_of_word));
    let (state, name) = named.unwrap_or((ReceiptState::Enroute, "no_state"));
    let code = [fields.err, tlvs.network_error.map(|n| n.to_string())]
        .into_iter()
        .flatten()
        .filter_map(|code| clean_code(&code))
        .next()
        .unwrap_or_else(|| name.to_owned());
    Inbound::Receipt(Receipt { id, state, code, user_message_reference: tlvs.reference })
}

#[derive(Default)]
struct Tlvs {
    id: Option<String>,
    state: Option<(ReceiptState, &'static str)>,
    network_error: Option<u16>,
    reference: Option<u16>,
}

impl Tlvs {
    fn of(deliver: &DeliverSm) -> Self {
        let mut tlvs = Self::default();
        for value in deliver.tlvs().iter().filter_map(|tlv| tlv.value()) {
            match value {
                TlvValue::ReceiptedMessageId(id) => tlvs.id = Some(id.as_str().to_owned()),
                TlvValue::MessageState(state) => tlvs.state = state_of_number(*state),
                TlvValue::NetworkErrorCode(error) => tlvs.network_error = Some(error.error_code),
                TlvValue::UserMessageReference(reference) => tlvs.reference = Some(reference.value),
                _ => {}
            }
        }
        tlvs
    }
}

fn text_of(deliver: &DeliverSm) -> String {
    let payload = deliver.tlvs().iter().find_map(|tlv| match tlv.value() {
        Some(TlvValue::MessagePayload(payload)) => Some(payload.value.as_ref()),
        _ => None,
    });
    let octets: &[u8] = payload.unwrap_or(deliver.short_message().as_ref());
    if deliver.data_coding == DataCoding::Ucs2 {
        let units = octets.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        return char::decode_utf16(units).map(|c| c.unwrap_or('?')).collect();
    }
    // The fields are ASCII in every alphabet; what is not cannot be a field.
    octets.iter().map(|b| if b.is_ascii() { *b as char } else { '?' }).collect()
}

/// The fields of the text form that matter.
#[derive(Default)]
struct Fields {
    id: Option<String>,
    stat: Option<String>,
    err: Option<String>,
}

impl Fields {
    fn parse(text: &str) -> Self {
        let lower = text.to_ascii_lowercase();
        // What follows `text:` was written by us for the patient; look there only for what was not found before.
        let quoted = find_key(&lower, "text:").unwrap_or(lower.len());
        let field = |key: &str| {
            let before = value_of(&text[..quoted], &lower[..quoted], key);
            before.or_else(|| value_of(&text[quoted..], &lower[quoted..], key))
        };
        Self { id: field("id:"), stat: field("stat:"), err: field("err:") }
    }
}

/// Where a key begins: at the start or after a character that cannot be part of a word.
fn find_key(lower: &str, key: &str) -> Option<usize> {
    lower
        .match_indices(key)
        .map(|(at, _)| at)
        .find(|at| *at == 0 || !lower.as_bytes()[at - 1].is_ascii_alphanumeric())
}

fn value_of(text: &str, lower: &str, key: &str) -> Option<String> {
    let start = find_key(lower, key)? + key.len();
    let value = text[start..].split_ascii_whitespace().next()?;
    // `id: stat:...` has an empty id, and the next key is not its value.
    (!value.contains(':')).then(|| value.to_owned())
}

/// A code as a label may carry it; `None` when it says "no error".
fn clean_code(code: &str) -> Option<String> {
    let code: String = code
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(CODE_CHARS_MAX)
        .collect::<String>()
        .to_lowercase();
    (!code.is_empty() && code.chars().any(|c| c != '0')).then_some(code)
}

type Named = (ReceiptState, &'static str);

const ENROUTE: Named = (ReceiptState::Enroute, "enroute");
const ACCEPTED: Named = (ReceiptState::Enroute, "accepted");
const DELIVERED: Named = (ReceiptState::Delivered, "delivered");
const EXPIRED: Named = (ReceiptState::Expired, "expired");
const DELETED: Named = (ReceiptState::Undelivered, "deleted");
const UNDELIVERABLE: Named = (ReceiptState::Undelivered, "undeliverable");
const REJECTED: Named = (ReceiptState::Rejected, "rejected");
/// The carrier lost sight of it. That is not "undelivered": the phone may have it, so the state stays as it was.
const UNKNOWN: Named = (ReceiptState::Enroute, "unknown");

fn state_of_number(state: MessageState) -> Option<Named> {
    Some(match state {
        MessageState::Scheduled | MessageState::Enroute => ENROUTE,
        MessageState::Delivered => DELIVERED,
        MessageState::Expired => EXPIRED,
        MessageState::Deleted => DELETED,
        MessageState::Undeliverable => UNDELIVERABLE,
        MessageState::Accepted => ACCEPTED,
        MessageState::Unknown => UNKNOWN,
        MessageState::Rejected | MessageState::Skipped => REJECTED,
        _ => return None,
    })
}

/// Matches by the first letters: carriers write DELIVRD, DELIVERED, UNDELIV, UNDELIVERABLE.
fn state_of_word(word: &str) -> Option<Named> {
    const WORDS: [(&str, Named); 9] = [
        ("deliv", DELIVERED),
        ("undel", UNDELIVERABLE),
        ("expir", EXPIRED),
        ("delet", DELETED),
        ("accep", ACCEPTED),
        ("enrou", ENROUTE),
        ("rejec", REJECTED),
        ("unkno", UNKNOWN),
        ("fail", UNDELIVERABLE),
    ];
    let word = word.to_ascii_lowercase();
    WORDS.iter().find(|(start, _)| word.starts_with(start)).map(|(_, named)| *named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusmpp::tlvs::MessageDeliveryRequestTlvValue as Tlv;
    use rusmpp::types::{AnyOctetString, COctetString, OctetString};
    use rusmpp::values::{EsmClass, MessagePayload, UserMessageReference};
    use std::str::FromStr;

    fn deliver(esm_class: u8, text: &str, tlvs: Vec<Tlv>) -> DeliverSm {
        DeliverSm::builder()
            .esm_class(EsmClass::from(esm_class))
            .short_message(OctetString::from_slice(text.as_bytes()).unwrap())
            .tlvs(tlvs)
            .build()
    }

    fn receipt(text: &str) -> (String, ReceiptState, String) {
        match read(&deliver(0x04, text, vec![])) {
            Inbound::Receipt(r) => (r.id, r.state, r.code),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn the_common_text_form() {
        let standard = "id:0123456789 sub:001 dlvrd:001 submit date:2611221430 done date:2611221431 \
                        stat:DELIVRD err:000 text:Your visit is at ni";
        assert_eq!(receipt(standard), ("0123456789".into(), ReceiptState::Delivered, "delivered".into()));
        let failed =
            "id:7F sub:001 dlvrd:000 submit date:2611221430 done date:2611221431 stat:UNDELIV err:034 text:";
        assert_eq!(receipt(failed), ("7F".into(), ReceiptState::Undelivered, "034".into()));
    }

    #[test]
    fn case_order_and_missing_fields() {
        assert_eq!(receipt("STAT:Expired ID:a1 ERR:4B").0, "a1");
        assert_eq!(receipt("STAT:Expired ID:a1 ERR:4B"), ("a1".into(), ReceiptState::Expired, "4b".into()));
        assert_eq!(receipt("id: 55 stat: REJECTD"), ("55".into(), ReceiptState::Rejected, "rejected".into()));
        assert_eq!(receipt("id:9"), ("9".into(), ReceiptState::Enroute, "no_state".into()));
        assert_eq!(receipt("id:9 stat:WEIRD"), ("9".into(), ReceiptState::Enroute, "no_state".into()));
        assert_eq!(receipt("id:9\r\nstat:UNKNOWN").2, "unknown");
        // `id:` inside another key or inside the quoted text is not the id.
        assert_eq!(receipt("dlvrdid:1 id:2 stat:DELIVRD text:id:3 stat:UNDELIV").0, "2");
        assert_eq!(receipt("dlvrdid:1 id:2 text:id:3 stat:UNDELIV").0, "2");
    }

    #[test]
    fn every_state_word_and_number() {
        use ReceiptState::*;
        let words = [
            ("DELIVRD", Delivered),
            ("DELIVERED", Delivered),
            ("EXPIRED", Expired),
            ("DELETED", Undelivered),
            ("UNDELIV", Undelivered),
            ("FAILED", Undelivered),
            ("ACCEPTD", Enroute),
            ("UNKNOWN", Enroute),
            ("REJECTD", Rejected),
            ("ENROUTE", Enroute),
        ];
        for (word, state) in words {
            assert_eq!(receipt(&format!("id:1 stat:{word}")).1, state, "{word}");
        }
        let numbers = [(1, Enroute), (2, Delivered), (3, Expired), (4, Undelivered), (5, Undelivered)];
        for (number, state) in numbers.into_iter().chain([(6, Enroute), (7, Enroute), (8, Rejected)]) {
            assert_eq!(state_of_number(MessageState::from(number as u8)).unwrap().0, state, "{number}");
        }
        assert_eq!(state_of_number(MessageState::from(77)), None);
    }

    #[test]
    fn tlvs_win_over_the_text() {
        let tlvs = vec![
            Tlv::ReceiptedMessageId(COctetString::from_str("00AB").unwrap()),
            Tlv::MessageState(MessageState::Delivered),
            Tlv::UserMessageReference(UserMessageReference::new(77)),
        ];
        // Even when esm_class does not mark it.
        for esm_class in [0x00, 0x04] {
            let read = read(&deliver(esm_class, "id:1 stat:UNDELIV err:000", tlvs.clone()));
            let expected = Receipt {
                id: "00AB".into(),
                state: ReceiptState::Delivered,
                code: "delivered".into(),
                user_message_reference: Some(77),
            };
            assert_eq!(read, Inbound::Receipt(expected));
        }
    }

    #[test]
    fn the_payload_and_ucs2_are_read_too() {
        let payload = MessagePayload::new(AnyOctetString::from_slice(b"id:12 stat:DELIVRD"));
        let read_payload = read(&deliver(0x04, "", vec![Tlv::MessagePayload(payload)]));
        assert!(matches!(read_payload, Inbound::Receipt(Receipt { id, .. }) if id == "12"));

        let mut ucs2 = deliver(0x04, "", vec![]);
        let octets: Vec<u8> = "id:13 stat:EXPIRED".encode_utf16().flat_map(u16::to_be_bytes).collect();
        ucs2.set_short_message(OctetString::from_slice(&octets).unwrap());
        ucs2.data_coding = DataCoding::Ucs2;
        assert!(matches!(read(&ucs2), Inbound::Receipt(Receipt { state: ReceiptState::Expired, .. })));
    }

    #[test]
    fn replies_and_receipts_without_an_id_are_told_apart() {
        assert_eq!(read(&deliver(0x00, "STOP", vec![])), Inbound::Message);
        assert_eq!(read(&deliver(0x00, "my id:44 stat:DELIVRD", vec![])), Inbound::Message);
        assert_eq!(read(&deliver(0x04, "stat:DELIVRD err:000", vec![])), Inbound::Unreadable);
        assert_eq!(read(&deliver(0x04, "id: stat:DELIVRD", vec![])), Inbound::Unreadable);
    }

    #[test]
    fn codes_are_short_and_harmless() {
        assert_eq!(receipt("id:1 stat:UNDELIV err:+12125550123abcdef").2, "12125550123abcde");
        assert_eq!(receipt("id:1 stat:UNDELIV err:0").2, "undeliverable");
    }
}
