//! One fault suite's frame: a cluster in an arena, callers all the time, faults one after the other, and the verdict at
//! the end.
//!
//! Does not: run where the machine cannot (see [`skipped`]); `CARILLON_TEST_NO_SKIP` makes that a failure.

use crate::evidence::Run;
use crate::faults::{Needs, missing};
use crate::history::{COMES_TO_REST, Report};
use crate::load::LoadOptions;
use crate::rig::{Rig, until};
use crate::steps::say;
use carillon_ctl::lab::{Lab, LabOptions, ProcessState};
use std::time::{Duration, Instant};

/// Everything must be well again by then.
pub const RECOVERY_LIMIT: Duration = Duration::from_secs(60);
/// So many acknowledged submits between two faults show that the cluster works.
const BETWEEN: u64 = 60;
/// What is not at rest by then is left as it is by [`Trial::finish_safe`].
const SAFE_SETTLE: Duration = Duration::from_secs(8);

/// Says why a suite cannot run here; `false` if it can.
pub fn skipped(suite: &str, needs: Needs) -> bool {
    let Some(why) = missing(needs) else { return false };
    assert!(
        std::env::var_os("CARILLON_TEST_NO_SKIP").is_none(),
        "{suite}: this machine cannot run it ({why}) and CARILLON_TEST_NO_SKIP is set"
    );
    say(&format!("{suite}: SKIPPED, NOT TESTED HERE: {why}"));
    true
}

/// A cluster under load that is going to be hurt.
pub struct Trial {
    pub rig: Rig,
    pub run: Run,
    name: &'static str,
    began: Instant,
}

/// A carrier that answers at once, so that what is uncertain is the cluster's doing, and that is patient with receipts.
pub const PROFILE: &str = "base = \"perfect\"\n[receipts]\nattempts_max = 20\n";

/// What every trial starts with.
pub fn options() -> LabOptions {
    LabOptions {
        profile: "perfect".to_owned(),
        log_filter: "warn,carillon_node=info".to_owned(),
        ..LabOptions::default()
    }
}

impl Trial {
    pub async fn start(name: &'static str, needs: Needs, load: LoadOptions) -> Self {
        Self::start_with(options(), name, needs, load).await
    }

    /// With another lab than [`options`].
    pub async fn start_with(lab: LabOptions, name: &'static str, needs: Needs, load: LoadOptions) -> Self {
        Self::start_after(lab, name, needs, load, |_| {}).await
    }

    /// The same, after something was done to the files of the lab.
    pub async fn start_after(
        lab: LabOptions,
        name: &'static str,
        needs: Needs,
        load: LoadOptions,
        change: impl Fn(&Lab),
    ) -> Self {
        let rig = Rig::start_in(lab, needs, change).await;
        rig.carrier.set_profile(PROFILE).await.expect("the profile is good");
        let run = Run::start(&rig, name, load).await.expect("callers start");
        let trial = Self { rig, run, name, began: Instant::now() };
        trial.works().await;
        trial
    }

    pub fn say(&self, what: &str) {
        let (at, count) = (self.began.elapsed().as_secs_f64(), self.run.load.acknowledged());
        say(&format!("{}: {at:5.1} s, {count} acknowledged: {what}", self.name));
    }

    /// Callers get answers.
    pub async fn works(&self) {
        self.run.until_more(BETWEEN, RECOVERY_LIMIT).await.unwrap_or_else(|why| self.broken(&why));
    }

    fn broken(&self, why: &str) -> ! {
        panic!("{}: {why}; kept with CARILLON_TEST_KEEP=1", self.name)
    }

    /// Waits until a node has ended by itself.
    pub async fn until_ended(&self, node: u64) {
        until(&format!("node {node} ends"), RECOVERY_LIMIT, async || match self.rig.lab.node_state(node) {
            ProcessState::Running => Err("it runs".to_owned()),
            _ => Ok(()),
        })
        .await;
    }

    /// Starts nodes again and waits until they and the router serve.
    pub async fn start_nodes(&self, nodes: &[u64]) {
        let lab = &self.rig.lab;
        for node in nodes {
            lab.start_node(*node).unwrap_or_else(|e| self.broken(&e.to_string()));
        }
        for node in lab.node_ids() {
            lab.until_node_ready(node, RECOVERY_LIMIT).await.unwrap_or_else(|e| self.broken(&e.to_string()));
        }
        lab.until_router_ready(RECOVERY_LIMIT).await.unwrap_or_else(|e| self.broken(&e.to_string()));
    }

    /// Stops the callers, compares, and panics if a promise was not kept.
    pub async fn finish(self) -> Report {
        self.end(None).await
    }

    /// The same, but messages may still wait: whatever was done must be safe, not quick.
    pub async fn finish_safe(self) -> Report {
        self.end(Some(SAFE_SETTLE)).await
    }

    async fn end(self, only_safe: Option<Duration>) -> Report {
        let Self { rig, run, name, began } = self;
        let judged = match only_safe {
            Some(settle) => run.judge_after(&rig, settle).await,
            None => run.judge(&rig).await,
        };
        let mut report = judged.unwrap_or_else(|why| panic!("{name}: {why}"));
        if only_safe.is_some() {
            report.violations.retain(|violation| violation.rule != COMES_TO_REST);
        }
        say(&format!("{name}: {:.1} s\n{report}", began.elapsed().as_secs_f64()));
        assert!(report.is_clean(), "{name}: promises were not kept:\n{report}");
        assert!(report.acknowledged > 0 && report.at_carrier > 0, "{name}: nothing was tried:\n{report}");
        report
    }
}
