//! Regions of the world as callers name them: ISO 3166-1 countries ("DE") and ISO 3166-2 parts of them ("US-FL").
//!
//! Invariants: what [`known`] gives is in upper case, as rules and tables have it; a country is one of ISO 3166-1, and a part of
//! the United States or Canada is one of theirs. Parts of other countries are only checked for their form: no rule of hours
//! goes below the country there.
use std::borrow::Cow;

/// ISO 3166-1 alpha-2, in order.
#[rustfmt::skip]
const COUNTRIES: &[&str] = &[
    "AD", "AE", "AF", "AG", "AI", "AL", "AM", "AO", "AQ", "AR", "AS", "AT", "AU", "AW", "AX", "AZ", "BA", "BB", "BD", "BE",
    "BF", "BG", "BH", "BI", "BJ", "BL", "BM", "BN", "BO", "BQ", "BR", "BS", "BT", "BV", "BW", "BY", "BZ", "CA", "CC", "CD",
    "CF", "CG", "CH", "CI", "CK", "CL", "CM", "CN", "CO", "CR", "CU", "CV", "CW", "CX", "CY", "CZ", "DE", "DJ", "DK", "DM",
    "DO", "DZ", "EC", "EE", "EG", "EH", "ER", "ES", "ET", "FI", "FJ", "FK", "FM", "FO", "FR", "GA", "GB", "GD", "GE", "GF",
    "GG", "GH", "GI", "GL", "GM", "GN", "GP", "GQ", "GR", "GS", "GT", "GU", "GW", "GY", "HK", "HM", "HN", "HR", "HT", "HU",
    "ID", "IE", "IL", "IM", "IN", "IO", "IQ", "IR", "IS", "IT", "JE", "JM", "JO", "JP", "KE", "KG", "KH", "KI", "KM", "KN",
    "KP", "KR", "KW", "KY", "KZ", "LA", "LB", "LC", "LI", "LK", "LR", "LS", "LT", "LU", "LV", "LY", "MA", "MC", "MD", "ME",
    "MF", "MG", "MH", "MK", "ML", "MM", "MN", "MO", "MP", "MQ", "MR", "MS", "MT", "MU", "MV", "MW", "MX", "MY", "MZ", "NA",
    "NC", "NE", "NF", "NG", "NI", "NL", "NO", "NP", "NR", "NU", "NZ", "OM", "PA", "PE", "PF", "PG", "PH", "PK", "PL", "PM",
    "PN", "PR", "PS", "PT", "PW", "PY", "QA", "RE", "RO", "RS", "RU", "RW", "SA", "SB", "SC", "SD", "SE", "SG", "SH", "SI",
    "SJ", "SK", "SL", "SM", "SN", "SO", "SR", "SS", "ST", "SV", "SX", "SY", "SZ", "TC", "TD", "TF", "TG", "TH", "TJ", "TK",
    "TL", "TM", "TN", "TO", "TR", "TT", "TV", "TW", "TZ", "UA", "UG", "UM", "US", "UY", "UZ", "VA", "VC", "VE", "VG", "VI",
    "VN", "VU", "WF", "WS", "YE", "YT", "ZA", "ZM", "ZW",
];

/// States, the District of Columbia and outlying areas.
#[rustfmt::skip]
const UNITED_STATES: &[&str] = &[
    "AK", "AL", "AR", "AS", "AZ", "CA", "CO", "CT", "DC", "DE", "FL", "GA", "GU", "HI", "IA", "ID", "IL", "IN", "KS", "KY",
    "LA", "MA", "MD", "ME", "MI", "MN", "MO", "MP", "MS", "MT", "NC", "ND", "NE", "NH", "NJ", "NM", "NV", "NY", "OH", "OK",
    "OR", "PA", "PR", "RI", "SC", "SD", "TN", "TX", "UM", "UT", "VA", "VI", "VT", "WA", "WI", "WV", "WY",
];

/// Provinces and territories.
const CANADA: &[&str] = &["AB", "BC", "MB", "NB", "NL", "NS", "NT", "NU", "ON", "PE", "QC", "SK", "YT"];

/// What is wrong with the text of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionFault {
    /// Not "US-FL" or "DE".
    Malformed,
    /// Of that form, and there is no such region.
    Unknown,
}

/// The region in upper case. Lower case is taken for the same region.
pub fn known(text: &str) -> Result<Cow<'_, str>, RegionFault> {
    if !text.is_ascii() || text.len() > "US-XXX".len() {
        return Err(RegionFault::Malformed);
    }
    let upper = match text.bytes().any(|b| b.is_ascii_lowercase()) {
        true => Cow::Owned(text.to_ascii_uppercase()),
        false => Cow::Borrowed(text),
    };
    if !is_region(&upper) {
        return Err(RegionFault::Malformed);
    }
    let (country, part) = upper.split_once('-').unwrap_or((&upper, ""));
    let parts = match country {
        "US" => UNITED_STATES,
        "CA" => CANADA,
        _ => &[],
    };
    let part_known = part.is_empty() || parts.is_empty() || parts.binary_search(&part).is_ok();
    if part_known && COUNTRIES.binary_search(&country).is_ok() {
        Ok(upper)
    } else {
        Err(RegionFault::Unknown)
    }
}

/// "US-FL" or "DE": the form of a region, whether there is one of that name or not.
pub fn is_region(text: &str) -> bool {
    let (country, part) = text.split_once('-').map_or((text, None), |(country, part)| (country, Some(part)));
    let upper = |s: &str| s.bytes().all(|b| b.is_ascii_uppercase());
    let part_fits = |part: &str| {
        (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
    };
    country.len() == 2 && upper(country) && part.is_none_or(part_fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_have_a_form() {
        for good in ["US-FL", "DE", "CA-QC", "GB-ENG", "AT-9"] {
            assert!(is_region(good), "{good}");
        }
        for bad in ["", "us-fl", "USA", "US-", "US-FLOR", "Fl", "US FL"] {
            assert!(!is_region(bad), "{bad}");
        }
    }

    #[test]
    fn known_regions_pass_in_any_case_and_others_are_told_apart() {
        for (text, region) in
            [("US-FL", "US-FL"), ("us-fl", "US-FL"), ("de", "DE"), ("Ca-Qc", "CA-QC"), ("gb-eng", "GB-ENG")]
        {
            assert_eq!(known(text).as_deref(), Ok(region), "{text}");
        }
        for unknown in ["XX", "xx", "ZZ", "US-XX", "us-on", "CA-FL", "XX-1"] {
            assert_eq!(known(unknown), Err(RegionFault::Unknown), "{unknown}");
        }
        for malformed in ["", "Florida", "USA", "US-", "US-FLOR", "D\u{130}", "\u{df}"] {
            assert_eq!(known(malformed), Err(RegionFault::Malformed), "{malformed}");
        }
    }

    #[test]
    fn tables_are_in_order_and_hold_every_region_of_an_area_code() {
        for table in [COUNTRIES, UNITED_STATES, CANADA] {
            assert!(table.windows(2).all(|pair| pair[0] < pair[1]), "{table:?}");
        }
        assert_eq!((COUNTRIES.len(), UNITED_STATES.len(), CANADA.len()), (249, 57, 13));
        for region in crate::place::areas().flat_map(|area| &area.regions) {
            assert_eq!(known(region).as_deref(), Ok(*region), "{region}");
        }
    }
}
