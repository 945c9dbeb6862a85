//! Nights in the simulator: who is where, the rules, and the oracle's own opinion of when it is night.
//!
//! A run with nights begins on 2026-11-01 at 05:58:40 UTC. In it hours begin and end, and at 06:00 UTC the clocks of New York go
//! back from 02:00 to 01:00. The oracle knows the hours as moments that a person has worked out; it has no time zones, no rules and
//! no code in common with what it watches.
use super::rng::mix;
use carillon_delivery::hours::Rulebook;
use carillon_proto::internal::{Accept, Place};
use carillon_proto::public::MessageClass;

/// 2026-11-01T05:58:40Z
pub const BEGIN_MS: u64 = 1_793_512_720_000;

const RULES: &str = r#"
name = "nights of the simulator"
[[rule]]
region = "*"
every_day = "all day"
source = "the others bound it"
[[rule]]
region = "US-NY"
every_day = "01:10-02:00"
source = "ends where the clocks go back, and does not begin again within the run"
[[rule]]
region = "US-VT"
every_day = "02:00-05:00"
source = "would begin if the clocks did not go back"
[[rule]]
region = "US-IL"
every_day = "00:59-01:03"
source = "begins within the run"
[[rule]]
region = "US-AZ"
every_day = "22:00-24:00"
source = "two zones: midnight of the eastern one ends it"
[[rule]]
region = "GB"
every_day = "05:59-06:01"
source = "begins and ends within the run"
[[exempt]]
class = "staff"
reason = "they are awake"
"#;

const ALL_DAY: &str =
    "name = \"any hour\"\n[[rule]]\nregion = \"*\"\nevery_day = \"all day\"\nsource = \"no nights\"\n";

/// The rules of a run.
pub fn rules(nights: bool) -> Rulebook {
    Rulebook::parse(if nights { RULES } else { ALL_DAY }).expect("the simulator's rules are right")
}

/// Region, zones, and the seconds after the begin at which the hours begin and end.
const PLACES: [(&str, &[&str], u64, u64); 6] = [
    ("US-NY", &["America/New_York"], 0, 80),
    ("US-VT", &["America/New_York"], 3_680, 14_480),
    ("US-IL", &["America/Chicago"], 20, 260),
    ("US-AZ", &["America/Phoenix", "America/Denver"], 0, 80),
    ("GB", &["Europe/London"], 20, 140),
    ("FR", &["Europe/Paris"], 0, u64::MAX / 1_000_000),
];

/// Where the recipient of a content is.
pub fn place_of(content: u64) -> Place {
    let (region, zones, _, _) = PLACES[(mix(content ^ 0x6e69_6768) % 6) as usize];
    Place {
        time_zones: zones.iter().map(|zone| (*zone).to_owned()).collect(),
        regions: vec![region.to_owned()],
        source: 0,
    }
}

/// The oracle's opinion: the hours of a message as moments, `None` if none apply.
pub fn hours_of(accept: &Accept) -> Option<(u64, u64)> {
    let region = accept.place.as_ref()?.regions.first()?;
    let (_, _, open_s, close_s) = PLACES.iter().find(|(name, ..)| name == region)?;
    let staff = accept.class == MessageClass::Staff as i32;
    (!staff).then_some((BEGIN_MS + open_s * 1_000, BEGIN_MS + close_s * 1_000))
}
