//! Lanes and limits, for operators: what is held and by whom, limits set while running, lanes stopped.
use super::admin::change;
use crate::clock::now_ms;
use crate::delivery::{Grants, LaneTable};
use crate::engine::NodeHandle;
use crate::meta::MetaClient;
use carillon_core::meta::{MetaView, ease_permille};
use carillon_delivery::lease::{LIMIT_BASE, day_of, stamp};
use carillon_proto::admin::lane_admin_server::LaneAdmin;
use carillon_proto::admin::{
    DropLimitRequest, DropLimitResponse, LaneBooks, LaneHolder, LaneStatus, ListLanesRequest,
    ListLanesResponse, PutLimitRequest, PutLimitResponse, SetAccountLimitRequest, SetAccountLimitResponse,
    SetLaneRequest, SetLaneResponse,
};
use carillon_proto::errors;
use carillon_proto::identity::Role;
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::{CarrierRecord, DropLimit, LimitRecord, PutCarrier, PutLimit, SetLane};
use carillon_proto::public::ErrorReason;
use std::time::Duration;
use tonic::{Request, Response, Status};

pub struct LaneApi {
    pub cluster_id: String,
    pub handle: NodeHandle,
    pub meta: MetaClient,
    pub lanes: LaneTable,
    pub grants: Grants,
}

/// Longer than a lease, an election and the lease after it.
const SETTLE_FOR: Duration = Duration::from_secs(10);

impl LaneApi {
    /// Returns when what was just recorded is in force everywhere: each node that may send has said that it keeps to it, or its lease has run out.
    async fn settled(&self) -> Result<(), Status> {
        // Below the level of leases nobody could say so.
        if !self.handle.meta().leases() || self.handle.meta().is_restoring() {
            return Ok(());
        }
        if self.lanes.until_settled(|| stamp(&self.handle.meta()), SETTLE_FOR).await {
            return Ok(());
        }
        Err(errors::status(
            ErrorReason::PartitionUnavailable,
            "it is recorded, and not known to be in force on every node yet: nobody leads the meta group long enough. Repeat the call to wait on",
        ))
    }

    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        super::authorize(request, &self.cluster_id, |role| matches!(role, Role::Operator(_))).map(|_| ())
    }

    fn carrier(&self, name: &str) -> Result<CarrierRecord, Status> {
        let found = self.handle.meta().carrier(name).cloned();
        found.ok_or_else(|| Status::not_found(format!("there is no carrier {name}")))
    }

    fn of_account(&self, view: &MetaView, carrier: &CarrierRecord) -> LaneStatus {
        let lane = view.lanes.get(&carrier.carrier_no);
        LaneStatus {
            carrier: carrier.name.clone(),
            segments_per_second: carrier.segments_per_second,
            ease_permille: ease_permille(lane, now_ms()),
            paused: lane.is_some_and(|lane| lane.paused),
            held_segments_per_second: self.lanes.held_of(carrier.carrier_no),
            ready: self.lanes.waiting(carrier.carrier_no),
            books: self.books(carrier.carrier_no),
            ..Default::default()
        }
    }

    fn of_limit(&self, view: &MetaView, limit: &LimitRecord) -> LaneStatus {
        let id = LIMIT_BASE + limit.limit_no;
        let practice = view.practices.get(&limit.practice_no);
        let day = (limit.window_s == 0).then(|| day_of(&limit.time_zone, now_ms())).flatten();
        let cap = view.caps.get(&limit.limit_no).filter(|cap| day.is_some_and(|(day, _)| cap.day == day));
        LaneStatus {
            carrier: view.carriers.get(&limit.carrier_no).map(|c| c.name.clone()).unwrap_or_default(),
            limit: Some(limit.clone()),
            practice: practice.map(|p| format!("{}/{}", p.tenant, p.practice)).unwrap_or_default(),
            ease_permille: 1_000,
            held_segments_per_second: self.lanes.held_of(id),
            cap_taken: cap.map_or(0, |cap| cap.taken),
            cap_left: self.lanes.cap_left(id).unwrap_or(0),
            ready: self.lanes.waiting(id),
            books: self.books(id),
            ..Default::default()
        }
    }

    fn books(&self, limit: u32) -> Option<LaneBooks> {
        let view = self.grants.view(limit)?;
        let holders = view.holders.into_iter();
        Some(LaneBooks {
            tokens: view.tokens,
            frame_us: u64::try_from(view.frame.as_micros()).unwrap_or(u64::MAX),
            held: view.held,
            resting: view.resting,
            holders: holders
                .map(|(node_id, tokens, segments)| LaneHolder { node_id, tokens, segments })
                .collect(),
        })
    }
}

