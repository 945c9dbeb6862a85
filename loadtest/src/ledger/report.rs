//! The ledger as text.

use std::collections::BTreeMap;
use std::fmt;

use carillon_proto::public::MessageState;

use super::{Finding, HELD_SHOWN_MAX, Held, Ledger};

/// In the order of a message's life.
const STATES: [MessageState; 12] = [
    MessageState::Delivered,
    MessageState::Undelivered,
    MessageState::Submitted,
    MessageState::Rejected,
    MessageState::Expired,
    MessageState::Canceled,
    MessageState::OptedOut,
    MessageState::Dead,
    MessageState::Unknown,
    MessageState::InFlight,
    MessageState::Waiting,
    MessageState::Accepted,
];

fn reasons(counts: &BTreeMap<String, u64>) -> String {
    let mut sorted: Vec<_> = counts.iter().filter(|(reason, _)| reason.as_str() != "-").collect();
    sorted.sort_by_key(|(reason, count)| (std::cmp::Reverse(**count), reason.as_str()));
    sorted.iter().map(|(reason, count)| format!("{reason} {count}")).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "LEDGER")?;
        let line = format!("  acknowledged          {:>7}  {}", self.accepted, self.added());
        writeln!(f, "{}", line.trim_end())?;
        writeln!(f, "  repeated, same id     {:>7}", self.repeated)?;
        let refused: u64 = self.refused.values().sum();
        writeln!(f, "  refused as they must  {refused:>7}  {}", reasons(&self.refused))?;
        writeln!(f, "  in ListMessages")?;
        for state in STATES {
            let count = self.in_state(state);
            if count == 0 {
                continue;
            }
            let name = super::state_name(state);
            let why = self.states.get(name).map(reasons).unwrap_or_default();
            let line = format!("    {name:<20}{count:>7}  {why}");
            writeln!(f, "{}", line.trim_end())?;
        }
        writeln!(f, "  cancels               {:>7}  in time", self.canceled_in_time)?;
        let late: u64 = self.cancel_too_late.values().sum();
        writeln!(f, "                        {late:>7}  too late: {}", reasons(&self.cancel_too_late))?;
        self.fmt_held(f)?;
        writeln!(
            f,
            "  carrier received      {:>7}  messages in {} submits",
            self.received, self.carrier_submits
        )?;
        writeln!(f, "  carrier's faults               {}", reasons(&self.carrier_faults))?;
        self.fmt_carriers(f)?;
        let limit = self.limit.map_or("none".to_owned(), |limit| limit.to_string());
        writeln!(f, "  fullest window        {:>7}  segments, limit {limit}", self.window_max)?;
        writeln!(
            f,
            "  lost {}   duplicates {}   over limit {}",
            self.lost(),
            self.duplicates(),
            self.over_limit
        )?;
        if self.extra_copies_by_class_policy > 0 {
            let count = self.extra_copies_by_class_policy;
            writeln!(f, "  of the copies, {count} are of classes that are sent again after a lost answer")?;
        }
        self.fmt_findings(f)?;
        writeln!(f, "  verdict: {}", if self.is_clean() { "CLEAN" } else { "NOT CLEAN" })
    }
}

impl Ledger {
    /// What was acknowledged beside the sample day, if anything was.
    fn added(&self) -> String {
        match self.of_quiet_hours {
            0 => String::new(),
            added => {
                format!(
                    "({} of the day, {added} of the quiet-hours line)",
                    self.accepted.saturating_sub(added)
                )
            }
        }
    }

    /// Which carrier had how many, and which messages went to another one after a failed attempt; nothing with one carrier.
    fn fmt_carriers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.by_carrier.len() < 2 {
            return Ok(());
        }
        writeln!(f, "  last tried by                  {}", reasons(&self.by_carrier))?;
        let moved: u64 = self.failovers.values().sum();
        let how = reasons(&self.failovers);
        writeln!(
            f,
            "  failover              {moved:>7}  messages failed by one carrier left by the other: {how}"
        )
    }

    /// Each held message with its reason, and what the carrier really has; at most [`HELD_SHOWN_MAX`].
    fn fmt_held(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.held.is_empty() {
            return Ok(());
        }
        writeln!(f, "  held                  {:>7}", self.held.len())?;
        for ((reason, carrier), count) in self.held_by() {
            writeln!(f, "    {reason:<20}{count:>7}  {}", carrier.text())?;
        }
        let shown = &self.held[..self.held.len().min(HELD_SHOWN_MAX)];
        let width = |part: fn(&Held) -> &str| shown.iter().map(|held| part(held).len()).max().unwrap_or(0);
        let (classes, practices) = (width(|held| &held.class), width(|held| &held.practice));
        let reasons = width(|held| &held.reason);
        for Held { id, class, practice, reason, carrier } in shown {
            let carrier = carrier.text();
            writeln!(f, "      {id}  {class:classes$}  {practice:practices$}  {reason:reasons$}  {carrier}")?;
        }
        match self.held.len() - shown.len() {
            0 => Ok(()),
            more => writeln!(f, "      and {more} more"),
        }
    }

    fn fmt_findings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (reason, count) in &self.surprises {
            writeln!(f, "  ! {count} answered otherwise than expected: {reason}")?;
        }
        for (finding, found) in &self.findings {
            writeln!(f, "  ! {} {}", found.count, Finding::text(*finding))?;
            for id in &found.ids {
                writeln!(f, "      {id}")?;
            }
            if found.count > found.ids.len() as u64 {
                writeln!(f, "      and {} more", found.count - found.ids.len() as u64)?;
            }
        }
        if self.unrecorded > 0 {
            writeln!(f, "  ! {} submits are missing in the ground truth", self.unrecorded)?;
        }
        Ok(())
    }
}
