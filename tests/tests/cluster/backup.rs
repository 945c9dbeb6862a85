//! Backup and restore as an operator does them, with `carillonctl`: under load, into a new cluster, after the old one is gone.
//!
//! The two carriers' ground truths together say whether anything was sent twice; the old cluster sends on after the backup, so
//! without the guard much would be.
use carillon_ctl::backup::{self, Location, Nodes};
use carillon_ctl::lab::{CARRIER, Lab};
use carillon_loadtest::carrier::Truth;
use carillon_loadtest::smsc::{TruthKey, truth_key};
use carillon_proto::admin::{ListLanesRequest, PutLimitRequest};
use carillon_proto::internal::{LimitRecord, LimitScope};
use carillon_proto::public::{MessageSpec, MessageState, MessageView};
use carillon_tests::api::{from_now, number_of, spec};
use carillon_tests::history;
use carillon_tests::load::{Load, LoadOptions};
use carillon_tests::rig::{Rig, program, until};
use carillon_tests::steps::say;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::Command;

/// Segments a second: what is submitted at once takes a while, so the backup finds much that waits.
pub const LIMIT: u32 = 30;
pub(crate) const LIMIT_TIME: Duration = Duration::from_secs(180);
const CAP: u32 = 5_000_000;
const SLOW_BYTES_PER_S: u64 = 20_000;
const AT_ONCE: usize = 240;
/// Messages that become due one after the other, so some of them after the restore, whenever that is.
const LADDER: i64 = 40;
const LADDER_STEP_MS: i64 = 15_000;

/// A message of ours.
struct Sent {
    id: String,
    spec: MessageSpec,
    truth: u128,
}

/// What one step leaves to the next.
pub struct Story {
    scratch: TempDir,
    name: String,
    /// Acknowledged before the backup began.
    sent: Vec<Sent>,
    ids: BTreeSet<String>,
    old_truth: Truth,
    quarantined: u64,
}

