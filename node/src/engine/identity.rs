//! Which disk this is. A node that lost its disk has forgotten its votes and what it acknowledged, so it must not take
//! part under its old replica ids again.
//!
//! Each data directory gets a random store id before anything else is written to it, and remembers the store of every
//! node it has heard of. Frames of a known node from another store are dropped: whatever a wiped node does, nobody counts
//! it. A node whose directory is new also asks the others before it creates its replicas, so that its operator is told.
//! Bound: one line for each node of the cluster.
use crate::engine::peers::PeerChannels;
use crate::failpoints;
use anyhow::{Context as _, bail, ensure};
use carillon_proto::internal::HelloRequest;
use carillon_proto::internal::peer_client::PeerClient;
use futures::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::{Code, Status};

const FILE: &str = "identity";
const HEADER: &str = "carillon-identity 1";
/// One question; a busy machine is asked again.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Those that a majority does not need get so long to say no.
const GRACE: Duration = Duration::from_secs(2);
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Nodes that are remembered; a cluster has fewer.
const STORES_MAX: usize = 1024;

/// The identity of a data directory and what it knows of others.
pub struct Identity {
    node_id: u64,
    store_id: u64,
    path: PathBuf,
    facts: Mutex<Facts>,
}

/// What changes.
#[derive(Debug, Clone, Default, PartialEq)]
struct Facts {
    /// The raft log of this directory exists: from now on it must be there.
    ready: bool,
    /// Store by node.
    known: BTreeMap<u64, u64>,
}

impl Identity {
    /// Reads the identity of a directory, or gives it one. `has_log`: a raft log is there already.
    pub fn open(data_dir: &Path, node_id: u64, has_log: bool) -> anyhow::Result<Self> {
        fs_err::create_dir_all(data_dir)?;
        let path = data_dir.join(FILE);
        if path.exists() {
            let text = fs_err::read_to_string(&path)?;
            let (owner, store_id, facts) = parse(&text)
                .with_context(|| format!("{} is damaged. {}", path.display(), super::remedy(node_id)))?;
            ensure!(owner == node_id, "this directory belongs to node {owner}, not to node {node_id}");
            ensure!(
                has_log || !facts.ready,
                "the raft log is gone: what node {node_id} acknowledged is lost. It must not come back under its old \
                 identity. {}",
                super::remedy(node_id)
            );
            return Ok(Self { node_id, store_id, path, facts: Mutex::new(facts) });
        }
        // A directory from before there were identities has a log.
        let facts = Facts { ready: has_log, known: BTreeMap::new() };
        let new = Self { node_id, store_id: rand::random_range(1..=u64::MAX), path, facts: Mutex::default() };
        new.save(&facts)?;
        *new.facts.lock() = facts;
        Ok(new)
    }

    /// Its raft log was never complete: groups may be created in it.
    pub fn is_new(&self) -> bool {
        !self.facts.lock().ready
    }

    /// The raft log is there.
    pub fn ready(&self) -> anyhow::Result<()> {
        let mut facts = self.facts.lock();
        let next = Facts { ready: true, known: facts.known.clone() };
        self.save(&next)?;
        *facts = next;
        Ok(())
    }

    pub fn node_id(&self) -> u64 {
        self.node_id
    }

    pub fn store_id(&self) -> u64 {
        self.store_id
    }

    /// The store of another node; 0 = none is known.
    pub fn known(&self, node: u64) -> u64 {
        self.facts.lock().known.get(&node).copied().unwrap_or(0)
    }

    /// Whether a node speaks from the disk it always had. The first disk that is seen is remembered, on disk. Blocks on
    /// that one occasion.
    pub fn check(&self, node: u64, store: u64) -> bool {
        let mut facts = self.facts.lock();
        match facts.known.get(&node) {
            Some(first) => *first == store,
            None if store == 0 || facts.known.len() >= STORES_MAX => false,
            None => {
                let mut more = facts.clone();
                more.known.insert(node, store);
                if let Err(error) = self.save(&more) {
                    tracing::error!(%error, node, "cannot remember the store of a node");
                    return false;
                }
                *facts = more;
                true
            }
        }
    }

    /// Before a new directory takes part: fails when another node remembers another one, or knows that this node was
    /// removed. Asks until a majority of the cluster has answered, this node counted: whoever acknowledged something to this
    /// node's old disk is among them or shares it with one that is. The others are given [`GRACE`].
    pub async fn ask_before_creating(&self, channels: &PeerChannels) -> anyhow::Result<()> {
        let peers = channels.ids();
        let needed = peers.len().div_ceil(2);
        let mut asked: FuturesUnordered<_> =
            peers.into_iter().map(|node| self.ask_until_answered(channels, node)).collect();
        let (mut answered, mut tell) = (0, tokio::time::interval(TELL_EVERY));
        let grace = tokio::time::sleep(GRACE);
        tokio::pin!(grace);
        loop {
            tokio::select! {
                biased;
                answer = asked.next() => match answer {
                    Some((node, known)) => {
                        self.check_answer(node, known)?;
                        answered += 1;
                    }
                    None => return Ok(()),
                },
                () = &mut grace, if !grace.is_elapsed() => {}
                _ = tell.tick(), if grace.is_elapsed() => {
                    tracing::warn!(answered, needed, "the data directory is new; waiting until other nodes say that they do not know another one");
                }
            }
            if grace.is_elapsed() && answered >= needed {
                return Ok(());
            }
        }
    }

