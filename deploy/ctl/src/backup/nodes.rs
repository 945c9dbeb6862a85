//! The operator planes of all nodes of a cluster, and who leads what at the moment.
use super::BackupError;
use crate::admin::{Admin, AdminError};
use carillon_proto::admin::GetStatusResponse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A partition may be without a leader for so long.
const LEADER_LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(300);

/// Every node that can be asked.
pub struct Nodes {
    admins: Vec<Admin>,
}

impl Nodes {
    pub fn new(admins: Vec<Admin>) -> Self {
        Self { admins }
    }

    pub fn admins(&self) -> &[Admin] {
        &self.admins
    }

    /// What every node says, with its connection. Nodes that do not answer are left out; none at all is an error.
    pub async fn statuses(&self) -> Result<Vec<(GetStatusResponse, &Admin)>, BackupError> {
        let (mut found, mut last) = (Vec::new(), None);
        for admin in &self.admins {
            match admin.status().await {
                Ok(status) => found.push((status, admin)),
                Err(error) => last = Some(error),
            }
        }
        match (found.is_empty(), last) {
            (true, Some(error)) => Err(error.into()),
            (true, None) => Err(BackupError::Wrong("name at least one node".to_owned())),
            _ => Ok(found),
        }
    }

    /// The node that leads a partition, as those with the newest term see it, if we can reach it.
    async fn leader(&self, partition: u32) -> Result<Option<(u64, &Admin)>, BackupError> {
        let statuses = self.statuses().await?;
        let by_id: BTreeMap<u64, &Admin> = statuses.iter().map(|(s, admin)| (s.node_id, *admin)).collect();
        let seen = statuses.iter().flat_map(|(s, _)| &s.partitions).filter(|p| p.partition == partition);
        let newest = seen.filter(|p| p.leader != 0).max_by_key(|p| p.term);
        Ok(newest.and_then(|p| Some((p.leader, *by_id.get(&p.leader)?))))
    }

    /// Runs a call on the leader of a partition; on another one when leadership moves meanwhile.
    pub async fn on_leader<T, F>(
        &self,
        partition: u32,
        call: impl Fn(u64, Admin) -> F,
    ) -> Result<T, BackupError>
    where
        F: Future<Output = Result<T, BackupError>>,
    {
        let until = Instant::now() + LEADER_LIMIT;
        loop {
            let failed = match self.leader(partition).await? {
                Some((node, admin)) => match call(node, admin.clone()).await {
                    Err(error) if is_transient(&error) => error,
                    done => return done,
                },
                None => BackupError::Wrong(format!(
                    "the leader of partition {partition} is not known or not among the named nodes; name all nodes with --admin"
                )),
            };
            if Instant::now() >= until {
                return Err(failed);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn is_transient(error: &BackupError) -> bool {
    match error {
        BackupError::Stalled(_) => true,
        BackupError::Admin(AdminError::Failed { code, .. }) if *code == tonic::Code::ResourceExhausted => {
            true
        }
        BackupError::Admin(error) => error.is_transient(),
        _ => false,
    }
}
