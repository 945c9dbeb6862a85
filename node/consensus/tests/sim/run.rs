//! The event loop, the clients, the trouble maker, and the end: heal everything and compare.
use super::{Event, Sim, Stats, TICK_MS};
use carillon_consensus::LogStore as _;

impl Sim {
    /// Processes one event; false when something is violated.
    pub fn step(&mut self) -> bool {
        let Some(((now_ms, _), event)) = self.events.pop_first() else { return false };
        self.now_ms = now_ms;
        self.stats.events += 1;
        match event {
            Event::Tick { node } => {
                for group in 0..self.groups {
                    if self.nodes[node].up {
                        self.group(node, group).tick();
                        self.pump(node, group);
                    }
                }
                self.at(TICK_MS, Event::Tick { node });
            }
            Event::Deliver { from, to, group, message } => {
                if !self.cuts.contains(&(from, to)) {
                    self.deliver(to, group, *message);
                }
            }
            Event::DiskDone { node, epoch } if epoch == self.nodes[node].epoch => self.disk_done(node),
            Event::Apply { node, epoch, group } if epoch == self.nodes[node].epoch => self.apply(node, group),
            Event::Exported { node, epoch, group } if epoch == self.nodes[node].epoch => {
                self.exported(node, group);
            }
            Event::Fetched { node, epoch, group, fetch } if epoch == self.nodes[node].epoch => {
                self.fetched(node, group, fetch);
            }
            Event::DiskDone { .. } | Event::Apply { .. } => {}
            Event::Exported { .. } | Event::Fetched { .. } => {}
            Event::Client => {
                self.client();
                let pause = 1 + self.rng.below(80);
                self.at(pause, Event::Client);
            }
            Event::Trouble => {
                if self.trouble {
                    self.make_trouble();
                    self.cut_logs();
                }
                let pause = 200 + self.rng.below(2000);
                self.at(pause, Event::Trouble);
            }
            Event::Restart { node } => self.restart(node),
            Event::Heal => self.cuts.clear(),
        }
        self.oracle.violation.is_none()
    }

    /// True: nothing was violated.
    pub fn run_ms(&mut self, time_ms: u64) -> bool {
        let end = self.now_ms + time_ms;
        while self.events.first_key_value().is_some_and(|((at, _), _)| *at <= end) {
            if !self.step() {
                return false;
            }
        }
        self.now_ms = end;
        true
    }

    fn client(&mut self) {
        let group = self.rng.below(u64::from(self.groups)) as u32;
        let node = self.rng.below(3) as usize;
        if !self.clients || !self.nodes[node].up || !self.group(node, group).is_leader() {
            return;
        }
        // Refusals are part of the game: full, no quorum, handing over.
        match self.rng.below(20) {
            0 => {
                let to = 1 + self.rng.below(3);
                self.stats.transfers += u64::from(self.group(node, group).transfer_leader(to).is_ok());
                self.pump(node, group);
            }
            1..=4 => drop(self.read(node, group)),
            5..=6 => {
                let count = 1 + self.rng.below(12);
                drop(self.propose(node, group, count));
            }
            _ => drop(self.propose(node, group, 1)),
        }
    }

    fn make_trouble(&mut self) {
        let node = self.rng.below(3) as usize;
        if self.faults.crashes && self.rng.chance(50) && self.nodes[node].up {
            self.crash(node);
            let pause = 1 + self.rng.below(3000);
            self.at(pause, Event::Restart { node });
        }
        if self.faults.partitions && self.rng.chance(50) {
            let other = (node + 1 + self.rng.below(2) as usize) % 3;
            let third = 3 - node - other;
            let links = match self.rng.below(4) {
                0 => vec![(node, other)],
                1 => vec![(node, other), (node, third)],
                2 => vec![(other, node), (third, node)],
                _ => vec![(node, other), (node, third), (other, node), (third, node)],
            };
            self.cuts.extend(links);
            let pause = 100 + self.rng.below(4000);
            self.at(pause, Event::Heal);
        }
    }

