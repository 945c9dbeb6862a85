//! The operator plane for what is being delivered. Only checks and dispatch; the work is in the sibling modules.
use super::admin::change;
use super::dead_letters::DeadLetters;
use super::forecasts;
use super::ingest::Ingest;
use super::unknown::Unknown;
use crate::delivery::backlog::Looker;
use crate::engine::NodeHandle;
use crate::meta::MetaClient;
use crate::seal::Keyring;
use carillon_proto::admin::delivery_admin_server::DeliveryAdmin;
use carillon_proto::admin::{
    BreakerStatus, DropDeadLettersRequest, DropDeadLettersResponse, DropRouteRequest, DropRouteResponse,
    DropSenderRequest, DropSenderResponse, GetForecastRequest, GetForecastResponse, ListBreakersRequest,
    ListBreakersResponse, ListDeadLettersRequest, ListDeadLettersResponse, ListRoutesRequest,
    ListRoutesResponse, ListSendersRequest, ListSendersResponse, ListUnknownRequest, ListUnknownResponse,
    PutRouteRequest, PutRouteResponse, PutSenderRequest, PutSenderResponse, ReplayDeadLettersRequest,
    ReplayDeadLettersResponse, ResolveUnknownRequest, ResolveUnknownResponse, SenderStatus,
    SetBreakerRequest, SetBreakerResponse,
};
use carillon_proto::identity::Role;
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::{DropRoute, DropSender, PutRoute, PutSender, SenderRecord};
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub struct DeliveryAdminApi {
    pub cluster_id: String,
    pub handle: NodeHandle,
    pub keyring: Arc<Keyring>,
    pub ingest: Ingest,
    pub looker: Looker,
    pub meta: MetaClient,
}

impl DeliveryAdminApi {
    /// Gives the operator's name.
    fn check<T>(&self, request: &Request<T>) -> Result<String, Status> {
        match super::authorize(request, &self.cluster_id, |role| matches!(role, Role::Operator(_)))? {
            Role::Operator(name) => Ok(name),
            _ => Err(super::internal("role was checked")),
        }
    }

    fn dead_letters(&self) -> DeadLetters<'_> {
        DeadLetters { handle: &self.handle, keyring: &self.keyring, ingest: &self.ingest }
    }
}

#[tonic::async_trait]
impl DeliveryAdmin for DeliveryAdminApi {
    async fn list_dead_letters(
        &self,
        request: Request<ListDeadLettersRequest>,
    ) -> Result<Response<ListDeadLettersResponse>, Status> {
        self.check(&request)?;
        self.dead_letters().list(request.into_inner()).await.map(Response::new)
    }

    async fn replay_dead_letters(
        &self,
        request: Request<ReplayDeadLettersRequest>,
    ) -> Result<Response<ReplayDeadLettersResponse>, Status> {
        self.check(&request)?;
        self.dead_letters().replay(request.into_inner()).await.map(Response::new)
    }

    async fn drop_dead_letters(
        &self,
        request: Request<DropDeadLettersRequest>,
    ) -> Result<Response<DropDeadLettersResponse>, Status> {
        self.check(&request)?;
        self.dead_letters().discard(request.into_inner()).await.map(Response::new)
    }

    async fn list_unknown(
        &self,
        request: Request<ListUnknownRequest>,
    ) -> Result<Response<ListUnknownResponse>, Status> {
        self.check(&request)?;
        Unknown { handle: &self.handle }.list(request.into_inner()).await.map(Response::new)
    }

    async fn resolve_unknown(
        &self,
        request: Request<ResolveUnknownRequest>,
    ) -> Result<Response<ResolveUnknownResponse>, Status> {
        let operator = self.check(&request)?;
        Unknown { handle: &self.handle }.resolve(&operator, request.into_inner()).await.map(Response::new)
    }

    async fn get_forecast(
        &self,
        request: Request<GetForecastRequest>,
    ) -> Result<Response<GetForecastResponse>, Status> {
        self.check(&request)?;
        forecasts::forecast(&self.looker, request.into_inner()).await.map(Response::new)
    }

