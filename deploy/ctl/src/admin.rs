//! A connection to the admin API of a node, with an operator's certificate.
//!
//! Owns: connecting, deadlines, and the rule which answers are worth a repeat. Every call has a deadline.
use carillon_proto::admin::admin_client::AdminClient;
use carillon_proto::admin::delivery_admin_client::DeliveryAdminClient;
use carillon_proto::admin::{
    BalanceLeadersRequest, CheckHoursRequest, CheckHoursResponse, CreateTokenRequest, CreateTokenResponse,
    GetHoursRequest, GetHoursResponse, GetStatusRequest, GetStatusResponse, MovePartitionRequest, NodeAction,
    PausePracticeRequest, PutCarrierRequest, PutHoursRequest, PutPolicyRequest, PutPracticeRequest,
    RepairReplicaRequest, ScrubRequest, ScrubResponse, SetLogFilterRequest, SetNodeRequest,
    TransferLeaderRequest,
};
use carillon_proto::identity::Role;
use carillon_proto::internal::{CarrierRecord, PracticeRecord, PutPolicy, PutPractice};
use carillon_proto::tls::{self, TlsError, TlsFiles};
use carillon_proto::transport::Cause;
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Longest single call.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// Reading a full disk slowly takes hours.
const SCRUB_TIMEOUT: Duration = Duration::from_secs(24 * 3_600);
const RETRY_PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The cluster understood and said no.
    #[error("refused: {}", .0.message())]
    Refused(Status),
    #[error("{what} failed: {message}")]
    Failed { what: &'static str, code: Code, message: String },
    /// No connection because of a certificate, theirs or ours: a repeat does not help.
    #[error("{what} failed: {message}")]
    Untrusted { what: &'static str, message: String },
    #[error("{0} came back empty")]
    Empty(&'static str),
}

impl AdminError {
    pub(crate) fn of(what: &'static str, status: Status) -> Self {
        if let Some(cause) = Cause::of(&status).filter(Cause::is_permanent) {
            return Self::Untrusted { what, message: format!("{cause}; {}", cause.remedy()) };
        }
        match status.code() {
            Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::PermissionDenied
            | Code::NotFound
            | Code::AlreadyExists => Self::Refused(status),
            code => Self::Failed { what, code, message: full_message(&status) },
        }
    }

    /// Whether the same call may work a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        use Code as C;
        matches!(
            self,
            Self::Failed { code: C::Unavailable | C::DeadlineExceeded | C::Cancelled | C::Unknown, .. }
        )
    }
}

/// "transport error" alone helps nobody: what failed, and what to do about it.
fn full_message(status: &Status) -> String {
    match Cause::of(status) {
        Some(cause) => format!("{cause}; {}", cause.remedy()),
        None => status.message().to_owned(),
    }
}

/// The admin API of one node. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    pub(crate) client: AdminClient<Channel>,
    pub(crate) delivery: DeliveryAdminClient<Channel>,
    /// For the other services on the same port.
    pub(crate) channel: Channel,
}

impl Admin {
    /// Does not connect before the first call. With `node`, a server that is not this node is refused.
    pub fn connect(address: &str, files: &TlsFiles, node: Option<u64>) -> Result<Self, AdminError> {
        tls::install_provider();
        let channel = tls::channel(address, tls::client_config(files)?, node.map(Role::Node))?;
        let delivery = DeliveryAdminClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let client = AdminClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        Ok(Self { client, delivery, channel })
    }

