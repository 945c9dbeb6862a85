//! Accidents at their times: nodes that die, stand still or restart, and a carrier that changes.
//!
//! Owns: the order of a scenario's faults and the marks that they leave in the report. A fault that cannot be made ends the
//! run: it would not be the run that was asked for.

use std::time::Duration;

use anyhow::Context as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::scenario::{Action, Fault};
use super::target::Target;

/// Something that happened and may explain what is seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Mark {
    /// Seconds after the first send.
    pub at_s: f64,
    /// `fault`, `leader`, `abort` or `note`.
    pub kind: String,
    pub text: String,
}

impl Mark {
    pub fn new(start: Instant, kind: &str, text: String) -> Self {
        let at_s = Instant::now().saturating_duration_since(start).as_secs_f64();
        Self { at_s, kind: kind.to_owned(), text }
    }
}

/// What can go wrong with a scenario's faults on this target, before anything is sent.
pub fn check(faults: &[Fault], target: &Target) -> anyhow::Result<()> {
    for fault in faults {
        let carrier = matches!(fault.action, Action::CarrierProfile | Action::CarrierDisconnect);
        anyhow::ensure!(
            if carrier { target.carrier.is_some() } else { target.ctl.is_some() },
            "the fault {:?} at {} s needs {}",
            fault.action,
            fault.at_s,
            if carrier {
                "a carrier simulator (--carrier)"
            } else {
                "a lab (--launch, or --target with its directory)"
            }
        );
    }
    Ok(())
}

async fn make(
    fault: &Fault,
    target: &Target,
    say: &mpsc::Sender<Mark>,
    start: Instant,
) -> anyhow::Result<()> {
    let tell = async |text: String| {
        // The reader of marks outlives the faults.
        let _ = say.send(Mark::new(start, "fault", text)).await;
    };
    if let Action::CarrierProfile | Action::CarrierDisconnect = fault.action {
        let carrier = target.carrier.as_ref().context("there is no carrier simulator")?;
        if fault.action == Action::CarrierDisconnect {
            carrier.disconnect().await?;
            tell("carrier drops every connection".to_owned()).await;
        } else {
            carrier.set_profile(&toml::to_string(&fault.profile)?).await?;
            let name = fault.profile.get("name").or(fault.profile.get("base"));
            let name = name.and_then(|name| name.as_str()).unwrap_or("perfect");
            tell(format!("carrier profile {name}")).await;
        }
        return Ok(());
    }
    let ctl = target.ctl.as_ref().context("there is no lab")?;
    let nodes: Vec<u64> =
        target.lab().context("the lab cannot be read")?.nodes.iter().map(|n| n.id).collect();
    let node = if fault.node == 0 { nodes.iter().copied().max().unwrap_or(1) } else { fault.node };
    let steps: Vec<(u64, &str, &str)> = match fault.action {
        Action::Kill => vec![(node, "kill-node", "killed")],
        Action::Start => vec![(node, "start-node", "started")],
        Action::Pause => vec![(node, "pause-node", "paused")],
        Action::Resume => vec![(node, "resume-node", "resumed")],
        Action::Stop => vec![(node, "stop-node", "stopped")],
        Action::Restart => vec![(node, "stop-node", "stopped"), (node, "start-node", "started")],
        Action::RollingRestart => nodes
            .iter()
            .flat_map(|node| [(*node, "stop-node", "stopped"), (*node, "start-node", "started")])
            .collect(),
        Action::CarrierProfile | Action::CarrierDisconnect => Vec::new(),
    };
    for (node, verb, done) in steps {
        ctl.node(verb, node).await?;
        tell(format!("node {node} {done}")).await;
    }
    Ok(())
}

/// Makes all faults of a run that began at `start`.
pub async fn run(
    mut faults: Vec<Fault>,
    target: &Target,
    start: Instant,
    say: mpsc::Sender<Mark>,
) -> anyhow::Result<()> {
    faults.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    for fault in faults {
        sleep_until(start + Duration::from_secs_f64(fault.at_s)).await;
        make(&fault, target, &say, start).await.with_context(|| format!("fault {:?}", fault.action))?;
    }
    Ok(())
}
