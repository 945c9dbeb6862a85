//! A cluster of real processes in a temporary directory, with clients to every side of it.
//!
//! Invariant: dropping the rig kills exactly what it started and removes the directory; with `CARILLON_TEST_KEEP` set,
//! or after [`Rig::keep`], the directory stays, for a look at its logs.

use crate::api::{DEADLINE, accepted, timed};
use crate::faults::{Arena, Needs};
use crate::steps::say;
use carillon_ctl::lab::{Lab, LabOptions, Plane, Practice, TENANT};
use carillon_loadtest::carrier::Carrier;
use carillon_loadtest::client::{Client, ClientConfig};
use carillon_loadtest::http::Http;
use carillon_loadtest::sample_day;
use carillon_proto::Slot;
use carillon_proto::admin::GetStatusResponse;
use carillon_proto::public::{
    AcceptedMessage, ExplainMessageRequest, ExplainMessageResponse, GetMessageRequest, ListMessagesRequest,
    Message, MessageSpec, MessageState, MessageView, SubmitMessagesRequest,
};
use carillon_proto::tls::{self, TlsFiles};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};
use tonic::Status;

const POLL: Duration = Duration::from_millis(50);
/// States in which nothing happens any more by itself: the finals, and UNKNOWN, which is held.
pub const SETTLED: [MessageState; 8] = [
    MessageState::Unknown,
    MessageState::Delivered,
    MessageState::Undelivered,
    MessageState::Expired,
    MessageState::Canceled,
    MessageState::Rejected,
    MessageState::OptedOut,
    MessageState::Dead,
];

/// Two clusters at a time would compete for two cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A running cluster. The lab is dropped before its directory.
pub struct Rig {
    pub lab: Lab,
    pub client: Client,
    pub carrier: Carrier,
    pub http: Http,
    /// The practices of the sample day, largest first; together they cover every partition.
    pub practices: Vec<String>,
    /// Networks, disks and clocks of the nodes; undone after the cluster is gone and before its directory is.
    pub arena: Arena,
    dir: Option<TempDir>,
    keep: bool,
    _turn: MutexGuard<'static, ()>,
}

/// Polls until `look` finds something; panics with its last reason when the time is up.
pub async fn until<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + limit;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(reason) if Instant::now() >= end => panic!("{what}: not within {limit:?}: {reason}"),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// A program of ours: where the lab finds its programs.
pub fn program(name: &str) -> PathBuf {
    let dirs: Vec<PathBuf> = match std::env::var_os("CARILLON_BIN_DIR") {
        Some(dir) => vec![dir.into()],
        None => {
            let own = std::env::current_exe().expect("this program has a path");
            own.ancestors().skip(1).take(2).map(ToOwned::to_owned).collect()
        }
    };
    let found = dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no program {name} in {dirs:?}; build it first (make build)"))
}

impl Rig {
    /// Starts a cluster with the practices of the sample day.
    pub async fn start(options: LabOptions) -> Self {
        Self::start_in(options, Needs::default(), |_| {}).await
    }

    /// The same, after a change of its files.
    pub async fn start_with(options: LabOptions, change: impl Fn(&Lab)) -> Self {
        Self::start_in(options, Needs::default(), change).await
    }

    /// A cluster without practices, into which a backup can be restored.
    pub async fn start_empty(options: LabOptions) -> Self {
        Self::begin(options, Needs::default(), |_| {}, false).await
    }

    /// The same in an arena; ask `faults::missing` before.
    pub async fn start_in(options: LabOptions, needs: Needs, change: impl Fn(&Lab)) -> Self {
        Self::begin(options, needs, change, true).await
    }

    async fn begin(
        options: LabOptions,
        needs: Needs,
        change: impl Fn(&Lab),
        register_practices: bool,
    ) -> Self {
        let turn = ONE_AT_A_TIME.lock().await;
        tls::install_provider();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let arena = Arena::new(dir.path(), options.nodes, needs).expect("the arena can be made");
        let options = arena.place(options);
        let began = Instant::now();
        let day = sample_day::practices().expect("the bundled practices parse");
        let practice =
            |p: &sample_day::Practice| Practice { name: p.name.clone(), time_zone: p.time_zone.clone() };
        let practices = if register_practices { day.iter().map(practice).collect() } else { Vec::new() };
        let options = LabOptions { practices, ..options };
        // An initialised lab is kept as it is.
        change(&Lab::init(&dir.path().join("lab"), &options).expect("the lab's files are made"));
        let lab = Lab::up(&dir.path().join("lab"), &options).await.expect("the cluster starts");
        say(&format!(
            "cluster of {} nodes is up after {:.1} s",
            lab.node_ids().len(),
            began.elapsed().as_secs_f64()
        ));
        let http = Http::default();
        let files = lab.tls(&format!("tenant-{TENANT}"), Plane::Clients);
        let client = Client::connect(&lab.router_address(), &files, ClientConfig::default());
        let rig = Self {
            client: client.expect("certificates are good"),
            carrier: Carrier::new(http.clone(), &lab.smsc_http()),
            http,
            practices: day.into_iter().map(|p| p.name).collect(),
            arena,
            dir: Some(dir),
            keep: std::env::var_os("CARILLON_TEST_KEEP").is_some(),
            _turn: turn,
            lab,
        };
        for partition in 1..=rig.lab.plan().partitions {
            let found = rig.practices.iter().any(|p| rig.partition_of(p) == partition);
            assert!(found, "no practice lives in partition {partition}");
        }
        rig
    }

