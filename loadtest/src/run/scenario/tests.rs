//! Scenarios that must be refused, with the key and the line in the error.

use super::*;

const SMALL: &str = "name = \"x\"\n[[phase]]\nduration_s = 5\nrate_per_s = 10\n";

#[test]
fn a_small_scenario_has_defaults_and_a_digest_that_names_it() {
    let scenario = Scenario::parse("x", SMALL).unwrap();
    assert_eq!((scenario.pacing, scenario.arrivals), (Loop::Open, Arrivals::Even));
    assert_eq!((scenario.generator.clone(), scenario.length_s()), (Generator::default(), 5.0));
    let other = Scenario::parse("x", &SMALL.replace("10", "11")).unwrap();
    assert_ne!(scenario.digest(), other.digest());
    assert_eq!(scenario.digest(), Scenario::parse("y", SMALL).unwrap().digest());
    // What is written down is read back to the same.
    let text = toml::to_string(&scenario).unwrap();
    assert_eq!(Scenario::parse("x", &text).unwrap(), scenario);
    // Generator processes get it as JSON.
    let json = serde_json::to_string(&scenario).unwrap();
    assert_eq!(serde_json::from_str::<Scenario>(&json).unwrap(), scenario);
}

#[test]
fn errors_name_key_and_line() {
    for (text, wanted) in [
        (format!("{SMALL}rate_pers = 3\n"), vec!["line 5", "rate_pers"]),
        (SMALL.replace("duration_s = 5", "duration_s = -5"), vec!["line 3", "-5 is not in"]),
        (SMALL.replace("rate_per_s = 10", "rate_per_s = \"fast\""), vec!["line 4", "rate_per_s"]),
        (format!("{SMALL}[generator]\nwindow = 0\n"), vec!["line 6", "window"]),
        (format!("{SMALL}[generator]\nkind = \"strem\"\n"), vec!["line 6", "strem"]),
        (format!("{SMALL}[messages]\nunicode_share = 1.5\n"), vec!["line 6", "unicode_share"]),
        (format!("{SMALL}[messages.classes]\nremainder = 1\n"), vec!["line 5", "remainder"]),
        (format!("warm_up_s = 5\n{SMALL}"), vec!["line 1", "warm_up_s"]),
        (format!("{SMALL}curve = [1, 2]\nfrom_per_s = 3\n"), vec!["line 5", "curve", "ramp"]),
        (format!("thresholds = [\"lost = 0\"]\n{SMALL}"), vec!["line 1", "lost = 0"]),
        (format!("{SMALL}[carrier]\nbase = \"nice\"\n"), vec!["line 5", "nice"]),
        (format!("{SMALL}[[fault]]\nat_s = 1\naction = \"kill\"\nnode = 4\n"), vec!["line 5", "no node 4"]),
        (format!("{SMALL}[mix]\nsubmit = 0\n"), vec!["line 6", "mix.submit"]),
        ("name = \"x\"\nphase = []\n".to_owned(), vec!["line 2", "phase"]),
    ] {
        let error = Scenario::parse("x", &text).unwrap_err().to_string();
        for part in wanted {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
