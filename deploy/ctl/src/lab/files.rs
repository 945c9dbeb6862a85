//! Writes the directory of a lab: certificates, key, secrets and the configuration of every process.
use super::plan::{CLUSTER, OPERATOR, OTHER_TENANT, Plan, ROUTER, TENANT, local};
use super::{LabError, LabOptions, Plane};
use crate::pki::{Ca, Leaf, Usage, Validity, write_private};
use carillon_proto::identity::{Identity, Role};
use carillon_proto::tls::TlsFiles;
use rand::Rng as _;
use rand::distr::Alphanumeric;
use serde::Serialize;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// An SMPP password has at most 8 characters.
const PASSWORD_CHARS: usize = 8;

pub(super) fn pki_dir(dir: &Path) -> PathBuf {
    dir.join("pki")
}

/// Where a node keeps its data.
pub(super) fn data_dir(dir: &Path, node: &super::NodePlan) -> PathBuf {
    match &node.placement.data_dir {
        Some(data) => data.clone(),
        None => dir.join(format!("node-{}", node.id)).join("data"),
    }
}

pub(super) fn tls(dir: &Path, stem: &str, plane: Plane) -> TlsFiles {
    let pki = pki_dir(dir);
    TlsFiles {
        cert: pki.join(format!("{stem}.pem")),
        key: pki.join(format!("{stem}.key")),
        ca: pki.join(format!("{}.pem", plane.stem())),
    }
}

/// Everything but the plan itself, which is written last: it says that the directory is complete.
pub(super) fn write_all(dir: &Path, plan: &Plan, options: &LabOptions) -> Result<(), LabError> {
    make_dir(dir)?;
    for part in ["pki", "keys", "secrets", "contracts", "logs", "run"] {
        make_dir(&dir.join(part))?;
    }
    certificates(dir, plan)?;
    write_private(
        &dir.join("keys/lab.key"),
        format!(
            "# For labs only: a key that lies beside the data protects nothing. Never use it for patients' data.\n{}\n",
            hex::encode(rand::rng().random::<[u8; 32]>())
        )
        .as_bytes(),
    )?;
    let password: String =
        rand::rng().sample_iter(Alphanumeric).take(PASSWORD_CHARS).map(char::from).collect();
    write_private(&dir.join("secrets/sim-password"), format!("{password}\n").as_bytes())?;
    let token = hex::encode(rand::rng().random::<[u8; 16]>());
    write_private(&dir.join("secrets/sim-http-token"), format!("{token}\n").as_bytes())?;
    for node in &plan.nodes {
        let home = dir.join(format!("node-{}", node.id));
        make_dir(&home)?;
        make_dir(&data_dir(dir, node))?;
        let path = home.join("config.toml");
        write_toml(&path, &NodeConfig::new(dir, plan, node.id, options)?)?;
        // Tables may follow tables, and the configuration ends with one.
        let text = fs_err::read_to_string(&path)?;
        fs_err::write(&path, format!("{text}\n{}", options.node_config))?;
    }
    write_toml(&dir.join("router.toml"), &RouterConfig::new(dir, plan, options))?;
    fs_err::write(dir.join("smsc-profile.toml"), profile_text(&options.profile)?)?;
    Ok(())
}

fn make_dir(path: &Path) -> Result<(), LabError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| LabError::File { path: path.display().to_string(), reason: e.to_string() })
}

/// The profile of the simulator as TOML: a file as it is, a preset as a profile that changes nothing of it.
pub(super) fn profile_text(profile: &str) -> Result<String, LabError> {
    if profile.contains(['/', '.']) {
        return Ok(fs_err::read_to_string(profile)?);
    }
    Ok(format!("base = \"{profile}\"\n"))
}