    /// A client with other certificate files.
    pub fn client_with(&self, files: &TlsFiles) -> Client {
        let client = Client::connect(&self.lab.router_address(), files, ClientConfig::default());
        client.expect("the files can be read")
    }

    pub fn partition_of(&self, practice: &str) -> u32 {
        Slot::of_practice(TENANT, practice).partition(self.lab.plan().partitions)
    }

    /// Submits with repetitions, and every message must be accepted.
    pub async fn submit(&self, messages: Vec<MessageSpec>) -> Vec<AcceptedMessage> {
        let count = messages.len();
        let request = SubmitMessagesRequest { messages, validate_only: false };
        let answer = self.client.submit(request).await.expect("the submit is answered");
        assert_eq!(answer.results.len(), count, "one result for each message");
        answer.results.iter().map(|result| accepted(result).clone()).collect()
    }

    pub async fn get(&self, message_id: &str, view: MessageView) -> Result<Message, Status> {
        let request = GetMessageRequest { message_id: message_id.to_owned(), view: view as i32 };
        Ok(self.client.messages().get_message(timed(request)).await?.into_inner())
    }

    pub async fn explain(&self, message_id: &str) -> Result<ExplainMessageResponse, Status> {
        let request = ExplainMessageRequest { message_id: message_id.to_owned() };
        Ok(self.client.messages().explain_message(timed(request)).await?.into_inner())
    }

    /// Waits until a message is in `state`; panics when it settles in another.
    pub async fn until_state(&self, message_id: &str, state: MessageState, limit: Duration) -> Message {
        until(&format!("{message_id} becomes {state:?}"), limit, async || {
            let message = self.get(message_id, MessageView::Basic).await.map_err(|s| s.to_string())?;
            if message.state() == state {
                return Ok(message);
            }
            Err(format!("it is {:?} ({})", message.state(), message.state_detail))
        })
        .await
    }

