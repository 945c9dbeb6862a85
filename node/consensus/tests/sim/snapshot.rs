//! Snapshots in the simulation: the state of a replica is its list of applied entries, "files" are a copy of it. What is
//! checked: whatever is lost, late or interrupted, a replica ends with the history that all have.
use super::{Event, Sim};
use carillon_consensus::{LogStore as _, SnapshotFetch};

impl Sim {
    /// Cuts some logs as far as the flushed state allows, as if nobody needed them.
    pub(super) fn cut_logs(&mut self) {
        if !self.faults.cuts {
            return;
        }
        for node in 0..3 {
            for group in 0..self.groups {
                if !self.nodes[node].up || !self.rng.chance(40) {
                    continue;
                }
                let replica = self.replica(node, group);
                let (flushed, installing) = (replica.flushed, replica.installed.is_some());
                let keep = self.rng.below(6) as usize;
                let cut = flushed.saturating_sub(keep);
                let term = cut.checked_sub(1).map(|at| self.replica(node, group).applied[at].0);
                let Some(term) = term.filter(|_| !installing) else { continue };
                let cut = cut as u64;
                if self.group(node, group).is_installing() || cut < self.group(node, group).first_index() {
                    continue;
                }
                self.stats.cuts += 1;
                self.nodes[node].log.truncate(group, cut, term).expect("it is applied and durable");
                self.group(node, group).log_truncated(cut, term);
            }
        }
    }

    pub(super) fn want(&mut self, node: usize, group: u32, _replica: u64) {
        if std::mem::replace(&mut self.replica(node, group).exporting, true) {
            return;
        }
        let delay = self.rng.below(self.faults.disk_ms_max * 4 + 1);
        let epoch = self.nodes[node].epoch;
        self.at(delay, Event::Exported { node, epoch, group });
    }

    pub(super) fn exported(&mut self, node: usize, group: u32) {
        let replica = self.replica(node, group);
        replica.exporting = false;
        if replica.installed.is_some() || self.group(node, group).is_installing() {
            return;
        }
        let index = self.group(node, group).applied_index();
        let files = self.replica(node, group).applied[..index as usize].to_vec();
        let Some((term, _)) = files.last().copied() else { return };
        let offered =
            self.group(node, group).offer_snapshot(index, term, index.to_be_bytes().to_vec().into());
        match offered {
            Ok(()) => {
                self.stats.exports += 1;
                self.replica(node, group).offered = Some((index, files));
            }
            Err(error) => self.oracle.fail(format!("node {node} group {group}: {error}")),
        }
        self.pump(node, group);
    }

    pub(super) fn fetch(&mut self, node: usize, group: u32, fetch: SnapshotFetch) {
        let delay = 1 + self.rng.below(self.faults.delay_ms_max * 20 + 1);
        let epoch = self.nodes[node].epoch;
        self.at(delay, Event::Fetched { node, epoch, group, fetch });
    }

    pub(super) fn fetched(&mut self, node: usize, group: u32, fetch: SnapshotFetch) {
        let from = (fetch.from - 1) as usize;
        let files = match &self.replica(from, group).offered {
            Some((index, files)) if *index == fetch.index => Some(files.clone()),
            _ => None,
        };
        let reachable = self.nodes[from].up && !self.cuts.contains(&(from, node));
        let lost = self.faults.drop > 0 && self.rng.chance(20);
        let Some(files) = files.filter(|_| reachable && !lost) else {
            self.stats.failed_fetches += 1;
            self.group(node, group).refuse_snapshot(fetch.index, fetch.term);
            // The report may get lost too; then the deadline counts.
            if self.nodes[from].up && self.rng.chance(50) {
                self.group(from, group).report_snapshot((node + 1) as u64, false);
                self.pump(from, group);
            }
            return;
        };
        let replica = self.replica(node, group);
        let generation = replica.imported.keys().copied().max().unwrap_or(0).max(replica.generation) + 1;
        replica.imported.insert(generation, files);
        match self.group(node, group).accept_snapshot(fetch.index, fetch.term, generation) {
            Ok(true) => {}
            Ok(false) => drop(self.replica(node, group).imported.remove(&generation)),
            Err(error) => self.oracle.fail(format!("node {node} group {group}: {error}")),
        }
        self.pump(node, group);
    }

    /// The applier switches to an installed snapshot.
    pub(super) fn switch(&mut self, node: usize, group: u32) {
        let Some(mark) = self.replica(node, group).installed.take() else { return };
        self.stats.installs += 1;
        self.choose_family(node, group, mark.generation);
        if self.replica(node, group).applied.len() as u64 != mark.index {
            self.oracle
                .fail(format!("node {node} group {group}: generation is not of snapshot {}", mark.index));
        }
        self.group(node, group).applied(mark.index);
        self.pump(node, group);
    }

    /// Makes the family that the log names the live one and drops the others that are not needed.
    pub(super) fn choose_family(&mut self, node: usize, group: u32, generation: u64) {
        let up = self.replica(node, group).group.is_some();
        let replica = self.replica(node, group);
        if generation == replica.generation {
            if !up {
                replica.imported.clear();
            }
            return;
        }
        match replica.imported.remove(&generation) {
            Some(family) => {
                replica.flushed = family.len();
                replica.applied = family;
                replica.generation = generation;
                replica.imported.retain(|other, _| *other > generation);
                self.stats.installs_at_restart += u64::from(!up);
            }
            None => self.oracle.fail(format!("node {node} group {group}: no family {generation}")),
        }
    }
}
