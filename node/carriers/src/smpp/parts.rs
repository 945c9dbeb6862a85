//! Cuts a text into the parts that travel, with the concatenation header of each.
use crate::clear::Clear;
use carillon_proto::public::Encoding;
use carillon_proto::sms;

/// The 8-bit concatenation header counts parts in one octet.
pub const PARTS_MAX: usize = 255;
/// Octets of the header, its length octet included.
const HEADER_OCTETS: usize = 6;

/// A text ready to travel.
pub struct Parts {
    pub encoding: Encoding,
    /// `short_message` of each part, header included.
    pub octets: Vec<Clear<Vec<u8>>>,
}

/// Why a text cannot travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the text needs more than {PARTS_MAX} parts")]
pub struct TooManyParts;

impl Parts {
    /// `reference` tells the parts of this message from those of the next one to the same phone.
    pub fn cut(text: &str, reference: u8) -> Result<Self, TooManyParts> {
        let encoding = sms::analyze(text).encoding;
        let parts: Vec<Clear<Vec<u8>>> = sms::split(text).into_iter().map(Clear::new).collect();
        if parts.len() > PARTS_MAX {
            return Err(TooManyParts);
        }
        if parts.len() == 1 {
            return Ok(Self { encoding, octets: parts });
        }
        let total = parts.len() as u8;
        let octets = parts
            .iter()
            .zip(1..=u8::MAX)
            .map(|(part, number)| {
                // Header length, element "concatenated, 8-bit reference", its length, reference, total, number.
                let mut octets = Vec::with_capacity(HEADER_OCTETS + part.expose().len());
                octets.extend_from_slice(&[5, 0, 3, reference, total, number]);
                octets.extend_from_slice(part.expose());
                Clear::new(octets)
            })
            .collect();
        Ok(Self { encoding, octets })
    }

    pub fn is_concatenated(&self) -> bool {
        self.octets.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_text_has_no_header() {
        let parts = Parts::cut("Hi @ nine", 7).unwrap();
        assert_eq!(parts.encoding, Encoding::Gsm7);
        assert!(!parts.is_concatenated());
        assert_eq!(parts.octets[0].expose(), b"Hi \x00 nine");
    }

    #[test]
    fn every_part_of_a_long_text_has_its_number() {
        let parts = Parts::cut(&"a".repeat(307), 0xfe).unwrap();
        let headers: Vec<&[u8]> = parts.octets.iter().map(|part| &part.expose()[..HEADER_OCTETS]).collect();
        assert_eq!(headers, [[5, 0, 3, 0xfe, 3, 1], [5, 0, 3, 0xfe, 3, 2], [5, 0, 3, 0xfe, 3, 3]]);
        assert_eq!(parts.octets.iter().map(|part| part.expose().len()).collect::<Vec<_>>(), [159, 159, 7]);
    }

    #[test]
    fn ucs2_parts_fit_140_octets() {
        let parts = Parts::cut(&"\u{44f}".repeat(71), 1).unwrap();
        assert_eq!(parts.encoding, Encoding::Ucs2);
        assert_eq!(parts.octets.iter().map(|part| part.expose().len()).collect::<Vec<_>>(), [140, 14]);
    }

    #[test]
    fn more_than_255_parts_are_refused() {
        assert!(Parts::cut(&"a".repeat(153 * 255), 1).is_ok());
        assert_eq!(Parts::cut(&"a".repeat(153 * 255 + 1), 1).err(), Some(TooManyParts));
    }
}
