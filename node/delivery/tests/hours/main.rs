//! When recipients may be texted: the built-in rules by state and by the tricks of time zones, and windows against a second
//! opinion that looks at every few minutes.
mod clocks;
mod states;

use carillon_delivery::hours::{Answer, Ask, Rulebook, Window};
use carillon_proto::internal::{Place, PracticeHours};
use carillon_proto::public::{MessageClass, Priority};
use jiff::Timestamp;

pub fn place(zones: &[&str], regions: &[&str]) -> Place {
    let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    Place { time_zones: own(zones), regions: own(regions), source: 0 }
}

/// Of an area code.
pub fn area(code: u16) -> Place {
    let area = carillon_proto::place::area(code).expect("a listed area code");
    place(&area.time_zones, &area.regions)
}

pub fn ms(at: &str) -> u64 {
    at.parse::<Timestamp>().expect("a time").as_millisecond() as u64
}

pub fn text(ms: u64) -> String {
    Timestamp::from_millisecond(ms as i64).expect("a time").to_string()
}

pub fn ask<'a>(place: &'a Place, practice: Option<&'a PracticeHours>, from_ms: u64) -> Ask<'a> {
    Ask { place, class: MessageClass::Reminder as i32, priority: Priority::Normal as i32, practice, from_ms }
}

pub fn window(book: &Rulebook, ask: &Ask<'_>) -> Window {
    match book.ask(ask) {
        Answer::Window(window) => window,
        other => panic!("{other:?} for {ask:?}"),
    }
}

/// (opens, closes) as text; the minute that is kept for the carrier is put back.
pub fn spoken(book: &Rulebook, place: &Place, at: &str) -> (String, String) {
    let window = window(book, &ask(place, None, ms(at)));
    (text(window.open_ms), text(window.until_ms + carillon_delivery::hours::MARGIN_MS))
}