fn certificates(dir: &Path, plan: &Plan) -> Result<(), LabError> {
    let pki = pki_dir(dir);
    let make = |plane: Plane| -> Result<Ca, LabError> {
        let ca = Ca::new(&plane.name())?;
        ca.write(&pki, plane.stem())?;
        Ok(ca)
    };
    let (peers, clients, operators) = (make(Plane::Peers)?, make(Plane::Clients)?, make(Plane::Operators)?);
    let carriers = make(Plane::Carriers)?;
    carriers.issue(&callback_leaf(Ipv4Addr::LOCALHOST))?.write(&pki, "smsc-http")?;
    let smsc = callback_leaf(plan.smsc_address.unwrap_or(Ipv4Addr::LOCALHOST));
    carriers.issue(&smsc)?.write(&pki, "smsc")?;
    let leaf = |role: Role, usage: Usage| {
        let identity = Identity { cluster: CLUSTER.to_owned(), role };
        Leaf::new(&identity, usage)
    };
    let issue = |ca: &Ca, role: Role, usage: Usage, stem: &str| -> Result<(), LabError> {
        Ok(ca.issue(&leaf(role, usage))?.write(&pki, stem)?)
    };
    for node in &plan.nodes {
        issue_node(dir, &peers, &operators, &carriers, node)?;
    }
    let router = || Role::Router(ROUTER.to_owned());
    issue(&peers, router(), Usage::Client, &format!("router-{ROUTER}"))?;
    issue(&clients, router(), Usage::Server, &format!("router-{ROUTER}-public"))?;
    for tenant in [TENANT, OTHER_TENANT] {
        issue(&clients, Role::Tenant(tenant.to_owned()), Usage::Client, &format!("tenant-{tenant}"))?;
    }
    issue(&operators, Role::Operator(OPERATOR.to_owned()), Usage::Client, &format!("operator-{OPERATOR}"))
}

/// A server that carriers talk to, or a carrier.
fn callback_leaf(address: Ipv4Addr) -> Leaf {
    Leaf { uri: None, usage: Usage::Server, validity: Validity::OneYear, address: Some(address) }
}

/// The three certificates of a node.
fn issue_node(
    dir: &Path,
    peers: &Ca,
    operators: &Ca,
    carriers: &Ca,
    node: &super::NodePlan,
) -> Result<(), LabError> {
    let id = node.id;
    let identity = Identity { cluster: CLUSTER.to_owned(), role: Role::Node(id) };
    let pki = pki_dir(dir);
    let at = |usage| Leaf::new(&identity, usage).reached_at(node.placement.address());
    peers.issue(&at(Usage::Both))?.write(&pki, &format!("node-{id}"))?;
    operators.issue(&at(Usage::Server))?.write(&pki, &format!("node-{id}-admin"))?;
    let callbacks = callback_leaf(node.placement.address());
    carriers.issue(&callbacks)?.write(&pki, &format!("node-{id}-callbacks"))?;
    Ok(())
}

/// Certificates, token and configuration of a node that joins a lab that exists.
pub(super) fn write_joining(
    dir: &Path,
    plan: &Plan,
    node: &super::NodePlan,
    log_filter: &str,
    peers: Vec<String>,
    token: &str,
) -> Result<(), LabError> {
    let (id, pki) = (node.id, pki_dir(dir));
    let ca = |plane: Plane| Ca::load(&plane.name(), &pki, plane.stem());
    issue_node(dir, &ca(Plane::Peers)?, &ca(Plane::Operators)?, &ca(Plane::Carriers)?, node)?;
    let home = dir.join(format!("node-{id}"));
    make_dir(&home)?;
    make_dir(&data_dir(dir, node))?;
    let token_file = home.join("join-token");
    write_private(&token_file, format!("{token}\n").as_bytes())?;
    let options = LabOptions { log_filter: log_filter.to_owned(), ..LabOptions::default() };
    let mut config = NodeConfig::new(dir, plan, id, &options)?;
    config.members.clear();
    config.join = Some(JoinConfig { peers, token_file });
    write_toml(&home.join("config.toml"), &config)
}

fn write_toml(path: &Path, config: &impl Serialize) -> Result<(), LabError> {
    let text = toml::to_string(config)
        .map_err(|e| LabError::File { path: path.display().to_string(), reason: e.to_string() })?;
    Ok(fs_err::write(path, text)?)
}

#[derive(Serialize)]
struct MemberConfig {
    node_id: u64,
    peer_address: String,
}

