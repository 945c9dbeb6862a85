//! The names of time zones that we know: those of the bundled tz database, so that every router has the same opinion.
use std::collections::HashSet;
use std::sync::LazyLock;

static NAMES: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let database = jiff::tz::TimeZoneDatabase::bundled();
    let names = database.available().map(|name| name.as_str().to_owned());
    names.filter(|name| database.get(name).is_ok() && !PLACEHOLDERS.contains(&name.as_str())).collect()
});

/// Entries of the database that name no place.
const PLACEHOLDERS: [&str; 2] = ["Factory", "Etc/Unknown"];

/// An IANA zone or link, in its exact spelling.
pub fn is_known(name: &str) -> bool {
    NAMES.contains(name)
}

/// Reads the database, so that the first message does not wait for it.
pub fn warm_up() {
    LazyLock::force(&NAMES);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iana_names_are_known_and_others_are_not() {
        for name in
            ["America/Chicago", "America/Indiana/Indianapolis", "US/Eastern", "Pacific/Honolulu", "UTC"]
        {
            assert!(is_known(name), "{name}");
        }
        for name in ["", "america/chicago", "America/Springfield", "CDT", "Factory", "../etc/passwd", "UTC+5"]
        {
            assert!(!is_known(name), "{name}");
        }
        assert!(NAMES.len() > 400);
    }
}
