//! What a `command_status` means for a message: one table, as data.
//!
//! Where public sources differ, the mapping that can do less harm was taken:
//!  - destination TON/NPI refused (0x50, 0x51): ours are fixed for the whole lane, so the lane is broken and the
//!    messages are kept; ending each message as "bad number" would lose a whole day for a wrong setting;
//!  - esm_class refused (0x43): only texts in parts set it, so it is the content; one long text must not stop a lane.
use carillon_proto::public::Outcome;

pub const OK: u32 = 0x00;
pub const INVALID_COMMAND_LENGTH: u32 = 0x02;
pub const INVALID_COMMAND_ID: u32 = 0x03;
pub const INVALID_BIND_STATUS: u32 = 0x04;
pub const ALREADY_BOUND: u32 = 0x05;
pub const BIND_FAILED: u32 = 0x0d;
pub const INVALID_PASSWORD: u32 = 0x0e;
pub const INVALID_SYSTEM_ID: u32 = 0x0f;
pub const QUEUE_FULL: u32 = 0x14;
pub const INVALID_SYSTEM_TYPE: u32 = 0x53;
pub const THROTTLED: u32 = 0x58;
/// "Try again": our answer to a receipt that was not committed.
pub const TEMPORARY_APP_ERROR: u32 = 0x64;
/// Our answer to a deliver_sm that cannot be read.
pub const PERMANENT_APP_ERROR: u32 = 0x65;

/// The meaning of one status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    pub outcome: Outcome,
    /// The lane pauses for this many times `throttle_pause_ms`.
    pub pauses: u32,
    /// The session cannot be used any more.
    pub rebind: bool,
}

const fn means(outcome: Outcome) -> Meaning {
    Meaning { outcome, pauses: 0, rebind: false }
}

const ACCEPTED: Meaning = means(Outcome::Accepted);
const TRANSIENT: Meaning = means(Outcome::Transient);
const CONTENT: Meaning = means(Outcome::RejectedContent);
const NUMBER: Meaning = means(Outcome::RejectedNumber);
const LANE: Meaning = means(Outcome::LaneBroken);
const REBIND: Meaning = Meaning { outcome: Outcome::Transient, pauses: 0, rebind: true };

/// Sorted by status. What is not here, vendor ranges included, is `TRANSIENT`: the carrier answered, so it did not
/// take the message over, and retries are counted.
const TABLE: &[(u32, Meaning)] = &[
    (OK, ACCEPTED),
    (0x01, CONTENT),
    (INVALID_COMMAND_LENGTH, LANE),
    (INVALID_COMMAND_ID, LANE),
    (INVALID_BIND_STATUS, REBIND),
    (ALREADY_BOUND, REBIND),
    (0x06, LANE),
    (0x07, LANE),
    (0x08, TRANSIENT),
    (0x0a, LANE),
    (0x0b, NUMBER),
    (BIND_FAILED, LANE),
    (INVALID_PASSWORD, LANE),
    (INVALID_SYSTEM_ID, LANE),
    (QUEUE_FULL, Meaning { outcome: Outcome::Throttled, pauses: 3, rebind: false }),
    (0x15, LANE),
    (0x42, LANE),
    (0x43, CONTENT),
    (0x45, TRANSIENT),
    (0x48, LANE),
    (0x49, LANE),
    (0x50, LANE),
    (0x51, LANE),
    (INVALID_SYSTEM_TYPE, LANE),
    (THROTTLED, Meaning { outcome: Outcome::Throttled, pauses: 1, rebind: false }),
    (0x61, LANE),
    (0x62, LANE),
    (TEMPORARY_APP_ERROR, TRANSIENT),
    (PERMANENT_APP_ERROR, CONTENT),
    (0x66, CONTENT),
    (0xc0, LANE),
    (0xc1, LANE),
    (0xc2, LANE),
    (0xc3, LANE),
    (0xc4, LANE),
    (0xfe, TRANSIENT),
    (0xff, TRANSIENT),
    (0x100, LANE),
    (0x101, LANE),
    (0x102, TRANSIENT),
    (0x103, LANE),
    (0x104, CONTENT),
];

/// The meaning of a status in `submit_sm_resp`.
pub fn of_submit(status: u32) -> Meaning {
    match TABLE.binary_search_by_key(&status, |(known, _)| *known) {
        Ok(i) => TABLE[i].1,
        Err(_) => TRANSIENT,
    }
}

/// The meaning of a `generic_nack` for a submit: not taken over. Unless it is a plain "slow down", we sent something
/// that the carrier cannot read: our bug or a wrong setting, so the lane stops and messages are kept.
pub fn of_nack(status: u32) -> Meaning {
    match of_submit(status) {
        throttled if throttled.outcome == Outcome::Throttled => throttled,
        _ => LANE,
    }
}

/// A bind was refused for a reason that waiting does not cure.
pub fn is_credentials(status: u32) -> bool {
    matches!(status, INVALID_PASSWORD | INVALID_SYSTEM_ID | INVALID_SYSTEM_TYPE)
}

/// The stable code of a status.
pub fn code(status: u32) -> String {
    format!("{status:#010x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_so_that_every_row_is_found() {
        assert!(TABLE.windows(2).all(|rows| rows[0].0 < rows[1].0));
        for (status, meaning) in TABLE {
            assert_eq!(of_submit(*status), *meaning);
        }
    }

    #[test]
    fn every_status_has_the_documented_outcome() {
        let outcome = |status| of_submit(status).outcome;
        assert_eq!(outcome(0x00), Outcome::Accepted);
        for status in [0x58, 0x14] {
            assert_eq!(outcome(status), Outcome::Throttled);
        }
        assert!(of_submit(0x14).pauses > of_submit(0x58).pauses);
        for status in [0x08, 0x45, 0x64, 0xfe, 0xff, 0x400, 0x4ff, 0xdead_beef] {
            assert_eq!(outcome(status), Outcome::Transient, "{status:#x}");
        }
        for status in [0x0a, 0x48, 0x49, 0x0d, 0x0e, 0x0f, 0x61, 0x62, 0xc0, 0xc4, 0x50, 0x51] {
            assert_eq!(outcome(status), Outcome::LaneBroken, "{status:#x}");
        }
        for status in [0x01, 0x43, 0x65, 0x66, 0x104] {
            assert_eq!(outcome(status), Outcome::RejectedContent, "{status:#x}");
        }
        assert_eq!(outcome(0x0b), Outcome::RejectedNumber);
        assert!(of_submit(0x04).rebind && of_submit(0x05).rebind && !of_submit(0x08).rebind);
        assert_eq!(of_nack(0x03).outcome, Outcome::LaneBroken);
        assert_eq!(of_nack(0x08).outcome, Outcome::LaneBroken);
        assert_eq!(of_nack(0x58).outcome, Outcome::Throttled);
        assert_eq!(code(0x58), "0x00000058");
    }
}
