//! What one key alone cannot tell: phases that last, a mix that submits, faults on nodes that exist, profiles that are valid.

use super::{Action, Kind, Scenario, ScenarioError};
use crate::sample_day::class_of;
use crate::smsc::Profile;

/// The first line that sets `key` or opens its table; errors of more than one key point there.
fn line_of(text: &str, key: &str) -> usize {
    let last = key.rsplit('.').next().unwrap_or(key);
    let sets = |line: &str| {
        let line = line.trim();
        let table = line.trim_matches(['[', ']']).trim();
        let is_table = line.starts_with('[') && table == key;
        is_table || line.strip_prefix(last).is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    text.lines().position(sets).map_or(1, |at| at + 1)
}

impl Scenario {
    pub(super) fn check(&self, name: &str, text: &str) -> Result<(), ScenarioError> {
        let wrong = |key: &str, why: &str| {
            let line = line_of(text, key);
            let (name, key, why) = (name.to_owned(), key.to_owned(), why.to_owned());
            Err(ScenarioError::Wrong { name, line, key, why })
        };
        if self.phases.is_empty() || self.phases.len() > 100 {
            return wrong("phase", "there must be 1 to 100 phases");
        }
        if self.phases.iter().any(|phase| phase.from_per_s.is_some() && phase.curve.is_some()) {
            return wrong("phase.curve", "a phase is a ramp or a curve, not both");
        }
        if self.phases.iter().all(|phase| phase.rate_per_s == 0.0 && phase.from_per_s.is_none()) {
            return wrong("phase.rate_per_s", "no phase sends anything");
        }
        if self.warm_up_s >= self.length_s() {
            return wrong("warm_up_s", "the warm-up is as long as the whole run");
        }
        if self.generator.kind == Kind::Stream && self.generator.window > 32 {
            return wrong("generator.window", "a stream has at most 32 requests in flight");
        }
        if self.mix.submit <= 0.0 {
            return wrong("mix.submit", "nothing is submitted");
        }
        let messages = &self.messages;
        if messages.sizes.is_empty() || messages.sizes.iter().all(|size| size.weight == 0.0) {
            return wrong("messages.sizes", "there is no size");
        }
        if let Some(class) = messages.classes.keys().find(|class| class_of(class).is_none()) {
            return wrong("messages.classes", &format!("there is no class {class}"));
        }
        if !messages.classes.values().any(|weight| *weight > 0.0) {
            return wrong("messages.classes", "there is no class");
        }
        if !(1..=400).contains(&messages.recipients) {
            return wrong("messages.recipients", "is not 1 to 400");
        }
        if messages.far && !messages.due_local.is_empty() {
            return wrong("messages.due_local", "messages are far or due at a local time, not both");
        }
        if !matches!(self.launch.nodes, 1 | 3 | 5 | 7) {
            return wrong("launch.nodes", "is not 1, 3, 5 or 7");
        }
        if self.faults.len() > 100 || self.thresholds.len() > 100 {
            return wrong("fault", "there are more than 100 faults or thresholds");
        }
        if let Some(why) = profile_error(&self.carrier) {
            return wrong("carrier", &why);
        }
        for fault in &self.faults {
            if fault.node > self.launch.nodes {
                return wrong("fault", &format!("there is no node {}", fault.node));
            }
            if fault.action == Action::CarrierProfile
                && let Some(why) = profile_error(&fault.profile)
            {
                return wrong("fault", &why);
            }
        }
        Ok(())
    }
}

fn profile_error(profile: &toml::Table) -> Option<String> {
    let text = toml::to_string(profile).ok()?;
    Profile::from_toml(&text).err().map(|error| error.to_string())
}
