//! Follows WatchEvents through broken streams: goes on from the last cursor.
//!
//! Owns: [`follow`]. Events come at least once; whoever reads them must not mind a repetition.

use std::time::Duration;

use carillon_proto::public::{Event, WatchEventsRequest};
use carillon_proto::transport::Cause;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use crate::client::{Backoff, Client, retry_delay};

/// Deadline of one stream; it is opened again afterwards.
const STREAM_DEADLINE: Duration = Duration::from_secs(600);
/// The server says something at least every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// What following took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchStats {
    pub streams_opened: u64,
    pub events: u64,
}

/// Gives every event of the tenant from now on to `take`, until `stop`. Returns an error only when the server
/// refuses for good.
pub async fn follow(
    client: Client,
    stop: CancellationToken,
    mut opened: impl FnMut(),
    mut take: impl FnMut(&Event),
) -> Result<WatchStats, Status> {
    let (mut stats, mut cursor, mut backoff) = (WatchStats::default(), String::new(), Backoff::default());
    loop {
        stats.streams_opened += 1;
        let one = stream(&client, &mut cursor, &mut backoff, &mut stats, &mut opened, &mut take);
        let status = tokio::select! {
            () = stop.cancelled() => return Ok(stats),
            status = one => status,
        };
        let refused = matches!(
            status.code(),
            Code::InvalidArgument | Code::PermissionDenied | Code::Unimplemented | Code::Unauthenticated
        );
        if refused || Cause::of(&status).is_some_and(|cause| cause.is_permanent()) {
            return Err(status);
        }
        tracing::info!(code = ?status.code(), "event stream ended; going on from its cursor");
        tokio::select! {
            () = stop.cancelled() => return Ok(stats),
            () = tokio::time::sleep(backoff.next(retry_delay(&status))) => {}
        }
    }
}

async fn stream(
    client: &Client,
    cursor: &mut String,
    backoff: &mut Backoff,
    stats: &mut WatchStats,
    opened: &mut impl FnMut(),
    take: &mut impl FnMut(&Event),
) -> Status {
    let mut call = Request::new(WatchEventsRequest { practice: String::new(), cursor: cursor.clone() });
    call.set_timeout(STREAM_DEADLINE);
    let mut inbound = match client.messages().watch_events(call).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return status,
    };
    opened();
    loop {
        match tokio::time::timeout(SILENCE_MAX, inbound.message()).await {
            Err(_) => return Status::unavailable("the event stream fell silent"),
            Ok(Err(status)) => return status,
            Ok(Ok(None)) => return Status::unavailable("the event stream ended"),
            Ok(Ok(Some(response))) => {
                backoff.reset();
                stats.events += response.events.len() as u64;
                response.events.iter().for_each(&mut *take);
                if !response.cursor.is_empty() {
                    *cursor = response.cursor;
                }
            }
        }
    }
}
