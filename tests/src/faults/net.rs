//! A network namespace for each node, a bridge between them, and packets dropped by rules inside the namespaces.
//!
//! The host is on the bridge too, as place 0: there are the router, the carrier simulator and the test. A cut is a list
//! of directed pairs; the receiver's namespace drops what comes from the sender, so nothing of the host is changed but the
//! bridge, its address and its route. The host itself drops nothing, so a cut towards it drops at the node's output.

use super::tool::{feed, left_by_the_dead, run};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// Router, carrier simulator and test, as an end of a cut.
pub const HOST: u64 = 0;
const PREFIX: &str = "crl";
/// Nets tried before giving up: others may be in use.
const TRIES: u8 = 64;

/// Removed when dropped.
#[derive(Debug)]
pub struct Net {
    nodes: u64,
    /// The third octet.
    subnet: u8,
}

fn tag() -> String {
    format!("{PREFIX}{:x}", std::process::id())
}

fn namespace(node: u64) -> String {
    format!("{}n{node}", tag())
}

/// An interface name has at most 15 characters.
fn host_end(node: u64) -> String {
    format!("{}v{node}", tag())
}

fn bridge() -> String {
    format!("{}b", tag())
}

/// Removes what processes left behind that are gone.
fn sweep() -> Result<(), String> {
    let spaces = run(&["ip", "-o", "netns", "list"])?;
    for name in spaces.lines().filter_map(|line| line.split_whitespace().next()) {
        if left_by_the_dead(name, PREFIX) {
            run(&["ip", "netns", "del", name])?;
        }
    }
    let links = run(&["ip", "-o", "link", "show", "type", "bridge"])?;
    for name in links.lines().filter_map(|line| line.split(':').nth(1)).map(str::trim) {
        if left_by_the_dead(name, PREFIX) {
            run(&["ip", "link", "del", name])?;
        }
    }
    Ok(())
}

impl Net {
    /// One at a time in a process: names carry the pid only.
    pub fn new(nodes: u64) -> Result<Self, String> {
        sweep()?;
        let routes = run(&["ip", "route"])?;
        let free = |subnet: &u8| !routes.contains(&format!("10.213.{subnet}."));
        let from = (std::process::id() % 200) as u8;
        let subnet = (0..TRIES).map(|n| from.wrapping_add(n)).find(free).ok_or("no free 10.213.x.0/24")?;
        // From here on dropping it removes what there is.
        let net = Self { nodes, subnet };
        let (bridge, host) = (bridge(), format!("{}/24", net.address(HOST)));
        run(&["ip", "link", "add", &bridge, "type", "bridge", "forward_delay", "0"])?;
        run(&["ip", "addr", "add", &host, "dev", &bridge])?;
        run(&["ip", "link", "set", &bridge, "up"])?;
        for node in 1..=nodes {
            let (space, outer) = (namespace(node), host_end(node));
            let address = format!("{}/24", net.address(node));
            run(&["ip", "netns", "add", &space])?;
            run(&["ip", "link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
            run(&["ip", "link", "set", &outer, "master", &bridge, "up"])?;
            run(&["ip", "-n", &space, "addr", "add", &address, "dev", "eth0"])?;
            run(&["ip", "-n", &space, "link", "set", "lo", "up"])?;
            run(&["ip", "-n", &space, "link", "set", "eth0", "up"])?;
        }
        net.heal()?;
        Ok(net)
    }

    pub fn address(&self, node: u64) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.subnet, 1 + node as u8)
    }

    /// What comes before a program that shall run in a node's namespace. Not `ip netns exec`: that also makes a mount
    /// namespace, which would keep the disks of others busy.
    pub fn command_prefix(&self, node: u64) -> Vec<String> {
        ["nsenter".to_owned(), format!("--net=/run/netns/{}", namespace(node)), "--".to_owned()].to_vec()
    }

    /// Drops what the first of each pair sends to the second, and nothing else from now on.
    pub fn cut(&self, pairs: &[(u64, u64)]) -> Result<(), String> {
        for node in 1..=self.nodes {
            let script = rules(pairs, node, |other| self.address(other));
            let space = format!("--net=/run/netns/{}", namespace(node));
            feed(&["nsenter", &space, "--", "nft", "-f", "-"], &script)?;
        }
        Ok(())
    }

    pub fn heal(&self) -> Result<(), String> {
        self.cut(&[])
    }

    /// Every pair between two sides, in both directions.
    pub fn between(one: &[u64], other: &[u64]) -> Vec<(u64, u64)> {
        one.iter().flat_map(|a| other.iter().flat_map(move |b| [(*a, *b), (*b, *a)])).collect()
    }
}

/// The whole rule set of a namespace: replaced in one transaction.
fn rules(pairs: &[(u64, u64)], node: u64, address: impl Fn(u64) -> Ipv4Addr) -> String {
    let mut script = "table inet cut\ndelete table inet cut\ntable inet cut {\n".to_owned();
    script.push_str("  chain input { type filter hook input priority 0; policy accept;\n");
    for (from, _) in pairs.iter().filter(|(_, to)| *to == node) {
        let _infallible = writeln!(script, "    ip saddr {} drop", address(*from));
    }
    script.push_str("  }\n  chain output { type filter hook output priority 0; policy accept;\n");
    for (_, to) in pairs.iter().filter(|(from, to)| *from == node && *to == HOST) {
        let _infallible = writeln!(script, "    ip daddr {} drop", address(*to));
    }
    script.push_str("  }\n}\n");
    script
}

impl Drop for Net {
    fn drop(&mut self) {
        // Best effort, and the next run sweeps. A namespace takes its end of the pair and so the other with it.
        for node in 1..=self.nodes {
            let _gone = run(&["ip", "netns", "del", &namespace(node)]);
        }
        let _gone = run(&["ip", "link", "del", &bridge()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_drops_at_the_receiver_and_towards_the_host_at_the_sender() {
        let address = |node: u64| Ipv4Addr::new(10, 0, 0, 1 + node as u8);
        let pairs = [(1, 2), (3, HOST), (HOST, 3)];
        assert!(!rules(&pairs, 1, address).contains("drop"));
        assert_eq!(rules(&pairs, 2, address).matches("ip saddr 10.0.0.2 drop").count(), 1);
        let third = rules(&pairs, 3, address);
        assert!(
            third.contains("ip daddr 10.0.0.1 drop") && third.contains("ip saddr 10.0.0.1 drop"),
            "{third}"
        );
        assert_eq!(Net::between(&[1], &[2, 3]), [(1, 2), (2, 1), (1, 3), (3, 1)]);
    }
}
