//! The lab directory that the local-cluster launcher makes: where everything listens, and with which certificates.
//!
//! Owns: reading `lab.json`. Unknown keys are left alone: the launcher owns the format.

use std::path::{Path, PathBuf};

use carillon_proto::identity::{Identity, Role};
use carillon_proto::tls::{TlsError, TlsFiles, certificates};
use serde::Deserialize;

/// A lab directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error("cannot read {path}: {why}")]
    Read { path: String, why: String },
    #[error("the tenant certificate names no tenant")]
    NoTenant,
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A node of the lab.
#[derive(Clone, Debug, Deserialize)]
pub struct LabNode {
    pub id: u64,
    /// host:port of its side port.
    pub http: String,
    pub pid: u32,
}

/// `lab.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Lab {
    /// host:port of the public API.
    pub router: String,
    #[serde(default)]
    pub router_http: Option<String>,
    pub ca: PathBuf,
    pub tenant_cert: PathBuf,
    pub tenant_key: PathBuf,
    pub nodes: Vec<LabNode>,
    /// host:port of the carrier simulator's side port.
    pub smsc_http: String,
    /// The same of the second simulator, if the lab was made with one.
    #[serde(default)]
    pub smsc_http_http: Option<String>,
    /// Processes besides the nodes; unknown in a lab that an older launcher made.
    #[serde(default)]
    pub router_pid: Option<u32>,
    #[serde(default)]
    pub smsc_pid: Option<u32>,
    #[serde(skip)]
    pub dir: PathBuf,
}

impl Lab {
    /// Reads `dir/lab.json`; relative paths in it count from `dir`.
    pub fn open(dir: &Path) -> Result<Self, LabError> {
        let path = dir.join("lab.json");
        let read = |why: String| LabError::Read { path: path.display().to_string(), why };
        let text = fs_err::read_to_string(&path).map_err(|e| read(e.to_string()))?;
        let mut lab: Self = serde_json::from_str(&text).map_err(|e| read(e.to_string()))?;
        if lab.nodes.is_empty() {
            return Err(read("it lists no nodes".to_owned()));
        }
        for file in [&mut lab.ca, &mut lab.tenant_cert, &mut lab.tenant_key] {
            *file = dir.join(&file);
        }
        lab.dir = dir.to_owned();
        Ok(lab)
    }

    pub fn tls(&self) -> TlsFiles {
        TlsFiles { cert: self.tenant_cert.clone(), key: self.tenant_key.clone(), ca: self.ca.clone() }
    }

    /// The tenant that the certificate speaks for.
    pub fn tenant(&self) -> Result<String, LabError> {
        let chain = certificates(&self.tenant_cert)?;
        match chain.first().and_then(|leaf| Identity::of_certificate(leaf)).map(|identity| identity.role) {
            Some(Role::Tenant(name)) => Ok(name),
            _ => Err(LabError::NoTenant),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_is_read_and_its_paths_are_made_absolute() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"router":"127.0.0.1:7000","router_http":"127.0.0.1:7001","ca":"pki/ca.pem",
            "tenant_cert":"/abs/t.pem","tenant_key":"pki/t.key","smsc_http":"127.0.0.1:7002","new_key":1,
            "nodes":[{"id":1,"http":"127.0.0.1:7003","pid":77}]}"#;
        std::fs::write(dir.path().join("lab.json"), text).unwrap();
        let lab = Lab::open(dir.path()).unwrap();
        assert_eq!(lab.ca, dir.path().join("pki/ca.pem"));
        assert_eq!(lab.tenant_cert, Path::new("/abs/t.pem"));
        assert_eq!((lab.nodes[0].id, lab.nodes[0].pid), (1, 77));
        std::fs::write(
            dir.path().join("lab.json"),
            text.replace(r#"{"id":1,"http":"127.0.0.1:7003","pid":77}"#, ""),
        )
        .unwrap();
        assert!(Lab::open(dir.path()).unwrap_err().to_string().contains("no nodes"));
    }
}