    /// What a node knows as the store of this node (0 = none), or its clear no.
    async fn ask_until_answered(&self, channels: &PeerChannels, node: u64) -> (u64, Result<u64, Status>) {
        loop {
            let Some(channel) = channels.get(node) else { return (node, Ok(0)) };
            let request = HelloRequest { node_id: self.node_id, store_id: self.store_id };
            let call = async { PeerClient::new(channel).hello(request).await };
            match tokio::time::timeout(ASK_TIMEOUT, call).await {
                Ok(Ok(answer)) => return (node, Ok(answer.into_inner().known_store_id)),
                Ok(Err(status)) if status.code() == Code::PermissionDenied => return (node, Err(status)),
                Ok(Err(_)) | Err(_) => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
    }

    fn check_answer(&self, node: u64, answer: Result<u64, Status>) -> anyhow::Result<()> {
        let known = match answer {
            Ok(known) => known,
            Err(status) => bail!(
                "the data directory is new, and node {node} refuses node {own}: {reason}. A node that was removed never \
                 comes back under its id: let a new node join with a token of `carillonctl node token`",
                own = self.node_id,
                reason = status.message()
            ),
        };
        ensure!(
            [0, self.store_id].contains(&known),
            "the data directory is new, but node {node} knows another one: what node {own} had is lost. It must \
             not come back under its old identity: run `carillonctl node replace {own}`, and let a new node \
             join with a token of `carillonctl node token`",
            own = self.node_id
        );
        Ok(())
    }

    fn save(&self, facts: &Facts) -> anyhow::Result<()> {
        let mut text = format!("{HEADER}\nnode {}\nstore {:016x}\n", self.node_id, self.store_id);
        if facts.ready {
            text += "ready\n";
        }
        for (node, store) in &facts.known {
            writeln!(text, "peer {node} {store:016x}").expect("a string grows");
        }
        let next = self.path.with_extension("next");
        failpoints::hit("identity::before_save");
        fs_err::write(&next, text)?;
        fs_err::File::open(&next)?.sync_all()?;
        fs_err::rename(&next, &self.path)?;
        if let Some(dir) = self.path.parent() {
            fs_err::File::open(dir)?.sync_all()?;
        }
        failpoints::hit("identity::after_save");
        Ok(())
    }
}

fn parse(text: &str) -> anyhow::Result<(u64, u64, Facts)> {
    let mut lines = text.lines();
    ensure!(lines.next() == Some(HEADER), "it does not begin with {HEADER:?}");
    let (mut node, mut store, mut facts) = (None, None, Facts::default());
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["ready"] => facts.ready = true,
            ["node", id] => node = Some(id.parse()?),
            ["store", id] => store = Some(u64::from_str_radix(id, 16)?),
            ["peer", id, peer] => drop(facts.known.insert(id.parse()?, u64::from_str_radix(peer, 16)?)),
            _ => bail!("unknown line {line:?}"),
        }
    }
    let node = node.context("no node")?;
    let store = store.filter(|id| *id != 0).context("no store")?;
    Ok((node, store, facts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_identity_and_what_it_knows() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open(dir.path(), 3, false).unwrap();
        assert!(first.is_new() && first.store_id() != 0);
        assert!(first.check(1, 77) && first.check(1, 77), "the first one is remembered");
        assert!(!first.check(1, 78) && !first.check(1, 0), "and stays");
        assert!(!first.check(2, 0), "no store is none");
        let again = Identity::open(dir.path(), 3, true).unwrap();
        assert!(again.is_new(), "it was interrupted before its log was complete");
        again.ready().unwrap();
        let again = Identity::open(dir.path(), 3, true).unwrap();
        assert_eq!((again.store_id(), again.is_new()), (first.store_id(), false));
        assert_eq!((again.known(1), again.known(2), again.check(1, 78)), (77, 0, false));
        let other = tempfile::tempdir().unwrap();
        assert_ne!(Identity::open(other.path(), 3, false).unwrap().store_id(), first.store_id());
    }

    #[test]
    fn a_lost_log_another_node_or_a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open =
            |node, has_log| Identity::open(dir.path(), node, has_log).map(|identity| identity.is_new());
        assert!(!open(3, true).unwrap(), "data from before there were identities");
        assert!(open(3, false).unwrap_err().to_string().contains("log is gone"));
        assert!(open(4, true).is_err());
        let path = dir.path().join(FILE);
        let good = std::fs::read_to_string(&path).unwrap();
        for bad in ["", "x", &good.replace("store ", "store 0\nstor "), &good.replace("node", "nod"), HEADER]
        {
            std::fs::write(&path, bad).unwrap();
            assert!(open(3, true).is_err(), "{bad:?}");
        }
    }
}