    /// Trouble for a while, then peace; then every replica must agree and have everything that was acknowledged.
    pub fn run(mut self, trouble_ms: u64) -> Result<(Stats, u64), String> {
        self.run_ms(trouble_ms);
        self.trouble = false;
        self.clients = false;
        self.faults =
            super::Faults { ack_before_persist: self.faults.ack_before_persist, ..super::Faults::none() };
        self.cuts.clear();
        for node in 0..3 {
            self.restart(node);
        }
        let peace_until = self.now_ms + 60_000;
        while self.oracle.violation.is_none() && !self.settled() {
            if self.now_ms > peace_until {
                return Err(format!("not settled: {}", self.picture()));
            }
            self.run_ms(200);
        }
        for group in 0..self.groups {
            while self.oracle.violation.is_none() && !self.propose_somewhere(group) {
                if self.now_ms > peace_until {
                    return Err(format!("group {group} takes no proposal: {}", self.picture()));
                }
                self.run_ms(200);
            }
        }
        self.run_ms(2000);
        if self.oracle.violation.is_none() {
            self.check_end();
        }
        match self.oracle.violation.take() {
            Some(text) => Err(text),
            None => {
                self.stats.terms = self.oracle.leaders.len() as u64;
                Ok((self.stats, self.trace))
            }
        }
    }

    /// Refused while there is no leader or while it hands over.
    fn propose_somewhere(&mut self, group: u32) -> bool {
        let leader = (0..3).find(|n| self.group(*n, group).is_leader());
        leader.is_some_and(|n| self.propose(n, group, 1).is_ok())
    }

    /// Every group has a leader that is ready and every replica has applied its whole log.
    pub fn settled(&mut self) -> bool {
        (0..self.groups).all(|group| {
            let leader = (0..3).find(|n| self.group(*n, group).leader_ready());
            let last = leader.map(|n| self.group(n, group).last_index());
            last.is_some_and(|last| (0..3).all(|n| self.replica(n, group).applied.len() as u64 == last))
        })
    }

    fn check_end(&mut self) {
        for group in 0..self.groups {
            let history = self.oracle.history.get(&group).cloned().unwrap_or_default();
            for n in 0..3 {
                if self.replica(n, group).applied != history {
                    let text =
                        format!("group {group} node {n} has not applied everything: {}", self.picture());
                    self.oracle.fail(text);
                }
                self.nodes[n].log.sync();
                let state = self.nodes[n].log.load(group).unwrap().unwrap();
                let first = state.truncated_index + 1;
                let entries = match first > state.last_index {
                    true => Vec::new(),
                    false => self.nodes[n].log.entries(group, first, state.last_index + 1, u64::MAX).unwrap(),
                };
                let logged: Vec<_> = entries.iter().map(|e| (e.term, super::rng::hash(&e.data))).collect();
                if logged != history[state.truncated_index as usize..] {
                    self.oracle.fail(format!("group {group} node {n}: its log is not the history"));
                }
            }
        }
        for (group, index, hash) in self.oracle.acked.clone() {
            let found = self.oracle.history[&group].get(index as usize - 1).map(|e| e.1);
            if found != Some(hash) {
                self.oracle.fail(format!("group {group}: acknowledged entry {index} was lost"));
            }
        }
    }

    fn picture(&mut self) -> String {
        let mut text = String::new();
        for group in 0..self.groups {
            for n in 0..3 {
                let applied = self.replica(n, group).applied.len();
                let g = self.group(n, group);
                text += &format!(
                    "[group {group} node {n}: term {} leader {} last {} commit {} applied {applied} writes {}] ",
                    g.term(),
                    g.leader_id(),
                    g.last_index(),
                    g.commit(),
                    g.outstanding_writes()
                );
            }
        }
        text
    }
}