    async fn put_route(
        &self,
        request: Request<PutRouteRequest>,
    ) -> Result<Response<PutRouteResponse>, Status> {
        self.check(&request)?;
        let route =
            request.into_inner().route.ok_or_else(|| Status::invalid_argument("route is required"))?;
        change(&self.meta, Kind::PutRoute(PutRoute { route: Some(route) })).await?;
        Ok(Response::new(PutRouteResponse {}))
    }

    async fn drop_route(
        &self,
        request: Request<DropRouteRequest>,
    ) -> Result<Response<DropRouteResponse>, Status> {
        self.check(&request)?;
        change(&self.meta, Kind::DropRoute(DropRoute { name: request.into_inner().name })).await?;
        Ok(Response::new(DropRouteResponse {}))
    }

    async fn list_routes(
        &self,
        request: Request<ListRoutesRequest>,
    ) -> Result<Response<ListRoutesResponse>, Status> {
        self.check(&request)?;
        let mut routes: Vec<_> = self.handle.meta().routes.values().cloned().collect();
        routes.sort_by(|a, b| (a.rank, &a.name).cmp(&(b.rank, &b.name)));
        Ok(Response::new(ListRoutesResponse { routes }))
    }

    async fn put_sender(
        &self,
        request: Request<PutSenderRequest>,
    ) -> Result<Response<PutSenderResponse>, Status> {
        self.check(&request)?;
        let PutSenderRequest { carrier, sender } = request.into_inner();
        if sender.is_none() {
            return Err(Status::invalid_argument("sender is required"));
        }
        change(&self.meta, Kind::PutSender(PutSender { carrier, sender })).await?;
        Ok(Response::new(PutSenderResponse {}))
    }

    async fn drop_sender(
        &self,
        request: Request<DropSenderRequest>,
    ) -> Result<Response<DropSenderResponse>, Status> {
        self.check(&request)?;
        let DropSenderRequest { carrier, address } = request.into_inner();
        change(&self.meta, Kind::DropSender(DropSender { carrier, address })).await?;
        Ok(Response::new(DropSenderResponse {}))
    }

    async fn list_senders(
        &self,
        request: Request<ListSendersRequest>,
    ) -> Result<Response<ListSendersResponse>, Status> {
        self.check(&request)?;
        let (view, wanted) = (self.handle.meta(), request.into_inner().carrier);
        if !wanted.is_empty() && view.carrier(&wanted).is_none() {
            return Err(Status::not_found("no such carrier"));
        }
        let row = |((carrier_no, _), sender): (&(u32, u32), &SenderRecord)| {
            let carrier = view.carriers.get(carrier_no)?.name.clone();
            let (state, refused_for_ms) = self.looker.sender_state(sender);
            let row = SenderStatus {
                carrier,
                sender: Some(sender.clone()),
                state: state.to_owned(),
                refused_for_ms,
            };
            (wanted.is_empty() || row.carrier == wanted).then_some(row)
        };
        Ok(Response::new(ListSendersResponse { senders: view.senders.iter().filter_map(row).collect() }))
    }

    async fn set_breaker(
        &self,
        request: Request<SetBreakerRequest>,
    ) -> Result<Response<SetBreakerResponse>, Status> {
        self.check(&request)?;
        let asked = request.into_inner().breaker;
        let breaker = asked.ok_or_else(|| Status::invalid_argument("breaker is required"))?;
        tracing::info!(
            carrier = breaker.carrier,
            mode = breaker.mode().as_str_name(),
            "breaker set by an operator"
        );
        change(&self.meta, Kind::SetBreaker(breaker)).await?;
        Ok(Response::new(SetBreakerResponse {}))
    }

    async fn list_breakers(
        &self,
        request: Request<ListBreakersRequest>,
    ) -> Result<Response<ListBreakersResponse>, Status> {
        self.check(&request)?;
        let view = self.handle.meta();
        let breakers = view.carriers.values().map(|carrier| {
            let look = self.looker.breaker(carrier.carrier_no);
            let state = match (look.open, look.half_open) {
                (true, _) => "open",
                (false, true) => "half_open",
                (false, false) => "closed",
            };
            BreakerStatus {
                carrier: carrier.name.clone(),
                mode: look.mode as i32,
                state: state.to_owned(),
                open_for_ms: look.open_for_ms,
            }
        });
        Ok(Response::new(ListBreakersResponse { breakers: breakers.collect() }))
    }
}