#[derive(Serialize)]
struct KeysConfig {
    provider: &'static str,
    file: PathBuf,
}

/// The keys of `carillon-node --config`.
#[derive(Serialize)]
struct NodeConfig {
    cluster_id: &'static str,
    node_id: u64,
    data_dir: PathBuf,
    lab: bool,
    partitions: u32,
    peer_listen: String,
    admin_listen: String,
    http_listen: String,
    log_filter: String,
    secrets_dir: PathBuf,
    members: Vec<MemberConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    join: Option<JoinConfig>,
    peer_tls: TlsFiles,
    admin_tls: TlsFiles,
    keys: KeysConfig,
    #[serde(skip_serializing_if = "Option::is_none")]
    carriers: Option<CarriersConfig>,
}

#[derive(Serialize)]
struct CarriersConfig {
    contracts_dir: PathBuf,
    ca_file: PathBuf,
    callbacks: CallbacksConfig,
}

#[derive(Serialize)]
struct CallbacksConfig {
    listen: String,
    cert: PathBuf,
    key: PathBuf,
    public_url: String,
}

impl CarriersConfig {
    /// Nothing in a lab that is older than callbacks.
    fn new(dir: &Path, node: &super::NodePlan) -> Option<Self> {
        let pki = pki_dir(dir);
        (node.callback_port > 0).then(|| Self {
            contracts_dir: dir.join("contracts"),
            ca_file: pki.join("carriers-ca.pem"),
            callbacks: CallbacksConfig {
                listen: node.callbacks(),
                cert: pki.join(format!("node-{}-callbacks.pem", node.id)),
                key: pki.join(format!("node-{}-callbacks.key", node.id)),
                public_url: format!("https://{}", node.callbacks()),
            },
        })
    }
}

#[derive(Serialize)]
struct JoinConfig {
    peers: Vec<String>,
    token_file: PathBuf,
}

impl NodeConfig {
    fn new(dir: &Path, plan: &Plan, id: u64, options: &LabOptions) -> Result<Self, LabError> {
        let node = plan.nodes.iter().find(|n| n.id == id);
        let node = node.ok_or_else(|| LabError::Wrong(format!("the plan has no node {id}")))?;
        let member = |n: &super::NodePlan| MemberConfig { node_id: n.id, peer_address: n.peer() };
        Ok(Self {
            cluster_id: CLUSTER,
            node_id: id,
            data_dir: data_dir(dir, node),
            lab: true,
            partitions: plan.partitions,
            peer_listen: node.peer(),
            admin_listen: node.admin(),
            http_listen: node.http(),
            log_filter: options.log_filter.clone(),
            secrets_dir: dir.join("secrets"),
            members: plan.nodes.iter().map(member).collect(),
            join: None,
            peer_tls: tls(dir, &format!("node-{id}"), Plane::Peers),
            admin_tls: tls(dir, &format!("node-{id}-admin"), Plane::Operators),
            keys: KeysConfig { provider: "file", file: dir.join("keys/lab.key") },
            carriers: CarriersConfig::new(dir, node),
        })
    }
}

/// The keys of `carillon-router --config`.
#[derive(Serialize)]
struct RouterConfig {
    cluster_id: &'static str,
    name: &'static str,
    listen: String,
    http_listen: String,
    log_filter: String,
    lab: bool,
    nodes: Vec<String>,
    public_tls: TlsFiles,
    node_tls: TlsFiles,
}

impl RouterConfig {
    fn new(dir: &Path, plan: &Plan, options: &LabOptions) -> Self {
        Self {
            cluster_id: CLUSTER,
            name: ROUTER,
            listen: local(plan.router_port),
            http_listen: local(plan.router_http_port),
            log_filter: options.log_filter.clone(),
            lab: true,
            nodes: plan.nodes.iter().map(super::NodePlan::peer).collect(),
            public_tls: tls(dir, &format!("router-{ROUTER}-public"), Plane::Clients),
            node_tls: tls(dir, &format!("router-{ROUTER}"), Plane::Peers),
        }
    }
}
