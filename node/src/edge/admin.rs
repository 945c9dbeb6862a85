//! The operator plane: what `carillonctl` calls.
use super::backup::Backups;
use super::hours::HoursDesk;
use super::members::Members;
use super::quarantine::Quarantine;
use super::restore::Restores;
use crate::delivery::{Connect, LaneTable, has_baa};
use crate::engine::handle::GroupStatus;
use crate::engine::snapshot::ChunkStream;
use crate::engine::{NodeHandle, ProposeError};
use crate::hours::Hours;
use crate::meta::{Desk, MetaClient};
use crate::seal::Keyring;
use carillon_proto::admin::admin_server::Admin;
use carillon_proto::admin::{
    BalanceLeadersRequest, BalanceLeadersResponse, BeginRestoreRequest, BeginRestoreResponse, CarrierStatus,
    CheckHoursRequest, CheckHoursResponse, CheckRestoreRequest, CheckRestoreResponse, CreateTokenRequest,
    CreateTokenResponse, DamagedReplica, ExportMetaRequest, ExportMetaResponse, ExportPartitionRequest,
    ExportPartitionResponse, GetHoursRequest, GetHoursResponse, GetStatusRequest, GetStatusResponse,
    ListQuarantineRequest, ListQuarantineResponse, MovePartitionRequest, MovePartitionResponse,
    PartitionStatus, PausePracticeRequest, PausePracticeResponse, PutCarrierRequest, PutCarrierResponse,
    PutHoursRequest, PutHoursResponse, PutPolicyRequest, PutPolicyResponse, PutPracticeRequest,
    PutPracticeResponse, ReleaseExportRequest, ReleaseExportResponse, RepairReplicaRequest,
    RepairReplicaResponse, ResolveQuarantineRequest, ResolveQuarantineResponse, RestorePartitionRequest,
    RestorePartitionResponse, ScrubRequest, ScrubResponse, SetLogFilterRequest, SetLogFilterResponse,
    SetNodeRequest, SetNodeResponse, TransferLeaderRequest, TransferLeaderResponse,
};
use carillon_proto::errors::{self, invalid_fields, violation};
use carillon_proto::identity::{Role, is_name};
use carillon_proto::internal::{FetchSnapshotRequest, MetaCommand, PutCarrier, meta_command::Kind};
use carillon_proto::public::ErrorReason;
use carillon_proto::replica::node_of;
use carillon_proto::telemetry::Telemetry;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status, Streaming};

/// Heartbeats come several times a second.
const SILENT_AFTER: Duration = Duration::from_secs(5);

pub struct AdminApi {
    pub cluster_id: String,
    pub handle: NodeHandle,
    pub meta: MetaClient,
    pub keyring: Arc<Keyring>,
    pub telemetry: Option<Telemetry>,
    pub lanes: LaneTable,
    pub connect: Connect,
    pub hours: Hours,
    pub desk: Desk,
}

impl AdminApi {
    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        super::authorize(request, &self.cluster_id, |role| matches!(role, Role::Operator(_))).map(|_| ())
    }

    /// Followers of groups that this node leads answer its heartbeats, unless something is wrong.
    fn silent(&self, groups: &[GroupStatus]) -> Vec<u64> {
        let led = groups.iter().filter(|g| g.leader == self.handle.node_id());
        let followers: BTreeSet<u64> =
            led.flat_map(|g| g.followers.iter().map(|(id, _)| node_of(*id))).collect();
        let space = self.handle.space();
        followers.into_iter().filter(|node| space.is_silent(*node, SILENT_AFTER)).collect()
    }

    async fn change(&self, kind: Kind) -> Result<(), Status> {
        change(&self.meta, kind).await
    }

    fn backups(&self) -> Backups<'_> {
        Backups { handle: &self.handle, meta: &self.meta }
    }

    fn restores(&self) -> Restores<'_> {
        Restores { handle: &self.handle, meta: &self.meta, keyring: &self.keyring }
    }

    fn hours(&self) -> HoursDesk<'_> {
        HoursDesk { handle: &self.handle, meta: &self.meta, hours: &self.hours }
    }

    fn quarantine(&self) -> Quarantine<'_> {
        Quarantine { handle: &self.handle }
    }

    fn members(&self) -> Members<'_> {
        Members { handle: &self.handle, meta: &self.meta, desk: &self.desk }
    }
}