    pub(crate) fn request<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(CALL_TIMEOUT);
        request
    }

    pub async fn status(&self) -> Result<GetStatusResponse, AdminError> {
        let mut client = self.client.clone();
        let answer = client.get_status(Self::request(GetStatusRequest {})).await;
        Ok(answer.map_err(|s| AdminError::of("status", s))?.into_inner())
    }

    pub async fn put_carrier(&self, carrier: CarrierRecord) -> Result<CarrierRecord, AdminError> {
        let mut client = self.client.clone();
        let answer = client.put_carrier(Self::request(PutCarrierRequest { carrier: Some(carrier) })).await;
        let answer = answer.map_err(|s| AdminError::of("carrier put", s))?;
        answer.into_inner().carrier.ok_or(AdminError::Empty("carrier put"))
    }

    pub async fn put_practice(&self, practice: PutPractice) -> Result<PracticeRecord, AdminError> {
        let mut client = self.client.clone();
        let answer =
            client.put_practice(Self::request(PutPracticeRequest { practice: Some(practice) })).await;
        let answer = answer.map_err(|s| AdminError::of("practice put", s))?;
        answer.into_inner().practice.ok_or(AdminError::Empty("practice put"))
    }

    pub async fn hours(&self) -> Result<GetHoursResponse, AdminError> {
        let answer = self.client.clone().get_hours(Self::request(GetHoursRequest {})).await;
        Ok(answer.map_err(|s| AdminError::of("hours", s))?.into_inner())
    }

    /// Puts rules into force, or only checks them; gives the version in force then.
    pub async fn put_hours(&self, put: PutHoursRequest) -> Result<u64, AdminError> {
        let answer = self.client.clone().put_hours(Self::request(put)).await;
        Ok(answer.map_err(|s| AdminError::of("change of the hours", s))?.into_inner().version)
    }

    pub async fn check_hours(&self, check: CheckHoursRequest) -> Result<CheckHoursResponse, AdminError> {
        let answer = self.client.clone().check_hours(Self::request(check)).await;
        Ok(answer.map_err(|s| AdminError::of("look at the hours", s))?.into_inner())
    }

    pub async fn put_policy(&self, policy: PutPolicy) -> Result<(), AdminError> {
        let mut client = self.client.clone();
        let answer = client.put_policy(Self::request(PutPolicyRequest { policy: Some(policy) })).await;
        answer.map(drop).map_err(|s| AdminError::of("change of the policy", s))
    }

    pub async fn pause_practice(&self, pause: PausePracticeRequest) -> Result<(), AdminError> {
        let mut client = self.client.clone();
        let answer = client.pause_practice(Self::request(pause)).await;
        answer.map(drop).map_err(|s| AdminError::of("pause of the practice", s))
    }

    pub async fn transfer_leader(&self, partition: u32, to_node: u64) -> Result<(), AdminError> {
        let mut client = self.client.clone();
        let answer =
            client.transfer_leader(Self::request(TransferLeaderRequest { partition, to_node })).await;
        answer.map(drop).map_err(|s| AdminError::of("transfer of the leader", s))
    }

    /// A fenced replica of this node is replaced by a new copy; answers when that is begun.
    pub async fn repair_replica(&self, partition: u32) -> Result<(), AdminError> {
        let answer =
            self.client.clone().repair_replica(Self::request(RepairReplicaRequest { partition })).await;
        answer.map(drop).map_err(|s| AdminError::of("repair of the replica", s))
    }

    /// Answers when the node has read everything.
    pub async fn scrub(&self) -> Result<ScrubResponse, AdminError> {
        let mut request = Request::new(ScrubRequest {});
        request.set_timeout(SCRUB_TIMEOUT);
        let answer = self.client.clone().scrub(request).await;
        Ok(answer.map_err(|s| AdminError::of("scrub", s))?.into_inner())
    }

    /// Allows one node to join. 0 = for an hour.
    pub async fn create_token(&self, life_s: u32) -> Result<CreateTokenResponse, AdminError> {
        let mut client = self.client.clone();
        let answer = client.create_token(Self::request(CreateTokenRequest { life_s })).await;
        Ok(answer.map_err(|s| AdminError::of("node token", s))?.into_inner())
    }

    pub async fn set_node(&self, node_id: u64, action: NodeAction) -> Result<(), AdminError> {
        let mut client = self.client.clone();
        let request = SetNodeRequest { node_id, action: action.into() };
        let answer = client.set_node(Self::request(request)).await;
        answer.map(drop).map_err(|s| AdminError::of("change of the node", s))
    }

    pub async fn move_partition(
        &self,
        partition: u32,
        from_node: u64,
        to_node: u64,
    ) -> Result<(), AdminError> {
        let mut client = self.client.clone();
        let request = MovePartitionRequest { partition, from_node, to_node };
        let answer = client.move_partition(Self::request(request)).await;
        answer.map(drop).map_err(|s| AdminError::of("partition move", s))
    }

    pub async fn balance_leaders(&self) -> Result<(), AdminError> {
        let mut client = self.client.clone();
        let answer = client.balance_leaders(Self::request(BalanceLeadersRequest {})).await;
        answer.map(drop).map_err(|s| AdminError::of("leader balance", s))
    }

    pub async fn set_log_filter(&self, filter: &str) -> Result<(), AdminError> {
        let mut client = self.client.clone();
        let request = SetLogFilterRequest { filter: filter.to_owned() };
        let answer = client.set_log_filter(Self::request(request)).await;
        answer.map(drop).map_err(|s| AdminError::of("change of the log filter", s))
    }
}

/// Repeats a call while the cluster has no leader for it, at most for `limit`.
pub async fn retry<T, F>(limit: Duration, call: impl Fn() -> F) -> Result<T, AdminError>
where
    F: Future<Output = Result<T, AdminError>>,
{
    let until = Instant::now() + limit;
    loop {
        match call().await {
            Err(error) if error.is_transient() && Instant::now() < until => {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            result => return result,
        }
    }
}