/// Runs `carillonctl`; gives its exit code, what it printed as JSON, and what it complained about.
pub(crate) async fn ctl(arguments: &[&str]) -> (i32, Value, String) {
    let output = Command::new(program("carillonctl")).args(["-o", "json"]).args(arguments).output().await;
    let output = output.expect("carillonctl runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap_or(-1), value, text)
}

pub(crate) async fn done(arguments: &[&str]) -> Value {
    let (code, value, text) = ctl(arguments).await;
    assert_eq!(code, 0, "{arguments:?}: {text}");
    value
}

pub(crate) async fn refused(arguments: &[&str], wanted: &str) {
    let (code, _, text) = ctl(arguments).await;
    assert!(code != 0 && text.contains(wanted), "{arguments:?} ended with {code}: {text}");
}

pub(crate) fn lab_of(rig: &Rig) -> String {
    rig.lab.dir().display().to_string()
}

/// A cap of the day that nothing here comes near to.
async fn set_cap(rig: &Rig) {
    let cap = LimitRecord {
        scope: LimitScope::Account.into(),
        amount: CAP,
        time_zone: "America/Los_Angeles".into(),
        ..Default::default()
    };
    let put = PutLimitRequest { limit: Some(cap), carrier: CARRIER.into(), ..Default::default() };
    // Nodes send on leases a little after the start.
    until("the cap is set", LIMIT_TIME, async || {
        rig.lab.admin(1).unwrap().put_limit(put.clone()).await.map_err(|e| e.to_string())
    })
    .await;
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn key_file(lab: &Lab) -> PathBuf {
    lab.dir().join("keys/lab.key")
}

impl Story {
    pub fn new() -> Self {
        Self {
            scratch: tempfile::tempdir().expect("a temporary directory"),
            name: String::new(),
            sent: Vec::new(),
            ids: BTreeSet::new(),
            old_truth: Truth::default(),
            quarantined: 0,
        }
    }

    fn store(&self) -> String {
        self.scratch.path().join("backups").display().to_string()
    }

    fn backup_dir(&self) -> PathBuf {
        Path::new(&self.store()).join(&self.name)
    }

    async fn submit(&mut self, rig: &Rig, specs: Vec<MessageSpec>) {
        for chunk in specs.chunks(100) {
            for (message, spec) in rig.submit(chunk.to_vec()).await.into_iter().zip(chunk) {
                let truth = truth_key(&TruthKey::default(), number_of(spec), &spec.body);
                self.ids.insert(message.message_id.clone());
                self.sent.push(Sent { id: message.message_id, spec: spec.clone(), truth });
            }
        }
    }

    pub async fn back_up(&mut self, rig: &Rig) {
        let path = self.scratch.path().join("history.jsonl");
        let options = LoadOptions { callers: 2, pause: Duration::from_millis(150), ..LoadOptions::default() };
        let load = Load::start(&rig.client, &rig.practices, &path, options).expect("the load starts");
        let practice = |at: usize| rig.practices[at % rig.practices.len()].as_str();
        let now = (0..AT_ONCE).map(|at| spec(practice(at), &format!("now-{at}"), at));
        let later = (1..=LADDER).map(|step| MessageSpec {
            not_before: from_now(step * LADDER_STEP_MS),
            ..spec(practice(step as usize), &format!("later-{step}"), step as usize)
        });
        let specs = now.chain(later).collect();
        self.submit(rig, specs).await;
        until("some was sent, most was not", LIMIT_TIME, async || {
            let sent = rig.carrier.stats().await.map_err(|e| e.to_string())?.accepted;
            if sent >= 30 { Ok(()) } else { Err(format!("{sent} were sent")) }
        })
        .await;
        // Whatever has an answer by now must come back.
        for op in history::ops(&history::read(&path).unwrap()).unwrap() {
            if let history::End::Ok { answer: history::Answer::Accepted { id, .. }, .. } = op.end {
                self.ids.insert(id);
            }
        }
        set_cap(rig).await;
        let lab = lab_of(rig);
        let made = done(&["backup", "create", "--lab", &lab, "--to", &self.store()]).await;
        self.name = made["backup"].as_str().expect("it has a name").to_owned();
        say(&format!("{} of {} bytes in {} ms", self.name, made["bytes"], made["took_ms"]));
        let listed = done(&["backup", "list", "--from", &self.store(), "--max-age-h", "1"]).await;
        assert_eq!(listed["backups"][0]["state"], "complete");
        done(&["backup", "verify", "--from", &self.store(), "--backup", &self.name]).await;
        load.finish().await.expect("the callers come to an end");
        self.no_plaintext(rig);
    }

    /// Neither numbers nor texts, and not the key of the key provider.
    fn no_plaintext(&self, rig: &Rig) {
        let text = std::fs::read_to_string(key_file(&rig.lab)).unwrap();
        let key = text.lines().rfind(|line| !line.starts_with('#')).unwrap().trim().to_owned();
        let raw = hex::decode(&key).unwrap();
        let patterns = [b"+1212555".as_slice(), b"Your visit", b"12125550", key.as_bytes(), &raw];
        let search = aho_corasick::AhoCorasick::new(patterns).unwrap();
        let all = files(&self.backup_dir());
        assert!(all.len() > rig.lab.plan().partitions as usize * 2, "there are files to look at");
        for file in all {
            let found = search.find(&std::fs::read(&file).unwrap());
            assert!(found.is_none(), "{} holds pattern {:?}", file.display(), found.map(|f| f.pattern()));
        }
    }

    pub async fn not_fresh(&mut self, rig: &Rig) {
        let wanted = "the cluster has practices of its own; restore into a new cluster";
        refused(&["restore", "--lab", &lab_of(rig), "--from", &self.store()], wanted).await;
    }

    /// Everything that was due is sent by the old cluster, which the backup cannot know.
    pub async fn disaster(&mut self, rig: &Rig) {
        until("all that was due is with the carrier", LIMIT_TIME, async || {
            for sent in self.sent.iter().filter(|sent| sent.spec.not_before.is_none()) {
                let message = rig.get(&sent.id, MessageView::Basic).await.map_err(|s| s.to_string())?;
                if message.state() != MessageState::Delivered {
                    return Err(format!("{} is {:?}", sent.id, message.state()));
                }
            }
            Ok(())
        })
        .await;
        for node in rig.lab.node_ids() {
            rig.lab.kill_node(node).unwrap();
        }
        let start =
            carillon_loadtest::carrier::Mark { generation: 0, records: 0, violations: 0, unrecorded: 0 };
        let mark = rig.carrier.mark().await.unwrap();
        let all = carillon_loadtest::carrier::Mark { generation: mark.generation, ..start };
        self.old_truth = rig.carrier.truth(&all).await.unwrap();
        assert!(
            self.old_truth.received.values().all(|r| r.accepted <= 1),
            "the old cluster sent nothing twice"
        );
        std::fs::copy(key_file(&rig.lab), self.scratch.path().join("provider.key")).unwrap();
        say(&format!("{} messages were sent before the end", self.old_truth.messages));
    }

    pub async fn bad_backups(&mut self) {
        let variant = |name: &str| {
            let dir = self.scratch.path().join(name);
            copy_dir(&self.backup_dir(), &dir.join(&self.name));
            (dir.display().to_string(), dir.join(&self.name))
        };
        let (from, dir) = variant("flipped");
        let path = dir.join("partition-00003/000000.sst");
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(
            refused_verify(&from, &self.name)
                .await
                .contains("the hash of partition-00003/000000.sst differs")
        );
        let (from, dir) = variant("short");
        std::fs::remove_file(dir.join("partition-00002/000000.sst")).unwrap();
        assert!(refused_verify(&from, &self.name).await.contains("partition-00002/000000.sst is missing"));
        let (from, dir) = variant("open");
        std::fs::remove_file(dir.join("manifest.json")).unwrap();
        assert!(refused_verify(&from, &self.name).await.contains("is not complete"));
        let (code, listed, _) = ctl(&["backup", "list", "--from", &from, "--max-age-h", "1"]).await;
        assert_eq!((code, &listed["backups"][0]["state"]), (3, &Value::from("incomplete")));
        let (from, dir) = variant("newer");
        let path = dir.join("manifest.json");
        let text = std::fs::read_to_string(&path).unwrap().replacen("\"format\": 1", "\"format\": 2", 1);
        std::fs::write(&path, text).unwrap();
        assert!(refused_verify(&from, &self.name).await.contains("has format 2"));
    }

    pub async fn wrong_key(&mut self, rig: &Rig) {
        let lab = lab_of(rig);
        let restore = ["restore", "--lab", &lab, "--from", &self.store()];
        refused(&restore, "does not open the keys of the backup").await;
        let flipped = self.scratch.path().join("flipped").display().to_string();
        refused(&["restore", "--lab", &lab, "--from", &flipped, "--backup", &self.name], "is damaged").await;
        let status = rig.status(1).await.unwrap();
        assert!(status.restore.is_none() && status.practices.is_empty(), "nothing was begun");
        for node in rig.lab.node_ids() {
            rig.lab.kill_node(node).unwrap();
        }
        std::fs::copy(self.scratch.path().join("provider.key"), key_file(&rig.lab)).unwrap();
        for node in rig.lab.node_ids() {
            rig.lab.start_node(node).unwrap();
        }
        rig.lab.until_ready(Duration::from_secs(90)).await.expect("the cluster gets ready");
    }

    pub async fn restore(&mut self, rig: &Rig) {
        let (lab, store) = (lab_of(rig), self.store());
        let restore = ["restore", "--lab", &lab, "--from", &store, "--backup", &self.name];
        // So slowly that there is a middle.
        let admins = rig.lab.node_ids().into_iter().map(|id| rig.lab.admin(id).unwrap());
        let (nodes, from) = (Nodes::new(admins.collect()), Location::open(&store).unwrap());
        let running = backup::restore(&nodes, &from, &self.name, SLOW_BYTES_PER_S, &|_| {});
        let middle = async {
            until("some partitions are back", LIMIT_TIME, async || {
                let restore = rig.status(1).await?.restore.unwrap_or_default();
                if restore.partitions.is_empty() { Err("none yet".to_owned()) } else { Ok(restore) }
            })
            .await
        };
        let killing = async {
            let restore = middle.await;
            say(&format!("node 3 is killed when {} partitions are back", restore.partitions.len()));
            rig.lab.kill_node(3).unwrap();
            // The routers are told to wait, so they are not ready.
            rig.lab.start_node(3).unwrap();
            rig.lab.until_node_ready(3, LIMIT_TIME).await.unwrap();
        };
        let (result, ()) = tokio::join!(running, killing);
        let (messages, quarantined) = match result {
            Ok(done) => (done.messages, done.quarantined),
            Err(error) => {
                say(&format!("it broke off: {error}; it goes on where it stopped"));
                let value = done(&restore).await;
                (value["messages"].as_u64().unwrap(), value["quarantined"].as_u64().unwrap())
            }
        };
        self.quarantined = quarantined;
        let lanes = rig.lab.admin(1).unwrap().list_lanes(ListLanesRequest::default()).await.unwrap().lanes;
        let cap = lanes.iter().filter_map(|lane| lane.limit.as_ref()).find(|limit| limit.window_s == 0);
        assert_eq!(cap.map(|cap| cap.amount), Some(CAP), "limits come back");
        assert!(messages >= self.ids.len() as u64, "{messages} of {}", self.ids.len());
        until("every node knows that it is done", LIMIT_TIME, async || {
            for node in rig.lab.node_ids() {
                if !rig.status(node).await?.restore.is_some_and(|restore| restore.done) {
                    return Err(format!("node {node} does not"));
                }
            }
            Ok(())
        })
        .await;
        refused(&restore, "restored into this cluster already").await;
    }

    pub async fn compare(&mut self, rig: &Rig) {
        rig.lab.until_router_ready(LIMIT_TIME).await.unwrap();
        let mut states = BTreeMap::<String, usize>::new();
        for id in &self.ids {
            let message = until("it is there", LIMIT_TIME, async || {
                rig.get(id, MessageView::Basic).await.map_err(|status| format!("{id}: {status}"))
            })
            .await;
            *states.entry(format!("{:?} {}", message.state(), message.state_detail)).or_default() += 1;
        }
        say(&format!("{states:?}"));
        let full = rig.get(&self.sent[0].id, MessageView::Full).await.unwrap();
        assert!(!full.body.is_empty(), "it opens with the keys of the backup");
        for sent in self.sent.iter().step_by(17) {
            let again = rig.submit(vec![sent.spec.clone()]).await;
            assert!(again[0].duplicate && again[0].message_id == sent.id, "the key is known");
        }
        rig.until_caught_up(LIMIT_TIME).await;
        super::snapshots::until_same_digests(rig).await;
    }

    /// Both carriers together.
    async fn accepted(&self, rig: &Rig) -> BTreeMap<u128, u32> {
        let mark = rig.carrier.mark().await.unwrap();
        let all = carillon_loadtest::carrier::Mark { records: 0, violations: 0, unrecorded: 0, ..mark };
        let new = rig.carrier.truth(&all).await.unwrap();
        let mut sums = BTreeMap::new();
        for (truth, received) in self.old_truth.received.iter().chain(&new.received) {
            *sums.entry(*truth).or_default() += received.accepted;
        }
        sums
    }

    pub async fn nothing_twice(&mut self, rig: &Rig) {
        let mut waiting = Vec::new();
        let mut held_and_sent = 0;
        for sent in &self.sent {
            let message = rig.get(&sent.id, MessageView::Basic).await.unwrap();
            let was_sent = self.old_truth.received.get(&sent.truth).is_some_and(|r| r.accepted > 0);
            match message.state() {
                MessageState::Waiting => waiting.push(sent),
                MessageState::Unknown if was_sent => held_and_sent += 1,
                _ => {}
            }
        }
        say(&format!("{held_and_sent} of those held were sent; {} wait for their time", waiting.len()));
        assert!(held_and_sent > 20, "the guard had something to do");
        assert!(waiting.len() >= 2, "the ladder is long enough");
        for sent in waiting.iter().take(2) {
            rig.until_state(&sent.id, MessageState::Delivered, LIMIT_TIME).await;
        }
        let accepted = self.accepted(rig).await;
        assert!(waiting.iter().take(2).all(|sent| accepted[&sent.truth] == 1), "each was sent once");
        let twice: Vec<_> = accepted.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "sent by both clusters: {twice:?}");
        let new = spec(&rig.practices[0], "after-the-restore", 7);
        let message = rig.submit(vec![new]).await.remove(0);
        rig.until_state(&message.message_id, MessageState::Delivered, LIMIT_TIME).await;
    }

    pub async fn quarantine(&mut self, rig: &Rig) {
        let lab = lab_of(rig);
        let held = done(&["quarantine", "list", "--lab", &lab, "--limit", "10000"]).await;
        assert_eq!(held["total"].as_u64(), Some(self.quarantined), "none has left it");
        assert_eq!(held["messages"].as_array().map(Vec::len), Some(self.quarantined as usize));
        let named = |practice: &str| {
            let list = held["practices"].as_array().unwrap();
            let found = list.iter().find(|p| p["practice"] == practice);
            found.map_or(0, |p| p["messages"].as_u64().unwrap())
        };
        let mut by_count: Vec<&String> = rig.practices.iter().collect();
        by_count.sort_by_key(|practice| std::cmp::Reverse(named(practice)));
        let (first, second) = (by_count[0].as_str(), by_count[1].as_str());
        let of = |word: &'static str, practice: &'_ str| {
            ["quarantine", word, "--lab", &lab, "--tenant", "lakeside", "--practice", practice]
                .map(ToOwned::to_owned)
        };
        let dropping = of("drop", first);
        let dropping: Vec<&str> = dropping.iter().map(String::as_str).collect();
        let dry: Vec<&str> = dropping.iter().copied().chain(["--dry-run"]).collect();
        assert_eq!(done(&dry).await["messages"].as_u64(), Some(named(first)));
        assert_eq!(done(&dry).await["messages"].as_u64(), Some(named(first)), "a dry run changes nothing");
        assert_eq!(done(&dropping).await["messages"].as_u64(), Some(named(first)));
        let releasing = of("release", second);
        let releasing: Vec<&str> = releasing.iter().map(String::as_str).collect();
        assert_eq!(done(&releasing).await["messages"].as_u64(), Some(named(second)));
        let mut possible = 0;
        for sent in &self.sent {
            let held = held["messages"].as_array().unwrap();
            if !held.iter().any(|m| m["message_id"] == sent.id.as_str()) {
                continue;
            }
            if sent.spec.practice == first {
                let message = rig.until_state(&sent.id, MessageState::Undelivered, LIMIT_TIME).await;
                assert_eq!(message.state_detail, "restore_dropped");
            } else if sent.spec.practice == second {
                rig.until_state(&sent.id, MessageState::Delivered, LIMIT_TIME).await;
                possible +=
                    u32::from(self.old_truth.received.get(&sent.truth).is_some_and(|r| r.accepted > 0));
            }
        }
        // What the guard holds back is what the check above would have found.
        let accepted = self.accepted(rig).await;
        let twice = accepted.values().filter(|count| **count > 1).count();
        assert!(twice as u32 >= possible && possible > 0, "{twice} twice, {possible} were sent before");
        say(&format!("{possible} of those released had been sent before, as the operator was told"));
        let left = self.quarantined - named(first) - named(second);
        let held = done(&["quarantine", "list", "--lab", &lab, "--limit", "0"]).await;
        assert_eq!(held["total"].as_u64(), Some(left));
    }
}

pub(crate) async fn refused_verify(from: &str, name: &str) -> String {
    let (code, _, text) = ctl(&["backup", "verify", "--from", from, "--backup", name]).await;
    assert!(code != 0, "{from} is accepted");
    text
}
