//! Named steps that share one cluster: each is timed and bounded, and one that fails does not hide the others.
//!
//! Does not: order them by itself, or give each a cluster of its own (a start takes seconds).

use futures::FutureExt as _;
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

/// A step that takes longer hangs.
const STEP_LIMIT: Duration = Duration::from_secs(180);

/// The steps of one suite.
#[derive(Debug)]
pub struct Steps {
    suite: &'static str,
    passed: usize,
    failed: Vec<String>,
}

/// Progress, also when the test harness captures the output.
pub fn say(line: &str) {
    let _best_effort = writeln!(std::io::stderr(), "{line}");
}

impl Steps {
    pub fn new(suite: &'static str) -> Self {
        Self { suite, passed: 0, failed: Vec::new() }
    }

    /// Runs a step; a panic in it fails the step.
    pub async fn run(&mut self, name: &str, step: impl Future<Output = ()>) {
        let began = Instant::now();
        let step = AssertUnwindSafe(tokio::time::timeout(STEP_LIMIT, step)).catch_unwind();
        let word = match step.await {
            Ok(Ok(())) => "ok",
            Ok(Err(_)) => "TIMED OUT",
            Err(_) => "FAILED",
        };
        say(&format!("{}: {name} ... {word} ({:.1} s)", self.suite, began.elapsed().as_secs_f64()));
        if word == "ok" {
            self.passed += 1;
        } else {
            self.failed.push(format!("{name}: {word}"));
        }
    }

    /// Panics with the names of all steps that failed.
    pub fn finish(self) {
        assert!(self.failed.is_empty(), "{}: failed steps:\n  {}", self.suite, self.failed.join("\n  "));
        assert!(self.passed > 0, "{}: no step ran", self.suite);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failed_step_is_named_and_the_next_one_runs() {
        let mut steps = Steps::new("planted");
        steps.run("breaks", async { panic!("planted") }).await;
        steps.run("works", async {}).await;
        assert_eq!((steps.passed, steps.failed.as_slice()), (1, ["breaks: FAILED".to_owned()].as_slice()));
        assert!(std::panic::catch_unwind(AssertUnwindSafe(|| steps.finish())).is_err());
    }
}
