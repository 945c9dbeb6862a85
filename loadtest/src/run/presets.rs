//! The scenarios that come with the program.

use super::scenario::{Scenario, ScenarioError};

/// Name and text, in the order of `run --list`.
pub const PRESETS: &[(&str, &str)] = &[
    ("smoke", include_str!("../../scenarios/smoke.toml")),
    ("steady", include_str!("../../scenarios/steady.toml")),
    ("morning-peak", include_str!("../../scenarios/morning-peak.toml")),
    ("bulk-upload", include_str!("../../scenarios/bulk-upload.toml")),
    ("carrier-outage", include_str!("../../scenarios/carrier-outage.toml")),
    ("hot-practice", include_str!("../../scenarios/hot-practice.toml")),
    ("throttle-storm", include_str!("../../scenarios/throttle-storm.toml")),
    ("failover", include_str!("../../scenarios/failover.toml")),
    ("rolling-restart", include_str!("../../scenarios/rolling-restart.toml")),
    ("dst-night", include_str!("../../scenarios/dst-night.toml")),
    ("soak", include_str!("../../scenarios/soak.toml")),
];

/// The text of a preset, or of a file, with the name that errors call it.
pub fn text(name: &str) -> Result<(String, String), ScenarioError> {
    if let Some((name, text)) = PRESETS.iter().find(|(preset, _)| *preset == name) {
        return Ok(((*name).to_owned(), (*text).to_owned()));
    }
    match fs_err::read_to_string(name) {
        Ok(text) => Ok((name.to_owned(), text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(ScenarioError::Unknown(name.to_owned()))
        }
        Err(error) => Err(ScenarioError::Read { path: name.to_owned(), why: error.to_string() }),
    }
}

/// A preset or a file as a scenario.
pub fn load(name: &str) -> Result<Scenario, ScenarioError> {
    let (name, text) = text(name)?;
    Scenario::parse(&name, &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::shape::Shape;

    #[test]
    fn every_preset_can_be_run_and_says_what_it_is_for() {
        for (name, _) in PRESETS {
            let scenario = load(name).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(scenario.name, *name);
            assert!(scenario.about.len() > 20 && !scenario.thresholds.is_empty(), "{name}");
            assert!(Shape::new(&scenario.phases).messages() >= 1_000.0, "{name}");
        }
        assert!(load("smok").unwrap_err().to_string().contains("--list"));
    }
}
