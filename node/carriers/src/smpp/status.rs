//! `command_status` numbers that the session itself needs, and how they are written as codes. What they mean for a message
//! is in the contract (contract/, `contracts/smpp-generic.toml`).
use crate::contract::{Contract, Meaning};
use carillon_proto::public::Outcome;

pub const OK: u32 = 0x00;
pub const INVALID_COMMAND_ID: u32 = 0x03;
pub const BIND_FAILED: u32 = 0x0d;
pub const INVALID_PASSWORD: u32 = 0x0e;
pub const INVALID_SYSTEM_ID: u32 = 0x0f;
pub const INVALID_SYSTEM_TYPE: u32 = 0x53;
/// "Try again": our answer to a receipt that was not committed.
pub const TEMPORARY_APP_ERROR: u32 = 0x64;
/// Our answer to a deliver_sm that cannot be read.
pub const PERMANENT_APP_ERROR: u32 = 0x65;

/// The meaning of the answer to a submit. A `generic_nack` means that it was not taken over; unless it is a plain "slow
/// down", we sent something that the carrier cannot read: our bug or a wrong setting, so the lane stops and messages are
/// kept.
pub fn meaning(contract: &Contract, status: u32, nack: bool) -> Meaning {
    match contract.meaning(&code(status)) {
        answered if !nack || answered.outcome == Outcome::Throttled => answered,
        _ => Meaning::of(Outcome::LaneBroken),
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
    use crate::contract::{ContractHandle, SMPP_GENERIC};

    #[test]
    fn a_nack_breaks_the_lane_unless_it_says_slow_down() {
        let contract = ContractHandle::built_in(SMPP_GENERIC).unwrap().get();
        let nack = |status| meaning(&contract, status, true).outcome;
        assert_eq!(nack(0x03), Outcome::LaneBroken);
        assert_eq!(nack(0x08), Outcome::LaneBroken);
        assert_eq!(nack(0x58), Outcome::Throttled);
        assert_eq!(meaning(&contract, 0x08, false).outcome, Outcome::Transient);
        assert_eq!(code(0x58), "0x00000058");
    }
}
