//! Calls of the operator plane about what is being delivered.
use crate::admin::{Admin, AdminError};
use carillon_proto::admin::{
    BreakerStatus, DropDeadLettersRequest, DropDeadLettersResponse, DropRouteRequest, DropSenderRequest,
    GetForecastRequest, GetForecastResponse, ListBreakersRequest, ListDeadLettersRequest,
    ListDeadLettersResponse, ListRoutesRequest, ListSendersRequest, ListUnknownRequest, ListUnknownResponse,
    PutRouteRequest, PutSenderRequest, ReplayDeadLettersRequest, ReplayDeadLettersResponse,
    ResolveUnknownRequest, ResolveUnknownResponse, SenderStatus, SetBreakerRequest,
};
use carillon_proto::internal::{BreakerMode, RouteRecord, SenderRecord, SetBreaker};
use std::time::Duration;
use tonic::Request;

/// A node may read a million rows for one answer.
const TIMEOUT: Duration = Duration::from_secs(60);

fn long<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}

impl Admin {
    pub async fn list_dead_letters(
        &self,
        request: ListDeadLettersRequest,
    ) -> Result<ListDeadLettersResponse, AdminError> {
        let answer = self.delivery.clone().list_dead_letters(long(request)).await;
        Ok(answer.map_err(|s| AdminError::of("list of dead letters", s))?.into_inner())
    }

    pub async fn replay_dead_letters(
        &self,
        request: ReplayDeadLettersRequest,
    ) -> Result<ReplayDeadLettersResponse, AdminError> {
        let answer = self.delivery.clone().replay_dead_letters(long(request)).await;
        Ok(answer.map_err(|s| AdminError::of("replay of dead letters", s))?.into_inner())
    }

    pub async fn drop_dead_letters(
        &self,
        request: DropDeadLettersRequest,
    ) -> Result<DropDeadLettersResponse, AdminError> {
        let answer = self.delivery.clone().drop_dead_letters(long(request)).await;
        Ok(answer.map_err(|s| AdminError::of("drop of dead letters", s))?.into_inner())
    }

    pub async fn list_unknown(&self, request: ListUnknownRequest) -> Result<ListUnknownResponse, AdminError> {
        let answer = self.delivery.clone().list_unknown(long(request)).await;
        Ok(answer.map_err(|s| AdminError::of("list of lost answers", s))?.into_inner())
    }

    pub async fn resolve_unknown(
        &self,
        request: ResolveUnknownRequest,
    ) -> Result<ResolveUnknownResponse, AdminError> {
        let answer = self.delivery.clone().resolve_unknown(long(request)).await;
        Ok(answer.map_err(|s| AdminError::of("change of lost answers", s))?.into_inner())
    }

    pub async fn forecast(&self, request: GetForecastRequest) -> Result<GetForecastResponse, AdminError> {
        let answer = self.delivery.clone().get_forecast(long(request)).await;
        Ok(answer.map_err(|s| AdminError::of("forecast", s))?.into_inner())
    }

    pub async fn put_route(&self, route: RouteRecord) -> Result<(), AdminError> {
        let answer = self.delivery.clone().put_route(long(PutRouteRequest { route: Some(route) })).await;
        answer.map(drop).map_err(|s| AdminError::of("change of the route", s))
    }

    pub async fn drop_route(&self, name: &str) -> Result<(), AdminError> {
        let answer = self.delivery.clone().drop_route(long(DropRouteRequest { name: name.to_owned() })).await;
        answer.map(drop).map_err(|s| AdminError::of("removal of the route", s))
    }

    /// In the order in which they are looked at.
    pub async fn routes(&self) -> Result<Vec<RouteRecord>, AdminError> {
        let answer = self.delivery.clone().list_routes(long(ListRoutesRequest {})).await;
        Ok(answer.map_err(|s| AdminError::of("list of routes", s))?.into_inner().routes)
    }

    pub async fn put_sender(&self, carrier: &str, sender: SenderRecord) -> Result<(), AdminError> {
        let request = PutSenderRequest { carrier: carrier.to_owned(), sender: Some(sender) };
        let answer = self.delivery.clone().put_sender(long(request)).await;
        answer.map(drop).map_err(|s| AdminError::of("change of the sender", s))
    }

    pub async fn drop_sender(&self, carrier: &str, address: &str) -> Result<(), AdminError> {
        let request = DropSenderRequest { carrier: carrier.to_owned(), address: address.to_owned() };
        let answer = self.delivery.clone().drop_sender(long(request)).await;
        answer.map(drop).map_err(|s| AdminError::of("removal of the sender", s))
    }

    /// Of one carrier, or (empty) of all.
    pub async fn senders(&self, carrier: &str) -> Result<Vec<SenderStatus>, AdminError> {
        let request = ListSendersRequest { carrier: carrier.to_owned() };
        let answer = self.delivery.clone().list_senders(long(request)).await;
        Ok(answer.map_err(|s| AdminError::of("list of senders", s))?.into_inner().senders)
    }

    pub async fn set_breaker(&self, carrier: &str, mode: BreakerMode) -> Result<(), AdminError> {
        let breaker = Some(SetBreaker { carrier: carrier.to_owned(), mode: mode as i32 });
        let answer = self.delivery.clone().set_breaker(long(SetBreakerRequest { breaker })).await;
        answer.map(drop).map_err(|s| AdminError::of("change of the breaker", s))
    }

    /// Of the lanes of the node that is asked.
    pub async fn breakers(&self) -> Result<Vec<BreakerStatus>, AdminError> {
        let answer = self.delivery.clone().list_breakers(long(ListBreakersRequest {})).await;
        Ok(answer.map_err(|s| AdminError::of("list of breakers", s))?.into_inner().breakers)
    }
}
