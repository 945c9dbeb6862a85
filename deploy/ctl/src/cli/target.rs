//! Whom a command goes to: one node, any node, the leader of a group, or everybody.
use anyhow::Context as _;
use carillon_ctl::admin::{Admin, AdminError};
use carillon_ctl::health::{Answer, Asked, ask};
use carillon_ctl::lab::Lab;
use carillon_proto::admin::GetStatusResponse;
use carillon_proto::tls::TlsFiles;
use clap::{ArgGroup, Args};
use std::path::{Path, PathBuf};

/// Whom to ask: a lab, or addresses with an operator's certificate.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whom").args(["lab", "admin"]).required(true).multiple(true)))]
pub struct Target {
    /// Directory of a lab; its operator certificate is used.
    #[arg(long, conflicts_with_all = ["admin", "cert", "key", "ca"])]
    lab: Option<PathBuf>,
    /// The node of the lab that a command about one node is about; without it the first one. Other commands ask any node.
    #[arg(long, requires = "lab")]
    node: Option<u64>,
    /// host:port of the admin API of a node, or of several, separated by commas. A command about one node goes to the first.
    #[arg(long, env = "CARILLON_ADMIN", value_delimiter = ',', requires_all = ["cert", "key", "ca"])]
    admin: Vec<String>,
    /// Certificate of the operator (PEM).
    #[arg(long, env = "CARILLON_CERT")]
    cert: Option<PathBuf>,
    /// Key of that certificate (PEM).
    #[arg(long, env = "CARILLON_KEY")]
    key: Option<PathBuf>,
    /// CA of the operators' plane (PEM).
    #[arg(long, env = "CARILLON_CA")]
    ca: Option<PathBuf>,
}

impl Target {
    /// The directory of the lab, if it is one.
    pub fn lab(&self) -> Option<&Path> {
        self.lab.as_deref()
    }

    /// The node that was named.
    pub fn connect(&self) -> anyhow::Result<Admin> {
        if let Some(dir) = &self.lab {
            let lab = Lab::open(dir)?;
            let node = self.node.or_else(|| lab.node_ids().first().copied());
            return Ok(lab.admin(node.context("the lab has no node")?)?);
        }
        let first = self.everyone()?.into_iter().next();
        Ok(first.context("name a node with --admin")?.admin)
    }

    /// Every node of a lab, or every address that was named.
    fn everyone(&self) -> anyhow::Result<Vec<Asked>> {
        if let Some(dir) = &self.lab {
            let lab = Lab::open(dir)?;
            let asked = |id| -> anyhow::Result<Asked> {
                Ok(Asked { node_id: Some(id), name: format!("node {id}"), admin: lab.admin(id)? })
            };
            return lab.node_ids().into_iter().map(asked).collect();
        }
        let (Some(cert), Some(key), Some(ca)) = (&self.cert, &self.key, &self.ca) else {
            anyhow::bail!("give --lab, or --admin with --cert, --key and --ca");
        };
        let files = TlsFiles { cert: cert.clone(), key: key.clone(), ca: ca.clone() };
        let asked = |address: &String| -> anyhow::Result<Asked> {
            let admin = Admin::connect(address, &files, None)?;
            Ok(Asked { node_id: None, name: address.clone(), admin })
        };
        self.admin.iter().map(asked).collect()
    }

    /// What everybody says, or why somebody says nothing.
    pub async fn ask(&self) -> anyhow::Result<Vec<Answer>> {
        Ok(ask(self.everyone()?).await?)
    }

    /// A node that answers, for what every node can do.
    pub async fn any(&self) -> anyhow::Result<Admin> {
        let mut last = None;
        for asked in self.everyone()? {
            match asked.admin.status().await {
                Ok(_) => return Ok(asked.admin),
                Err(error @ (AdminError::Refused(_) | AdminError::Tls(_))) => return Err(error.into()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| anyhow::anyhow!("there is no node to ask"), Into::into))
    }

    /// The node that leads a group (0 = the meta group), for what only it can do; where it listens is known in a lab.
    pub async fn connect_leader(&self, partition: u32) -> anyhow::Result<Admin> {
        let statuses = self.every_status().await?;
        let known =
            statuses.iter().flat_map(|s| &s.partitions).filter(|p| p.partition == partition && p.leader != 0);
        let newest = known.max_by_key(|p| p.term);
        let mut map = statuses.iter().flat_map(|s| &s.map).peekable();
        if map.peek().is_some() && !map.any(|row| row.partition == partition) {
            return Err(no_partition(partition));
        }
        let leader = newest.with_context(|| format!("partition {partition} has no known leader"))?.leader;
        if let Some(dir) = &self.lab {
            return Ok(Lab::open(dir)?.admin(leader)?);
        }
        for asked in self.everyone()? {
            if asked.admin.status().await.is_ok_and(|status| status.node_id == leader) {
                return Ok(asked.admin);
            }
        }
        // A single address: that node says who leads if it is not the one.
        self.connect()
    }

    /// The node on which a replica is fenced: the one that was named, or the only one that says so.
    pub async fn connect_fenced(&self, partition: u32) -> anyhow::Result<Admin> {
        if self.node.is_some() {
            return self.connect();
        }
        let (mut there, mut exists, mut answers) = (Vec::new(), false, false);
        for asked in self.everyone()? {
            let Ok(status) = asked.admin.status().await else { continue };
            answers = true;
            exists |= status.map.iter().any(|row| row.partition == partition);
            if status.partitions.iter().any(|p| p.partition == partition && !p.blocked.is_empty()) {
                there.push((status.node_id, asked.admin));
            }
        }
        let nodes: Vec<String> = there.iter().map(|(node, _)| node.to_string()).collect();
        match (there.len(), answers) {
            (1, _) => Ok(there.remove(0).1),
            // It says why.
            (0, false) => self.any().await,
            (0, true) if !exists => Err(no_partition(partition)),
            (0, true) => anyhow::bail!("{} is fenced on no node that answers", name_of(partition)),
            _ => anyhow::bail!(
                "{} is fenced on nodes {}: name one, with --node in a lab or as the only --admin",
                name_of(partition),
                nodes.join(", ")
            ),
        }
    }

    /// Of every node that answers; an error if none does.
    pub async fn every_status(&self) -> anyhow::Result<Vec<GetStatusResponse>> {
        let (mut found, mut last) = (Vec::new(), None);
        for answer in self.ask().await? {
            match answer.status {
                Ok(status) => found.push(status),
                Err(reason) => last = Some(format!("{}: {reason}", answer.name)),
            }
        }
        match last {
            Some(reason) if found.is_empty() => anyhow::bail!("no node answers; {reason}"),
            _ => Ok(found),
        }
    }
}

/// As a person says it.
pub fn name_of(partition: u32) -> String {
    if partition == 0 { "the meta group".to_owned() } else { format!("partition {partition}") }
}

fn no_partition(partition: u32) -> anyhow::Error {
    anyhow::anyhow!("partition {partition} does not exist; `carillonctl partition list` shows all")
}

/// `meta`, or the number of a partition.
pub fn partition(text: &str) -> Result<u32, String> {
    match text {
        "meta" => Ok(0),
        number => number.parse().map_err(|_| "it is neither a number nor `meta`".to_owned()),
    }
}
