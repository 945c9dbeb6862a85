//! What a load costs: processor time, context switches and octets written, by process and accepted message.
//!
//! Owns: [`Watch`], which looks at the processes of a lab when the measured time begins and when it ends. Processor time of a
//! message hardly depends on what else the machine does, so it compares two builds where rates cannot.
//! Not here: what a message costs after the measured time (flushes and compactions that come later).

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use crate::lab::Lab;
use crate::proc::{self, ProcError, Usage};

/// A process to look at; without a pid this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub name: String,
    pub pid: Option<u32>,
}

/// What one process spent on each message.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ProcessCost {
    pub name: String,
    /// In user mode.
    pub user_us: f64,
    /// In the kernel.
    pub system_us: f64,
    pub context_switches: f64,
    /// Given to the disk.
    pub written_bytes: f64,
    /// Of one core, over the measured time.
    pub cores: f64,
}

impl ProcessCost {
    pub fn cpu_us(&self) -> f64 {
        self.user_us + self.system_us
    }
}

/// All processes of a lab, and the generator.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    pub processes: Vec<ProcessCost>,
}

impl Cost {
    /// Of the processes whose name begins with one of these.
    fn cpu_us(&self, names: &[&str]) -> f64 {
        let wanted = |cost: &&ProcessCost| names.iter().any(|name| cost.name.starts_with(name));
        self.processes.iter().filter(wanted).map(ProcessCost::cpu_us).sum()
    }

    /// What the product costs: nodes and router.
    pub fn product_cpu_us(&self) -> f64 {
        self.cpu_us(&["node", "router"])
    }

    /// Everything on the machine that belongs to the run.
    pub fn total_cpu_us(&self) -> f64 {
        self.cpu_us(&[""])
    }
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "  cost of one     CPU us (user + system)   switches   bytes written   cores")?;
        for cost in &self.processes {
            writeln!(
                f,
                "    {:<12} {:>7.1} ({:>5.1} + {:>5.1})      {:>7.2}      {:>9.0}      {:>5.2}",
                cost.name,
                cost.cpu_us(),
                cost.user_us,
                cost.system_us,
                cost.context_switches,
                cost.written_bytes,
                cost.cores
            )?;
        }
        let (product, total) = (self.product_cpu_us(), self.total_cpu_us());
        writeln!(f, "    nodes and router {product:.1} us, all {total:.1} us of CPU a message")
    }
}

/// The processes of a lab that run, nodes first, and the generator. A node that was stopped on purpose is not among them.
pub fn processes(lab: &Lab) -> Vec<Process> {
    let nodes = lab.nodes.iter().map(|node| (format!("node {}", node.id), Some(node.pid)));
    let others = [("router", lab.router_pid), ("smsc", lab.smsc_pid)];
    let others = others.into_iter().filter_map(|(name, pid)| Some((name.to_owned(), Some(pid?))));
    let named = nodes.chain(others).chain([("generator".to_owned(), None)]);
    let runs = |pid: &Option<u32>| *pid != Some(0) && pid.is_none_or(proc::runs);
    named.filter(|(_, pid)| runs(pid)).map(|(name, pid)| Process { name, pid }).collect()
}

/// What the processes spent between two moments.
pub struct Watch {
    spent: Vec<(String, Usage)>,
    length: Duration,
}

impl Watch {
    /// Looks at `from` and at `until`. A process that ends meanwhile is an error: the run says nothing then.
    pub async fn between(
        processes: Vec<Process>,
        from: std::time::Instant,
        until: std::time::Instant,
    ) -> Result<Self, ProcError> {
        sleep_until(Instant::from_std(from)).await;
        let before = processes.iter().map(|p| proc::usage(p.pid)).collect::<Result<Vec<_>, _>>()?;
        sleep_until(Instant::from_std(until)).await;
        let after = processes.iter().map(|p| proc::usage(p.pid)).collect::<Result<Vec<_>, _>>()?;
        let spent = before.iter().zip(after).map(|(before, after)| after.since(before));
        Ok(Self {
            spent: processes.into_iter().map(|p| p.name).zip(spent).collect(),
            length: until.saturating_duration_since(from),
        })
    }

    /// For each of so many messages.
    pub fn of_each(self, messages: u64) -> Cost {
        let (each, length_s) = (messages.max(1) as f64, self.length.as_secs_f64().max(0.001));
        let cost = |(name, spent): (String, Usage)| ProcessCost {
            name,
            user_us: spent.user.as_secs_f64() * 1e6 / each,
            system_us: spent.system.as_secs_f64() * 1e6 / each,
            context_switches: spent.context_switches as f64 / each,
            written_bytes: spent.written_bytes as f64 / each,
            cores: (spent.user + spent.system).as_secs_f64() / length_s,
        };
        Cost { processes: self.spent.into_iter().map(cost).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_process_spends_is_told_for_each_message() {
        let now = std::time::Instant::now();
        let own = vec![Process { name: "generator".to_owned(), pid: None }];
        let busy = std::thread::spawn(|| {
            let (until, mut n) = (std::time::Instant::now() + Duration::from_millis(300), 1_u64);
            while std::time::Instant::now() < until {
                n = std::hint::black_box(n.wrapping_mul(31));
            }
        });
        let watch = Watch::between(own, now, now + Duration::from_millis(300)).await.unwrap();
        busy.join().unwrap();
        let cost = watch.of_each(1_000);
        assert!(cost.total_cpu_us() >= 10.0, "{cost}");
        assert!(cost.product_cpu_us() < f64::EPSILON, "the generator is not the product");
        assert!(cost.to_string().contains("generator"));
    }
}
