//! The stable words that say what is wrong with a field (`BadRequest.field_violations[].reason`), and a list that gathers
//! all of them. Descriptions are fixed texts: nothing of a request is ever repeated in an error.
use carillon_proto::errors;
use tonic::Status;
use tonic_types::FieldViolation;

macro_rules! reasons {
    ($($name:ident = $description:literal;)*) => {
        /// What is wrong with a field.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(non_camel_case_types)]
        pub enum Fault { $($name),* }

        impl Fault {
            /// The stable word.
            pub fn reason(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }

            pub fn description(self) -> &'static str {
                match self { $(Self::$name => $description),* }
            }
        }
    };
}

reasons! {
    EMPTY = "is required";
    TOO_LONG = "is longer than allowed";
    TOO_MANY = "has more entries than allowed";
    TOO_MANY_SEGMENTS = "needs more than 10 sms parts";
    CONTROL_CHARACTER = "holds a control character other than a line feed";
    UNPARSABLE_NUMBER = "is not a phone number; e.164 has a plus sign and 8 to 15 digits";
    INVALID_NUMBER = "is not a number that can exist in its country";
    UNKNOWN_REGION = "is not a region of iso 3166, such as us or us-fl; a national number needs a country with phone numbers";
    UNKNOWN_CLASS = "is not a message class";
    UNKNOWN_PRIORITY = "is not a priority";
    UNKNOWN_STATE = "is not a message state";
    UNKNOWN_VIEW = "is not a message view";
    MALFORMED_REGION = "is not like us-fl (iso 3166-2) or de (iso 3166-1)";
    UNKNOWN_TIME_ZONE = "is not an iana time zone";
    INVALID_TIMESTAMP = "is not a time between 1970 and 9999";
    PAST_EXPIRY = "has passed";
    PAST_DEADLINE = "has passed, and nothing is sent after the deadline";
    EXPIRY_BEFORE_NOT_BEFORE = "is not after not_before";
    DEADLINE_BEFORE_NOT_BEFORE = "is before not_before";
    NOT_A_LOCAL_TIME = "is not a wall-clock time like 2026-12-03T09:00, without zone and offset";
    BOTH_GIVEN = "cannot be given together with not_before";
    TOO_FAR = "is more than 400 days ahead";
    NEGATIVE = "must not be negative";
    MALFORMED = "is not a message id";
    EMPTY_INTERVAL = "is not after accepted_after";
    TIMES_OF_A_SERIES = "must not be set; the rule says when";
    INVALID_DURATION = "is not 1 second to 400 days";
    SHIFT_AND_TIMES = "moves times that are given as well";
    CANCEL_AND_CHANGE = "takes back what is changed as well";
}

/// All that is wrong with one request or item.
#[derive(Debug, Default)]
pub struct Violations(Vec<FieldViolation>);

impl Violations {
    pub fn add(&mut self, field: &str, fault: Fault) {
        self.0.push(errors::violation(field, fault.reason(), fault.description()));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// INVALID_FIELDS unless nothing is wrong.
    pub fn into_result(self) -> Result<(), Status> {
        if self.0.is_empty() { Ok(()) } else { Err(errors::invalid_fields(self.0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_upper_snake_and_short() {
        for fault in [Fault::EMPTY, Fault::UNPARSABLE_NUMBER, Fault::DEADLINE_BEFORE_NOT_BEFORE] {
            let word = fault.reason();
            assert!(word.len() <= 63 && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{word}");
            assert!(!fault.description().is_empty());
        }
    }
}
