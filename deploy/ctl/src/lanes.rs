//! The operator's calls about lanes and limits.
use crate::admin::{Admin, AdminError};
use carillon_proto::admin::lane_admin_client::LaneAdminClient;
use carillon_proto::admin::{
    DropLimitRequest, ListLanesRequest, ListLanesResponse, PutLimitRequest, PutLimitResponse,
    SetAccountLimitRequest, SetLaneRequest,
};
use tonic::transport::Channel;

impl Admin {
    fn lanes(&self) -> LaneAdminClient<Channel> {
        LaneAdminClient::new(self.channel.clone())
    }

    pub async fn list_lanes(&self, request: ListLanesRequest) -> Result<ListLanesResponse, AdminError> {
        let answer = self.lanes().list_lanes(Self::request(request)).await;
        Ok(answer.map_err(|s| AdminError::of("list of the lanes", s))?.into_inner())
    }

    pub async fn put_limit(&self, request: PutLimitRequest) -> Result<PutLimitResponse, AdminError> {
        let answer = self.lanes().put_limit(Self::request(request)).await;
        Ok(answer.map_err(|s| AdminError::of("limit put", s))?.into_inner())
    }

    pub async fn drop_limit(&self, request: DropLimitRequest) -> Result<(), AdminError> {
        let answer = self.lanes().drop_limit(Self::request(request)).await;
        answer.map(drop).map_err(|s| AdminError::of("limit drop", s))
    }

    pub async fn set_account_limit(&self, request: SetAccountLimitRequest) -> Result<(), AdminError> {
        let answer = self.lanes().set_account_limit(Self::request(request)).await;
        answer.map(drop).map_err(|s| AdminError::of("change of the limit", s))
    }

    pub async fn set_lane(&self, request: SetLaneRequest) -> Result<(), AdminError> {
        let answer = self.lanes().set_lane(Self::request(request)).await;
        answer.map(drop).map_err(|s| AdminError::of("change of the lane", s))
    }
}
