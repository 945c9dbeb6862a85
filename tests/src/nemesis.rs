//! Faults drawn from a seed, one after the other, each undone before the next.
//!
//! Owns: which faults there are ([`Fault`]), how likely each is, how each is made and undone, and the count of what was
//! done ([`Tally`]). The same seed gives the same faults in the same order; which node leads at that moment, and so which is hit,
//! is the cluster's doing. Does not: judge; a cluster that does not come back within [`RECOVERY_LIMIT`] is an error.

use crate::evidence::Run;
use crate::faults::{HOST, Net};
use crate::rig::Rig;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::fmt;
use std::time::Duration;

/// Everything must be well again by then.
pub const RECOVERY_LIMIT: Duration = Duration::from_secs(90);
/// So many acknowledged submits after a fault show that the cluster works.
const WORKS: u64 = 50;

/// A leader's clock dates what it accepts, and what is dated in the future waits for it: more than this and the end of a
/// run would be a wait. The clock suite tries larger ones.
const OFFSETS_S: [i64; 6] = [20, -20, 10, -10, 5, 0];

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    Busiest,
    Node(u64),
    /// All but the busiest.
    Others,
    All,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    Kill(Whom),
    /// Killed again while it replays.
    KillTwice {
        after_ms: u64,
    },
    Pause {
        whom: Whom,
        ms: u64,
    },
    /// From everybody, or from the peers only.
    CutOff {
        whom: Whom,
        from_host: bool,
        ms: u64,
    },
    /// The leader does not hear, or is not heard.
    OneWay {
        deaf: bool,
        ms: u64,
    },
    /// Two nodes that hear each other only through the third.
    Bridge {
        ms: u64,
    },
    /// Everybody alone.
    Shatter {
        ms: u64,
    },
    /// The leader is cut off, and one of the others dies while it is.
    CutAndKill {
        ms: u64,
    },
    Power(Whom),
    Clock {
        whom: Whom,
        offset_s: i64,
    },
    RollingRestart,
    /// The carrier drops every connection.
    CarrierDown,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub kills: u64,
    pub pauses: u64,
    pub partitions: u64,
    pub power_cuts: u64,
    pub clock_jumps: u64,
    pub restarts: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "kills {}, pauses {}, partitions {}, power cuts {}, clock jumps {}, restarts {}",
            self.kills, self.pauses, self.partitions, self.power_cuts, self.clock_jumps, self.restarts
        )
    }
}

/// Draws faults.
pub struct Nemesis {
    random: StdRng,
    nodes: u64,
    pub tally: Tally,
}

