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
    GetForecastRequest, GetForecastResponse, ListBreakersRequest, ListBreakersResponse,
    ListDeadLettersRequest, ListDeadLettersResponse, ListRoutesRequest, ListRoutesResponse,
    ListUnknownRequest, ListUnknownResponse, PutRouteRequest, PutRouteResponse, ReplayDeadLettersRequest,
    ReplayDeadLettersResponse, ResolveUnknownRequest, ResolveUnknownResponse, SetBreakerRequest,
    SetBreakerResponse,
};
use carillon_proto::identity::Role;
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::{DropRoute, PutRoute};
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