/// Runs one command of the meta group; a refusal tells the operator what to do.
pub(super) async fn change(meta: &MetaClient, kind: Kind) -> Result<(), Status> {
    let texts = meta
        .propose(vec![MetaCommand { kind: Some(kind) }])
        .await
        .map_err(|e| errors::status(ErrorReason::PartitionUnavailable, &e.to_string()))?;
    match texts.first().map(String::as_str) {
        None | Some("") => Ok(()),
        Some(text) => Err(Status::failed_precondition(text.to_owned())),
    }
}

#[tonic::async_trait]
impl Admin for AdminApi {
    async fn get_status(
        &self,
        request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        self.check(&request)?;
        let view = self.handle.meta();
        let groups = self.handle.status().await;
        let silent_nodes = self.silent(&groups);
        let partitions = groups.into_iter().map(|s| {
            // Index and digest are one row, so they belong together. A replica that cannot be read shows none.
            let tables = self.handle.local_tables(s.group).ok();
            let record = tables.and_then(|t| carillon_core::applied_record(&*t).ok()).unwrap_or_default();
            PartitionStatus {
                partition: s.group,
                leader: s.leader,
                term: s.term,
                commit: s.commit,
                applied: s.applied,
                last_index: s.last_index,
                blocked: s.blocked,
                digest: record.digest,
                digest_index: record.index,
                first_index: s.first_index,
                replica_id: s.replica_id,
            }
        });
        let carriers = view.carriers.values().map(|carrier| {
            let contract = self.connect.contract(carrier).ok().map(|contract| contract.get());
            let lane = self.lanes.status(carrier.carrier_no);
            CarrierStatus {
                carrier: Some(carrier.clone()),
                binds_up: lane.binds_up,
                in_flight: lane.in_flight,
                share_segments_per_second: lane.share_segments_per_second,
                paused_ms: lane.paused_ms,
                contract: contract.as_ref().map_or_else(String::new, |contract| contract.name.clone()),
                contract_version: contract.as_ref().map_or(0, |contract| contract.version),
                carries_phi: contract.is_some_and(|contract| has_baa(carrier, &contract)),
            }
        });
        Ok(Response::new(GetStatusResponse {
            cluster_id: view.cluster_id.clone(),
            node_id: self.handle.node_id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nodes: view.nodes.values().cloned().collect(),
            partitions: partitions.collect(),
            practices: view.practices.values().cloned().collect(),
            carriers: carriers.collect(),
            storage_near_full: self.handle.space().near_full(),
            map: view.map.values().cloned().collect(),
            shares: Some(view.shares.clone()),
            feature_level: view.level,
            restore: view.restore.clone(),
            silent_nodes,
            policies: view.policy_records(),
            pauses: view.pauses.values().filter(|pause| pause.paused).cloned().collect(),
        }))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        self.check(&request)?;
        self.members().create_token(request.into_inner()).await.map(Response::new)
    }

    async fn set_node(&self, request: Request<SetNodeRequest>) -> Result<Response<SetNodeResponse>, Status> {
        self.check(&request)?;
        self.members().set_node(&request.into_inner()).await?;
        Ok(Response::new(SetNodeResponse {}))
    }

    async fn move_partition(
        &self,
        request: Request<MovePartitionRequest>,
    ) -> Result<Response<MovePartitionResponse>, Status> {
        self.check(&request)?;
        self.members().move_partition(&request.into_inner()).await?;
        Ok(Response::new(MovePartitionResponse {}))
    }

    async fn repair_replica(
        &self,
        request: Request<RepairReplicaRequest>,
    ) -> Result<Response<RepairReplicaResponse>, Status> {
        self.check(&request)?;
        self.members().repair_replica(request.into_inner().partition).await?;
        Ok(Response::new(RepairReplicaResponse {}))
    }

