//! Where a recipient may be: time zones and regions of a number's area code, and which source of a zone counts.
//!
//! The order is: what the message says, then, as the practice is set up, the practice's zone or all zones that the number's area
//! code spans. There is no registry of patients yet; when there is one it comes between the two. An area code says where
//! a number was given out, not where its owner lives: so all its zones count together, and its region only chooses rules.
use crate::internal::{Place, RecipientZones, ZoneSource};
use std::sync::LazyLock;

/// See its first lines.
const TABLE: &str = include_str!("../data/area_codes.tsv");
const FIRST: usize = 200;
const CODES: usize = 800;

/// What is known about an area code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Area {
    pub code: u16,
    /// ISO 3166-2 in the US and Canada, 3166-1 elsewhere. Rarely more than one.
    pub regions: Vec<&'static str>,
    /// Every zone that it spans.
    pub time_zones: Vec<&'static str>,
}

static AREAS: LazyLock<Vec<Option<Area>>> = LazyLock::new(|| {
    let mut areas = vec![None; CODES];
    for area in TABLE.lines().filter(|line| !line.starts_with('#')).filter_map(read) {
        let at = usize::from(area.code).checked_sub(FIRST);
        if let Some(place) = at.and_then(|at| areas.get_mut(at)) {
            *place = Some(area);
        }
    }
    areas
});

fn read(line: &'static str) -> Option<Area> {
    let mut columns = line.split('\t');
    let code = columns.next()?.parse().ok()?;
    let regions = columns.next()?.split(',').collect();
    let time_zones = columns.next()?.split(',').collect();
    Some(Area { code, regions, time_zones })
}

/// The area of an E.164 number, if it has one that says where it is.
pub fn area_of(number: &str) -> Option<&'static Area> {
    let digits = number.strip_prefix("+1").filter(|rest| rest.len() == 10)?;
    area(digits.get(..3)?.parse().ok()?)
}

/// The area of an area code ("850").
pub fn area(code: u16) -> Option<&'static Area> {
    AREAS.get(usize::from(code).checked_sub(FIRST)?)?.as_ref()
}

/// All areas, in order.
pub fn areas() -> impl Iterator<Item = &'static Area> {
    AREAS.iter().flatten()
}

/// What decides where a recipient is. Empty texts are not given.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    pub message_zone: &'a str,
    pub message_region: &'a str,
    pub practice_zone: &'a str,
    pub recipient_zones: RecipientZones,
    /// E.164
    pub number: &'a str,
}

/// Where the recipient may be, and how that is known. Never without a time zone if the practice has one.
pub fn resolve(known: Known<'_>) -> Place {
    let area = area_of(known.number);
    let own = |text: &str| vec![text.to_owned()];
    let of_area = || -> Vec<String> {
        area.map_or_else(Vec::new, |a| a.time_zones.iter().map(|zone| (*zone).to_owned()).collect())
    };
    let (time_zones, source) = match (known.message_zone, known.recipient_zones) {
        (zone, _) if !zone.is_empty() => (own(zone), ZoneSource::Message),
        (_, RecipientZones::AreaCode) if area.is_some() => (of_area(), ZoneSource::AreaCode),
        (_, RecipientZones::Both) if area.is_some() => {
            let mut zones = of_area();
            if !zones.iter().any(|zone| zone == known.practice_zone) {
                zones.push(known.practice_zone.to_owned());
            }
            (zones, ZoneSource::PracticeAndAreaCode)
        }
        _ => (own(known.practice_zone), ZoneSource::Practice),
    };
    let regions = match (known.message_region, area) {
        ("", None) => Vec::new(),
        ("", Some(area)) => area.regions.iter().map(|region| (*region).to_owned()).collect(),
        (region, _) => own(region),
    };
    Place { time_zones, regions, source: source.into() }
}

