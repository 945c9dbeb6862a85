//! Whom a command goes to: one node, any node, the leader of a group, or everybody.
use anyhow::Context as _;
use carillon_ctl::admin::{Admin, AdminError};
use carillon_ctl::health::{Answer, Asked, ask};
use carillon_ctl::lab::Lab;
use carillon_proto::admin::GetStatusResponse;
use carillon_proto::tls::TlsFiles;
use clap::Args;
use std::path::{Path, PathBuf};

/// Whom to ask: a lab, or addresses with an operator's certificate.
#[derive(Debug, Args)]
pub struct Target {
    /// Directory of a lab; its operator certificate is used.
    #[arg(long, conflicts_with_all = ["admin", "cert", "key", "ca"], required_unless_present = "admin")]
    lab: Option<PathBuf>,
    /// The node of the lab that a command about one node is about. Other commands ask any node.
    #[arg(long, default_value_t = 1, requires = "lab")]
    node: u64,
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
            return Ok(Lab::open(dir)?.admin(self.node)?);
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