    async fn balance_leaders(
        &self,
        request: Request<BalanceLeadersRequest>,
    ) -> Result<Response<BalanceLeadersResponse>, Status> {
        self.check(&request)?;
        self.members().balance_leaders()?;
        Ok(Response::new(BalanceLeadersResponse {}))
    }

    async fn get_hours(
        &self,
        request: Request<GetHoursRequest>,
    ) -> Result<Response<GetHoursResponse>, Status> {
        self.check(&request)?;
        Ok(Response::new(self.hours().get()))
    }

    async fn put_hours(
        &self,
        request: Request<PutHoursRequest>,
    ) -> Result<Response<PutHoursResponse>, Status> {
        self.check(&request)?;
        self.hours().put(request.into_inner()).await.map(Response::new)
    }

    async fn check_hours(
        &self,
        request: Request<CheckHoursRequest>,
    ) -> Result<Response<CheckHoursResponse>, Status> {
        self.check(&request)?;
        self.hours().check(request.get_ref()).map(Response::new)
    }

    async fn put_practice(
        &self,
        request: Request<PutPracticeRequest>,
    ) -> Result<Response<PutPracticeResponse>, Status> {
        self.check(&request)?;
        let practice = request.into_inner().practice.unwrap_or_default();
        let mut wrong = Vec::new();
        if !is_name(&practice.tenant) {
            wrong.push(violation("practice.tenant", "INVALID_NAME", "1 to 63 of a-z, 0-9 and -"));
        }
        if !is_name(&practice.practice) {
            wrong.push(violation("practice.practice", "INVALID_NAME", "1 to 63 of a-z, 0-9 and -"));
        }
        wrong.extend(self.hours().check_practice(&practice)?);
        if !wrong.is_empty() {
            return Err(invalid_fields(wrong));
        }
        let (tenant, name) = (practice.tenant.clone(), practice.practice.clone());
        self.change(Kind::PutPractice(practice)).await?;
        let stored = self.handle.meta().practice(&tenant, &name).cloned();
        let stored = stored.ok_or_else(|| super::internal("the practice was not stored"))?;
        // The first data key now, so that the first message does not wait for it.
        self.keyring.newest(stored.practice_no).await.map_err(|e| super::ingest::keyring_status(&e))?;
        Ok(Response::new(PutPracticeResponse { practice: Some(stored) }))
    }

    async fn put_policy(
        &self,
        request: Request<PutPolicyRequest>,
    ) -> Result<Response<PutPolicyResponse>, Status> {
        self.check(&request)?;
        self.change(Kind::PutPolicy(request.into_inner().policy.unwrap_or_default())).await?;
        Ok(Response::new(PutPolicyResponse {}))
    }

    async fn pause_practice(
        &self,
        request: Request<PausePracticeRequest>,
    ) -> Result<Response<PausePracticeResponse>, Status> {
        self.check(&request)?;
        let pause = super::policy::pause(&self.handle.meta(), &request.into_inner())?;
        self.change(Kind::PausePractice(pause)).await?;
        Ok(Response::new(PausePracticeResponse {}))
    }

    async fn put_carrier(
        &self,
        request: Request<PutCarrierRequest>,
    ) -> Result<Response<PutCarrierResponse>, Status> {
        self.check(&request)?;
        let carrier = request.into_inner().carrier.unwrap_or_default();
        let name = carrier.name.clone();
        // What the record alone cannot say; the rest is for the meta group to judge.
        if (carrier.smpp.is_some() || carrier.twilio.is_some())
            && let Err(reason) = self.connect.contract(&carrier)
        {
            return Err(invalid_fields(vec![violation("carrier.contract", "CONTRACT", &reason)]));
        }
        self.change(Kind::PutCarrier(PutCarrier { carrier: Some(carrier) })).await?;
        Ok(Response::new(PutCarrierResponse { carrier: self.handle.meta().carrier(&name).cloned() }))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        self.check(&request)?;
        let request = request.into_inner();
        self.members().check_transfer(&request)?;
        match self.handle.transfer_leader(request.partition, request.to_node).await {
            Ok(()) => Ok(Response::new(TransferLeaderResponse {})),
            Err(ProposeError::NotLeader { leader_hint }) => Err(Status::failed_precondition(format!(
                "this node does not lead partition {}; ask node {leader_hint}",
                request.partition
            ))),
            Err(error) => Err(Status::failed_precondition(error.to_string())),
        }
    }

