//! A short address (a phone number or a sender name) held inline.
//!
//! Owns: [`Addr`], at most 20 ASCII octets as SMPP allows, without a heap
//! allocation, so that a pending receipt costs a fixed number of bytes.
//! Invariant: it has no `Debug` and no `Display`: a number never reaches a
//! log by accident.

/// The longest address that SMPP 3.4 carries (21 octets with the terminator).
pub const ADDR_LEN_MAX: usize = 20;

/// An SMPP address: octets, type of number, numbering plan.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Addr {
    octets: [u8; ADDR_LEN_MAX],
    len: u8,
    pub ton: u8,
    pub npi: u8,
}

impl Addr {
    /// Keeps the first 20 octets; the codec has refused longer ones already.
    pub fn new(text: &str, ton: u8, npi: u8) -> Self {
        let mut octets = [0; ADDR_LEN_MAX];
        let len = text.len().min(ADDR_LEN_MAX);
        octets[..len].copy_from_slice(&text.as_bytes()[..len]);
        Self { octets, len: len as u8, ton, npi }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.octets[..usize::from(self.len)]
    }

    /// The address without a leading plus sign.
    pub fn digits(&self) -> &[u8] {
        let octets = self.as_bytes();
        octets.strip_prefix(b"+").unwrap_or(octets)
    }

    /// True for 3 to 20 decimal digits, with or without a leading plus sign.
    pub fn is_number(&self) -> bool {
        let digits = self.digits();
        digits.len() >= 3 && digits.iter().all(u8::is_ascii_digit)
    }
}