impl Nemesis {
    pub fn new(seed: u64, nodes: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), nodes, tally: Tally::default() }
    }

    fn whom(&mut self) -> Whom {
        match self.random.random_range(0..10) {
            0..5 => Whom::Busiest,
            5..8 => Whom::Node(self.random.random_range(1..=self.nodes)),
            8 => Whom::Others,
            _ => Whom::All,
        }
    }

    fn one(&mut self) -> Whom {
        match self.whom() {
            Whom::Others | Whom::All => Whom::Busiest,
            whom => whom,
        }
    }

    /// The next fault, and how long to wait before it.
    pub fn draw(&mut self) -> (Duration, Fault) {
        let pause = Duration::from_millis(self.random.random_range(200..3_000));
        let ms = self.random.random_range(300..6_000);
        let fault = match self.random.random_range(0..100) {
            0..18 => Fault::Kill(self.whom()),
            18..23 => Fault::KillTwice { after_ms: self.random.random_range(0..600) },
            23..35 => Fault::Pause { whom: self.one(), ms },
            35..47 => Fault::CutOff { whom: self.one(), from_host: self.random.random_bool(0.5), ms },
            47..56 => Fault::OneWay { deaf: self.random.random_bool(0.5), ms },
            56..61 => Fault::Bridge { ms },
            61..64 => Fault::Shatter { ms },
            64..69 => Fault::CutAndKill { ms },
            69..83 => Fault::Power(self.whom()),
            83..91 => {
                let offset_s = OFFSETS_S[self.random.random_range(0..OFFSETS_S.len())];
                Fault::Clock { whom: self.one(), offset_s }
            }
            91..96 => Fault::RollingRestart,
            _ => Fault::CarrierDown,
        };
        (pause, fault)
    }

    async fn nodes_of(&self, rig: &Rig, whom: Whom) -> Vec<u64> {
        let all = rig.lab.node_ids();
        match whom {
            Whom::All => all,
            Whom::Node(node) => vec![node],
            Whom::Busiest => vec![rig.busiest().await],
            Whom::Others => {
                let busiest = rig.busiest().await;
                all.into_iter().filter(|node| *node != busiest).collect()
            }
        }
    }

    /// Makes the fault, undoes it, and waits until the cluster works.
    pub async fn strike(&mut self, rig: &mut Rig, run: &Run, fault: &Fault) -> Result<(), String> {
        match fault {
            Fault::Kill(whom) => self.kill(rig, *whom, None).await?,
            Fault::KillTwice { after_ms } => self.kill(rig, Whom::Busiest, Some(*after_ms)).await?,
            Fault::Pause { whom, ms } => {
                let nodes = self.nodes_of(rig, *whom).await;
                self.tally.pauses += nodes.len() as u64;
                for node in &nodes {
                    rig.lab.pause_node(*node).map_err(|e| e.to_string())?;
                }
                tokio::time::sleep(Duration::from_millis(*ms)).await;
                for node in &nodes {
                    rig.lab.resume_node(*node).map_err(|e| e.to_string())?;
                }
            }
            Fault::CutOff { .. } | Fault::OneWay { .. } | Fault::Bridge { .. } | Fault::Shatter { .. } => {
                let (pairs, ms) = self.pairs(rig, fault).await;
                self.cut(rig, &pairs, ms, None).await?;
            }
            Fault::CutAndKill { ms } => {
                let leader = rig.busiest().await;
                let others: Vec<u64> = rig.lab.node_ids().into_iter().filter(|n| *n != leader).collect();
                self.cut(rig, &Net::between(&[leader], &others), *ms, others.first().copied()).await?;
            }
            Fault::Power(whom) => self.power(rig, *whom).await?,
            Fault::Clock { whom, offset_s } => {
                for node in self.nodes_of(rig, *whom).await {
                    rig.arena.clock().set(node, *offset_s)?;
                    self.tally.clock_jumps += 1;
                }
            }
            Fault::RollingRestart => {
                for node in rig.lab.node_ids() {
                    rig.lab.stop_node(node).map_err(|e| e.to_string())?;
                    self.tally.restarts += 1;
                    recover(rig, &[node]).await?;
                }
            }
            Fault::CarrierDown => rig.carrier.disconnect().await.map_err(|e| e.to_string())?,
        }
        recover(rig, &[]).await?;
        run.until_more(WORKS, RECOVERY_LIMIT).await
    }

    async fn kill(&mut self, rig: &Rig, whom: Whom, again_after_ms: Option<u64>) -> Result<(), String> {
        let nodes = self.nodes_of(rig, whom).await;
        self.tally.kills += nodes.len() as u64;
        for node in &nodes {
            rig.lab.kill_node(*node).map_err(|e| e.to_string())?;
        }
        if let Some(after_ms) = again_after_ms {
            rig.lab.start_node(nodes[0]).map_err(|e| e.to_string())?;
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            rig.lab.kill_node(nodes[0]).map_err(|e| e.to_string())?;
            self.tally.kills += 1;
        }
        recover(rig, &nodes).await
    }

    async fn pairs(&self, rig: &Rig, fault: &Fault) -> (Vec<(u64, u64)>, u64) {
        let all = rig.lab.node_ids();
        let leader = rig.busiest().await;
        let without = |node: u64| all.iter().copied().filter(|n| *n != node).collect::<Vec<u64>>();
        match fault {
            Fault::CutOff { whom, from_host, ms } => {
                let node = self.nodes_of(rig, *whom).await[0];
                let mut others = without(node);
                others.extend(from_host.then_some(HOST));
                (Net::between(&[node], &others), *ms)
            }
            Fault::OneWay { deaf, ms } => {
                let pair = |other: u64| if *deaf { (other, leader) } else { (leader, other) };
                (without(leader).into_iter().map(pair).collect(), *ms)
            }
            Fault::Bridge { ms } => {
                let ends = without(leader);
                (Net::between(&ends[..1], &ends[1..]), *ms)
            }
            Fault::Shatter { ms } => {
                let pairs = all.iter().flat_map(|a| Net::between(&[*a], &without(*a)));
                (pairs.collect(), *ms)
            }
            _ => (Vec::new(), 0),
        }
    }

    async fn cut(
        &mut self,
        rig: &Rig,
        pairs: &[(u64, u64)],
        ms: u64,
        kill: Option<u64>,
    ) -> Result<(), String> {
        self.tally.partitions += 1;
        rig.arena.net().cut(pairs)?;
        tokio::time::sleep(Duration::from_millis(ms / 2)).await;
        if let Some(node) = kill {
            rig.lab.kill_node(node).map_err(|e| e.to_string())?;
            self.tally.kills += 1;
        }
        tokio::time::sleep(Duration::from_millis(ms / 2)).await;
        rig.arena.net().heal()?;
        recover(rig, &kill.into_iter().collect::<Vec<u64>>()).await
    }

    async fn power(&mut self, rig: &mut Rig, whom: Whom) -> Result<(), String> {
        let nodes = self.nodes_of(rig, whom).await;
        self.tally.power_cuts += nodes.len() as u64;
        rig.cut_power(&nodes)?;
        recover(rig, &nodes).await
    }
}

/// Starts nodes again and waits until all of them and the router serve.
async fn recover(rig: &Rig, nodes: &[u64]) -> Result<(), String> {
    for node in nodes {
        rig.lab.start_node(*node).map_err(|e| e.to_string())?;
    }
    for node in rig.lab.node_ids() {
        rig.lab.until_node_ready(node, RECOVERY_LIMIT).await.map_err(|e| e.to_string())?;
    }
    rig.lab.until_router_ready(RECOVERY_LIMIT).await.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_its_faults_and_every_kind_comes() {
        let faults = |seed: u64| -> Vec<Fault> {
            let mut nemesis = Nemesis::new(seed, 3);
            (0..400).map(|_| nemesis.draw().1).collect()
        };
        assert_eq!(faults(7), faults(7));
        assert_ne!(faults(7), faults(8));
        let name = |fault: &Fault| fault.to_string().split([' ', '(']).next().unwrap_or_default().to_owned();
        let kinds: std::collections::BTreeSet<String> = faults(7).iter().map(name).collect();
        assert_eq!(kinds.len(), 12, "{kinds:?}");
    }
}
