//! `Debug` for messages that carry plaintext of patients: ids, numbers and states only.
use crate::{internal, public};
use std::fmt;

/// Implements `Debug` that shows the listed fields and nothing else.
macro_rules! redacted {
    ($type:ty, $name:literal $(, $field:ident)*) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct($name)$(.field(stringify!($field), &self.$field))*.finish_non_exhaustive()
            }
        }
    };
}

redacted!(public::MessageSpec, "MessageSpec", practice, class, priority);
redacted!(public::NationalNumber, "NationalNumber", region);
redacted!(public::Message, "Message", message_id, practice, class, state);
redacted!(public::AcceptedMessage, "AcceptedMessage", message_id, duplicate, encoding, segments);
redacted!(public::ListMessagesRequest, "ListMessagesRequest", practice, page_size);
redacted!(public::CancelMessagesRequest, "CancelMessagesRequest", message_ids, practice);
redacted!(public::CancelResult, "CancelResult", message_id, canceled, state);
redacted!(internal::IngestMessage, "IngestMessage", practice_no, class, priority);
redacted!(internal::MessageDetails, "MessageDetails");
redacted!(internal::NodeCancelRequest, "NodeCancelRequest", tenant, partition, message_ids);
redacted!(public::UpdateAppointmentRequest, "UpdateAppointmentRequest", practice, version, validate_only);
redacted!(public::MessageChange, "MessageChange", classes, cancel);
redacted!(internal::NodeUpdateRequest, "NodeUpdateRequest", tenant, practice_no, version);
redacted!(public::CreateSeriesRequest, "CreateSeriesRequest", rule);
redacted!(internal::SeriesPlan, "SeriesPlan", rule);
redacted!(internal::NodeCreateSeries, "NodeCreateSeries");
redacted!(internal::NodeSeriesRequest, "NodeSeriesRequest", tenant, partition);
redacted!(internal::NodeChange, "NodeChange", classes, cancel, segments);

impl fmt::Debug for internal::node_series_request::Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Action([sealed])")
    }
}

impl fmt::Debug for public::message_spec::Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recipient([sealed])")
    }
}

#[cfg(test)]
mod tests {
    use crate::public::{MessageSpec, message_spec::Recipient};

    #[test]
    fn debug_of_a_spec_shows_no_plaintext() {
        let spec = MessageSpec {
            practice: "north".into(),
            recipient: Some(Recipient::PhoneNumber("+12125550123".into())),
            body: "Hello Ada".into(),
            external_reference: "visit-9".into(),
            ..Default::default()
        };
        let text = format!("{spec:?} {:?}", spec.recipient);
        assert!(text.contains("north"), "{text}");
        for secret in ["2125550123", "Ada", "visit-9"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}