#[tonic::async_trait]
impl LaneAdmin for LaneApi {
    async fn list_lanes(
        &self,
        request: Request<ListLanesRequest>,
    ) -> Result<Response<ListLanesResponse>, Status> {
        self.check(&request)?;
        let view = self.handle.meta();
        let accounts = view.carriers.values().map(|carrier| self.of_account(&view, carrier));
        let others = view.limits.values().map(|limit| self.of_limit(&view, limit));
        Ok(Response::new(ListLanesResponse {
            node_id: self.handle.node_id(),
            leases: view.leases(),
            has_books: self.handle.is_leader(0),
            lanes: accounts.chain(others).collect(),
        }))
    }

    async fn put_limit(
        &self,
        request: Request<PutLimitRequest>,
    ) -> Result<Response<PutLimitResponse>, Status> {
        self.check(&request)?;
        let PutLimitRequest { limit, carrier, tenant, practice } = request.into_inner();
        let mut limit = limit.unwrap_or_default();
        limit.carrier_no = self.carrier(&carrier)?.carrier_no;
        if !practice.is_empty() {
            let found = self.handle.meta().practice(&tenant, &practice).map(|record| record.practice_no);
            limit.practice_no = found
                .ok_or_else(|| Status::not_found(format!("there is no practice {tenant}/{practice}")))?;
        }
        if limit.window_s == 0 && day_of(&limit.time_zone, now_ms()).is_none() {
            return Err(Status::invalid_argument("time_zone must be the name of an IANA time zone"));
        }
        change(&self.meta, Kind::PutLimit(PutLimit { limit: Some(limit.clone()) })).await?;
        self.settled().await?;
        let same = |other: &&LimitRecord| {
            LimitRecord { limit_no: 0, ..(*other).clone() } == LimitRecord { limit_no: 0, ..limit.clone() }
        };
        let stored = self.handle.meta().limits.values().find(same).cloned();
        Ok(Response::new(PutLimitResponse { limit: stored }))
    }

    async fn drop_limit(
        &self,
        request: Request<DropLimitRequest>,
    ) -> Result<Response<DropLimitResponse>, Status> {
        self.check(&request)?;
        let limit_no = request.into_inner().limit_no;
        change(&self.meta, Kind::DropLimit(DropLimit { limit_no })).await?;
        Ok(Response::new(DropLimitResponse {}))
    }

    async fn set_account_limit(
        &self,
        request: Request<SetAccountLimitRequest>,
    ) -> Result<Response<SetAccountLimitResponse>, Status> {
        self.check(&request)?;
        let SetAccountLimitRequest { carrier, segments_per_second } = request.into_inner();
        let carrier = CarrierRecord { segments_per_second, ..self.carrier(&carrier)? };
        change(&self.meta, Kind::PutCarrier(PutCarrier { carrier: Some(carrier) })).await?;
        self.settled().await?;
        Ok(Response::new(SetAccountLimitResponse {}))
    }

    async fn set_lane(&self, request: Request<SetLaneRequest>) -> Result<Response<SetLaneResponse>, Status> {
        self.check(&request)?;
        let SetLaneRequest { carrier, paused } = request.into_inner();
        let carrier_no = self.carrier(&carrier)?.carrier_no;
        change(&self.meta, Kind::SetLane(SetLane { carrier_no, paused })).await?;
        self.settled().await?;
        Ok(Response::new(SetLaneResponse {}))
    }
}
