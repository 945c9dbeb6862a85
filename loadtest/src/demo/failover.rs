//! A second carrier for a part of the day, which breaks for a while: what waits for it goes to the first one, and comes back to it later.
//!
//! Owns: the route, the second carrier's profile and what is said about its breaker. In a lab without a second carrier the day goes
//! by the first one alone.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::show::Show;
use crate::carrier::{Carrier, Mark};
use crate::http::Http;
use crate::lab::Lab;
use crate::sample_day::Day;
use crate::scrape::Page;

/// The behaviour of the second carrier on the sample day.
pub const PROFILE: &str = include_str!("../../profiles/demo-second.toml");
/// As the launcher names the two accounts.
pub const FIRST: &str = "sim";
pub const SECOND: &str = "sim-http";
const ROUTE: &str = "demo-second";
/// Whose messages use it, and which: classes that are never sent again by themselves after a lost answer.
const PRACTICE: &str = "harbor-pediatrics";
const CLASSES: [&str; 2] = ["reminder", "confirmation"];
const BREAKER_METRIC: &str = "carillon_breaker_state";
const MOVED_METRIC: &str = "carillon_rerouted_total";
const EVERY: Duration = Duration::from_secs(1);
const SCRAPE_TIMEOUT: Duration = Duration::from_millis(700);

/// The simulator of the second carrier, if the lab has one.
pub fn carrier(lab: &Lab, http: &Http) -> Option<Carrier> {
    lab.smsc_http_http.as_ref().map(|address| Carrier::new(http.clone(), address))
}

/// Whether a day has messages for the second carrier.
pub fn takes_part(day: &Day) -> bool {
    day.messages().any(|message| message.practice == PRACTICE && CLASSES.contains(&message.class.as_str()))
}

/// Puts the route and the profile into force. Gives where the ground truth begins.
pub async fn begin(ctl: &Path, lab: &Lab, second: &Carrier, tenant: &str) -> anyhow::Result<Mark> {
    second.reset().await?;
    let mark = second.mark().await?;
    let (to_second, to_first) = (format!("{SECOND}=1"), format!("{FIRST}=0"));
    let mut words = vec!["route", "put", ROUTE, "--to", &to_second, "--to", &to_first];
    words.extend(["--tenant", tenant, "--practice", PRACTICE]);
    CLASSES.iter().for_each(|class| words.extend(["--class", *class]));
    call(ctl, lab, &words).await?;
    second.set_profile(PROFILE).await?;
    Ok(mark)
}

/// The lab is as it was.
pub async fn end(ctl: &Path, lab: &Lab) -> anyhow::Result<()> {
    call(ctl, lab, &["route", "drop", ROUTE]).await
}

async fn call(ctl: &Path, lab: &Lab, words: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(ctl)
        .args(words)
        .arg("--lab")
        .arg(&lab.dir)
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {}", ctl.display()))?;
    let error = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{}: {}", words.join(" "), error.trim());
    Ok(())
}

/// What was told last.
#[derive(Default)]
struct Told {
    open: bool,
}

impl Told {
    /// What to say of the breaker (any node's: 2 = open) and of the messages that were moved.
    fn news(&mut self, state: f64, moved: u64) -> Option<String> {
        let open = state >= 2.0;
        let text = match (self.open, open) {
            (false, true) => format!(
                "*** carrier {SECOND} fails: its breaker is open, messages of {PRACTICE} go to {FIRST} ***"
            ),
            (true, false) if state > 0.0 => return None,
            (true, false) => format!(
                "*** carrier {SECOND} works again: its breaker is closed; {moved} messages that waited for it went to {FIRST} ***"
            ),
            _ => return None,
        };
        self.open = open;
        Some(text)
    }
}

/// Until `stop`.
pub async fn watch(show: Show, http: Http, nodes: Vec<String>, stop: CancellationToken) {
    let mut told = Told::default();
    let mut every = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let mut all = Page::default();
        for node in &nodes {
            let page = tokio::time::timeout(SCRAPE_TIMEOUT, http.get(node, "/metrics")).await;
            if let Ok(Ok(body)) = page {
                all.add(&String::from_utf8_lossy(&body));
            }
        }
        // One node at most sends the practice's messages.
        let state = all.sum_where(BREAKER_METRIC, &format!("carrier=\"{SECOND}\"")).unwrap_or(0.0);
        let moved = all.sum_where(MOVED_METRIC, &format!("from=\"{SECOND}\"")).unwrap_or(0.0);
        if let Some(text) = told.news(state, moved as u64) {
            show.say(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failover_is_told_of_in_order() {
        let mut told = Told::default();
        assert_eq!(told.news(0.0, 0), None);
        assert!(told.news(2.0, 0).unwrap().contains("its breaker is open"));
        assert_eq!(told.news(2.0, 31), None);
        assert_eq!(told.news(1.0, 31), None, "it is being tried");
        let text = told.news(0.0, 31).unwrap();
        assert!(text.contains("works again") && text.contains("31 messages that waited"), "{text}");
        assert_eq!(told.news(0.0, 31), None);
    }

    #[test]
    fn the_second_carrier_has_a_profile_that_can_be_used() {
        let profile = crate::smsc::Profile::from_toml(PROFILE).unwrap();
        assert_eq!(profile.name, "demo-second");
    }
}