/// As callers see it: "America/Chicago (message)".
pub fn describe(place: &Place) -> String {
    let source = match place.source() {
        ZoneSource::Unspecified => "unknown",
        ZoneSource::Message => "message",
        ZoneSource::Practice => "practice",
        ZoneSource::AreaCode => "area code",
        ZoneSource::PracticeAndAreaCode => "practice and area code",
    };
    [&place.time_zones.join(", "), " (", source, ")"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known<'a>(message_zone: &'a str, number: &'a str, recipient_zones: RecipientZones) -> Known<'a> {
        Known { message_zone, message_region: "", practice_zone: "America/New_York", recipient_zones, number }
    }

    #[test]
    fn every_line_of_the_table_is_read() {
        let lines = TABLE.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!((areas().count(), lines), (441, 441));
        for area in areas() {
            assert!(area.regions.iter().all(|region| crate::region::is_region(region)), "{area:?}");
            assert!(area.time_zones.iter().all(|zone| zone.contains('/')), "{area:?}");
        }
    }

    #[test]
    fn places_that_keep_another_time_than_their_surroundings_are_known() {
        let zones = |number: &str| area_of(number).map(|a| (a.regions.clone(), a.time_zones.clone()));
        let expect = |number: &str, region: &'static str, wanted: &[&'static str]| {
            assert_eq!(zones(number), Some((vec![region], wanted.to_vec())), "{number}");
        };
        // Phoenix, and the Navajo Nation inside of Arizona.
        expect("+16025550123", "US-AZ", &["America/Phoenix"]);
        expect("+19285550123", "US-AZ", &["America/Denver", "America/Phoenix"]);
        // Indiana, west and east; the panhandle of Florida; Idaho; the Dakotas.
        expect("+12195550123", "US-IN", &["America/Chicago", "America/New_York"]);
        expect("+13175550123", "US-IN", &["America/New_York"]);
        expect("+18505550123", "US-FL", &["America/Chicago", "America/New_York"]);
        expect("+14485550123", "US-FL", &["America/Chicago", "America/New_York"]);
        expect("+12085550123", "US-ID", &["America/Boise", "America/Denver", "America/Los_Angeles"]);
        expect("+16055550123", "US-SD", &["America/Chicago", "America/Denver"]);
        expect("+17875550123", "US-PR", &["America/Puerto_Rico"]);
        expect("+18085550123", "US-HI", &["Pacific/Honolulu"]);
        let alaska = zones("+19075550123").map(|(_, zones)| zones).unwrap_or_default();
        assert!(alaska.contains(&"America/Anchorage") && alaska.contains(&"America/Adak"), "{alaska:?}");
        // Toll-free numbers and other countries say nothing.
        for number in ["+18005550123", "+15005550123", "+442079460123", "+1212555", "18505550123", ""] {
            assert_eq!(zones(number), None, "{number}");
        }
    }

    #[test]
    fn the_message_comes_first_then_what_the_practice_is_set_up_for() {
        use RecipientZones::{AreaCode, Both, Practice};
        let say = |zone, number, zones| describe(&resolve(known(zone, number, zones)));
        let panhandle = "+18505550123";
        assert_eq!(say("America/Denver", panhandle, AreaCode), "America/Denver (message)");
        assert_eq!(say("", panhandle, Practice), "America/New_York (practice)");
        assert_eq!(say("", panhandle, AreaCode), "America/Chicago, America/New_York (area code)");
        assert_eq!(say("", "+442079460123", AreaCode), "America/New_York (practice)");
        assert_eq!(
            say("", "+18085550123", Both),
            "Pacific/Honolulu, America/New_York (practice and area code)"
        );
        assert_eq!(say("", panhandle, Both), "America/Chicago, America/New_York (practice and area code)");
    }

    /// The zone that a message names says when; the number still says whose rules.
    #[test]
    fn the_region_is_that_of_the_number_unless_the_message_names_one() {
        let moved = known("America/Denver", "+18505550123", RecipientZones::Practice);
        assert_eq!(resolve(moved).regions, ["US-FL"]);
        assert_eq!(resolve(Known { message_region: "US-CO", ..moved }).regions, ["US-CO"]);
        assert_eq!(resolve(Known { number: "+442079460123", ..moved }).regions, Vec::<String>::new());
    }
}