    async fn export_partition(
        &self,
        request: Request<ExportPartitionRequest>,
    ) -> Result<Response<ExportPartitionResponse>, Status> {
        self.check(&request)?;
        self.backups().export(&request.into_inner()).await.map(Response::new)
    }

    type FetchExportStream = ChunkStream;

    async fn fetch_export(
        &self,
        request: Request<FetchSnapshotRequest>,
    ) -> Result<Response<ChunkStream>, Status> {
        self.check(&request)?;
        self.backups().fetch(request.into_inner()).map(Response::new)
    }

    async fn release_export(
        &self,
        request: Request<ReleaseExportRequest>,
    ) -> Result<Response<ReleaseExportResponse>, Status> {
        self.check(&request)?;
        self.backups().release(&request.into_inner());
        Ok(Response::new(ReleaseExportResponse {}))
    }

    async fn export_meta(
        &self,
        request: Request<ExportMetaRequest>,
    ) -> Result<Response<ExportMetaResponse>, Status> {
        self.check(&request)?;
        self.backups().meta().await.map(Response::new)
    }

    async fn check_restore(
        &self,
        request: Request<CheckRestoreRequest>,
    ) -> Result<Response<CheckRestoreResponse>, Status> {
        self.check(&request)?;
        self.restores().check(&request.into_inner())?;
        Ok(Response::new(CheckRestoreResponse {}))
    }

    async fn begin_restore(
        &self,
        request: Request<BeginRestoreRequest>,
    ) -> Result<Response<BeginRestoreResponse>, Status> {
        self.check(&request)?;
        self.restores().begin(request.into_inner()).await.map(Response::new)
    }

    async fn restore_partition(
        &self,
        request: Request<Streaming<RestorePartitionRequest>>,
    ) -> Result<Response<RestorePartitionResponse>, Status> {
        self.check(&request)?;
        self.restores().partition(request.into_inner()).await.map(Response::new)
    }

    async fn list_quarantine(
        &self,
        request: Request<ListQuarantineRequest>,
    ) -> Result<Response<ListQuarantineResponse>, Status> {
        self.check(&request)?;
        self.quarantine().list(request.into_inner()).await.map(Response::new)
    }

    async fn resolve_quarantine(
        &self,
        request: Request<ResolveQuarantineRequest>,
    ) -> Result<Response<ResolveQuarantineResponse>, Status> {
        self.check(&request)?;
        self.quarantine().resolve(&request.into_inner()).await.map(Response::new)
    }

    async fn scrub(&self, request: Request<ScrubRequest>) -> Result<Response<ScrubResponse>, Status> {
        self.check(&request)?;
        let report = self.handle.scrub().await;
        let report = report.ok_or_else(|| Status::failed_precondition("a scrub is running already"))?;
        let damaged = report.damaged.into_iter();
        Ok(Response::new(ScrubResponse {
            bytes: report.bytes,
            damaged: damaged.map(|(partition, reason)| DamagedReplica { partition, reason }).collect(),
        }))
    }

    async fn set_log_filter(
        &self,
        request: Request<SetLogFilterRequest>,
    ) -> Result<Response<SetLogFilterResponse>, Status> {
        self.check(&request)?;
        let filter = request.into_inner().filter;
        let telemetry =
            self.telemetry.as_ref().ok_or_else(|| Status::unimplemented("no logger installed"))?;
        telemetry
            .set_filter(&filter)
            .map_err(|e| invalid_fields(vec![violation("filter", "INVALID_FILTER", &e.to_string())]))?;
        tracing::info!(filter, "log filter changed");
        Ok(Response::new(SetLogFilterResponse {}))
    }
}