    /// All pages of a list.
    pub async fn list(&self, mut request: ListMessagesRequest) -> Vec<Message> {
        let mut all = Vec::new();
        loop {
            let page = self.client.messages().list_messages(timed(request.clone())).await;
            let page = page.expect("the list is answered").into_inner();
            all.extend(page.messages);
            if page.next_page_token.is_empty() {
                return all;
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Waits until every message of a practice is in one of [`SETTLED`].
    pub async fn until_settled(&self, practice: &str, limit: Duration) -> Vec<Message> {
        let request =
            ListMessagesRequest { practice: practice.to_owned(), page_size: 1_000, ..Default::default() };
        until(&format!("all of {practice} settle"), limit, async || {
            let all = self.list(request.clone()).await;
            match all.iter().find(|m| !SETTLED.contains(&m.state())) {
                None => Ok(all),
                Some(open) => Err(format!("{} is {:?}", open.message_id, open.state())),
            }
        })
        .await
    }

    pub async fn status(&self, node: u64) -> Result<GetStatusResponse, String> {
        let admin = self.lab.admin(node).map_err(|e| e.to_string())?;
        admin.status().await.map_err(|e| e.to_string())
    }

    /// The leader of each partition as the first node that answers sees it; group 0 is the meta group.
    pub async fn leaders(&self) -> BTreeMap<u32, u64> {
        until("every group has a leader", Duration::from_secs(30), async || {
            let mut last = "no node answers".to_owned();
            for id in self.lab.node_ids() {
                match self.status(id).await {
                    Ok(status) if status.partitions.iter().all(|p| p.leader != 0) => {
                        return Ok(status.partitions.iter().map(|p| (p.partition, p.leader)).collect());
                    }
                    Ok(_) => last = format!("node {id} knows not every leader"),
                    Err(reason) => last = reason,
                }
            }
            Err(last)
        })
        .await
    }

    /// The node that leads the most groups: its death hurts the most.
    pub async fn busiest(&self) -> u64 {
        let mut counts = BTreeMap::<u64, usize>::new();
        for leader in self.leaders().await.into_values() {
            *counts.entry(leader).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map_or(1, |(node, _)| node)
    }

    /// The power of these nodes fails and comes back; start them afterwards. They stand still before it fails: ext4's
    /// shutdown lets a sync that is under way return success without being durable, which no disk does, and a node that
    /// runs would acknowledge on the strength of it.
    pub fn cut_power(&mut self, nodes: &[u64]) -> Result<(), String> {
        for node in nodes {
            self.lab.pause_node(*node).map_err(|e| e.to_string())?;
        }
        self.arena.cut_power(nodes)?;
        for node in nodes {
            self.lab.kill_node(*node).map_err(|e| e.to_string())?;
        }
        nodes.iter().try_for_each(|node| self.arena.disks[*node as usize - 1].mount_again())
    }

    /// The directory stays when the rig is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Everything of this cluster: configuration, logs, data.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().map_or(self.lab.dir(), TempDir::path)
    }

    pub async fn leader_of(&self, practice: &str) -> u64 {
        self.leaders().await[&self.partition_of(practice)]
    }

    /// Starts a node again and waits until it and the router can serve.
    pub async fn start_node(&self, id: u64) {
        self.lab.start_node(id).expect("the node starts");
        self.lab.until_node_ready(id, Duration::from_secs(60)).await.expect("the node gets ready");
        self.lab.until_router_ready(Duration::from_secs(60)).await.expect("the router gets ready");
    }

    /// Waits until every node has applied the same entries of every group.
    pub async fn until_caught_up(&self, limit: Duration) {
        until("all replicas have applied the same", limit, async || {
            let mut seen: Option<BTreeMap<u32, u64>> = None;
            for id in self.lab.node_ids() {
                let status = self.status(id).await?;
                if let Some(fenced) = status.partitions.iter().find(|p| !p.blocked.is_empty()) {
                    return Err(format!(
                        "group {} of node {id} is fenced: {}",
                        fenced.partition, fenced.blocked
                    ));
                }
                let applied: BTreeMap<u32, u64> =
                    status.partitions.iter().map(|p| (p.partition, p.applied)).collect();
                match &seen {
                    Some(first) if *first != applied => {
                        return Err(format!("{first:?} and node {id} {applied:?}"));
                    }
                    _ => seen = Some(applied),
                }
            }
            Ok(())
        })
        .await;
    }

    /// The page of metrics of each process by its name; one that does not answer is left out.
    pub async fn metrics(&self) -> BTreeMap<String, String> {
        let mut addresses = vec![("router".to_owned(), self.lab.router_http())];
        addresses.push(("smsc".to_owned(), self.lab.smsc_http()));
        for id in self.lab.node_ids() {
            addresses.push((format!("node-{id}"), self.lab.node_http(id).expect("the node is planned")));
        }
        let mut pages = BTreeMap::new();
        for (name, address) in addresses {
            if let Ok(page) = self.http.get(&address, "/metrics").await {
                pages.insert(name, String::from_utf8(page.to_vec()).expect("metrics are UTF-8"));
            }
        }
        pages
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.keep
            && let Some(dir) = self.dir.take()
        {
            say(&format!("kept: {}", dir.keep().display()));
        }
    }
}

/// A submit as a careful caller makes it: one deadline over all repetitions, everything repeated by key.
pub async fn submit_within_deadline(
    client: &Client,
    messages: Vec<MessageSpec>,
) -> Result<Vec<String>, String> {
    use carillon_loadtest::client::{is_retryable, retry_delay};
    use carillon_proto::errors;
    use carillon_proto::public::submit_result::Result as Item;
    let until = Instant::now() + DEADLINE;
    let mut ids: Vec<Option<String>> = vec![None; messages.len()];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("the deadline passed".to_owned());
        }
        let open: Vec<usize> = (0..ids.len()).filter(|at| ids[*at].is_none()).collect();
        let specs = open.iter().map(|at| messages[*at].clone()).collect();
        let mut request =
            tonic::Request::new(SubmitMessagesRequest { messages: specs, validate_only: false });
        request.set_timeout(left);
        let mut failed = None;
        match client.messages().submit_messages(request).await {
            Ok(answer) => {
                for (at, result) in open.into_iter().zip(answer.into_inner().results) {
                    match result.result {
                        Some(Item::Accepted(message)) => ids[at] = Some(message.message_id),
                        Some(Item::Error(error)) => failed = Some(errors::from_rpc(&error)),
                        None => return Err("an empty result".to_owned()),
                    }
                }
            }
            Err(status) => failed = Some(status),
        }
        match failed {
            None => return Ok(ids.into_iter().flatten().collect()),
            Some(status) if is_retryable(status.code()) => {
                tokio::time::sleep(retry_delay(&status).unwrap_or(POLL).min(left)).await;
            }
            Some(status) => return Err(format!("{:?} {}", status.code(), status.message())),
        }
    }
}
