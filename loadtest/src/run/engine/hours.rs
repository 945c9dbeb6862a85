//! Whether the planned time of sending of a message is one at which it may be sent.
//!
//! The federal hours only, 8 to 21 o'clock where the recipient is: states may be stricter, never laxer.

use carillon_proto::public::AcceptedMessage;
use jiff::Timestamp;
use jiff::tz::TimeZone;

const FIRST_HOUR: i8 = 8;
const LAST_HOUR: i8 = 21;

/// True for a plan inside of the hours in every zone that the answer names: "America/Chicago, America/New_York (area code)".
pub fn is_planned_right(accepted: &AcceptedMessage) -> bool {
    let Some(planned) = &accepted.first_send_time else { return false };
    let Ok(at) = Timestamp::new(planned.seconds, planned.nanos) else { return false };
    let zones = accepted.time_zone.split(" (").next().unwrap_or_default();
    zones.split(", ").all(|zone| {
        TimeZone::get(zone).is_ok_and(|zone| (FIRST_HOUR..LAST_HOUR).contains(&at.to_zoned(zone).hour()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(utc: &str, zone: &str) -> bool {
        let at: Timestamp = utc.parse().unwrap();
        let first_send_time =
            Some(prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() });
        is_planned_right(&AcceptedMessage {
            first_send_time,
            time_zone: zone.to_owned(),
            ..Default::default()
        })
    }

    #[test]
    fn hours_are_the_recipients_on_both_sides_of_a_change() {
        // New York: UTC-5 before the night of 2027-03-14, UTC-4 after.
        assert!(planned("2027-03-13T13:00:00Z", "America/New_York"));
        assert!(!planned("2027-03-13T12:59:59Z", "America/New_York"));
        assert!(planned("2027-03-14T12:00:00Z", "America/New_York"));
        assert!(!planned("2027-03-15T01:00:00Z", "America/New_York"));
        // In every zone that the recipient may be in, and only in zones that there are.
        assert!(planned("2027-03-13T14:00:00Z", "America/Chicago, America/New_York (area code)"));
        assert!(!planned("2027-03-13T13:00:00Z", "America/Chicago, America/New_York (area code)"));
        assert!(planned("2027-03-13T13:00:00Z", "America/New_York (practice)"));
        assert!(!planned("2027-03-13T13:00:00Z", "America/Nowhere"));
        assert!(!is_planned_right(&AcceptedMessage::default()));
    }
}
